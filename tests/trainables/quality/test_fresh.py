"""The error on a sample that is drawn anew."""

import numpy as np
import pytest
import torch

from sparsefront.errors import ConfigError
from sparsefront.trainables.data import fresh_options, load_dataset
from sparsefront.trainables.pack import evaluate
from sparsefront.trainables.quality import measure, passes, subject


def test_it_is_the_error_on_other_examples_whatever_the_chunks(trained, examples, monkeypatch):
    model, _, _, lanes = trained("mlp")
    test = examples[1]
    # The classes of fresh examples are their own, and not those of the test examples.
    fresh = examples[0].select(torch.arange(1, len(test) + 1))
    assert (fresh.labels != test.labels).any()
    expected, on_test = evaluate(model, lanes, fresh)[1], evaluate(model, lanes, test)[1]
    for at_once in (1 << 23, 3000):
        monkeypatch.setattr(subject, "_ACTIVATIONS_AT_ONCE", {"cpu": at_once})
        found = measure(["fresh"], model, lanes, test, parent=None, seed=1, fresh_examples=lambda: fresh)
        np.testing.assert_allclose(found["fresh_error"], expected, atol=1e-12)
        np.testing.assert_allclose(found["fresh_error_increase"], expected - on_test, atol=1e-12)
    assert (expected != on_test).any()
    assert passes(["fresh"], 30) == 20


def test_without_a_generator_there_is_nothing_to_measure(trained, examples):
    model, _, _, lanes = trained("mlp")
    with pytest.raises(ConfigError, match="'fresh' needs a data set that is generated; leave it out"):
        measure(["fresh"], model, lanes, examples[1], parent=None, seed=1)


def test_a_data_set_is_drawn_anew_under_a_seed_of_the_study():
    options = {"num_samples": 400, "dim": 8, "flipped_samples": 20}
    own = load_dataset("xor_cluster", options)
    drawn = [load_dataset("xor_cluster", fresh_options("xor_cluster", options, seed)) for seed in (1, 1, 2)]
    assert len({data.digest for data in (own, *drawn)}) == 3
    assert drawn[0].digest == drawn[1].digest
    assert {data.x_test.shape for data in (own, *drawn)} == {(80, 8)}
    resolved = fresh_options("xor_cluster", options, 1)
    assert {k: v for k, v in resolved.items() if k != "seed"} == {
        "num_samples": 400, "test_samples": 0, "dim": 8, "separation": 4, "flipped_samples": 20
    }  # fmt: skip
    # Never that of the data themselves.
    assert fresh_options("xor_cluster", resolved, 1)["seed"] == resolved["seed"] + 1
    with pytest.raises(
        ConfigError, match="'digits' is the same under every seed; data sets that are drawn are mnist1d"
    ):
        fresh_options("digits", {}, 1)
