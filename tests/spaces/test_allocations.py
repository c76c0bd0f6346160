"""Allocations: exact counts for every layer, and Erdos-Renyi densities against published closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations import ALLOCATIONS, counts_from_scores, kept_counts
from sparsefront.spaces.allocations.erdos_renyi import er, erk, erk_plus
from sparsefront.spaces.allocations.registry import kept_count
from sparsefront.spaces.allocations.uniform import uniform_plus
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from tests.oracles import spaces as oracle


def perceptron(*sizes):
    """Structure of an MLP with biases."""
    tensors, groups = [], []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        tensors += [Tensor(f"{i}.weight", (b, a), True), Tensor(f"{i}.bias", (b,), False)]
        if i < len(sizes) - 2:
            groups.append(
                NodeGroup(f"{i}", b, (Axis(f"{i}.weight", 0), Axis(f"{i}.bias", 0), Axis(f"{i + 1}.weight", 1)))
            )
    return Structure(tuple(tensors), tuple(groups))


def weights_only(*shapes):
    return Structure(tuple(Tensor(str(i), s, True) for i, s in enumerate(shapes)), ())


DIGITS, MNIST1D, LENET = (64, 256, 128, 10), (40, 256, 128, 10), (784, 300, 100, 10)

# Densities to 4 decimals and the capped layers, from the closed form (Evci et al. 2020, section 3).
ERK = [
    (DIGITS, 0.5, [0.6641, 0.3984, 1.0], {2}),
    (DIGITS, 0.2, [0.2443, 0.1466, 1.0], {2}),
    (DIGITS, 0.1, [0.1170, 0.0702, 0.6457], set()),
    (DIGITS, 0.05, [0.0585, 0.0351, 0.3229], set()),
    (MNIST1D, 0.2, [0.3221, 0.1306, 1.0], {2}),
    (MNIST1D, 0.1, [0.1565, 0.0634, 0.5837], set()),
    (LENET, 0.5, [0.4341, 1.0, 1.0], {1, 2}),
    (LENET, 0.1, [0.0796, 0.2302, 1.0], {2}),
    (LENET, 0.05, [0.0385, 0.1113, 0.9185], set()),
]


@pytest.mark.parametrize("rule", [er, erk])
@pytest.mark.parametrize(("sizes", "density", "expected", "capped"), ERK)
def test_erdos_renyi_gives_the_published_densities_of_perceptrons(rule, sizes, density, expected, capped):
    densities = rule(perceptron(*sizes), "weight", density)
    assert [round(d, 4) for d in densities] == expected
    assert {i for i, d in enumerate(densities) if d == 1} == capped


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("density", [0.9, 0.5, 0.1, 0.01])
def test_erdos_renyi_of_convolutions_agrees_with_water_filling(kernel, density):
    shapes = [(25, 1, 5), (25, 25, 3), (25, 25, 3), (10, 125)]
    found = (erk if kernel else er)(weights_only(*shapes), "weight", density)
    assert found == pytest.approx(oracle.erdos_renyi(shapes, density, kernel=kernel), rel=1e-9)


def test_kernel_dimensions_tell_erk_from_er():
    net = weights_only((8, 8, 3), (8, 8))
    assert er(net, "weight", 0.1)[0] == pytest.approx(er(net, "weight", 0.1)[1])
    assert erk(net, "weight", 0.1)[0] / erk(net, "weight", 0.1)[1] == pytest.approx((19 / 192) / (16 / 64))


@pytest.mark.parametrize(
    ("sizes", "weight_densities"),
    [
        (DIGITS, {"0.9": 0.8391, "0.5": 0.3376, "0.25": 0.1282, "0.1": 0.0423, "0.05": 0.0192}),
        (LENET, {"0.5": 0.4718, "0.25": 0.2289, "0.1": 0.0899}),
    ],
)
def test_a_node_density_is_a_much_smaller_weight_density(sizes, weight_densities):
    net = perceptron(*sizes)
    for node_density, expected in weight_densities.items():
        counts = kept_counts(net, "node", 1 - float(node_density), "uniform")
        assert round(net.compact(counts).n_weights / net.n_weights, 4) == expected


@pytest.mark.parametrize("sparsity", ["0", "0.05", "0.1", "0.25", "0.3", "0.5", "0.7", "0.75", "0.9", "0.95", "0.99"])
def test_kept_count_is_the_decimal_fraction_rounded_half_up(sparsity):
    for size in (*range(1, 200), 1000, 44_288, 802_816):
        assert kept_count(1 - float(sparsity), size) == oracle.kept_count(sparsity, size)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.75, 0.9, 0.95, 0.99])
def test_uniform_rounds_every_layer_by_itself(sparsity):
    net = perceptron(*DIGITS)
    expected = tuple(oracle.kept_count(str(sparsity), n) for n in (256, 128))
    assert kept_counts(net, "node", sparsity, "uniform") == expected
    expected = tuple(oracle.kept_count(str(sparsity), n) for n in (64 * 256, 256 * 128, 128 * 10))
    assert kept_counts(net, "weight", sparsity, "uniform") == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.75, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("allocation", [name for name, rule in ALLOCATIONS.items() if rule.exact_total])
def test_allocations_with_an_exact_total_meet_it(allocation, sparsity):
    for net in (perceptron(*DIGITS), perceptron(*LENET), weights_only((25, 1, 5), (25, 25, 3), (25, 25, 3), (10, 125))):
        total = oracle.kept_count(str(sparsity), net.n_weights)
        assert sum(kept_counts(net, "weight", sparsity, allocation)) == total


@pytest.mark.parametrize("allocation", ["er", "erk"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_apportioned_counts_are_within_one_of_their_share(allocation, sparsity):
    net = perceptron(*MNIST1D)
    shares = [d * t.size for d, t in zip(erk(net, "weight", 1 - sparsity), net.prunable, strict=True)]
    for count, share in zip(kept_counts(net, "weight", sparsity, allocation), shares, strict=True):
        assert math.floor(share) <= count <= math.ceil(share)


def test_the_remainder_goes_to_the_largest_fractions_first_and_to_the_lower_layer_among_equals():
    # Three equal layers of 3 at density 5/9: shares 5/3 each, so two of the three get a second survivor.
    assert kept_counts(weights_only((3, 1), (3, 1), (3, 1)), "weight", 1 - 5 / 9, "er") == (2, 2, 1)


@pytest.mark.parametrize("allocation", ["er", "erk"])
def test_no_layer_is_left_empty_however_sparse(allocation):
    net = weights_only((100, 100), (2, 100), (1, 2))
    assert kept_counts(net, "weight", 0.9999, allocation) == (1, 1, 1)


def test_a_global_count_covers_every_layer_at_least_once():
    assert kept_counts(perceptron(*DIGITS), "node", 0.9, "global") == (38,)
    assert kept_counts(perceptron(*DIGITS), "node", 0.999, "global") == (2,)


def test_sparsity_zero_keeps_everything():
    net = perceptron(*DIGITS)
    for name, rule in ALLOCATIONS.items():
        for kind in rule.kinds:
            assert sum(kept_counts(net, kind, 0.0, name)) == sum(net.section_sizes(kind))


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, math.nan, math.inf])
def test_an_impossible_sparsity_is_refused(sparsity):
    with pytest.raises(SpaceError, match=rf"sparsity={sparsity!r}: must lie in \[0, 1\)"):
        kept_counts(perceptron(4, 3, 2), "node", sparsity, "uniform")


def test_unknown_allocations_kinds_and_combinations_are_refused():
    net = perceptron(4, 3, 2)
    with pytest.raises(SpaceError, match="allocation='even': must be one of uniform, global, er, erk"):
        kept_counts(net, "node", 0.5, "even")
    with pytest.raises(SpaceError, match="allocation='erk' with mask kind='node': it divides weight masks only"):
        kept_counts(net, "node", 0.5, "erk")
    with pytest.raises(SpaceError, match="allocation='uniform' with mask kind='filter'"):
        kept_counts(net, "filter", 0.5, "uniform")


CONV = ((25, 1, 5), (25, 25, 3), (25, 25, 3), (10, 125))


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.85, 0.9])
def test_uniform_plus_spares_the_first_convolution_and_the_classifier(sparsity):
    net = weights_only(*CONV)
    first, *middle, last = kept_counts(net, "weight", sparsity, "uniform_plus")
    assert first == 125
    assert last == (250 if sparsity >= 0.8 else round((1 - sparsity) * 5125 - 125) - sum(middle))
    assert last / 1250 == pytest.approx(max(0.2, middle[0] / 1875), abs=1e-3)
    assert abs(middle[0] - middle[1]) <= 1
    # A perceptron has no first convolution to spare.
    counts = kept_counts(perceptron(*DIGITS), "weight", sparsity, "uniform_plus")
    densities = [k / n for k, n in zip(counts, (16_384, 32_768, 1_280), strict=True)]
    spare = 0.2 if sparsity > 0.8 else 1 - sparsity
    rest = ((1 - sparsity) * 50_432 - spare * 1_280) / (16_384 + 32_768)
    assert densities == pytest.approx([rest, rest, spare], abs=1e-3)


def test_only_the_first_convolution_is_spared_wherever_it_stands():
    net = weights_only((30, 40), (8, 30, 3), (8, 8, 3), (10, 80))
    counts = kept_counts(net, "weight", 0.5, "uniform_plus")
    assert counts[1] == 720
    assert counts[2] < 192


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_erk_plus_is_erk_of_the_rest_beside_a_dense_classifier(sparsity):
    for shapes in (CONV, ((256, 64), (128, 256), (10, 128))):
        net, rest = weights_only(*shapes), weights_only(*shapes[:-1])
        budget = (1 - sparsity) * net.n_weights - math.prod(shapes[-1])
        if budget < len(shapes) - 1:
            assert erk_plus(net, "weight", 1 - sparsity) == erk(net, "weight", 1 - sparsity)
        else:
            *found, last = erk_plus(net, "weight", 1 - sparsity)
            assert last == 1
            assert found == pytest.approx(erk(rest, "weight", budget / rest.n_weights))


def test_where_the_spared_layers_alone_exceed_the_budget_none_is_spared():
    net = weights_only(*CONV)  # 125 + 250 weights are spared, or 1250
    assert sum(kept_counts(net, "weight", 0.95, "uniform_plus")) == 256
    assert uniform_plus(net, "weight", 0.05) == [0.05] * 4
    assert uniform_plus(weights_only((10, 5)), "weight", 0.1) == [0.1]
    assert uniform_plus(weights_only((4, 1, 3), (2, 12)), "weight", 0.1) == [0.1, 0.1]
    assert erk_plus(net, "weight", 0.2) == erk(net, "weight", 0.2)
    assert erk_plus(weights_only((10, 5)), "weight", 0.1) == pytest.approx([0.1])


def test_explicit_densities_and_counts_are_taken_as_they_are():
    net = perceptron(*DIGITS)
    assert kept_counts(net, "weight", 0.9, "explicit", explicit=[0.117, 0.0702, 0.6457]) == (1917, 2300, 826)
    counts = kept_counts(net, "weight", 0.9, "erk")
    assert kept_counts(net, "weight", 0.9, "explicit", explicit=counts) == counts
    assert kept_counts(net, "node", 127 / 384, "explicit", explicit=[1.0, 0.0001]) == (256, 1)


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        ([0.1, 0.1], r"explicit=\[0.1, 0.1\]: 3 numbers are needed, one for each section"),
        ([0.1, 0.1, 1], r"explicit=\[0.1, 0.1, 1\]: .* \(a dense one is 1.0\), or all of them counts"),
        ([True, True, True], "all of them densities"),
        ([0.1, 0.1, 0.0], r"must be densities in \(0, 1\] or counts in 1..size"),
        ([0.1, 0.1, math.nan], "must be densities"),
        ([1, 1, 1281], r"sections of \[16384, 32768, 1280\]: must be densities"),
        ([0.2, 0.2, 0.2], r"sparsity=0.9 with explicit=\[0.2, 0.2, 0.2\]: these leave sparsity 0.799988; change one"),
        (None, "allocation='explicit' with explicit=None: numbers for the sections belong to allocation 'explicit'"),
    ],
)
def test_explicit_numbers_that_cannot_be_are_refused(explicit, message):
    with pytest.raises(SpaceError, match=message):
        kept_counts(perceptron(*DIGITS), "weight", 0.9, "explicit", explicit=explicit)


def test_explicit_numbers_belong_to_no_other_allocation():
    with pytest.raises(SpaceError, match=r"allocation='erk' with explicit=\[0.1, 0.1, 0.1\]"):
        kept_counts(perceptron(*DIGITS), "weight", 0.9, "erk", explicit=[0.1, 0.1, 0.1])
    with pytest.raises(SpaceError, match=r"allocation='explicitt': must be one of .*; did you mean 'explicit'"):
        kept_counts(perceptron(*DIGITS), "weight", 0.9, "explicitt")


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.9, 0.99]), st.sampled_from(["node", "weight"]))
def test_counts_from_scores_are_those_of_the_best_overall(seed, sparsity, kind):
    net = perceptron(6, 5, 4, 3)
    sizes = net.section_sizes(kind)
    scores = np.random.Generator(np.random.Philox(key=seed)).integers(0, 9, sum(sizes)) / 4.0
    total = max(len(sizes), oracle.kept_count(str(sparsity), sum(sizes)))
    mask = oracle.top_k(scores.tolist(), sizes, (total,))
    expected = tuple(sum(part) for part in oracle.sections_of(sizes, mask))
    assert counts_from_scores(net, kind, scores, sparsity) == expected


def test_scores_that_cannot_be_ranked_are_refused():
    net = perceptron(4, 3, 2)
    with pytest.raises(SpaceError, match=r"scores of shape \(17,\): one for each of the 18 entries is needed"):
        counts_from_scores(net, "weight", np.ones(17), 0.5)
    with pytest.raises(SpaceError, match="scores: must be finite"):
        counts_from_scores(net, "weight", np.full(18, np.inf), 0.5)
    with pytest.raises(SpaceError, match=r"sparsity=1.0: must lie in \[0, 1\)"):
        counts_from_scores(net, "weight", np.ones(18), 1.0)
