"""The ways in which masks change while a pack trains, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparsefront.trainables.mask_updates.contract import MaskUpdates, UpdateSettings
from sparsefront.trainables.mask_updates.edge_popup import EdgePopup
from sparsefront.trainables.mask_updates.gradual import Gradual
from sparsefront.trainables.mask_updates.rigl import RigL
from sparsefront.trainables.mask_updates.set import SET


@dataclass(frozen=True)
class UpdateRule:
    """One row of the registry.

    Attributes:
        summary: one line.
        source: where it was published.
        make: the updates of one pack.
        starts_dense: whether lanes begin without a mask, the rule deciding how many weights stay.
    """

    summary: str
    source: str
    make: Callable[[UpdateSettings], MaskUpdates]
    starts_dense: bool


UPDATES: Mapping[str, UpdateRule] = {
    "gradual": UpdateRule(
        "cubic rise of the sparsity while training; the largest weights or nodes stay",
        "Zhu and Gupta 2017",
        Gradual,
        starts_dense=True,
    ),
    "set": UpdateRule(
        "the smallest weights or nodes of each layer give way to random ones",
        "Mocanu et al. 2018",
        SET,
        starts_dense=False,
    ),
    "rigl": UpdateRule(
        "the smallest weights or nodes of each layer give way to those of largest gradient",
        "Evci et al. 2020",
        RigL,
        starts_dense=False,
    ),
    "edge_popup": UpdateRule(
        "weights stay as drawn; scores of them, or of nodes, are trained",
        "Ramanujan et al. 2020",
        EdgePopup,
        starts_dense=True,
    ),
}
