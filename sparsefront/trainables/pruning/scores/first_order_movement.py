"""First-order movement: what training lets grow matters, the running sum of -w dL/dw over its steps.

Descent moves a weight away from zero where w dL/dw is negative: the score is high of weights that grew, and below zero
of those that shrink, however large they still are. Nodes: the (signed) sum over everything that leaves with them, as of
blocks (Lagunas et al.).

Not here: `movement`, the distance from the start.

References: Sanh, Wolf and Rush, Movement pruning: adaptive sparsity by fine-tuning, 2020 (equation 4; there masked
weights are trained on and may come back, here what is gone stays so); Lagunas et al., Block pruning for faster
transformers, 2021.
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W)."""
    return state.of_weights(_products(state)).neg_()


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes(_products(state)).neg_()


def _products(state: ScoringState) -> torch.Tensor:
    """Of what is left."""
    assert state.products is not None
    return state.products if state.lanes.keep is None else state.products * state.lanes.keep
