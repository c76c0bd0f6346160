"""Operators of evolution: exact counts whatever happens, and steps that stay inside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.search.strategies import COMPLETED, STOPPED, History, Strategy, Task
from sparsefront.search.strategies.contract import example_history, example_tasks
from sparsefront.search.strategies.evolution import Evolution, EvolutionOptions, crossed, moved, swapped
from sparsefront.search.strategies.nsga2 import Nsga2
from sparsefront.search.strategies.random import random_points
from sparsefront.spaces.domains import Bits, Choice, Float, Integer, Point
from sparsefront.spaces.masks import draw, pack_bits
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space


@st.composite
def _bits(draw_value: st.DrawFn) -> Bits:
    sections = draw_value(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    if len(sections) > 1 and draw_value(st.booleans()):
        return Bits(tuple(sections), (draw_value(st.integers(len(sections), sum(sections))),))
    return Bits(tuple(sections), tuple(draw_value(st.integers(1, n)) for n in sections))


@given(domain=_bits(), seed=st.integers(0, 1000), fraction=st.floats(0.001, 1.0))
def test_masks_keep_exactly_k(domain: Bits, seed: int, fraction: float) -> None:
    key = philox_key(seed, "test")
    try:
        a, b = draw(domain.sections, domain.kept, key, start=0, stop=2)
    except ValueError:  # a total so low that draws leave a layer empty
        return
    rng = np.random.default_rng(seed)
    child = crossed(a, b, domain, rng)
    assert domain.contains(pack_bits(child).tobytes())
    assert not (child & ~(a | b)).any()
    assert (child | ~(a & b)).all()
    mutant = swapped(child, domain, fraction, rng)
    assert domain.contains(pack_bits(mutant).tobytes())
    can_move = not all(k == n for k, n in zip(domain.kept, domain.sections, strict=False)) or domain.is_global
    if can_move and not child.all():
        assert (mutant != child).any()


def test_swaps_move_the_fraction_that_was_asked_for() -> None:
    domain = Bits((1000, 1000), (100, 300))
    mask = draw(domain.sections, domain.kept, philox_key(0, "test"), start=0, stop=1)[0]
    child = swapped(mask, domain, 0.05, np.random.default_rng(0))
    assert int((mask & ~child).sum()) == 20


_DOMAINS = st.sampled_from(
    [
        Float(0.0, 1.0),
        Float(1e-4, 1.0, log=True),
        Integer(1, 64, log=True),
        Integer(0, 9, step=3),
        Choice(("a", "b", "c")),
    ]
)


@given(domain=_DOMAINS, u=st.floats(0, 1), step=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_mutated_coordinates_stay_inside_and_change(
    domain: Float | Integer | Choice, u: float, step: float, seed: int
) -> None:
    there = moved(domain, u, step, np.random.default_rng(seed))
    assert 0 <= there <= 1
    if not isinstance(domain, Float):
        assert domain.decode(there) != domain.decode(u)


def test_a_choice_of_one_stays() -> None:
    assert moved(Choice(("a",)), 0.5, 0.1, np.random.default_rng(0)) == 0.5


@pytest.mark.parametrize("example", ["numbers", "conditions", "mask bits"])
def test_children_are_no_copies(example: str) -> None:
    task = example_tasks()[example]
    points = task.space.draw(philox_key(1, "contract history"), 0, 1)
    history = example_history(task, "tied", points)
    children = Evolution().make(task, EvolutionOptions(population=2)).propose(history, range(2, 40))
    same = sum(task.space.digest(p) == task.space.digest(points[0]) for p in children)
    # A step of a float may round to itself, and an inactive dimension's neighbour may be the only one that changed.
    assert same <= 2


def test_a_child_that_is_known_is_mutated_again() -> None:
    # A hundred candidates, of which every other one is known.
    space = Space.from_table(
        {"training": {"x": {"low": 0.0, "high": 100.0}, "y": {"low": 0.0, "high": 0.9}}},
        effect=lambda settings: {"x": round(settings["training.x"])},
    )
    task = Task(space, 0, 0, ("val_loss",), 1000, 8, lambda point: {})

    def history(*cells: int) -> History:
        n = len(cells)
        points: list[Point] = [{"x": float(cell), "y": 0.5} for cell in cells]
        done = np.full(n, COMPLETED, dtype=np.int8)
        return History(points, np.ones((n, 1)), np.full((n, 1), np.nan), done, np.ones(n), np.zeros(n))

    def cells_of(strategy: Strategy, *known: int) -> list[int]:
        return [round(float(p["x"])) for p in strategy.propose(history(*known), range(len(known), len(known) + 8))]

    def strategy(**options: float) -> Strategy:
        return Evolution().make(task, EvolutionOptions.model_validate({"population": 50, "tournament": 1, **options}))

    lived = strategy()
    found = cells_of(lived, *range(0, 100, 2))
    assert len(set(found)) == 8
    assert all(cell % 2 == 1 or cell == 100 for cell in found)
    assert cells_of(lived, *range(0, 100, 2), *found) == cells_of(strategy(), *range(0, 100, 2), *found)
    # Where all are known it gives up, as it does where nothing may be mutated.
    assert len(cells_of(lived, *range(101))) == 8
    assert {cell % 2 for cell in cells_of(strategy(mutations=0.0), *range(0, 100, 2))} == {0}


def _one_dimension(losses: list[float], **options: object) -> list[float]:
    """Children of a history whose candidate i lies at i / n."""
    space = Space.from_table({"training": {"x": {"low": 0.0, "high": 1.0}}})
    n = len(losses)
    values = np.array(losses)[:, None]
    history = History(
        [{"x": i / n} for i in range(n)],
        values,
        np.full((n, 1), np.nan),
        np.full(n, COMPLETED, dtype=np.int8),
        np.ones(n),
        np.zeros(n),
    )
    task = Task(space, 0, 0, ("val_loss",), 1000, 64, lambda point: {})
    strategy = Evolution().make(task, EvolutionOptions(population=10, step=1e-6, **options))  # type: ignore[arg-type]
    return [float(point["x"]) for point in strategy.propose(history, range(n, n + 64))]


@pytest.mark.parametrize("kind", [Evolution, Nsga2])
def test_while_most_are_stopped_candidates_are_drawn_until_half_a_population_came_to_its_end(kind: type) -> None:
    space = Space.from_table({"training": {"x": {"low": 0.0, "high": 1.0}}})
    task = Task(space, 0, 0, ("val_loss",), 1000, 64, lambda point: {})
    strategy = kind().make(task, kind.options(population=10))
    drawn = random_points(task, 40, 60)

    def proposed(*others: int) -> list[Point]:
        """After 36 + 4 candidates, of which the last four and `others` were not stopped."""
        outcomes = np.full(40, STOPPED, dtype=np.int8)
        outcomes[[*range(36, 40), *others]] = COMPLETED
        losses = np.where(outcomes == COMPLETED, np.arange(40.0), np.nan)[:, None]
        points = [{"x": i / 40} for i in range(40)]
        return strategy.propose(
            History(points, losses, np.full((40, 1), np.nan), outcomes, np.ones(40), np.zeros(40)), range(40, 60)
        )

    assert proposed() == drawn
    assert proposed(0) != drawn


def test_aging_forgets_the_best_when_it_is_old() -> None:
    children = _one_dimension([0.0] * 10 + [1.0] * 10)
    assert min(children) > 0.49
    assert max(_one_dimension([0.0] * 10 + [1.0] * 10, selection="rank")) < 0.51


def test_tournaments_prefer_the_better() -> None:
    children = _one_dimension([float(i) for i in range(10)], tournament=10)
    # The best of 10 draws among 10: expectation 0.05 of the axis; 0.3 for single draws would be 0.45 in mean.
    assert np.mean(children) < 0.15
