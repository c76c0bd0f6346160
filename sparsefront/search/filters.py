"""The ``--where`` expressions: a small Python-like language over the ledger's columns, turned into Arrow filters.

    node_sparsity >= 0.9 and val_error < 0.3
    arm in ("random", "searched") and not reused
    0.5 <= sparsity < 0.95 or lr is None

The text is parsed by Python's ``ast`` and walked; nothing of it is ever evaluated. As in SQL, a comparison with a
missing value is never true, nor is its negation; ask for missing values with ``is None``.
"""

from __future__ import annotations

import ast
import datetime as dt
import math
import operator
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError, did_you_mean, nearest
from sparsefront.search.schema import SCHEMA, VALUES, is_test_result

#: Bounds the work (and the parser's recursion) that a text from outside can cause.
MAX_LENGTH = 4096

#: Names that are easier to type than what they stand for; accuracies are complements of errors.
ALIASES = {"sparsity": "target_sparsity", "params": "n_params", "level": "target_sparsity"}
#: Those that mean something in a search, whose candidates are made for no level.
ALIASES_OF_SEARCHES = {"params": "n_params"}
COMPLEMENTS = {"val_accuracy": "val_error", "test_accuracy": "test_error"}

#: Where the columns of a study are listed: there are too many for a message.
_ALL_COLUMNS = "all columns: docs/columns.md, or the first line of --format csv"

#: As TOML and JSON write them, beside Python's own.
_BOOLEANS = {"true": True, "false": False}

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class _Operand:
    """One side of a comparison: an Arrow expression, its kind, and how the user wrote it."""

    expression: Any
    kind: str
    text: str
    literal: bool
    value: object = None


def parse_where(
    text: str,
    *,
    allow_test: bool = False,
    schema: pa.Schema = SCHEMA,
    values: Mapping[str, Collection[str]] = VALUES,
    aliases: Mapping[str, str] = ALIASES,
) -> pc.Expression:
    """Parse a filter over the columns of the ledger.

    Args:
        text: comparisons (chained too) of columns with literals or columns, ``in`` and ``not in`` with a list of
            literals, ``is None`` and ``is not None``, ``and``, ``or``, ``not``, parentheses; a boolean column stands
            for itself. ``sparsity`` stands for ``target_sparsity``, ``val_accuracy`` for 1 - ``val_error``;
            ``committed_at`` is compared with an ISO date in quotes (UTC unless it says otherwise).
        allow_test: accept columns measured on test examples. A front never does: validation decides, test reports.
        schema: columns of the ledger that is asked.
        values: all that columns of text can hold, where that is known; others are refused, for they match nothing.
        aliases: names of `ALIASES` that stand for a column here.

    Returns:
        An expression for ``Table.filter`` or a dataset scan. Rows for which it is null are left out.

    Raises:
        ConfigError: naming the offending piece and what is accepted there.

    >>> table = pa.table({"arm": ["random", "worst"], "val_error": [0.25, 0.5]})
    >>> table.filter(parse_where("val_accuracy > 0.6 and arm != 'worst'")).to_pylist()
    [{'arm': 'random', 'val_error': 0.25}]
    """
    shown = text.strip()
    if not shown:
        raise ConfigError("where='': must be a condition such as \"node_sparsity >= 0.9 and arm == 'random'\"")
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"where={shown[:40]!r}...: {len(text)} characters long, accepted are {MAX_LENGTH}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as an unknown escape: a message of ours, not one on the terminal
            tree = ast.parse(shown, mode="eval")
        return _Parser(shown, schema, values, aliases, allow_test=allow_test).condition(tree.body)
    except SyntaxError as error:
        place = f" at character {error.offset}" if error.offset else ""
        raise ConfigError(
            f"where={shown!r}: {error.msg}{place}; conditions look like "
            "\"node_sparsity >= 0.9 and arm in ('random', 'searched')\""
        ) from None
    except (RecursionError, MemoryError, ValueError, Warning) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"where={shown[:80]!r}: cannot be read ({type(error).__name__}); simplify it") from None


def where_columns(text: str) -> list[str]:
    """List the ledger's columns that a condition speaks of, in its order.

    >>> where_columns("val_accuracy > 0.6 and arm != 'lr' and 0.1 < lr < 0.5 and val_error < 1")
    ['val_error', 'arm', 'lr']
    """
    nodes = ast.walk(ast.parse(text.strip(), mode="eval"))
    names = [node for node in nodes if isinstance(node, ast.Name) and node.id not in _BOOLEANS]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    return list(dict.fromkeys(COMPLEMENTS.get(node.id, node.id) for node in names))


