"""CMA-ES, through Optuna and the package ``cmaes``.

References: Hansen and Ostermeier, Completely derandomized self-adaptation in evolution strategies, EC 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from sparsefront.search.strategies.strategy import Options, Strategy, Task
from sparsefront.spaces.domains import Choice
from sparsefront.spaces.space import Space


class CmaEsOptions(Options):
    """Arguments of Optuna's CmaEsSampler."""

    population: int = Field(default=0, ge=0, le=100_000, description="candidates of a generation; 0: one batch")


class CmaEs:
    """CMA-ES: one objective over numbers only."""

    summary = "covariance matrix adaptation (Optuna); one objective, numeric dimensions without conditions"
    source = "Hansen and Ostermeier 2001"
    is_adaptive = True
    options = CmaEsOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Anything but one objective over at least two numbers."""
        if len(objectives) != 1:
            return (
                f"{len(objectives)} objectives ({', '.join(objectives)}): it minimises one; use 'nsga2' or 'evolution'"
            )
        if space.bits is not None:
            return "searched mask bits are no numbers: use strategy 'random', 'size_stratified' or 'evolution'"
        for dimension in space.dimensions:
            if isinstance(dimension.domain, Choice):
                return f"dimension {dimension.name!r} is a choice: it searches numbers only; use 'tpe' or 'evolution'"
            if dimension.condition is not None:
                return (
                    f"dimension {dimension.name!r} is conditional: every candidate needs all; use 'tpe' or 'evolution'"
                )
        if len(space.dimensions) < 2:
            return f"{len(space.dimensions) or 'no'} dimension: it needs at least two"
        measured = [c.quantity for c in space.constraints if not c.is_known_before_training]
        if measured:
            return f"constraint on {measured[0]}: it cannot learn from measured constraints; use 'tpe' or 'evolution'"
        return None

    @staticmethod
    def arguments(options: CmaEsOptions, batch: int) -> dict[str, Any]:
        """All arguments of the sampler but its seed; None leaves what Optuna has deprecated at Optuna's own value."""
        return {
            "popsize": options.population or max(4, batch),
            "n_startup_trials": 1,
            "independent_sampler": None,
            "warn_independent_sampling": False,
            "consider_pruned_trials": False,
            "use_separable_cma": False,
            "with_margin": False,
            "lr_adapt": False,
            "source_trials": None,
            "x0": None,
            "sigma0": None,
            "restart_strategy": None,
            "inc_popsize": -1,
        }

    def make(self, task: Task, options: Options) -> Strategy:
        """CMA-ES on one run."""
        from sparsefront.search.optuna_bridge import Distribution

        assert isinstance(options, CmaEsOptions)
        return Distribution(task, "CmaEsSampler", self.arguments(options, task.batch))
