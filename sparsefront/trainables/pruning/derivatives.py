"""Derivatives of the scoring loss for all lanes at once: gradient, Hessian times gradient, squares by example.

The loss is that of training, over the scoring batch: cross-entropy, or the absolute error of restored images, to which
no temperature applies. These run once for each mask: unlike a training step they
are not recorded (`trainables.gradients`), which would cost as much as two of them.
"""

from __future__ import annotations

from collections.abc import Callable

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

    Per-example gradients are never formed: a Linear layer's squares are the product of the squared gradients at its
    output with its squared inputs (Goodfellow, Efficient per-example gradient computations, 2015); a convolution's
    that of the products of pairs of positions.

    Raises:
        SpaceError: a prunable tensor that is not the weight of a Linear layer or of a convolution that is called once.
    """
    assert state.examples is not None
    model, layout, examples = state.model, state.lanes.layout, state.examples
    layers = prunable_layers(model)
    n = len(examples)

    inputs_on_meta = torch.empty_like(examples.x, device="meta")
    on_meta = {k: torch.empty(s, device="meta") for k, s in zip(layout.names, layout.shapes, strict=True)}
    offsets: Parameters = {}
    with observed_layers(layers, lambda name, _, output: offsets.__setitem__(name, output)):
        functional_call(model.module, on_meta, (inputs_on_meta,))
    zeros = {k: torch.zeros(v.shape, device=examples.x.device) for k, v in offsets.items()}

    def total_loss(offsets: Parameters, parameters: Parameters) -> tuple[torch.Tensor, Parameters]:
        inputs: Parameters = {}

        def shift(name: str, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            inputs[name] = given
            return output + offsets[name]

        with observed_layers(layers, shift):
            logits = functional_call(model.module, parameters, (examples.x,))
        return LOSSES[examples.loss](logits, examples.targets(), None) * n, inputs

    deltas, inputs = vmap(grad(total_loss, has_aux=True), in_dims=(None, 0))(zeros, state.parameters)
    shapes = {name: view.shape for name, view in state.parameters.items()}
    squares: Parameters = {}
    for name, delta in deltas.items():
        patches, delta = _as_products(layers[name], inputs[name], delta)
        weight, bias = f"{name}.weight", f"{name}.bias"
        squares[weight] = _mean_of_squared_products(delta, patches).view(shapes[weight])
        if bias in shapes:
            squares[bias] = delta.sum(dim=3).square().mean(dim=1)
    return {
        k: squares[k] if k in squares else torch.zeros(shape, device=examples.x.device) for k, shape in shapes.items()
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


def _as_products(layer: nn.Module, inputs: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (L, B, I, T) and output gradients (L, B, O, T) whose product over the T positions is a weight gradient."""
    if isinstance(layer, nn.Linear):
        if inputs.dim() == 3:
            return inputs.unsqueeze(3), delta.unsqueeze(3)
        return inputs.flatten(2, -2).transpose(2, 3), delta.flatten(2, -2).transpose(2, 3)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise SpaceError(
            f"layer={layer}: must have groups=1, padding_mode='zeros' and a padding in numbers for squares of "
            "per-example gradients; choose another score"
        )
    images = inputs.flatten(0, 1)
    one = (1,) if isinstance(layer, nn.Conv1d) else ()
    none = (0,) if isinstance(layer, nn.Conv1d) else ()
    if isinstance(layer, nn.Conv1d):
        images = images.unsqueeze(2)
    patches = functional.unfold(
        images,
        (*one, *layer.kernel_size),
        dilation=(*one, *layer.dilation),
        padding=(*none, *layer.padding),
        stride=(*one, *layer.stride),
    )
    return patches.view(*inputs.shape[:2], *patches.shape[1:]), delta.flatten(3)


def _mean_of_squared_products(delta: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Mean over examples of the squares of delta @ patches^T: (L, O, I).

    (sum_t d_t p_t)^2 is the sum over pairs of positions of (d_t d_s)(p_t p_s): one matrix product over examples and
    pairs, with T (T + 1) / 2 products for the T of a gradient. Pairs are taken a few at a time.
    """
    _, n, _, n_positions = delta.shape
    by_output = delta.permute(0, 3, 1, 2).contiguous()  # (L, T, B, O)
    by_input = patches.permute(0, 3, 1, 2).contiguous()  # (L, T, B, I)
    total: torch.Tensor | None = None
    for s in range(n_positions):
        # Position s with itself once, with each later one twice.
        left = by_output[:, s:] * (by_output[:, s : s + 1] / n)
        left[:, 1:] *= 2
        right = by_input[:, s:] * by_input[:, s : s + 1]
        pairs = (left.flatten(1, 2).transpose(1, 2), right.flatten(1, 2))
        total = torch.bmm(*pairs) if total is None else total.baddbmm_(*pairs)
    assert total is not None
    return total
