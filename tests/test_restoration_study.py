"""Studies of images to restore: from the file to the ledger, the verdict and the report."""

import dataclasses
import math
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparsefront.errors import ConfigError
from sparsefront.results import Results
from sparsefront.search.attainment import attain
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA
from sparsefront.search.verdict import judge
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from tests.faults.inline_search import rows_of, run_search
from tests.faults.inline_study import run_inline

EXAMPLE = Path(__file__).parent.parent / "examples" / "restoration.toml"
SMALL = [
    *("model.channels=[4, 3, 4]", "data.patch_size=32", "training.steps=6", "training.eval_every=3"),
    *("replicates=2", "sparsities=[0.36]", "search.probe_size=12", "search.random_draws=2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "restoration"
    study = Study.from_toml(EXAMPLE, overrides=SMALL)
    study._checked_data()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: threads of small convolutions would wait for each other
    try:
        run_inline(study, folder, masks_per_pack=8, lanes_per_pack=8)
    finally:
        torch.set_num_threads(n_threads)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    with Ledger.read(folder) as ledger:
        return ledger.table().to_pylist()


def test_the_ledger_has_the_psnr_of_every_trained_network(rows):
    trained = [row for row in rows if row["stage"] in ("trained", "level")]
    assert {row["arm"] for row in trained} == {"dense", "random", "mirl", "mirl_shuffled_layers"}
    for row in trained:
        assert row["outcome"] == "completed"
        for part in ("val", "test"):
            each = [row[f"{part}_psnr_{name}"] for name in ("noise", "rain", "haze")]
            assert row[f"{part}_psnr_worst"] == min(each)
            assert row[f"{part}_psnr_worst"] == pytest.approx(-10 * math.log10(row[f"{part}_error"]), abs=1e-5)
    cut = next(row for row in rows if row["stage"] == "trained" and row["arm"] == "mirl")
    control = next(row for row in rows if row["arm"] == "mirl_shuffled_layers")
    assert cut["weight_sparsity"] == control["weight_sparsity"] == pytest.approx(0.36, abs=0.01)


def test_the_verdict_and_the_report_are_in_decibels(folder, rows):
    results = Results(folder)
    verdict = results.verdict()
    assert {c.metric for c in verdict.comparisons} == {"psnr", "convergence"}
    (mirl,) = [c for c in verdict.comparisons if (c.arm, c.metric) == ("mirl", "psnr")]
    own = [row["test_psnr_worst"] for row in rows if row["stage"] == "trained" and row["arm"] == "mirl"]
    assert mirl.arm_mean == pytest.approx(np.mean(own))
    assert mirl.margin == 0.1
    assert not any("accuracy" in sentence for sentence in (verdict.headline, *verdict.sentences))
    page = results.report().read_text(encoding="utf-8")
    visible = page[page.index("<body") : page.index("<script", page.index("<body"))]
    assert "1. Test PSNR of the worst degradation against sparsity" in visible
    assert f"{mirl.arm_mean:.2f} dB" in visible
    assert "est accuracy" not in visible
    assert "accuracy points" not in visible


def test_a_diverged_network_counts_as_the_images_as_they_were(folder, rows):
    design = Results(folder).design
    assert design.untouched_psnr == pytest.approx(design.value_of_guessing)
    lost = {"outcome": "diverged", "val_error": None, "test_error": None, "test_psnr_worst": None}
    changed = [row | lost if row["stage"] == "trained" and row["arm"] == "mirl" else row for row in rows]
    verdict = judge(pa.Table.from_pylist(changed, schema=SCHEMA), design)
    (mirl,) = [c for c in verdict.comparisons if (c.arm, c.metric) == ("mirl", "psnr")]
    assert mirl.arm_mean == pytest.approx(design.untouched_psnr)


def test_convergence_is_a_share_of_the_parents_psnr(folder, rows):
    """By hand: the first point at which the validation PSNR reaches the share of what the parent ended with."""
    design = dataclasses.replace(Results(folder).design, convergence_target_fraction=0.99)
    verdict = judge(pa.Table.from_pylist(rows, schema=SCHEMA), design)
    trained = [row for row in rows if row["stage"] == "trained"]
    expected = []
    for replicate in range(2):
        here = {row["arm"]: row for row in trained if row["replicate"] == replicate}
        target = 0.99 * -10 * math.log10(here["dense"]["val_error"])
        points = zip(here["mirl"]["curve_step"], here["mirl"]["curve_val_error"], strict=True)
        expected.append(min([s for s, e in points if -10 * math.log10(e) >= target - 1e-4], default=design.steps))
    (mirl,) = [c for c in verdict.comparisons if (c.arm, c.metric) == ("mirl", "convergence")]
    assert mirl.arm_mean == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ['model={name="mlp"}'],
            "model.name='mlp': is made for classification, and data set 'restoration' is for rest",
        ),
        (["data={}"], "model.name='restorer': is made for restoration, and data set 'mnist1d' is for classification"),
        (["training.label_smoothing=0.1"], "training.label_smoothing=0.1: .* has no labels to smooth; leave it out"),
        (['verdict.objectives=["val_accuracy"]'], "verdict.objectives: 'val_accuracy' is not measured in restoration"),
        (["arms.searched_scalefree={}"], "arms: 'searched_scalefree' chooses by a loss of logits"),
        (['quality=["calibration"]'], r"quality=\['calibration'\]: is measured of classifiers, .*; leave it out"),
    ],
)
def test_what_does_not_go_with_the_task_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Study.from_toml(
            EXAMPLE, overrides=[*SMALL[:1], "name='r'", *changes] if "data={}" in changes else changes
        )._checked_data()


