"""Optimisers: every lane moves as torch.optim moves a network alone."""

import math
from dataclasses import replace

import pytest
import torch

from sparsefront.trainables.optimizers import OPTIMIZERS, Hyperparameters, per_lane
from tests.oracles import networks as oracle

STEPS, WIDTH = 80, 40

#: Both accumulate in float32 and round each step differently: an entry of size 1 gathers STEPS x eps/2 = 5e-6 from the
#: updates, and the recurrences hold a few such roundings each.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

PLAIN = Hyperparameters(lr=0.01)
ADAM = {
    "default": [PLAIN] * 4,
    "decay": [replace(PLAIN, weight_decay=0.01)] * 4,
    "large epsilon": [replace(PLAIN, eps=0.1)] * 4,
    "all unlike": [
        Hyperparameters(lr=0.01),
        Hyperparameters(lr=0.003, weight_decay=0.1),
        Hyperparameters(lr=0.02, beta1=0.5, beta2=0.9),
        Hyperparameters(lr=0.01, eps=1e-3, beta1=0.0, weight_decay=1e-4),
    ],
    "decay of one": [PLAIN, replace(PLAIN, weight_decay=0.1), PLAIN, PLAIN],
}
SGD = {
    "plain": [PLAIN] * 4,
    "momentum": [replace(PLAIN, momentum=0.9)] * 4,
    "nesterov": [replace(PLAIN, momentum=0.9, nesterov=True)] * 4,
    "decay": [replace(PLAIN, momentum=0.9, weight_decay=0.01)] * 4,
    "nesterov and decay": [replace(PLAIN, momentum=0.9, weight_decay=0.01, nesterov=True)] * 4,
    "all unlike": [
        Hyperparameters(lr=0.01),
        Hyperparameters(lr=0.003, momentum=0.9, weight_decay=0.1),
        Hyperparameters(lr=0.02, momentum=0.5, nesterov=True),
        Hyperparameters(lr=0.01, momentum=0.95, nesterov=True, weight_decay=1e-3),
    ],
    "momentum of one": [PLAIN, replace(PLAIN, momentum=0.9), PLAIN, PLAIN],
}
CASES = [("adam", case, hyper) for case, hyper in ADAM.items()] + [("sgd", case, hyper) for case, hyper in SGD.items()]


def start(n_lanes=4):
    return torch.randn(n_lanes, WIDTH, generator=torch.Generator().manual_seed(1))


def gradient_of(flat, step):
    """A gradient that depends on where each lane is: a bowl with a direction that turns."""
    turn = torch.cos(torch.arange(WIDTH) * 0.3 + 0.1 * step)
    return 0.5 * flat + turn * torch.linspace(0.1, 2, WIDTH)


def alone(name, hyper, row, steps=range(STEPS)):
    """The same row under torch.optim."""
    parameter = row.clone().requires_grad_(True)
    optimizer = oracle.optimizer(name, [parameter], hyper)
    for step in steps:
        parameter.grad = gradient_of(parameter.detach(), step)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(n, h, id=f"{n}, {c}") for n, c, h in CASES])
