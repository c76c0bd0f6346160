"""Scores one by one: by hand, by finite differences, by loops over examples, and by what they conserve."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sparsefront.errors import SpaceError
from sparsefront.spaces.seeds import generator
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.lanes import dense_lanes
from sparsefront.trainables.models import Model, build_model, initial_weights
from sparsefront.trainables.models.model import StagedModule
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.pruning import SCORES, ScoringState, derivatives, keep_best
from sparsefront.trainables.pruning.derivatives import gradient, mean_squared_gradients
from tests.oracles import networks as oracle

every_family = pytest.mark.parametrize("family", oracle.SMALL)
CPU = torch.device("cpu")


def small_state(structure, weights, **given):
    return ScoringState(Model(StagedModule(), structure, "torch"), dense_lanes(structure, [weights], CPU), **given)


def lane_of(state, lane=0):
    """Tensors of one lane in float64, that remember gradients."""
    views = state.lanes.layout.views(state.lanes.flat)
    return {name: view[lane].double().requires_grad_() for name, view in views.items()}


def loss_of(state, tensors, *, rows=slice(None), temperature=1.0):
    """Mean cross-entropy in float64, by torch's own."""
    logits = functional_call(state.model.module, tensors, (state.examples.x[rows].double(),))
    return torch.nn.functional.cross_entropy(logits / temperature, state.examples.labels[rows])


def gradients(state, tensors, **options):
    return dict(
        zip(tensors, torch.autograd.grad(loss_of(state, tensors, **options), list(tensors.values())), strict=True)
    )


def prunable(state, by_name):
    return torch.cat([by_name[t.name].detach().flatten() for t in state.structure.prunable])


def over_nodes(state, by_name):
    """Sum over the coupled group of each node, entry by entry."""
    sums = []
    for group in state.structure.groups:
        for node in range(group.size):
            own = range(group.axes[0].repeat)
            total = 0.0
            for axis in group.axes:
                own = torch.arange(node * axis.repeat, (node + 1) * axis.repeat)
                total += float(by_name[axis.tensor].detach().index_select(axis.dim, own).sum())
            sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


def assert_close(found, expected, rtol=1e-4):
    expected = expected.double()
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol * float(expected.abs().max()) * 1e-2)


# Of weights -----------------------------------------------------------------------------------------------------------


# 2 inputs, 3 channels of 2 positions each flattened into 1 output: node i owns row i of `a` and two columns of `b`.
NET = Structure(
    (Tensor("a.weight", (3, 2), True), Tensor("a.bias", (3,), False), Tensor("b.weight", (1, 6), True)),
    (NodeGroup("a", 3, (Axis("a.weight", 0), Axis("a.bias", 0), Axis("b.weight", 1, 2))),),
)
WEIGHTS = {
    "a.weight": np.array([[1, -2], [0, 0], [3, 0]], dtype=np.float32),
    "a.bias": np.array([2, -1, 0], dtype=np.float32),
    "b.weight": np.array([[0, -4, 2, 2, 0, 0]], dtype=np.float32),
}


def test_magnitude_by_hand():
    state = small_state(NET, WEIGHTS)
    assert SCORES["magnitude"].of(state, "weight").tolist() == [[1, 2, 0, 0, 3, 0, 0, 4, 2, 2, 0, 0]]
    # 1 + 4 + 4 + 0 + 16 = 25; 0 + 1 + 4 + 4 = 9; 9.
    assert SCORES["magnitude"].of(state, "node").tolist() == [[5, 3, 3]]


def test_l1_by_hand():
    state = small_state(NET, WEIGHTS)
    assert SCORES["l1"].of(state, "weight").tolist() == SCORES["magnitude"].of(state, "weight").tolist()
    # 1 + 2 + 2 + 0 + 4 = 9; 0 + 1 + 2 + 2 = 5; 3: the last two are equal by squares, and not by sums.
    assert SCORES["l1"].of(state, "node").tolist() == [[9, 5, 3]]


