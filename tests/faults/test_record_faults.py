"""The mirror against servers that refuse, hang, fail, or lose replies, and against its own death at any moment.

In every case: the export returns an error or heals, and a later export to a sound store shows the study exactly once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import os
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sparsefront.cluster.mirror import build_mirror
from sparsefront.cluster.record import LEDGER_TAG, RecordResult, record, record_in_process
from sparsefront.search.design import Design
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA
from tests import synthetic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.fault,
    # MLflow 3.17 uses what SQLAlchemy 2.1 deprecates, and leaves connections to the garbage collector.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


#: As few runs as possible in MLflow: the study, one arm, one member of the front.
TINY: Design = synthetic.build_design(
    replicates=1, draws=2, random_draws=2, arms=("random",), sparsities=(0.5,), objectives=("val_error",)
)
TABLE: pa.Table = synthetic.build_table(TINY)
N_RUNS = 3
#: Tags of whoever exports, and when; and the digests of artifacts, which hold the ledger's times to the microsecond.
VOLATILE = ("sparsefront.created_at", "sparsefront.artifacts", LEDGER_TAG, "mlflow.parentRunId")

Study = Callable[..., Path]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Make a ledger that no other test has: all its commits are some microseconds later."""

    def make(number: int) -> Path:
        later = pc.add(TABLE["committed_at"], pa.scalar(dt.timedelta(microseconds=number % 1000)))
        table = TABLE.set_column(SCHEMA.get_field_index("committed_at"), SCHEMA.field("committed_at"), later)
        folder = tmp_path / f"study{number}"
        with Ledger.create(folder, {"name": "study"}, digest=f"{number:032x}", versions={}) as ledger:
            ledger.commit(table)
        return folder

    return make


def ledger_id(folder: Path) -> str:
    with Ledger.read(folder) as ledger:
        return build_mirror(ledger, TINY).ledger_id


def shown(store: Path, folder: Path) -> list[tuple[Any, ...]]:
    """What an MLflow store shows of a ledger, read beside MLflow, without what differs between equal exports."""
    with contextlib.closing(sqlite3.connect(store)) as db:
        rows = db.execute(
            "SELECT r.run_uuid, r.name, r.status, r.start_time, r.end_time FROM runs r JOIN tags t USING (run_uuid) "
            "WHERE r.lifecycle_stage = 'active' AND t.key = ? AND t.value = ?",
            (LEDGER_TAG, ledger_id(folder)),
        ).fetchall()
        found = []
        for uuid, *info in rows:
            tags = dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (uuid,)))
            parent = tags.get("mlflow.parentRunId")
            assert parent is None or parent in {row[0] for row in rows}
            params = dict(db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (uuid,)))
            found.append(
                (
                    info,
                    sorted((k, v) for k, v in tags.items() if k not in VOLATILE and "digest" not in k),
                    sorted((k, v) for k, v in params.items() if k != "study_digest"),
                    sorted(db.execute("SELECT key, value, timestamp, step FROM metrics WHERE run_uuid = ?", (uuid,))),
                )
            )
    return sorted(found, key=lambda run: str(run[0][0]))


