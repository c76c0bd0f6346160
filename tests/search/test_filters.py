import ast
import contextlib

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import dataset, parquet

from sparsefront.errors import ConfigError
from sparsefront.search.filters import (
    ALIASES,
    ALIASES_OF_SEARCHES,
    COMPLEMENTS,
    MAX_LENGTH,
    parse_where,
    where_columns,
)
from sparsefront.search.schema import SCHEMA, VALUES

ROWS = [
    {"arm": "random", "slot": 0, "target_sparsity": 0.5, "val_error": 0.25, "reused": False, "lr": 0.01},
    {"arm": "random", "slot": 1, "target_sparsity": 0.9, "val_error": 0.5, "reused": True, "lr": None},
    {"arm": "searched", "slot": 0, "target_sparsity": 0.9, "val_error": None, "reused": None, "lr": 0.1},
    {"arm": None, "slot": 2, "target_sparsity": 0.95, "val_error": float("nan"), "reused": False, "lr": 1.0},
]
TABLE = pa.Table.from_pylist([dict.fromkeys(SCHEMA.names) | row for row in ROWS], schema=SCHEMA)


def kept(where, **options):
    numbered = TABLE.append_column("row", pa.array(range(len(ROWS))))
    return numbered.filter(parse_where(where, **options))["row"].to_pylist()


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("slot == 0", [0, 2]),
        ("slot != 0", [1, 3]),
        ("slot < 1.5", [0, 1, 2]),
        ("slot > -1", [0, 1, 2, 3]),
        ("0.5 <= sparsity < 0.95", [0, 1, 2]),
        ("0.9 == sparsity", [1, 2]),
        ("0 < slot <= 1", [1]),
        ("val_accuracy > 0.6", [0]),
        ("1 > val_accuracy >= 0.5", [0, 1]),
        ("arm == 'random'", [0, 1]),
        ("arm != 'random'", [2]),
        ("not arm == 'random'", [2]),
        ('arm in ("random",)', [0, 1]),
        ("arm not in ['random']", [2]),
        ("arm in ('random', 'searched') and slot == 0", [0, 2]),
        ("arm in ()", []),
        ("slot in (0, 2.0)", [0, 2, 3]),
        ("slot not in {0}", [1, 3]),
        ("sparsity in (0.9, 0.95)", [1, 2, 3]),
        ("val_accuracy in (0.75, 0.5)", [0, 1]),
        ("lr is None", [1]),
        ("lr is not None", [0, 2, 3]),
        ("val_error is not None", [0, 1, 3]),
        ("curve_step is None", [0, 1, 2, 3]),
        ("committed_at is None", [0, 1, 2, 3]),
        ("reused", [1]),
        ("not reused", [0, 3]),
        ("reused == False", [0, 3]),
        ("reused in (True,)", [1]),
        ("reused == true", [1]),
        ("reused != true and reused in (true, false)", [0, 3]),
        ("true", [0, 1, 2, 3]),
        ("reused or slot == 2", [1, 3]),
        ("(arm == 'random' or arm == 'searched') and not (slot == 1)", [0, 2]),
        ("arm == 'random' or arm == 'searched' and slot == 1", [0, 1]),
        ("val_error < lr", []),
        ("lr < val_error", [0]),
        ("True", [0, 1, 2, 3]),
        ("slot == 0 and False", []),
        ("  slot == 0  ", [0, 2]),
        ("slot == 1e0", [1]),
    ],
)
def test_meaning(where, rows):
    assert kept(where) == rows


