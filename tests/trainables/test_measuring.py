"""What is measured of trained candidates: the same whatever they were trained with, and never at their expense."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsefront.search.schema import LATER, SCHEMA
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.structure import Structure
from sparsefront.trainables import diagnostics, measuring
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from sparsefront.trainables.workshop import LaneOrder, Workshop, _Job
from tests.oracles import networks as oracle
from tests.trainables.test_networks import UNLIKE, recipe_of, settings_of

CPU = torch.device("cpu")
DIAGNOSED = {name for name in LATER if "psnr" not in name}
INSTABILITY = {"instability_error", "instability_loss", "sibling_distance", "sibling_angle"}
N_VALIDATION, N_TEST = 60, 80
RECIPE = Recipe(
    seed=9,
    model="mlp",
    model_options=oracle.SMALL["mlp"],
    validation_fraction=0.25,
    mask_kind="weight",
    allocation="uniform",
    probe_size=50,
    schedule=Schedule("adam", steps=12, batch_size=16, eval_every=12),
    hyper=Hyperparameters(lr=0.01),
)


def train(blobs, orders, **changes):
    workshop = Workshop(replace(RECIPE, **changes), blobs, CPU)
    ended = [one for part in workshop.train(orders) for one in part]
    return [next(t for t in ended if t.candidate == o.candidate) for o in orders], workshop


def drawn(number, sparsity=0.5):
    return LaneOrder(Candidate(0, sparsity, "masked", draw=number))


def test_the_ledger_has_a_column_for_every_diagnostic():
    assert (
        set(diagnostics.COLUMNS) - {"macs"} | {"mask_overlap", "exploration_rate", "quality_passes"}
        == DIAGNOSED - INSTABILITY
    )
    assert set(SCHEMA.names) >= LATER


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_every_trained_candidate_is_diagnosed(kind, blobs):
    parent = LaneOrder(Candidate(0, 0.0, "parent"))
    orders = [parent, LaneOrder(Candidate(0, 0.5, "small_dense")), *map(drawn, range(3))]
    (dense, small, *masked), workshop = train(blobs, orders, mask_kind=kind)
    n_params = workshop.structure.n_params
    for one in (dense, small, *masked):
        assert one.error is None
        assert set(one.columns) == DIAGNOSED - INSTABILITY
        assert one.columns["density_total"] == pytest.approx(one.remains.n_params / n_params)
        assert one.columns["density_macs"] == one.remains.macs / workshop.structure.macs
        assert one.columns["density_prunable"] == pytest.approx(1 - one.remains.weight_sparsity, abs=0.02)
        assert 0 <= one.columns["static_dead_fraction"] <= one.columns["dynamic_dead_fraction"] < 1
        assert one.columns["quality_passes"] == pytest.approx(N_VALIDATION / 3)
        assert (one.columns["mask_overlap"], one.columns["exploration_rate"]) == (None, None)
    assert (dense.columns["density_total"], dense.columns["effective_params"]) == (1.0, n_params)
    assert (dense.columns["n_dead_units"], dense.columns["is_collapsed"]) == (0, False)


def test_columns_do_not_depend_on_the_pack(blobs):
    together, _ = train(blobs, [*map(drawn, range(3))])
    for i, one in enumerate(together):
        (alone,), _ = train(blobs, [drawn(i)])
        assert one.columns == pytest.approx(alone.columns, abs=1e-6)


def test_a_mask_that_changed_is_diagnosed_as_it_is_at_the_end(blobs):
    method = Pruning("during", update="gradual")
    pruned = LaneOrder(Candidate(0, 0.75, "masked", method=method))
    (one,), workshop = train(blobs, [pruned])
    assert one.columns["density_prunable"] == pytest.approx(1 - one.remains.weight_sparsity)
    assert one.columns["density_prunable"] < 0.3
    assert one.columns["mask_overlap"] == pytest.approx(one.columns["density_prunable"])
    assert one.columns["exploration_rate"] == 1.0
    assert workshop.structure.n_params > one.columns["effective_params"]


def test_diverged_candidates_have_what_follows_from_their_masks_alone(blobs):
    (one,), _ = train(blobs, [drawn(0)], hyper=Hyperparameters(lr=1e30), quality=("calibration",))
    assert one.outcome == "diverged"
    assert one.columns["density_prunable"] == pytest.approx(0.5, abs=0.02)
    assert (one.columns["static_dead_fraction"], one.columns["dynamic_dead_fraction"]) == (None, None)
    assert "ece" not in one.columns


def test_qualities_are_measured_on_test_examples_and_paid_by_nobody(blobs):
    (plain,), _ = train(blobs, [drawn(0)])
    (one,), _ = train(blobs, [drawn(0)], quality=("calibration", "corruption"))
    assert one.columns["nll"] == pytest.approx(one.test_loss, rel=1e-5)
    assert 0 <= one.columns["ece"] <= 1
    assert one.columns["corrupted_error"] >= 0
    assert one.columns["relative_corrupted_error"] is None  # there is no parent
    assert one.columns["quality_passes"] == pytest.approx((N_VALIDATION + 26 * N_TEST) / 3)
    assert one.passes == plain.passes


def test_what_needs_a_parent_is_left_out_without_one(blobs):
    (one,), _ = train(blobs, [drawn(0)], quality=("shift",))
    assert one.error is None
    assert "angle_shift" not in one.columns
    assert one.columns["quality_passes"] == pytest.approx(N_VALIDATION / 3)


class Elsewise(Workshop):
    """A workshop whose networks see the data in the order of siblings."""

    def _make_order(self, replicate, steps, use="order"):
        return super()._make_order(replicate, steps, "sibling_order")


@pytest.mark.parametrize("kind", ["node", "weight"])
def test_siblings_differ_in_the_order_of_the_data_alone(kind, blobs):
    alone = [drawn(i) for i in range(3)]
    orders = [alone[0], *(replace(order, siblings=True) for order in alone[1:])]
    found, workshop = train(blobs, orders, mask_kind=kind)
    plain, _ = train(blobs, alone, mask_kind=kind)
    elsewise = Elsewise(replace(RECIPE, mask_kind=kind), blobs, CPU)
    twins = {one.candidate: one for part in elsewise.train(alone) for one in part}
    validation = workshop._replicate(0).validation
    for one, other in zip(found, plain, strict=True):
        assert one.result.curve_val_loss == other.result.curve_val_loss, "it is trained as without a sibling"
        assert (one.passes, one.error) == (other.passes, None)
    assert "instability_error" not in found[0].columns
    for one in found[1:]:
        ends = [one.result.parameters, twins[one.candidate].result.parameters]
        assert not torch.equal(*ends)
        layout = workshop._lanes([_Job(o) for o in alone])[0].layout
        a, b = (LaneStack(layout, end[None], None) for end in ends)
        line = diagnostics.instability(workshop._model, a, b, validation)
        assert one.columns["instability_error"] == pytest.approx(line.error_instability[0], abs=1e-6)
        assert one.columns["instability_loss"] == pytest.approx(line.loss_instability[0], abs=1e-6)
        apart = diagnostics.distances(workshop._model.structure, a, b)
        assert one.columns["sibling_distance"] == pytest.approx(apart.l2[0], rel=1e-5)
        assert one.columns["sibling_angle"] == pytest.approx(apart.angle_rad[0], rel=1e-5)
        n_passes = 12 * 16 + (1 + 11) * N_VALIDATION / 3
        assert one.columns["quality_passes"] - found[0].columns["quality_passes"] == pytest.approx(n_passes)


def test_what_cannot_be_measured_in_one_replicate_is_measured_in_the_others(blobs, monkeypatch):
    measured, calls = measuring.instability, []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no such thing")
        return measured(*arguments, **options)

    monkeypatch.setattr(measuring, "instability", broken)
    orders = [LaneOrder(Candidate(r, 0.5, "masked", draw=0), siblings=True) for r in range(3)]
    found, _ = train(blobs, orders, mask_kind="weight")
    of = {one.candidate.replicate: one.columns for one in found}
    assert [of[r].keys() >= INSTABILITY for r in range(3)] == [True, False, True]
    assert ["error" in of[r] for r in range(3)] == [False, True, False]
    assert len({of[r]["quality_passes"] for r in range(3)}) == 1


def test_a_training_is_not_lost_with_what_is_measured_of_it(blobs, monkeypatch):
    def broken(*_args, **_options):
        raise ValueError("no such thing")

    monkeypatch.setattr(measuring, "diagnose", broken)
    (one,), _ = train(blobs, [drawn(0)])
    assert (one.outcome, one.error) == ("completed", None)
    assert one.test_error is not None
    assert one.columns["error"].startswith("not all was measured: Traceback")
    assert "no such thing" in one.columns["error"]


@pytest.mark.parametrize("family", UNLIKE)
def test_unlike_networks_of_one_pack_are_diagnosed_as_each_alone(family, blobs, tmp_path):
    schedule = Schedule("adam", 8, 16, 8)
    masks = [{"masks.sparsity": 0.9}, {"masks.kind": "node", "masks.sparsity": 0.4, "masks.draw": 1}, {}]
    specs = [
        LaneSpec(f"lane{i}", settings_of(options, mask), 0, 8)
        for i, (options, mask) in enumerate(zip(UNLIKE[family], masks, strict=True))
    ]

    def run(chosen):
        shop = SegmentShop(recipe_of(family, schedule=schedule), blobs, CPU, tmp_path / "checkpoints")
        return {one.id: one for part in shop.train(chosen, 0) for one in part}, shop

    together, shop = run(specs)
    for spec in specs:
        alone = run([spec])[0][spec.id]
        one = together[spec.id]
        assert one.columns == pytest.approx(alone.columns, abs=1e-6)
        network = shop.networks.describe(0, spec.settings)
        parent: Structure = network.structure
        assert set(one.columns) == DIAGNOSED - INSTABILITY
        assert one.columns["density_prunable"] == pytest.approx(1 - network.weight_sparsity)
        assert one.columns["density_total"] == pytest.approx(network.n_params / parent.n_params)
        assert one.columns["density_macs"] == network.macs / parent.macs
        if network.mask_kind != "weight":
            assert (one.columns["n_dead_units"], one.columns["is_collapsed"]) == (0, False)
            assert one.columns["effective_params"] == network.n_params
        assert np.isfinite(one.columns["dynamic_dead_fraction"])


def test_candidates_that_pause_at_a_rung_are_not_measured_yet(blobs, tmp_path):
    shop = SegmentShop(recipe_of("mlp", schedule=Schedule("adam", 8, 16, 8)), blobs, CPU, tmp_path / "checkpoints")
    ended = [one for part in shop.train([LaneSpec("a", settings_of(UNLIKE["mlp"][0], {}), 0, 4)], 0) for one in part]
    assert [(one.outcome, dict(one.columns)) for one in ended] == [(None, {})]
