"""The few named errors of Sparsefront.

Every message says, in this order: what was wrong (``name=value``), what is accepted, where it came from and
what to do. All of them keep their message in ``args`` so that they survive a trip through Ray.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparsefrontError(Exception):
    """Anything Sparsefront refuses on purpose; the command line prints it as one line."""


class ConfigError(SparsefrontError, ValueError):
    """The user's study, flag or file name is wrong (exit code 2, nothing is written)."""


class SpaceError(SparsefrontError, ValueError):
    """A mask, allocation or structure that cannot exist was asked for."""


class LedgerError(SparsefrontError, OSError):
    """A ledger is damaged, held by another driver, or belongs to another study."""


class CheckpointError(SparsefrontError, OSError):
    """A checkpoint is missing or damaged, or cannot be written."""


class CandidateFailed(SparsefrontError, RuntimeError):
    """One candidate could not be built, trained or measured; its neighbours are not concerned."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say about an unknown name: the known ones, and the nearest match if there is one.

    >>> nearest("unifrom", ["uniform", "erk"])
    "must be one of uniform, erk; did you mean 'uniform'?"
    """
    names = list(known)
    if not names:
        return "must be left out; there is nothing to set"
    return f"must be one of {', '.join(names)}{did_you_mean(name, names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name nearest to a mistyped one, as the end of an error message; empty if none is near.

    >>> did_you_mean("val_eror", ["val_error", "macs"])
    "; did you mean 'val_error'?"
    >>> did_you_mean("zzz", ["val_error", "macs"])
    ''
    """
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
