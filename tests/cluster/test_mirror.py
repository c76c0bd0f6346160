from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sparsefront.cluster import mirror
from sparsefront.cluster.mirror import Mirror, Page, build_mirror
from sparsefront.errors import LedgerError
from sparsefront.search.design import Design
from sparsefront.search.findings import LABELS
from sparsefront.search.front import front
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA, schema_of
from tests import synthetic

SMALL: Design = synthetic.build_design(replicates=3, draws=6, random_draws=3, arms=("random", "searched", "dense"))
TABLE: pa.Table = synthetic.build_table(SMALL)

Commit = Callable[..., Ledger]


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    """Make a ledger of a table, in commits of so many rows."""

    def make(
        table: pa.Table, *, rows: int = 1000, name: str = "study", columns: Mapping[str, str] | None = None
    ) -> Ledger:
        study = {"name": name, "resolved": {"columns": columns or {}}}
        with Ledger.create(tmp_path / name, study, digest="d" * 32, versions={}) as ledger:
            for start in range(0, table.num_rows, rows):
                ledger.commit(table.slice(start, rows))
        return Ledger.read(tmp_path / name)

    return make


def values_of(page: Page, *, last: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in page.points:
        found[point.name] = point.value if last else (*found.get(point.name, ()), (point.step, point.value))
    return found


def nested(shown: Mirror, prefix: str) -> dict[str, Page]:
    return {page.key: page for page in shown.nested if page.key.startswith(prefix)}


def test_the_same_rows_give_the_same_mirror_however_they_were_committed(commit: Commit) -> None:
    once = build_mirror(commit(TABLE, name="once"), SMALL)
    assert build_mirror(commit(TABLE, rows=7, name="often"), SMALL) == once
    assert len({page.key for page in once.nested}) == len(once.nested)


def test_the_study_shows_its_design_and_its_verdict(commit: Commit) -> None:
    shown = build_mirror(commit(TABLE), SMALL, n_planned=40)
    assert shown.experiment == "sparsefront/synthetic"
    assert shown.study.params["seed"] == "7"
    assert json.loads(shown.study.params["arms"]) == list(SMALL.arms)
    # What follows from the data is not known to all who export a study, and params never change.
    following = {"keeps_parents", "mask_sections", "making_steps"}
    assert shown.study.params.keys() == {f.name for f in dataclasses.fields(Design)} - following | {"study_digest"}
    n_trained = pc.sum(pc.equal(TABLE["stage"], "trained")).as_py()
    assert shown.study.tags["sparsefront.progress"] == f"{n_trained}/40 trained"
    assert shown.study.tags["sparsefront.study_digest"] == "d" * 32
    values = values_of(shown.study)
    spent = TABLE.filter((pc.field("arm") == "random") & (pc.field("stage") == "trained"))
    assert values["passes/random"] == pytest.approx(pc.sum(spent["passes"]).as_py())
    verdict = json.loads(shown.artifacts["verdict.json"])
    assert shown.study.tags["sparsefront.verdict"].startswith(verdict["headline"])
    comparison = next(
        c for c in verdict["comparisons"] if (c["arm"], c["sparsity"], c["metric"]) == ("searched", 0.5, "accuracy")
    )
    assert values["verdict/searched/0.5/accuracy_difference"] == pytest.approx(comparison["difference"], rel=1e-11)


def test_an_arm_shows_its_mean_over_replicates_and_its_label(commit: Commit) -> None:
    shown = build_mirror(commit(TABLE), SMALL)
    page = nested(shown, "arm/")["arm/random/0.9"]
    rows = TABLE.filter(
        (pc.field("arm") == "random") & (pc.field("stage") == "trained") & (pc.field("target_sparsity") == 0.9)
    )
    errors = np.array(rows["test_error"].to_pylist()).reshape(3, 3)
    means = 1 - errors.mean(axis=1)
    values = values_of(page)
    assert values["test_accuracy"] == pytest.approx(means.mean())
    half = 4.302652729911275 * means.std(ddof=1) / np.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert values["test_accuracy_high"] - values["test_accuracy"] == pytest.approx(half)
    assert values["replicates"] == 3
    assert values["outcomes/completed"] == 9
    assert nested(shown, "arm/")["arm/searched/0.9"].tags["sparsefront.verdict.accuracy"] in LABELS
    assert {"arm/dense/0.0", "arm/dense/0.9"} <= nested(shown, "arm/").keys()


def test_the_front_is_shown_with_what_defines_and_what_measures_its_members(commit: Commit) -> None:
    shown = build_mirror(commit(TABLE), SMALL)
    members = front(TABLE, SMALL.objectives)
    assert pq.read_table(io.BytesIO(shown.artifacts["front.parquet"])).equals(members)
    pages = nested(shown, "front/")
    assert list(pages) == [f"front/{name}" for name in members["candidate"].to_pylist()]
    row = members.to_pylist()[0]
    page = pages[f"front/{row['candidate']}"]
    assert page.params == {
        "optimizer": "adam",
        "lr": "0.002",
        "weight_decay": "0.0",
        "label_smoothing": "0.0",
        "batch_size": "100",
    }
    assert page.tags["sparsefront.front"] == "member"
    assert page.tags["sparsefront.replicate"] == str(row["replicate"])
    series = values_of(page, last=False)
    assert series["val_error"] == ((row["steps"], pytest.approx(row["val_error"], rel=1e-11)),)
    steps, errors = zip(*series["curve/val_error"], strict=True)
    assert list(steps) == row["curve_step"]
    assert errors == pytest.approx(row["curve_val_error"], rel=1e-11)


def test_qualities_and_densities_are_shown_of_arms_and_members_where_they_were_measured(commit: Commit) -> None:
    columns = {"val_ece": "float64", "ece": "test_float64", "brier": "test_float64", "fragile_indices": "test_indices"}
    rows = TABLE.to_pylist()
    for row in rows:
        unmeasured = row["stage"] != "trained" or row["arm"] == "dense"
        ece = None if unmeasured else 0.1 * (1 + row["replicate"]) + 0.01 * row["slot"]
        row |= {"ece": ece, "val_ece": None if unmeasured else 0.5 - ece, "brier": None}
        row |= {"fragile_indices": None, "effective_params": None if unmeasured else 1000}
        row["effective_density"] = math.nan if row["arm"] == "dense" else 0.25
    table = pa.Table.from_pylist(rows, schema=schema_of({"resolved": {"columns": columns}}))
    design = dataclasses.replace(SMALL, objectives=("val_error", "val_ece", "effective_params"))
    shown = build_mirror(commit(table, columns=columns, name="once"), design)
    assert build_mirror(commit(table, rows=7, columns=columns, name="often"), design) == shown
    values = {key: values_of(page) for key, page in nested(shown, "").items()}
    random = values["arm/random/0.9"]
    assert random["ece"] == pytest.approx(0.2 + 0.01)  # mean over replicates of the mean over draws 0, 1 and 2
    assert random["val_ece"] == pytest.approx(0.5 - 0.21)
    assert (random["effective_density"], random["effective_params"]) == (0.25, 1000)
    new = {*columns, "effective_density", "effective_params"}
    assert not new & values["arm/dense/0.0"].keys()
    assert not {"brier", "fragile_indices"} & {name for found in values.values() for name in found}
    member = front(table, design.objectives).to_pylist()[0]
    page = values[f"front/{member['candidate']}"]
    assert {name: page[name] for name in new & page.keys()} == {
        name: pytest.approx(member[name], rel=1e-11)
        for name in ("ece", "val_ece", "effective_density", "effective_params")
    }


def test_a_later_hypervolume_series_passes_through_the_earlier_points(commit: Commit) -> None:
    whole = values_of(build_mirror(commit(TABLE, name="whole"), SMALL).study, last=False)["hypervolume"]
    cut = TABLE.num_rows // 2
    part = values_of(build_mirror(commit(TABLE.slice(0, cut), name="part"), SMALL).study, last=False)["hypervolume"]
    assert len(part) > 3
    assert set(part[:-1]) <= set(whole)  # all but the last one, which is of the moment


def test_no_hypervolume_before_its_reference_is_settled(commit: Commit) -> None:
    without_parent = TABLE.filter(pc.field("arm") != "dense")
    early = values_of(build_mirror(commit(without_parent, name="early"), SMALL).study)
    assert "hypervolume" not in early
    assert early["front_size"] > 0
    # The loss of the worst parent is known when all parents are.
    by_loss = dataclasses.replace(SMALL, objectives=("val_loss", "macs"))
    some_parents = TABLE.filter(pc.field("replicate") < 2)
    assert "hypervolume" not in values_of(build_mirror(commit(some_parents, name="some"), by_loss).study)
    assert "hypervolume" in values_of(build_mirror(commit(TABLE, name="all"), by_loss).study)
    bounded = dataclasses.replace(SMALL, objectives=("val_error", "node_sparsity"))
    assert "hypervolume" in values_of(build_mirror(commit(without_parent, name="bounded"), bounded).study)


def test_of_a_large_front_the_extremes_and_a_stable_choice_are_shown(
    commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = commit(TABLE)
    members = front(TABLE, SMALL.objectives).to_pylist()
    assert len(members) >= 3
    monkeypatch.setattr(mirror, "MAX_MEMBERS", 2)
    shown = build_mirror(ledger, SMALL)
    assert shown.n_members == 2
    keys = nested(shown, "front/").keys()
    assert f"front/{min(members, key=lambda row: row['val_error'])['candidate']}" in keys
    assert f"front/{min(members, key=lambda row: row['macs'])['candidate']}" in keys


def test_another_run_of_the_same_study_is_another_ledger(commit: Commit) -> None:
    later = pc.add(TABLE["committed_at"], pa.scalar(dt.timedelta(microseconds=1)))
    again = TABLE.set_column(SCHEMA.get_field_index("committed_at"), SCHEMA.field("committed_at"), later)
    one, other = build_mirror(commit(TABLE, name="a"), SMALL), build_mirror(commit(again, name="b"), SMALL)
    assert one.ledger_id != other.ledger_id
    assert one.ledger_id == build_mirror(commit(TABLE.slice(0, 40), name="c"), SMALL).ledger_id


def test_failures_and_a_ledger_of_failures_alone_are_shown(commit: Commit) -> None:
    design = dataclasses.replace(SMALL, replicates=1)
    table: pa.Table = synthetic.build_table(
        design, outcomes={("random", 0, level, slot): "diverged" for level in (0.5, 0.9) for slot in range(3)}
    )
    failed = table.filter(pc.field("outcome") == "diverged")
    shown = build_mirror(commit(failed), design)
    assert shown.n_members == 0
    page = nested(shown, "arm/")["arm/random/0.5"]
    assert values_of(page)["outcomes/diverged"] == 3
    assert "test_accuracy" not in values_of(page)


def test_an_empty_ledger_has_nothing_to_show(commit: Commit) -> None:
    with pytest.raises(LedgerError, match="study has no rows yet: there is nothing to show in MLflow"):
        build_mirror(commit(TABLE.slice(0, 0)), SMALL)
