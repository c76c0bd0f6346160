"""One network whose mask changes while it trains, in plain PyTorch and plain loops."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from tests.oracles.networks import logits, optimizer
from tests.oracles.spaces import best


def gradients(family, leaves, examples, batch, hyper):
    """Gradient of the loss by every leaf."""
    out = logits(family, leaves, examples.x[batch])
    loss = functional.cross_entropy(out, examples.labels[batch], label_smoothing=hyper.label_smoothing)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def rewire(weight, mask, growth, fraction):
    """New mask: the smallest of the active give way to as many masked ones of largest `growth`."""
    magnitude, active = weight.abs().flatten().tolist(), mask.flatten().tolist()
    n_active = sum(map(bool, active))
    n_dropped = min(math.floor(fraction * n_active + 1e-9), len(active) - n_active)
    stay = best([m if a else -math.inf for m, a in zip(magnitude, active, strict=True)], n_active - n_dropped)
    grown = best([-math.inf if a else g for g, a in zip(growth, active, strict=True)], n_dropped)
    assert not stay & grown
    return torch.tensor([float(i in stay or i in grown) for i in range(len(active))]).view_as(mask)


def rewire_units(weights, mask, growth, fraction, rivals, growth_of_unit):
    """New mask of one tensor under a pattern, group after group and unit after unit.

    Args:
        weights: list of numbers.
        mask: list of 0 and 1, constant over each unit.
        growth: list of numbers.
        fraction: of the kept units of each of `rivals` that is replaced.
        rivals: [groups][units][entries] indices, several of them.
        growth_of_unit: list of an entry's growth -> number.
    """
    mask = list(mask)
    for groups in rivals:
        kept = [[u for u, unit in enumerate(units) if mask[unit[0]]] for units in groups]
        room = [min(len(k), len(units) - len(k)) for k, units in zip(kept, groups, strict=True)]
        n_dropped = min(math.floor(fraction * sum(map(len, kept)) + 1e-9), sum(room))
        weakest = sorted(((sum(abs(weights[i]) for i in groups[g][u]), -g, -u) for g, k in enumerate(kept) for u in k))
        dropped = [[] for _ in groups]
        for _, g, u in weakest:
            if sum(map(len, dropped)) < n_dropped and len(dropped[-g]) < room[-g]:
                dropped[-g].append(-u)
        for units, before, gone in zip(groups, kept, dropped, strict=True):
            able = [u for u in range(len(units)) if u not in before]
            grown = sorted(able, key=lambda u: (-growth_of_unit([growth[i] for i in units[u]]), u))[: len(gone)]
            for value, chosen in ((0, gone), (1, grown)):
                for u in chosen:
                    for i in units[u]:
                        mask[i] = value
    return mask


def train(family, weights, keep, examples, order, *, optimizer_name, hyper, fraction_at, words_at=None):
    """Weights and masks after one step on each row of `order`.

    Args:
        family: which parent.
        weights: name -> initial tensor.
        keep: name -> 0/1 tensor, of the prunable weights.
        examples: training examples.
        order: (steps, batch) indices.
        optimizer_name: 'adam' or 'sgd'.
        hyper: of the optimiser.
        fraction_at: step -> share that is replaced, 0 for none.
        words_at: step -> {name: list of random numbers} (SET, after the optimiser's step); None for RigL.
    """
    keep = dict(keep)
    leaves = {n: (w * keep.get(n, 1)).clone().requires_grad_(True) for n, w in weights.items()}
    steps = optimizer(optimizer_name, list(leaves.values()), hyper)

    def update(growth):
        for name, mask in keep.items():
            leaf = leaves[name]
            keep[name] = rewire(leaf.detach(), mask, growth[name], fraction)
            leaf.data.mul_(mask * keep[name])
            for slot in steps.state[leaf].values():
                if slot is not None and slot.shape == leaf.shape:
                    slot.mul_(mask * keep[name])

    for step, batch in enumerate(order):
        found = gradients(family, leaves, examples, batch, hyper)
        fraction = fraction_at(step)
        if words_at is None and fraction:
            update({n: g.abs().flatten().tolist() for n, g in found.items()})
            continue
        for name, leaf in leaves.items():
            leaf.grad = found[name] * keep.get(name, 1)
        steps.step()
        if fraction:
            update(words_at(step))
    return {n: w.detach() for n, w in leaves.items()}, keep


class _Choice(torch.autograd.Function):
    """The k highest as ones; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, scores, k):
        chosen = best(scores.flatten().tolist(), k)
        return torch.tensor([float(i in chosen) for i in range(scores.numel())]).view_as(scores)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def train_scores(family, weights, counts, examples, order, *, optimizer_name, hyper):
    """Scores and masks of edge-popup; `counts` name -> survivors of the prunable weights."""
    scores = {
        n: (math.sqrt(6 / w[0].numel()) * w / w.abs().max()).requires_grad_(True)
        for n, w in weights.items()
        if n in counts
    }
    steps = optimizer(optimizer_name, list(scores.values()), hyper)

    def masks():
        return {n: _Choice.apply(s.abs(), counts[n]) for n, s in scores.items()}

    for batch in order:
        chosen = masks()
        out = logits(family, {n: w * chosen[n] if n in chosen else w for n, w in weights.items()}, examples.x[batch])
        steps.zero_grad()
        functional.cross_entropy(out, examples.labels[batch]).backward()
        steps.step()
    return {n: s.detach() for n, s in scores.items()}, {n: m.detach() for n, m in masks().items()}
