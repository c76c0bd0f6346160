"""The MLflow mirror: writes a study, its arms and its front into MLflow, and never reads them back as a record.

Everything written is a function of the ledger (``mirror``), so an export can be cut anywhere, run beside a live
driver and run again at any time: it finds what is there by its tags, adds what is missing and repairs the rest. The
only module that imports mlflow, and only inside the functions that need it: the import takes over a second, and the
driver, which exports through a child process, does without.

Not here: what is shown (``mirror``) and the record itself (``search.ledger``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import fcntl
import hashlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from sparsefront.cluster.mirror import STUDY_KEY, Mirror, Page, build_mirror
from sparsefront.cluster.search_mirror import build_search_mirror
from sparsefront.errors import ConfigError, LedgerError, SparsefrontError
from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.ledger import Ledger
from sparsefront.search.ledger.header import read_header
from sparsefront.search.resolved import design_of

log = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "KILLED"]

#: Tags that an export finds its runs by: the ledger that a run mirrors, and what of it.
LEDGER_TAG = "sparsefront.ledger"
KEY_TAG = "sparsefront.key"
_CREATED_TAG = "sparsefront.created_at"
_CONTENT_TAG = "sparsefront.content"
_ARTIFACTS_TAG = "sparsefront.artifacts"
_FRONT_TAG = "sparsefront.front"

#: Limits of one ``log_batch`` (MLflow REST API) and of a page of ``search_runs``.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_RUNS_PER_PAGE = 1000

#: A child tries the whole export again, since one lost reply must not cost it; MLflow's own retries stay off in the
#: child, because they repeat a ``create_run`` whose reply was lost and so make duplicates.
_ATTEMPTS = 3
_PAUSE_S = 1.0
_REQUEST_TIMEOUT_S = 30
#: Between live exports pass at least this many times the seconds of the last one: 10% of a core at most.
_REST_FACTOR = 9.0
#: Seconds that whoever interrupts a study waits for MLflow at most.
_CLOSE_S = 20.0


@dataclass(frozen=True)
class RecordResult:
    """What became of one export.

    ``tracking_uri`` has no password in it; ``error`` is one line, None if the mirror now shows the whole ledger.
    """

    exported: bool
    run_id: str | None
    tracking_uri: str
    n_members: int
    error: str | None


def record(
    folder: Path,
    *,
    tracking_uri: str | None,
    design: Design | SearchDesign,
    report: Path | None,
    status: Status | None = None,
    n_planned: int | None = None,
) -> RecordResult:
    """Mirror a study into MLflow, in this process.

    Idempotent: a second export of the same ledger changes nothing. Safe beside a live driver, which it only reads.

    Args:
        folder: the study's folder.
        tracking_uri: of the MLflow store; None takes ``MLFLOW_TRACKING_URI``, else an SQLite file in ``folder``.
        design: the study's design.
        report: HTML page to attach as ``report.html``, if there is one.
        status: MLflow status of the study's run. None leaves that of a search which its rows do not show to have ended,
            or is KILLED if MLflow does not know it yet; else it is FINISHED.
        n_planned: trainings that the study will have done at its end, for the progress tag.

    Returns:
        The result, always with ``exported`` true.

    Raises:
        ConfigError: if the folder cannot hold an SQLite store, a run in MLflow contradicts the study, or there is no
            such report.
        LedgerError: if the ledger is damaged or still empty.
        Exception: whatever MLflow raises when its store is down, slow or full.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = Path(folder).resolve()
    uri = tracking_uri_of(folder, tracking_uri)
    # Read under the lock: an export that waited must not write what was true before it waited.
    with _only_exporter(folder):
        with Ledger.read(folder) as ledger:
            if isinstance(design, SearchDesign):
                is_finished = status == "FINISHED"
                mirror = build_search_mirror(ledger, design, n_planned=n_planned, is_finished=is_finished)
            else:
                mirror = build_mirror(ledger, design, n_planned=n_planned)
        artifacts = dict(mirror.artifacts)
        artifacts["study.json"] = (folder / "study.json").read_bytes()
        if report is not None:
            if not Path(report).is_file():
                raise ConfigError(f"report={str(report)!r} is not there: make it first, or record without it")
            artifacts["report.html"] = Path(report).read_bytes()
        with _quiet():
            if uri == _folder_uri(folder):
                _prepare_store(folder)
            run_id = _Export(folder, uri, mirror).run(artifacts, status)
    return RecordResult(True, run_id, without_password(uri), mirror.n_members, None)


