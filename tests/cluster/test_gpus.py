"""What trials get of a cluster's GPUs: of GPUs that are declared to Ray, for there need be none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.cluster.dispatch import dispatch
from sparsefront.cluster.ray_cluster import _ENVIRONMENT, Resources
from sparsefront.cluster.worker import WorkerSettings
from sparsefront.errors import ConfigError
from sparsefront.search.ledger import Ledger
from sparsefront.study import SearchStudy, Study
from sparsefront.trainables.data import load_dataset
from tests.faults.test_search_crash import NUMBERS, TINY

HERE = Path(__file__).parent


def study_of(**changes: Any) -> Study:
    return Study(**{**TINY, "space": NUMBERS, "arms": {"random": {}}, **changes})


@pytest.mark.parametrize("gpus", [0.0001, 0.25, 1 / 3, 1.0, 2.0, 8.0])
def test_a_share_of_a_gpu_or_whole_ones_are_accepted(gpus: float) -> None:
    assert study_of(compute={"gpus_per_trial": gpus}).compute.gpus_per_trial == gpus


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (1.5, r"compute.gpus_per_trial=1.5: must be a share of one GPU, or a whole number of them"),
        (0.0, r"compute.gpus_per_trial=0.0: .*0.0001"),
        (0.00005, r"compute.gpus_per_trial=5e-05: .*0.0001"),
    ],
)
def test_what_ray_would_refuse_once_it_runs_is_refused_before(gpus: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_of(compute={"gpus_per_trial": gpus})


@given(
    st.integers(0, 64),
    st.integers(0, 8),
    st.integers(1, 8),
    st.one_of(st.integers(1, 4).map(float), st.integers(1, 12).map(lambda n: 1 / n), st.floats(0.01, 1)),
)
def test_room_on_a_machine_is_what_fits_gpu_by_gpu(cpus: int, gpus: int, cpus_each: int, gpus_each: float) -> None:
    resources = Resources(None, "cuda", None, 0, cpus_per_trial=cpus_each, gpus_per_trial=gpus_each)
    left, n = [1.0] * gpus, 0
    while True:  # one pack after the other, as many as there is room for
        cpus -= cpus_each
        place = next((i for i, share in enumerate(left) if share >= gpus_each - 1e-9), None)
        if gpus_each > 1:
            free = [i for i, share in enumerate(left) if share == 1.0]
            place = 0 if len(free) >= gpus_each else None
        if cpus < 0 or place is None:
            break
        for i in free[: int(gpus_each)] if gpus_each > 1 else [place]:
            left[i] -= min(1.0, gpus_each)
        n += 1
    assert resources.room({"CPU": float(cpus + (n + 1) * cpus_each), "GPU": float(gpus)}) == n


def test_messages_say_what_a_pack_takes() -> None:
    assert str(Resources(None, "cuda", None, 0, cpus_per_trial=4, gpus_per_trial=0.5)) == "CPU: 4 and GPU: 0.5"
    assert str(Resources(None, "cpu", None, 0)) == "CPU: 1"


Run = Callable[[float, int], list[dict[str, Any]]]


@pytest.fixture
def run_on_declared_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs big candidates on a cluster with so many GPUs that nobody looks for: its workers train on the CPU."""
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("SEEN", str(seen))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.syspath_prepend(HERE)
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def run(gpus_per_trial: float, n_gpus: int) -> list[dict[str, Any]]:
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=n_gpus,
            include_dashboard=False,
            object_store_memory=256 << 20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        study = study_of(model={"name": "seeing_family:family"}, search={"candidates": 12, "batch": 12})
        assert isinstance(study, SearchStudy)
        dataset = load_dataset("digits", study.data.options)
        settings = WorkerSettings(
            recipe=study.recipe(),
            base=study.base(),
            device="cpu",
            timeout_s=60.0,
            memory_bytes=None,
            checkpoints=str(tmp_path / "study" / "checkpoints"),
            import_paths=(str(HERE),),
            **study._worker_options(dataset),
        )
        resources = Resources(None, "cuda", None, 0, gpus_per_trial=gpus_per_trial)
        slots = resources.capacity()
        plan = study._plan(dataset, slots, "cpu")
        plan.resize(workers=slots, max_lanes=1)
        with Ledger.create(tmp_path / "study", study.recorded(dataset), digest="0" * 64, versions={}) as ledger:
            dispatch(
                plan,
                ledger,
                settings,
                dataset,
                resources,
                slots=slots,
                on_commit=lambda rows: None,
                on_tick=lambda: None,
            )
            assert ledger.table().column("outcome").to_pylist() == ["completed"] * 12
        return [json.loads(path.read_text(encoding="utf-8")) for path in seen.iterdir()]

    yield run
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus_per_trial", "n_gpus", "visible"),
    [(0.5, 1, ["0", "0"]), (0.6, 2, ["0", "1"]), (1.0, 2, ["0", "1"]), (2.0, 2, ["0,1"])],
)
def test_every_worker_has_what_was_asked_for_and_sees_that_alone(
    gpus_per_trial: float, n_gpus: int, visible: list[str], run_on_declared_gpus: Run
) -> None:
    """The device 'cuda' of a worker is the first that it sees."""
    seen = run_on_declared_gpus(gpus_per_trial, n_gpus)
    assert sorted(worker["visible"] for worker in seen) == visible
    for worker in seen:
        assert worker["assigned"]["CPU"] == 1
        assert worker["assigned"]["GPU"] == gpus_per_trial
