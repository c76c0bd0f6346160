"""A ledger outlives its writer: ended at every durable effect, killed at any moment, or when the power is cut."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from sparsefront.errors import LedgerError
from sparsefront.search.ledger import Disk, Ledger
from sparsefront.search.schema import SCHEMA

N_COMMITS = 11
FAN_IN = 3

# Runs once for each number on its command line, in a process of its own forked before Arrow has started a thread.
# Ends without a word (os._exit) at that durable effect: before it, after it, or with half of its bytes written.
WRITER = """
import os, sys
from pathlib import Path
import pyarrow as pa
import sparsefront.search.ledger.ledger as module
from sparsefront.search.ledger import Disk, Ledger
from sparsefront.search.schema import SCHEMA

root, when, n_commits, module.FAN_IN = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Ending(Disk):
    left = 0

    def act(self, effect, half=None):
        self.left -= 1
        last = self.left == 0  # an effect may consist of others
        if last and when == "before":
            os._exit(9)
        if last and when == "half" and half:
            half()
            os._exit(9)
        effect()
        if last:
            os._exit(9)

    def write(self, path, chunks):
        content = b"".join(chunks)
        self.act(
            lambda: super(Ending, self).write(path, [content]),
            lambda: path.write_bytes(content[: len(content) // 2]),
        )

    def rename(self, source, target): self.act(lambda: super(Ending, self).rename(source, target))
    def sync_folder(self, folder): self.act(lambda: super(Ending, self).sync_folder(folder))
    def unlink(self, path): self.act(lambda: super(Ending, self).unlink(path))
    def make_folder(self, folder): self.act(lambda: super(Ending, self).make_folder(folder))

def commit(ledger, number):
    record = {"stage": "trained", "arm": "random", "replicate": 0, "target_sparsity": 0.5, "slot": number}
    ledger.commit(pa.Table.from_pylist([record], schema=SCHEMA))

def study(folder, disk, said):
    with Ledger.create(folder, {"name": "tiny"}, digest="d", versions={}, disk=disk) as ledger:
        os.write(said, b"created\\n")
        for number in range(n_commits):
            commit(ledger, number)
            os.write(said, b"commit\\n")
            if number % 4 == 0:
                os.write(said, b"blob " + ledger.put_blob(b"%d" % number).encode() + b"\\n")
        ledger.compact()
    os.write(said, b"done\\n")

def alone(act):
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 9)

for k in range(1, 1000):
    folder = root / str(k)
    disk = Ending()
    disk.left = k
    said = os.open(root / f"{k}.said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    alone(lambda: study(folder, disk, said))
    if b"done" in (root / f"{k}.said").read_bytes():
        break
    if k % 2:  # let the recovery end early as well
        disk.left = 1 + k % 3
        alone(lambda: Ledger.open(folder, disk=disk) if (folder / "study.json").exists() else None)
"""


def row(slot: int) -> pa.Table:
    record = {"stage": "trained", "arm": "random", "replicate": 0, "target_sparsity": 0.5, "slot": slot}
    return pa.Table.from_pylist([record], schema=SCHEMA)


def slots(ledger: Ledger) -> list[int]:
    return ledger.table(columns=["slot"])["slot"].to_pylist()


def check_recovery(folder: Path, *, created: bool, n_commits: int, blobs: Iterable[str]) -> None:
    """Every commit that returned is there, at most one more, nothing twice, and the study goes on."""
    seen: list[int] = []
    if created or (folder / "study.json").exists():
        with Ledger.read(folder) as reader:
            seen = slots(reader)
        ledger = Ledger.open(folder, digest="d")
    else:
        with pytest.raises(LedgerError, match=r"study.json is missing"):
            Ledger.open(folder, digest="d")
        ledger = Ledger.create(folder, {"name": "tiny"}, digest="d", versions={})
    with ledger:
        found = slots(ledger)
        assert found == seen == list(range(len(found)))
        assert n_commits <= len(found) <= n_commits + 1
        for blob in blobs:
            assert int(ledger.get_blob(blob)) % 4 == 0
        ledger.commit(row(len(found)))
        ledger.put_blob(b"last")
        ledger.compact()
        assert slots(ledger) == list(range(len(found) + 1))
        assert len(list((folder / "ledger").iterdir())) == ledger.n_parts == 1
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.fault
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_writer_that_ends_at_any_durable_effect_loses_nothing(tmp_path: Path, when: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), when, str(N_COMMITS), str(FAN_IN)]
    subprocess.run(command, check=True, timeout=200)
    ends = sorted(tmp_path.glob("*.said"), key=lambda path: int(path.stem))
    assert len(ends) > 60  # effects of this study; one more than that is the run that was not ended
    for said in ends:
        lines = said.read_text().split("\n")
        check_recovery(
            tmp_path / said.stem,
            created="created" in lines,
            n_commits=lines.count("commit"),
            blobs=[line.split()[1] for line in lines if line.startswith("blob")],
        )


KILLED = """
import sys
from pathlib import Path
import pyarrow as pa
import sparsefront.search.ledger.ledger as module
from sparsefront.search.ledger import Ledger
from sparsefront.search.schema import SCHEMA

module.FAN_IN = 3
with Ledger.create(Path(sys.argv[1]), {"name": "tiny"}, digest="d", versions={}) as ledger:
    for number in range(100_000):
        record = {"stage": "trained", "arm": "random", "replicate": 0, "target_sparsity": 0.5, "slot": number}
        ledger.commit(pa.Table.from_pylist([record], schema=SCHEMA))
        print(number, flush=True)
"""


@pytest.mark.fault
@pytest.mark.parametrize("n_commits", [1, 8, 26, 81])
def test_a_killed_writer_loses_nothing_and_gives_back_the_lock(tmp_path: Path, n_commits: int) -> None:
    folder = tmp_path / "study"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            returned = [int(writer.stdout.readline()) for _ in range(n_commits)]
            with pytest.raises(
                LedgerError, match=rf"{folder} is being written by another driver \(pid {writer.pid} on "
            ):
                Ledger.open(folder)
            with Ledger.read(folder) as reader:  # a reader is welcome, and sees at least what has returned
                assert slots(reader) == list(range(reader.n_commits))
                assert reader.n_commits >= n_commits
        finally:
            writer.kill()
        returned += [int(line) for line in writer.stdout if line.endswith("\n")]
    with Ledger.open(folder) as ledger:
        assert slots(ledger) == list(range(ledger.n_commits))
        assert len(returned) <= ledger.n_commits <= len(returned) + 1


class Recorded(Disk):
    """Carries out every effect, and remembers it."""

    def __init__(self) -> None:
        self.effects: list[tuple[str, Path, object]] = []

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        content = b"".join(chunks)
        self.effects.append(("write", path, content))
        super().write(path, [content])

    def rename(self, source: Path, target: Path) -> None:
        self.effects.append(("rename", source, target))
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self.effects.append(("sync", folder, None))
        super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        self.effects.append(("unlink", path, None))
        super().unlink(path)

    def mark(self, what: str) -> None:
        self.effects.append(("returned", Path(), what))


def after_power_cut(effects: list[tuple[str, Path, object]], chance: random.Random) -> dict[Path, bytes]:
    """Files that a machine may hold after its power went: names changed since a folder's last sync may be lost.

    Any subset of the unsynced changes may have reached the disk, in any order; a file's content is there when its
    write returned (it was synced), and whatever name it has afterwards.
    """
    synced_at = {path: index for index, (kind, path, _) in enumerate(effects) if kind == "sync"}
    content: dict[Path, bytes] = {}  # by the name that was given last, lost or not
    files: dict[Path, bytes] = {}

    def kept(index: int, folder: Path) -> bool:
        return index < synced_at.get(folder, -1) or chance.random() < 0.5

    for index, (kind, path, more) in enumerate(effects):
        if kind == "write":
            assert isinstance(more, bytes)
            content[path] = more
            if kept(index, path.parent):
                files[path] = more
        elif kind == "rename":
            assert isinstance(more, Path)
            content[more] = content.pop(path)
            if kept(index, more.parent):
                files[more] = content[more]
            if kept(index, path.parent):
                files.pop(path, None)
        elif kind == "unlink" and kept(index, path.parent):
            files.pop(path, None)
    return files


@pytest.mark.fault
def test_a_power_cut_loses_nothing_that_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsefront.search.ledger.ledger.FAN_IN", FAN_IN)
    disk = Recorded()
    source = tmp_path / "source"
    with Ledger.create(source, {"name": "tiny"}, digest="d", versions={}, disk=disk) as ledger:
        disk.mark("created")
        for number in range(N_COMMITS):
            ledger.commit(row(number))
            disk.mark("commit")
            if number % 4 == 0:
                disk.mark(ledger.put_blob(b"%d" % number))
        ledger.compact()
    chance = random.Random(5)
    for k in range(1, len(disk.effects) + 1):
        returned = [str(more) for kind, _, more in disk.effects[:k] if kind == "returned"]
        for trial in range(2):
            folder = tmp_path / f"{k}-{trial}"
            for name in ("ledger", "blobs"):
                (folder / name).mkdir(parents=True)
            for path, content in after_power_cut(disk.effects[:k], chance).items():
                target = folder / path.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content)
            check_recovery(
                folder,
                created="created" in returned,
                n_commits=returned.count("commit"),
                blobs=[what for what in returned if what not in ("created", "commit")],
            )
