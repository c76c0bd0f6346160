"""A search on Ray whose driver and worker are killed comes to what it comes to in one process without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsefront.cluster.dispatch import _Messenger
from sparsefront.study import Study
from tests.faults.inline_search import rows_of
from tests.faults.test_search_crash import NUMBERS, TINY, assert_same_study
from tests.faults.test_study_ray import (
    PROGRAM,
    Gate,
    assert_nobody_left,
    ended,
    family_of,
    n_rows,
    scratch_folders,
    wait_until,
    workers_of,
)
from tests.test_study import as_toml

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow]

HERE = Path(__file__).parent
STUDY = TINY | {
    "model": {"name": "misbehaving:family"},
    "space": NUMBERS | {"constraints": ["n_params <= 600"]},
    "arms": {
        "random": {"rungs": {"kind": "successive_halving"}},
        "nsga2": {"strategy": "nsga2", "options": {"population": 6}, "rungs": {"kind": "mo_asha"}},
    },
    "compute": {"device": "cpu", "workers": 2, "lanes_per_pack": 2},
}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "COLUMNS": "200"}


#: Few long trainings without rungs, one a trial.
BIG = STUDY | {
    "model": {"name": "mlp"},
    "space": NUMBERS,
    "arms": {"random": {}},
    "training": {"steps": 40_000, "eval_every": 200, "batch_size": 32},
    "search": {"candidates": 3, "batch": 3},
    "compute": {"device": "cpu", "workers": 2, "lanes_per_pack": 1, "checkpoint_every_s": 0.3},
}


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "tiny.toml"
    path.write_text(as_toml(STUDY), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def big_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "big.toml"
    path.write_text(as_toml(BIG), encoding="utf-8")
    return path


@pytest.fixture
def start(toml: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``sparsefront run``; what is left of it at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, study: Path = toml, **environment: str) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "run", str(study), "--dir", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | environment,
            start_new_session=True,
        )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.kill()
        driver.communicate()


@pytest.fixture(scope="module")
def whole(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search without disturbance and without Ray, in one process."""
    return run_inline(toml, tmp_path_factory.mktemp("whole"))


def run_inline(toml: Path, folder: Path, *, max_lanes: int = 5) -> Path:
    code = (
        "import sys; from inline_search import *; torch.set_num_threads(1); torch.set_flush_denormal(True);"
        f"run_search(Study.from_toml(sys.argv[1]), Path(sys.argv[2]), max_lanes={max_lanes})"
    )
    subprocess.run([sys.executable, "-c", code, str(toml), str(folder)], check=True, env=ENVIRONMENT)
    return folder


def test_a_search_whose_driver_and_worker_are_killed_comes_to_the_same_end(
    start: Callable[..., subprocess.Popen[str]], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    expected = rows_of(whole)
    gate = Gate(tmp_path / "tickets")

    driver = start(folder, **gate.environment)
    gate.let_through(lambda: n_rows(folder, "rung") >= 7, "candidates at rungs")
    processes = family_of(driver.pid)
    driver.kill()
    driver.communicate()
    assert_nobody_left(processes, set())
    done = rows_of(folder)
    assert done.keys() < expected.keys()

    driver = start(folder, **gate.environment)
    worker = wait_until(lambda: workers_of(driver), "workers")[0]
    processes = family_of(driver.pid)
    os.kill(worker, signal.SIGKILL)
    gate.open()
    code, out, err = ended(driver)
    assert code == 0, (out, err)
    assert_nobody_left(processes, scratch_folders(processes))
    found = rows_of(folder)
    assert done.items() <= found.items()
    assert_same_study(found, expected)
    assert not list(folder.rglob("*.tmp"))


def test_a_big_candidate_goes_on_from_where_its_worker_and_its_driver_were_killed(
    start: Callable[..., subprocess.Popen[str]], big_toml: Path, tmp_path: Path
) -> None:
    """Without rungs, and every step is paid for once."""
    expected = rows_of(run_inline(big_toml, tmp_path / "whole", max_lanes=1))
    folder = tmp_path / "a"
    way = folder / "checkpoints" / "way"

    def left() -> set[Path]:
        return {path for path in way.glob("*/*.safetensors") if len(path.stem) == 64}

    driver = start(folder, big_toml)
    wait_until(lambda: len({path.parent for path in left()}) == 2, "two candidates on their way")
    driver.kill()
    driver.communicate()
    before = wait_until(left, "checkpoints")
    assert n_rows(folder, "trained") < 3

    driver = start(folder, big_toml)
    wait_until(lambda: left() - before, "another checkpoint")
    os.kill(workers_of(driver)[0], signal.SIGKILL)
    code, out, err = ended(driver)
    assert code == 0, (out, err)
    found = rows_of(folder)
    assert_same_study(found, expected)
    assert not (folder / "checkpoints").exists()
    with_steps = [row["curve_step"] for row in found.values()]
    assert all(steps == list(range(200, 40_001, 200)) for steps in with_steps)


def test_no_worker_is_given_up_while_a_strategy_waits_for_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune ends a worker that has nothing to do, and a search would go on with one of two."""
    packs_of: Counter[str] = Counter()
    began = _Messenger.on_trial_start

    def counted(self: _Messenger, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        packs_of[trial.temporary_state.ray_actor._actor_id.hex()] += 1
        began(self, iteration, trials, trial, **info)

    monkeypatch.setattr(_Messenger, "on_trial_start", counted)
    arm = {"strategy": "nsga2", "options": {"population": 4}, "against": []}
    study = {
        **TINY,
        "space": NUMBERS,
        "arms": {"nsga2": arm},
        "search": {**TINY["search"], "candidates": 48, "batch": 8},
        "compute": {"device": "cpu", "workers": 2, "lanes_per_pack": 2},
    }
    Study.from_dict(study).run(tmp_path / "study")
    assert len(packs_of) == 2
    # Twelve packs and more in six batches: half of them each, give or take.
    assert min(packs_of.values()) >= sum(packs_of.values()) / 4
