"""The arms of a study: how each one comes to its candidates; one file and one registry line each."""

from sparsefront.search.methods.method import Best, Context, Cut, Method, Missing, Trained
from sparsefront.search.methods.pruners import PRUNERS, Pruner
from sparsefront.search.methods.registry import (
    ARM_KEYS,
    BASELINE,
    METHODS,
    arm_names,
    known_methods,
    methods_of,
    tables_for,
)

__all__ = [
    "ARM_KEYS",
    "BASELINE",
    "METHODS",
    "PRUNERS",
    "Best",
    "Context",
    "Cut",
    "Method",
    "Missing",
    "Pruner",
    "Trained",
    "arm_names",
    "known_methods",
    "methods_of",
    "tables_for",
]
