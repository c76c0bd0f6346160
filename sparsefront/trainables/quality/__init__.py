"""Quality beyond accuracy: columns for every trained lane, batched over lanes; one file and one registry line each."""

from sparsefront.trainables.quality.registry import COLUMNS, QUALITIES, check_qualities, measure, passes
from sparsefront.trainables.quality.subject import Column, Quality

__all__ = ["COLUMNS", "QUALITIES", "Column", "Quality", "check_qualities", "measure", "passes"]
