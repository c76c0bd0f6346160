"""What a pack and the masks that change in it agree on.

Steps are counted as in `spaces.schedules`: step t is the one that t steps came before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.spaces.pruning import last_update
from sparsefront.spaces.schedules import Decay
from sparsefront.spaces.structure import Structure, Tensor
from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.mask_updates.nodes import Nodes
from sparsefront.trainables.optimizers import LaneOptimizer
from sparsefront.trainables.select import keep_sections, keep_top, ranks


@dataclass(frozen=True)
class Section:
    """Columns start..stop of a lane's flat row: one prunable tensor, each of whose outputs has `fan_in` inputs.

    `rivals` are those of the masks' pattern, with indices in the section (see `spaces.patterns.Pattern.rivals`); None
    where all entries compete.
    """

    start: int
    stop: int
    fan_in: int
    rivals: tuple[torch.Tensor, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return self.stop - self.start

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The tensor of every lane: (L, size), a view of `flat` (L, P)."""
        return flat[:, self.start : self.stop]


def sections_of(
    structure: Structure, layout: Layout, pattern: str = "unstructured", *, device: torch.device | None = None
) -> tuple[Section, ...]:
    """Where the prunable tensors lie in a row of `layout`, in the order of a weight mask.

    Args:
        structure: the parent.
        layout: of the lanes.
        pattern: that masks obey, as `spaces.patterns.parse_pattern` reads it.
        device: of the lanes.

    Raises:
        SpaceError: the layout is not that of the structure itself: masks change in networks that are not compacted.
    """
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    if other := [t.name for t in structure.prunable if shapes[t.name] != t.shape]:
        raise SpaceError(
            f"shape={shapes[other[0]]} of {other[0]!r}: masks that change in training need lanes of the parent's own "
            "shapes, not compact ones"
        )
    edges = dict(zip(layout.names, itertools.pairwise(itertools.accumulate(layout.sizes, initial=0)), strict=True))
    rule = parse_pattern(pattern)

    def rivals(tensor: Tensor) -> tuple[torch.Tensor, ...] | None:
        found = rule.rivals(tensor)
        return None if found is None else tuple(torch.from_numpy(index).to(device).contiguous() for index in found)

    return tuple(Section(*edges[t.name], t.size // t.shape[0], rivals(t)) for t in structure.prunable)


def gather(sections: Sequence[Section], flat: torch.Tensor) -> torch.Tensor:
    """The prunable entries of every lane, (L, W) in the order of a weight mask, copied from `flat` (L, P)."""
    return torch.cat([s.of(flat) for s in sections], dim=1)


def scatter(sections: Sequence[Section], entries: torch.Tensor, flat: torch.Tensor) -> None:
    """Inverse of `gather`: write `entries` (L, W) into `flat` (L, P)."""
    for section, part in zip(sections, torch.split(entries, [s.size for s in sections], dim=1), strict=True):
        section.of(flat).copy_(part)


def units_of(entries: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The entries of all units that compete: (L, groups, units, entries), copied from a section's (L, size)."""
    return entries.index_select(1, index.view(-1)).view(len(entries), *index.shape)


def summed(units: torch.Tensor) -> torch.Tensor:
    """Sum over the entries of each unit: (L, groups, units)."""
    return units[..., 0] if units.shape[-1] == 1 else units.sum(dim=-1)


def spread(units: torch.Tensor, index: torch.Tensor, entries: torch.Tensor) -> None:
    """Write what holds for units (L, groups, units) to all of their entries in a section's (L, size)."""
    each = units[..., None].expand(-1, *index.shape).reshape(len(units), -1)
    entries.index_copy_(1, index.view(-1), each.to(entries.dtype))


class Ranking(Protocol):
    """Ranks what the masks of a pack's lanes keep; made for these lanes, as the `MaskUpdates` are.

    All but the call is for rules that rank as they train (gradual), which say what they see.
    """

    def __call__(self, flat: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Scores of lanes (L, P), finite: (L, W or N), higher is kept; what `keep` (L, P) removes has any."""

    def start(self, flat: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """As `MaskUpdates.start`."""

    def observe(self, flat: torch.Tensor, gradient: torch.Tensor, *, until_update: int) -> None:
        """Look at weights and gradient (L, P) of a step before it is taken; 0 steps until an update: it will follow."""

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """As `MaskUpdates.keep_lanes`."""

    def slots(self) -> dict[str, torch.Tensor]:
        """As `MaskUpdates.slots`."""


@dataclass(frozen=True)
class UpdateSettings:
    """What the masks of a pack's lanes change by; each rule of `UPDATES` reads what it needs.

    Attributes:
        sections: the prunable tensors of the pack's layout.
        steps: of the whole training.
        nodes: of the pack's layout, where masks are of nodes; None for masks of weights.
        sparsity: fraction of zeros at the end, of the rules that decide it (gradual, edge_popup); one for each lane,
            where they are not the same.
        counts: sparsity -> survivors of each section, or (k,) over all (as `spaces.allocations.kept_counts`); under a
            pattern, the units that each group keeps (as `spaces.patterns.Pattern.kept`). Sections of a node mask are
            node groups.
        seed: of the study.
        lanes: (replicate, number) of each lane, which its random draws are keyed by.
        begin_fraction: share of the steps before the first update; None for the rule's own (gradual 0.1, else 0).
        end_fraction: share of the steps after which masks stay as they are.
        every: steps between updates; None for about 40 in all.
        drop_fraction: share of the connections that the first update replaces (SET, RigL).
        decay: of the drop fraction; None for the rule's own (SET constant, RigL cosine).
        score: by which gradual ranks, and every rule nodes. None for absolute weights, or L2 norms of all that a node
            owns.
        power: of the polynomial by which the sparsity rises (gradual).
        initial: (P,) or (L, P) weights that lanes had before their masks; nodes that come in take theirs (SET, RigL).
    """

    sections: tuple[Section, ...]
    steps: int
    nodes: Nodes | None = None
    sparsity: float | tuple[float, ...] = 0.0
    counts: Callable[[float], Sequence[int]] | None = None
    seed: int = 0
    lanes: tuple[tuple[int, int], ...] = ()
    begin_fraction: float | None = None
    end_fraction: float = 0.75
    every: int | None = None
    drop_fraction: float = 0.3
    decay: Decay | None = None
    score: Ranking | None = None
    power: float = 3.0
    initial: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse what no training can follow.

        Raises:
            SpaceError: steps or interval below 1, or a share of the steps outside [0, 1].
        """
        if self.steps < 1 or (self.every is not None and self.every < 1):
            raise SpaceError(f"steps={self.steps}, every={self.every}: mask updates need both to be at least 1")
        if not 0 <= (self.begin_fraction or 0.0) <= self.end_fraction <= 1:
            raise SpaceError(
                f"begin_fraction={self.begin_fraction}, end_fraction={self.end_fraction} of mask updates: shares of "
                "the training's steps in order, in [0, 1], are needed"
            )

    @property
    def sizes(self) -> list[int]:
        """Entries of each section of a mask."""
        return [s.size for s in self.sections] if self.nodes is None else list(self.nodes.sizes)

    def kept(self, keep: torch.Tensor) -> torch.Tensor:
        """The masks of lanes of which `keep` (L, P) says what they leave: (L, W or N) bool, a copy."""
        return gather(self.sections, keep) > 0 if self.nodes is None else self.nodes.kept(keep)

    def write(self, masks: torch.Tensor, keep: torch.Tensor) -> None:
        """Inverse of `kept`: write what `masks` (L, W or N) leave into `keep` (L, P)."""
        if self.nodes is None:
            scatter(self.sections, masks, keep)
        else:
            self.nodes.write(masks, keep)

    def scores(self, flat: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """How lanes (L, P) rank what their masks, `keep` (L, P), leave of them: (L, W or N)."""
        if self.score is not None:
            return self.score(flat, keep)
        return gather(self.sections, flat).abs_() if self.nodes is None else finite(self.nodes.norms(flat))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Those of the lanes; one of them, if all are the same."""
        return self.sparsity if isinstance(self.sparsity, tuple) else (self.sparsity,)

    def best(self, scores: torch.Tensor, of_lanes: torch.Tensor) -> torch.Tensor:
        """The masks of the pattern that keep the highest scores (L, W or N), finite: (L, W or N) bool.

        Units compete by the sums of their scores; ties go to the first. `of_lanes` (n, L) are as the `counts` of the
        settings, of each lane or of one for all.
        """
        counts = [n if isinstance(n := shared(each), int) else n.to(scores.device) for each in of_lanes]
        if self.nodes is not None or any(s.rivals is None for s in self.sections):
            return keep_sections(scores, self.sizes, counts)
        pairs = [(i, index) for i, s in enumerate(self.sections) for index in s.rivals or ()]
        kept = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
        values, masks = (torch.split(each, self.sizes, dim=1) for each in (scores, kept))
        for (i, index), n in zip(pairs, counts, strict=True):
            sums = summed(units_of(values[i], index))
            each = n if isinstance(n, int) else n[:, None, None]
            chosen = keep_top(sums[:, 0], n)[:, None] if len(index) == 1 else ranks(sums) < each
            spread(chosen, index, masks[i])
        return kept

    @property
    def end(self) -> int:
        """The last step at which masks may change."""
        return last_update(self.steps, self.end_fraction)


def shared(counts: torch.Tensor) -> int | torch.Tensor:
    """One number if all lanes agree."""
    return int(counts[0]) if bool((counts == counts[0]).all()) else counts


def finite(scores: torch.Tensor) -> torch.Tensor:
    """Scores, those that are not a number set to 0: a node mask keeps its counts where a lane diverged."""
    return scores.nan_to_num_(nan=0.0)


class MaskUpdates(Protocol):
    """Takes the steps of a pack whose masks change.

    `flat`, `keep` and `gradient` are the trained parts (L, P) of all rows of the pack, in place: weights, zeros and
    ones, and the *dense* gradient, in which masked weights have theirs too. Where `keep` is zero the weight and every
    slot of the optimiser are zero when a step ends.
    """

    @property
    def settings(self) -> UpdateSettings:
        """What it was made from."""

    def start(self, flat: torch.Tensor, keep: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over lanes; `saved` are the `slots` of an earlier pack to go on from, empty at the beginning."""

    def prepare(self, step: int, flat: torch.Tensor, keep: torch.Tensor) -> None:
        """Make lanes ready for the gradient of step number `step`, their function unchanged."""

    def step(
        self, step: int, flat: torch.Tensor, keep: torch.Tensor, gradient: torch.Tensor, optimizer: LaneOptimizer
    ) -> bool:
        """Take step number `step`; whether masks changed. `gradient` is scratch afterwards."""

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these (index tensor)."""

    def slots(self) -> dict[str, torch.Tensor]:
        """State by name, each (L, P), not copied; `start` goes on from it."""

    def n_skipped(self, step: int) -> int:
        """How many of the first `step` steps had no step of the optimiser."""
