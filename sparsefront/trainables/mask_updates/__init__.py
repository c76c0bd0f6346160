"""Masks that change while a pack trains; one file and one registry line for each way."""

from sparsefront.trainables.mask_updates.contract import MaskUpdates, Section, UpdateSettings, sections_of
from sparsefront.trainables.mask_updates.history import MaskHistory
from sparsefront.trainables.mask_updates.registry import UPDATES, UpdateRule

__all__ = ["UPDATES", "MaskHistory", "MaskUpdates", "Section", "UpdateRule", "UpdateSettings", "sections_of"]
