"""Random-search baselines, verdicts and Pareto fronts for sparse neural networks."""

from sparsefront.study import Results, Study, load

__all__ = ["Results", "Study", "load"]