def test_first_order_movement_by_hand():
    products = torch.tensor([[1, -2, 0, 0, 3, 0, 2, 0, -1, 5, 0, 0, 2, -2, 4.0]])
    state = small_state(NET, WEIGHTS, products=products)
    assert SCORES["first_order_movement"].of(state, "weight").tolist() == [[-1, 2, 0, 0, -3, 0, -5, 0, 0, -2, 2, -4]]
    # Incoming, bias and outgoing: 1 - 2 + 2 + 5; -2; 3 - 1 - 2 + 4. The layout is a.weight, a.bias, b.weight.
    assert SCORES["first_order_movement"].of(state, "node").tolist() == [[-6, -2, -4]]


@pytest.mark.parametrize("kind", ["weight", "node"])
@pytest.mark.parametrize("name", ["snip", "taylor", "gradient_norm"])
def test_scores_of_a_gradient_at_hand_are_those_of_the_examples(name, kind, state_of):
    state = state_of("conv1d")
    found = torch.cat([g.flatten(1) for g in gradient(state).values()], dim=1)
    at_hand = replace(state, gradient=found)
    torch.testing.assert_close(SCORES[name].of(at_hand, kind), SCORES[name].of(state, kind))
    assert torch.equal(SCORES[name].of(replace(state, gradient=0 * found), kind), 0 * SCORES[name].of(state, kind))


def test_lamp_by_hand():
    state = small_state(NET, WEIGHTS)
    # Squares 1, 4, 0, 0, 9, 0 in one layer; 0, 16, 4, 4, 0, 0 in the other, where the equal ones share 4 / (4+4+16).
    expected = [1 / 14, 4 / 13, 0, 0, 1, 0, 0, 1, 1 / 6, 1 / 6, 0, 0]
    np.testing.assert_allclose(SCORES["lamp"].of(state, "weight")[0], expected, rtol=1e-12)
    np.testing.assert_allclose(SCORES["lamp"].of(state, "node")[0], [25 / 25, 9 / 43, 9 / 43], rtol=1e-12)


@pytest.mark.parametrize("kind", ["weight", "node"])
def test_lamp_ranks_each_layer_as_magnitude_does(state_of, kind):
    state = state_of("conv1d")
    sizes = list(state.structure.section_sizes(kind))
    for lamp, magnitude in zip(
        SCORES["lamp"].of(state, kind).split(sizes, dim=1),
        SCORES["magnitude"].of(state, kind).split(sizes, dim=1),
        strict=True,
    ):
        assert torch.equal(lamp.argsort(dim=1, stable=True), magnitude.argsort(dim=1, stable=True))
        assert (lamp.max(dim=1).values == 1).all()


def test_movement_by_hand():
    start = torch.tensor([[1, 0, 0, 0, 3, 1, 2, -1, 2, 0, 0, 2, 2, 0, 3.0]])
    state = small_state(NET, WEIGHTS, start=start)
    assert SCORES["movement"].of(state, "weight").tolist() == [[0, 2, 0, 0, 0, 1, 0, 4, 0, 0, 0, 3]]
    assert SCORES["movement"].of(state, "node").tolist() == [[math.sqrt(4 + 16), 0, math.sqrt(1 + 4 + 9)]]


def test_a_skip_connection_adds_up_all_its_tensors(state_of):
    state = state_of("residual_mlp", 1)
    w = {name: tensor.detach().square() for name, tensor in lane_of(state).items()}
    expected = [
        w["linear1.weight"][i].sum()
        + w["linear1.bias"][i]
        + w["linear2.weight"][i].sum()
        + w["linear2.weight"][:, i].sum()
        + w["linear2.bias"][i]
        + w["linear3.weight"][:, i].sum()
        for i in range(state.structure.n_nodes)
    ]
    torch.testing.assert_close(SCORES["magnitude"].of(state, "node")[0], torch.stack(expected).sqrt())


# Of gradients ---------------------------------------------------------------------------------------------------------


