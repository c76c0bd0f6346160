"""GraSP: what removal would weaken the gradient flow matters.

Removing weight q changes the squared gradient norm by -2 w_q (Hg)_q to first order. What would lower it most has the
largest w Hg and is kept; the paper's score is -w Hg, and removes its largest. The gradient is that of logits / 200.

Nodes: the (signed) sum over everything that leaves with them.

Reference: Wang et al., Picking winning tickets before training by preserving gradient flow, 2020 (temperature 200 as
in the released code).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.pruning.derivatives import hessian_gradient
from sparsefront.trainables.pruning.state import ScoringState

TEMPERATURE = 200.0


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W)."""
    return state.over_weights(hessian_gradient(state, temperature=TEMPERATURE), factors=state.parameters)


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return state.over_nodes(hessian_gradient(state, temperature=TEMPERATURE), factors=state.parameters)
