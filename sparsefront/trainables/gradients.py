"""Losses and gradients of all lanes at once, as a flat graph of batched tensor operations.

``torch.func.vmap`` batches any module without data-dependent control flow over stacked parameters; the gradient of the
sum of all losses is every lane's own. (``torch.func.grad`` would say the same and import torch's compiler: 1 s a
process.) Batching costs about 2 ms of Python a step, more than the arithmetic of a small pack. It is therefore done
once, and the batched operations are recorded; the recording is replayed afterwards (measured on a 40-256-128-10
perceptron, one lane: 2.2 ms a gradient before, 0.6 ms after). A recording holds shapes, so one is kept for each shape
class, and made again when lanes have left.

Packs of unlike networks have a shape class each: the recorder here keeps what a replay needs and nothing else (32
lanes of 40-64-64-10: 25 ms; torch's ``make_fx``, which also describes every tensor, 100 ms for the same graph).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from operator import getitem
from typing import Any, cast

import torch
from torch.func import functional_call, vmap
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.losses import LOSSES
from sparsefront.trainables.models.model import Model, StagedModule

#: (flat (L, P), x (B, ...), targets of the loss, label_smoothing (L,)) -> gradient (L, trained part of P), loss (L,)
GradientFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_KEPT_RECORDINGS = 64
#: Value: the module (held, so that its id in the key stays taken) and its recording.
_recordings: OrderedDict[Hashable, tuple[StagedModule, GradientFunction]] = OrderedDict()


def gradient_function(
    model: Model,
    layout: Layout,
    flat: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    smoothing: bool,
    precision: str,
    loss: str = "cross_entropy",
) -> GradientFunction:
    """Gradient and loss of every lane, for arguments of exactly these shapes, types and device.

    The recordings of the last few shape classes are kept in the process, keyed by the module itself. `loss` is a name
    of `LOSSES`, and `targets` what it takes: classes one-hot, (C, B), or images, (B, ...).
    """
    key = (id(model.module), layout, flat.shape, x.shape, targets.shape, flat.device, smoothing, precision, loss)
    if key not in _recordings:
        while len(_recordings) >= _KEPT_RECORDINGS:
            _recordings.popitem(last=False)
        _recordings[key] = (
            model.module,
            _record(model, layout, flat, x, targets, smoothing=smoothing, precision=precision, loss=loss),
        )
    _recordings.move_to_end(key)
    return _recordings[key][1]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products run in `precision` ('float32' or 'bfloat16')."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def forward(model: Model, layout: Layout, flat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Logits, or images, of all lanes on the same examples: (L, P) and (B, ...) -> (L, B, classes or ...)."""

    def one(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs: torch.Tensor = functional_call(model.module, parameters, (x,))
        return outputs

    outputs: torch.Tensor = vmap(one)(layout.views(flat))
    return outputs


def _record(
    model: Model,
    layout: Layout,
    flat: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    smoothing: bool,
    precision: str,
    loss: str,
) -> GradientFunction:
    module = model.module

    def loss_of(
        p: dict[str, torch.Tensor],
        fixed: dict[str, torch.Tensor],
        x: torch.Tensor,
        targets: torch.Tensor,
        eps: torch.Tensor,
    ) -> torch.Tensor:
        with autocast(flat.device, precision):
            outputs = functional_call(module, {**p, **fixed}, (x,))
        return LOSSES[loss](outputs.float(), targets, eps if smoothing else None)

    batched = vmap(loss_of, in_dims=(0, 0, None, None, 0))

    def flat_gradient(
        flat: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        trained = {name: tensor.detach().requires_grad_() for name, tensor in layout.views(flat).items()}
        fixed = {name: trained.pop(name).detach() for name in layout.names[len(layout.trained_names) :]}
        with torch.enable_grad():
            losses = batched(trained, fixed, x, targets, eps)
            total = losses.sum()
        # No lane's loss depends on another lane: the gradient of their sum is every lane's own.
        gradients = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
        return layout.flatten(dict(zip(trained, gradients, strict=True))), losses.detach()

    eps = torch.zeros(flat.shape[0], device=flat.device)
    with _Recorder(flat, x, targets, eps) as recorder:
        results = flat_gradient(flat, x, targets, eps)
    graph = recorder.finish(*results)
    _simplify(graph)
    return cast(GradientFunction, graph)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation that runs in this context, with the shape and type of what it returns."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to be told to leave this mode alone (1 s a process)."""
        return False

    def __init__(self, *arguments: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = Graph()
        self._constants = torch.nn.Module()
        self._nodes: dict[int, Node] = {}
        self._alive: list[torch.Tensor] = []  # a tensor is known by its id, which nothing else may take meanwhile
        for i, tensor in enumerate(arguments):
            self._note(tensor, self._graph.placeholder(f"argument_{i}"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        node = self._graph.call_function(func, map_aggregate(args, self._read), map_aggregate(kwargs, self._read))
        if isinstance(result, torch.Tensor):
            self._note(result, node)
        elif isinstance(result, list | tuple):
            for i, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    self._note(part, self._graph.call_function(getitem, (node, i)))
        return result

    def finish(self, *results: torch.Tensor) -> GraphModule:
        """The recording as a module from the arguments to `results`."""
        self._graph.output(tuple(self._read(result) for result in results))
        graph = GraphModule(self._constants, self._graph)
        self._nodes, self._alive = {}, []
        return graph

    def _note(self, tensor: torch.Tensor, node: Node) -> None:
        node.meta.update(shape=tuple(tensor.shape), dtype=tensor.dtype)
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def _read(self, value: Any) -> Any:
        """The node of a tensor; one that comes from elsewhere, a buffer of the module say, becomes a constant."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._nodes:
            name = f"constant_{len(self._alive)}"
            self._constants.register_buffer(name, value)
            self._note(value, self._graph.get_attr(name))
        return self._nodes[id(value)]


def _simplify(graph: GraphModule) -> None:
    """Rewrite the recording into fewer passes over memory; every value stays the same.

    Views and expansions that change nothing and multiplications by one go; so do copies of transposed products, whose
    factors are transposed instead; a product with a bias added becomes one operation; an activation overwrites its
    input where nothing else reads it.
    """
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        is_idle = node.target in _POSSIBLY_IDLE and _shape(node) == _shape(node.args[0])
        is_one = node.target is _ATEN.mul.Scalar and node.args[1] == 1
        is_copied = node.target is _ATEN.clone.default and _is_only_for(node.args[0], node, _ATEN.bmm.default)
        if is_idle or is_one or is_copied:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif _is_transposition(node):
            _transpose(graph.graph, node)
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


def _is_transposition(node: Any) -> bool:
    """Whether `node` transposes matrices, (L, m, n) to (L, n, m)."""
    return (
        isinstance(node, Node)
        and node.target is _ATEN.transpose.int
        and len(_shape(node) or ()) == 3
        and {cast(int, dim) % 3 for dim in node.args[1:]} == {1, 2}
    )


def _transpose(graph: Graph, node: Node) -> None:
    """Do a transposition before it costs: of a transposition it is none, of a product it is one of the factors.

    The gradient of a weight comes as the transposed product of inputs and errors, and would have to be copied.
    """
    (inner, *dims) = node.args
    assert isinstance(inner, Node)
    if _is_transposition(inner):
        node.replace_all_uses_with(cast(Node, inner.args[0]))
    elif _is_only_for(inner, node, _ATEN.bmm.default):
        factors = []
        with graph.inserting_before(node):
            for factor in reversed(inner.args):
                assert isinstance(factor, Node)
                if _is_transposition(factor):
                    factors.append(cast(Node, factor.args[0]))
                    continue
                factors.append(graph.call_function(_ATEN.transpose.int, (factor, *dims)))
                shape = factor.meta["shape"]
                factors[-1].meta.update(shape=(shape[0], shape[2], shape[1]), dtype=factor.meta["dtype"])
            product = graph.call_function(_ATEN.bmm.default, tuple(factors))
        product.meta.update(node.meta)
        node.replace_all_uses_with(product)


_ATEN = torch.ops.aten
#: Operations that may return their argument as it is (then they alias it, and are dropped).
_POSSIBLY_IDLE = {_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.expand.default, _ATEN.detach.default}
#: Operations whose result is memory of its own.
_FRESH = (_ATEN.bmm.default, _ATEN.baddbmm.default, _ATEN.add.Tensor, _ATEN.convolution.default)


def _shape(node: Any) -> tuple[int, ...] | None:
    return node.meta.get("shape") if isinstance(node, Node) else None


def _is_only_for(node: Any, user: Node, *targets: object) -> bool:
    """Whether `node` is made by one of `targets` and read by `user` alone."""
    return isinstance(node, Node) and node.target in targets and list(node.users) == [user]


def _is_bias(node: Any, product: Node) -> bool:
    """Whether `node` is one row for each lane, (L, 1, n), of the type of a (L, B, n) product."""
    shape, of_product = _shape(node), _shape(product)
    if shape is None or of_product is None or len(of_product) != 3 or shape != (of_product[0], 1, of_product[2]):
        return False
    # Under autocast a module's own parameter is still float32 where the product is not.
    return bool(node.meta["dtype"] == product.meta["dtype"])