def test_the_margin_of_equivalence_is_in_decibels_unless_the_study_says_another():
    written = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    del written["verdict"]["equivalence_margin"]
    study = Study.from_dict(written)
    assert study.identity()["verdict"]["equivalence_margin"] == 0.1
    assert Study.from_dict(study.identity()).digest == study.digest == Study.from_toml(EXAMPLE).digest
    written["verdict"] = {"alpha": 0.1, "equivalence_margin": 0.01}
    assert Study.from_dict(written).verdict.equivalence_margin == 0.01
    written["verdict"] = {"alpha": 0.1}
    assert Study.from_dict(written).verdict.equivalence_margin == 0.1
    del written["verdict"]
    assert Study.from_dict(written).verdict.equivalence_margin == 0.1
    classes = Study(name="s", seed=1, replicates=1, sparsities=[0.5], training={"steps": 5})
    assert classes.verdict.equivalence_margin == 0.01


def test_psnr_is_no_objective_of_classification():
    study = Study(
        name="s",
        seed=1,
        replicates=1,
        sparsities=[0.5],
        training={"steps": 5},
        verdict={"objectives": ["val_psnr_worst"]},
    )
    with pytest.raises(ConfigError, match="'val_psnr_worst' is not measured in classification"):
        study._checked_data()


def test_a_study_of_classes_is_recorded_as_before():
    recorded = Study(name="s", seed=1, replicates=1, sparsities=[0.5], training={"steps": 5}).recorded()
    assert not {"task", "untouched_psnr"} & set(recorded["resolved"])


# Searches -------------------------------------------------------------------------------------------------------------


