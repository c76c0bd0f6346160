"""Masks that change while a pack trains; one file and one registry line for each way."""

from sparsefront.trainables.mask_updates.contract import MaskUpdates, Ranking, Section, UpdateSettings, sections_of
from sparsefront.trainables.mask_updates.history import MaskHistory
from sparsefront.trainables.mask_updates.nodes import Nodes, full_size_lanes
from sparsefront.trainables.mask_updates.registry import UPDATES, UpdateRule

__all__ = [
    "UPDATES",
    "MaskHistory",
    "MaskUpdates",
    "Nodes",
    "Ranking",
    "Section",
    "UpdateRule",
    "UpdateSettings",
    "full_size_lanes",
    "sections_of",
]
