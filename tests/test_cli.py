"""The commands as a user types them: what they print, what they refuse, exit codes, and what they leave behind."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import sparsefront
from sparsefront import cli
from sparsefront.cli import _parser, main
from sparsefront.cluster.doctor import Finding
from sparsefront.errors import ConfigError, LedgerError, SparsefrontError
from sparsefront.search.findings import Verdict
from sparsefront.search.ledger import Ledger
from sparsefront.search.methods import BASELINE, METHODS, PRUNERS
from sparsefront.search.schema import VALUES
from sparsefront.search.strategies import STRATEGIES
from sparsefront.spaces.allocations import ALLOCATIONS, EXPLICIT
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.study import Study
from sparsefront.trainables.data import DATASETS
from sparsefront.trainables.models import MODELS
from sparsefront.trainables.optimizers import OPTIMIZERS
from tests.faults.inline_study import run_inline

TOML = """
name = "tiny"
seed = 7
replicates = 2
sparsities = [0.5, 0.9]
[data]
name = "digits"
[model]
widths = [12, 8]
[search]
draws = 8
probe_size = 32
random_draws = 2
[training]
steps = 20
eval_every = 10
batch_size = 32
lr = 0.01
[compute]
workers = 2
device = "cpu"
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a study that was run to its end."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    path = folder.with_suffix(".toml")
    path.write_text(TOML, encoding="utf-8")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has, however many cores are free
    run_inline(Study.from_toml(path), folder, masks_per_pack=8, lanes_per_pack=16)
    torch.set_num_threads(n_threads)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def untouched(here: Path) -> Iterator[Path]:
    """A working directory in which nothing may be left behind."""
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    (here / "empty").mkdir()
    (here / "file").touch()
    before = everything_below(here)
    yield here
    assert everything_below(here) == before


