"""Networks of a search: what is described is what is built, counted exactly, and padding is only zeros."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from sparsefront.errors import ConfigError, SpaceError
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import mask_digest, pack_bits, remains, remains_of, unpack_bits
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.gradients import forward
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.networks import Networks
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.padding import padded_layout, padded_rows, real_tensors, stack
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import Workshop
from tests.oracles import networks as oracle
from tests.oracles.spaces import is_of_pattern

CPU = torch.device("cpu")


def recipe_of(model="mlp", options=None, **more):
    return Recipe(
        **{
            "seed": 3,
            "model": model,
            "model_options": oracle.SMALL.get(model, {}) if options is None else options,
            "validation_fraction": 0.25,
            "mask_kind": "weight",
            "allocation": "uniform",
            "probe_size": 8,
            "schedule": Schedule("adam", 50, 32, 25),
            "hyper": Hyperparameters(lr=0.01),
            **more,
        }
    )


def networks_of(model="mlp", options=None, **more):
    return Networks(recipe_of(model, options, **more), (oracle.N_INPUTS,), oracle.N_CLASSES)


#: Sizes of every family that can share a pack with its small parent.
UNLIKE = {
    "mlp": [{"widths": [7, 3]}, {"widths": [12, 9]}, {"widths": [2, 20]}],
    "residual_mlp": [{"width": 3}, {"width": 11}, {"width": 17}],
    "conv1d": [{"channels": [2, 5, 3]}, {"channels": [6, 5, 4]}, {"channels": [7, 1, 1]}],
    "hourglass": [
        {"skip_width": 5, "hidden_width": 9, "depth": 4},
        {"skip_width": 11, "hidden_width": 2, "depth": 3},
        {"skip_width": 8, "hidden_width": 3, "depth": 4},
    ],
}
MASKS = [
    {},
    {"masks.kind": "weight", "masks.sparsity": 0.6},
    {"masks.kind": "weight", "masks.sparsity": 0.8, "masks.allocation": "erk", "masks.draw": 5},
    {"masks.kind": "weight", "masks.sparsity": 0.7, "masks.allocation": "global"},
    {"masks.kind": "node", "masks.sparsity": 0.4},
    {"masks.kind": "node", "masks.sparsity": 0.5, "masks.allocation": "global", "masks.draw": 2},
    {"masks.pattern": "2:4", "masks.draw": 1},
    {"masks.pattern": "2x2", "masks.sparsity": 0.6},
    {"masks.pattern": "3x1", "masks.sparsity": 0.7, "masks.allocation": "global", "masks.draw": 4},
]


def settings_of(options, masks=None):
    return {**{f"model.{key}": value for key, value in options.items()}, **(masks or {})}


CASES = [
    pytest.param(family, options, masks, id=f"{family}-{i}-{j}")
    for family in UNLIKE
    for i, options in enumerate(UNLIKE[family])
    for j, masks in enumerate(MASKS)
]


@pytest.mark.parametrize(("family", "options", "masks"), CASES)
def test_what_is_described_is_what_is_built(family, options, masks):
    networks = networks_of(family)
    network = networks.describe(1, settings_of(options, masks))
    built = networks.build(network)
    assert {n: w.shape for n, w in built.weights.items()} == {t.name: t.shape for t in network.compact.tensors}
    entries = {n: built.keep.get(n, np.ones_like(w)) for n, w in built.weights.items()}
    assert network.n_params == sum(int(e.sum()) for e in entries.values())
    assert network.macs == sum(int(entries[t.name].sum()) * t.positions for t in network.compact.prunable)
    kept = sum(int(entries[t.name].sum()) for t in network.compact.prunable)
    assert network.weight_sparsity == 1 - kept / network.structure.n_weights
    assert all((w[entries[n] == 0] == 0).all() for n, w in built.weights.items())
    assert all(w.dtype == np.float32 for w in built.weights.values())
    # And as the exact count of masks has it.
    parent = build_model(family, options, input_shape=(oracle.N_INPUTS,), n_classes=oracle.N_CLASSES).structure
    assert parent == network.structure
    expected = remains_of(parent, parent) if network.mask is None else remains(parent, network.mask_kind, network.mask)
    assert network.remains == expected
    assert network.node_sparsity == expected.node_sparsity
    assert (network.n_params, network.macs) == (expected.n_params, expected.macs)
    assert network.weight_sparsity == expected.weight_sparsity
    if network.mask_kind == "weight":
        pattern = parse_pattern(masks.get("masks.pattern", "unstructured"))
        assert is_of_pattern(pattern, parent, network.mask)


@pytest.mark.parametrize("family", UNLIKE)
def test_a_network_is_cut_from_the_weights_of_its_parent(family):
    networks = networks_of(family)
    for masks in MASKS:
        network = networks.describe(2, settings_of(UNLIKE[family][0], masks))
        built = networks.build(network)
        parent = initial_weights(network.structure, network.architecture.init, generator(3, "init", 2))
        if network.mask_kind == "node":
            tensors = {n: torch.from_numpy(w) for n, w in parent.items()}
            cut = oracle.compact_weights(network.structure, tensors, network.mask)
            assert all((built.weights[n] == w.numpy()).all() for n, w in cut.items())
        else:
            assert all((w == parent[n] * built.keep.get(n, 1)).all() for n, w in built.weights.items())


def test_candidates_of_one_architecture_and_replicate_start_alike():
    networks = networks_of()
    plain = networks.build(networks.describe(0, {}))
    other = networks.build(networks.describe(0, {"training.lr": 0.1, "training.optimizer": "sgd"}))
    masked = networks.build(networks.describe(0, {"masks.sparsity": 0.5}))
    elsewhere = networks.build(networks.describe(1, {}))
    for name, w in plain.weights.items():
        assert (other.weights[name] == w).all()
        assert (masked.weights[name] == w * masked.keep.get(name, 1)).all()
    assert (elsewhere.weights["layers.0.weight"] != plain.weights["layers.0.weight"]).all()


def test_masks_are_those_of_a_study_of_masks(blobs):
    for kind in ("node", "weight"):
        recipe = recipe_of(mask_kind=kind)
        networks = Networks(recipe, blobs.example_shape, blobs.n_classes)
        drawn = Workshop(recipe, blobs, CPU).draw_masks(4, 0.5, 0, 6)
        for number in (0, 5):
            network = networks.describe(4, {"masks.sparsity": 0.5, "masks.draw": number})
            assert (network.mask == drawn[number]).all()


def test_given_bits_are_the_mask():
    networks = networks_of()
    drawn = networks.describe(0, {"masks.sparsity": 0.5, "masks.draw": 9})
    bits = pack_bits(drawn.mask).tobytes()
    given = networks.describe(0, {"masks.sparsity": 0.5, "masks.bits": bits})
    assert (given.mask == drawn.mask).all()
    assert (given.n_params, given.macs, given.kept) == (drawn.n_params, drawn.macs, drawn.kept)
    assert mask_digest(pack_bits(given.mask)) == mask_digest(bits)
    assert (unpack_bits(bits, len(given.mask)) == given.mask).all()


def test_searched_shares_divide_the_total_that_other_allocations_have():
    networks = networks_of()
    sizes = networks.describe(0, {}).structure.section_sizes("weight")
    fixed = networks.describe(0, {"masks.sparsity": 0.7, "masks.allocation": "erk"})
    settings = {"masks.sparsity": 0.7, "masks.allocation": "searched", "masks.shares": [1.0, 2.0, 9.0]}
    searched = networks.describe(0, settings)
    assert sum(searched.kept) == sum(fixed.kept)
    assert searched.kept[2] > fixed.kept[2] * sizes[2] / sum(sizes)
    even = networks.describe(
        0, {**settings, "masks.shares": [0.3] * 5}
    )  # more shares than sections: a deeper network's
    assert np.abs(np.array(even.kept) / sizes - 0.3).max() < 1 / min(sizes)


def test_n_of_m_is_a_sparsity_of_its_own():
    networks = networks_of(sparsity=0.9)
    plain = networks.describe(0, {"masks.pattern": "2:4"})
    assert plain.sparsity == 0.5
    for more in (
        {"masks.sparsity": 0.0},
        {"masks.sparsity": 0.7, "masks.allocation": "erk"},
        {"masks.allocation": "global"},
    ):
        assert (networks.describe(0, {"masks.pattern": "2:4", **more}).mask == plain.mask).all()
    assert (networks.describe(0, {"masks.pattern": "2:4", "masks.draw": 1}).mask != plain.mask).any()
    assert networks_of(pattern="2:4").describe(0, {}).kept == plain.kept
    assert networks_of(pattern="2:4").describe(0, {"masks.kind": "node", "masks.sparsity": 0.5}).mask_kind == "node"


def test_blocks_are_the_most_whole_ones_that_the_sparsity_leaves():
    networks = networks_of()
    wanted, blocks = (
        networks.describe(0, {"masks.sparsity": 0.6, "masks.pattern": name}).kept for name in ("unstructured", "2x2")
    )
    assert all(w - 3 <= b <= w for w, b in zip(wanted, blocks, strict=True))
    whole = [networks.describe(r, {"masks.sparsity": 0.6, "masks.pattern": "2x2"}).mask for r in (0, 1)]
    assert (whole[0] != whole[1]).any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"masks.sparsity": st.sampled_from([0.0, 0.01, 0.3, 0.3000001, 0.6])},
            optional={
                "masks.kind": st.sampled_from(["node", "weight"]),
                "masks.pattern": st.sampled_from(["unstructured", "2:4", "4:4", "2x2", "1x1"]),
                "masks.allocation": st.sampled_from(["uniform", "global", "searched"]),
                "masks.shares": st.sampled_from([[1.0, 1.0, 1.0], [1.0, 0.5, 1.0]]),
                "masks.draw": st.integers(0, 2),
                "model.widths": st.just([12, 9]),
            },
        ),
        min_size=2,
        max_size=6,
    )
)
def test_masks_that_are_drawn_from_equal_things_are_equal(all_settings):
    networks, found = networks_of(), {}
    for each in all_settings:
        if each.get("masks.allocation") == "searched":
            each = {"masks.shares": [1.0, 1.0, 1.0], **each}
        network, drawn = networks.describe(0, each), networks.drawn(each)
        whole = network.mask is None or network.mask.all()
        assert whole == (drawn is None)
        if drawn is not None:
            first = found.setdefault((network.structure, drawn), network)
            assert (first.mask == network.mask).all()
            assert (first.n_params, first.macs) == (network.n_params, network.macs)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"masks.kind": "edge"}, SpaceError, "mask kind='edge': must be 'node' or 'weight'"),
        (
            {"masks.pattern": "2;4"},
            SpaceError,
            r"masks\.pattern='2;4': must be one of unstructured, .*; correct the space",
        ),
        ({"training.lr_schedule": "cosin"}, ConfigError, "training.lr_schedule='cosin': must be one of constant, "),
        ({"training.precision": "bf16"}, ConfigError, "training.precision='bf16': must be one of float32, bfloat16"),
        ({"model.widths": [0]}, ConfigError, r"model\.widths\.0=0: .* for model 'mlp'"),
        ({"model.width": 3}, ConfigError, r"model\.width=3: "),
        ({"model.name": "mpl"}, ConfigError, r"model\.name='mpl': must be one of mlp"),
        ({"masks.sparsity": 1.0}, SpaceError, r"masks\.sparsity=1\.0: must lie in \[0, 1\)"),
        ({"masks.sparsity": 0.5, "masks.allocation": "erc"}, SpaceError, r"allocation='erc': must be one of uniform"),
        (
            {"masks.sparsity": 0.5, "masks.allocation": "searched", "masks.shares": [1.0]},
            ConfigError,
            r"masks\.shares=\[1\.0\]: masks\.allocation='searched' needs one for each of the 3 sections",
        ),
        ({"masks.bits": b"\xff"}, SpaceError, r"packed mask of 1 bytes"),
        ({"masks.level": 1}, ConfigError, r"masks\.level: is no key that a space can set"),
        ({"training.epochs": 1}, ConfigError, r"training\.epochs: is no key that a space can set"),
        ({"training.optimizer": "lion"}, ConfigError, r"training\.optimizer='lion': must be one of adam, sgd"),
        ({"training.data_fraction": 0.0}, ConfigError, r"training\.data_fraction=0\.0: must lie in \(0, 1\]"),
        ({"lr": 1.0}, ConfigError, r"lr=1\.0: must be a key of model, masks, training"),
    ],
)
def test_settings_that_describe_no_network_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        networks_of().describe(0, settings)


def test_settings_are_over_the_recipe():
    networks = networks_of(sparsity=0.5, data_fraction=0.5)
    plain = networks.describe(0, {})
    assert (plain.optimizer, plain.steps, plain.batch_size, plain.precision) == ("adam", 50, 32, "float32")
    assert (plain.sparsity, plain.data_fraction, plain.hyper.lr, plain.mask_kind) == (0.5, 0.5, 0.01, "weight")
    set_ = networks.describe(
        0,
        {
            "masks.sparsity": 0.0,
            "training.steps": 7,
            "training.batch_size": 4,
            "training.data_fraction": 1.0,
            "training.lr": 0.5,
            "training.optimizer": "sgd",
            "training.momentum": 0.9,
        },
    )
    assert (set_.optimizer, set_.steps, set_.batch_size, set_.data_fraction) == ("sgd", 7, 4, 1.0)
    assert (set_.hyper.lr, set_.hyper.momentum, set_.mask_kind, set_.sparsity) == (0.5, 0.9, "none", 0.0)
    other = networks.describe(0, {"model.name": "residual_mlp"})
    assert other.structure.groups[0].size == 100  # that family's own default: the recipe's options are another's


# Groups.


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"model.widths": [3, 4]}, {"model.widths": [9, 2]}, True),
        ({"model.widths": [3, 4]}, {"model.widths": [3]}, False),
        ({}, {"model.activation": "tanh"}, False),
        ({}, {"model.bias": False}, False),
        ({}, {"model.init": "torch"}, True),
        ({}, {"training.lr": 1.0, "training.momentum": 0.5, "training.label_smoothing": 0.1}, True),
        ({}, {"training.steps": 10}, True),
        ({}, {"training.optimizer": "sgd"}, False),
        ({}, {"training.batch_size": 8}, False),
        ({}, {"training.data_fraction": 0.5}, False),
        ({}, {"training.precision": "bfloat16"}, False),
        ({}, {"training.lr_schedule": "cosine", "training.warmup_fraction": 0.1, "training.nesterov": True}, True),
        ({"masks.pattern": "2:4"}, {"masks.sparsity": 0.5, "masks.kind": "node"}, True),
        ({}, {"masks.sparsity": 0.9}, True),
        ({}, {"masks.sparsity": 0.5, "masks.kind": "node"}, True),
        ({}, {"model.name": "lenet_300_100"}, False),
        *(
            ({"model.name": "hourglass", **a}, {"model.name": "hourglass", **b}, same)
            for a, b, same in [
                ({"model.depth": 3, "model.skip_width": 2}, {"model.depth": 4, "model.hidden_width": 9}, True),
                ({"model.depth": 2}, {"model.depth": 3}, False),
                ({"model.norm": "layer", "model.hidden_width": 3}, {"model.norm": "layer"}, True),
                ({"model.norm": "layer", "model.skip_width": 3}, {"model.norm": "layer"}, False),
                ({"model.lift": "fixed"}, {"model.lift": "trained"}, False),
            ]
        ),
    ],
)
def test_a_group_holds_what_cannot_be_mixed(a, b, same):
    networks = networks_of()
    first, second = networks.describe(0, a).shape, networks.describe(0, b).shape
    assert (first.group == second.group) == same
    if same:
        assert [len(s) for s in first.tensors] == [len(s) for s in second.tensors]
        assert first.positions == second.positions


def test_a_block_that_a_network_lacks_has_zeros():
    networks = networks_of("hourglass", {"bias": False})
    shape = networks.describe(0, {"model.depth": 3, "model.skip_width": 6, "model.hidden_width": 2}).shape
    assert shape.tensors == ((6, 15), *[(2, 6), (6, 2)] * 3, (0, 6), (6, 0), (4, 6))
    assert shape.positions == (1,) * 10
    assert networks_of().describe(0, {}).shape.positions == (1, 0, 1, 0, 1, 0)  # biases


# Stacks.


def pack_of(family, masks=({},)):
    networks = networks_of(family)
    described = [
        networks.describe(0, settings_of(options, each)) for options, each in itertools.product(UNLIKE[family], masks)
    ]
    return networks, described, [networks.build(n) for n in described]


@pytest.mark.parametrize("family", UNLIKE)
def test_padding_changes_no_output(family):
    networks, described, built = pack_of(family, MASKS)
    larger = [tuple(n + 2 if n > oracle.N_CLASSES else n for n in s) for s in padded_layout(described, None).shapes]
    x = torch.from_numpy(generator(0, "inputs").standard_normal((9, oracle.N_INPUTS)).astype(np.float32))
    for padded in [None, larger] if family == "mlp" else [None]:
        if padded is not None:
            padded[0] = (padded[0][0], oracle.N_INPUTS)  # the inputs are what they are
        lanes = stack(described, [b.weights for b in built], [b.keep for b in built], padded, CPU)
        together = forward(networks.model(described[0]), lanes.layout, lanes.flat, x)
        for logits, network, each in zip(together, described, built, strict=True):
            weights = {n: torch.from_numpy(w) for n, w in each.weights.items()}
            torch.testing.assert_close(logits, oracle.logits(family, weights, x), rtol=0, atol=1e-5)
            alone = functional_call(networks.model(network).module, weights | _missing(lanes.layout, weights), (x,))
            torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


def _missing(layout, weights):
    """Empty tensors for the blocks that a network lacks."""
    return {n: torch.zeros((0,) * len(s)) for n, s in zip(layout.names, layout.shapes, strict=True) if n not in weights}


@pytest.mark.parametrize("family", UNLIKE)
def test_lanes_keep_exactly_what_exists(family):
    _, described, built = pack_of(family, MASKS)
    lanes = stack(described, [b.weights for b in built], [b.keep for b in built], None, CPU)
    assert [int(k.sum()) for k in lanes.keep] == [n.n_params for n in described]
    assert (lanes.flat[lanes.keep == 0] == 0).all()
    for row, network, each in zip(lanes.flat.numpy(), described, built, strict=True):
        again = real_tensors(lanes.layout, network, row)
        assert again.keys() == each.weights.keys()
        assert all((again[n] == w).all() for n, w in each.weights.items())


def test_nothing_padded_and_nothing_masked_needs_no_mask():
    networks = networks_of()
    described = [networks.describe(0, {"training.lr": lr}) for lr in (0.1, 0.2)]
    built = [networks.build(n) for n in described]
    assert stack(described, [b.weights for b in built], [{}, {}], None, CPU).keep is None
    assert stack(described, [b.weights for b in built], [{}, {}], described[0].shape.tensors, CPU).keep is None
    nodes = [networks.describe(0, {"masks.kind": "node", "masks.sparsity": 0.5, "masks.draw": i}) for i in (0, 1)]
    built = [networks.build(n) for n in nodes]
    assert stack(nodes, [b.weights for b in built], [b.keep for b in built], None, CPU).keep is None


def test_padding_that_is_too_small_is_refused():
    _, described, _ = pack_of("residual_mlp")
    shapes = list(padded_layout(described, None).shapes)
    shapes[0] = (16, 15)
    with pytest.raises(SpaceError, match=r"padded=\[\(16, 15\), .*: must be at least \[\(17, 15\)"):
        padded_layout(described, shapes)


def test_rows_hold_tensors_at_the_beginning_of_every_axis():
    _, described, built = pack_of("conv1d")
    layout = padded_layout(described, None)
    rows = padded_rows(layout, [b.weights for b in built])
    for row, each in zip(rows, built, strict=True):
        views = layout.views(torch.from_numpy(row)[None])
        for name, w in each.weights.items():
            whole = np.zeros(views[name].shape[1:], dtype=np.float32)
            whole[tuple(slice(n) for n in w.shape)] = w
            assert (views[name][0].numpy() == whole).all()


# Fixed lifts, users' own families.


def test_a_fixed_lift_is_the_same_for_all_of_its_width_and_no_parameter():
    networks = networks_of("hourglass", {"lift": "fixed", "skip_width": 40})
    a, b = (networks.describe(0, {"model.hidden_width": n, "model.depth": n}) for n in (2, 5))
    lift = networks.build(a).weights["lift.weight"]
    assert (lift == networks.build(b).weights["lift.weight"]).all()
    assert (lift != networks.build(networks.describe(1, {"model.depth": 2})).weights["lift.weight"]).all()
    # 600 draws: a relative standard error of 3 percent.
    assert lift.std() == pytest.approx(1 / np.sqrt(15), rel=0.15)
    assert a.n_params == 2 * (2 * 40 + 2 + 2 * 40 + 40) + 4 * 40 + 4
    assert a.macs == 15 * 40 + 4 * 2 * 40 + 4 * 40
    assert a.architecture.layout.names[-1] == "lift.weight"
    masked = networks.describe(0, {"masks.sparsity": 0.9})
    assert masked.macs == 15 * 40 + sum(masked.kept)
    assert masked.remains.macs == masked.macs
    assert sum(masked.kept) == sum(kept_counts(masked.structure, "weight", 0.9, "uniform"))


def test_a_users_family_needs_no_more_than_to_build(blobs):
    networks = networks_of("tests.trainables.fragile_family:FAMILY", {"widths": (5,)})
    plain, wide = networks.describe(0, {}), networks.describe(0, {"model.widths": [6]})
    assert plain.shape.group != wide.shape.group
    assert networks.build(plain).weights["layers.0.weight"].shape == (5, 15)
    masked = networks.describe(0, {"masks.sparsity": 0.5})
    digest = mask_digest(pack_bits(masked.mask))
    refusing = networks_of("tests.trainables.fragile_family:FAMILY", {"widths": (5,), "refused": (digest,)})
    with pytest.raises(ArithmeticError, match=f"mask {digest} has no inverse"):
        refusing.build(refusing.describe(0, {"masks.sparsity": 0.5}))


@pytest.mark.parametrize("name", ["random_erk", "set", "rigl"])
def test_a_methods_own_allocation_is_of_the_candidates_kind_of_mask(name):
    """Whatever kind the study's masks are of: weights are divided by the method's, nodes by the study's."""
    for kind in ("node", "weight"):
        networks = networks_of("mlp", mask_kind=kind, methods={name: PRUNERS[name].method})
        of_weights = networks.describe(0, {"masks.method": name, "masks.kind": "weight", "masks.sparsity": 0.6})
        assert of_weights.kept == kept_counts(of_weights.structure, "weight", 0.6, "erk")
        if "node" in PRUNERS[name].kinds and PRUNERS[name].method.counts_of is None:
            of_nodes = networks.describe(0, {"masks.method": name, "masks.kind": "node", "masks.sparsity": 0.6})
            assert of_nodes.kept == kept_counts(of_nodes.structure, "node", 0.6, "uniform")
