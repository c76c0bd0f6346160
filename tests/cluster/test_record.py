from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparsefront.cluster import record as record_module
from sparsefront.cluster.mirror import Point, build_mirror
from sparsefront.cluster.record import (
    KEY_TAG,
    LiveRecorder,
    RecordResult,
    record,
    record_in_process,
    tracking_uri_of,
    without_password,
)
from sparsefront.errors import ConfigError, LedgerError
from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA
from tests import synthetic
from tests.synthetic_search import make_search_design, make_search_table

# MLflow 3.17 uses what SQLAlchemy 2.1 deprecates, and leaves its pooled connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


SMALL: Design = synthetic.build_design(
    replicates=2, draws=4, random_draws=2, arms=("random", "searched", "dense"), sparsities=(0.5,)
)
TABLE: pa.Table = synthetic.build_table(SMALL)
#: Of whoever exports, and when.
VOLATILE = {
    "sparsefront.created_at",
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.source.git.commit",
}

Study = Callable[..., Path]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    record_module._prepare_store(folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def study(tmp_path: Path, empty_store: Path) -> Study:
    """Make the folder of a study with these rows, and with a store unless that is what is tested."""

    def make(table: pa.Table = TABLE, *, name: str = "study", store: bool = True) -> Path:
        folder = tmp_path / name
        with Ledger.create(folder, {"name": name}, digest="d" * 32, versions={}) as ledger:
            for start in range(0, table.num_rows, 10):
                ledger.commit(table.slice(start, 10))
        if store:
            shutil.copy(empty_store, folder / "mlflow.db")
        return folder

    return make


def shown(store: Path) -> list[dict[str, Any]]:
    """Everything in an MLflow store, read beside MLflow, without what differs between two equal exports."""
    with contextlib.closing(sqlite3.connect(store)) as db:
        runs = db.execute(
            "SELECT run_uuid, name, status, start_time, end_time FROM runs WHERE lifecycle_stage = 'active'"
        ).fetchall()
        tags = {uuid: dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (uuid,))) for uuid, *_ in runs}
        found = []
        for uuid, *info in runs:
            mine = {key: value for key, value in tags[uuid].items() if key not in VOLATILE}
            if "mlflow.parentRunId" in mine:
                mine["mlflow.parentRunId"] = tags[mine["mlflow.parentRunId"]][KEY_TAG]
            found.append(
                {
                    "key": mine.get(KEY_TAG, ""),
                    "info": info,
                    "tags": mine,
                    "params": dict(db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (uuid,))),
                    "points": sorted(
                        db.execute("SELECT key, value, timestamp, step FROM metrics WHERE run_uuid = ?", (uuid,))
                    ),
                }
            )
    return sorted(found, key=lambda run: str(run["key"]))


def mirror_in_process(folder: Path, **changes: Any) -> RecordResult:
    return record(folder, **({"tracking_uri": None, "design": SMALL, "report": None} | changes))


def test_an_export_shows_the_study_its_arms_and_its_front(study: Study, tmp_path: Path) -> None:
    folder = study()
    (tmp_path / "page.html").write_text("<p>report</p>")
    result = mirror_in_process(folder, report=tmp_path / "page.html", n_planned=8)
    with Ledger.read(folder) as ledger:
        mirror = build_mirror(ledger, SMALL, n_planned=8)
    assert result == RecordResult(True, result.run_id, f"sqlite:///{folder}/mlflow.db", mirror.n_members, None)
    runs = {run["key"]: run for run in shown(folder / "mlflow.db")}
    pages = {page.key: page for page in (mirror.study, *mirror.nested)}
    assert runs.keys() == pages.keys()
    for key, page in pages.items():
        assert runs[key]["info"] == [page.name, "FINISHED", mirror.started_ms, mirror.ended_ms]
        assert runs[key]["params"] == page.params
        assert runs[key]["points"] == sorted(dataclasses.astuple(p) for p in page.points)
        assert page.tags.items() <= runs[key]["tags"].items()
        assert runs[key]["tags"].get("mlflow.parentRunId") == (None if key == "study" else "study")
    artifacts = folder / "mlartifacts" / str(result.run_id) / "artifacts"
    expected = {**mirror.artifacts, "report.html": b"<p>report</p>", "study.json": (folder / "study.json").read_bytes()}
    assert {path.name: path.read_bytes() for path in artifacts.iterdir()} == expected
    assert not list((tmp_path / "cwd").iterdir())