@every_family
def test_scores_of_the_gradient_against_plain_back_propagation(state_of, family):
    state = state_of(family, 2)
    for lane in range(2):
        tensors = lane_of(state, lane)
        g = gradients(state, tensors)
        product = {name: (tensors[name] * g[name]) for name in g}
        expected = {
            "snip": [{n: p.abs() for n, p in product.items()}] * 2,
            "taylor": [{n: p.square() for n, p in product.items()}, product],
            "gradient_norm": [{n: v.abs() for n, v in g.items()}, {n: v.square() for n, v in g.items()}],
        }
        finish = {"snip": lambda s: s, "taylor": torch.square, "gradient_norm": torch.sqrt}
        for name, (of_weights, of_nodes) in expected.items():
            assert_close(SCORES[name].of(state, "weight")[lane], prunable(state, of_weights))
            assert_close(SCORES[name].of(state, "node")[lane], finish[name](over_nodes(state, of_nodes)))


def test_snip_is_the_sensitivity_to_the_mask(state_of):
    """|dL/dm| at m = 1, by central differences."""
    state = state_of("mlp", 1)
    scores = SCORES["snip"].of(state, "weight")[0]
    tensors = {name: tensor.detach() for name, tensor in lane_of(state).items()}
    sizes = [t.size for t in state.structure.prunable]
    h = 1e-5
    for index in generator(0, "snip").choice(sum(sizes), 40, replace=False):
        offset = int(index)
        for tensor in state.structure.prunable:
            if offset < tensor.size:
                break
            offset -= tensor.size
        losses = []
        for m in (1 + h, 1 - h):
            mask = torch.ones(tensor.size, dtype=torch.float64)
            mask[offset] = m
            losses.append(
                float(loss_of(state, {**tensors, tensor.name: tensors[tensor.name] * mask.view(tensor.shape)}))
            )
        assert float(scores[index]) == pytest.approx(abs(losses[0] - losses[1]) / (2 * h), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("bias", [True, False])
@every_family
def test_fisher_against_a_loop_over_examples(state_of, family, bias):
    state = state_of(family, 2, bias=bias)
    for lane in range(2):
        tensors = lane_of(state, lane)
        squares = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        n = len(state.examples)
        for i in range(n):
            for name, g in gradients(state, tensors, rows=slice(i, i + 1)).items():
                squares[name] += g.square() / n
        rise = {name: tensors[name].square() * squares[name] / 2 for name in tensors}
        assert_close(SCORES["fisher"].of(state, "weight")[lane], prunable(state, rise))
        assert_close(SCORES["fisher"].of(state, "node")[lane], over_nodes(state, rise))


class Strided(StagedModule):
    """Convolutions with unlike strides, dilations and paddings by axis, and a Linear layer at every position."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 3))
        self.b = torch.nn.Conv2d(4, 3, (2, 3), stride=(1, 3), padding=(0, 2))
        self.c = torch.nn.Conv2d(3, 2, 2, stride=3, padding=1)
        self.d = torch.nn.Linear(3, 5)
        self.e = torch.nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.b(torch.tanh(self.a(x.unsqueeze(1)))))
        far = self.c(h).mean(dim=(2, 3))
        each = torch.tanh(self.d(h.flatten(2).transpose(1, 2)))
        return torch.cat([far, self.e(each).mean(dim=1)], dim=1)


@pytest.mark.parametrize("few", [0, 8, 10**6])
@pytest.mark.parametrize("n_lanes", [1, 2])
def test_fisher_of_any_convolution_against_a_loop_over_examples(n_lanes, few, monkeypatch):
    """By pairs of positions, and by the gradients of some examples at a time (7 at 200 entries of `a`)."""
    monkeypatch.setattr(derivatives, "_FEW_POSITIONS", few)
    monkeypatch.setattr(derivatives, "_FORMED", {"cpu": 200})
    module = Strided().to("meta").requires_grad_(requires_grad=False)
    structure = Structure(
        tuple(Tensor(n, tuple(p.shape), n.endswith("weight")) for n, p in module.named_parameters()), ()
    )
    weights = [initial_weights(structure, "torch", generator(i, "strided")) for i in range(n_lanes)]
    rng = generator(1, "images")
    batch = Examples.of(rng.standard_normal((10, 9, 8)).astype(np.float32), rng.integers(0, 4, 10), 4, CPU)
    state = ScoringState(Model(module, structure, "torch"), dense_lanes(structure, weights, CPU), batch)
    for lane in range(n_lanes):
        tensors = lane_of(state, lane)
        squares = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        for i in range(len(batch)):
            for name, g in gradients(state, tensors, rows=slice(i, i + 1)).items():
                squares[name] += g.square() / len(batch)
        found = mean_squared_gradients(state)
        for name, expected in squares.items():
            assert_close(found[name][lane], expected)


@pytest.mark.parametrize(
    ("family", "options", "shape"),
    [
        ("mlp", {"widths": [64, 64]}, (40,)),
        ("conv1d", {"channels": [32, 32, 32]}, (40,)),
        ("restorer", {"channels": [16, 16, 16]}, (1, 16, 16)),
    ],
)
@pytest.mark.parametrize("n_lanes", [1, 2])
def test_fisher_multiplies_no_more_than_the_passes_that_it_counts(family, options, shape, n_lanes):
    model = build_model(family, options, input_shape=shape, n_classes=10)
    weights = [initial_weights(model.structure, "torch", generator(i, "cost")) for i in range(n_lanes)]
    rng = generator(0, "cost")
    batch = Examples.of(rng.standard_normal((12, *shape)).astype(np.float32), rng.integers(0, 10, 12), 10, CPU)
    if family == "restorer":
        batch = replace(batch, images=batch.x, degradations=("noise",))
    state = ScoringState(model, dense_lanes(model.structure, weights, CPU), batch)
    in_place = {torch.ops.aten.baddbmm_: lambda into, a, b, **_: 2 * math.prod(a) * b[2]}  # torch counts the other only
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        SCORES["fisher"].of(state, "weight")
    macs = sum(t.size * t.positions for t in model.structure.multiplied)
    assert counter.get_total_flops() <= SCORES["fisher"].passes(len(batch)) * n_lanes * 6 * macs


class Twice(StagedModule):
    """Calls one layer twice."""

    def __init__(self, *, twice):
        super().__init__()
        self.a = torch.nn.Linear(15, 15)
        self.b = torch.nn.Linear(15, 4) if twice else torch.nn.Bilinear(15, 15, 4)
        self.twice = twice

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(torch.relu(self.a(h))) if self.twice else self.b(h, h)


@pytest.mark.parametrize(
    ("twice", "message"),
    [
        (True, "layer='a': must be called once in a forward pass"),
        (False, "tensor='b.weight': must be the weight of a Linear layer, Conv1d or Conv2d"),
    ],
)
def test_fisher_refuses_layers_that_it_cannot_square(examples, twice, message):
    module = Twice(twice=twice).to("meta").requires_grad_(requires_grad=False)
    structure = Structure(
        tuple(Tensor(n, tuple(p.shape), n.endswith("weight")) for n, p in module.named_parameters()), ()
    )
    weights = initial_weights(structure, "torch", generator(0, "twice"))
    state = ScoringState(Model(module, structure, "torch"), dense_lanes(structure, [weights], CPU), examples[0])
    with pytest.raises(SpaceError, match=message):
        SCORES["fisher"].of(state, "weight")


def test_taylor_of_a_node_is_twice_the_derivative_by_its_gate(state_of):
    state = state_of("mlp", 1)
    tensors = {name: tensor.detach() for name, tensor in lane_of(state).items()}
    gates = [torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in state.structure.groups]
    logits = oracle.logits("mlp", tensors, state.examples.x.double(), node_masks=gates)
    loss = torch.nn.functional.cross_entropy(logits, state.examples.labels)
    expected = (2 * torch.cat(torch.autograd.grad(loss, gates))).square()
    assert_close(SCORES["taylor"].of(state, "node")[0], expected)


# GraSP ----------------------------------------------------------------------------------------------------------------


def squared_norm(state, tensors, *, create_graph=False):
    loss = loss_of(state, tensors, temperature=200.0)
    found = torch.autograd.grad(loss, list(tensors.values()), create_graph=create_graph)
    return sum(g.square().sum() for g in found)


@every_family
def test_grasp_against_plain_double_back_propagation(state_of, family):
    state = state_of(family, 2)
    for lane in range(2):
        tensors = lane_of(state, lane)
        half = 0.5 * squared_norm(state, tensors, create_graph=True)
        product = {
            name: tensors[name] * hg
            for name, hg in zip(tensors, torch.autograd.grad(half, list(tensors.values())), strict=True)
        }
        assert_close(SCORES["grasp"].of(state, "weight")[lane], prunable(state, product), rtol=1e-3)
        assert_close(SCORES["grasp"].of(state, "node")[lane], over_nodes(state, product), rtol=1e-3)


@pytest.mark.parametrize("family", ["mlp", "conv1d"])
def test_grasp_removes_what_does_not_lower_the_gradient_norm(state_of, family):
    """A step of the lowest scores towards zero raises the squared norm, one of the highest lowers it, as foretold."""
    state = state_of(family, 1)
    scores = SCORES["grasp"].of(state, "weight")[0].double()
    order = scores.argsort()
    tensors = lane_of(state)
    before = float(squared_norm(state, tensors).detach())
    h = 1e-4
    for index, sign in [*((int(i), 1) for i in order[:5]), *((int(i), -1) for i in order[-5:])]:
        shrunk = torch.ones(state.structure.n_weights, dtype=torch.float64)
        shrunk[index] = 1 - h
        factors = torch.split(shrunk, [t.size for t in state.structure.prunable])
        changed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for tensor, factor in zip(state.structure.prunable, factors, strict=True):
            changed[tensor.name] *= factor.view(tensor.shape)
        for tensor in changed.values():
            tensor.requires_grad_()
        change = float(squared_norm(state, changed).detach()) - before
        assert sign * change > 0
        assert change == pytest.approx(-2 * h * float(scores[index]), rel=0.02)


# SynFlow --------------------------------------------------------------------------------------------------------------


def layer_sums(state, scores):
    sizes = [t.size for t in state.structure.prunable]
    return {
        t.name: part.sum(dim=1) for t, part in zip(state.structure.prunable, scores.split(sizes, dim=1), strict=True)
    }


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False])
@every_family
def test_synflow_conserves_the_flow(state_of, family, bias, activation):
    """All layers on the only path carry R, the sum of the outputs; parallel ones a share, as much in as out."""
    state = state_of(family, 2, bias=bias, activation=activation)
    sums = layer_sums(state, SCORES["synflow"].of(state, "weight"))
    x = torch.ones(1, *state.examples.x.shape[1:], dtype=torch.float64)
    for lane in range(2):
        positive = {
            n: w.detach().abs() if w.dim() > 1 else torch.zeros_like(w) for n, w in lane_of(state, lane).items()
        }
        flow = float(oracle.logits(family, positive, x).sum())
        for name, total in sums.items():
            if name.startswith("blocks.") or name == "linear2.weight":
                assert 0 < float(total[lane]) < flow
            else:
                assert float(total[lane]) == pytest.approx(flow, rel=1e-12)
        if family == "hourglass":
            for i in range(2):
                first, second = (float(sums[f"blocks.{i}.{part}.weight"][lane]) for part in ("first", "second"))
                assert first == pytest.approx(second, rel=1e-12)


@pytest.mark.parametrize("lift", ["trained", "fixed"])
def test_synflow_passes_over_norms(state_of, lift):
    options = {"lift": lift, "bias": False}
    plain, normed = (state_of("hourglass", 2, norm=norm, **options) for norm in ("none", "layer"))
    assert torch.equal(SCORES["synflow"].of(plain, "weight"), SCORES["synflow"].of(normed, "weight"))


def test_the_flow_of_a_unit_is_as_much_in_as_out(state_of):
    state = state_of("mlp", 1)
    scores = SCORES["synflow"].of(state, "weight")
    into = scores[:, : 12 * 15].view(12, 15).sum(dim=1)
    out = scores[:, 12 * 15 : 12 * 15 + 9 * 12].view(9, 12).sum(dim=0)
    torch.testing.assert_close(into, out)
    torch.testing.assert_close(SCORES["synflow"].of(state, "node")[0, :12], into + out)


class Entangled(StagedModule):
    """Layers that are called twice, whose weights something else reads, that write in place, and that nothing needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = torch.nn.Linear(4, 6), torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 3)
        self.mixed = torch.nn.Conv1d(2, 6, 3, padding=1)
        self.unused = torch.nn.Linear(6, 6)

    def forward(self, x):
        h = torch.relu(self.a(x))
        self.unused(h)
        z = self.b(h)
        z += h
        h = self.b(z).mul_(0.5) + z @ self.b.weight
        h = h + self.mixed(x.view(-1, 2, 2)).sum(dim=2)
        return self.c(h) + self.a(x)[:, :3]


