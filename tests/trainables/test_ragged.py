"""Ragged packs: the gradients of plain torch, and the same bits whatever the neighbours."""

import itertools

import numpy as np
import pytest
import torch

from sparsefront.trainables.lanes import LaneStack, Layout
from sparsefront.trainables.models import build_model
from sparsefront.trainables.models.mlp import MLP
from sparsefront.trainables.models.model import ACTIVATIONS
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Feed, Pack, Schedule
from sparsefront.trainables.ragged import _ACTIVATIONS, RaggedLanes

INPUTS, CLASSES, BATCH, STEPS = 7, 4, 12, 20
WIDTHS = [(5, 9), (3, 3), (11, 2), (8, 8), (1, 1)]
RATES = [0.01, 0.02, 0.005, 0.01, 0.03]


def model_of(activation="relu", bias=True):
    options = {"widths": [1, 1], "activation": activation, "bias": bias, "init": "torch"}
    return build_model("mlp", options, input_shape=(INPUTS,), n_classes=CLASSES)


def shapes_of(widths, bias=True):
    sizes = [INPUTS, *widths, CLASSES]
    out = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        out[f"layers.{i}.weight"] = (b, a)
        if bias:
            out[f"layers.{i}.bias"] = (b,)
    return out


def lanes_of(widths, *, bias=True, masked=True, seed=0):
    """Random lanes, each from a generator of its own, padded to the largest: the stack and real shapes."""
    real = [shapes_of(w, bias) for w in widths]
    layout = Layout(tuple(real[0]), tuple(tuple(np.max([r[n] for r in real], axis=0).tolist()) for n in real[0]))
    flat, keep = torch.zeros(2, len(real), layout.width)
    for lane, shapes in enumerate(real):
        rng = np.random.default_rng([seed, *widths[lane]])
        for name, weight, kept in ((n, layout.views(flat)[n][lane], layout.views(keep)[n][lane]) for n in shapes):
            place = tuple(slice(n) for n in shapes[name])
            kept[place] = torch.from_numpy((rng.random(shapes[name]) < (0.6 if masked else 2)).astype(np.float32))
            weight[place] = torch.from_numpy(rng.standard_normal(shapes[name]).astype(np.float32)) * kept[place]
    return LaneStack(layout, flat, keep), real


def examples(n, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, n)
    return Examples.of(x, y, CLASSES, torch.device("cpu"))


def plain_losses(model, lanes, data, smoothing):
    """Mean cross-entropy of each padded lane by torch itself."""
    for lane in range(len(lanes)):
        p = {n: v[lane] for n, v in lanes.layout.views(lanes.flat).items()}
        outputs = torch.func.functional_call(model.module, p, (data.x,))
        yield torch.nn.functional.cross_entropy(outputs, data.labels, label_smoothing=float(smoothing[lane]))


def test_every_activation_is_known():
    assert _ACTIVATIONS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_and_losses_are_those_of_plain_torch(activation, bias, smoothed):
    model, data = model_of(activation, bias), examples(BATCH, 1)
    lanes, real = lanes_of(WIDTHS, bias=bias)
    smoothing = torch.linspace(0, 0.3, len(WIDTHS)) * smoothed
    ragged = RaggedLanes(model.module.perceptron, lanes, real, BATCH)
    # Twice: buffers are used again.
    for _ in range(2):
        gradient = ragged.gradient(data.x, data.one_hot, smoothing if smoothed else None)
    found = ragged.scatter(gradient, torch.zeros_like(lanes.flat))
    flat = lanes.flat.clone().requires_grad_()
    total = sum(plain_losses(model, LaneStack(lanes.layout, flat, None), data, smoothing))
    (expected,) = torch.autograd.grad(total, flat)
    torch.testing.assert_close(found, expected * lanes.keep, rtol=1e-4, atol=1e-6)
    losses, errors = ragged.evaluate(data.x, data.one_hot, data.labels)
    plain = [float(loss) for loss in plain_losses(model, lanes, data, torch.zeros(len(WIDTHS)))]
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    assert set((errors * BATCH).round(9)) <= set(range(BATCH + 1))


def test_blocks_of_lanes_and_of_examples_change_nothing(monkeypatch):
    model, data = model_of(), examples(BATCH, 1)
    lanes, real = lanes_of(WIDTHS)

    def everything():
        ragged = RaggedLanes(model.module.perceptron, lanes, real, BATCH)
        gradient = ragged.gradient(data.x, data.one_hot, None).clone()
        return ragged, gradient, *ragged.evaluate(data.x, data.one_hot, data.labels)

    whole, gradient, losses, errors = everything()
    monkeypatch.setattr("sparsefront.trainables.ragged._BLOCK", 1)
    monkeypatch.setattr("sparsefront.trainables.ragged._EXAMPLES_AT_ONCE", 5)
    parted, same, losses_of_parts, errors_of_parts = everything()
    assert (len(whole._blocks), len(parted._blocks)) == (1, len(WIDTHS))
    assert torch.equal(gradient, same)
    np.testing.assert_allclose(losses, losses_of_parts, rtol=1e-6)
    np.testing.assert_array_equal(errors, errors_of_parts)


