"""Bayesian optimisation with Gaussian processes, through Optuna.

References: Ament et al., Unexpected improvements to expected improvement for Bayesian optimization, NeurIPS 2023;
Daulton, Balandat and Bakshy, Differentiable expected hypervolume improvement, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from sparsefront.search.strategies.strategy import Options, Strategy, Task
from sparsefront.spaces.space import Space


class GpOptions(Options):
    """Arguments of Optuna's GPSampler."""

    n_startup_trials: int = Field(default=10, ge=1, description="candidates drawn at random before a model is fitted")
    deterministic_objective: bool = Field(default=False, description="whether a candidate trained twice gives the same")


class Gp:
    """Gaussian processes: the fewest candidates, the most time for each of them."""

    summary = "Gaussian processes with expected (hypervolume) improvement (Optuna); up to about 200 candidates"
    source = "Ament et al. 2023; Daulton et al. 2020"
    is_adaptive = True
    options = GpOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Masks have no kernel."""
        if space.bits is not None:
            return "searched mask bits are no parameters of Optuna's: use 'random', 'size_stratified' or 'evolution'"
        return None

    @staticmethod
    def arguments(options: GpOptions) -> dict[str, Any]:
        """All arguments of the sampler but its seed."""
        return {
            "n_startup_trials": options.n_startup_trials,
            "deterministic_objective": options.deterministic_objective,
            "independent_sampler": None,
            "constraints_func": None,
            "warn_independent_sampling": False,
        }

    def make(self, task: Task, options: Options) -> Strategy:
        """Gaussian processes on one run; inactive dimensions hold draws, so that conditional ones are modelled too."""
        from sparsefront.search.optuna_bridge import WholeHistory

        assert isinstance(options, GpOptions)
        return WholeHistory(task, "GPSampler", self.arguments(options), is_complete=True)
