"""Every strategy keeps the contract, and the contract's suite notices those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsefront.errors import ConfigError
from sparsefront.search.strategies import (
    COMPLETED,
    PENDING,
    STRATEGIES,
    History,
    Options,
    StrategyFamily,
    Task,
    strategy_family,
)
from sparsefront.search.strategies.contract import (
    KINDS,
    ContractViolation,
    check_in_another_process,
    check_strategy,
    example_history,
    example_tasks,
)
from sparsefront.search.strategies.random import random_points
from sparsefront.spaces.domains import Point
from sparsefront.spaces.space import Space

#: Gaussian processes take seconds for a candidate of the example with conditions.
_QUICK = [name for name in STRATEGIES if name != "gp"]


@pytest.mark.parametrize("name", _QUICK)
def test_contract(name: str) -> None:
    # Small pools: each of the suite's many instances would look at thousands of draws.
    check_strategy(STRATEGIES[name], options={"pool": 2} if name == "size_stratified" else None)


@pytest.mark.slow
@pytest.mark.parametrize(("example", "batch"), [("numbers", 4), ("conditions", 1)])  # it refuses mask bits
def test_contract_of_gaussian_processes(example: str, batch: int) -> None:
    pytest.importorskip("torch")  # loaded first, so that its threads are limited from the first candidate on
    check_strategy(STRATEGIES["gp"], examples=[example], batch=batch)


#: Every option of every strategy at another value than its default.
_OTHER: dict[str, dict[str, Any]] = {
    "random": {},
    "size_stratified": {"bins": 4, "pool": 3},
    "qmc": {},
    "grid": {"levels": 3},
    "tpe": {"n_startup_trials": 3, "n_ei_candidates": 5, "multivariate": False, "constant_liar": False},
    "nsga2": {"population": 6, "mutation_fraction": 0.5, "crossover_fraction": 0.5, "swap_fraction": 0.2},
    "cmaes": {"population": 6},
    "gp": {"n_startup_trials": 3, "deterministic_objective": True},
    "evolution": {
        "population": 7,
        "selection": "rank",
        "tournament": 3,
        "crossover_fraction": 0.9,
        "mutations": 2.0,
        "step": 0.3,
        "swap_fraction": 0.3,
    },
}


@pytest.mark.parametrize("name", _QUICK)
def test_contract_with_other_options(name: str) -> None:
    defaults = STRATEGIES[name].options().model_dump()
    assert set(_OTHER[name]) == set(defaults)
    assert all(_OTHER[name][key] != value for key, value in defaults.items())
    check_strategy(STRATEGIES[name], options=_OTHER[name])


@pytest.mark.parametrize("options", [{}, _OTHER])
def test_same_proposals_in_another_process(options: dict[str, dict[str, Any]]) -> None:
    check_in_another_process(_QUICK, options=options)


@pytest.mark.slow
def test_gp_proposes_the_same_in_another_process() -> None:
    check_in_another_process(["gp"])


@pytest.mark.parametrize("options", [{"selection": "aging", "tournament": 5}, {"selection": "rank", "population": 4}])
def test_contract_of_evolution_with_other_options(options: dict[str, Any]) -> None:
    check_strategy(STRATEGIES["evolution"], options=options)


@pytest.mark.parametrize("name", ["nsga2", "cmaes"])
def test_contract_with_a_population_smaller_than_a_batch(name: str) -> None:
    check_strategy(STRATEGIES[name], options={"population": 6})


class Mine:
    """A user's own strategy, and the wrong ones' better half."""

    summary = "mine"
    source = "nowhere"
    is_adaptive = True
    options = Options

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        return None

    def make(self, task: Task, options: Options) -> Mine:
        self.task = task
        return self

    def propose(self, history: History, numbers: range) -> list[Point]:
        return random_points(self.task, numbers.start, numbers.stop)


class _Mutates(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        for point in history.points:
            point["lr"] = 1.0  # type: ignore[index]
        return super().propose(history, numbers)


class _Changes(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        points = history.points
        assert isinstance(points, list)
        points[:] = [{**point, "lr": 1.0} for point in points]
        return super().propose(history, numbers)


class _Exits(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        raise SystemExit(3)


class _Writes(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        history.losses[:] = 0.0
        return super().propose(history, numbers)


class _Leaves(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        return [{**point, "lr": 7.0} for point in super().propose(history, numbers)]


class _Counts(Mine):
    calls = 0

    def propose(self, history: History, numbers: range) -> list[Point]:
        self.calls += 1
        return random_points(self.task, numbers.start + self.calls, numbers.stop + self.calls)


class _Gambles(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        np.random.random()  # noqa: NPY002
        return super().propose(history, numbers)


class _Peeks(Mine):
    is_adaptive = False

    def propose(self, history: History, numbers: range) -> list[Point]:
        shift = int((history.outcomes == COMPLETED).any())
        return random_points(self.task, numbers.start + shift, numbers.stop + shift)


class _Sows(Mine):
    def propose(self, history: History, numbers: range) -> list[Point]:
        return self.task.space.draw(np.array([1, 2], dtype=np.uint64), numbers.start, numbers.stop)


class _Refuses(Mine):
    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        return "too hard"


class _Anything(Mine):
    class options(Options):  # noqa: N801
        model_config = Options.model_config | {"extra": "allow"}


class _Vague(Mine):
    summary = "two\nlines"


class Dull(Options):
    """One option."""

    step: float = 0.5


class Forgets(Mine):
    """Leaves the range where an option is not its default."""

    options = Dull

    def make(self, task: Task, options: Options) -> Mine:
        assert isinstance(options, Dull)
        return super().make(task, options) if options.step == 0.5 else _Leaves().make(task, options)


def test_a_contract_that_is_kept_with_the_defaults_only_is_noticed() -> None:
    check_strategy(Forgets())
    with pytest.raises(ContractViolation, match="which is no point of the space"):
        check_strategy(Forgets(), options={"step": 0.25})


def test_contract_of_a_users_own_strategy() -> None:
    check_strategy(Mine())


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (_Mutates(), "_Mutates on numbers, history failed: propose raised TypeError: 'mappingproxy' object does not"),
        (_Changes(), "_Changes on numbers, history failed: changed its arguments"),
        (_Exits(), "_Exits on numbers, history empty: propose raised SystemExit: 3"),
        (_Writes(), "propose raised ValueError: assignment destination is read-only"),
        (_Leaves(), "which is no point of the space"),
        (_Counts(), "_Counts on numbers, history empty: asked twice, answers differ"),
        (_Gambles(), "drew from a global generator"),
        (_Peeks(), "is_adaptive is False, but the answer depends on the history"),
        (_Sows(), "proposals do not change with the seed"),
        (_Refuses(), "_Refuses: refuses every example space"),
        (_Anything(), "_Anything.options: accepts an unknown option"),
        (_Vague(), "_Vague.summary: must be one line"),
    ],
)
def test_contract_notices(family: StrategyFamily, message: str) -> None:
    with pytest.raises(ContractViolation) as raised:
        check_strategy(family)
    assert message in str(raised.value)


def test_example_histories_are_what_they_are_called() -> None:
    task = example_tasks()["conditions"]
    histories = {kind: example_history(task, kind) for kind in KINDS}
    assert len(histories["empty"]) == 0
    assert histories["tied"].succeeded().all()
    assert 0 < histories["not finite"].succeeded().sum() < len(histories["not finite"])
    assert not histories["stopped"].succeeded().any()
    assert np.isfinite(histories["stopped"].partial).all()
    assert (histories["pending"].outcomes == PENDING).any()
    assert all(not h.losses.flags.writeable for h in histories.values())


def test_a_users_strategy_is_named_by_module_and_class() -> None:
    family = strategy_family("sparsefront.search.strategies.grid:Grid")
    assert family.summary == STRATEGIES["grid"].summary


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nsga3",
            "strategy='nsga3': must be one of random, size_stratified, qmc, grid, tpe, nsga2, gp, cmaes, evolution",
        ),
        ("nsga3", "did you mean 'nsga2'?"),
        ("no_such_module:Class", "strategy='no_such_module:Class': must name an importable class"),
        ("no_such_module:Class", "; its module must be in the current folder, beside the study or on PYTHONPATH"),
        ("math:NoClass", "strategy='math:NoClass': must name an importable class"),
        ("sparsefront.search.strategies.strategy:Task", "made without arguments"),
        ("collections:Counter", "has no 'summary'"),
    ],
)
def test_names_that_are_no_strategy_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        strategy_family(name)
    assert message in str(raised.value)
