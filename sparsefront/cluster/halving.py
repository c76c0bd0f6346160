"""Ray's own ASHA for candidates that train alone, one comparison for each run (an arm in one replicate).

Ray's `ASHAScheduler` compares all trials of an experiment; here every run has one of its own, and packs, which have no
loss to compare, pass by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from sparsefront.cluster.kept_workers import KeepingScheduler


@dataclass(frozen=True)
class RayHalving:
    """Arguments of Ray's `ASHAScheduler`: steps of the full training and of the first rung, and its factor."""

    max_steps: int
    first_steps: int
    eta: int


class LoneTrialScheduler(KeepingScheduler):
    """Asks Ray's ASHA about trials that report a loss, and lets all others run."""

    def __init__(self, slots: int, halving: Mapping[str, RayHalving]) -> None:
        """Keep `slots` workers; by arm, what its candidates are compared by."""
        super().__init__(slots)
        self._halving = dict(halving)
        self._schedulers: dict[str, Any] = {}
        self._run_of: dict[str, str] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on."""
        run = result.get("run")
        if run is None or result.get("loss") is None:
            return str(TrialScheduler.CONTINUE)
        if run not in self._schedulers:
            settings = self._halving[run.rpartition("/")[0]]
            self._schedulers[run] = ASHAScheduler(
                time_attr="steps",
                metric="loss",
                mode="min",
                max_t=settings.max_steps,
                grace_period=settings.first_steps,
                reduction_factor=settings.eta,
                brackets=1,
            )
        scheduler = self._schedulers[run]
        if trial.trial_id not in self._run_of:
            self._run_of[trial.trial_id] = run
            scheduler.on_trial_add(tune_controller, trial)
        return str(scheduler.on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial that ended; its last report is no rung."""
        self._forget(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial."""
        self._forget(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that broke off."""
        self._forget(tune_controller, trial)

    def _forget(self, tune_controller: Any, trial: Any) -> None:
        run = self._run_of.pop(trial.trial_id, None)
        if run is not None:
            self._schedulers[run].on_trial_remove(tune_controller, trial)
