"""NSGA-II, through Optuna.

References: Deb, Pratap, Agarwal and Meyarivan, A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE
Transactions on Evolutionary Computation 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from sparsefront.search.strategies.strategy import Options, Strategy, Task
from sparsefront.spaces.space import Space


class Nsga2Options(Options):
    """Arguments of Optuna's NSGAIISampler."""

    population: int = Field(default=50, ge=2, le=100_000, description="parents; as many candidates are drawn at first")
    mutation_fraction: float | None = Field(
        default=None, ge=0, le=1, description="dimensions of a child that are drawn anew; none: one over their number"
    )
    crossover_fraction: float = Field(default=0.9, ge=0, le=1, description="children of two parents")
    swap_fraction: float = Field(
        default=0.5, ge=0, le=1, description="dimensions that a child has from its second parent"
    )


class Nsga2:
    """NSGA-II with uniform crossover; with fewer than about four populations it is random search in disguise."""

    summary = "NSGA-II: elite by non-dominated rank and crowding, uniform crossover, mutation by redrawing (Optuna)"
    source = "Deb et al. 2002"
    is_adaptive = True
    options = Nsga2Options

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Masks need a crossover that keeps exactly k."""
        if space.bits is not None:
            return "crossover of independent bits does not keep exactly k: use strategy 'evolution'"
        return None

    @staticmethod
    def arguments(options: Nsga2Options) -> dict[str, Any]:
        """All arguments of the sampler but its seed; None is Optuna's own default."""
        return {
            "population_size": options.population,
            "mutation": None,
            "mutation_prob": options.mutation_fraction,
            "crossover": None,
            "crossover_prob": options.crossover_fraction,
            "swapping_prob": options.swap_fraction,
            "constraints_func": None,
            "elite_population_selection_strategy": None,
            "child_generation_strategy": None,
            "after_trial_strategy": None,
        }

    def make(self, task: Task, options: Options) -> Strategy:
        """NSGA-II on one run."""
        from sparsefront.search.optuna_bridge import Population

        assert isinstance(options, Nsga2Options)
        return Population(task, self.arguments(options))
