from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparsefront.cluster import dispatch, ray_cluster
from sparsefront.cluster.dispatch import what_broke
from sparsefront.cluster.driver import Driver
from sparsefront.cluster.rows import lost_rows
from sparsefront.cluster.worker import PackRunner, Report, WorkerSettings, decode_rows, problem
from sparsefront.errors import ConfigError, LedgerError, SparsefrontError
from sparsefront.progress import Progress
from sparsefront.search.ledger import Ledger
from sparsefront.search.plan import Plan, ScoreWork, TrainWork, Work
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset

TIMEOUT_S = 100.0


def tiny(**changes: Any) -> Study:
    return Study.from_dict(
        {
            "name": "tiny",
            "seed": 7,
            "replicates": 1,
            "sparsities": [0.5],
            "arms": ["random", "searched"],
            "data": {"name": "digits"},
            "model": {"name": "mlp", "widths": [8]},
            "search": {"draws": 8, "probe_size": 20, "random_draws": 3},
            "training": {"batch_size": 50, "steps": 2, "eval_every": 1},
            **changes,
        }
    )


@dataclass
class Scene:
    """A driver with a ledger and a clock of its own; packs are posted into `posted`."""

    driver: Driver
    plan: Plan
    ledger: Ledger
    runner: PackRunner
    posted: dict[str, tuple[Work, dict[str, bytes]]]
    settings: WorkerSettings
    now_s: list[float] = field(default_factory=lambda: [0.0])

    def next_work(self, trial: str) -> Work:
        key = self.driver.next_pack(trial)
        assert key is not None
        return self.posted[key][0]

    def reports(self, trial: str) -> Iterator[Report]:
        """Runs the pack that `trial` was given, from its start."""
        self.runner.start(*self.posted[next(k for k in reversed(self.posted))])
        while True:
            report = self.runner.step()
            yield report
            if report["done"]:
                return

    def finish(self) -> None:
        """Runs everything that is left."""
        while not self.driver.is_over:
            self.next_work("rest")
            for report in self.reports("rest"):
                self.driver.heard("rest", report)
            self.driver.ended("rest")
            self.driver.commit_if_due()

    def outcomes(self, stage: str) -> dict[tuple[str, int], str]:
        rows = self.ledger.table().to_pylist()
        return {(row["arm"], row["slot"]): row["outcome"] for row in rows if row["stage"] == stage}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    study = tiny()
    settings = WorkerSettings(study.recipe(), study.base(), "cpu", TIMEOUT_S, None)
    posted: dict[str, tuple[Work, dict[str, bytes]]] = {}
    now_s = [0.0]
    with Ledger.create(tmp_path / "study", study.recorded(), digest=study.digest, versions={}) as ledger:
        plan = Plan(study.design(), CandidateNames(study.base()), masks_per_pack=4, lanes_per_pack=4)
        driver = Driver(
            plan,
            ledger,
            settings,
            max_retries=1,
            slots=1,
            post=lambda key, work, masks: posted.update({key: (work, masks)}),
            on_commit=lambda rows: None,
            clock=lambda: now_s[0],
        )
        runner = PackRunner(settings, load_dataset("digits", study.data.options))
        yield Scene(driver, plan, ledger, runner, posted, settings, now_s)


def test_an_undisturbed_study_fills_every_slot_once(scene: Scene) -> None:
    scene.finish()
    assert scene.outcomes("scored") == {("pool", i): "completed" for i in range(8)}
    assert set(scene.outcomes("trained")) == {("random", 0), ("random", 1), ("random", 2), ("searched", 0)}
    assert scene.ledger.duplicates().num_rows == 0
    assert scene.driver.next_pack("more") is None


def test_lost_work_is_divided_until_one_candidate_is_left_and_then_tried_once_more(scene: Scene) -> None:
    sizes = []
    while True:
        work = scene.next_work("t")
        assert isinstance(work, ScoreWork)
        sizes.append((work.start, work.stop, work.attempt))
        scene.driver.began("t")
        scene.now_s[0] += 1
        if work.start > 0:
            break
        scene.driver.lost("t", "lost", "gone")
    assert sizes == [(0, 4, 0), (0, 2, 0), (0, 1, 0), (0, 1, 1), (1, 2, 0)]
    rows = scene.ledger.table().to_pylist()
    assert [(r["slot"], r["outcome"], r["error"], r["attempt"], r["seconds"]) for r in rows] == [
        (0, "lost", "gone", 1, 1)
    ]
    for report in scene.reports("t"):
        scene.driver.heard("t", report)
    scene.driver.ended("t")
    scene.finish()
    assert scene.outcomes("scored") == {("pool", i): "completed" if i else "lost" for i in range(8)}


