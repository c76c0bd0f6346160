"""Runs the work of a study on Ray Tune and commits what comes back to the ledger.

One pack is one Tune trial. Tune decides where and when a pack runs; what runs, what a result means and what is done
again after a failure is decided by `Driver` and the plan, from the ledger. Tune's own state is never read back.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from sparsefront.cluster.checkpoints import CheckpointKeeper
from sparsefront.cluster.halving import LoneTrialScheduler, RayHalving
from sparsefront.cluster.rows import Work, decided_rows, lost_rows, stamped
from sparsefront.cluster.worker import OrderBook, PackTrial, WorkerSettings, decode_rows
from sparsefront.errors import ConfigError, SparsefrontError
from sparsefront.search.exploration import SegmentWork
from sparsefront.search.ledger import Ledger
from sparsefront.search.plan import TrainWork
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.trainables.data import Dataset

_LOG = logging.getLogger(__name__)

#: Grace between the worker's own watchdog and the driver ending the worker (a stopped process cannot end itself).
_DRIVER_GRACE_S = 30.0
#: A worker that dies after so much of its time without a validation point hung: its watchdog counts from the last
#: point it reached, the driver from the last report, which may arrive a little later.
_HUNG_FRACTION = 0.8
_KNOCK_S = 10.0
#: Workers that may fail in a row before any of them could begin, for each that runs at once.
_FAILED_STARTS_PER_SLOT = 2

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

#: Folders of this program in the system's temporary folder; also those of drivers that were killed.
_SCRATCH_PREFIX = "sparsefront-run-"
#: Unix sockets below such a folder must stay under 107 characters: the system's short temporary folder.
_SCRATCH_PLACE = Path("/tmp")

#: Set before Ray Tune is used; the user's own values win.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    # Tune's own handler waits for the workers; `_interrupts` does not have to.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
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
        workers: packs at once; None = as many as the cluster has room for.
        max_retries: how often work is run again after its worker was lost, once it is a single candidate.
        cpus_per_trial: cores of one pack.
        gpus_per_trial: GPUs of one pack, if the device is 'cuda'; a fraction shares one, without any isolation.
    """

    address: str | None
    device: str
    workers: int | None
    max_retries: int
    cpus_per_trial: int = 1
    gpus_per_trial: float = 1.0

    @property
    def kind(self) -> str:
        """Ray's name for what one pack occupies."""
        return "GPU" if self.device == "cuda" else "CPU"

    @property
    def of_trial(self) -> dict[str, float]:
        """What one pack occupies, as Ray Tune is asked for it."""
        gpus = {"gpu": self.gpus_per_trial} if self.device == "cuda" else {}
        return {"cpu": self.cpus_per_trial, **gpus}

    def capacity(self) -> int:
        """Packs that the cluster has room for."""
        found = ray.cluster_resources()
        return min(int(found.get(name.upper(), 0) / each + 1e-9) for name, each in self.of_trial.items())


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


