"""Gradient norm: what training would move first matters, |dL/dw|, whatever the weight is now.

Nodes: the L2 norm over everything that leaves with them.

Reference: Evci et al., Rigging the lottery, 2020 (the growth rule of RigL, used here as a score).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.derivatives import gradient
from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """|dL/dw|: (L, W)."""
    return state.of_weights(_kept_gradient(state)).abs_()


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes({name: g.double().square_() for name, g in _kept_gradient(state).items()}).sqrt_()


def _kept_gradient(state: ScoringState) -> dict[str, torch.Tensor]:
    found = gradient(state)
    if state.lanes.keep is None:
        return found
    keep = state.lanes.layout.views(state.lanes.keep)
    return {name: g.mul_(keep[name]) for name, g in found.items()}
