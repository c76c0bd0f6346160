"""Patterns of masks that are too large for layers of a study: refused where nothing is removed, else said."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefront.errors import ConfigError
from sparsefront.spaces.patterns import parse_pattern, untouched
from sparsefront.spaces.structure import Structure, Tensor


def check_pattern_fits(key: str, pattern: str, structures: Sequence[Structure]) -> None:
    """Refuse a pattern of weight masks by which no parent can lose anything; `key` is where it is written.

    Raises:
        ConfigError: one line with key, value and what is accepted.
    """
    if _removes_nothing_at_all(pattern) or any(len(_whole(pattern, s)) < len(s.prunable) for s in structures):
        return
    largest = max((t for s in structures for t in s.prunable), key=lambda t: t.size)
    raise ConfigError(
        f"{key}={pattern!r}: must fit into a layer, and the largest is {_shape(largest)} (outputs x inputs), so that "
        "nothing would be removed; choose a smaller one"
    )


def remark_on_pattern(key: str, pattern: str, structures: Sequence[Structure]) -> str | None:
    """What to say of a pattern that some layers are too small for; None if there are none."""
    if _removes_nothing_at_all(pattern):
        return None
    too_small = {t.name: t for s in structures for t in _whole(pattern, s)}
    if not too_small:
        return None
    layers = ", ".join(f"{name} ({_shape(t)})" for name, t in too_small.items())
    where = "" if len(set(structures)) == 1 else ", in some of the networks"
    return (
        f"{key}={pattern!r}: removes nothing of {layers}{where}, for no more than one block fits there; choose a "
        "smaller pattern if they are to be pruned"
    )


def _removes_nothing_at_all(pattern: str) -> bool:
    """Whether a pattern is none of groups or blocks, or one that keeps all of them as it says (4:4)."""
    return pattern in ("unstructured", "node") or parse_pattern(pattern).density == 1


def _whole(pattern: str, structure: Structure) -> tuple[Tensor, ...]:
    return untouched(parse_pattern(pattern), structure)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, (*tensor.shape, 1)[:2]))
