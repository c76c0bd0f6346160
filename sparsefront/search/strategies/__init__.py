"""How candidates are proposed; one file and one registry line each."""

from sparsefront.search.strategies.registry import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy"]
