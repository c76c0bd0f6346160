"""Runs the work of a study on Ray Tune and commits what comes back to the ledger.

One pack is one Tune trial. Tune decides where and when a pack runs; what runs, what a result means and what is done
again after a failure is decided here and by the plan, from the ledger. Tune's own state is never read back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray import tune
from ray.tune.search import Searcher

from sparsefront.cluster.rows import lost_rows, stamped, unavailable_rows
from sparsefront.cluster.worker import OrderBook, PackTrial, WorkerSettings, decode_rows
from sparsefront.errors import SparsefrontError
from sparsefront.search.ledger import Ledger
from sparsefront.search.plan import Plan, TrainWork, Work
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.trainables.data import Dataset

_LOG = logging.getLogger(__name__)

#: Grace between the worker's own watchdog and the driver ending the worker (a stopped process cannot end itself).
_DRIVER_GRACE_S = 30.0

#: Set before Ray Tune is used; the user's own values win.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    # Tune's snapshots are never read back; the ledger is the record.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True)
class Resources:
    """Where a study runs.

    Attributes:
        address: of a running Ray cluster, or None for one of this process's own, on loopback, ended with it.
        device: 'cpu' or 'cuda'.
        workers: packs at once; None = one for each core or GPU of the cluster.
        max_retries: how often work is run again after its worker was lost, once it is a single candidate.
    """

    address: str | None
    device: str
    workers: int | None
    max_retries: int


#: Called after every commit with the rows that were committed.
CommitListener = Callable[[Any], None]


@contextlib.contextmanager
def ray_cluster(resources: Resources) -> Iterator[int]:
    """Connect to a cluster, or start one; yields the number of packs that can run at once.

    A cluster started here listens on loopback, has its own temporary folder, and is ended by `ray.shutdown`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder: str | None = None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if resources.address is not None:
        ray.init(address=resources.address, **quiet)
    else:
        # Unix sockets below this folder must stay under 107 characters: the system's short temporary folder.
        folder = tempfile.mkdtemp(prefix="sparsefront-", dir="/tmp")  # noqa: S108
        ray.init(
            address="local",
            num_cpus=(resources.workers or available_cores()) if resources.device == "cpu" else None,
            include_dashboard=False,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
            object_store_memory=256 << 20,
            **quiet,
        )
    try:
        kind = "GPU" if resources.device == "cuda" else "CPU"
        slots = int(ray.cluster_resources().get(kind, 0))
        if slots < 1:
            raise SparsefrontError(
                f"device={resources.device!r}: the cluster has no {kind}; use device 'cpu' or another address"
            )
        yield min(slots, resources.workers or slots)
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def dispatch(
    plan: Plan,
    ledger: Ledger,
    settings: WorkerSettings,
    dataset: Dataset,
    resources: Resources,
    *,
    slots: int,
    on_commit: CommitListener,
    on_tick: Callable[[], None],
) -> None:
    """Run everything that is left in `plan`, at most `slots` packs at once, inside `ray_cluster`.

    Args:
        plan: knows what is left; has absorbed the ledger.
        ledger: open for writing.
        settings: for the workers.
        dataset: shipped once through the object store.
        resources: where it runs.
        slots: packs at once.
        on_commit: called after every commit with the committed rows.
        on_tick: called several times a second.

    Raises:
        SparsefrontError: if the driver itself failed (a full disk, say); what was committed stays.
        KeyboardInterrupt: if the user interrupted.
    """
    driver = _Driver(plan, ledger, settings, resources, slots=slots, on_commit=on_commit, on_tick=on_tick)
    driver.record_unavailable()
    if plan.is_done:
        return
    storage = tempfile.mkdtemp(prefix="sparsefront-tune-")
    requirement = {"gpu": 1, "cpu": 1} if resources.device == "cuda" else {"cpu": 1}
    trainable = tune.with_resources(
        tune.with_parameters(PackTrial, settings=settings, dataset=ray.put(dataset), orders=driver.orders), requirement
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=driver.searcher, num_samples=-1, reuse_actors=True, max_concurrent_trials=None
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=storage,
            callbacks=[driver.callback],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
        ),
    )
    try:
        with _quiet_tune():
            tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if driver.failure is not None:
        raise driver.failure
    if not plan.is_done:
        raise KeyboardInterrupt


