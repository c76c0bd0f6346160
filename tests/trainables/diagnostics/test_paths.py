from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.spaces.masks import split_sections
from sparsefront.trainables.diagnostics.paths import find_paths
from sparsefront.trainables.gradients import forward
from sparsefront.trainables.lanes import LaneStack, dense_lanes, weight_masked_lanes
from sparsefront.trainables.models import build_model, initial_weights
from tests.oracles.networks import N_INPUTS, SMALL, logits, small_model

TINY = {
    "mlp": {"widths": [4, 3]},
    "residual_mlp": {"width": 4},
    "hourglass": {"skip_width": 3, "hidden_width": 2, "depth": 2},
}
FAMILIES = list(SMALL)


def tiny_model(family):
    return build_model(family, TINY[family], input_shape=(3,), n_classes=2)


def masked_lanes(model, masks, rng=None):
    """Lanes of random weights, biases included."""
    rng = rng or np.random.default_rng(0)
    parent = {t.name: torch.from_numpy(rng.standard_normal(t.shape).astype("f")) for t in model.structure.tensors}
    return weight_masked_lanes(model.structure, parent, masks)


def links(family, structure):
    """Edges of the unrolled network: ((stage, unit), (stage, unit), weight or None for a skip); stages from 0."""
    shapes = {t.name: t.shape for t in structure.tensors}
    names = [t.name for t in structure.multiplied]
    edges = []

    def layer(name, source, target):
        rows, columns = shapes[name]
        edges.extend(((source, j), (target, i), (name, i, j)) for i in range(rows) for j in range(columns))

    def skip(source, target, width):
        edges.extend(((source, i), (target, i), None) for i in range(width))

    if family == "mlp":
        for stage, name in enumerate(names):
            layer(name, stage, stage + 1)
        return edges, len(names)
    if family == "residual_mlp":
        layer("linear1.weight", 0, 1)
        layer("linear2.weight", 1, 2)
        skip(1, 2, shapes["linear1.weight"][0])
        layer("linear3.weight", 2, 3)
        return edges, 3
    layer("lift.weight", 0, 1)
    stage = 1
    for name in names[1:-1:2]:
        layer(name, stage, stage + 1)
        layer(name.replace("first", "second"), stage + 1, stage + 2)
        skip(stage, stage + 2, shapes["lift.weight"][0])
        stage += 2
    layer("out.weight", stage, stage + 1)
    return edges, stage + 1


def on_paths(family, structure, mask):
    """Weights on any path, by walking all of them."""
    parts = dict(zip((t.name for t in structure.prunable), split_sections(structure, "weight", mask), strict=True))
    kept = {t.name: parts[t.name].reshape(t.shape) for t in structure.prunable}
    edges, last = links(family, structure)
    leaving = {}
    for source, target, weight in edges:
        if weight is None or kept[weight[0]][weight[1:]]:
            leaving.setdefault(source, []).append((target, weight))
    found = set()

    def walk(node, path):
        if node[0] == last:
            found.update(path)
            return
        for target, weight in leaving.get(node, []):
            walk(target, [*path, weight] if weight else path)

    for unit in range(3):
        walk((0, unit), [])
    return {
        name: np.array([(name, *index) in found for index in np.ndindex(k.shape)]).reshape(k.shape)
        for name, k in kept.items()
    }


@pytest.mark.parametrize("family", TINY)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.1, 0.25, 0.4, 0.7]))
def test_effective_weights_are_those_on_a_path(family, seed, density):
    model = tiny_model(family)
    masks = np.random.default_rng(seed).random((3, model.structure.n_weights)) < density
    paths = find_paths(model.structure, masked_lanes(model, masks))
    for lane, mask in enumerate(masks):
        expected = on_paths(family, model.structure, mask)
        for name, entries in expected.items():
            np.testing.assert_array_equal(paths.effective[name][lane].numpy(), entries, err_msg=name)
        assert bool(paths.is_connected[lane]) == any(e.any() for e in expected.values())


def synaptic_flow(family, structure, keep):
    """SynFlow's w dR/dw of every weight for weights of one and an input of ones: how many paths go through it."""
    weights = {
        t.name: (keep[t.name].double() if len(t.shape) > 1 else torch.zeros(t.shape).double()).requires_grad_()
        for t in structure.tensors
    }
    total = logits(family, weights, torch.ones(1, N_INPUTS, dtype=torch.float64)).sum()
    total.backward()
    return total.item(), {n: (w * w.grad).detach() for n, w in weights.items() if w.dim() > 1}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.05, 0.15, 0.4]))