def record_in_process(
    folder: Path,
    *,
    tracking_uri: str | None,
    design: Design | SearchDesign,
    report: Path | None,
    timeout_s: float,
    status: Status | None = None,
    n_planned: int | None = None,
) -> RecordResult:
    """Mirror a study into MLflow from a child process that is ended when it is late; never raises.

    Args:
        folder: see :func:`record`, as the other arguments.
        tracking_uri: see :func:`record`.
        design: see :func:`record`.
        report: see :func:`record`.
        timeout_s: seconds after which the child is ended.
        status: see :func:`record`.
        n_planned: see :func:`record`.

    Returns:
        The result; ``error`` says in one line why nothing, or not everything, was exported.
    """
    child = _Child.start(folder, tracking_uri, design, report, timeout_s, status, n_planned)
    return child if isinstance(child, RecordResult) else child.wait(timeout_s)


class LiveRecorder:
    """Keeps the mirror up to date while a study runs, from one child process at a time.

    Nothing here raises; only :meth:`finish` and :meth:`close` wait. The child runs at low priority, and rests nine
    times as long as it worked.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tracking_uri: str | None,
        design: Design | SearchDesign,
        every_s: float = 60.0,
        timeout_s: float = 300.0,
        n_planned: int | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._tracking_uri = tracking_uri
        self._design = design
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._n_planned = n_planned
        self._child: _Child | None = None
        self._started_s = 0.0
        self._due_s: float | None = None
        self._is_shown_running = False
        self._last: RecordResult | None = None

    @property
    def last(self) -> RecordResult | None:
        """Result of the last export that ended, for the progress display."""
        return self._last

    def start(self, now: float) -> None:
        """Arm the recorder: the first export is due ``every_s`` after ``now``."""
        self._due_s = now + self._every_s

    def maybe_export(self, now: float) -> None:
        """Start an export if one is due and none runs; collect the one that ended; end the one that is late.

        Args:
            now: seconds of a monotonic clock, the same as given to :meth:`start`.
        """
        if self._child is not None:
            late = now - self._started_s > self._timeout_s
            if not late and not self._child.ended():
                return
            self._note(self._child.wait(0.0))
            self._child = None
            self._due_s = now + max(self._every_s, _REST_FACTOR * (now - self._started_s))
        if self._due_s is None or now < self._due_s:
            return
        child = self._spawn("RUNNING", self._timeout_s, None)
        if isinstance(child, RecordResult):
            self._note(child)
            self._due_s = now + self._every_s
        else:
            self._child, self._started_s = child, now
            self._is_shown_running = True

    def finish(self, timeout_s: float, *, report: Path | None = None, status: Status = "FINISHED") -> RecordResult:
        """End the export that runs, which the last one supersedes, and make the last one.

        Args:
            timeout_s: seconds to wait for it.
            report: HTML page to attach.
            status: MLflow status of the study's run from now on.

        Returns:
            The result of the last export.
        """
        if self._child is not None:
            self._child.wait(0.0)
            self._child = None
        self._due_s = None
        self._is_shown_running = False
        child = self._spawn(status, timeout_s, report)
        self._note(child if isinstance(child, RecordResult) else child.wait(timeout_s))
        assert self._last is not None
        return self._last

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Show a study that is left unfinished as KILLED, if it was shown as running; it runs again once it goes on.

        Args:
            timeout_s: seconds to wait for it.
        """
        if self._is_shown_running:
            self.finish(timeout_s, status="KILLED")

    def _spawn(self, status: Status, timeout_s: float, report: Path | None) -> _Child | RecordResult:
        return _Child.start(self._folder, self._tracking_uri, self._design, report, timeout_s, status, self._n_planned)

    def _note(self, result: RecordResult) -> None:
        if result.error is not None and (self._last is None or self._last.error != result.error):
            log.warning("MLflow: %s; a later export makes up for it", result.error)
        self._last = result


