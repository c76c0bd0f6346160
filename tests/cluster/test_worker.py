from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from sparsefront.cluster.rows import batch
from sparsefront.cluster.worker import (
    PackRunner,
    Report,
    WorkerSettings,
    _encode,
    decode_rows,
    outcome_of,
)
from sparsefront.search.methods import Cut
from sparsefront.search.plan import Lane, ScoreWork, Slot, TrainWork
from sparsefront.spaces.candidate import Candidate, CandidateNames
from sparsefront.spaces.pruning import Pruning
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.workshop import ScoredMasks, Workshop

STUDY: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "replicates": 1,
    "sparsities": [0.5],
    "data": {"name": "digits"},
    "model": {"name": "mlp", "widths": [8]},
    "search": {"draws": 8, "probe_size": 20, "random_draws": 3},
    "training": {"batch_size": 50, "steps": 2, "eval_every": 1},
}


def settings_of(**changes: Any) -> WorkerSettings:
    study = Study.from_dict({**STUDY, **changes})
    return WorkerSettings(study.recipe(), study.base(), "cpu", 60.0, None)


def runner_of(settings: WorkerSettings) -> PackRunner:
    return PackRunner(settings, load_dataset("digits", Study.from_dict(STUDY).data.options))


def lane(settings: WorkerSettings, candidate: Candidate, *slots: Slot) -> Lane:
    return Lane(candidate, CandidateNames(settings.base).of(candidate), slots)


def work_out(runner: PackRunner) -> list[Report]:
    reports = [runner.step()]
    while not reports[-1]["done"]:
        reports.append(runner.step())
    return reports


def rows_of(reports: list[Report]) -> list[dict[str, Any]]:
    return [row for r in reports for batch in decode_rows(r["rows"]) for row in batch.to_pylist()]


def test_one_report_is_one_batch_of_rows() -> None:
    settings = settings_of()
    runner = runner_of(settings)
    runner.start(ScoreWork(0, 0.5, 0, 6), {})
    reports = work_out(runner)
    assert all(len(decode_rows(report["rows"])) <= 1 for report in reports)
    assert [row["slot"] for row in rows_of(reports)] == list(range(6))
    assert {row["outcome"] for row in rows_of(reports)} == {"completed"}
    last = {"rows": None, "blobs": {}, "done": True, "problem": None, "run": None, "steps": 0, "loss": None}
    assert runner.step() == last


def test_parents_send_the_masks_that_were_cut_from_them() -> None:
    settings = settings_of()
    runner = runner_of(settings)
    parent = lane(settings, Candidate(0, 0.0, "parent"), Slot("dense", 0))
    parent = dataclasses.replace(parent, cuts=(Cut("magnitude", 0.5, Pruning("trained")),))
    runner.start(TrainWork((parent,)), {})
    reports = work_out(runner)
    rows = rows_of(reports)
    assert [(row["stage"], row["arm"], row["slot"]) for row in rows] == [
        ("trained", "dense", 0),
        ("pruned", "magnitude", 0),
    ]
    assert {digest for report in reports for digest in report["blobs"]} == {rows[1]["mask_digest"]}


def test_a_candidate_whose_mask_is_not_there_fails_alone() -> None:
    settings = settings_of()
    runner = runner_of(settings)
    lanes = (
        lane(settings, Candidate(0, 0.5, "masked", draw=0), Slot("random", 0)),
        lane(settings, Candidate(0, 0.5, "masked", mask="0" * 32), Slot("magnitude", 0)),
    )
    runner.start(TrainWork(lanes), {})
    rows = {row["arm"]: row for row in rows_of(work_out(runner))}
    assert rows["random"]["outcome"] == "completed"
    assert rows["magnitude"]["outcome"] == "failed"
    assert rows["magnitude"]["error"].startswith(f"mask={'0' * 32!r}: its stored bits are missing")


