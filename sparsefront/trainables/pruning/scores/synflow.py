"""SynFlow: what carries the flow through the network of absolute weights matters; no data are needed.

R = sum of the outputs on an all-ones input of the network with |w|, without biases, norms and (all that is left being
positive) activations; a weight scores |w| dR/d|w|. The scores of every layer then add up to R, which is why masking in
many rounds, with scores computed anew in each, keeps layers from being emptied before others. In float64: R is a
product over layers. Nodes: the sum over everything that leaves with them (their flow in, and the same flow out).

Reference: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020
(100 rounds).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparsefront.trainables.pruning.products import Product, ProductOfRanked, ProductOfRemains, Products
from sparsefront.trainables.pruning.remains import Left, Ranked, Remains, RunThrough
from sparsefront.trainables.pruning.selection import check_finite, keep_best
from sparsefront.trainables.pruning.state import ScoringState, blocks
from sparsefront.trainables.select import cut_row, is_long


def weights(state: ScoringState) -> torch.Tensor:
    """(L, W) float64."""
    return torch.cat([Flow(lane).scores("weight") for lane in state.alone()])


def nodes(state: ScoringState) -> torch.Tensor:
    """(L, N) float64."""
    return torch.cat([Flow(lane).scores("node") for lane in state.alone()])


#: What is passed over: activations and norms.
_BYPASSED: frozenset[Callable[..., torch.Tensor]] = frozenset(
    {
        *(functional.relu, torch.relu, torch.Tensor.relu, torch.tanh, torch.Tensor.tanh, functional.gelu),
        *(functional.silu, functional.layer_norm, functional.batch_norm, functional.group_norm),
    }
)
#: What is linear in its second argument, the weights: which dimension of its input and output is that of the features.
_LAYERS: Mapping[Callable[..., torch.Tensor], int] = {
    functional.linear: -1,
    functional.conv1d: -2,
    functional.conv2d: -3,
}


@dataclass(frozen=True)
class _Layer:
    """The first use of some weights.

    Attributes:
        given: what went in.
        output: what came out.
        features: the dimension of both that is that of the nodes.
        is_first: whether what went in depends on no weights.
    """

    given: torch.Tensor
    output: torch.Tensor
    features: int
    is_first: bool


class _Linearised(TorchFunctionMode):
    """Context in which activations and norms return their input, and layers that read certain weights are noted.

    No gradient by its weights goes through a noted layer. Whatever else reads them, a second call of the layer
    included, is in the graph: nothing is lost.
    """

    def __init__(self, names: Mapping[int, str], remains: Mapping[str, RunThrough], *, of_one_example: bool) -> None:
        """Note layers.

        Args:
            names: of the weights, by id.
            remains: what noted layers are run through in place of their weights.
            of_one_example: note Linear layers of one row of inputs; else all layers that read every input's features.
        """
        super().__init__()
        self.layers: dict[str, _Layer] = {}
        self._names, self._remains, self._of_one_example = names, remains, of_one_example

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _BYPASSED:
            return args[0]
        features = _LAYERS.get(func)
        if features is None or len(args) < 2 or not self._is_noted(args[0], args[1], features):
            return func(*args, **(kwargs or {}))
        # Copies: what later writes to either changes nothing here, and gradients are by this layer's input alone.
        given, is_first = args[0].clone(), not args[0].requires_grad
        if is_first:
            given.requires_grad_()
        name = self._names[id(args[1])]
        if name in self._remains:
            output = self._remains[name].outputs(given)  # biases are zero
        else:
            output = func(given, args[1].detach(), *args[2:], **(kwargs or {}))
        self.layers[name] = _Layer(given, output, features, is_first)
        return output.clone()

    def _is_noted(self, given: torch.Tensor, weights: torch.Tensor, features: int) -> bool:
        name = self._names.get(id(weights))
        if name is None or name in self.layers:
            return False
        if self._of_one_example:
            return features == -1 and given.numel() == given.shape[-1]
        return given.shape[features] == weights.shape[1]  # no groups of channels


@dataclass(frozen=True)
class _Run:
    """One pass forward and backward.

    Attributes:
        layers: that were noted, by the name of their weights.
        by_output: gradients of the flow by their outputs.
        by_given: and by their inputs, where these are asked for.
        gradients: by all other weights, and by those of noted layers what else reads them adds.
    """

    layers: Mapping[str, _Layer]
    by_output: Mapping[str, torch.Tensor]
    by_given: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]


class Flow:
    """The flow through a lane that loses more and more: what it runs through is made once, for all rounds."""

    def __init__(self, state: ScoringState) -> None:
        """Begin with one lane."""
        assert state.examples is not None
        self._state, self._magnitudes = state, _magnitudes(state)
        #: What is left: a mask of all; or, of weights that were cut tensor by tensor, of each by name.
        self._mask: torch.Tensor | None = None
        self._parts: dict[str, Left] = {}
        self._ones = torch.ones(1, *state.examples.x.shape[1:], dtype=torch.float64, device=state.lanes.flat.device)

    def scores(self, kind: str) -> torch.Tensor:
        """Scores (1, entries) float64 >= 0, zero for what was removed."""
        if kind == "node":
            return self._of_nodes()[None]
        # Nothing was cut tensor by tensor: all are products of whole tensors.
        return torch.cat([part.joined() for part in self._products() if isinstance(part, Product)])[None]

    def cut(self, kind: str, counts: Sequence[int]) -> None:
        """See `registry.Rounds`."""
        is_long_row = self._ones.device.type == "cpu" and is_long(self._state.structure.n_weights)
        if kind == "weight" and len(counts) == 1 and is_long_row:
            if self._cut_row(counts[0]):
                return
            # Of all scores at once, then, and of what was there before.
            self._mask, self._parts, self._magnitudes = self.left, {}, _magnitudes(self._state)
        self._remove(kind)
        scores = self.scores(kind)
        check_finite("scores", scores)
        self._mask = keep_best(scores, self._state.structure.section_sizes(kind), counts, left=self._mask)

    @property
    def left(self) -> torch.Tensor | None:
        """See `registry.Rounds`."""
        if not self._parts:
            return self._mask
        return torch.cat([self._parts[tensor.name].mask() for tensor in self._state.structure.prunable])[None]

    def _remove(self, kind: str) -> None:
        """Set to zero what the mask removes."""
        if self._mask is not None:
            self._state.remove(self._magnitudes, self._mask, kind)

    def _cut_row(self, k: int) -> bool:
        """Keep the best k weights of all, tensor by tensor; return whether their scores can be told so."""
        if self._parts and k == sum(len(part) for part in self._parts.values()):
            return True
        self._remove("weight")
        products = Products(self._products())
        stay = cut_row(products, k) if products.are_finite() else None
        if stay is None:
            return False
        parts = products.left(stay)
        if not all(len(part) for part in parts):
            return False
        self._mask = None
        self._parts = {tensor.name: part for tensor, part in zip(self._state.structure.prunable, parts, strict=True)}
        return True

    def _products(self) -> list[Product | ProductOfRemains | ProductOfRanked]:
        """The scores of the weights of each tensor."""
        run = self._run(of_one_example=True)
        parts: list[Product | ProductOfRemains | ProductOfRanked] = []
        for tensor in self._state.structure.prunable:
            weights, gradient = self._magnitudes[tensor.name][0], run.gradients.get(tensor.name)
            if tensor.name not in run.layers:
                parts.append(Product(weights, gradient))
                continue
            given, by_output = run.layers[tensor.name].given.detach().flatten(), run.by_output[tensor.name].flatten()
            part = self._parts.get(tensor.name)
            if isinstance(part, Ranked):
                parts.append(ProductOfRanked(part, by_output))
            elif isinstance(part, Remains):
                parts.append(ProductOfRemains(part, by_output, given))
            elif gradient is None:
                is_of_ones = run.layers[tensor.name].is_first and bool((given == 1).all())
                parts.append(Product(weights, (by_output, given), is_of_ones))
            else:
                parts.append(Product(weights, torch.outer(by_output, given) + gradient))
        return parts

    def _of_nodes(self) -> torch.Tensor:
        """The scores of the nodes, (N,).

        The flow through a layer into a node is its output there times the gradient by it, and the flow from a node
        through the layer is its input there times the gradient by that: no sum over weights.
        """
        structure = self._state.structure
        read = [axis.tensor for group in structure.groups for axis in group.axes if axis.dim == 1]
        run = self._run(of_one_example=False, read=read)
        scores = self._state.over_nodes({k: v[None] for k, v in run.gradients.items()}, factors=self._magnitudes)[0]
        parts = torch.split(scores, list(structure.section_sizes("node")))
        for group, part in zip(structure.groups, parts, strict=True):
            for axis in group.axes:
                if axis.tensor not in run.layers:
                    continue
                layer = run.layers[axis.tensor]
                ends = (layer.output, run.by_output) if axis.dim == 0 else (layer.given, run.by_given)
                flow = (ends[0].detach() * ends[1][axis.tensor]).movedim(layer.features, 0)
                part += flow.reshape(len(part), -1).sum(dim=1)
        return scores

    def _run(self, *, of_one_example: bool, read: Sequence[str] = ()) -> _Run:
        """Run forward and backward, with layers noted as `_Linearised` does."""
        leaves = {name: values[0].detach() for name, values in self._magnitudes.items()}
        weights = {name: leaf.requires_grad_() for name, leaf in leaves.items() if leaf.dim() > 1}
        remains = {name: part for name, part in self._parts.items() if isinstance(part, Remains | Ranked)}
        names = {id(leaf): name for name, leaf in weights.items()}
        linearised = _Linearised(names, remains, of_one_example=of_one_example)
        with torch.enable_grad(), linearised:
            total = functional_call(self._state.model.module, leaves, (self._ones,)).sum()
        layers = linearised.layers
        ends = {("output", name): layer.output for name, layer in layers.items()}
        ends |= {("given", name): layers[name].given for name in read if name in layers}
        found = torch.autograd.grad(total, [*ends.values(), *weights.values()], allow_unused=True)
        by: dict[str, dict[str, torch.Tensor]] = {"output": {}, "given": {}}
        for ((end, name), tensor), gradient in zip(ends.items(), found, strict=False):
            by[end][name] = torch.zeros_like(tensor) if gradient is None else gradient
        others = zip(weights, found[len(ends) :], strict=True)
        return _Run(layers, by["output"], by["given"], {name: g for name, g in others if g is not None})


def _magnitudes(state: ScoringState) -> dict[str, torch.Tensor]:
    """Absolute weights (L, *shape) float64 by name; zero where they are biases or norms."""
    flat = torch.empty_like(state.lanes.flat, dtype=torch.float64)
    for columns in blocks(flat):
        flat[:, columns] = state.lanes.flat[:, columns].abs()
    views = state.lanes.layout.views(flat)
    for tensor in state.structure.tensors:
        if len(tensor.shape) == 1:
            views[tensor.name].zero_()
    return views
