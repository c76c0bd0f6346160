"""Magnitude: what is large matters.

A weight scores its absolute value. A node scores the L2 norm of everything that leaves with it: its incoming weights
and bias, and the weights of its consumers (group norm over coupled tensors, p = 2).

References: Han et al., Learning both weights and connections, 2015; Li et al., Pruning filters for efficient ConvNets,
2017; Fang et al., DepGraph, 2023 (coupled groups).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sparsefront.spaces.structure import Structure

Weights = Mapping[str, npt.NDArray[np.float32]]


def magnitude(structure: Structure, kind: str, weights: Weights) -> npt.NDArray[np.float64]:
    """Score of every entry of a mask of `kind`, higher = keep: (entries,) float64."""
    if kind == "weight":
        return np.concatenate([np.abs(weights[t.name]).reshape(-1) for t in structure.prunable]).astype(np.float64)
    scores: list[npt.NDArray[np.float64]] = []
    for group in structure.groups:
        squares = np.zeros(group.size)
        for axis in group.axes:
            entries = np.moveaxis(weights[axis.tensor].astype(np.float64) ** 2, axis.dim, 0)
            squares += entries.reshape(group.size, -1).sum(axis=1)
        scores.append(np.sqrt(squares))
    return np.concatenate(scores)
