"""What a search hands out and what comes of it without a worker: segments of training, and decisions of the driver.

Workers import this module and none that proposes: what draws points takes them a second to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sparsefront.spaces.domains import Point, Value
from sparsefront.spaces.shape import Shape


@dataclass(frozen=True)
class Described:
    """What follows from a candidate without training it.

    Attributes:
        id: hash of everything that defines the candidate, 32 hex digits (`Run.named` adds how its fidelity grows).
        n_params: parameters that remain.
        macs: multiply-accumulates of one example's forward pass.
        weight_sparsity: fraction of prunable weights removed.
        node_sparsity: fraction of hidden nodes removed.
        shape: sizes of its tensors, for packing.
        steps: optimiser steps of its full training; of a pruning chain, of all its levels.
        data_fraction: share of the training examples in its full training.
    """

    id: str
    n_params: int
    macs: int
    weight_sparsity: float
    node_sparsity: float
    shape: Shape
    steps: int
    data_fraction: float = 1.0

    @property
    def costs(self) -> dict[str, float]:
        """The quantities that constraints may bound before training."""
        return {
            "n_params": float(self.n_params),
            "macs": float(self.macs),
            "weight_sparsity": self.weight_sparsity,
            "node_sparsity": self.node_sparsity,
        }


class Sets(Protocol):
    """What a point sets: a space, or what stands for one where candidates are controls of others."""

    def settings(self, point: Point) -> dict[str, Any]:
        """Study keys and their values."""


#: (replicate, point, space of its arm) -> what it is.
Describe = Callable[[int, Point, Sets], Described]


@dataclass(frozen=True)
class Decision:
    """A row of stage 'trained' that no worker reports: the driver commits it; it costs nothing.

    Attributes:
        arm: of the candidate.
        replicate: of the candidate.
        slot: the candidate's number within its run.
        outcome: 'stopped', 'infeasible', 'diverged' (a rung without a finite loss), 'failed' (its run could not go on,
            or there can be no such candidate), or that of the candidate it repeats.
        point: the candidate; None if its run could not go on.
        settings: study keys that it sets.
        described: what follows from it; None if nothing does.
        rung: index of the rung it was stopped at, else None.
        steps: optimiser steps that it was trained for.
        reused_from: number of the candidate of the same run that it repeats, else None.
        values: what was measured last, by ledger column, costs left out.
        network: what the network that it repeats is, by ledger column; empty if it repeats none.
        fixed: columns of dimensions that its arm does not search (`SearchArm.fixed`).
        error: why, where it is not obvious: constraints that it violates, or a traceback.
    """

    arm: str
    replicate: int
    slot: int
    outcome: str
    point: Point | None
    settings: Mapping[str, Any]
    described: Described | None
    rung: int | None = None
    steps: int = 0
    reused_from: int | None = None
    values: Mapping[str, float] | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class SearchLane:
    """A candidate on its way: number `slot` of a run, and where its training goes on.

    Attributes:
        id: of the candidate.
        arm: whose candidate it is.
        slot: its number within the run.
        point: in the arm's space.
        settings: study keys that it sets.
        start_step: optimiser steps done already.
        checkpoint: name of the checkpoint of that step; None at step 0.
        behind: all rungs that it reached, ascending: (step, name of the checkpoint, share of the training examples
            used on the way there if it grows from rung to rung). Should its checkpoint be lost, it goes on from the one
            before.
        fixed: columns of dimensions that its arm does not search (`SearchArm.fixed`), and of a control the number of
            the candidate that it is held against.
        keeps_mask: whether controls of it need its mask.
    """

    id: str
    arm: str
    slot: int
    point: Point
    settings: Mapping[str, Any]
    start_step: int
    checkpoint: str | None
    behind: tuple[tuple[int, str | None, float | None], ...] = ()
    fixed: Mapping[str, Value] = field(default_factory=dict)
    keeps_mask: bool = False


@dataclass(frozen=True)
class SegmentWork:
    """Candidates of one replicate that train together from one step to another.

    Attributes:
        replicate: index of the replicate.
        lanes: the candidates; all start at the same step.
        stops: for each lane the step at which its segment ends; the same for all lanes.
        rung: for each lane the index of the rung there; None where full training ends.
        padded: shape of each tensor, large enough for every lane.
        predicted_s: what the pack is expected to take.
        attempt: how often its single candidate was lost before.
        passing: (index, step) of the rungs that its only lane passes and reports, while the cluster's scheduler decides
            whether it goes on; empty where the plan decides, between segments.
    """

    replicate: int
    lanes: tuple[SearchLane, ...]
    stops: tuple[int, ...]
    rung: tuple[int | None, ...]
    padded: tuple[tuple[int, ...], ...]
    predicted_s: float
    attempt: int = 0
    passing: tuple[tuple[int, int], ...] = ()

    @property
    def key(self) -> str:
        """Name of the pack."""
        first, n = self.lanes[0], len(self.lanes)
        return f"segment-r{self.replicate}-{first.start_step}-{self.stops[0]}-{first.id[:8]}-{n}"

    def only(self, indices: Iterable[int]) -> SegmentWork:
        """The lanes of these indices, for their share of the predicted time."""
        kept = list(indices)
        return replace(
            self,
            lanes=tuple(self.lanes[i] for i in kept),
            stops=tuple(self.stops[i] for i in kept),
            rung=tuple(self.rung[i] for i in kept),
            predicted_s=self.predicted_s * len(kept) / len(self.lanes),
        )

    def halves(self) -> list[SegmentWork]:
        """The two halves; itself if it cannot be divided."""
        n = len(self.lanes)
        return [self] if n < 2 else [self.only(range((n + 1) // 2)), self.only(range((n + 1) // 2, n))]