class _Parser:
    """Walks a syntax tree and refuses whatever the language does not have."""

    def __init__(
        self,
        text: str,
        schema: pa.Schema,
        values: Mapping[str, Collection[str]],
        aliases: Mapping[str, str],
        *,
        allow_test: bool,
    ) -> None:
        self.text = text
        self.schema = schema
        self.values = values
        self.aliases = aliases
        self.allow_test = allow_test

    def condition(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=op, values=values):
                conditions = [self.condition(value) for value in values]
                joined = conditions[0]
                for other in conditions[1:]:
                    joined = joined & other if isinstance(op, ast.And) else joined | other
                return joined
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.condition(operand)
            case ast.Compare():
                return self.comparison(node)
            case ast.Name():
                column = self.operand(node)
                if column.kind != "boolean":
                    raise self.error(node, f"is a {column.kind} column and no condition; compare it with something")
                return column.expression
            case ast.Constant(value=bool(value)):
                return pc.scalar(value)
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                raise self.error(node, "uses & or |; write 'and' or 'or'")
            case _:
                raise self.error(node, "is no condition; accepted are comparisons, in, is None, and, or, not")

    def comparison(self, node: ast.Compare) -> pc.Expression:
        operands = [node.left, *node.comparators]
        parts = [
            self.pair(left, op, right) for left, op, right in zip(operands[:-1], node.ops, operands[1:], strict=True)
        ]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined & part
        return joined

    def pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self.error(right, "stands after 'is'; only None may, use == for values")
            column = self.operand(left)
            if column.literal:
                raise self.error(left, "is no column; 'is None' asks whether a column's value is missing")
            # NaN is a value that was measured: only null counts as missing.
            return column.expression.is_null() if isinstance(op, ast.Is) else column.expression.is_valid()
        if isinstance(op, ast.In | ast.NotIn):
            return self.membership(left, right, negated=isinstance(op, ast.NotIn))
        one, two = self.operand(left), self.operand(right)
        for operand in (one, two):
            if operand.literal and operand.value is None:
                raise self.error(left if operand is one else right, "is compared with ==; write 'is None'")
        one, two = self.compatible(one, two)
        if one.literal and two.literal:
            raise ConfigError(f"where={self.text!r}: {one.text} and {two.text} are both literals; name a column")
        if one.kind == "boolean" and not isinstance(op, ast.Eq | ast.NotEq):
            raise ConfigError(f"where={self.text!r}: {one.text} is a boolean, accepted are == and !=")
        if isinstance(op, ast.Eq | ast.NotEq):
            self.check_value(*((two, one) if one.literal else (one, two)))
        compared: pc.Expression = _COMPARE[type(op)](one.expression, two.expression)
        return compared

    def membership(self, left: ast.expr, right: ast.expr, *, negated: bool) -> pc.Expression:
        column = self.operand(left)
        if column.literal:
            raise self.error(left, "is no column; write 'column in (value, ...)'")
        if not isinstance(right, ast.Tuple | ast.List | ast.Set):
            raise self.error(right, "stands after 'in'; accepted is a list such as ('random', 'searched')")
        values: list[object] = []
        for element in right.elts:
            literal = self.operand(element)
            if not literal.literal or literal.value is None:
                raise self.error(element, "is in a list; only numbers, strings and booleans may be")
            values.append(self.compatible(column, literal)[1].value)
            self.check_value(column, literal)
        if column.kind == "number":
            expression = column.expression.cast(pa.float64()).isin(pa.array(map(_as_float, values), pa.float64()))
        elif column.kind == "time":
            expression = column.expression.isin(pa.array(values, SCHEMA.field("committed_at").type))
        else:
            expression = column.expression.isin(values) if values else pc.scalar(False)
        # Arrow's isin is false for null, which would make "not in" true for it; ours is null as in a comparison.
        return column.expression.is_valid() & ~expression if negated else expression

    def check_value(self, column: _Operand, literal: _Operand) -> None:
        """Refuse text that a column never holds: it was mistyped, and would match nothing."""
        known = self.values.get(column.text, ())
        if known and literal.literal and literal.value not in known:
            raise ConfigError(f"where={self.text!r}: {column.text}={literal.text} {nearest(str(literal.value), known)}")

    def operand(self, node: ast.expr) -> _Operand:
        text = ast.unparse(node)
        match node:
            case ast.Name(id="true" | "false" as name):
                return _Operand(pc.scalar(_BOOLEANS[name]), "boolean", text, literal=True, value=_BOOLEANS[name])
            case ast.Name(id=name):
                return self.column(name)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
                if not isinstance(value, bool):
                    return self.number(node, -value if isinstance(sign, ast.USub) else value)
            case ast.Constant(value=bool(value)):
                return _Operand(pc.scalar(value), "boolean", text, literal=True, value=value)
            case ast.Constant(value=int() | float() as value):
                return self.number(node, value)
            case ast.Constant(value=str(value)):
                return _Operand(pc.scalar(value), "string", text, literal=True, value=value)
            case ast.Constant(value=None):
                return _Operand(None, "missing", text, literal=True)
            case _:
                pass
        raise self.error(node, "is neither a column nor a number, string, True, False or None")

    def number(self, node: ast.expr, value: float) -> _Operand:
        if (isinstance(value, int) and abs(value) >= 2**63) or not math.isfinite(value):
            raise self.error(node, "is too large; accepted are 64-bit numbers")
        return _Operand(pc.scalar(value), "number", ast.unparse(node), literal=True, value=value)

    def column(self, name: str) -> _Operand:
        stored = name if name in self.schema.names else COMPLEMENTS.get(name, self.aliases.get(name, name))
        known = [*self.schema.names, *self.aliases, *COMPLEMENTS]
        if not self.allow_test:
            tests = {field.name for field in self.schema if is_test_result(field)}
            known = [column for column in known if column not in tests and not column.startswith("test_")]
        is_test = stored in self.schema.names and is_test_result(self.schema.field(stored))
        if (is_test or stored.startswith("test_")) and not self.allow_test:
            instead = f"; use {name.replace('test_', 'val_')}" if name.startswith("test_") else ""
            raise ConfigError(
                f"where={self.text!r}: {name} is a test result, which is reported and never decides{instead}"
            )
        if stored not in self.schema.names:
            instead = did_you_mean(name, known)
            if name in ALIASES and name not in self.aliases:
                instead = ", for it is not searched; what candidates have is in node_sparsity and weight_sparsity"
            elif not instead or any(name in held for held in self.values.values()):
                instead = f"; text is written in quotes: '{name}'"
            raise ConfigError(f"where={self.text!r}: there is no column {name!r}{instead} ({_ALL_COLUMNS})")
        kind = _kind(self.schema.field(stored).type)
        expression = pc.field(stored)
        if name in COMPLEMENTS:
            expression = pc.subtract(pc.scalar(1.0), expression)
        return _Operand(expression, kind, name, literal=False)

    def compatible(self, one: _Operand, two: _Operand) -> tuple[_Operand, _Operand]:
        """Turn a string beside a time into a time; refuse other kinds that differ."""
        if one.kind == "time" and two.literal and two.kind == "string":
            return one, self.time(two)
        if two.kind == "time" and one.literal and one.kind == "string":
            return self.time(one), two
        if "list" in (one.kind, two.kind):
            column = one if one.kind == "list" else two
            raise ConfigError(f"where={self.text!r}: {column.text} holds lists, accepted is {column.text} is None")
        if one.kind != two.kind:
            raise ConfigError(
                f"where={self.text!r}: {one.text} is a {one.kind} and {two.text} a {two.kind}; compare like with like"
            )
        return one, two

    def time(self, literal: _Operand) -> _Operand:
        try:
            moment = dt.datetime.fromisoformat(str(literal.value))
        except ValueError:
            raise ConfigError(
                f"where={self.text!r}: {literal.text} is no ISO date; accepted is '2025-01-31' or '2025-01-31T12:00:00'"
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        scalar = pa.scalar(moment, SCHEMA.field("committed_at").type)
        return _Operand(pc.scalar(scalar), "time", literal.text, literal=True, value=moment)

    def error(self, node: ast.expr, what: str) -> ConfigError:
        return ConfigError(f"where={self.text!r}: {ast.unparse(node)!r} {what}")


def _kind(column_type: pa.DataType) -> str:
    if pa.types.is_list(column_type):
        return "list"
    if pa.types.is_boolean(column_type):
        return "boolean"
    if pa.types.is_string(column_type):
        return "string"
    if pa.types.is_timestamp(column_type):
        return "time"
    return "number"


def _as_float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
