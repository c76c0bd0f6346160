"""Scores: what is computed once for all masks gives the same as a loop over masked parents."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables import scoring
from sparsefront.trainables.lanes import node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.losses import scale_free_cross_entropy
from sparsefront.trainables.models import initial_weights
from sparsefront.trainables.scoring import Scorer, score_lanes
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow

FIELDS = ("initial_loss", "scalefree_loss", "temperature", "logit_std")
KINDS = [("node", "uniform"), ("node", "global"), ("weight", "uniform"), ("weight", "global")]


def parent_of(model):
    drawn = initial_weights(model.structure, "torch", generator(4, "scoring"))
    # Larger than initial weights are, so that losses differ clearly between masks.
    return {n: torch.from_numpy(3 * w) for n, w in drawn.items()}


def masks_of(model, kind, allocation, n=8):
    sizes = model.structure.section_sizes(kind)
    counts = [max(1, s // 2) for s in sizes] if allocation == "uniform" else [max(len(sizes), sum(sizes) // 2)]
    return draw(sizes, counts, philox_key(4, "mask"), start=0, stop=n)


def masked_logits(family, model, parent, mask, kind, x, activation):
    if kind == "node":
        parts = slow.sections_of(model.structure.section_sizes("node"), mask.tolist())
        return oracle.logits(family, parent, x, activation=activation, node_masks=[torch.tensor(p) for p in parts])
    parts = slow.weight_parts(model.structure, mask.tolist())
    weights = {n: w * torch.from_numpy(parts[n]) if n in parts else w for n, w in parent.items()}
    return oracle.logits(family, weights, x, activation=activation)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "allocation"), KINDS)
@pytest.mark.parametrize("family", oracle.SMALL)
def test_scores_are_those_of_a_loop_over_masked_parents(family, kind, allocation, bias, activation, examples):
    model = oracle.small_model(family, bias=bias, activation=activation)
    parent, probe = parent_of(model), examples[1]
    masks = masks_of(model, kind, allocation)
    scores = Scorer(model, parent, probe, kind=kind).score(masks)
    for i, mask in enumerate(masks):
        logits = masked_logits(family, model, parent, mask, kind, probe.x, activation)
        loss = functional.cross_entropy(logits, probe.labels).item()
        assert scores.initial_loss[i] == pytest.approx(loss, abs=1e-5)
        assert scores.logit_std[i] == pytest.approx(logits.std(correction=0).item(), rel=1e-4)
        scalefree, temperature, _ = scale_free_cross_entropy(logits.t()[None].contiguous(), probe.labels)
        assert scores.scalefree_loss[i] == pytest.approx(scalefree.item(), abs=1e-5)
        # Flat near the optimum: the temperature is known to the last Newton step, the loss much better.
        assert scores.temperature[i] == pytest.approx(temperature.item(), rel=5e-3)
        assert scores.scalefree_loss[i] <= min(loss, math.log(oracle.N_CLASSES)) + 1e-5


@pytest.mark.parametrize(("kind", "allocation"), KINDS)
@pytest.mark.parametrize("family", oracle.SMALL)
def test_scores_do_not_depend_on_the_chunks(family, kind, allocation, examples, monkeypatch):
    model = oracle.small_model(family)
    parent = parent_of(model)
    masks = masks_of(model, kind, allocation, 11)
    scorer = Scorer(model, parent, examples[1], kind=kind)
    whole = scorer.score(masks)
    for n_floats in (1, 1 << 11, 1 << 12):
        monkeypatch.setattr(scoring, "_CHUNK_FLOATS", {"cpu": n_floats, "cuda": n_floats})
        chunked = scorer.score(masks)
        for field in FIELDS:
            tolerance = 5e-3 if field == "temperature" else 2e-5
            np.testing.assert_allclose(getattr(chunked, field), getattr(whole, field), rtol=tolerance, atol=1e-6)
    alone = [scorer.score(mask[None]) for mask in masks]
    np.testing.assert_allclose([s.initial_loss[0] for s in alone], whole.initial_loss, atol=1e-5)


@pytest.mark.parametrize(("kind", "allocation"), KINDS)
@pytest.mark.parametrize("family", oracle.SMALL)
def test_lanes_are_scored_as_their_masks(family, kind, allocation, examples):
    model = oracle.small_model(family)
    parent = parent_of(model)
    masks = masks_of(model, kind, allocation)
    by_mask = Scorer(model, parent, examples[1], kind=kind).score(masks)
    build = node_masked_lanes if kind == "node" else weight_masked_lanes
    by_lane = score_lanes(model, build(model.structure, parent, masks), examples[1])
    for field in FIELDS:
        a, b = getattr(by_mask, field), getattr(by_lane, field)
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=5e-3 if field == "temperature" else 2e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "allocation"), KINDS)
@pytest.mark.parametrize("options", [{"lift": "identity", "skip_width": 15}, {"norm": "layer"}])
def test_a_parent_without_a_stem_is_scored_lane_by_lane(options, kind, allocation, examples, monkeypatch):
    model = oracle.small_model("hourglass", **options)
    assert model.module.stem_prefixes == ()
    parent, masks = parent_of(model), masks_of(model, kind, allocation)
    build = node_masked_lanes if kind == "node" else weight_masked_lanes
    by_lane = score_lanes(model, build(model.structure, parent, masks), examples[1])
    for n_floats in (1 << 11, 1 << 20):
        monkeypatch.setattr(scoring, "_CHUNK_FLOATS", {"cpu": n_floats, "cuda": n_floats})
        by_mask = Scorer(model, parent, examples[1], kind=kind).score(masks)
        np.testing.assert_allclose(by_mask.initial_loss, by_lane.initial_loss, rtol=2e-5)


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_the_full_mask_scores_as_the_parent(kind, examples):
    model = oracle.small_model("residual_mlp")
    parent = parent_of(model)
    full = np.ones((1, sum(model.structure.section_sizes(kind))), dtype=bool)
    loss, _ = oracle.measure("residual_mlp", parent, examples[1])
    assert Scorer(model, parent, examples[1], kind=kind).score(full).initial_loss[0] == pytest.approx(loss, abs=1e-5)


def test_a_parent_that_is_not_finite_scores_as_such(examples):
    """What decides must be told, not given a number."""
    model = oracle.small_model("mlp")
    parent = {n: torch.full_like(w, torch.nan) for n, w in parent_of(model).items()}
    scores = Scorer(model, parent, examples[1], kind="node").score(masks_of(model, "node", "uniform", 2))
    for field in FIELDS:
        assert np.isnan(getattr(scores, field)).all(), field
