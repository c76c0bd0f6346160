"""How often hidden units are silent: the outputs of activation functions, seen from outside of any module.

Every call of an activation function on what a layer returned is observed; the module needs nothing for it. A module
that puts anything between its layers and its activations (a norm, say), or whose activations are its own, shows
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples

#: Below this a unit of a smooth activation, which is never exactly silent, counts as silent.
SILENT_BELOW = 1e-3
#: Activation function, by the name torch calls it -> whether an output of it is silent.
_IS_SILENT: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("relu", "relu_", "relu6"), lambda a: a <= 0),
    **dict.fromkeys(("tanh", "gelu", "silu", "leaky_relu", "elu"), lambda a: a.abs() < SILENT_BELOW),
}
#: Forward passes hold at most this many activations (float32) of one layer at once.
_ACTIVATIONS_AT_ONCE = 1 << 22


@torch.no_grad()
def silent_fractions(model: Model, lanes: LaneStack, examples: Examples) -> dict[str, torch.Tensor]:
    """Share of examples (and positions) for which each unit behind a layer is silent.

    Returns:
        Name of the layer's weight -> (L, rows) float64; exactly 1 for a unit that is always silent. Layers whose
        output no activation function was seen to take are left out.
    """
    widest = max(t.shape[0] * t.positions for t in model.structure.multiplied)
    chunk = max(1, _ACTIVATIONS_AT_ONCE // (len(examples) * widest))
    parts = [
        _observe(model, lanes.layout.views(lanes.flat[a : a + chunk]), examples.x) for a in range(0, len(lanes), chunk)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _observe(model: Model, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    layers = {t.name for t in model.structure.multiplied if len(t.shape) > 1}
    n_of: dict[str, int] = {}

    def one(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        observer = _Observer({n: p for n, p in parameters.items() if n in layers})
        with observer:
            functional_call(model.module, parameters, (x,))
        n_of.update(observer.n_observed)
        return observer.n_silent

    n_silent: dict[str, torch.Tensor] = vmap(one)(tensors)
    return {name: counts.double() / n_of[name] for name, counts in n_silent.items()}


class _Observer(TorchFunctionMode):
    """Counts, for each weight, the silent outputs of activation functions that took the result of a call with it."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._weights = {id(w): (name, w) for name, w in weights.items()}
        self._results: dict[int, tuple[str, int, torch.Tensor]] = {}  # held, so that no other tensor takes its id
        self.n_silent: dict[str, torch.Tensor] = {}
        self.n_observed: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        name = getattr(func, "__name__", "")
        source = self._results.get(id(given)) if name in _IS_SILENT else None
        result = func(*args, **kwargs)
        if source is not None:
            self._count(*source[:2], _IS_SILENT[name](result))
        elif isinstance(result, torch.Tensor):
            for value in (*args[1:], kwargs.get("weight")):
                if id(value) in self._weights:
                    self._note(result, *self._weights[id(value)])
        return result

    def _note(self, result: torch.Tensor, name: str, weight: torch.Tensor) -> None:
        """Remember whose result this is, if it has the units of a layer: the last dimension of a Linear one's."""
        dim = result.dim() - 1 if weight.dim() == 2 else 1
        if result.dim() > 1 and result.shape[dim] == weight.shape[0]:
            self._results[id(result)] = (name, dim, result)

    def _count(self, name: str, dim: int, silent: torch.Tensor) -> None:
        self.n_silent[name] = silent.sum(dim=[d for d in range(silent.dim()) if d != dim])
        self.n_observed[name] = silent.numel() // silent.shape[dim] if silent.shape[dim] else 1
