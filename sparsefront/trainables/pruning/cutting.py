"""Masks as a pruning method orders them: of initial weights, of trained ones, and those that training begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations import counts_from_scores, kept_counts
from sparsefront.spaces.masks import Mask, split_sections
from sparsefront.spaces.patterns import drawn_counts, keep_rivals, parse_pattern, random_masks
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.schedules import geometric
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.pruning.registry import SCORES, iterative_mask
from sparsefront.trainables.pruning.selection import keep_best
from sparsefront.trainables.pruning.state import ScoringState


@dataclass(frozen=True)
class CutMask:
    """A mask of the parent, and the forward+backward passes of an example that it took to make."""

    mask: Mask
    passes: float


@dataclass(frozen=True)
class Cutter:
    """Cuts masks of one parent.

    Attributes:
        structure: of the parent.
        kind: of the masks, 'node' or 'weight'.
        allocation: of methods that name none.
    """

    structure: Structure
    kind: str
    allocation: str

    def counts(self, method: Pruning, sparsity: float) -> tuple[int, ...]:
        """Survivors of each section, or (k,) over all."""
        allocation = method.allocation or self.allocation
        return kept_counts(self.structure, self.kind, sparsity, allocation, explicit=method.densities or None)

    def kept(self, method: Pruning, sparsity: float) -> tuple[int, ...]:
        """Units that each group of rivals keeps under the method's pattern, on the way to its end too (`Pattern.kept`).

        Raises:
            SpaceError: one count over all layers, which blocks cannot share while they train.
        """
        counts = self.counts(method, sparsity)
        if self._is_free(method):
            return counts
        pattern = parse_pattern(method.pattern).on_the_way(1 - sparsity)
        if pattern.density is None and len(counts) != len(self.structure.section_sizes(self.kind)):
            raise SpaceError(
                f"allocation={method.allocation or self.allocation!r} with pattern={method.pattern!r} and "
                f"update={method.update!r}: blocks that are chosen in training need a count for each layer; use an "
                "allocation that gives one, such as 'erk'"
            )
        return pattern.kept(self.structure, counts)

    def at_random(self, method: Pruning, sparsity: float, key: npt.NDArray[np.uint64]) -> Mask:
        """A uniform mask of the method's pattern; one count over all is divided as single weights would divide it."""
        pattern = parse_pattern("node" if self.kind == "node" else method.pattern)
        counts = drawn_counts(pattern, self.structure, self.counts(method, sparsity), key, number=0)
        mask: Mask = random_masks(pattern, self.structure, counts, key, start=0, stop=1)[0]
        return mask

    def at_init(self, method: Pruning, sparsity: float, state: ScoringState) -> CutMask:
        """The mask that scores of initial weights leave; `state` is one lane, the parent.

        Raises:
            SpaceError: a score that the kind of mask has not, or weights that cannot be scored.
        """
        score, n_examples, passes = SCORES[method.score], _n_examples(state), 0.0
        fixed: tuple[int, ...] | None = None

        def counts_of(density: float) -> tuple[int, ...]:
            return self.counts(method, 1 - density) if fixed is None else fixed

        if method.counts_of is not None:
            ratios = SCORES[method.counts_of]
            found = ratios.of(state, self.kind)[0].double().cpu().numpy()
            fixed = counts_from_scores(self.structure, self.kind, found, sparsity)
            passes = ratios.passes(n_examples)
        passes += score.passes(n_examples, method.rounds)
        if self._is_free(method):
            masks = iterative_mask(
                score, state, self.kind, density=1 - sparsity, counts_of=counts_of, rounds=method.rounds
            )
            return CutMask(masks[0].cpu().numpy(), passes)
        for i in range(1, method.rounds + 1):
            density = geometric(1 - sparsity, i, method.rounds)
            mask = self._select(method, 1 - density, score.of(state, self.kind), counts_of(density))
            state = state.masked(torch.from_numpy(mask)[None].to(state.lanes.flat.device), self.kind)
        return CutMask(mask, passes)

    def after_training(
        self,
        method: Pruning,
        sparsity: float,
        state: ScoringState,
        mask: Mask | None,
        *,
        later: Sequence[float] = (),
    ) -> CutMask:
        """The mask that scores of a trained network leave of it.

        Args:
            method: how it is cut.
            sparsity: of the mask, as a mask of the parent.
            state: one lane; `start` its weights when its training began.
            mask: that the lane has; None for the whole parent. A node mask's lane is compact.
            later: sparsities of the masks that will be cut from what is left of it, ascending: see `falling_to`.
        """
        score = SCORES[method.score]
        passes = score.passes(_n_examples(state))
        scores = score.of(state, self.kind)
        if self.kind == "node" and mask is not None:
            scores = self._of_parent(scores, state.structure, mask)
        counts = self._counts_before(method, sparsity, later)
        if not self._is_free(method):
            return CutMask(self._select(method, sparsity, scores, counts), passes)
        n_late = method.n_activating(int(scores.isfinite().sum()) - sum(counts))
        if not n_late:
            kept = keep_best(scores, self.structure.section_sizes(self.kind), counts)
            return CutMask(kept[0].cpu().numpy(), passes)
        return CutMask(self._activating(method, state, scores, counts, n_late), passes)

    def _counts_before(self, method: Pruning, sparsity: float, later: Sequence[float]) -> tuple[int, ...]:
        """`counts` of one level of a chain, of which the later ones can be cut."""
        *others, needed = (self.counts(method, s) for s in (sparsity, *later))
        for counts in reversed(others):
            needed = falling_to(counts, needed)
        return needed

    def _is_free(self, method: Pruning) -> bool:
        return self.kind == "node" or method.pattern == "unstructured"

    def _select(self, method: Pruning, sparsity: float, scores: torch.Tensor, counts: Sequence[int]) -> Mask:
        """The best mask of the method's pattern; one count over all is divided as single weights would divide it.

        On the way to a sparsity it is one on the way to its pattern, of what is left.
        """
        found = scores[0].double().cpu().numpy()
        left = np.isfinite(found)
        # A unit that is gone loses against every other of its size, and all sums are finite.
        found = np.where(left, found, -2 * np.abs(found[left]).max() - 1)
        if len(counts) != len(self.structure.section_sizes(self.kind)):
            counts = counts_from_scores(self.structure, self.kind, found, sparsity)
        pattern = parse_pattern(method.pattern).on_the_way(1 - sparsity)
        return keep_rivals(pattern, self.structure, found, pattern.kept(self.structure, counts, left))

    def _of_parent(self, scores: torch.Tensor, compact: Structure, mask: Mask) -> torch.Tensor:
        """Scores of a compact network's nodes, (1, n), as scores of the parent's: minus infinity for what is gone."""
        found = torch.full((1, len(mask)), -torch.inf, dtype=scores.dtype, device=scores.device)
        parts = torch.split(scores, list(compact.section_sizes("node")), dim=1)
        start = 0
        for section, part in zip(split_sections(self.structure, "node", mask), parts, strict=True):
            kept = np.flatnonzero(section)
            found[0, torch.from_numpy(start + kept).to(found.device)] = part[0, : len(kept)]
            start += len(section)
        return found

    # Activating while pruning ----------------------------------------------------------------------------------------

    def _activating(
        self, method: Pruning, state: ScoringState, scores: torch.Tensor, counts: Sequence[int], n_late: int
    ) -> Mask:
        """The mask after the base score's removals and then those of weights of one sign that moved least.

        References: Liu, Ghosh, Tan and Motani, Activate-while-pruning (algorithm of the released code): what the base
        criterion leaves loses its negative weights of least movement in this cycle.
        """
        if self.kind != "weight" or len(counts) != 1:
            raise SpaceError(
                f"ap_fraction={method.ap_fraction!r}: removes single weights wherever they are; use masks.kind "
                "'weight' and allocation 'global'"
            )
        assert state.start is not None
        sizes = self.structure.section_sizes("weight")
        weights, start = state.of_weights(state.lanes.flat)[0], state.of_weights(state.start)[0]
        kept = keep_best(scores, sizes, [counts[0] + n_late])[0]
        able = kept & (weights * method.ap_sign > 0)
        n_able = int(able.sum())
        if n_able < n_late:  # fewer of that sign than asked for: the base score takes the rest
            kept = keep_best(scores, sizes, [counts[0] + n_able])[0]
            able = kept & (weights * method.ap_sign > 0)
        movement = torch.where(able, (weights - start).abs(), torch.inf)
        left = kept.clone()
        n_left = [int(part.sum()) for part in torch.split(kept, list(sizes))]
        edges = np.cumsum([0, *sizes])
        n_wanted = int(kept.sum()) - counts[0]
        for i in torch.argsort(movement, stable=True).tolist():
            if not n_wanted:
                break
            section = int(np.searchsorted(edges, i, side="right")) - 1
            if n_left[section] == 1 or not bool(able[i]):
                continue
            left[i], n_left[section], n_wanted = False, n_left[section] - 1, n_wanted - 1
        if n_wanted:
            return np.asarray(keep_best(scores.where(left, -torch.inf), sizes, counts)[0].cpu().numpy())
        return np.asarray(left.cpu().numpy())


