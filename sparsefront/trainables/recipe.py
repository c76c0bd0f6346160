"""What all candidates of a study share, as plain data that travels to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsefront.spaces.pruning import Pruning
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Schedule

#: Of matrix products in training.
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How every candidate is made and trained.

    Attributes:
        seed: the study's; every draw derives from it.
        model: name of the parent's family.
        model_options: its options, resolved.
        validation_fraction: share of the training examples held out for decisions.
        mask_kind: 'node' or 'weight'.
        allocation: name of the rule that divides a sparsity over layers.
        schedule: optimiser, steps, batch size, validation points.
        hyper: hyperparameters of every lane.
        probe_size: training examples that masks are scored on, in studies that score them.
        precision: 'float32', or 'bfloat16' for matrix products under autocast (weights and optimiser stay float32).
        lanes_at_once: lanes batched together; None = from the device's memory. Results do not depend on it.
        sparsity: of every mask, in studies where it is no level; 0 for dense networks.
        data_fraction: share of a replicate's training examples that are trained on, in (0, 1].
        pruning: method by which candidates of a search come to their masks; None: masks are drawn.
        methods: those that single candidates may name, each with its own allocation or None for the recipe's.
        pattern: of weight masks, in searches: 'unstructured', N:M as '2:4', or blocks as '4x4'.
        quality: names of `sparsefront.trainables.quality.QUALITIES` that completed candidates are measured by.
        fresh: options under which the data set is drawn anew, for qualities that need it.
        prune_biases: whether weight masks act on biases, too, a layer's together with its weights.
        validated: columns of these (with the prefix 'val_') that are measured on validation examples too.
    """

    seed: int
    model: str
    model_options: Mapping[str, object]
    validation_fraction: float
    mask_kind: str
    allocation: str
    schedule: Schedule
    hyper: Hyperparameters
    probe_size: int = 0
    precision: str = "float32"
    lanes_at_once: int | None = None
    sparsity: float = 0.0
    data_fraction: float = 1.0
    pruning: Pruning | None = None
    methods: Mapping[str, Pruning] = field(default_factory=dict)
    quality: tuple[str, ...] = ()
    pattern: str = "unstructured"
    prune_biases: bool = False
    fresh: Mapping[str, int] = field(default_factory=dict)
    validated: tuple[str, ...] = ()
