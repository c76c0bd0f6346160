"""A study that an earlier version began, whose rows lack the columns that came since: it is read and goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from sparsefront.errors import ConfigError, LedgerError
from sparsefront.results import load
from sparsefront.search.ledger import Disk, Ledger
from sparsefront.search.schema import LATER
from sparsefront.study import Study
from tests.faults.inline_study import run_inline, shown
from tests.faults.older_ledger import forget_columns


class FullDisk(Disk):
    """Writes so many files, and no more."""

    def __init__(self, n_files: int) -> None:
        self.left = n_files

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("full")
        super().write(path, chunks)


def test_a_study_of_an_earlier_version_is_read_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsefront.search.ledger.ledger.FAN_IN", 3)
    study = Study(
        name="older",
        seed=7,
        replicates=2,
        sparsities=(0.5,),
        arms=("dense", "random", "magnitude"),
        data={"name": "digits"},
        model={"name": "mlp", "widths": [8]},
        search={"random_draws": 3},
        training={"batch_size": 50, "steps": 2, "eval_every": 2},
    )
    run_inline(study, tmp_path / "whole", masks_per_pack=8, lanes_per_pack=1)
    folder = tmp_path / "older"
    with pytest.raises(LedgerError, match="full"):
        run_inline(study, folder, masks_per_pack=8, lanes_per_pack=1, disk=FullDisk(7))
    forget_columns(folder, LATER)
    older = load(folder)
    rows = older.to_arrow()
    assert rows.column("density_macs").null_count == rows.num_rows == 5
    assert older.verdict().spent
    assert older.report().is_file()
    assert older.front(objectives=["val_error"]).num_rows
    with pytest.raises(ConfigError, match=r"^objective='density_macs': no network of this study has a value of it"):
        older.front(objectives=["val_error", "density_macs"])
    run_inline(study, folder, masks_per_pack=8, lanes_per_pack=1)
    assert shown(folder) == shown(tmp_path / "whole")
    with Ledger.open(folder) as ledger:
        ledger.compact()
        assert ledger.n_parts == 1
    assert shown(folder) == shown(tmp_path / "whole")
    assert load(folder).report().is_file()
    assert load(folder).front(objectives=["val_error", "density_macs"]).num_rows
    assert load(folder).front(objectives=["val_error", "density_macs"], where="val_error > 1").num_rows == 0
