"""Constraints: reading, printing and violations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.search.objective import OBJECTIVES
from sparsefront.spaces.constraints import AFTER_TRAINING, BEFORE_TRAINING, Constraint


@given(
    st.sampled_from([*BEFORE_TRAINING, *AFTER_TRAINING]),
    st.sampled_from(["<=", ">="]),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_constraint_reads_back_as_it_prints(quantity, operator, bound):
    constraint = Constraint(quantity, operator, bound)
    assert Constraint.parse(str(constraint)) == constraint


@pytest.mark.parametrize("text", ["n_params<=20000", " n_params  <= 20_000 ", "n_params <= 2e4", "n_params <= 20000.0"])
def test_ways_to_write_a_bound(text):
    assert Constraint.parse(text) == Constraint("n_params", "<=", 20_000.0)


def test_violations_are_relative_and_signed():
    assert Constraint("n_params", "<=", 100.0).violation(150) == 0.5
    assert Constraint("n_params", "<=", 100.0).violation(100) == 0
    assert Constraint("weight_sparsity", ">=", 0.5).violation(0.25) == 0.5
    assert Constraint("val_loss", "<=", 0.0).violation(2.0) == 2.0
    assert Constraint("val_loss", "<=", -4.0).violation(0.0) == 1.0
    assert Constraint("val_loss", "<=", 1.0).violation(math.nan) == math.inf


def test_what_is_known_before_training():
    assert Constraint.parse("macs <= 1").is_known_before_training
    assert not Constraint.parse("val_error <= 0.5").is_known_before_training


def test_measured_quantities_are_columns_that_may_be_decided_on():
    columns = {o.column for o in OBJECTIVES.values()}
    assert set(AFTER_TRAINING) | set(BEFORE_TRAINING) <= columns
    assert not any(q.startswith("test_") for q in AFTER_TRAINING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_params < 5", "must be a quantity, '<=' or '>=', and a number"),
        ("n_params <= many", "must be a quantity"),
        ("5 >= n_params", "must be a quantity"),
        ("", "must be a quantity"),
        (7, "constraint 7: must be a quantity"),
        ("n_params <= 1e999", "the bound must be finite"),
        ("n_param <= 5", "did you mean 'n_params'"),
        ("test_error <= 0.1", "must be one of n_params"),
        # What searches do not measure is not offered.
        (
            "initial_loss <= 1",
            "'initial_loss' must be one of n_params, .*, val_loss, val_error, passes, flops, seconds;",
        ),
        ("n_params <= 5\nmacs <= 3", "must be a quantity"),
        ("n_params <= 20__0", "must be a quantity"),
        ("n_params <= 20_", "must be a quantity"),
        ("x" * 5000, r"xxx\.\.\.: must be a quantity"),
    ],
)
def test_other_texts_are_refused_in_one_line(text, message):
    with pytest.raises(SpaceError, match=message) as error:
        Constraint.parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
