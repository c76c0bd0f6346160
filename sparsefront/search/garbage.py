"""How often Python looks for cyclic garbage while a plan holds many objects."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: Objects made since the last look for cyclic garbage, and how often younger ones are looked at for one look at older.
_COLLECTION_THRESHOLD = (50_000, 20, 20)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage less often: it walks through all candidates that are remembered.

    Measured over 10,000 candidates of NSGA-II: a seventh of the driver's time; of simulations a tenth.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_COLLECTION_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