def test_only_real_entries_are_gathered_and_come_back():
    lanes, real = lanes_of(WIDTHS, masked=False)
    ragged = RaggedLanes(model_of().module.perceptron, lanes, real, BATCH)
    assert ragged._keep is None
    assert sum(ragged.lengths) == ragged.flat.numel() < lanes.flat.numel()
    assert torch.equal(ragged.scatter(ragged.flat, torch.full_like(lanes.flat, 7.0)) == 7.0, lanes.keep == 0)
    with pytest.raises(ValueError, match=r"rows of 3 entries, must have"):
        ragged.gathered(torch.zeros(2, 3))


def trained(numbers, optimizer, *, lr_schedule="constant", stop=None, activation="relu", batch=BATCH):
    """Results of some of the lanes by number, trained in one pack without padding."""
    model, train, validation = model_of(activation), examples(60, 2), examples(30, 3)
    own = {"weight_decay": 0.01, "momentum": 0.9, "label_smoothing": 0.1}
    hyper = [Hyperparameters(lr=RATES[i], **(own if i % 2 else {})) for i in numbers]
    lanes, real = lanes_of([WIDTHS[i] for i in numbers])
    order = torch.from_numpy(np.random.default_rng(4).integers(0, 60, (STEPS, batch)))
    schedule = Schedule(optimizer, STEPS, batch, 5, lr_schedule=lr_schedule, warmup_fraction=0.2)

    def stop_rule(step, left, losses, errors):
        return {i: 0 for i in left if numbers[i] == stop and step == 10}

    pack = Pack(model, lanes, hyper, schedule, data=Feed(train, validation, order), real=real, stop_rule=stop_rule)
    results = [r for ended in pack.run() for r in ended]
    views = lanes.layout.views

    def real_of(row, lane):
        return {n: v[0][tuple(slice(k) for k in real[lane][n])] for n, v in views(row[None]).items()}

    return {
        numbers[r.lane]: (
            r.outcome,
            r.curve_val_loss,
            real_of(r.parameters, r.lane),
            {name: real_of(state, r.lane) for name, state in r.slots.items()},
        )
        for r in results
    }


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_lane_comes_to_the_same_bits_whatever_its_neighbours(optimizer, lr_schedule):
    together = trained([0, 1, 2, 3, 4], optimizer, lr_schedule=lr_schedule)
    for numbers in ([4], [2, 0], [3, 1, 4]):
        for i, (outcome, curve, weights, slots) in trained(numbers, optimizer, lr_schedule=lr_schedule).items():
            assert (outcome, curve) == together[i][:2]
            torch.testing.assert_close(weights, together[i][2], rtol=0, atol=0)
            # Lanes without momentum have no velocities of their own.
            torch.testing.assert_close(slots, {n: together[i][3][n] for n in slots}, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 5, 48])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_so_it_does_with_every_activation_and_batches_of_any_size(activation, batch):
    together = trained([0, 1, 2, 3, 4], "adam", activation=activation, batch=batch)
    for numbers in ([1], [3, 0], [4, 2]):
        for i, (_, curve, weights, _) in trained(numbers, "adam", activation=activation, batch=batch).items():
            assert curve == together[i][1]
            torch.testing.assert_close(weights, together[i][2], rtol=0, atol=0)


@pytest.mark.parametrize("change", ["class", "layer", "activation", "options"])
def test_a_module_that_is_more_than_a_perceptron_is_none(change):
    class Own(MLP):
        pass

    model = model_of("gelu")
    assert model.module.perceptron is not None
    sizes = (INPUTS, 1, 1, CLASSES)
    module = Own(sizes, activation="gelu", bias=True) if change == "class" else MLP(sizes, activation="gelu", bias=True)
    if change == "layer":
        module.layers[1] = torch.nn.Sequential(module.layers[1])
    elif change == "activation":
        module.activation = torch.nn.LeakyReLU()
    elif change == "options":
        module.activation = torch.nn.GELU(approximate="tanh")
    assert module.perceptron is None


def test_a_lane_that_leaves_changes_no_bit_of_the_others():
    together, without = trained([0, 1, 2], "adam"), trained([0, 1, 2], "adam", stop=1)
    assert without[1][0] == "stopped"
    for i in (0, 2):
        assert without[i][:2] == together[i][:2]
        torch.testing.assert_close(without[i][2:], together[i][2:], rtol=0, atol=0)
