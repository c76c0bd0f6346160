import numpy as np
import pyarrow as pa
import pytest

from sparsefront.errors import ConfigError
from sparsefront.search.columns import check_columns, equals, numbers_in

TABLE = pa.table(
    {
        "slot": pa.array([0, None, 2**40], pa.int64()),
        "loss": pa.array([0.5, None, float("inf")], pa.float64()),
        "small": pa.array([0.5, None, 1.0], pa.float32()),
        "reused": pa.array([True, None, False]),
        "arm": pa.array(["random", None, "dense"]),
    }
)


@pytest.mark.parametrize("rows", [TABLE, TABLE.to_batches()[0], pa.concat_tables([TABLE[:1], TABLE[1:]])])
def test_columns_of_tables_and_of_batches_read_alike(rows):
    assert np.array_equal(numbers_in(rows, "slot"), [0, np.nan, 2**40], equal_nan=True)
    assert np.array_equal(numbers_in(rows, "loss"), [0.5, np.nan, np.inf], equal_nan=True)
    assert np.array_equal(numbers_in(rows, "small"), [0.5, np.nan, 1.0], equal_nan=True)
    assert np.array_equal(numbers_in(rows, "reused"), [1.0, np.nan, 0.0], equal_nan=True)
    assert numbers_in(rows, "slot").dtype == np.float64
    assert equals(rows, "arm", "random").tolist() == [True, False, False]


def test_no_rows_have_no_numbers():
    assert numbers_in(TABLE[:0], "slot").shape == (0,)
    assert equals(TABLE[:0], "arm", "random").dtype == np.bool_


def test_the_first_column_that_is_missing_is_named():
    check_columns(TABLE, ["arm", "slot"], listed_by="front.front_columns")
    with pytest.raises(
        ConfigError,
        match=r"^column 'outcome' is missing from this table: read it with the columns that "
        r"sparsefront\.search\.front\.front_columns lists$",
    ):
        check_columns(TABLE, ["arm", "outcome", "error"], listed_by="front.front_columns")
