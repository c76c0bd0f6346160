"""Masks: exact counts, uniform draws that any machine can repeat, bits that survive the disk, and what remains."""

import itertools
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sparsefront.errors import SpaceError
from sparsefront.spaces import masks
from sparsefront.spaces.masks import draw, mask_digest, pack_bits, remains, remains_of, top_k, unpack_bits
from sparsefront.spaces.seeds import philox_key
from tests.oracles import spaces as oracle
from tests.oracles.networks import N_CLASSES, N_INPUTS, SMALL, small_model

KEY = philox_key(3, "mask", 0, 900_000_000)


def counts_of(drawn, sizes):
    edges = np.cumsum([0, *sizes])[:-1]
    return np.add.reduceat(drawn, edges, axis=1, dtype=np.int64)


# Drawing.


@pytest.mark.parametrize("counts", [[26, 13], [1, 1], [256, 128], [255, 1]])
def test_every_drawn_mask_has_exactly_the_counts_of_each_section(counts):
    drawn = draw([256, 128], counts, KEY, start=0, stop=300)
    assert drawn.shape == (300, 384)
    assert (counts_of(drawn, [256, 128]) == counts).all()


@pytest.mark.parametrize("count", [2, 3, 10, 16])
def test_every_globally_drawn_mask_has_exactly_the_count_and_no_empty_section(count):
    drawn = draw([12, 4], [count], KEY, start=0, stop=500)
    assert (drawn.sum(axis=1) == count).all()
    assert (counts_of(drawn, [12, 4]) >= 1).all()


@pytest.mark.parametrize(("sizes", "counts"), [([20, 13], [5, 3]), ([14, 2, 1], [4])])
def test_a_row_does_not_depend_on_the_range_it_is_drawn_in(sizes, counts):
    together = draw(sizes, counts, KEY, start=0, stop=60)
    alone = [draw(sizes, counts, KEY, start=i, stop=i + 1)[0] for i in range(60)]
    assert (together == alone).all()
    assert (draw(sizes, counts, KEY, start=17, stop=43) == together[17:43]).all()
    assert draw(sizes, counts, KEY, start=5, stop=5).shape == (0, sum(sizes))


def test_rows_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    whole = draw([20, 13], [5, 3], KEY, start=3, stop=90)
    monkeypatch.setattr(masks, "_WORDS_AT_ONCE", 7 * 33)
    assert (draw([20, 13], [5, 3], KEY, start=3, stop=90) == whole).all()


def test_another_key_gives_other_masks():
    a = draw([256, 128], [26, 13], philox_key(3, "mask", 0, 900_000_000), start=0, stop=50)
    b = draw([256, 128], [26, 13], philox_key(3, "mask", 1, 900_000_000), start=0, stop=50)
    assert not (a == b).all(axis=1).any()


def test_another_process_draws_the_same_masks():
    code = (
        "import json; from sparsefront.spaces.masks import *; from sparsefront.spaces.seeds import philox_key\n"
        "key = philox_key(3, 'mask', 0, 900000000)\n"
        "rows = [*draw([256, 128], [26, 13], key, start=73_210, stop=73_213)]\n"
        "rows += [*draw([14, 2], [3], key, start=9, stop=12)]\n"
        "print(json.dumps([mask_digest(pack_bits(row)) for row in rows]))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    here = [*draw([256, 128], [26, 13], KEY, start=73_210, stop=73_213), *draw([14, 2], [3], KEY, start=9, stop=12)]
    assert json.loads(printed) == [mask_digest(pack_bits(row)) for row in here]


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [([5], [2]), ([4, 3], [2, 1]), ([2, 1], [2]), ([4, 2, 1], [4])],
)
def test_draws_are_uniform_over_all_masks_with_the_counts(sizes, counts):
    """Chi-square over all possible masks, 500 expected each; false-alarm rate 1e-6 (of the fixed key, once for all)."""
    possible = []
    for bits in itertools.product([False, True], repeat=sum(sizes)):
        found = [sum(section) for section in oracle.sections_of(sizes, bits)]
        if found == counts or (len(counts) == 1 < len(sizes) and sum(found) == counts[0] and min(found) >= 1):
            possible.append(bits)
    drawn = draw(sizes, counts, KEY, start=0, stop=500 * len(possible))
    seen = dict.fromkeys(possible, 0)
    for row in drawn.tolist():
        seen[tuple(row)] += 1
    statistic = sum((n - 500) ** 2 / 500 for n in seen.values())
    assert statistic < stats.chi2.isf(1e-6, len(possible) - 1)


