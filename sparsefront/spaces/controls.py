"""Matched controls: what else could explain that a pruned network is good, with one thing changed at a time.

References: Frankle and Carbin, The lottery ticket hypothesis, 2019 (fresh weights); Frankle et al., Pruning neural
networks at initialization: why are we missing the mark?, 2021 (shuffled layers); Liu et al., Rethinking the value of
network pruning, 2019 (small dense networks, equal budgets).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask, draw, remains
from sparsefront.spaces.patterns import Pattern, parse_pattern
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.structure import Structure


class Shuffle(Protocol):
    """From an arm's mask to a random one that has something in common with it."""

    def __call__(
        self,
        structure: Structure,
        kind: str,
        mask: Mask,
        key: npt.NDArray[np.uint64],
        number: int,
        *,
        pattern: str | Pattern | None = None,
    ) -> Mask:
        """Mask number `number` under `key`; without a pattern, any mask of `kind` will do."""


@dataclass(frozen=True)
class Control:
    """One row of the registry: how the control of an arm differs from the arm.

    Attributes:
        summary: what the control is.
        question: what a difference between arm and control says.
        network: 'masked' is the arm's parent under a mask, 'small' a dense network of the arm's parameters, 'parent'
            the parent without a mask.
        shuffle: how the mask is made from the arm's; None keeps it (or there is none).
        fresh_weights: whether its initial weights are drawn anew (`fresh_weights_key`); if not they are the arm's.
        total_budget: whether it trains for all passes that the arm took, the making of its mask included
            (`budget_steps`); if not for as many as the arm's last training takes. What begins with other weights than
            a rewound arm has no steps behind it, and trains from step 0.
        of_drawn: why the control of one random mask says nothing; empty if it does.
    """

    summary: str
    question: str
    network: Literal["masked", "small", "parent"]
    shuffle: Shuffle | None = None
    fresh_weights: bool = False
    total_budget: bool = False
    of_drawn: str = ""


def shuffled_layerwise(
    structure: Structure,
    kind: str,
    mask: Mask,
    key: npt.NDArray[np.uint64],
    number: int,
    *,
    pattern: str | Pattern | None = None,
) -> Mask:
    """A random mask with the survivors of `mask` in each section, uniform over those of its pattern.

    Args:
        structure: the parent.
        kind: 'node' or 'weight'.
        mask: (W,) or (N,) bool, at least one survivor in each section.
        key: (2,) uint64 from `seeds.philox_key`.
        number: which mask under the key.
        pattern: what the mask is one of (a shuffled 2:4 mask is a 2:4 mask); None for any of its kind.

    Raises:
        SpaceError: a mask that does not fit the structure or the pattern, or that leaves a section empty.

    >>> from sparsefront.spaces.structure import Tensor
    >>> net = Structure((Tensor("a", (2, 4), True), Tensor("b", (1, 4), True)), ())
    >>> mask = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0], dtype=bool)
    >>> found = shuffled_layerwise(net, "weight", mask, philox_key(0, "doc"), 0)
    >>> int(found[:8].sum()), int(found[8:].sum())
    (4, 1)
    """
    return _pattern_of(structure, kind, mask, pattern).shuffled(structure, mask, key, number=number)


def shuffled_globally(
    structure: Structure,
    kind: str,
    mask: Mask,
    key: npt.NDArray[np.uint64],
    number: int,
    *,
    pattern: str | Pattern | None = None,
) -> Mask:
    """A random mask with the survivors of `mask` in all, and at least one in each section, uniform over such masks.

    Arguments are those of `shuffled_layerwise`.

    Raises:
        SpaceError: a mask that does not fit the structure, or an N:M or block pattern: it ties survivors to layers.
    """
    if _pattern_of(structure, kind, mask, pattern) not in (parse_pattern("unstructured"), parse_pattern("node")):
        raise SpaceError(
            f"pattern={pattern!r}: its survivors cannot move between layers; shuffle within them (shuffled_layers)"
        )
    sizes = structure.section_sizes(kind)
    shuffled: Mask = draw(sizes, [int(np.count_nonzero(mask))], key, start=number, stop=number + 1)[0]
    return shuffled


