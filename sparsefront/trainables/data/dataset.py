"""What a data set is: its arrays, where they come from, and the options that a study may set.

Not here: the known data sets (``registry``) and the cut into training and validation examples (``splits``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsefront.errors import ConfigError, did_you_mean

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[np.generic]]

#: The arrays of a data set, in the order in which its digest reads them; images to restore have targets besides.
ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")
TARGET_NAMES = ("target_train", "target_test")
#: What a network may have to do with examples: name their class, or give their image back undegraded.
TASKS = ("classification", "restoration")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples for classification or restoration, in a training and a test part; every array is read-only.

    Restoration makes images of images: x is degraded, `target` is what it was before, and y says by which of the
    `degradations` it was degraded, so that classes and degradations are counted, split and balanced alike.

    Build one with :meth:`from_arrays`, which checks and freezes the arrays. ``torch.from_numpy`` warns about read-only
    arrays: copy with ``torch.tensor``.

    Attributes:
        name: name in the registry.
        x_train: (n_train, ...) float32, finite.
        y_train: (n_train,) int64 class indices in [0, n_classes).
        x_test: (n_test, ...) float32, finite; read once, for what is reported.
        y_test: (n_test,) int64 class indices.
        n_classes: number of classes, or of degradations.
        digest: sha256 (64 hex digits) over names, types, shapes and little-endian bytes of the arrays; two data sets
            with the same digest are the same data.
        source: where the examples come from.
        licence: under which terms.
        degradations: names of the degradations by index; empty for classification.
        target_train: undegraded images of the shape of `x_train`, intensities in [0, 1]; None for classification.
        target_test: those of `x_test`.
    """

    name: str
    x_train: FloatArray
    y_train: IntArray
    x_test: FloatArray
    y_test: IntArray
    n_classes: int
    digest: str
    source: str
    licence: str
    degradations: tuple[str, ...] = ()
    target_train: FloatArray | None = None
    target_test: FloatArray | None = None

    @classmethod
    def from_arrays(
        cls,
        name: str,
        arrays: Arrays,
        *,
        n_classes: int,
        source: str,
        licence: str,
        degradations: tuple[str, ...] = (),
    ) -> Dataset:
        """Check, copy, freeze and digest the arrays of a data set.

        Args:
            name: name in the registry.
            arrays: the four arrays of ``ARRAY_NAMES``, and with degradations the two of ``TARGET_NAMES``; converted to
                float32 (x, target) and int64 (y).
            n_classes: number of classes, or of degradations.
            source: where the examples come from.
            licence: under which terms.
            degradations: names by index, if images are to be restored.

        Raises:
            ConfigError: if an array is missing, empty, not finite, of another shape than its partner, or holds labels
                that are no integers in [0, n_classes), or targets outside [0, 1].
        """
        names = (*ARRAY_NAMES, *TARGET_NAMES) if degradations else ARRAY_NAMES
        if set(arrays) != set(names):
            raise ConfigError(f"arrays={sorted(arrays)} of data set {name!r}: must be {sorted(names)}")
        x_train, y_train = _part(name, "train", arrays, n_classes)
        x_test, y_test = _part(name, "test", arrays, n_classes)
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ConfigError(
                f"x_test.shape={x_test.shape} of data set {name!r}: its examples must have the shape of the training "
                f"examples, {x_train.shape[1:]}"
            )
        digest = hashlib.sha256()
        targets = [_target(name, part, arrays, x) for part, x in (("train", x_train), ("test", x_test)) if degradations]
        parts: tuple[npt.NDArray[np.generic], ...] = (x_train, y_train, x_test, y_test, *targets)
        for array_name, array in zip(names, parts, strict=True):
            digest.update(json.dumps([array_name, array.dtype.str, array.shape]).encode())
            digest.update(array.tobytes())
            array.setflags(write=False)
        examples = cls(name, x_train, y_train, x_test, y_test, n_classes, digest.hexdigest(), source, licence)
        if not degradations:
            return examples
        return replace(examples, degradations=degradations, target_train=targets[0], target_test=targets[1])

    @property
    def task(self) -> str:
        """What is to be done with an example: one of ``TASKS``."""
        return "restoration" if self.degradations else "classification"

    @property
    def untouched_psnr(self) -> float | None:
        """PSNR of the test images as they are degraded, under the worst degradation, dB; None for classification."""
        if self.target_test is None:
            return None
        squared = np.square(self.x_test.astype(np.float64) - self.target_test).reshape(self.n_test, -1).mean(axis=1)
        worst = max(squared[self.y_test == i].mean() for i in np.unique(self.y_test))
        return float(-10 * np.log10(worst)) if worst > 0 else None

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch axis."""
        return self.x_train.shape[1:]

    @property
    def n_train(self) -> int:
        """Number of training examples, before a split takes its validation examples from them."""
        return len(self.y_train)

    @property
    def n_test(self) -> int:
        """Number of test examples."""
        return len(self.y_test)


@dataclass(frozen=True)
class Option:
    """One whole number that a study may set for a data set; both bounds belong to the range."""

    name: str
    default: int
    minimum: int
    maximum: int
    meaning: str
    multiple_of: int = 1

    @property
    def accepted(self) -> str:
        """The values that are accepted, in words.

        >>> Option("num_samples", 5000, 100, 10_000, "examples", multiple_of=10).accepted
        'a whole number from 100 to 10000, a multiple of 10'
        """
        multiple = f", a multiple of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"a whole number from {self.minimum} to {self.maximum}{multiple}"

    def check(self, value: object, *, dataset: str) -> int:
        """Return the value if it is accepted.

        Raises:
            ConfigError: if it is not a whole number (a bool is none), out of range, or not a multiple.
        """
        # type(), not isinstance: True is an int.
        if type(value) is int and self.minimum <= value <= self.maximum and value % self.multiple_of == 0:
            return value
        raise ConfigError(
            f"{self.name}={value!r} for data set {dataset!r}: must be {self.accepted}; "
            f"correct the data set's options in the study"
        )


@dataclass(frozen=True)
class DatasetSource:
    """A data set that can be loaded, described without loading it.

    Attributes:
        name: name in studies.
        summary: one line for a listing.
        example_shape: shape of one example.
        n_classes: number of classes, or of degradations.
        n_train: training examples under the default options.
        n_test: test examples under the default options.
        source: where the examples come from.
        licence: under which terms.
        options: what a study may set.
        load: makes the data set from complete options; the path is the folder of the cache.
        task: one of ``TASKS``.
    """

    name: str
    summary: str
    example_shape: tuple[int, ...]
    n_classes: int
    n_train: int
    n_test: int
    source: str
    licence: str
    options: tuple[Option, ...]
    load: Callable[[Mapping[str, int], Path | None], Dataset]
    task: str = "classification"

    def resolve(self, options: Mapping[str, object]) -> dict[str, int]:
        """Complete options: every option once, in the declared order, checked.

        Raises:
            ConfigError: if an option is unknown or its value not accepted.
        """
        for key in options:
            if key not in {option.name for option in self.options}:
                raise ConfigError(
                    unknown_name(key, (o.name for o in self.options), f"option of data set {self.name!r}")
                )
        return {o.name: o.check(options.get(o.name, o.default), dataset=self.name) for o in self.options}


def unknown_name(name: object, known: Iterable[str], what: str) -> str:
    """Message for a name that does not exist: the known ones, and the nearest.

    >>> unknown_name("digit", ["digits", "mnist1d"], "data set")
    "'digit' is no data set: known are digits, mnist1d; did you mean 'digits'?"
    >>> unknown_name("x", [], "option")
    "'x' is no option: there are none; remove it from the study"
    """
    names = sorted(known)
    if not names:
        return f"{name!r} is no {what}: there are none; remove it from the study"
    advice = did_you_mean(str(name), names) or "; correct it in the study"
    return f"{name!r} is no {what}: known are {', '.join(names)}{advice}"


def _part(name: str, part: str, arrays: Arrays, n_classes: int) -> tuple[FloatArray, IntArray]:
    """Checked copies of x and y of one part, little-endian and C-contiguous, so that a digest is the same anywhere."""
    if arrays[f"y_{part}"].dtype.kind not in "iu":
        raise ConfigError(f"y_{part}.dtype={arrays[f'y_{part}'].dtype} of data set {name!r}: must be an integer type")
    x = np.array(arrays[f"x_{part}"], dtype="<f4", order="C")
    y = np.array(arrays[f"y_{part}"], dtype="<i8", order="C")
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y) or x.size == 0:
        raise ConfigError(
            f"x_{part}.shape={x.shape}, y_{part}.shape={y.shape} of data set {name!r}: must be (n, ...) and (n,), n > 0"
        )
    if not np.isfinite(x).all():
        raise ConfigError(f"x_{part} of data set {name!r}: holds NaN or infinity; every value must be finite")
    if y.min() < 0 or y.max() >= n_classes:
        raise ConfigError(
            f"y_{part} of data set {name!r}: labels run from {y.min()} to {y.max()}, must lie in [0, {n_classes})"
        )
    return x, y


def _target(name: str, part: str, arrays: Arrays, x: FloatArray) -> FloatArray:
    """A checked copy of the undegraded images of one part."""
    target = np.array(arrays[f"target_{part}"], dtype="<f4", order="C")
    if target.shape != x.shape or not ((target >= 0) & (target <= 1)).all():
        raise ConfigError(
            f"target_{part} of data set {name!r}: must be images of shape {x.shape} with intensities in [0, 1]"
        )
    return target