def test_networks_that_diverge_are_recorded_without_losses() -> None:
    settings = settings_of(training={**STUDY["training"], "optimizer": "sgd", "lr": 1e30})
    runner = runner_of(settings)
    lanes = [lane(settings, Candidate(0, 0.5, "masked", draw=i), Slot("random", i)) for i in range(3)]
    runner.start(TrainWork(tuple(lanes)), {})
    rows = rows_of(work_out(runner))
    assert [(row["slot"], row["outcome"], row["val_loss"]) for row in rows] == [(i, "diverged", None) for i in range(3)]


@pytest.mark.parametrize(
    ("error", "outcome"), [(ZeroDivisionError("user"), "failed"), (MemoryError(), "out_of_memory")]
)
def test_scoring_that_breaks_is_divided_until_the_culprit_is_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    score = Workshop.score

    def break_at_5(workshop: Workshop, replicate: int, sparsity: float, start: int, stop: int) -> ScoredMasks:
        if start <= 5 < stop:
            raise error
        return score(workshop, replicate, sparsity, start, stop)

    settings = settings_of()
    runner = runner_of(settings)
    runner.start(ScoreWork(0, 0.5, 0, 8), {})
    expected = rows_of(work_out(runner))
    monkeypatch.setattr(Workshop, "score", break_at_5)
    runner.start(ScoreWork(0, 0.5, 0, 8), {})
    found = rows_of(work_out(runner))
    assert [row["slot"] for row in found] == list(range(8))
    for a, b in zip(found, expected, strict=True):
        assert a["candidate"] == b["candidate"]
        assert a["outcome"] == (outcome if a["slot"] == 5 else "completed")
        if a["slot"] != 5:
            np.testing.assert_allclose(a["initial_loss"], b["initial_loss"], rtol=1e-5)
    assert type(error).__name__ in found[5]["error"]


def test_a_worker_that_cannot_be_prepared_says_so() -> None:
    settings = settings_of()
    broken = dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, model="no.such:family"))
    runner = runner_of(broken)
    runner.start(ScoreWork(0, 0.5, 0, 2), {})
    report = runner.step()
    assert report["done"]
    assert str(report["problem"]).startswith("ConfigError: model.name='no.such:family': cannot be imported")


HANGING = """
import sys
from sparsefront.cluster.worker import PackRunner, WorkerSettings
from sparsefront.search.plan import ScoreWork
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.workshop import Workshop
study = Study.from_dict({study!r})
runner = PackRunner(WorkerSettings(study.recipe(), study.base(), "cpu", 0.5, None), load_dataset("digits", {{}}))
runner._workshop = Workshop(study.recipe(), load_dataset("digits", {{}}), __import__("torch").device("cpu"))
def hang(*_):
    print("hanging", flush=True)
    (2).__pow__(10**12)  # in C, with the interpreter's lock held
Workshop.score = hang
runner.start(ScoreWork(0, 0.5, 0, 2), {{}})
runner.step()
"""


@pytest.mark.fault
@pytest.mark.slow
def test_a_hang_that_holds_the_interpreters_lock_ends_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING.format(study=STUDY)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert ended.stdout == "hanging\n"
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "in hang" in ended.stderr


def test_what_exceptions_mean() -> None:
    assert outcome_of(torch.OutOfMemoryError()) == "out_of_memory"
    assert outcome_of(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) == "out_of_memory"
    assert outcome_of(RuntimeError("anything else")) == "failed"


def test_decoded_rows_let_go_of_their_report() -> None:
    rows = batch({"stage": "scored", "slot": list(range(100))}, 100)
    payload = _encode([rows])
    assert payload is not None
    before = sys.getrefcount(payload)
    decoded = decode_rows(payload)
    assert decoded[0].equals(rows)
    del decoded
    gc.collect()
    assert sys.getrefcount(payload) == before


def test_what_is_loaded_ahead_is_no_garbage_and_other_garbage_is_looked_for():
    asked = """
import gc, sys
import sparsefront.cluster.ahead
frozen = gc.get_freeze_count()
is_loaded = "sparsefront.cluster.worker" in sys.modules
print(is_loaded, gc.isenabled(), frozen > 100_000, len(gc.get_objects()) < frozen / 10)
"""
    answer = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True"] * 4
