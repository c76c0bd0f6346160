"""Optuna's samplers as stateless proposers: told a history, asked for the next points, and never the record.

The only module that imports Optuna. A sampler is built for each batch, with every argument written out and a seed
derived from the number of the batch's first candidate: a resumed run proposes what the killed one would have proposed.

What Optuna is told: completed with finite losses is COMPLETE; stopped is PRUNED at the fidelity it reached with one
objective, and with several, of which Optuna knows no fidelity, RUNNING for TPE, which counts that as bad, and else FAIL
(see `_Bridge._stopped`); infeasible is PRUNED with the amount of its violation, which is how TPE keeps it apart; what
failed or is not finite is FAIL; pending is RUNNING, and so are the candidates of the batch that is being proposed
(constant liar).

References: Akiba et al., Optuna: a next-generation hyperparameter optimization framework, KDD 2019.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from sparsefront.search.strategies.elite import Elite
from sparsefront.search.strategies.random import random_points
from sparsefront.search.strategies.strategy import COMPLETED, INFEASIBLE, PENDING, STOPPED, History, Task
from sparsefront.spaces.domains import Bits, Domain, Float, Integer, Point, Value
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space

#: Resolution of a fidelity as Optuna's integer step.
_STEPS = 1_000_000
_VIOLATION = "violation"
#: Values of inactive dimensions that are drawn at once, for so many numbers.
_DRAWN_AT_ONCE = 64


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log off standard error, and its remarks that an argument is experimental; nothing stays changed."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def make_sampler(name: str, arguments: Mapping[str, Any], seed: int) -> BaseSampler:
    """The sampler of ``optuna.samplers`` of this name."""
    with _quiet():
        sampler: BaseSampler = getattr(optuna.samplers, name)(**arguments, seed=seed)
    return sampler


def distribution(domain: Domain) -> BaseDistribution:
    """A domain as Optuna writes it.

    >>> distribution(Integer(0, 10, step=5))
    IntDistribution(high=10, log=False, low=0, step=5)
    """
    assert not isinstance(domain, Bits)
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    return CategoricalDistribution(domain.values)


class _Bridge:
    """What the three ways of feeding a sampler share.

    Args:
        task: the run.
        sampler: name in ``optuna.samplers``.
        arguments: all of its arguments but the seed.
        is_complete: give every candidate a value in every dimension, drawn under its number where the dimension is
            inactive, for samplers that leave out of their model what some candidate lacks.
    """

    def __init__(self, task: Task, sampler: str, arguments: Mapping[str, Any], *, is_complete: bool) -> None:
        self._task = task
        self._sampler = sampler
        self._arguments = arguments
        self._is_complete = is_complete
        self._distributions = {d.name: distribution(d.domain) for d in task.space.dimensions}
        #: Of the last call, points by number and what they were completed to: parents stay for many batches.
        self._completed: dict[int, tuple[Point, dict[str, Value]]] = {}
        # What a candidate is that was stopped, of several objectives. Of one, TPE ranks PRUNED trials by what they had
        # reached; of several it reads no intermediate value, all tie, and those of the lowest numbers fill up the good
        # set, a tenth of what is COMPLETE or PRUNED, once the COMPLETE ones are used up: with rungs nearly always. So
        # would those of the smallest violation, were they told as infeasible. RUNNING trials do not count for the size
        # of the good set, and go to the bad one, if there is a constant liar (Optuna 5.0.0, samplers/_tpe/sampler.py:
        # `_sample`, `_split_trials`, `_get_pruned_trial_score`). Gaussian processes would take each for a promise and
        # integrate over all; what is FAIL is in no model.
        self._stopped = TrialState.RUNNING if arguments.get("constant_liar") else TrialState.FAIL
        #: Whether completed candidates are told with what they violate.
        self._tells_violations = any(not c.is_known_before_training for c in task.space.constraints)

    def _seed(self, number: int) -> int:
        """Of the batch that begins at a number."""
        return int(philox_key(self._task.seed, "strategy", self._task.replicate, number)[0] % 2**32)

    def _make_sampler(self, number: int) -> BaseSampler:
        return make_sampler(self._sampler, self._arguments, self._seed(number))

    def _study(self, sampler: BaseSampler) -> optuna.Study:
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(self._task.objectives)
        return optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, directions=directions)

    def _complete(self, points: Sequence[Point], numbers: Sequence[int]) -> list[dict[str, Value]]:
        """The points with values in their inactive dimensions, the same whenever and wherever they are asked for."""
        if not self._is_complete:
            return [dict(point) for point in points]
        space = self._task.space
        key = philox_key(self._task.seed, "inactive", self._task.replicate)
        #: Draws come in blocks of numbers: those that are new follow each other, and one takes as long as a block.
        drawn: dict[int, npt.NDArray[np.float64]] = {}
        before, self._completed = self._completed, {}
        for point, number in zip(points, numbers, strict=True):
            known = before.get(number)
            if known is None or known[0] != point:
                values = dict(point)
                if len(values) < len(space.dimensions):
                    first = number - number % _DRAWN_AT_ONCE
                    if first not in drawn:
                        drawn[first] = space.draw_unit(key, first, first + _DRAWN_AT_ONCE)
                    for d, u in zip(space.cube, drawn[first][number - first], strict=True):
                        if d.name not in values:
                            assert not isinstance(d.domain, Bits)
                            values[d.name] = d.domain.decode(float(u))
                known = point, values
            self._completed[number] = known
        return [dict(values) for _, values in self._completed.values()]

    def _ask(self, study: optuna.Study) -> tuple[optuna.Trial, Point]:
        """One more point, and its trial, which is RUNNING."""
        space = self._task.space
        if self._is_complete:
            trial = study.ask(self._distributions)
            return trial, space.clip(trial.params)
        trial = study.ask()
        point: dict[str, Value] = {}
        for d in space.dimensions:
            if d.is_active(point):
                point[d.name] = _suggest(trial, d.name, d.domain)
        return trial, space.clip(point)

    def _trial(self, history: History, i: int, values: Mapping[str, Value], **attributes: object) -> FrozenTrial:
        """Candidate i as Optuna is told of it."""
        outcome, violation = int(history.outcomes[i]), float(history.violations[i])
        losses = history.losses[i]
        told: dict[str, Any] = {}
        state = TrialState.FAIL
        if outcome == COMPLETED and np.isfinite(losses).all():
            state = TrialState.COMPLETE
            told["values"] = losses.tolist()
        elif outcome == STOPPED and len(losses) == 1:
            state = TrialState.PRUNED
            reached = float(history.partial[i, 0])
            if math.isfinite(reached):
                told["intermediate_values"] = {round(float(history.fidelity[i]) * _STEPS): reached}
        elif outcome == STOPPED:
            state = self._stopped
        elif outcome == INFEASIBLE:
            state = TrialState.PRUNED
        elif outcome == PENDING:
            state = TrialState.RUNNING
        if outcome == INFEASIBLE:
            # A candidate that is infeasible before training has an amount, whatever was recorded of it.
            told["constraints"] = {_VIOLATION: max(violation, 1e-9) if math.isfinite(violation) else 1e9}
        elif self._tells_violations and state == TrialState.COMPLETE:
            told["constraints"] = {_VIOLATION: violation if math.isfinite(violation) else 1e9}
        return create_trial(
            state=state,
            params=dict(values),
            distributions={name: self._distributions[name] for name in values},
            system_attrs=attributes,
            **told,
        )


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    if isinstance(domain, Float):
        return trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    if isinstance(domain, Integer):
        return trial.suggest_int(name, domain.low, domain.high, log=domain.log, step=domain.step)
    assert not isinstance(domain, Bits)
    value = trial.suggest_categorical(name, domain.values)
    assert value is not None
    return value


class WholeHistory(_Bridge):
    """A sampler that models all candidates so far (TPE, GP). A batch costs time linear in their number, at best."""

    def __init__(self, task: Task, sampler: str, arguments: Mapping[str, Any], *, is_complete: bool) -> None:
        super().__init__(task, sampler, arguments, is_complete=is_complete)
        self._told: optuna.Study | None = None
        self._points: list[Point] = []
        self._fingerprint = 0

    def propose(self, history: History, numbers: range) -> list[Point]:
        """The next points; a run begins with those of random search."""
        is_one = len(self._task.objectives) == 1
        if not history.succeeded().any() and not (is_one and (history.outcomes == STOPPED).any()):
            return random_points(self._task, numbers.start, numbers.stop)
        asked = []
        with _quiet():
            study = self.study_of(history)
            study.sampler = self._make_sampler(numbers.start)
            for _ in numbers:
                # Threads that compete for busy cores made Gaussian processes 15 times slower; one also rounds alike
                # anywhere. Anew for each candidate, as the first one loads the libraries that have threads.
                with threadpool_limits(limits=1):
                    asked.append(self._ask(study))
            for trial, _ in asked:
                study.tell(trial, state=TrialState.FAIL)  # it kept the others away; its result comes with the history
        return [point for _, point in asked]

    def study_of(self, history: History) -> optuna.Study:
        """A study that knows the history; the one of the last call, if that is where the history begins."""
        n = len(self._points)
        study = self._told
        if (
            study is None
            or n > len(history)
            or history.fingerprint(n) != self._fingerprint
            or self._points != list(history.points[:n])
        ):
            study, n, self._points = self._study(optuna.samplers.RandomSampler(seed=0)), 0, []
        for i, values in enumerate(self._complete(history.points[n:], range(n, len(history))), start=n):
            study.add_trial(self._trial(history, i, values))
        self._points += [dict(point) for point in history.points[n:]]
        self._told, self._fingerprint = study, history.fingerprint(len(history))
        return study


class _Bred(optuna.samplers.NSGAIISampler):
    """Optuna's NSGA-II, whose parents are given: it would look for them in the storage at each ask."""

    parents: Sequence[FrozenTrial] = ()

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Any but the first, which has no parents."""
        return 1

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Those that it was given."""
        return list(self.parents)