def test_agrees_with_synaptic_flow(family, seed, density):
    structure = small_model(family).structure
    mask = np.random.default_rng(seed).random((1, structure.n_weights)) < density
    lanes = masked_lanes(small_model(family), mask)
    paths = find_paths(structure, lanes)
    kept = {n: k[0] for n, k in paths.kept.items()}
    if family == "conv1d":  # whole kernels and channels: a tap that meets padding alone is taken for a path
        for tensor in structure.prunable:
            lengths = (tensor.shape[0], -1, 2) if tensor.name == "linear.weight" else (*tensor.shape[:2], -1)
            any_tap = kept[tensor.name].view(lengths).any(dim=2, keepdim=True)
            kept[tensor.name] = any_tap.expand(*any_tap.shape[:2], kept[tensor.name].numel() // any_tap.numel())
            kept[tensor.name] = kept[tensor.name].reshape(tensor.shape)
        keep = torch.cat([kept[n].flatten() for n in lanes.layout.names])[None].float()
        paths = find_paths(structure, replace(lanes, keep=keep))
    total, flow = synaptic_flow(family, structure, kept)
    assert bool(paths.is_connected[0]) == (total > 0)
    for name, through in flow.items():
        assert torch.equal(paths.effective[name][0], through > 0), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_convolutions_never_lose_a_path(seed):
    structure = small_model("conv1d").structure
    mask = np.random.default_rng(seed).random((1, structure.n_weights)) < 0.1
    paths = find_paths(structure, masked_lanes(small_model("conv1d"), mask))
    _, flow = synaptic_flow("conv1d", structure, {n: k[0] for n, k in paths.kept.items()})
    for name, through in flow.items():
        assert bool((paths.effective[name][0] | (through == 0)).all()), name


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_removing_what_is_dead_changes_no_output(family, activation):
    """Without biases a constant unit is silent, and all that is not effective can go."""
    model = small_model(family, bias=False, activation=activation)
    rng = np.random.default_rng(3)
    masks = rng.random((20, model.structure.n_weights)) < rng.choice([0.05, 0.1, 0.2], (20, 1))
    lanes = masked_lanes(model, masks, rng)
    paths = find_paths(model.structure, lanes)
    rest = lanes.flat * lanes.layout.flatten({n: e.float() for n, e in paths.effective.items()})
    assert int((rest != lanes.flat).sum()) > 100
    x = torch.from_numpy(rng.standard_normal((7, N_INPUTS)).astype("f"))
    before, after = (forward(model, lanes.layout, flat, x) for flat in (lanes.flat, rest))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_a_dead_node_changes_no_output(family):
    """Node by node, biases included: one that is not alive can go if it is useless, or constant and silent."""
    model = small_model(family)
    rng = np.random.default_rng(4)
    masks = rng.random((10, model.structure.n_weights)) < 0.1
    lanes = masked_lanes(model, masks, rng)
    views = lanes.layout.views(lanes.flat)
    for name, tensor in views.items():
        if name.endswith("bias"):
            tensor.copy_(-tensor.abs())  # silent where constant
    paths = find_paths(model.structure, lanes)
    x = torch.from_numpy(rng.standard_normal((7, N_INPUTS)).astype("f"))
    before = forward(model, lanes.layout, lanes.flat, x)
    n_removed = 0
    for group, reached, alive in zip(model.structure.groups, paths.is_reached, paths.is_alive, strict=True):
        if family == "hourglass" and group.name == "stream":
            continue  # has no activation that would silence its biases
        flat = lanes.flat.clone()
        removed = ~alive & ~reached
        n_removed += int(removed.sum())
        for axis in group.axes:
            tensor = lanes.layout.views(flat)[axis.tensor].movedim(1 + axis.dim, 1)
            gone = removed.repeat_interleave(axis.repeat, dim=1)
            tensor[gone] = 0.0
        torch.testing.assert_close(forward(model, lanes.layout, flat, x), before, rtol=1e-5, atol=1e-5)
    assert n_removed > 0


@pytest.mark.parametrize("family", ["mlp", "residual_mlp"])
def test_constants_fold_into_the_biases_that_stay(family):
    model = small_model(family)
    structure = model.structure
    rng = np.random.default_rng(5)
    masks = rng.random((30, structure.n_weights)) < rng.choice([0.05, 0.1, 0.2], (30, 1))
    lanes = masked_lanes(model, masks, rng)
    paths = find_paths(structure, lanes)
    x = torch.from_numpy(rng.standard_normal((7, N_INPUTS)))
    n_folded = 0
    for lane in range(len(lanes)):
        weights = {n: t[lane].double() for n, t in lanes.layout.views(lanes.flat).items()}
        stays = {n: e[lane].double() for n, e in paths.effective.items()}
        n_folded += sum(int((1 - s).sum()) for n, s in stays.items() if n.endswith("bias"))
        folded = {n: w.clone() for n, w in weights.items()}
        names = [t.name.removesuffix(".weight") for t in structure.prunable]
        constants = []  # of every layer read by the next: what its constant units hand on, zero for the others
        for i, name in enumerate(names):
            readers = names[i - 1 : i] if family == "mlp" else names[:i]
            for constant in constants[-len(readers) :] if readers else []:
                folded[f"{name}.bias"] += weights[f"{name}.weight"] @ constant
            is_constant = ~paths.varying[f"{name}.weight"][lane]
            constants.append(torch.relu(folded[f"{name}.bias"]) * is_constant)
        pruned = {n: w * stays[n] for n, w in folded.items()}
        torch.testing.assert_close(logits(family, pruned, x), logits(family, weights, x))
    assert n_folded > 30


def test_reads_the_stream_before_it_is_written():
    """A unit that only the block brings to life does not feed the block that did it."""
    model = build_model("residual_mlp", {"width": 2, "bias": False}, input_shape=(1,), n_classes=1)
    # linear1: unit 0 alone sees the input. linear2: 0 -> 1, and 1 -> 0, which reads unit 1 before it lives.
    paths = find_paths(model.structure, masked_lanes(model, np.array([[1, 0, 0, 1, 1, 0, 1, 1]], dtype=bool)))
    assert paths.effective["linear2.weight"][0].tolist() == [[False, False], [True, False]]
    assert paths.is_alive[0][0].tolist() == [True, True]


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"lift": "identity", "skip_width": N_INPUTS}])
def test_a_stream_that_is_no_group_is_alive(options):
    model = small_model("hourglass", **options)
    lanes = masked_lanes(model, np.ones((1, model.structure.n_weights), dtype=bool))
    lanes.layout.views(lanes.keep)["blocks.0.first.weight"][0, 2] = 0
    paths = find_paths(model.structure, lanes)
    assert bool(paths.is_connected[0])
    assert paths.is_alive[0][0].tolist() == [True, True, False, True, True]
    assert not paths.effective["blocks.0.second.weight"][0, :, 2].any()
    assert int(paths.effective["blocks.0.second.weight"].sum()) == 11 * 4 if "norm" in options else N_INPUTS * 4


