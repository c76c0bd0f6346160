"""What the controls of a search's arms came to, beside the candidates that they are held against.

An arm of a search is many networks. Each control is of one of them that completed, with its settings: in a replicate
the two sides are the means over all candidates whose control completed, too, or diverged, which is worth guessing.
Nothing is chosen: an arm with controls has no rungs, and neither side is the best of several.

Not here: the statistics (``verdict``), and how controls are trained (``control_run``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.search.columns import check_columns, equals, numbers_in
from sparsefront.search.control_run import CONTROL_OF
from sparsefront.search.design import SearchDesign
from sparsefront.search.findings import LAYER_RATIOS, ControlComparison, Spent
from sparsefront.search.front import Batches, chunks
from sparsefront.search.methods.controls import control_name
from sparsefront.search.metrics import METRICS
from sparsefront.search.verdict import ControlPairs, compare_controls
from sparsefront.search.wording import control_sentences, what_matters

Floats = npt.NDArray[np.float64]

_COLUMNS = (
    *("stage", "arm", "replicate", "slot", "candidate", "outcome", "reused"),
    *("mask_digest", "weight_sparsity", "test_error"),
)
_COSTS = ("passes", "flops", "seconds")


@dataclass(frozen=True)
class Controlled:
    """What was found of the controls of a search, and what they cost; nothing of a search without any.

    ``n_planned`` is how many are to be trained, of the candidates that have completed; ``n_ended`` how many have ended.
    """

    comparisons: tuple[ControlComparison, ...] = ()
    layer_ratios: tuple[ControlComparison, ...] = ()
    matters: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    spent: tuple[Spent, ...] = ()
    n_planned: int = 0
    n_ended: int = 0


def controlled_columns(design: SearchDesign) -> list[str]:
    """List the ledger's columns that :func:`judge_controls` reads; none without controls."""
    return [*_COLUMNS, *_COSTS, CONTROL_OF] if design.controls else []


def count_controls(batches: Batches, design: SearchDesign) -> tuple[int, int]:
    """How many controls are to be trained, of the candidates that have completed, and how many have ended.

    Args are those of :func:`judge_controls`.
    """
    return _counts(_rows(batches, design), design) if design.controls else (0, 0)


def judge_controls(batches: Batches, design: SearchDesign) -> Controlled:
    """Compare the arms of a search with their controls.

    Args:
        batches: a ledger's table or record batches, with at least ``controlled_columns(design)``; not read without
            controls.
        design: what was asked.

    Raises:
        ConfigError: if a column is missing.
    """
    if not design.controls:
        return Controlled()
    rows = _rows(batches, design)
    values = _values(rows, design)
    family = [_pair(values, design, arm=c.arm, control=c.kind, compared=(c.arm, c.name)) for c in design.controls]
    names = {control.name for control in design.controls}
    ratios = [
        _pair(values, design, arm=arm.name, control=LAYER_RATIOS, compared=(within, anywhere))
        for arm in design.arms
        for within, anywhere in [(control_name(arm.name, "shuffled_layers"), control_name(arm.name, "shuffled"))]
        if {within, anywhere} <= names
    ]
    comparisons, of_ratios = compare_controls(family, design), compare_controls(ratios, design)
    matters = what_matters(comparisons, of_ratios, design)
    n_planned, n_ended = _counts(rows, design)
    return Controlled(
        comparisons,
        of_ratios,
        matters,
        tuple(control_sentences(comparisons, design)),
        _spent(rows, design),
        n_planned=n_planned,
        n_ended=n_ended,
    )


def _rows(batches: Batches, design: SearchDesign) -> pa.Table:
    """Rows of controls, and of the arms that have any."""
    columns, parts = controlled_columns(design), []
    involved = pa.array([*{c.arm for c in design.controls}, *(c.name for c in design.controls)])
    for chunk in chunks(batches):
        check_columns(chunk, columns, listed_by="controlled.controlled_columns")
        own = pc.and_(pc.equal(chunk["stage"], "trained"), pc.is_in(chunk["arm"], involved))
        parts.append(chunk.select(columns).filter(own))
    return pa.concat_tables(parts) if parts else pa.table({name: [] for name in columns})


