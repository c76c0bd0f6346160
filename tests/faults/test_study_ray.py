"""Studies on Ray with everything that can go wrong; each cluster is a program of its own, as users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsefront.search.ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow]

HERE = Path(__file__).parent
STUDY = """
name = "tiny"
seed = 7
replicates = 1
sparsities = [0.5, 0.8]
arms = ["dense", "random", "searched", "small_dense", "magnitude"]
data = { name = "digits" }
model = { name = "misbehaving:family", widths = [16, 12] }
search = { draws = 12, probe_size = 64, random_draws = 6 }
training = { lr = 0.003, batch_size = 50, steps = 40, eval_every = 10 }
compute = { device = "cpu", workers = 2 }
record = { enabled = false }
"""
#: Runs the command line with a driver that waits less for workers that are stopped, and with a disk that may be full.
PROGRAM = """
import errno, os, sys
import sparsefront.cluster.driver
from sparsefront.cli import main
from sparsefront.search.ledger.disk import Disk
sparsefront.cluster.driver._DRIVER_GRACE_S = 1.0
room, write = int(os.environ.get("ROOM", 1 << 30)), Disk.write
def write_if_there_is_room(disk, path, chunks):
    global room
    room -= 1
    if room < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    write(disk, path, chunks)
Disk.write = write_if_there_is_room
raise SystemExit(main(sys.argv[1:]))
"""
#: Columns that say how a candidate was run, not what it is or came to.
CIRCUMSTANCES = {"seconds", "attempt", "pack", "device", "committed_at", "error"}
KEY = ("stage", "arm", "replicate", "target_sparsity", "slot")
WAIT_S = 120.0


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def start(toml: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``sparsefront run``; what is left of it at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(HERE), *sys.path])
        options = [part for override in overrides for part in ("--set", override)]
        driver = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "run", str(toml), "--dir", str(folder), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"} | environment,
            start_new_session=True,
        )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.kill()
        driver.communicate()


def slots(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by key; every key once."""
    with Ledger.read(folder) as ledger:
        assert ledger.duplicates().num_rows == 0
        return {tuple(row[k] for k in KEY): row for row in ledger.table().to_pylist()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Rows of one slot of two runs: what is exact is the same, and float32 results agree (design: 1e-4)."""
    for name, value in expected.items():
        if name in CIRCUMSTANCES:
            continue
        if isinstance(value, float | list):
            # The temperature is where a flat minimum lies: it is known to the root of what its loss is known to.
            tolerance = 1e-2 if name == "temperature" else 1e-4
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            assert found[name] == value, name


def assert_same_study(folder: Path, expected: Path) -> None:
    found, wanted = slots(folder), slots(expected)
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert_same(found[key], row)


def family_of(pid: int) -> dict[int, str]:
    """Living descendants of a process: pid -> command line."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            status = read(entry / "stat").rpartition(")")[2].split()
            if status and status[0] != "Z":
                parents[int(entry.name)] = int(status[1])
    found: dict[int, str] = {}
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new and child not in found}
        found |= {child: read(Path(f"/proc/{child}/cmdline")) for child in new}
    return found


def read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def is_running(pid: int, command: str) -> bool:
    status = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(status) and status[0] != "Z" and read(Path(f"/proc/{pid}/cmdline")) == command


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once it is true; fails if it does not become so in two minutes."""
    deadline = time.monotonic() + WAIT_S
    with subprocess.Popen(["sleep", str(2 * WAIT_S)]) as clock:
        try:
            while time.monotonic() < deadline:
                if value := condition():
                    return value
                try:
                    clock.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            clock.kill()
    return pytest.fail(f"waited in vain for: {what}")


class Gate:
    """Where candidates queue (`misbehaving.queue`), so that a study stands still until the test lets it go on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._n = 0
        self.environment = {"MISBEHAVIOUR": json.dumps({"*": "queue"}), "TICKETS": str(folder)}

    def let_through(self, condition: Callable[[], Any], what: str) -> None:
        """Lets one candidate after another through until `condition` is true."""

        def try_and_let_through() -> bool:
            if condition():
                return True
            if not any(self._folder.iterdir()):
                (self._folder / f"ticket-{self._n}").touch()
                self._n += 1
            return False

        wait_until(try_and_let_through, what)

    def open(self) -> None:
        (self._folder / "open").touch()


def n_rows(folder: Path, stage: str = "trained") -> int:
    if not (folder / "study.json").exists():
        return 0
    with Ledger.read(folder) as ledger:
        return sum(value == stage for value in ledger.table(columns=["stage"])["stage"].to_pylist())


def workers_of(driver: subprocess.Popen[str]) -> list[int]:
    return [pid for pid, command in family_of(driver.pid).items() if command.startswith("ray::ResourceTrainable.train")]


