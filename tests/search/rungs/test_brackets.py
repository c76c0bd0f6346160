import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import ConfigError
from sparsefront.search.design import RungSettings
from sparsefront.search.rungs import RUNGS, bracket_of, check_settings, rung_steps

kinds = st.sampled_from([name for name, kind in RUNGS.items() if kind.has_rungs])


@given(kinds, st.integers(2, 5), st.integers(0, 400), st.integers(1, 2000))
def test_rungs_lie_below_the_full_training(kind, eta, min_steps, steps):
    found = rung_steps(RungSettings(kind, eta=eta, min_steps=min_steps), steps)
    assert all(0 < rung < steps for rung in found)
    assert all(b == eta * a for a, b in itertools.pairwise(found))
    if min_steps:
        assert found == () or (found[0] == min_steps and found[-1] * eta >= steps)
    else:
        assert len(found) <= 3


def test_rungs_by_hand():
    assert rung_steps(RungSettings("asha", eta=4, min_steps=75), 1200) == (75, 300)
    assert rung_steps(RungSettings("asha", eta=4, min_steps=75), 1201) == (75, 300, 1200)
    assert rung_steps(RungSettings("asha", eta=4), 1) == ()
    assert rung_steps(RungSettings("none"), 1000) == ()


def test_hyperband_as_published():
    # Li et al. 2018, table 1 with R = 27: (candidates, first budget) of s = 3, 2, 1, 0.
    settings = RungSettings("hyperband", eta=3, min_steps=1)
    steps = (*rung_steps(settings, 27), 27)
    found, number = [], 0
    for _ in range(5):
        bracket = bracket_of(settings, number, 27)
        found.append((bracket.stop - bracket.start, steps[bracket.rungs.start]))
        number = bracket.stop
    assert found == [(27, 1), (12, 3), (6, 9), (4, 27), (27, 1)]


@given(kinds | st.just("none"), st.integers(1, 100), st.integers(0, 300), st.integers(0, 70))
def test_brackets_part_the_numbers(kind, size, number, batch):
    settings = RungSettings(kind, eta=3, min_steps=10, bracket=size)
    bracket = bracket_of(settings, number, 100, batch=batch)
    assert bracket.start <= number < bracket.stop
    ends = (bracket.start, bracket.stop - 1)
    assert all(bracket_of(settings, n, 100, batch=batch) == bracket for n in ends)
    if bracket.start:
        assert bracket_of(settings, bracket.start - 1, 100, batch=batch).stop == bracket.start
    if batch and RUNGS[kind].record is None:
        assert bracket.start // batch == (bracket.stop - 1) // batch


def test_an_asynchronous_run_is_one_bracket():
    settings = RungSettings("asha", bracket=4, asynchronous=True)
    assert bracket_of(settings, 0, 100) == bracket_of(settings, 10**9, 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RungSettings("ahsa"), r"rungs.kind='ahsa': must be one of none, .*; did you mean 'asha'\?"),
        (RungSettings("hyperband", asynchronous=True), "only asha, mo_asha decide as candidates arrive"),
        (
            RungSettings("ray_asha", bands=(0.5, 0.9)),
            r"rungs.bands=\[0.5, 0.9\] with rungs.kind='ray_asha': Ray's scheduler compares all candidates, by steps",
        ),
        (
            RungSettings("ray_asha", fidelity="data_fraction"),
            r"rungs.fidelity='data_fraction' with rungs.kind='ray_asha': .* leave it out, or use 'asha'",
        ),
        (RungSettings("asha", eta=1), "rungs.eta=1: must be at least 2"),
        (RungSettings("asha", bracket=0), "rungs.bracket=0: must be at least 1"),
        (
            RungSettings("mo_asha", bracket=1025),
            "rungs.bracket=1025: must be at most 1024 with rungs.kind='mo_asha', .* with the last 1024 that reached",
        ),
        (RungSettings("asha", min_steps=100), "rungs.min_steps=100: .* less than the full training, 100"),
        (RungSettings("asha", min_steps=-1), "rungs.min_steps=-1: must be 0"),
        (
            RungSettings("asha", objectives=("val_error", "macs")),
            "'asha' compares by one objective; mo_asha by several",
        ),
        (RungSettings("asha", bands=(0.9, 0.5)), r"rungs.bands=\[0.9, 0.5\]: edges of weight sparsity must ascend"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(settings, 100)


@pytest.mark.parametrize(
    "settings",
    [
        RungSettings("mo_asha", bracket=1024),
        RungSettings("mo_asha", bracket=1001, asynchronous=True),
        RungSettings("asha", bracket=10_000),
    ],
)
def test_large_brackets_are_accepted_by_rules_that_can_compare_them(settings):
    check_settings(settings, 100)


@pytest.mark.parametrize("kind", RUNGS)
def test_defaults_are_accepted(kind):
    check_settings(RungSettings(kind), 100)
    assert RUNGS[kind].summary
    assert RUNGS[kind].source
