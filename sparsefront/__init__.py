"""Random-search baselines, verdicts and Pareto fronts for sparse neural networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsefront.results import Results, load
    from sparsefront.study import Study

__all__ = ["Results", "Study", "load"]


def __getattr__(name: str) -> Any:
    # Late, so that a part that needs neither torch nor Ray (the MLflow mirror, the front) starts without them.
    if name == "Study":
        from sparsefront.study import Study

        return Study
    if name in __all__:
        from sparsefront import results

        return getattr(results, name)
    raise AttributeError(f"module 'sparsefront' has no attribute {name!r}")
