"""What is left to do in a study: a pure function of its design and of the rows committed so far.

The plan learns from rows alone (`absorb`), live and when a ledger is replayed, so that a resumed study goes on where
the killed one stopped and decides what it would have decided.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.columns import numbers_in
from sparsefront.search.design import Design
from sparsefront.search.methods import Best, Context, Cut, Method, Missing, Trained, methods_of
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
    """A candidate on its way.

    Attributes:
        candidate: what is trained.
        id: of the candidate.
        slots: that it fills; the first one bears the cost.
        cuts: masks to be cut from it once it is trained.
        checkpoint: name of the checkpoint that holds the weights of `candidate.origin`.
        keeps_weights: whether its own weights are to be kept, for a network that goes on from them.
        parent: id of the trained parent that it is compared with, and name of the checkpoint that holds its weights.
        siblings: whether it is trained again with another order of the data, to be compared with that.
        stage: of its rows: 'trained', or 'level' on the way to a sparsity of the study.
    """

    candidate: Candidate
    id: str
    slots: tuple[Slot, ...]
    cuts: tuple[Cut, ...] = ()
    checkpoint: str | None = None
    keeps_weights: bool = False
    parent: tuple[str, str] | None = None
    siblings: bool = False
    stage: str = "trained"

    @property
    def level(self) -> tuple[int, float]:
        """Replicate and sparsity of its rows."""
        return self.candidate.replicate, self.candidate.target_sparsity


@dataclass(frozen=True)
class TrainWork:
    """Candidates to be trained side by side, of one level or of several, and of one replicate or of several."""

    lanes: tuple[Lane, ...]
    attempt: int = 0

    @property
    def key(self) -> str:
        """Name of the pack."""
        first, n = self.lanes[0], len(self.lanes)
        replicate, sparsity = first.level
        return f"train-r{replicate}-s{sparsity:g}-{first.id[:8]}-{n}"

    def halves(self) -> list[TrainWork]:
        """The two halves; itself if it cannot be divided."""
        if len(self.lanes) < 2:
            return [self]
        middle = (len(self.lanes) + 1) // 2
        return [replace(self, lanes=self.lanes[:middle]), replace(self, lanes=self.lanes[middle:])]


Work = ScoreWork | TrainWork


#: Value and number of a draw; the lower value wins, ties go to the earlier draw.
_Extreme = tuple[float, int]
_NONE: _Extreme = (np.inf, -1)


@dataclass
class _Level:
    """What is known about one replicate at one level."""

    scored: npt.NDArray[np.bool_]
    lowest: _Extreme = _NONE
    lowest_scalefree: _Extreme = _NONE
    highest: _Extreme = _NONE  # of the negated loss
    n_scored: int = 0
    trained: set[Slot] = field(default_factory=set)
    derived: dict[str, Trained | Missing] = field(default_factory=dict)
    results: dict[str, Trained | Missing] = field(default_factory=dict)
    issued: set[str] = field(default_factory=set)

    def best(self) -> Best | None:
        """The draws that stand out, once all are scored."""
        if self.n_scored < len(self.scored):
            return None
        numbers = (None if n < 0 else n for _, n in (self.lowest, self.lowest_scalefree, self.highest))
        return Best(*numbers)


#: Cohort of replicates, sparsity, and the arm that goes alone, if it does.
_Unit = tuple[int, float, str]


@dataclass
class _Held:
    """Lanes of a unit by replicate, and (replicate, arm) of those that are not known yet."""

    missing: set[tuple[int, str]] = field(default_factory=set)
    lanes: dict[int, list[Lane]] = field(default_factory=dict)


@dataclass(frozen=True)
class Unavailable:
    """Slots of an arm that can never be filled, and why."""

    replicate: int
    sparsity: float
    slots: tuple[Slot, ...]
    reason: str
    stage: str = "trained"


class Plan:
    """The work of a study that is neither committed nor handed out."""

    def __init__(
        self, design: Design, names: CandidateNames, *, masks_per_pack: int, lanes_per_pack: int, workers: int = 1
    ) -> None:
        self._design, self._names = design, names
        self._masks_per_pack, self._lanes_per_pack, self._workers = masks_per_pack, lanes_per_pack, workers
        # A study of which only some arms are run judges, and counts, those alone.
        known = methods_of(design.methods or {arm: {} for arm in design.arms})
        self._arms: dict[str, Method] = {arm: known[arm] for arm in design.arms}
        self._needs_scores = any(m.needs_scores for m in self._arms.values())
        sparsities = tuple(sorted(design.sparsities))
        self._at: dict[float, list[str]] = {}
        for arm, method in self._arms.items():
            for sparsity in method.levels(sparsities):
                self._at.setdefault(sparsity, []).append(arm)
        if design.keeps_parents or any(m.needs_parent for m in self._arms.values()):
            self._at.setdefault(0.0, [])
        self._sparsities = sparsities
        levels = ([0.0] if 0.0 in self._at else []) + list(design.sparsities)
        levels += sorted(set(self._at) - set(levels))
        n_draws = design.draws if self._needs_scores else 0
        # Replicate by replicate: a worker's data and first layer serve several packs, and pairs are complete early.
        self._levels = {
            (r, s): _Level(np.zeros(n_draws if s in design.sparsities else 0, dtype=np.bool_))
            for r in range(design.replicates)
            for s in levels
        }
        self._to_score = sum(len(level.scored) for level in self._levels.values())
        self._to_train = design.replicates * sum(
            sum(self._arms[arm].n_slots(self._context(0, s)) for arm in arms) or 1  # 1: the parent
            for s, arms in self._at.items()
        )
        self._n_scored = self._n_trained = 0
        #: Packs that were lost, those that others wait for, and the rest.
        self._returned: deque[TrainWork] = deque()
        self._urgent: deque[TrainWork] = deque()
        self._trainings: deque[TrainWork] = deque()
        #: Units whose candidates are not all known yet: what is, and which arms of which replicates are not.
        self._held: dict[_Unit, _Held] = {}
        self._cohort_of: dict[int, int] = {}
        self._scorings: deque[ScoreWork] = deque()
        self._unavailable: list[Unavailable] = []
        self._n_in_flight = 0
        #: Checkpoints by the id of the network whose weights they hold.
        self._checkpoints: dict[str, str] = {}
        #: Levels about which something was learnt that may let their trainings begin, in order.
        self._changed = dict.fromkeys(self._levels)
        self._is_primed = False

    def _context(self, replicate: int, sparsity: float) -> Context:
        """What is known of one level of one replicate."""
        level = self._levels[replicate, sparsity]
        return Context(
            replicate,
            sparsity,
            self._design.random_draws_at(sparsity),
            self._design.steps,
            self._sparsities,
            level.best() if sparsity in self._design.sparsities else None,
            level.derived,
            level.results,
            self._design.making_steps,
        )

    def resize(self, *, masks_per_pack: int, lanes_per_pack: int, workers: int) -> None:
        """Divide work that is not queued yet into packs of another size, once it is known where it runs."""
        self._masks_per_pack, self._lanes_per_pack, self._workers = masks_per_pack, lanes_per_pack, workers

    # Learning --------------------------------------------------------------------------------------------------------

    def absorb(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Learn from committed rows, in commit order."""
        stage = rows.column("stage")
        for name, learn in (
            ("scored", self._absorb_scored),
            ("pruned", self._absorb_pruned),
            ("level", self._absorb_trained),
            ("trained", self._absorb_trained),
        ):
            chosen = rows.filter(pc.equal(stage, name))
            if chosen.num_rows:
                learn(chosen)

    #: Columns that `absorb` reads.
    columns = (
        "stage", "arm", "replicate", "target_sparsity", "slot", "outcome",
        "initial_loss", "scalefree_loss", "mask_digest", "checkpoint", "candidate", "error",
    )  # fmt: skip

    def _absorb_scored(self, rows: pa.RecordBatch | pa.Table) -> None:
        replicate = numbers_in(rows, "replicate")
        sparsity = numbers_in(rows, "target_sparsity")
        slot = numbers_in(rows, "slot").astype(np.int64)
        loss, scalefree = numbers_in(rows, "initial_loss"), numbers_in(rows, "scalefree_loss")
        edges = np.flatnonzero((np.diff(replicate) != 0) | (np.diff(sparsity) != 0)) + 1
        for a, b in pairwise([0, *edges.tolist(), len(slot)]):
            key = int(replicate[a]), float(sparsity[a])
            level = self._levels[key]
            fresh = int(np.count_nonzero(~level.scored[slot[a:b]]))
            level.scored[slot[a:b]] = True
            level.n_scored += fresh
            self._n_scored += fresh
            level.lowest = min(level.lowest, _lowest(loss[a:b], slot[a:b]))
            level.lowest_scalefree = min(level.lowest_scalefree, _lowest(scalefree[a:b], slot[a:b]))
            level.highest = min(level.highest, _lowest(-loss[a:b], slot[a:b]))
            if level.n_scored == len(level.scored):
                self._changed[key] = None

    def _absorb_trained(self, rows: pa.RecordBatch | pa.Table) -> None:
        names = ["arm", "replicate", "target_sparsity", "slot", "outcome", "mask_digest", "checkpoint", "candidate"]
        for row in rows.select(names).to_pylist():
            key = replicate, sparsity = row["replicate"], row["target_sparsity"]
            level, arm = self._levels[key], row["arm"]
            self._n_trained -= len(level.trained)
            level.trained.add(Slot(arm, row["slot"]))
            self._n_trained += len(level.trained)
            if row["checkpoint"] is not None:
                self._checkpoints[row["candidate"]] = row["checkpoint"]
            if row["slot"] or arm in level.results:
                continue
            if row["outcome"] == "completed":
                level.results[arm] = Trained(row["mask_digest"], row["candidate"])
            else:
                what = f"the parent of replicate {replicate}" if sparsity == 0.0 else f"its network at {sparsity:g}"
                level.results[arm] = missing = Missing(f"{what} did not complete ({row['outcome']})")
                for cut in self._cuts(arm, sparsity):
                    self._learn_derived(replicate, cut.sparsity, cut.arm, missing)
            self._changed[key] = None
            if sparsity == 0.0 and self._design.keeps_parents:
                self._changed |= dict.fromkeys((replicate, s) for s in self._at)

    def _absorb_pruned(self, rows: pa.RecordBatch | pa.Table) -> None:
        names = ["arm", "replicate", "target_sparsity", "mask_digest", "candidate"]
        for row in rows.select(names).to_pylist():
            mask = Trained(row["mask_digest"], row["candidate"])
            self._learn_derived(row["replicate"], row["target_sparsity"], row["arm"], mask)

    def _learn_derived(self, replicate: int, sparsity: float, arm: str, mask: Trained | Missing) -> None:
        self._levels[replicate, sparsity].derived.setdefault(arm, mask)
        self._changed[replicate, sparsity] = None

    def _cuts(self, arm: str, sparsity: float) -> list[Cut]:
        """Masks to be cut from an arm's network of a level; from the parent, those of all arms."""
        arms = self._arms.values() if sparsity == 0.0 else [self._arms[arm]]
        return [cut for method in arms for cut in method.cuts(sparsity, self._sparsities)]

    def is_new(self, rows: pa.RecordBatch | pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows are not committed yet, by key: (n,) bool."""
        stage = rows.column("stage")
        if rows.num_rows and pc.all(pc.equal(stage, "scored")).as_py():
            replicate, sparsity = numbers_in(rows, "replicate"), numbers_in(rows, "target_sparsity")
            if (replicate == replicate[0]).all() and (sparsity == sparsity[0]).all():
                slot = numbers_in(rows, "slot").astype(np.int64)
                return ~self._levels[int(replicate[0]), float(sparsity[0])].scored[slot]
        keys = rows.select(["arm", "replicate", "target_sparsity", "slot"]).to_pylist()
        return np.array(
            [not self._has(s, **key) for s, key in zip(stage.to_pylist(), keys, strict=True)], dtype=np.bool_
        )

    def _has(self, stage: str, *, arm: str, replicate: int, target_sparsity: float, slot: int) -> bool:
        level = self._levels[replicate, target_sparsity]
        if stage == "scored":
            return bool(level.scored[slot])
        return arm in level.derived if stage == "pruned" else Slot(arm, slot) in level.trained

    # Handing out -----------------------------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """Work to hand out now, or None if there is none until more rows are absorbed.

        What was lost goes first, then what others wait for. Trainings go before scorings: they take longest.
        """
        self._fill()
        queue = self._returned or self._urgent or self._trainings or self._scorings
        if not queue:
            return None
        self._n_in_flight += 1
        return queue.popleft()

    def may_open(self, ended: Sequence[Work]) -> bool:
        """Whether something could be handed out once all rows of `ended` are absorbed: there is no telling."""
        return True

    def finished(self, work: Work) -> None:
        """All rows of `work` are absorbed.

        Raises:
            RuntimeError: if they are not: a worker that leaves candidates out must not look like a study that is done.
        """
        left = self.without_committed(work)
        if left:
            raise RuntimeError(f"pack {work.key} ended, but some of its rows never came: {left}")
        self._n_in_flight -= 1

    def give_back(self, works: Iterable[Work]) -> None:
        """Hand work out again (divided perhaps) that was lost with its worker; what is committed of it is left out."""
        self._n_in_flight -= 1
        for work in reversed([w for given in works for w in self.without_committed(given)]):
            if isinstance(work, TrainWork):
                self._returned.appendleft(work)
            else:
                self._scorings.appendleft(work)

    def decided(self) -> list[Unavailable]:
        """Slots found to be impossible since the last call; the driver records them."""
        self._fill()
        found, self._unavailable = self._unavailable, []
        return found

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to hand out, and nothing handed out is still away."""
        self._fill()
        is_empty = not (self._returned or self._urgent or self._trainings or self._scorings)
        return is_empty and not (self._n_in_flight or self._unavailable)

    @property
    def is_complete(self) -> bool:
        """Whether everything is committed."""
        return self._n_scored == self._to_score and self._n_trained == self._to_train

    def without_committed(self, work: Work) -> list[Work]:
        """What is left of `work` once committed rows are taken out of it."""
        if isinstance(work, ScoreWork):
            scored = self._levels[work.replicate, work.sparsity].scored[work.start : work.stop]
            runs = _runs(np.flatnonzero(~scored) + work.start)
            return [replace(work, start=int(r[0]), stop=int(r[-1]) + 1) for r in runs]
        lanes = [lane for lane in work.lanes if lane.slots[0] not in self._levels[lane.level].trained]
        return [replace(work, lanes=tuple(lanes))] if lanes else []

    def _fill(self) -> None:
        if not self._is_primed:
            self._is_primed = True
            cohorts = self._cohorts()
            self._hold(cohorts)
            for cohort in cohorts:
                for sparsity in dict.fromkeys(s for _, s in self._levels):  # a level at a time: its arms may begin then
                    for replicate in cohort:
                        for run in _runs(np.flatnonzero(~self._levels[replicate, sparsity].scored)):
                            edges = [*range(int(run[0]), int(run[-1]) + 1, self._masks_per_pack), int(run[-1]) + 1]
                            self._scorings.extend(ScoreWork(replicate, sparsity, a, b) for a, b in pairwise(edges))
        changed, self._changed = self._changed, {}
        for replicate, sparsity in changed:
            level = self._levels[replicate, sparsity]
            self._issue(replicate, sparsity, level)

    def _issue(self, replicate: int, sparsity: float, level: _Level) -> None:
        """Queue the trainings of one level whose candidates are known: arms that wait for each other, all at once."""
        if self._design.keeps_parents and sparsity and "dense" not in self._levels[replicate, 0.0].results:
            return
        context = self._context(replicate, sparsity)
        known: dict[str, list[Candidate] | Missing] = {}
        is_waiting = False
        for arm in self._at[sparsity]:
            if arm not in level.issued:
                candidates = self._arms[arm].candidates(context)
                if candidates is not None:
                    known[arm] = candidates
                elif not self._arms[arm].goes_alone:
                    is_waiting = True
        if is_waiting:
            known = {arm: found for arm, found in known.items() if self._arms[arm].goes_alone}
        wanted: dict[Candidate, list[Slot]] = {}
        if sparsity == 0.0 and not self._at[sparsity] and not level.issued:
            # Some arm prunes the trained parent, but the parent is no arm: it is trained and recorded all the same.
            known["dense"] = [Candidate(replicate, 0.0, "parent")]
        for arm, candidates in known.items():
            level.issued.add(arm)
            if isinstance(candidates, Missing):
                slots = [Slot(arm, i) for i in range(self._arms[arm].n_slots(context))]
                left = tuple(s for s in slots if s not in level.trained)
                if left:
                    self._unavailable.append(
                        Unavailable(replicate, sparsity, left, candidates.reason, self._stage(sparsity))
                    )
                continue
            for i, candidate in enumerate(candidates):
                wanted.setdefault(candidate, []).append(Slot(arm, i))
        self._queue(replicate, sparsity, wanted)
        for arm in known:
            self._release(replicate, sparsity, arm)

    def _queue(self, replicate: int, sparsity: float, wanted: Mapping[Candidate, Sequence[Slot]]) -> None:
        """Hold candidates, without the slots that are filled, until their unit is complete."""
        trained = self._levels[replicate, sparsity].trained
        for candidate, places in wanted.items():
            # Some may be filled and others not: arms that were not asked at once have one candidate.
            if slots := [slot for slot in places if slot not in trained]:
                # A network in several slots is cut for each of their arms, the parent for all.
                arms = dict.fromkeys(slot.arm for slot in slots)
                cuts = dict.fromkeys(cut for arm in arms for cut in self._cuts(arm, sparsity))
                lane = Lane(
                    candidate,
                    self._names.of(candidate),
                    tuple(slots),
                    tuple(cuts),
                    None if candidate.origin is None else self._checkpoints.get(candidate.origin),
                    any(cut.method.keeps_weights for cut in cuts) or (self._design.keeps_parents and not sparsity),
                    self._parent(replicate) if sparsity else None,
                    any(self._design.methods.get(arm, {}).get("siblings", False) for arm in arms),
                    self._stage(sparsity),
                )
                self._held[self._unit(replicate, sparsity, slots[0].arm)].lanes.setdefault(replicate, []).append(lane)

    # Units -----------------------------------------------------------------------------------------------------------

    def _cohorts(self) -> list[range]:
        """Replicates whose lanes share packs: as many cohorts as there are workers, or of one replicate each.

        Of these, less than two for each worker are done sooner one by one.
        """
        n = self._design.replicates
        n_cohorts = self._workers if n >= 2 * self._workers else n
        edges = [round(i * n / n_cohorts) for i in range(n_cohorts + 1)]
        return [range(a, b) for a, b in pairwise(edges)]

    def _hold(self, cohorts: Sequence[range]) -> None:
        """Note which arms of which replicates every unit is of."""
        self._cohort_of = {r: i for i, cohort in enumerate(cohorts) for r in cohort}
        for replicate, sparsity in self._levels:
            for arm in self._at.get(sparsity, ()) or ["dense"]:
                self._held.setdefault(self._unit(replicate, sparsity, arm), _Held()).missing.add((replicate, arm))

    def _unit(self, replicate: int, sparsity: float, arm: str) -> _Unit:
        """What is packed together: in a cohort and level all arms that wait for each other, or one that goes alone."""
        method = self._arms.get(arm)
        name = "" if method is None or not method.goes_alone else method.goes_with or arm
        return self._cohort_of[replicate], sparsity, name

    def _release(self, replicate: int, sparsity: float, arm: str) -> None:
        """An arm's candidates of a replicate and level are known: if those of its whole unit are, pack them.

        Packs are a function of the design and of the number of workers, not of what happened to be known at a moment:
        lanes are rounded otherwise in other packs (convolutions by parts in 10 million), and a study is to come to the
        same numbers when it is run again.
        """
        held = self._held[self._unit(replicate, sparsity, arm)]
        held.missing.discard((replicate, arm))
        if held.missing:
            return
        together: dict[Hashable, list[Lane]] = {}
        seen: Counter[Candidate] = Counter()  # arms that were not asked at once may have one candidate
        for lane in (lane for _, lanes in sorted(held.lanes.items()) for lane in lanes):
            seen[lane.candidate] += 1
            key = seen[lane.candidate], bool(lane.cuts), lane.candidate.together(self._design.mask_kind)
            together.setdefault(key, []).append(lane)
        held.lanes = {}
        for lanes in together.values():
            n_packs = -(-len(lanes) // self._lanes_per_pack)
            edges = [round(i * len(lanes) / n_packs) for i in range(n_packs + 1)]
            queue = self._urgent if lanes[0].cuts else self._trainings
            queue.extend(TrainWork(tuple(lanes[a:b])) for a, b in pairwise(edges))

    def _parent(self, replicate: int) -> tuple[str, str] | None:
        """Id and checkpoint of the trained parent; None if it is not kept, or did not complete."""
        if not self._design.keeps_parents:
            return None
        parent = self._names.of(Candidate(replicate, 0.0, "parent"))
        checkpoint = self._checkpoints.get(parent)
        return None if checkpoint is None else (parent, checkpoint)

    def _stage(self, sparsity: float) -> str:
        return "trained" if sparsity == 0.0 or sparsity in self._sparsities else "level"

    # Totals ----------------------------------------------------------------------------------------------------------

    def totals(self) -> tuple[int, int, int, int]:
        """(masks scored, masks to score, slots trained, slots to train) of the whole study."""
        return self._n_scored, self._to_score, self._n_trained, self._to_train


def _lowest(values: npt.NDArray[np.float64], numbers: npt.NDArray[np.int64]) -> _Extreme:
    """(lowest finite value, its number); ties go to the lower number; (inf, -1) if nothing is finite.

    >>> _lowest(np.array([2.0, np.nan, 1.0, 1.0]), np.array([7, 0, 9, 8]))
    (1.0, 8)
    """
    finite = np.isfinite(values)
    if not finite.any():
        return _NONE
    lowest = values[finite].min()
    return float(lowest), int(numbers[finite][values[finite] == lowest].min())


def _runs(numbers: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[np.int64]]:
    """Ascending numbers cut into runs without gaps."""
    if not len(numbers):
        return []
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
