"""How candidates are proposed. Random draws need no proposer: see `registry.Strategy`."""

from sparsefront.search.strategies.registry import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy"]
