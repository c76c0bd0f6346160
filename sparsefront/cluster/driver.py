"""The driver: hands packs out, takes results in, commits them. Knows nothing of Ray."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefront.cluster.checkpoints import CheckpointKeeper
from sparsefront.cluster.rows import Work, decided_rows, lost_rows, stamped
from sparsefront.cluster.wording import GO_ON, one_line
from sparsefront.cluster.worker import WorkerSettings, decode_rows
from sparsefront.errors import SparsefrontError
from sparsefront.search.ledger import Ledger
from sparsefront.search.plan import TrainWork
from sparsefront.search.schema import KEY
from sparsefront.search.work import SegmentWork
from sparsefront.spaces.candidate import CandidateNames

_LOG = logging.getLogger(__name__)

#: Grace between the worker's own watchdog and the driver ending the worker (a stopped process cannot end itself).
_DRIVER_GRACE_S = 30.0
#: A worker that dies after so much of its time without a validation point hung: its watchdog counts from the last
#: point it reached, the driver from the last report, which may arrive a little later.
_HUNG_FRACTION = 0.8
#: Workers that may fail in a row before any of them could begin, for each that runs at once.
_FAILED_STARTS_PER_SLOT = 2
#: Results that arrive so soon after a commit wait, to be committed together: a durable commit takes milliseconds, as
#: much as all else that the driver does about a small pack.
_COMMIT_EVERY_S = 0.05
#: Longest time since the last commit for which results wait because a worker is free.
_OVERDUE_S = 0.5


class WorkPlan(Protocol):
    """What is left to do in a study: a pure function of its design and of the rows committed so far.

    `sparsefront.search.plan.Plan` and `sparsefront.search.exploration.Exploration` are such plans; see their methods.
    """

    def absorb(self, rows: Any, /) -> None:
        """Learn from committed rows, in commit order."""

    def is_new(self, rows: Any, /) -> npt.NDArray[np.bool_]:
        """Which rows are not committed yet, by key: (n,) bool."""

    def next_work(self) -> Any:
        """Work to hand out now, or None if there is none until more rows are absorbed."""

    def may_open(self, ended: Any, /) -> bool:
        """Whether something could be handed out once all rows of the works `ended` are absorbed."""

    def finished(self, work: Any, /) -> None:
        """All rows of `work` are absorbed."""

    def give_back(self, works: Any, /) -> None:
        """Hand work out again (divided perhaps) that was lost with its worker."""

    def without_committed(self, work: Any, /) -> list[Any]:
        """What is left of `work` once committed rows are taken out of it."""

    def decided(self) -> list[Any]:
        """What the driver itself has to commit now, decided since the last call."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to hand out or to commit, and nothing handed out is still away."""

    @property
    def is_complete(self) -> bool:
        """Whether everything is committed."""


#: Called after every commit with the rows that were committed.
CommitListener = Callable[[Any], None]
#: Puts work where the worker finds it: (pack's key, work, bits of the masks it needs by digest).
Post = Callable[[str, Work, dict[str, bytes]], Any]


@dataclass
class _Running:
    """A pack that was handed out; `heard_s` is when its worker last gave a sign, None before it began."""

    work: Work
    heard_s: float | None = None


