"""The parents written out in plain PyTorch, and plain loops that train and score one network at a time."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

from sparsefront.trainables.models import MODELS, build_model

#: Parents that name classes: those whose inputs here are numbers.
CLASSIFIERS = [n for n, family in MODELS.items() if getattr(family, "task", "classification") == "classification"]

ACTIVATIONS = {"relu": functional.relu, "tanh": torch.tanh, "gelu": functional.gelu, "silu": functional.silu}

#: Small parents: family -> options; all take inputs of 15 numbers.
SMALL = {
    "mlp": {"widths": [12, 9]},
    "residual_mlp": {"width": 11},
    "conv1d": {"channels": [6, 5, 4]},
    "hourglass": {"skip_width": 11, "hidden_width": 5, "depth": 2},
}
#: A preset of `mlp`.
_PRESETS = {"lenet_300_100": {"widths": [12, 9]}}
N_INPUTS, N_CLASSES = 15, 4


@cache  # recordings of gradients are kept by module: tests that share one share them
def small_model(family, **options):
    """One of the small parents."""
    small = (SMALL | _PRESETS)[family]
    return build_model(family, {**small, **options}, input_shape=(N_INPUTS,), n_classes=N_CLASSES)


def logits(family, weights, x, *, activation="relu", node_masks=None):
    """Logits (batch, classes) of one network; `node_masks`, one (nodes,) a group, multiply activations."""
    act = ACTIVATIONS[activation]

    def masked(hidden, group):
        if node_masks is None:
            return hidden
        mask = node_masks[group].to(hidden)
        return hidden * mask.view(1, -1, *([1] * (hidden.dim() - 2)))

    def linear(name, hidden):
        return functional.linear(hidden, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    if family == "hourglass":  # without a norm, with a lift
        z = masked(linear("lift", x.flatten(1)), 0)
        n_blocks = sum(name.endswith("first.weight") for name in weights)
        for i in range(n_blocks):
            hidden = masked(act(linear(f"blocks.{i}.first", z)), i + 1)
            z = masked(z + linear(f"blocks.{i}.second", hidden), 0)
        return linear("out", z)
    if family in ("mlp", "lenet_300_100"):
        n_layers = sum(name.endswith(".weight") for name in weights)
        hidden = x.flatten(1)
        for i in range(n_layers - 1):
            hidden = masked(act(linear(f"layers.{i}", hidden)), i)
        return linear(f"layers.{n_layers - 1}", hidden)
    if family == "residual_mlp":
        first = masked(act(linear("linear1", x.flatten(1))), 0)
        second = masked(act(linear("linear2", first)), 0)
        return linear("linear3", first + second)
    hidden = x.unsqueeze(1) if x.dim() == 2 else x
    for i in range(3):
        weight, bias = weights[f"convs.{i}.weight"], weights.get(f"convs.{i}.bias")
        hidden = masked(act(functional.conv1d(hidden, weight, bias, stride=2, padding=1)), i)
    return linear("linear", hidden.flatten(1))


def optimizer(name, parameters, hyper):
    """The torch.optim optimiser that one lane has to agree with."""
    if name == "adam":
        return torch.optim.Adam(
            parameters, lr=hyper.lr, betas=(hyper.beta1, hyper.beta2), eps=hyper.eps, weight_decay=hyper.weight_decay
        )
    return torch.optim.SGD(
        parameters, lr=hyper.lr, momentum=hyper.momentum, nesterov=hyper.nesterov, weight_decay=hyper.weight_decay
    )


def train(family, weights, examples, order, *, optimizer_name, hyper, activation="relu", keep=None, rates=None):
    """Weights of one network after one step on each row of `order`.

    Args:
        family: which parent.
        weights: name -> initial tensor, of any compact size.
        examples: training examples with `x` and `labels`.
        order: (steps, batch) indices.
        optimizer_name: 'adam' or 'sgd'.
        hyper: the lane's hyperparameters.
        activation: of the parent.
        keep: name -> 0/1 tensor of the weights that exist, or None.
        rates: what the learning rate of each step is multiplied by; None for 1.
    """
    leaves = {n: (w if keep is None else w * keep[n]).clone().requires_grad_(True) for n, w in weights.items()}
    steps = optimizer(optimizer_name, list(leaves.values()), hyper)
    for step, batch in enumerate(order):
        for group in steps.param_groups:
            group["lr"] = hyper.lr * (1.0 if rates is None else rates[step])
        effective = leaves if keep is None else {n: w * keep[n] for n, w in leaves.items()}
        out = logits(family, effective, examples.x[batch], activation=activation)
        loss = functional.cross_entropy(out, examples.labels[batch], label_smoothing=hyper.label_smoothing)
        steps.zero_grad()
        loss.backward()
        steps.step()
    return {n: w.detach() for n, w in leaves.items()}


def measure(family, weights, examples, *, activation="relu"):
    """Mean cross-entropy and misclassified fraction of one network."""
    out = logits(family, weights, examples.x, activation=activation)
    loss = functional.cross_entropy(out, examples.labels).item()
    return loss, (out.argmax(dim=1) != examples.labels).float().mean().item()


def compact_weights(structure, weights, node_mask):
    """The kept rows and columns of each tensor, cut one tensor at a time."""
    out = dict(weights)
    start = 0
    for group in structure.groups:
        nodes = torch.as_tensor(node_mask[start : start + group.size]).nonzero()[:, 0]
        start += group.size
        for axis in group.axes:
            entries = (nodes[:, None] * axis.repeat + torch.arange(axis.repeat)).flatten()
            out[axis.tensor] = out[axis.tensor].index_select(axis.dim, entries)
    return out
