import math

import numpy as np
import pyarrow as pa
import pytest

from sparsefront.errors import ConfigError
from sparsefront.search import objective
from sparsefront.search.objective import OBJECTIVES, ideal_point, losses, natural, objectives_named, worst_bounds
from sparsefront.search.schema import SCHEMA, is_test_result, schema_of
from sparsefront.trainables import quality

MEASURED = schema_of(
    {
        "resolved": {
            "columns": {
                **{name: f"test_{c.kind}" for name, c in quality.COLUMNS.items()},
                **{f"val_{name}": "float64" for name, c in quality.COLUMNS.items() if c.kind == "float64"},
            }
        }
    }
)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_a_numeric_column_that_is_no_test_result(name):
    column = MEASURED.field(OBJECTIVES[name].column)
    assert pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    assert not column.name.startswith("test_")
    assert is_test_result(column) == OBJECTIVES[name].on_test, "those measured there say so"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_better_is_lower_for_every_objective(name):
    column = OBJECTIVES[name].column
    low_and_high = pa.table({column: pa.array([0.0, 1.0]).cast(MEASURED.field(column).type)})
    matrix = losses(low_and_high, [name])
    stored_lower_is_better = not OBJECTIVES[name].higher_is_better or OBJECTIVES[name].from_one
    assert (matrix[0, 0] < matrix[1, 0]) == stored_lower_is_better


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bounds_enclose_and_are_ordered(name):
    best, worst = ideal_point([name])[0], worst_bounds([name])[0]
    assert math.isnan(worst) or best < worst


@pytest.mark.parametrize("name", [name for name, o in OBJECTIVES.items() if o.on_test])
def test_what_is_measured_on_test_examples_is_there_on_validation_examples_too(name):
    mine, theirs = OBJECTIVES[name], OBJECTIVES[f"val_{name}"]
    assert theirs.column == f"val_{mine.column}"
    assert (theirs.unit, theirs.higher_is_better, theirs.quality) == (mine.unit, mine.higher_is_better, mine.quality)
    assert not theirs.on_test


def test_of_a_shift_to_either_side_the_size_counts():
    table = pa.table({"val_length_shift": [-0.5, 0.25, None]})
    assert np.array_equal(losses(table, ["val_length_shift"])[:, 0], [0.5, 0.25, np.nan], equal_nan=True)
    assert ideal_point(["val_length_shift"]) == [0.0]


def test_nulls_become_nan_and_integers_floats():
    table = pa.table({"n_params": pa.array([10, None], pa.int64()), "val_error": [None, 0.5]})
    assert np.array_equal(losses(table, ["n_params", "val_error"]), [[10.0, np.nan], [np.nan, 0.5]], equal_nan=True)


def test_record_batches_do_as_well_as_tables():
    batch = pa.record_batch({"val_error": [0.25]})
    assert losses(batch, ["val_accuracy"]) == [[-0.75]]


def test_no_rows():
    assert losses(SCHEMA.empty_table(), ["val_error", "macs"]).shape == (0, 2)


def test_natural_undoes_the_flip():
    table = pa.table({"val_error": [0.25, 0.5], "macs": [3, 4]})
    assert natural(losses(table, ["val_accuracy", "macs"]), ["val_accuracy", "macs"]).tolist() == [[0.75, 3], [0.5, 4]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test_error"], "objective='test_error': test results are reported and never decide; use 'val_error'"),
        (["val_eror"], "objective='val_eror': accepted are val_error, .*; did you mean 'val_error'"),
        (["accuracy"], "objective='accuracy': accepted are .*; did you mean 'val_accuracy'"),
        (["qqq"], "objective='qqq': accepted are val_error"),
        (["macs", "macs"], "objective='macs' is named twice"),
        ([], "name at least one of val_error"),
    ],
)
def test_refused_names(names, message):
    with pytest.raises(ConfigError, match=message):
        objectives_named(names)


def test_a_table_without_the_column_is_refused():
    with pytest.raises(ConfigError, match="objective='macs' needs the column 'macs', which this table does not have"):
        losses(pa.table({"val_error": [0.5]}), ["val_error", "macs"])


def test_only_this_module_knows_directions():
    assert objective.OBJECTIVES["val_accuracy"].higher_is_better
