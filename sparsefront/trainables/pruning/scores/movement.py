"""Movement: what training changed most matters, |w - w_start|, in whichever direction it moved.

Not here: `first_order_movement`, the running sum of -w dL/dw of Sanh et al. (2020), which ranks by the growth of |w|.

Reference: Zhou et al., Deconstructing lottery tickets, 2019 (mask criterion 'movement').
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """|w - w_start|: (L, W)."""
    return state.of_weights(_moved(state)).abs_()


def nodes(state: ScoringState) -> torch.Tensor:
    """L2 norms of the movement of coupled groups: (L, N) float64."""
    return state.over_nodes(_moved(state), of=torch.Tensor.square_).sqrt_()


def _moved(state: ScoringState) -> torch.Tensor:
    assert state.start is not None
    moved = state.lanes.flat - state.start
    return moved if state.lanes.keep is None else moved.mul_(state.lanes.keep)
