"""Which sets of entries a mask may keep; one file and one line of the registry each."""

from sparsefront.spaces.patterns.pattern import Pattern, keep_rivals
from sparsefront.spaces.patterns.registry import (
    PATTERNS,
    PatternFamily,
    drawn_counts,
    parse_pattern,
    pattern_counts,
    random_masks,
    select,
    untouched,
)

__all__ = [
    "PATTERNS",
    "Pattern",
    "PatternFamily",
    "drawn_counts",
    "keep_rivals",
    "parse_pattern",
    "pattern_counts",
    "random_masks",
    "select",
    "untouched",
]
