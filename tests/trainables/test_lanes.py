"""Lanes: a node-masked parent and its compact copy give the same outputs, and padding is silent."""

import numpy as np
import pytest
import torch

from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables.gradients import forward
from sparsefront.trainables.lanes import Layout, dense_lanes, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.models import initial_weights
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow

KEY = philox_key(11, "lanes")


def parent_of(model, init="torch"):
    """Initial weights of a parent as tensors; torch's initialisation, whose biases are not zero."""
    weights = initial_weights(model.structure, init, generator(2, "lanes"))
    return {name: torch.from_numpy(w) for name, w in weights.items()}


def inputs(n=13):
    return torch.from_numpy(generator(3, "lanes").standard_normal((n, oracle.N_INPUTS)).astype(np.float32))


def node_masks(structure, allocation, n=6):
    sizes = structure.section_sizes("node")
    counts = [max(1, s // 2) for s in sizes] if allocation == "uniform" else [max(len(sizes), sum(sizes) // 2)]
    return draw(sizes, counts, KEY, start=0, stop=n)


def groups_of(structure, mask):
    return [torch.tensor(part) for part in slow.sections_of(structure.section_sizes("node"), mask.tolist())]


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("family", oracle.SMALL)
def test_a_masked_parent_and_its_compact_copy_give_the_same_outputs(family, allocation, bias, activation):
    model = oracle.small_model(family, bias=bias, activation=activation)
    parent, x = parent_of(model), inputs()
    masks = node_masks(model.structure, allocation)
    lanes = node_masked_lanes(model.structure, parent, masks)
    if allocation == "uniform":
        assert lanes.keep is None
    for mask, logits in zip(masks, forward(model, lanes.layout, lanes.flat, x), strict=True):
        groups = groups_of(model.structure, mask)
        masked = oracle.logits(family, parent, x, activation=activation, node_masks=groups)
        torch.testing.assert_close(logits, masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["mlp", "conv1d"])
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
def test_padded_lanes_compute_what_they_compute_alone(family, activation):
    """Lanes of very different size in one pack: the narrow ones are mostly padding."""
    model = oracle.small_model(family, activation=activation)
    parent, x = parent_of(model), inputs()
    sizes = model.structure.section_sizes("node")
    masks = np.concatenate(
        [draw(sizes, counts, KEY, start=0, stop=1) for counts in ([1] * len(sizes), [*sizes], [2] * len(sizes))]
    )
    together = node_masked_lanes(model.structure, parent, masks)
    assert together.keep is not None
    for i, logits in enumerate(forward(model, together.layout, together.flat, x)):
        alone = node_masked_lanes(model.structure, parent, masks[i : i + 1])
        assert alone.keep is None
        torch.testing.assert_close(logits, forward(model, alone.layout, alone.flat, x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("bias", [True, False])
def test_node_masked_lanes_hold_the_kept_entries_and_zeros_for_padding(family, bias):
    model = oracle.small_model(family, bias=bias)
    parent = parent_of(model)
    masks = node_masks(model.structure, "global")
    lanes = node_masked_lanes(model.structure, parent, masks)
    keep = torch.ones_like(lanes.flat) if lanes.keep is None else lanes.keep
    assert set(keep.unique().tolist()) <= {0.0, 1.0}
    assert (lanes.flat[keep == 0] == 0).all()
    for mask, row, kept in zip(masks, lanes.flat, keep, strict=True):
        compact = oracle.compact_weights(model.structure, parent, mask)
        assert int(kept.sum()) == sum(w.numel() for w in compact.values())
        views, kept_views = lanes.layout.views(row[None]), lanes.layout.views(kept[None])
        for name, weight in compact.items():
            held = views[name][0][kept_views[name][0] == 1].reshape(weight.shape)
            assert torch.equal(held, weight), name


@pytest.mark.parametrize("family", oracle.SMALL)
@pytest.mark.parametrize("bias", [True, False])
def test_weight_masked_lanes_are_the_parent_times_the_mask(family, bias):
    model = oracle.small_model(family, bias=bias)
    parent, x = parent_of(model), inputs()
    sizes = model.structure.section_sizes("weight")
    masks = draw(sizes, [s // 3 for s in sizes], KEY, start=0, stop=4)
    lanes = weight_masked_lanes(model.structure, parent, masks)
    views, kept = lanes.layout.views(lanes.flat), lanes.layout.views(lanes.keep)
    for i, mask in enumerate(masks):
        parts = {n: torch.from_numpy(p) for n, p in slow.weight_parts(model.structure, mask.tolist()).items()}
        masked = {n: w * parts[n] if n in parts else w for n, w in parent.items()}
        for name, weight in masked.items():
            assert torch.equal(views[name][i], weight)
            assert torch.equal(kept[name][i], parts[name].float() if name in parts else torch.ones_like(weight))
        logits = forward(model, lanes.layout, lanes.flat, x)[i]
        torch.testing.assert_close(logits, oracle.logits(family, masked, x), rtol=0, atol=1e-5)


def test_the_full_mask_is_the_parent():
    model = oracle.small_model("conv1d")
    parent = parent_of(model)
    dense = dense_lanes(model.structure, [{n: w.numpy() for n, w in parent.items()}], torch.device("cpu"))
    n_nodes, n_weights = model.structure.n_nodes, model.structure.n_weights
    assert torch.equal(node_masked_lanes(model.structure, parent, np.ones((1, n_nodes), bool)).flat, dense.flat)
    assert torch.equal(weight_masked_lanes(model.structure, parent, np.ones((1, n_weights), bool)).flat, dense.flat)


def test_the_parent_is_not_modified_and_not_shared():
    model = oracle.small_model("mlp")
    parent = parent_of(model)
    before = {n: w.clone() for n, w in parent.items()}
    full = np.ones((2, model.structure.n_nodes), bool)
    for lanes in (
        node_masked_lanes(model.structure, parent, full),
        weight_masked_lanes(model.structure, parent, np.ones((2, model.structure.n_weights), bool)),
    ):
        lanes.flat.fill_(7.0)
    assert all(torch.equal(parent[n], before[n]) for n in parent)


def test_views_are_inverse_to_flatten():
    layout = Layout.of(oracle.small_model("conv1d").structure)
    flat = torch.arange(3.0 * layout.width).reshape(3, -1)
    views = layout.views(flat)
    assert {n: tuple(v.shape[1:]) for n, v in views.items()} == dict(zip(layout.names, layout.shapes, strict=True))
    assert torch.equal(layout.flatten(views), flat)
    views[layout.names[0]][1] = -1.0
    assert (flat[1, : layout.sizes[0]] == -1).all()


def test_selected_lanes_are_copies():
    model = oracle.small_model("mlp")
    masks = node_masks(model.structure, "global")
    lanes = node_masked_lanes(model.structure, parent_of(model), masks)
    for lanes_wanted in ([4, 0], slice(2, 4)):
        chosen = lanes.select(lanes_wanted)
        assert torch.equal(chosen.flat, lanes.flat[lanes_wanted])
        assert torch.equal(chosen.keep, lanes.keep[lanes_wanted])
        chosen.flat.zero_()
        chosen.keep.zero_()
    assert lanes.flat.abs().sum() > 0
    assert lanes.keep.sum() > 0
