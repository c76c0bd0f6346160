"""Ray's own ASHA, one comparison for each run: against its rule as it is documented, alone and in a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.cluster.halving import LoneTrialScheduler, RayHalving
from sparsefront.search.ledger import Ledger
from sparsefront.study import Study
from tests.faults.test_search_crash import NUMBERS, TINY


def stopped_by_ray(losses: Sequence[float], eta: int) -> list[bool]:
    """Who is stopped at a rung, in order of arrival: whose loss is above the quantile 1/eta of those before it.

    The quantile is interpolated linearly between neighbours; the newcomer is left out, and the first goes on.
    """
    found = []
    for i, loss in enumerate(losses):
        before = sorted(losses[:i])
        at = (len(before) - 1) / eta
        low, high = math.floor(at), math.ceil(at)
        found.append(bool(before) and loss > before[low] + (at - low) * (before[high] - before[low]))
    return found


@given(
    # No loss lies on a quantile between others, where rounding would decide.
    arrivals=st.lists(
        st.tuples(st.sampled_from(["a/0", "a/1", "b/0"]), st.integers(2, 11).map(math.sqrt)), max_size=40
    ),
    eta=st.integers(2, 4),
)
@settings(max_examples=30, deadline=None)
def test_runs_are_compared_each_with_itself(arrivals: list[tuple[str, float]], eta: int) -> None:
    scheduler = LoneTrialScheduler(2, {"a": RayHalving(100, 10, eta), "b": RayHalving(50, 5, 4)})
    said: dict[str, list[bool]] = {}
    for i, (run, loss) in enumerate(arrivals):
        trial = SimpleNamespace(trial_id=f"t{i}")
        result = {"run": run, "steps": 10 if run[0] == "a" else 5, "loss": loss}
        decision = scheduler.on_trial_result(None, trial, result)
        said.setdefault(run, []).append(decision == "STOP")
        assert scheduler.on_trial_result(None, trial, {**result, "loss": None}) == "CONTINUE"
        assert scheduler.on_trial_result(None, trial, {"run": None, "steps": 0, "loss": 0.0}) == "CONTINUE"
        scheduler.on_trial_complete(None, trial, result)  # what it reported last is compared once
    for run, stops in said.items():
        mine = [loss for other, loss in arrivals if other == run]
        assert stops == stopped_by_ray(mine, eta if run[0] == "a" else 4)


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_stops_whom_rays_rule_stops_in_the_order_of_its_ledger(tmp_path: Path) -> None:
    study = {
        **TINY,
        "replicates": 2,
        "space": NUMBERS,
        "rungs": {"kind": "ray_asha", "eta": 2, "min_steps": 4},
        "arms": {"random": {}, "sharp": {"rungs": {"eta": 4}}},
        "compute": {"device": "cpu", "workers": 2},
    }
    folder = tmp_path / "study"
    Study.from_dict(study).run(folder)
    with Ledger.read(folder) as ledger:
        columns = ["stage", "arm", "replicate", "target_sparsity", "slot", "outcome", "rung", "steps", "val_loss"]
        rows = ledger.table(columns=columns).to_pylist()
    ends = {(r["arm"], r["replicate"], r["slot"]): r for r in rows if r["stage"] == "trained"}
    assert len(ends) == 2 * 2 * 12
    outcomes = [row["outcome"] for row in ends.values()]
    assert set(outcomes) == {"completed", "stopped"}
    for arm, eta, ladder in (("random", 2, (4, 8, 16)), ("sharp", 4, (4, 16))):
        for replicate in range(2):
            alive = {slot for name, k, slot in ends if (name, k) == (arm, replicate)}
            for rung, step in enumerate(ladder):
                arrived = [
                    r
                    for r in rows
                    if r["stage"] == "rung" and (r["arm"], r["replicate"], r["rung"]) == (arm, replicate, rung)
                ]
                assert {r["slot"] for r in arrived} == alive, (arm, replicate, rung)
                assert {r["steps"] for r in arrived} == {step}
                stops = stopped_by_ray([r["val_loss"] for r in arrived], eta)
                stopped = {r["slot"] for r, is_stopped in zip(arrived, stops, strict=True) if is_stopped}
                recorded = {
                    slot for slot in alive
                    if ends[arm, replicate, slot]["outcome"] == "stopped" and ends[arm, replicate, slot]["rung"] == rung
                }  # fmt: skip
                assert recorded == stopped, (arm, replicate, rung)
                alive -= stopped
            assert {ends[arm, replicate, slot]["outcome"] for slot in alive} == {"completed"}