def test_exporting_again_changes_nothing(study: Study) -> None:
    folder = study()
    first = mirror_in_process(folder)
    before = (folder / "mlflow.db").read_bytes()
    assert mirror_in_process(folder) == first
    assert (folder / "mlflow.db").read_bytes() == before


def test_a_study_that_goes_on_is_followed(study: Study) -> None:
    folder = study(TABLE.slice(0, 12))
    running = mirror_in_process(folder, status="RUNNING")
    early = {run["key"]: run for run in shown(folder / "mlflow.db")}
    assert early["study"]["info"][1] == "RUNNING"
    with Ledger.open(folder) as ledger:
        ledger.commit(TABLE.slice(12))
    finished = mirror_in_process(folder)
    assert finished.run_id == running.run_id
    late = {run["key"]: run for run in shown(folder / "mlflow.db")}
    assert late["study"]["info"][1] == "FINISHED"
    assert set(early["study"]["points"]) < set(late["study"]["points"])
    states = {key: run["tags"].get("sparsefront.front") for key, run in late.items() if key.startswith("front/")}
    with Ledger.read(folder) as ledger:
        members = {page.key for page in build_mirror(ledger, SMALL).nested if page.key.startswith("front/")}
    assert {key for key, state in states.items() if state == "member"} == members
    assert {key for key, state in states.items() if state == "former"} == states.keys() - members
    assert early.keys() <= late.keys()
    assert "former" in states.values()


@pytest.mark.slow
def test_a_study_that_is_left_unfinished_is_killed_and_runs_again_once_it_goes_on(study: Study) -> None:
    folder = study(TABLE.slice(0, 12))
    shows = []
    for status in ("RUNNING", "KILLED", "RUNNING", "FINISHED"):
        mirror_in_process(folder, status=status)
        shows.append({run["key"]: run["info"][1] for run in shown(folder / "mlflow.db")}["study"])
    assert shows == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]


def search_folder(folder: Path, design: SearchDesign, table: pa.Table) -> Path:
    columns = {name: kind for arm in design.arms for name, kind in arm.space.columns if name not in SCHEMA.names}
    header = {"name": design.name, "resolved": {"columns": columns}}
    with Ledger.create(folder, header, digest="e" * 32, versions={}) as ledger:
        ledger.commit(table)
    return folder


def test_recording_a_search_again_says_whether_it_has_ended(empty_store: Path, tmp_path: Path) -> None:
    design = make_search_design(arms={"random": {}}, replicates=1, candidates=4)
    table = make_search_table(design)
    folder = search_folder(tmp_path / "search", design, table.slice(0, 3))
    shutil.copy(empty_store, folder / "mlflow.db")

    def status_after(given: str | None) -> Any:
        record(folder, tracking_uri=None, design=design, report=None, status=given)  # type: ignore[arg-type]
        return {run["key"]: run["info"][1] for run in shown(folder / "mlflow.db")}["study"]

    assert [status_after(given) for given in (None, "RUNNING", None)] == ["KILLED", "RUNNING", "RUNNING"]
    assert [status_after(given) for given in ("FINISHED", None)] == ["FINISHED", "FINISHED"], "its driver knows"
    with Ledger.open(folder) as ledger:
        ledger.commit(table.slice(3))
    status_after("RUNNING")
    assert status_after(None) == "FINISHED"


def test_a_former_member_that_returns_is_a_member_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study()
    mirror_in_process(folder)
    with Ledger.read(folder) as ledger:
        whole = build_mirror(ledger, SMALL)
    without = dataclasses.replace(whole, nested=tuple(p for p in whole.nested if not p.key.startswith("front/")))
    before = shown(folder / "mlflow.db")
    monkeypatch.setattr(record_module, "build_mirror", lambda *_, **__: without)
    mirror_in_process(folder)
    assert {r["tags"]["sparsefront.front"] for r in shown(folder / "mlflow.db") if r["key"].startswith("front/")} == {
        "former"
    }
    monkeypatch.setattr(record_module, "build_mirror", lambda *_, **__: whole)
    mirror_in_process(folder)
    assert shown(folder / "mlflow.db") == before


