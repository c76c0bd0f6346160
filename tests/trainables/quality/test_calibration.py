"""Calibration against scikit-learn and a loop over bins."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from sparsefront.trainables.gradients import forward
from sparsefront.trainables.quality import measure
from sparsefront.trainables.quality.calibration import expected_calibration_error


def slow_ece(confidence, is_correct):
    total = 0.0
    for m in range(15):
        inside = [i for i, c in enumerate(confidence) if m / 15 < c <= (m + 1) / 15 or (m == 0 and c == 0)]
        if inside:
            accuracy = sum(is_correct[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return total


@given(st.lists(st.tuples(st.floats(0, 1).filter(lambda c: abs(c * 15 % 1) > 1e-9), st.booleans()), min_size=1))
def test_ece_is_that_of_a_loop_over_bins(pairs):
    confidence, is_correct = (list(v) for v in zip(*pairs, strict=True))
    fast = expected_calibration_error(
        torch.tensor([confidence], dtype=torch.float64), torch.tensor([is_correct], dtype=torch.bool)
    )
    assert fast.item() == pytest.approx(slow_ece(confidence, is_correct), abs=1e-12)


def test_ece_of_closed_forms():
    ones = torch.ones(1, 10, dtype=torch.float64)
    right = torch.arange(10)[None] < 3
    assert expected_calibration_error(ones, right).item() == pytest.approx(0.7)
    assert expected_calibration_error(ones, right | True).item() == 0
    # Over- and underconfidence in one bin cancel, in two they do not.
    two = torch.tensor([[0.61, 0.65]], dtype=torch.float64)
    assert expected_calibration_error(two, torch.tensor([[True, False]])).item() == pytest.approx(0.13)
    apart = torch.tensor([[0.55, 0.65]], dtype=torch.float64)
    assert expected_calibration_error(apart, torch.tensor([[True, False]])).item() == pytest.approx(0.55)


@pytest.mark.parametrize("family", ["mlp", "conv1d"])
def test_columns_are_those_of_scikit_learn(family, trained, examples):
    model, _, _, lanes = trained(family)
    columns = measure(["calibration"], model, lanes, examples[1], parent=None, seed=0)
    logits = forward(model, lanes.layout, lanes.flat, examples[1].x).double()
    labels = examples[1].labels.numpy()
    for i, p in enumerate(logits.softmax(dim=2).numpy()):
        classes = list(range(p.shape[1]))
        brier = brier_score_loss(labels, p, labels=classes, scale_by_half=False)
        assert columns["brier"][i] == pytest.approx(brier, abs=1e-6)
        assert columns["nll"][i] == pytest.approx(log_loss(labels, p, labels=classes), abs=1e-6)
        slow = slow_ece(p.max(axis=1).tolist(), (p.argmax(axis=1) == labels).tolist())
        assert columns["ece"][i] == pytest.approx(slow, abs=1e-6)
    assert len(np.unique(columns["ece"])) > 1
