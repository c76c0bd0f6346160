"""Segments: unlike candidates in one pack, trained piece by piece, come out as each alone and in one go."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from sparsefront.errors import CheckpointError
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.masks import mask_digest, pack_bits
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.checkpoints import OnTheWay, list_checkpoints, read_checkpoint, write_checkpoint
from sparsefront.trainables.data import split
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Schedule, batch_order
from sparsefront.trainables.rates import rate_factor
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from tests.oracles import networks as oracle
from tests.trainables.test_networks import UNLIKE, recipe_of, settings_of

CPU = torch.device("cpu")
STEPS, BATCH, EVERY = 50, 32, 20
#: The contract: losses within 1e-4 after 50 steps in float32 on a CPU.
TOLERANCE = 1e-4
N_TRAIN, N_VALIDATION, N_TEST = 180, 60, 80

HYPER = [
    {"training.lr": 0.01},
    {"training.lr": 0.02, "training.weight_decay": 0.02, "training.momentum": 0.9},
    {"training.lr": 0.005, "training.label_smoothing": 0.1, "training.momentum": 0.5, "training.nesterov": True},
]
MASKS = [{"masks.sparsity": 0.5}, {"masks.kind": "node", "masks.sparsity": 0.4, "masks.draw": 1}, {}]


@pytest.fixture
def shop_of(blobs, tmp_path):
    def make(family="mlp", optimizer="adam", *, every_s=math.inf, **more):
        recipe = recipe_of(family, schedule=Schedule(optimizer, STEPS, BATCH, EVERY), **more)
        return SegmentShop(recipe, blobs, CPU, tmp_path / "checkpoints", checkpoint_every_s=every_s)

    return make


def specs_of(family, *, start=0, stop=STEPS, checkpoints=None):
    """Lanes of every size of a family, each with another mask and other hyperparameters."""
    return [
        LaneSpec(f"lane{i}", settings_of(options, {**masks, **hyper}), start, stop, (checkpoints or {}).get(f"lane{i}"))
        for i, (options, masks, hyper) in enumerate(zip(UNLIKE[family], MASKS, HYPER, strict=True))
    ]


def run(shop, specs, replicate=0, padded=None):
    """Results by id."""
    results = list(itertools.chain.from_iterable(shop.train(specs, replicate, padded)))
    assert sorted(r.id for r in results) == sorted(s.id for s in specs)
    return {r.id: r for r in results}


def assert_same(a, b):
    assert (a.outcome, a.steps, a.curve_step) == (b.outcome, b.steps, b.curve_step)
    np.testing.assert_allclose(a.curve_val_loss, b.curve_val_loss, rtol=0, atol=TOLERANCE)
    assert a.val_loss == pytest.approx(b.val_loss, abs=TOLERANCE)
    assert a.test_loss == (None if b.test_loss is None else pytest.approx(b.test_loss, abs=TOLERANCE))


def only(shop):
    """The one checkpoint of a shop: its name."""
    (path,) = shop._folder.glob("*.safetensors")
    return path.stem


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("family", UNLIKE)
def test_unlike_lanes_of_one_pack_are_what_plain_torch_makes_of_each(family, optimizer, shop_of, blobs):
    shop = shop_of(family, optimizer)
    specs = specs_of(family)
    results = run(shop, specs, replicate=1)
    parts = split(blobs, validation_fraction=0.25, generator=generator(3, "split", 1))
    train, validation = (
        Examples.of(blobs.x_train[i], blobs.y_train[i], oracle.N_CLASSES, CPU)
        for i in (parts.train_indices, parts.validation_indices)
    )
    order = torch.from_numpy(batch_order(N_TRAIN, BATCH, STEPS, generator(3, "order", 1)))
    for spec in specs:
        network = shop.networks.describe(1, spec.settings)
        built = shop.networks.build(network)
        weights = {n: torch.from_numpy(w) for n, w in built.weights.items()}
        keep = {
            n: torch.from_numpy(built.keep[n]) if n in built.keep else torch.ones_like(w) for n, w in weights.items()
        }
        trained = oracle.train(family, weights, train, order, optimizer_name=optimizer, hyper=network.hyper, keep=keep)
        trained = {n: w * keep[n] for n, w in trained.items()}  # torch's decay moves what is masked
        loss, error = oracle.measure(family, trained, validation)
        result = results[spec.id]
        assert (result.outcome, result.steps, result.curve_step) == ("completed", STEPS, [20, 40, 50])
        assert result.val_loss == pytest.approx(loss, abs=TOLERANCE)
        assert result.val_error == pytest.approx(error, abs=1e-6)
        test = Examples.of(blobs.x_test, blobs.y_test, oracle.N_CLASSES, CPU)
        test_loss, test_error = oracle.measure(family, trained, test)
        assert result.test_loss == pytest.approx(test_loss, abs=TOLERANCE)
        assert result.test_error == pytest.approx(test_error, abs=1e-6)
        assert (result.remains, result.mask_kind) == (network.remains, network.mask_kind)
        assert result.mask_digest == (None if network.mask is None else mask_digest(pack_bits(network.mask)))


RATES = [
    {"training.lr_schedule": "cosine", "training.warmup_fraction": 0.2},
    {"training.warmup_fraction": 0.1},
    {},
    {"training.lr_schedule": "step", "training.momentum": 0.9, "training.nesterov": True},
    {"training.lr_schedule": "constant", "training.warmup_fraction": 0.0, "training.weight_decay": 0.01},
]
PATTERNED = [
    {"masks.pattern": "2:4"},
    {"masks.pattern": "2x2", "masks.sparsity": 0.5},
    {"masks.kind": "node", "masks.sparsity": 0.5},
    {"masks.kind": "weight", "masks.pattern": "unstructured", "masks.sparsity": 0.7},
    {},
]


def unlike_specs(stop=STEPS):
    """Lanes of one group with every kind of mask and every schedule of learning rates."""
    sizes = [*UNLIKE["mlp"], *UNLIKE["mlp"][:2]]
    lr = [{"training.lr": 0.01 + 0.002 * i} for i in range(5)]
    return [
        LaneSpec(f"lane{i}", settings_of(options, {**masks, **lr[i], **rates}), 0, stop)
        for i, (options, masks, rates) in enumerate(zip(sizes, PATTERNED, RATES, strict=True))
    ]


@pytest.mark.parametrize("schedule", [{}, {"lr_schedule": "linear", "warmup_fraction": 0.04}], ids=["plain", "linear"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_lanes_of_unlike_masks_and_rates_share_a_pack_and_are_each_what_plain_torch_makes_of_it(
    optimizer, schedule, blobs, tmp_path
):
    recipe = recipe_of(schedule=Schedule(optimizer, STEPS, BATCH, EVERY, **schedule))
    shop = SegmentShop(recipe, blobs, CPU, tmp_path / "checkpoints")
    specs = unlike_specs()
    networks = [shop.networks.describe(0, s.settings) for s in specs]
    assert len({n.shape.group for n in networks}) == 1
    results = run(shop, specs)
    assert len({r.seconds for r in results.values()}) == 1  # those of one pack
    train, validation = shop._examples(0)
    order = torch.from_numpy(batch_order(N_TRAIN, BATCH, STEPS, generator(3, "order", 0)))
    for spec, network in zip(specs, networks, strict=True):
        built = shop.networks.build(network)
        weights = {n: torch.from_numpy(w) for n, w in built.weights.items()}
        keep = {
            n: torch.from_numpy(built.keep[n]) if n in built.keep else torch.ones_like(w) for n, w in weights.items()
        }
        name = spec.settings.get("training.lr_schedule", schedule.get("lr_schedule", "constant"))
        warmup = spec.settings.get("training.warmup_fraction", schedule.get("warmup_fraction", 0.0))
        rates = [rate_factor(name, t, steps=STEPS, warmup=round(warmup * STEPS)) for t in range(STEPS)]
        trained = oracle.train(
            "mlp", weights, train, order, optimizer_name=optimizer, hyper=network.hyper, keep=keep, rates=rates
        )
        trained = {n: w * keep[n] for n, w in trained.items()}  # torch's decay moves what is masked
        loss, _ = oracle.measure("mlp", trained, validation)
        assert results[spec.id].val_loss == pytest.approx(loss, abs=TOLERANCE)
        assert results[spec.id].mask_kind == network.mask_kind
    for spec in specs:
        assert_same(run(shop, [spec])[spec.id], results[spec.id])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_segments_of_unlike_rates_are_the_whole(optimizer, shop_of):
    shop = shop_of(optimizer=optimizer)
    whole = run(shop, unlike_specs())
    first = run(shop, unlike_specs(stop=7))
    rest = [LaneSpec(s.id, s.settings, 7, STEPS, first[s.id].checkpoint) for s in unlike_specs()]
    for lane, result in run(shop, rest).items():
        assert result.val_loss == pytest.approx(whole[lane].val_loss, abs=TOLERANCE)


def test_rates_are_of_the_whole_training_wherever_a_segment_ends(shop_of):
    """Trainings of unlike length that stop at one rung have unlike rates there."""
    shop = shop_of()
    lanes = [
        LaneSpec("short", {"training.lr_schedule": "cosine", "training.steps": 30}, 0, 20),
        LaneSpec("long", {"training.lr_schedule": "cosine"}, 0, 20),
        LaneSpec("plain", {}, 0, 20),
    ]
    together = run(shop, lanes)
    for spec in lanes:
        assert_same(run(shop, [spec])[spec.id], together[spec.id])
    assert len({r.val_loss for r in together.values()}) == 3


def test_lower_precision_trains_apart(shop_of):
    shop = shop_of()
    specs = [LaneSpec(p, {"training.precision": p}, 0, STEPS) for p in ("float32", "bfloat16")]
    results = run(shop, specs)
    assert_same(results["float32"], run(shop_of(), [LaneSpec("float32", {}, 0, STEPS)])["float32"])
    # Eight bits of mantissa: a loss of about 1 moves by some thousandths, and never by nothing.
    difference = abs(results["bfloat16"].val_loss - results["float32"].val_loss)
    assert 0 < difference < 0.1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("family", [f if f == "mlp" else pytest.param(f, marks=pytest.mark.slow) for f in UNLIKE])
def test_segments_are_the_whole(family, optimizer, shop_of):
    """Of the same pack to the last bit; in packs of other shapes to the contract's tolerance."""
    whole_shop, shop = shop_of(family, optimizer), shop_of(family, optimizer)
    whole = run(whole_shop, specs_of(family))
    first = run(shop, specs_of(family, stop=20))
    assert {(r.outcome, r.steps, r.test_loss) for r in first.values()} == {(None, 20, None)}
    assert len({r.checkpoint for r in first.values()}) == 1
    second = run(shop, specs_of(family, start=20, stop=STEPS, checkpoints={i: r.checkpoint for i, r in first.items()}))
    for lane, result in second.items():
        assert result.curve_val_loss == whole[lane].curve_val_loss
        assert (result.test_loss, result.test_error) == (whole[lane].test_loss, whole[lane].test_error)
        assert result.passes + first[lane].passes == pytest.approx(whole[lane].passes)
        assert result.checkpoint is None
    # Every lane alone, first and second segment.
    for spec in specs_of(family):
        alone = shop_of(family, optimizer)
        start = run(alone, [LaneSpec(spec.id, spec.settings, 0, 20)])[spec.id]
        end = run(alone, [LaneSpec(spec.id, spec.settings, 20, STEPS, start.checkpoint)])[spec.id]
        assert_same(end, whole[spec.id])


