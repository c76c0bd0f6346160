"""What every strategy owes, as checks that a user's own strategy can be held to::

    from sparsefront.search.strategies.contract import check_in_another_process, check_strategy
    check_strategy(MyFamily())
    check_in_another_process(["mypackage.mymodule:MyFamily"])

``python -m sparsefront.search.strategies.contract '{"NAME": {"OPTION": VALUE}}'`` prints a digest of each strategy's
proposals.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from sparsefront.search.strategies.registry import strategy_family
from sparsefront.search.strategies.strategy import (
    COMPLETED,
    FAILED,
    INFEASIBLE,
    PENDING,
    STOPPED,
    History,
    Options,
    StrategyFamily,
    Task,
)
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.domains import Bits, Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space

_BATCH = 4
_N_HISTORY = 24


class ContractViolation(AssertionError):
    """A strategy does not keep what strategies promise; the message says which promise and where."""


def example_tasks() -> dict[str, Task]:
    """Small tasks of the kinds that a strategy may meet: numbers, conditions and choices, mask bits."""
    numbers = {
        "model": {"width": {"low": 8, "high": 128, "log": True}},
        "training": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "momentum": {"low": 0.0, "high": 0.99}},
    }
    mixed = {
        "model": {"widths": {"low": 8, "high": 64, "log": True, "depth": {"low": 1, "high": 3}}},
        "masks": {"sparsity": {"low": 0.5, "high": 0.98}},
        "training": {
            "optimizer": {"choices": ["adam", "sgd"]},
            "nesterov": {"flag": True},
            "steps": {"low": 1, "high": 9},
        },
        "constraints": ["n_params <= 20_000", "val_error <= 0.9"],
    }
    masks = {"masks": {"bits": True}, "training": {"lr": {"low": 1e-3, "high": 1.0, "log": True}}}
    spaces = {
        "numbers": (Space.from_table(numbers), ("val_loss",)),
        "conditions": (Space.from_table(mixed), ("val_error", "n_params")),
        "mask bits": (Space.from_table(masks, bits=Bits((12, 9), (3, 4))), ("val_error", "macs")),
    }
    return {name: _task(space, objectives) for name, (space, objectives) in spaces.items()}


def _task(space: Space, objectives: tuple[str, ...], *, seed: int = 7, replicate: int = 1) -> Task:
    return Task(space, seed, replicate, objectives, candidates=100, batch=_BATCH, costs=_costs)


def _costs(point: Point) -> Mapping[str, float]:
    widths = [float(v) for k, v in point.items() if k.startswith("width")] or [10.0]
    n_params = float(sum(a * b for a, b in zip([40.0, *widths], [*widths, 10.0], strict=True)))
    return {"n_params": n_params, "macs": n_params, "weight_sparsity": 0.0, "node_sparsity": 0.0}


def _losses(space: Space, points: Sequence[Point], m: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Losses that depend on every coordinate, and trade off."""
    unit = np.nan_to_num(space.encode(points), nan=0.5)
    targets = np.linspace(0.2, 0.8, m)
    return np.stack([((unit - t) ** 2).sum(axis=1) + 0.01 * unit.sum(axis=1) for t in targets], axis=1)


def example_history(task: Task, kind: str, points: Sequence[Point] | None = None) -> History:
    """A history of one kind: empty, failed, infeasible, stopped, tied, not finite, mixed or pending."""
    if points is None:
        n = 0 if kind == "empty" else _N_HISTORY
        points = task.space.draw(philox_key(1, "contract history"), 0, n)
    n, m = len(points), len(task.objectives)
    number = np.arange(n)
    only = {"failed": FAILED, "infeasible": INFEASIBLE, "stopped": STOPPED}
    outcomes = np.full(n, only.get(kind, COMPLETED), dtype=np.int8)
    found = _losses(task.space, points, m) if n else np.empty((0, m))
    violations = np.zeros(n)
    if kind == "tied":
        found = np.ones((n, m))
    elif kind == "not finite":
        found[::2] = [[np.inf, np.nan][i % 2] for i in range(m)]
    elif kind in ("mixed", "pending"):
        outcomes = np.array([COMPLETED, STOPPED, COMPLETED, FAILED, INFEASIBLE, COMPLETED], dtype=np.int8)[number % 6]
        violations = np.where(number % 12 == 5, 0.25, 0.0)
        if kind == "pending":
            outcomes[-_BATCH:] = PENDING
    violations = np.where(outcomes == INFEASIBLE, 0.5 + number, violations)
    history = History(
        points=[MappingProxyType(dict(point)) for point in points],
        losses=np.where((outcomes == COMPLETED)[:, None], found, np.nan),
        partial=np.where((outcomes == STOPPED)[:, None], found + 0.1, np.nan),
        outcomes=outcomes,
        fidelity=np.select([outcomes == COMPLETED, outcomes == STOPPED], [1.0, 1 / 3], 0.0),
        violations=violations,
    )
    for array in (history.losses, history.partial, history.outcomes, history.fidelity, history.violations):
        array.flags.writeable = False
    return history