def falling_to(counts: Sequence[int], needed: Sequence[int]) -> tuple[int, ...]:
    """Survivors of each section at one level of a chain, where `needed` of them must be left at the next.

    An allocation may give a section more at a higher sparsity than at a lower one (apportioned rounding; a classifier
    that is dense as long as the budget allows it, and not thereafter), and what is gone never comes back. Then the
    section keeps what it needs later, and the others give as many, each in proportion to what it has above its own
    later need: the total is that of `counts`. Where no section rises, these are `counts`.

    Args:
        counts: of each section as its allocation has them, or (k,) over all.
        needed: as many numbers, with a sum not above that of `counts`.

    >>> falling_to([90, 40, 10], [50, 20, 6]), falling_to([60, 30, 10], [30, 10, 14])
    ((90, 40, 10), (58, 28, 14))
    """
    least = np.asarray(needed)
    spare = np.maximum(0, np.asarray(counts) - least)
    excess = int(spare.sum() + least.sum()) - max(sum(counts), sum(needed))
    taken, rest = np.divmod(excess * spare, max(1, int(spare.sum())))
    largest = np.argsort(-rest, kind="stable")[: excess - int(taken.sum())]
    taken[largest] += 1
    return tuple((least + spare - taken).tolist())


def _n_examples(state: ScoringState) -> int:
    return 0 if state.examples is None else len(state.examples)


def scatter_nodes(structure: Structure, mask: Mask, compact: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a compact network at their places in the parent's, zeros elsewhere; inverse of cutting them out."""
    indices: dict[str, dict[int, torch.Tensor]] = {t.name: {} for t in structure.tensors}
    for group, section in zip(structure.groups, split_sections(structure, "node", mask), strict=True):
        kept = np.flatnonzero(section)
        for axis in group.axes:
            entries = (kept[:, None] * axis.repeat + np.arange(axis.repeat)).reshape(-1)
            indices[axis.tensor][axis.dim] = torch.from_numpy(entries)
    found: dict[str, torch.Tensor] = {}
    for tensor in structure.tensors:
        part = compact[tensor.name]
        axes = [
            indices[tensor.name].get(dim, torch.arange(size)).to(part.device) for dim, size in enumerate(tensor.shape)
        ]
        cut = part[tuple(slice(0, len(a)) for a in axes)]  # a padded network is larger than its own nodes
        whole = torch.zeros(tensor.shape, dtype=part.dtype, device=part.device)
        grid = torch.meshgrid(*axes, indexing="ij") if axes else ()
        whole[grid if grid else ()] = cut
        found[tensor.name] = whole
    return found
