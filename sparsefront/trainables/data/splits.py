"""How examples are divided: stratified by class, with exact counts, from a generator that the caller owns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import ConfigError
from sparsefront.trainables.data.dataset import Dataset, IntArray


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of the training part that train and those that validate; test is not concerned.

    Attributes:
        train_indices: (n_train,) int64 rows of ``x_train``, ascending, read-only.
        validation_indices: (n_validation,) int64 rows of ``x_train``, ascending, read-only; disjoint from the others,
            and together they are all rows.
    """

    train_indices: IntArray
    validation_indices: IntArray


def split(dataset: Dataset, *, validation_fraction: float, generator: np.random.Generator) -> Split:
    """Divide the training part of a data set into training and validation examples, stratified by class.

    Args:
        dataset: only its ``y_train`` is read.
        validation_fraction: fraction of the training part, in (0, 1); for the counts see :func:`held_out_counts`.
        generator: keyed by the replicate; advanced by as many raw draws as there are examples.

    Raises:
        ConfigError: if the fraction is out of range, or leaves a class without training or validation examples.
    """
    if not 0 < validation_fraction < 1:
        raise ConfigError(
            f"validation_fraction={validation_fraction!r} for data set {dataset.name!r}: must lie in (0, 1); "
            f"correct it in the study"
        )
    labels = dataset.y_train
    class_counts = np.bincount(labels, minlength=dataset.n_classes)
    counts = held_out_counts(class_counts, fraction=validation_fraction)
    for label in np.flatnonzero((class_counts > 0) & ((counts == 0) | (counts == class_counts))):
        raise ConfigError(
            f"validation_fraction={validation_fraction!r} for data set {dataset.name!r}: takes {counts[label]} of the "
            f"{class_counts[label]} examples of class {label} for validation, must leave at least one on either side; "
            f"choose another fraction or more examples"
        )
    is_validation = held_out(labels, counts, bit_generator=generator.bit_generator)
    parts = np.flatnonzero(~is_validation).astype(np.int64), np.flatnonzero(is_validation).astype(np.int64)
    for indices in parts:
        indices.setflags(write=False)
    return Split(*parts)


def held_out_counts(class_counts: npt.ArrayLike, *, fraction: float) -> IntArray:
    """Number of examples to hold out of each class.

    In total floor(fraction x n + 1/2) examples; each class gets the floor of its proportional share, and what is left
    goes one each to the largest remainders, ties to the lower class (Hamilton's method). So no class is off its
    proportional share of that total by a whole example.

    Args:
        class_counts: (c,) int, examples of each class.
        fraction: fraction to hold out, in [0, 1].

    Returns:
        (c,) int64.

    >>> held_out_counts([10, 10, 5], fraction=0.2)
    array([2, 2, 1])
    >>> held_out_counts([3, 3, 3], fraction=0.5)
    array([2, 2, 1])
    """
    sizes = np.asarray(class_counts, dtype=np.int64)
    n = int(sizes.sum())
    n_held_out = min(n, int(np.floor(fraction * n + 0.5)))
    # In integers, so that equal classes have equal remainders.
    counts, remainders = np.divmod(sizes * n_held_out, max(n, 1))
    counts[np.argsort(-remainders, kind="stable")[: n_held_out - int(counts.sum())]] += 1
    return np.asarray(counts, dtype=np.int64)


def n_used(fraction: float, n_train: int) -> int:
    """How many training examples a share of them is: rounded up.

    >>> n_used(0.1, 30), n_used(0.11, 30)
    (3, 4)
    """
    return math.ceil(round(fraction * n_train, 9))


def held_out(labels: IntArray, counts: IntArray, *, bit_generator: np.random.BitGenerator) -> npt.NDArray[np.bool_]:
    """Which examples to hold out: ``counts[c]`` of class c, all choices equally likely.

    Raw draws are ranked instead of calling ``Generator.permutation``: NumPy keeps the streams of its bit generators
    across versions, those of its distributions not (NEP 19).

    Args:
        labels: (n,) int64 class indices.
        counts: (c,) int64, at most the number of examples of each class.
        bit_generator: source of n raw draws.

    Returns:
        (n,) bool, True = held out.
    """
    draws = np.asarray(bit_generator.random_raw(len(labels)))
    is_held_out = np.zeros(len(labels), dtype=np.bool_)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        is_held_out[members[np.argsort(draws[members], kind="stable")[:count]]] = True
    return is_held_out
