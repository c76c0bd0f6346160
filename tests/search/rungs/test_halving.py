import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.search.design import RungSettings
from sparsefront.search.rungs import RUNGS, Bracket, Halving, bracket_of, rung_steps
from sparsefront.search.rungs.asha import ScalarRecord
from sparsefront.search.rungs.mo_asha import FrontRecord
from tests.oracles import rungs as oracle

SCALAR = ("successive_halving", "hyperband", "asha")
KINDS = (*SCALAR, "mo_asha")


def settings_of(kind, **changes):
    objectives = ("val_error", "n_params") if kind == "mo_asha" else ("val_loss",)
    return RungSettings(kind, **{"eta": 3, "objectives": objectives, **changes})


def decided(halving, arrivals):
    """What is decided after each of (number, rung, losses[, weight sparsity])."""
    found = []
    for number, rung, losses, *sparsity in arrivals:
        decisions = halving.arrive(number, rung, losses, **({"weight_sparsity": sparsity[0]} if sparsity else {}))
        found.append([(d.number, d.rung, d.continues) for d in decisions])
    return found


# --- by hand -----------------------------------------------------------------------------------------------------


def test_successive_halving_by_hand():
    # Nine at the first rung, three at the second, one to the end.
    halving = Halving(settings_of("successive_halving"), Bracket(0, 9, range(2)))
    losses = [0.9, 0.2, 0.8, 0.3, 0.7, 0.3, 0.6, 0.5, 0.4]
    assert decided(halving, [(n, 0, [losses[n]]) for n in range(8)]) == [[]] * 8
    assert decided(halving, [(8, 0, [0.4])]) == [[(n, 0, n in (1, 3, 5)) for n in range(9)]]
    assert decided(halving, [(5, 1, [0.1]), (1, 1, [0.3]), (3, 1, [0.1])]) == [
        [],
        [],
        [(1, 1, False), (3, 1, True), (5, 1, False)],  # of equals the lower number
    ]


def test_those_that_ended_are_not_waited_for_and_not_counted():
    halving = Halving(settings_of("successive_halving", eta=2), Bracket(10, 15, range(2)))
    assert halving.leave(12) == []
    assert decided(halving, [(10, 0, [0.3]), (11, 0, [0.2]), (14, 0, [0.1])]) == [[], [], []]
    # Three of five are left, and one of two of them is one.
    assert [(d.number, d.continues) for d in halving.leave(13)] == [(10, False), (11, False), (14, True)]
    assert halving.leave(14) == []  # diverged on the way to the second rung


def test_a_hyperband_bracket_by_hand():
    settings = settings_of("hyperband", min_steps=1)
    bracket = bracket_of(settings, 27, 27)
    halving = Halving(settings, bracket)
    first = [halving.arrive(n, 1, [float(n)]) for n in range(27, 39)]
    assert [d.number for d in first[-1] if d.continues] == [27, 28, 29, 30]
    second = [halving.arrive(n, 2, [float(-n)]) for n in range(27, 31)]
    assert [d.number for d in second[-1] if d.continues] == [30]


def test_asha_by_hand():
    halving = Halving(settings_of("asha"), Bracket(0, 6, range(1)))
    losses = [0.5, 0.6, 0.4, 0.4, 0.1, 0.3]
    # Up to the fifth there is one place; of equals the earlier is better; the sixth is second of six, and two go on.
    expected = [True, False, True, False, True, True]
    assert decided(halving, [(n, 0, [loss]) for n, loss in enumerate(losses)]) == [
        [(n, 0, goes_on)] for n, goes_on in enumerate(expected)
    ]


def test_arrivals_are_taken_in_the_order_of_their_numbers():
    halving = Halving(settings_of("asha"), Bracket(0, 4, range(2)))
    assert decided(halving, [(2, 0, [0.1]), (1, 0, [0.2])]) == [[], []]
    assert decided(halving, [(0, 0, [0.3])]) == [[(0, 0, True), (1, 0, True), (2, 0, True)]]
    # The second rung waits for lower numbers that may still come, and for no others.
    assert decided(halving, [(1, 1, [0.5]), (2, 1, [0.4])]) == [[], []]
    assert [(d.number, d.rung, d.continues) for d in halving.leave(0)] == [(1, 1, True), (2, 1, True)]
    assert halving.leave(3) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_dominating_newcomer_goes_on_and_a_dominated_one_stops(asynchronous):
    # The example that a rule which confuses order with rank gets wrong.
    settings = settings_of("mo_asha", asynchronous=asynchronous)
    losses = [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (-1.0, -1.0), (3.0, 3.0)]
    found = decided(Halving(settings, bracket_of(settings, 0, 27)), [(n, 0, pair) for n, pair in enumerate(losses)])
    assert found == [[(n, 0, goes_on)] for n, goes_on in enumerate([True, False, False, True, False])]