def test_a_rung_between_validation_points_is_one_more(shop_of):
    shop = shop_of()
    whole = run(shop, specs_of("mlp"))
    first = run(shop, specs_of("mlp", stop=7))
    second = run(shop, specs_of("mlp", start=7, stop=33, checkpoints={i: r.checkpoint for i, r in first.items()}))
    last = run(shop, specs_of("mlp", start=33, checkpoints={i: r.checkpoint for i, r in second.items()}))
    for lane, result in last.items():
        assert result.curve_step == [7, 20, 33, 40, 50]
        assert result.curve_val_loss[1:2] + result.curve_val_loss[3:] == whole[lane].curve_val_loss
        assert second[lane].steps == 33


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_nothing_that_is_masked_or_padded_comes_back(optimizer, shop_of):
    shop = shop_of("hourglass", optimizer, options={"lift": "fixed"}, hyper=Hyperparameters(0.02, 0.1, momentum=0.9))
    specs = [
        LaneSpec(str(i), settings_of(options, {"masks.sparsity": 0.6}), 0, 40)
        for i, options in enumerate(UNLIKE["hourglass"])
    ]
    run(shop, specs)
    for lane, state in read_checkpoint(shop._folder, only(shop), ["0", "1", "2"]).items():
        network = shop.networks.describe(0, specs[int(lane)].settings)
        built = shop.networks.build(network)
        weights = state.parts["weights"]
        assert "lift.weight" not in weights  # it is drawn again
        assert weights.keys() == built.weights.keys() - {"lift.weight"}
        for name, w in weights.items():
            assert w.shape == built.weights[name].shape
            assert (w != built.weights[name]).any()
            if name in built.keep:
                assert (w[built.keep[name] == 0] == 0).all()
                assert all((part[name][built.keep[name] == 0] == 0).all() for part in state.parts.values())


