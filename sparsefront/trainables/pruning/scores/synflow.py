"""SynFlow: what carries the flow through the network of absolute weights matters; no data are needed.

R = sum of the outputs on an all-ones input of the network with |w|, without biases, norms and (all that is left being
positive) activations; a weight scores |w| dR/d|w|. The scores of every layer then add up to R, which is why masking in
many rounds, with scores computed anew in each, keeps layers from being emptied before others. In float64: R is a
product over layers. Nodes: the sum over everything that leaves with them (their flow in, and the same flow out).

Reference: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020
(100 rounds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparsefront.trainables.pruning.derivatives import gradient_of
from sparsefront.trainables.pruning.state import ScoringState, blocks


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W) float64."""
    return Flow(state).scores("weight")[0]


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return Flow(state).scores("node")[0]


#: What is passed over: activations and norms.
_BYPASSED: frozenset[Callable[..., torch.Tensor]] = frozenset(
    {
        *(functional.relu, torch.relu, torch.Tensor.relu, torch.tanh, torch.Tensor.tanh, functional.gelu),
        *(functional.silu, functional.layer_norm, functional.batch_norm, functional.group_norm),
    }
)


class _Linearised(TorchFunctionMode):
    """Context in which activations and norms return their input."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in _BYPASSED else func(*args, **(kwargs or {}))


class Flow:
    """The flow through lanes from which more and more is removed: what it runs through is made once, for all rounds."""

    def __init__(self, state: ScoringState) -> None:
        assert state.examples is not None
        self._state, layout = state, state.lanes.layout
        flat = torch.empty_like(state.lanes.flat, dtype=torch.float64)
        for columns in blocks(flat):
            flat[:, columns] = state.lanes.flat[:, columns].abs()
        self._magnitudes = layout.views(flat)
        for tensor in state.structure.tensors:
            if len(tensor.shape) == 1:
                self._magnitudes[tensor.name].zero_()
        self._joined: torch.Tensor | None = None
        self._ones = torch.ones(1, *state.examples.x.shape[1:], dtype=flat.dtype, device=flat.device)

    def scores(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (L, entries) float64 >= 0, zero for what was removed, and their sum; until the next call."""
        gradients = gradient_of(self._total, self._magnitudes)
        if kind == "node":
            nodes = self._state.over_nodes(gradients, factors=self._magnitudes)
            return nodes, nodes.sum()
        sums: list[torch.Tensor] = []
        self._joined = self._state.over_weights(
            gradients, factors=self._magnitudes, of=lambda block: sums.append(block.sum()), into=self._joined
        )
        return self._joined, torch.stack(sums).sum()

    def remove(self, masks: torch.Tensor, kind: str) -> None:
        """Go on without what `masks` (L, entries) bool remove."""
        self._state.remove(self._magnitudes, masks, kind)

    def _total(self, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        with _Linearised():
            logits: torch.Tensor = functional_call(self._state.model.module, parameters, (self._ones,))
        return logits.sum()
