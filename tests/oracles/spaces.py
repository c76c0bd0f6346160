"""Slow, obvious versions of what ``sparsefront.spaces`` computes: loops over single entries, no cleverness."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from sparsefront.spaces.masks import split_sections
from sparsefront.spaces.patterns import parse_pattern


def sections_of(sizes, flat):
    """The flat entries cut into lists, one for each section."""
    flat = list(flat)
    cut = []
    for size in sizes:
        cut.append(flat[:size])
        flat = flat[size:]
    return cut


def kept_count(sparsity_text, size):
    """max(1, (1 - sparsity) x size rounded, halves up) in exact arithmetic; the sparsity as it is written."""
    return min(size, max(1, math.floor((1 - Fraction(sparsity_text)) * size + Fraction(1, 2))))


def best(scores, count):
    """Indices of the `count` highest scores, one after the other; the first of equals."""
    left = dict(enumerate(scores))
    chosen = set()
    for _ in range(count):
        winner = max(left, key=lambda i: (left[i], -i))
        chosen.add(winner)
        del left[winner]
    return chosen


def top_k(scores, sizes, counts):
    """Mask of the highest scores; a single count is shared by all sections, each of which keeps its best entry."""
    scores = list(scores)
    chosen = set()
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    if len(counts) == 1 and len(sizes) > 1:
        for start, section in zip(starts, sections_of(sizes, scores), strict=True):
            chosen |= {start + i for i in best(section, 1)}
        while len(chosen) < counts[0]:
            chosen.add(max((i for i in range(len(scores)) if i not in chosen), key=lambda i: (scores[i], -i)))
    else:
        for start, section, count in zip(starts, sections_of(sizes, scores), counts, strict=True):
            chosen |= {start + i for i in best(section, count)}
    return [i in chosen for i in range(len(scores))]


def erdos_renyi(shapes, density, *, kernel):
    """Densities by water-filling: bisect the scale whose capped densities use up the budget."""
    dims = [shape if kernel else shape[:2] for shape in shapes]
    raw = [sum(d) / math.prod(d) for d in dims]
    sizes = [math.prod(s) for s in shapes]
    low, high = 0.0, 1 / min(raw)
    for _ in range(200):
        middle = (low + high) / 2
        used = sum(min(1.0, middle * r) * n for r, n in zip(raw, sizes, strict=True))
        low, high = (middle, high) if used < density * sum(sizes) else (low, middle)
    return [min(1.0, high * r) for r in raw]


def surviving_entries(structure, node_mask):
    """Which entries of each tensor a node mask leaves: name -> bool array of the parent's shape."""
    alive = {t.name: np.ones(t.shape, dtype=bool) for t in structure.tensors}
    kept = sections_of([g.size for g in structure.groups], node_mask)
    for group, bits in zip(structure.groups, kept, strict=True):
        for node, bit in enumerate(bits):
            if bit:
                continue
            for axis in group.axes:
                for entry in range(node * axis.repeat, (node + 1) * axis.repeat):
                    index = [slice(None)] * alive[axis.tensor].ndim
                    index[axis.dim] = entry
                    alive[axis.tensor][tuple(index)] = False
    return alive


def weight_parts(structure, weight_mask):
    """A flat weight mask as arrays: name -> bool array of the tensor's shape."""
    parts = sections_of([t.size for t in structure.prunable], weight_mask)
    return {t.name: np.array(p, dtype=bool).reshape(t.shape) for t, p in zip(structure.prunable, parts, strict=True)}


def dead_nodes(family, structure, weight_mask):
    """Hidden nodes whose incoming, or whose outgoing, weights are all masked; written out for each family."""
    w = weight_parts(structure, weight_mask)
    dead = 0
    if family == "residual_mlp":
        for i in range(structure.groups[0].size):
            has_input = w["linear1.weight"][i].any() or w["linear2.weight"][i].any()
            has_output = w["linear2.weight"][:, i].any() or w["linear3.weight"][:, i].any()
            dead += not (has_input and has_output)
        return dead
    if family == "hourglass":
        blocks = [f"blocks.{i}" for i in range(len(structure.groups) - 1)]
        for i in range(structure.groups[0].size):
            has_input = w["lift.weight"][i].any() or any(w[f"{b}.second.weight"][i].any() for b in blocks)
            has_output = w["out.weight"][:, i].any() or any(w[f"{b}.first.weight"][:, i].any() for b in blocks)
            dead += not (has_input and has_output)
        for b in blocks:
            for i in range(structure.groups[1].size):
                dead += not (w[f"{b}.first.weight"][i].any() and w[f"{b}.second.weight"][:, i].any())
        return dead
    layer = "layers" if family == "mlp" else "convs"
    for g, group in enumerate(structure.groups):
        for i in range(group.size):
            has_input = w[f"{layer}.{g}.weight"][i].any()
            if f"{layer}.{g + 1}.weight" in w:
                has_output = w[f"{layer}.{g + 1}.weight"][:, i].any()
            else:
                length = w["linear.weight"].shape[1] // group.size
                has_output = w["linear.weight"][:, i * length : (i + 1) * length].any()
            dead += not (has_input and has_output)
    return dead


def matrix(tensor):
    return (*tensor.shape, 1) if len(tensor.shape) == 1 else tensor.shape


def blocks(tensor, n_out, n_in):
    """Flat indices of each block, blocks row by row."""
    index = np.arange(tensor.size).reshape(matrix(tensor))
    rows, columns = index.shape[:2]
    return [
        index[a : a + n_out, b : b + n_in].reshape(-1).tolist()
        for a in range(0, rows, n_out)
        for b in range(0, columns, n_in)
    ]


def is_of_pattern(pattern, structure, mask):
    """Whether a mask is one of the pattern, entry by entry."""
    if pattern in (parse_pattern("node"), parse_pattern("unstructured")):
        return True
    for tensor, part in zip(structure.prunable, split_sections(structure, "weight", mask), strict=True):
        if hasattr(pattern, "m"):
            if len(tensor.shape) < 2:
                if not part.all():
                    return False
                continue
            grid = part.reshape(tensor.shape[0], tensor.shape[1], -1)
            for row in range(grid.shape[0]):
                for place in range(grid.shape[2]):
                    for a in range(0, grid.shape[1], pattern.m):
                        group = grid[row, a : a + pattern.m, place]
                        if group.sum() != (pattern.n if len(group) == pattern.m else len(group)):
                            return False
        elif any(len(set(part[block].tolist())) > 1 for block in blocks(tensor, pattern.n_out, pattern.n_in)):
            return False
    return True