def test_within_a_front_the_ends_go_on():
    losses = [(0.0, 9.0), (9.0, 0.0), (5.0, 5.0), (4.0, 6.0), (6.0, 4.0), (10.0, -1.0)]
    settings = settings_of("mo_asha", bracket=6)
    found = decided(Halving(settings, bracket_of(settings, 0, 27)), [(n, 0, pair) for n, pair in enumerate(losses)])
    # One goes on of up to five: the best of the first objective. Of six, two: also the other end.
    assert found == [[(n, 0, goes_on)] for n, goes_on in enumerate([True, False, False, False, False, True])]


def test_a_late_bloomer_is_kept_by_a_late_first_rung():
    # Early ranking is inverted: what ends best is worst at step 10, and leads from step 100 on.
    def loss(number, step):
        return 1.0 / (1 + number) ** np.log10(step / 50)

    def survivors(min_steps):
        settings = settings_of("successive_halving", eta=3, min_steps=min_steps, bracket=9)
        halving = Halving(settings, bracket_of(settings, 0, 1000))
        alive = list(range(9))
        for rung, step in enumerate(rung_steps(settings, 1000)):
            settled = [d for n in alive for d in halving.arrive(n, rung, [loss(n, step)])]
            alive = [d.number for d in settled if d.continues]
        return alive

    best = min(range(9), key=lambda n: loss(n, 1000))
    assert best == max(range(9), key=lambda n: loss(n, 10))
    assert survivors(10) == [0]
    assert survivors(100) == [best]


def test_bands_have_survivors_of_their_own():
    settings = settings_of("asha", bands=(0.5, 0.9))
    halving = Halving(settings, Bracket(0, 6, range(1)))
    # Sparse networks learn later: at 90% the loss is higher, and the best of them goes on all the same.
    arrivals = [(0, 0, [0.1], 0.2), (1, 0, [0.9], 0.9), (2, 0, [0.5], 0.5), (3, 0, [0.8], 0.95), (4, 0, [0.2], 0.0)]
    assert [d[0][2] for d in decided(halving, arrivals)] == [True, True, True, True, False]


# --- against oracles ---------------------------------------------------------------------------------------------

scalars = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=40)
pairs = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 2), min_size=1, max_size=16)


@given(scalars, st.integers(2, 5))
def test_a_scalar_record_agrees_with_the_oracle(values, eta):
    record = ScalarRecord(eta)
    assert [record.admits(np.array([v])) for v in values] == oracle.admitted([[v] for v in values], eta)


@given(pairs, st.integers(2, 4))
def test_a_front_record_agrees_with_the_oracle(values, eta):
    record = FrontRecord(eta)
    assert [record.admits(np.array(v)) for v in values] == oracle.admitted(values, eta)


@given(scalars, st.integers(2, 5))
def test_a_front_record_of_one_objective_is_a_scalar_record(values, eta):
    front, scalar = FrontRecord(eta), ScalarRecord(eta)
    assert all(front.admits(np.array([v])) == scalar.admits(np.array([v])) for v in values)


@given(pairs, st.integers(1, 5))
def test_a_window_is_the_last_arrivals(values, window):
    record = FrontRecord(2, window)
    for n, pair in enumerate(values):
        seen = values[max(0, n + 1 - window) : n + 1]
        assert record.admits(np.array(pair)) == oracle.admitted(seen, 2)[-1]