def test_neighbouring_rows_are_independent():
    """Overlap of consecutive masks is hypergeometric: its mean over 20,000 pairs within 5 standard errors (6e-7)."""
    drawn = draw([40], [10], KEY, start=0, stop=20_001)
    overlap = (drawn[1:] & drawn[:-1]).sum(axis=1)
    law = stats.hypergeom(40, 10, 10)
    assert abs(overlap.mean() - law.mean()) < 5 * law.std() / np.sqrt(len(overlap))


def test_equal_random_words_are_broken_by_the_lower_index(monkeypatch):
    """Real words tie once in 2^32: words of two values force it."""
    monkeypatch.setattr(masks, "raw_rows", lambda key, *, start, stop, width: WORDS[start:stop, :width])
    drawn = draw([5, 3], [3, 1], KEY, start=0, stop=len(WORDS))
    for row, words in zip(drawn, WORDS, strict=True):
        expected = oracle.top_k([-float(w) for w in words], [5, 3], [3, 1])
        assert row.tolist() == expected


WORDS = np.array(list(itertools.product([4, 9], repeat=8)), dtype=np.uint32)


def test_a_hundred_thousand_masks_are_drawn_in_bounded_memory():
    tracemalloc.start()
    try:
        drawn = draw([256, 128], [26, 13], KEY, start=0, stop=100_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert drawn.shape == (100_000, 384)
    assert (counts_of(drawn, [256, 128]) == [26, 13]).all()
    # The words of all masks would be 154 MB; a chunk of 64 MiB of them, its row-aligned original and a sorted copy fit.
    assert peak_bytes < drawn.nbytes + 4 * 64 * 2**20


@pytest.mark.parametrize(
    ("sizes", "counts", "message"),
    [
        ([4, 3], [0, 1], r"counts=\[0, 1\] for sections of \[4, 3\]: each must lie in 1..size"),
        ([4, 3], [5, 1], r"counts=\[5, 1\] for sections of \[4, 3\]: each must lie in 1..size"),
        ([4, 3, 2], [1, 1], r"counts=\[1, 1\] for sections of \[4, 3, 2\]"),
        ([4, 3, 2], [2], r"counts=\[2\] over 3 sections: at least one survivor in each is needed"),
        ([4, 3], [8], r"counts=\[8\]"),
    ],
)
def test_counts_that_cannot_be_kept_are_refused(sizes, counts, message):
    with pytest.raises(SpaceError, match=message):
        draw(sizes, counts, KEY, start=0, stop=1)
    with pytest.raises(SpaceError, match=message):
        top_k(np.arange(float(sum(sizes))), sizes, counts)


def test_a_global_count_that_practically_never_fills_every_layer_gives_up_with_advice(monkeypatch):
    monkeypatch.setattr(masks, "_ATTEMPTS", 3)
    with pytest.raises(SpaceError, match="3 draws left a layer without a survivor; use allocation 'uniform'"):
        draw([100_000, 1], [2], KEY, start=0, stop=3)


# The best entries.


def test_top_k_keeps_the_highest_scores_and_the_first_of_equals():
    assert top_k(np.array([1.0, 3.0, 3.0, 3.0, 2.0]), [5], [2]).tolist() == [False, True, True, False, False]
    assert top_k(np.array([0.0, -0.0, 0.0]), [3], [1]).tolist() == [True, False, False]


def test_a_global_top_k_keeps_the_best_entry_of_every_section():
    scores = np.array([9.0, 8.0, 7.0, 6.0, 0.1, 0.2])
    assert top_k(scores, [4, 2], [3]).tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(SpaceError, match="scores: must be finite; a diverged network cannot be pruned"):
        top_k(np.array([1.0, bad]), [2], [1])


def test_scores_are_not_modified():
    scores = np.array([1.0, 2.0, 3.0])
    scores.setflags(write=False)
    top_k(scores, [1, 2], [2])


# Bits.


def test_packed_bits_are_little_endian_with_a_zero_tail():
    mask = np.array([True, False, False, False, False, False, False, False, True, True])
    assert pack_bits(mask).tobytes() == b"\x01\x03"
    assert unpack_bits(b"\x01\x03", 10).tolist() == mask.tolist()


def test_masks_packed_together_are_packed_as_if_alone():
    drawn = draw([9, 4], [3, 2], KEY, start=0, stop=20)
    assert (pack_bits(drawn) == [pack_bits(row) for row in drawn]).all()
    assert (unpack_bits(pack_bits(drawn), 13) == drawn).all()


def test_the_digest_is_pinned_and_the_same_for_bytes_and_arrays():
    bits = pack_bits(np.array([True, False, True]))
    assert mask_digest(bits) == mask_digest(bits.tobytes()) == "e77b9a9ae9e30b0dbdb6f510a264ef9d"


@pytest.mark.parametrize("n_bytes", [0, 1, 3])
def test_bits_of_another_size_are_refused(n_bytes):
    with pytest.raises(SpaceError, match=f"packed mask of {n_bytes} bytes: a mask of 13 entries has 2"):
        unpack_bits(bytes(n_bytes), 13)


@pytest.mark.parametrize("bit", [13, 14, 15])
def test_a_bit_set_in_the_padding_is_damage(bit):
    damaged = bytearray(pack_bits(np.ones(13, dtype=bool)).tobytes())
    damaged[bit // 8] |= 1 << bit % 8
    with pytest.raises(SpaceError, match="packed mask of 13 entries: bits beyond its end are set; the mask is damaged"):
        unpack_bits(bytes(damaged), 13)


def test_every_flipped_bit_changes_the_digest():
    bits = pack_bits(draw([13], [5], KEY, start=0, stop=1)[0])
    digests = {mask_digest(bits)}
    for i in range(16):
        flipped = bits.copy()
        flipped[i // 8] ^= 1 << i % 8
        digests.add(mask_digest(flipped))
    assert len(digests) == 17


# What remains.


def macs_by_counting(model, weights_shape):
    """Half the floating-point operations that torch counts while the network runs on one example."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in weights_shape.items()}
    with FlopCounterMode(display=False) as counter:
        functional_call(model.module, weights, (torch.empty(1, N_INPUTS, device="meta"),))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_a_node_mask_leaves_is_what_can_be_counted(family, bias, allocation):
    model = small_model(family, bias=bias)
    structure = model.structure
    sizes = structure.section_sizes("node")
    counts = [n // 2 for n in sizes] if allocation == "uniform" else [sum(sizes) // 2]
    for mask in draw(sizes, counts, KEY, start=0, stop=5):
        alive = oracle.surviving_entries(structure, mask)
        left = remains(structure, "node", mask)
        assert left.n_params == sum(int(a.sum()) for a in alive.values())
        kept_weights = sum(int(alive[t.name].sum()) for t in structure.prunable)
        assert left.weight_sparsity == pytest.approx(1 - kept_weights / structure.n_weights, abs=1e-15)
        assert left.node_sparsity == pytest.approx(1 - sum(mask) / len(mask), abs=1e-15)
        kept = [sum(section) for section in oracle.sections_of(sizes, mask.tolist())]
        shapes = {t.name: t.shape for t in structure.compact(kept).tensors}
        assert left.macs == macs_by_counting(model, shapes)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("bias", [True, False, "pruned"])
@pytest.mark.parametrize("kept_fraction", [0.5, 0.1, 0.03])
def test_what_a_weight_mask_leaves_is_what_can_be_counted(family, bias, kept_fraction):
    structure = small_model(family, bias=bool(bias)).structure
    if bias == "pruned":
        n_layers, structure = len(structure.prunable), structure.with_prunable_biases()
        assert len(structure.section_sizes("weight")) == n_layers
        assert [t.name.rpartition(".")[2] for t in structure.prunable] == ["weight", "bias"] * n_layers
    sizes = structure.section_sizes("weight")
    positions = {t.name: t.positions for t in structure.prunable}
    for mask in draw(sizes, [max(len(sizes), int(kept_fraction * sum(sizes)))], KEY, start=0, stop=5):
        parts = oracle.weight_parts(structure, mask.tolist())
        left = remains(structure, "weight", mask)
        n_biases = sum(t.size for t in structure.tensors if not t.prunable)
        assert left.n_params == int(mask.sum()) + n_biases
        assert left.weight_sparsity == pytest.approx(1 - mask.mean(), abs=1e-15)
        assert left.macs == sum(int(part.sum()) * positions[name] for name, part in parts.items())
        n_dead = oracle.dead_nodes(family, structure, mask.tolist())
        assert left.node_sparsity == pytest.approx(n_dead / structure.n_nodes, abs=1e-15)


@pytest.mark.parametrize("family", SMALL)
def test_the_full_mask_leaves_the_parent(family):
    structure = small_model(family).structure
    for kind in ("node", "weight"):
        left = remains(structure, kind, np.ones(sum(structure.section_sizes(kind)), dtype=bool))
        assert left == remains_of(structure, structure)
        assert (left.node_sparsity, left.weight_sparsity, left.n_params) == (0, 0, structure.n_params)


def test_counts_by_hand_of_a_perceptron_with_one_node_of_three_removed():
    model = small_model("mlp", widths=(3,))
    left = remains(model.structure, "node", np.array([True, False, True]))
    assert left.n_params == N_INPUTS * 2 + 2 + 2 * N_CLASSES + N_CLASSES
    assert left.macs == N_INPUTS * 2 + 2 * N_CLASSES
    assert left.node_sparsity == pytest.approx(1 / 3)
