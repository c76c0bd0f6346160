"""The documentation says what the code does: its tables come from the registries, its studies are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs.tables import PAGES
from sparsefront.cli import _parser
from sparsefront.study import Study

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_those_of_the_registries(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: python docs/tables.py"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_examples_are_valid_studies(path: Path) -> None:
    assert Study.from_toml(path).name == path.stem


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_in_the_readme_exists() -> None:
    parser = _parser()
    commands = set(re.findall(r"^sparsefront ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert commands
    known = parser.format_help()
    assert all(f"    {command} " in known for command in commands)


def test_the_study_of_the_pruning_page_can_be_copied() -> None:
    block = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    study = Study.from_dict(tomllib.loads(block))
    assert study.design().arms[-1] == "late"