def tracking_uri_of(folder: Path, given: str | None) -> str:
    """Find where a study is mirrored to: the argument, else ``MLFLOW_TRACKING_URI``, else SQLite in its folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or _folder_uri(Path(folder).resolve())


def without_password(uri: str) -> str:
    """Blank the password of an address, for messages.

    >>> without_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    >>> without_password("sqlite:////runs/a/mlflow.db")
    'sqlite:////runs/a/mlflow.db'
    """
    secret = _password(uri)
    return uri.replace(f":{secret}@", ":***@", 1) if secret else uri


def _password(uri: str) -> str | None:
    try:
        return urlsplit(uri).password or None
    except ValueError:
        return None


def _folder_uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's progress reports off the terminal; its errors reach us as exceptions."""
    import mlflow  # noqa: F401  (sets the level of its logger when it is imported)

    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _only_exporter(folder: Path) -> Iterator[None]:
    """Let one export of a folder run at a time: two could both find a run missing, and make it twice."""
    try:
        descriptor = os.open(folder / "study.json", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # the ledger says what is wrong
        yield
        return
    try:
        # Locking what is only read needs no new file, and works in folders that cannot be written. Where locks are
        # not supported the export still heals duplicates.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _prepare_store(folder: Path) -> None:
    """Make the SQLite store of a study, if there is none yet, and refuse what is no store.

    MLflow creates its tables step by step, and a store that was cut in between can never be opened again: so it is made
    under another name, and renamed when it is whole. What MLflow would try for two minutes to open is refused here.
    """
    store = folder / "mlflow.db"
    if set("?#%") & set(str(folder)):
        raise ConfigError(
            f"folder={str(folder)!r} has one of the characters ? # % that MLflow's SQLite addresses cannot carry: "
            "rename it, or give the address of an MLflow server"
        )
    if store.is_symlink() or (folder / "mlartifacts").is_symlink():
        raise ConfigError(f"{store} or mlartifacts beside it is a symbolic link, which is never followed: remove it")
    if store.exists():
        try:
            with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=rw", uri=True)) as connection:
                connection.execute("SELECT count(*) FROM alembic_version").fetchone()
        except sqlite3.Error as error:
            raise ConfigError(
                f"{store} is not a store of MLflow ({error}): delete it and record again, it is only a mirror"
            ) from error
        return
    fresh = folder / "mlflow.db.tmp"
    for leftover in (fresh, fresh.with_name("mlflow.db.tmp-journal")):
        leftover.unlink(missing_ok=True)
    try:
        fresh.touch()
    except OSError as error:
        raise ConfigError(
            f"folder={str(folder)!r} cannot be written ({error.strerror}), and it has no MLflow store yet: "
            "make it writable, or give the address of an MLflow server"
        ) from error
    _client(f"sqlite:///{fresh}").search_experiments(max_results=1)
    fresh.rename(store)


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    # Both addresses given, so that nothing falls back on a store in the working directory.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class _Export:
    """One export into one store. Order: find, create what is missing, drop what is double, then fill."""

    def __init__(self, folder: Path, uri: str, mirror: Mirror) -> None:
        self._folder = folder
        self._uri = uri
        self._mirror = mirror
        self._client = _client(uri)

    def run(self, artifacts: Mapping[str, bytes], status: Status | None) -> str:
        """Bring MLflow up to date; returns the id of the study's run."""
        experiment = self._experiment()
        found = self._found(experiment)
        shown: str = status or "FINISHED"
        if status is None and self._mirror.is_complete is False:
            shown = found[STUDY_KEY].info.status if STUDY_KEY in found else "KILLED"
        pages = {page.key: page for page in (self._mirror.study, *self._mirror.nested)}
        if STUDY_KEY not in found:
            self._create(experiment, self._mirror.study, None)
            found = self._found(experiment)
        parent = str(found[STUDY_KEY].info.run_id)
        missing = [page for key, page in pages.items() if key not in found]
        for page in missing:
            self._create(experiment, page, parent)
        if missing:
            found = self._found(experiment)
        for page in self._mirror.nested:
            self._fill(found[page.key], page, parent)
            self._close(found[page.key], "FINISHED")
        for key, run in found.items():
            if key not in pages and run.data.tags.get(_FRONT_TAG, "former") != "former":
                self._client.set_tag(run.info.run_id, _FRONT_TAG, "former")
        self._fill(found[STUDY_KEY], self._mirror.study, None)
        self._attach(found[STUDY_KEY], artifacts)
        self._close(found[STUDY_KEY], shown)
        return parent

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._mirror.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            # A database store would put the artifacts under the working directory; a server knows its own place.
            is_server = urlsplit(self._uri).scheme in ("http", "https")
            place = None if is_server else (self._folder / "mlartifacts").as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(name)
        if experiment.lifecycle_stage != "active":
            raise ConfigError(
                f"experiment={name!r} was deleted in MLflow at {without_password(self._uri)}: restore it there "
                "(mlflow experiments restore), or remove it for good (mlflow gc), then record again"
            )
        place = (self._folder / "mlartifacts").as_uri()
        if self._uri == _folder_uri(self._folder) and experiment.artifact_location != place:
            raise ConfigError(
                f"{self._folder / 'mlflow.db'} keeps its artifacts in {experiment.artifact_location} (was the folder "
                "moved?): move it back, or delete mlflow.db and record again, it is only a mirror"
            )
        return str(experiment.experiment_id)

    def _found(self, experiment: str) -> dict[str, Any]:
        """Runs that mirror this ledger, by key; of duplicates the oldest is kept and the others are deleted.

        A duplicate comes from a request that MLflow carried out although its reply was lost, or late.
        """
        found: dict[str, Any] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [experiment],
                f"tags.`{LEDGER_TAG}` = '{self._mirror.ledger_id}'",
                max_results=_RUNS_PER_PAGE,
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get(KEY_TAG, "")
                kept = found.setdefault(key, run)
                if kept is not run:
                    older, younger = sorted((kept, run), key=_age)
                    found[key] = older
                    self._client.delete_run(younger.info.run_id)
            token = page.token
            if not token:
                return found

    def _create(self, experiment: str, page: Page, parent: str | None) -> None:
        tags = {
            LEDGER_TAG: self._mirror.ledger_id,
            KEY_TAG: page.key,
            _CREATED_TAG: dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"),
        }
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        self._client.create_run(experiment, start_time=self._mirror.started_ms, tags=tags, run_name=page.name)

    def _fill(self, run: Any, page: Page, parent: str | None) -> None:
        from mlflow.entities import Metric, Param, RunTag

        have = run.data.tags
        content = _content(page)
        tags = {key: value for key, value in page.tags.items() if have.get(key) != value}
        if parent is not None and have.get("mlflow.parentRunId") != parent:
            tags["mlflow.parentRunId"] = parent
        if have.get(_CONTENT_TAG) == content and not tags:
            return
        contradiction = next((k for k, v in page.params.items() if run.data.params.get(k, v) != v), None)
        if contradiction is not None:
            raise ConfigError(
                f"{contradiction}={page.params[contradiction]!r}: run {run.info.run_id} in MLflow says "
                f"{run.data.params[contradiction]!r}, and params cannot be changed there: delete that run, record again"
            )
        params = [Param(k, v) for k, v in page.params.items() if k not in run.data.params]
        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step) for p in page.points]
        for i in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run.info.run_id, metrics=metrics[i : i + _METRICS_PER_BATCH])
        for i in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(run.info.run_id, params=params[i : i + _PARAMS_PER_BATCH])
        # Last, for it says that the rest is there.
        tags[_CONTENT_TAG] = content
        self._client.log_batch(run.info.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def _attach(self, run: Any, artifacts: Mapping[str, bytes]) -> None:
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in artifacts.items()}
        try:
            have = json.loads(run.data.tags.get(_ARTIFACTS_TAG, "{}"))
        except ValueError:
            have = {}
        changed = [name for name in artifacts if have.get(name) != digests[name]]
        if not changed:
            return
        with tempfile.TemporaryDirectory(prefix="sparsefront-") as scratch:
            for name in changed:
                path = Path(scratch, name)
                path.write_bytes(artifacts[name])
                self._client.log_artifact(run.info.run_id, str(path))
        self._client.set_tag(run.info.run_id, _ARTIFACTS_TAG, json.dumps(have | digests, sort_keys=True))

    def _close(self, run: Any, status: str) -> None:
        if status == "RUNNING":
            if run.info.status != status:
                self._client.update_run(run.info.run_id, status=status)
        elif run.info.status != status or run.info.end_time != self._mirror.ended_ms:
            self._client.set_terminated(run.info.run_id, status=status, end_time=self._mirror.ended_ms)


