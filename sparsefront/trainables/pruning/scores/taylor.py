"""Taylor: the squared first-order change of the loss when an entry goes, (w dL/dw)^2.

Nodes: the square of the signed sum of w dL/dw over everything that leaves with them, since they leave together (where
SNIP adds absolute values). For ReLU networks that sum is twice the derivative by a gate on the node's output.

Reference: Molchanov et al., Importance estimation for neural network pruning, 2019 (equation 8 and section 3.2).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.derivatives import gradient
from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W)."""
    return state.over_weights(gradient(state), factors=state.parameters, of=torch.Tensor.square_)


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes(gradient(state), factors=state.parameters).square_()