ENTANGLED = Structure(
    (
        Tensor("a.weight", (6, 4), True),
        Tensor("a.bias", (6,), False),
        Tensor("b.weight", (6, 6), True),
        Tensor("mixed.weight", (6, 2, 3), True),
        Tensor("mixed.bias", (6,), False),
        Tensor("c.weight", (3, 6), True),
        Tensor("c.bias", (3,), False),
        Tensor("unused.weight", (6, 6), True),
        Tensor("unused.bias", (6,), False),
    ),
    (
        NodeGroup(
            "h",
            6,
            (
                Axis("a.weight", 0),
                Axis("b.weight", 0),
                Axis("b.weight", 1),
                Axis("mixed.weight", 0),
                Axis("c.weight", 1),
                Axis("unused.weight", 1),
            ),
        ),
    ),
)


@pytest.mark.parametrize("family", [*oracle.SMALL, "entangled"])
def test_the_flow_is_that_of_plain_gradients(state_of, family):
    """Whatever a module does with its weights, and however little of its gradient is formed."""
    if family == "entangled":
        weights = [initial_weights(ENTANGLED, "torch", generator(i, "flow")) for i in range(2)]
        examples = Examples.of(np.zeros((2, 4), np.float32), np.zeros(2, np.int64), 3, CPU)
        state = ScoringState(Model(Entangled(), ENTANGLED, "torch"), dense_lanes(ENTANGLED, weights, CPU), examples)
    else:
        state = state_of(family, 2)
    found = {kind: SCORES["synflow"].of(state, kind) for kind in ("weight", "node")}
    # The module as it is, with activations: all is positive. In `oracle.SMALL` these are ReLUs.
    for lane in range(2):
        tensors = {n: w.detach().abs() * (w.dim() > 1) for n, w in lane_of(state, lane).items()}
        tensors = {n: w.requires_grad_() for n, w in tensors.items()}
        x = torch.ones(1, *state.examples.x.shape[1:], dtype=torch.float64)
        total = functional_call(state.model.module, tensors, (x,)).sum()
        slopes = torch.autograd.grad(total, list(tensors.values()), materialize_grads=True)
        flow = {n: (w * g).detach() for (n, w), g in zip(tensors.items(), slopes, strict=True)}
        torch.testing.assert_close(found["weight"][lane], prunable(state, flow), rtol=1e-12, atol=0)
        torch.testing.assert_close(found["node"][lane], over_nodes(state, flow), rtol=1e-12, atol=0)