@pytest.mark.parametrize(
    ("silent_s", "given", "recorded"),
    [
        (1, "failed", "failed"),
        (TIMEOUT_S, "lost", "timeout"),
        (0.7 * TIMEOUT_S, "lost", None),
        (TIMEOUT_S + 31, "lost", None),
        (1, "out_of_memory", None),
    ],
)
def test_a_single_candidate_that_hung_or_raised_is_not_tried_again(
    scene: Scene, silent_s: float, given: str, recorded: str | None
) -> None:
    for _ in range(3):
        work = scene.next_work("t")
        scene.driver.began("t")
        if len(work.halves()) > 1:
            scene.driver.lost("t", given, "why")
    scene.now_s[0] += silent_s
    scene.driver.lost("t", given, "why")
    assert scene.outcomes("scored") == ({("pool", 0): recorded} if recorded else {})
    if recorded == "timeout":
        error = scene.ledger.table().to_pylist()[0]["error"]
        assert error == "no validation point within compute.timeout_s=100: its worker was ended"


def test_results_that_came_before_the_loss_are_kept_and_those_that_come_twice_are_dropped(scene: Scene) -> None:
    work = scene.next_work("t")
    assert isinstance(work, ScoreWork)
    report = next(scene.reports("t"))
    scene.driver.heard("t", report)
    scene.driver.heard("t", report)
    assert scene.ledger.n_rows == 0, "a worker that is free gets its work first"
    scene.driver.commit_if_due()
    assert scene.ledger.n_rows == 4
    scene.driver.lost("t", "lost", "gone")
    assert scene.next_work("u") == ScoreWork(0, 0.5, 4, 8)


def hear_all(scene: Scene, trial: str, reports: list[Report]) -> None:
    for report in reports:
        scene.driver.heard(trial, report)
        scene.driver.commit_if_due()
    scene.driver.ended(trial)
    scene.driver.commit_if_due()


def two_packs(scene: Scene) -> tuple[list[Report], list[Report]]:
    """Hands out both packs of masks, to t and u, and a third: u's is heard right after a commit, and not alone."""
    first, second = (list(scene.reports(trial)) for trial in "tu" if scene.next_work(trial))
    hear_all(scene, "t", first)
    assert (scene.ledger.n_rows, scene.ledger.n_commits) == (4, 1)  # nothing was committed just before: at once
    return first, second


def busy(scene: Scene) -> None:
    """Lets another pack be on its way for ever."""
    scene.driver._running["busy"] = scene.driver._running["u"]


def test_what_is_heard_right_after_a_commit_is_committed_with_what_comes_next(scene: Scene) -> None:
    _, second = two_packs(scene)
    busy(scene)
    scene.now_s[0] += 0.049
    hear_all(scene, "u", second)
    scene.driver.commit_if_due()
    assert scene.ledger.n_rows == 4
    assert scene.plan.totals()[0] == 4, "only what is durable is absorbed"
    assert not scene.driver.is_over
    scene.now_s[0] += 0.002
    scene.driver.commit_if_due()
    assert (scene.ledger.n_rows, scene.ledger.n_commits) == (8, 2)
    assert scene.plan.totals()[0] == 8


def test_results_are_committed_before_a_worker_goes_without_work(scene: Scene) -> None:
    _, second = two_packs(scene)
    busy(scene)
    hear_all(scene, "u", second)
    assert scene.ledger.n_rows == 4
    assert isinstance(scene.next_work("v"), TrainWork), "which follows from all scores"
    assert scene.ledger.n_rows == 8


def test_the_last_results_are_committed_when_work_is_asked_for_and_there_is_none(scene: Scene) -> None:
    """Ray Tune asks once a second then, and for nothing else."""
    trials = map(str, itertools.count())
    while (key := scene.driver.next_pack(trial := next(trials))) is not None:
        scene.runner.start(*scene.posted[key])
        done = False
        while not done:
            report = scene.runner.step()
            scene.driver.heard(trial, report)
            done = report["done"]
        scene.driver.ended(trial)  # and nothing commits in between
    assert scene.driver.is_over
    assert len(scene.outcomes("trained")) == 4