class Population(_Bridge):
    """A genetic sampler that is given its parents: the elite of the history (NSGA-II).

    Optuna would look for them among all trials at each ask, and would wait for a generation of completed ones. Here
    they are found block by block (`elite.Elite`), and the sampler is asked for children of these alone: the cost of a
    candidate hardly grows with the history, and the candidates of a batch all have the same parents.
    """

    def __init__(self, task: Task, arguments: Mapping[str, Any]) -> None:
        super().__init__(task, "NSGAIISampler", arguments, is_complete=True)
        self._size = int(arguments["population_size"])
        self._elite = Elite(self._size)
        # For every child Optuna asks one parent after the other whether it has constraints, until one does. Told of one
        # that none breaks, it stops at the first; who dominates whom is the same.
        self._tells_violations = True
        with _quiet():
            # Tells the sampler the directions; nothing is stored in it.
            self._directed = self._study(optuna.samplers.RandomSampler(seed=0))
        #: The parents of the last batch by number, with what they were made from.
        self._told: dict[int, tuple[tuple[dict[str, Value], list[float], float], FrozenTrial]] = {}
        #: What has but one value is not inherited, but drawn.
        self._inherited = {name: d for name, d in sorted(self._distributions.items()) if not d.single()}

    def propose(self, history: History, numbers: range) -> list[Point]:
        """The next points; the first population, and all until there are parents, are those of random search."""
        with _quiet():
            parents = self.parents(history)
            has_parents = len(parents) > 1 and history.has_parents(self._size)
            n_random = max(0, min(len(numbers), self._size - numbers.start)) if has_parents else len(numbers)
            points = random_points(self._task, numbers.start, numbers.start + n_random) if n_random else []
            if n_random < len(numbers):
                points += self._children(parents, numbers[n_random:])
        return points

    def parents(self, history: History) -> list[FrozenTrial]:
        """The elite, as Optuna is told of them, best first."""
        best = [int(i) for i in self._elite.best(history)]
        whole = self._complete([history.points[i] for i in best], best)
        before, self._told = self._told, {}
        for i, values in zip(best, whole, strict=True):
            told = values, history.losses[i].tolist(), float(history.violations[i])
            known = before.get(i)
            if known is None or known[0] != told:  # most parents are those of the last batch
                trial = self._trial(history, i, values)
                trial.number = i  # equal candidates are two parents
                known = told, trial
            self._told[i] = known
        return [trial for _, trial in self._told.values()]

    def _children(self, parents: Sequence[FrozenTrial], numbers: range) -> list[Point]:
        """What asks would give: most of an ask is keeping books, and the books are ours."""
        arguments = {**self._arguments, "population_size": len(parents)}
        sampler = _Bred(**arguments, seed=self._seed(numbers.start))
        sampler.parents = parents
        study, trial = self._directed, parents[0]  # no part of the answer depends on the trial
        points = []
        for _ in numbers:
            found = sampler.sample_relative(study, trial, self._inherited)
            points.append(
                self._task.space.clip(
                    {
                        name: found[name] if name in found else sampler.sample_independent(study, trial, name, domain)
                        for name, domain in self._distributions.items()
                    }
                )
            )
        return points


