"""Multilayer perceptron: Linear layers with an activation between them."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models.model import ACTIVATIONS, Model, Options, Perceptron, StagedModule, meta_module

Width = Annotated[int, Field(ge=1, le=65536)]


class MLPOptions(Options):
    """Hidden widths, activation, biases and initialisation."""

    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64, strict=False)] = (256, 128)
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    bias: bool = True
    init: Literal["kaiming", "torch"] = "kaiming"


class MLP(StagedModule):
    """x -> act(W1 x + b1) -> ... -> logits; inputs of more than one dimension are flattened."""

    stem_prefixes = ("layers.0.",)

    def __init__(self, sizes: tuple[int, ...], *, activation: str, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes))
        self.activation = ACTIVATIONS[activation]()

    @property
    def perceptron(self) -> Perceptron | None:
        """What it computes; None of a class of one's own, and where a part was exchanged for another."""
        name = next((name for name, kind in ACTIVATIONS.items() if type(self.activation) is kind), None)
        is_plain = type(self) is MLP and all(type(layer) is nn.Linear for layer in self.layers)
        if not is_plain or name is None or self.activation.extra_repr() != ACTIVATIONS[name]().extra_repr():
            return None
        return Perceptron(
            tuple(f"layers.{i}.weight" for i in range(len(self.layers))),
            tuple(f"layers.{i}.bias" if layer.bias is not None else None for i, layer in enumerate(self.layers)),
            name,
        )

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, ...) -> (batch, first hidden width)."""
        hidden: torch.Tensor = self.activation(self.layers[0](x.flatten(1)))
        return hidden

    def head(self, h: torch.Tensor) -> torch.Tensor:
        """(batch, first hidden width) -> (batch, classes)."""
        for layer in self.layers[1:-1]:
            h = self.activation(layer(h))
        logits: torch.Tensor = self.layers[-1](h)
        return logits


class MLPFamily:
    """Registry row of `mlp`."""

    summary = "Linear layers with an activation between them; masks on hidden units or weights"
    source = "the parent of LeNet-300-100-like studies"
    options: type[Options] = MLPOptions

    def skeleton(self, options: Options) -> Options:
        """The options without widths, which padding makes equal; a layer more or less is another network."""
        assert isinstance(options, MLPOptions)
        return options.model_copy(update={"widths": (1,) * len(options.widths)})

    def structure(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Structure:
        """Tensors and hidden units."""
        assert isinstance(options, MLPOptions)
        sizes = (math.prod(input_shape), *options.widths, n_classes)
        tensors: list[Tensor] = []
        groups: list[NodeGroup] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            axes = [Axis(f"layers.{i}.weight", 0)]
            tensors.append(Tensor(f"layers.{i}.weight", (b, a), prunable=True))
            if options.bias:
                tensors.append(Tensor(f"layers.{i}.bias", (b,), prunable=False))
                axes.append(Axis(f"layers.{i}.bias", 0))
            if i < len(options.widths):
                groups.append(NodeGroup(f"layers.{i}", b, (*axes, Axis(f"layers.{i + 1}.weight", 1))))
        return Structure(tuple(tensors), tuple(groups))

    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        """The parent for flat or flattened inputs."""
        assert isinstance(options, MLPOptions)
        sizes = (math.prod(input_shape), *options.widths, n_classes)
        module = MLP(sizes, activation=options.activation, bias=options.bias)
        structure = self.structure(options, input_shape=input_shape, n_classes=n_classes)
        return Model(meta_module(module), structure, options.init)


class LeNet300100Options(MLPOptions):
    """The options of `mlp` with the two hidden widths of LeNet-300-100."""

    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64, strict=False)] = (300, 100)


class LeNet300100Family(MLPFamily):
    """Registry row of `lenet_300_100`."""

    summary = "the perceptron of the lottery-ticket studies: hidden layers of 300 and 100 units"
    source = "LeCun et al., Gradient-based learning applied to document recognition, 1998"
    options: type[Options] = LeNet300100Options
