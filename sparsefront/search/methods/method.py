"""What an arm is asked: which candidates it wants trained at one level of one replicate, given what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sparsefront.spaces.candidate import Candidate


@dataclass(frozen=True)
class Best:
    """Numbers of the draws that stand out among the scored masks of one level; ties go to the earlier draw.

    None where no mask of the level has a finite score of that kind.
    """

    lowest_initial_loss: int | None
    lowest_scalefree_loss: int | None
    highest_initial_loss: int | None


@dataclass(frozen=True)
class Missing:
    """Why a mask that an arm needs does not exist and never will."""

    reason: str


@dataclass(frozen=True)
class Context:
    """What is known when an arm is asked.

    Attributes:
        replicate: index of the replicate.
        sparsity: the level; 0 for the dense parent.
        random_draws: masks that the random arm trains.
        best: outstanding draws; None until all masks of the level are scored.
        derived: digest of the mask that a criterion cut from the trained parent, by criterion; absent until known.
    """

    replicate: int
    sparsity: float
    random_draws: int
    best: Best | None = None
    derived: Mapping[str, str | Missing] = field(default_factory=dict)


class Method(Protocol):
    """One arm.

    Attributes:
        summary: what it does, in one line.
        source: paper or convention that it follows.
        is_dense: whether it is asked once for each replicate at level 0 instead of at every level.
        needs_scores: whether the level's random masks must be scored first (part of its budget).
        criterion: pruning criterion whose mask of the trained parent it needs, or None (the parent's training is then
            part of its budget).
    """

    summary: str
    source: str
    is_dense: bool
    needs_scores: bool
    criterion: str | None

    def n_slots(self, context: Context) -> int:
        """How many candidates the arm trains at this level."""

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The candidates, slot by slot; None while something it needs is not known yet."""