KINDS = ("empty", "failed", "infeasible", "stopped", "tied", "not finite", "mixed", "pending")


def check_strategy(
    family: StrategyFamily,
    *,
    options: Mapping[str, Any] | None = None,
    examples: Collection[str] | None = None,
    batch: int = _BATCH,
) -> None:
    """Hold a strategy to the contract.

    It describes itself and refuses unknown options; and on every example space that it does not refuse: proposals are
    points of the space; they are a function of task, history and numbers, whatever the instance was asked before (so
    that a replay gives what the live run gave), and differ between seeds and replicates; arguments and global
    generators are left alone; histories that are empty, tied, not finite, without a single result, or unfinished are
    borne.

    Args:
        family: the strategy.
        options: its options, where the defaults are not meant.
        examples: names of `example_tasks` to hold it to; None: all.
        batch: points that it is asked for at once, few of a strategy that takes seconds for each.

    Raises:
        ContractViolation: the first promise that was not kept.
    """
    name = type(family).__name__
    chosen = _check_description(family, name, dict(options or {}))
    searched = 0
    tasks = {label: task for label, task in example_tasks().items() if examples is None or label in examples}
    for label, task in tasks.items():
        refusal = family.refusal(task.space, task.objectives)
        if refusal is not None:
            _require(
                isinstance(refusal, str) and refusal.strip() != "" and "\n" not in refusal,
                f"{name}.refusal: must be None or one line, not {refusal!r}",
            )
            continue
        searched += 1
        _check_on(family, chosen, replace(task, batch=batch), f"{name} on {label}")
    _require(searched > 0, f"{name}: refuses every example space")


def _check_description(family: StrategyFamily, name: str, options: dict[str, Any]) -> Options:
    for part in ("summary", "source"):
        text = getattr(family, part)
        _require(isinstance(text, str) and text.strip() != "" and "\n" not in text, f"{name}.{part}: must be one line")
    _require(isinstance(family.is_adaptive, bool), f"{name}.is_adaptive: must be True or False")
    model = family.options
    _require(issubclass(model, BaseModel), f"{name}.options: must be a pydantic model")
    _require(
        model.model_config.get("frozen") is True and all(not f.is_required() for f in model.model_fields.values()),
        f"{name}.options: must be frozen, and every option must have a default",
    )
    try:
        model.model_validate({"no_such_option": 1})
    except ValidationError:
        return model(**options)
    raise ContractViolation(f"{name}.options: accepts an unknown option")


def _check_on(family: StrategyFamily, options: Options, task: Task, where: str) -> None:
    for kind in KINDS:
        here = f"{where}, history {kind}"
        history = example_history(task, kind)
        numbers = range(len(history), len(history) + task.batch)
        strategy = family.make(task, options)
        first = _propose(strategy.propose, task, history, numbers, here)
        _require(
            _propose(strategy.propose, task, history, numbers, here) == first, f"{here}: asked twice, answers differ"
        )
        if kind == "mixed":
            strategy.propose(example_history(task, "tied"), numbers)
            again = _propose(strategy.propose, task, history, numbers, here)
            _require(again == first, f"{here}: the answer depends on what was asked before")
        fresh = _propose(family.make(task, options).propose, task, history, numbers, here)
        _require(fresh == first, f"{here}: two instances give different answers")
        if not family.is_adaptive:
            alone = _propose(family.make(task, options).propose, task, example_history(task, "empty"), numbers, here)
            _require(alone == first, f"{here}: is_adaptive is False, but the answer depends on the history")
    _check_replay(family, options, task, where)
    empty = example_history(task, "empty")
    first = _propose(family.make(task, options).propose, task, empty, range(8), where)
    if not family.is_adaptive:
        tail = _propose(family.make(task, options).propose, task, empty, range(5, 8), where)
        _require(tail == first[5:], f"{where}: candidate 5 depends on the range that it is proposed in")
    for change in ({"seed": 8}, {"replicate": 2}):
        other = _task(task.space, task.objectives, **change)
        _require(
            _propose(family.make(other, options).propose, other, empty, range(8), where) != first,
            f"{where}: proposals do not change with the {next(iter(change))}",
        )


