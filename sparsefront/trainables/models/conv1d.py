"""Small convolutional network on one-dimensional signals: three strided convolutions and a Linear layer.

Reference: Greydanus and Kobak, Scaling down deep learning with MNIST-1D, 2020 (class ConvBase of the released code:
kernels 5, 3, 3, stride 2, padding 1, 25 channels each).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import nn

from sparsefront.errors import ConfigError
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models.model import ACTIVATIONS, Model, Options, StagedModule, meta_module

_KERNELS = (5, 3, 3)
_STRIDE = 2
_PADDING = 1

Channels = Annotated[int, Field(ge=1, le=4096)]


class Conv1dOptions(Options):
    """Channels of the three convolutions, activation, biases and initialisation."""

    channels: Annotated[tuple[Channels, Channels, Channels], Field(strict=False)] = (25, 25, 25)
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    bias: bool = True
    init: Literal["kaiming", "torch"] = "kaiming"

    @field_validator("channels", mode="before")
    @classmethod
    def _check_channels(cls, value: object) -> object:
        """Refuse another depth in words: pydantic would speak of fields that are required."""
        if isinstance(value, list | tuple) and len(value) != len(_KERNELS):
            raise PydanticCustomError(
                "channels",
                "must be three numbers of channels, one for each convolution (beside a range: depth = 3)",
            )
        return value


class Conv1dNet(StagedModule):
    """Three strided convolutions, each with an activation, then flatten and a Linear layer."""

    stem_prefixes = ("convs.0.",)

    def __init__(
        self, n_channels: tuple[int, ...], length: int, n_classes: int, *, activation: str, bias: bool
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, kernel, stride=_STRIDE, padding=_PADDING, bias=bias)
            for a, b, kernel in zip(n_channels[:-1], n_channels[1:], _KERNELS, strict=True)
        )
        self.linear = nn.Linear(n_channels[-1] * length, n_classes, bias=bias)
        self.activation = ACTIVATIONS[activation]()

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length) or (batch, channels, length) -> (batch, channels of the first convolution, length)."""
        hidden: torch.Tensor = self.activation(self.convs[0](x.unsqueeze(1) if x.dim() == 2 else x))
        return hidden

    def head(self, h: torch.Tensor) -> torch.Tensor:
        """(batch, channels of the first convolution, length) -> (batch, classes)."""
        for conv in self.convs[1:]:
            h = self.activation(conv(h))
        logits: torch.Tensor = self.linear(h.flatten(1))
        return logits


class Conv1dFamily:
    """Registry row of `conv1d`."""

    summary = "three strided one-dimensional convolutions and a Linear layer; masks on channels or weights"
    source = "Greydanus and Kobak, Scaling down deep learning with MNIST-1D, 2020"
    options: type[Options] = Conv1dOptions

    def skeleton(self, options: Options) -> Options:
        """The options without numbers of channels, which padding makes equal."""
        return options.model_copy(update={"channels": (1, 1, 1)})

    def structure(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Structure:
        """Tensors and channels for signals of shape (length,) or (channels, length)."""
        assert isinstance(options, Conv1dOptions)
        n_channels, lengths = self._sizes(options, input_shape)
        tensors: list[Tensor] = []
        groups: list[NodeGroup] = []
        for i, kernel in enumerate(_KERNELS):
            shape = (n_channels[i + 1], n_channels[i], kernel)
            tensors.append(Tensor(f"convs.{i}.weight", shape, prunable=True, positions=lengths[i + 1]))
            axes = [Axis(f"convs.{i}.weight", 0)]
            if options.bias:
                tensors.append(Tensor(f"convs.{i}.bias", (shape[0],), prunable=False))
                axes.append(Axis(f"convs.{i}.bias", 0))
            last = i == len(_KERNELS) - 1
            axes.append(Axis("linear.weight", 1, lengths[-1]) if last else Axis(f"convs.{i + 1}.weight", 1))
            groups.append(NodeGroup(f"convs.{i}", shape[0], tuple(axes)))
        tensors.append(Tensor("linear.weight", (n_classes, n_channels[-1] * lengths[-1]), prunable=True))
        if options.bias:
            tensors.append(Tensor("linear.bias", (n_classes,), prunable=False))
        return Structure(tuple(tensors), tuple(groups))

    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        """The parent for signals of shape (length,) or (channels, length)."""
        assert isinstance(options, Conv1dOptions)
        n_channels, lengths = self._sizes(options, input_shape)
        module = Conv1dNet(n_channels, lengths[-1], n_classes, activation=options.activation, bias=options.bias)
        structure = self.structure(options, input_shape=input_shape, n_classes=n_classes)
        return Model(meta_module(module), structure, options.init)

    def _sizes(self, options: Conv1dOptions, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
        """Channels and lengths of the signal before and after each convolution."""
        if len(input_shape) not in (1, 2):
            raise ConfigError(
                f"model 'conv1d' on inputs of shape {input_shape}: (length,) or (channels, length) is needed"
            )
        n_channels = ((1 if len(input_shape) == 1 else input_shape[0]), *options.channels)
        lengths = [input_shape[-1]]
        for kernel in _KERNELS:
            lengths.append((lengths[-1] + 2 * _PADDING - kernel) // _STRIDE + 1)
        if min(lengths) < 1:
            raise ConfigError(f"model 'conv1d' on signals of length {lengths[0]}: at least 15 samples are needed")
        return n_channels, lengths
