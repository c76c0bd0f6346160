"""Successive halving: all of a bracket are compared at once, and one of eta goes on.

Reference: Jamieson, Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, 2016.
"""

from __future__ import annotations

from sparsefront.search.rungs.rule import RungKind

SUCCESSIVE_HALVING = RungKind(
    "when all of a bracket have reached a rung, the best of them, one of eta, go on", "Jamieson and Talwalkar 2016"
)