def test_synflow_does_not_overflow_in_a_deep_network():
    model = build_model("mlp", {"widths": [64] * 40}, input_shape=(40,), n_classes=10)
    weights = initial_weights(model.structure, "kaiming", generator(0, "deep"))
    weights = {name: 40 * w for name, w in weights.items()}
    x, y = np.zeros((1, 40), dtype=np.float32), np.zeros(1, dtype=np.int64)
    state = ScoringState(model, dense_lanes(model.structure, [weights], CPU), Examples.of(x, y, 10, CPU))
    sums = torch.stack(list(layer_sums(state, SCORES["synflow"].of(state, "weight")).values()))
    assert float(sums[0]) > torch.finfo(torch.float32).max
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-9, atol=0)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    widths=st.lists(st.integers(2, 12), min_size=1, max_size=3),
    n_kept_more=st.integers(0, 10),
)
def test_synflow_in_rounds_empties_no_layer(seed, widths, n_kept_more):
    """Without any guard in the selection, down to one path through the network: the maximal compression.

    The theorem asks that what a round removes carry less than a layer's whole flow; one weight a round always does.
    """
    model = build_model("mlp", {"widths": widths, "bias": False}, input_shape=(5,), n_classes=3)
    weights = initial_weights(model.structure, "kaiming", generator(seed, "collapse"))
    x, y = np.zeros((1, 5), dtype=np.float32), np.zeros(1, dtype=np.int64)
    state = ScoringState(model, dense_lanes(model.structure, [weights], CPU), Examples.of(x, y, 3, CPU))
    sizes = list(state.structure.section_sizes("weight"))
    masks = torch.ones(1, sum(sizes), dtype=torch.bool)
    for k in range(sum(sizes) - 1, len(sizes) + n_kept_more - 1, -1):
        scores = SCORES["synflow"].of(state.masked(masks, "weight"), "weight")
        masks = keep_best(scores, [sum(sizes)], [k])
        assert all(part.any() for part in masks[0].split(sizes))
        assert float(SCORES["synflow"].of(state.masked(masks, "weight"), "weight")[masks].sum()) > 0


