"""LAMP: a squared weight relative to those of its layer that are not smaller.

score(u) = w_u^2 / sum of w_v^2 over the v of its layer with w_v^2 >= w_u^2, so that one global threshold divides the
counts over layers; the largest of each layer scores 1 or, if others are equal, their share. Within a layer it ranks as
magnitude does. Nodes: the same over the squared group norms of a node group.

Reference: Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W) float64."""
    squares = state.of_weights(state.lanes.flat).double().square_()
    return _within_sections(squares, state.structure.section_sizes("weight"))


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    squares = state.over_nodes(state.lanes.flat, of=torch.Tensor.square_)
    return _within_sections(squares, state.structure.section_sizes("node"))


def _within_sections(squares: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    return torch.cat([_relative(part) for part in torch.split(squares, list(sizes), dim=1)], dim=1)


def _relative(squares: torch.Tensor) -> torch.Tensor:
    """Each square over the sum of those not smaller, row by row; zeros score zero."""
    if squares.device.type == "cpu":  # numpy's is several times faster
        order = torch.from_numpy(np.argsort(squares.numpy(), axis=1))
        ordered = squares.gather(1, order)
    else:
        ordered, order = squares.sort(dim=1)
    at_least = ordered.flip(1).cumsum_(1).flip(1)
    # Equal squares share the sum at the first of them.
    index = torch.arange(squares.shape[1], device=squares.device).expand_as(order)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(is_first, index, 0).cummax(1).values
    share = ordered / at_least.gather(1, first).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(squares).scatter_(1, order, share)
