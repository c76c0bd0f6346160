"""Losses: against torch, and the best temperature against a scalar optimiser."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from sparsefront.trainables.losses import (
    LOSSES,
    OUTPUT_GRADIENTS,
    cross_entropy,
    n_errors,
    n_errors_by_class,
    scale_free_cross_entropy,
)

N, C = 40, 5


def logits_of(seed, scale=1.0):
    return scale * torch.randn(N, C, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(N) % C
ONE_HOT = functional.one_hot(LABELS, C).t().float()


@pytest.mark.parametrize("smoothing", [None, 0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_cross_entropy_is_that_of_torch(smoothing, scale):
    logits = logits_of(0, scale)
    eps = None if smoothing is None else torch.tensor(smoothing)
    expected = functional.cross_entropy(logits, LABELS, label_smoothing=smoothing or 0.0)
    torch.testing.assert_close(cross_entropy(logits, ONE_HOT, eps), expected, rtol=1e-6, atol=1e-6)


def test_cross_entropy_of_huge_logits_stays_finite():
    logits = logits_of(0, 1e30)
    assert torch.isfinite(cross_entropy(logits, ONE_HOT))
    assert float(cross_entropy(1e30 * ONE_HOT.t(), ONE_HOT)) == 0


@pytest.mark.parametrize("smoothing", [None, (0.0, 0.1, 1.0)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e30])
def test_the_gradient_of_cross_entropy_is_that_of_autograd_in_every_lane(smoothing, scale):
    logits = torch.stack([logits_of(seed, scale) for seed in range(3)])
    eps = None if smoothing is None else torch.tensor(smoothing)
    found = OUTPUT_GRADIENTS["cross_entropy"](logits, ONE_HOT, eps)
    assert found.shape == logits.shape
    for i in range(3):
        leaf = logits[i].clone().requires_grad_()
        functional.cross_entropy(leaf, LABELS, label_smoothing=0.0 if smoothing is None else smoothing[i]).backward()
        torch.testing.assert_close(found[i], leaf.grad, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_the_absolute_error_is_that_of_autograd():
    restored, images = torch.rand(2, 3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    restored[0, 0] = images[0]  # where nothing is wrong nothing changes
    found = OUTPUT_GRADIENTS["absolute_error"](restored, images, None)
    for lane, slope in zip(restored, found, strict=True):
        leaf = lane.clone().requires_grad_()
        LOSSES["absolute_error"](leaf, images, None).backward()
        torch.testing.assert_close(slope, leaf.grad, rtol=1e-6, atol=0)


def test_every_loss_has_its_gradient():
    assert LOSSES.keys() == OUTPUT_GRADIENTS.keys()


def test_errors_are_counted_and_ties_go_to_the_lower_class():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 3.0]])
    assert int(n_errors(logits, torch.tensor([0, 1, 0, 0]))) == 0
    assert int(n_errors(logits, torch.tensor([1, 2, 2, 2]))) == 4


def test_errors_are_counted_lane_by_lane():
    logits = torch.stack([logits_of(seed) for seed in range(6)])
    expected = [sum(int(row.argmax()) != int(y) for row, y in zip(lane, LABELS, strict=True)) for lane in logits]
    assert n_errors(logits, LABELS).tolist() == expected


def best_temperature(logits):
    """(smallest loss, its temperature) by Brent's method over the logarithm of the inverse temperature."""
    z = logits.double().numpy()
    std = z.std()

    def loss(log_beta):
        scaled = z / std * math.exp(log_beta)
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -log_p[np.arange(N), LABELS.numpy()].mean()

    found = minimize_scalar(loss, bounds=(math.log(1e-6), math.log(1e3)), method="bounded", options={"xatol": 1e-8})
    return found.fun, std / math.exp(found.x)