def without_content(runs: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The study's digest is among the params that its content's digest covers."""
    return [(info, [tag for tag in tags if tag[0] != "sparsefront.content"], *rest) for info, tags, *rest in runs]


class Server:
    """A real MLflow server on loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = folder / "server.db"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--backend-store-uri", f"sqlite:///{self.store}"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if b"startup complete" in line:
                break
        else:
            raise AssertionError(b"".join(said).decode())
        # Read on, lest the pipe fills and the server blocks.
        self._reader = threading.Thread(target=self.process.stdout.read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # its own session: itself and its workers
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[str]:
    """Serve from a thread; gives the address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield f"http://{host!s}:{port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to a server, but loses the k-th: before it, or only the reply to it."""

    upstream: ClassVar[int]
    lost: ClassVar[int | None] = None
    before: ClassVar[bool] = False
    n_requests: ClassVar[int] = 0
    counting: ClassVar[threading.Lock] = threading.Lock()

    def relay(self) -> None:
        with Proxy.counting:
            is_lost = Proxy.n_requests == Proxy.lost
            Proxy.n_requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        if is_lost and Proxy.before:
            return
        upstream = http.client.HTTPConnection("127.0.0.1", Proxy.upstream)
        with contextlib.closing(upstream):
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            upstream.request(self.command, self.path, body, headers)
            with upstream.getresponse() as reply:
                content = reply.read()
        if is_lost:
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = relay  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def proxy(server: Server) -> Iterator[str]:
    Proxy.upstream, Proxy.lost, Proxy.before, Proxy.n_requests = server.port, None, False, 0
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Proxy)) as uri:
        yield uri


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """MLflow in this process: no retries, no pauses."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    return monkeypatch


def export(folder: Path, uri: str) -> RecordResult:
    return record(folder, tracking_uri=uri, design=TINY, report=None)


def export_in_process(folder: Path, uri: str, timeout_s: float = 120.0) -> RecordResult:
    return record_in_process(folder, tracking_uri=uri, design=TINY, report=None, timeout_s=timeout_s)


def test_a_server_shows_what_a_file_shows(server: Server, study: Study) -> None:
    folder = study(1)
    assert export_in_process(folder, server.uri).error is None
    there = shown(server.store, folder)
    assert export_in_process(folder, f"sqlite:///{folder}/mlflow.db").error is None
    assert there == shown(folder / "mlflow.db", folder)
    assert len(there) == N_RUNS
    assert export(folder, server.uri).error is None
    assert shown(server.store, folder) == there
    names = {"front.parquet", "verdict.json", "study.json"}
    assert {path.name for path in (server.store.parent / "artifacts").rglob("*.*")} >= names


@pytest.mark.parametrize("lost", ["the request", "the reply"])
def test_any_message_may_be_lost(
    server: Server, proxy: str, study: Study, impatient: pytest.MonkeyPatch, lost: str
) -> None:
    first = 10_000 if lost == "the request" else 20_000
    expected, n_requests = reference(server, proxy, study(first))
    Proxy.before = lost == "the request"
    for k in range(n_requests):
        folder = study(first + 1 + k)
        Proxy.lost, Proxy.n_requests = k, 0
        with pytest.raises(Exception, match=r"Connection aborted|RemoteDisconnected|Max retries|without response"):
            export(folder, proxy)
        assert export(folder, server.uri).error is None
        assert without_content(shown(server.store, folder)) == expected, f"request {k} of {n_requests}"


def test_requests_that_mlflow_itself_repeats_make_no_duplicates(
    server: Server, proxy: str, study: Study, impatient: pytest.MonkeyPatch
) -> None:
    expected, n_requests = reference(server, proxy, study(30_000))
    impatient.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    for k in range(n_requests):
        folder = study(30_001 + k)
        Proxy.lost, Proxy.n_requests = k, 0
        assert export(folder, proxy).error is None
        assert without_content(shown(server.store, folder)) == expected, f"request {k} of {n_requests}"


def reference(server: Server, proxy: str, folder: Path) -> tuple[list[tuple[Any, ...]], int]:
    """What an undisturbed export shows, and the number of requests that a first one takes."""
    assert export(folder, proxy).error is None
    runs = without_content(shown(server.store, folder))
    assert len(runs) == N_RUNS
    return runs, Proxy.n_requests


def test_a_child_survives_one_lost_reply(server: Server, proxy: str, study: Study) -> None:
    for number, k in enumerate((1, 3, 8)):
        folder = study(40_000 + number)
        Proxy.lost, Proxy.n_requests = k, 0
        assert export_in_process(folder, proxy).error is None
        assert Proxy.n_requests > k
        assert len(shown(server.store, folder)) == N_RUNS


class Failing(BaseHTTPRequestHandler):
    """Answers everything with one status and one body."""

    status: ClassVar[int]
    body: ClassVar[bytes]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Retry-After", "3600")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "status", "body"),
    [(1, 500, b"oops"), (2, 503, b""), (3, 429, b"{}"), (4, 200, b"<html>log in</html>"), (5, 403, b"no")],
)
def test_a_failing_server_is_an_error_and_no_more(
    server: Server, study: Study, number: int, status: int, body: bytes
) -> None:
    folder = study(50_000 + number)
    handler = type("Handler", (Failing,), {"status": status, "body": body})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as uri:
        result = export_in_process(folder, uri)
    assert not result.exported
    assert str(result.error).startswith(f"export to {uri} failed: ")
    assert_one_afterwards(server, folder)


def test_a_refusing_server_is_an_error_and_no_more(server: Server, study: Study) -> None:
    folder = study(60_000)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        result = export_in_process(folder, f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert "failed: MlflowException" in str(result.error)
    assert_one_afterwards(server, folder)


def test_a_hanging_server_is_an_error_and_no_more(server: Server, study: Study) -> None:
    folder = study(70_000)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()  # the kernel accepts, and nobody ever answers
        uri = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        assert "took too long and was ended" in str(export_in_process(folder, uri, timeout_s=6.0).error)
    assert_one_afterwards(server, folder)


def test_a_server_that_never_ends_its_reply_is_an_error_and_no_more(server: Server, study: Study) -> None:
    folder = study(80_000)
    done = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with contextlib.suppress(OSError):  # the child is gone
                while not done.wait(0.2):
                    self.wfile.write(b" ")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Dripping)) as uri:
        assert "took too long and was ended" in str(export_in_process(folder, uri, timeout_s=6.0).error)
        done.set()
    assert_one_afterwards(server, folder)


def assert_one_afterwards(server: Server, folder: Path) -> None:
    assert export_in_process(folder, server.uri).error is None
    assert len(shown(server.store, folder)) == N_RUNS
    assert len({run[0][0] for run in shown(server.store, folder)}) == N_RUNS


DYING = """
import os, sys
from pathlib import Path
import sqlalchemy
from sparsefront.cluster.record import record
from sparsefront.search.design import Design
left = int(sys.argv[1])
def count(*_):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
for what in ("before_cursor_execute", "commit"):
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, what, count)
design = {design!r}
record(Path(sys.argv[2]), tracking_uri=None, design=design, report=None)
print(int(sys.argv[1]) - left)
"""


def test_an_export_may_die_at_any_statement(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the store itself is made: a sample of all statements and commits of a first export."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def die(folder: Path, left: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", DYING.format(design=TINY), str(left), str(folder)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    whole = study(90_000)
    ended = die(whole, 10**9)
    assert ended.returncode == 0, ended.stderr
    n_statements = int(ended.stdout.splitlines()[-1])
    expected = without_content(shown(whole / "mlflow.db", whole))
    assert len(expected) == N_RUNS
    n_samples = 6
    for number in range(n_samples):
        folder = study(90_001 + number)
        left = 1 + number * (n_statements - 1) // (n_samples - 1)
        assert die(folder, left).returncode == 9
        assert record(folder, tracking_uri=None, design=TINY, report=None).error is None
        assert without_content(shown(folder / "mlflow.db", folder)) == expected, f"died at {left} of {n_statements}"
