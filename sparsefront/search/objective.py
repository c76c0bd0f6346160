"""The registry of objectives: what a front may be taken over, and the only place where a direction is flipped.

Inside ``search`` every objective is minimised; a column where more is better is negated here on its way in. Test
results are not objectives of a study: validation decides, test reports. What a quality measures is therefore there
twice: under its own name on test examples, for fronts that describe, and as ``val_`` and that name on validation
examples, for studies. A new objective is one line of ``OBJECTIVES``, or of ``_QUALITIES``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError, did_you_mean

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """One quantity of a candidate that can be traded against others.

    ``best`` and ``worst`` are bounds in the column's own direction, NaN where there is none. ``from_one`` marks what is
    stored as its complement (an accuracy is 1 - error). A ``cost`` is zero in rows that reuse an earlier result,
    and such rows therefore never count. Of ``absolute`` ones the size counts, whatever its sign: 0 is best.

    What is known only ``at_end`` of a candidate's training decides nothing at rungs. ``quality`` names what measures
    it, ``on_test`` whether on test examples: then it is reported and nothing more. What ``needs_parent`` compares with
    the trained parent, and what ``needs_siblings`` with a second training; an ``of_scoring`` is known of masks that are
    scored before training. Searches have none of these.
    """

    column: str
    unit: str
    label: str
    higher_is_better: bool = False
    best: float = 0.0
    worst: float = math.nan
    from_one: bool = False
    trained: bool = True
    cost: bool = False
    absolute: bool = False
    at_end: bool = False
    quality: str = ""
    on_test: bool = False
    needs_parent: bool = False
    needs_siblings: bool = False
    of_scoring: bool = False

    @property
    def known(self) -> str:
        """From when on it is known of a candidate, in words."""
        return "at the end" if self.at_end else "at rungs" if self.trained else "before training"

    @property
    def is_searched(self) -> bool:
        """Whether a search can be led by it."""
        return not (self.on_test or self.needs_parent or self.needs_siblings or self.of_scoring)

    @property
    def is_time(self) -> bool:
        """Whether it is a time that was measured: of the same training another one whenever it is repeated."""
        return self.unit == "s"


#: dB; what rounding to 8 bits leaves of a perfect image is 58.9.
_BEST_PSNR = 60.0


def _of(quality: str, column: str, label: str, *, unit: str = "fraction", **others: Any) -> Objective:
    """What a quality measures on test examples."""
    others = {"at_end": True, "on_test": True, "needs_parent": quality == "shift", **others}
    return Objective(column, unit, label, quality=quality, **others)


#: Columns of qualities of which more or less is better.
_QUALITIES: tuple[Objective, ...] = (
    _of("calibration", "ece", "expected calibration error", worst=1.0),
    _of("calibration", "nll", "negative log-likelihood", unit="nats"),
    _of("calibration", "brier", "Brier score", worst=2.0),
    _of("corruption", "corrupted_error", "error on corrupted examples", worst=1.0),
    _of(
        "corruption",
        "relative_corrupted_error",
        "what corruption costs",
        unit="parents",
        best=math.nan,
        needs_parent=True,
    ),
    _of("adversarial", "fgsm_error", "error after one adversarial step", worst=1.0),
    _of("adversarial", "pgd_error", "error after adversarial steps", worst=1.0),
    *(
        _of("ood", f"ood_auroc_{name}", f"detection of {what}", higher_is_better=True, best=1.0, worst=0.0)
        for name, what in (("shuffled", "shuffled examples"), ("noise", "noise"))
    ),
    *(
        objective
        for suffix, on in (("", ""), ("_corrupted", " on corrupted examples"))
        for objective in (
            _of(
                "shift",
                f"angle_shift{suffix}",
                f"change of the features' angle{on}",
                unit="radians",
                best=-math.pi,
                worst=math.pi,
            ),
            _of(
                "shift",
                f"length_shift{suffix}",
                f"size of the change of the features' length{on}",
                unit="parents' lengths",
                absolute=True,
            ),
            _of(
                "shift",
                f"margin_shift{suffix}",
                f"change of the margin{on}",
                unit="parents' lengths",
                higher_is_better=True,
                best=math.nan,
            ),
        )
    ),
    _of("shift", "fragile_fraction", "examples decided unlike the parent", worst=1.0),
    _of("shift", "lost_fraction", "examples lost to the parent", worst=1.0),
)

#: Every objective by name; ``trained`` says that only trained candidates have it.
OBJECTIVES: Mapping[str, Objective] = {
    "val_error": Objective("val_error", "fraction", "validation error", worst=1.0),
    "val_accuracy": Objective(
        "val_error", "fraction", "validation accuracy", higher_is_better=True, best=1.0, worst=0.0, from_one=True
    ),
    "val_loss": Objective("val_loss", "nats", "validation loss"),
    "initial_loss": Objective("initial_loss", "nats", "loss before training", trained=False, of_scoring=True),
    "scalefree_loss": Objective(
        "scalefree_loss", "nats", "scale-free loss before training", trained=False, of_scoring=True
    ),
    **{
        f"val_psnr_{name}": Objective(
            f"val_psnr_{name}", "dB", f"validation PSNR, {which}", higher_is_better=True, best=_BEST_PSNR
        )
        for name, which in (("noise", "noise"), ("rain", "rain"), ("haze", "haze"), ("worst", "worst degradation"))
    },
    "n_params": Objective("n_params", "parameters", "parameters", trained=False),
    "macs": Objective("macs", "multiply-accumulates", "multiply-accumulates of one forward pass", trained=False),
    "node_sparsity": Objective(
        "node_sparsity", "fraction", "node sparsity", higher_is_better=True, best=1.0, worst=0.0, trained=False
    ),
    "weight_sparsity": Objective(
        "weight_sparsity", "fraction", "weight sparsity", higher_is_better=True, best=1.0, worst=0.0, trained=False
    ),
    "density_total": Objective("density_total", "fraction", "parameters kept", worst=1.0, at_end=True),
    "density_macs": Objective("density_macs", "fraction", "multiply-accumulates kept", worst=1.0, at_end=True),
    "effective_density": Objective("effective_density", "fraction", "weights on a path", worst=1.0, at_end=True),
    "effective_params": Objective("effective_params", "parameters", "parameters on a path", at_end=True),
    "static_dead_fraction": Objective(
        "static_dead_fraction", "fraction", "activations silent by the mask", worst=1.0, at_end=True
    ),
    "dynamic_dead_fraction": Objective(
        "dynamic_dead_fraction", "fraction", "silent activations (dead-neuron rate)", worst=1.0, at_end=True
    ),
    "instability_error": Objective(
        "instability_error",
        "fraction",
        "rise of the error between siblings",
        worst=1.0,
        at_end=True,
        needs_siblings=True,
    ),
    "passes": Objective("passes", "passes", "examples passed forward and backward", cost=True),
    "flops": Objective("flops", "FLOP", "floating-point operations of training", cost=True),
    "seconds": Objective("seconds", "s", "training time", cost=True),
    **{
        f"val_{o.column}": replace(o, column=f"val_{o.column}", on_test=False, label=f"{o.label} (validation)")
        for o in _QUALITIES
    },
    **{o.column: replace(o, label=f"{o.label} (test)") for o in _QUALITIES},
}


def one_of(names: Iterable[str]) -> str:
    """Names of objectives as a message lists them: those of qualities, which are many, by the command that has them.

    >>> one_of(["val_error", "val_ece", "macs"])
    "val_error, macs or what a quality measures ('sparsefront list objectives')"
    """
    plain = [name for name in names if not OBJECTIVES[name].quality]
    return f"{', '.join(plain)} or what a quality measures ('sparsefront list objectives')"


def objectives_named(names: Sequence[str]) -> tuple[Objective, ...]:
    """Look up objectives by name.

    Args:
        names: one or more keys of ``OBJECTIVES``, each at most once.

    Returns:
        The objectives, in the order of the names.

    Raises:
        ConfigError: for an unknown, repeated or test objective, or none at all.

    >>> [o.unit for o in objectives_named(["val_error", "n_params"])]
    ['fraction', 'parameters']
    """
    if isinstance(names, str):
        names = (names,)
    if not names:
        raise ConfigError(f"objectives=[]: name at least one of {one_of(OBJECTIVES)}")
    for name in names:
        if name.startswith("test_"):
            raise ConfigError(
                f"objective={name!r}: test results are reported and never decide; "
                f"use {name.replace('test_', 'val_')!r} or another of {one_of(OBJECTIVES)}"
            )
        if name not in OBJECTIVES:
            raise ConfigError(f"objective={name!r}: accepted are {one_of(OBJECTIVES)}{did_you_mean(name, OBJECTIVES)}")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ConfigError(f"objective={repeated[0]!r} is named twice: name each objective once")
    return tuple(OBJECTIVES[name] for name in names)


def losses(table: pa.Table | pa.RecordBatch, names: Sequence[str]) -> Floats:
    """Take the objectives of each row, all to be minimised.

    Args:
        table: n rows with the objectives' columns.
        names: m keys of ``OBJECTIVES``.

    Returns:
        (n, m) float; column j is objective j in its own unit, negated where more is better; NaN where it is null.

    Raises:
        ConfigError: for names that are no objectives, or whose column the table does not have.

    >>> losses(pa.table({"val_error": [0.25, None], "node_sparsity": [0.5, 0.9]}), ["val_accuracy", "node_sparsity"])
    array([[-0.75, -0.5 ],
           [  nan, -0.9 ]])
    """
    objectives = objectives_named(names)
    matrix = np.empty((table.num_rows, len(objectives)))
    for j, (name, objective) in enumerate(zip(names, objectives, strict=True)):
        if objective.column not in table.schema.names:
            raise ConfigError(
                f"objective={name!r} needs the column {objective.column!r}, which this table does not have: "
                f"read it with its columns {', '.join(table.schema.names)} and that one"
            )
        column = pc.cast(table.column(objective.column), pa.float64())
        column = pc.fill_null(column, math.nan)
        values = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
        matrix[:, j] = _minimised(values, objective)
    return matrix


def natural(matrix: Floats, names: Sequence[str]) -> Floats:
    """Turn minimised losses back into the quantities that people read.

    Args:
        matrix: (n, m) float, as :func:`losses` gives it.
        names: m keys of ``OBJECTIVES``.

    Returns:
        (n, m) float; column j in the direction and unit of objective j.

    >>> natural(np.array([[-0.75, 1000.0]]), ["val_accuracy", "n_params"])
    array([[7.5e-01, 1.0e+03]])
    """
    signs = np.array([-1.0 if o.higher_is_better else 1.0 for o in objectives_named(names)])
    return cast("Floats", np.asarray(matrix, dtype=np.float64) * signs)


def ideal_point(names: Sequence[str]) -> Floats:
    """Give the best value that each objective could ever have, minimised.

    Args:
        names: m keys of ``OBJECTIVES``.

    Returns:
        (m,) float, for example 0 for an error or a count and -1 for an accuracy.

    >>> ideal_point(["val_error", "val_accuracy", "macs"])
    array([ 0., -1.,  0.])
    """
    return np.array([-o.best if o.higher_is_better else o.best for o in objectives_named(names)])


def worst_bounds(names: Sequence[str]) -> Floats:
    """Give the worst value that each objective could ever have, minimised; NaN where there is no bound.

    Args:
        names: m keys of ``OBJECTIVES``.

    Returns:
        (m,) float.

    >>> worst_bounds(["val_error", "node_sparsity", "macs"])
    array([ 1., -0., nan])
    """
    return np.array([-o.worst if o.higher_is_better else o.worst for o in objectives_named(names)])


def _minimised(values: Floats, objective: Objective) -> Floats:
    if objective.from_one:
        values = 1.0 - values
    if objective.absolute:
        values = np.abs(values)
    return -values if objective.higher_is_better else values
