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
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from sparsefront.spaces.structure import Structure

#: Activations a parent may use; all map 0 to 0, so that a padded node is silent.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
INITS = ("kaiming", "torch")


class Options(BaseModel):
    """Options of a family: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True)
class Perceptron:
    """What a module computes that is linear layers one after the other with one activation between them, and no more.

    Attributes:
        weights: names of the layers' weights, (outputs, inputs) each; the first takes flattened examples.
        biases: names of their biases; None for none.
        activation: a name of `ACTIVATIONS`.
    """

    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    activation: str


class StagedModule(nn.Module):
    """A module whose forward pass is ``head(stem(x))``.

    The stem ends after the first node group's activation, so that scoring many node masks of one parent computes it
    once for all of them. Its output has shape (batch, nodes of group 0, ...).
    """

    #: Prefixes of the parameters that the stem owns; without any, masks are scored by the whole forward pass.
    stem_prefixes: tuple[str, ...] = ()

    @property
    def perceptron(self) -> Perceptron | None:
        """What it computes, if it says that it is a perceptron; None if the module itself has to be run.

        A module that says so is never run in a search on a CPU: candidates of it are trained without padding
        (`sparsefront.trainables.ragged`).
        """
        return None

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
class Model:
    """A parent: its module, its structure, and how its weights are initialised.

    `check_mask`, if given, is called with every mask (bool, flat) before its candidate is trained; a candidate for
    which it raises is recorded as failed, with the message.
    """

    module: StagedModule
    structure: Structure
    init: str
    check_mask: Callable[[npt.NDArray[np.bool_]], None] | None = None


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
                if tensor.prunable and len(tensor.shape) > 1
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
    if _run_on_meta(probe, {}, input_shape) is not None:
        return ()
    after = dict(probe.named_buffers())
    return tuple(
        name
        for name, (buffer, version) in before.items()
        if after.get(name) is not buffer or buffer._version != version
    )


class _RandomOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Context that notes what `layer` says at the first operation that draws random numbers."""

    def __init__(self, layer: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.layer, self.found = layer, ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to be told to leave this mode alone (1 s a process)."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Look at one operation."""
        if not self.found and torch.Tag.nondeterministic_seeded in func.tags:
            self.found = self.layer()
        return func(*args, **(kwargs or {}))


def random_layer(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The first layer of a module, as it is, whose forward pass draws random numbers; "" if none does.

    Found as `changing_buffers` finds what it does.

    >>> random_layer(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)), (3,))
    "'1' (Dropout)"
    >>> random_layer(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)).eval(), (3,))
    ''
    """
    probe = copy.deepcopy(module).to("meta")
    running = _watched(probe)
    operations = _RandomOperations(lambda: running[-1] if running else "itself")
    with operations:
        _run_on_meta(probe, {}, input_shape)
    return operations.found


def uncuttable_layer(model: Model, input_shape: tuple[int, ...]) -> str:
    """The layer that does not run with one node less in every group, and why; "" if all do.

    Found as `changing_buffers` finds what it does; a parent that does not run uncut tells nothing.
    """
    structure = model.structure
    whole = {t.name: t.shape for t in structure.tensors}
    cut = {t.name: t.shape for t in structure.compact([max(1, g.size - 1) for g in structure.groups]).tensors}
    probe = copy.deepcopy(model.module).to("meta")
    if cut == whole or _run_on_meta(probe, whole, input_shape) is not None:
        return ""
    running = _watched(probe)
    error = _run_on_meta(probe, cut, input_shape)
    if error is None:
        return ""
    why = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return f"{running[-1] if running else 'itself'} ({why[0]})"


def _watched(module: nn.Module) -> list[str]:
    """Layers that are running, by name and kind, outermost first: kept up to date by hooks."""
    running: list[str] = []

    def leave(*_: object) -> None:
        running.pop()

    for name, layer in module.named_modules():
        if name:
            called = f"{name!r} ({type(layer).__name__})"
            layer.register_forward_pre_hook(lambda *_, called=called: running.append(called))
            layer.register_forward_hook(leave)
    return running


def _run_on_meta(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], input_shape: tuple[int, ...]
) -> Exception | None:
    """What a forward pass raises, without any numbers; with tensors of these shapes in place of the module's own."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        with torch.no_grad():
            functional_call(module, tensors, (torch.empty(2, *input_shape, device="meta"),))
    except Exception as error:  # the user's module may raise anything, and need not run where there are no numbers
        return error
    return None


def meta_module(module: StagedModule) -> StagedModule:
    """The module with parameters that hold no memory."""
    return module.to("meta").requires_grad_(requires_grad=False)
