"""`make test`: what runs, and what it ends with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("fails", ["", "not ray", "-m ray", "ruff check"])
def test_a_failed_test_hides_no_others_and_fails_the_whole(fails: str, tmp_path: Path) -> None:
    """The tools are scripts that say how they were called, one of which fails."""
    for tool in ("ruff", "mypy", "lint-imports", "python"):
        script = tmp_path / tool
        fail = f"case \"{tool} $*\" in *'{fails}'*) exit 1;; esac" if fails else ""
        script.write_text(f'#!/bin/sh\necho "{tool} $*" >> "{tmp_path}/called"\n{fail}\n', encoding="utf-8")
        script.chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), f"venv={tmp_path}", "--assume-old=setup", "test"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    called = (tmp_path / "called").read_text(encoding="utf-8").splitlines()
    assert (ran.returncode == 0) == (not fails), ran.stderr
    n_tests = sum("pytest" in line for line in called)
    assert n_tests == (0 if fails == "ruff check" else 2)
