"""What of the objectives both kinds of study ask alike: that they exist, are measured, and are no test results."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sparsefront.errors import ConfigError, did_you_mean
from sparsefront.search.objective import OBJECTIVES, one_of


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


def validated_columns(*chosen: str) -> tuple[str, ...]:
    """Columns that are measured on validation examples because they are objectives, ascending.

    >>> validated_columns("val_error", "val_ece", "n_params")
    ('val_ece',)
    """
    return tuple(sorted({OBJECTIVES[name].column for name in chosen if OBJECTIVES[name].quality}))
