"""Seeds: every purpose has its own stream, and any process draws the same numbers from it."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from sparsefront.spaces.seeds import generator, philox_key, raw_rows


def test_distinct_arguments_have_distinct_keys():
    arguments = [
        (seed, purpose, *counters)
        for seed in (0, 1, -1, 2**63)
        for purpose in ("mask", "order", "parent", "mask1", "")
        for counters in ((), (0,), (1,), (0, 0), (1, 23), (12, 3), (123,), (900_000_000,))
    ]
    keys = {philox_key(*a).tobytes() for a in arguments}
    assert len(keys) == len(arguments)


def test_the_key_is_pinned():
    assert philox_key(1, "mask", 0, 900_000_000).tolist() == [1826360063012534864, 5871704109005898557]


def test_another_process_draws_the_same_numbers():
    code = (
        "import json; from sparsefront.spaces.seeds import *\n"
        "print(json.dumps([philox_key(7, 'order', 2).tolist(), generator(7, 'order', 2).random(5).tolist(), "
        "raw_rows(philox_key(7, 'order', 2), start=10**9, stop=10**9 + 2, width=11).tolist()]))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    key = philox_key(7, "order", 2)
    rows = raw_rows(key, start=10**9, stop=10**9 + 2, width=11)
    assert json.loads(printed) == [key.tolist(), generator(7, "order", 2).random(5).tolist(), rows.tolist()]


def test_streams_of_distinct_purposes_are_uncorrelated():
    """All 276 correlations of 24 streams of 4,000 numbers stay below 5.5 / sqrt(n): false-alarm rate 1e-5."""
    arguments = itertools.product((0, 1), ("mask", "order", "parent"), (0, 1), (0, 1))
    streams = np.array([generator(s, p, i, j).standard_normal(4000) for s, p, i, j in arguments])
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(4000)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 384])
def test_a_row_of_words_is_the_same_in_every_range(width):
    key = philox_key(0, "rows")
    table = raw_rows(key, start=0, stop=30, width=width)
    assert table.shape == (30, width)
    assert table.dtype == np.uint32
    for a, b in ((0, 1), (7, 19), (29, 30), (4, 4)):
        assert (raw_rows(key, start=a, stop=b, width=width) == table[a:b]).all()


def test_rows_and_attempts_share_no_words():
    key = philox_key(0, "rows")
    words = np.concatenate([raw_rows(key, start=0, stop=50, width=16, attempt=a).ravel() for a in range(4)])
    # 3,200 words of 32 bits: 1.2e-3 expected coincidences.
    assert len(np.unique(words)) >= len(words) - 2


def test_words_are_uniform_in_every_bit():
    """Share of ones in each of the 32 bits of 80,000 words within 5.5 standard errors: false-alarm rate 1e-6."""
    words = raw_rows(philox_key(0, "rows"), start=0, stop=5000, width=16).ravel()
    ones = ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5.5 * 0.5 / np.sqrt(len(words))
