"""Claims of studies: what a study file may say, where it is kept, and what the command line prints of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsefront.cli import main
from sparsefront.errors import ConfigError
from sparsefront.results import load, write_claim
from sparsefront.search.claims import Claim
from sparsefront.search.ledger.header import Header, read_header
from sparsefront.spaces.candidate import canonical_json
from sparsefront.study import MaskStudy, Study
from tests.faults.inline_study import run_inline

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "claims").glob("*.toml"))

TOML = """
name = "tiny"
seed = 7
replicates = 3
sparsities = [0.5, 0.75]
[arms.dense]
[arms.random]
[arms.imp]
rate = 0.3
controls = ["shuffled_layers"]
[claim]
claim = "Tickets win."
paper = "Somebody, 2020"
original_scale = "large"
our_scale = "small"
[[claim.tests]]
arm = "imp"
against = "imp_shuffled_layers"
sparsity = 0.75
expect = "higher"
[[claim.tests]]
arm = "imp"
metric = "dynamic_dead_fraction"
expect = "lower"
[data]
name = "digits"
[model]
widths = [12]
[masks]
kind = "weight"
[search]
probe_size = 32
random_draws = 2
[training]
steps = 12
eval_every = 12
batch_size = 32
lr = 0.01
[record]
enabled = false
"""


def study_of(**changes: Any) -> MaskStudy:
    study = Study.from_dict({**tomllib.loads(TOML), **changes})
    assert isinstance(study, MaskStudy)
    return study


def claim_of(*tests: dict[str, Any], **changes: Any) -> dict[str, Any]:
    texts = {"claim": "c", "paper": "p", "original_scale": "o", "our_scale": "s"}
    return texts | {"tests": list(tests or [{"arm": "imp", "expect": "higher"}])} | changes


def finish(study: MaskStudy, folder: Path) -> None:
    """Run to the end without Ray, into a folder that `run` takes for its own."""
    run_inline(study, folder, masks_per_pack=8, lanes_per_pack=16)
    header = read_header(folder / "study.json")
    digest = hashlib.sha256(canonical_json(header.study).encode()).hexdigest()
    (folder / "study.json").write_bytes(Header(header.study, digest, {}).to_bytes())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run to its end, by `run` at last; and one of another width, which states no claim."""
    root = tmp_path_factory.mktemp("claims")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    study, other = study_of(), study_of(name="other", model={"widths": [6]}, claim=None)
    for one in (study, other):
        finish(one, root / one.name)
    study.run(root / "tiny")
    torch.set_num_threads(n_threads)
    return root


