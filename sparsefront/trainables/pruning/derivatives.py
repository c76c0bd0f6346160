"""Derivatives of the scoring loss for all lanes at once: gradient, Hessian times gradient, squares by example.

The loss is that of training, over the scoring batch: cross-entropy, or the absolute error of restored images, to which
no temperature applies. These run once for each mask: unlike a training step they
are not recorded (`trainables.gradients`), which would cost as much as two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from sparsefront.errors import SpaceError
from sparsefront.trainables.losses import LOSSES
from sparsefront.trainables.pruning.layers import for_each_lane, observed_layers, prunable_layers
from sparsefront.trainables.pruning.state import ScoringState

Parameters = dict[str, torch.Tensor]


def gradient(state: ScoringState, *, temperature: float = 1.0) -> Parameters:
    """Gradient of the mean loss of logits / temperature with respect to every tensor: (L, *shape) by name."""
    if state.gradient is not None and temperature == 1:
        return state.lanes.layout.views(state.gradient)
    return gradient_of(_loss(state, temperature), state.parameters)


def gradient_of(function: Callable[[Parameters], torch.Tensor], parameters: Parameters) -> Parameters:
    """Gradient of `function`, of one lane's tensors to a scalar, for every lane: (L, *shape) by name; to be read only.

    A lane by itself is differentiated as a plain network is: batching would cost a fifth more (784-1024-1024-10 with
    250 examples: 7.2 ms for 5.7).
    """
    if any(len(values) > 1 for values in parameters.values()):
        found: Parameters = vmap(grad(function))(parameters)
        return found
    leaves = {name: values.detach().requires_grad_() for name, values in parameters.items()}
    with torch.enable_grad():
        value = function({name: leaf.squeeze(0) for name, leaf in leaves.items()})
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True))


def hessian_gradient(state: ScoringState, *, temperature: float = 1.0) -> Parameters:
    """Hessian of the mean loss of logits / temperature times its gradient: (L, *shape) by name.

    It is half the gradient of the gradient's squared norm over what the lane trains: a double back-propagation.
    """
    layout, keep = state.lanes.layout, state.lanes.keep
    gradient_of = grad(_loss(state, temperature))

    def half_squared_norm(parameters: Parameters, kept: Parameters) -> torch.Tensor:
        found = gradient_of(parameters)
        parts = [found[name] * kept[name] if kept else found[name] for name in layout.trained_names]
        return 0.5 * torch.stack([part.square().sum() for part in parts]).sum()

    kept = {} if keep is None else layout.views(keep)
    return for_each_lane(grad(half_squared_norm), state.parameters, kept)


def mean_squared_gradients(state: ScoringState) -> Parameters:
    """Mean over examples of the squared gradient of one example's loss, by name; zero for what is not trained.

    Of a Linear layer the squares are the product of the squared gradients at its output with its squared inputs
    (Goodfellow, Efficient per-example gradient computations, 2015). Where weights meet several positions of an example,
    its gradient is a product over these: of few, all pairs are added up without forming it; of many it is formed, for
    some examples at a time.

    Raises:
        SpaceError: a prunable tensor that is not the weight of a Linear layer or of a convolution that is called once.
    """
    layers = prunable_layers(state.model)
    loss = _loss(state, 1.0)
    if len(state.lanes) == 1:  # not batched, as in `gradient_of`
        deltas, inputs = _of_layers(loss, layers, state.parameters)
    else:
        deltas, inputs = _of_layers_of_lanes(loss, layers, state)
    shapes = {name: view.shape for name, view in state.parameters.items()}
    squares: Parameters = {}
    for name, delta in deltas.items():
        shifted, delta = _as_products(layers[name], inputs[name], delta)
        n = delta.shape[1]  # the loss is a mean over examples: each has its n-th part
        weight, bias = f"{name}.weight", f"{name}.bias"
        squares[weight] = _squared_products(delta, shifted).mul_(n).view(shapes[weight])
        if bias in shapes:
            squares[bias] = delta.sum(dim=3).square().sum(dim=1).mul_(n)
    return {
        k: squares[k] if k in squares else torch.zeros(shape, device=state.lanes.flat.device)
        for k, shape in shapes.items()
    }


def _loss(state: ScoringState, temperature: float) -> Callable[[Parameters], torch.Tensor]:
    """The mean loss of one lane as a function of its tensors."""
    assert state.examples is not None
    examples, module = state.examples, state.model.module

    def loss(parameters: Parameters) -> torch.Tensor:
        outputs = functional_call(module, parameters, (examples.x,))
        if examples.images is None:
            outputs = outputs / temperature
        return LOSSES[examples.loss](outputs, examples.targets(), None)

    return loss


def _of_layers(
    loss: Callable[[Parameters], torch.Tensor], layers: Mapping[str, nn.Module], parameters: Parameters
) -> tuple[Parameters, Parameters]:
    """Gradient of one lane's loss by the outputs of layers, and their inputs: (1, B, ...) by name."""
    inputs: Parameters = {}
    outputs: Parameters = {}

    def observe(name: str, given: torch.Tensor, output: torch.Tensor) -> None:
        inputs[name], outputs[name] = given.detach().unsqueeze(0), output

    with torch.enable_grad(), observed_layers(layers, observe):
        value = loss({name: values.detach().squeeze(0).requires_grad_() for name, values in parameters.items()})
    deltas = torch.autograd.grad(value, list(outputs.values()))
    return {name: delta.unsqueeze(0) for name, delta in zip(outputs, deltas, strict=True)}, inputs


