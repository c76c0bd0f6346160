"""Schedules of the learning rate, against torch's own, and as optimisers follow them."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from sparsefront.trainables.optimizers import OPTIMIZERS, Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.rates import RATE_SCHEDULES, rate_factor

STEPS = 40


@pytest.mark.parametrize("name", RATE_SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_factors_lie_in_the_unit_interval_and_fall_after_the_warm_up(name, warmup):
    factors = [rate_factor(name, t, steps=STEPS, warmup=warmup) for t in range(STEPS)]
    assert factors[warmup] == 1.0
    assert all(0 < f <= 1 for f in factors)
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[:warmup] == pytest.approx([(t + 1) / 5 for t in range(warmup)])


@pytest.mark.parametrize("name", RATE_SCHEDULES)
def test_what_comes_after_the_schedule_keeps_its_last_factor(name):
    assert rate_factor(name, 3 * STEPS, steps=STEPS) == rate_factor(name, STEPS - 1, steps=STEPS)


def test_steps_are_those_of_torch():
    schedule = Schedule("sgd", STEPS, 10, 10, lr_schedule="step")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = MultiStepLR(optimizer, milestones=[STEPS // 2, 3 * STEPS // 4])
    for step in range(STEPS):
        assert schedule.rate(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_a_rewound_lane_goes_on_in_the_schedule():
    whole = Schedule("adam", STEPS, 10, 10, lr_schedule="cosine")
    rest = Schedule("adam", STEPS - 10, 10, 10, lr_schedule="cosine", lr_steps=STEPS, lr_offset=10)
    assert [rest.rate(t) for t in range(STEPS - 10)] == [whole.rate(t) for t in range(10, STEPS)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("lrs", [(0.1, 0.1), (0.1, 0.02)])
def test_optimisers_follow_the_rate_as_torch_does(name, lrs):
    momentum = 0.9 if name == "sgd" else 0.0
    flat = torch.linspace(-1, 1, 12).view(2, 6).clone()
    own = OPTIMIZERS[name](flat, [Hyperparameters(lr=lr, momentum=momentum, weight_decay=0.1) for lr in lrs])
    lanes = [flat[i].clone().requires_grad_() for i in range(2)]
    kinds = {"adam": lambda p, lr: torch.optim.Adam([p], lr=lr, weight_decay=0.1),
             "sgd": lambda p, lr: torch.optim.SGD([p], lr=lr, momentum=momentum, weight_decay=0.1)}  # fmt: skip
    theirs = [kinds[name](p, lr) for p, lr in zip(lanes, lrs, strict=True)]
    plans = [LambdaLR(o, lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2) for o in theirs]
    for step in range(STEPS):
        gradient = torch.sin(torch.arange(12.0) * (step + 1)).view(2, 6)
        own.rate = rate_factor("cosine", step, steps=STEPS)
        own.step(flat, gradient.clone())
        for i, (lane, optimizer, plan) in enumerate(zip(lanes, theirs, plans, strict=True)):
            lane.grad = gradient[i].clone()
            optimizer.step()
            plan.step()
    torch.testing.assert_close(flat, torch.stack([p.detach() for p in lanes]), rtol=1e-5, atol=1e-6)