class Distribution(_Bridge):
    """A sampler that keeps a search distribution and updates it generation by generation (CMA-ES).

    Optuna keeps the distribution in the attributes of the trial that was asked for when a generation was full. Here
    each generation of completed candidates is told in a study of its own, whose first trial carries the distribution
    over: the distribution is a function of the completed candidates in the order of their numbers.
    """

    def __init__(self, task: Task, sampler: str, arguments: Mapping[str, Any]) -> None:
        super().__init__(task, sampler, arguments, is_complete=True)
        self._size = int(arguments["popsize"])
        self._forget()

    def _forget(self) -> None:
        self._state: dict[str, Any] = {}
        self._generation = 0
        self._members: list[int] = []
        self._points: list[Point] = []
        self._n_folded = 0
        self._fingerprint = 0

    def propose(self, history: History, numbers: range) -> list[Point]:
        """The next points, from the distribution that the completed generations left; the first is at the centre."""
        with _quiet():
            self._fold(history)
            study = self._carrier(numbers.start)
            return [self._ask(study)[1] for _ in numbers]

    def _carrier(self, number: int) -> optuna.Study:
        """A study whose only trial carries the distribution; it stands for no candidate."""
        study = self._study(self._make_sampler(number))
        centre = self._task.space.decode(np.full((1, self._task.space.n_cube), 0.5))[0]
        carrier = create_trial(
            value=0.0, params=dict(centre), distributions=self._distributions, system_attrs=self._state
        )
        study.add_trial(carrier)
        return study

    def _fold(self, history: History) -> None:
        """Tell the generations that have become full since the last call."""
        n = self._n_folded
        if (
            n > len(history)
            or history.fingerprint(n) != self._fingerprint
            or self._points != [history.points[i] for i in self._members]
        ):
            self._forget()
            n = 0
        pending = np.flatnonzero(history.outcomes == PENDING)
        n_settled = int(pending[0]) if len(pending) else len(history)
        found = n + np.flatnonzero(history.succeeded()[n:n_settled])
        for start in range(0, len(found) - self._size + 1, self._size):
            members = [int(i) for i in found[start : start + self._size]]
            study = self._carrier(members[-1])
            for i in members:
                study.add_trial(self._trial(history, i, history.points[i], **{"cma:generation": self._generation}))
            study.ask(self._distributions)
            told = study.trials[-1].system_attrs
            self._state = {k: v for k, v in told.items() if k.startswith("cma:optimizer")}
            assert self._state, "Optuna's CmaEsSampler no longer keeps its optimiser in 'cma:optimizer'"
            self._generation += 1
            self._members = members
            self._n_folded = members[-1] + 1
        self._points = [dict(history.points[i]) for i in self._members]
        self._fingerprint = history.fingerprint(self._n_folded)


