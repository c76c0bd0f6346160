"""Mean activation: nodes that hand on much matter; the score is the mean of |activation|.

Reference: Molchanov et al., Pruning convolutional neural networks for resource efficient inference, 2017 (criterion
'activation').
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.activations import mean_over_activations
from sparsefront.trainables.pruning.state import ScoringState


def nodes(state: ScoringState) -> torch.Tensor:
    """Mean over examples and positions of |activation|: (L, N)."""
    return mean_over_activations(state, torch.abs)