def test_filters_reach_down_into_files(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(TABLE, path, row_group_size=1)
    stored = dataset.dataset(path)
    for where in ("val_accuracy > 0.6", "arm in ('random',)", "slot not in (0,)", "not reused", "lr is None"):
        found = stored.to_table(filter=parse_where(where))
        assert found["slot"].equals(TABLE.filter(parse_where(where))["slot"])
        assert found.num_rows > 0


def test_times_are_utc_unless_they_say_otherwise():
    table = pa.table({"committed_at": pa.array([0, 3_600_000_000], pa.timestamp("us", tz="UTC"))})
    assert table.filter(parse_where("committed_at >= '1970-01-01T01:00:00'")).num_rows == 1
    assert table.filter(parse_where("'1970-01-01' < committed_at")).num_rows == 1
    assert table.filter(parse_where("committed_at < '1970-01-01T01:00:00+01:00'")).num_rows == 0
    assert table.filter(parse_where("committed_at in ('1970-01-01',)")).num_rows == 1


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "where='': must be a condition"),
        ("slot ==", "where='slot ==': invalid syntax"),
        ("slot = 1", "where='slot = 1': "),
        ("slo == 1", "there is no column 'slo'; did you mean 'slot'\\? \\(all columns: docs/columns.md, or"),
        ("arm == searched", "there is no column 'searched'; text is written in quotes: 'searched' \\(all columns: "),
        ("arm == dens", "there is no column 'dens'; text is written in quotes: 'dens' \\("),
        ("stage in (trained, 'rung')", "there is no column 'trained'; text is written in quotes: 'trained'"),
        ("arm > 1", "arm is a string and 1 a number; compare like with like"),
        ("slot == '1'", "slot is a number and '1' a string"),
        ("reused == 1", "reused is a boolean and 1 a number"),
        ("slot == True", "slot is a number and True a boolean"),
        ("reused > False", "reused is a boolean, accepted are == and !="),
        ("arm == slot", "arm is a string and slot a number"),
        ("slot in ('a',)", "slot is a number and 'a' a string"),
        ("arm in 'random'", "\"'random'\" stands after 'in'; accepted is a list"),
        ("arm in (slot,)", "'slot' is in a list; only numbers, strings and booleans"),
        ("1 in (1,)", "'1' is no column; write 'column in"),
        ("1 < 2", "1 and 2 are both literals; name a column"),
        ("lr == None", "'None' is compared with ==; write 'is None'"),
        ("lr is 3", "'3' stands after 'is'; only None may"),
        ("3 is None", "'3' is no column; 'is None' asks"),
        ("slot", "'slot' is a number column and no condition"),
        ("slot + 1 == 2", "'slot \\+ 1' is neither a column nor a number"),
        ("(slot == 1) & (slot == 2)", "uses & or |; write 'and' or 'or'"),
        ("__import__('os').system('true')", "is no condition; accepted are comparisons"),
        ("arm.__class__ == 'a'", "'arm.__class__' is neither a column nor"),
        ("arm[0] == 'r'", "'arm\\[0\\]' is neither a column nor"),
        ("f'{arm}' == 'r'", "is neither a column nor"),
        ("b'r' == arm", "is neither a column nor"),
        ("1j == slot", "is neither a column nor"),
        ("(lambda: 1) == slot", "is neither a column nor"),
        ("slot == 99999999999999999999", "is too large; accepted are 64-bit numbers"),
        ("slot < 1e999", "is too large"),
        ("curve_step == 3", "curve_step holds lists, accepted is curve_step is None"),
        ("committed_at > 'yesterday'", "'yesterday' is no ISO date"),
        ("committed_at > 5", "committed_at is a time and 5 a number"),
        ("test_error < 0.1", "test_error is a test result, which is reported and never decides; use val_error"),
        ("test_accuracy > 0.1", "test_accuracy is a test result"),
        ("arm == '\\d'", "where="),
        ("(" * 1000 + "slot" + ")" * 1000 + " == 1", "where="),
        ("not " * 1000 + "reused", "where="),
        ("slot == 1 " * MAX_LENGTH, f"characters long, accepted are {MAX_LENGTH}"),
        ("slot == 1\x00", "where="),
    ],
)
def test_refused(where, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_where(where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("arm == 'impp'", "where=\"arm == 'impp'\": arm='impp' must be one of random, imp; did you mean 'imp'?"),
        ("'impp' != arm", "arm='impp' must be one of random, imp; did you mean 'imp'?"),
        ("arm in ('random', 'impp')", "arm='impp' must be one of random, imp; did you mean 'imp'?"),
        ("not arm not in ['zzz']", "arm='zzz' must be one of random, imp"),
        ("stage == 'traned'", "stage='traned' must be one of scored, trained, pruned, level, rung; did you mean 'tra"),
        ("outcome == 'complete'", "; did you mean 'completed'?"),
        ("mask_kind == 'nodes'", "mask_kind='nodes' must be one of none, node, weight; did you mean 'node'?"),
        ("optimizer == 'adma'", "optimizer='adma' must be one of adam, sgd; did you mean 'adam'?"),
    ],
)
def test_text_that_a_column_never_holds_is_refused(where, message):
    with pytest.raises(ConfigError) as caught:
        parse_where(where, values={**VALUES, "arm": ["random", "imp"]})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_known_of_a_column_is_not_refused():
    assert kept("arm == 'nobody' or device == 'cpu'") == []
    assert kept("arm < 'z'", values={"arm": ["random"]}) == [0, 1, 2]


