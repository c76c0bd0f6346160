"""Random numbers that any machine can draw again: counter-based generators keyed by what they are for.

Every draw of a study comes from Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) under a
key that is a hash of (study seed, purpose, counters). There is no global generator and no order in which draws must
be made, so that a worker rebuilds mask 73,211 of replicate 4 without drawing the 73,211 before it.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

#: Made once: `json.dumps` makes one at each call.
_COMPACT = json.JSONEncoder(separators=(",", ":"))


def philox_key(seed: int, purpose: str, *counters: int) -> npt.NDArray[np.uint64]:
    """Philox key of one purpose: (2,) uint64, a hash of the arguments.

    >>> philox_key(1, "mask", 0).tolist() == philox_key(1, "mask", 0).tolist()
    True
    >>> philox_key(1, "mask", 0).tolist() == philox_key(1, "mask", 1).tolist()
    False
    """
    text = _COMPACT.encode([seed, purpose, *counters])
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8").astype(np.uint64)


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Generator for one purpose, independent of all others.

    >>> int(generator(7, "order", 0).integers(1000)) == int(generator(7, "order", 0).integers(1000))
    True
    """
    return np.random.Generator(np.random.Philox(key=philox_key(seed, purpose, *counters)))


def raw_rows(
    key: npt.NDArray[np.uint64], *, start: int, stop: int, width: int, attempt: int = 0
) -> npt.NDArray[np.uint32]:
    """Rows `start`..`stop` of an endless table of random words, each row `width` wide: (stop - start, width) uint32.

    Row i is the same whatever range it is drawn in: it owns its own stretch of the counter. `attempt` gives a fresh
    table under the same key.

    >>> key = philox_key(0, "doc")
    >>> bool((raw_rows(key, start=0, stop=9, width=5)[7] == raw_rows(key, start=7, stop=8, width=5)[0]).all())
    True
    """
    blocks = -(-width // 8)  # one counter value yields four 64-bit words
    counter = np.array([start * blocks, attempt, 0, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw((stop - start) * blocks * 4)
    return (
        words.astype("<u8", copy=False)
        .view("<u4")
        .reshape(stop - start, blocks * 8)[:, :width]
        .astype(np.uint32, copy=False)
    )
