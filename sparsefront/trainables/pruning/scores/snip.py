"""SNIP: what the loss notices first matters, |w dL/dw|, which is |dL/dm| at mask m = 1.

Nodes: the sum over everything that leaves with them.

Reference: Lee et al., SNIP: Single-shot network pruning based on connection sensitivity, 2019; in rounds with
re-scoring: de Jorge et al., Progressive skeletonization (FORCE), 2021, iterative SNIP.
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.derivatives import gradient
from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W)."""
    return state.over_weights(gradient(state), factors=state.parameters, of=torch.Tensor.abs_)


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes(gradient(state), factors=state.parameters, of=torch.Tensor.abs_)
