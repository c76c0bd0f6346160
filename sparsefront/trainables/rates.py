"""Schedules of the learning rate: what it is multiplied by, from 1 downwards; one function and one registry line each.

References: Loshchilov and Hutter, SGDR, 2017 (cosine, one period); Liu et al., The unreasonable effectiveness of random
pruning, 2022, and Frankle et al. 2019 (steps); Goyal et al., Accurate, large minibatch SGD, 2017 (linear warm-up).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Where 'step' divides the rate by ten, as shares of the training.
_DROPS = (0.5, 0.75)


@dataclass(frozen=True)
class RateSchedule:
    """One row of the registry; `factor` maps the share of the training that is done, [0, 1), to (0, 1]."""

    summary: str
    factor: Callable[[float], float]


RATE_SCHEDULES: Mapping[str, RateSchedule] = {
    "constant": RateSchedule("the same throughout", lambda done: 1.0),
    "cosine": RateSchedule("half a cosine, to zero", lambda done: (1 + math.cos(math.pi * done)) / 2),
    "linear": RateSchedule("a straight line, to zero", lambda done: 1 - done),
    "step": RateSchedule(
        "a tenth after half of the training, and again after three quarters",
        lambda done: 0.1 ** sum(done >= drop for drop in _DROPS),
    ),
}


def rate_factor(name: str, step: int, *, steps: int, warmup: int = 0) -> float:
    """What the learning rate of step number `step` is multiplied by.

    Args:
        name: a name of `RATE_SCHEDULES`.
        step: steps that came before.
        steps: of the schedule; later ones keep the factor of its last.
        warmup: first steps in which the factor rises linearly to 1; the schedule is over the others.

    >>> [round(rate_factor("cosine", t, steps=4), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.146]
    >>> [rate_factor("step", t, steps=6, warmup=2) for t in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.1, 0.010000000000000002]
    """
    step = min(step, steps - 1)
    if step < warmup:
        return (step + 1) / warmup
    return RATE_SCHEDULES[name].factor((step - warmup) / max(1, steps - warmup))
