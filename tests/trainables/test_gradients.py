"""Gradients: the recorded batched graph computes what plain autograd computes for one network after the other."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.structure import Structure, Tensor
from sparsefront.trainables import gradients
from sparsefront.trainables.gradients import forward, gradient_function
from sparsefront.trainables.lanes import Layout, node_masked_lanes
from sparsefront.trainables.models import Model, build_model, initial_weights
from sparsefront.trainables.models.model import StagedModule
from tests.oracles import networks as oracle

#: Sums of at most a few hundred float32 products in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def lanes_of(model, n_lanes, seed=0):
    layout = Layout.of(model.structure)
    rows = []
    for i in range(n_lanes):
        weights = initial_weights(model.structure, "torch", generator(seed, "gradients", i))
        rows.append(np.concatenate([weights[name].ravel() for name in layout.names]))
    return layout, torch.from_numpy(np.stack(rows))


def batch(n=17, seed=0):
    rng = generator(seed, "batch")
    x = torch.from_numpy(rng.standard_normal((n, oracle.N_INPUTS)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(oracle.N_CLASSES, size=n))
    return x, labels, functional.one_hot(labels, oracle.N_CLASSES).t().float().contiguous()


def recorded(model, layout, flat, x, one_hot, smoothing=None, precision="float32"):
    eps = torch.zeros(len(flat)) if smoothing is None else torch.tensor(smoothing)
    compute = gradient_function(model, layout, flat, x, one_hot, smoothing=smoothing is not None, precision=precision)
    with torch.no_grad():
        return compute(x, one_hot, eps)


def plain(family, layout, flat, x, labels, smoothing=None, activation="relu"):
    """Gradient of each row by autograd."""
    gradient = torch.empty_like(flat)
    for i, row in enumerate(flat):
        leaf = row.clone().requires_grad_(True)
        weights = {name: view[0] for name, view in layout.views(leaf[None]).items()}
        out = oracle.logits(family, weights, x, activation=activation)
        eps = 0.0 if smoothing is None else smoothing[i]
        loss = functional.cross_entropy(out, labels, label_smoothing=eps)
        loss.backward()
        gradient[i] = leaf.grad
    return gradient


#: A recording takes a fifth of a second: every activation once, the rest where families differ.
CASES = [("mlp", a, True) for a in oracle.ACTIVATIONS] + [
    (family, a, bias) for family in oracle.SMALL for a, bias in (("relu", True), ("tanh", True), ("relu", False))
]


@pytest.mark.parametrize(("family", "activation", "bias"), sorted(set(CASES)))
def test_the_recorded_gradient_is_that_of_autograd(family, activation, bias):
    model = oracle.small_model(family, activation=activation, bias=bias)
    layout, flat = lanes_of(model, 3)
    x, labels, one_hot = batch()
    before = flat.clone(), x.clone(), one_hot.clone()
    gradient = recorded(model, layout, flat, x, one_hot)
    expected = plain(family, layout, flat, x, labels, activation=activation)
    torch.testing.assert_close(gradient, expected, **TOLERANCE)
    assert all(torch.equal(a, b) for a, b in zip((flat, x, one_hot), before, strict=True))


@pytest.mark.parametrize(("family", "n_lanes"), [("mlp", 1), ("mlp", 3), ("residual_mlp", 3), ("conv1d", 3)])
def test_a_recording_serves_other_values_of_the_same_shapes(family, n_lanes):
    model = oracle.small_model(family)
    for seed in range(3):
        layout, flat = lanes_of(model, n_lanes, seed)
        x, labels, one_hot = batch(seed=seed)
        for _ in range(2):  # replaying must not disturb what the recording holds
            gradient = recorded(model, layout, flat, x, one_hot)
            expected = plain(family, layout, flat, x, labels)
            torch.testing.assert_close(gradient, expected, **TOLERANCE)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_every_lane_has_its_own_label_smoothing(family):
    model = oracle.small_model(family)
    layout, flat = lanes_of(model, 3)
    x, labels, one_hot = batch()
    smoothing = [0.0, 0.1, 0.5]
    gradient = recorded(model, layout, flat, x, one_hot, smoothing)
    expected = plain(family, layout, flat, x, labels, smoothing)
    torch.testing.assert_close(gradient, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("family", "activation", "bound"),
    [("mlp", "relu", 0.2), ("mlp", "tanh", 0.03), ("residual_mlp", "tanh", 0.03), ("conv1d", "relu", 0.2)],
)
def test_half_precision_is_near_and_really_half(family, activation, bound):
    """Eight significant bits: a product is off by 2^-8 at most, and a chain of five of them by some 2 percent.

    With ReLU a unit near zero may also switch on or off for an example.
    """
    model = oracle.small_model(family, activation=activation)
    layout, flat = lanes_of(model, 3)
    x, _, one_hot = batch()
    full = recorded(model, layout, flat, x, one_hot)
    half = recorded(model, layout, flat, x, one_hot, precision="bfloat16")
    assert half.dtype == torch.float32
    distance = (half - full).norm(dim=1) / full.norm(dim=1)
    assert (distance < bound).all()
    assert (distance > 1e-5).all()


def test_padded_lanes_have_the_gradients_of_their_compact_networks():
    model = oracle.small_model("conv1d")
    sizes = model.structure.section_sizes("node")
    parent = {n: torch.from_numpy(w) for n, w in initial_weights(model.structure, "torch", generator(0, "p")).items()}
    masks = draw(sizes, [sum(sizes) // 2], philox_key(0, "m"), start=0, stop=4)
    x, labels, one_hot = batch()
    lanes = node_masked_lanes(model.structure, parent, masks)
    gradient = recorded(model, lanes.layout, lanes.flat, x, one_hot)
    for i in range(len(masks)):
        alone = node_masked_lanes(model.structure, parent, masks[i : i + 1])
        expected = plain("conv1d", alone.layout, alone.flat, x, labels)
        torch.testing.assert_close(gradient[i][lanes.keep[i] == 1], expected[0], **TOLERANCE)


def test_recordings_of_other_modules_shapes_and_settings_are_not_mixed_up():
    """Everything that a recording depends on, interleaved and asked twice."""
    asked = [
        (family, activation, n_lanes, n_examples, smoothing)
        for family, activation in (("mlp", "relu"), ("mlp", "tanh"))
        for n_lanes, n_examples, smoothing in ((1, 5, None), (2, 5, None), (2, 6, None), (2, 5, [0.2, 0.4]))
    ]
    for family, activation, n_lanes, n_examples, smoothing in asked * 2:
        model = oracle.small_model(family, activation=activation)
        layout, flat = lanes_of(model, n_lanes)
        x, labels, one_hot = batch(n_examples)
        eps = None if smoothing is None else smoothing[:n_lanes]
        gradient = recorded(model, layout, flat, x, one_hot, eps)
        expected = plain(family, layout, flat, x, labels, eps, activation=activation)
        torch.testing.assert_close(gradient, expected, **TOLERANCE)


def test_only_the_last_recordings_are_kept_and_a_lost_one_is_made_again(monkeypatch):
    monkeypatch.setattr(gradients, "_KEPT_RECORDINGS", 2)
    monkeypatch.setattr(gradients, "_recordings", type(gradients._recordings)())
    model = build_model("mlp", {"widths": [3]}, input_shape=(oracle.N_INPUTS,), n_classes=oracle.N_CLASSES)
    layout, flat = lanes_of(model, 1)
    for n in (1, 2, 3, 1):
        x, labels, one_hot = batch(n)
        gradient = recorded(model, layout, flat, x, one_hot)
        torch.testing.assert_close(gradient, plain("mlp", layout, flat, x, labels), **TOLERANCE)
        assert len(gradients._recordings) <= 2


def test_the_recorded_gradient_is_that_of_finite_differences():
    """Central differences in float64 of a few entries of a smooth network; error h^2 / 6 of the third derivative."""
    model = oracle.small_model("mlp", activation="tanh")
    layout, flat = lanes_of(model, 1)
    x, labels, one_hot = batch()
    gradient = recorded(model, layout, flat, x, one_hot)

    def loss_at(row):
        weights = {name: view[0] for name, view in layout.views(row[None]).items()}
        return functional.cross_entropy(oracle.logits("mlp", weights, x.double(), activation="tanh"), labels)

    for entry in range(0, layout.width, 29):
        step = torch.zeros(layout.width, dtype=torch.float64)
        step[entry] = 1e-4
        slope = (loss_at(flat[0].double() + step) - loss_at(flat[0].double() - step)) / 2e-4
        assert float(gradient[0, entry]) == pytest.approx(float(slope), abs=1e-6)


class Awkward(StagedModule):
    """Reads inputs and pre-activations twice, adds a parameter of its own, and multiplies by one."""

    stem_prefixes = ("a.",)

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(oracle.N_INPUTS, 8)
        self.b = nn.Linear(8, 8, bias=False)
        self.shift = nn.Parameter(torch.empty(8))
        self.c = nn.Linear(8, oracle.N_CLASSES)
        self.d = nn.Linear(8, oracle.N_CLASSES, bias=False)
        self.offset = nn.Parameter(torch.empty(oracle.N_CLASSES))

    def stem(self, x):
        h = self.a(torch.relu(x) - x)
        return torch.relu(h) + h

    def head(self, h):
        g = self.b(h) + self.shift
        flat = h.view(-1, 8)
        hidden = 1 * g + torch.relu(g) + torch.relu(flat) * flat + torch.relu(self.shift)
        return self.c(hidden) + torch.add(self.d(h), self.offset, alpha=2)


@pytest.mark.parametrize("n_examples", [1, 17])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_simplifying_the_recording_spares_what_is_read_again(precision, n_examples):
    module = Awkward()
    structure = Structure(
        tuple(Tensor(n, tuple(p.shape), n.endswith("weight")) for n, p in module.named_parameters()), ()
    )
    model = Model(module.to("meta"), structure, "torch")
    layout = Layout.of(structure)
    flat = torch.randn(3, layout.width, generator=torch.Generator().manual_seed(0))
    x, labels, one_hot = batch(n_examples)
    before = flat.clone(), x.clone()
    for _ in range(2):
        gradient = recorded(model, layout, flat, x, one_hot, precision=precision)
        assert torch.equal(flat, before[0])
        assert torch.equal(x, before[1])
        for i, row in enumerate(flat):
            leaf = row.clone().requires_grad_(True)
            weights = {name: view[0] for name, view in layout.views(leaf[None]).items()}
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
                out = torch.func.functional_call(module, weights, (x,))
            loss = functional.cross_entropy(out.float(), labels)
            loss.backward()
            # Sums in another order; in half precision each rounds to 2^-9 of the terms, which cancel here.
            share = 1e-5 if precision == "float32" else 0.05
            torch.testing.assert_close(gradient[i], leaf.grad, rtol=0, atol=share * float(leaf.grad.abs().max()))


class Stubborn(StagedModule):
    """Works in place, splits, and reads a buffer that is no parameter."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(oracle.N_INPUTS, 8)
        self.b = nn.Linear(4, oracle.N_CLASSES)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 4))

    def forward(self, x):
        left, right = self.a(x).split(4, dim=1)
        return self.b(((left * right).mul_(2.0) + right) * self.scale)


