"""Strategies that do not look back: random, size_stratified, qmc and grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

from sparsefront.errors import SpaceError
from sparsefront.search.strategies import STRATEGIES, History, Task
from sparsefront.search.strategies.contract import example_history, example_tasks
from sparsefront.search.strategies.grid import permuted
from sparsefront.spaces.domains import Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space


def _costs(point: Point) -> Mapping[str, float]:
    a, b = float(point["width_1"]), float(point["width_2"])
    return {"n_params": 40 * a + a * b + 10 * b}


def _task(table: Mapping[str, Any], *, replicate: int = 0) -> Task:
    return Task(Space.from_table(table), 3, replicate, ("val_error", "n_params"), 1000, 64, _costs)


def _propose(name: str, task: Task, n: int, **options: object) -> list[Point]:
    family = STRATEGIES[name]
    nothing: History = example_history(task, "empty")
    return family.make(task, family.options.model_validate(options)).propose(nothing, range(n))


def test_random_points_are_the_draws_of_the_space() -> None:
    task = example_tasks()["conditions"]
    expected = task.space.draw(philox_key(task.seed, "propose", task.replicate), 0, 20)
    assert _propose("random", task, 20) == expected


_WIDE = {"model": {"widths": {"low": 1, "high": 256, "depth": 2}}}


def test_size_stratified_is_uniform_over_the_logarithm_of_size() -> None:
    sizes = np.log([_costs(p)["n_params"] for p in _propose("size_stratified", _task(_WIDE), 640)])
    raw = np.log([_costs(p)["n_params"] for p in _propose("random", _task(_WIDE), 640)])
    middle = (sizes.min() + sizes.max()) / 2
    # Binomial(640, 1/2): four standard deviations are 0.079, and a false alarm has a probability of 6e-5.
    assert abs((sizes < middle).mean() - 0.5) < 0.08
    assert (raw < middle).mean() < 0.1


def test_size_stratified_proposes_what_meets_the_constraints() -> None:
    task = _task({**_WIDE, "constraints": ["n_params <= 20_000"]})
    points = _propose("size_stratified", task, 64)
    assert max(_costs(p)["n_params"] for p in points) <= 20_000


def test_size_stratified_bears_constraints_that_nothing_meets() -> None:
    assert len(_propose("size_stratified", _task({**_WIDE, "constraints": ["n_params <= 1"]}), 3)) == 3


def test_size_stratified_gives_no_draw_twice_where_few_meet_the_constraints() -> None:
    task = _task({**_WIDE, "constraints": ["n_params <= 400"]})
    points = _propose("size_stratified", task, 64, pool=16)
    n_meet = sum(_costs(point)["n_params"] <= 400 for point in points)
    assert 0 < n_meet < 64
    assert all(_costs(point)["n_params"] <= 400 for point in points[:n_meet])
    drawn = task.space.draw(philox_key(task.seed, "size_pool", task.replicate), 0, 64 * 16)
    assert n_meet == sum(_costs(point)["n_params"] <= 400 for point in drawn)
    kept = [task.space.digest(point) for point in points[:n_meet]]
    assert sorted(kept) == sorted(task.space.digest(point) for point in drawn if _costs(point)["n_params"] <= 400)
    others = [point for point in drawn if _costs(point)["n_params"] > 400]
    assert points[n_meet:] == others[: 64 - n_meet]


def test_size_stratified_leaves_out_what_cannot_be_built() -> None:
    def costs(point: Point) -> Mapping[str, float]:
        if float(point["width_1"]) > 10:
            raise SpaceError("no such network")
        return _costs(point)

    points = _propose("size_stratified", replace(_task(_WIDE), costs=costs), 64)
    assert max(float(p["width_1"]) for p in points) <= 10


def test_qmc_fills_the_cube_more_evenly_than_draws() -> None:
    task = example_tasks()["numbers"]
    even, uneven = (
        qmc.discrepancy(task.space.encode(_propose(name, task, 256)), method="CD") for name in ("qmc", "random")
    )
    assert even < uneven / 3


_FINITE: dict[str, Any] = {
    "model": {"widths": {"low": 3, "high": 5, "depth": {"low": 1, "high": 3}}},
    "training": {"optimizer": {"choices": ["adam", "sgd"]}, "nesterov": {"flag": True}},
}


def test_grid_enumerates_a_finite_space_once_and_ends() -> None:
    task = _task(_FINITE)
    points = _propose("grid", task, 1000)
    assert len(points) == task.space.size == (3 + 9 + 27) * 4
    assert len({task.space.digest(p) for p in points}) == len(points)
    assert all(task.space.contains(p) for p in points)


def test_grid_takes_the_ends_and_equal_steps_of_the_scale() -> None:
    task = _task({"training": {"lr": {"low": 1e-4, "high": 1.0, "log": True}, "x": {"low": 1, "high": 1000}}})
    points = _propose("grid", task, 100, levels=3)
    assert sorted({float(p["lr"]) for p in points}) == [1e-4, 1e-2, 1.0]
    assert sorted({int(p["x"]) for p in points}) == [1, 501, 1000]
    assert len(points) == 9


def test_grid_has_another_order_in_another_replicate() -> None:
    first, second = (_propose("grid", _task(_FINITE, replicate=r), 1000) for r in (0, 1))
    assert first != second
    assert len(first) == len(second)


def test_grid_too_large_to_count() -> None:
    table = {"training": {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(300)}}
    points = _propose("grid", _task(table), 5)
    assert len({tuple(p.values()) for p in points}) == 5


@given(n=st.integers(1, 300), key=st.binary(max_size=16))
def test_permutation_is_one(n: int, key: bytes) -> None:
    assert sorted(permuted(i, n, key) for i in range(n)) == list(range(n))


def test_permutation_leaves_few_where_they_are() -> None:
    # Fixed points of a random permutation are Poisson(1): more than 8 have a probability of 1e-6.
    assert sum(permuted(i, 1000, b"key") == i for i in range(1000)) <= 8


@pytest.mark.parametrize(
    ("name", "example", "message"),
    [
        ("qmc", "mask bits", "searched mask bits have no coordinate"),
        ("grid", "mask bits", "searched mask bits cannot be enumerated"),
        ("tpe", "mask bits", "searched mask bits are no parameters of Optuna's"),
        ("nsga2", "mask bits", "does not keep exactly k: use strategy 'evolution'"),
        ("gp", "mask bits", "searched mask bits are no parameters of Optuna's"),
        ("cmaes", "mask bits", "2 objectives (val_error, macs): it minimises one"),
    ],
)
def test_refusals(name: str, example: str, message: str) -> None:
    task = example_tasks()[example]
    assert message in (STRATEGIES[name].refusal(task.space, task.objectives) or "")