def _age(run: Any) -> tuple[str, str]:
    return run.data.tags.get(_CREATED_TAG, ""), run.info.run_id


def _content(page: Page) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(page), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Child:
    """An export in a process of its own: asked through its standard input, answering on its standard output."""

    process: subprocess.Popen[bytes]
    complaints: IO[bytes]
    tracking_uri: str

    @classmethod
    def start(
        cls,
        folder: Path,
        tracking_uri: str | None,
        design: Design | SearchDesign,
        report: Path | None,
        timeout_s: float,
        status: Status | None,
        n_planned: int | None,
    ) -> _Child | RecordResult:
        uri = tracking_uri_of(folder, tracking_uri)
        order = {
            "folder": str(folder),
            "tracking_uri": tracking_uri,
            "design": dataclasses.asdict(design) if isinstance(design, Design) else None,
            "report": None if report is None else str(report),
            "status": status,
            "n_planned": n_planned,
            "timeout_s": timeout_s,
        }
        try:
            # A file, since a full pipe would block the child.
            complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed here on failure, else in wait)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "sparsefront.cluster.record"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    env=_environment(timeout_s),
                    start_new_session=True,  # Ctrl-C is for the driver, which then decides
                )
            except BaseException:
                complaints.close()
                raise
        except OSError as error:
            return RecordResult(False, None, without_password(uri), 0, f"export could not start: {error}")
        with contextlib.suppress(OSError):  # a child that died at once answers for itself in wait
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        return cls(process, complaints, without_password(uri))

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, timeout_s: float) -> RecordResult:
        """Give its answer; end it if it takes longer than ``timeout_s``."""
        late = False
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            late = True
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        with self.complaints, self.process.stdout as answers:
            answer = answers.read()
            self.complaints.seek(0)
            said = self.complaints.read().decode(errors="replace")
        try:
            return RecordResult(**json.loads(answer))
        except (ValueError, TypeError):
            return self._failed(f"export to {self.tracking_uri} {self._why(said, late=late)}")

    def _why(self, said: str, *, late: bool) -> str:
        if late or self.process.returncode == -signal.SIGALRM:
            return "took too long and was ended: run it again, it goes on where it was"
        lines = [line for line in said.splitlines() if line.strip()]
        return f"ended with code {self.process.returncode}: {lines[-1] if lines else 'it said nothing'}"

    def _failed(self, error: str) -> RecordResult:
        return RecordResult(False, None, self.tracking_uri, 0, error)


