"""Adaptive strategies beat random search on synthetic objectives at equal budget."""

from __future__ import annotations

from collections.abc import Callable

import moocore
import numpy as np
import numpy.typing as npt
import pytest

from sparsefront.search.strategies import COMPLETED, STRATEGIES, History, Task
from sparsefront.spaces.domains import Point
from sparsefront.spaces.space import Space

Floats = npt.NDArray[np.float64]

_SPACE = Space.from_table(
    {
        "model": {"widths": {"low": 8, "high": 128, "log": True, "depth": {"low": 1, "high": 3}}},
        "masks": {"sparsity": {"low": 0.0, "high": 0.98}},
        "training": {
            "lr": {"low": 1e-4, "high": 1.0, "log": True},
            "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
            "optimizer": {"choices": ["adam", "sgd"]},
        },
    }
)


def _size_and_error(points: list[Point]) -> Floats:
    """A larger network errs less; a wrong learning rate, decay or optimiser costs."""
    found = []
    for p in points:
        size = sum(float(v) for k, v in p.items() if k.startswith("width")) * (1 - float(p["sparsity"]))
        off = np.log10(float(p["lr"]) / 3e-3) ** 2 + 0.3 * np.log10(float(p["weight_decay"]) / 1e-4) ** 2
        found.append([1 / (1 + size / 40) + 0.1 * off + 0.1 * (p["optimizer"] == "sgd"), np.log(1 + size) / 6])
    return np.array(found)


def _bowl(points: list[Point]) -> Floats:
    return _size_and_error(points)[:, :1]


def _run(name: str, seed: int, objective: Callable[[list[Point]], Floats], n: int, batch: int) -> Floats:
    """All losses of one run."""
    m = objective(_SPACE.draw(np.array([0, 0], dtype=np.uint64), 0, 1)).shape[1]
    task = Task(_SPACE, seed, 0, ("a", "b")[:m], n, batch, lambda point: {})
    family = STRATEGIES[name]
    strategy = family.make(task, family.options())
    points: list[Point] = []
    losses = np.empty((0, m))
    while len(points) < n:
        k = len(points)
        zeros = np.zeros(k)
        outcomes = np.full(k, COMPLETED, dtype=np.int8)
        history = History(list(points), losses, np.full((k, m), np.nan), outcomes, zeros + 1, zeros)
        new = strategy.propose(history, range(k, min(n, k + batch)))
        points += new
        losses = np.vstack([losses, objective(new)])
    return losses


@pytest.mark.parametrize("name", ["nsga2", "evolution"])
def test_more_hypervolume_than_random_at_400_candidates(name: str) -> None:
    wins = 0
    for seed in range(10):
        found = [moocore.hypervolume(_run(s, seed, _size_and_error, 400, 50), ref=[1.5, 1.0]) for s in (name, "random")]
        wins += found[0] > found[1]
    # Sign test: of a strategy as good as random search, 9 of 10 or more happen with a probability of 1.1%.
    assert wins >= 9


@pytest.mark.parametrize(("name", "n"), [("tpe", 40), ("evolution", 200)])
def test_lower_minimum_than_random(name: str, n: int) -> None:
    wins = sum(_run(name, seed, _bowl, n, 10).min() < _run("random", seed, _bowl, n, 10).min() for seed in range(10))
    assert wins >= 9  # as above
