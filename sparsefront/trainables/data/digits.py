"""Handwritten digits, 8 x 8 pixels, as they come with scikit-learn.

References: Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(doi:10.24432/C50P49).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparsefront.trainables.data.dataset import Arrays, Dataset, DatasetSource
from sparsefront.trainables.data.splits import held_out, held_out_counts

_N_CLASSES = 10
_SOURCE = "scikit-learn's load_digits: UCI Optical Recognition of Handwritten Digits (doi:10.24432/C50P49), test part"
_LICENCE = "CC-BY-4.0"

#: Fraction of the digits that is the test part, stratified by class; always the same ones.
TEST_FRACTION = 0.2
TEST_SEED = 20_190_801


def _load(options: Mapping[str, int], cache: Path | None) -> Dataset:
    """Read the bundled file: 1797 x 64 pixels, scaled from 0..16 to [0, 1], the test part held out by a fixed seed.

    Nothing is cached: reading takes 20 ms.
    """
    # Imported here: scikit-learn takes a second, and a listing needs none of it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    y = np.asarray(labels, dtype=np.int64)
    x = (np.asarray(pixels) / 16).astype(np.float32)
    counts = held_out_counts(np.bincount(y, minlength=_N_CLASSES), fraction=TEST_FRACTION)
    is_test = held_out(y, counts, bit_generator=np.random.Philox(key=TEST_SEED))
    arrays: Arrays = {"x_train": x[~is_test], "y_train": y[~is_test], "x_test": x[is_test], "y_test": y[is_test]}
    return Dataset.from_arrays("digits", arrays, n_classes=_N_CLASSES, source=_SOURCE, licence=_LICENCE)


SOURCE = DatasetSource(
    name="digits",
    summary="handwritten digits of 8 x 8 pixels; easy, and nothing has to be generated",
    example_shape=(64,),
    n_classes=_N_CLASSES,
    n_train=1438,
    n_test=359,
    source=_SOURCE,
    licence=_LICENCE,
    options=(),
    load=_load,
)
