from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sparsefront.cluster.mirror import STUDY_KEY, Mirror, Page
from sparsefront.cluster.search_mirror import build_search_mirror
from sparsefront.errors import LedgerError
from sparsefront.search.design import SearchDesign
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA
from tests.synthetic_search import make_search_design, make_search_table, with_pack_times


def mirrored(folder: Path, design: SearchDesign, tables: list[pa.Table], *, is_finished: bool = False) -> Mirror:
    columns = {name: kind for arm in design.arms for name, kind in arm.space.columns if name not in SCHEMA.names}
    study = {"name": design.name, "resolved": {"columns": columns}}
    with Ledger.create(folder, study, digest="0" * 64, versions={"optuna": "5.0.0"}) as ledger:
        for table in tables:
            ledger.commit(table)
        return build_search_mirror(ledger, design, is_finished=is_finished)


def metrics_of(page: Page) -> set[str]:
    return {point.name for point in page.points}


def test_a_search_has_a_run_for_itself_for_each_arm_and_for_its_front(tmp_path: Path) -> None:
    design = make_search_design()
    table = make_search_table(design)
    mirror = mirrored(tmp_path / "whole", design, [table])
    keys = [page.key for page in mirror.nested]
    assert mirror.study.key == STUDY_KEY
    assert [key for key in keys if key.startswith("arm/")] == [f"arm/{arm.name}" for arm in design.arms]
    assert mirror.n_members == sum(key.startswith("front/") for key in keys) > 0
    assert {"front.parquet", "verdict.json"} == set(mirror.artifacts)
    assert all(point.value == point.value for page in (mirror.study, *mirror.nested) for point in page.points)
    in_parts = mirrored(tmp_path / "parts", design, [table.slice(0, 7), table.slice(7)])
    assert in_parts == mirror, "how rows were committed must not show"
    assert mirror.study.tags["sparsefront.version.optuna"] == "5.0.0"


def test_members_of_the_front_say_which_network_they_are(tmp_path: Path) -> None:
    design = make_search_design(replicates=2)
    table = make_search_table(design)
    mirror = mirrored(tmp_path / "whole", design, [table])
    rows = {row["candidate"]: row for row in table.to_pylist() if row["outcome"] == "completed"}
    members = [page for page in mirror.nested if page.key.startswith("front/")]
    assert len({page.name for page in members}) == len(members) > 3
    for page in members:
        row = rows[page.key.removeprefix("front/")]
        assert page.name == f"{row['arm']} r{row['replicate']} {row['candidate'][:8]}"
        for name in ("depth", "width_1", "width_2", "width_3", "lr", "optimizer"):
            assert page.params.get(name) == (None if row[name] is None else str(row[name]))
        assert "sparsefront.target_sparsity" not in page.tags
    assert {page.params["depth"] for page in members} > {"1"}


def test_arms_have_importances_and_intervals(tmp_path: Path) -> None:
    design = make_search_design(replicates=2)
    mirror = mirrored(tmp_path / "whole", design, [make_search_table(design)])
    (random,) = [page for page in mirror.nested if page.key == "arm/random"]
    curves = {f"hypervolume_at_passes{end}" for end in ("", "_low", "_high")}
    assert {"importance/lr", "importance/width_1", *curves} <= metrics_of(random)
    (high,) = [p for p in random.points if p.name == "hypervolume_at_passes_high" and p.step == 10**6]
    (low,) = [p for p in random.points if p.name == "hypervolume_at_passes_low" and p.step == 10**6]
    assert low.value < high.value


def test_packs_are_measured_against_their_prediction(tmp_path: Path) -> None:
    design = make_search_design(replicates=2, candidates=10)
    table = with_pack_times(make_search_table(design), ratio=0.5)
    mirror = mirrored(tmp_path / "timed", design, [table])
    shown = {p.name: p.value for p in mirror.study.points if p.name.startswith("packs")}
    names = ("median", "lower_quartile", "upper_quartile")
    assert shown == {"packs": table.num_rows, **{f"packs_measured_over_predicted_{name}": 0.5 for name in names}}
    untimed = mirrored(tmp_path / "untimed", design, [make_search_table(design)])
    assert not any(name.startswith("packs") for name in metrics_of(untimed.study))


def test_curves_are_shown_once_nothing_is_to_come(tmp_path: Path) -> None:
    """That all candidates have a row does not mean that the study has ended: some are at a rung."""
    design = make_search_design(replicates=2, candidates=40)
    table = make_search_table(design)
    curve = "hypervolume_at_passes"
    at_rung = table.filter((pc.field("stage") == "rung") | (pc.field("slot") < 39))
    few = table.filter(pc.field("slot") < 35)  # where a strategy had no more to propose
    for name, rows, is_finished, is_shown in (
        ("whole", table, False, True),
        ("rung", at_rung, False, False),
        ("few", few, False, False),
        ("ended", few, True, True),
    ):
        mirror = mirrored(tmp_path / name, design, [rows], is_finished=is_finished)
        arms = [page for page in mirror.nested if page.key.startswith("arm/")]
        assert [curve in metrics_of(page) for page in arms] == [is_shown] * 3, name


def test_an_empty_search_has_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="has no rows yet"):
        mirrored(tmp_path / "empty", make_search_design(), [])
