"""A search that is cut off, or loses workers and checkpoints, comes to what it would have come to undisturbed."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from sparsefront.search.ledger import Ledger
from sparsefront.search.strategies import STRATEGIES
from sparsefront.search.work import SegmentWork
from sparsefront.study import Study
from tests.faults.inline_search import CIRCUMSTANCES, CutOff, Died, MortalDisk, rows_of, run_search
from tests.test_study import as_toml

pytestmark = pytest.mark.usefixtures("_one_thread")

HERE = Path(__file__).parent
TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "replicates": 1,
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "training": {"steps": 18, "eval_every": 6, "batch_size": 32},
    "search": {"candidates": 12, "batch": 6},
    "rungs": {"eta": 2, "min_steps": 4, "bracket": 6},
    "record": {"enabled": False},
}
LADDER = (4, 8, 16)
#: Validation examples of a replicate.
N_VALIDATION = 288
LR = {"low": 1e-3, "high": 1e-1, "log": True}
SPARSITY = {"low": 0.0, "high": 0.8}
MIXED: dict[str, Any] = {
    "training": {"lr": LR, "optimizer": {"choices": ["adam", "sgd"]}},
    "model": {"widths": {"low": 2, "high": 8, "depth": {"low": 1, "high": 2}}},
    "masks": {"sparsity": SPARSITY},
}
NUMBERS: dict[str, Any] = {
    "training": {"lr": LR},
    "model": {"widths": {"low": 2, "high": 8, "depth": 2}},
    "masks": {"sparsity": SPARSITY},
}
BITS: dict[str, Any] = {"training": {"lr": LR}, "masks": {"bits": True}}

#: What each strategy is run with: its rungs, and what else it needs.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("mo_asha", {"space": MIXED | {"constraints": ["n_params <= 400"]}}),
    "size_stratified": ("asha", {"space": MIXED}),
    "qmc": ("hyperband", {"space": MIXED}),
    "grid": ("successive_halving", {"space": MIXED}),
    "tpe": ("asha", {"space": MIXED}),
    "nsga2": ("mo_asha", {"space": MIXED}),
    "gp": ("successive_halving", {"space": MIXED}),
    "cmaes": ("hyperband", {"space": NUMBERS, "verdict": {"objectives": ["val_error"]}}),
    "evolution": ("mo_asha", {"space": BITS, "model": {"widths": [6]}, "masks": {"sparsity": 0.7}}),
}
#: With their default number of random draws these would propose nothing else here.
OPTIONS: dict[str, dict[str, int]] = {
    "tpe": {"n_startup_trials": 6},
    "gp": {"n_startup_trials": 6},
    "nsga2": {"population": 6},
    "evolution": {"population": 6},
}
QUICK = ("random", "nsga2", "evolution")

Rows = dict[tuple[Any, ...], dict[str, Any]]


def study_of(arms: Mapping[str, Any], **changes: Any) -> Study:
    return Study(**copy.deepcopy(TINY | {"arms": dict(arms)} | changes))


def strategy_study(name: str) -> Study:
    kind, changes = CASES[name]
    arm = {"strategy": name, "options": OPTIONS.get(name, {}), "rungs": {"kind": kind}}
    return study_of({"random": arm} if name == "random" else {"random": {"candidates": 2}, name: arm}, **changes)


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> None:
    """Rows of one key of two runs: what is exact is the same, and float32 results agree."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in CIRCUMSTANCES or name in but:
            continue
        if isinstance(value, float | list):
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert found[name] == value, name


def assert_same_study(found: Rows, expected: Rows, *, but: tuple[str, ...] = ()) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert_same(found[key], row, but=but)


def trained(rows: Rows) -> dict[tuple[str, int, int], dict[str, Any]]:
    """How each candidate ended, by arm, replicate and number."""
    return {(r["arm"], r["replicate"], r["slot"]): r for r in rows.values() if r["stage"] == "trained"}


def run_with_deaths(study: Study, folder: Path, rng: Random, *, lives: int = 40) -> int:
    """Run a study to its end in several lives of up to `lives` effects, each in packs of other sizes; its deaths.

    How many effects a run has depends on what is ready to be committed together; the first life ends long before.
    """
    n_deaths = 0
    while True:
        sizes = {"slots": rng.randint(1, 3), "max_lanes": rng.randint(1, 8)}
        last = rng.randint(1, lives if n_deaths else 8)
        try:
            run_search(study, folder, **sizes, order=rng.random(), disk=MortalDisk(last))
        except Died:
            n_deaths += 1
        else:
            return n_deaths