def test_a_fixed_lift_carries_paths():
    model = small_model("hourglass", lift="fixed")
    lanes = masked_lanes(model, np.zeros((1, model.structure.n_weights), dtype=bool))
    assert not find_paths(model.structure, lanes).is_connected
    lanes.layout.views(lanes.keep)["out.weight"][0, 0, 3] = 1
    paths = find_paths(model.structure, lanes)
    assert bool(paths.is_connected)
    assert int(paths.effective["lift.weight"].sum()) == N_INPUTS


def test_blocks_that_are_padding_are_passed_over():
    model = small_model("hourglass")
    rng = np.random.default_rng(0)
    lanes = dense_lanes(model.structure, [initial_weights(model.structure, "torch", rng)], torch.device("cpu"))
    shapes = tuple(
        {"blocks.1.first.weight": (0, 11), "blocks.1.first.bias": (0,), "blocks.1.second.weight": (11, 0)}.get(n, s)
        for n, s in zip(lanes.layout.names, lanes.layout.shapes, strict=True)
    )
    layout = replace(lanes.layout, shapes=shapes)
    paths = find_paths(model.structure, LaneStack(layout, lanes.flat[:, : layout.width], None))
    assert [a.sum().item() for a in paths.is_alive] == [11, 5, 0]
    assert bool(paths.effective["out.weight"].all())
