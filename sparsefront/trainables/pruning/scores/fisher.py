"""Fisher: the expected rise of the loss when an entry goes, w^2 F / 2, with the diagonal empirical Fisher information.

F is the mean over examples of the squared gradient of one example's loss at its label. Nodes: the sum over everything
that leaves with them (tensors that are not trained aside).

References: LeCun et al., Optimal brain damage, 1990 (w^2 h / 2); Theis et al., Faster gaze prediction with dense
networks and Fisher pruning, 2018 (the Fisher information in place of h).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.derivatives import mean_squared_gradients
from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W)."""
    return state.of_weights(_rise(state))


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes(_rise(state))


def _rise(state: ScoringState) -> dict[str, torch.Tensor]:
    weights_of, squares = state.parameters, mean_squared_gradients(state)
    return {name: f.mul_(weights_of[name]).mul_(weights_of[name]).mul_(0.5) for name, f in squares.items()}
