"""Fixtures of the tests that train: one thread, and examples that can be learned in a few steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefront.trainables.data import Dataset
from sparsefront.trainables.pack import Examples
from tests.oracles.networks import N_CLASSES, N_INPUTS


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Results and times do not depend on how many cores are free."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def blobs():
    """Four overlapping Gaussian clouds: 240 training and 80 test examples of 15 numbers."""
    rng = np.random.Generator(np.random.Philox(key=5))
    centres = rng.standard_normal((N_CLASSES, N_INPUTS))
    y = np.arange(320) % N_CLASSES
    x = 0.6 * centres[y] + rng.standard_normal((320, N_INPUTS))
    arrays = {"x_train": x[:240], "y_train": y[:240], "x_test": x[240:], "y_test": y[240:]}
    return Dataset.from_arrays("blobs", arrays, n_classes=N_CLASSES, source="made up", licence="none")


@pytest.fixture(scope="session")
def examples(blobs):
    """Training and validation examples as a pack takes them."""
    device = torch.device("cpu")
    return (
        Examples.of(blobs.x_train, blobs.y_train, N_CLASSES, device),
        Examples.of(blobs.x_test, blobs.y_test, N_CLASSES, device),
    )