def everything_below(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


Capture = pytest.CaptureFixture[str]


def refused(arguments: list[str], capsys: Capture) -> str:
    """The one line on stderr with which the command line refuses a user's input."""
    try:
        code: object = main(arguments)
    except SystemExit as stopped:  # of the argument parser
        code = stopped.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    assert said.err.startswith("sparsefront: ")
    return said.err.removeprefix("sparsefront: ").strip()


WRONG = [
    ("", "the following arguments are required: COMMAND; see 'sparsefront --help'"),
    ("frob", "argument COMMAND: invalid choice: 'frob'"),
    ("run", "the following arguments are required: STUDY.toml; see 'sparsefront run --help'"),
    ("run t.toml --frob", "unrecognized arguments: --frob"),
    ("run t.toml --dir=", "argument --dir: must not be empty"),
    ("run nope.toml", "nope.toml: no such file"),
    ("run empty", "empty: cannot be read (Is a directory)"),
    ("run file", "file: name: is missing and has no default; write it"),
    ("run t.toml --set sparsities=[0.5,1.0]", "--set sparsities.1=1.0: must be less than 1.0"),
    ("run t.toml --set replicates=0", "--set replicates=0: must be at least 1"),
    ("run t.toml --set name=../x", "--set name='../x': must be 1-128 letters"),
    ("run t.toml --set training.batch_size=9999", "--set training.batch_size=9999: must be at most 1150"),
    ("run t.toml --set search.probe_size=9999 --set seed=3", "--set search.probe_size=9999: must be at most 1150"),
    ("run t.toml --set model.name=conv1d", "t.toml: model.widths=[12, 8]: unknown key; must be one of channels"),
    ("run t.toml --dir file", "DIR=file: is a file; give a new or empty folder"),
    ("run t.toml --dir file/x", "DIR=file/x: "),
    ("run t.toml --address localhost", "--address localhost: must be 'host:port'"),
    ("run t.toml --address 127.0.0.1:1", "--address 127.0.0.1:1: cannot be reached"),
    ("front nope", "DIR=nope: is no folder; give the folder of a study that was run"),
    ("verdict empty", "DIR=empty: is no study, it has no study.json"),
    ("report file", "DIR=file: is no folder"),
    ("record nope", "DIR=nope: is no folder"),
    ("list frobs", "argument what: invalid choice: 'frobs'"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line or "nothing" for line, _ in WRONG])
def test_wrong_input_is_one_line_and_leaves_nothing_behind(
    untouched: Path, capsys: Capture, line: str, message: str
) -> None:
    assert refused(line.split(), capsys).startswith(message)


FRONT_WRONG = [
    (["--where", "node_sparsty > 0.5"], "there is no column 'node_sparsty'; did you mean 'node_sparsity'?"),
    (
        ["--where", "test_error < 0.5"],
        "test_error is a test result, which is reported and never decides; use val_error",
    ),
    (["--where", ""], "where='': must be a condition"),
    (["--where", "arm == 'magnitud'"], "arm='magnitud' must be one of dense, random, searched,"),
    (["--where", "arm == 'magnitud'"], "; did you mean 'magnitude'?"),
    (["--where", "outcome in ('complete',)"], "; did you mean 'completed'?"),
    (["--objectives", "val_eror"], "objective='val_eror': accepted are val_error"),
    (["--objectives", ""], "objective='': accepted are val_error"),
    (["--format", "parquet"], "--format parquet: is no text to print; name a file, as in --output front.parquet"),
    (["--format", "csv", "--output", "x.parquet"], "--format csv: --output x.parquet is called otherwise; change one"),
    (["--output", "empty"], "--output empty: is a folder; name a file"),
    (["--output", "no/such.csv", "--format", "csv"], "no is no folder; make it first"),
]


@pytest.mark.parametrize(("options", "message"), FRONT_WRONG, ids=[" ".join(o) for o, _ in FRONT_WRONG])
def test_a_wrong_front_is_refused(
    untouched: Path, done: Path, capsys: Capture, options: list[str], message: str
) -> None:
    assert message in refused(["front", str(done), *options], capsys)


def test_without_a_gpu_there_is_no_cuda(untouched: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = refused(["run", "t.toml", "--set", "compute.device=cuda"], capsys)
    assert line.startswith("--set compute.device='cuda': this machine has no CUDA device")


def test_a_damaged_ledger_is_refused_by_every_command(here: Path, done: Path, capsys: Capture) -> None:
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    with Ledger.create(here / "bad", Study.from_toml("t.toml").recorded(), digest="0" * 64, versions={}) as ledger:
        ledger.commit(sparsefront.load(done).to_arrow())
    (part,) = (here / "bad" / "ledger").iterdir()
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    before = everything_below(here)
    for command in ("front", "verdict", "report", "record"):
        assert str(part) in refused([command, str(here / "bad")], capsys)
    assert everything_below(here) == before


def test_a_changed_study_is_refused_with_the_keys_that_differ(here: Path, done: Path, capsys: Capture) -> None:
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    before = sorted(done.rglob("*"))
    line = refused(["run", "t.toml", "--dir", str(done), "--set", "seed=8", "--set", "training.lr=0.5"], capsys)
    assert f"{done} holds another study (changed: " in line
    assert "seed: 7 -> 8, training.lr: 0.01 -> 0.5)" in line
    assert sorted(done.rglob("*")) == before


def test_a_message_cannot_command_the_terminal(untouched: Path, capsys: Capture) -> None:
    assert refused(["run", "a\x1b[2Jb\n.toml"], capsys).startswith(r"a\x1b[2Jb .toml: no such file")


# What is printed ------------------------------------------------------------------------------------------------------


def test_the_front_as_a_table_fits_eighty_columns(here: Path, done: Path, capsys: Capture) -> None:
    assert main(["front", str(done)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out
    n = sparsefront.load(done).front().num_rows
    assert re.search(rf"^{n} candidates on the front; no room for .*level", out, re.MULTILINE)
    for heading in ("candidate", "arm", "error", "params", "macs"):
        assert heading in out


def test_the_front_elsewhere_has_every_column(
    here: Path, done: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    assert main(["front", str(done)]) == 0
    out = capsys.readouterr().out
    assert "level" in out
    assert out.rstrip().endswith("candidates on the front")


def test_the_front_in_other_formats_is_the_same_front(here: Path, done: Path, capsys: Capture) -> None:
    options = ["front", str(done), "--where", "sparsity >= 0.9 and arm != 'dense'", "--objectives", "val_error, macs"]
    table = sparsefront.load(done).front(where="sparsity >= 0.9 and arm != 'dense'", objectives=["val_error", "macs"])
    assert set(table["target_sparsity"].to_pylist()) == {0.9}

    assert main([*options, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [row["candidate"] for row in rows] == table["candidate"].to_pylist()
    assert set(rows[0]) == set(table.column_names)

    assert main([*options, "--format", "csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(r["val_error"]) for r in records] == table["val_error"].to_pylist()
    assert "curve_step" not in records[0]

    for kind in ("json", "csv", "table", "parquet"):
        assert main([*options, "--format", kind, "--output", f"front.{kind}"]) == 0
    assert main([*options, "--output", "called.parquet"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("called.parquet").read_bytes() == Path("front.parquet").read_bytes()
    Path("called.parquet").unlink()
    assert pq.read_table("front.parquet").equals(table)
    assert json.loads(Path("front.json").read_text(encoding="utf-8")) == rows
    assert list(csv.DictReader(io.StringIO(Path("front.csv").read_text(encoding="utf-8")))) == records
    assert table["candidate"][0].as_py()[:12] in Path("front.table").read_text(encoding="utf-8")
    assert sorted(p.name for p in here.iterdir()) == ["front.csv", "front.json", "front.parquet", "front.table"]


def test_the_front_of_scored_masks_needs_no_training(here: Path, done: Path, capsys: Capture) -> None:
    options = ["--objectives", "initial_loss,n_params", "--where", "stage == 'scored'"]
    assert main(["front", str(done), *options, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["stage"] for row in rows} == {"scored"}
    assert main(["front", str(done), *options]) == 0
    assert "initial" in capsys.readouterr().out


def test_an_empty_front_is_no_error(here: Path, done: Path, capsys: Capture) -> None:
    assert main(["front", str(done), "--where", "val_error < 0"]) == 0
    said = capsys.readouterr()
    assert "0 candidates on the front" in said.out
    assert said.err == "sparsefront: --where val_error < 0: matches nothing in this ledger\n"
    assert main(["front", str(done), "--where", "val_error < 0", "--format", "json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert "matches nothing" in said.err
    assert main(["front", str(done), "--where", "stage == 'scored'"]) == 0
    assert "matches only 32 rows that can be on no front" in capsys.readouterr().err
    assert main(["front", str(done), "--where", "arm != 'dense'"]) == 0
    assert capsys.readouterr().err == ""


def test_a_column_holds_what_the_registry_has() -> None:
    assert VALUES["optimizer"] == tuple(OPTIMIZERS)


def test_patterns_are_listed_as_a_study_writes_them(here: Path, capsys: Capture) -> None:
    assert main(["list", "patterns"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\S+)$", out, re.MULTILINE) == ["unstructured", "node", "N:M", "OxI"]
    for line in re.findall(r"^ +in a study: (.+)$", out, re.MULTILINE):
        assert parse_pattern(tomllib.loads(line)["pattern"]).kind in ("node", "weight")
    assert "N:M\n    keeps N of each M consecutive weights" in out
    assert 'in a study: pattern = "2:4"' in out
    assert "OxI\n    keeps whole blocks of outputs x inputs" in out
    assert 'in a study: pattern = "4x4"' in out


def test_what_never_converged_is_not_judged(here: Path, capsys: Capture) -> None:
    """No network comes to more than its parent has: nothing of convergence can be tested."""
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    study = Study.from_toml("t.toml", ["arms=['dense', 'random', 'magnitude']", "sparsities=[0.9]", "training.steps=2"])
    run_inline(study, here / "never", masks_per_pack=8, lanes_per_pack=16)
    verdict = sparsefront.load("never").verdict()
    assert isinstance(verdict, Verdict)
    (found,) = [c for c in verdict.comparisons if (c.metric, c.arm) == ("convergence", "magnitude")]
    assert found.note.startswith("never reached")
    assert main(["verdict", "never"]) == 0
    out = capsys.readouterr().out
    title = "convergence against random search at equal budget, in steps"
    assert re.search(r"^magnitude +0.9 .* not judged", out[out.index(title) :], re.MULTILINE)
    assert "never reached: no network of either side came to the target: " in " ".join(out.split())


def test_a_study_that_has_only_begun_can_be_read(here: Path, capsys: Capture) -> None:
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    study = Study.from_toml("t.toml")
    Ledger.create(here / "new", study.recorded(), digest=study.digest, versions={}).close()
    for command in ("front", "verdict", "report"):
        assert main([command, "new"]) == 0
    out = capsys.readouterr().out
    assert "0 candidates on the front" in out
    assert "Not judged: no arm has a trained network" in " ".join(out.split())
    assert main(["record", "new"]) == 1
    assert "has no rows yet" in capsys.readouterr().err


def test_the_verdict_fits_eighty_columns_and_says_what_is_left_out(here: Path, done: Path, capsys: Capture) -> None:
    assert main(["verdict", str(done)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    verdict = sparsefront.load(done).verdict()
    for comparison in verdict.comparisons:
        assert re.search(rf"^{comparison.arm} +{comparison.sparsity:g} .*{comparison.label}", out, re.MULTILINE)
    assert verdict.headline in " ".join(out.split())
    assert "(no room for p equiv., p" in out


def test_arms_against_their_controls_are_a_table_of_their_own(here: Path, capsys: Capture) -> None:
    arms = '[arms.random]\n[arms.snip]\ncontrols = ["shuffled_layers", "fresh_weights"]\n'
    (here / "controlled.toml").write_text(TOML + arms, encoding="utf-8")
    study = Study.from_toml(here / "controlled.toml", ["replicates=2", "sparsities=[0.5]", "masks.kind='weight'"])
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_inline(study, here / "controlled", masks_per_pack=8, lanes_per_pack=16)
    torch.set_num_threads(n_threads)
    assert main(["verdict", "controlled"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    first, second = out.split("Arms against their controls, one network each: accuracy in points")
    assert re.search(r"^snip +0.5 ", first, re.MULTILINE)
    assert "snip_" not in out
    verdict = sparsefront.load("controlled").verdict()
    assert isinstance(verdict, Verdict)
    assert [(c.control, c.n) for c in verdict.controls] == [("shuffled_layers", 2), ("fresh_weights", 2)]
    for c in verdict.controls:
        assert re.search(rf"^snip +{c.control} +0.5 .*{c.label}", second, re.MULTILINE)
    assert "against its control" not in out  # the table says it
    (said,) = verdict.matters
    assert said.startswith("snip at sparsity 0.5: ")
    assert said in " ".join(out.split())


def test_the_verdict_as_json_is_the_verdict(here: Path, done: Path, capsys: Capture) -> None:
    assert main(["verdict", str(done), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == json.loads(json.dumps(sparsefront.load(done).verdict().to_dict()))


def test_the_report_is_written_and_named(here: Path, done: Path, capsys: Capture) -> None:
    assert main(["report", str(done)]) == 0
    assert capsys.readouterr().out == f"{done / 'report.html'}\n"
    assert (done / "report.html").stat().st_size > 100_000


def test_a_report_that_cannot_be_written_is_the_users_to_mend(here: Path, done: Path, capsys: Capture) -> None:
    (done / "report.html").unlink(missing_ok=True)
    (done / "report.html").mkdir()
    try:
        assert "report.html cannot be written (Is a directory)" in refused(["report", str(done)], capsys)
    finally:
        (done / "report.html").rmdir()
        (done / "report.html.part").unlink()


@pytest.mark.parametrize(
    ("what", "names"),
    [("methods", METHODS), ("strategies", STRATEGIES), ("datasets", DATASETS), ("models", MODELS)],
)
def test_lists_name_everything_in_the_registry(
    here: Path, capsys: Capture, what: str, names: dict[str, object]
) -> None:
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\S+)$", out, re.MULTILINE) == list(names)  # type: ignore[call-overload]
    assert all(len(line) <= 80 for line in out.splitlines())


def test_allocations_are_listed_with_what_an_arm_can_have_in_their_place(here: Path, capsys: Capture) -> None:
    assert main(["list", "allocations"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\S+)$", out, re.MULTILINE) == [*ALLOCATIONS, EXPLICIT, "counts_of"]
    for name, row in PRUNERS.items():
        assert (row.method.counts_of is not None) == (name in out.split())


def test_schedules_are_the_updates_of_masks(here: Path, capsys: Capture) -> None:
    assert main(["list", "schedules"]) == 0
    schedules = capsys.readouterr().out
    assert main(["list", "updates"]) == 0
    assert schedules == capsys.readouterr().out


def test_a_list_of_nothing_says_what_there_is_to_list(here: Path, capsys: Capture) -> None:
    message = refused(["list"], capsys)
    assert message.startswith("list: say what to list, one of methods, strategies, rungs, ")
    assert message.rstrip().endswith(", models; as in 'sparsefront list methods'")


def test_the_doctor_fails_when_something_is_bad(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("good", "Python", "3.12"), Finding("warning", "disk", "x" * 200)]
    monkeypatch.setattr("sparsefront.cluster.doctor.examine", lambda address: findings)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.count("x") == 200
    findings.append(Finding("bad", "Ray", "does not start [bold]"))
    assert main(["doctor", "--address", "a:1"]) == 1
    assert "does not start [bold]" in capsys.readouterr().out


# Exit codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a.toml: x=1: must be 2"), 2, "sparsefront: a.toml: x=1: must be 2\n"),
        (LedgerError("damaged"), 2, "sparsefront: damaged\n"),
        (SparsefrontError("the disk\nis full"), 1, "sparsefront: the disk is full\n"),
        (KeyboardInterrupt(), 130, "sparsefront: interrupted\n"),
    ],
)
def test_exit_codes(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sparsefront.results.load", fail)
    assert main(["verdict", "x"]) == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_is_not_shown_as_the_users(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("sparsefront.results.load", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["verdict", "x"])


def test_a_reader_that_stops_reading_is_no_error(done: Path) -> None:
    for command in (["front", str(done), "--format", "json"], ["verdict", str(done)]):
        reader, writer = os.pipe()
        os.close(reader)
        code = f"import sys; from sparsefront.cli import main; sys.exit(main({command!r}))"
        ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (0, b"")


def test_reading_a_study_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, sparsefront; sparsefront.load; import sparsefront.cli; print({'torch', 'ray'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


@pytest.mark.parametrize(
    ("what", "unneeded"),
    [
        ("methods", {"torch", "ray", "mlflow", "optuna", "scipy.stats"}),
        ("rungs", {"torch", "ray", "mlflow", "optuna", "scipy.stats"}),
        ("strategies", {"torch", "ray", "mlflow"}),
    ],
)
def test_a_list_imports_what_it_needs(what: str, unneeded: set[str]) -> None:
    code = f"import sys; from sparsefront.cli import main; main(['list', {what!r}]); print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert not unneeded & set(said.splitlines()[-1].strip("[]").replace("'", "").split(", "))


def test_the_doctors_help_says_that_ray_is_started(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "Without --address it starts Ray on this machine" in " ".join(capsys.readouterr().out.split())


def test_help_says_what_the_program_is_for_and_what_every_argument_is(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.partition("COMMAND ... ")[2].startswith("Train pruning methods and searches for sparse networks")
    assert shown.endswith(
        "Exit codes: 0 done, 1 the study ran and something in it failed, 2 the user's input is wrong."
    )
    (commands,) = (action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    for name, command in commands.items():
        assert all(argument.help for argument in command._actions), name
    assert "the same line again goes on where it was" in commands["run"].description


# From Python ----------------------------------------------------------------------------------------------------------


def test_results_from_python(done: Path) -> None:
    results = sparsefront.load(done)
    assert results.design.name == "tiny"
    n, planned = results.n_trained()
    assert n == planned
    assert repr(results) == f"<Results of 'tiny' in {str(done)!r}: {n} of {n} networks trained>"
    study = Study.from_dict(results.identity)
    assert study.digest == results.digest
    # How many sections a mask has is known from the ledger alone.
    assert study.design() == dataclasses.replace(results.design, mask_sections=())
    table = results.to_arrow(where="stage == 'trained' and test_error < 2", columns=["arm", "test_error"])
    assert isinstance(table, pa.Table)
    assert set(table["arm"].to_pylist()) == set(BASELINE)
    assert len(results.to_pandas(where="stage == 'scored'")) == 2 * 2 * 8
    assert results.verdict().headline
    n_networks = len({r["candidate"] for r in results.to_arrow(where="stage == 'trained'").to_pylist()})
    assert results.outcomes() == {"completed": 32 + n_networks}
    with pytest.raises(ConfigError, match="objectives="):
        results.front(objectives=[])


def test_columns_that_fit_are_kept_in_their_order() -> None:
    out = io.StringIO()
    console = cli._Console(file=out, width=20)
    columns = [cli._Column(h, ["x" * 8], rank) for h, rank in (("a", 0), ("b", 2), ("c", 1))]
    assert cli._table(console, columns) == ["b"]
    assert out.getvalue().split() == ["a", "c", "x" * 8, "x" * 8]


# The whole of it, on Ray ----------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_from_its_first_command_to_its_last(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    arguments = ["run", "t.toml", "--set", "record.every_s=1e9"]
    assert main(arguments) == 0
    first = capfd.readouterr()
    folder = here / "runs" / "tiny"
    assert "32/32 masks scored, 30/30 networks trained, 2 workers" in first.err
    assert f"report: {Path('runs/tiny/report.html')}" in first.out
    assert f"MLflow: sqlite:///{folder}/mlflow.db" in first.out
    rows = sparsefront.load(folder).to_arrow()

    # Nothing is repeated.
    parts = everything_below(folder / "ledger")
    assert main(arguments) == 0
    again = capfd.readouterr()
    assert "nothing was left to do" in again.err
    assert again.out == first.out
    assert everything_below(folder / "ledger") == parts
    assert sparsefront.load(folder).to_arrow().equals(rows)

    # Everything else reads what is there.
    for command in ("front", "verdict", "report", "record"):
        assert main([command, str(folder)]) == 0
    assert "run " in capfd.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_recorded_again_whatever_order_its_arms_were_written_in(here: Path) -> None:
    lines = [line for line in TOML.splitlines() if not line.startswith("arms")]
    arms = "\n".join(f"[arms.{name}]" for name in ("random", "magnitude", "dense"))
    (here / "t.toml").write_text("\n".join([*lines, arms, ""]), encoding="utf-8")
    assert main(["run", "t.toml", "--set", "replicates=1", "--set", "sparsities=[0.5]"]) == 0
    assert main(["record", "runs/tiny"]) == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_in_which_something_failed_ends_with_one(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "t.toml").write_text(TOML, encoding="utf-8")
    # A learning rate at which no network stays finite: a parent that diverges leaves nothing to prune.
    changes = [
        "arms=['random','magnitude']",
        "replicates=1",
        "sparsities=[0.5]",
        "training.lr=1e30",
        "record.enabled=false",
    ]
    assert main(["run", "t.toml", *(f"--set={change}" for change in changes)]) == 1
    said = capfd.readouterr()
    assert "sparsefront: 3 diverged, 1 failed of 4 candidates; the report says which, and why" in said.err
    assert "Traceback" not in said.err + said.out
    found = sparsefront.load("runs/tiny").to_arrow(where="arm == 'magnitude'")["error"].to_pylist()
    assert found == ["the parent of replicate 0 did not complete (diverged)"]
