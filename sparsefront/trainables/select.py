"""The k best of each row, exactly: the selection behind masks that change in training, for all lanes at once.

`spaces.masks.top_k` is the same rule for one mask in numpy. Higher is better; ties go to the lower flat index.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

#: Entries from which a row's threshold is bracketed by a sample first, and about how many that has.
_MANY, _SAMPLED = 1 << 18, 1 << 15
#: Entries of such a row that are compared at a time: a core's own cache holds them and what they are compared to.
_BLOCK = 1 << 17


def keep_top(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The k highest entries of each row: (L, n) bool on the device of `scores`.

    Rows do not see each other; a row with a score that is not a number may keep fewer. On a GPU nothing waits for the
    device.

    Args:
        scores: (L, n), finite, of any real type; overwritten never.
        k: entries to keep of each row, 0..n; or (L,) integers, one for each row.

    Cost: O(L n). On a CPU by numpy's vectorised selection: 32 rows of 32,768 take 2 ms of one core, where
    ``torch.kthvalue`` takes 12 and a stable sort 77. Of a long row most entries are only compared with what
    brackets the threshold: 1,861,632 take 2.2 ms, where a selection among all takes 3.8.

    >>> keep_top(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), 2).tolist()
    [[True, True, False, False]]
    """
    return _top(scores, k.to(scores.device) if isinstance(k, torch.Tensor) else k)[0]