CONTROLS: Mapping[str, Control] = {
    "shuffled_layers": Control(
        "random positions, the same survivors in every layer",
        "does it matter which entries of a layer are kept, or only how many",
        "masked",
        shuffle=shuffled_layerwise,
        of_drawn="is another random mask of the same layer counts",
    ),
    "shuffled": Control(
        "random positions anywhere, the same survivors in all",
        "do the layer ratios matter",
        "masked",
        shuffle=shuffled_globally,
    ),
    "fresh_weights": Control(
        "the same mask on initial weights drawn anew",
        "does the mask belong to the weights that it was found on",
        "masked",
        fresh_weights=True,
        of_drawn="asks whether a mask belongs to its weights, and a random one has seen none",
    ),
    "small_dense": Control(
        "a dense network of this family with as many parameters",
        "is a large sparse network better than a small dense one",
        "small",
        fresh_weights=True,
    ),
    "dense_budget": Control(
        "the parent without a mask, trained for the arm's total budget",
        "what would the budget have bought without pruning",
        "parent",
        total_budget=True,
    ),
}


def control_key(seed: int, control: str, mask: str, replicate: int, number: int) -> npt.NDArray[np.uint64]:
    """Key of what a control draws that belongs to one mask: number `number` in a replicate, (2,) uint64.

    The mask's digest is part of it. Without it, controls of arms that keep equally many would be the very same network:
    trained again for each of them, and counted as if each had found something.
    """
    return philox_key(seed, f"control/{control}/{mask}", replicate, number)


def fresh_weights_key(seed: int, replicate: int, number: int) -> npt.NDArray[np.uint64]:
    """Key of initial weights that no arm starts from: number `number` in a replicate, (2,) uint64."""
    return philox_key(seed, "fresh weights", replicate, number)


def small_dense(structure: Structure, kind: str, mask: Mask) -> Structure:
    """The dense network of this family whose parameters are nearest to those that `mask` leaves.

    Raises:
        SpaceError: a network without node groups, which cannot be scaled.

    >>> from sparsefront.spaces.structure import Axis, NodeGroup, Tensor
    >>> net = Structure((Tensor("a", (8, 2), True),), (NodeGroup("a", 8, (Axis("a", 0),)),))
    >>> small_dense(net, "weight", np.arange(16) < 7).n_params
    8
    """
    if not structure.groups:
        raise SpaceError("control 'small_dense': a network without node groups has nothing to scale; leave it out")
    _check_mask(structure, kind, mask)
    return structure.scaled_to(remains(structure, kind, mask).n_params)


def budget_steps(passes: float, batch_size: int) -> int:
    """Optimiser steps that a budget pays for: passes / batch size, halves up, at least 1.

    Args:
        passes: examples that go forward and backward; a forward pass alone is a third of one.
        batch_size: examples in a step.

    Raises:
        SpaceError: passes that are not positive and finite, or a batch size below 1.

    >>> budget_steps(150_150, 100), budget_steps(1.0, 100)
    (1502, 1)
    """
    if not 0 < passes < math.inf or batch_size < 1:
        raise SpaceError(f"passes={passes!r}, batch_size={batch_size!r}: a positive budget and batch size are needed")
    return max(1, math.floor(passes / batch_size + 0.5))


def _pattern_of(structure: Structure, kind: str, mask: Mask, pattern: str | Pattern | None) -> Pattern:
    """The pattern, checked to be one of masks of this kind."""
    _check_mask(structure, kind, mask)
    if pattern is None:
        pattern = "node" if kind == "node" else "unstructured"
    rule = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    if rule.kind != kind:
        raise SpaceError(f"pattern={pattern!r} of a {kind} mask: its masks are of kind {rule.kind!r}")
    return rule


def _check_mask(structure: Structure, kind: str, mask: Mask) -> None:
    size = sum(structure.section_sizes(kind))
    if mask.shape != (size,) or mask.dtype != np.bool_:
        raise SpaceError(f"mask of shape {mask.shape} and type {mask.dtype}: must be {size} bools for kind {kind!r}")