def _environment(timeout_s: float) -> dict[str, str]:
    """Environment of a child: no telemetry, no chatter, no request that outlives it, and the parent's import path."""
    return os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, min(_REQUEST_TIMEOUT_S, int(timeout_s / 2)))),
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(max(1, min(_REQUEST_TIMEOUT_S, int(timeout_s / 2)))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _design_of(order: Mapping[str, Any]) -> Design | SearchDesign:
    """The design that was sent, or that of the study itself: a space is no plain data."""
    if order["design"] is None:
        return design_of(read_header(Path(order["folder"]) / "study.json").study)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in order["design"].items()}
    return Design(**given)


def _one_line(error: BaseException, uri: str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    text = text if isinstance(error, SparsefrontError) else f"{type(error).__name__}: {text}"
    secret = _password(uri)
    return text.replace(secret, "***") if secret else text


def _answer(order: Mapping[str, Any]) -> RecordResult:
    """Do what the parent asked for, up to ``_ATTEMPTS`` times."""
    folder = Path(order["folder"])
    uri = tracking_uri_of(folder, order["tracking_uri"])
    for attempt in range(_ATTEMPTS):
        try:
            return record(
                folder,
                tracking_uri=order["tracking_uri"],
                design=_design_of(order),
                report=None if order["report"] is None else Path(order["report"]),
                status=order["status"],
                n_planned=order["n_planned"],
            )
        except (ConfigError, LedgerError) as error:  # trying again would not help
            return RecordResult(False, None, without_password(uri), 0, _one_line(error, uri))
        except Exception as error:
            # The process boundary: whatever MLflow, its drivers and plug-ins raise goes to the parent as text.
            if attempt == _ATTEMPTS - 1:
                text = f"export to {without_password(uri)} failed: {_one_line(error, uri)}"
                return RecordResult(False, None, without_password(uri), 0, text)
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def main(arguments: Sequence[str] = ()) -> int:
    """Export as a child process: one order in JSON on standard input, one answer in JSON on standard output."""
    del arguments
    # MLflow prints to standard output now and then; the answer must be alone there.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.load(sys.stdin)
    # The parent may be gone when the time is up: the alarm's default action then ends this process.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, order["timeout_s"]))
    with contextlib.suppress(OSError):
        os.nice(10)
    with answers:
        json.dump(dataclasses.asdict(_answer(order)), answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
