"""Spaces that are ready to be searched, by name: ``[space] ready = "mlp"``; entries beside it replace theirs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsefront.errors import SpaceError, nearest


@dataclass(frozen=True)
class ReadySpace:
    """A space as plain tables, with the model that it is a space of.

    Attributes:
        summary: what is searched, in one line.
        source: where its ranges come from.
        model: the study's ``[model]``.
        space: the study's ``[space]``.
        masks: the study's ``[masks]``.
    """

    summary: str
    source: str
    model: Mapping[str, Any]
    space: Mapping[str, Any]
    masks: Mapping[str, Any] = field(default_factory=dict)


_LR = {"low": 1e-4, "high": 1e-1, "log": True}
_WEIGHT_DECAY = {"low": 1e-6, "high": 1e-2, "log": True}
_SPARSITY = {"low": 0.0, "high": 0.95}

READY_SPACES: Mapping[str, ReadySpace] = {
    "mlp": ReadySpace(
        "widths and depth of a multilayer perceptron, sparsity, learning rate and weight decay",
        "ranges around the multilayer perceptrons of MNIST-1D (Greydanus and Kobak, 2020)",
        {"name": "mlp"},
        {
            "model": {"widths": {"low": 8, "high": 256, "log": True, "depth": {"low": 1, "high": 3}}},
            "masks": {"sparsity": _SPARSITY},
            "training": {"lr": _LR, "weight_decay": _WEIGHT_DECAY},
        },
    ),
    "conv1d": ReadySpace(
        "channels of three one-dimensional convolutions, sparsity, learning rate and weight decay",
        "ranges around ConvBase of MNIST-1D (Greydanus and Kobak, 2020), which has 25 channels",
        {"name": "conv1d"},
        {
            "model": {"channels": {"low": 4, "high": 64, "log": True, "depth": 3}},
            "masks": {"sparsity": _SPARSITY},
            "training": {"lr": _LR, "weight_decay": _WEIGHT_DECAY},
        },
    ),
    "residual_mlp": ReadySpace(
        "width of MNIST-1D's residual perceptron, activation, sparsity, learning rate and weight decay",
        "ranges around MLPBase of MNIST-1D (Greydanus and Kobak, 2020), which is 100 wide",
        {"name": "residual_mlp"},
        {
            "model": {
                "width": {"low": 8, "high": 256, "log": True},
                "activation": {"choices": ["relu", "tanh", "gelu", "silu"]},
            },
            "masks": {"sparsity": _SPARSITY},
            "training": {"lr": _LR, "weight_decay": _WEIGHT_DECAY},
        },
    ),
    "hourglass": ReadySpace(
        "skip width, hidden width and depth of residual blocks, from wide hidden layers to hourglasses; lift and norm",
        "Chen et al., Hourglass MLPs, 2025: hidden layers narrower than the skip; conventional blocks are the reverse",
        {"name": "hourglass"},
        {
            "model": {
                "skip_width": {"low": 16, "high": 256, "log": True},
                "hidden_width": {"low": 4, "high": 256, "log": True},
                "depth": {"low": 1, "high": 6},
                "lift": {"choices": ["trained", "fixed"]},
                "norm": {"choices": ["none", "layer"]},
            },
            "training": {"lr": _LR},
            "constraints": ["n_params <= 200_000"],
        },
    ),
    "lenet_300_100": ReadySpace(
        "sparsity of LeNet-300-100 and how it is divided over the layers (uniform, ERK or searched); learning rate",
        "LeCun et al., Gradient-based learning applied to document recognition, 1998; sparsities of pruning papers",
        {"name": "mlp", "widths": [300, 100]},
        {
            "masks": {
                "sparsity": {"low": 0.5, "high": 0.98},
                "allocation": {"choices": ["uniform", "erk", "searched"]},
            },
            "training": {"lr": _LR},
        },
        {"kind": "weight"},
    ),
}


def with_ready(table: Mapping[str, Any]) -> dict[str, Any]:
    """A space's table with what its key 'ready' stands for; entries of `table` replace those of the ready space.

    >>> sorted(with_ready({"ready": "mlp", "training": {"lr": 0.01}})["training"].items())
    [('lr', 0.01), ('weight_decay', {'low': 1e-06, 'high': 0.01, 'log': True})]

    Raises:
        SpaceError: an unknown name.
    """
    own = {k: v for k, v in table.items() if k != "ready"}
    if "ready" not in table:
        return own
    name = table["ready"]
    if not isinstance(name, str) or name not in READY_SPACES:
        raise SpaceError(f"space.ready={str(name)[:100]!r}: {nearest(str(name)[:100], READY_SPACES)}")
    merged: dict[str, Any] = copy.deepcopy(dict(READY_SPACES[name].space))
    for key, entries in own.items():
        both = isinstance(entries, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **entries} if both else entries
    return merged
