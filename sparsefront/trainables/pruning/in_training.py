"""Scores of lanes while they train: how masks that change rank what they keep.

A step has the weights and the dense gradient of its batch at hand, and what was kept of earlier steps: the weights that
training began with, and the running sum of w dL/dw. A score that reads nothing else is that of the registry. One of the
gradient is the mean of those of the last batches before an update, each at the weights of its step: of one batch alone
it is mostly noise (MNIST-1D, 40-256-128-10, 95% sparsity, global, 4 replicates: 46% correct by SNIP, by ten batches
55%, by magnitude 47%).
The rest (Hessian, squares by example, activations, a flow of its own) would take passes that a step does not make.

Reference: Molchanov et al., Importance estimation for neural network pruning, 2019, section 3.3 (scores averaged over
the batches between prunings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.mask_updates.contract import finite
from sparsefront.trainables.models import Model
from sparsefront.trainables.pruning.registry import SCORES
from sparsefront.trainables.pruning.state import ScoringState

#: Names of slots: what scores remember of earlier steps.
_START, _PRODUCTS, _SCORES = "weights_at_start", "sum_of_products", "sum_of_scores"
#: Batches before an update, at most, whose scores by the gradient are averaged.
_BATCHES = 10


class ScoreInTraining:
    """Ranks the entries of lanes by one score of the registry; made for the lanes of one pack (`Ranking`)."""

    def __init__(
        self, name: str, model: Model, lanes: LaneStack, kind: str, keys: Sequence[npt.NDArray[np.uint64]] = ()
    ) -> None:
        """Begin.

        Args:
            name: of a score.
            model: the parent.
            lanes: that are going to train; their layout and what of them is not trained are read.
            kind: of the masks, 'node' or 'weight'.
            keys: for each lane the key of its random draws.

        Raises:
            SpaceError: a score that reads more than a step has at hand.
        """
        score = SCORES[name]
        if not score.ranks_in_training:
            able = ", ".join(each for each, row in SCORES.items() if row.ranks_in_training)
            raise SpaceError(
                f"score={name!r}: reads more than the weights and gradient that a training step has at hand; masks "
                f"that change in training can be ranked by {able}"
            )
        self._rank = score.nodes if kind == "node" or score.weights is None else score.weights
        self._needs = score.needs
        self._model, self._layout = model, lanes.layout
        self._fixed = lanes.flat[:, lanes.layout.trained_width :].clone()
        self._keys = list(keys)
        self._kept: dict[str, torch.Tensor] = {}
        self._width = model.structure.n_nodes if kind == "node" else model.structure.n_weights

    def start(self, flat: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over the trained parts (L, P) of lanes; `saved` are the `slots` of an earlier pack, if there was one."""
        if "start" in self._needs:
            self._kept[_START] = saved.get(_START, flat).to(flat, copy=True)
        for need, name in (("products", _PRODUCTS), ("examples", _SCORES)):
            if need in self._needs:
                self._kept[name] = saved[name].to(flat, copy=True) if name in saved else torch.zeros_like(flat)

    def observe(self, flat: torch.Tensor, gradient: torch.Tensor, *, until_update: int) -> None:
        """Look at weights and gradient (L, P) of a step before it is taken; so many steps later comes an update."""
        if _PRODUCTS in self._kept:
            self._kept[_PRODUCTS].addcmul_(flat, gradient)
        elif _SCORES in self._kept and until_update < _BATCHES:
            self._kept[_SCORES][:, : self._width] += self._scores(flat, gradient)

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        """Scores of lanes, (L, W) or (L, N), finite: of a lane that diverged, any. Those of batches begin anew."""
        if _SCORES not in self._kept:
            return finite(self._scores(flat))
        found = self._kept[_SCORES][:, : self._width].clone()
        self._kept[_SCORES].zero_()
        return finite(found)

    def _scores(self, flat: torch.Tensor, gradient: torch.Tensor | None = None) -> torch.Tensor:
        start = self._kept.get(_START)
        products = self._kept.get(_PRODUCTS)
        return self._rank(
            ScoringState(
                self._model,
                LaneStack(self._layout, self._whole(flat), None),
                start=None if start is None else self._whole(start),
                keys=self._keys,
                gradient=None if gradient is None else self._whole(gradient, fixed=False),
                products=None if products is None else self._whole(products, fixed=False),
            )
        )

    def _whole(self, trained: torch.Tensor, *, fixed: bool = True) -> torch.Tensor:
        """Rows (L, whole P) of what is trained, and what is not or zeros."""
        if not self._fixed.shape[1]:
            return trained
        return torch.cat([trained, self._fixed if fixed else torch.zeros_like(self._fixed)], dim=1)

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these (index tensor)."""
        self._fixed = self._fixed[lanes]
        self._keys = [self._keys[i] for i in lanes.tolist()] if self._keys else []
        self._kept = {name: state[lanes] for name, state in self._kept.items()}

    def slots(self) -> dict[str, torch.Tensor]:
        """What was kept of earlier steps, by name, each (L, P), not copied; sums of scores come first in their rows."""
        return dict(self._kept)