# Of activations -------------------------------------------------------------------------------------------------------


def test_activations_of_a_perceptron_by_hand(state_of):
    state = state_of("mlp", 2)
    for lane in range(2):
        w = {name: tensor.detach() for name, tensor in lane_of(state, lane).items()}
        one = torch.relu(state.examples.x.double() @ w["layers.0.weight"].T + w["layers.0.bias"])
        two = torch.relu(one @ w["layers.1.weight"].T + w["layers.1.bias"])
        both = torch.cat([one, two], dim=1)
        assert_close(SCORES["apoz"].of(state, "node")[lane], 1 - (both == 0).double().mean(dim=0))
        assert_close(SCORES["mean_activation"].of(state, "node")[lane], both.mean(dim=0))


def test_activations_of_channels_are_means_over_positions(state_of):
    state = state_of("conv1d", 1)
    w = {name: tensor.detach() for name, tensor in lane_of(state).items()}
    h, expected = state.examples.x.double().unsqueeze(1), []
    for i in range(3):
        h = torch.relu(torch.nn.functional.conv1d(h, w[f"convs.{i}.weight"], w[f"convs.{i}.bias"], stride=2, padding=1))
        expected.append(h)
    for name, of in (("apoz", lambda a: (a > 0).double()), ("mean_activation", torch.abs)):
        assert_close(SCORES[name].of(state, "node")[0], torch.cat([of(h).mean(dim=(0, 2)) for h in expected]))


