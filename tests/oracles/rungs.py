"""Slow, obvious versions of what decides at a rung."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; minimised."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def ranks(losses: Sequence[Sequence[float]]) -> list[int]:
    """Rank of each element, from 1: front by front, each an epsilon net between the objectives' ranks."""
    left = list(range(len(losses)))
    ordered: list[int] = []
    while left:
        front = [i for i in left if not any(dominates(losses[j], losses[i]) for j in left)]
        left = [i for i in left if i not in front]
        ordered += _net(front, losses)
    return [ordered.index(i) + 1 for i in range(len(losses))]


def _net(front: list[int], losses: Sequence[Sequence[float]]) -> list[int]:
    places: dict[int, list[float]] = {i: [] for i in front}
    for objective in range(len(losses[0])):
        values = sorted({losses[i][objective] for i in front})
        for i in front:
            places[i].append(values.index(losses[i][objective]) / max(len(values) - 1, 1))
    left = sorted(front, key=lambda i: (list(losses[i]), i))
    chosen = [left.pop(0)]
    while left:
        gaps = [min(sum((x - y) ** 2 for x, y in zip(places[i], places[j], strict=True)) for j in chosen) for i in left]
        chosen.append(left.pop(gaps.index(max(gaps))))
    return chosen


def admitted(losses: Sequence[Sequence[float]], eta: int) -> list[bool]:
    """Whether each newcomer, in order, ranks among the best max(1, floor(n / eta)) of those before it and itself."""
    return [ranks(losses[: n + 1])[n] <= max(1, (n + 1) // eta) for n in range(len(losses))]
