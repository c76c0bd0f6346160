"""The residual MLP that MNIST-1D's own experiments use: three Linear layers, a skip over the second.

Reference: Greydanus and Kobak, Scaling down deep learning with MNIST-1D, 2020 (class MLPBase of the released code).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models.model import ACTIVATIONS, Model, Options, StagedModule, meta_module


class ResidualMLPOptions(Options):
    """Hidden width, activation, biases and initialisation."""

    width: Annotated[int, Field(ge=1, le=65536)] = 100
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    bias: bool = True
    init: Literal["kaiming", "torch"] = "torch"


class ResidualMLP(StagedModule):
    """h = act(W1 x); logits = W3 (h + act(W2 h))."""

    stem_prefixes = ("linear1.",)

    def __init__(self, n_inputs: int, width: int, n_classes: int, *, activation: str, bias: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(n_inputs, width, bias=bias)
        self.linear2 = nn.Linear(width, width, bias=bias)
        self.linear3 = nn.Linear(width, n_classes, bias=bias)
        self.activation = ACTIVATIONS[activation]()

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, ...) -> (batch, width)."""
        hidden: torch.Tensor = self.activation(self.linear1(x.flatten(1)))
        return hidden

    def head(self, h: torch.Tensor) -> torch.Tensor:
        """(batch, width) -> (batch, classes)."""
        logits: torch.Tensor = self.linear3(h + self.activation(self.linear2(h)))
        return logits


class ResidualMLPFamily:
    """Registry row of `residual_mlp`."""

    summary = "three Linear layers with a skip over the second; a node is one unit of the whole stream"
    source = "Greydanus and Kobak, Scaling down deep learning with MNIST-1D, 2020"
    options: type[Options] = ResidualMLPOptions

    def skeleton(self, options: Options) -> Options:
        """The options without the width, which padding makes equal."""
        return options.model_copy(update={"width": 1})

    def structure(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Structure:
        """Tensors and hidden units; the skip ties both hidden layers into one node group."""
        assert isinstance(options, ResidualMLPOptions)
        n, w = math.prod(input_shape), options.width
        tensors: list[Tensor] = []
        axes: list[Axis] = []
        for name, shape in (("linear1", (w, n)), ("linear2", (w, w)), ("linear3", (n_classes, w))):
            tensors.append(Tensor(f"{name}.weight", shape, prunable=True))
            if name != "linear3":
                axes.append(Axis(f"{name}.weight", 0))
            if name != "linear1":
                axes.append(Axis(f"{name}.weight", 1))
            if options.bias:
                tensors.append(Tensor(f"{name}.bias", (shape[0],), prunable=False))
                if name != "linear3":
                    axes.append(Axis(f"{name}.bias", 0))
        return Structure(tuple(tensors), (NodeGroup("stream", w, tuple(axes)),))

    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        """The parent for flat or flattened inputs."""
        assert isinstance(options, ResidualMLPOptions)
        n = math.prod(input_shape)
        module = ResidualMLP(n, options.width, n_classes, activation=options.activation, bias=options.bias)
        structure = self.structure(options, input_shape=input_shape, n_classes=n_classes)
        return Model(meta_module(module), structure, options.init)