def search_of(**changes):
    channels = {"low": 2, "high": 5, "depth": 3}
    masks = {"sparsity": {"low": 0.2, "high": 0.6}}
    table = {
        "name": "search",
        "seed": 1,
        "replicates": 2,
        "data": {"name": "restoration", "patch_size": 32},
        "model": {"name": "restorer"},
        "training": {"steps": 6, "eval_every": 3, "batch_size": 8},
        "search": {"candidates": 4, "batch": 4},
        "space": {
            "training": {"lr": {"low": 1e-3, "high": 1e-2, "log": True}},
            "model": {"channels": channels},
            "masks": masks,
        },
        "arms": {"random": {}},
        **changes,
    }
    return Study.from_dict(table)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search by two objectives, one of them a PSNR, by which rungs compare as well."""
    arms = {
        "random": {},
        "asha": {"rungs": {"kind": "mo_asha", "min_steps": 2, "eta": 2, "bracket": 4}},
        "snip": {"space": {"masks": {"method": "snip"}}},
        "mirl": {"space": {"masks": {"method": "mirl", "rate": 0.5}}, "candidates": 2},
    }
    search = {"candidates": 4, "batch": 4, "probe_size": 12}
    study = search_of(arms=arms, search=search, verdict={"objectives": ["val_psnr_worst", "n_params"]})
    study._checked_data()
    folder = tmp_path_factory.mktemp("search") / "restoration"
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_search(study, folder)
    finally:
        torch.set_num_threads(n_threads)
    return folder


def test_a_search_of_restorers_measures_psnr_at_rungs_and_in_the_end(searched):
    found = rows_of(searched)
    assert {row["outcome"] for row in found.values()} == {None, "completed", "stopped"}
    for row in found.values():
        if row["outcome"] != "stopped":
            assert row["val_psnr_worst"] == pytest.approx(-10 * math.log10(row["val_error"]), abs=1e-6)
            assert row["val_psnr_worst"] == min(row[f"val_psnr_{name}"] for name in ("noise", "rain", "haze"))
        assert (row["test_psnr_worst"] is not None) == (row["outcome"] == "completed")
    random, snip, mirl = (found["trained", arm, 0, 0.0, 1] for arm in ("random", "snip", "mirl"))
    assert random["lr"] == snip["lr"] == mirl["lr"]
    # In a convolution a weight is one of very few, and every layer's own share is rounded.
    assert snip["weight_sparsity"] == mirl["weight_sparsity"] == pytest.approx(random["weight_sparsity"], abs=0.02)
    assert snip["passes"] == random["passes"] + 12
    assert mirl["steps"] in (12, 18)


def test_a_search_is_judged_from_the_images_as_they_were(searched):
    """The corner of the box: a network that changes nothing."""
    results = Results(searched)
    assert results.design.untouched_psnr == load_dataset("restoration", {"patch_size": 32}).untouched_psnr
    attained = attain(results.to_arrow(), results.design)
    assert attained.box.reference[0] == -results.design.untouched_psnr
    other = dataclasses.replace(results.design, objectives=("val_error", "n_params"))
    error = attain(results.to_arrow(), other).box.reference[0]
    assert -10 * math.log10(error) == pytest.approx(results.design.untouched_psnr)
    page = results.report().read_text(encoding="utf-8")
    assert "Errors run from 0 to that of the images as they were" in page
    assert {c.metric for c in results.verdict().comparisons} == {"hypervolume"}


SMOOTHED = {"training": {"label_smoothing": {"low": 0.0, "high": 0.1}}, "model": {"channels": [2, 2, 2]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": SMOOTHED}, "space.training.label_smoothing: data set 'restoration' has no labels to smooth; remove"),
        (
            {"verdict": {"objectives": ["val_accuracy", "macs"]}},
            "verdict.objectives: 'val_accuracy' is not measured in",
        ),
        (
            {"verdict": {"objectives": ["val_error"]}},
            r"verdict.objectives=\['val_error'\]: of images it is a mean squared",
        ),
        (
            {"arms": {"random": {"rungs": {"kind": "asha", "objectives": ["val_accuracy"]}}}},
            "arms.random.rungs.objectives: 'val_accuracy' is not measured in restoration",
        ),
        (
            {"model": {"name": "mlp"}, "space": {"training": {"lr": {"low": 0.1, "high": 0.2}}}},
            "model.name='mlp': is made",
        ),
        (
            {
                "data": {"name": "digits"},
                "model": {"name": "mlp"},
                "space": {"training": {"lr": {"low": 0.1, "high": 0.2}}},
            }
            | {"verdict": {"objectives": ["val_psnr_worst"]}},
            "verdict.objectives: 'val_psnr_worst' is not measured in classification",
        ),
    ],
)
def test_a_search_refuses_what_does_not_go_with_the_task(changes, message):
    with pytest.raises(ConfigError, match=message):
        search_of(**changes)._checked_data()


def test_the_margin_of_one_psnr_is_in_decibels_unless_the_search_says_another():
    alone = search_of(verdict={"objectives": ["val_psnr_worst"]})
    assert alone.verdict.equivalence_margin == 0.1
    assert Study.from_dict(alone.identity()).digest == alone.digest
    assert (
        search_of(verdict={"objectives": ["val_psnr_worst"], "equivalence_margin": 0.2}).verdict.equivalence_margin
        == 0.2
    )
    assert search_of(verdict={"objectives": ["val_psnr_worst", "macs"]}).verdict.equivalence_margin == 0.01
