"""Matched controls: what they share with their arm is exactly shared, and what they do not is random."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.controls import (
    CONTROLS,
    budget_steps,
    fresh_weights_key,
    shuffled_globally,
    shuffled_layerwise,
    small_dense,
)
from sparsefront.spaces.masks import draw, remains, split_sections
from sparsefront.spaces.patterns import parse_pattern, random_masks
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor

KEY = philox_key(5, "control tests")


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


def section_counts(structure, kind, mask):
    return [int(p.sum()) for p in split_sections(structure, kind, mask)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=5), st.sampled_from(["node", "weight"]), st.data())
def test_shuffles_share_what_they_say_and_are_the_same_again(sizes, kind, data):
    net = perceptron(*sizes)
    counts = [data.draw(st.integers(1, n)) for n in net.section_sizes(kind)]
    mask = draw(net.section_sizes(kind), counts, KEY, start=0, stop=1)[0]
    number = data.draw(st.integers(0, 99))
    layerwise = shuffled_layerwise(net, kind, mask, KEY, number)
    assert section_counts(net, kind, layerwise) == counts
    assert (layerwise == shuffled_layerwise(net, kind, mask, KEY, number)).all()
    try:
        everywhere = shuffled_globally(net, kind, mask, KEY, number)
    except SpaceError as e:  # next to no survivors for sections of very unlike size
        assert "draws left a layer without a survivor" in str(e)  # noqa: PT017
        return
    assert int(everywhere.sum()) == sum(counts)
    assert min(section_counts(net, kind, everywhere)) >= 1


def test_a_layerwise_shuffle_depends_on_the_counts_of_the_mask_alone():
    net = perceptron(8, 12, 10, 4)
    first, second = draw(net.section_sizes("weight"), [20, 30, 9], KEY, start=0, stop=2)
    assert (first != second).any()
    shuffles = [shuffled_layerwise(net, "weight", mask, KEY, 7) for mask in (first, second)]
    assert (shuffles[0] == shuffles[1]).all()
    assert (shuffled_layerwise(net, "weight", first, KEY, 8) != shuffles[0]).any()


def test_a_shuffle_has_the_overlap_of_chance():
    net = perceptron(40, 256, 128, 10)
    sizes, counts = net.section_sizes("weight"), [1024, 3277, 128]
    mask = draw(sizes, counts, KEY, start=0, stop=1)[0]
    common = mask & shuffled_layerwise(net, "weight", mask, KEY, 1)
    for found, k, n in zip(section_counts(net, "weight", common), counts, sizes, strict=True):
        # Hypergeometric: mean k^2 / n; six standard deviations.
        assert abs(found - k * k / n) < 6 * math.sqrt(k * k / n)
    whole = np.array([section_counts(net, "weight", shuffled_globally(net, "weight", mask, KEY, i)) for i in range(20)])
    expected = sum(counts) * np.array(sizes) / sum(sizes)
    assert (abs(whole.mean(axis=0) - expected) < 6 * np.sqrt(expected / 20)).all()


@pytest.mark.parametrize("name", ["2:4", "1:3", "4x4", "3x2"])
def test_a_shuffled_mask_of_a_pattern_is_one_of_it(name):
    net = perceptron(10, 16, 13, 4)
    wanted = [n // 3 for n in net.section_sizes("weight")]
    mask = random_masks(name, net, wanted, KEY, start=0, stop=1)[0]
    shuffled = shuffled_layerwise(net, "weight", mask, KEY, 3, pattern=name)
    assert (shuffled != mask).any()
    assert section_counts(net, "weight", shuffled) == section_counts(net, "weight", mask)
    # Only a mask of the pattern can be shuffled within it.
    parse_pattern(name).shuffled(net, shuffled, KEY, number=0)
    with pytest.raises(SpaceError, match=f"pattern='{name}': its survivors cannot move between layers"):
        shuffled_globally(net, "weight", mask, KEY, 3, pattern=name)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_a_small_dense_network_has_the_nearest_number_of_parameters(density):
    net = perceptron(40, 256, 128, 10)
    sections = net.section_sizes("weight")
    mask = draw(sections, [round(density * n) for n in sections], KEY, start=0, stop=1)[0]
    target = remains(net, "weight", mask).n_params
    small = small_dense(net, "weight", mask)
    family = [perceptron(40, i, (i + 1) // 2, 10).n_params for i in range(1, 257)]
    assert abs(small.n_params - target) == min(abs(n - target) for n in family)


def test_the_small_dense_network_of_a_uniform_node_mask_is_its_compact_network():
    net = perceptron(40, 256, 128, 10)
    mask = draw([256, 128], [64, 32], KEY, start=0, stop=1)[0]
    assert small_dense(net, "node", mask) == net.compact([64, 32])


def test_a_budget_is_rounded_to_steps():
    assert [budget_steps(passes, 100) for passes in (1e-9, 100, 149, 150, 151, 150_100)] == [1, 1, 1, 2, 2, 1501]


def test_fresh_weights_have_keys_of_their_own():
    keys = {fresh_weights_key(*k).tobytes() for k in itertools.product((0, 1), (0, 1), (0, 1))}
    assert len(keys | {philox_key(s, "init", r).tobytes() for s in (0, 1) for r in (0, 1)}) == 12


def test_every_control_changes_something_that_it_names():
    assert set(CONTROLS) == {"shuffled_layers", "shuffled", "fresh_weights", "small_dense", "dense_budget"}
    for control in CONTROLS.values():
        changed = [
            control.network != "masked",
            control.shuffle is not None,
            control.fresh_weights,
            control.total_budget,
        ]
        assert any(changed)
        assert control.shuffle is None or control.network == "masked"
        assert control.summary
        assert control.question


def test_controls_that_cannot_be_are_refused():
    net = perceptron(4, 3, 2)
    with pytest.raises(SpaceError, match=r"mask of shape \(17,\) and type bool: must be 18 bools for kind 'weight'"):
        shuffled_layerwise(net, "weight", np.ones(17, dtype=bool), KEY, 0)
    with pytest.raises(SpaceError, match="type float64: must be 3 bools for kind 'node'"):
        small_dense(net, "node", np.ones(3))
    with pytest.raises(SpaceError, match="pattern='2:4' of a node mask: its masks are of kind 'weight'"):
        shuffled_layerwise(net, "node", np.ones(3, dtype=bool), KEY, 0, pattern="2:4")
    empty = np.arange(18) < 12  # nothing left of the second layer
    with pytest.raises(SpaceError, match=r"counts=\[12, 0\] for sections of \[12, 6\]: each must lie in 1..size"):
        shuffled_layerwise(net, "weight", empty, KEY, 0)
    with pytest.raises(SpaceError, match="control 'small_dense': a network without node groups has nothing to scale"):
        small_dense(Structure((Tensor("a", (2, 2), True),), ()), "weight", np.ones(4, dtype=bool))
    with pytest.raises(SpaceError, match=r"passes=0\.0, batch_size=100: a positive budget and batch size are needed"):
        budget_steps(0.0, 100)
