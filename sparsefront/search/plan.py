"""What is left to do in a study: a pure function of its design and of the rows committed so far.

The plan learns from rows alone (`absorb`), live and when a ledger is replayed, so that a resumed study goes on where
the killed one stopped and decides what it would have decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.search.design import Design
from sparsefront.search.methods import METHODS, Best, Context, Missing
from sparsefront.spaces.candidate import Candidate, CandidateNames

POOL = "pool"


@dataclass(frozen=True)
class Slot:
    """Place of a candidate in an arm."""

    arm: str
    slot: int


@dataclass(frozen=True)
class ScoreWork:
    """Masks number start..stop of one replicate and level to be scored."""

    replicate: int
    sparsity: float
    start: int
    stop: int
    attempt: int = 0

    @property
    def key(self) -> str:
        """Name of the pack."""
        return f"score-r{self.replicate}-s{self.sparsity:g}-{self.start}-{self.stop}"

    def halves(self) -> list[ScoreWork]:
        """The two halves; itself if it cannot be divided."""
        if self.stop - self.start < 2:
            return [self]
        middle = (self.start + self.stop) // 2
        return [replace(self, stop=middle), replace(self, start=middle)]


@dataclass(frozen=True)
class Lane:
    """A candidate, its id, and the slots it fills (the first one bears the cost)."""

    candidate: Candidate
    id: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class TrainWork:
    """Candidates of one replicate and level to be trained; `derive`: masks to cut from the parent among them."""

    replicate: int
    sparsity: float
    lanes: tuple[Lane, ...]
    derive: tuple[tuple[str, float], ...] = ()
    attempt: int = 0

    @property
    def key(self) -> str:
        """Name of the pack."""
        first, n = self.lanes[0].id[:8], len(self.lanes)
        return f"train-r{self.replicate}-s{self.sparsity:g}-{first}-{n}"

    def halves(self) -> list[TrainWork]:
        """The two halves; itself if it cannot be divided."""
        if len(self.lanes) < 2:
            return [self]
        middle = (len(self.lanes) + 1) // 2
        return [replace(self, lanes=self.lanes[:middle]), replace(self, lanes=self.lanes[middle:])]


Work = ScoreWork | TrainWork


@dataclass
class _Level:
    """What is known about one replicate at one level."""

    scored: npt.NDArray[np.bool_]
    lowest: tuple[float, int] = (np.inf, -1)
    lowest_scalefree: tuple[float, int] = (np.inf, -1)
    highest: tuple[float, int] = (-np.inf, -1)
    n_scored: int = 0
    trained: set[Slot] = field(default_factory=set)
    derived: dict[str, str | Missing] = field(default_factory=dict)
    is_issued: bool = False

    def best(self) -> Best | Missing | None:
        if self.n_scored < len(self.scored):
            return None
        if min(self.lowest[1], self.lowest_scalefree[1], self.highest[1]) < 0:
            return Missing("no mask of this level could be scored")
        return Best(self.lowest[1], self.lowest_scalefree[1], self.highest[1])


@dataclass(frozen=True)
class Unavailable:
    """Slots of an arm that can never be filled, and why."""

    replicate: int
    sparsity: float
    slots: tuple[Slot, ...]
    reason: str


class Plan:
    """The work of a study that is neither committed nor handed out."""

    def __init__(self, design: Design, names: CandidateNames, *, masks_per_pack: int, lanes_per_pack: int) -> None:
        self._design, self._names = design, names
        self._masks_per_pack, self._lanes_per_pack = masks_per_pack, lanes_per_pack
        self._arms = {arm: METHODS[arm] for arm in design.arms}
        self._needs_scores = any(m.needs_scores for m in self._arms.values())
        criteria = sorted({m.criterion for m in self._arms.values() if m.criterion is not None})
        self._derive = tuple((c, s) for c in criteria for s in design.sparsities)
        self._needs_parent = any(m.is_dense for m in self._arms.values()) or bool(criteria)
        levels = ([0.0] if self._needs_parent else []) + list(design.sparsities)
        n_draws = design.draws if self._needs_scores else 0
        self._levels = {
            (r, s): _Level(np.zeros(n_draws if s else 0, dtype=np.bool_)) for s in levels for r in range(design.replicates)
        }
        self._queue: deque[Work] = deque()
        self._unavailable: list[Unavailable] = []
        self._n_in_flight = 0
        self._is_primed = False

    # Learning --------------------------------------------------------------------------------------------------------

    def absorb(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Learn from committed rows, in commit order."""
        stages = np.asarray(rows.column("stage").to_pylist(), dtype=object)
        for name, learn in (("scored", self._absorb_scored), ("trained", self._absorb_trained), ("pruned", self._absorb_pruned)):
            chosen = np.flatnonzero(stages == name)
            if len(chosen):
                learn(rows if len(chosen) == len(stages) else rows.take(pa.array(chosen)))

    #: Columns that `absorb` reads.
    columns = (
        "stage", "arm", "replicate", "target_sparsity", "slot", "outcome",
        "initial_loss", "scalefree_loss", "mask_digest", "error",
    )  # fmt: skip

    def _absorb_scored(self, rows: pa.RecordBatch | pa.Table) -> None:
        replicate = _numbers(rows, "replicate")
        sparsity = _numbers(rows, "target_sparsity")
        slot = _numbers(rows, "slot").astype(np.int64)
        loss, scalefree = _numbers(rows, "initial_loss"), _numbers(rows, "scalefree_loss")
        edges = np.flatnonzero((np.diff(replicate) != 0) | (np.diff(sparsity) != 0)) + 1
        for a, b in pairwise([0, *edges.tolist(), len(slot)]):
            level = self._levels[int(replicate[a]), float(sparsity[a])]
            level.n_scored += int(np.count_nonzero(~level.scored[slot[a:b]]))
            level.scored[slot[a:b]] = True
            level.lowest = min(level.lowest, _lowest(loss[a:b], slot[a:b]))
            level.lowest_scalefree = min(level.lowest_scalefree, _lowest(scalefree[a:b], slot[a:b]))
            high, at = _lowest(-loss[a:b], slot[a:b])
            if (-high, -at) > (level.highest[0], -level.highest[1]) and at >= 0:
                level.highest = (-high, at)

    def _absorb_trained(self, rows: pa.RecordBatch | pa.Table) -> None:
        for row in rows.select(["arm", "replicate", "target_sparsity", "slot", "outcome"]).to_pylist():
            self._levels[row["replicate"], row["target_sparsity"]].trained.add(Slot(row["arm"], row["slot"]))
            if row["target_sparsity"] == 0.0 and row["outcome"] != "completed":
                missing = Missing(f"the parent of replicate {row['replicate']} did not complete ({row['outcome']})")
                for criterion, sparsity in self._derive:
                    self._levels[row["replicate"], sparsity].derived.setdefault(criterion, missing)

    def _absorb_pruned(self, rows: pa.RecordBatch | pa.Table) -> None:
        for row in rows.select(["arm", "replicate", "target_sparsity", "mask_digest"]).to_pylist():
            self._levels[row["replicate"], row["target_sparsity"]].derived[row["arm"]] = row["mask_digest"]

    def is_new(self, rows: pa.RecordBatch | pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows are not committed yet, by key: (n,) bool."""
        stage = rows.column("stage").to_pylist()
        if set(stage) == {"scored"}:
            replicate, sparsity = _numbers(rows, "replicate"), _numbers(rows, "target_sparsity")
            slot = _numbers(rows, "slot").astype(np.int64)
            if len(set(replicate)) == len(set(sparsity)) == 1:
                return ~self._levels[int(replicate[0]), float(sparsity[0])].scored[slot]
        keys = rows.select(["arm", "replicate", "target_sparsity", "slot"]).to_pylist()
        return np.array([not self._has(s, **key) for s, key in zip(stage, keys, strict=True)], dtype=np.bool_)

    def _has(self, stage: str, *, arm: str, replicate: int, target_sparsity: float, slot: int) -> bool:
        level = self._levels[replicate, target_sparsity]
        if stage == "scored":
            return bool(level.scored[slot])
        return Slot(arm, slot) in level.trained if stage == "trained" else arm in level.derived

    # Handing out -----------------------------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """Work to hand out now, or None if there is none until more rows are absorbed."""
        self._fill()
        if not self._queue:
            return None
        self._n_in_flight += 1
        return self._queue.popleft()

    def finished(self, work: Work) -> None:
        """All rows of `work` are absorbed."""
        self._n_in_flight -= 1

    def give_back(self, works: Iterable[Work]) -> None:
        """Hand work out again (divided perhaps) that was lost with its worker; what is committed of it is left out."""
        self._n_in_flight -= 1
        self._queue.extendleft(reversed([w for work in works for w in self.without_committed(work)]))

    def unavailable(self) -> list[Unavailable]:
        """Slots found to be impossible since the last call; the driver records them."""
        self._fill()
        found, self._unavailable = self._unavailable, []
        return found

    @property
    def is_done(self) -> bool:
        """Whether every slot is committed or handed in."""
        self._fill()
        return not self._queue and self._n_in_flight == 0 and not self._unavailable

    def without_committed(self, work: Work) -> list[Work]:
        """What is left of `work` once committed rows are taken out of it."""
        if isinstance(work, ScoreWork):
            todo = np.flatnonzero(~self._levels[work.replicate, work.sparsity].scored[work.start : work.stop]) + work.start
            return [replace(work, start=int(r[0]), stop=int(r[-1]) + 1) for r in _runs(todo)]
        trained = self._levels[work.replicate, work.sparsity].trained
        lanes = [lane for lane in work.lanes if lane.slots[0] not in trained]
        return [replace(work, lanes=tuple(lanes))] if lanes else []

    def _fill(self) -> None:
        if not self._is_primed:
            self._is_primed = True
            for (replicate, sparsity), level in self._levels.items():
                for run in _runs(np.flatnonzero(~level.scored)):
                    edges = [*range(int(run[0]), int(run[-1]) + 1, self._masks_per_pack), int(run[-1]) + 1]
                    self._queue.extend(ScoreWork(replicate, sparsity, a, b) for a, b in pairwise(edges))
        for (replicate, sparsity), level in self._levels.items():
            if not level.is_issued:
                self._issue(replicate, sparsity, level)

    def _issue(self, replicate: int, sparsity: float, level: _Level) -> None:
        """Queue the trainings of one level, once all its arms know their candidates."""
        context = Context(replicate, sparsity, self._design.random_draws, level.best() if sparsity else None, level.derived)
        wanted: dict[Candidate, list[Slot]] = {}
        impossible: list[Unavailable] = []
        for arm, method in self._arms.items():
            if method.is_dense != (sparsity == 0.0):
                continue
            candidates = method.candidates(context)
            if candidates is None:
                return
            if isinstance(candidates, Missing):
                slots = [Slot(arm, i) for i in range(method.n_slots(context))]
                left = tuple(s for s in slots if s not in level.trained)
                if left:
                    impossible.append(Unavailable(replicate, sparsity, left, candidates.reason))
                continue
            for i, candidate in enumerate(candidates):
                wanted.setdefault(candidate, []).append(Slot(arm, i))
        if sparsity == 0.0 and not wanted:
            # Some arm prunes the trained parent, but the parent is no arm: it is trained and recorded all the same.
            wanted[Candidate(replicate, 0.0, "parent")] = [Slot("dense", 0)]
        level.is_issued = True
        self._unavailable += impossible
        lanes = [
            Lane(candidate, self._names.of(candidate), tuple(slots))
            for candidate, slots in wanted.items()
            if slots[0] not in level.trained
        ]
        derive = self._derive if sparsity == 0.0 else ()
        n_packs = -(-len(lanes) // self._lanes_per_pack)
        for part in np.array_split(np.arange(len(lanes)), max(1, n_packs)):
            if len(part):
                self._queue.append(TrainWork(replicate, sparsity, tuple(lanes[i] for i in part), derive))

    # Totals ----------------------------------------------------------------------------------------------------------

    def totals(self) -> tuple[int, int, int, int]:
        """(masks scored, masks to score, slots trained, slots to train) of the whole study."""
        scored = sum(level.n_scored for level in self._levels.values())
        to_score = sum(len(level.scored) for level in self._levels.values())
        trained = sum(len(level.trained) for level in self._levels.values())
        to_train = 0
        for replicate, sparsity in self._levels:
            context = Context(replicate, sparsity, self._design.random_draws)
            at_level = [m.n_slots(context) for m in self._arms.values() if m.is_dense == (sparsity == 0.0)]
            to_train += sum(at_level) if at_level else 1
        return scored, to_score, trained, to_train


def _numbers(rows: pa.RecordBatch | pa.Table, column: str) -> npt.NDArray[np.float64]:
    return np.asarray(rows.column(column).to_numpy(zero_copy_only=False), dtype=np.float64)


def _lowest(values: npt.NDArray[np.float64], numbers: npt.NDArray[np.int64]) -> tuple[float, int]:
    """(lowest finite value, its number); ties go to the lower number; (inf, -1) if nothing is finite."""
    finite = np.isfinite(values)
    if not finite.any():
        return (np.inf, -1)
    lowest = values[finite].min()
    return float(lowest), int(numbers[finite][values[finite] == lowest].min())


def _runs(numbers: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[np.int64]]:
    """Ascending numbers cut into runs without gaps."""
    if not len(numbers):
        return []
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
