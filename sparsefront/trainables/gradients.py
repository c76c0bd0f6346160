"""Losses and gradients of all lanes at once, as a flat graph of batched tensor operations.

``torch.func`` batches any module without data-dependent control flow: ``vmap(grad_and_value(loss))`` over stacked
parameters. Its transforms cost about 2 ms of Python a step, more than the arithmetic of a small pack. They are
therefore run once under ``make_fx``, which records the batched operations that they emit; the recording is replayed
afterwards (measured on a 40-256-128-10 perceptron, one lane: 2.2 ms a gradient before, 0.6 ms after). A recording
holds shapes, so one is kept for each shape class, and made again when lanes have left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp

from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.losses import cross_entropy
from sparsefront.trainables.models.model import Model, StagedModule

#: (flat (L, P), x (B, ...), one_hot (C, B), label_smoothing (L,)) -> gradient (L, P), loss (L,)
GradientFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_KEPT_RECORDINGS = 64
#: Value: the module (held, so that its id in the key stays taken) and its recording.
_recordings: OrderedDict[Hashable, tuple[StagedModule, GradientFunction]] = OrderedDict()


def gradient_function(
    model: Model,
    layout: Layout,
    flat: torch.Tensor,
    x: torch.Tensor,
    one_hot: torch.Tensor,
    *,
    smoothing: bool,
    precision: str,
) -> GradientFunction:
    """Gradient and loss of every lane, for arguments of exactly these shapes, types and device.

    The recordings of the last few shape classes are kept in the process, keyed by the module itself.
    """
    key = (id(model.module), layout, flat.shape, x.shape, one_hot.shape, flat.device, smoothing, precision)
    if key not in _recordings:
        while len(_recordings) >= _KEPT_RECORDINGS:
            _recordings.popitem(last=False)
        _recordings[key] = (
            model.module,
            _record(model, layout, flat, x, one_hot, smoothing=smoothing, precision=precision),
        )
    _recordings.move_to_end(key)
    return _recordings[key][1]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products run in `precision` ('float32' or 'bfloat16')."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def forward(model: Model, layout: Layout, flat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Logits of all lanes on the same examples: (L, P) and (B, ...) -> (L, B, classes)."""

    def one(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = functional_call(model.module, parameters, (x,))
        return logits

    logits: torch.Tensor = vmap(one)(layout.views(flat))
    return logits


def _record(
    model: Model,
    layout: Layout,
    flat: torch.Tensor,
    x: torch.Tensor,
    one_hot: torch.Tensor,
    *,
    smoothing: bool,
    precision: str,
) -> GradientFunction:
    module = model.module

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor, one_hot: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        with autocast(flat.device, precision):
            logits = functional_call(module, p, (x,))
        return cross_entropy(logits.float(), one_hot, eps if smoothing else None)

    batched = vmap(grad_and_value(loss), in_dims=(0, None, None, 0))

    def flat_gradient(
        flat: torch.Tensor, x: torch.Tensor, one_hot: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradients, losses = batched(layout.views(flat), x, one_hot, eps)
        return layout.flatten(gradients), losses

    eps = torch.zeros(flat.shape[0], device=flat.device)
    graph = make_fx(flat_gradient)(flat, x, one_hot, eps)
    _simplify(graph, flat, x, one_hot, eps)

    return cast(GradientFunction, graph)


def _simplify(graph: GraphModule, *arguments: torch.Tensor) -> None:
    """Rewrite the recording into fewer passes over memory; every value stays the same.

    Views and expansions that change nothing and multiplications by one go; a product with a bias added becomes one
    operation; an activation overwrites its input where nothing else reads it.
    """
    ShapeProp(graph).propagate(*arguments)
    for node in list(graph.graph.nodes):
        is_idle = node.target in _POSSIBLY_IDLE and _shape(node) == _shape(node.args[0])
        if is_idle or (node.target is _ATEN.mul.Scalar and node.args[1] == 1):
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.add.Tensor and len(node.args) == 2 and not node.kwargs:
            for bias, product in (node.args, node.args[::-1]):
                if _is_only_for(product, node, _ATEN.bmm.default) and _is_bias(bias, product):
                    node.target, node.args = _ATEN.baddbmm.default, (bias, *product.args)
                    break
        elif node.target is _ATEN.relu.default and _is_only_for(node.args[0], node, *_FRESH):
            node.target = _ATEN.relu_.default
    graph.graph.eliminate_dead_code(lambda node: node.is_impure() or node.target is _ATEN.relu_.default)
    graph.recompile()


_ATEN = torch.ops.aten
#: Operations that may return their argument as it is (then they alias it, and are dropped).
_POSSIBLY_IDLE = {_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.expand.default}
#: Operations whose result is memory of its own.
_FRESH = (_ATEN.bmm.default, _ATEN.baddbmm.default, _ATEN.add.Tensor, _ATEN.convolution.default)


def _shape(node: Any) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta") if isinstance(node, Node) else None
    return None if meta is None else tuple(meta.shape)


def _is_only_for(node: Any, user: Node, *targets: object) -> bool:
    """Whether `node` is made by one of `targets` and read by `user` alone."""
    return isinstance(node, Node) and node.target in targets and list(node.users) == [user]


def _is_bias(node: Any, product: Node) -> bool:
    """Whether `node` is one row for each lane, (L, 1, n), of the type of a (L, B, n) product."""
    shape, of_product = _shape(node), _shape(product)
    if shape is None or of_product is None or len(of_product) != 3 or shape != (of_product[0], 1, of_product[2]):
        return False
    # Under autocast a module's own parameter is still float32 where the product is not.
    return bool(node.meta["tensor_meta"].dtype == product.meta["tensor_meta"].dtype)