def test_every_lane_agrees_with_torch(name, hyper):
    flat = start()
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(STEPS):
        optimizer.step(flat, gradient_of(flat, step))
    for lane, row in enumerate(start()):
        torch.testing.assert_close(flat[lane], alone(name, hyper[lane], row), **TOLERANCE)


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(n, h, id=f"{n}, {c}") for n, c, h in CASES])
@pytest.mark.parametrize("staying", [[0, 2, 3], [3, 1], [2]])
def test_lanes_that_stay_go_on_as_if_nobody_left(name, hyper, staying):
    flat = start()
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(STEPS):
        if step == 30:
            optimizer.keep(torch.tensor(staying))
            flat = flat[staying].clone()
        optimizer.step(flat, gradient_of(flat, step))
    for row, lane in enumerate(staying):
        torch.testing.assert_close(flat[row], alone(name, hyper[lane], start()[lane]), **TOLERANCE)


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(n, h, id=f"{n}, {c}") for n, c, h in CASES])
def test_masked_entries_stay_exactly_zero(name, hyper):
    keep = (torch.rand(4, WIDTH, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    flat = start() * keep
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(300):
        optimizer.step(flat, gradient_of(flat, step).mul_(keep))
    assert (flat[keep == 0] == 0).all()
    assert (flat[keep == 1] != 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_lane_that_is_not_finite_touches_no_other(name):
    hyper = [Hyperparameters(lr=0.01, momentum=0.9), Hyperparameters(lr=1e30), Hyperparameters(lr=0.02, momentum=0.5)]
    flat = start(3)
    flat[1, 3] = torch.nan
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(STEPS):
        optimizer.step(flat, gradient_of(flat, step))
    for lane in (0, 2):
        torch.testing.assert_close(flat[lane], alone(name, hyper[lane], start(3)[lane]), **TOLERANCE)


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(n, h, id=f"{n}, {c}") for n, c, h in CASES])
def test_who_goes_on_from_the_slots_goes_on_as_before(name, hyper):
    whole, flat = start(), start()
    optimizer = OPTIMIZERS[name](whole, hyper)
    for step in range(STEPS):
        optimizer.step(whole, gradient_of(whole, step))
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(30):
        optimizer.step(flat, gradient_of(flat, step))
    saved = {n: s.clone() for n, s in optimizer.slots().items()}
    optimizer = OPTIMIZERS[name](flat, hyper)
    optimizer.restore(30, saved)
    for step in range(30, STEPS):
        optimizer.step(flat, gradient_of(flat, step))
    assert torch.equal(flat, whole)


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(n, h, id=f"{n}, {c}") for n, c, h in CASES])
def test_a_silenced_lane_stays_where_it_is_and_the_others_go_on(name, hyper):
    flat = start()
    flat[1] = torch.nan
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(STEPS):
        if step == 30:
            flat[1] = 0.0
            optimizer.silence([1])
        optimizer.step(flat, gradient_of(flat, step))
    assert (flat[1] == 0).all()
    assert all(torch.isfinite(s[1]).all() for s in optimizer.slots().values())
    for lane in (0, 2, 3):
        torch.testing.assert_close(flat[lane], alone(name, hyper[lane], start()[lane]), **TOLERANCE)


def rates_at(step):
    """Unlike rates of four lanes; the last does not change."""
    return [0.5 + 0.5 * math.cos(0.05 * step), min(1.0, (step + 1) / 10), 0.1 if step >= 40 else 1.0, 1.0]


@pytest.mark.parametrize(("name", "hyper"), [pytest.param(n, h, id=f"{n}, {c}") for n, c, h in CASES])
def test_every_lane_follows_its_own_rate_as_torch_does(name, hyper):
    flat = start()
    optimizer = OPTIMIZERS[name](flat, hyper)
    for step in range(STEPS):
        if step == 60:  # lanes leave, and the rates of the others follow them
            optimizer.keep(torch.tensor([3, 1]))
            flat = flat[[3, 1]].clone()
        rates = rates_at(step) if step < 60 else [rates_at(step)[3], rates_at(step)[1]]
        optimizer.rate = per_lane(rates, flat.device)
        optimizer.step(flat, gradient_of(flat, step))
    for row, lane in enumerate([3, 1]):
        parameter = start()[lane].requires_grad_(True)
        theirs = oracle.optimizer(name, [parameter], hyper[lane])
        for step in range(STEPS):
            theirs.param_groups[0]["lr"] = hyper[lane].lr * rates_at(step)[lane]
            parameter.grad = gradient_of(parameter.detach(), step)
            theirs.step()
        torch.testing.assert_close(flat[row], parameter.detach(), **TOLERANCE)


@pytest.mark.parametrize("width", [16, 18, 21, 39])
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize(
    ("name", "hyper"),
    [(n, h[0]) for n, case, h in CASES if case in ("default", "decay", "momentum", "nesterov and decay")],
)
def test_a_lane_moves_bit_for_bit_alike_whoever_travels_beside_it(name, hyper, rate, width):
    """On a CPU, wherever in memory its last entries lie. (The kernel alone differs after 20 to 2,500 steps.)"""
    draws = torch.Generator().manual_seed(0)
    first, gradients = torch.randn(3, width, generator=draws), torch.randn(800, 3, width, generator=draws)

    def moved(lanes):
        flat = first[lanes].clone()
        optimizer = OPTIMIZERS[name](flat, [hyper] * len(lanes))
        optimizer.rate = rate
        way = []
        for gradient in gradients:
            optimizer.step(flat, gradient[lanes].clone())
            way.append(flat.clone())
        return torch.stack(way)

    together = moved([0, 1, 2])
    for lane in range(3):
        assert torch.equal(moved([lane])[:, 0], together[:, lane])
    assert torch.equal(moved([2, 1]), together[:, [2, 1]])