def test_a_fixed_lift_stays_as_it_was_drawn(shop_of, blobs):
    options = {"lift": "fixed", "skip_width": 30, "hidden_width": 4}
    shop = shop_of("hourglass", options=options, hyper=Hyperparameters(0.02, weight_decay=0.1))
    result = run(shop, [LaneSpec("a", {}, 0, STEPS), LaneSpec("b", {"model.depth": 1}, 0, STEPS)])["a"]
    network = shop.networks.describe(0, {})
    weights = {n: torch.from_numpy(w) for n, w in shop.networks.build(network).weights.items()}
    lift = weights.pop("lift.weight")
    train, validation = shop._examples(0)
    # The same network on lifted inputs, in plain torch.
    lifted = Examples(train.x @ lift.T, train.labels, train.one_hot)
    identity = {"lift.weight": torch.eye(30)}
    order = torch.from_numpy(batch_order(N_TRAIN, BATCH, STEPS, generator(3, "order", 0)))
    leaves = {n: w.clone().requires_grad_(True) for n, w in weights.items()}
    steps = oracle.optimizer("adam", list(leaves.values()), network.hyper)
    for batch in order:
        steps.zero_grad()
        out = oracle.logits("hourglass", {**leaves, **identity}, lifted.x[batch])
        torch.nn.functional.cross_entropy(out, lifted.labels[batch]).backward()
        steps.step()
    trained = {**{n: w.detach() for n, w in leaves.items()}, "lift.weight": lift}
    assert result.val_loss == pytest.approx(oracle.measure("hourglass", trained, validation)[0], abs=TOLERANCE)