def assert_halved(rows: Rows, *, arm: str, eta: int, bracket: int) -> int:
    """By successive halving of every bracket, from the recorded losses alone; how many were compared in vain."""
    by_rung: dict[tuple[int, int, int], list[tuple[float, int]]] = defaultdict(list)
    for row in rows.values():
        if row["stage"] == "rung" and row["arm"] == arm:
            place = row["replicate"], row["slot"] // bracket, row["rung"]
            by_rung[place].append((row["val_loss"], row["slot"]))
    ends = trained(rows)
    n_stopped = 0
    for (replicate, _, rung), reached in by_rung.items():
        n_best = max(1, len(reached) // eta)
        for place, (_, slot) in enumerate(sorted(reached)):
            end = ends[arm, replicate, slot]
            is_stopped_here = end["outcome"] == "stopped" and end["rung"] == rung
            assert is_stopped_here == (place >= n_best), (replicate, rung, slot)
            n_stopped += is_stopped_here
    return n_stopped


@pytest.mark.fault
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STRATEGIES]
)
def test_a_search_cut_off_at_any_moment_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    study = strategy_study(name)
    run_search(study, tmp_path / "whole")
    expected = rows_of(tmp_path / "whole")
    outcomes = {row["outcome"] for row in expected.values() if row["arm"] == name}
    assert {None, "completed", "stopped"} <= outcomes <= {None, "completed", "stopped", "infeasible"}
    assert run_with_deaths(study, tmp_path / "often", Random(name)) >= 1
    assert_same_study(rows_of(tmp_path / "often"), expected)
    assert not [*tmp_path.rglob("*.tmp"), *tmp_path.rglob("*.safetensors")]


def test_an_asynchronous_search_that_is_cut_off_is_finished_and_every_candidate_ends_once(tmp_path: Path) -> None:
    rungs = {"kind": "asha", "asynchronous": True}
    study = study_of({"random": {"rungs": rungs}}, space=MIXED)
    assert run_with_deaths(study, tmp_path / "a", Random(1)) >= 2
    rows = rows_of(tmp_path / "a")
    assert sorted(trained(rows)) == [("random", 0, i) for i in range(12)]
    assert sum(row["stage"] == "rung" and row["rung"] == 0 for row in rows.values()) == 12


def test_a_search_in_other_packs_and_another_order_is_the_same(tmp_path: Path) -> None:
    arms = {"random": {"rungs": {"kind": "hyperband"}}, "asha": {"rungs": {"kind": "asha"}}}
    study = study_of(arms, space=MIXED)
    run_search(study, tmp_path / "a", max_lanes=2)
    run_search(study, tmp_path / "b", slots=4, max_lanes=5, order=1)
    assert_same_study(rows_of(tmp_path / "b"), rows_of(tmp_path / "a"))


def test_what_loses_its_checkpoint_trains_anew_and_pays_for_it(tmp_path: Path) -> None:
    study = study_of({"random": {"rungs": {"kind": "successive_halving"}}}, space=MIXED)
    run_search(study, tmp_path / "whole")
    expected = rows_of(tmp_path / "whole")
    folder = tmp_path / "a"
    n_lost = 0

    def lose(work: SegmentWork) -> None:
        """Of every two checkpoints the first is removed and the second cut short, before anyone goes on from them."""
        nonlocal n_lost
        for path in sorted((folder / "checkpoints").glob("*.safetensors")):
            if n_lost % 2:
                path.write_bytes(path.read_bytes()[:-4])
            else:
                path.unlink()
            n_lost += 1

    run_search(study, folder, max_lanes=3, on_report=lose)
    found = rows_of(folder)
    assert n_lost >= 3
    costs = ("passes", "flops")
    assert_same_study(found, expected, but=costs)
    for key, row in expected.items():
        stage, _, _, rung, _ = key
        if row["outcome"] == "stopped" or (stage, rung) == ("rung", 0.0):
            assert found[key]["passes"] == pytest.approx(row["passes"])
        else:  # all of its steps again, and what validation came on the way
            before = LADDER[int(rung) - 1] if stage == "rung" else LADDER[-1]
            assert found[key]["passes"] >= row["passes"] + before * 32
            assert found[key]["steps"] == row["steps"]


