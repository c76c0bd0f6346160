"""The criteria by name, and the exact mask that one of them leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import Mask, top_k
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.pruning.magnitude import Weights, magnitude


class Score(Protocol):
    """Scores every entry of a mask, higher = keep."""

    def __call__(self, structure: Structure, kind: str, weights: Weights, /) -> npt.NDArray[np.float64]:
        """(entries,) float64 in the order of the mask."""


@dataclass(frozen=True)
class Criterion:
    """One row of the registry."""

    summary: str
    source: str
    score: Score


CRITERIA: Mapping[str, Criterion] = {
    "magnitude": Criterion(
        "largest weights, or nodes of largest group norm", "Han et al. 2015; Li et al. 2017", magnitude
    ),
}


def pruned_mask(
    name: str, structure: Structure, weights: Weights, *, kind: str, sparsity: float, allocation: str
) -> Mask:
    """Mask of exactly the counts of `allocation` that keeps what criterion `name` scores highest."""
    counts = kept_counts(structure, kind, sparsity, allocation)
    return top_k(CRITERIA[name].score(structure, kind, weights), structure.section_sizes(kind), counts)
