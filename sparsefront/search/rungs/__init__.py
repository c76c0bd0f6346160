"""Rungs: at which steps candidates are compared, and which of them go on."""

from sparsefront.search.rungs.brackets import Bracket, bracket_of, check_settings, rung_steps
from sparsefront.search.rungs.halving import Halving, RungDecision
from sparsefront.search.rungs.ranks import is_among_best, n_continuing, ranks_of
from sparsefront.search.rungs.registry import RUNGS
from sparsefront.search.rungs.rule import Record, RungKind

__all__ = [
    "RUNGS",
    "Bracket",
    "Halving",
    "Record",
    "RungDecision",
    "RungKind",
    "bracket_of",
    "check_settings",
    "is_among_best",
    "n_continuing",
    "ranks_of",
    "rung_steps",
]
