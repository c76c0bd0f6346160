"""Masks over random structures: counts, ties and codecs hold whatever the shapes are."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.spaces.allocations import ALLOCATIONS, kept_counts
from sparsefront.spaces.allocations.erdos_renyi import erk
from sparsefront.spaces.allocations.registry import kept_count
from sparsefront.spaces.masks import draw, mask_digest, pack_bits, remains, top_k, unpack_bits
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from tests.oracles import spaces as oracle

widths = st.lists(st.integers(1, 24), min_size=3, max_size=6)
sparsities = st.one_of(
    st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.95, 0.99]), st.floats(0, 1, exclude_max=True, allow_nan=False)
)


@st.composite
def structures(draw_from):
    """Perceptrons and convolution stacks of random size, with and without biases."""
    sizes = draw_from(widths)
    kernel = draw_from(st.sampled_from([(), (1,), (3,), (3, 2)]))
    bias = draw_from(st.booleans())
    tensors, groups = [], []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        axes = [Axis(f"{i}.weight", 0)]
        tensors.append(Tensor(f"{i}.weight", (b, a, *kernel), True, positions=draw_from(st.integers(1, 9))))
        if bias:
            tensors.append(Tensor(f"{i}.bias", (b,), False))
            axes.append(Axis(f"{i}.bias", 0))
        if i < len(sizes) - 2:
            groups.append(NodeGroup(str(i), b, (*axes, Axis(f"{i + 1}.weight", 1))))
    return Structure(tuple(tensors), tuple(groups))


rules = st.sampled_from([(name, kind) for name, rule in ALLOCATIONS.items() for kind in rule.kinds])


@settings(deadline=None)
@given(structures(), rules, sparsities)
def test_counts_lie_in_their_sections_and_meet_the_total(structure, rule, sparsity):
    allocation, kind = rule
    sizes = structure.section_sizes(kind)
    counts = kept_counts(structure, kind, sparsity, allocation)
    total = max(len(sizes), kept_count(1 - sparsity, sum(sizes)))
    if allocation == "global":
        assert counts == (total,)
        return
    assert len(counts) == len(sizes)
    assert all(1 <= k <= n for k, n in zip(counts, sizes, strict=True))
    if ALLOCATIONS[allocation].exact_total:
        assert sum(counts) == total
    else:
        assert counts == tuple(kept_count(1 - sparsity, n) for n in sizes)


@settings(deadline=None)
@given(structures(), st.floats(0.001, 1))
def test_erk_uses_up_the_density_and_agrees_with_water_filling(structure, density):
    densities = erk(structure, "weight", density)
    sizes = structure.section_sizes("weight")
    assert all(0 < d <= 1 + 1e-9 for d in densities)
    assert np.isclose(sum(d * n for d, n in zip(densities, sizes, strict=True)), density * sum(sizes))
    assert np.allclose(densities, oracle.erdos_renyi([t.shape for t in structure.prunable], density, kernel=True))


@settings(deadline=None)
@given(structures(), rules, sparsities, st.integers(0, 2**40), st.integers(1, 5))
def test_drawn_masks_have_the_counts_of_their_allocation(structure, rule, sparsity, start, n):
    allocation, kind = rule
    sizes = structure.section_sizes(kind)
    counts = kept_counts(structure, kind, sparsity, allocation)
    # Rejection needs a fair chance that every section keeps an entry; what it does without is tested elsewhere.
    if allocation == "global" and counts[0] * min(sizes) < sum(sizes):
        return
    drawn = draw(sizes, counts, philox_key(0, "property"), start=start, stop=start + n)
    for row in drawn.tolist():
        found = [sum(section) for section in oracle.sections_of(sizes, row)]
        assert sum(found) == sum(counts)
        assert min(found) >= 1
        if allocation != "global":
            assert tuple(found) == counts


@settings(deadline=None)
@given(structures(), rules, sparsities, st.data())
def test_top_k_agrees_with_choosing_one_by_one(structure, rule, sparsity, data):
    allocation, kind = rule
    sizes = structure.section_sizes(kind)
    counts = kept_counts(structure, kind, sparsity, allocation)
    # Few distinct values, so that ties are the rule.
    seed, n_values = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 6))
    scores = np.random.Generator(np.random.Philox(key=seed)).integers(-n_values, n_values, sum(sizes)) / 2.0
    if sum(sizes) > 400:  # the oracle is quadratic
        return
    assert top_k(scores, sizes, counts).tolist() == oracle.top_k(scores, sizes, counts)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bits_come_back_as_they_went(bits):
    mask = np.array(bits)
    packed = pack_bits(mask)
    assert len(packed) == -(-len(bits) // 8)
    assert unpack_bits(packed, len(bits)).tolist() == bits
    assert unpack_bits(packed.tobytes(), len(bits)).tolist() == bits
    assert mask_digest(packed) == mask_digest(packed.tobytes())


@given(st.lists(st.booleans(), min_size=1, max_size=64), st.lists(st.booleans(), min_size=1, max_size=64))
def test_masks_of_one_size_have_one_digest_only_if_they_are_equal(a, b):
    same_size = min(len(a), len(b))
    a, b = a[:same_size], b[:same_size]
    digests = [mask_digest(pack_bits(np.array(bits))) for bits in (a, b)]
    assert (digests[0] == digests[1]) == (a == b)


@settings(deadline=None)
@given(structures(), st.data())
def test_what_a_node_mask_leaves_agrees_with_crossing_out_single_entries(structure, data):
    sizes = structure.section_sizes("node")
    counts = [data.draw(st.integers(1, n)) for n in sizes]
    mask = draw(sizes, counts, philox_key(0, "property"), start=0, stop=1)[0]
    alive = oracle.surviving_entries(structure, mask)
    left = remains(structure, "node", mask)
    assert left.n_params == sum(int(a.sum()) for a in alive.values())
    assert left.macs == sum(int(alive[t.name].sum()) * t.positions for t in structure.prunable)
    assert 0 <= left.node_sparsity < 1
    assert 0 <= left.weight_sparsity < 1