def test_activations_of_a_stream_are_means_over_its_readers(state_of):
    state = state_of("residual_mlp", 1)
    w = {name: tensor.detach() for name, tensor in lane_of(state).items()}
    first = torch.relu(state.examples.x.double() @ w["linear1.weight"].T + w["linear1.bias"])
    last = first + torch.relu(first @ w["linear2.weight"].T + w["linear2.bias"])
    assert_close(SCORES["mean_activation"].of(state, "node")[0], (first.mean(dim=0) + last.mean(dim=0)) / 2)
    assert_close(
        SCORES["apoz"].of(state, "node")[0], ((first > 0).double().mean(dim=0) + (last > 0).double().mean(dim=0)) / 2
    )


def test_a_masked_lane_is_scored_as_what_is_left_of_it(state_of):
    """Masks of nodes: what is left scores as in the network without the others."""
    state = state_of("mlp", 1)
    kept = torch.ones(1, 21, dtype=torch.bool)
    kept[0, [0, 5, 13]] = False
    masked = state.masked(kept, "node")
    views = state.lanes.layout.views(masked.lanes.flat)
    assert not views["layers.0.weight"][0, 5].any()
    assert not views["layers.0.bias"][0, 0]
    assert not views["layers.1.weight"][0, :, 5].any()
    assert not views["layers.1.weight"][0, 1].any()
    assert torch.equal(masked.kept("node"), kept)
    assert replace(masked).structure == state.structure
