"""L1 norms: what is large matters, all entries of a group alike.

A weight scores its absolute value, as by magnitude. A node scores the sum of the absolute values of all that leaves
with it: its incoming weights and bias, and the weights of its consumers (Li et al. sum over the filter's own weights).

Reference: Li et al., Pruning filters for efficient ConvNets, 2017, section 3.1.
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.scores.magnitude import weights
from sparsefront.trainables.pruning.state import ScoringState

__all__ = ["nodes", "weights"]


def nodes(state: ScoringState) -> torch.Tensor:
    """L1 norms of coupled groups: (L, N) float64."""
    return state.over_nodes(state.lanes.flat, of=torch.Tensor.abs_)