class Driver:
    """Hands packs out and takes results in; the plan and the ledger decide. Knows nothing of Ray.

    Execution is at least once, results are exactly once: rows whose key is committed are left out. Work of a worker
    that died or hung is run again by halves until the culprit is alone; a single candidate is tried `max_retries` times
    more, but not if it raised or its worker ended itself for hanging. What attempts that ended so did after their last
    checkpoint is unknown, and not in the budget; of what is given up the seconds of the last one are.

    What is heard waits for the next commit. The plan absorbs it, and its pack is finished, once it is durable and no
    earlier. No worker goes without work meanwhile: before one does, all that waits is committed, unless the plan waits
    for more than that.
    """

    def __init__(
        self,
        plan: WorkPlan,
        ledger: Ledger,
        settings: WorkerSettings,
        *,
        max_retries: int,
        slots: int,
        post: Post,
        on_commit: CommitListener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._ledger, self._settings = plan, ledger, settings
        self._max_retries = max_retries
        self._max_failed_starts = _FAILED_STARTS_PER_SLOT * slots
        self._post, self._on_commit, self._clock = post, on_commit, clock
        self._names = CandidateNames(settings.base)
        self._schema = settings.schema
        self._checkpoints = CheckpointKeeper(Path(settings.checkpoints)) if settings.checkpoints else None
        if self._checkpoints is not None and plan.is_complete:  # a driver died between its last commit and this
            self._checkpoints.clear()
        self._running: dict[str, _Running] = {}
        #: Rows that are not committed yet in the order they came, and trials whose packs ended with them.
        self._waiting: list[pa.RecordBatch] = []
        self._ended: dict[str, None] = {}
        self._committed_s = -math.inf
        self._n_packs = 0
        self._n_failed_starts = 0
        self.failure: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to hand out or to wait for, or the study has failed."""
        return self.failure is not None or not (self._running or self._waiting or not self._plan.is_done)

    # Work out --------------------------------------------------------------------------------------------------------

    def next_pack(self, trial_id: str) -> str | None:
        """Post the next pack for trial `trial_id` and return its key; None if there is none now."""
        self._take_decided()
        work = self._plan.next_work()
        # Where nothing is on its way any more, nobody asks again before there is work or an end.
        is_last = len(self._running) == len(self._ended)
        if work is None and (is_last or self._plan.may_open([self._running[ended].work for ended in self._ended])):
            self.record_decided()
            work = self._plan.next_work()
        if work is None:
            return None
        self._running[trial_id] = _Running(work)
        masks: dict[str, bytes] = {}
        if isinstance(work, TrainWork):
            candidates = [lane.candidate for lane in work.lanes]
            stored = {c.mask for c in candidates if c.mask is not None and c.draw is None}
            masks = {digest: self._ledger.get_blob(digest) for digest in stored}
        elif isinstance(work, SegmentWork):  # masks that were proposed: of the record before they are trained
            for lane in work.lanes:
                for value in lane.point.values():
                    if isinstance(value, bytes):
                        self._ledger.put_blob(value)
        self._n_packs += 1
        key = f"{self._n_packs}-{work.key}"
        self._post(key, work, masks)
        return key

    def record_decided(self) -> None:
        """Commit what was heard, and what the plan knows itself: slots never to be filled, candidates it stopped."""
        # What is committed may decide more: a level that failed, the next one.
        while self._take_decided() or self._waiting or self._ended:
            self._commit_waiting()

    def _take_decided(self) -> bool:
        """Whether there was anything."""
        found = self._plan.decided()
        if found:
            self._waiting.append(decided_rows(found, self._names, self._settings.recipe, self._schema))
        return bool(found)

    # Results in ------------------------------------------------------------------------------------------------------

    def began(self, trial_id: str) -> None:
        """A worker is there and begins with its pack."""
        if trial_id in self._running:
            self._running[trial_id].heard_s = self._clock()

    def heard(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """A worker reported: what ended is committed with the next commit.

        Raises:
            SparsefrontError: if the worker can run no pack at all, or sent masks that are damaged.
        """
        self.began(trial_id)
        self._n_failed_starts = 0
        if report["problem"] is not None:
            raise SparsefrontError(
                f"a worker cannot run this study ({one_line(report['problem'])}): every machine of the cluster needs "
                "the study's device, packages and modules, and memory for its data (compute.memory_gib); "
                f"{GO_ON}"
            )
        for digest, bits in report["blobs"].items():
            if self._ledger.put_blob(bits) != digest:
                raise SparsefrontError(f"mask {digest}: the bits that a worker sent do not match their digest; {GO_ON}")
        for rows in decode_rows(report["rows"]):
            is_new = self._plan.is_new(rows)
            fresh = rows if is_new.all() else rows.filter(pa.array(is_new))
            if fresh.num_rows:
                self._waiting.append(fresh)

    def ended(self, trial_id: str) -> None:
        """A pack ran to its end: it is finished with the next commit."""
        if trial_id in self._running:
            self._ended[trial_id] = None

    def lost(self, trial_id: str, outcome: str, reason: str) -> None:
        """A pack broke off: divide its work, or give up what is a single candidate and was tried often enough.

        Args:
            trial_id: its trial.
            outcome: 'lost' or 'out_of_memory' if its worker died; 'failed' if it raised.
            reason: what is known about it.

        Raises:
            SparsefrontError: if workers die one after the other before they begin.
        """
        self._commit_waiting()
        running = self._running.pop(trial_id, None)
        if running is None:
            return
        work = running.work
        if running.heard_s is None:
            self._n_failed_starts += 1
            if self._n_failed_starts > self._max_failed_starts:
                raise SparsefrontError(
                    f"no worker could start, {self._n_failed_starts} times in a row ({one_line(reason)}): look at the "
                    f"memory and the packages of the cluster's machines; {GO_ON}"
                )
            self._plan.give_back([work])
            return
        timeout_s = self._settings.timeout_s
        silent_s = self._clock() - running.heard_s
        is_final = outcome == "failed" or work.attempt >= self._max_retries
        if outcome == "lost" and silent_s >= _HUNG_FRACTION * timeout_s:
            outcome = "timeout"
            reason = f"no validation point within compute.timeout_s={timeout_s:g}: its worker was ended"
            # A worker that could not end itself was stopped from outside, which is no fault of the candidate.
            is_final = is_final or silent_s < timeout_s + _DRIVER_GRACE_S
        parts: list[Work] = []
        for one in self._plan.without_committed(work):
            halves = one.halves()
            if len(halves) > 1:
                # Attempts are counted against a single candidate only: a pack is divided until its culprit is alone.
                parts += [replace(half, attempt=0) for half in halves]
            elif is_final:
                self._commit(
                    lost_rows(
                        one,
                        outcome,
                        reason[-8000:],
                        self._names,
                        self._settings.recipe,
                        seconds_each=silent_s,
                        schema=self._schema,
                    )
                )
            else:
                parts.append(replace(one, attempt=one.attempt + 1))
        _LOG.info("pack %s: %s (%s); %d to do again", work.key, outcome, one_line(reason), len(parts))
        self._plan.give_back(parts)

    def silent(self) -> list[str]:
        """Trials whose workers should have ended themselves long ago."""
        limit_s = self._clock() - self._settings.timeout_s - _DRIVER_GRACE_S
        return [
            key for key, running in self._running.items() if running.heard_s is not None and running.heard_s < limit_s
        ]

    def commit_if_due(self) -> None:
        """Commit what waits; to be called several times a second, after workers that are free got their work.

        Not yet where more may come soon: another pack is on its way, and the last commit was just now.
        """
        may_wait = self._waiting and len(self._running) > len(self._ended)
        if not may_wait or self._clock() - self._committed_s >= _COMMIT_EVERY_S:
            self._commit_waiting()

    @property
    def is_overdue(self) -> bool:
        """Whether results have waited longer than a moment."""
        return bool(self._waiting) and self._clock() - self._committed_s >= _OVERDUE_S

    def _commit_waiting(self) -> None:
        if self._waiting:
            batches, self._waiting = self._waiting, []
            self._commit(batches[0] if len(batches) == 1 else _once(batches))
            self._committed_s = self._clock()
        ended, self._ended = self._ended, {}
        for trial_id in ended:
            self._plan.finished(self._running.pop(trial_id).work)

    def _commit(self, rows: Any) -> None:
        committed = stamped(rows)
        self._ledger.commit(committed)
        self._plan.absorb(committed)
        if self._checkpoints is not None:
            self._checkpoints.learn(committed)
            if self._plan.is_complete:
                self._checkpoints.clear()
        self._on_commit(committed)


def _once(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of all batches; of those with one key the first: a pack that was given up may report all the same."""
    rows = pa.concat_batches(batches)
    keys = list(zip(*(rows.column(name).to_pylist() for name in KEY), strict=True))
    first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    return rows if len(first) == len(keys) else rows.take(pa.array(sorted(first.values())))
