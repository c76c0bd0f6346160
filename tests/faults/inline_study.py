"""Runs a study in this process, without Ray, through the driver, the plan, the worker and the ledger that Ray uses.

As a program it runs a study to its end once, then for every k from the start with a disk that ends the process at its
k-th effect, and resumes it; it prints what the studies came to as JSON. Each runs in a copy of this process, which has
imported everything and lets torch use one thread.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sparsefront.cluster.driver import Driver
from sparsefront.cluster.worker import PackRunner, WorkerSettings
from sparsefront.search.ledger import Ledger
from sparsefront.search.ledger.disk import Disk
from sparsefront.search.plan import Plan, Work
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.study import Study
from sparsefront.trainables import checkpoints
from sparsefront.trainables.data import load_dataset

DIED = 9


class MortalDisk(Disk):
    """Ends the process at the k-th effect: just before it or, a file, half written.

    Checkpoints of trained weights are effects too, once it `holds_checkpoints`.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.n_effects = 0

    def _count(self) -> bool:
        self.n_effects += 1
        self.left -= 1
        return self.left == 0

    def holds_checkpoints(self) -> None:
        write = checkpoints.write_durably

        def counted(path: Path, content: bytes) -> None:
            if self._count():
                path.with_suffix(".part").write_bytes(content[: len(content) // 2])
                os._exit(DIED)
            write(path, content)

        checkpoints.write_durably = counted

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        if self._count():
            data = b"".join(chunks)
            path.write_bytes(data[: len(data) // 2])
            os._exit(DIED)
        super().write(path, chunks)

    def rename(self, source: Path, target: Path) -> None:
        if self._count():
            os._exit(DIED)
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        if self._count():
            os._exit(DIED)
        super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        if self._count():
            os._exit(DIED)
        super().unlink(path)


def run_inline(
    study: Study, folder: Path, *, masks_per_pack: int, lanes_per_pack: int, disk: Disk | None = None
) -> None:
    """Start `study` in `folder`, or go on where it stopped, one pack after the other."""
    dataset = load_dataset(study.data.name, study.data.options)
    checkpoints = str(folder.absolute() / "checkpoints")
    columns = study.recorded(dataset)["resolved"].get("columns", {})
    settings = WorkerSettings(study.recipe(), study.base(), "cpu", 600.0, None, columns, checkpoints)
    if (folder / "study.json").exists():
        ledger = Ledger.open(folder, digest=study.digest, disk=disk)
    else:
        ledger = Ledger.create(folder, study.recorded(), digest=study.digest, versions={}, disk=disk)
    with ledger:
        names = CandidateNames(study.base())
        plan = Plan(study.design(), names, masks_per_pack=masks_per_pack, lanes_per_pack=lanes_per_pack)
        for batch in ledger.scan(columns=plan.columns):
            plan.absorb(batch)
        posted: dict[str, tuple[Work, dict[str, bytes]]] = {}
        driver = Driver(
            plan,
            ledger,
            settings,
            max_retries=2,
            slots=1,
            post=lambda key, work, masks: posted.update({key: (work, masks)}),
            on_commit=lambda rows: None,
        )
        runner = PackRunner(settings, dataset)
        driver.record_decided()
        while not driver.is_over:
            key = driver.next_pack("trial")
            if key is None:  # the last there was to do was to say what can never be done
                assert driver.is_over
                break
            runner.start(*posted.pop(key))
            done = False
            while not done:
                report = runner.step()
                driver.heard("trial", report)
                driver.commit_if_due()
                done = report["done"]
            driver.ended("trial")
            driver.commit_if_due()


def shown(folder: Path) -> dict[str, Any]:
    """What became of a study: by slot the candidate, mask and outcome; the budget; keys that were recorded twice."""
    with Ledger.read(folder) as ledger:
        rows = ledger.table().to_pylist()
        n_duplicates = ledger.duplicates().num_rows
    key = ("stage", "arm", "replicate", "target_sparsity", "slot")
    return {
        "slots": sorted([*(row[k] for k in key), row["candidate"], row["mask_digest"], row["outcome"]] for row in rows),
        "passes": round(sum(row["passes"] for row in rows), 6),
        "flops": round(sum(row["flops"] for row in rows)),
        "n_duplicates": n_duplicates,
    }


def forked(work: Any) -> int:
    """Exit code of a copy of this process that does `work`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(toml: str, place: str) -> None:
    study = Study.from_toml(toml)
    root = Path(place)
    torch.set_num_threads(1)
    run_inline(study, root / "first", masks_per_pack=10, lanes_per_pack=16)  # imports what is imported late

    def run(name: str, left: int, **sizes: int) -> int:
        def work() -> None:
            disk = MortalDisk(left)
            disk.holds_checkpoints()
            run_inline(study, root / name, disk=disk, **(sizes or {"masks_per_pack": 5, "lanes_per_pack": 2}))
            (root / f"{name}.effects").write_text(str(disk.n_effects))

        return forked(work)

    assert run("whole", 0) == 0
    assert shown(root / "whole") == shown(root / "first")
    n_effects = int((root / "whole.effects").read_text())
    studies = {}
    for k in range(1, n_effects + 1):
        first = run(f"k{k}", k)
        again = run(f"k{k}", 0, masks_per_pack=4, lanes_per_pack=3)
        studies[k] = {"first": first, "again": again, "shown": shown(root / f"k{k}")}
    print(json.dumps({"whole": shown(root / "whole"), "n_effects": n_effects, "studies": studies}))


if __name__ == "__main__":
    main(*sys.argv[1:])
