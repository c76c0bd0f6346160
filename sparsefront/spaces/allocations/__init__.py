"""How a total density is divided over the sections of a mask; one file and one line of the registry each."""

from sparsefront.spaces.allocations.from_scores import counts_from_scores
from sparsefront.spaces.allocations.registry import ALLOCATIONS, EXPLICIT, Allocation, kept_counts

__all__ = ["ALLOCATIONS", "EXPLICIT", "Allocation", "counts_from_scores", "kept_counts"]