@contextlib.contextmanager
def ray_cluster(resources: Resources) -> Iterator[int]:
    """Connect to a cluster, or start one; yields the number of packs that can run at once.

    A cluster started here listens on loopback, has its own temporary folder, and is ended by `ray.shutdown`; its
    processes also end by themselves when this one is killed.

    Raises:
        ConfigError: if no cluster answers at the address, or it has not what the study needs.
        SparsefrontError: if no cluster could be started here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    with contextlib.ExitStack() as stack:
        if resources.address is not None:
            try:
                _knock(resources.address)
                ray.init(address=resources.address, **quiet)
            except (OSError, RayError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"address={resources.address!r}: no Ray cluster could be joined there ({_one_line(error)}); "
                    "'auto' or the HOST:PORT of a running head is accepted, from a machine with the same Ray and Python"
                ) from error
        else:
            folder = stack.enter_context(_scratch_folder())
            stack.enter_context(_caretaker(folder))
            try:
                ray.init(
                    address="local",
                    num_cpus=_local_cores(resources),
                    include_dashboard=False,
                    # Ray opens this folder to everyone; the one around it is this user's alone.
                    _temp_dir=str(folder / "r"),
                    _node_ip_address="127.0.0.1",
                    object_store_memory=256 << 20,
                    **quiet,
                )
            except (ConnectionError, RayError, RuntimeError, ValueError, OSError) as error:
                raise SparsefrontError(
                    f"Ray could not be started on this machine ({_one_line(error)}): free memory, /dev/shm and space "
                    f"in {_SCRATCH_PLACE}, or give the --address of a running cluster"
                ) from error
        stack.callback(ray.shutdown)
        slots = resources.capacity()
        if slots < 1:
            raise ConfigError(
                f"device={resources.device!r}: the cluster has no {resources.kind}; use the other device, or another "
                "address"
            )
        yield min(slots, resources.workers or slots)


def _knock(address: str) -> None:
    """See whether anyone listens at HOST:PORT: Ray itself would try for a minute."""
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _local_cores(resources: Resources) -> int | None:
    """Cores that a cluster of one's own offers, None for all; those of `workers` packs, if there are to be so many."""
    if resources.device == "cuda":
        return None
    workers = resources.workers or max(1, available_cores() // resources.cpus_per_trial)
    return workers * resources.cpus_per_trial


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A temporary folder that only this user can enter; those left behind by killed drivers are removed first.

    A folder is in use as long as its lock is held, and the lock ends with its process.
    """
    for left in _SCRATCH_PLACE.glob(f"{_SCRATCH_PREFIX}*"):
        _remove_unless_locked(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=_SCRATCH_PLACE))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # another driver may have taken it for one left behind before it was locked
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_unless_locked(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, not a folder, or another user's
        return
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use
        pass
    finally:
        os.close(lock)


#: Waits until the driver is gone, however it went (its end of the pipe is closed), and clears away what it left.
_CARETAKER = r"""
import os, shutil, signal, sys, time

folder = sys.argv[1]

def processes_of_ray_with_files_in_the_folder():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read(4096)
            if not command.startswith(b"ray::") and b"/ray/" not in command:
                continue
            names = os.listdir(f"/proc/{pid}/fd")
            if any(os.readlink(f"/proc/{pid}/fd/{name}").startswith(folder + "/") for name in names):
                yield int(pid)
        except OSError:  # ended meanwhile, or another user's
            pass

sys.stdin.buffer.read()
for _ in range(100):
    left = list(processes_of_ray_with_files_in_the_folder())
    if not left:
        break
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.1)
shutil.rmtree(folder, ignore_errors=True)
"""


@contextlib.contextmanager
def _caretaker(folder: Path) -> Iterator[None]:
    """See to it that no process of the cluster with its files in `folder` outlives this one, even if it is killed.

    Ray's own main processes end with the driver, but its agents stay for a minute when they cannot report that.
    """
    caretaker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CARETAKER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    try:
        yield
    finally:
        assert caretaker.stdin is not None
        caretaker.stdin.close()
        caretaker.wait()


def dispatch(
    plan: WorkPlan,
    ledger: Ledger,
    settings: WorkerSettings,
    dataset: Dataset,
    resources: Resources,
    *,
    slots: int,
    on_commit: CommitListener,
    on_tick: Callable[[], None],
    halving: Mapping[str, RayHalving] | None = None,
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
        halving: arms whose candidates train alone until Ray's own scheduler stops them.

    Raises:
        SparsefrontError: if the driver itself failed (a full disk, say), no worker can run a pack, or the cluster was
            lost; what was committed stays.
        KeyboardInterrupt: if the user interrupted (SIGINT or SIGTERM); what was committed stays.
    """
    try:
        orders: Any = ray.remote(num_cpus=0)(OrderBook).remote()
        driver = Driver(
            plan,
            ledger,
            settings,
            max_retries=resources.max_retries,
            slots=slots,
            post=orders.put.remote,
            on_commit=on_commit,
        )
        driver.record_decided()
        if plan.is_done:
            return
        # One more than runs, so that a free worker finds it ready; where more than `slots` could run, they are not.
        at_once = slots + 1 if resources.capacity() <= slots else slots
        trainable = tune.with_resources(
            tune.with_parameters(PackTrial, settings=settings, dataset=ray.put(dataset), orders=orders),
            resources.of_trial,
        )
        with _scratch_folder() as storage, _interrupts() as interrupted:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_PackSearcher(driver),
                    scheduler=None if halving is None else LoneTrialScheduler(halving),
                    num_samples=-1,
                    reuse_actors=True,
                    max_concurrent_trials=at_once,
                ),
                run_config=tune.RunConfig(
                    name="study",
                    storage_path=str(storage),
                    callbacks=[_Messenger(driver, on_tick, interrupted)],
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
                    # By default a trial ends with a checkpoint, and the driver keeps the last report with it.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            # Left by `_End` or an interrupt: Tune's wrap-up is skipped; it waits for workers and reads results back.
            with _quiet_tune(), contextlib.suppress(_End):
                tuner.fit()
    except RayError as error:
        raise SparsefrontError(f"the Ray cluster was lost ({_one_line(error)}): {_GO_ON}") from error
    if driver.failure is not None:
        raise driver.failure
    if not plan.is_done:
        raise SparsefrontError(f"Ray Tune ended before the study did: {_GO_ON}")


#: What to do when a study broke off.
_GO_ON = "what was committed is safe; run the same command again to go on"


class _End(BaseException):
    """Leaves Tune's loop; no `Exception`, so that Tune does not handle it."""


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that SIGINT or SIGTERM sets; a second signal interrupts at once."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():  # where Python has no signal handlers
        yield event
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Running:
    """A pack that was handed out; `heard_s` is when its worker last gave a sign, None before it began."""

    work: Work
    heard_s: float | None = None


class Driver:
    """Hands packs out and takes results in; the plan and the ledger decide. Knows nothing of Ray.

    Execution is at least once, results are exactly once: rows whose key is committed are left out. Work of a worker
    that died or hung is run again by halves until the culprit is alone; a single candidate is tried `max_retries` times
    more, but not if it raised or its worker ended itself for hanging. Passes of attempts that ended so are unknown, and
    not in the budget; the seconds of the last one are.
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
        self._running: dict[str, _Running] = {}
        self._n_packs = 0
        self._n_failed_starts = 0
        self.failure: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to hand out or to wait for, or the study has failed."""
        return self.failure is not None or (not self._running and self._plan.is_done)

    # Work out --------------------------------------------------------------------------------------------------------

    def next_pack(self, trial_id: str) -> str | None:
        """Post the next pack for trial `trial_id` and return its key; None if there is none now."""
        self.record_decided()
        work = self._plan.next_work()
        if work is None:
            return None
        self._running[trial_id] = _Running(work)
        masks: dict[str, bytes] = {}
        if isinstance(work, TrainWork):
            stored = {lane.candidate.mask for lane in work.lanes if lane.candidate.mask is not None}
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
        """Commit what the plan itself knows: slots that can never be filled, candidates that were stopped."""
        while found := self._plan.decided():
            self._commit(decided_rows(found, self._names, self._settings.recipe, self._schema))

    # Results in ------------------------------------------------------------------------------------------------------

    def began(self, trial_id: str) -> None:
        """A worker is there and begins with its pack."""
        if trial_id in self._running:
            self._running[trial_id].heard_s = self._clock()

    def heard(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """A worker reported: commit what ended.

        Raises:
            SparsefrontError: if the worker can run no pack at all, or sent masks that are damaged.
        """
        self.began(trial_id)
        self._n_failed_starts = 0
        if report["problem"] is not None:
            raise SparsefrontError(
                f"a worker cannot run this study ({_one_line(report['problem'])}): every machine of the cluster needs "
                "the study's device, packages and modules, and memory for its data (compute.memory_gib); "
                f"{_GO_ON}"
            )
        for digest, bits in report["blobs"].items():
            if self._ledger.put_blob(bits) != digest:
                raise SparsefrontError(
                    f"mask {digest}: the bits that a worker sent do not match their digest; {_GO_ON}"
                )
        for rows in decode_rows(report["rows"]):
            is_new = self._plan.is_new(rows)
            fresh = rows if is_new.all() else rows.filter(pa.array(is_new))
            if fresh.num_rows:
                self._commit(fresh)

    def ended(self, trial_id: str) -> None:
        """A pack ran to its end."""
        running = self._running.pop(trial_id, None)
        if running is not None:
            self._plan.finished(running.work)

    def lost(self, trial_id: str, outcome: str, reason: str) -> None:
        """A pack broke off: divide its work, or give up what is a single candidate and was tried often enough.

        Args:
            trial_id: its trial.
            outcome: 'lost' or 'out_of_memory' if its worker died; 'failed' if it raised.
            reason: what is known about it.

        Raises:
            SparsefrontError: if workers die one after the other before they begin.
        """
        running = self._running.pop(trial_id, None)
        if running is None:
            return
        work = running.work
        if running.heard_s is None:
            self._n_failed_starts += 1
            if self._n_failed_starts > self._max_failed_starts:
                raise SparsefrontError(
                    f"no worker could start, {self._n_failed_starts} times in a row ({_one_line(reason)}): look at the "
                    f"memory and the packages of the cluster's machines; {_GO_ON}"
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
        _LOG.info("pack %s: %s (%s); %d to do again", work.key, outcome, _one_line(reason), len(parts))
        self._plan.give_back(parts)

    def silent(self) -> list[str]:
        """Trials whose workers should have ended themselves long ago."""
        limit_s = self._clock() - self._settings.timeout_s - _DRIVER_GRACE_S
        return [
            key for key, running in self._running.items() if running.heard_s is not None and running.heard_s < limit_s
        ]

    def _commit(self, rows: Any) -> None:
        committed = stamped(rows)
        self._ledger.commit(committed)
        self._plan.absorb(committed)
        if self._checkpoints is not None:
            self._checkpoints.learn(committed)
            if self._plan.is_complete:
                self._checkpoints.clear()
        self._on_commit(committed)


class _PackSearcher(Searcher):  # type: ignore[misc]
    """Tells Tune which pack to run next."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy that is never restored."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A pack's key, None to wait, or FINISHED."""
        key = _guarded(self._driver, self._driver.next_pack, trial_id)
        if key is not None:
            return {"pack": key}
        return str(Searcher.FINISHED) if self._driver.is_over else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `_Messenger` has seen it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only record."""


class _Messenger(tune.Callback):  # type: ignore[misc]
    """Tells the driver what happens in Tune; raises nothing into it but the end."""

    def __init__(self, driver: Driver, on_tick: Callable[[], None], interrupted: threading.Event) -> None:
        self._driver, self._on_tick, self._interrupted = driver, on_tick, interrupted
        self._actors: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy that is never restored."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Between events: the place to stop, to end workers that went silent, and to let the terminal move."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        _guarded(self._driver, self._on_tick)
        for trial_id in self._driver.silent():
            if (actor := self._actors.pop(trial_id, None)) is not None:
                ray.kill(actor)
        if self._driver.is_over:
            raise _End

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker begins with a pack."""
        self._actors[trial.trial_id] = trial.temporary_state.ray_actor
        _guarded(self._driver, self._driver.began, trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A report arrived; its payload is taken out, so that Tune keeps none of it."""
        report = {name: result.pop(name, None) for name in ("rows", "blobs", "problem")}
        _guarded(self._driver, self._driver.heard, trial.trial_id, report)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A pack is done."""
        self._actors.pop(trial.trial_id, None)
        _guarded(self._driver, self._driver.ended, trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A pack broke off."""
        self._actors.pop(trial.trial_id, None)
        _guarded(self._driver, self._driver.lost, trial.trial_id, *_broke_off(trial))


def _broke_off(trial: Any) -> tuple[str, str]:
    """What ended a trial: ('failed', 'out_of_memory' or 'lost', what is known about it)."""
    path = Path(trial.error_file)
    return what_broke(path.read_text(encoding="utf-8", errors="replace") if path.exists() else "no reason known")


def what_broke(text: str) -> tuple[str, str]:
    r"""Outcome and reason from what Ray Tune wrote of an error; the error itself it keeps pickled only.

    >>> what_broke("Failure # 1\n\x1b[36mray::PackTrial.train()\x1b[39m (pid=7)\nValueError: no")[0]
    'failed'
    >>> what_broke("Failure # 1\nThe actor died unexpectedly ... killed by the OOM killer due to high memory usage")[0]
    'lost'
    """
    reason = _COLOUR.sub("", text).partition("\n")[2].strip() or text.strip()
    if reason.startswith("ray::"):  # the worker lives, and raised
        last = reason.rpartition("\n")[2]
        is_memory = "MemoryError" in last or "DefaultCPUAllocator" in last
        return ("out_of_memory" if is_memory else "failed"), reason
    # Ray's memory monitor; the message on a worker that died for no known reason speaks of memory, too.
    return ("out_of_memory" if "low on memory" in reason else "lost"), reason


def _guarded(driver: Driver, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function`; an exception ends the study in an orderly way instead of aborting Tune."""
    if driver.failure is not None:
        return None
    try:
        return function(*arguments)
    except Exception as error:
        driver.failure = error
        return None


def _one_line(what: object) -> str:
    """The first 500 characters of a text, on one line."""
    return " ".join(str(what).split())[:500]


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
