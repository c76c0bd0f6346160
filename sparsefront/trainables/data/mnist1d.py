"""MNIST-1D: ten classes of 40-value signals that are made on the spot; the default data set.

References: Greydanus, Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024 (arXiv:2011.14439).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sparsefront.errors import ConfigError
from sparsefront.trainables.data.cache import cached, default_cache
from sparsefront.trainables.data.dataset import Arrays, Dataset, DatasetSource, Option

_N_CLASSES = 10
_SOURCE = "package mnist1d, github.com/greydanus/mnist1d (arXiv:2011.14439), generated locally"
_LICENCE = "Apache-2.0"

# Generation draws from process-wide generators: one thread of ours at a time.
_GENERATION = threading.Lock()


def _load(options: Mapping[str, int], cache: Path | None) -> Dataset:
    """Generate the signals (about 0.4 ms each), or read them from the cache."""
    num_samples, test_samples = options["num_samples"], options["test_samples"] or options["num_samples"] // 5
    if test_samples > num_samples - 50:
        raise ConfigError(
            f"test_samples={test_samples} for data set 'mnist1d': must leave at least 50 of num_samples={num_samples} "
            "for training; correct the data set's options in the study"
        )
    complete = {"num_samples": num_samples, "test_samples": test_samples, "seed": options["seed"]}
    identity = {"generator": f"mnist1d {version('mnist1d')}", "options": complete}
    arrays = cached("mnist1d", identity, lambda: _generate(**complete), folder=cache or default_cache())
    return Dataset.from_arrays("mnist1d", arrays, n_classes=_N_CLASSES, source=_SOURCE, licence=_LICENCE)


def _generate(*, num_samples: int, test_samples: int, seed: int) -> Arrays:
    """Signals and labels of the package's generator: shuffled, standardised as a whole, the last ones for the test.

    The generator seeds and draws from the global generators of NumPy and ``random``. Their states are put back, so
    nothing else notices; another thread that draws from them meanwhile would change these data, and is not ours: no
    code of this package uses them.
    """
    # Imported here: it takes matplotlib and requests with it, two seconds that only generation should cost.
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = num_samples
    arguments.seed = seed
    with _GENERATION:
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the state put back
        try:
            made = make_dataset(arguments)
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002 - see above
            random.setstate(python_state)
    # The package cuts at a rounded fraction; here the cut is exact.
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    y = np.concatenate([made["y"], made["y_test"]]).astype(np.int64)
    n_train = num_samples - test_samples
    return {"x_train": x[:n_train], "y_train": y[:n_train], "x_test": x[n_train:], "y_test": y[n_train:]}


SOURCE = DatasetSource(
    name="mnist1d",
    summary="MNIST-1D, signals shaped like digits; hard for a linear model, small enough for a CPU",
    example_shape=(40,),
    n_classes=_N_CLASSES,
    n_train=4000,
    n_test=1000,
    source=_SOURCE,
    licence=_LICENCE,
    options=(
        # At 100 each part still holds several classes; at 1,000,000 generation takes about seven minutes.
        Option("num_samples", 5000, 100, 1_000_000, "training and test signals together", multiple_of=10),
        Option("test_samples", 0, 0, 1_000_000, "signals of those that are kept for the test; 0 = a fifth"),
        Option("seed", 42, 0, 2**32 - 1, "seed of the generator; 42 is the package's default set"),
    ),
    load=_load,
)
