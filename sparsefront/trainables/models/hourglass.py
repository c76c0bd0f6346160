"""Residual perceptrons whose blocks are narrower (hourglass) or wider (conventional) than the stream they add to.

z_0 = lift(x); z_{i+1} = z_i + W2 act(W1 norm(z_i) + b1) + b2; logits = W_out z + b. An hourglass has a skip stream
wider than its inputs and narrow hidden layers; a conventional block the opposite.

Reference: Chen et al., Rethinking the shape convention of an MLP, 2025 (the space; norm, activation and initialisation
are ours). The layer norm has no gain and no offset: those would only rescale W1 and shift b1.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from sparsefront.errors import ConfigError
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models.model import ACTIVATIONS, Model, Options, StagedModule, meta_module

Width = Annotated[int, Field(ge=1, le=65536)]


class HourglassOptions(Options):
    """Widths of the skip stream and of the hidden layers, number of blocks, and how the inputs enter the stream.

    `lift`: a 'trained' Linear layer; a 'fixed' random one, N(0, 1 / inputs), that is drawn from the study's seed and is
    no parameter; or 'identity', for which the stream has the width of the inputs.
    """

    skip_width: Width = 64
    hidden_width: Width = 16
    depth: Annotated[int, Field(ge=1, le=64)] = 2
    lift: Literal["trained", "fixed", "identity"] = "trained"
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    norm: Literal["none", "layer"] = "none"
    bias: bool = True
    init: Literal["kaiming", "torch"] = "torch"


class Block(nn.Module):
    """z -> z + second(act(first(norm(z))))."""

    def __init__(self, skip_width: int, hidden_width: int, *, activation: str, norm: str, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(skip_width, hidden_width, bias=bias)
        self.second = nn.Linear(hidden_width, skip_width, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.norm = norm

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(batch, skip width) -> (batch, skip width); a block without hidden units passes its input on."""
        if self.first.weight.shape[0] == 0:
            return z
        normed = functional.layer_norm(z, z.shape[-1:]) if self.norm == "layer" else z
        change: torch.Tensor = self.second(self.activation(self.first(normed)))
        return z + change


class HourglassNet(StagedModule):
    """Lift, residual blocks, Linear layer; inputs of more than one dimension are flattened."""

    def __init__(self, n_inputs: int, n_classes: int, options: HourglassOptions) -> None:
        super().__init__()
        # Without a lift, or with a norm over the stream, no node group lies between the stages.
        self.stem_prefixes = ("lift.",) if _is_stream_masked(options) else ()
        self.lift = (
            nn.Identity()
            if options.lift == "identity"
            else nn.Linear(n_inputs, options.skip_width, bias=options.bias and options.lift == "trained")
        )
        self.blocks = nn.ModuleList(
            Block(
                options.skip_width,
                options.hidden_width,
                activation=options.activation,
                norm=options.norm,
                bias=options.bias,
            )
            for _ in range(options.depth)
        )
        self.out = nn.Linear(options.skip_width, n_classes, bias=options.bias)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, ...) -> (batch, skip width)."""
        z: torch.Tensor = self.lift(x.flatten(1))
        return z

    def head(self, h: torch.Tensor) -> torch.Tensor:
        """(batch, skip width) -> (batch, classes)."""
        for block in self.blocks:
            h = block(h)
        logits: torch.Tensor = self.out(h)
        return logits


class HourglassFamily:
    """Registry row of `hourglass`."""

    summary = "residual blocks narrower or wider than their skip stream; masks on hidden and stream units or weights"
    source = "Chen et al., Rethinking the shape convention of an MLP, 2025"
    options: type[Options] = HourglassOptions

    def skeleton(self, options: Options) -> Options:
        """The options without what padding makes equal: widths, and the number of blocks up to the next power of two.

        A zero block passes its input on. A layer norm is over the whole stream, whose width it therefore fixes.
        """
        assert isinstance(options, HourglassOptions)
        depth = 1 << (options.depth - 1).bit_length()
        return options.model_copy(
            update={
                "hidden_width": 1,
                "depth": depth,
                "skip_width": 1 if _is_stream_masked(options) else options.skip_width,
            }
        )

    def structure(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Structure:
        """Tensors and hidden units; units of the stream, where there is neither a norm over it nor an identity lift."""
        assert isinstance(options, HourglassOptions)
        n, d_z, d_h = math.prod(input_shape), options.skip_width, options.hidden_width
        if options.lift == "identity" and d_z != n:
            raise ConfigError(
                f"model.skip_width={d_z} with model.lift='identity': must be {n}, the numbers in an example; correct "
                "one of the two"
            )
        tensors: list[Tensor] = []
        stream: list[Axis] = []

        def linear(name: str, shape: tuple[int, int], *, bias: bool, trained: bool = True) -> None:
            tensors.append(Tensor(f"{name}.weight", shape, prunable=trained, trained=trained))
            if bias:
                tensors.append(Tensor(f"{name}.bias", shape[:1], prunable=False))

        def axes(name: str, dim: int, *, bias: bool) -> list[Axis]:
            return [Axis(f"{name}.weight", dim), *([Axis(f"{name}.bias", 0)] if bias else [])]

        if options.lift != "identity":
            trained = options.lift == "trained"
            linear("lift", (d_z, n), bias=options.bias and trained, trained=trained)
            stream += axes("lift", 0, bias=options.bias and trained)
        groups: list[NodeGroup] = []
        for i in range(options.depth):
            first, second = f"blocks.{i}.first", f"blocks.{i}.second"
            linear(first, (d_h, d_z), bias=options.bias)
            linear(second, (d_z, d_h), bias=options.bias)
            stream += [*axes(first, 1, bias=False), *axes(second, 0, bias=options.bias)]
            groups.append(
                NodeGroup(f"blocks.{i}", d_h, (*axes(first, 0, bias=options.bias), *axes(second, 1, bias=False)))
            )
        linear("out", (n_classes, d_z), bias=options.bias)
        stream += axes("out", 1, bias=False)
        if _is_stream_masked(options):
            groups.insert(0, NodeGroup("stream", d_z, tuple(stream)))
        return Structure(tuple(tensors), tuple(groups))

    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        """The parent for flat or flattened inputs."""
        assert isinstance(options, HourglassOptions)
        structure = self.structure(options, input_shape=input_shape, n_classes=n_classes)
        module = HourglassNet(math.prod(input_shape), n_classes, options)
        return Model(meta_module(module), structure, options.init)


def _is_stream_masked(options: HourglassOptions) -> bool:
    """Whether units of the stream can be removed, or be padded, without a change of the others."""
    return options.norm == "none" and options.lift != "identity"
