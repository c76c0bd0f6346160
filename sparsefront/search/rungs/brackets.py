"""At which steps the rungs of a run lie, and which of its candidates are compared with each other."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

from sparsefront.errors import ConfigError, nearest
from sparsefront.search.design import RungSettings
from sparsefront.search.rungs.registry import RUNGS

#: Without a first rung of the user's, there are at most this many rungs: the first lies at full steps / eta^3.
_N_AUTOMATIC = 3


@dataclass(frozen=True)
class Bracket:
    """Candidates that are compared with each other: numbers start..stop of one run, and the rungs that they meet.

    `rungs` are indices of `rung_steps`, so that a rung's number means the same steps in every bracket of a run.
    """

    start: int
    stop: int
    rungs: range


def check_settings(settings: RungSettings, steps: int) -> None:
    """Refuse settings that contradict themselves or the training.

    Args:
        settings: of one arm.
        steps: full training of a candidate; the longest, where the space varies it. Of a chain, of all its levels.

    Raises:
        ConfigError: naming the key and what is accepted.
    """
    if settings.kind not in RUNGS:
        raise ConfigError(f"rungs.kind={settings.kind!r}: {nearest(settings.kind, RUNGS)}")
    kind = RUNGS[settings.kind]
    if settings.asynchronous and kind.record is None:
        accepted = ", ".join(name for name, other in RUNGS.items() if other.record is not None)
        raise ConfigError(
            f"rungs.asynchronous=true with rungs.kind={settings.kind!r}: only {accepted} decide as candidates arrive"
        )
    if not kind.has_rungs:
        return
    if kind.is_scheduled and (settings.bands or settings.fidelity != "steps"):
        key = f"bands={list(settings.bands)}" if settings.bands else f"fidelity={settings.fidelity!r}"
        raise ConfigError(
            f"rungs.{key} with rungs.kind={settings.kind!r}: Ray's scheduler compares all candidates, by steps; "
            "leave it out, or use 'asha'"
        )
    if kind.is_scheduled and settings.objectives != ("val_loss",):
        raise ConfigError(
            f"rungs.objectives={list(settings.objectives)} with rungs.kind={settings.kind!r}: Ray's scheduler is told "
            "'val_loss'; leave it out, or use 'asha'"
        )
    if settings.eta < 2:
        raise ConfigError(f"rungs.eta={settings.eta}: must be at least 2; one of eta goes on")
    if settings.bracket < 1:
        raise ConfigError(f"rungs.bracket={settings.bracket}: must be at least 1, candidates that are compared")
    most = kind.max_bracket
    if most is not None and settings.bracket > most and not settings.asynchronous:
        raise ConfigError(
            f"rungs.bracket={settings.bracket}: must be at most {most} with rungs.kind={settings.kind!r}, which "
            f"compares a newcomer with the last {most} that reached the rung; take smaller brackets, or set "
            "rungs.asynchronous = true"
        )
    longest = steps // settings.level_steps
    if not 0 <= settings.min_steps < longest:
        unit = " levels" if settings.fidelity == "level" else ""
        raise ConfigError(
            f"rungs.min_steps={settings.min_steps}: must be 0 (automatic) or less than the full training, "
            f"{longest}{unit}"
        )
    if len(settings.objectives) != 1 and not kind.is_multi_objective:
        accepted = ", ".join(name for name, other in RUNGS.items() if other.is_multi_objective)
        raise ConfigError(
            f"rungs.objectives={list(settings.objectives)}: rungs.kind={settings.kind!r} compares by one objective; "
            f"{accepted} by several"
        )
    if any(low >= high for low, high in itertools.pairwise(settings.bands)):
        raise ConfigError(f"rungs.bands={list(settings.bands)}: edges of weight sparsity must ascend")


def rung_steps(settings: RungSettings, steps: int) -> tuple[int, ...]:
    """Steps of the rungs, ascending: min_steps x eta^k for k = 0, 1, ..., strictly below the full training.

    Where fidelity is a level, both are counted in levels: a rung is the end of one.

    Where candidates differ in their steps, `steps` is the longest training of the run, so that a rung lies at the same
    step for all; each candidate meets those below its own.

    Args:
        settings: of the run; without a first rung of the user's, it is ceil(steps / eta^3), which makes at most three.
        steps: full training.

    >>> rung_steps(RungSettings("successive_halving", eta=3, min_steps=1), 27)
    (1, 3, 9)
    >>> rung_steps(RungSettings("asha", eta=3), 1200)
    (45, 135, 405)
    >>> rung_steps(RungSettings("asha", eta=2, min_steps=1, fidelity="level", level_steps=100), 500)
    (100, 200, 400)
    >>> rung_steps(RungSettings("none"), 1200)
    ()
    """
    if not RUNGS[settings.kind].has_rungs:
        return ()
    longest = steps // settings.level_steps
    first = settings.min_steps or -(-longest // settings.eta**_N_AUTOMATIC)
    found = []
    while first < longest:
        found.append(first * settings.level_steps)
        first *= settings.eta
    return tuple(found)


def bracket_of(settings: RungSettings, number: int, steps: int, *, batch: int = 0) -> Bracket:
    """The bracket of a candidate: brackets are consecutive ranges of candidate numbers, fixed before anything is known.

    An asynchronous run is one bracket without end.

    Args:
        settings: of the run.
        number: of the candidate, from 0.
        steps: as in `rung_steps`.
        batch: candidates that an adaptive strategy proposes at once; 0 for others. It proposes the next when all of a
            batch have ended, so that brackets that are compared at once end with the batch (and begin anew with the
            next).

    >>> bracket_of(RungSettings("asha", bracket=64), 100, 27)
    Bracket(start=64, stop=128, rungs=range(0, 3))
    >>> [bracket_of(RungSettings("hyperband", min_steps=1), number, 27).stop for number in (0, 27, 39, 45, 49)]
    [27, 39, 45, 49, 76]
    >>> bracket_of(RungSettings("successive_halving", bracket=64), 60, 27, batch=50)
    Bracket(start=50, stop=100, rungs=range(0, 3))
    """
    kind = RUNGS[settings.kind]
    n_rungs = len(rung_steps(settings, steps))
    if settings.asynchronous:
        return Bracket(0, sys.maxsize, range(n_rungs))
    cycle = kind.cycle(n_rungs, settings.eta, settings.bracket)
    first, last = 0, sys.maxsize
    if batch and kind.record is None:
        first = number // batch * batch
        last = first + batch
    period = sum(size for size, _ in cycle)
    start = first + (number - first) // period * period
    for size, n_skipped in itertools.cycle(cycle):
        if number < start + size:
            return Bracket(start, min(start + size, last), range(n_skipped, n_rungs))
        start += size
    raise AssertionError("a cycle has at least one bracket")