@pytest.fixture
def here(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with copies of both."""
    for name in ("tiny", "other"):
        shutil.copytree(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        assert err.count("\n") == 1
        return err.removeprefix("sparsefront: ").strip()
    assert err == ""
    return out


# What a study file may say -------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, str]] = [
    (1, "claim=1: must be a section of keys and values"),
    ({}, "claim.claim: is missing and has no default; write it"),
    (claim_of(paper=""), "claim.paper='': must not be empty"),
    (claim_of(paper=3), "claim.paper=3: must be text in quotes"),
    (claim_of(claim="x" * 3000), "must have at most 2000 characters"),
    (
        claim_of(scale="x"),
        "claim.scale='x': unknown key; must be one of claim, paper, original_scale, our_scale, tests",
    ),
    (claim_of(tests=[]), "claim.tests=[]: must have 1 or more values"),
    (claim_of(tests="imp"), "claim.tests='imp': must be a list"),
    (claim_of(tests=["imp"]), "claim.tests.0='imp': must be a section of keys and values"),
    (claim_of({"expect": "higher"}), "claim.tests.0.arm: is missing and has no default; write it"),
    (claim_of({"arm": "imp"}), "claim.tests.0.expect: is missing and has no default; write it"),
    (claim_of({"arm": "imp", "expect": "more"}), "claim.tests.0.expect='more': must be 'higher', 'lower' or 'equiv"),
    (
        claim_of({"arm": "imp", "expect": "lower", "agianst": "x"}),
        "claim.tests.0.agianst='x': unknown key; must be one",
    ),
    (
        claim_of({"arm": "imo", "expect": "lower"}),
        "claim.tests.0.arm='imo': must be one of dense, random, imp, imp_shu",
    ),
    (claim_of({"arm": "imp", "expect": "lower", "against": "imp"}), "claim.tests.0.against='imp': must be another arm"),
    (claim_of({"arm": "imp", "expect": "lower", "sparsity": 0.9}), "claim.tests.0.sparsity=0.9: must be one of the st"),
    (claim_of({"arm": "imp", "expect": "lower", "sparsity": 1.5}), "claim.tests.0.sparsity.0=1.5: must be less than 1"),
    (claim_of({"arm": "imp", "expect": "lower", "sparsity": "x"}), "claim.tests.0.sparsity.0='x': must be a number"),
    (claim_of({"arm": "imp", "expect": "lower", "metric": "val_los"}), "did you mean 'val_loss'?"),
    (claim_of({"arm": "imp", "expect": "lower", "metric": "ece"}), "claim.tests.0.metric='ece': must be 'accuracy', "),
    (claim_of({"arm": "imp", "expect": "equivalent", "metric": "val_loss"}), "claim.tests.0.margin: is missing"),
    (claim_of({"arm": "imp", "expect": "equivalent", "margin": 0}), "claim.tests.0.margin=0: must be greater than 0"),
    (
        claim_of({"arm": "imp", "expect": "lower", "than": "tiny"}),
        "claim.tests.0.than='tiny': must be the name of anot",
    ),
    (claim_of({"arm": "imp", "expect": "lower"}, {"arm": "no", "expect": "lower"}), "claim.tests.1.arm='no': must be "),
]


@pytest.mark.parametrize(("claim", "message"), WRONG, ids=range(len(WRONG)))
def test_a_malformed_claim_is_one_clear_line(claim: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        study_of(claim=claim)
    assert message in str(caught.value)
    assert str(caught.value).startswith("Study: claim")
    assert "\n" not in str(caught.value)


def test_a_malformed_claim_names_its_file_and_leaves_nothing_behind(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "t.toml"
    path.write_text(TOML.replace('"higher"', '"more"'), encoding="utf-8")
    line = said(capsys, "run", str(path), "--dir", str(tmp_path / "x"), code=2)
    assert line.startswith(f"{path}: claim.tests.0.expect='more': must be")
    assert list(tmp_path.iterdir()) == [path]


def test_searches_have_no_claims() -> None:
    with pytest.raises(ConfigError, match=r"claim=.*: is a section of studies of masks: remove \[space\]"):
        Study.from_dict(
            {
                "name": "s", "seed": 1, "replicates": 1, "training": {"steps": 10},
                "space": {"training": {"lr": {"low": 0.1, "high": 1.0}}}, "search": {"candidates": 2},
                "arms": {"random": {}}, "claim": claim_of(),
            }
        )  # fmt: skip


def test_qualities_that_the_study_measures_can_be_tested() -> None:
    claim = claim_of({"arm": "imp", "expect": "lower", "metric": "ece"})
    assert study_of(claim=claim, quality=["calibration"]).claim is not None


def test_a_claim_is_no_part_of_what_a_study_is() -> None:
    study = study_of()
    assert study.digest == study_of(claim=claim_of()).digest == study_of(claim=None).digest
    assert "claim" not in study.identity()


def test_one_sparsity_is_a_list_of_one() -> None:
    claim = study_of().claim
    assert claim is not None
    assert claim.tests[0].sparsity == (0.75,)
    assert claim.tests[1].sparsity == ()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_state_claims(path: Path) -> None:
    study = Study.from_toml(path)
    assert isinstance(study, MaskStudy)
    assert study.name == path.stem
    assert study.claim is not None
    for test in study.claim.tests:
        if test.than:
            other = Study.from_toml(path.with_name(f"{test.than}.toml"))
            assert isinstance(other, MaskStudy)
            assert other.seed == study.seed
            assert set(test.sparsity or study.sparsities) <= set(other.sparsities)


# Where it is kept ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_claim_beside_the_ledger(finished: Path) -> None:
    stated = json.loads((finished / "tiny" / "claim.json").read_text(encoding="utf-8"))
    claim = study_of().claim
    assert claim is not None
    assert stated == claim.model_dump(mode="json")
    assert not (finished / "other" / "claim.json").exists()


def test_running_again_takes_over_a_changed_claim_and_trains_nothing(here: Path) -> None:
    before = load("tiny").to_arrow()
    study_of(claim=claim_of(claim="Other words.")).run("tiny")
    assert load("tiny").claims().claim.claim == "Other words."
    study_of(claim=None).run("tiny")
    with pytest.raises(ConfigError, match="states no claim"):
        load("tiny").claims()
    assert load("tiny").to_arrow().equals(before)
    assert not list(here.rglob("*.tmp"))


def test_what_a_crash_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "claim.json.tmp").write_text("half", encoding="utf-8")
    write_claim(tmp_path, claim_of())
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]
    write_claim(tmp_path, None)
    write_claim(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


# What it comes to ----------------------------------------------------------------------------------------------------


def test_findings_are_those_of_the_ledger(here: Path) -> None:
    results = load("tiny")
    found = results.claims()
    assert found.is_finished
    assert results.n_trained() == (found.n_trained, found.n_planned)
    rows = results.to_pandas(where="stage == 'trained'")
    for effect in found.tests:
        values = 1 - rows.test_error if effect.metric == "accuracy" else rows[effect.metric]
        at = rows.target_sparsity == effect.sparsity
        mean = {arm: values[at & (rows.arm == arm)].groupby(rows.replicate).mean() for arm in set(rows.arm)}
        assert effect.difference == pytest.approx((mean[effect.arm] - mean[effect.against]).mean())
        assert effect.n == 3


def test_two_studies(here: Path) -> None:
    write_claim(here / "tiny", {**claim_of(), "tests": [full_test(than="other")]})
    (alone, *_) = load("tiny").claims().tests
    assert alone.note == "study 'other' is not among those given"
    found, mine, theirs = load("tiny").claims(load("other")), load("tiny"), load("other")
    assert [effect.n for effect in found.tests] == [3, 3]
    write_claim(here / "tiny", {**claim_of(), "tests": [full_test()]})
    write_claim(here / "other", {**claim_of(), "tests": [full_test()]})
    for effect, here_, there in zip(found.tests, mine.claims().tests, theirs.claims().tests, strict=True):
        assert effect.difference == pytest.approx(here_.difference - there.difference)


def full_test(**changes: Any) -> dict[str, Any]:
    stated = study_of(claim=claim_of({"arm": "imp", "expect": "higher", **changes})).claim
    assert stated is not None
    one: dict[str, Any] = stated.tests[0].model_dump(mode="json")
    return one


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = said(capsys, "claims", "tiny")
    rows = [line.split() for line in out.splitlines() if line.startswith("tiny  ")]
    assert [row[1:7] for row in rows] == [
        ["imp", "-", "imp_shuffled_layers", "0.75", "accuracy", "higher"],
        ["imp", "-", "random", "0.5", "dynamic_dead_fraction", "lower"],
        ["imp", "-", "random", "0.75", "dynamic_dead_fraction", "lower"],
    ]
    assert f"tiny: {load('tiny').claims().verdict}\n  Tickets win. (Somebody, 2020)\n  original: large\n" in out
    assert "not finished" not in out
    monkeypatch.setenv("COLUMNS", "80")
    narrow = said(capsys, "claims", "tiny")
    assert "(no room for" in narrow
    assert " reproduced" in narrow or "inconclusive" in narrow


def test_the_command_gives_everything_as_json(here: Path, capsys: Capture) -> None:
    (found,) = json.loads(said(capsys, "claims", "tiny", "--format", "json"))
    assert found["study"] == "tiny"
    assert found["is_finished"] is True
    assert Claim.of_data(found["claim"]) == load("tiny").claims().claim
    assert len(found["tests"]) == 3
    assert said(capsys, "claims", "tiny", "--format", "json", "--output", "f.json") == ""
    assert json.loads((here / "f.json").read_text(encoding="utf-8")) == [found]


def test_the_command_writes_the_table_of_a_page(here: Path, capsys: Capture) -> None:
    table = said(capsys, "claims", "tiny", "--format", "markdown")
    assert table.startswith("| study | claim |")
    assert len(table.splitlines()) == 3
    page = here / "page.md"
    page.write_text("# T\n\n<!-- claims: begin -->\nold\n<!-- claims: end -->\n\nrest\n", encoding="utf-8")
    for _ in range(2):
        assert said(capsys, "claims", "tiny", "--format", "markdown", "--output", "page.md") == ""
        written = page.read_text(encoding="utf-8")
        assert written == f"# T\n\n<!-- claims: begin -->\n{table}<!-- claims: end -->\n\nrest\n"
    assert said(capsys, "claims", "tiny", "--format", "markdown", "--output", "new.md") == ""
    assert (here / "new.md").read_text(encoding="utf-8") == table
    assert said(capsys, "claims", "tiny", "--output", "t.txt") == ""
    assert "Tickets win." in (here / "t.txt").read_text(encoding="utf-8")


def test_the_page_of_the_documentation_has_its_marks() -> None:
    page = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page.count("<!-- claims: begin -->\n") == page.count("<!-- claims: end -->\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nope", "DIR=nope: is no folder"),
        ("other", "DIR=other: its study states no claim; add [claim] to its file and run the study's file again"),
        ("other nothing", "DIR=other and 1 more: no study in them states a claim; add [claim] to a study's file"),
        ("tiny nope", "DIR=nope: is no folder"),
        ("tiny copy", "DIR=copy: holds a study called 'tiny', as tiny does; give one of them"),
        ("tiny tiny", "DIR=tiny: holds a study called 'tiny', as tiny does; give one of them"),
        ("tiny --output nope/x", "--output nope/x: "),
        ("tiny --output tiny", "--output tiny: is a folder; name a file"),
    ],
)
def test_what_the_command_refuses(here: Path, capsys: Capture, arguments: str, message: str) -> None:
    shutil.copytree("tiny", "copy")
    (here / "nothing").mkdir()
    assert said(capsys, "claims", *arguments.split(), code=2).startswith(message)


def test_folders_without_a_claim_are_left_out_by_name(here: Path, capsys: Capture) -> None:
    alone = json.loads(said(capsys, "claims", "tiny", "--format", "json"))
    (here / "nothing").mkdir()
    (here / "notes.txt").touch()
    for copy in ("again", "and_again"):  # studies of one name do not matter where neither counts
        shutil.copytree("other", copy)
    folders = ["again", "and_again", "nothing", "notes.txt", "other", "tiny"]
    assert main(["claims", *folders, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == alone
    assert sorted(err.splitlines()) == [
        *(f"sparsefront: DIR={name}: its study states no claim; left out" for name in ("again", "and_again")),
        "sparsefront: DIR=notes.txt: is no study; left out",
        "sparsefront: DIR=nothing: is no study; left out",
        "sparsefront: DIR=other: its study states no claim; left out",
    ]


def test_a_study_that_a_test_names_needs_no_claim(here: Path, capsys: Capture) -> None:
    write_claim(here / "tiny", {**claim_of(), "tests": [full_test(than="other")]})
    (found,) = json.loads(said(capsys, "claims", "other", "tiny", "--format", "json"))
    assert [test["n"] for test in found["tests"]] == [3, 3]
    shutil.copytree("other", "copy")
    line = said(capsys, "claims", "tiny", "other", "copy", code=2)
    assert line == "DIR=copy: holds a study called 'other', as other does; give one of them"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tests": [{}]}', '{"tests": [{"sparsity": 1}]}', "\xff"])
def test_a_damaged_claim_is_refused(here: Path, capsys: Capture, content: str) -> None:
    (here / "tiny" / "claim.json").write_bytes(content.encode("latin-1"))
    line = said(capsys, "claims", "tiny", code=2)
    assert line.startswith("tiny/claim.json: holds no claim (")
    assert line.endswith("run the study's file again, which trains nothing that is there")


def test_a_study_that_has_only_begun(here: Path, capsys: Capture) -> None:
    for part in (here / "tiny" / "ledger").iterdir():
        part.unlink()
    out = said(capsys, "claims", "tiny")
    planned = load("tiny").n_trained()[1]
    assert f"tiny: inconclusive (not finished: 0 of {planned} networks trained)" in out
    assert "3 of 3 replicates have no pair" in out