def importances(space: Space, points: Sequence[Point], losses: Sequence[float]) -> dict[str, float]:
    """Share of each dimension in what tells the best tenth of some points from all of them (PED-ANOVA).

    A dimension that is not always active counts by where it is active, and by how often (conditional PED-ANOVA).

    Args:
        space: that the points are from; the bits of a mask are left out.
        points: n candidates that completed, with their active dimensions.
        losses: (n,) finite, minimised.

    Returns:
        Shares of 1 by dimension; empty if nothing varied.

    References: Watanabe, Bansal and Hutter, PED-ANOVA, IJCAI 2023.
    """
    domains = {d.name: d.domain for d in space.dimensions if not isinstance(d.domain, Bits)}
    known = {name: distribution(domain) for name, domain in domains.items()}
    with _quiet(), warnings.catch_warnings():
        # Of dimensions with few active candidates or ties among the best, the importance is zero: that says enough.
        warnings.simplefilter("ignore", UserWarning)
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
        for point, loss in zip(points, losses, strict=True):
            params = {name: domains[name].clip(value) for name, value in point.items() if name in known}
            kinds = {name: known[name] for name in params}
            study.add_trial(create_trial(value=float(loss), params=params, distributions=kinds))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    return {name: share / total for name, share in found.items()} if total > 0 else {}
