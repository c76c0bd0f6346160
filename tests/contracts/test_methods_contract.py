"""Every row of the registry of methods, and every control of one, keeps the contract of `Method`."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from sparsefront.search.methods import METHODS, Best, Context, Missing, Trained, methods_of
from sparsefront.search.methods.method import Method
from sparsefront.spaces.controls import CONTROLS

NO_MASK = Missing("no mask")
MASK = Trained("ab" * 16, "cd" * 16)
BESTS = (None, Best(3, 4, 5), Best(None, None, None), Best(0, 0, 0))
SPARSITIES = (0.5, 0.9)

#: Arms with all controls: one that trains before it prunes, one that does not, a chain, and one of drawn masks.
CONTROLLED = ("magnitude", "snip", "imp_rewind", "searched")
ARM_OF = {f"{arm}_{control}": arm for arm in CONTROLLED for control in CONTROLS}
ARMS: dict[str, Method] = {**METHODS, **methods_of({arm: {"controls": list(CONTROLS)} for arm in CONTROLLED})}


def contexts(name: str, method: Method) -> list[Context]:
    """Everything that an arm may be asked in: what is known of it, of the arm that it is a control of, of others."""
    levels = method.levels(SPARSITIES)[:2]
    about = ({}, {name: MASK}, {name: NO_MASK}, {"another": MASK})
    arm = ARM_OF.get(name, name)
    results = ({}, {arm: MASK}, {arm: NO_MASK}, {"another": MASK})
    return [
        Context(replicate, sparsity, random_draws, 100, SPARSITIES, best, dict(derived), dict(trained))
        for replicate, sparsity, random_draws, best, derived, trained in itertools.product(
            (0, 7), levels, (1, 8), BESTS, about, results
        )
    ]


@pytest.fixture(params=ARMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def method(name: str) -> Method:
    return ARMS[name]


def test_it_says_what_it_does_in_one_line(method: Method) -> None:
    assert method.summary
    assert method.source
    assert "\n" not in method.summary + method.source


def test_it_fills_exactly_its_slots(name: str, method: Method) -> None:
    for context in contexts(name, method):
        candidates = method.candidates(context)
        if isinstance(candidates, list):
            assert len(candidates) == method.n_slots(context)
            assert len(set(candidates)) == len(candidates)


def test_its_levels_ascend_and_those_of_the_study_are_the_studys(method: Method) -> None:
    for sparsities in ((0.5,), (0.9, 0.5), (0.3, 0.5, 0.75)):
        levels = method.levels(tuple(sorted(sparsities)))
        assert list(levels) == sorted(set(levels))
        if method.is_dense:
            assert levels == (0.0,)
            continue
        assert all(0 < level < 1 for level in levels)
        # No level is nearly one of the study: its candidates would be called by another name.
        assert all(level in sparsities or min(abs(level - s) for s in sparsities) > 1e-6 for level in levels)


def test_its_masks_are_cut_once_each_before_they_are_needed(name: str, method: Method) -> None:
    levels = method.levels(SPARSITIES)
    cuts = [(s, cut) for s in (0.0, *levels) if not method.is_dense for cut in method.cuts(s, SPARSITIES)]
    assert all(cut.arm == name and cut.sparsity > s for s, cut in cuts)
    assert [cut.sparsity for _, cut in cuts] == (list(levels) if method.needs_parent else [])


def test_its_candidates_are_of_the_replicate_and_level_it_was_asked_for(name: str, method: Method) -> None:
    for context in contexts(name, method):
        candidates = method.candidates(context)
        for candidate in candidates if isinstance(candidates, list) else ():
            assert (candidate.replicate, candidate.target_sparsity) == (context.replicate, context.sparsity)
            assert (candidate.network == "parent") == (method.is_dense or name.endswith("_dense_budget"))
            made = [candidate.draw is not None or candidate.mask is not None]
            made.append(candidate.method is not None and candidate.mask is None)
            assert sum(made) == (candidate.network == "masked" or name.endswith("_small_dense"))
            assert (candidate.start == "trained") == (candidate.origin is not None)
            assert (candidate.start == "rewound") == (candidate.rewind_step > 0)


def test_it_is_a_function_of_the_context_and_leaves_it_alone(name: str, method: Method) -> None:
    for context in contexts(name, method):
        before = dataclasses.replace(context, derived=dict(context.derived), trained=dict(context.trained))
        assert method.candidates(context) == method.candidates(context)
        assert context == before


def _missing(name: str, method: Method, context: Context) -> list[object]:
    """What the arm declares to need, as far as it is known: None for what is not known yet."""
    needs: list[object] = []
    if method.needs_scores:
        needs.append(context.best)
    if method.needs_parent:
        needs.append(context.derived.get(name))
    if name in ARM_OF and not name.endswith("_dense_budget"):
        needs.append(context.trained.get(ARM_OF[name]))
        if METHODS[ARM_OF[name]].needs_scores and needs[-1] is not NO_MASK:  # which draw its mask is
            needs.append(context.best)
    return needs


def test_it_waits_for_what_it_declares_and_for_nothing_else(name: str, method: Method) -> None:
    for context in contexts(name, method):
        needs = _missing(name, method, context)
        assert (method.candidates(context) is None) == (None in needs)
        if not needs:
            assert isinstance(method.candidates(context), list)


def test_what_can_never_be_is_said_with_a_reason(name: str, method: Method) -> None:
    for context in contexts(name, method):
        candidates = method.candidates(context)
        needs = _missing(name, method, context)
        if Best(None, None, None) in needs and None not in needs:
            assert isinstance(candidates, Missing)
            assert candidates.reason
        if NO_MASK in needs:
            assert candidates is NO_MASK