@pytest.mark.parametrize("window", [16, 17, 40])
def test_a_window_moves_over_many_arrivals(window):
    values = np.random.default_rng(window).normal(size=(120, 2)).round(1)
    values[:, 1] -= values[:, 0]
    record = FrontRecord(2, window)
    for n, pair in enumerate(values):
        seen = values[max(0, n + 1 - window) : n + 1].tolist()
        assert record.admits(pair) == (oracle.ranks(seen)[-1] <= max(1, len(seen) // 2))


@given(st.sampled_from(KINDS), st.data())
def test_decisions_do_not_depend_on_the_order_of_arrival(kind, data):
    settings = settings_of(kind, eta=2, min_steps=1, bracket=8, bands=data.draw(st.sampled_from([(), (0.5,)])))
    bracket = bracket_of(settings, data.draw(st.integers(0, 20)), 9)
    draw = data.draw(st.randoms(use_true_random=False))
    numbers = range(bracket.start, bracket.stop)
    losses = {(n, k): [draw.randrange(5) for _ in settings.objectives] for n in numbers for k in bracket.rungs}
    sparsity = {n: draw.random() for n in numbers}
    fate = {n: draw.choice([None, None, None, *bracket.rungs]) for n in numbers}  # rung that it fails to reach

    def run():
        halving = Halving(settings, bracket)
        waiting = [(n, bracket.rungs.start) for n in numbers]
        found = {}
        while waiting:
            number, rung = waiting.pop(draw.randrange(len(waiting)))
            if rung == bracket.rungs.stop:
                continue
            if fate[number] == rung:
                settled = halving.leave(number)
            else:
                settled = halving.arrive(number, rung, losses[number, rung], weight_sparsity=sparsity[number])
            for d in settled:
                assert (d.number, d.rung) not in found
                found[d.number, d.rung] = d.continues
                if d.continues:
                    waiting.append((d.number, d.rung + 1))
        return found

    first = run()
    assert first == run()
    reached = {n for n in numbers if fate[n] != bracket.rungs.start}
    assert reached == {n for n, k in first if k == bracket.rungs.start}
    if RUNGS[kind].record is None:
        for k, band in itertools.product(bracket.rungs, (0, 1)):
            there = [n for n, j in first if j == k and (not settings.bands or (sparsity[n] >= 0.5) == band)]
            assert sum(first[n, k] for n in there) == (max(1, len(there) // 2) if there else 0)


@given(st.sampled_from(("asha", "mo_asha")), st.data())
def test_an_asynchronous_replay_repeats_every_prefix(kind, data):
    settings = settings_of(kind, asynchronous=True)
    draw = data.draw(st.randoms(use_true_random=False))
    n = data.draw(st.integers(1, 30))
    arrivals = [(i, draw.randrange(3), [draw.random() for _ in settings.objectives]) for i in range(n)]
    live = decided(Halving(settings, bracket_of(settings, 0, 27)), arrivals)
    cut = data.draw(st.integers(0, n))
    resumed = Halving(settings, bracket_of(settings, 0, 27))
    assert decided(resumed, arrivals[:cut]) + decided(resumed, arrivals[cut:]) == live
    assert all(len(decisions) == 1 for decisions in live)
    assert resumed.leave(0) == []


@given(st.sampled_from(KINDS), st.data())
def test_a_band_does_not_depend_on_the_others(kind, data):
    settings = settings_of(kind, min_steps=9, bracket=12, bands=(0.5,))
    bracket = bracket_of(settings, 0, 27)
    draw = data.draw(st.randoms(use_true_random=False))
    numbers = range(bracket.start, bracket.stop)
    sparsity = {n: draw.random() for n in numbers}

    def dense_decisions(losses):
        arrivals = [(n, bracket.rungs.start, losses[n], sparsity[n]) for n in numbers]
        found = itertools.chain.from_iterable(decided(Halving(settings, bracket), arrivals))
        return {(n, k): goes_on for n, k, goes_on in found if sparsity[n] < 0.5}

    losses = {n: [draw.randrange(9) for _ in settings.objectives] for n in numbers}
    changed = {
        n: losses[n] if sparsity[n] < 0.5 else [draw.randrange(-9, 99) for _ in settings.objectives] for n in numbers
    }
    assert dense_decisions(losses) == dense_decisions(changed)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=30), st.sampled_from(SCALAR))
def test_only_the_order_of_losses_matters(values, kind):
    settings = settings_of(kind)
    bracket = Bracket(0, len(values), range(1))
    found = [
        decided(Halving(settings, bracket), [(n, 0, [f(v)]) for n, v in enumerate(values)]) for f in (float, np.exp)
    ]
    assert found[0] == found[1]


# --- misuse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_non_finite_losses_never_enter(bad, asynchronous):
    halving = Halving(settings_of("mo_asha", asynchronous=asynchronous), Bracket(0, 4, range(2)))
    with pytest.raises(ValueError, match="of candidate 3: must be finite"):
        halving.arrive(3, 0, [0.1, bad])


def test_nobody_arrives_twice_or_where_it_cannot_be():
    halving = Halving(settings_of("asha"), Bracket(0, 4, range(2)))
    halving.arrive(0, 0, [0.1])
    halving.arrive(1, 0, [0.2])  # stopped
    halving.leave(2)
    for number, rung, message in [
        (0, 0, "was there before"),
        (1, 1, "had left or stopped"),
        (2, 0, "had left or stopped"),
        (4, 0, r"must be one of 0\.\.3"),
        (3, 2, r"at one of range\(0, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            halving.arrive(number, rung, [0.3])
