import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.search.rungs import is_among_best, n_continuing, ranks_of
from tests.oracles import rungs as oracle


@st.composite
def losses(draw, min_size=1, max_size=14):
    m = draw(st.integers(1, 3))
    rows = st.lists(st.integers(0, 5).map(float), min_size=m, max_size=m)
    return np.array(draw(st.lists(rows, min_size=min_size, max_size=max_size)))


@given(losses())
def test_ranks_agree_with_the_oracle(values):
    assert ranks_of(values).tolist() == oracle.ranks(values.tolist())


@given(losses(), st.data())
def test_being_among_the_best_is_a_matter_of_rank(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    n_best = data.draw(st.integers(1, len(values)))
    assert is_among_best(values, index, n_best) == (ranks_of(values)[index] <= n_best)


@given(losses(), st.data())
def test_the_earlier_of_equal_elements_may_be_told_by_numbers(values, data):
    order = np.array(data.draw(st.permutations(range(len(values)))))
    index = data.draw(st.integers(0, len(values) - 1))
    n_best = data.draw(st.integers(1, len(values)))
    place = int((order == index).argmax())
    assert is_among_best(values[order], place, n_best, arrivals=3 * order + 7) == is_among_best(values, index, n_best)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_ranks_of_many_agree_with_the_oracle(m):
    values = np.random.default_rng(m).normal(size=(120, m)).round(1)
    values[:, -1] -= values[:, 0] if m > 1 else 0.0  # fronts of many elements
    expected = oracle.ranks(values.tolist())
    assert ranks_of(values).tolist() == expected
    assert [is_among_best(values, i, 40) for i in range(120)] == [rank <= 40 for rank in expected]


@given(losses(), st.randoms(use_true_random=False))
def test_ranks_follow_their_elements(values, random):
    values = np.unique(values, axis=0)  # equal elements are told apart by their place
    permutation = list(range(len(values)))
    random.shuffle(permutation)
    assert ranks_of(values[permutation]).tolist() == ranks_of(values)[permutation].tolist()


@given(losses())
def test_scales_of_objectives_do_not_matter(values):
    stretched = np.stack([np.exp(column * (j + 1)) * 1e3**j for j, column in enumerate(values.T)], axis=1)
    assert ranks_of(stretched).tolist() == ranks_of(values).tolist()


@given(losses())
def test_whoever_dominates_ranks_before(values):
    ranks = ranks_of(values)
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            assert not oracle.dominates(a, b) or ranks[i] < ranks[j]


def test_ranks_are_not_the_sorted_indices():
    values = np.array([[2.0, 2.0], [0.0, 0.0], [3.0, 3.0], [1.0, 1.0]])
    assert np.lexsort(values.T).tolist() == [1, 3, 0, 2]
    assert ranks_of(values).tolist() == [3, 1, 4, 2]


def test_a_front_is_ordered_from_its_ends():
    # Best of the first objective, then the other end, then the middle, then the gaps between, the lower first.
    front = np.array([[4.0, 0.0], [1.0, 3.0], [0.0, 4.0], [2.0, 2.0], [3.0, 1.0]])
    assert ranks_of(front).tolist() == [2, 4, 1, 3, 5]


def test_equal_elements_are_spread_last_and_in_order():
    values = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert ranks_of(values).tolist() == [1, 3, 2, 4]


@pytest.mark.parametrize("m", [1, 2, 3])
def test_no_elements_have_no_ranks(m):
    assert ranks_of(np.empty((0, m))).tolist() == []


@given(losses())
def test_losses_are_not_modified(values):
    values.flags.writeable = False
    ranks_of(values)
    is_among_best(values, 0, 1)


@pytest.mark.parametrize(("n", "eta", "expected"), [(1, 4, 1), (4, 4, 1), (7, 4, 1), (8, 4, 2), (81, 3, 27)])
def test_one_of_eta_goes_on_and_at_least_one(n, eta, expected):
    assert n_continuing(n, eta) == expected
