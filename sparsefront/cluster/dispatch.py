"""Runs the work of a study on Ray Tune and commits what comes back to the ledger.

One pack is one Tune trial. Tune decides where and when a pack runs; what runs, what a result means and what is done
again after a failure is decided by `Driver` and the plan, from the ledger. Tune's own state is never read back.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from sparsefront.cluster.driver import CommitListener, Driver, WorkPlan
from sparsefront.cluster.halving import LoneTrialScheduler, RayHalving
from sparsefront.cluster.orders import OrderBook
from sparsefront.cluster.ray_cluster import Resources, scratch_folder
from sparsefront.cluster.wording import GO_ON, one_line
from sparsefront.cluster.worker import PackTrial, WorkerSettings
from sparsefront.errors import LedgerError, SparsefrontError
from sparsefront.search.garbage import rare_collections
from sparsefront.search.ledger import Ledger
from sparsefront.trainables.data import Dataset

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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
    orders = OrderBook()
    driver = Driver(
        plan, ledger, settings, max_retries=resources.max_retries, slots=slots, post=orders.put, on_commit=on_commit
    )
    lost: RayError | None = None
    try:
        driver.record_decided()
        if plan.is_done:
            return
        # One more than runs, so that a free worker finds it ready; where more than `slots` could run, they are not.
        at_once = slots + 1 if resources.capacity() <= slots else slots
        trainable = tune.with_resources(
            tune.with_parameters(PackTrial, settings=settings, dataset=ray.put(dataset)),
            resources.of_trial,
        )
        with contextlib.closing(orders), scratch_folder() as storage, _interrupts() as interrupted:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_PackSearcher(driver),
                    scheduler=LoneTrialScheduler(slots, halving or {}),
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
            with _quiet_tune(), rare_collections(), contextlib.suppress(_End):
                tuner.fit()
    except RayError as error:
        lost = error
    failure = lost or driver.failure
    if failure is not None:
        if not isinstance(failure, LedgerError):
            with contextlib.suppress(Exception):  # the failure is what is told
                driver.record_decided()  # what was heard before
        if isinstance(failure, RayError):
            raise SparsefrontError(f"the Ray cluster was lost ({one_line(failure)}): {GO_ON}") from failure
        raise failure
    if not plan.is_done:
        raise SparsefrontError(f"Ray Tune ended before the study did: {GO_ON}")


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
        self._may_commit = True

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy that is never restored."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Between events: the place to stop, to end workers that went silent, and to let the terminal move."""
        if self._interrupted.is_set():
            _guarded(self._driver, self._driver.record_decided)
            raise KeyboardInterrupt
        _guarded(self._driver, self._on_tick)
        for trial_id in self._driver.silent():
            if (actor := self._actors.pop(trial_id, None)) is not None:
                ray.kill(actor)
        if self._driver.is_over:
            raise _End

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Commit, but not yet what ended in this very step: in the next one the worker that is free gets its work.

        Durable writes take 10 to 30 ms beside busy workers. Where something ends in every step, this may not go on.
        """
        if self._may_commit or self._driver.is_overdue:
            _guarded(self._driver, self._driver.commit_if_due)
        self._may_commit = True

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker begins with a pack."""
        self._actors[trial.trial_id] = trial.temporary_state.ray_actor
        _guarded(self._driver, self._driver.began, trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A report arrived; its payload is taken out, so that Tune keeps none of it."""
        self._may_commit = not result.get("done")
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
