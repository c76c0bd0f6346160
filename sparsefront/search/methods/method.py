"""What an arm is asked: which candidates it wants trained at one level of one replicate, given what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.pruning import Pruning


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
class Cut:
    """A mask to be cut from a trained network.

    Attributes:
        arm: whose mask it is.
        sparsity: of the mask.
        method: how it is cut.
        later: sparsities of the masks that will be cut from what is left of it, ascending.
    """

    arm: str
    sparsity: float
    method: Pruning
    later: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What a completed network of another arm left: digest of its mask, and id of the network if its weights are kept.

    The mask is None if it has none.
    """

    mask: str | None
    id: str | None = None


@dataclass(frozen=True)
class Context:
    """What is known when an arm is asked.

    Attributes:
        replicate: index of the replicate.
        sparsity: the level; 0 for the dense parent.
        random_draws: masks that the random arm trains.
        steps: of a training.
        sparsities: all levels of the study, ascending.
        making_steps: steps that scoring takes for one mask of an arm, before its training and in it, by arm.
        best: outstanding draws; None until all masks of the level are scored.
        derived: mask that an arm's method cut from a trained network, by arm: its digest, and the id of that network;
            absent until known.
        trained: what the first network of other arms left at this level, by arm; absent until known.
    """

    replicate: int
    sparsity: float
    random_draws: int
    steps: int = 0
    sparsities: tuple[float, ...] = ()
    best: Best | None = None
    derived: Mapping[str, Trained | Missing] = field(default_factory=dict)
    trained: Mapping[str, Trained | Missing] = field(default_factory=dict)
    making_steps: Mapping[str, int] = field(default_factory=dict)


class Method(Protocol):
    """One arm.

    Attributes:
        summary: what it does, in one line.
        source: paper or convention that it follows.
        is_dense: whether it is asked once for each replicate at level 0 instead of at every level.
        needs_scores: whether the level's random masks must be scored first (part of its budget).
        needs_parent: whether it starts from the trained parent (whose training is then part of its budget).
        goes_alone: whether it is asked as soon as what it needs is known, without waiting for the level's other arms.
        goes_with: names what shares packs of arms that go alone and are known at one moment; '' for none.
    """

    summary: str
    source: str
    is_dense: bool
    needs_scores: bool
    needs_parent: bool
    goes_alone: bool
    goes_with: str

    def levels(self, sparsities: Sequence[float]) -> tuple[float, ...]:
        """Sparsities at which it trains, ascending; those of the study, and others on the way to them."""

    def cuts(self, sparsity: float, sparsities: Sequence[float]) -> tuple[Cut, ...]:
        """Masks to be cut from the network that it trains at a level; at level 0, from the parent."""

    def n_slots(self, context: Context) -> int:
        """How many candidates the arm trains at this level."""

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The candidates, slot by slot; None while something it needs is not known yet."""


class EveryLevel:
    """What most arms have in common: they train at the study's levels, prune nothing that is trained, and wait."""

    is_dense = False
    needs_scores = False
    needs_parent = False
    goes_alone = False
    goes_with = ""

    def levels(self, sparsities: Sequence[float]) -> tuple[float, ...]:
        """Those of the study."""
        return tuple(sparsities)

    def cuts(self, sparsity: float, sparsities: Sequence[float]) -> tuple[Cut, ...]:
        """None."""
        return ()

    def n_slots(self, context: Context) -> int:
        """One."""
        return 1
