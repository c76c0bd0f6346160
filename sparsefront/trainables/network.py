"""A network of a search: what is known of it and of its training before it is built.

Not here: how settings come to it (`sparsefront.trainables.networks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefront.spaces.controls import budget_steps
from sparsefront.spaces.masks import Mask, Remains, remains, remains_of, split_sections
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.shape import Shape
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.models import Options
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pruning.during import making_passes

#: Name of a model, and its options.
Key = tuple[str, tuple[tuple[str, Any], ...]]


@dataclass(frozen=True)
class Chain:
    """Trainings of one candidate, each after the first on what a method prunes of the one before.

    A method that prunes once has two of them.

    Attributes:
        method: how it prunes, and what the survivors begin with.
        sparsities: of each level, from 0 (dense) to the candidate's own.
        level_steps: optimiser steps of a level, those that rewinding to a later step than 0 skips included.
        given: the mask of its only level after the dense one, where it is known beforehand; None to cut it. The dense
            training then ends where its weights are taken from.
    """

    method: Pruning
    sparsities: tuple[float, ...]
    level_steps: int
    given: Mask | None = None

    @property
    def rewind_step(self) -> int:
        """Step of the dense training whose weights every later level begins with."""
        return self.method.rewind_step(self.level_steps) if len(self.sparsities) > 1 else 0

    @property
    def goes_on(self) -> bool:
        """Whether levels begin with the weights that were pruned."""
        return self.method.survivors == "trained"

    @property
    def lr_offset(self) -> int:
        """Steps of the schedule of learning rates that a level which goes on has behind it."""
        return self.level_steps if self.goes_on and self.method.lr == "last" else 0


@dataclass(frozen=True)
class Scored:
    """How a candidate's mask is cut from its initial weights, before step 0.

    Attributes:
        method: which entries are kept, and how the sparsity is divided.
        sparsity: of the mask.
        draw: number of the mask, where positions are random.
    """

    method: Pruning
    sparsity: float
    draw: int = 0


@dataclass(frozen=True)
class Changing:
    """How a candidate's mask changes while it trains.

    Attributes:
        method: by which rule, and how the sparsity is divided.
        sparsity: of the mask in the end.
    """

    method: Pruning
    sparsity: float


@dataclass(frozen=True)
class Controlled:
    """The candidate that a control is held against.

    Attributes:
        control: name of the control's kind, a row of `sparsefront.spaces.controls.CONTROLS`.
        method: how it came to its mask; None where that was drawn or searched.
        chain: its trainings, if it is a chain.
        steps: optimiser steps of its training; of a chain, of each level.
        batch_size: examples in a step.
        n_scored: examples that its masks are scored on.
    """

    control: str
    method: Pruning | None
    chain: Chain | None
    steps: int
    batch_size: int
    n_scored: int

    @property
    def budget(self) -> int:
        """Optimiser steps that all of its passes pay for: of training, and of scores."""
        made = 0.0 if self.method is None else making_passes(self.method, self.n_scored, steps=self.steps)
        making = budget_steps(made, self.batch_size) if made else 0
        if self.chain is None:
            return self.steps + making
        n_levels = len(self.chain.sparsities) - 1
        return self.steps + n_levels * (self.steps - self.chain.rewind_step + making)


@dataclass(frozen=True, eq=False)
class Architecture:
    """A parent without its weights.

    Attributes:
        key: model name and options.
        structure: of the parent.
        init: its initialisation.
        layout: all tensors that a network of its group may have, with the shapes of the group's skeleton.
        lacking: those of them that this architecture has not: of each axis the node group that it follows and its
            entries a node, or None and its size.
        positions: uses of each of them in a forward pass; 0 for biases.
        group: names what packs of this architecture have in common.
        skeleton: options that the group's module is built with.
        is_perceptron: whether that module says that it is one (`StagedModule.perceptron`), and trains with others.
    """

    key: Key
    structure: Structure
    init: str
    layout: Layout
    lacking: Mapping[str, tuple[tuple[str | None, int], ...]]
    positions: tuple[int, ...]
    group: str
    skeleton: Options
    is_perceptron: bool


@dataclass(frozen=True, eq=False)
class Network:
    """One candidate's network and training, described but not built.

    Attributes:
        replicate: which parent weights, and which draws of masks.
        structure: of the parent.
        compact: of what is trained: the parent, or what a node mask leaves of it; of a chain at its beginning. Nodes
            that come and go need the whole parent.
        mask_kind: 'node', 'weight', or 'none' for a dense network.
        kept: survivors of each section, or one number over all; empty for a dense network, and where only training or
            scores tell. Of node masks that change they are those in the end.
        scored: how its mask is cut from its initial weights; None where it is not. `with_mask` tells what came of it.
        changing: how its mask changes in its training; None where it stays. Its module has its own sizes: it shares
            packs only with those of its architecture whose masks change by one rule.
        sparsity: as it was asked for; under N:M that of the pattern.
        n_params: parameters that remain (of masks that change: in the end), biases included.
        macs: multiply-accumulates of one example's forward pass; where weights are used unequally often (in a
            convolution) and only training or scores tell how many each tensor loses, as if all lost the same share.
        weight_sparsity: fraction of the parent's prunable weights that are removed.
        shape: what packing needs to know.
        optimizer: a name of `OPTIMIZERS`.
        hyper: what a lane is trained with.
        steps: of the full training; of a chain, of all its levels.
        batch_size: examples in a step.
        data_fraction: share of the training examples that is trained on.
        precision: of matrix products in training.
        fresh: (2,) uint64 key of initial weights that are drawn for it; None for those of its parent.
    """

    replicate: int
    structure: Structure
    compact: Structure
    mask_kind: str
    kept: tuple[int, ...]
    sparsity: float
    n_params: int
    macs: int
    weight_sparsity: float
    shape: Shape
    optimizer: str
    hyper: Hyperparameters
    steps: int
    batch_size: int
    data_fraction: float
    precision: str
    architecture: Architecture
    draw_mask: Callable[[], Mask] | None
    chain: Chain | None = None
    scored: Scored | None = None
    changing: Changing | None = None
    fresh: npt.NDArray[np.uint64] | None = None

    def with_mask(self, mask: Mask) -> Network:
        """The same network once its mask is cut from its initial weights."""
        return replace(self, draw_mask=lambda: mask)

    def at_level(self, mask: Mask | None) -> Network:
        """What a chain trains at a level of this mask: of nodes a smaller network."""
        if mask is None or self.chain is None or self.mask_kind != "node":
            return self
        counts = [int(np.count_nonzero(part)) for part in split_sections(self.structure, "node", mask)]
        compact = self.structure.compact(counts)
        shape = replace(self.shape, tensors=shapes_of(self.architecture, compact))
        return replace(self, compact=compact, shape=shape)

    @property
    def level_steps(self) -> int:
        """Steps of one training: all, but for a chain."""
        return self.steps if self.chain is None else self.chain.level_steps

    @cached_property
    def mask(self) -> Mask | None:
        """The mask, flat over the parent's sections: drawn when it is first asked for; None for what begins dense.

        Of a network that is `scored` it is None until it is cut. A mask that changes begins as this.
        """
        return None if self.draw_mask is None else self.draw_mask()

    @cached_property
    def remains(self) -> Remains:
        """What the mask leaves, exactly counted; of a weight mask that takes drawing it (0.2 ms for 20,000 weights)."""
        if self.mask_kind == "node" and (self.chain is not None or self.changing is not None):
            return remains_of(self.structure, self.structure.compact(self.kept))
        if self.mask_kind != "weight" or self.mask is None:
            return remains_of(self.structure, self.compact)
        return remains(self.structure, "weight", self.mask)

    @property
    def node_sparsity(self) -> float:
        """Fraction of hidden nodes that are removed or cut off; see `remains` for its cost."""
        return self.remains.node_sparsity


def shapes_of(arch: Architecture, compact: Structure) -> tuple[tuple[int, ...], ...]:
    """Shapes of all tensors of the layout, where `compact` is left of the parent."""
    shapes = {t.name: t.shape for t in compact.tensors}
    if arch.lacking:
        sizes_by_group = {g.name: g.size for g in compact.groups}
        for name, axes in arch.lacking.items():
            shapes[name] = tuple(n if g is None else n * sizes_by_group.get(g, 0) for g, n in axes)
    return tuple(shapes[name] for name in arch.layout.names)
