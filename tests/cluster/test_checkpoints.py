"""Checkpoints that are still needed stay, all others go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsefront.cluster.checkpoints import CheckpointKeeper
from sparsefront.cluster.rows import name_in_pack
from sparsefront.trainables.checkpoints import LaneState, OnTheWay, list_checkpoints, write_checkpoint
from tests.synthetic_exploration import batch_of

RUNG = {"stage": "rung", "outcome": None}
END = {"stage": "trained", "checkpoint": None}


def row_of(slot: int, **more: Any) -> dict[str, Any]:
    return {"candidate": f"{slot:032x}", "arm": "random", "replicate": 0, "slot": slot, "steps": 4} | more


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    return lambda step: write_checkpoint(tmp_path, {"a": LaneState(step, {})})


@pytest.mark.parametrize("outcome", ["completed", "stopped", "diverged", "lost"])
def test_the_rung_before_is_kept_until_the_next_one_or_the_end(outcome: str, tmp_path: Path, checkpoint: Any) -> None:
    names = [checkpoint(step) for step in (1, 2, 3)]
    keeper = CheckpointKeeper(tmp_path)
    keeper.learn(batch_of([row_of(0, **RUNG, checkpoint=names[0])]))
    keeper.learn(batch_of([row_of(0, **RUNG, checkpoint=names[1])]))
    assert set(list_checkpoints(tmp_path)) == set(names)
    keeper.learn(batch_of([row_of(0, **RUNG, checkpoint=names[2])]))
    assert set(list_checkpoints(tmp_path)) == set(names[1:])
    keeper.learn(batch_of([row_of(0, **END, outcome=outcome)]))
    assert list_checkpoints(tmp_path) == []


def test_a_file_of_several_candidates_waits_for_all_of_them(tmp_path: Path, checkpoint: Any) -> None:
    shared, *own = (checkpoint(step) for step in (1, 2, 3, 4))
    keeper = CheckpointKeeper(tmp_path)
    keeper.learn(batch_of([row_of(slot, **RUNG, checkpoint=shared) for slot in range(2)]))
    keeper.learn(batch_of([row_of(0, **RUNG, checkpoint=own[0])]))
    keeper.learn(batch_of([row_of(0, **RUNG, checkpoint=own[1])]))
    assert shared in list_checkpoints(tmp_path)
    keeper.learn(batch_of([row_of(1, **END, outcome="stopped")]))
    assert shared not in list_checkpoints(tmp_path)


def test_weights_that_a_level_of_a_study_of_masks_begins_with_go_once_it_has(tmp_path: Path, checkpoint: Any) -> None:
    names = [checkpoint(step) for step in (1, 2)]
    keeper = CheckpointKeeper(tmp_path)
    for name in names:
        keeper.learn(batch_of([row_of(0, stage="level", outcome="completed", checkpoint=name)]))
    assert list_checkpoints(tmp_path) == names[1:]


def test_what_was_left_on_the_way_goes_with_its_segment(tmp_path: Path) -> None:
    """And not what the next segment has left by then, whose worker did not wait for the commit."""
    keeper = CheckpointKeeper(tmp_path)
    ways = {}
    for slot, stop in ((0, 4), (0, 8), (0, 18), (1, 18)):
        way = OnTheWay(tmp_path, name_in_pack(f"{slot:032x}", "random", slot), stop)
        way.write(LaneState(3, {"weights": {}}))
        ways[slot, stop] = way
    # A state without weights is none to go on from: what counts here are the files.
    folders = {at: way._folder for at, way in ways.items()}
    keeper.learn(batch_of([row_of(0, **RUNG, steps=4, checkpoint="0" * 64)]))
    assert [at for at, folder in folders.items() if folder.exists()] == [(0, 8), (0, 18), (1, 18)]
    keeper.learn(batch_of([row_of(0, **END, outcome="stopped", steps=4)]))
    assert [at for at, folder in folders.items() if folder.exists()] == [(1, 18)]
    keeper.clear()
    assert not tmp_path.exists()