def _top(scores: torch.Tensor, k: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `keep_top` keeps, (L, n) bool, and its lowest score, (L, 1); of a row that keeps nothing, the highest.

    Of a long row with a score that is not a number, none: not a number.
    """
    n = scores.shape[1]
    if isinstance(k, int) and k in (0, n):
        lowest = scores.amin(dim=1, keepdim=True) if k else scores.amax(dim=1, keepdim=True)
        return torch.full(scores.shape, k == n, dtype=torch.bool, device=scores.device), lowest
    if scores.device.type != "cpu":
        threshold = _threshold_on_device(scores, k)
        return _keep_from(scores, threshold, k), threshold
    if isinstance(k, int) and _is_of_many(scores):
        kept, lowest = torch.empty(scores.shape, dtype=torch.bool), scores.new_empty(len(scores), 1)
        for row, into, threshold in zip(scores.numpy(), kept.numpy(), lowest, strict=True):
            threshold.fill_(_top_of_many(row, k, into))
        return kept, lowest
    threshold = _threshold_on_host(scores, k)
    kept = torch.from_numpy(scores.numpy() >= threshold.numpy())
    n_kept = torch.from_numpy(np.count_nonzero(kept.numpy(), axis=1))
    if not bool((n_kept == k).all()):  # ties at the threshold
        kept = _keep_from(scores, threshold, k)
    return kept, threshold


def is_long(n: int) -> bool:
    """Whether a row of n scores is long: worth a sample of it first."""
    return n >= _MANY


def _is_of_many(scores: torch.Tensor) -> bool:
    """Whether rows are long, real and on a CPU: each is selected from by itself."""
    return scores.device.type == "cpu" and is_long(scores.shape[1]) and scores.dtype in (torch.float32, torch.float64)


def _keep_from(scores: torch.Tensor, threshold: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """What is above the k-th highest entry of each row (L, 1), and the first of those that equal it."""
    above, equal = scores > threshold, scores == threshold
    missing = (k - above.sum(dim=1))[:, None]
    return above.logical_or_(equal.logical_and_(equal.cumsum(dim=1) <= missing))


class Row(Protocol):
    """One row of scores, float32 or float64: they may be made where they are asked for, and need not exist at once."""

    def __len__(self) -> int:
        """How many there are."""

    def every(self, step: int) -> npt.NDArray[np.floating]:
        """The first of each `step` of them, in whatever order it has; not written to."""

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        """How many are above `high`, and those that are neither above it nor below `low`.

        Of these, equals come in the order of their places. Those below `low` are not kept.
        """


@dataclass(frozen=True)
class Compared:
    """A row that has been compared with two scores.

    Attributes:
        kept: (n,) bool, which are above the higher.
        n_above: how many.
        places: (m,) of those that are neither above the higher nor below the lower, ascending.
        values: (m,) their scores.
    """

    kept: npt.NDArray[np.bool_]
    n_above: int
    places: npt.NDArray[np.int64]
    values: npt.NDArray[np.floating]

    def keep(self, stay: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """`kept`, and those in between that `stay` (m,) keeps."""
        self.kept[self.places] = stay
        return self.kept


def compare(
    blocks: Iterable[npt.NDArray[np.floating]], low: float, high: float, kept: npt.NDArray[np.bool_]
) -> Compared:
    """Compare a row, one block after the other, each until the next is asked for; `kept` (n,) is written to."""
    n_above, start, places, parts = 0, 0, [], []
    for block in blocks:
        stop = start + len(block)
        above = np.greater(block, high, out=kept[start:stop])
        n_above += int(np.count_nonzero(above))
        is_open = block < low
        np.equal(is_open, above, out=is_open)  # neither; so is all that is not a number
        found = np.flatnonzero(is_open)
        places.append(found + start)
        parts.append(block[found])
        start = stop
    if not places:
        return Compared(kept, 0, np.empty(0, np.int64), np.empty(0))
    return Compared(kept, n_above, np.concatenate(places), np.concatenate(parts))


class _Held:
    """A row that exists."""

    def __init__(self, scores: npt.NDArray[np.floating], kept: npt.NDArray[np.bool_]) -> None:
        self._scores, self._kept = scores, kept

    def __len__(self) -> int:
        return len(self._scores)

    def every(self, step: int) -> npt.NDArray[np.floating]:
        return self._scores[::step]

    def between(self, low: float, high: float) -> tuple[int, npt.NDArray[np.floating]]:
        blocks = (self._scores[start : start + _BLOCK] for start in range(0, len(self), _BLOCK))
        self.compared = compare(blocks, low, high, self._kept)
        return self.compared.n_above, self.compared.values


def _top_of_many(row: npt.NDArray[np.floating], k: int, kept: npt.NDArray[np.bool_]) -> float:
    """Write the k highest of one long row (n,), 0 < k < n, to `kept`.

    Returns:
        The lowest score that is kept; not a number if any of the row is not.
    """
    held = _Held(row, kept)
    found = _top_by_sample(held, k)
    if found is not None:
        stay, lowest = found
        held.compared.keep(stay)
        return lowest
    kept[:], lowest = _top_of_row(row, k)
    return math.nan if np.isnan(row.max()) else lowest


def _top_by_sample(row: Row, k: int, *, only_positive: bool = False) -> tuple[npt.NDArray[np.bool_], float] | None:
    """Select the k highest of one long row, 0 < k < n, if a sample tells which they are.

    Two entries of a sample, three standard deviations of a rank above and below the k-th highest, nearly always enclose
    it. All others are only compared with these.

    Returns:
        Which of what `Row.between` gave are among them, beside all that is above, and the lowest of all; None if the
        sample does not tell, or a score is not a number; with `only_positive` also if a score that is not positive, or
        a denormal number, would be kept.
    """
    n = len(row)
    # An odd step meets all columns of a matrix whose rows are a power of two.
    ordered = -row.every(n // _SAMPLED | 1)  # of the negative, as below
    place = k / n * len(ordered)
    margin = 3 * (place * (1 - k / n)) ** 0.5 + 1
    first, last = int(place - margin) - 1, int(place + margin) + 1
    # One after the other: numpy's selection of several at once is not vectorised.
    if last < len(ordered):
        ordered.partition(last)
    if first >= 0:
        ordered[:last].partition(first)
    finite = np.finfo(ordered.dtype)
    # What is gone (minus infinity) is no candidate: late rounds of pruning have little else below the threshold.
    # In this order of arguments neither is what is not a number.
    floor = finite.tiny if only_positive else finite.min
    low = max(floor, -ordered[last]) if last < len(ordered) else floor
    high = max(-ordered[first], low) if first >= 0 else finite.max
    n_above, values = row.between(float(low), float(high))
    if not 0 < k - n_above <= len(values) or np.isnan(values.max()):
        return None
    return _top_of_row(values, k - n_above)


def _top_of_row(row: npt.NDArray[np.floating], k: int) -> tuple[npt.NDArray[np.bool_], float]:
    """The k highest of one row, (n,) bool, and the lowest of them."""
    negative = -row
    negative.partition(k - 1)
    threshold = -negative[k - 1]
    kept = row >= threshold
    n_surplus = np.count_nonzero(kept) - k
    if n_surplus > 0:
        kept[np.flatnonzero(row == threshold)[-n_surplus:]] = False
    return kept, float(threshold)


def _threshold_on_device(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The k-th highest entry of each row, (L, 1); of a row that keeps nothing, its highest."""
    if isinstance(k, int):
        return torch.kthvalue(scores, scores.shape[1] - k + 1, dim=1, keepdim=True).values
    ordered = scores.sort(dim=1, descending=True).values
    return ordered.gather(1, (k[:, None] - 1).clamp_min(0))


def _threshold_on_host(scores: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """The same, faster."""
    # Of the negative: many equal low scores (masked weights) make the selection of the highest ten times slower.
    negative = -scores.numpy()
    if isinstance(k, int):
        negative.partition(k - 1, axis=1)
        return torch.from_numpy(-negative[:, k - 1 : k])
    places = np.maximum(k.numpy() - 1, 0)
    for row, place in zip(negative, places, strict=True):
        row.partition(place)
    return torch.from_numpy(-np.take_along_axis(negative, places[:, None], axis=1))


def keep_sections(scores: torch.Tensor, sizes: Sequence[int], counts: Sequence[int | torch.Tensor]) -> torch.Tensor:
    """The highest entries of each row, exactly `counts` of its sections: (L, W) bool.

    Args:
        scores: (L, W), finite.
        sizes: (s,) entries of each section, W in all.
        counts: (s,) entries to keep of each section; or (1,) over all sections, of which each keeps at least its best.
            Of each, one number or (L,) integers, one for each row, on the device of `scores`.

    >>> keep_sections(torch.tensor([[5.0, 4.0, 3.0, 1.0]]), [3, 1], [2]).tolist()
    [[True, False, False, True]]
    """
    return keep_sections_and_lows(scores, sizes, counts)[0]


def keep_sections_and_lows(
    scores: torch.Tensor, sizes: Sequence[int], counts: Sequence[int | torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What `keep_sections` keeps, (L, W) bool, and columns of kept scores, (L, 1), one of which is a row's lowest."""
    edges = _edges(sizes)
    if len(counts) == len(sizes):
        parts = [_top(scores[:, a:b], k) for (a, b), k in zip(edges, counts, strict=True)]
        return torch.cat([masks for masks, _ in parts], dim=1), [lowest for _, lowest in parts]
    if isinstance(counts[0], int) and _is_of_many(scores):
        masks, lowest = _top(scores, counts[0])
        for i, (row, mask, low) in enumerate(zip(scores.numpy(), masks.numpy(), lowest.numpy(), strict=True)):
            if np.isnan(low[0]):
                masks[i] = _top_of_lifted(scores[i : i + 1], edges, counts[0])[0]
                continue
            empty = [(a, b) for a, b in edges if not mask[a:b].any()]
            if empty:
                low[0] = _fill_sections(row, mask, edges, n_empty=len(empty))
        return masks, [lowest]
    return _top_of_lifted(scores, edges, counts[0])


def cut_row(row: Row, k: int) -> npt.NDArray[np.bool_] | None:
    """Select the k highest of a row of scores >= 0 that need not exist at once.

    Returns:
        Which of what `Row.between` gave are among them, beside all that is above; None where that takes all scores at
        once: where a score of zero would be kept (or one below 1e-307 in float64), where many scores are equal, or one
        is not a number.
    """
    # Zeros are no candidates: late rounds of pruning, where few go, have nothing else below the threshold.
    found = _top_by_sample(row, k, only_positive=True) if 0 < k < len(row) else None
    return None if found is None else found[0]


def _edges(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where each section begins and ends."""
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def _top_of_lifted(
    scores: torch.Tensor, edges: Sequence[tuple[int, int]], k: int | torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`keep_sections_and_lows` of a count over all: the best of each section is made better than all others first.

    What is not a number is a section's best.
    """
    lifted, bests = scores.clone(), []
    for a, b in edges:
        best = scores[:, a:b].max(dim=1, keepdim=True)
        lifted.scatter_(1, best.indices + a, torch.inf)
        bests.append(best.values)
    masks, lowest = _top(lifted, k)
    return masks, [*bests, lowest]


def _fill_sections(
    row: npt.NDArray[np.floating],
    kept: npt.NDArray[np.bool_],
    edges: Sequence[tuple[int, int]],
    *,
    n_empty: int,
) -> float:
    """Keep the best of each section in place of the lowest of what is `kept` (n,); return the lowest that then is."""
    bests = np.array([a + np.argmax(row[a:b]) for a, b in edges])
    kept[bests] = False
    others = np.flatnonzero(kept)
    lowest = float(row[bests].min())
    n_others = len(others) - n_empty
    if n_others:
        stay, threshold = _top_of_row(row[others], n_others)
        lowest, others = min(lowest, threshold), others[~stay]
    kept[others] = False
    kept[bests] = True
    return lowest


#: Units of a group up to which comparing each with each is faster than a sort (4 of 262,144 groups: 5 ms against 23).
_FEW = 8


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Place of each entry among those of its last dimension: 0 for the highest, the lower index first of equals.

    A row with a score that is not a number may have places twice.

    >>> ranks(torch.tensor([[3.0, 1.0, 1.0, 5.0]])).tolist()
    [[1, 2, 3, 0]]
    """
    n = scores.shape[-1]
    if n > _FEW:
        order = scores.argsort(dim=-1, descending=True, stable=True)
        return torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=order.device).expand_as(order))
    columns = scores.movedim(-1, 0).contiguous()
    places = torch.zeros(columns.shape, dtype=torch.uint8, device=scores.device)
    for later in range(n):
        for earlier in range(later):
            wins = columns[later] > columns[earlier]
            places[earlier] += wins
            places[later] += ~wins
    return places.movedim(0, -1)
