"""Keeps Ray Tune from ending the workers that it started.

Tune caches the actors of trials that ended only for trials that are there at that moment, and ends the others; and it
gives a cached actor to any trial that has none running yet, also to one whose own actor is being started, which it
then ends as well. A search that waits for a batch of its strategy would go on with one worker of four, each of which
took seconds to start (Ray's own remarks on `reuse_actors`: ray-project/ray, pull requests 36020 and 42951).

There is no public switch for this: what is used here was read in Ray 2.60. Where it is missing, Tune goes on as it
would.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.tune.schedulers import FIFOScheduler

_LOG = logging.getLogger(__name__)
#: A worker that takes longer to start may hang: its trial may have another.
_STARTED_BY_S = 120.0


class KeepingScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray has no types
    """Lets all trials run, in the order in which they came, and keeps the workers."""

    def __init__(self, slots: int) -> None:
        """Keep `slots` workers at most."""
        super().__init__()
        self._slots = slots
        self._is_keeping = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy that is never restored."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """The first trial is there, and so is all that tells which resources a worker holds."""
        if not self._is_keeping:
            self._is_keeping = True
            _keep(tune_controller, trial.placement_group_factory, self._slots)
        super().on_trial_add(tune_controller, trial)


def _keep(tune_controller: Any, resources: Any, slots: int) -> None:
    try:
        controller = tune_controller._tune_controller
        controller._actor_cache.increase_max(resources, slots)
        controller._maybe_reuse_cached_actor = _Reuse(controller)
        controller._class_cache = _PlainClasses()
    except AttributeError as error:
        _LOG.warning("Ray Tune is not the one that this program knows (%s): workers may be started again", error)


class _PlainClasses:
    """Makes actors of trainables without an environment of their own.

    Tune's has a variable for a library that is not used here (PL_DISABLE_FORK), and Ray starts processes anew for every
    environment: those that it started with the cluster, and that have loaded this program, would stay idle.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def get(self, trainable: Any) -> Any:
        """The actor class of a trainable."""
        if trainable not in self._made:
            self._made[trainable] = ray.remote(trainable)
        return self._made[trainable]


class _Reuse:
    """Gives a cached actor to a trial, but not to one whose own is on its way: to another one then."""

    def __init__(self, controller: Any) -> None:
        self._reuse, self._own = controller._maybe_reuse_cached_actor, controller._trial_to_actor
        self._staged, self._resetting = controller._staged_trials, controller._resetting_trials
        self._actors = controller._actor_manager
        self._since_s: dict[Any, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves a copy of its controller that is never restored."""
        return {}

    def __call__(self, trial: Any) -> bool:
        if not self._is_starting(trial):
            return bool(self._reuse(trial))
        for other in list(self._staged):
            waits = other is not trial and other not in self._resetting and not self._is_starting(other)
            if waits and self._reuse(other):
                break
        return False

    def _is_starting(self, trial: Any) -> bool:
        """Whether a worker of its own is on its way to a trial, and has not been for so long that it hangs."""
        actor = self._own.get(trial)
        if actor is None or not self._actors.is_actor_started(actor):
            return False
        return time.monotonic() - self._since_s.setdefault(actor, time.monotonic()) < _STARTED_BY_S
