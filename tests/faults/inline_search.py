"""Runs a search in this process, without Ray, through the driver, the plan, the worker and the ledger that Ray uses.

As a program it runs every pack in a process of its own, a copy of this one, so that candidates that kill their worker
(`misbehaving`) can be seen to be isolated. It has imported everything by then, and lets torch use one thread.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import torch

from sparsefront.cluster.driver import Driver
from sparsefront.cluster.rows import Work
from sparsefront.cluster.worker import PackRunner, Report, WorkerSettings
from sparsefront.search.ledger import Disk, Ledger
from sparsefront.search.work import SegmentWork
from sparsefront.spaces.candidate import canonical_json
from sparsefront.study import SearchStudy, Study
from sparsefront.study.study import versions
from sparsefront.trainables.data import load_dataset

KEY = ("stage", "arm", "replicate", "target_sparsity", "slot")
#: Columns that say how a candidate was run, not what it is or came to.
CIRCUMSTANCES = {"seconds", "predicted_s", "attempt", "pack", "device", "committed_at", "error", "checkpoint"}


class Died(BaseException):
    """The process is dead; nothing that runs afterwards has an effect on the disk."""


class MortalDisk(Disk):
    """Dies at the k-th effect: just before it or, a file, half written; never if k is 0."""

    def __init__(self, last: int = 0) -> None:
        self.n_effects = 0
        self._last = last

    def _count(self) -> None:
        self.n_effects += 1
        if 0 < self._last <= self.n_effects:
            raise Died

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        try:
            self._count()
        except Died:
            if self.n_effects == self._last:
                data = b"".join(chunks)
                path.write_bytes(data[: len(data) // 2])
            raise
        super().write(path, chunks)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._count()
        super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


class ForkedRunner:
    """A `PackRunner` of which every pack is a process of its own, which may die; its rows come through a pipe."""

    def __init__(self, runner: PackRunner) -> None:
        self._runner = runner
        self._runner._prepare()

    def start(self, work: Work, masks: dict[str, bytes]) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                self._runner.start(work, masks)
                report = self._runner.step()
                with os.fdopen(writer, "wb") as pipe:
                    pipe.write(report["rows"] or b"")
                os._exit(0 if report["done"] and report["problem"] is None else 1)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            self._rows = pipe.read()
        self._code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def step(self) -> Report:
        """The whole report of a pack (these are short); raises if its process was killed."""
        if self._code == -signal.SIGKILL:
            raise ChildProcessError("the actor died unexpectedly")
        assert self._code == 0
        return {"rows": self._rows, "blobs": {}, "done": True, "problem": None}


class CutOff:
    """A `PackRunner` whose worker is lost with some packs, the first time that they run, at one of their points."""

    def __init__(self, runner: PackRunner, rng: Random, cut: set[str]) -> None:
        self._runner, self._rng, self._cut = runner, rng, cut
        self._runner._prepare()

    def start(self, work: Work, masks: dict[str, bytes]) -> None:
        self._runner.start(work, masks)
        self._is_lost = work.key not in self._cut and self._rng.random() < 0.5
        self._cut.add(work.key)

    def step(self) -> Report:
        if not self._is_lost:
            return self._runner.step()
        for _ in range(self._rng.randint(1, 4)):
            next(self._runner._steps, None)
        raise ChildProcessError("the actor died unexpectedly")


def run_search(
    study: Study,
    folder: Path,
    *,
    slots: int = 1,
    max_lanes: int = 8,
    order: float = 0,
    disk: Disk | None = None,
    wrap: Callable[[PackRunner], Any] = lambda runner: runner,
    on_report: Callable[[SegmentWork], None] = lambda work: None,
) -> None:
    """Start `study` in `folder`, or go on where it stopped.

    Args:
        study: a search.
        folder: of the study.
        slots: packs that are on their way at once.
        max_lanes: candidates in a pack.
        order: seed of the order in which packs report.
        disk: of the ledger.
        wrap: what packs run in.
        on_report: called with a pack before its report is heard.
    """
    assert isinstance(study, SearchStudy)
    dataset = load_dataset(study.data.name, study.data.options)
    settings = WorkerSettings(
        recipe=study.recipe(),
        base=study.base(),
        device="cpu",
        timeout_s=600.0,
        memory_bytes=None,
        checkpoints=str(folder / "checkpoints"),
        checkpoint_every_s=study.compute.checkpoint_every_s,
        **study._worker_options(dataset),
    )
    rng = Random(order)
    recorded = study.recorded(dataset)
    digest = hashlib.sha256(canonical_json(recorded).encode()).hexdigest()
    if (folder / "study.json").exists():
        ledger = Ledger.open(folder, digest=digest, study=recorded, disk=disk)
    else:
        ledger = Ledger.create(folder, recorded, digest=digest, versions=versions(), disk=disk)
    with ledger:
        plan = study._plan(dataset, slots, "cpu", stored=ledger.get_blob)
        plan.resize(workers=slots, max_lanes=max_lanes)
        for batch in ledger.scan(columns=plan.columns):
            plan.absorb(batch)
        posted: dict[str, tuple[Work, dict[str, bytes]]] = {}
        driver = Driver(
            plan,
            ledger,
            settings,
            max_retries=1,
            slots=slots,
            post=lambda key, work, masks: posted.update({key: (work, masks)}),
            on_commit=lambda rows: None,
        )
        runners = [wrap(PackRunner(settings, dataset)) for _ in range(slots)]
        running: dict[str, tuple[Any, Work]] = {}
        n_trials = 0
        driver.record_decided()
        while not driver.is_over:
            while runners and (key := driver.next_pack(f"t{n_trials}")) is not None:
                runner = runners.pop()
                work, masks = posted.pop(key)
                runner.start(work, masks)
                running[f"t{n_trials}"] = runner, work
                n_trials += 1
            if driver.is_over:  # what was decided last needed no pack
                break
            trial = rng.choice(sorted(running))
            runner, work = running[trial]
            assert isinstance(work, SegmentWork)
            driver.began(trial)
            try:
                report = runner.step()
            except ChildProcessError as error:
                driver.lost(trial, "lost", str(error))
            else:
                on_report(work)
                driver.heard(trial, report)
                driver.commit_if_due()
                if not report["done"]:
                    continue
                driver.ended(trial)
                driver.commit_if_due()
            runners.append(running.pop(trial)[0])


def rows_of(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by key, in the order of keys; every key once."""
    with Ledger.read(folder) as ledger:
        assert ledger.duplicates().num_rows == 0
        rows = ledger.table().to_pylist()
    found = {tuple(row[k] for k in KEY): row for row in rows}
    assert len(found) == len(rows)
    return dict(sorted(found.items()))


def main(toml: str, place: str) -> None:
    torch.set_num_threads(1)
    harmless = Study.from_toml(toml, ["model.name=mlp", "search.candidates=1"])
    run_search(harmless, Path(place).with_suffix(".harmless"))  # imports what is imported late
    run_search(Study.from_toml(toml), Path(place), wrap=ForkedRunner)


if __name__ == "__main__":
    main(*sys.argv[1:])
