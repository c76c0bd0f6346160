"""Tree-structured Parzen estimator, through Optuna.

References: Bergstra, Bardenet, Bengio and Kegl, Algorithms for hyper-parameter optimization, NeurIPS 2011; Ozaki,
Tanigaki, Watanabe, Nomura and Onishi, Multiobjective tree-structured Parzen estimator, JAIR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from sparsefront.search.strategies.strategy import Options, Strategy, Task
from sparsefront.spaces.space import Space


class TpeOptions(Options):
    """Arguments of Optuna's TPESampler."""

    n_startup_trials: int = Field(default=10, ge=1, description="candidates drawn at random before a model is fitted")
    n_ei_candidates: int = Field(
        default=24, ge=1, description="samples of the good density of which the best is proposed"
    )
    multivariate: bool = Field(default=True, description="model dimensions jointly, those of a condition as a group")
    constant_liar: bool = Field(default=True, description="keep away from candidates that are still pending")


class Tpe:
    """TPE: models where good candidates are dense; time per candidate grows with their number."""

    summary = "tree-structured Parzen estimator (Optuna), one or several objectives; up to about 2,000 candidates"
    source = "Bergstra et al. 2011; Ozaki et al. 2022"
    is_adaptive = True
    options = TpeOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Masks have no density of their own."""
        if space.bits is not None:
            return "searched mask bits are no parameters of Optuna's: use 'random', 'size_stratified' or 'evolution'"
        return None

    @staticmethod
    def arguments(options: TpeOptions) -> dict[str, Any]:
        """All arguments of the sampler but its seed; None leaves what Optuna has deprecated at Optuna's own value."""
        return {
            "n_startup_trials": options.n_startup_trials,
            "n_ei_candidates": options.n_ei_candidates,
            "multivariate": options.multivariate,
            "group": options.multivariate,
            "constant_liar": options.constant_liar,
            "constraints_func": None,
            "consider_prior": None,
            "prior_weight": None,
            "consider_magic_clip": None,
            "consider_endpoints": None,
            "gamma": None,
            "weights": None,
            "warn_independent_sampling": None,
        }

    def make(self, task: Task, options: Options) -> Strategy:
        """TPE on one run."""
        from sparsefront.search.optuna_bridge import WholeHistory

        assert isinstance(options, TpeOptions)
        return WholeHistory(task, "TPESampler", self.arguments(options), is_complete=False)
