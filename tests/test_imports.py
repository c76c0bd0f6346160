"""What import-linter cannot say: it knows outside packages by their first name only."""

from __future__ import annotations

import ast
from pathlib import Path

import sparsefront

PACKAGE = Path(sparsefront.__file__).parent


def imported(path: Path) -> set[str]:
    """Full names of what a module imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_one_module_knows_the_formats_of_the_ledgers_files() -> None:
    formats = {f"pyarrow.{name}" for name in ("parquet", "dataset", "feather", "csv", "orc", "fs")}
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if formats & imported(path)}
    assert found == {"search/ledger/parts.py"}
