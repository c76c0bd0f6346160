"""Words that several messages of this package share."""

from __future__ import annotations

#: What to do when a study broke off.
GO_ON = "what was committed is safe; run the same command again to go on"


def one_line(what: object) -> str:
    """The first 500 characters of a text, on one line."""
    return " ".join(str(what).split())[:500]
