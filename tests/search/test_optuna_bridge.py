"""Optuna as a stateless proposer: what it is told, and that it stays quiet."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials, default_gamma, default_gamma_multiobjective
from optuna.trial import TrialState

from sparsefront.search.optuna_bridge import Population, WholeHistory, distribution, make_sampler
from sparsefront.search.strategies import COMPLETED, STOPPED, STRATEGIES, History, Task
from sparsefront.search.strategies.cmaes import CmaEs, CmaEsOptions
from sparsefront.search.strategies.contract import example_history, example_tasks
from sparsefront.search.strategies.gp import Gp, GpOptions
from sparsefront.search.strategies.nsga2 import Nsga2, Nsga2Options
from sparsefront.search.strategies.tpe import Tpe, TpeOptions
from sparsefront.spaces.domains import Integer, Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space

_ARGUMENTS = {
    "TPESampler": Tpe.arguments(TpeOptions()),
    "GPSampler": Gp.arguments(GpOptions()),
    "NSGAIISampler": Nsga2.arguments(Nsga2Options()),
    "CmaEsSampler": CmaEs.arguments(CmaEsOptions(), 64),
}


@pytest.mark.parametrize("name", _ARGUMENTS)
def test_every_argument_of_a_sampler_is_written_out(name: str) -> None:
    known = set(inspect.signature(getattr(optuna.samplers, name).__init__).parameters) - {"self", "seed"}
    assert set(_ARGUMENTS[name]) == known
    make_sampler(name, _ARGUMENTS[name], 1)


def _bridge(task: Task) -> WholeHistory:
    return WholeHistory(task, "TPESampler", _ARGUMENTS["TPESampler"], is_complete=False)


def test_what_optuna_is_told_with_several_objectives() -> None:
    task = example_tasks()["conditions"]
    trials = _bridge(task).study_of(example_history(task, "pending")).trials
    complete, pruned, fail = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
    # The second was stopped: Optuna has no fidelity of several objectives, and would take a PRUNED one for good.
    assert [t.state for t in trials[:6]] == [complete, TrialState.RUNNING, complete, fail, pruned, complete]
    assert [t.state for t in trials[-4:]] == [TrialState.RUNNING] * 4
    assert trials[1].intermediate_values == {}
    assert trials[1].values is None
    assert trials[0].constraints == {"violation": 0.0}
    assert trials[5].constraints == {"violation": 0.25}
    assert trials[4].constraints == {"violation": 4.5}
    assert [t.params for t in trials[:6]] == example_history(task, "pending").points[:6]
    for name, arguments in (("TPESampler", {"constant_liar": False}), ("GPSampler", {})):
        other = WholeHistory(task, name, _ARGUMENTS[name] | arguments, is_complete=False)
        assert [t.state for t in other.study_of(example_history(task, "mixed")).trials[:2]] == [complete, fail]


def test_stopped_is_told_at_its_fidelity_and_not_finite_as_a_failure() -> None:
    task = example_tasks()["numbers"]
    stopped = example_history(task, "stopped")
    trial = _bridge(task).study_of(stopped).trials[0]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {333_333: pytest.approx(float(stopped.partial[0, 0]))}
    states = [t.state for t in _bridge(task).study_of(example_history(task, "not finite")).trials]
    assert states[:4] == [TrialState.FAIL, TrialState.COMPLETE] * 2


def _halved(task: Task, n: int, seed: int) -> History:
    """What rungs leave: of n candidates one in 16 completes, the others stop early; low learning rates are best.

    The first quarter, and with it every low number, has the highest learning rates and is stopped.
    """
    rng = np.random.default_rng(seed)
    lrs = np.where(np.arange(n) < n // 4, rng.uniform(0.8, 1.0, n), rng.uniform(0.3, 1.0, n))
    outcomes = np.full(n, STOPPED, dtype=np.int8)
    outcomes[n // 4 :: 12] = COMPLETED
    lrs[outcomes == COMPLETED] = rng.uniform(0.01, 0.2, int((outcomes == COMPLETED).sum()))
    points: list[Point] = [{"lr": float(lr), "momentum": float(rng.uniform(0, 0.9))} for lr in lrs]
    reached = np.stack([lrs, lrs + 0.1 * rng.random(n)][: len(task.objectives)], axis=1)
    is_complete = (outcomes == COMPLETED)[:, None]
    return History(
        points,
        np.where(is_complete, reached, np.nan),
        np.where(is_complete, np.nan, reached + 1.0),
        outcomes,
        np.where(outcomes == COMPLETED, 1.0, 1 / 16),
        np.zeros(n),
    )


@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "n_params")])
@pytest.mark.parametrize("seed", range(3))
def test_stopped_candidates_are_no_good_ones_while_better_ones_completed(
    objectives: tuple[str, ...], seed: int
) -> None:
    space = Space.from_table({"training": {"lr": {"low": 0.001, "high": 1.0}, "momentum": {"low": 0.0, "high": 0.99}}})
    n = 192
    task = Task(space, seed, 0, objectives, 400, 16, lambda point: {})
    history = _halved(task, n, seed)
    completed = np.flatnonzero(history.outcomes == COMPLETED)
    bridge = _bridge(task)
    trials = bridge.study_of(history).get_trials(deepcopy=False)
    n_known = sum(t.state != TrialState.RUNNING for t in trials)
    study = bridge.study_of(history)
    gamma = default_gamma if len(objectives) == 1 else default_gamma_multiobjective
    good, bad = ({t.number for t in part} for part in _split_trials(study, trials, gamma(n_known)))
    assert len(good | bad) == n
    # All of the completed, and of one objective those of the stopped that had come nearest where they are few.
    best = sorted(set(range(n)) - set(completed), key=lambda i: float(history.partial[i, 0]))
    allowed = {*completed.tolist(), *(best[: max(0, len(good) - len(completed))] if len(objectives) == 1 else ())}
    assert good <= allowed
    proposed = Tpe().make(task, TpeOptions()).propose(history, range(n, n + 32))
    assert np.median([float(p["lr"]) for p in proposed]) < 0.25


def test_parents_are_never_candidates_that_were_stopped() -> None:
    space = Space.from_table({"training": {"lr": {"low": 0.001, "high": 1.0}, "momentum": {"low": 0.0, "high": 0.99}}})
    task = Task(space, 0, 0, ("val_error", "n_params"), 400, 16, lambda point: {})
    history = _halved(task, 192, 0)
    parents = Population(task, _ARGUMENTS["NSGAIISampler"]).parents(history)
    assert {t.number for t in parents} == set(np.flatnonzero(history.outcomes == COMPLETED).tolist())
    assert {t.state for t in parents} == {TrialState.COMPLETE}


def test_a_study_is_extended_by_what_is_new_and_rebuilt_when_the_past_changed() -> None:
    task = example_tasks()["numbers"]
    bridge = _bridge(task)
    points = task.space.draw(np.array([1, 1], dtype=np.uint64), 0, 12)
    first = bridge.study_of(example_history(task, "tied", points[:6]))
    assert bridge.study_of(example_history(task, "tied", points)) is first
    assert len(first.trials) == 12
    assert bridge.study_of(example_history(task, "failed", points)) is not first
    assert bridge.study_of(example_history(task, "failed", points[:3])) is not first


@pytest.mark.parametrize("name", ["tpe", "nsga2", pytest.param("gp", marks=pytest.mark.slow), "cmaes"])
def test_nothing_is_logged_warned_or_left_changed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    task, family = example_tasks()["numbers"], STRATEGIES[name]
    level = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy = family.make(task, family.options())
        points = strategy.propose(example_history(task, "tied"), range(24, 26))
    assert all(task.space.contains(p) for p in points)
    assert optuna.logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")


def test_gp_proposes_the_same_again() -> None:
    pytest.importorskip("torch")  # loaded first, so that its threads are limited from the first candidate on
    task, history = example_tasks()["numbers"], example_history(example_tasks()["numbers"], "mixed")
    first, second = (Gp().make(task, GpOptions()).propose(history, range(24, 25)) for _ in range(2))
    assert first == second


def test_children_inherit_conditional_dimensions() -> None:
    space = Space.from_table({"model": {"widths": {"low": 1, "high": 10_000, "depth": {"low": 1, "high": 3}}}})
    task = Task(space, 0, 0, ("a", "b"), 100, 50, lambda point: {})
    n = 60
    points: list[Point] = [{"depth": 1 + i % 3} | {f"width_{j}": 77 for j in range(1, 2 + i % 3)} for i in range(n)]
    outcomes = np.full(n, COMPLETED, dtype=np.int8)
    losses = np.stack([np.arange(n), np.arange(n)[::-1]], axis=1).astype(np.float64)
    history = History(points, losses, np.full((n, 2), np.nan), outcomes, np.ones(n), np.zeros(n))
    children = Population(task, _ARGUMENTS["NSGAIISampler"]).propose(history, range(n, n + 100))
    third = [p["width_3"] for p in children if "width_3" in p]
    # Lost to mutation (1 of 4), or taken from a parent that has no third layer (2 of 3 parents have none).
    assert third.count(77) > len(third) / 5
    assert third.count(77) + len(set(third) - {77}) >= len(third) - 1


def test_children_are_those_that_asking_gives() -> None:
    task = example_tasks()["conditions"]
    history = example_history(task, "mixed")
    arguments = {**_ARGUMENTS["NSGAIISampler"], "population_size": 6}
    parents = Population(task, arguments).parents(history)
    seed = int(philox_key(task.seed, "strategy", task.replicate, 24)[0] % 2**32)
    sampler = make_sampler("NSGAIISampler", {**arguments, "population_size": len(parents)}, seed)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(task.objectives))
    for parent in parents:
        parent.system_attrs["NSGAIISampler:generation"] = 0
        study.add_trial(parent)
    distributions = {d.name: distribution(d.domain) for d in task.space.dimensions}
    asked = [task.space.clip(study.ask(distributions).params) for _ in range(20)]
    assert Population(task, arguments).propose(history, range(24, 44)) == asked


def test_an_inactive_dimension_has_one_value_whoever_is_asked_about_beside_it() -> None:
    task = example_tasks()["conditions"]
    numbers = [0, 63, 64, 200, 1000]
    shallow = next(p for p in task.space.draw(philox_key(1, "shallow"), 0, 50) if p["depth"] == 1)
    together, alone = (Population(task, _ARGUMENTS["NSGAIISampler"]) for _ in range(2))
    values = together._complete([shallow] * len(numbers), numbers)
    assert values == [alone._complete([shallow], [number])[0] for number in numbers]
    key = philox_key(task.seed, "inactive", task.replicate)
    column = [d.name for d in task.space.cube].index("width_3")
    drawn = [task.space.draw_unit(key, number, number + 1)[0, column] for number in numbers]
    domain = task.space.by_name["width_3"].domain
    assert isinstance(domain, Integer)
    assert [v["width_3"] for v in values] == [domain.decode(u) for u in drawn]


def test_first_population_is_that_of_random_search() -> None:
    task = example_tasks()["conditions"]
    nothing = example_history(task, "empty")
    asked = {
        name: STRATEGIES[name].make(task, STRATEGIES[name].options()).propose(nothing, range(4))
        for name in ("random", "tpe", "nsga2", "gp", "evolution")
    }
    assert all(points == asked["random"] for points in asked.values())


def test_cmaes_narrows_down_on_a_minimum() -> None:
    task = example_tasks()["numbers"]
    strategy = CmaEs().make(task, CmaEsOptions(population=10))
    points: list[Point] = []
    spread, distance = [], []
    for _ in range(12):
        unit = task.space.encode(points) if points else np.empty((0, 3))
        n = len(points)
        history = History(
            list(points),
            ((unit - 0.7) ** 2).sum(axis=1)[:, None],
            np.full((n, 1), np.nan),
            np.full(n, COMPLETED, dtype=np.int8),
            np.ones(n),
            np.zeros(n),
        )
        new = strategy.propose(history, range(n, n + 10))
        coordinates = task.space.encode(new)
        spread.append(float(coordinates.std(axis=0).mean()))
        distance.append(float(np.abs(coordinates.mean(axis=0) - 0.7).max()))
        points += new
    assert distance[-1] < 0.05 < distance[0]
    assert spread[-1] < spread[0] / 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"training": {"optimizer": {"choices": ["adam", "sgd"]}}}, "dimension 'optimizer' is a choice"),
        (
            {"model": {"widths": {"low": 1, "high": 9, "depth": {"low": 1, "high": 2}}}},
            "dimension 'width_2' is conditional",
        ),
        ({"training": {"lr": {"low": 0.1, "high": 1.0}}}, "1 dimension: it needs at least two"),
        (
            {
                "training": {"lr": {"low": 0.1, "high": 1.0}, "momentum": {"low": 0.1, "high": 0.9}},
                "constraints": ["val_error <= 0.2"],
            },
            "constraint on val_error",
        ),
    ],
)
def test_cmaes_refuses_what_it_cannot_search(table: dict[str, object], message: str) -> None:
    assert message in (CmaEs().refusal(Space.from_table(table), ["val_loss"]) or "")
