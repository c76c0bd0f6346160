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
from sparsefront.trainables.pruning.state import Entries, ScoringState, blocks


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W) float64."""
    gradients, magnitudes = _flow(state)
    return state.over_weights(gradients, factors=magnitudes)


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    gradients, magnitudes = _flow(state)
    return state.over_nodes(gradients, factors=magnitudes)


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


def _flow(state: ScoringState) -> tuple[Entries, Entries]:
    """The gradient of R, and |w|, both by name."""
    assert state.examples is not None
    module, layout = state.model.module, state.lanes.layout
    flat = torch.empty_like(state.lanes.flat, dtype=torch.float64)
    for columns in blocks(flat):
        flat[:, columns] = state.lanes.flat[:, columns].abs()
    tensors = layout.views(flat)
    for tensor in state.structure.tensors:
        if len(tensor.shape) == 1:
            tensors[tensor.name].zero_()
    ones = torch.ones(1, *state.examples.x.shape[1:], dtype=flat.dtype, device=flat.device)

    def total(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        with _Linearised():
            logits: torch.Tensor = functional_call(module, parameters, (ones,))
        return logits.sum()

    return gradient_of(total, tensors), tensors
