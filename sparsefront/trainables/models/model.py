"""What a parent network has to offer so that masks, packs and scoring can work with it.

A family turns options into a `Model`: a `torch.nn.Module` without data-dependent control flow, and the `Structure`
that says which tensors and nodes it has. The module is only ever run through `torch.func.functional_call` with
parameters of some compact or padded shape, so its own parameters live on the meta device and hold no memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from sparsefront.spaces.structure import Structure

#: Activations a parent may use; all map 0 to 0, so that a padded node is silent.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
INITS = ("kaiming", "torch")


class Options(BaseModel):
    """Options of a family: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StagedModule(nn.Module):
    """A module whose forward pass is ``head(stem(x))``.

    The stem ends after the first node group's activation, so that scoring many node masks of one parent computes it
    once for all of them. Its output has shape (batch, nodes of group 0, ...).
    """

    #: Prefixes of the parameters that the stem owns; without any, masks are scored by the whole forward pass.
    stem_prefixes: tuple[str, ...] = ()

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """First layer with its activation: (batch, ...) -> (batch, nodes of group 0, ...)."""
        raise NotImplementedError

    def head(self, h: torch.Tensor) -> torch.Tensor:
        """The rest: (batch, nodes of group 0, ...) -> (batch, classes) logits."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (batch, ...) -> (batch, classes)."""
        return self.head(self.stem(x))


@dataclass(frozen=True)
class Perceptron:
    """What a module computes that is linear layers one after the other with one activation between them.

    Attributes:
        weights: names of the layers' weights, (outputs, inputs) each; the first takes flattened examples.
        biases: names of their biases; None for none.
        activation: a name of `ACTIVATIONS`.
    """

    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    activation: str


@dataclass(frozen=True)
class Model:
    """A parent: its module, its structure, and how its weights are initialised.

    `check_mask`, if given, is called with every mask (bool, flat) before its candidate is trained; a candidate for
    which it raises is recorded as failed, with the message. `perceptron`, if given, says that the module is one, which
    saves the candidates of a search their padding (`sparsefront.trainables.ragged`).
    """

    module: StagedModule
    structure: Structure
    init: str
    check_mask: Callable[[npt.NDArray[np.bool_]], None] | None = None
    perceptron: Perceptron | None = None


class ModelFamily(Protocol):
    """One row of the model registry; a user's own is an object like this, named ``package.module:object``."""

    summary: str
    source: str
    options: type[Options]

    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        """The parent for data of this shape."""


@runtime_checkable
class SizedFamily(Protocol):
    """What a family offers besides if its networks of different sizes can be trained together.

    A network is then padded by zeros to the size of another: its function must not change by that, nor its gradient.
    """

    def skeleton(self, options: Options) -> Options:
        """The options with every size that padding makes equal set to one value: equal skeletons can share a pack.

        A network may have fewer tensors than its skeleton; the module must then pass over a block whose tensors are
        empty.
        """

    def structure(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Structure:
        """The structure of what `build` makes, without building it."""


def initial_weights(
    structure: Structure, init: str, generator: np.random.Generator
) -> dict[str, npt.NDArray[np.float32]]:
    """Fresh weights for `structure`, drawn in float64 with numpy so that they are the same on any device.

    Args:
        structure: the parent, or a compact network.
        init: 'kaiming': weights N(0, 2 / fan_in), biases 0 (He et al., Delving deep into rectifiers, 2015, with a
            fan-in of 1 / density in mind); 'torch': weights and biases U(-1, 1) / sqrt(fan_in), torch's default.
            Tensors that are not trained: N(0, 1 / fan_in).
        generator: where the draws come from.

    Returns:
        float32 array for each tensor of the structure.
    """
    fan_in = {t.name.rsplit(".", 1)[0]: math.prod(t.shape[1:]) for t in structure.tensors if t.name.endswith(".weight")}
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in structure.tensors:
        n = fan_in[tensor.name.rsplit(".", 1)[0]]
        if not tensor.trained:
            drawn = generator.standard_normal(tensor.shape) / math.sqrt(n)
        elif init == "kaiming":
            drawn = (
                generator.standard_normal(tensor.shape) * math.sqrt(2 / n)
                if tensor.prunable
                else np.zeros(tensor.shape)
            )
        else:
            drawn = generator.uniform(-1, 1, tensor.shape) / math.sqrt(n)
        weights[tensor.name] = drawn.astype(np.float32)
    return weights


def changing_buffers(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Buffers that a forward pass of the module, as it is, writes to: running statistics, for one.

    Found by running a copy on the meta device, which holds no memory; a module that cannot run there tells nothing.

    Args:
        module: a parent's.
        input_shape: of one example.

    Returns:
        Their names, in the order of the module; a constant that it only reads is not among them.

    >>> changing_buffers(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), (3,))
    ('1.num_batches_tracked',)
    >>> changing_buffers(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(), (3,))
    ()
    """
    probe = copy.deepcopy(module).to("meta")
    before = {name: (buffer, buffer._version) for name, buffer in probe.named_buffers()}
    if not before:
        return ()
    try:
        with torch.no_grad():
            probe(torch.empty(2, *input_shape, device="meta"))
    except Exception:  # the user's module may raise anything, and need not run where there are no numbers
        return ()
    after = dict(probe.named_buffers())
    return tuple(
        name
        for name, (buffer, version) in before.items()
        if after.get(name) is not buffer or buffer._version != version
    )


def meta_module(module: StagedModule) -> StagedModule:
    """The module with parameters that hold no memory."""
    return module.to("meta").requires_grad_(requires_grad=False)
