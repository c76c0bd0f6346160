"""Parents: their description fits the module, the module is the network it says, and options are checked."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sparsefront.errors import ConfigError
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.models import SizedFamily, build_model, initial_weights, model_family
from sparsefront.trainables.models.model import ACTIVATIONS, INITS
from tests.oracles import networks as oracle


def weights_of(model):
    drawn = initial_weights(model.structure, "torch", generator(0, "models"))
    return {n: torch.from_numpy(w) for n, w in drawn.items()}


def inputs(*shape):
    return torch.from_numpy(generator(1, "models").standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_the_structure_lists_the_modules_parameters(family, bias):
    model = oracle.small_model(family, bias=bias)
    described = {t.name: t.shape for t in model.structure.tensors}
    assert described == {n: tuple(p.shape) for n, p in model.module.named_parameters()}
    assert {t.name for t in model.structure.prunable} == {n for n in described if n.endswith(".weight")}
    assert model.structure.n_params == sum(p.numel() for p in model.module.parameters())
    assert all(p.is_meta and not p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_every_axis_has_the_length_of_its_group(family):
    structure = oracle.small_model(family).structure
    shapes = {t.name: t.shape for t in structure.tensors}
    claimed = [(a.tensor, a.dim) for g in structure.groups for a in g.axes]
    assert len(set(claimed)) == len(claimed)
    for group in structure.groups:
        for axis in group.axes:
            assert shapes[axis.tensor][axis.dim] == group.size * axis.repeat


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_multiply_accumulates_are_those_that_torch_counts(family, bias):
    for shape, model in (
        ((1, oracle.N_INPUTS), oracle.small_model(family, bias=bias)),
        ((1, 40), build_model(family, {"bias": bias}, input_shape=(40,), n_classes=10)),
    ):
        with FlopCounterMode(display=False) as counter:
            model.module(torch.empty(shape, device="meta"))
        assert 2 * model.structure.macs == counter.get_total_flops()


def test_multiply_accumulates_by_hand():
    mlp = build_model("mlp", {"widths": [256, 128]}, input_shape=(64,), n_classes=10)
    assert mlp.structure.macs == mlp.structure.n_weights == 50_432
    residual = build_model("residual_mlp", {"width": 100}, input_shape=(40,), n_classes=10)
    assert residual.structure.macs == 4000 + 10_000 + 1000
    conv = build_model("conv1d", {}, input_shape=(40,), n_classes=10)
    # Lengths 40 -> 19 -> 10 -> 5.
    assert conv.structure.macs == 19 * 25 * 5 + 10 * 25 * 25 * 3 + 5 * 25 * 25 * 3 + 10 * 125


@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_the_forward_pass_is_the_head_of_the_stem(family):
    model = oracle.small_model(family)
    weights, x = weights_of(model), inputs(7, oracle.N_INPUTS)
    module = model.module.to_empty(device="cpu")
    try:
        module.load_state_dict(weights)
        stem = module.stem(x)
        assert stem.shape[:2] == (7, model.structure.groups[0].size)
        assert torch.equal(module.head(stem), module(x))
        owned = {n for n in weights if n.startswith(module.stem_prefixes)}
        assert owned == {a.tensor for a in model.structure.groups[0].axes if a.tensor in owned}
        # The stem uses what it owns and the head nothing of it.
        for name, parameter in module.named_parameters():
            before = parameter.detach().clone()
            parameter.data.add_(1.0)
            assert torch.equal(module.stem(x), stem) == (name not in owned)
            assert (
                torch.equal(module.head(stem), oracle.logits(family, dict(module.named_parameters()), x))
                or name in owned
            )
            parameter.data.copy_(before)
    finally:
        module.to("meta")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_perceptron_is_a_sequence_of_linear_layers(activation, bias):
    model = oracle.small_model("mlp", activation=activation, bias=bias)
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}[activation]()
    plain = nn.Sequential(
        nn.Linear(15, 12, bias=bias), act, nn.Linear(12, 9, bias=bias), act, nn.Linear(9, 4, bias=bias)
    )
    assert_same_network(model, plain, "mlp", activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_convolutional_network_is_a_sequence_of_strided_convolutions(activation, bias):
    model = oracle.small_model("conv1d", activation=activation, bias=bias)
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}[activation]()
    plain = nn.Sequential(
        nn.Unflatten(1, (1, 15)),
        nn.Conv1d(1, 6, 5, stride=2, padding=1, bias=bias),
        act,
        nn.Conv1d(6, 5, 3, stride=2, padding=1, bias=bias),
        act,
        nn.Conv1d(5, 4, 3, stride=2, padding=1, bias=bias),
        act,
        nn.Flatten(),
        nn.Linear(8, 4, bias=bias),
    )
    assert_same_network(model, plain, "conv1d", activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_residual_perceptron_skips_its_second_layer(activation, bias):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(15, 11, bias=bias)
            self.b = nn.Linear(11, 11, bias=bias)
            self.c = nn.Linear(11, 4, bias=bias)
            self.act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}[activation]()

        def forward(self, x):
            h = self.act(self.a(x))
            return self.c(h + self.act(self.b(h)))

    assert_same_network(
        oracle.small_model("residual_mlp", activation=activation, bias=bias), Plain(), "residual_mlp", activation
    )


@pytest.mark.parametrize("lift", ["trained", "fixed", "identity"])
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_hourglass_adds_what_its_blocks_find_to_a_stream(lift, norm, activation, bias):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            d_z = 15 if lift == "identity" else 11
            if lift != "identity":
                self.lift = nn.Linear(15, d_z, bias=bias and lift == "trained")
            self.down = nn.ModuleList(nn.Linear(d_z, 5, bias=bias) for _ in range(3))
            self.up = nn.ModuleList(nn.Linear(5, d_z, bias=bias) for _ in range(3))
            self.out = nn.Linear(d_z, 4, bias=bias)
            self.norm = nn.LayerNorm(d_z, elementwise_affine=False) if norm == "layer" else nn.Identity()
            self.act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}[activation]()

        def forward(self, x):
            z = x if lift == "identity" else self.lift(x)
            for down, up in zip(self.down, self.up, strict=True):
                z = z + up(self.act(down(self.norm(z))))
            return self.out(z)

    options = {"lift": lift, "norm": norm, "activation": activation, "bias": bias, "depth": 3, "hidden_width": 5}
    options["skip_width"] = 15 if lift == "identity" else 11
    model = build_model("hourglass", options, input_shape=(3, 5), n_classes=4)
    weights, x, plain = weights_of(model), inputs(9, 3, 5), Plain()
    named = {n.replace("first", "down").replace("second", "up"): w for n, w in weights.items()}
    for i in range(3):
        named = {
            n.replace(f"blocks.{i}.down", f"down.{i}").replace(f"blocks.{i}.up", f"up.{i}"): w for n, w in named.items()
        }
    plain.load_state_dict(named)
    with torch.no_grad():
        expected = plain(x.flatten(1))
    torch.testing.assert_close(functional_call(model.module, weights, (x,)), expected, rtol=0, atol=1e-5)
    assert {t.name for t in model.structure.tensors if not t.trained} == ({"lift.weight"} if lift == "fixed" else set())
    # The lift is multiplied, trained or not.
    with FlopCounterMode(display=False) as counter:
        model.module(torch.empty((1, 15), device="meta"))
    assert 2 * model.structure.macs == counter.get_total_flops()
    n_params = sum(p.numel() for p in model.module.parameters())
    assert model.structure.n_params == n_params - (15 * 11 if lift == "fixed" else 0)
    # Units of the stream can go where no other unit depends on how many there are.
    names = [g.name for g in model.structure.groups]
    assert names == (["stream"] if lift != "identity" and norm == "none" else []) + [f"blocks.{i}" for i in range(3)]


def test_an_identity_lift_has_the_width_of_the_inputs():
    message = r"model\.skip_width=64 with model\.lift='identity': must be 15, the numbers in an example"
    with pytest.raises(ConfigError, match=message):
        build_model("hourglass", {"lift": "identity"}, input_shape=(15,), n_classes=4)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_block_of_zeros_or_without_units_passes_its_input_on(norm):
    small, large = (
        build_model("hourglass", {"depth": d, "norm": norm, "skip_width": 7}, input_shape=(15,), n_classes=4)
        for d in (2, 4)
    )
    weights, x = weights_of(small), inputs(9, 15)
    expected = functional_call(small.module, weights, (x,))
    missing = {t.name: t.shape for t in large.structure.tensors if t.name not in weights}
    zeros = {n: torch.zeros(s) for n, s in missing.items()}
    empty = {n: torch.zeros(s) if "second.bias" in n else torch.zeros((0,) * len(s)) for n, s in missing.items()}
    for padding in (zeros, empty):
        torch.testing.assert_close(functional_call(large.module, weights | padding, (x,)), expected, rtol=0, atol=1e-6)


def test_lenet_300_100_is_a_perceptron():
    lenet = build_model("lenet_300_100", {}, input_shape=(28, 28), n_classes=10)
    mlp = build_model("mlp", {"widths": [300, 100]}, input_shape=(28, 28), n_classes=10)
    assert lenet.structure == mlp.structure
    assert lenet.structure.n_weights == 266_200


@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_a_family_describes_what_it_builds(family):
    sized = model_family(family)
    assert isinstance(sized, SizedFamily)
    small = oracle.small_model(family)
    options = sized.options.model_validate((oracle.SMALL | oracle._PRESETS)[family])
    data = {"input_shape": (oracle.N_INPUTS,), "n_classes": oracle.N_CLASSES}
    assert sized.structure(options, **data) == small.structure
    skeleton = sized.skeleton(options)
    assert sized.skeleton(skeleton) == skeleton
    assert [t.name for t in sized.structure(skeleton, **data).tensors] == [t.name for t in small.structure.tensors]


def assert_same_network(model, plain, family, activation):
    """The module, the plain network and the oracle of the other tests give the same outputs."""
    weights, x = weights_of(model), inputs(9, oracle.N_INPUTS)
    plain.load_state_dict(dict(zip(plain.state_dict(), weights.values(), strict=True)))
    with torch.no_grad():
        expected = plain(x)
    torch.testing.assert_close(functional_call(model.module, weights, (x,)), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(oracle.logits(family, weights, x, activation=activation), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_silent_node_stays_silent(activation):
    assert float(ACTIVATIONS[activation]()(torch.zeros(1))) == 0


def test_inputs_of_more_dimensions_are_flattened_or_are_channels():
    for family in ("mlp", "residual_mlp"):
        model = build_model(family, {}, input_shape=(3, 5), n_classes=4)
        weights, x = weights_of(model), inputs(6, 3, 5)
        flat = functional_call(model.module, weights, (x.flatten(1),))
        assert torch.equal(functional_call(model.module, weights, (x,)), flat)
    conv = build_model("conv1d", {}, input_shape=(3, 15), n_classes=4)
    assert conv.structure.tensors[0].shape == (25, 3, 5)
    assert functional_call(conv.module, weights_of(conv), (inputs(6, 3, 15),)).shape == (6, 4)


# Initial weights.


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_initial_weights_have_the_shapes_and_repeat(family, init):
    structure = oracle.small_model(family).structure
    a = initial_weights(structure, init, generator(0, "init"))
    b = initial_weights(structure, init, generator(0, "init"))
    assert {n: w.shape for n, w in a.items()} == {t.name: t.shape for t in structure.tensors}
    assert all(w.dtype == np.float32 for w in a.values())
    assert all((a[n] == b[n]).all() for n in a)


@pytest.mark.parametrize("family", oracle.CLASSIFIERS)
def test_initial_weights_have_the_spread_of_their_rule(family):
    """Standard deviation of n draws within 5 standard errors (false-alarm rate 6e-7 a tensor) of the rule's."""
    structure = build_model(family, {}, input_shape=(40,), n_classes=10).structure
    kaiming = initial_weights(structure, "kaiming", generator(0, "init"))
    default = initial_weights(structure, "torch", generator(0, "init"))
    for tensor in structure.tensors:
        weight = next(t for t in structure.tensors if t.name == tensor.name.replace(".bias", ".weight"))
        fan_in = math.prod(weight.shape[1:])
        assert np.abs(default[tensor.name]).max() <= 1 / math.sqrt(fan_in)
        if not tensor.prunable:
            assert (kaiming[tensor.name] == 0).all()
            continue
        n = tensor.size
        # Relative standard error of a standard deviation: sqrt((kurtosis - 1) / 4n).
        assert kaiming[tensor.name].std() == pytest.approx(math.sqrt(2 / fan_in), rel=5 * math.sqrt(2 / (4 * n)))
        assert default[tensor.name].std() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=5 * math.sqrt(0.8 / (4 * n)))
        assert abs(default[tensor.name].mean()) < 5 / math.sqrt(3 * fan_in * n)


