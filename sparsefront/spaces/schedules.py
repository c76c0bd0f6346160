"""When a network is pruned, and to what: pure functions of the training step or of the level.

Steps count optimiser steps from 0. Every rule gives the same answer wherever a run is resumed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from sparsefront.errors import SpaceError, nearest

#: How the drop fraction of dynamic sparse training decays.
Decay = Literal["constant", "cosine", "linear"]

#: A step of `levels` that misses `rate` by less than this in the logarithm, for rounding alone, is one step.
_ROUNDING = 1e-9

_DECAYS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1 - t,
}
assert tuple(_DECAYS) == get_args(Decay)


def update_steps(begin: int, end: int, every: int) -> tuple[int, ...]:
    """Steps of the updates: `begin`, every `every` steps after it, and `end` itself.

    Raises:
        SpaceError: begin < 0, end < begin, or every < 1.

    >>> update_steps(100, 250, 50), update_steps(0, 25, 10), update_steps(7, 7, 10)
    ((100, 150, 200, 250), (0, 10, 20, 25), (7,))
    """
    _check_span(begin, end, every)
    return (*range(begin, end, every), end)


def cubic(
    step: int, *, begin: int, end: int, every: int, initial: float = 0.0, final: float, power: float = 3
) -> float:
    """Sparsity in force after the update at `step`, or after the last one before it.

    s = final + (initial - final) (1 - (t - begin) / (end - begin))^power at each t of `update_steps`, `initial` before
    the first of them and exactly `final` from `end` on. With begin = end everything is removed at once.

    Raises:
        SpaceError: a sparsity outside [0, 1), final < initial, power <= 0, or steps in the wrong order.

    Reference: Zhu and Gupta, To prune, or not to prune, 2017, equation 1.

    >>> [round(cubic(t, begin=0, end=10, every=1, final=0.9), 4) for t in range(0, 11, 2)]
    [0.0, 0.4392, 0.7056, 0.8424, 0.8928, 0.9]
    """
    _check_span(begin, end, every)
    if not 0 <= initial <= final < 1:
        raise SpaceError(f"initial={initial!r}, final={final!r}: sparsities in [0, 1) with initial <= final are needed")
    if not 0 < power < math.inf:
        raise SpaceError(f"power={power!r}: must be positive and finite")
    if step >= end:
        return final
    if step < begin:
        return initial
    done = (step - begin) // every * every / (end - begin)
    return final + (initial - final) * math.pow(1 - done, power)


def drop_fraction(step: int, *, fraction: float, end: int, kind: Decay = "cosine") -> float:
    """Share of the active connections that dynamic sparse training replaces at `step`; 0 from `end` on.

    'constant' is `fraction`, 'cosine' fraction / 2 (1 + cos(pi t / end)), 'linear' fraction (1 - t / end).

    Raises:
        SpaceError: a fraction outside [0, 1], end < 1, a negative step, or an unknown kind.

    References: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018
    (SET, constant); Evci et al., Rigging the lottery, 2020, section 3 (RigL, cosine).

    >>> [drop_fraction(t, fraction=0.5, end=100, kind="linear") for t in (0, 50, 100)]
    [0.5, 0.25, 0.0]
    """
    if kind not in _DECAYS:
        raise SpaceError(f"kind={kind!r} of a drop fraction: {nearest(kind, _DECAYS)}")
    if not 0 <= fraction <= 1:
        raise SpaceError(f"fraction={fraction!r} of connections to drop: must lie in [0, 1]")
    if end < 1 or step < 0:
        raise SpaceError(f"step={step}, end={end}: 0 <= step and 1 <= end are needed")
    return fraction * _DECAYS[kind](step / end) if step < end else 0.0


def geometric(density: float, i: int, n: int) -> float:
    """Density after round `i` of `n` that each keep the same share: density^(i/n).

    Raises:
        SpaceError: a density outside (0, 1], or not 0 <= i <= n with n >= 1.

    Reference: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020,
    algorithm 1.

    >>> [round(geometric(0.1, i, 2), 4) for i in range(3)]
    [1.0, 0.3162, 0.1]
    """
    if not 0 < density <= 1:
        raise SpaceError(f"density={density!r}: must lie in (0, 1]")
    if not 0 <= i <= n or n < 1:
        raise SpaceError(f"round i={i} of n={n}: 0 <= i <= n with n >= 1 is needed")
    return math.pow(density, i / n)


def levels(targets: Sequence[float], rate: float = 0.2) -> tuple[float, ...]:
    """Densities of an iterative method's levels, from 1.0 (dense) through every target to the last.

    From one target to the next all levels keep the same share of what is left, and none removes more than `rate` of it;
    there are as few of them as that allows. The level of a target has the density ``1 - target`` to the last bit.

    Args:
        targets: sparsities in [0, 1), strictly ascending.
        rate: largest share of the survivors that one level removes, in (0, 1).

    Raises:
        SpaceError: no target, one out of range or order, or a rate outside (0, 1).

    Reference: Frankle and Carbin, The lottery ticket hypothesis, 2019, section 1 (rate 0.2).

    >>> [round(d, 3) for d in levels([0.488, 0.9])]
    [1.0, 0.8, 0.64, 0.512, 0.417, 0.34, 0.278, 0.226, 0.184, 0.15, 0.123, 0.1]
    """
    if not targets or not all(0 <= s < 1 for s in targets) or any(b <= a for a, b in itertools.pairwise(targets)):
        raise SpaceError(f"targets={list(targets)}: sparsities in [0, 1), strictly ascending, at least one, are needed")
    if not 0 < rate < 1:
        raise SpaceError(f"rate={rate!r}: the share that a level removes must lie in (0, 1)")
    densities = [1.0]
    for target in targets:
        before, after = densities[-1], 1 - target
        n = math.ceil(math.log(after / before) / math.log1p(-rate) - _ROUNDING)
        densities += [before * (after / before) ** (i / n) for i in range(1, n)]
        if after < before:
            densities.append(after)
    return tuple(densities)


def _check_span(begin: int, end: int, every: int) -> None:
    if not 0 <= begin <= end or every < 1:
        raise SpaceError(f"begin={begin}, end={end}, every={every}: 0 <= begin <= end and every >= 1 are needed")
