"""Random search: candidate number i is draw number i of the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefront.search.strategies.strategy import History, Options, Strategy, Task
from sparsefront.spaces.domains import Point
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space


class RandomOptions(Options):
    """Random search has none."""


def random_points(task: Task, start: int, stop: int) -> list[Point]:
    """Draws number `start`..`stop` of the run.

    The key knows the study and the replicate, not the arm: arms on the same space meet the same points, and adaptive
    strategies begin with the points that random search begins with, so that comparisons are paired.
    """
    return task.space.draw(philox_key(task.seed, "propose", task.replicate), start, stop)


@dataclass(frozen=True)
class _Random:
    task: Task

    def propose(self, history: History, numbers: range) -> list[Point]:
        return random_points(self.task, numbers.start, numbers.stop)


class Random:
    """The random baseline."""

    summary = "uniform draws from the space, by number; uniform over all masks of the exact counts"
    source = "Bergstra and Bengio 2012; Farahani 2024"
    is_adaptive = False
    options = RandomOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Every space can be drawn from."""
        return None

    def make(self, task: Task, options: Options) -> Strategy:
        """The draws of one run."""
        return _Random(task)
