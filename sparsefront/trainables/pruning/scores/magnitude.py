"""Magnitude: what is large matters.

A weight scores its absolute value. A node scores the L2 norm of everything that leaves with it: its incoming weights
and bias, and the weights of its consumers (group norm over coupled tensors, p = 2).

References: Han et al., Learning both weights and connections, 2015; Fang et al., DepGraph, 2023 (coupled groups).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """|w|: (L, W)."""
    return state.over_weights(state.parameters, of=torch.Tensor.abs_)


def nodes(state: ScoringState) -> torch.Tensor:
    """L2 norms of coupled groups: (L, N) float64."""
    return state.over_nodes(state.lanes.flat, of=torch.Tensor.square_).sqrt_()
