"""The strategies by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """One row of the registry: what a strategy is called and where it comes from.

    The random strategy needs no code of its own: candidate number i of a level *is* the i-th draw under the level's key
    (`sparsefront.spaces.masks.draw`), so that any worker can make it and none has to be told.
    """

    summary: str
    source: str


STRATEGIES: Mapping[str, Strategy] = {
    "random": Strategy(
        "uniform over all masks of the exact counts, by draw number", "Farahani 2024; Bergstra and Bengio 2012"
    ),
}
