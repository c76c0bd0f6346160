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
    return state.over_weights(gradient(state), factors=_keep(state), of=torch.Tensor.abs_)


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes(gradient(state), factors=_keep(state), of=torch.Tensor.square_).sqrt_()


def _keep(state: ScoringState) -> dict[str, torch.Tensor] | None:
    """By name, (L, *shape); None for lanes without a mask. The gradient of what is gone is not zero."""
    return None if state.lanes.keep is None else state.lanes.layout.views(state.lanes.keep)
