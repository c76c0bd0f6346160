"""Four Gaussian clusters at the corners of an XOR, with flipped labels: memorised early, understood late.

Two directions of many decide the class, and neither does alone, so that a network can fit the flipped labels of its
training examples long before it finds the rule: what ranks candidates early may invert later.

Reference: Xu, Wang, Frei, Vardi, Hu, Benign overfitting and grokking in ReLU networks for XOR cluster data, 2023 (the
distribution; numbers of examples and flips are exact here, and the two directions are the first two coordinates).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsefront.errors import ConfigError
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.data.dataset import Dataset, DatasetSource, Option

_N_CLASSES = 2
_SOURCE = "drawn from Gaussian clusters by the rule of arXiv:2310.02541, generated locally"
_LICENCE = "CC0-1.0"


def _load(options: Mapping[str, int], cache: Path | None) -> Dataset:
    """Draw the examples (20 ms for the default set); nothing is cached.

    The labels of the test part are clean; those of the training part, from which validation examples are taken, are
    flipped in exactly `flipped_samples` places, as many of either class as the numbers allow.
    """
    num_samples, test_samples = options["num_samples"], options["test_samples"] or options["num_samples"] // 5
    n_train = num_samples - test_samples
    if n_train < 40:
        raise ConfigError(
            f"test_samples={test_samples} for data set 'xor_cluster': must leave at least 40 of num_samples="
            f"{num_samples} for training; correct the data set's options in the study"
        )
    if 2 * options["flipped_samples"] > n_train:
        raise ConfigError(
            f"flipped_samples={options['flipped_samples']} for data set 'xor_cluster': must be at most half of the "
            f"{n_train} training examples; correct the data set's options in the study"
        )
    arrays = {}
    for part, n in (("train", n_train), ("test", test_samples)):
        rng = generator(options["seed"], f"xor_cluster {part}")
        cluster = rng.permutation(np.arange(n) % 4)
        arrays[f"x_{part}"] = _examples(cluster, options["dim"], options["separation"], rng)
        arrays[f"y_{part}"] = cluster % 2
    y = arrays["y_train"]
    rng = generator(options["seed"], "xor_cluster flips")
    for label, n_flipped in enumerate((options["flipped_samples"] // 2, -(-options["flipped_samples"] // 2))):
        flipped = rng.permutation(np.flatnonzero(arrays["y_train"] == label))[:n_flipped]
        y = y.copy()
        y[flipped] = 1 - label
    arrays["y_train"] = y
    return Dataset.from_arrays("xor_cluster", arrays, n_classes=_N_CLASSES, source=_SOURCE, licence=_LICENCE)


def _examples(
    cluster: npt.NDArray[np.int64], dim: int, separation: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Standard normal around the centre of each example's cluster, (n, dim).

    Clusters 0 and 2 lie on either side of the origin on the first axis, 1 and 3 on the second.
    """
    x = rng.standard_normal((len(cluster), dim))
    x[np.arange(len(cluster)), cluster % 2] += np.where(cluster < 2, separation, -separation)
    return x


SOURCE = DatasetSource(
    name="xor_cluster",
    summary="XOR of four Gaussian clusters with flipped labels; early rankings mislead, for rungs to be tested on",
    example_shape=(400,),
    n_classes=_N_CLASSES,
    n_train=1600,
    n_test=400,
    source=_SOURCE,
    licence=_LICENCE,
    options=(
        # 1,000,000 examples of 400 numbers are 1.6 GB.
        Option("num_samples", 2000, 100, 1_000_000, "training and test examples together"),
        Option("test_samples", 0, 0, 1_000_000, "examples that are kept for the test; 0 = a fifth"),
        Option("dim", 400, 2, 100_000, "numbers in an example, of which two decide its class"),
        Option("separation", 4, 1, 1000, "distance of the clusters' centres from the origin, in standard deviations"),
        Option("flipped_samples", 240, 0, 1_000_000, "training and validation examples with the wrong label"),
        Option("seed", 0, 0, 2**32 - 1, "seed of the generator"),
    ),
    load=_load,
)