@pytest.mark.slow
def test_duplicates_are_removed_and_the_oldest_stays(study: Study) -> None:
    folder = study()
    result = mirror_in_process(folder)
    before = shown(folder / "mlflow.db")
    client = record_module._client(f"sqlite:///{folder}/mlflow.db")
    for run in client.search_runs(["1"]):
        tags = run.data.tags | {"sparsefront.created_at": "9999"}
        client.create_run("1", tags=tags, run_name=run.info.run_name)
    assert len(shown(folder / "mlflow.db")) == 2 * len(before)
    assert mirror_in_process(folder) == result
    assert shown(folder / "mlflow.db") == before


@pytest.mark.slow
def test_limits_of_mlflow_are_kept(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study()
    with Ledger.read(folder) as ledger:
        mirror = build_mirror(ledger, dataclasses.replace(SMALL, dataset="x" * 7000))
    assert len(mirror.study.params["dataset"]) == 6000
    params = mirror.study.params | {f"p{i}": "1" for i in range(250)}
    points = tuple(Point("m", float(i), i, i) for i in range(2500))
    large = dataclasses.replace(mirror, study=dataclasses.replace(mirror.study, params=params, points=points))
    monkeypatch.setattr(record_module, "build_mirror", lambda *_, **__: large)
    mirror_in_process(folder)
    run = next(run for run in shown(folder / "mlflow.db") if run["key"] == "study")
    assert len(run["points"]) == 2500
    assert run["params"] == params


def test_the_address_is_the_argument_then_the_environment_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri_of(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri_of(tmp_path, None) == "http://127.0.0.1:1"
    assert tracking_uri_of(tmp_path, "http://127.0.0.1:2") == "http://127.0.0.1:2"


def test_a_store_elsewhere_gets_its_artifacts_in_the_study_and_nothing_in_the_working_directory(
    study: Study, empty_store: Path, tmp_path: Path
) -> None:
    folder = study(store=False)
    shutil.copy(empty_store, tmp_path / "other.db")
    result = mirror_in_process(folder, tracking_uri=f"sqlite:///{tmp_path}/other.db")
    assert (folder / "mlartifacts" / str(result.run_id) / "artifacts" / "verdict.json").exists()
    assert not (folder / "mlflow.db").exists()
    assert not list((tmp_path / "cwd").iterdir())


@pytest.mark.slow
def test_two_ledgers_of_one_study_are_two_runs_in_one_store(study: Study, empty_store: Path, tmp_path: Path) -> None:
    shutil.copy(empty_store, tmp_path / "other.db")
    uri = f"sqlite:///{tmp_path}/other.db"
    one = mirror_in_process(study(name="a"), tracking_uri=uri)
    other = mirror_in_process(study(TABLE.slice(1), name="b"), tracking_uri=uri)
    copy = mirror_in_process(study(name="c"), tracking_uri=uri)
    assert one.run_id != other.run_id
    assert one.run_id == copy.run_id  # the same record, elsewhere
    assert [run["key"] for run in shown(tmp_path / "other.db")].count("study") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b", "a&b=é;+"])
def test_odd_folder_names_are_taken(study: Study, name: str) -> None:
    assert mirror_in_process(study(name=name)).n_members > 0


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b"])
def test_folder_names_that_mlflow_would_misread_are_refused(study: Study, tmp_path: Path, name: str) -> None:
    folder = study(name=name, store=False)
    with pytest.raises(ConfigError, match=r"has one of the characters \? # % .*rename it"):
        mirror_in_process(folder)
    assert {path.name for path in tmp_path.iterdir()} == {name, "cwd"}


def test_what_is_no_store_is_refused_at_once(study: Study, tmp_path: Path) -> None:
    folder = study(store=False)
    (folder / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"mlflow\.db is not a store of MLflow \(file is not a database\): delete it"):
        mirror_in_process(folder)
    (folder / "mlflow.db").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no such table: alembic_version\): delete it"):
        mirror_in_process(folder)
    (folder / "mlflow.db").unlink()
    (folder / "mlflow.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(ConfigError, match=r"is a symbolic link, which is never followed: remove it"):
        mirror_in_process(folder)
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.slow
def test_a_store_that_was_half_made_is_made_again(study: Study, capfd: pytest.CaptureFixture[str]) -> None:
    folder = study(store=False)
    (folder / "mlflow.db.tmp").write_bytes(b"half")
    (folder / "mlflow.db.tmp-journal").write_bytes(b"half")
    assert mirror_in_process(folder).n_members > 0
    assert not list(folder.glob("mlflow.db.*"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_folder_that_was_moved_is_refused(study: Study, tmp_path: Path) -> None:
    folder = study()
    mirror_in_process(folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(
        ConfigError, match=r"keeps its artifacts in file:.*/study/mlartifacts .*move it back, or delete"
    ):
        mirror_in_process(tmp_path / "moved")
    assert not folder.exists()
    (tmp_path / "moved" / "mlflow.db").unlink()


@pytest.mark.slow
def test_what_was_deleted_in_mlflow_is_respected(study: Study) -> None:
    folder = study()
    first = mirror_in_process(folder)
    client = record_module._client(f"sqlite:///{folder}/mlflow.db")
    client.delete_run(first.run_id)
    second = mirror_in_process(folder)
    assert second.run_id != first.run_id
    client.delete_experiment("1")
    with pytest.raises(ConfigError, match=r"experiment='sparsefront/synthetic' was deleted in MLflow at .*restore it"):
        mirror_in_process(folder)


@pytest.mark.slow
def test_a_contradiction_is_named(study: Study) -> None:
    folder = study()
    mirror_in_process(folder)
    with pytest.raises(
        ConfigError, match=r"alpha='0\.1': run \w+ in MLflow says '0\.05', and params cannot be changed"
    ):
        mirror_in_process(folder, design=dataclasses.replace(SMALL, alpha=0.1))


def test_an_error_of_the_ledger_is_the_ledgers(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"study\.json is missing"):
        mirror_in_process(tmp_path / "nothing")


def test_passwords_stay_out_of_messages() -> None:
    assert without_password("postgresql://me:s3cret@host:5/db") == "postgresql://me:***@host:5/db"
    assert without_password("http://[broken") == "http://[broken"
    error = RuntimeError("cannot reach postgresql://me:s3cret@host:5/db\nmore")
    text = record_module._one_line(error, "postgresql://me:s3cret@host:5/db")
    assert text == "RuntimeError: cannot reach postgresql://me:***@host:5/db"


@pytest.mark.slow
def test_the_module_is_imported_without_mlflow() -> None:
    """The driver imports it, and must not wait for MLflow nor load it."""
    code = "import sys, sparsefront.cluster.record; sys.exit('mlflow' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


@pytest.mark.slow
def test_a_child_does_the_same_and_leaves_nothing_in_the_working_directory(study: Study, tmp_path: Path) -> None:
    here, there = study(name="here"), study(name="there", store=False)
    mirror_in_process(here)
    result = record_in_process(there, tracking_uri=None, design=SMALL, report=None, timeout_s=120)
    assert result == RecordResult(True, result.run_id, f"sqlite:///{there}/mlflow.db", result.n_members, None)
    expected = [run | {"tags": without_study_json(run["tags"])} for run in shown(here / "mlflow.db")]
    assert [run | {"tags": without_study_json(run["tags"])} for run in shown(there / "mlflow.db")] == expected
    assert not list((tmp_path / "cwd").iterdir())


def without_study_json(tags: dict[str, str]) -> dict[str, str]:
    """The two folders have different study.json: that is in the tag of the artifacts' digests."""
    artifacts = json.loads(tags.get("sparsefront.artifacts", "{}"))
    return tags | {"sparsefront.artifacts": json.dumps(artifacts | {"study.json": ""})}


@pytest.mark.slow
def test_a_child_says_in_one_line_what_went_wrong(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, **changes: Any) -> str:
        order = {"tracking_uri": None, "design": SMALL, "report": None, "timeout_s": 120} | changes
        result = record_in_process(folder, **order)
        assert (result.exported, result.run_id, result.n_members) == (False, None, 0)
        assert result.error is not None
        assert "\n" not in result.error
        return result.error

    assert "study.json is missing" in fail(tmp_path / "nothing")
    folder = study()
    assert "page.html' is not there: make it first" in fail(folder, report=tmp_path / "page.html")
    assert "took too long and was ended" in fail(folder, timeout_s=0.2)
    assert "nonsense" in fail(folder, tracking_uri="nonsense://me:s3cret@host/")
    assert "s3cret" not in fail(folder, tracking_uri="nonsense://me:s3cret@host/")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert "could not start" in fail(folder)
    (tmp_path / "broken-python").write_text("#!/bin/sh\necho oh dear >&2\nexit 3\n")
    (tmp_path / "broken-python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "broken-python"))
    assert fail(folder).endswith("ended with code 3: oh dear")


@pytest.mark.slow
def test_exports_at_the_same_time_make_no_duplicates(study: Study) -> None:
    folder = study()
    results: list[RecordResult] = []

    def export() -> None:
        results.append(record_in_process(folder, tracking_uri=None, design=SMALL, report=None, timeout_s=200))

    threads = [threading.Thread(target=export) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.error for result in results] == [None] * 3
    keys = [run["key"] for run in shown(folder / "mlflow.db")]
    assert len(keys) == len(set(keys))
    assert len({result.run_id for result in results}) == 1


@pytest.mark.slow
def test_the_live_recorder_exports_now_and_then_and_at_the_end(study: Study) -> None:
    folder = study(TABLE.slice(0, 12))
    recorder = LiveRecorder(folder, tracking_uri=None, design=SMALL, every_s=60.0, n_planned=8)
    recorder.maybe_export(0.0)
    assert recorder._child is None  # not started yet
    recorder.start(100.0)
    recorder.maybe_export(159.0)
    assert recorder._child is None
    recorder.maybe_export(160.0)
    child = recorder._child
    assert child is not None
    recorder.maybe_export(161.0)
    assert recorder._child is child  # never more than one
    child.process.wait()
    recorder.maybe_export(170.0)
    assert recorder._child is None
    assert recorder.last is not None
    assert recorder.last.error is None
    assert {run["key"]: run["info"][1] for run in shown(folder / "mlflow.db")}["study"] == "RUNNING"
    recorder.maybe_export(259.0)
    assert recorder._child is None  # rests nine times the 10 s that the last one took
    with Ledger.open(folder) as ledger:
        ledger.commit(TABLE.slice(12))
    recorder.maybe_export(260.0)
    assert recorder._child is not None
    result = recorder.finish(120.0)  # does not wait for the one that runs
    assert result == recorder.last
    assert result.error is None
    once = study(name="once")
    mirror_in_process(once, n_planned=8)
    runs = {run["key"]: run for run in shown(folder / "mlflow.db")}
    assert runs["study"]["info"][1] == "FINISHED"
    assert {key for key, run in runs.items() if run["tags"].get("sparsefront.front") != "former"} == {
        run["key"] for run in shown(once / "mlflow.db")
    }


@pytest.mark.slow
def test_the_live_recorder_ends_a_late_export_and_goes_on(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    folder = study()
    recorder = LiveRecorder(folder, tracking_uri=None, design=SMALL, every_s=1.0, timeout_s=50.0)
    recorder.start(0.0)
    with caplog.at_level(logging.WARNING):
        for begun in (1.0, 1000.0):
            recorder.maybe_export(begun)
            child = recorder._child
            assert child is not None
            recorder.maybe_export(begun + 51.0)
            assert recorder._child is None
            assert child.process.returncode is not None
    assert recorder.last is not None
    assert "took too long" in str(recorder.last.error)
    assert len(caplog.records) == 1  # said once, not every time
    assert recorder.finish(120.0).error is None


@pytest.mark.slow
def test_the_live_recorder_shows_what_is_left_unfinished_as_killed(study: Study) -> None:
    folder = study(TABLE.slice(0, 12))
    recorder = LiveRecorder(folder, tracking_uri=None, design=SMALL, every_s=1.0)
    recorder.start(0.0)
    recorder.maybe_export(1.0)
    child = recorder._child
    assert child is not None
    child.process.wait()
    assert shown(folder / "mlflow.db")[-1]["info"][1] == "RUNNING"
    recorder.close(120.0)
    assert recorder.last is not None
    assert recorder.last.error is None
    assert shown(folder / "mlflow.db")[-1]["info"][1] == "KILLED"
    recorder.finish(120.0)
    recorder.close()
    assert shown(folder / "mlflow.db")[-1]["info"][1] == "FINISHED"


def test_the_live_recorder_closes_without_an_export_where_none_was_begun(study: Study) -> None:
    folder = study()
    recorder = LiveRecorder(folder, tracking_uri=None, design=SMALL, every_s=60.0)
    recorder.start(0.0)
    recorder.maybe_export(1.0)
    recorder.close()
    assert recorder.last is None
    assert shown(folder / "mlflow.db") == []


def test_the_live_recorder_never_raises(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = LiveRecorder(study(), tracking_uri=None, design=SMALL, every_s=1.0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    recorder.start(0.0)
    recorder.maybe_export(1.0)
    assert recorder.last is not None
    assert "could not start" in str(recorder.last.error)
    assert "could not start" in str(recorder.finish(1.0).error)