def test_the_shape_of_the_pack_changes_nothing(shop_of):
    shop = shop_of()
    specs = specs_of("mlp")
    expected = run(shop, specs)
    shapes = [shop.networks.describe(0, s.settings).shape.tensors for s in specs]
    wider = [tuple(int(n) for n in np.max(each, axis=0)) for each in zip(*shapes, strict=True)]
    wider[0], wider[1], wider[2] = (19, 15), (19,), (wider[2][0], 19)
    for lane, result in run(shop, specs, padded=wider).items():
        assert_same(result, expected[lane])


@pytest.mark.parametrize("at_once", [1, 2])
def test_how_many_lanes_train_at_once_changes_nothing(at_once, shop_of):
    expected = run(shop_of(), specs_of("mlp"))
    for lane, result in run(shop_of(lanes_at_once=at_once), specs_of("mlp")).items():
        assert_same(result, expected[lane])


def test_lanes_that_cannot_share_a_pack_are_trained_one_group_after_the_other(shop_of):
    shop = shop_of()
    specs = [
        LaneSpec("a", {"model.widths": [5, 4]}, 0, STEPS),
        LaneSpec("b", {"model.widths": [5]}, 0, STEPS),
        LaneSpec("c", {"training.optimizer": "sgd"}, 0, STEPS),
        LaneSpec("d", {"training.batch_size": 16}, 0, STEPS),
        LaneSpec("e", {"training.steps": 30}, 0, 30),
        LaneSpec("f", {"training.steps": 30}, 0, 99),  # a segment never goes beyond the training
        LaneSpec("g", {}, 0, 10),
    ]
    together = run(shop, specs)
    assert [together[i].outcome for i in "abcdefg"] == ["completed"] * 6 + [None]
    assert [together[i].steps for i in "abcdefg"] == [50, 50, 50, 50, 30, 30, 10]
    for spec in specs:
        assert_same(run(shop, [spec])[spec.id], together[spec.id])


