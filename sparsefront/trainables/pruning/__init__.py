"""Criteria that say which weights or nodes of trained networks matter; one file and one registry line each."""

from sparsefront.trainables.pruning.registry import CRITERIA, Criterion, pruned_mask

__all__ = ["CRITERIA", "Criterion", "pruned_mask"]
