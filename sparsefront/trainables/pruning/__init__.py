"""Scores that say which weights or nodes matter, one file and one registry line each, and the masks they lead to."""

from sparsefront.trainables.pruning.registry import SCORES, Score, iterative_mask
from sparsefront.trainables.pruning.selection import keep_best
from sparsefront.trainables.pruning.state import ScoringState

__all__ = ["SCORES", "Score", "ScoringState", "iterative_mask", "keep_best"]
