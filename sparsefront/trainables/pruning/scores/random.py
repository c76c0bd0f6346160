"""Random: every mask of given counts is equally likely.

A lane's scores depend on its own key only, and rank as `spaces.masks.draw` ranks its mask number 0 under that key.
"""

from __future__ import annotations

import numpy as np
import torch

from sparsefront.spaces.seeds import raw_rows
from sparsefront.trainables.pruning.state import ScoringState


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W) float64."""
    return _drawn(state, state.structure.n_weights)


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return _drawn(state, state.structure.n_nodes)


def _drawn(state: ScoringState, width: int) -> torch.Tensor:
    words = np.concatenate([raw_rows(key, start=0, stop=1, width=width) for key in state.keys])
    # float64 holds every 32-bit word; the smallest words are the ones that `draw` keeps.
    return torch.from_numpy(-words.astype(np.float64)).to(state.lanes.flat.device)
