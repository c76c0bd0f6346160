"""How candidates are proposed: one module and one line of the registry for each strategy."""

from sparsefront.search.strategies.registry import STRATEGIES, strategy_family
from sparsefront.search.strategies.strategy import (
    COMPLETED,
    FAILED,
    INFEASIBLE,
    PENDING,
    STOPPED,
    History,
    Options,
    Strategy,
    StrategyFamily,
    Task,
)

__all__ = [
    "COMPLETED",
    "FAILED",
    "INFEASIBLE",
    "PENDING",
    "STOPPED",
    "STRATEGIES",
    "History",
    "Options",
    "Strategy",
    "StrategyFamily",
    "Task",
    "strategy_family",
]