# What it costs.


def test_passes_are_counted_segment_by_segment(shop_of):
    shop = shop_of()
    first = run(shop, [LaneSpec("a", {}, 0, 20)])["a"]
    assert first.passes == pytest.approx(20 * BATCH + N_VALIDATION / 3)
    second = run(shop, [LaneSpec("a", {}, 20, STEPS, first.checkpoint)])["a"]
    assert second.passes == pytest.approx(30 * BATCH + 2 * N_VALIDATION / 3 + N_TEST / 3)
    assert first.seconds > 0


def test_a_fraction_of_the_data_is_a_part_of_every_larger_one(shop_of):
    shop = shop_of()
    seen = {f: set(shop._order(0, 8, f, 200).ravel().tolist()) for f in (0.1, 0.25, 0.5, 1.0)}
    assert [len(seen[f]) for f in sorted(seen)] == [18, 45, 90, 180]
    assert seen[0.1] < seen[0.25] < seen[0.5] < seen[1.0]
    assert seen[0.5] != set(shop._order(1, 8, 0.5, 200).ravel().tolist())
    whole = batch_order(N_TRAIN, 8, 200, generator(3, "order", 0))
    assert (shop._order(0, 8, 1.0, 200).numpy() == whole).all()
    full, half = (run(shop, [LaneSpec("a", {"training.data_fraction": f}, 0, STEPS)])["a"] for f in (1.0, 0.5))
    assert abs(full.val_loss - half.val_loss) > 1e-3


def test_a_batch_larger_than_the_fraction_fails_alone(shop_of):
    specs = [LaneSpec("a", {"training.data_fraction": 0.1}, 0, STEPS), LaneSpec("b", {}, 0, STEPS)]
    results = run(shop_of(), specs)
    assert results["a"].outcome == "failed"
    assert "batch_size=32: must lie in 1..18" in results["a"].error
    assert results["b"].outcome == "completed"


# What goes wrong.


@pytest.mark.parametrize("damage", ["missing", "damaged", "none", "another step", "another network"])
def test_without_a_good_checkpoint_a_lane_trains_anew(damage, shop_of):
    shop = shop_of()
    whole = run(shop, specs_of("mlp"))
    first = run(shop, specs_of("mlp", stop=20))
    names = {lane: r.checkpoint for lane, r in first.items()}
    path = shop._folder / f"{names['lane0']}.safetensors"
    states = read_checkpoint(shop._folder, names["lane0"], list(names))
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:-3] + b"abc")
    elif damage == "none":
        names = dict.fromkeys(names)
    elif damage == "another step":
        early = run(shop, specs_of("mlp", stop=10))
        names = {lane: r.checkpoint for lane, r in early.items()}
    else:
        other = write_checkpoint(shop._folder, {"lane0": states["lane1"], "lane1": states["lane1"]})
        names = {**names, "lane0": other}
    second = run(shop, specs_of("mlp", start=20, checkpoints=names))
    for lane, result in second.items():
        assert_same(result, whole[lane])
        is_anew = damage != "another network" or lane == "lane0"
        expected = whole[lane].passes - (0 if is_anew else first[lane].passes)
        assert result.passes == pytest.approx(expected)