@pytest.mark.parametrize(
    ("fidelity", "seed"), [("steps", 0), ("data_fraction", 1), pytest.param("steps", 2, marks=pytest.mark.slow)]
)
def test_who_loses_the_newest_checkpoint_goes_on_from_the_one_before(fidelity: str, seed: int, tmp_path: Path) -> None:
    rungs = {"kind": "successive_halving", "fidelity": fidelity}
    study = study_of({"random": {"rungs": rungs}}, space=MIXED)
    run_search(study, tmp_path / "whole")
    expected = rows_of(tmp_path / "whole")
    folder, rng, damaged = tmp_path / "a", Random(seed), set[Path]()

    def damage(work: SegmentWork) -> None:
        """Cut the newest file short at random moments, but none if the one that it would be replaced by is gone."""
        files = sorted((folder / "checkpoints").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        if files and not damaged & set(files) and rng.random() < 0.7:
            files[-1].write_bytes(files[-1].read_bytes()[: rng.randrange(files[-1].stat().st_size)])
            damaged.add(files[-1])

    run_search(study, folder, max_lanes=3, slots=2, order=seed, on_report=damage)
    assert len(damaged) >= 2
    found = rows_of(folder)
    assert_same_study(found, expected, but=("passes", "flops"))
    # What each row costs: its own segment, and before it the one from the rung before if that was lost.
    n_repeated = 0
    for key, row in expected.items():
        stage, arm, replicate, rung, slot = key
        extra = found[key]["passes"] - row["passes"]
        before = int(rung) - 1 if stage == "rung" else len(LADDER) - 1
        if extra and before >= 0 and row["outcome"] != "stopped":
            n_repeated += 1
            assert extra == pytest.approx(expected["rung", arm, replicate, float(before), slot]["passes"])
        else:
            assert extra == 0
    assert n_repeated >= 1


@pytest.mark.parametrize(
    "kind", ["none", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("asha", "ray_asha"))]
)
def test_big_candidates_whose_workers_are_lost_pay_for_every_step_once(kind: str, tmp_path: Path) -> None:
    """One candidate a trial, a checkpoint at every validation point, and half of the packs cut off at one of these."""
    rungs = {"kind": kind} | ({"fidelity": "data_fraction"} if kind == "asha" else {})
    compute = {"lanes_per_pack": 1, "checkpoint_every_s": 1e-9}
    training = TINY["training"] | {"eval_every": 3}
    study = study_of({"random": {"rungs": rungs}}, space=MIXED, compute=compute, training=training)
    run_search(study, tmp_path / "whole", max_lanes=1)
    expected = rows_of(tmp_path / "whole")
    rng, cut = Random(kind), set[str]()
    n_deaths = 0
    while True:
        disk = MortalDisk(rng.randint(10, 40))
        try:
            run_search(study, tmp_path / "a", max_lanes=1, disk=disk, wrap=lambda runner: CutOff(runner, rng, cut))
        except Died:
            n_deaths += 1
        else:
            break
    assert n_deaths >= 1
    found = rows_of(tmp_path / "a")
    assert_same_study(found, expected)
    assert any(row["attempt"] for row in found.values())
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("way")]


def chain_study(kind: str = "weight", /, **rungs: Any) -> Study:
    """Candidates that prune themselves to unlike sparsities at unlike rates, compared at ends of levels."""
    masks = {
        "sparsity": {"low": 0.0, "high": 0.8},
        "rate": {"low": 0.3, "high": 0.5},
        "rewind_fraction": {"choices": [0.0, 0.5]},
        **({"ap_fraction": {"choices": [0.0, 0.1]}} if kind == "weight" else {}),
    }
    return study_of(
        {"random": {}},
        masks={"method": "imp", "kind": kind, **({"allocation": "uniform"} if kind == "node" else {})},
        space={"training": {"lr": LR}, "model": {"widths": {"low": 4, "high": 8, "depth": 2}}, "masks": masks},
        training={"steps": 6, "eval_every": 4, "batch_size": 32},
        rungs={"kind": "asha", "eta": 2, "bracket": 6, "fidelity": "level", "min_steps": 1} | rungs,
    )


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["weight", "node"])
def test_chains_that_are_cut_off_go_on_at_their_level(kind: str, tmp_path: Path) -> None:
    study = chain_study(kind)
    run_search(study, tmp_path / "whole")
    expected = rows_of(tmp_path / "whole")
    rungs = [row for row in expected.values() if row["stage"] == "rung"]
    assert {row["rung"] for row in rungs} >= {0, 1}
    for row in rungs:
        assert row["steps"] == 6 * 2 ** row["rung"]
        assert (row["mask_digest"] is None) == (row["mask_kind"] == "none") == (row["rung"] == 0)
        assert (row["weight_sparsity"] == 0) == (row["rung"] == 0)
    ends = trained(expected)
    assert {row["outcome"] for row in ends.values()} == {"completed", "stopped"}
    for row in ends.values():
        if row["outcome"] == "completed":
            found, few = row[f"{kind}_sparsity"], 0.01 if kind == "weight" else 0.5 / 4  # half a node of the layer
            assert found == pytest.approx(row["sparsity"], abs=few)
    run_search(study, tmp_path / "otherwise", slots=3, max_lanes=2, order=1)
    assert_same_study(rows_of(tmp_path / "otherwise"), expected)
    n_deaths = 0
    for seed in range(4):
        folder = tmp_path / f"deaths{seed}"
        n_deaths += run_with_deaths(study, folder, Random(seed))
        assert_same_study(rows_of(folder), expected)
    assert n_deaths > 2