def helpful(seed, share, scale=1.0):
    """Logits that point at the right class in a share of the examples."""
    points = torch.rand(N, generator=torch.Generator().manual_seed(seed + 100)) < share
    return scale * (0.5 * logits_of(seed) + points[:, None] * ONE_HOT.t())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_best_temperature_is_found(scale, share):
    lanes = torch.stack([helpful(seed, share, scale) for seed in range(8)])
    losses, temperatures, stds = scale_free_cross_entropy(lanes.transpose(1, 2).contiguous(), LABELS)
    torch.testing.assert_close(stds, lanes.flatten(1).std(dim=1, correction=0))
    for lane, loss, temperature in zip(lanes, losses, temperatures, strict=True):
        expected_loss, expected_temperature = best_temperature(lane)
        # The last Newton step is below 1e-3 in relative terms; the loss is flat there.
        assert float(loss) == pytest.approx(expected_loss, abs=2e-6)
        assert float(temperature) == pytest.approx(expected_temperature, rel=3e-3)


def test_logits_that_help_nothing_are_flattened():
    """Every direction is wrong: the best inverse temperature is the lower bound, where the loss is ln(classes)."""
    lanes = torch.stack([-ONE_HOT, -3 * ONE_HOT])
    losses, temperatures, _ = scale_free_cross_entropy(lanes, LABELS)
    std = lanes.flatten(1).std(dim=1, correction=0)
    assert losses.tolist() == pytest.approx([best_temperature(-ONE_HOT.t())[0]] * 2, abs=1e-5)
    assert losses.tolist() == pytest.approx([math.log(C)] * 2, abs=1e-5)
    assert temperatures.tolist() == pytest.approx((std * 1e6).tolist(), rel=1e-2)


def test_logits_that_are_always_right_are_sharpened():
    """Every example is right: the loss falls to 0 as the inverse temperature rises, and it stays finite."""
    losses, temperatures, _ = scale_free_cross_entropy(torch.stack([ONE_HOT, 1e-3 * ONE_HOT]), LABELS)
    assert losses.tolist() == pytest.approx([0, 0], abs=1e-5)
    assert torch.isfinite(temperatures).all()
    assert (temperatures > 0).all()


@pytest.mark.parametrize("constant", [0.0, 2.5])
def test_constant_logits_lose_ln_classes(constant):
    losses, temperatures, _ = scale_free_cross_entropy(torch.full((2, C, N), constant), LABELS)
    assert losses.tolist() == pytest.approx([math.log(C)] * 2, abs=1e-6)
    assert torch.isfinite(temperatures).all()


def test_the_scale_free_loss_is_free_of_scale_and_never_above_the_loss():
    lanes = torch.stack([helpful(seed, 0.5) for seed in range(8)]).transpose(1, 2).contiguous()
    losses, temperatures, _ = scale_free_cross_entropy(lanes, LABELS)
    again, stretched, _ = scale_free_cross_entropy(7.0 * lanes, LABELS)
    assert again.tolist() == pytest.approx(losses.tolist(), abs=2e-6)
    assert stretched.tolist() == pytest.approx((7 * temperatures).tolist(), rel=2e-3)
    for lane, loss in zip(lanes, losses, strict=True):
        assert float(loss) <= float(functional.cross_entropy(lane.t(), LABELS)) + 1e-6


def test_a_lane_that_is_not_finite_spoils_no_other():
    lanes = torch.stack([helpful(seed, 0.5) for seed in range(3)]).transpose(1, 2).contiguous()
    expected, _, _ = scale_free_cross_entropy(lanes, LABELS)
    lanes[1, 0, 0] = torch.nan
    losses, _, _ = scale_free_cross_entropy(lanes, LABELS)
    assert torch.isnan(losses[1])
    assert losses[[0, 2]].tolist() == pytest.approx(expected[[0, 2]].tolist(), abs=2e-6)


def test_errors_are_the_same_counted_by_class():
    rng = np.random.default_rng(5)
    for values in (rng.standard_normal((4, 300)), rng.integers(0, 3, (4, 300)), np.full((4, 300), np.nan)):
        logits = torch.from_numpy(values.astype(np.float32))
        labels = torch.from_numpy(rng.integers(0, 4, 300))
        assert int(n_errors_by_class(logits, labels)) == int(n_errors(logits.t(), labels))