def test_results_do_not_wait_for_longer_than_a_moment(scene: Scene) -> None:
    _, second = two_packs(scene)
    busy(scene)
    for report in second:
        scene.driver.heard("u", report)
    assert not scene.driver.is_overdue
    scene.now_s[0] += 0.5
    assert scene.driver.is_overdue
    scene.driver.commit_if_due()
    assert not scene.driver.is_overdue


def test_the_last_pack_on_its_way_is_committed_as_it_ends(scene: Scene) -> None:
    _, second = two_packs(scene)
    hear_all(scene, "u", second)
    assert (scene.ledger.n_rows, scene.plan.totals()[0]) == (8, 8)


def test_what_waits_is_committed_before_work_is_divided(scene: Scene) -> None:
    _, second = two_packs(scene)
    busy(scene)
    for report in second:
        scene.driver.heard("u", report)
    assert scene.ledger.n_rows == 4
    scene.driver.lost("u", "lost", "gone")
    assert scene.ledger.n_rows == 8
    assert isinstance(scene.next_work("v"), TrainWork), "nothing of it is done again"


def test_of_results_that_wait_and_come_twice_one_is_committed(scene: Scene) -> None:
    _, second = two_packs(scene)
    busy(scene)
    for report in (*second, *second):
        scene.driver.heard("u", report)
    scene.driver.ended("u")
    scene.driver.record_decided()
    assert scene.outcomes("scored") == {("pool", i): "completed" for i in range(8)}
    assert scene.ledger.duplicates().num_rows == 0
    assert scene.ledger.n_commits == 2


def test_a_commit_that_fails_while_nothing_else_happens_is_told(scene: Scene) -> None:
    _, second = two_packs(scene)
    busy(scene)
    hear_all(scene, "u", second)
    scene.ledger.close()
    scene.now_s[0] += 1
    with pytest.raises(LedgerError, match="is closed"):
        scene.driver.commit_if_due()


def test_work_of_a_worker_that_never_began_comes_back_whole_but_not_for_ever(scene: Scene) -> None:
    for _ in range(2):
        assert scene.next_work("t") == ScoreWork(0, 0.5, 0, 4)
        scene.driver.lost("t", "lost", "no module")
    scene.next_work("t")
    with pytest.raises(SparsefrontError, match=r"no worker could start, 3 times in a row \(no module\)"):
        scene.driver.lost("t", "lost", "no module")
    assert scene.ledger.n_rows == 0


def test_a_worker_that_can_run_nothing_ends_the_study_and_no_candidate_is_blamed(scene: Scene) -> None:
    scene.next_work("t")
    with pytest.raises(SparsefrontError, match=r"a worker cannot run this study \(no CUDA\): every machine"):
        scene.driver.heard("t", problem("no\n CUDA"))
    assert scene.ledger.n_rows == 0


def test_masks_that_do_not_match_their_digest_are_refused(scene: Scene) -> None:
    scene.next_work("t")
    report: Report = {"rows": None, "blobs": {"0" * 32: b"bits"}, "done": True, "problem": None}
    with pytest.raises(SparsefrontError, match=r"mask 0{32}: the bits that a worker sent do not match their digest"):
        scene.driver.heard("t", report)


def test_workers_are_silent_once_their_own_watchdog_must_have_failed(scene: Scene) -> None:
    scene.next_work("t")
    scene.now_s[0] = 10 * TIMEOUT_S
    assert scene.driver.silent() == []  # it did not begin
    scene.driver.began("t")
    scene.now_s[0] += TIMEOUT_S + 29
    assert scene.driver.silent() == []
    scene.now_s[0] += 2
    assert scene.driver.silent() == ["t"]


def test_what_happens_to_unknown_trials_is_ignored(scene: Scene) -> None:
    scene.driver.began("x")
    scene.driver.ended("x")
    scene.driver.lost("x", "lost", "gone")
    assert not scene.driver.is_over


