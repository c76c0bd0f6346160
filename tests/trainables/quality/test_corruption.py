"""Damage to examples: what each corruption does, and the errors that are made of it."""

import itertools

import numpy as np
import pytest
import torch

from sparsefront.spaces.seeds import generator
from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.quality import measure
from sparsefront.trainables.quality.corruption import CORRUPTIONS, QUALITY, corrupted
from sparsefront.trainables.quality.subject import Inputs, Subject
from tests.oracles import networks as oracle

SHAPES = [(15,), (3, 16), (1, 8, 8), (8, 9)]


def inputs_of(shape, n=30, seed=1, x=None):
    if x is None:
        x = generator(9, "examples").standard_normal((n, *shape)).astype(np.float32)
    return Inputs(Examples.of(x, np.zeros(len(x), dtype=np.int64), 2, torch.device("cpu")), seed=seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_keeps_the_shape_and_grows_with_severity(name, shape):
    inputs = inputs_of(shape)
    before = inputs.x.clone()
    damaged = [corrupted(inputs, name, s) for s in range(1, 6)]
    distances = [(d - inputs.x).square().mean().item() for d in damaged]
    assert distances[0] > 0
    if name != "shift":  # of white noise: a longer way is no farther
        assert all(a < b for a, b in itertools.pairwise(distances))
    for d in damaged:
        assert d.shape == inputs.x.shape
        assert d.dtype == torch.float32
        assert d.isfinite().all()
    assert torch.equal(inputs.x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_is_drawn_from_the_seed_row_by_row(name):
    inputs, again, fewer = inputs_of((15,)), inputs_of((15,)), inputs_of((15,), x=inputs_of((15,)).x[:7].numpy())
    damaged = corrupted(inputs, name, 4)
    assert torch.equal(damaged, corrupted(again, name, 4))
    if name == "gaussian_noise":  # in units of the examples that are there
        few = (corrupted(fewer, name, 4) - fewer.x) / fewer.std
        torch.testing.assert_close(few, ((damaged - inputs.x) / inputs.std)[:7])
    elif name == "impulse_noise":
        assert torch.equal(corrupted(fewer, name, 4) != fewer.x, (damaged != inputs.x)[:7])
    else:
        assert torch.equal(corrupted(fewer, name, 4), damaged[:7])
    is_drawn = name in ("gaussian_noise", "impulse_noise", "shift")
    assert torch.equal(damaged, corrupted(inputs_of((15,), seed=2), name, 4)) is not is_drawn


def test_noise_has_its_strength():
    inputs = inputs_of((40,), n=2000)
    for severity, strength in enumerate(CORRUPTIONS["gaussian_noise"].strengths, start=1):
        added = corrupted(inputs, "gaussian_noise", severity) - inputs.x
        # Standard error of a standard deviation over 80,000 draws: 0.25%; four of them.
        assert added.std().item() == pytest.approx(strength * inputs.std, rel=0.01)
    for severity, fraction in enumerate(CORRUPTIONS["impulse_noise"].strengths, start=1):
        damaged = corrupted(inputs, "impulse_noise", severity)
        changed = damaged != inputs.x
        assert changed.float().mean().item() == pytest.approx(fraction, abs=4 * (fraction / 80_000) ** 0.5)
        assert damaged[changed].unique().tolist() == pytest.approx([inputs.mean + k * inputs.std for k in (-2, 2)])


def test_blur_and_shift_leave_what_is_constant_and_contrast_the_mean():
    constant = inputs_of((3, 16), x=np.full((4, 3, 16), 1.5, dtype=np.float32))
    for name in ("blur", "shift", "contrast"):
        torch.testing.assert_close(corrupted(constant, name, 5), constant.x)
    inputs = inputs_of((3, 16))
    for severity in range(1, 6):
        damaged = corrupted(inputs, "contrast", severity)
        torch.testing.assert_close(damaged.mean(dim=(1, 2)), inputs.x.mean(dim=(1, 2)))
    # Channels, of which there are three, do not mix.
    one = np.zeros((1, 3, 16), dtype=np.float32)
    one[0, 1] = np.arange(16)
    for name in ("blur", "shift"):
        damaged = corrupted(inputs_of((3, 16), x=one), name, 5)
        assert (damaged[0, 0] == 0).all()
        assert (damaged[0, 2] == 0).all()


def test_blur_is_the_moving_average_and_shift_the_translation():
    x = generator(9, "signal").standard_normal((6, 40)).astype(np.float32)
    inputs = inputs_of((40,), x=x)
    padded = np.pad(x, ((0, 0), (1, 1)), mode="edge")
    np.testing.assert_allclose(
        corrupted(inputs, "blur", 1), (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4, atol=1e-6
    )
    moved = corrupted(inputs, "shift", 2).numpy()  # two places to one side
    sides = {1: 0, -1: 0}
    for row, original in zip(moved, x, strict=True):
        for side in sides:
            at = np.clip(np.arange(40) - 2 * side, 0, 39)
            sides[side] += np.array_equal(row, original[at])
    assert sides[1] + sides[-1] == len(x)
    assert min(sides.values()) > 0
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    by_image = corrupted(inputs_of((8, 8), x=image), "blur", 1)
    # A plane is its own average away from the edges.
    np.testing.assert_allclose(by_image[0, 1:-1, 1:-1], image[0, 1:-1, 1:-1], rtol=1e-5)
    assert not np.allclose(by_image[0, 0], image[0, 0])


def test_errors_are_those_of_a_loop(trained, examples):
    model, flat, masks, lanes = trained("mlp")
    columns = measure(["corruption"], model, lanes, examples[1], parent=(model, flat), seed=4)
    inputs = Inputs(examples[1], seed=4)
    weights = {n: v[0] for n, v in Subject(model, Layout.of(model.structure), flat[None], inputs).tensors.items()}

    def error(x, mask):
        parts = torch.from_numpy(mask).split(list(model.structure.section_sizes("node")))
        return (oracle.logits("mlp", weights, x, node_masks=parts).argmax(1) != examples[1].labels).double().mean()

    def mean_errors(mask):
        by_name = {n: np.mean([error(corrupted(inputs, n, s), mask) for s in range(1, 6)]) for n in CORRUPTIONS}
        return by_name, np.mean(list(by_name.values())) - float(error(inputs.x, mask))

    _, reference = mean_errors(np.ones_like(masks[0]))
    assert reference > 0
    for i in (0, 3):
        by_name, increase = mean_errors(masks[i])
        for name, value in by_name.items():
            assert columns[f"corrupted_error_{name}"][i] == pytest.approx(value, abs=1e-9)
        assert columns["corrupted_error"][i] == pytest.approx(np.mean(list(by_name.values())))
        assert columns["corrupted_error_increase"][i] == pytest.approx(increase)
        assert columns["relative_corrupted_error"][i] == pytest.approx(increase / reference)


def test_a_parent_that_corruption_does_not_hurt_is_no_reference():
    def seen(clean, damaged):
        return {"clean": torch.tensor([clean]).double()} | {
            n: torch.full((1, 5), damaged).double() for n in CORRUPTIONS
        }

    def relative(parent):
        return QUALITY.compare(seen(0.2, 0.5), parent)["relative_corrupted_error"].item()

    assert relative(seen(0.1, 0.3)) == pytest.approx(1.5)
    assert np.isnan(relative(seen(0.3, 0.3)))
    assert np.isnan(relative(seen(0.4, 0.3)))
    assert np.isnan(relative(None))