class _Driver:
    """Hands work to Tune and takes results back; the plan and the ledger decide."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        settings: WorkerSettings,
        resources: Resources,
        *,
        slots: int,
        on_commit: CommitListener,
        on_tick: Callable[[], None],
    ) -> None:
        self._plan, self._ledger, self._settings = plan, ledger, settings
        self._max_retries, self._slots = resources.max_retries, slots
        self._on_commit, self._on_tick = on_commit, on_tick
        self._names = CandidateNames(settings.base)
        self._running: dict[str, Work] = {}
        self._heard: dict[str, float] = {}
        self._started: set[str] = set()
        self._n_packs = 0
        self.failure: BaseException | None = None
        self.orders = OrderBook.remote()
        self.searcher = _PackSearcher(self)
        self.callback = _Commits(self)

    # Work out --------------------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next pack for Tune, None to wait, or FINISHED."""
        if self.failure is not None:
            return str(Searcher.FINISHED)
        if len(self._running) >= self._slots + 1:  # one more than runs, so that a free worker finds it ready
            return None
        self.record_unavailable()
        work = self._plan.next_work()
        if work is None:
            return str(Searcher.FINISHED) if self._plan.is_done else None
        blobs: dict[str, bytes] = {}
        if isinstance(work, TrainWork):
            stored = {lane.candidate.mask for lane in work.lanes if lane.candidate.mask is not None}
            blobs = {digest: self._ledger.get_blob(digest) for digest in stored}
        self._n_packs += 1
        key = f"{self._n_packs}-{work.key}"
        ray.get(self.orders.put.remote(key, work, blobs))
        self._running[trial_id] = work
        return {"pack": key}

    def record_unavailable(self) -> None:
        """Commit slots that can never be filled."""
        found = self._plan.unavailable()
        if found:
            self._commit(unavailable_rows(found, self._names, self._settings.recipe))

    # Results in ------------------------------------------------------------------------------------------------------

    def heard(self, trial_id: str, result: dict[str, Any]) -> None:
        """A worker reported: commit what ended."""
        self._heard[trial_id] = time.monotonic()
        for digest, bits in (result.pop("blobs", None) or {}).items():
            if self._ledger.put_blob(bits) != digest:
                raise SparsefrontError(f"mask {digest}: the bits that a worker sent do not match their digest")
        for rows in decode_rows(result.pop("rows", None)):
            fresh = self._fresh(rows)
            if fresh.num_rows:
                self._commit(fresh)

    def _fresh(self, rows: Any) -> Any:
        """Rows whose key is not committed yet (execution is at least once, results are exactly once)."""
        is_new = self._plan.is_new(rows)
        return rows if is_new.all() else rows.filter(pa.array(is_new))

    def ended(self, trial_id: str) -> None:
        """A pack ran to its end."""
        work = self._running.pop(trial_id, None)
        self._heard.pop(trial_id, None)
        if work is not None:
            self._plan.finished(work)

    def lost(self, trial_id: str, reason: str) -> None:
        """A pack's worker died or hung: divide the work, or give it up if it is one candidate tried often enough."""
        work = self._running.pop(trial_id, None)
        silent_s = time.monotonic() - self._heard.pop(trial_id, time.monotonic())
        if work is None:
            return
        hung = silent_s >= self._settings.timeout_s
        left = self._plan.without_committed(work)
        is_single = all(len(w.halves()) == 1 for w in left)
        if left and is_single and work.attempt >= self._max_retries:
            outcome = "timeout" if hung else ("out_of_memory" if "OutOfMemory" in reason else "lost")
            for one in left:
                self._commit(lost_rows(one, outcome, reason[-4000:], self._names, self._settings.recipe))
            self._plan.finished(work)
            return
        parts: list[Work] = []
        for one in left:
            halves = one.halves()
            # Attempts are counted against a single candidate only: a pack is divided until its culprit is alone.
            parts += [replace(w, attempt=one.attempt + 1 if len(halves) == 1 else 0) for w in halves]
        _LOG.warning(
            "pack %s was lost (%s); its work runs again in %d packs", work.key, reason.splitlines()[-1:], len(parts)
        )
        self._plan.give_back(parts)

    def tick(self, trials: list[Any]) -> None:
        """Called between Tune's events: end workers that went silent, and let the terminal move."""
        self._on_tick()
        now = time.monotonic()
        limit = self._settings.timeout_s + _DRIVER_GRACE_S
        for trial in trials:
            if trial.status != "RUNNING" or trial.trial_id not in self._running:
                continue
            heard = self._heard.setdefault(trial.trial_id, now)
            actor = trial.temporary_state.ray_actor
            if now - heard > limit and actor is not None:
                self._heard[trial.trial_id] = now - limit
                ray.kill(actor)

    def _commit(self, rows: Any) -> None:
        committed = stamped(rows)
        self._ledger.commit(committed)
        self._plan.absorb(committed)
        self._on_commit(committed)


class _PackSearcher(Searcher):  # type: ignore[misc]
    """Tells Tune which pack to run next."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy that is never restored."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A pack's key."""
        return _guarded(self._driver, self._driver.suggest, trial_id, otherwise=Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the callback has seen it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only record."""


class _Commits(tune.Callback):  # type: ignore[misc]
    """Commits results as they arrive; never raises into Tune."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy that is never restored."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Between events."""
        _guarded(self._driver, self._driver.tick, trials)
        if self._driver.failure is not None:
            for trial in trials:
                if trial.status == "RUNNING" and trial.temporary_state.ray_actor is not None:
                    ray.kill(trial.temporary_state.ray_actor)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A report arrived; its payload is taken out, so that Tune keeps none of it."""
        _guarded(self._driver, self._driver.heard, trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A pack is done."""
        _guarded(self._driver, self._driver.ended, trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A pack's worker is gone."""
        error = trial.get_pickled_error()
        _guarded(self._driver, self._driver.lost, trial.trial_id, f"{type(error).__name__}: {error}")


def _guarded(driver: _Driver, function: Callable[..., Any], *arguments: Any, otherwise: Any = None) -> Any:
    """Call `function`; an exception ends the study in an orderly way instead of aborting Tune."""
    if driver.failure is not None:
        return otherwise
    try:
        return function(*arguments)
    except Exception as error:
        driver.failure = error
        return otherwise


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Silence Tune's complaints about files that it was told not to write."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray")]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