@pytest.mark.parametrize("name", ["sparsity", "level"])
def test_a_search_has_no_levels_unless_it_searches_them(name):
    with pytest.raises(ConfigError) as caught:
        parse_where(f"{name} > 0.8", aliases=ALIASES_OF_SEARCHES)
    assert f"there is no column '{name}', for it is not searched; what candidates have is in node_spars" in str(
        caught.value
    )
    schema = SCHEMA.append(pa.field(name, pa.float64()))
    assert isinstance(parse_where(f"{name} > 0.8", aliases=ALIASES_OF_SEARCHES, schema=schema), pc.Expression)
    assert isinstance(parse_where("params > 8", aliases=ALIASES_OF_SEARCHES), pc.Expression)


def test_test_columns_can_be_asked_for_when_nothing_is_decided():
    assert kept("test_error is None and test_loss is None", allow_test=True) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [*SCHEMA.names, *ALIASES, *COMPLEMENTS])
def test_every_column_can_be_asked_for(name):
    TABLE.filter(parse_where(f"{name} is None", allow_test=True))


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_by_name(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_where(text), pc.Expression)


literals = st.one_of(st.integers(-3, 3), st.floats(-2, 2).map(lambda x: round(x, 2))).map(str)
comparisons = st.builds(
    "{} {} {}".format, st.sampled_from(["slot", "lr", "sparsity"]), st.sampled_from(["<", ">=", "==", "!="]), literals
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=6,
)


def truth(node, row):
    """Three-valued logic, slowly: None is unknown."""
    if isinstance(node, ast.BoolOp):
        values = [truth(value, row) for value in node.values]
        decisive = isinstance(node.op, ast.Or)
        return decisive if decisive in values else (None if None in values else not decisive)
    if isinstance(node, ast.UnaryOp):
        value = truth(node.operand, row)
        return None if value is None else not value
    left = row[ALIASES.get(node.left.id, node.left.id)]
    right = ast.literal_eval(node.comparators[0])
    if left is None:
        return None
    return {"Lt": left < right, "GtE": left >= right, "Eq": left == right, "NotEq": left != right}[
        type(node.ops[0]).__name__
    ]


@given(conditions)
def test_logic_agrees_with_three_valued_truth(where):
    tree = ast.parse(where, mode="eval").body
    assert kept(where) == [i for i, row in enumerate(ROWS) if truth(tree, row) is True]


def test_a_value_that_is_near_a_column_is_still_told_to_want_quotes() -> None:
    values = {"arm": ["random", "slots"]}
    with pytest.raises(ConfigError, match=r"there is no column 'slots'; text is written in quotes: 'slots' \("):
        parse_where("arm == slots", values=values)
    with pytest.raises(ConfigError, match=r"there is no column 'slotz'; did you mean 'slot'\? \("):
        parse_where("slotz == 3", values=values)


def test_columns_of_a_condition_are_those_it_names() -> None:
    assert where_columns("not reused and (lr < 0.1 or 'arm' == mask_kind) and val_accuracy > lr") == [
        "reused", "lr", "mask_kind", "val_error"
    ]  # fmt: skip