# Names and options.


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"model.name='mpl': must be one of mlp, residual_mlp, .*; did you mean 'mlp'\?"
    ):
        model_family("mpl")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "no_such_package:FAMILY",
            (
                r"\(ModuleNotFoundError: .*\); its module must be in the current folder, beside the study or on "
                "PYTHONPATH$"
            ),
        ),
        ("math:FAMILY", r"\(AttributeError: .*\)$"),
    ],
)
def test_a_family_that_cannot_be_imported_is_refused(name, why):
    with pytest.raises(ConfigError, match=rf"model.name='{name}': cannot be imported {why}"):
        model_family(name)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mlp", {"widths": []}),
        ("mlp", {"widths": [0]}),
        ("mlp", {"widths": [8, 2.5]}),
        ("mlp", {"width": [8]}),
        ("mlp", {"activation": "sigmoid"}),
        ("residual_mlp", {"width": 0}),
        ("residual_mlp", {"bias": 1}),
        ("conv1d", {"channels": [4, 4]}),
        ("conv1d", {"init": "xavier"}),
        ("hourglass", {"depth": 65}),
        ("hourglass", {"lift": "random"}),
        ("hourglass", {"norm": "batch"}),
    ],
)
def test_options_that_make_no_network_are_refused(family, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        build_model(family, options, input_shape=(15,), n_classes=4)


@pytest.mark.parametrize("channels", [[], [4], [4, 4], (4, 4, 4, 4)])
def test_another_number_of_convolutions_is_refused_in_words(channels):
    with pytest.raises(ValidationError, match="must be three numbers of channels, one for each convolution") as caught:
        build_model("conv1d", {"channels": channels}, input_shape=(15,), n_classes=4)
    assert [error["loc"] for error in caught.value.errors()] == [("channels",)]


def test_inputs_that_do_not_fit_a_convolution_are_refused():
    with pytest.raises(ConfigError, match=r"model 'conv1d' on inputs of shape \(2, 8, 8\)"):
        build_model("conv1d", {}, input_shape=(2, 8, 8), n_classes=4)
    for length in range(1, 40):
        fits = True
        try:
            with FlopCounterMode(display=False):
                nn.Sequential(
                    nn.Conv1d(1, 1, 5, stride=2, padding=1),
                    nn.Conv1d(1, 1, 3, stride=2, padding=1),
                    nn.Conv1d(1, 1, 3, stride=2, padding=1),
                )(torch.zeros(1, 1, length))
        except RuntimeError:
            fits = False
        if fits:
            build_model("conv1d", {}, input_shape=(length,), n_classes=4)
        else:
            with pytest.raises(
                ConfigError, match=f"model 'conv1d' on signals of length {length}: at least .* are needed"
            ):
                build_model("conv1d", {}, input_shape=(length,), n_classes=4)
