"""A user's own model family, found by ``fragile_family:FAMILY``: a perceptron whose masks can be refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from sparsefront.spaces.masks import mask_digest, pack_bits
from sparsefront.trainables.models.mlp import MLPFamily, MLPOptions


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


FAMILY = FragileFamily()
