"""Makes of a ledger what an earlier version would have left: parts without the columns that came later."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from sparsefront.search.ledger.parts import PartName


def forget_columns(folder: Path, names: Collection[str]) -> None:
    """Write all parts of a closed ledger anew, without some of their columns."""
    for path in sorted((folder / "ledger").iterdir()):
        name = PartName.parse(path.name)
        assert name is not None
        table = pq.read_table(path)
        path.unlink()
        pq.write_table(table.drop_columns([n for n in table.column_names if n in names]), path, store_schema=False)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:32]
        path.rename(path.with_name(str(replace(name, n_bytes=len(content), digest=digest))))
