"""A user's own model family, found by ``fragile_family:FAMILY``: a perceptron whose masks can be refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from sparsefront.spaces.masks import mask_digest, pack_bits
from sparsefront.trainables.models.mlp import MLP, MLPFamily, MLPOptions
from sparsefront.trainables.models.model import meta_module


class FragileOptions(MLPOptions):
    """A perceptron's options, and the digests of the masks that cannot be built or do not fit into memory."""

    refused: tuple[str, ...] = ()
    too_large: tuple[str, ...] = ()


@cache  # one module for all checks: recordings of gradients are kept by module
def _perceptron(widths, input_shape, n_classes):
    return MLPFamily().build(MLPOptions(widths=widths), input_shape=input_shape, n_classes=n_classes)


class FragileFamily:
    """A perceptron that raises for some masks."""

    summary = "a perceptron that raises for some masks"
    source = "tests"
    options = FragileOptions

    def build(self, options, *, input_shape, n_classes):
        """The perceptron, with a check of every mask."""

        def check_mask(mask):
            digest = mask_digest(pack_bits(mask))
            if digest in options.refused:
                raise ArithmeticError(f"mask {digest} has no inverse")
            if digest in options.too_large:
                raise MemoryError

        return replace(_perceptron(options.widths, input_shape, n_classes), check_mask=check_mask)


class BrittleOptions(MLPOptions):
    """A perceptron's options, and the batch size that its forward pass refuses."""

    refused_batch: int = 0


class BrittlePerceptron(MLP):
    """A perceptron that is not a number where its first weight is positive, and raises for one batch size."""

    refused_batch = 0

    def forward(self, x):
        """Logits: (batch, ...) -> (batch, classes)."""
        if x.shape[0] == self.refused_batch:
            raise OverflowError(f"a batch of {self.refused_batch} examples is one too many")
        return torch.where(self.layers[0].weight[0, 0] > 0, torch.nan, super().forward(x))


class BrittleFamily:
    """A perceptron some of whose lanes diverge, while the others raise when they are tested."""

    summary = "a perceptron that breaks while it is trained"
    source = "tests"
    options = BrittleOptions

    def build(self, options, *, input_shape, n_classes):
        """The perceptron."""
        plain = _perceptron(options.widths, input_shape, n_classes)
        module = BrittlePerceptron((*input_shape, *options.widths, n_classes), activation="relu", bias=True)
        module.refused_batch = options.refused_batch
        return replace(plain, module=meta_module(module))


FAMILY = FragileFamily()
BRITTLE = BrittleFamily()
