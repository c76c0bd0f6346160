"""The documentation says what the code does: its tables come from the registries, its studies are valid."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from docs.tables import PAGES
from sparsefront.cli import _parser
from sparsefront.search.methods import PRUNERS
from sparsefront.spaces.pruning import Pruning
from sparsefront.study import SearchStudy, Study
from sparsefront.study.sections import ArmSection
from sparsefront.trainables.models import build_model

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_those_of_the_registries(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: python docs/tables.py"


def test_every_key_of_an_arm_of_a_study_of_masks_is_explained() -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    section = page.partition("## Keys of a study of masks")[2].partition("### [arms.NAME]")[2].partition("###")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    keys = [*ArmSection.model_fields, *(field.name for field in dataclasses.fields(Pruning))]
    assert [row[0] for row in rows] == [f"`{key}`" for key in keys]
    for row in rows:
        assert len(row) == 4, row
        assert all(row), row


def test_how_long_lists_may_be_is_documented() -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert '| `objectives` | list of 1 to 6 names | `["val_error", "n_params", "macs"]` |' in page
    assert '| `objectives` | list of 1 to 4 names | `["val_error", "n_params"]` |' in page


@pytest.mark.parametrize("name", ["study.md", "choices.md"])
def test_types_are_in_plain_words(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for typed in ("tuple", "dict[", "list[", "Literal", "Optional", "Mapping", " str ", " float ", " int ", "None"):
        assert typed not in page, typed


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


def test_the_page_on_searches_says_what_candidates_of_every_method_are() -> None:
    page = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
    section = page.partition("## Pruning methods")[2].partition("## Pruning chains")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row[0])) == sorted(PRUNERS)
    for row in rows:
        (is_chain,) = {PRUNERS[name].method.needs_parent for name in re.findall(r"`(\w+)`", row[0])}
        assert is_chain == ("#pruning-chains" in row[1])


def test_the_studies_of_the_page_on_searches_can_be_copied() -> None:
    page = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
    studies = [block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if block.startswith("name =")]
    assert len(studies) == 2
    for block in studies:
        Study(**tomllib.loads(block))


def test_the_arms_of_the_page_on_searches_cost_the_same() -> None:
    """A chain is several trainings: that so many chains are the budget of the others is said there."""
    page = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "is_snip_better" in b)
    study = Study(**tomllib.loads(block) | {"replicates": 2})
    assert isinstance(study, SearchStudy)
    passes = {arm.arm: arm.passes for arm in study.simulate(workers=1).arms}
    assert passes["random"] == passes["snip"] == passes["any"]
    assert passes["imp"] == pytest.approx(passes["random"], rel=0.05)


def test_the_study_of_the_pruning_page_can_be_copied() -> None:
    block = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    study = Study.from_dict(tomllib.loads(block))
    assert study.design().arms[-1] == "late"


#: Parents of the table of `small_dense` in pruning.md, by how they are written there: name, options, inputs.
SCALED = {
    "`mlp` [256, 128], MNIST-1D": ("mlp", {"widths": [256, 128]}, 40),
    "`conv1d` [25, 25, 25], MNIST-1D": ("conv1d", {"channels": [25, 25, 25]}, 40),
    "`residual_mlp` 100, MNIST-1D": ("residual_mlp", {"width": 100}, 40),
    "`mlp` [64], digits": ("mlp", {"widths": [64]}, 64),
}


def test_how_far_a_small_dense_network_is_off_is_as_written() -> None:
    page = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    table = page.partition("| parent, data | parameters |")[2].partition("\n\n")[0].splitlines()
    levels = [float(cell.strip(" %")) / 100 for cell in table[0].strip("| ").split("|")]
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in table[2:])}
    assert rows.keys() == SCALED.keys()
    for parent, (name, options, n_inputs) in SCALED.items():
        structure = build_model(name, options, input_shape=(n_inputs,), n_classes=10).structure
        wanted = [
            structure.n_params - structure.n_weights + round((1 - level) * structure.n_weights) for level in levels
        ]
        off = [f"{structure.scaled_to(n).n_params / n - 1:+.1%}" for n in wanted]
        assert rows[parent] == [f"{structure.n_params:,}", *off]
    assert (wanted[-1], structure.scaled_to(wanted[-1]).n_params, structure.compact([2]).n_params) == (121, 85, 160)