class PartInPlace(StagedModule):
    """Adds in place to a part of what is read as a whole afterwards."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(oracle.N_INPUTS, 8)
        self.b = nn.Linear(12, oracle.N_CLASSES)
        self.shift = nn.Parameter(torch.empty(4))

    def forward(self, x):
        h = self.a(x) * 1.5
        first = h[:, :4]
        first += self.shift
        return self.b(torch.cat([torch.relu(first), h], dim=1))


class ViewBefore(StagedModule):
    """Adds in place to what is looked at by another name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(oracle.N_INPUTS, 8), nn.Linear(oracle.N_INPUTS, 8)
        self.c = nn.Linear(8, oracle.N_CLASSES)

    def forward(self, x):
        h = self.a(x)
        same = h.view(-1, 8, 1)
        h += self.b(x)
        return self.c(torch.relu(h) + same.squeeze(-1))


@pytest.mark.parametrize("family", [Stubborn, PartInPlace, ViewBefore])
def test_what_a_module_does_besides_is_recorded_too(family):
    module = family()
    structure = Structure(
        tuple(Tensor(n, tuple(p.shape), n.endswith("weight")) for n, p in module.named_parameters()), ()
    )
    model, layout = Model(module.requires_grad_(False), structure, "torch"), Layout.of(structure)
    flat = torch.randn(3, layout.width, generator=torch.Generator().manual_seed(0))
    x, labels, one_hot = batch()
    for shift in (0.0, 0.1):  # the second time from the recording
        gradient = recorded(model, layout, flat + shift, x, one_hot)
        for i, row in enumerate(flat + shift):
            leaf = row.clone().requires_grad_(True)
            out = torch.func.functional_call(
                module, {name: view[0] for name, view in layout.views(leaf[None]).items()}, (x,)
            )
            loss = functional.cross_entropy(out, labels)
            loss.backward()
            torch.testing.assert_close(gradient[i], leaf.grad, **TOLERANCE)


