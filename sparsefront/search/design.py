"""The numbers of a study that decisions and judgements depend on; plain data, made by ``sparsefront.study``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsefront.search.fixed import Fixed
from sparsefront.search.metrics import METRIC_OF_TASK, METRICS
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.space import Space


@dataclass(frozen=True)
class Design:
    """What was asked: arms, levels and replicates, and how the referee judges them.

    ``equivalence_margin`` is a difference in accuracy (fraction, 0.01 = one point), or in PSNR (dB) where images are
    restored; ``convergence_margin_fraction`` is a fraction of ``steps``; ``convergence_target_fraction`` is the share
    of the parent's accuracy (or PSNR) that counts as converged. ``arms`` are all of them, controls included;
    ``methods`` says of each that the user described what differs from the method it is called after. ``untouched_psnr``
    is that of the degraded test images under the worst degradation; None for classification. ``keeps_parents`` says
    that all candidates are compared with the trained parent of their replicate, which is therefore trained first;
    ``mask_sections`` are the entries of each section of a mask, empty if they are unknown. ``making_steps`` are the
    optimiser steps that scoring takes for one mask of an arm, before its training and in it, where it takes any.
    ``random_draws`` is the largest of ``random_draws_by_level``, where these differ: one number for each of
    ``sparsities``.
    """

    name: str
    seed: int
    replicates: int
    sparsities: tuple[float, ...]
    arms: tuple[str, ...]
    draws: int
    random_draws: int
    probe_size: int
    steps: int
    mask_kind: str
    allocation: str
    model: str
    dataset: str
    n_classes: int = 10
    equivalence_margin: float = 0.01
    convergence_target_fraction: float = 0.95
    convergence_margin_fraction: float = 0.05
    alpha: float = 0.05
    objectives: tuple[str, ...] = ("val_error", "n_params", "macs")
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keeps_parents: bool = False
    mask_sections: tuple[int, ...] = ()
    making_steps: Mapping[str, int] = field(default_factory=dict)
    task: str = "classification"
    untouched_psnr: float | None = None
    random_draws_by_level: tuple[int, ...] = ()

    def random_draws_at(self, sparsity: float) -> int:
        """Masks that the random arm trains at a level."""
        if not self.random_draws_by_level or sparsity not in self.sparsities:
            return self.random_draws
        return self.random_draws_by_level[self.sparsities.index(sparsity)]

    def margin_of(self, metric: str) -> float:
        """The largest difference that does not matter: of convergence in steps, else of the task's metric."""
        return self.convergence_margin_fraction * self.steps if metric == "convergence" else self.equivalence_margin

    @property
    def metric(self) -> str:
        """Name of what networks are compared by, in ``sparsefront.search.metrics.METRICS``."""
        return METRIC_OF_TASK[self.task]

    @property
    def value_of_guessing(self) -> float:
        """What a network is worth that learned nothing."""
        return _of_guessing(self.n_classes, self.untouched_psnr)


@dataclass(frozen=True)
class RungSettings:
    """At which steps the candidates of a run are compared, and how many go on.

    Attributes:
        kind: a name of `sparsefront.search.rungs.RUNGS`; 'none' trains everything to the end.
        eta: one of `eta` goes on.
        min_steps: the first rung, in steps or levels; 0 means the full training / eta^3, at least 1.
        bracket: candidates, by number, that are compared with each other (Hyperband has sizes of its own).
        objectives: what they are compared by, minimised.
        bands: ascending edges of weight sparsity; candidates are compared within their band only. Empty: with all.
        asynchronous: compare with all that came before in the whole run, in the order of their commits: uses the
            machine best, and is not reproducible.
        fidelity: what grows from rung to rung: 'steps', 'data_fraction' (steps and examples alike), or 'level'
            (trainings of a pruning chain, the dense one among them).
        level_steps: steps of a level, where rungs lie at ends of levels; else 1.
    """

    kind: str = "none"
    eta: int = 3
    min_steps: int = 0
    bracket: int = 64
    objectives: tuple[str, ...] = ("val_loss",)
    bands: tuple[float, ...] = ()
    asynchronous: bool = False
    fidelity: str = "steps"
    level_steps: int = 1


@dataclass(frozen=True)
class ChainSettings:
    """Pruning chains of candidates: their last sparsity where the space does not say it, and how they may prune.

    `methods` have the patterns of the space; its rates replace theirs.
    """

    sparsity: float
    methods: tuple[Pruning, ...]


@dataclass(frozen=True)
class SearchArm:
    """One contender of a search: a strategy on a space, with its budget and rungs, and whom it is judged against.

    Where any of its candidates are pruning chains, `chain` says of which. `fixed` is what it trains with where others
    search.
    """

    name: str
    strategy: str
    space: Space
    candidates: int
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)
    rungs: RungSettings = RungSettings()
    against: tuple[str, ...] = ("random",)
    chain: ChainSettings | None = None
    fixed: Fixed = field(default_factory=Fixed)

    @property
    def opponents(self) -> tuple[str, ...]:
        """Whom it is held against: of `against` all but itself, which stands for nobody."""
        return tuple(name for name in self.against if name != self.name)


@dataclass(frozen=True)
class SearchControl:
    """A control of an arm: a network for each that the arm completed, with one thing changed.

    ``name`` is its own, that of an arm of the ledger; ``arm`` the one that it belongs to; ``kind`` a row of
    ``sparsefront.spaces.controls.CONTROLS``.
    """

    name: str
    arm: str
    kind: str


@dataclass(frozen=True)
class SearchDesign:
    """What was asked of a search study: its arms, replicates and objectives, and how the referee judges them.

    ``equivalence_margin`` is a difference in hypervolume, as a fraction of the box between the ideal and the reference
    point (one objective: a difference of that objective). ``steps`` are those of a level, where an arm has a ``chain``.
    ``untouched_psnr`` is that of the degraded images under the worst degradation, where images are restored.
    ``mask_kind`` names all that candidates may have: 'node', 'weight' or 'node and weight'. ``controls`` of arms search
    nothing, and are none of ``arms``.
    """

    name: str
    seed: int
    replicates: int
    arms: tuple[SearchArm, ...]
    steps: int
    eval_every: int
    model: str
    dataset: str
    mask_kind: str
    n_classes: int = 10
    objectives: tuple[str, ...] = ("val_error", "n_params", "macs")
    reference: tuple[float, ...] | None = None
    equivalence_margin: float = 0.01
    alpha: float = 0.05
    task: str = "classification"
    untouched_psnr: float | None = None
    controls: tuple[SearchControl, ...] = ()

    @property
    def metric(self) -> str:
        """Name of what single networks are compared by, in ``sparsefront.search.metrics.METRICS``."""
        return METRIC_OF_TASK[self.task]

    def margin_of(self, metric: str) -> float:
        """The largest difference between single networks that does not matter: the usual one."""
        margin = METRICS[metric].margin
        assert margin is not None
        return margin

    @property
    def value_of_guessing(self) -> float:
        """What a network is worth that learned nothing."""
        return _of_guessing(self.n_classes, self.untouched_psnr)

    @property
    def names(self) -> tuple[str, ...]:
        """Arms of the ledger: each that searches, followed by its controls."""
        return tuple(
            name for arm in self.arms for name in (arm.name, *(c.name for c in self.controls if c.arm == arm.name))
        )


def _of_guessing(n_classes: int, untouched_psnr: float | None) -> float:
    """An accuracy, or the PSNR of images that stay as they were."""
    return 1.0 / n_classes if untouched_psnr is None else untouched_psnr
