"""What a network's result is called, in which unit it is shown, and how it follows from the ledger's error.

Errors are minimised; people read accuracies, or decibels of restored images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One quantity that networks are compared by.

    Attributes:
        title: what it is, at the beginning of a sentence or column.
        unit: of differences, in words.
        scale: factor from the stored value to that unit.
        digits: decimals shown.
        better: what a network is that has more of it.
        worse: what one is that has less of it.
        margin: the largest difference that does not matter where a study does not say; None if it has no such default.
        of_error: from validation or test errors to the metric; None if it does not follow from them.
        error_of: the inverse.
        test_column: column of the ledger with its test result, or with that one's complement.
    """

    title: str
    unit: str
    scale: float
    digits: int
    better: str
    worse: str
    margin: float | None = None
    of_error: Callable[[Floats], Floats] | None = None
    error_of: Callable[[Floats], Floats] | None = None
    test_column: str = "test_error"

    def of_column(self, mean: float) -> float:
        """The metric of a mean over `test_column`.

        >>> METRICS["accuracy"].of_column(0.25), METRICS["psnr"].of_column(23.5)
        (0.75, 23.5)
        """
        return 1.0 - mean if self.test_column == "test_error" else mean

    @property
    def noun(self) -> str:
        """The title inside a sentence.

        >>> METRICS["accuracy"].noun, METRICS["psnr"].noun
        ('test accuracy', 'test PSNR of the worst degradation')
        """
        return self.title[0].lower() + self.title[1:]

    def shown(self, value: float) -> str:
        """A value without its unit.

        >>> METRICS["accuracy"].shown(0.9312), METRICS["psnr"].shown(23.456)
        ('93.12', '23.46')
        """
        return f"{self.scale * value:.{self.digits}f}"

    def from_error(self, errors: npt.ArrayLike) -> Floats:
        """The metric of errors.

        >>> METRICS["psnr"].from_error([0.01]).tolist(), METRICS["accuracy"].from_error([0.25]).tolist()
        ([20.0], [0.75])
        """
        assert self.of_error is not None
        return self.of_error(np.asarray(errors, dtype=np.float64))

    def error_at(self, values: npt.ArrayLike) -> Floats:
        """The error that gives a value: the inverse of `from_error`."""
        assert self.error_of is not None
        return self.error_of(np.asarray(values, dtype=np.float64))


def _psnr(errors: Floats) -> Floats:
    """Peak signal-to-noise ratio of mean squared errors of intensities in [0, 1]; infinite without an error."""
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(errors)


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(
        "Test accuracy",
        "points",
        100.0,
        2,
        "more accurate",
        "less accurate",
        0.01,  # one point
        lambda errors: 1.0 - errors,
        lambda accuracies: 1.0 - accuracies,
    ),
    "psnr": Metric(
        "Test PSNR of the worst degradation",
        "dB",
        1.0,
        2,
        "of higher PSNR",
        "of lower PSNR",
        0.1,  # dB
        _psnr,
        lambda decibels: np.power(10.0, -decibels / 10.0),
        "test_psnr_worst",
    ),
    "convergence": Metric("Steps to converge", "steps", 1.0, 0, "faster", "slower"),
}

#: Name of the metric of every task.
METRIC_OF_TASK: Mapping[str, str] = {"classification": "accuracy", "restoration": "psnr"}
