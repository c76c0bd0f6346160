"""Packs measured against their prediction."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.search.pack_times import PACK_TIME_COLUMNS, PackTimes, pack_times
from tests.synthetic_exploration import batch_of


def row(pack: str, seconds: float, predicted_s: float | None, **more: Any) -> dict[str, Any]:
    known = {"stage": "trained", "outcome": "completed", "device": "cpu", "attempt": 0}
    return {**known, "pack": pack, "seconds": seconds, "predicted_s": predicted_s, **more}


def test_a_pack_is_all_its_rows_and_packs_are_compared_on_each_device() -> None:
    rows = [
        row("a", 1.0, 2.0, stage="rung", outcome=None),
        row("a", 3.0, 2.0, outcome="diverged"),
        row("b", 3.0, 1.0),
        row("b", 4.0, 2.0, attempt=1),  # the same candidates once more: another pack
        row("a", 5.0, 1.0, device="gpu"),
    ]
    assert pack_times([batch_of(rows)]) == [
        PackTimes("cpu", 3, 11.0, 7.0, median=2.0, low=1.5, high=2.5),
        PackTimes("gpu", 1, 5.0, 1.0, median=5.0, low=5.0, high=5.0),
    ]


@pytest.mark.parametrize(
    "odd",
    [
        row("x", 0.0, None, device=None, outcome="stopped"),  # a decision of the driver
        row("x", 30.0, 2.0, device=None, outcome="lost"),
        row("x", 30.0, 2.0, outcome="out_of_memory"),
        row("x", 30.0, 2.0, device=None, outcome="timeout"),
        row("x", 30.0, None),  # of a study of masks
    ],
)
def test_what_was_not_predicted_or_broke_off_does_not_count(odd: dict[str, Any]) -> None:
    assert pack_times([batch_of([odd])]) == []
    assert pack_times([batch_of([odd, row("a", 1.0, 2.0)])]) == pack_times([batch_of([row("a", 1.0, 2.0)])])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=20))
def test_neither_order_nor_commits_show(packs: list[tuple[str, float, float]]) -> None:
    rows = [row(*pack) for pack in packs]
    whole = batch_of(rows)
    (found,) = pack_times([whole])
    assert [found] == pack_times([whole.slice(0, 1), whole.slice(1)])
    (turned,) = pack_times([batch_of(rows[::-1])])
    assert turned.n_packs == found.n_packs == len({pack for pack, _, _ in packs})
    assert turned.median == pytest.approx(found.median)
    assert found.low <= found.median <= found.high
    assert found.seconds == pytest.approx(sum(seconds for _, seconds, _ in packs))


def test_only_the_columns_that_are_named_are_needed() -> None:
    batch: pa.RecordBatch = batch_of([row("a", 1.0, 2.0)])
    assert pack_times([batch.select(list(PACK_TIME_COLUMNS))])[0].median == 0.5
