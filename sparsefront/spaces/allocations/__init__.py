"""How a total density is divided over the sections of a mask; one file and one line of the registry each."""

from sparsefront.spaces.allocations.registry import ALLOCATIONS, Allocation, kept_counts

__all__ = ["ALLOCATIONS", "Allocation", "kept_counts"]
