"""Layers of a module by the name of their weights, and what flows through them in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import vmap

from sparsefront.errors import SpaceError
from sparsefront.trainables.models import Model

#: (name of the layer, its input, its output) -> what replaces the output, or None.
Observer = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor | None]


def layer_of(model: Model, tensor: str) -> tuple[str, nn.Module]:
    """Name and module of the layer whose weight is called `tensor`.

    Raises:
        SpaceError: if no Linear layer or convolution has it.
    """
    name = tensor.removesuffix(".weight")
    layer = dict(model.module.named_modules()).get(name)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        raise SpaceError(
            f"tensor={tensor!r}: must be the weight of a Linear layer, Conv1d or Conv2d for a score that looks at the "
            "layers' inputs; choose another score or change the model"
        )
    return name, layer


def prunable_layers(model: Model) -> dict[str, nn.Module]:
    """The layers of the prunable weights by name."""
    return dict(layer_of(model, tensor.name) for tensor in model.structure.prunable if len(tensor.shape) > 1)


def for_each_lane(
    function: Callable[..., dict[str, torch.Tensor]], *lanes: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What `function` of one lane's tensors returns, for every lane.

    Args:
        function: of tensors by name, one mapping for each of `lanes`, to tensors by name.
        lanes: (L, *shape) by name; the first is not empty.

    Returns:
        (L, *shape) by name. One lane is not batched, which would cost 1 ms and slower products of matrices.
    """
    if len(next(iter(lanes[0].values()))) > 1:
        batched: dict[str, torch.Tensor] = vmap(function)(*lanes)
        return batched
    found = function(*({name: values.squeeze(0) for name, values in tensors.items()} for tensors in lanes))
    return {name: values.unsqueeze(0) for name, values in found.items()}


@contextmanager
def observed_layers(layers: Mapping[str, nn.Module], observe: Observer) -> Iterator[None]:
    """Context in which `observe` sees the input and the output of every call of one of `layers`.

    Raises:
        SpaceError: if a forward pass calls one of them twice.
    """
    called: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor | None]:
        def on_call(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            if name in called:
                raise SpaceError(
                    f"layer={name!r}: must be called once in a forward pass for a score that looks at the layers' "
                    "inputs; choose another score"
                )
            called.add(name)
            return observe(name, inputs[0], output)

        return on_call

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(hook(name)).remove)
        yield
