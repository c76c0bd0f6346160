"""What holds for every quality: exact columns, the same whatever the company, and the declared cost."""

import numpy as np
import pytest
import torch

from sparsefront.errors import ConfigError
from sparsefront.trainables.lanes import LaneStack, Layout, node_masked_lanes
from sparsefront.trainables.quality import COLUMNS, QUALITIES, check_qualities, measure, passes, registry, subject
from sparsefront.trainables.quality.shift import N_FRAGILE
from tests.oracles import networks as oracle

#: What needs no examples but those that are given; the other is in `test_fresh.py`.
ALL = [name for name, quality in QUALITIES.items() if not quality.needs_fresh]
#: Counts of examples may differ by one where a rounding error tips a gradient's sign.
TOLERANCE = 1.01 / 80


def assert_same(a, b, *, atol=1e-5):
    assert a.keys() == b.keys()
    for name, column in a.items():
        if name != "fragile_indices":
            np.testing.assert_allclose(column, b[name], atol=atol, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_every_quality_gives_its_columns(family, trained, examples):
    model, flat, _, lanes = trained(family)
    before = lanes.flat.clone()
    for name in ALL:
        columns = measure([name], model, lanes, examples[1], parent=(model, flat), seed=1)
        assert list(columns) == list(QUALITIES[name].columns)
        for column, values in columns.items():
            if column == "fragile_indices":
                assert values.shape == (len(lanes), N_FRAGILE)
                assert values.dtype == np.int64
                continue
            assert values.shape == (len(lanes),), column
            assert values.dtype == np.float64
            assert np.isfinite(values).all(), column
            if "(0..1" in COLUMNS[column].meaning:
                assert ((values >= 0) & (values <= 1)).all(), column
    assert torch.equal(before, lanes.flat)


@pytest.mark.parametrize("family", oracle.SMALL)
def test_columns_do_not_depend_on_company_chunks_or_padding(family, trained, examples, monkeypatch):
    model, flat, masks, lanes = trained(family)
    parent = (model, flat)
    together = measure(ALL, model, lanes, examples[1], parent=parent, seed=1)
    weights = {n: view[0] for n, view in Layout.of(model.structure).views(flat[None]).items()}
    for i, mask in enumerate(masks[:2]):
        compact = node_masked_lanes(model.structure, weights, mask[None])
        alone = measure(ALL, model, compact, examples[1], parent=parent, seed=1)
        assert_same({n: c[i : i + 1] for n, c in together.items()}, alone, atol=TOLERANCE)
    reverse = measure(ALL, model, lanes.select(range(len(lanes))[::-1]), examples[1], parent=parent, seed=1)
    assert_same({n: c[::-1] for n, c in together.items()}, reverse, atol=TOLERANCE)
    for n_floats in (1, 7000):  # one lane and one example at a time; several of each
        monkeypatch.setattr(subject, "_ACTIVATIONS_AT_ONCE", {"cpu": n_floats})
        cut = examples[1].select(torch.arange(3 if n_floats == 1 else 80))
        some = lanes.select([0, 1, 2])
        chunked = measure(ALL, model, some, cut, parent=parent, seed=1)
        monkeypatch.undo()
        assert_same(measure(ALL, model, some, cut, parent=parent, seed=1), chunked, atol=1.01 / len(cut))


def test_the_same_seed_is_the_same_again_and_another_is_not(trained, examples):
    model, flat, _, lanes = trained("mlp")
    first, again, other = (measure(ALL, model, lanes, examples[1], parent=(model, flat), seed=s) for s in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    for name in ("corrupted_error_gaussian_noise", "ood_auroc_noise", "ood_auroc_shuffled"):
        assert (first[name] != other[name]).any()


def test_the_order_of_examples_matters_to_nothing_but_their_noise(trained, examples):
    model, flat, _, lanes = trained("residual_mlp")
    order = torch.arange(len(examples[1])).flip(0)
    a, b = (
        measure(["calibration", "adversarial", "shift"], model, lanes, e, parent=(model, flat), seed=1)
        for e in (examples[1], examples[1].select(order))
    )
    is_noisy = {n: "corrupted" in n or n == "fragile_indices" for n in a}
    assert_same(
        {n: c for n, c in a.items() if not is_noisy[n]},
        {n: c for n, c in b.items() if not is_noisy[n]},
        atol=TOLERANCE,
    )
    np.testing.assert_array_equal(*(np.sort(c["fragile_fraction"]) for c in (a, b)))


def test_a_parent_is_no_different_from_itself(trained, examples):
    model, flat, _, lanes = trained("conv1d")
    itself = LaneStack(Layout.of(model.structure), flat[None], None)
    columns = measure(ALL, model, itself, examples[1], parent=(model, flat), seed=1)
    assert columns["relative_corrupted_error"][0] == pytest.approx(1)
    assert (columns["fragile_indices"] == -1).all()
    for name, values in columns.items():
        if "shift" in name and "ood" not in name and "corrupted_error" not in name:
            assert values[0] == pytest.approx(0, abs=1e-6), name
        if "distance" in name or name in ("fragile_fraction", "lost_fraction"):
            assert values[0] == pytest.approx(0, abs=1e-6), name
    assert np.isnan(
        measure(["corruption"], model, lanes, examples[1], parent=None, seed=1)["relative_corrupted_error"]
    ).all()


def test_a_lane_that_is_not_finite_is_told_as_such_and_leaves_its_neighbours(trained, examples):
    model, flat, _, lanes = trained("mlp")
    whole = measure(ALL, model, lanes, examples[1], parent=(model, flat), seed=1)
    broken = lanes.select(slice(None))
    broken.flat[2] = torch.nan
    columns = measure(ALL, model, broken, examples[1], parent=(model, flat), seed=1)
    for name, values in columns.items():
        assert (values[2] == -1).all() if name == "fragile_indices" else np.isnan(values[2]), name
    others = [0, 1, *range(3, len(lanes))]
    assert_same({n: c[others] for n, c in whole.items()}, {n: c[others] for n, c in columns.items()}, atol=TOLERANCE)
    lost = measure(ALL, model, lanes, examples[1], parent=(model, flat * torch.nan), seed=1)
    for name, values in lost.items():
        if name == "relative_corrupted_error" or name in QUALITIES["shift"].columns:
            assert (values == -1).all() if name == "fragile_indices" else np.isnan(values).all(), name
        else:
            np.testing.assert_allclose(values, whole[name], err_msg=name)


@pytest.mark.parametrize("name", ALL)
def test_the_declared_cost_is_what_passes_through_the_module(name, trained, examples):
    model, flat, _, lanes = trained("mlp")
    quality, seen = QUALITIES[name], []
    hook = model.module.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    try:
        if quality.needs_parent:  # whose passes come on top
            measure([name], model, lanes.select([0]), examples[1], parent=(model, flat), seed=1)
            n_forward = sum(seen) / len(examples[1]) - 1 - quality.forward_passes
        else:
            measure([name], model, lanes.select([0]), examples[1], parent=None, seed=1)
            n_forward = sum(seen) / len(examples[1])
    finally:
        hook.remove()
    n_gradients = 10 if name == "adversarial" else 0
    assert n_forward + n_gradients == 1 + quality.forward_passes
    assert passes([name], 300) == pytest.approx(100 * (1 + quality.forward_passes))
    assert passes(ALL, 3) == pytest.approx(1 + sum(QUALITIES[name].forward_passes for name in ALL))


def test_every_column_is_documented_once():
    names = [c for q in QUALITIES.values() for c in q.columns]
    assert sorted(names) == sorted(COLUMNS)
    for name, column in COLUMNS.items():
        assert column.meaning, name
        assert column.better in ("lower", "higher", "neither")
    assert all(q.summary and q.source for q in QUALITIES.values())


def test_wrong_names_are_refused(trained, examples):
    model, _, _, lanes = trained("mlp")
    with pytest.raises(ConfigError, match=r"'calibratoin' is none, must be one of calibration, .*; did you mean 'cal"):
        check_qualities(["calibratoin"], has_parent=True)
    with pytest.raises(ConfigError, match=r"quality=\['ood', 'ood'\]: every name must be there once"):
        check_qualities(["ood", "ood"], has_parent=True)
    with pytest.raises(ConfigError, match="'shift' compares candidates with their trained parent"):
        measure(["shift"], model, lanes, examples[1], parent=None, seed=1)
    assert registry.measure([], model, lanes, examples[1], parent=None, seed=1) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", oracle.SMALL)
def test_a_gpu_gives_the_same(family, trained, examples):
    model, flat, _, lanes = trained(family)
    on_cpu = measure(ALL, model, lanes, examples[1], parent=(model, flat), seed=1)
    moved = LaneStack(lanes.layout, lanes.flat.cuda(), None)
    e = examples[1]
    there = type(e)(e.x.cuda(), e.labels.cuda(), e.one_hot.cuda())
    assert_same(on_cpu, measure(ALL, model, moved, there, parent=(model, flat.cuda()), seed=1), atol=TOLERANCE)


def test_noise_of_another_use_is_drawn_independently(trained, examples):
    """What is chosen on validation examples must not have met the noise of the test."""
    model, flat, _, lanes = trained(next(iter(oracle.SMALL)))
    names = ["calibration", "corruption", "ood"]
    on_test, again, other = (
        measure(names, model, lanes, examples[1], parent=(model, flat), seed=1, **use)
        for use in ({}, {"use": "quality"}, {"use": "val_quality"})
    )
    assert_same(on_test, again, atol=0)
    for column in ("ood_auroc_noise", "ood_auroc_shuffled", "corrupted_error_gaussian_noise"):
        assert (on_test[column] != other[column]).any(), column
    np.testing.assert_array_equal(on_test["ece"], other["ece"])
    np.testing.assert_array_equal(on_test["corrupted_error_blur"], other["corrupted_error_blur"])
