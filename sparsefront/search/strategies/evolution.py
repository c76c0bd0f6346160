"""Evolution over architectures, hyperparameters and mask bits: tournaments, crossover and mutation that keep exactly k.

One objective: regularised (aging) evolution, in which the newest candidates are the population and the oldest die.
Several: the population is the elite by non-dominated rank and crowding distance, as in NSGA-II.

References: Real, Aggarwal, Huang and Le, Regularized evolution for image classifier architecture search, AAAI 2019; Deb
et al., NSGA-II, IEEE TEC 2002; Radcliffe, Genetic set recombination, FOGA 1993 (a child keeps what both parents have).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sparsefront.search.strategies.elite import Elite, Indices, preference
from sparsefront.search.strategies.random import random_points
from sparsefront.search.strategies.strategy import History, Options, Strategy, Task
from sparsefront.spaces.domains import Bits, Choice, Float, Integer, Point
from sparsefront.spaces.masks import Mask, pack_bits, unpack_bits
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.space import Space

Unit = npt.NDArray[np.float64]

#: Times that a child is mutated again while it is a candidate that was there before.
_MAX_AGAIN = 10


class EvolutionOptions(Options):
    """Who survives, and how children differ from their parents."""

    population: int = Field(default=50, ge=2, le=100_000, description="parents; as many candidates are drawn at first")
    selection: Literal["auto", "aging", "rank"] = Field(
        default="auto",
        description="population: the newest (aging) or the best (rank); auto: aging if there is one objective",
    )
    tournament: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="candidates of which the best becomes a parent; 0: a quarter of the population (aging), 2 (rank)",
    )
    crossover_fraction: float = Field(default=0.5, ge=0, le=1, description="children of two parents")
    mutations: float = Field(default=1.0, ge=0, description="expected number of mutated dimensions of a child")
    step: float = Field(default=0.1, gt=0, le=1, description="standard deviation of a numeric mutation, of the axis")
    swap_fraction: float = Field(default=0.02, gt=0, le=1, description="kept entries that a mask's mutation moves")


def crossed(a: Mask, b: Mask, domain: Bits, rng: np.random.Generator) -> Mask:
    """Child of two masks: what both keep, filled up with what one of them keeps, to exactly the same counts.

    >>> domain = Bits((6,), (3,))
    >>> a, b = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 0, 0, 0, 1, 1], bool)
    >>> child = crossed(a, b, domain, np.random.default_rng(0))
    >>> int(child.sum()), bool(child[0]), bool(child[3])
    (3, True, False)
    """
    child = a & b
    either = a ^ b
    edges = np.cumsum([0, *domain.sections])
    if domain.is_global:
        for start, stop in itertools.pairwise(edges):
            if not child[start:stop].any():  # both keep something here, so that there is something to choose
                child[start + rng.choice(np.flatnonzero(either[start:stop]))] = True
        edges = edges[[0, -1]]
    for (start, stop), k in zip(itertools.pairwise(edges), domain.kept, strict=True):
        section = child[start:stop]
        free = np.flatnonzero(either[start:stop] & ~section)
        section[rng.choice(free, size=k - int(section.sum()), replace=False)] = True
    return child


def swapped(mask: Mask, domain: Bits, fraction: float, rng: np.random.Generator) -> Mask:
    """Copy of a mask in which some kept entries, at least one, moved to removed places of their section.

    Under one count over all sections they may move anywhere, as long as each section keeps one.

    >>> domain = Bits((4, 2), (2, 1))
    >>> mask = np.array([1, 1, 0, 0, 1, 0], bool)
    >>> child = swapped(mask, domain, 0.1, np.random.default_rng(0))
    >>> domain.contains(pack_bits(child).tobytes()), bool((child != mask).any())
    (True, True)
    """
    child = mask.copy()
    edges = np.cumsum([0, *domain.sections])
    n_swaps = max(1, round(fraction * int(mask.sum())))
    if domain.is_global:
        section_of = np.repeat(np.arange(len(domain.sections)), domain.sections)
        counts = np.bincount(section_of[child], minlength=len(domain.sections))
        arrived = rng.permutation(np.flatnonzero(~mask))[:n_swaps]
        child[arrived] = True
        counts += np.bincount(section_of[arrived], minlength=len(domain.sections))
        n_surplus = len(arrived)
        # Entries that were there leave first; where they may not, what has just arrived goes again.
        for entry in [*rng.permutation(np.flatnonzero(mask)), *arrived]:
            if n_surplus and counts[section_of[entry]] > 1:
                child[entry] = False
                counts[section_of[entry]] -= 1
                n_surplus -= 1
        return child
    sizes, kept = np.array(domain.sections), np.array(domain.kept)
    movable = np.minimum(kept, sizes - kept)
    if not movable.any():
        return child
    n_moved = rng.multivariate_hypergeometric(movable, min(n_swaps, int(movable.sum())))
    for start, stop, n in zip(edges[:-1], edges[1:], n_moved, strict=True):
        before = mask[start:stop]
        section = child[start:stop]
        section[rng.choice(np.flatnonzero(before), size=n, replace=False)] = False
        section[rng.choice(np.flatnonzero(~before), size=n, replace=False)] = True
    return child


def moved(domain: Float | Integer | Choice, u: float, step: float, rng: np.random.Generator) -> float:
    """Coordinate of a mutated value: a normal step that bounds reflect, or another choice.

    An integer moves by one at least.

    >>> domain = Integer(1, 3)
    >>> sorted({domain.decode(moved(domain, domain.encode(2), 0.01, np.random.default_rng(i))) for i in range(20)})
    [1, 3]
    """
    if domain.n_values == 1:
        return u
    if isinstance(domain, Choice):
        index = domain.values.index(domain.decode(u))
        other = int(rng.integers(len(domain.values) - 1))
        return (other + (other >= index) + 0.5) / len(domain.values)
    away = abs(u + step * float(rng.standard_normal())) % 2.0
    away = min(away, 2.0 - away)
    if isinstance(domain, Integer) and domain.decode(away) == domain.decode(u):
        here = domain.decode(u)
        sign = domain.step if away >= u else -domain.step
        there = domain.clip(here + sign)
        return domain.encode(there if there != here else here - sign)
    return away


class _Evolution:
    def __init__(self, task: Task, options: EvolutionOptions) -> None:
        self._task = task
        self._options = options
        several = len(task.objectives) > 1
        self._by_rank = options.selection == "rank" or (options.selection == "auto" and several)
        self._tournament = options.tournament or (2 if self._by_rank else -(-options.population // 4))
        self._elite = Elite(options.population)
        domain = task.space.bits.domain if task.space.bits else None
        self._bits = domain if isinstance(domain, Bits) else None
        #: What is known of the candidates of the last call, in the order of their numbers: points and their digests.
        self._points: list[Point] = []
        self._digests: list[str] = []

    def propose(self, history: History, numbers: range) -> list[Point]:
        """The first `population` candidates are those of random search, and all until there are parents."""
        n_random = max(0, min(len(numbers), self._options.population - numbers.start))
        parents = self._population(history)
        if not len(parents) or not history.has_parents(self._options.population):
            n_random = len(numbers)
        points = random_points(self._task, numbers.start, numbers.start + n_random) if n_random else []
        if n_random < len(numbers):
            known = self._known(history) | {self._task.space.digest(point) for point in points}
            points += self._children([history.points[i] for i in parents], known, numbers[n_random:])
        return points

    def _known(self, history: History) -> set[str]:
        """Digests of all candidates of the history."""
        n = len(self._points)
        if self._points != list(history.points[:n]):
            n, self._points, self._digests = 0, [], []
        self._points += history.points[n:]
        self._digests += [self._task.space.digest(point) for point in history.points[n:]]
        return set(self._digests)

    def _population(self, history: History) -> Indices:
        """Indices of the parents, best first."""
        if self._by_rank:
            return self._elite.best(history)
        newest = np.flatnonzero(history.succeeded())[-self._options.population :]
        return newest[preference(history.losses[newest], history.violations[newest])]

    def _children(self, parents: Sequence[Point], known: set[str], numbers: range) -> list[Point]:
        task, space = self._task, self._task.space
        genes = space.encode(parents)
        masks = self._masks(parents)
        # A dimension that becomes active has no value to inherit: it is drawn, under the candidate's number.
        fresh = space.draw_unit(philox_key(task.seed, "gene", task.replicate), numbers.start, numbers.stop)
        rngs = [generator(task.seed, "evolution", task.replicate, number) for number in numbers]
        children = [self._child(genes, masks, rng) for rng in rngs]
        points = self._decoded(children, fresh)
        for row, rng in enumerate(rngs):
            digest = space.digest(points[row])
            n_left = _MAX_AGAIN if self._options.mutations else 0
            while digest in known and n_left:
                # Unlike values may be one candidate: small changes of shares are rounded away more often than not.
                children[row] = self._mutated(*children[row], rng, at_least=1)
                (points[row],) = self._decoded(children[row : row + 1], fresh[row : row + 1])
                digest = space.digest(points[row])
                n_left -= 1
            known.add(digest)
        return points

    def _decoded(self, children: Sequence[tuple[Unit, Mask | None]], fresh: Unit) -> list[Point]:
        unit = np.stack(
            [np.where(np.isnan(genes), drawn, genes) for (genes, _), drawn in zip(children, fresh, strict=True)]
        )
        bits = [pack_bits(mask).tobytes() for _, mask in children if mask is not None]
        return self._task.space.decode(unit, bits if self._bits else None)

    def _masks(self, parents: Sequence[Point]) -> list[Mask]:
        """The parents' masks; empty in a space without."""
        if self._bits is None or self._task.space.bits is None:
            return []
        packed = [point[self._task.space.bits.name] for point in parents]
        return [unpack_bits(value, self._bits.size) for value in packed if isinstance(value, bytes)]

    def _child(self, genes: Unit, masks: Sequence[Mask], rng: np.random.Generator) -> tuple[Unit, Mask | None]:
        """Genes of one child, NaN where no parent has one, and its mask."""
        options, domain = self._options, self._bits
        a, b = (int(rng.integers(len(genes), size=self._tournament).min()) for _ in range(2))
        child, mask = genes[a].copy(), masks[a] if masks else None
        if a != b and rng.random() < options.crossover_fraction:
            taken = rng.random(len(child)) < 0.5
            child = np.where(taken, genes[b], child)
            child = np.where(np.isnan(child), np.where(taken, genes[a], genes[b]), child)
            if mask is not None and domain is not None:
                mask = crossed(mask, masks[b], domain, rng)
        is_copy = _same(child, genes[a]) and (mask is None or mask is masks[a])  # it would teach nothing
        return self._mutated(child, mask, rng, at_least=int(is_copy and options.mutations > 0))

    def _mutated(
        self, genes: Unit, mask: Mask | None, rng: np.random.Generator, *, at_least: int
    ) -> tuple[Unit, Mask | None]:
        """Some genes changed, 0 or 1 `at_least`."""
        options, domain, child = self._options, self._bits, genes.copy()
        active = np.flatnonzero(~np.isnan(child))
        n_places = len(active) + (mask is not None)  # the mask is one gene among the others
        if not n_places:
            return child, mask
        chosen = rng.random(n_places) < min(1.0, options.mutations / n_places)
        if not chosen.any() and at_least:
            chosen[rng.integers(n_places)] = True
        for place in np.flatnonzero(chosen):
            if mask is not None and domain is not None and place == len(active):
                mask = swapped(mask, domain, options.swap_fraction, rng)
            else:
                column = active[place]
                dimension = self._task.space.cube[column].domain
                assert not isinstance(dimension, Bits)
                child[column] = moved(dimension, float(child[column]), options.step, rng)
        return child, mask


def _same(a: Unit, b: Unit) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


class Evolution:
    """Own evolution, the only adaptive strategy that searches the bits of masks."""

    summary = "evolution by tournament, crossover and mutation; searches mask bits too, always with exactly k kept"
    source = "Real et al. 2019 (one objective); Deb et al. 2002 (several)"
    is_adaptive = True
    options = EvolutionOptions

    def refusal(self, space: Space, objectives: Sequence[str]) -> str | None:
        """Every space can be searched."""
        return None

    def make(self, task: Task, options: Options) -> Strategy:
        """The evolution of one run."""
        assert isinstance(options, EvolutionOptions)
        return _Evolution(task, options)
