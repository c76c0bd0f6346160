"""Scores of lanes while they train: how masks that change rank what they keep.

A step has the weights and the dense gradient of its batch at hand, and what was kept of earlier steps: the weights that
training began with, and the running sum of w dL/dw. A score that reads nothing else is that of the registry, of the
step's batch in place of the scoring batch. The rest (Hessian, squares by example, activations, a flow of its own) would
take passes that a step does not make.
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
_START, _PRODUCTS = "weights_at_start", "sum_of_products"


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
        self._ranked: torch.Tensor | None = None

    def start(self, flat: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over the trained parts (L, P) of lanes; `saved` are the `slots` of an earlier pack, if there was one."""
        if "start" in self._needs:
            self._kept[_START] = saved.get(_START, flat).to(flat, copy=True)
        if "products" in self._needs:
            earlier = saved.get(_PRODUCTS)
            self._kept[_PRODUCTS] = torch.zeros_like(flat) if earlier is None else earlier.to(flat, copy=True)

    def observe(self, flat: torch.Tensor, gradient: torch.Tensor, *, is_due: bool) -> None:
        """Look at the weights and the gradient (L, P) of a step before it is taken; `is_due`: an update will follow it.

        Products of both are of these weights: scores by the gradient are those of the update that follows.
        """
        if "products" in self._needs:
            self._kept[_PRODUCTS].addcmul_(flat, gradient)
        elif is_due and "examples" in self._needs:
            self._ranked = self._scores(flat, gradient)

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        """Scores of lanes, (L, W) or (L, N), finite: of a lane that diverged, any."""
        found, self._ranked = self._ranked, None
        return finite(self._scores(flat) if found is None else found)

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
        """What was kept of earlier steps, by name, each (L, P), not copied."""
        return dict(self._kept)
