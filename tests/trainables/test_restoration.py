"""Images to restore: the examples, the parent, its loss and gradients, its packs, and what is measured of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from sparsefront.errors import ConfigError
from sparsefront.spaces.masks import draw, pack_bits, remains
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables import data
from sparsefront.trainables import pack as pack_module
from sparsefront.trainables.data.dataset import Dataset
from sparsefront.trainables.data.restoration import patch_grid, with_haze, with_noise, with_rain
from sparsefront.trainables.diagnostics import diagnose
from sparsefront.trainables.gradients import gradient_function
from sparsefront.trainables.lanes import LaneStack, dense_lanes, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.losses import absolute_error, squared_errors
from sparsefront.trainables.measuring import Measurer, psnr_columns
from sparsefront.trainables.models import SizedFamily, build_model, initial_weights, model_family
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Feed, Pack, Schedule, batch_order, evaluate, evaluate_each
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.pruning.state import ScoringState
from sparsefront.trainables.quality import measure
from sparsefront.trainables.scoring import Scorer, score_lanes
from tests.oracles.networks import ACTIVATIONS

CPU = torch.device("cpu")
#: Sums of at most a few hundred float32 products in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
SHAPE = (2, 6, 5)
DEGRADATIONS = ("noise", "rain", "haze")
BUILDERS = {"node": node_masked_lanes, "weight": weight_masked_lanes}


@pytest.fixture(scope="module")
def images():
    """Two-channel images of 6 x 5 pixels: 60 for training, 24 for the test."""
    rng = generator(3, "images")
    target = rng.random((84, *SHAPE))
    x = target + 0.2 * rng.standard_normal(target.shape)
    y = np.arange(84) % 3
    arrays = {"x_train": x[:60], "y_train": y[:60], "target_train": target[:60]}
    arrays |= {"x_test": x[60:], "y_test": y[60:], "target_test": target[60:]}
    return Dataset.from_arrays("made", arrays, n_classes=3, source="", licence="", degradations=DEGRADATIONS)


@pytest.fixture(scope="module")
def examples(images):
    return Examples.training(images, np.arange(60), CPU), Examples.test(images, CPU)


@pytest.fixture(scope="module")
def model():
    return build_model("restorer", {"channels": [5, 4, 6]}, input_shape=SHAPE, n_classes=3)


def weights_of(model, seed=0):
    drawn = initial_weights(model.structure, "torch", generator(seed, "restorer"))
    return {name: torch.from_numpy(w) for name, w in drawn.items()}


def plain(weights, x, activation="relu"):
    """The restorer in plain PyTorch."""
    h = x
    for i in range(4):
        h = functional.conv2d(h, weights[f"convs.{i}.weight"], weights.get(f"convs.{i}.bias"), padding=1)
        h = ACTIVATIONS[activation](h) if i < 3 else h
    return x + h


def lanes_of(model, kind, n=4, start=0):
    sizes = model.structure.section_sizes(kind)
    counts = [sum(sizes) // 2] if kind == "node" else [s // 2 for s in sizes]
    masks = draw(sizes, counts, philox_key(1, "mask"), start=start, stop=start + n)
    return BUILDERS[kind](model.structure, weights_of(model), masks), masks


# The examples.


@pytest.fixture(scope="module")
def restoration(tmp_path_factory):
    return data.load_dataset("restoration", cache=tmp_path_factory.mktemp("restoration"))


def test_no_pixel_is_in_two_examples():
    """Photographs whose every pixel has a number of its own: each occurs in one patch at most, and once there."""
    photographs = np.arange(2 * 427 * 640, dtype=np.float64).reshape(2, 427, 640)
    for side in (8, 16, 64):
        patches, is_test = patch_grid(photographs, side)
        assert len(np.unique(patches)) == patches.size == 2 * (427 // side) * (640 // side) * side**2
        # A patch is a region, and the test part whole columns of them.
        rows, columns = np.divmod(patches.astype(np.int64) % (427 * 640), 640)
        assert (np.ptp(rows, axis=(1, 2)) == side - 1).all()
        assert (np.ptp(columns, axis=(1, 2)) == side - 1).all()
        assert not set(columns[is_test].ravel()) & set(columns[~is_test].ravel())
        assert is_test.mean() == pytest.approx(0.2, abs=0.05)


def test_each_patch_of_the_photographs_is_one_example(restoration):
    from sklearn.datasets import load_sample_images

    grey = np.stack(load_sample_images().images) / 255 @ [0.299, 0.587, 0.114]
    patches, is_test = patch_grid(grey, 16)
    np.testing.assert_allclose(restoration.target_train[:, 0], patches[~is_test], atol=1e-6)
    np.testing.assert_allclose(restoration.target_test[:, 0], patches[is_test], atol=1e-6)
    parts = data.split(restoration, validation_fraction=0.2, generator=generator(0, "split"))
    assert len(np.intersect1d(parts.train_indices, parts.validation_indices)) == 0
    for part in (restoration.y_train, restoration.y_test, restoration.y_train[parts.validation_indices]):
        assert np.ptp(np.bincount(part, minlength=3)) <= 1
    assert restoration.task == data.DATASETS["restoration"].task == "restoration"


def test_degradations_are_of_the_strength_that_was_asked_for(restoration):
    change = (restoration.x_train - restoration.target_train).astype(np.float64)
    noise, rain, haze = (change[restoration.y_train == i] for i in range(3))
    # 142,080 draws: 5 standard errors of a mean, and of a standard deviation.
    assert abs(noise.mean()) < 5 * 25 / 255 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(25 / 255, rel=5 / math.sqrt(2 * noise.size))
    assert rain.min() >= -1e-6
    assert 0.05 < (rain > 0.02).mean() < 0.4
    assert haze.min() > -0.2
    clean = restoration.target_train[restoration.y_train == 2]
    contrast = np.ptp(clean + haze, axis=(1, 2, 3)) / np.maximum(np.ptp(clean, axis=(1, 2, 3)), 1e-6)
    assert np.median(contrast) == pytest.approx(0.6, abs=0.02)


def test_no_degradation_leaves_the_images_as_they_are():
    clean = generator(0, "clean").random((5, 8, 8))
    for degrade in (with_noise, with_rain, with_haze):
        np.testing.assert_array_equal(degrade(clean, 0.0, generator(0, "none")), clean)
    np.testing.assert_allclose(with_haze(clean, 2.0, generator(0, "all")).std(axis=(1, 2)), 0, atol=1e-12)
    assert with_rain(clean, 1.0, generator(0, "flood")).max() == 1.0


def test_options_change_the_examples_and_seeds_the_draws(tmp_path):
    small = {"patch_size": 64}
    first = data.load_dataset("restoration", small, cache=tmp_path)
    again = data.load_dataset("restoration", small, cache=tmp_path)
    other = data.load_dataset("restoration", {**small, "seed": 1}, cache=tmp_path)
    assert first.digest == again.digest != other.digest
    assert first.example_shape == (1, 64, 64)
    assert (first.x_train != other.x_train).any()
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_the_psnr_of_untouched_images_by_hand():
    target = np.full((4, 1, 2, 2), 0.5)
    offset = np.array([0.1, 0.1, 0.3, 0.1]).reshape(4, 1, 1, 1)
    y = np.array([0, 0, 1, 1])
    arrays = {
        f"{n}_{p}": v for p in ("train", "test") for n, v in (("x", target + offset), ("y", y), ("target", target))
    }
    made = Dataset.from_arrays("made", arrays, n_classes=2, source="", licence="", degradations=("a", "b"))
    assert made.untouched_psnr == pytest.approx(-10 * math.log10((0.09 + 0.01) / 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_test": np.zeros((24, 1, 6, 5))}, r"target_test of data set 'made': must be images of shape \(24, 2"),
        ({"target_train": np.full((60, *SHAPE), 1.5)}, r"target_train of data set 'made': .* intensities in \[0, 1\]"),
        ({"target_train": np.full((60, *SHAPE), np.nan)}, "target_train of data set 'made'"),
        ({"target_test": None}, r"arrays=\[.*\] of data set 'made': must be \['target_test', 'target_train', 'x_test'"),
    ],
)
def test_targets_that_do_not_fit_are_refused(images, change, message):
    names = ("x_train", "y_train", "x_test", "y_test", "target_train", "target_test")
    arrays = {n: v for n, v in ({n: getattr(images, n) for n in names} | change).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        Dataset.from_arrays("made", arrays, n_classes=3, source="", licence="", degradations=DEGRADATIONS)


def test_selected_examples_keep_their_images(examples):
    some = examples[0].select(torch.tensor([5, 2]))
    assert torch.equal(some.images, examples[0].images[[5, 2]])
    assert torch.equal(some.targets(torch.tensor([1])), some.images[1:])
    assert (some.loss, some.degradations) == ("absolute_error", DEGRADATIONS)


# The parent.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_restorer_is_what_it_says(activation, bias):
    options = {"channels": [5, 4, 6], "activation": activation, "bias": bias}
    model = build_model("restorer", options, input_shape=SHAPE, n_classes=3)
    weights, x = weights_of(model), torch.rand((3, *SHAPE), generator=torch.Generator().manual_seed(0))
    restored = functional_call(model.module, weights, (x,))
    torch.testing.assert_close(restored, plain(weights, x, activation), rtol=0, atol=1e-6)
    assert {t.name: t.shape for t in model.structure.tensors} == {
        name: tuple(p.shape) for name, p in model.module.named_parameters()
    }
    with FlopCounterMode(display=False) as counter:
        model.module(torch.empty((1, *SHAPE), device="meta"))
    assert 2 * model.structure.macs == counter.get_total_flops()
    with torch.no_grad():
        zero = {name: torch.zeros_like(w) for name, w in weights.items()}
        assert torch.equal(functional_call(model.module, zero, (x,)), x)


def test_the_family_describes_what_it_builds(model):
    family = model_family("restorer")
    assert isinstance(family, SizedFamily)
    options = family.options.model_validate({"channels": [5, 4, 6]})
    assert family.structure(options, input_shape=SHAPE, n_classes=3) == model.structure
    skeleton = family.skeleton(options)
    names = [t.name for t in family.structure(skeleton, input_shape=SHAPE, n_classes=3).tensors]
    assert names == [t.name for t in model.structure.tensors]
    with pytest.raises(ConfigError, match=r"model 'restorer' on inputs of shape \(40,\): \(channels, rows, columns\)"):
        build_model("restorer", {}, input_shape=(40,), n_classes=10)


def test_a_masked_network_is_the_compact_one(model, examples):
    """Zeroed channels of the parent, and the small network without them, restore alike."""
    lanes, masks = lanes_of(model, "node")
    x = examples[0].x[:9]
    for i, mask in enumerate(masks):
        structure, weights = model.structure, weights_of(model)
        start = 0
        for group in structure.groups:
            gone = torch.from_numpy(~mask[start : start + group.size])
            start += group.size
            for axis in group.axes:
                view = weights[axis.tensor].movedim(axis.dim, 0)
                view[gone] = 0.0
        alone, _ = lanes_of(model, "node", 1, start=i)
        compact = {name: view[0] for name, view in alone.layout.views(alone.flat).items()}
        assert compact["convs.1.weight"].shape[1] == int(mask[:5].sum())
        torch.testing.assert_close(plain(compact, x), plain(weights, x), rtol=0, atol=1e-5)
        left = remains(structure, "node", mask)
        assert sum(w.numel() for w in compact.values()) == left.n_params
    assert len(lanes) == len(masks)


# Loss and gradients.


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_recorded_gradient_is_that_of_autograd(activation, examples):
    options = {"channels": [5, 4, 6], "activation": activation}
    model = build_model("restorer", options, input_shape=SHAPE, n_classes=3)
    rows = [initial_weights(model.structure, "torch", generator(i, "rows")) for i in range(3)]
    lanes = dense_lanes(model.structure, rows, CPU)
    some = examples[0].select(torch.arange(17))
    arguments = (model, lanes.layout, lanes.flat, some.x, some.targets())
    compute = gradient_function(*arguments, smoothing=False, precision="float32", loss=some.loss)
    for _ in range(2):
        with torch.no_grad():
            gradient = compute(some.x, some.targets(), torch.zeros(3))
        for i in range(3):
            leaf = lanes.flat[i].clone().requires_grad_(True)
            weights = {name: view[0] for name, view in lanes.layout.views(leaf[None]).items()}
            expected = functional.l1_loss(plain(weights, some.x, activation), some.images)
            expected.backward()
            torch.testing.assert_close(gradient[i], leaf.grad, **TOLERANCE)


def test_losses_by_hand():
    restored = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(2, 1, 1, 2)
    images = torch.tensor([[0.5, 1.0], [0.5, 0.1]]).view(2, 1, 1, 2)
    assert absolute_error(restored, images).item() == pytest.approx((0.5 + 0.4) / 4)
    torch.testing.assert_close(squared_errors(restored, images), torch.tensor([0.125, 0.08]))


# Evaluation.


def test_evaluation_is_of_each_degradation_and_of_the_worst(model, examples, monkeypatch):
    lanes, _ = lanes_of(model, "weight")
    _, test = examples
    losses, errors, squared = evaluate_each(model, lanes, test)
    for i, row in enumerate(lanes.flat):
        weights = {name: view[0] for name, view in lanes.layout.views(row[None]).items()}
        difference = (plain(weights, test.x) - test.images).double().numpy()
        by_name = {n: np.square(difference[test.labels.numpy() == k]).mean() for k, n in enumerate(DEGRADATIONS)}
        assert losses[i] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
        assert {n: float(v[i]) for n, v in squared.items()} == pytest.approx(by_name, rel=1e-5)
        assert errors[i] == max(v[i] for v in squared.values())
    monkeypatch.setattr(pack_module, "_ACTIVATIONS_AT_ONCE", 1)
    again = evaluate(model, lanes, test)
    np.testing.assert_allclose(again, (losses, errors), rtol=1e-5)
    # What no example has cannot be the worst.
    noisy = test.select((test.labels == 0).nonzero()[:, 0])
    _, errors, some = evaluate_each(model, lanes, noisy)
    np.testing.assert_array_equal(errors, some["noise"])
    assert np.isnan(some["rain"]).all()


def test_psnr_by_hand():
    found = psnr_columns("test", {"noise": 1e-2, "rain": 4e-3, "haze": 0.25})
    assert found == pytest.approx(
        {"test_psnr_noise": 20, "test_psnr_rain": 23.9794, "test_psnr_haze": 6.0206, "test_psnr_worst": 6.0206},
        abs=1e-4,
    )
    assert psnr_columns("val", {"noise": 0.0, "rain": 1.0}) == {
        "val_psnr_noise": None,
        "val_psnr_rain": 0.0,
        "val_psnr_worst": 0.0,
    }
    assert psnr_columns("val", {"noise": math.nan})["val_psnr_worst"] is None


# Packs.

HYPER = Hyperparameters(lr=0.01)


def trained(model, lanes, examples, steps=12, **more):
    order = torch.from_numpy(batch_order(60, 20, steps, generator(1, "order")))
    pack = Pack(
        model,
        lanes,
        [HYPER] * len(lanes),
        Schedule("adam", steps, 20, 5),
        data=Feed(*examples, order),
        **more,
    )
    return {r.lane: r for ended in pack.run() for r in ended}, order


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_lane_trains_in_a_pack_as_alone(kind, model, examples):
    lanes, _ = lanes_of(model, kind)
    together, _ = trained(model, lanes, examples)
    for i in range(len(lanes)):
        single, _ = lanes_of(model, kind, 1, start=i)
        alone = trained(model, single, examples)[0][0]
        np.testing.assert_allclose(together[i].curve_val_loss, alone.curve_val_loss, rtol=0, atol=1e-4)
        np.testing.assert_allclose(together[i].curve_val_error, alone.curve_val_error, rtol=0, atol=1e-4)
        assert together[i].val_squared_errors == pytest.approx(alone.val_squared_errors, abs=1e-4)
        assert max(alone.val_squared_errors.values()) == alone.val_error


def test_a_pack_trains_as_plain_torch_does(model, examples):
    lanes, _ = lanes_of(model, "weight", 2)
    results, order = trained(model, lanes, examples)
    for i, row in enumerate(lanes.flat):
        leaves = {n: v[0].clone().requires_grad_(True) for n, v in lanes.layout.views(row[None]).items()}
        keep = {n: v[0] for n, v in lanes.layout.views(lanes.keep[i : i + 1]).items()}
        steps = torch.optim.Adam(leaves.values(), lr=HYPER.lr, eps=HYPER.eps)
        for batch in order:
            out = plain({n: w * keep[n] for n, w in leaves.items()}, examples[0].x[batch])
            loss = functional.l1_loss(out, examples[0].images[batch])
            steps.zero_grad()
            loss.backward()
            steps.step()
        expected = torch.cat([leaves[n].detach().flatten() for n in lanes.layout.names])
        torch.testing.assert_close(results[i].parameters, expected, rtol=0, atol=1e-4)
        assert results[i].val_loss < results[i].curve_val_loss[0]


# What reads the loss beside training.


def test_measured_columns_are_the_psnr_of_validation_and_test(model, examples):
    lanes, _ = lanes_of(model, "weight", 3)
    results, _ = trained(model, lanes, examples)
    ended = [results[2], replace(results[0], outcome="diverged")]
    first, second = Measurer((), 0, examples[0]).columns(model, lanes, ended, examples[1])
    assert first["val_psnr_worst"] == pytest.approx(-10 * math.log10(results[2].val_error))
    final = LaneStack(lanes.layout, results[2].parameters[None], None)
    _, errors, squared = evaluate_each(model, final, examples[0])
    assert first["test_psnr_worst"] == pytest.approx(-10 * math.log10(errors[0]))
    assert first["test_psnr_rain"] == pytest.approx(-10 * math.log10(squared["rain"][0]))
    assert not [name for name in second if "psnr" in name]


def test_masks_are_scored_by_the_loss_of_training(model, examples):
    probe = examples[0].select(torch.arange(20))
    for kind in BUILDERS:
        lanes, masks = lanes_of(model, kind)
        scores = Scorer(model, weights_of(model), probe, kind=kind).score(masks)
        losses, _ = evaluate(model, lanes, probe)
        np.testing.assert_allclose(scores.initial_loss, losses, rtol=1e-5)
        assert np.isnan([scores.scalefree_loss, scores.temperature, scores.logit_std]).all()
        np.testing.assert_allclose(score_lanes(model, lanes, probe).initial_loss, losses, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_of_weights_can_be_taken(score, model, examples):
    lanes = dense_lanes(model.structure, [{n: w.numpy() for n, w in weights_of(model).items()}], CPU)
    probe = examples[0].select(torch.arange(10))
    products = lanes.flat.sin()  # of weights and gradients, which a training gathers
    state = ScoringState(model, lanes, probe, lanes.flat + 0.1, (philox_key(0, "score"),), products=products)
    for kind in SCORES[score].kinds:
        found = SCORES[score].of(state, kind)
        assert found.shape == (1, sum(model.structure.section_sizes(kind)))
        assert found.isfinite().all()


def test_connection_sensitivity_is_of_the_absolute_error(model, examples):
    lanes = dense_lanes(model.structure, [{n: w.numpy() for n, w in weights_of(model).items()}], CPU)
    leaves = {n: w.clone().requires_grad_(True) for n, w in weights_of(model).items()}
    functional.l1_loss(plain(leaves, examples[0].x), examples[0].images).backward()
    expected = torch.cat([(w * w.grad).abs().flatten() for n, w in leaves.items() if n.endswith("weight")]).detach()
    found = SCORES["snip"].of(ScoringState(model, lanes, examples[0], lanes.flat, ()), "weight")[0]
    torch.testing.assert_close(found / found.sum(), (expected / expected.sum()).to(found), rtol=1e-3, atol=1e-8)


def test_qualities_of_classes_are_refused(model, examples):
    lanes, _ = lanes_of(model, "weight", 1)
    with pytest.raises(ConfigError, match=r"quality=\['calibration'\]: are measured on classes, .*; leave them out"):
        measure(["calibration"], model, lanes, examples[0], parent=None, seed=0)


def test_diagnostics_count_what_the_mask_left(model, examples):
    lanes, masks = lanes_of(model, "weight", 2)
    found = diagnose(model, lanes, examples[1], kind="weight")
    for i, mask in enumerate(masks):
        left = remains(model.structure, "weight", mask)
        assert found["density_prunable"][i] == pytest.approx(1 - left.weight_sparsity)
        assert found["effective_density"][i] <= found["density_prunable"][i]
    assert len(pack_bits(masks)) == 2