@pytest.mark.fault
def test_chains_that_lose_their_checkpoints_begin_anew(tmp_path: Path) -> None:
    study = chain_study(kind="successive_halving")
    run_search(study, tmp_path / "whole")

    def lose(work: SegmentWork) -> None:
        for path in (tmp_path / "lost" / "checkpoints").glob("*.safetensors"):
            path.unlink()

    run_search(study, tmp_path / "lost", max_lanes=3, on_report=lose)
    expected, found = rows_of(tmp_path / "whole"), rows_of(tmp_path / "lost")
    assert_same_study(found, expected, but=("passes", "flops"))
    assert sum(row["passes"] for row in found.values()) > sum(row["passes"] for row in expected.values())


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["weight", "node"])
def test_masks_cut_before_training_are_cut_and_paid_for_once(kind: str, tmp_path: Path) -> None:
    """Beside masks that are drawn, and chains, in arms of one study."""
    allocation = {"allocation": "uniform"}
    choices = ["random", "snip", *(["random_snip_ratio"] if kind == "weight" else [])]
    arms = {
        "random": {"candidates": 4},
        "scored": {"space": {"masks": {"method": {"choices": choices}, **(allocation if kind == "node" else {})}}},
        **(
            {"imp": {"space": {"masks": {"method": "imp"}}, "rungs": {"kind": "none"}, "candidates": 2}}
            if kind == "weight"
            else {}
        ),
    }
    study = study_of(
        arms,
        space={**MIXED, "masks": {"sparsity": {"low": 0.3, "high": 0.8}}},
        masks={"kind": kind},
        search=TINY["search"] | {"probe_size": 40},
        rungs=TINY["rungs"] | {"kind": "asha"},
    )
    run_search(study, tmp_path / "whole")
    expected = rows_of(tmp_path / "whole")
    ends = trained(expected)
    assert {row["outcome"] for row in ends.values()} == {"completed", "stopped"}
    assert {row["method"] for row in ends.values()} == {*choices, *(["imp"] if "imp" in arms else [])}
    for row in expected.values():
        if row["arm"] == "scored" and row["stage"] == "rung" and row["rung"] == 0:
            assert row["mask_kind"] == kind
            making = {"random": 0, "snip": 40, "random_snip_ratio": 40}[row["method"]]
            assert row["passes"] == pytest.approx(4 * 32 + making + N_VALIDATION / 3)
    run_search(study, tmp_path / "otherwise", slots=3, max_lanes=2, order=1)
    assert_same_study(rows_of(tmp_path / "otherwise"), expected)
    assert run_with_deaths(study, tmp_path / "often", Random(kind)) >= 1
    assert_same_study(rows_of(tmp_path / "often"), expected)


@pytest.mark.fault
def test_without_any_checkpoint_a_search_is_resumed(tmp_path: Path) -> None:
    study = study_of({"random": {"rungs": {"kind": "asha"}}}, space=MIXED)
    run_search(study, tmp_path / "whole")
    for last in (20, 20, 20):
        with pytest.raises(Died):
            run_search(study, tmp_path / "a", max_lanes=2, disk=MortalDisk(last))
        shutil.rmtree(tmp_path / "a" / "checkpoints")
    run_search(study, tmp_path / "a")
    assert_same_study(rows_of(tmp_path / "a"), rows_of(tmp_path / "whole"), but=("passes", "flops"))


