"""Scores that say which weights or nodes matter, one file and one registry line each, and the masks they lead to."""

from sparsefront.trainables.pruning.registry import CRITERIA, SCORES, Score, iterative_mask, pruned_mask
from sparsefront.trainables.pruning.selection import keep_best
from sparsefront.trainables.pruning.state import ScoringState

__all__ = ["CRITERIA", "SCORES", "Score", "ScoringState", "iterative_mask", "keep_best", "pruned_mask"]
