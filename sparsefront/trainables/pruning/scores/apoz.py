"""APoZ: nodes that are zero on few examples matter; the score is 1 - the average fraction of zeros.

Only activations that are exactly zero somewhere (ReLU) tell nodes apart: with others all tie.

Reference: Hu et al., Network trimming, 2016 (average percentage of zeros).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.activations import mean_over_activations
from sparsefront.trainables.pruning.state import ScoringState


def nodes(state: ScoringState) -> torch.Tensor:
    """Fraction of examples and positions on which a node is not zero: (L, N)."""
    return mean_over_activations(state, lambda activation: activation.sign().abs_())