def ended(driver: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = driver.communicate(timeout=WAIT_S)
    return driver.returncode, out, err


def assert_nobody_left(processes: dict[int, str], folders: set[str]) -> None:
    left = lambda: [f"{p} {c}" for p, c in processes.items() if is_running(p, c)]  # noqa: E731
    wait_until(lambda: not left(), f"the end of {left()}")
    assert not [folder for folder in folders if Path(folder).exists()]


def scratch_folders(processes: dict[int, str]) -> set[str]:
    return {
        found for command in processes.values() for found in re.findall(r"/tmp/sparsefront-run-[^/\s\0,]+", command)
    }


@pytest.fixture(scope="module")
def whole(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study without disturbance and without Ray, in one process and in small packs."""
    folder = tmp_path_factory.mktemp("whole")
    code = (
        "import sys; from pathlib import Path; from inline_study import *; torch.set_num_threads(1);"
        "run_inline(Study.from_toml(sys.argv[1]), Path(sys.argv[2]), masks_per_pack=5, lanes_per_pack=2)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(toml), str(folder)],
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
    )
    return folder


def test_a_study_on_ray_is_the_study_in_one_process_and_a_hanging_mlflow_server_changes_nothing(
    start: Callable[..., subprocess.Popen[str]], whole: Path, tmp_path: Path
) -> None:
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()  # the kernel accepts, and nobody ever answers
        uri = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        driver = start(
            tmp_path / "a",
            "record.enabled=true",
            f"record.tracking_uri={uri}",
            "record.every_s=0.5",
            "record.timeout_s=4",
            "compute.lanes_per_pack=3",
        )
        code, out, err = ended(driver)
    assert code == 0, err
    assert "MLflow: not recorded" in out
    assert_same_study(tmp_path / "a", whole)


def test_misbehaving_candidates_are_recorded_as_such_and_their_neighbours_lose_nothing(
    start: Callable[..., subprocess.Popen[str]], whole: Path, tmp_path: Path
) -> None:
    expected = slots(whole)
    kinds = {
        ("random", 0.5, 0): ("raise", "failed"),
        ("random", 0.5, 2): ("loop", "timeout"),
        ("random", 0.8, 1): ("sleep", "timeout"),
        ("random", 0.8, 3): ("eat", "out_of_memory"),
        ("random", 0.8, 5): ("die", "lost"),
    }
    culprits = {expected["trained", arm, 0, s, slot]["mask_digest"]: how for (arm, s, slot), how in kinds.items()}
    assert len(culprits) == len(kinds)
    driver = start(
        tmp_path / "a",
        "compute.timeout_s=6",
        "compute.max_retries=0",
        "compute.memory_gib=2",
        "compute.lanes_per_pack=2",
        MISBEHAVIOUR=json.dumps({digest: kind for digest, (kind, _) in culprits.items()}),
    )
    code, _, err = ended(driver)
    assert code == 1, err
    found = slots(tmp_path / "a")
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        culprit = row["stage"] == "trained" and culprits.get(row["mask_digest"])
        if culprit:
            assert found[key]["outcome"] == culprit[1], found[key]["error"]
            assert found[key]["candidate"] == row["candidate"]
            assert found[key]["error"]
            assert found[key]["val_error"] is None
        else:
            assert_same(found[key], row)
    reasons = {row["outcome"]: row["error"] for row in found.values() if row["error"]}
    assert "ZeroDivisionError: the user's own mistake" in reasons["failed"]
    assert reasons["timeout"] == "no validation point within compute.timeout_s=6: its worker was ended"
    assert "MemoryError" in reasons["out_of_memory"]


def test_a_study_that_is_cut_off_again_and_again_comes_to_the_same_end(
    start: Callable[..., subprocess.Popen[str]], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    rng = np.random.default_rng(2403)
    gate = Gate(tmp_path / "tickets")

    # A full disk: one line, what was committed stays, and nothing is left running.
    driver = start(folder, "compute.lanes_per_pack=2", **gate.environment, ROOM="7")
    wait_until(lambda: workers_of(driver), "workers")
    processes = family_of(driver.pid)
    gate.let_through(lambda: driver.poll() is not None, "the disk to be full")
    code, out, err = ended(driver)
    assert code == 1, (out, err)
    assert re.search(r"^sparsefront: commit \d+ .*No space left on device.*nothing was recorded", err.splitlines()[-1])
    assert "Traceback" not in err
    assert_nobody_left(processes, scratch_folders(processes))
    assert slots(folder)

    # kill -9 of the driver at some moment.
    before, n_more = n_rows(folder), int(rng.integers(1, 4))
    driver = start(folder, "compute.lanes_per_pack=2", **gate.environment)
    gate.let_through(lambda: n_rows(folder) >= before + n_more, "commits")
    processes = family_of(driver.pid)
    killed = scratch_folders(processes)
    assert killed
    driver.kill()
    driver.communicate()
    assert_nobody_left(processes, set())
    done = slots(folder)

    # kill -9 of a worker, a second driver, and Ctrl-C (which a terminal sends to the whole group).
    driver = start(folder, "compute.lanes_per_pack=3", **gate.environment)
    worker = wait_until(lambda: workers_of(driver), "workers")[0]
    assert not [one for one in killed if Path(one).exists()]
    os.kill(worker, signal.SIGKILL)
    second = ended(start(folder))
    assert second[0] == 2
    assert re.search(rf"is being written by another driver \(pid {driver.pid} on ", second[2])
    before = n_rows(folder)
    gate.let_through(lambda: n_rows(folder) > before, "commits after a worker was killed")
    processes = wait_until(lambda: workers_of(driver) and family_of(driver.pid), "workers")
    os.killpg(driver.pid, signal.SIGINT)
    code, _, err = ended(driver)
    assert code == 130, err
    assert err.splitlines()[-1] == "sparsefront: interrupted; run the same command to go on"
    assert_nobody_left(processes, scratch_folders(processes))
    assert done.items() <= slots(folder).items()
    assert slots(folder).keys() < slots(whole).keys()

    # A worker that is stopped cannot end itself: the driver does, and its work is done again.
    driver = start(folder, "compute.lanes_per_pack=3", "compute.timeout_s=12", **gate.environment)
    worker = wait_until(lambda: workers_of(driver), "workers")[0]
    os.kill(worker, signal.SIGSTOP)
    gate.open()
    code, out, err = ended(driver)
    assert code == 0, (out, err)
    assert_same_study(folder, whole)
