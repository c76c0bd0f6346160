"""Small residual convolutional network that restores images: what it predicts is added to the degraded image.

Reference: Zhang et al., Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising, 2017 (DnCNN:
3 x 3 convolutions with ReLU that predict the residual; here three hidden layers, no batch norm).
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from sparsefront.errors import ConfigError
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models.model import ACTIVATIONS, Model, Options, StagedModule, meta_module

_KERNEL = 3

Channels = Annotated[int, Field(ge=1, le=4096)]


class RestorerOptions(Options):
    """Channels of the three hidden convolutions, activation, biases and initialisation.

    Torch's initialisation is the default: it starts with a small residual, near the image as it is.
    """

    channels: Annotated[tuple[Channels, Channels, Channels], Field(strict=False)] = (16, 16, 16)
    activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
    bias: bool = True
    init: Literal["kaiming", "torch"] = "torch"


class RestorerNet(StagedModule):
    """x + conv(act(conv(act(conv(act(conv(x))))))), images of any size.

    It has no stages: the image itself goes past them, to the end.
    """

    def __init__(self, n_channels: tuple[int, ...], *, activation: str, bias: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, _KERNEL, padding=_KERNEL // 2, bias=bias) for a, b in itertools.pairwise(n_channels)
        )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restored images: (batch, channels, rows, columns) -> the same."""
        h = x
        for conv in self.convs[:-1]:
            h = self.activation(conv(h))
        residual: torch.Tensor = self.convs[-1](h)
        return x + residual


class RestorerFamily:
    """Registry row of `restorer`."""

    summary = "four 3 x 3 convolutions that predict the residual of an image to restore; masks on channels or weights"
    source = "Zhang et al., Beyond a Gaussian denoiser, 2017 (DnCNN), made small"
    options: type[Options] = RestorerOptions
    task = "restoration"

    def skeleton(self, options: Options) -> Options:
        """The options without numbers of channels, which padding makes equal."""
        return options.model_copy(update={"channels": (1, 1, 1)})

    def structure(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Structure:
        """Tensors and hidden channels for images of shape (channels, rows, columns); `n_classes` does not matter."""
        assert isinstance(options, RestorerOptions)
        n_channels = self._channels(options, input_shape)
        positions = input_shape[1] * input_shape[2]
        last = len(n_channels) - 2
        tensors: list[Tensor] = []
        groups: list[NodeGroup] = []
        for i in range(last + 1):
            shape = (n_channels[i + 1], n_channels[i], _KERNEL, _KERNEL)
            tensors.append(Tensor(f"convs.{i}.weight", shape, prunable=True, positions=positions))
            axes = [Axis(f"convs.{i}.weight", 0)]
            if options.bias:
                tensors.append(Tensor(f"convs.{i}.bias", shape[:1], prunable=False))
                axes.append(Axis(f"convs.{i}.bias", 0))
            if i < last:
                axes.append(Axis(f"convs.{i + 1}.weight", 1))
                groups.append(NodeGroup(f"convs.{i}", shape[0], tuple(axes)))
        return Structure(tuple(tensors), tuple(groups))

    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        """The parent for images of shape (channels, rows, columns)."""
        assert isinstance(options, RestorerOptions)
        structure = self.structure(options, input_shape=input_shape, n_classes=n_classes)
        n_channels = self._channels(options, input_shape)
        module = RestorerNet(n_channels, activation=options.activation, bias=options.bias)
        return Model(meta_module(module), structure, options.init)

    def _channels(self, options: RestorerOptions, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Channels of the image, of every hidden layer, and of the image again."""
        if len(input_shape) != 3:
            raise ConfigError(f"model 'restorer' on inputs of shape {input_shape}: (channels, rows, columns) is needed")
        return (input_shape[0], *options.channels, input_shape[0])
