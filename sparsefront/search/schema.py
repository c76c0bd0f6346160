"""The columns of the ledger: one row is one thing that happened to one candidate.

Rows come in stages, told apart by the column ``stage``:

* ``scored``: a mask was scored without training (its initial loss is known);
* ``trained``: an arm's candidate was trained, or failed to be, or was stopped;
* ``pruned``: a mask was cut from trained weights for an arm (``candidate`` is the network that it was cut from);
* ``level``: an arm's network on the way to a sparsity of the study was trained (iterative pruning);
* ``rung``: a candidate of a search reached a rung, where it is compared; ``target_sparsity`` holds the rung's number.

Costs (``passes``, ``flops``, ``seconds``) are those of the row alone: what an arm spent is their sum over all its rows.

The key of a row is ``(stage, arm, replicate, target_sparsity, slot)``; the ledger holds each key once. One candidate
may fill several slots (the mask with the lowest initial loss may also be one of the random draws): it is then
trained once and recorded in each slot under the same ``candidate`` id, with ``reused`` true and no cost but in the
first.

Losses are mean cross-entropies in nats; errors are misclassified fractions (0..1); everything is minimised. Where
images are restored, losses are mean absolute differences of intensities (0..1), and errors mean squared ones under the
degradation that is restored worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

#: What can become of a candidate (docs: design, contract 7).
OUTCOMES = ("completed", "stopped", "diverged", "failed", "timeout", "out_of_memory", "lost", "infeasible")
#: What can happen to one (see above).
STAGES = ("scored", "trained", "pruned", "level", "rung")


@dataclass(frozen=True)
class Column:
    """One column of the ledger: its name, Arrow type and meaning (with unit), and its values where there are few."""

    name: str
    type: pa.DataType
    meaning: str
    hyperparameter: bool = False
    values: tuple[str, ...] = ()


#: What became of a trained network: `sparsefront.trainables.diagnostics`, on validation examples where on any.
_DIAGNOSTICS: tuple[Column, ...] = (
    Column("density_prunable", pa.float64(), "kept prunable weights, as a fraction of the parent's"),
    Column("density_total", pa.float64(), "kept trained parameters, biases and norms included, as such a fraction"),
    Column("density_macs", pa.float64(), "multiply-accumulates of what is kept, as a fraction of the parent's"),
    Column("effective_density", pa.float64(), "prunable weights on a path from an input to an output, likewise"),
    Column("effective_params", pa.int64(), "trained parameters on such a path"),
    Column("is_collapsed", pa.bool_(), "a layer has no weight left, or no path leads from input to output"),
    Column("n_dead_units", pa.int64(), "hidden units that the mask left but that are on no path"),
    Column("n_constant_units", pa.int64(), "those of them that nothing reaches from the inputs"),
    Column("static_dead_fraction", pa.float64(), "hidden activations that are constant by the mask, and silent"),
    Column("dynamic_dead_fraction", pa.float64(), "hidden activations that are silent, over units and examples"),
    Column("mask_overlap", pa.float64(), "entries in the first and last mask over those in either, if masks change"),
    Column("exploration_rate", pa.float64(), "share of the prunable weights that were ever active, if masks change"),
    Column(
        "instability_error", pa.float64(), "rise of the validation error between the network and its sibling, if any"
    ),
    Column("instability_loss", pa.float64(), "the same rise of the validation loss"),
    Column(
        "sibling_distance", pa.float64(), "Euclidean distance of the two, over prunable weights that the mask keeps"
    ),
    Column("sibling_angle", pa.float64(), "angle between these weights of the two, in radians from 0 to pi"),
    Column(
        "quality_passes",
        pa.float64(),
        "passes spent on measuring these columns and qualities, siblings included; in no budget, where those that "
        "a search is led by are: in its passes",
    ),
)
#: Peak signal-to-noise ratios of restored images, where the examples of a study are images to restore.
_PSNR: tuple[Column, ...] = tuple(
    Column(f"{part}_psnr_{name}", pa.float64(), f"PSNR {where} after training{under}, dB; null for classification")
    for part, where in (("val", "on validation images"), ("test", "on test images"))
    for name, under in (
        ("noise", ", of noisy ones"),
        ("rain", ", of rainy ones"),
        ("haze", ", of hazy ones"),
        ("worst", ", the lowest of these"),
    )
)
#: Columns that ledgers lack which were begun before there were diagnostics; null there.
LATER = frozenset(column.name for column in (*_DIAGNOSTICS, *_PSNR))

COLUMNS: tuple[Column, ...] = (
    Column("candidate", pa.string(), "id: hash of everything that defines the candidate, 32 hex digits"),
    Column("stage", pa.string(), "scored, trained, pruned, level or rung", values=STAGES),
    Column("arm", pa.string(), "arm that the row belongs to; 'pool' for scored masks, which several arms choose from"),
    Column("replicate", pa.int32(), "index of (data split, initial weights, data order)"),
    Column(
        "target_sparsity",
        pa.float64(),
        "level that the candidate was made for, 0 = dense; in searches 0, or the number of the rung",
    ),
    Column("slot", pa.int32(), "index within (stage, arm, replicate, level): number of the draw or candidate"),
    Column(
        "outcome",
        pa.string(),
        "completed, stopped, diverged, failed, timeout, out_of_memory, lost or infeasible",
        values=OUTCOMES,
    ),
    Column("rung", pa.int32(), "rung that was reached, or at which the candidate was stopped"),
    Column("reused", pa.bool_(), "the same candidate was already trained for another slot; costs are zero here"),
    Column("mask_kind", pa.string(), "none, node or weight", values=("none", "node", "weight")),
    Column("mask_draw", pa.int64(), "number of the random draw that made the mask; null if it was not drawn"),
    Column("mask_digest", pa.string(), "digest of the packed mask bits, 32 hex digits; null without a mask"),
    Column("node_sparsity", pa.float64(), "realised fraction of hidden nodes removed"),
    Column("weight_sparsity", pa.float64(), "realised fraction of prunable weights removed"),
    Column("n_params", pa.int64(), "parameters that remain, biases included"),
    Column("macs", pa.int64(), "multiply-accumulates of one example's forward pass"),
    Column("initial_loss", pa.float64(), "loss before training on the probe"),
    Column("scalefree_loss", pa.float64(), "initial loss after the best temperature"),
    Column("temperature", pa.float64(), "that temperature"),
    Column("logit_std", pa.float64(), "standard deviation of the logits before training"),
    Column("val_loss", pa.float64(), "validation loss after training"),
    Column("val_error", pa.float64(), "validation error after training"),
    Column("test_loss", pa.float64(), "test loss after training; reported, never decided on"),
    Column("test_error", pa.float64(), "test error after training; reported, never decided on"),
    *_DIAGNOSTICS,
    *_PSNR,
    Column("curve_step", pa.list_(pa.int32()), "optimiser steps at which validation was measured"),
    Column("curve_val_loss", pa.list_(pa.float32()), "validation loss there"),
    Column("curve_val_error", pa.list_(pa.float32()), "validation error there"),
    Column("steps", pa.int64(), "optimiser steps done"),
    Column("optimizer", pa.string(), "adam or sgd", hyperparameter=True, values=("adam", "sgd")),
    Column("lr", pa.float64(), "learning rate", hyperparameter=True),
    Column("weight_decay", pa.float64(), "L2 coefficient, as in torch.optim", hyperparameter=True),
    Column("beta1", pa.float64(), "Adam's decay of the first moment", hyperparameter=True),
    Column("beta2", pa.float64(), "Adam's decay of the second moment", hyperparameter=True),
    Column("momentum", pa.float64(), "SGD momentum", hyperparameter=True),
    Column("nesterov", pa.bool_(), "whether the momentum is Nesterov's", hyperparameter=True),
    Column("label_smoothing", pa.float64(), "share of the target spread over all classes", hyperparameter=True),
    Column("batch_size", pa.int32(), "examples in an optimiser step", hyperparameter=True),
    Column("data_fraction", pa.float64(), "share of the training examples that are used", hyperparameter=True),
    Column(
        "precision",
        pa.string(),
        "of matrix products in training: float32 or bfloat16",
        hyperparameter=True,
        values=("float32", "bfloat16"),
    ),
    Column("passes", pa.float64(), "examples passed forward and backward; a forward pass alone counts 1/3"),
    Column(
        "flops",
        pa.float64(),
        "floating-point operations of those passes (2 per multiply-accumulate of the network, three times for a whole "
        "pass), scores at initialisation those of the parent, each level of a chain those of its own mask; node masks "
        "that change in training count at the parent's size, at which they train, and a gradual rise of the sparsity "
        "by the weights left on average, its scores by those left when they are taken; gradients of weights that are "
        "masked, which edge_popup needs at every step and rigl at its updates, are left out",
    ),
    Column("seconds", pa.float64(), "wall time of the pack divided over its lanes"),
    Column("predicted_s", pa.float64(), "what the packing expected of seconds; null where nothing was packed"),
    Column("checkpoint", pa.string(), "file from which training goes on, in the folder checkpoints; null if none"),
    Column("attempt", pa.int32(), "0 unless the candidate's pack was lost before and ran again"),
    Column("pack", pa.string(), "pack that the candidate travelled in"),
    Column("device", pa.string(), "device it ran on"),
    Column("error", pa.string(), "what failed, with traceback; null if nothing did"),
    Column("committed_at", pa.timestamp("us", tz="UTC"), "when the driver committed the row"),
)

#: What a network is, once it is trained: a candidate that repeats another one has the same.
OF_NETWORKS = (
    *("mask_kind", "mask_digest", "node_sparsity", "weight_sparsity", "n_params", "macs"),
    *(column.name for column in _DIAGNOSTICS if column.name != "quality_passes"),
)

SCHEMA = pa.schema([pa.field(c.name, c.type) for c in COLUMNS])
#: All values of the columns that have few.
VALUES: Mapping[str, tuple[str, ...]] = {column.name: column.values for column in COLUMNS if column.values}

_TYPES = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "test_float64": pa.float64(),
    "test_indices": pa.list_(pa.int32()),
}
_TEST = {"examples": "test"}


def schema_of(study: Mapping[str, object]) -> pa.Schema:
    """The columns of one study's ledger: `SCHEMA`, its qualities, and the dimensions of its space that are not there.

    Args:
        study: the study as it is recorded; ``resolved.columns`` maps names to 'float64', 'int64', 'bool' or 'string',
            and to 'test_float64' or 'test_indices' where they are measured on test examples.

    >>> schema_of({"resolved": {"columns": {"width_1": "int64"}}}).field("width_1").type
    DataType(int64)
    """
    resolved = study.get("resolved", {})
    assert isinstance(resolved, Mapping)
    columns = resolved.get("columns", {})
    assert isinstance(columns, Mapping)
    added = [
        pa.field(name, _TYPES[kind], metadata=_TEST if kind.startswith("test_") else None)
        for name, kind in sorted(columns.items())
    ]
    return pa.schema([*SCHEMA, *added])


def is_test_result(field: pa.Field) -> bool:
    """Whether a column is measured on test examples, by which nothing is chosen.

    >>> is_test_result(SCHEMA.field("test_error")), is_test_result(SCHEMA.field("val_error"))
    (True, False)
    """
    return field.name.startswith("test_") or b"examples" in (field.metadata or {})


#: Columns that name a row (see the module's docstring).
KEY = ("stage", "arm", "replicate", "target_sparsity", "slot")
