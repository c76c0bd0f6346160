"""Shift: what pruning does to the geometry of the last layer, against the parent.

A network ends in class vectors w_c (the rows of its last Linear layer, with biases b_c) applied to features h. For an
example of class y,

* its angle is that between h and w_y, in radians;
* its length is the norm of h;
* its margin is the signed distance of h from the nearest boundary of class y: the minimum over the classes c other
  than y of ((w_y - w_c) . h + b_y - b_c) / ||w_y - w_c||. It is positive where the prediction is right.

A candidate is compared with its parent example by example (the mean difference) and as a distribution (the
1-Wasserstein distance: the mean difference of the sorted values), on clean examples and on those of all corruptions at
their middle severity. Lengths and margins scale with the features, which says little by itself, so they are in units
of the parent's mean length on the same examples; angles have no scale, compare them first.

A zero vector is at a right angle to everything. Two classes with one vector have no boundary; they do not count in
the distance, and a margin without any boundary is 0 (its sign, which is the prediction's, is taken from the logits).

Reference: Li et al., "Understanding robustness lottery": a geometric visual comparative analysis of neural network
pruning approaches, 2022 (angle, length and margin; the formula of the margin is the usual one for linear classifiers).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.func import functional_call, vmap

from sparsefront.errors import ConfigError
from sparsefront.trainables.quality.corruption import CORRUPTIONS, corrupted
from sparsefront.trainables.quality.subject import Column, Observed, Quality, Subject

#: Samples that are named for each lane.
N_FRAGILE = 16
_MIDDLE_SEVERITY = 3
_CONCEPTS = ("angle", "length", "margin")


def geometry(subject: Subject, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Angle (radians), length, margin and whether it is positive, of every lane and example: (L, n) each."""
    parts = [_geometry(subject, x[rows], subject.labels[rows]) for rows in subject.batches()]
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def _geometry(subject: Subject, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    features, vectors, logits = _last_layer(subject, x)
    lengths = features.norm(dim=2)
    norms = vectors.norm(dim=2)
    own = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    along = (features @ vectors.transpose(1, 2)).gather(2, own).squeeze(2)
    cosine = along / (lengths * norms[:, labels])
    angle = torch.where((lengths == 0) | (norms[:, labels] == 0), math.pi / 2, cosine.clamp(-1, 1).arccos())
    # Class by class: all pairs at once would hold classes x classes x features numbers.
    apart = torch.stack([(vectors - vectors[:, c : c + 1]).norm(dim=2) for c in range(vectors.shape[1])], dim=1)
    lead = (logits.gather(2, own) - logits).scatter(2, own, torch.inf)
    to_boundary = apart[:, labels]  # (L, n, classes)
    margin = torch.where(to_boundary > 0, lead / to_boundary, torch.inf).amin(dim=2)
    margin = torch.where(margin == torch.inf, 0.0, margin)
    return {"angle": angle, "length": lengths, "margin": margin, "positive": lead.amin(dim=2) > 0}


def _last_layer(subject: Subject, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (L, n, d), class vectors (L, classes, d) and logits (L, n, classes), float64.

    Raises:
        ConfigError: if the logits are not what the last Linear layer gives.
    """
    module = subject.model.module
    seen: list[tuple[str, torch.Tensor]] = []

    def watch(name: str) -> Any:
        return lambda _module, arguments: seen.append((name, arguments[0]))

    def one(parameters: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        seen.clear()
        logits = functional_call(module, parameters, (x,))
        return (seen[-1][1] if seen else logits), logits

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        features, logits = vmap(one)(subject.tensors)
    finally:
        for hook in hooks:
            hook.remove()
    if seen:
        vectors = subject.tensors[f"{seen[-1][0]}.weight"].double()
        bias = subject.tensors.get(f"{seen[-1][0]}.bias")
        features, logits = features.double(), logits.double()
        if features.shape[:2] == logits.shape[:2] and vectors.shape[1] == logits.shape[2]:
            made = features @ vectors.transpose(1, 2) + (0.0 if bias is None else bias.double()[:, None])
            is_finite = logits.isfinite()
            scale = float(logits[is_finite].abs().max()) if is_finite.any() else 0.0
            if bool(((made - logits).abs()[is_finite] <= 1e-3 * scale).all()):
                return features, vectors, logits
    raise ConfigError(
        "quality=['shift'] of a model whose logits are not those of its last torch.nn.Linear layer: such a layer "
        "must come last; leave 'shift' out of the study's quality"
    )


def _observe(subject: Subject) -> Observed:
    clean = geometry(subject, subject.inputs.x)
    damaged = [geometry(subject, corrupted(subject.inputs, name, _MIDDLE_SEVERITY)) for name in CORRUPTIONS]
    return clean | {f"{c}_corrupted": torch.cat([d[c] for d in damaged], dim=1) for c in _CONCEPTS}


def _compare(lanes: Observed, parent: Observed | None) -> Observed:
    assert parent is not None  # needs_parent
    columns: dict[str, torch.Tensor] = {}
    for suffix in ("", "_corrupted"):
        length = parent[f"length{suffix}"].mean()
        unit = {"angle": torch.ones_like(length), "length": length, "margin": length}
        for concept in _CONCEPTS:
            mine, theirs = lanes[concept + suffix], parent[concept + suffix]
            by_rank = mine.sort(dim=1).values - theirs.sort(dim=1).values
            # Without features the parent gives no unit.
            scale = torch.where(unit[concept] > 0, unit[concept], torch.nan)
            columns[f"{concept}_shift{suffix}"] = (mine - theirs).mean(dim=1) / scale
            columns[f"{concept}_distance{suffix}"] = by_rank.abs().mean(dim=1) / scale
    is_fragile = lanes["positive"] != parent["positive"]
    is_lost = is_fragile & parent["positive"]
    columns["fragile_fraction"] = is_fragile.double().mean(dim=1)
    columns["lost_fraction"] = is_lost.double().mean(dim=1)
    columns["fragile_indices"] = _largest(is_fragile, (lanes["margin"] - parent["margin"]).abs())
    return columns


def _largest(is_fragile: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Indices of the fragile samples of largest change, ties to the lower index: (L, N_FRAGILE) int64, -1 for none."""
    ranked, indices = torch.where(is_fragile, change, -1.0).sort(dim=1, descending=True, stable=True)
    indices = torch.where(ranked >= 0, indices, -1)[:, :N_FRAGILE]
    return torch.nn.functional.pad(indices, (0, N_FRAGILE - indices.shape[1]), value=-1)


_UNITS = {
    "angle": "angle between features and class vector, in radians",
    "length": "length of the features, in mean lengths of the parent",
    "margin": "distance from the nearest class boundary, in mean feature lengths of the parent",
}
_ON = {"": "", "_corrupted": ", on the corruptions at their middle severity"}
_BETTER = {"angle": "lower", "length": "neither", "margin": "higher"}
QUALITY = Quality(
    summary="angle, length and margin of the last layer's features against the parent's, and the fragile samples",
    source="Li et al. 2022",
    columns={
        **{
            f"{c}_shift{suffix}": Column(f"mean change from the parent of the {_UNITS[c]}{on}", _BETTER[c])
            for suffix, on in _ON.items()
            for c in _CONCEPTS
        },
        **{
            f"{c}_distance{suffix}": Column(
                f"1-Wasserstein distance to the parent's distribution of the {_UNITS[c]}{on}", "neither"
            )
            for suffix, on in _ON.items()
            for c in _CONCEPTS
        },
        "fragile_fraction": Column("fraction of examples whose margin has another sign than the parent's (0..1)"),
        "lost_fraction": Column("fraction of examples that the parent classifies rightly and the lane does not (0..1)"),
        "fragile_indices": Column(
            f"indices of the {N_FRAGILE} fragile examples whose margins changed most, the largest change first; -1 "
            "where there are fewer",
            "neither",
            kind="indices",
        ),
    },
    forward_passes=1 + len(CORRUPTIONS),
    observe=_observe,
    compare=_compare,
    needs_parent=True,
)
