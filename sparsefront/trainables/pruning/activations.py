"""Statistics of what nodes hand on: the inputs of the layers that read them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from sparsefront.trainables.pruning.layers import for_each_lane, layer_of, observed_layers
from sparsefront.trainables.pruning.state import ScoringState


@torch.no_grad()
def mean_over_activations(state: ScoringState, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Mean of `of(activation)` over examples and positions: (L, N).

    A node is read where its group is an input axis; several readers (a skip connection's) count alike.
    """
    assert state.examples is not None
    model, x = state.model, state.examples.x
    readers = {a.tensor: layer_of(model, a.tensor) for g in state.structure.groups for a in g.axes if a.dim == 1}
    layers = dict(readers.values())

    def one(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        means: dict[str, torch.Tensor] = {}

        def observe(name: str, given: torch.Tensor, _: torch.Tensor) -> None:
            features = given.dim() - 1 if isinstance(layers[name], nn.Linear) else 1
            means[name] = of(given).mean(dim=[d for d in range(given.dim()) if d != features])

        with observed_layers(layers, observe):
            functional_call(model.module, parameters, (x,))
        return means

    means = for_each_lane(one, state.parameters)
    found: list[torch.Tensor] = []
    for group in state.structure.groups:
        # A block that is padding has no nodes, and its layers are not called.
        by_reader = [
            means[readers[a.tensor][0]].view(-1, group.size, a.repeat).mean(dim=2)
            for a in group.axes
            if a.dim == 1 and group.size
        ]
        found += [torch.stack(by_reader).mean(dim=0)] if by_reader else []
    return torch.cat(found, dim=1)
