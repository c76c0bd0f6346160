"""Scores of masks before any training.

Node masks of one parent share its first layer: the stem's output is computed once for all of them, each mask gathers
its kept nodes from it, and the rest of the network runs as small dense matrices of the kept size.

Reference: Farahani, Random search as a baseline for sparse neural network architecture search, 2024 (sub-networks are
chosen by their loss before training); why the raw loss mostly ranks logit scale: docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, vmap

from sparsefront.trainables.gradients import forward
from sparsefront.trainables.lanes import (
    KeptNodes,
    LaneStack,
    gather_tensors,
    kept_nodes,
    node_masked_lanes,
    weight_masked_lanes,
)
from sparsefront.trainables.losses import absolute_error, scale_free_cross_entropy
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples

#: Activations (float32) of one chunk of masks: about the second-level cache of a core, and plenty for a GPU's kernels.
_CHUNK_FLOATS = {"cpu": 1 << 20, "cuda": 1 << 26}


#: Logits (float32) that are scored together: more masks than the cache-bound networks before them can share a chunk.
_SCORED_FLOATS = 1 << 17


@dataclass(frozen=True)
class Scores:
    """Scores of n masks, each (n,) float64; lower losses are better."""

    initial_loss: npt.NDArray[np.float64]
    scalefree_loss: npt.NDArray[np.float64]
    temperature: npt.NDArray[np.float64]
    logit_std: npt.NDArray[np.float64]


class Scorer:
    """Scores masks of one parent on one probe; what all masks share is computed once."""

    def __init__(self, model: Model, parent: Mapping[str, torch.Tensor], probe: Examples, *, kind: str) -> None:
        """Prepare a scorer.

        Args:
            model: the parent.
            parent: its weights, on the device to score on.
            probe: examples to score on, the same for all masks.
            kind: 'node' or 'weight'.
        """
        self._model, self._parent, self._probe, self._kind = model, parent, probe, kind
        if not self._is_staged:
            return
        names = [t.name for t in model.structure.tensors]
        self._head_names = [n for n in names if not n.startswith(model.module.stem_prefixes)]
        with torch.no_grad():
            stem = functional_call(_Stage(model.module, "stem"), _prefixed(parent), (probe.x,))
            self._stem = stem.movedim(1, 0).contiguous()  # (nodes, batch, ...): gathering a node copies one run

    @property
    def _is_staged(self) -> bool:
        """Whether the stem is computed once for all masks; a module can have none (`StagedModule.stem_prefixes`)."""
        return self._kind == "node" and bool(self._model.module.stem_prefixes)

    @torch.no_grad()
    def score(self, masks: npt.NDArray[np.bool_]) -> Scores:
        """Scores of `masks` (n, entries) bool."""
        n_examples = len(self._probe)
        device = self._probe.x.device
        if self._is_staged:
            kept = kept_nodes(self._model.structure, masks)
            per_mask = n_examples * self._stem[0, 0].numel() * max(k.width for k in kept)
        else:
            kept = []
            widest = max(t.shape[0] * t.positions for t in self._model.structure.multiplied)
            per_mask = n_examples * widest
        chunk = max(1, _CHUNK_FLOATS["cpu" if device.type == "cpu" else "cuda"] // per_mask)
        parts: list[torch.Tensor] = []
        pending: list[torch.Tensor] = []
        for a in range(0, len(masks), chunk):
            logits = self._node_logits(kept, a, a + chunk) if kept else self._lane_logits(masks[a : a + chunk])
            pending.append(logits)
            if len(pending) * chunk * logits[0].numel() >= _SCORED_FLOATS or a + chunk >= len(masks):
                parts.append(_reduce(torch.cat(pending), self._probe))
                pending = []
        return Scores(*torch.cat(parts, dim=1).double().cpu().numpy())

    def _node_logits(self, kept: list[KeptNodes], a: int, b: int) -> torch.Tensor:
        """Logits of masks a..b: (n, batch, classes)."""
        part = [KeptNodes(k.indices[a:b], None if k.valid is None else k.valid[a:b]) for k in kept]
        weights = gather_tensors(self._model.structure, self._parent, part, only=self._head_names)
        first = torch.from_numpy(part[0].indices).to(self._stem.device)
        hidden = self._stem[first].movedim(1, 2)  # (n, batch, kept, ...); padded nodes meet zero weights
        if part[0].valid is not None:
            valid = torch.from_numpy(part[0].valid).to(hidden)
            hidden = hidden * valid.view(valid.shape[0], 1, valid.shape[1], *([1] * (hidden.dim() - 3)))
        head = _Stage(self._model.module, "head")

        def one(weights: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = functional_call(head, weights, (hidden,))
            return logits

        logits: torch.Tensor = vmap(one)(_prefixed(weights), hidden)
        return logits

    def _lane_logits(self, masks: npt.NDArray[np.bool_]) -> torch.Tensor:
        build = node_masked_lanes if self._kind == "node" else weight_masked_lanes
        lanes = build(self._model.structure, self._parent, masks)
        return forward(self._model, lanes.layout, lanes.flat, self._probe.x)


@torch.no_grad()
def score_lanes(model: Model, lanes: LaneStack, probe: Examples) -> Scores:
    """Scores of lanes as they stand: the general way, which computes every lane's first layer by itself."""
    return Scores(*_reduce(forward(model, lanes.layout, lanes.flat, probe.x), probe).double().cpu().numpy())


def _reduce(logits: torch.Tensor, probe: Examples) -> torch.Tensor:
    """The four scores, (4, n), of logits (n, batch, classes); of restored images the loss alone, the others are NaN."""
    if probe.images is not None:
        restored = vmap(absolute_error, in_dims=(0, None))(logits.float(), probe.images)
        return torch.stack([restored, *[torch.full_like(restored, torch.nan)] * 3])
    z = logits.float().transpose(1, 2).contiguous()
    loss = -(torch.log_softmax(z, dim=1) * probe.one_hot).sum(dim=(1, 2)) / len(probe)
    scalefree, temperature, std = scale_free_cross_entropy(z, probe.labels)
    return torch.stack([loss, scalefree, temperature, std])


class _Stage(torch.nn.Module):
    """One of a staged module's two stages as a module of its own."""

    def __init__(self, module: torch.nn.Module, stage: str) -> None:
        super().__init__()
        self.whole = module
        self._stage = stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.whole, self._stage)(x)
        return result


def _prefixed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"whole.{name}": value for name, value in weights.items()}
