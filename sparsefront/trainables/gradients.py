"""Gradients of all lanes at once, as a flat graph of batched tensor operations.

``torch.func.vmap`` batches any module without data-dependent control flow over stacked parameters. No lane's outputs
depend on another lane's parameters: one gradient of all is every lane's own. (``torch.func.grad`` would say the same
and import torch's compiler: 1 s a process.) Batching costs about 2 ms of Python a step, more than the arithmetic of a
small pack. It is therefore done once, and the batched operations are recorded; the recording is replayed afterwards
(measured on a 40-256-128-10 perceptron, one lane: 2.2 ms a gradient before, 0.6 ms after). A recording holds shapes,
so one is kept for each shape class, and made again when lanes have left.

Packs of unlike networks have a shape class each: the recorder here keeps what a replay needs and nothing else (32
lanes of 40-64-64-10: 15 ms; torch's ``make_fx``, which also describes every tensor, 100 ms for the same graph).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, cast

import torch
from torch.func import functional_call, vmap
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.losses import OUTPUT_GRADIENTS
from sparsefront.trainables.models.model import Model, StagedModule

#: (x (B, ...) or (L, B, ...), targets of the loss, label_smoothing (L,)) -> gradient (L, trained part of P)
GradientFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_KEPT_RECORDINGS = 64
#: Value: the module (held, so that its id in the key stays taken) and its recording.
_recordings: OrderedDict[Hashable, tuple[StagedModule, Recording]] = OrderedDict()


@dataclass(frozen=True)
class Recording:
    """What is done at every step, and views of the lanes' tensors that are made once.

    Attributes:
        step: from x, targets, label smoothing, the lanes' tensors and `views` of them.
        views: operation, number of the tensor that it is applied to (those before it are counted on), other arguments.
    """

    step: GraphModule
    views: Sequence[tuple[Callable[..., torch.Tensor], int, tuple[Any, ...]]]

    def bound_to(self, tensors: Sequence[torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The step with all arguments but the first three."""
        every = list(tensors)
        for operation, number, arguments in self.views:
            every.append(operation(every[number], *arguments))
        step = self.step.forward
        return lambda x, targets, smoothing: step(x, targets, smoothing, *every)


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
    keep: torch.Tensor | None = None,
    is_own: bool = False,
) -> GradientFunction:
    """Gradient of every lane's loss at `flat`, which is read anew at each call, as is `keep`.

    The recordings of the last few shape classes are kept in the process, keyed by the module itself.

    Args:
        model: whose module is differentiated.
        layout: of the lanes.
        flat: (L, P) parameters.
        x: (B, ...) examples: later ones have this shape, type and device.
        targets: what the loss takes: classes one-hot, (C, B), or images, (B, ...).
        smoothing: whether the label smoothing that is given counts.
        precision: of the matrix products.
        loss: a name of `OUTPUT_GRADIENTS`.
        keep: (L, trained part of P) zeros and ones that the gradient is multiplied by; None for no mask.
        is_own: whether every lane has a batch of its own: `x` is (L, B, ...), and `targets` (L, C, B) or (L, B, ...).

    Returns:
        A function whose gradients with `keep` all lie in one place: a call overwrites that of the call before.
    """
    shapes = (flat.shape, x.shape, targets.shape, flat.device)
    key = (id(model.module), layout, *shapes, smoothing, precision, loss, keep is None, is_own)
    views = list(layout.views(flat).values())
    joined = None if keep is None else torch.empty(keep.shape, dtype=flat.dtype, device=flat.device)
    if keep is not None and joined is not None:
        views += [*layout.views(keep).values(), *layout.views(joined).values()]
    if key not in _recordings:
        while len(_recordings) >= _KEPT_RECORDINGS:
            _recordings.popitem(last=False)
        recording = _record(
            model, layout, views, x, targets, smoothing=smoothing, precision=precision, loss=loss, is_own=is_own
        )
        _recordings[key] = model.module, recording
    _recordings.move_to_end(key)
    step = _recordings[key][1].bound_to(views)

    def compute(x: torch.Tensor, targets: torch.Tensor, smoothing: torch.Tensor) -> torch.Tensor:
        gradient = step(x, targets, smoothing)
        return gradient if joined is None else joined

    return compute


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
    views: Sequence[torch.Tensor],
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    smoothing: bool,
    precision: str,
    loss: str,
    is_own: bool,
) -> Recording:
    """The recording: of x, targets, label smoothing, and the tensors of the lanes.

    For masked ones follow what each trained tensor keeps and where its gradient is put, and no gradient is returned.
    """
    module, names, trained_names = model.module, layout.names, layout.trained_names
    n_lanes, device = len(views[0]), views[0].device

    def outputs_of(p: dict[str, torch.Tensor], fixed: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            outputs: torch.Tensor = functional_call(module, {**p, **fixed}, (x,))
        return outputs.float()

    batched = vmap(outputs_of, in_dims=(0, 0, 0 if is_own else None))

    def flat_gradient(
        x: torch.Tensor, targets: torch.Tensor, eps: torch.Tensor, *views: torch.Tensor
    ) -> torch.Tensor | None:
        tensors = dict(zip(names, views, strict=False))
        trained = {name: tensors.pop(name).detach().requires_grad_() for name in trained_names}
        with torch.enable_grad():
            outputs = batched(trained, tensors, x)
        slope = OUTPUT_GRADIENTS[loss](outputs.detach(), targets, eps if smoothing else None)
        with torch.enable_grad():
            total = _Slope.apply(outputs, slope)  # type: ignore[no-untyped-call]  # torch has no type for it
        # No lane's outputs depend on another lane's parameters.
        gradients = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
        if len(views) == len(names):
            return layout.flatten(dict(zip(trained, gradients, strict=True)))
        # Joined and masked in one pass over memory.
        keep, places = views[len(names) : -len(gradients)], views[-len(gradients) :]
        for gradient, mask, place in zip(gradients, keep, places, strict=True):
            torch.mul(gradient, mask, out=place)
        return None

    arguments = (x, targets, torch.zeros(n_lanes, device=device), *views)
    with _Recorder(*arguments) as recorder:
        result = flat_gradient(*arguments)
    recording: Recording = recorder.finish(result)
    return recording


class _Slope(torch.autograd.Function):
    """A scalar that changes with `outputs` as `slope` says.

    Given to `torch.autograd.grad` as such, it would make torch import sympy (0.2 s a process).
    """

    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """A number of no meaning."""
        ctx.slope = slope
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The slope, and none of the slope's own."""
        return ctx.slope, None


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

    def finish(self, result: torch.Tensor | None) -> Recording:
        """The recording from the arguments to `result`."""
        self._graph.output(self._read(result))
        _simplify(self._graph)
        views = _take_views(self._graph)
        self._nodes, self._alive = {}, []
        return Recording(GraphModule(self._constants, self._graph), views)

    def _note(self, tensor: torch.Tensor, node: Node) -> None:
        node.meta.update(shape=tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
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


def _simplify(graph: Graph) -> None:
    """Rewrite the recording into fewer passes over memory; every value stays the same.

    Views and expansions that change nothing and multiplications by one go; so do copies of transposed products, whose
    factors are transposed instead; a bias is added to its product at once, or in place; an activation, or its gradient,
    overwrites its input where nothing else reads it.
    """
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        is_idle = node.target in _POSSIBLY_IDLE and _shape(node) == _shape(node.args[0])
        is_one = node.target is _ATEN.mul.Scalar and node.args[1] == 1
        is_copied = node.target is _ATEN.clone.default and _is_only_for(node.args[0], node, _ATEN.bmm.default)
        if is_idle or is_one or is_copied:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif _is_transposition(node):
            _transpose(graph, node)
        elif node.target is _ATEN.clone.default:
            _transpose_biased(graph, node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target is _ATEN.add.Tensor and len(node.args) == 2 and not node.kwargs:
            for bias, product in (node.args, node.args[::-1]):
                if _is_only_for(product, node, _ATEN.bmm.default) and _is_bias(bias, product):
                    _add_bias(node, bias, product)
                    break
        elif node.target is _ATEN.relu.default and _may_overwrite(node.args[0], node):
            node.target = _ATEN.relu_.default
        elif node.target is _ATEN.threshold_backward.default and _may_overwrite(node.args[0], node):
            node.target, node.kwargs = _ATEN.threshold_backward.grad_input, {"grad_input": node.args[0]}
    graph.eliminate_dead_code(lambda node: node.is_impure() or node.target in _IN_PLACE)


def _take_views(graph: Graph) -> list[tuple[Callable[..., torch.Tensor], int, tuple[Any, ...]]]:
    """Make arguments of what only looks at the lanes' tensors in another way (11 to 15% of the step of few lanes)."""
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    number = {node: i for i, node in enumerate(arguments[_N_GIVEN:])}
    views: list[tuple[Callable[..., torch.Tensor], int, tuple[Any, ...]]] = []
    last = arguments[-1]
    for node in list(graph.nodes):
        if node.target in _VIEWS and node.args[0] in number and not node.kwargs:
            with graph.inserting_after(last):
                last = graph.placeholder(f"view_{len(views)}")
            last.meta.update(node.meta)
            views.append((node.target, number[node.args[0]], node.args[1:]))
            number[last] = len(number)
            node.replace_all_uses_with(last)
            graph.erase_node(node)
    return views


def _add_bias(node: Node, bias: Node, product: Node) -> None:
    """A sum of both; on a CPU in place, where a product on top of a bias would copy that first."""
    if node.meta["device"].type == "cpu":
        node.target, node.args = _ATEN.add_.Tensor, (product, bias)
        node.meta[_OURS] = True
    else:
        node.target, node.args = _ATEN.baddbmm.default, (bias, *product.args)


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
    inner = node.args[0]
    assert isinstance(inner, Node)
    if _is_transposition(inner):
        node.replace_all_uses_with(cast(Node, inner.args[0]))
    elif _is_only_for(inner, node, _ATEN.bmm.default):
        with graph.inserting_before(node):
            factors = tuple(_turned(graph, cast(Node, factor)) for factor in reversed(inner.args))
            product = graph.call_function(_ATEN.bmm.default, factors)
        product.meta.update(node.meta)
        node.replace_all_uses_with(product)


def _transpose_biased(graph: Graph, copy: Node) -> None:
    """Do without the copy of a transposed product with a bias: of transposed factors it comes as it is wanted."""
    transposed = copy.args[0]
    if not _is_transposition(transposed) or list(cast(Node, transposed).users) != [copy]:
        return
    total = cast(Node, cast(Node, transposed).args[0])
    if not _is_only_for(total, cast(Node, transposed), _ATEN.add.Tensor) or len(total.args) != 2 or total.kwargs:
        return
    first, second = (cast(Node, term) for term in total.args)
    for bias, product in ((first, second), (second, first)):
        if _is_only_for(product, total, _ATEN.bmm.default) and _is_bias(bias, product):
            left, right = (cast(Node, factor) for factor in product.args)
            with graph.inserting_before(copy):
                turned = [_turned(graph, node) for node in (bias, right, left)]
                swapped = graph.call_function(_ATEN.bmm.default, (turned[1], turned[2]))
            swapped.meta.update(copy.meta)
            copy.target, copy.args, copy.kwargs = _ATEN.add.Tensor, (turned[0], swapped), {}
            return


def _turned(graph: Graph, node: Node) -> Node:
    """A (L, m, n) tensor as (L, n, m)."""
    if _is_transposition(node):
        return cast(Node, node.args[0])
    turned: Node = graph.call_function(_ATEN.transpose.int, (node, 1, 2))
    shape = node.meta["shape"]
    turned.meta.update(shape=(shape[0], shape[2], shape[1]), dtype=node.meta["dtype"], device=node.meta["device"])
    return turned


_ATEN = torch.ops.aten
#: Operations that may return their argument as it is (then they alias it, and are dropped).
_POSSIBLY_IDLE = {_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.expand.default, _ATEN.detach.default}
#: Operations that look at their argument in another way.
_VIEWS = {_ATEN.transpose.int, _ATEN.view.default, _ATEN.expand.default, _ATEN.unsqueeze.default}
#: Arguments of a recording that are other ones at every step: x, targets, label smoothing.
_N_GIVEN = 3
#: Operations whose result is memory of its own.
_FRESH = (
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN.add.Tensor,
    _ATEN.convolution.default,
)
#: Marks operations that overwrite what nothing else reads; a module's own may overwrite part of something.
_OURS = "is_ours"
#: Operations that are put in place of others and overwrite an argument.
_IN_PLACE = (_ATEN.relu_.default, _ATEN.add_.Tensor, _ATEN.threshold_backward.grad_input)


def _shape(node: Any) -> tuple[int, ...] | None:
    return node.meta.get("shape") if isinstance(node, Node) else None


def _is_only_for(node: Any, user: Node, *targets: object) -> bool:
    """Whether `node` is made by one of `targets` and read by `user` alone."""
    return isinstance(node, Node) and node.target in targets and list(node.users) == [user]


def _may_overwrite(node: Any, user: Node) -> bool:
    """Whether `node` is memory of its own that `user` alone reads."""
    return _is_only_for(node, user, *_FRESH) or (
        _is_only_for(node, user, _ATEN.add_.Tensor) and node.meta.get(_OURS, False)
    )


def _is_bias(node: Any, product: Node) -> bool:
    """Whether `node` is one row or column for each lane, (L, 1, n) or (L, m, 1), of the type of a (L, m, n) product."""
    shape, of_product = _shape(node), _shape(product)
    if shape is None or of_product is None or len(of_product) != 3:
        return False
    if shape not in ((of_product[0], 1, of_product[2]), (*of_product[:2], 1)):
        return False
    # Under autocast a module's own parameter is still float32 where the product is not.
    return bool(node.meta["dtype"] == product.meta["dtype"])