#: Steps of the rungs behind a lane, and of its segment's end; share of the examples used on the way to each.
ENDS, GROWING = (10, 26, STEPS), (0.4, 0.7, 1.0)


def segment_by_segment(shop, specs, fractions):
    """Results of all segments, each from the checkpoint of the one before: a list by lane."""
    found = {spec.id: [] for spec in specs}
    for stop in ENDS:
        for lane, result in run(shop, later_specs(specs, found, stop, fractions)).items():
            found[lane].append(result)
    return found


def later_specs(specs, found, stop, fractions):
    """What a driver sends of lanes that have these results behind them."""
    shares = dict(zip(ENDS, fractions or [None] * len(ENDS), strict=True))
    later = []
    for spec in specs:
        behind = tuple((one.steps, one.checkpoint, shares[one.steps]) for one in found.get(spec.id, ()))
        settings = spec.settings if fractions is None else {**spec.settings, "training.data_fraction": shares[stop]}
        at = behind[-1][:2] if behind else (0, None)
        later.append(LaneSpec(spec.id, settings, at[0], stop, at[1], behind))
    return later


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("fractions", [None, GROWING], ids=["steps", "data_fraction"])
@pytest.mark.parametrize("n_lost", [0, 1, 2])
def test_a_lane_goes_on_from_the_last_good_checkpoint(n_lost, fractions, shop_of):
    """And trains again what it has to as it was trained: on the same examples, with the same validation points."""
    shop = shop_of(methods={"snip": PRUNERS["snip"].method}, probe_size=60)
    scored = LaneSpec("scored", {"masks.method": "snip", "masks.sparsity": 0.5}, 0, STEPS)
    specs = [*specs_of("mlp"), scored]  # its mask is cut on the examples of its first segment
    whole = segment_by_segment(shop, specs, fractions)
    last = later_specs(specs, {lane: ends[:2] for lane, ends in whole.items()}, STEPS, fractions)
    for end in (1, 0)[:n_lost]:
        for name in {ends[end].checkpoint for ends in whole.values()}:
            damage(shop._folder / f"{name}.safetensors")
    for lane, result in run(shop, last).items():
        assert_same(result, whole[lane][-1])
        assert result.passes == pytest.approx(sum(one.passes for one in whole[lane][2 - n_lost :]))


def test_lanes_that_lost_unlike_checkpoints_share_a_pack_no_more(shop_of):
    shop = shop_of()
    whole = segment_by_segment(shop, specs_of("mlp"), GROWING)
    last = later_specs(specs_of("mlp"), {lane: ends[:2] for lane, ends in whole.items()}, STEPS, GROWING)
    lost = (*last[0].behind[:-1], (last[0].start_step, "0" * 64, GROWING[1]))
    last[0] = dataclasses.replace(last[0], checkpoint="0" * 64, behind=lost)
    for lane, result in run(shop, last).items():
        assert_same(result, whole[lane][-1])
        n_repeated = 1 if lane == last[0].id else 0
        assert result.passes == pytest.approx(sum(one.passes for one in whole[lane][2 - n_repeated :]))


def cut_off(shop, spec, n_points):
    """Train a lane alone, and give up after so many validation points."""
    training = shop.train([spec], 0)
    next(training)  # what is no network
    for _ in range(n_points):
        next(training)
    training.close()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("start", [0, 10])
def test_a_training_that_is_cut_off_goes_on_from_its_way(start, optimizer, shop_of):
    shop = shop_of(optimizer=optimizer, every_s=0.0)
    spec = specs_of("mlp")[1]
    if start:
        first = run(shop, [LaneSpec(spec.id, spec.settings, 0, start)])[spec.id]
        spec = LaneSpec(spec.id, spec.settings, start, STEPS, first.checkpoint)
    whole = run(shop, [spec])[spec.id]
    assert whole.curve_step[-3:] == [20, 40, 50]
    OnTheWay.clear(shop._folder)
    for n_points in (1, 2):
        cut_off(shop_of(optimizer=optimizer, every_s=0.0), spec, n_points)
        alone = shop_of(optimizer=optimizer)
        repeated = run(alone, [spec])[spec.id]
        assert repeated.curve_val_loss == whole.curve_val_loss
        assert (repeated.outcome, repeated.test_loss) == ("completed", whole.test_loss)
        assert repeated.passes == pytest.approx(whole.passes)  # each is paid for once
        assert repeated.flops == pytest.approx(whole.flops)
        assert repeated.seconds > 0
        OnTheWay.clear(shop._folder)


