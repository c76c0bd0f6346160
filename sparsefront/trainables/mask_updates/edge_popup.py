"""Edge-popup: weights stay as they were drawn, and training chooses among them.

Every weight has a score S; the forward pass uses the weights of largest absolute S, exactly as many of each layer as
the allocation says, and the gradient passes straight through the choice: that of the absolute score is (gradient of
the weight in use) x (the weight as drawn), and that of S has the sign of S besides, without which a negative score
would move the wrong way. The optimiser, its weight decay included, acts on the scores. Biases and norms stay as they
were drawn too. Under an N:M pattern the choice is made in every group, under blocks among blocks of a size by the sums
of their absolute scores.

Scores begin at sqrt(6 / fan_in) x w / (largest absolute w) of each tensor, the scaled initialisation of Sehwag et al.,
so that the first mask is that of layer-wise magnitude.

Of node masks every node has a score, and the gradient of its absolute score is the sum over its outgoing weights of
(gradient of the weight in use) x (the weight as drawn). A node that is left out has its incoming weights and its bias
while the gradient is computed, without which it would have none; no output shows them. Scores of nodes begin at
sqrt(6 / nodes of the layer) x norm / (largest norm of the layer). That is ours; the paper has weights alone.

References: Ramanujan et al., What's hidden in a randomly weighted neural network?, CVPR 2020; Sehwag et al., HYDRA:
pruning adversarially robust neural networks, NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sparsefront.errors import SpaceError
from sparsefront.trainables.mask_updates.contract import UpdateSettings, finite, gather
from sparsefront.trainables.optimizers import LaneOptimizer

_SMALLEST = torch.finfo(torch.float32).tiny


class EdgePopup:
    """Trains scores, never weights."""

    def __init__(self, settings: UpdateSettings) -> None:
        if settings.counts is None:
            raise SpaceError("counts=None: edge-popup needs the survivors of each section at a sparsity")
        self.settings = settings
        of_lanes = [settings.counts(sparsity) for sparsity in settings.sparsities]
        self._counts = torch.tensor(of_lanes).T  # (sections, L or 1)
        self._drawn = torch.empty(0)
        self._scores = torch.empty(0)  # (L, P) as the optimiser has it; those of nodes are the first N entries

    def start(self, flat: torch.Tensor, keep: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over the lanes' weights as those that were drawn; `keep` is chosen here."""
        if "popup_score" in saved:
            self._drawn = saved["drawn"].to(flat, copy=True)
            self._scores = saved["popup_score"].to(flat, copy=True)
        else:
            self._drawn, self._scores = flat.clone(), torch.zeros_like(flat)
            self._begin(flat, keep)
        self._choose(flat, keep)

    def _begin(self, flat: torch.Tensor, keep: torch.Tensor) -> None:
        s = self.settings
        if s.nodes is not None:
            for part, score in zip(
                torch.split(s.scores(flat, keep), s.sizes, dim=1),
                torch.split(self._of_nodes(), s.sizes, dim=1),
                strict=True,
            ):
                score.copy_(_relative(part) * math.sqrt(6 / part.shape[1]))
            return
        for section in s.sections:
            section.of(self._scores).copy_(_relative(section.of(flat)) * math.sqrt(6 / section.fan_in))

    def _of_nodes(self) -> torch.Tensor:
        """Scores of nodes: (L, N), a view."""
        return self._scores[:, : sum(self.settings.sizes)]

    def _choose(self, flat: torch.Tensor, keep: torch.Tensor) -> None:
        s = self.settings
        scores = gather(s.sections, self._scores).abs_() if s.nodes is None else finite(self._of_nodes().abs())
        s.write(s.best(scores, self._counts), keep)
        torch.mul(self._drawn, keep, out=flat)

    def prepare(self, step: int, flat: torch.Tensor, keep: torch.Tensor) -> None:
        """Let the gradient see what nodes that are left out could do."""
        nodes = self.settings.nodes
        if nodes is not None:
            nodes.insert(flat, 1 - keep, self._drawn, nodes.kept(keep))

    def step(
        self, step: int, flat: torch.Tensor, keep: torch.Tensor, gradient: torch.Tensor, optimizer: LaneOptimizer
    ) -> bool:
        """Take a step of the scores, and choose anew."""
        gradient.mul_(self._drawn)
        if self.settings.nodes is not None:
            of_nodes = self.settings.nodes.outgoing(gradient)
            gradient.zero_()[:, : of_nodes.shape[1]] = of_nodes
        optimizer.step(self._scores, gradient.mul_(self._scores.sign()))
        self._choose(flat, keep)
        return True

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these."""
        if len(self.settings.sparsities) > 1:
            self._counts = self._counts[:, lanes.cpu()]
        self._drawn, self._scores = self._drawn[lanes], self._scores[lanes]

    def slots(self) -> dict[str, torch.Tensor]:
        """Weights as drawn, and scores."""
        return {"drawn": self._drawn, "popup_score": self._scores}

    def n_skipped(self, step: int) -> int:
        """None: every step is one of the optimiser."""
        return 0


def _relative(sizes: torch.Tensor) -> torch.Tensor:
    """Numbers (L, n) relative to the largest of each row in size."""
    return sizes / sizes.abs().amax(dim=1, keepdim=True).clamp_min(_SMALLEST)