def _of_layers_of_lanes(
    loss: Callable[[Parameters], torch.Tensor], layers: Mapping[str, nn.Module], state: ScoringState
) -> tuple[Parameters, Parameters]:
    """`_of_layers` of every lane: (L, B, ...) by name. Gradients are those by zeros that are added to the outputs."""
    assert state.examples is not None
    model, layout, x = state.model, state.lanes.layout, state.examples.x
    on_meta = {k: torch.empty(s, device="meta") for k, s in zip(layout.names, layout.shapes, strict=True)}
    outputs: Parameters = {}
    with observed_layers(layers, lambda name, _, output: outputs.__setitem__(name, output)):
        functional_call(model.module, on_meta, (torch.empty_like(x, device="meta"),))
    zeros = {k: torch.zeros(v.shape, device=x.device) for k, v in outputs.items()}

    def shifted_loss(offsets: Parameters, parameters: Parameters) -> tuple[torch.Tensor, Parameters]:
        inputs: Parameters = {}

        def shift(name: str, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            inputs[name] = given
            return output + offsets[name]

        with observed_layers(layers, shift):
            return loss(parameters), inputs

    found: tuple[Parameters, Parameters] = vmap(grad(shifted_loss, has_aux=True), in_dims=(None, 0))(
        zeros, state.parameters
    )
    return found


def _as_products(
    layer: nn.Module, inputs: torch.Tensor, delta: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Inputs (L, B, I, T) at every offset of the kernel, and output gradients (L, B, O, T).

    Their product over the T positions is the gradient of the weights at that offset.
    """
    if isinstance(layer, nn.Linear):
        if inputs.dim() == 3:
            return [inputs.unsqueeze(3)], delta.unsqueeze(3)
        return [inputs.flatten(2, -2).transpose(2, 3)], delta.flatten(2, -2).transpose(2, 3)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise SpaceError(
            f"layer={layer}: must have groups=1, padding_mode='zeros' and a padding in numbers for squares of "
            "per-example gradients; choose another score"
        )
    if isinstance(layer, nn.Conv2d):
        return _shifted(
            inputs, delta, kernel=layer.kernel_size, stride=layer.stride, dilation=layer.dilation, padding=layer.padding
        )
    return _shifted(
        inputs.unsqueeze(3),
        delta.unsqueeze(3),
        kernel=(1, *layer.kernel_size),
        stride=(1, *layer.stride),
        dilation=(1, *layer.dilation),
        padding=(0, *layer.padding),
    )


def _shifted(
    images: torch.Tensor,
    delta: torch.Tensor,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """`_as_products` of a convolution of images (L, B, I, rows, columns).

    Positions are those of padded rows, so that what an offset of the kernel meets is a stretch of the padded image: a
    view, where a copy of all patches takes longer than the products if channels are few. At positions beyond the end of
    an output's row the gradient is zero. With a stride, what its steps meet is put together first.
    """
    n_rows, n_columns = delta.shape[3:]
    width = -(-(images.shape[4] + 2 * padding[1]) // stride[1])  # columns of one of the divided images
    n_positions = (n_rows - 1) * width + n_columns
    padded = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    height = -(-padded.shape[3] // stride[0])
    padded = functional.pad(padded, (0, width * stride[1] - padded.shape[4], 0, height * stride[0] - padded.shape[3]))
    divided = {
        (row, column): padded[:, :, :, row :: stride[0], column :: stride[1]].contiguous().flatten(3)
        for row in range(stride[0])
        for column in range(stride[1])
    }
    offsets = [(i * dilation[0], j * dilation[1]) for i in range(kernel[0]) for j in range(kernel[1])]
    starts = [(row // stride[0]) * width + column // stride[1] for row, column in offsets]
    shifted = [
        divided[row % stride[0], column % stride[1]][..., start : start + n_positions]
        for (row, column), start in zip(offsets, starts, strict=True)
    ]
    return shifted, functional.pad(delta, (0, width - n_columns)).flatten(3)[..., :n_positions]


#: Positions up to which all pairs take less than what is done to every entry of every example's gradient (400 x 1200
#: weights, 250 examples, one core: 5 positions 31 ms against 66, 10 positions 129 against 81).
_FEW_POSITIONS = 8
#: Entries of the gradients that are formed at a time: a core's own cache holds them; plenty for a GPU's kernels.
_FORMED = {"cpu": 1 << 17, "cuda": 1 << 24}


def _squared_products(delta: torch.Tensor, shifted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over examples of the squares of delta @ inputs^T, for the inputs at every offset: (L, O, I, offsets)."""
    n_lanes, _, n_outputs, n_positions = delta.shape
    of = _squares_of_pairs if n_positions <= _FEW_POSITIONS else _squares_of_each
    total = delta.new_zeros(len(shifted), n_lanes, n_outputs, shifted[0].shape[2])
    of(delta, shifted, total)
    return total.movedim(0, -1).contiguous()


def _squares_of_pairs(delta: torch.Tensor, shifted: Sequence[torch.Tensor], total: torch.Tensor) -> None:
    """Add the squares to `total` (offsets, L, O, I) without forming any gradient.

    (sum_t d_t p_t)^2 is the sum over pairs of positions of (d_t d_s)(p_t p_s): one matrix product over examples and
    pairs, with T (T + 1) / 2 products for the T of a gradient. Pairs are taken a few at a time.
    """
    by_output = delta.permute(0, 3, 1, 2).contiguous()  # (L, T, B, O)
    by_input = [inputs.permute(0, 3, 1, 2).contiguous() for inputs in shifted]  # (L, T, B, I)
    for s in range(delta.shape[3]):
        # Position s with itself once, with each later one twice.
        left = by_output[:, s:] * by_output[:, s : s + 1]
        left[:, 1:] *= 2
        outputs = left.flatten(1, 2).transpose(1, 2)
        for inputs, into in zip(by_input, total, strict=True):
            into.baddbmm_(outputs, (inputs[:, s:] * inputs[:, s : s + 1]).flatten(1, 2))


def _squares_of_each(delta: torch.Tensor, shifted: Sequence[torch.Tensor], total: torch.Tensor) -> None:
    """The same from the gradients of some examples at a time: as many products as the gradient of their mean takes."""
    n_lanes, n = delta.shape[:2]
    at_once = max(1, _FORMED["cpu" if delta.device.type == "cpu" else "cuda"] // total.numel())
    for a in range(0, n, at_once):
        outputs = delta[:, a : a + at_once].flatten(0, 1)
        for inputs, into in zip(shifted, total, strict=True):
            each = torch.bmm(outputs, inputs[:, a : a + at_once].flatten(0, 1).transpose(1, 2))
            into.add_(each.square_().view(n_lanes, -1, *each.shape[1:]).sum(dim=1))