def test_divided_trainings_give_the_same_results(scene: Scene, tmp_path: Path) -> None:
    while isinstance(work := scene.next_work("t"), ScoreWork):
        for report in scene.reports("t"):
            scene.driver.heard("t", report)
        scene.driver.ended("t")
        scene.driver.commit_if_due()
    assert isinstance(work, TrainWork)
    whole = [report for report in scene.reports("t") if report["rows"]]
    scene.driver.began("t")
    scene.driver.lost("t", "lost", "gone")
    scene.finish()
    expected = pa.Table.from_batches([b for r in whole for b in decode_rows(r["rows"])]).to_pylist()
    rows = scene.ledger.table().to_pylist()
    found = {(r["arm"], r["slot"]): r for r in rows if r["stage"] == "trained"}
    for row in expected:
        same = found[row["arm"], row["slot"]]
        assert same["candidate"] == row["candidate"]
        assert same["mask_digest"] == row["mask_digest"]
        np.testing.assert_allclose(same["val_loss"], row["val_loss"], rtol=1e-4)
        assert same["passes"] == row["passes"]


def test_rays_words_for_what_broke() -> None:
    raised = "Failure # 1 (occurred at now)\n\x1b[36mray::ResourceTrainable.train()\x1b[39m (pid=1)\n  File x\n"
    assert what_broke(raised + "ValueError: no")[0] == "failed"
    assert what_broke(raised + "numpy._core._exceptions._ArrayMemoryError: Unable")[0] == "out_of_memory"
    assert (
        what_broke("Failure # 1\n1 worker(s) were killed due to the node running low on memory.")[0] == "out_of_memory"
    )
    died = "Failure # 1\nThe actor died unexpectedly ... (1) killed by the OOM killer due to high memory usage"
    assert what_broke(died) == ("lost", died.partition("\n")[2])
    assert what_broke("no reason known") == ("lost", "no reason known")


def test_folders_of_dead_drivers_are_removed_and_those_of_living_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_SCRATCH_PLACE", tmp_path)
    dead = tmp_path / f"{ray_cluster._SCRATCH_PREFIX}dead"
    (dead / "r").mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    link = tmp_path / f"{ray_cluster._SCRATCH_PREFIX}link"
    link.symlink_to(other)
    with ray_cluster.scratch_folder() as first:
        assert not dead.exists()
        assert first.stat().st_mode & 0o777 == 0o700
        with ray_cluster.scratch_folder() as second:
            assert first.is_dir()
            assert second.is_dir()
        assert not second.exists()
    assert not first.exists()
    assert link.is_symlink()
    assert other.is_dir()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-port", "127.0.0.1:port"])
def test_an_address_without_a_cluster_is_refused(address: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = address.format(port=closed.getsockname()[1])
        resources = ray_cluster.Resources(address, "cpu", None, 0)
        with (
            pytest.raises(ConfigError, match=f"address='{address}': no Ray cluster could be joined there"),
            ray_cluster.ray_cluster(resources),
        ):
            pass


def test_the_first_signal_is_noted_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with dispatch._interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted.wait(10)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_lost_rows_name_the_candidates_of_the_plan(scene: Scene) -> None:
    work = scene.next_work("t")
    names = CandidateNames(scene.settings.base)
    rows = lost_rows(work, "lost", "gone", names, scene.settings.recipe, seconds_each=2.0)
    expected = next(scene.reports("t"))
    scored = decode_rows(expected["rows"])[0]
    assert rows["candidate"].to_pylist() == scored["candidate"].to_pylist()
    assert scene.plan.is_new(rows).all()


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_holds_on_to_reports_once_they_are_committed(tmp_path: Path) -> None:
    """Else the driver grows with the study, whichever part of Ray Tune it is that keeps them."""
    counts: list[int] = []

    class View:
        def say(self, text: str) -> None: ...

        def show(self, progress: Progress) -> None:
            if not counts and progress.counts[0] == 8:
                counts.append(sum(b"score-r0-s0.25-" in stream for stream in arrow_streams()))

        def finish(self, progress: Progress, *, seconds: float) -> None: ...

        def close(self) -> None: ...

    study = tiny(
        sparsities=[0.25],
        compute={"device": "cpu", "workers": 2, "masks_per_pack": 1},
        record={"enabled": False},
    )
    study.run(tmp_path / "study", view=View())
    assert counts == [0]


def arrow_streams() -> list[bytes]:
    """Bytes that are held by a container of this process and begin as an Arrow stream does."""
    gc.collect()
    held = gc.get_referents(*gc.get_objects())
    held += gc.get_referents(*(one for one in held if type(one) in (dict, tuple) and not gc.is_tracked(one)))
    streams = [one for one in held if type(one) is bytes and one.startswith(b"\xff\xff\xff\xff")]
    return list({id(one): one for one in streams}.values())
