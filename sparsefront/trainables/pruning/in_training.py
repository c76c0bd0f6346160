"""Scores of lanes while they train: how masks that change rank what they keep.

A step has the weights and the dense gradient of its batch at hand, and what was kept of earlier steps: the weights that
training began with, and the running sum of w dL/dw. A score that reads nothing else is that of the registry. One of the
gradient is the mean of those of the last batches before an update, each at the weights of its step: of one batch alone
it is mostly noise (MNIST-1D, 40-256-128-10, 95% sparsity, global, 4 replicates: 46% correct by SNIP, by ten batches
55%, by magnitude 47%).
The rest (Hessian, squares by example, activations, a flow of its own) takes passes of its own at every update: it is of
the lanes as they stand then, without what their masks remove, on the examples that masks before and after training are
scored on. There is no other memory of it than the weights and the mask. Lanes are scored one by one, as masks before
training are: a lane's scores are the same in any company, to the last bit, and take the memory of one lane (GraSP of 32
perceptrons 40-100-100-10, 512 examples, one core: 123 ms; batched 87 ms).

Reference: Molchanov et al., Importance estimation for neural network pruning, 2019, section 3.3 (scores averaged over
the batches between prunings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.mask_updates.contract import finite
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.pruning.registry import SCORES
from sparsefront.trainables.pruning.state import ScoringState

#: Names of slots: what scores remember of earlier steps.
_START, _PRODUCTS, _SCORES = "weights_at_start", "sum_of_products", "sum_of_scores"
#: Batches before an update, at most, whose scores by the gradient are averaged.
_BATCHES = 10


class ScoreInTraining:
    """Ranks the entries of lanes by one score of the registry; made for the lanes of one pack (`Ranking`)."""

    def __init__(
        self,
        name: str,
        model: Model,
        lanes: LaneStack,
        kind: str,
        keys: Sequence[npt.NDArray[np.uint64]] = (),
        probes: Sequence[Examples] = (),
    ) -> None:
        """Begin.

        Args:
            name: of a score.
            model: the parent.
            lanes: that are going to train; their layout and what of them is not trained are read.
            kind: of the masks, 'node' or 'weight'.
            keys: for each lane the key of its random draws.
            probes: for each lane the examples that its masks are scored on; read by scores that take passes.

        Raises:
            SpaceError: a kind that the score is not of, or one that reads examples without any.
        """
        score = SCORES[name]
        if score.reads_examples_in_training and len(probes) != len(lanes):
            raise SpaceError(
                f"probes: {len(probes)} are given; score={name!r} ranks masks that change in training on examples of "
                f"their own: one set for each of {len(lanes)} lanes is needed"
            )
        self._rank = score.function(kind)
        self._needs, self._by_gradient = score.needs, score.by_gradient
        self._probes = list(probes) if score.reads_examples_in_training else []
        self._model, self._layout = model, lanes.layout
        self._fixed = lanes.flat[:, lanes.layout.trained_width :].clone()
        self._keys = list(keys)
        self._kept: dict[str, torch.Tensor] = {}
        self._width = model.structure.n_nodes if kind == "node" else model.structure.n_weights

    def start(self, flat: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over the trained parts (L, P) of lanes; `saved` are the `slots` of an earlier pack, if there was one."""
        if "start" in self._needs:
            self._kept[_START] = saved.get(_START, flat).to(flat, copy=True)
        for is_kept, name in (("products" in self._needs, _PRODUCTS), (self._by_gradient, _SCORES)):
            if is_kept:
                self._kept[name] = saved[name].to(flat, copy=True) if name in saved else torch.zeros_like(flat)

    def observe(self, flat: torch.Tensor, gradient: torch.Tensor, *, until_update: int) -> None:
        """Look at weights and gradient (L, P) of a step before it is taken; so many steps later comes an update."""
        if _PRODUCTS in self._kept:
            self._kept[_PRODUCTS].addcmul_(flat, gradient)
        elif _SCORES in self._kept and until_update < _BATCHES:
            self._kept[_SCORES][:, : self._width] += self._rank(self._state(flat, gradient=gradient))

    def __call__(self, flat: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Scores of lanes, (L, W) or (L, N), finite: of a lane that diverged, any. Those of batches begin anew."""
        if self._probes:
            state = self._state(flat, keep=keep)
            each = (replace(state.lane(i), examples=probe) for i, probe in enumerate(self._probes))
            return finite(torch.cat([self._rank(one) for one in each]))
        if _SCORES not in self._kept:
            return finite(self._rank(self._state(flat)))
        found = self._kept[_SCORES][:, : self._width].clone()
        self._kept[_SCORES].zero_()
        return finite(found)

    def _state(
        self, flat: torch.Tensor, *, keep: torch.Tensor | None = None, gradient: torch.Tensor | None = None
    ) -> ScoringState:
        start = self._kept.get(_START)
        products = self._kept.get(_PRODUCTS)
        kept = None if keep is None else self._whole(keep, torch.ones_like(self._fixed))
        zeros = torch.zeros_like(self._fixed)
        return ScoringState(
            self._model,
            LaneStack(self._layout, self._whole(flat, self._fixed), kept),
            start=None if start is None else self._whole(start, self._fixed),
            keys=self._keys,
            gradient=None if gradient is None else self._whole(gradient, zeros),
            products=None if products is None else self._whole(products, zeros),
        )

    def _whole(self, trained: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Rows (L, whole P) of what holds for what is trained and for what is not."""
        return torch.cat([trained, rest], dim=1) if rest.shape[1] else trained

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these (index tensor)."""
        self._fixed = self._fixed[lanes]
        self._keys = [self._keys[i] for i in lanes.tolist()] if self._keys else []
        self._probes = [self._probes[i] for i in lanes.tolist()] if self._probes else []
        self._kept = {name: state[lanes] for name, state in self._kept.items()}

    def slots(self) -> dict[str, torch.Tensor]:
        """What was kept of earlier steps, by name, each (L, P), not copied; sums of scores come first in their rows."""
        return dict(self._kept)