def test_what_is_fixed_has_no_gradient():
    options = {"lift": "fixed", "skip_width": 11, "hidden_width": 5}
    model = build_model("hourglass", options, input_shape=(oracle.N_INPUTS,), n_classes=oracle.N_CLASSES)
    layout, flat = lanes_of(model, 2)
    assert layout.names[-1] == "lift.weight"
    assert layout.trained_width == layout.width - 11 * oracle.N_INPUTS == model.structure.n_params
    x, labels, one_hot = batch()
    gradient = recorded(model, layout, flat, x, one_hot)
    expected = plain("hourglass", layout, flat, x, labels)
    torch.testing.assert_close(gradient, expected[:, : layout.trained_width], **TOLERANCE)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_the_forward_pass_is_that_of_each_network_alone(family):
    model = oracle.small_model(family)
    layout, flat = lanes_of(model, 3)
    x, _, _ = batch()
    for row, logits in zip(flat, forward(model, layout, flat, x), strict=True):
        weights = {name: view[0] for name, view in layout.views(row[None]).items()}
        torch.testing.assert_close(logits, oracle.logits(family, weights, x), rtol=0, atol=1e-6)


def targets_called(recording):
    return [node.target for node in recording.step.graph.nodes if node.op == "call_function"]


def test_a_recording_goes_through_memory_no_more_often_than_it_must():
    """No loss, no copies; biases are added and activations applied where the product lies."""
    model = build_model("mlp", {"widths": [6, 7]}, input_shape=(oracle.N_INPUTS,), n_classes=oracle.N_CLASSES)
    layout, flat = lanes_of(model, 4)
    x, _, one_hot = batch()
    gradients._recordings.clear()
    recorded(model, layout, flat, x, one_hot)
    ((_, recording),) = gradients._recordings.values()
    called, aten = targets_called(recording), torch.ops.aten
    assert called.count(aten.bmm.default) == 8  # three forward, three for weights, two for inputs
    assert called.count(aten.add_.Tensor) == 3
    assert called.count(aten.relu_.default) == called.count(aten.threshold_backward.grad_input) == 2
    assert called.count(aten.sum.dim_IntList) == 3  # gradients of biases
    assert not {aten.clone.default, aten.relu.default, aten.baddbmm.default} & set(called)
    assert not any("constant" in name or "folded" in name for name, _ in recording.step.named_buffers())
