"""What both kinds of studies refuse of a pruning method, and of controls."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefront.errors import ConfigError, nearest
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.pruning import Pruning
from sparsefront.trainables.pruning import SCORES


def check_control_names(where: str, controls: Sequence[str]) -> None:
    """Refuse controls, written at `where`, that there are not, or that are written twice.

    Raises:
        ConfigError: one line with key, value and what is accepted.
    """
    for control in controls:
        if control not in CONTROLS:
            raise ConfigError(f"{where}: {control!r} {nearest(control, CONTROLS)}")
    if len(set(controls)) != len(controls):
        raise ConfigError(f"{where}={list(controls)}: every value may appear once")


def check_scores(where: str, method: Pruning, kind: str) -> None:
    """Refuse scores that there are not, that do not score the masks, or that read what a method does not have.

    Args:
        where: the section that says them.
        method: with the scores.
        kind: of the masks.

    Raises:
        ConfigError: one line with key, value and what is accepted.
    """
    for key in ("score", "counts_of"):
        score = getattr(method, key)
        if score == "movement" and method.when == "init":
            raise ConfigError(f"{where}.{key}='movement': nothing has moved before training; use when='trained'")
        if score is not None and score not in SCORES:
            raise ConfigError(f"{where}.{key}={score!r}: {nearest(score, SCORES)}")
        if score is not None and kind not in SCORES[score].kinds:
            raise ConfigError(
                f"{where}.{key}={score!r}: scores {' and '.join(SCORES[score].kinds)} masks only, and masks.kind "
                f"is {kind!r}"
            )
    for key in ("score", "counts_of"):
        if method.update != "gradual" and "products" in SCORES[getattr(method, key) or "random"].needs:
            raise ConfigError(
                f"{where}.{key}={getattr(method, key)!r}: is a sum over the steps of a training whose mask changes "
                "in it; use when='during' with update='gradual'"
            )
