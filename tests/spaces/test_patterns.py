"""Patterns: every mask is one of its pattern, with exactly the counts, and the best or a uniform one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import draw, split_sections, top_k
from sparsefront.spaces.patterns import PATTERNS, parse_pattern, pattern_counts, random_masks, select
from sparsefront.spaces.patterns.block import Block
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from tests.oracles.spaces import blocks, is_of_pattern

KEY = philox_key(3, "pattern tests")

#: One way to write each row of the registry, with another size of those that have sizes.
NAMES = {"unstructured": ["unstructured"], "node": ["node"], "n_m": ["2:4", "3:5"], "block": ["4x4", "3x2"]}
ALL_NAMES = [name for row in PATTERNS for name in NAMES[row]]


@st.composite
def structures(draw_from):
    """Stacks of Linear layers or convolutions of random size; sometimes with a tensor of one dimension."""
    sizes = draw_from(st.lists(st.integers(1, 13), min_size=2, max_size=4))
    kernel = draw_from(st.sampled_from([(), (1,), (3,), (2, 2)]))
    tensors, groups = [], []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        tensors.append(Tensor(str(i), (b, a, *kernel), True))
        if i < len(sizes) - 2:
            groups.append(NodeGroup(str(i), b, (Axis(str(i), 0), Axis(str(i + 1), 1))))
    if draw_from(st.booleans()):
        tensors.append(Tensor("gain", (sizes[-1],), True))
    groups = groups or [NodeGroup("0", sizes[1], (Axis("0", 0),))]
    return Structure(tuple(tensors), tuple(groups))


def counts_for(data, structure, name):
    kind = parse_pattern(name).kind
    return tuple(data.draw(st.integers(1, n)) for n in structure.section_sizes(kind))


def scores_for(data, structure, kind):
    """Few distinct values, whose sums are exact, so that ties are the rule."""
    rng = np.random.Generator(np.random.Philox(key=data.draw(st.integers(0, 2**32 - 1))))
    return rng.integers(-3, 4, sum(structure.section_sizes(kind))) / 2.0


def section_counts(structure, kind, mask):
    return tuple(int(p.sum()) for p in split_sections(structure, kind, mask))


def test_every_row_of_the_registry_is_tested():
    assert set(NAMES) == set(PATTERNS)
    for row, names in NAMES.items():
        assert all(parse_pattern(name).kind == PATTERNS[row].kind for name in names)


@pytest.mark.parametrize("name", ALL_NAMES)
@settings(deadline=None, max_examples=60)
@given(structure=structures(), data=st.data())
def test_masks_are_of_their_pattern_and_have_exactly_its_counts(name, structure, data):
    pattern = parse_pattern(name)
    wanted = counts_for(data, structure, name)
    counts = pattern_counts(name, structure, wanted)
    assert pattern.counts(structure, counts) == counts
    assert all(1 <= k <= n for k, n in zip(counts, structure.section_sizes(pattern.kind), strict=True))
    scores = scores_for(data, structure, pattern.kind)
    before = scores.copy()
    chosen = select(name, scores, structure, wanted)
    assert (scores == before).all()
    drawn = random_masks(name, structure, wanted, KEY, start=0, stop=3)
    shuffled = pattern.shuffled(structure, chosen, KEY, number=5)
    for mask in (chosen, *drawn, shuffled):
        assert mask.dtype == bool
        assert section_counts(structure, pattern.kind, mask) == counts
        assert is_of_pattern(pattern, structure, mask)


@pytest.mark.parametrize("name", ["2:4", "3:5", "4x4", "3x2"])
@settings(deadline=None, max_examples=40)
@given(structure=structures(), data=st.data())
def test_rivals_are_the_units_of_a_tensor_and_as_many_are_kept_as_there_are_survivors(name, structure, data):
    pattern, wanted = parse_pattern(name), counts_for(data, structure, name)
    numbers = iter(pattern.kept(structure, wanted))
    for tensor, count in zip(structure.prunable, pattern_counts(name, structure, wanted), strict=True):
        rivals = pattern.rivals(tensor)
        entries = np.concatenate([index.reshape(-1) for index in rivals]) if rivals else np.array([], dtype=int)
        assert len(set(entries.tolist())) == len(entries)
        assert set(entries.tolist()) <= set(range(tensor.size))
        n_kept = sum(index.shape[0] * index.shape[2] * next(numbers) for index in rivals)
        assert n_kept + tensor.size - len(entries) == count
        if hasattr(pattern, "m"):
            assert all(index.shape[1:] == (pattern.m, 1) for index in rivals)
            continue
        assert len(entries) == tensor.size
        found = [unit for index in rivals for unit in index[0].tolist()]
        assert sorted(found) == sorted(sorted(block) for block in blocks(tensor, pattern.n_out, pattern.n_in))
        assert [index.shape[0] for index in rivals] == [1] * len(rivals)


@settings(deadline=None, max_examples=60)
@given(structure=structures(), n_out=st.integers(1, 4), n_in=st.integers(1, 5), data=st.data())
def test_of_what_is_left_as_many_blocks_are_kept_as_the_count_pays_for(structure, n_out, n_in, data):
    """Never more of a size than there are; and if there are enough, what the count alone says."""
    pattern = parse_pattern(f"{n_out}x{n_in}")
    wanted = counts_for(data, structure, "unstructured")
    fewer = tuple(data.draw(st.integers(1, k)) for k in wanted)
    left = select(pattern, scores_for(data, structure, "weight"), structure, wanted)
    # A mask is of the count that its blocks come to: of several choices, that may be another than what was paid for.
    limits, alone = pattern.kept(structure, pattern.counts(structure, wanted)), pattern.kept(structure, fewer)
    found = pattern.kept(structure, fewer, left)
    numbers = iter(zip(limits, alone, found, strict=True))
    for tensor, count, most in zip(structure.prunable, pattern.counts(structure, fewer), fewer, strict=True):
        sizes = [index.shape[2] for index in pattern.rivals(tensor)]
        rows = [next(numbers) for _ in sizes]
        assert all(n <= limit for limit, _, n in rows)
        if all(n <= limit for limit, n, _ in rows):
            assert [n for _, _, n in rows] == [n for _, n, _ in rows]
        kept = sum(n * size for (_, _, n), size in zip(rows, sizes, strict=True))
        possible = itertools.product(*(range(limit + 1) for limit, _, _ in rows))
        entries = [sum(n * size for n, size in zip(choice, sizes, strict=True)) for choice in possible]
        assert kept == (
            max(e for e in entries if e <= most) or max(s for s, r in zip(sizes, rows, strict=True) if r[0])
        )
        assert kept <= count or kept == max(s for s, r in zip(sizes, rows, strict=True) if r[0])


@given(n=st.integers(1, 9), m=st.integers(1, 9), density=st.floats(0.0, 1.0))
def test_the_way_to_n_of_m_passes_through_every_number_once(n, m, density):
    pattern = parse_pattern(f"{min(n, m)}:{m}")
    assert pattern.on_the_way(1.0).n == m
    assert pattern.on_the_way(pattern.density) == pattern
    assert pattern.n <= pattern.on_the_way(density).n <= m
    assert pattern.on_the_way(density).n <= pattern.on_the_way(min(1.0, density + 0.01)).n
    assert [parse_pattern(name).on_the_way(density) for name in ("4x4", "unstructured")] == [
        parse_pattern("4x4"),
        parse_pattern("unstructured"),
    ]


@pytest.mark.parametrize("name", ALL_NAMES)
@settings(deadline=None, max_examples=30)
@given(structure=structures(), data=st.data())
def test_a_random_mask_depends_on_its_key_and_number_only(name, structure, data):
    wanted = counts_for(data, structure, name)
    masks = random_masks(name, structure, wanted, KEY, start=2, stop=6)
    alone = random_masks(name, structure, wanted, KEY, start=4, stop=5)
    assert (masks[2] == alone[0]).all()
    assert masks.shape == (4, sum(structure.section_sizes(parse_pattern(name).kind)))


@settings(deadline=None)
@given(structure=structures(), data=st.data())
def test_unstructured_and_node_masks_are_those_of_spaces_masks(structure, data):
    for name, kind in (("unstructured", "weight"), ("node", "node")):
        sizes, wanted = structure.section_sizes(kind), counts_for(data, structure, name)
        scores = scores_for(data, structure, kind)
        for counts in (wanted, (sum(wanted),)):
            assert (select(name, scores, structure, counts) == top_k(scores, sizes, counts)).all()
        found = random_masks(name, structure, wanted, KEY, start=0, stop=2)
        assert (found == draw(sizes, wanted, KEY, start=0, stop=2)).all()


@settings(deadline=None)
@given(structure=structures(), n=st.integers(1, 4), m=st.integers(1, 5), data=st.data())
def test_n_m_keeps_the_best_of_each_group_the_first_of_equals(structure, n, m, data):
    n = min(n, m)
    scores = scores_for(data, structure, "weight")
    expected = np.ones(len(scores), dtype=bool)
    start = 0
    for tensor in structure.prunable:
        index = start + np.arange(tensor.size).reshape(tensor.shape)
        start += tensor.size
        if index.ndim < 2:
            continue
        for row in index.reshape(*tensor.shape[:2], -1):
            for place in range(row.shape[1]):
                for a in range(0, tensor.shape[1] // m * m, m):
                    group = row[a : a + m, place].tolist()
                    expected[group] = False
                    expected[sorted(group, key=lambda i: (-scores[i], i))[:n]] = True
    assert (select(f"{n}:{m}", scores, structure) == expected).all()


@settings(deadline=None)
@given(structure=structures(), n_out=st.integers(1, 4), n_in=st.integers(1, 5), data=st.data())
def test_blocks_of_a_size_are_kept_by_their_sums_and_the_count_is_the_nearest_not_above(structure, n_out, n_in, data):
    name = f"{n_out}x{n_in}"
    wanted = counts_for(data, structure, "unstructured")
    counts = pattern_counts(name, structure, wanted)
    scores = scores_for(data, structure, "weight")
    parts = zip(
        structure.prunable,
        split_sections(structure, "weight", select(name, scores, structure, wanted)),
        np.split(scores, np.cumsum(structure.section_sizes("weight"))[:-1]),
        strict=True,
    )
    for (tensor, mask, part), k, count in zip(parts, wanted, counts, strict=True):
        by_size = {}
        for block in blocks(tensor, n_out, n_in):
            by_size.setdefault(len(block), []).append(block)
        choices = list(itertools.product(*(range(len(members) + 1) for members in by_size.values())))
        entries = [sum(n * size for n, size in zip(c, by_size, strict=True)) for c in choices]
        assert count == (max(e for e in entries if e <= k) or max(by_size))
        numbers = []
        for members in by_size.values():
            best = sorted(members, key=lambda block: -part[block].sum())  # sorting is stable
            kept = [block for block in members if mask[block].all()]
            assert kept == sorted(best[: len(kept)])
            numbers.append(len(kept))

        shares = np.array([len(members) * count / tensor.size for members in by_size.values()])
        misses = np.abs(np.array(choices) - shares).sum(axis=1)[np.array(entries) == count]
        assert np.abs(numbers - shares).sum() == pytest.approx(misses.min())


@settings(deadline=None)
@given(structure=structures(), n_out=st.integers(1, 5), n_in=st.integers(1, 5), data=st.data())
def test_blocks_follow_from_the_entries_that_they_have(structure, n_out, n_in, data):
    """Asked for what it keeps, a pattern keeps the same blocks: not those nearest to what somebody wanted before."""
    rule = Block(n_out, n_in)
    wanted = [data.draw(st.integers(1, t.size)) for t in structure.prunable]
    assert rule.kept(structure, rule.counts(structure, wanted)) == rule.kept(structure, wanted)


def test_blocks_of_equal_entries_are_the_same_whatever_was_wanted():
    net = Structure((Tensor("a", (7, 4, 3), True),), ())
    assert Block(2, 3).kept(net, [43]) == Block(2, 3).kept(net, [42]) == (2, 0, 1, 0)


def test_a_block_of_a_convolution_holds_its_kernel_positions():
    net = Structure((Tensor("a", (4, 4, 3), True),), ())
    scores = np.zeros((4, 4, 3))
    scores[2, 1, 2] = 1.0
    mask = select("2x2", scores.reshape(-1), net, [12]).reshape(4, 4, 3)
    assert mask[2:, :2].all()
    assert mask.sum() == 12


def test_the_input_dimension_of_a_convolution_is_its_channels():
    net = Structure((Tensor("a", (1, 4, 2), True),), ())
    scores = np.array([[[1.0, 8], [2, 7], [3, 6], [4, 5]]])
    mask = select("2:4", scores.reshape(-1), net).reshape(4, 2)
    assert mask.astype(int).T.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("2:4", 22_144), ("1:4", 11_072), ("4:8", 22_144), ("1:3", None), ("4:4", 44_288)],
)
def test_the_density_of_an_n_m_mask_follows_from_n_and_m(name, expected):
    shapes = [(256, 40), (128, 256), (10, 128)]
    net = Structure(tuple(Tensor(str(i), s, True) for i, s in enumerate(shapes)), ())
    if expected is None:  # 40 = 13 x 3 + 1, 256 = 85 x 3 + 1, 128 = 42 x 3 + 2: the rest is dense
        expected = 256 * (13 + 1) + 128 * (85 + 1) + 10 * (42 + 2)
    else:
        n, m = map(int, name.split(":"))
        assert parse_pattern(name).density == n / m == expected / net.n_weights
    assert sum(pattern_counts(name, net)) == expected


@pytest.mark.parametrize(
    ("name", "wanted", "n_masks"), [("2:4", None, 6**2), ("2x2", [8], math.comb(4, 2)), ("3x2", [8], None)]
)
def test_random_masks_are_uniform_over_their_pattern(name, wanted, n_masks):
    shape = (2, 4) if name == "2:4" else (4, 4)
    net = Structure((Tensor("a", shape, True),), ())
    n = 3600
    seen = {}
    for row in random_masks(name, net, wanted, KEY, start=0, stop=n):
        seen[row.tobytes()] = seen.get(row.tobytes(), 0) + 1
    if n_masks is None:  # 2 blocks of 3 x 2 and 2 of 1 x 2: one of each is 8 entries
        n_masks = 4
    assert len(seen) == n_masks
    expected = n / n_masks
    chi2 = sum((k - expected) ** 2 / expected for k in seen.values())
    assert chi2 < 2 * n_masks + 40  # far beyond the 1e-6 quantile of each; the key is fixed


def test_a_shuffled_block_mask_keeps_the_number_of_blocks_of_each_size():
    net = Structure((Tensor("a", (6, 4), True),), ())  # of 4 x 4: one full, one of 2 x 4
    mask = np.zeros((6, 4), dtype=bool)
    mask[4:] = True
    pattern = parse_pattern("4x4")
    assert (pattern.shuffled(net, mask.reshape(-1), KEY, number=0) == mask.reshape(-1)).all()


def test_patterns_that_cannot_be_are_refused():
    net = Structure((Tensor("a", (4, 4), True), Tensor("b", (2, 4), True)), ())
    good = np.arange(24.0)
    with pytest.raises(SpaceError, match="pattern='2;4': must be one of unstructured, node, N:M, such as 2:4, OxI"):
        parse_pattern("2;4")
    with pytest.raises(SpaceError, match="did you mean 'unstructured'"):
        parse_pattern("unstructurd")
    with pytest.raises(SpaceError, match=r"pattern='n_m' with options \['n'\]: takes n, m; written N:M, such as 2:4"):
        parse_pattern("n_m", n=2)
    with pytest.raises(SpaceError, match=r"pattern='node' with options \['n'\]: takes none; written node"):
        parse_pattern("node", n=2)
    for name in ("5:4", "0:4", "0:0"):
        with pytest.raises(SpaceError, match=f"pattern {name}: N of M with 1 <= N <= M is needed"):
            parse_pattern(name)
    with pytest.raises(SpaceError, match="pattern 0x4: a block has at least 1x1 entries"):
        parse_pattern("0x4")
    with pytest.raises(SpaceError, match="counts=None for a weight mask: must be given"):
        select("unstructured", good, net)
    with pytest.raises(SpaceError, match=r"counts=\[9\] for a block pattern: one for each of the 2 tensors is needed"):
        select("2x2", good, net, [9])
    with pytest.raises(SpaceError, match=r"counts=\[0, 8\]: 0 for tensor 'a', must lie in 1..16"):
        select("2x2", good, net, [0, 8])
    with pytest.raises(SpaceError, match=r"counts=\[5, 4\]: whole blocks of 2x2 leave \[4, 4\]; take these"):
        parse_pattern("2x2").select(good, net, [5, 4])
    with pytest.raises(SpaceError, match=r"counts=\[8, 3\]: pattern 2:4 leaves \[8, 4\] of this network"):
        parse_pattern("2:4").select(good, net, [8, 3])
    for name in ("unstructured", "2:4", "2x2"):
        with pytest.raises(
            SpaceError, match=r"scores of shape \(23,\): one for each of the 24 entries of a weight mask"
        ):
            select(name, good[:-1], net, [8, 4])
        with pytest.raises(SpaceError, match="scores: must be finite; a diverged network cannot be pruned"):
            select(name, np.append(good[:-1], np.nan), net, [8, 4])
    mask = np.zeros(24, dtype=bool)
    mask[[0, 16]] = True
    with pytest.raises(SpaceError, match="mask of 2 weights: is no 2:4 mask of this network"):
        parse_pattern("2:4").shuffled(net, mask, KEY, number=0)
    with pytest.raises(SpaceError, match="mask: cuts a block of tensor 'a'; is no 2x2 mask"):
        parse_pattern("2x2").shuffled(net, mask, KEY, number=0)