def _counts(rows: pa.Table, design: SearchDesign) -> tuple[int, int]:
    """How many of `_rows` are to be, and how many are, controls that are trained and not repeated."""
    is_control = np.asarray(pc.is_in(rows["arm"], pa.array([c.name for c in design.controls])), dtype=np.bool_)
    eligible = equals(rows, "outcome", "completed") & ~_reused(rows)
    eligible &= np.asarray(pc.is_valid(rows["mask_digest"]), dtype=np.bool_) & (numbers_in(rows, "weight_sparsity") > 0)
    n_eligible = sum(int(np.count_nonzero(eligible & equals(rows, "arm", c.arm))) for c in design.controls)
    n_repeated = int(np.count_nonzero(is_control & _reused(rows)))
    return n_eligible - n_repeated, int(np.count_nonzero(is_control & ~_reused(rows)))


#: Of each arm and replicate: the value of a network by the number of the candidate that it is, or is a control of.
_Values = Mapping[tuple[str, int], Mapping[int, float]]


def _values(rows: pa.Table, design: SearchDesign) -> _Values:
    """Values of the networks that say something: those that completed, and controls that diverged.

    Of controls that are one network, all have the value of the one that was trained.
    """
    names = {c.name for c in design.controls}
    values = METRICS[design.metric].from_error(numbers_in(rows, "test_error")).tolist()
    columns = ("arm", "replicate", "slot", CONTROL_OF, "candidate", "outcome")
    lines = list(zip(*(rows[name].to_pylist() for name in columns), _reused(rows).tolist(), values, strict=True))
    trained: dict[tuple[str, int, str], float] = {}
    for arm, replicate, _, _, identity, outcome, reused, value in lines:
        if reused:
            continue
        if outcome == "completed" and math.isfinite(value):
            trained[arm, replicate, identity] = value
        elif outcome == "diverged" and arm in names:
            trained[arm, replicate, identity] = design.value_of_guessing
    found: dict[tuple[str, int], dict[int, float]] = {}
    for arm, replicate, slot, original, identity, _, reused, _ in lines:
        if (arm, replicate, identity) in trained and (arm in names or not reused):
            number = slot if original is None else original
            found.setdefault((arm, replicate), {})[number] = trained[arm, replicate, identity]
    return found


def _pair(values: _Values, design: SearchDesign, *, arm: str, control: str, compared: tuple[str, str]) -> ControlPairs:
    """Pair two sides by their names in the ledger: in each replicate the means over the networks that both have."""
    sides: list[tuple[float, float]] = []
    n_left_out = 0
    for replicate in range(design.replicates):
        mine, theirs = (values.get((name, replicate), {}) for name in compared)
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            n_left_out += len(mine) - len(shared)
            differences = [mine[number] - theirs[number] for number in shared]
            mean = float(np.mean([mine[number] for number in shared]))
            # The mean of differences that are zero is zero, whatever the means of the sides are rounded to.
            sides.append((mean, mean - float(np.mean(differences))))
    columns = np.array(sides, dtype=np.float64).reshape(-1, 2).T
    notes = (f"{n_left_out:,} candidates have no {control} to be held against",) if n_left_out else ()
    return ControlPairs(arm, control, None, columns[0], columns[1], notes)


def _spent(rows: pa.Table, design: SearchDesign) -> tuple[Spent, ...]:
    """What each control cost, and what became of its candidates."""
    found = []
    for control in design.controls:
        own = rows.filter(pc.equal(rows["arm"], control.name))
        counts = {row["values"]: row["counts"] for row in own["outcome"].value_counts().to_pylist()}
        passes, flops, seconds = (float(np.nansum(numbers_in(own, name))) for name in _COSTS)
        if own.num_rows:
            found.append(Spent(control.name, passes, flops, seconds, own.num_rows, counts))
    return tuple(found)


def _reused(rows: pa.Table) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(rows["reused"], False), dtype=np.bool_)
