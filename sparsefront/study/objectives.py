"""What of the objectives both kinds of study ask alike: that they exist, are measured, and are no test results."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from sparsefront.errors import ConfigError, did_you_mean
from sparsefront.search.attainment import scales
from sparsefront.search.objective import OBJECTIVES, one_of, worst_bounds


def check_objectives(key: str, chosen: Sequence[str], accepted: Collection[str], quality: Collection[str]) -> None:
    """Refuse objectives that nothing may be chosen by, or that the study does not measure.

    Args:
        key: where they are written.
        chosen: their names.
        accepted: names that this kind of study has.
        quality: what the study measures.

    Raises:
        ConfigError: the first that is refused.

    >>> check_objectives("verdict.objectives", ["val_ece", "macs"], OBJECTIVES, ["calibration"])
    """
    for name in chosen:
        if name.startswith("test_") or (name in OBJECTIVES and OBJECTIVES[name].on_test):
            known = name.removeprefix("test_")
            instead = f"; use 'val_{known}'" if f"val_{known}" in accepted else ""
            raise ConfigError(f"{key}: {name!r} is a test result; validation decides, test reports{instead}")
        if name not in accepted:
            raise ConfigError(f"{key}: {name!r} must be one of {one_of(accepted)}{did_you_mean(name, accepted)}")
        needed = OBJECTIVES[name].quality
        if needed and needed not in quality:
            raise ConfigError(f"{key}: {name!r} is measured only where quality names {needed!r}; add it there")
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"{key}={list(chosen)}: every value may appear once")


def check_reference(names: Sequence[str], reference: Sequence[float]) -> None:
    """Refuse a corner of the box that no candidate can be better than, or that is worse than any can be.

    Args:
        names: of the objectives.
        reference: a number for each, in its own unit and direction.

    Raises:
        ConfigError: the first that is refused.

    >>> check_reference(["val_accuracy", "n_params"], [0.1, 20_000.0])
    """
    ideal, _ = scales(names)
    for name, number, best, worst in zip(names, reference, ideal, worst_bounds(names), strict=True):
        sign = -1.0 if OBJECTIVES[name].higher_is_better else 1.0
        if not sign * number <= best and not sign * number > worst:  # there may be no bound
            continue
        beyond, most = ("less", "least") if sign < 0 else ("greater", "most")
        bound = "" if math.isnan(worst) else f" and at {most} {sign * worst + 0.0:g}"
        raise ConfigError(
            f"verdict.reference={list(reference)}: that of {name!r} must be {beyond} than {sign * best:g}{bound}; a "
            "candidate counts where it is better than the reference"
        )


def validated_columns(*chosen: str) -> tuple[str, ...]:
    """Columns that are measured on validation examples because they are objectives, ascending.

    >>> validated_columns("val_error", "val_ece", "n_params")
    ('val_ece',)
    """
    return tuple(sorted({OBJECTIVES[name].column for name in chosen if OBJECTIVES[name].quality}))
