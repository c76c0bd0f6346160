from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from sparsefront.cluster.mirror import STUDY_KEY, Mirror
from sparsefront.cluster.search_mirror import build_search_mirror
from sparsefront.errors import LedgerError
from sparsefront.search.design import SearchDesign
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA
from tests.synthetic_search import make_search_design, make_search_table


def mirrored(folder: Path, design: SearchDesign, tables: list[pa.Table]) -> Mirror:
    columns = {name: kind for arm in design.arms for name, kind in arm.space.columns if name not in SCHEMA.names}
    study = {"name": design.name, "resolved": {"columns": columns}}
    with Ledger.create(folder, study, digest="0" * 64, versions={}) as ledger:
        for table in tables:
            ledger.commit(table)
        return build_search_mirror(ledger, design)


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


def test_an_empty_search_has_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="has no rows yet"):
        mirrored(tmp_path / "empty", make_search_design(), [])
