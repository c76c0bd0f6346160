"""Every row of the registry of methods keeps the contract of `Method`."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from sparsefront.search.methods import METHODS, Best, Context, Missing
from sparsefront.search.methods.method import Method

NO_MASK = Missing("no mask")
BESTS = (None, Best(3, 4, 5), Best(None, None, None), Best(0, 0, 0))
DERIVED: tuple[dict[str, str | Missing], ...] = ({}, {"magnitude": "ab" * 16}, {"magnitude": NO_MASK})


def contexts(method: Method) -> list[Context]:
    """Everything that an arm may be asked in."""
    levels = (0.0,) if method.is_dense else (0.5, 0.9)
    return [
        Context(replicate, sparsity, random_draws, best, dict(derived))
        for replicate, sparsity, random_draws, best, derived in itertools.product(
            (0, 7), levels, (1, 8), BESTS, DERIVED
        )
    ]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def test_it_says_what_it_does_in_one_line(method: Method) -> None:
    assert method.summary
    assert method.source
    assert "\n" not in method.summary + method.source


def test_it_fills_exactly_its_slots(method: Method) -> None:
    for context in contexts(method):
        candidates = method.candidates(context)
        if isinstance(candidates, list):
            assert len(candidates) == method.n_slots(context)
            assert len(set(candidates)) == len(candidates)


def test_its_candidates_are_of_the_replicate_and_level_it_was_asked_for(method: Method) -> None:
    for context in contexts(method):
        candidates = method.candidates(context)
        for candidate in candidates if isinstance(candidates, list) else ():
            assert (candidate.replicate, candidate.target_sparsity) == (context.replicate, context.sparsity)
            assert (candidate.network == "parent") == method.is_dense
            assert (candidate.draw is not None) + (candidate.mask is not None) == (candidate.network == "masked")


def test_it_is_a_function_of_the_context_and_leaves_it_alone(method: Method) -> None:
    for context in contexts(method):
        before = dataclasses.replace(context, derived=dict(context.derived))
        assert method.candidates(context) == method.candidates(context)
        assert context == before


def test_it_waits_for_what_it_declares_and_for_nothing_else(method: Method) -> None:
    for context in contexts(method):
        candidates = method.candidates(context)
        waits = (method.needs_scores and context.best is None) or (
            method.criterion is not None and method.criterion not in context.derived
        )
        assert (candidates is None) == waits
        if not method.needs_scores and method.criterion is None:
            assert isinstance(candidates, list)


def test_what_can_never_be_is_said_with_a_reason(method: Method) -> None:
    for context in contexts(method):
        candidates = method.candidates(context)
        if method.needs_scores and context.best == Best(None, None, None):
            assert isinstance(candidates, Missing)
            assert candidates.reason
        if method.criterion is not None and context.derived.get(method.criterion) is NO_MASK:
            assert candidates is NO_MASK