def test_what_diverges_is_never_compared(tmp_path: Path) -> None:
    space = {"training": {"lr": {"choices": [0.01, 0.03, 1e30]}}, "masks": {"sparsity": SPARSITY}}
    arms = {"random": {"rungs": {"kind": "successive_halving"}, "candidates": 24}}
    study = study_of(arms, space=space, model={"widths": [5]}, training=TINY["training"] | {"optimizer": "sgd"})
    run_search(study, tmp_path / "a", slots=2, max_lanes=4)
    rows = rows_of(tmp_path / "a")
    diverged = {place for place, row in trained(rows).items() if row["outcome"] == "diverged"}
    assert diverged
    for row in rows.values():
        if row["stage"] == "rung" or row["outcome"] in ("completed", "stopped"):
            assert np.isfinite(row["val_loss"])
            assert row["lr"] < 1
        else:
            assert (row["outcome"], row["val_loss"], row["val_error"]) == ("diverged", None, None)
            assert row["lr"] == 1e30
    assert assert_halved(rows, arm="random", eta=2, bracket=6) > 0


def test_a_changed_study_is_not_resumed(tmp_path: Path) -> None:
    study = study_of({"random": {}}, space=MIXED)
    with pytest.raises(Died):
        run_search(study, tmp_path, disk=MortalDisk(12))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changes = {"space": MIXED | {"masks": {"sparsity": {"low": 0.0, "high": 0.9}}}, "search": {"candidates": 13}}
    other = study_of({"random": {}}, **changes)
    with pytest.raises(OSError, match=r"holds another study \(changed: ") as refused:
        run_search(other, tmp_path)
    for change in ("space.masks.sparsity.high: 0.8 -> 0.9", "search.candidates: 12 -> 13"):
        assert change in str(refused.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.fault
@pytest.mark.slow
def test_a_candidate_that_kills_its_worker_is_isolated_and_its_bracket_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    arms = {"random": {"rungs": {"kind": "successive_halving"}}, "asha": {"rungs": {"kind": "asha"}}}
    study = study_of(arms, space=NUMBERS, model={"name": "misbehaving:family"})
    toml = tmp_path / "tiny.toml"
    table = json.loads(study.model_dump_json())
    table["arms"] = {name: {"rungs": arm["rungs"]} for name, arm in table["arms"].items()}
    toml.write_text(as_toml(table), encoding="utf-8")

    def run(folder: Path, behaviour: Mapping[str, str]) -> Rows:
        subprocess.run(
            [sys.executable, str(HERE / "inline_search.py"), str(toml), str(folder)],
            check=True,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
                "MISBEHAVIOUR": json.dumps(behaviour),
                "OMP_NUM_THREADS": "1",
            },
        )
        return rows_of(folder)

    expected = run(tmp_path / "whole", {})
    culprits = {0: "die", 4: "raise", 7: "die"}
    of_random = {slot: expected["trained", "random", 0, 0.0, slot] for slot in culprits}
    ends = {"die": "lost", "raise": "failed"}
    digests = {
        row["mask_digest"]: culprits[slot]
        for (stage, arm, _, rung, slot), row in expected.items()
        if (stage, arm, rung) == ("rung", "random", 0.0) and slot in of_random
    }
    assert len(digests) == len(culprits)
    found = run(tmp_path / "a", digests)
    assert not [row for row in trained(expected).values() if row["outcome"] in ("lost", "failed")]
    for arm in arms:  # both meet the same candidates
        for slot, how in culprits.items():
            row = found["trained", arm, 0, 0.0, slot]
            assert (row["outcome"], row["rung"], row["val_loss"]) == (ends[how], None, None)
            assert row["error"]
            assert row["candidate"] == of_random[slot]["candidate"]
    for key, row in expected.items():
        stage, _, _, rung, slot = key
        if (stage, rung) == ("rung", 0.0):
            assert (key in found) == (slot not in culprits)
            if key in found:
                assert_same(found[key], row)
    assert sorted(trained(found)) == sorted(trained(expected))
    assert assert_halved(found, arm="random", eta=2, bracket=6) > 0


@pytest.mark.fault
@pytest.mark.slow
def test_a_ledger_cut_at_any_commit_decides_the_same(tmp_path: Path) -> None:
    """Whatever prefix of the commits survives: those who went on in it go on, and those who stopped have stopped."""
    study = strategy_study("nsga2")
    run_search(study, tmp_path / "whole", max_lanes=3)
    expected = rows_of(tmp_path / "whole")
    for cut in range(3, len(expected), len(expected) // 3):
        with (
            Ledger.read(tmp_path / "whole") as ledger,
            Ledger.create(tmp_path / str(cut), dict(ledger.study), digest=ledger.study_digest, versions={}) as copied,
        ):
            copied.commit(ledger.table().slice(0, cut).combine_chunks().to_batches()[0])
        run_search(study, tmp_path / str(cut), max_lanes=8)
        assert_same_study(rows_of(tmp_path / str(cut)), expected, but=("passes", "flops"))
