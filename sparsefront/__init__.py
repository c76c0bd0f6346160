"""Random-search baselines, verdicts and Pareto fronts for sparse neural networks."""
