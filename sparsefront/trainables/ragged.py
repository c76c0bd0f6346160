"""Ragged packs: perceptrons of unlike widths trained side by side at their real sizes, without padding.

Batched products need equal shapes, so that candidates of a search are padded to the largest of their pack: over widths
of 8 to 128 in one to three layers that doubles the arithmetic and triples the memory that is gone through. On a CPU a
product of its own for each lane costs about a microsecond to start. Here every lane has its own products, and all that
goes entry by entry (activations, masks, the optimiser) is done for many lanes at once, over buffers in which they lie
one behind the other.

A lane's arithmetic touches its own memory alone, in the same order and equally aligned whatever its neighbours are:
with one thread it comes to the same bits in any pack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.trainables.lanes import LaneStack, Layout
from sparsefront.trainables.losses import cross_entropy, n_errors_by_class
from sparsefront.trainables.models.model import Perceptron

_ATEN = torch.ops.aten

#: Activations (float32) of one block of lanes, as many as a core's own cache holds beside their gradients.
_BLOCK = 1 << 18
#: Entries to which lanes' tensors are aligned (two of the widest vectors): products may round otherwise elsewhere, and
#: so do activations, which go by two vectors at once, in what is left over.
_ALIGNED = 32
#: Examples that are evaluated at once.
_EXAMPLES_AT_ONCE = 4096


@dataclass(frozen=True)
class _Activation:
    """An activation, and what it does to a gradient, over buffers of many lanes.

    Attributes:
        forward: from what goes in, into a buffer, which may be the same.
        backward: changes a gradient in place, by what went in and what came out.
        in_place: whether what goes in is not needed afterwards.
        keeps_one: whether 1 stays 1.
    """

    forward: Callable[[torch.Tensor, torch.Tensor], object]
    backward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]
    in_place: bool = True
    keeps_one: bool = False


_ACTIVATIONS: Mapping[str, _Activation] = {
    "relu": _Activation(
        lambda z, h: h.relu_(),
        lambda d, z, h: _ATEN.threshold_backward.grad_input(d, h, 0, grad_input=d),
        keeps_one=True,
    ),
    "tanh": _Activation(
        lambda z, h: torch.tanh(z, out=h),
        lambda d, z, h: _ATEN.tanh_backward.grad_input(d, h, grad_input=d),
    ),
    "gelu": _Activation(
        lambda z, h: _ATEN.gelu.out(z, out=h),
        lambda d, z, h: _ATEN.gelu_backward.grad_input(d, z, grad_input=d),
        in_place=False,
    ),
    "silu": _Activation(
        lambda z, h: _ATEN.silu.out(z, out=h),
        lambda d, z, h: _ATEN.silu_backward.grad_input(d, z, grad_input=d),
        in_place=False,
    ),
}


@dataclass(frozen=True)
class _Layer:
    """A layer of one lane: its weights, (outputs, inputs), with a column for the bias behind them if there is one.

    Attributes:
        start: of its first entry in the ragged buffer.
        n_out: outputs.
        n_in: inputs, the bias not counted.
        has_bias: whether that column is there.
    """

    start: int
    n_out: int
    n_in: int
    has_bias: bool

    @property
    def n_columns(self) -> int:
        return self.n_in + self.has_bias

    @property
    def size(self) -> int:
        return self.n_out * self.n_columns

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Its entries of a buffer, (outputs, columns), not copied."""
        return flat[self.start : self.start + self.size].view(self.n_out, self.n_columns)