@pytest.mark.parametrize("fractions", [None, GROWING], ids=["steps", "data_fraction"])
def test_a_segment_that_is_trained_again_leaves_checkpoints_on_its_way_too(fractions, shop_of):
    """Those from before its own begin are gone on from as well: what was lost twice is not trained thrice."""
    more = {"methods": {"snip": PRUNERS["snip"].method}, "probe_size": 60}
    shop = shop_of(every_s=0.0, **more)
    spec = LaneSpec("a", {"masks.method": "snip", "masks.sparsity": 0.5}, 0, STEPS)
    whole = segment_by_segment(shop, [spec], fractions)["a"]
    (last,) = later_specs([spec], {"a": whole[:2]}, STEPS, fractions)
    for lost in whole[:2]:
        damage(shop._folder / f"{lost.checkpoint}.safetensors")
    way = OnTheWay(shop._folder, "a", STEPS)
    # Steps 10 and 20 are on the way to rungs that lie behind, 40 is on that of the segment itself.
    for n_points, n_damaged, at in ((2, 1, 10), (2, 0, 20), (4, 0, 40)):
        OnTheWay.clear(shop._folder)
        cut_off(shop, last, 1 + n_points)  # its mask comes first
        by_age = sorted(way._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        for path in by_age[2 - n_damaged :]:
            damage(path)
        assert next(way.states()).step == at
        points = list(shop_of(**more).train([last], 0))[2:]
        assert len(points) == len([step for step in whole[-1].curve_step if step > at])
        (again,) = points[-1]
        assert_same(again, whole[-1])
        assert again.passes == pytest.approx(sum(one.passes for one in whole))
        assert again.flops == pytest.approx(sum(one.flops for one in whole))


def test_of_two_checkpoints_on_the_way_the_last_good_one_counts(shop_of):
    shop = shop_of(every_s=0.0)
    spec = specs_of("mlp")[0]
    whole = run(shop, [spec])[spec.id]
    (way,) = (shop._folder / "way").iterdir()
    OnTheWay.clear(shop._folder)
    expected = {0: 10, 1: 30, 2: STEPS}
    for n_damaged, n_steps in expected.items():
        cut_off(shop, spec, 2)
        by_age = sorted(way.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        assert len(by_age) == 2
        for path in by_age[2 - n_damaged :]:
            damage(path)
        points = list(shop_of().train([spec], 0))[1:]
        assert len(points) == {10: 1, 30: 2, STEPS: 3}[n_steps]
        assert_same(points[-1][0], whole)
        OnTheWay.clear(shop._folder)


def test_what_another_candidate_left_on_the_way_is_passed_over(shop_of):
    shop = shop_of(every_s=0.0)
    spec, other = specs_of("mlp")[:2]
    whole = run(shop, [spec])[spec.id]
    cut_off(shop, LaneSpec(spec.id, other.settings, 0, STEPS), 2)  # another network under the same name
    assert_same(run(shop, [spec])[spec.id], whole)


def test_only_long_trainings_of_one_lane_leave_checkpoints_on_the_way(shop_of, tmp_path):
    run(shop_of(every_s=0.0), specs_of("mlp"))  # a pack
    run(shop_of(every_s=3600.0), specs_of("mlp")[:1])
    run(shop_of(), specs_of("mlp")[:1])
    assert not (tmp_path / "checkpoints").exists()
    run(shop_of(every_s=0.0), specs_of("mlp")[:1])
    (way,) = (tmp_path / "checkpoints" / "way").iterdir()
    assert len(list_checkpoints(way)) == 2  # those at 20 and 40 steps: at the end there is none


def test_a_training_goes_on_where_no_checkpoint_can_be_left_on_its_way(shop_of, tmp_path):
    whole = run(shop_of(), specs_of("mlp")[:1])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "way").write_text("a file")
    for lane, result in run(shop_of(every_s=0.0), specs_of("mlp")[:1]).items():
        assert_same(result, whole[lane])


def test_a_checkpoint_that_cannot_be_written_is_not_the_candidates_failure(shop_of):
    shop = shop_of()
    shop._folder.parent.mkdir(exist_ok=True)
    shop._folder.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        run(shop, specs_of("mlp", stop=20))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_lanes_that_diverge_change_nothing_for_the_others(optimizer, shop_of):
    shop = shop_of(optimizer=optimizer)
    expected = run(shop, specs_of("mlp"))
    wild = [LaneSpec(f"wild{i}", {"training.lr": 1e30}, 0, STEPS) for i in range(3)]
    results = run(shop, [wild[0], *specs_of("mlp"), *wild[1:]])
    for spec in wild:
        result = results.pop(spec.id)
        assert (result.outcome, result.steps, result.checkpoint, result.test_loss) == ("diverged", 20, None, None)
        assert not np.isfinite(result.val_loss)
    for lane, result in results.items():
        assert_same(result, expected[lane])


def test_what_is_no_network_fails_alone(shop_of):
    specs = [
        LaneSpec("a", {"model.widths": []}, 0, STEPS),
        LaneSpec("b", {}, 0, STEPS),
        LaneSpec("c", {"masks.sparsity": 2.0}, 0, STEPS),
    ]
    results = run(shop_of(), specs)
    assert [results[i].outcome for i in "abc"] == ["failed", "completed", "failed"]
    assert results["a"].error.startswith("model.widths=[]: ")
    assert results["c"].error == "masks.sparsity=2.0: must lie in [0, 1); correct the space"
    assert (results["a"].passes, results["a"].val_loss, results["a"].remains) == (0, None, None)


def test_a_culprit_is_found_and_its_neighbours_are_not_concerned(shop_of):
    family = "tests.trainables.fragile_family:FAMILY"
    masked = {"masks.kind": "node", "masks.sparsity": 0.5}
    specs = [LaneSpec(str(i), {**masked, "masks.draw": i}, 0, 20) for i in range(5)]
    plain = shop_of(family, options={"widths": [12]})
    expected = run(plain, specs)
    networks = [plain.networks.describe(0, s.settings) for s in specs]
    digests = [mask_digest(pack_bits(n.mask)) for n in networks]
    shop = shop_of(family, options={"widths": [12], "refused": digests[1:2], "too_large": digests[3:4]})
    results = run(shop, specs)
    assert [results[str(i)].outcome for i in range(5)] == [None, "failed", None, "out_of_memory", None]
    assert "has no inverse" in results["1"].error
    assert "Traceback" in results["1"].error
    for lane in "024":
        assert_same(results[lane], expected[lane])
        assert results[lane].passes == expected[lane].passes  # the pack broke before a step was taken


def test_work_that_was_wasted_is_counted(shop_of):
    """The forward pass raises when candidates are tested: after the training of both, and of each alone."""
    shop = shop_of("tests.trainables.fragile_family:BRITTLE", options={"widths": [5], "refused_batch": N_TEST})
    weights = [shop.networks.build(shop.networks.describe(r, {})).weights["layers.0.weight"] for r in range(10)]
    replicate = next(r for r, w in enumerate(weights) if w[0, 0] < -0.1)  # a positive one diverges
    lanes = [LaneSpec(str(i), {"training.steps": 20, "training.lr": 1e-4}, 0, 20) for i in range(2)]
    results = run(shop, lanes, replicate)
    for result in results.values():
        assert result.outcome == "failed"
        assert "a batch of 80 examples is one too many" in result.error
        assert result.passes == pytest.approx(2 * (20 * BATCH + N_VALIDATION / 3))
        assert result.seconds > 0
    paused = run(shop, [LaneSpec("x", {"training.lr": 1e-4}, 0, 20)], replicate)["x"]  # it is not tested yet
    assert (paused.outcome, paused.error) == (None, None)
