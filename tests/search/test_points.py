"""Points survive a table, and what is no point of the space is refused."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import LedgerError
from sparsefront.search.points import points_from_rows, points_to_columns
from sparsefront.search.schema import schema_of
from sparsefront.search.strategies.contract import example_tasks
from sparsefront.spaces.masks import mask_digest
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space


def _no_blobs(digest: str) -> bytes:
    raise AssertionError(digest)


UNLIKE: dict[str, Any] = {
    "training": {
        "lr_schedule": {"choices": ["constant", "cosine"]},
        "warmup_fraction": {"low": 0.0, "high": 0.2},
        "precision": {"choices": ["float32", "bfloat16"]},
        "nesterov": {"flag": True},
    },
    "masks": {
        "kind": {"choices": ["node", "weight"]},
        "pattern": {"choices": ["unstructured", "2:4", "4x4"]},
        "sparsity": {"low": 0.2, "high": 0.9},
    },
}
SPACES = {**{name: task.space for name, task in example_tasks().items()}, "unlike masks": Space.from_table(UNLIKE)}


@given(
    example=st.sampled_from(["numbers", "conditions", "mask bits", "unlike masks"]),
    seed=st.integers(0, 99),
    n=st.integers(0, 20),
)
def test_round_trip_through_parquet(example: str, seed: int, n: int) -> None:
    space = SPACES[example]
    points = space.draw(philox_key(seed, "test"), 0, n)
    ledger = schema_of({"resolved": {"columns": dict(space.columns)}})
    schema = pa.schema([ledger.field(ledger.get_all_field_indices(name)[-1]) for name in space.names])
    table = pa.table(points_to_columns(points, space), schema=schema).append_column(
        "candidate", pa.array(["x"] * n, pa.string())
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    blobs = {mask_digest(v): v for p in points for v in p.values() if isinstance(v, bytes)}
    read = points_from_rows(pq.read_table(pa.BufferReader(file.getvalue())), space, blobs.__getitem__)
    assert read == points
    assert [list(map(type, p.values())) for p in read] == [list(map(type, p.values())) for p in points]


def test_columns_are_read_as_tables_are() -> None:
    space = example_tasks()["conditions"].space
    points = space.draw(philox_key(0, "test"), 0, 5)
    assert points_from_rows(points_to_columns(points, space), space, _no_blobs) == points


def test_a_space_without_dimensions_has_points_too() -> None:
    assert points_from_rows({"candidate": ["a", "b"]}, Space.from_table({}), _no_blobs) == [{}, {}]


_LR: dict[str, Any] = {"training": {"lr": {"low": 0.1, "high": 1.0}}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"slot": [1]}, "column 'lr' is missing"),
        ({"lr": [0.5, 7.0]}, "row 1: point: lr=7.0"),
        ({"lr": [None]}, "row 0: point: lr is missing"),
    ],
)
def test_rows_of_another_space_are_refused(rows: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(LedgerError) as raised:
        points_from_rows(rows, Space.from_table(_LR), _no_blobs)
    assert message in str(raised.value)


def test_a_damaged_blob_is_refused() -> None:
    space = example_tasks()["mask bits"].space
    columns = points_to_columns(space.draw(philox_key(0, "test"), 0, 1), space)
    with pytest.raises(LedgerError) as raised:
        points_from_rows(columns, space, lambda digest: b"\x00\x00\x00")
    assert f"mask {columns['mask_bits'][0]}: the blob's content has another digest" in str(raised.value)
