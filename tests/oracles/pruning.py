"""The mask that a score of weights alone leaves of one network, by the batched functions, one lane at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import Mask
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import dense_lanes
from sparsefront.trainables.models import Model
from sparsefront.trainables.models.model import StagedModule
from sparsefront.trainables.pruning import SCORES, ScoringState, keep_best

Weights = Mapping[str, npt.NDArray[np.float32]]


def pruned_mask(
    name: str, structure: Structure, weights: Weights, *, kind: str, sparsity: float, allocation: str
) -> Mask:
    """Mask of exactly the counts of `allocation` that keeps what score `name` likes best, of weights alone."""
    lanes = dense_lanes(structure, [weights], torch.device("cpu"))
    # A score that needs examples, which would run the module, is refused for their lack.
    state = ScoringState(Model(StagedModule(), structure, "torch"), lanes)
    counts = kept_counts(structure, kind, sparsity, allocation)
    return np.asarray(keep_best(SCORES[name].of(state, kind), structure.section_sizes(kind), counts)[0].numpy())
