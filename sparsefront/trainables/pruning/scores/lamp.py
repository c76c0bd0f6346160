"""LAMP: a squared weight relative to those of its layer that are not smaller.

score(u) = w_u^2 / sum of w_v^2 over the v of its layer with w_v^2 >= w_u^2, so that one global threshold divides the
counts over layers; the largest of each layer scores 1 or, if others are equal, their share. Within a layer it ranks as
magnitude does. Nodes: the same over the squared group norms of a node group.

Reference: Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, 2021.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.trainables.pruning.state import ScoringState

_TINY = float(np.finfo(np.float64).tiny)


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W) float64."""
    sections = list(state.structure.section_sizes("weight"))
    entries = state.over_weights(state.parameters, of=torch.Tensor.abs_)
    scores = torch.empty(entries.shape, dtype=torch.float64, device=entries.device)
    for part, into in zip(torch.split(entries, sections, dim=1), torch.split(scores, sections, dim=1), strict=True):
        if part.device.type == "cpu" and part.dtype == torch.float32 and part.shape[1] < 1 << 32:
            for row, found in zip(part.numpy(), into.numpy(), strict=True):
                _score_sizes(row, found)
        else:
            _score_squares(part.double().square_(), into)
    return scores


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    sections = list(state.structure.section_sizes("node"))
    squares = state.over_nodes(state.lanes.flat, of=torch.Tensor.square_)
    scores = torch.empty_like(squares)
    for part, into in zip(torch.split(squares, sections, dim=1), torch.split(scores, sections, dim=1), strict=True):
        _score_squares(part, into)
    return scores


def _score_sizes(row: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> None:
    """Write the scores of absolute weights (n,), n below 2^32.

    Each is sorted in one word with its place, which takes a quarter of the time of sorting places by their squares
    (1,048,576 weights, one core: 9 ms for 37): as a positive number it is in the order of its bits.
    """
    words = row.view(np.uint32).astype(np.uint64)
    words <<= np.uint64(32)
    words |= np.arange(len(row), dtype=np.uint64)
    words.sort()
    order = (words & np.uint64(0xFFFFFFFF)).astype(np.intp)
    words >>= np.uint64(32)
    squares = words.astype(np.uint32).view(np.float32).astype(np.float64)
    squares *= squares
    scores[order] = _shares(squares)


def _score_squares(squares: torch.Tensor, scores: torch.Tensor) -> None:
    """Write the scores of squares (L, n), row by row."""
    if squares.device.type == "cpu":  # numpy's sort is several times faster
        for row, found in zip(squares.numpy(), scores.numpy(), strict=True):
            places = np.argsort(row)
            found[places] = _shares(row[places])
        return
    ordered, order = squares.sort(dim=1)
    at_least = ordered.flip(1).cumsum_(1).flip(1)
    # Equal squares share the sum at the first of them.
    index = torch.arange(squares.shape[1], device=squares.device).expand_as(order)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(is_first, index, 0).cummax(1).values
    scores.scatter_(1, order, ordered / at_least.gather(1, first).clamp_min(_TINY))


def _shares(ordered: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each of ascending squares (n,) over the sum of those not smaller; zeros score zero.

    >>> _shares(np.array([0.0, 4.0, 4.0, 16.0]))
    array([0.        , 0.16666667, 0.16666667, 1.        ])
    """
    at_least = np.cumsum(ordered[::-1])[::-1]
    is_first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    if not is_first.all():  # equal squares share the sum at the first of them
        starts = np.flatnonzero(is_first)
        at_least = np.repeat(at_least[starts], np.diff(starts, append=len(ordered)))
    return ordered / np.maximum(at_least, _TINY)