class RaggedLanes:
    """Lanes of a pack, one behind the other at their real sizes.

    Attributes:
        flat: (1, N) weights; a few entries between lanes are always zero.
        lengths: entries of each lane, those behind it included: their sum is N.
    """

    def __init__(
        self, perceptron: Perceptron, lanes: LaneStack, real: Sequence[Mapping[str, tuple[int, ...]]], batch_size: int
    ) -> None:
        """Copy lanes out of a padded stack.

        Args:
            perceptron: how a lane's tensors follow each other.
            lanes: on a CPU, padded to one shape; not modified.
            real: shape of each lane's own tensors, by name.
            batch_size: examples in a step.
        """
        self._activation = _ACTIVATIONS[perceptron.activation]
        self._layers, self.lengths = _lay_out(perceptron, real)
        self._layout = lanes.layout
        inside, places = _places(perceptron, self._layers, lanes.layout)
        self._inside, self._places = torch.from_numpy(inside), torch.from_numpy(places)
        self.flat = self.gathered(lanes.flat)
        keep = None if lanes.keep is None else self.gathered(lanes.keep)
        self._keep = None if keep is None or bool(keep.view(-1)[self._inside].all()) else keep
        self._gradient = torch.zeros_like(self.flat)
        self._batch_size = batch_size
        self._blocks: list[_Block] | None = None
        first = self._layers[0][0]
        self._x = torch.ones(first.n_columns, batch_size)

    def gathered(self, padded: torch.Tensor) -> torch.Tensor:
        """(L, P), or the trained part of it, to (1, N)."""
        ragged = torch.zeros(1, sum(self.lengths))
        ragged.view(-1)[self._inside] = padded.reshape(-1)[self._in_rows_of(padded)]
        return ragged

    def scatter(self, ragged: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        """(1, N) to the places of its entries in a contiguous (L, P), which is returned."""
        padded.view(-1)[self._in_rows_of(padded)] = ragged.view(-1)[self._inside]
        return padded

    def _in_rows_of(self, padded: torch.Tensor) -> torch.Tensor:
        if padded.shape[1] != self._layout.width:
            raise ValueError(f"padded: rows of {padded.shape[1]} entries, must have {self._layout.width}")
        return self._places

    def gradient(self, x: torch.Tensor, one_hot: torch.Tensor, smoothing: torch.Tensor | None) -> torch.Tensor:
        """Gradient of every lane's mean cross-entropy, masked: (1, N), overwritten by the next call.

        Args:
            x: (B, ...) examples.
            one_hot: (C, B) their classes.
            smoothing: (L,) label smoothing; None for none.
        """
        if self._blocks is None:
            self._blocks = self._cut_into_blocks()
        self._x[: self._layers[0][0].n_in].copy_(x.flatten(1).t())
        goals = one_hot
        if smoothing is not None:
            eps = smoothing[:, None, None]
            goals = one_hot * (1 - eps) + eps / len(one_hot)
        for block in self._blocks:
            block.differentiate(goals)
        if self._keep is not None:
            self._gradient.mul_(self._keep)
        return self._gradient

    def _cut_into_blocks(self) -> list[_Block]:
        blocks: list[_Block] = []
        start = n = 0
        for i, layers in enumerate(self._layers):
            n_own = self._batch_size * sum(layer.n_out for layer in layers)
            if i > start and n + n_own > _BLOCK:
                blocks.append(self._block(start, i))
                start, n = i, 0
            n += n_own
        return [*blocks, self._block(start, len(self._layers))]

    def _block(self, start: int, stop: int) -> _Block:
        flat, gradient = self.flat.view(-1), self._gradient.view(-1)
        return _Block(self._layers[start:stop], flat, gradient, self._x, slice(start, stop), self._activation)

    def evaluate(
        self, x: torch.Tensor, one_hot: torch.Tensor, labels: torch.Tensor
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean cross-entropy (nats) and misclassified fraction of every lane: two (L,) float64.

        Args:
            x: (n, ...) examples.
            one_hot: (C, n) their classes.
            labels: (n,) int64, the same.
        """
        n = len(x)
        losses, wrong = torch.zeros(2, len(self._layers), dtype=torch.float64)
        for a in range(0, n, _EXAMPLES_AT_ONCE):
            b = min(n, a + _EXAMPLES_AT_ONCE)
            inputs = torch.ones(self._x.shape[0], b - a)
            inputs[: self._layers[0][0].n_in] = x[a:b].flatten(1).t()
            most = [max(layer.n_columns for layer in behind) for behind in zip(*self._layers, strict=True)]
            buffers = [torch.empty(rows, b - a) for rows in most[1:]]
            for i, layers in enumerate(self._layers):
                logits = self._outputs(layers, inputs, buffers)
                losses[i] += cross_entropy(logits.t(), one_hot[:, a:b]) * (b - a)
                wrong[i] += n_errors_by_class(logits, labels[a:b])
        return (losses / n).numpy(), (wrong / n).numpy()

    def _outputs(self, layers: Sequence[_Layer], inputs: torch.Tensor, buffers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of one lane: (inputs, n) -> (classes, n); what the other layers get is put into the buffers."""
        flat, h = self.flat.view(-1), inputs
        for (layer, behind), buffer in zip(itertools.pairwise(layers), buffers, strict=True):
            z = torch.mm(layer.of(flat), h, out=buffer[: layer.n_out])
            self._activation.forward(z, z)
            buffer[layer.n_out : behind.n_columns].fill_(1.0)
            h = buffer[: behind.n_columns]
        return torch.mm(layers[-1].of(flat), h)


class _Block:
    """Some lanes of a ragged pack, with buffers for a batch of examples, one in each column."""

    def __init__(
        self,
        lanes: Sequence[Sequence[_Layer]],
        flat: torch.Tensor,
        gradient: torch.Tensor,
        x: torch.Tensor,
        numbers: slice,
        activation: _Activation,
    ) -> None:
        batch_size, n_classes = x.shape[1], lanes[0][-1].n_out
        self._numbers, self._activation = numbers, activation
        self._logits = torch.zeros(len(lanes), n_classes, batch_size)
        self._slope = torch.zeros_like(self._logits)
        # Rows of lanes begin where a vector does.
        step = _ALIGNED // math.gcd(_ALIGNED, batch_size)
        outer = list(zip(*lanes, strict=True))  # by layer, then by lane
        self._hidden: list[_Hidden] = []
        #: Of each layer: of each lane, its weights, what goes in, and where its outputs are put.
        self._forward: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []
        #: Of each layer: of each lane, what goes in and the slope of its outputs, and where the product is put.
        self._of_weights: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []
        #: Of each layer but the first: of each lane, its weights, that slope, and where that of its inputs is put.
        self._of_inputs: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []
        inputs, input_slopes = [x] * len(lanes), list[torch.Tensor]()
        for number, layers in enumerate(outer):
            if number < len(outer) - 1:
                behind = outer[number + 1]
                hidden = _Hidden(layers, behind, batch_size, step, activation)
                self._hidden.append(hidden)
                outputs, slopes, inputs_behind, slopes_behind = hidden.parts(layers, behind)
            else:
                outputs, slopes = list(self._logits), list(self._slope)
                inputs_behind, slopes_behind = [], []
            weights, of_weights = ([layer.of(buffer) for layer in layers] for buffer in (flat, gradient))
            self._forward.append(list(zip(weights, inputs, outputs, strict=True)))
            self._of_weights.append([(s, i.t(), g) for s, i, g in zip(slopes, inputs, of_weights, strict=True)])
            if number:
                inner = [w[:, : layer.n_in].t() for layer, w in zip(layers, weights, strict=True)]
                self._of_inputs.append(list(zip(inner, slopes, input_slopes, strict=True)))
            inputs, input_slopes = inputs_behind, slopes_behind

    def differentiate(self, goals: torch.Tensor) -> None:
        """Put the gradients of these lanes in their places, given the probabilities wanted: (C, B) or (L, C, B)."""
        mm = torch.mm
        for products, hidden in zip(self._forward[:-1], self._hidden, strict=True):
            for weights, inputs, outputs in products:
                mm(weights, inputs, out=outputs)
            hidden.activate()
        for weights, inputs, outputs in self._forward[-1]:
            mm(weights, inputs, out=outputs)
        # What `cross_entropy_gradient` says, without a tensor more.
        torch.softmax(self._logits, dim=1, out=self._slope)
        own = goals if goals.dim() == 2 else goals[self._numbers]
        self._slope.sub_(own).mul_(1 / self._slope.shape[2])
        for number in range(len(self._forward) - 1, 0, -1):
            for slopes, inputs, place in self._of_weights[number]:
                mm(slopes, inputs, out=place)
            for weights, slopes, place in self._of_inputs[number - 1]:
                mm(weights, slopes, out=place)
            self._hidden[number - 1].pass_back()
        for slopes, inputs, place in self._of_weights[0]:
            mm(slopes, inputs, out=place)


class _Hidden:
    """A hidden layer of all lanes of a block: its units one below the other, a row of ones below each lane's."""

    def __init__(
        self,
        layers: Sequence[_Layer],
        behind: Sequence[_Layer],
        batch_size: int,
        step: int,
        activation: _Activation,
    ) -> None:
        self._activation = activation
        lengths = [-(-layer.n_columns // step) * step for layer in behind]
        self._starts = np.cumsum([0, *lengths[:-1]]).tolist()
        self._after = torch.ones(sum(lengths), batch_size)
        self._before = self._after if activation.in_place else torch.zeros_like(self._after)
        self._slope = torch.zeros_like(self._after)
        ones = [start + layer.n_out for start, layer in zip(self._starts, layers, strict=True)]
        stops = [*self._starts[1:], sum(lengths)]
        rows = [row for first, stop in zip(ones, stops, strict=True) for row in range(first, stop)]
        self._ones = None if activation.keeps_one or not rows else torch.tensor(rows)

    def parts(
        self, layers: Sequence[_Layer], behind: Sequence[_Layer]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Of each lane: where outputs of the layer go, the slope of those, what the next gets, and its slope."""
        outputs, slopes, inputs = (
            [buffer[start : start + n] for start, n in zip(self._starts, sizes, strict=True)]
            for buffer, sizes in (
                (self._before, [layer.n_out for layer in layers]),
                (self._slope, [layer.n_out for layer in layers]),
                (self._after, [layer.n_columns for layer in behind]),
            )
        )
        return outputs, slopes, inputs, slopes

    def activate(self) -> None:
        """From what goes into the units to what comes out."""
        self._activation.forward(self._before, self._after)
        if self._ones is not None:
            self._after.index_fill_(0, self._ones, 1.0)

    def pass_back(self) -> None:
        """From the slope of what comes out to that of what goes in."""
        self._activation.backward(self._slope, self._before, self._after)


def _lay_out(
    perceptron: Perceptron, real: Sequence[Mapping[str, tuple[int, ...]]]
) -> tuple[list[list[_Layer]], list[int]]:
    """Layers of each lane, and the entries from the first of one lane to that of the next."""
    lanes: list[list[_Layer]] = []
    lengths: list[int] = []
    end = 0
    for shapes in real:
        start, layers = end, []
        for weight, bias in zip(perceptron.weights, perceptron.biases, strict=True):
            n_out, n_in = shapes[weight]
            layers.append(_Layer(end, n_out, n_in, bias is not None))
            end += -(-layers[-1].size // _ALIGNED) * _ALIGNED
        lanes.append(layers)
        lengths.append(end - start)
    return lanes, lengths


def _places(
    perceptron: Perceptron, lanes: Sequence[Sequence[_Layer]], layout: Layout
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each entry lies in the ragged buffer, and where in the padded one, both flattened."""
    starts = dict(zip(layout.names, np.cumsum([0, *layout.sizes[:-1]]).tolist(), strict=True))
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    inside: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    for lane, layers in enumerate(lanes):
        row = lane * layout.width
        for layer, weight, bias in zip(layers, perceptron.weights, perceptron.biases, strict=True):
            rows = np.arange(layer.n_out)
            place = np.empty((layer.n_out, layer.n_columns), dtype=np.int64)
            place[:, : layer.n_in] = row + starts[weight] + rows[:, None] * shapes[weight][1] + np.arange(layer.n_in)
            if bias is not None:
                place[:, layer.n_in] = row + starts[bias] + rows
            inside.append(layer.start + np.arange(layer.size))
            places.append(place.reshape(-1))
    return np.concatenate(inside), np.concatenate(places)