def _check_replay(family: StrategyFamily, options: Options, task: Task, where: str) -> None:
    """A strategy that lived through a run and one that is told of it at any point must agree."""
    live, points = family.make(task, options), list[Point]()
    for _ in range(5):
        history = example_history(task, "mixed", points)
        numbers = range(len(points), len(points) + task.batch)
        proposed = _propose(live.propose, task, history, numbers, where)
        replayed = _propose(family.make(task, options).propose, task, history, numbers, where)
        _require(proposed == replayed, f"{where}: after {len(points)} candidates a replay differs from the live run")
        points += proposed
        if len(proposed) < task.batch:
            return


def _propose(
    propose: Callable[[History, range], list[Point]], task: Task, history: History, numbers: range, where: str
) -> list[Point]:
    """Ask once, and check what can be seen of one answer."""
    before = ([dict(point) for point in history.points], history.fingerprint(len(history)))
    generators = _global_generators()
    try:
        points = propose(history, numbers)
    except (Exception, SystemExit) as error:
        raise ContractViolation(f"{where}: propose raised {type(error).__name__}: {error}") from error
    after = ([dict(point) for point in history.points], history.fingerprint(len(history)))
    _require(before == after, f"{where}: changed its arguments")
    _require(generators == _global_generators(), f"{where}: drew from a global generator")
    _require(isinstance(points, list) and len(points) <= len(numbers), f"{where}: must return a list of {len(numbers)}")
    for point in points:
        _require(task.space.contains(point), f"{where}: proposed {point}, which is no point of the space")
    return points


def _global_generators() -> tuple[object, ...]:
    """State of the generators that a strategy must not touch."""
    name, words, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    return name, np.asarray(words).tobytes(), position, random.getstate()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractViolation(message)


def proposals_digest(name: str, options: Mapping[str, Any] | None = None) -> str:
    """Hash of what a strategy proposes on the examples that it accepts, after histories of several kinds."""
    family = strategy_family(name)
    chosen = family.options(**(options or {}))
    answers: list[Any] = []
    for label, task in example_tasks().items():
        if family.refusal(task.space, task.objectives) is None:
            for kind in ("empty", "stopped", "mixed"):
                history = example_history(task, kind)
                points = family.make(task, chosen).propose(history, range(len(history), len(history) + _BATCH))
                shown = [{k: v.hex() if isinstance(v, bytes) else v for k, v in point.items()} for point in points]
                answers.append([label, kind, shown])
    return hashlib.sha256(canonical_json(answers).encode()).hexdigest()


def check_in_another_process(names: Sequence[str], *, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Check that another process, with another hash seed, proposes the same.

    All that a strategy is made from travels as text, as it does in a study: nothing of it is ever pickled.

    Args:
        names: strategies as a study names them; a user's own as ``package.module:Class``, importable from this folder.
        options: by name, where the defaults are not meant.

    Raises:
        ContractViolation: a strategy that does not.
    """
    given = {name: dict((options or {}).get(name, {})) for name in names}
    here = {name: proposals_digest(name, given[name]) for name in names}
    there = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(given)],
        env={
            **os.environ,
            "PYTHONHASHSEED": "12345",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(there.stdout)
    for name, digest in here.items():
        _require(found[name] == digest, f"{name}: another process proposes something else")
    _require(there.stderr == "", f"{', '.join(names)}: wrote to standard error: {there.stderr[:500]}")


if __name__ == "__main__":
    print(json.dumps({name: proposals_digest(name, given) for name, given in json.loads(sys.argv[1]).items()}))
