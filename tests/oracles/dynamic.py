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


def owned(structure):
    """What each unit owns, all groups in order: (tensor, dimension, places along it)."""
    return [
        [(a.tensor, a.dim, range(unit * a.repeat, (unit + 1) * a.repeat)) for a in group.axes]
        for group in structure.groups
        for unit in range(group.size)
    ]


def along(tensor, dim, place):
    """A view of the entries at one place of a dimension."""
    return tensor.select(dim, place)


def without(structure, tensors, units, *, dims=(0, 1)):
    """Copies of tensors in which units have nothing along `dims`."""
    tensors = {n: t.detach().clone() for n, t in tensors.items()}
    for unit in units:
        for name, dim, places in owned(structure)[unit]:
            for place in places:
                if dim in dims:
                    along(tensors[name], dim, place).zero_()
    return tensors


def with_incoming(structure, tensors, units, initial):
    """Copies in which units have their initial incoming weights, from inputs and from units that are there."""
    found = {n: t.detach().clone() for n, t in tensors.items()}
    n_units = range(len(owned(structure)))
    there = [u for u in n_units if u not in units and norm(structure, tensors, u)]
    sources = without(structure, initial, [u for u in n_units if u not in there], dims=(1,))
    for unit in units:
        for name, dim, places in owned(structure)[unit]:
            for place in places:
                if dim == 0 and not name.endswith("bias"):
                    along(found[name], 0, place).copy_(along(sources[name], 0, place))
    return found


def norm(structure, tensors, unit, *, dims=(0, 1)):
    """L2 norm of what a unit owns along `dims`."""
    squares = [
        along(tensors[name].detach(), dim, place).double().square().sum()
        for name, dim, places in owned(structure)[unit]
        for place in places
        if dim in dims
    ]
    return math.sqrt(sum(float(s) for s in squares))


def best_units(structure, scores, counts):
    """The units of highest score, `counts` of each group, or one count of all of which each group has its best."""
    left = iter(scores)
    groups = [[next(left) for _ in range(group.size)] for group in structure.groups]
    starts = [sum(g.size for g in structure.groups[:i]) for i in range(len(groups))]
    if len(counts) == len(groups):
        return {a + u for a, group, k in zip(starts, groups, counts, strict=True) for u in best(group, k)}
    firsts = {a + min(best(group, 1)) for a, group in zip(starts, groups, strict=True)}
    return best([math.inf if u in firsts else s for u, s in enumerate(scores)], counts[0])


def train_units(family, structure, weights, kept, examples, order, *, optimizer_name, hyper, update, takes_step=False):
    """Weights and kept units after one step on each row of `order`.

    Args:
        family: which parent.
        structure: of it.
        weights: name -> initial tensor.
        kept: numbers of the units that are there.
        examples: training examples.
        order: (steps, batch) indices.
        optimizer_name: 'adam' or 'sgd'.
        hyper: of the optimiser.
        update: (step, {name: tensor}, kept, {name: gradient}) -> the units that are there afterwards, or None.
        takes_step: whether an update takes the place of the optimiser's step (RigL).
    """
    n_units, kept = len(owned(structure)), set(kept)

    def away(units):
        return [u for u in range(n_units) if u not in units]

    leaves = {n: w.requires_grad_(True) for n, w in without(structure, weights, away(kept)).items()}
    steps = optimizer(optimizer_name, list(leaves.values()), hyper)
    for step, batch in enumerate(order):

        def gradient_of(tensors, batch=batch):
            tensors = {n: t.detach().clone().requires_grad_(True) for n, t in tensors.items()}
            return gradients(family, tensors, examples, batch, hyper)

        after = update(step, leaves, kept, gradient_of) if takes_step else None
        if after is None:
            for name, gradient in without(structure, gradient_of(leaves), away(kept)).items():
                leaves[name].grad = gradient
            steps.step()
            after = None if takes_step else update(step, leaves, kept, gradient_of)
        if after is None:
            continue
        lost = away(kept & after)
        found = with_incoming(structure, without(structure, leaves, lost), after - kept, weights)
        for name, leaf in leaves.items():
            leaf.data.copy_(found[name])
        for key in {key for leaf in leaves.values() for key in steps.state[leaf]}:
            slots = {n: steps.state[leaf][key] for n, leaf in leaves.items()}
            if all(slot is not None and slot.dim() for slot in slots.values()):
                for name, slot in without(structure, slots, lost).items():
                    slots[name].copy_(slot)
        kept = after
    return {n: w.detach() for n, w in leaves.items()}, kept


def train_unit_scores(family, structure, weights, counts, examples, order, *, optimizer_name, hyper):
    """Scores of units, one tensor a group, and the kept units of edge-popup: masks multiply activations."""
    scores, unit = [], 0
    for group in structure.groups:
        norms = torch.tensor([norm(structure, weights, u) for u in range(unit, unit + group.size)])
        scores.append((math.sqrt(6 / group.size) * norms / norms.max()).requires_grad_(True))
        unit += group.size
    steps = optimizer(optimizer_name, scores, hyper)

    def masks():
        return [_Choice.apply(s.abs(), k) for s, k in zip(scores, counts, strict=True)]

    for batch in order:
        out = logits(family, weights, examples.x[batch], node_masks=masks())
        steps.zero_grad()
        functional.cross_entropy(out, examples.labels[batch]).backward()
        steps.step()
    return [s.detach() for s in scores], torch.cat([m.detach() for m in masks()]) > 0


#: Score -> what is summed over the entries of a unit, and what becomes of the sum. Of weights before a step, their
#: gradient, weights after it, weights at the start, and the sum so far of weight x gradient.
SCORES_IN_TRAINING = {
    "snip": (lambda before, gradient, after, start, total: (before * gradient).abs(), lambda s: s),
    "taylor": (lambda before, gradient, after, start, total: before * gradient, lambda s: s * s),
    "gradient_norm": (lambda before, gradient, after, start, total: gradient**2, math.sqrt),
    "movement": (lambda before, gradient, after, start, total: (after - start) ** 2, math.sqrt),
    "first_order_movement": (lambda before, gradient, after, start, total: -total, lambda s: s),
}


#: Those that are averaged over batches.
OF_GRADIENTS = ("snip", "taylor", "gradient_norm")


#: Scores of examples of their own.
ON_EXAMPLES = ("grasp", "synflow", "fisher", "apoz", "mean_activation")


class _Seen:
    """Takes the place of node masks: keeps the activations (examples, nodes, ...) that it lets through."""

    def to(self, hidden):
        self.activations = hidden
        return torch.ones(hidden.shape[1], dtype=hidden.dtype)


def score_on_examples(score, family, structure, weights, keep, examples, kind):
    """Scores of every unit of a network without what `keep` removes, on some examples; in float64."""
    leaves = {n: (w.double() * keep[n]).requires_grad_(True) for n, w in weights.items()}
    x, tensors = examples.x.double(), list(leaves.values())

    def by(number, *, again=False):
        return dict(zip(leaves, torch.autograd.grad(number, tensors, create_graph=again), strict=True))

    if score in ("apoz", "mean_activation"):
        seen = [_Seen() for _ in structure.groups]
        logits(family, leaves, x, node_masks=seen)
        of = (lambda a: (a != 0).double()) if score == "apoz" else torch.abs
        return [v for each in seen for v in of(each.activations).transpose(0, 1).flatten(1).mean(dim=1).tolist()]
    if score == "grasp":
        loss = functional.cross_entropy(logits(family, leaves, x) / 200, examples.labels)
        flow = sum((g * keep[n]).square().sum() for n, g in by(loss, again=True).items()) / 2
        entries = {n: leaves[n] * g for n, g in by(flow).items()}
    elif score == "fisher":
        entries = {n: torch.zeros_like(w) for n, w in leaves.items()}
        for i in range(len(x)):
            loss = functional.cross_entropy(logits(family, leaves, x[i : i + 1]), examples.labels[i : i + 1])
            for n, g in by(loss).items():
                entries[n] += (leaves[n] * g) ** 2 / 2 / len(x)
    else:
        leaves = {n: w.detach().abs() * (w.dim() > 1) for n, w in leaves.items()}
        tensors = [w.requires_grad_(True) for w in leaves.values()]
        entries = {n: leaves[n] * g for n, g in by(logits(family, leaves, torch.ones_like(x[:1])).sum()).items()}
    entries = {n: e.detach() for n, e in entries.items()}
    if kind == "weight":
        return [s for t in structure.prunable for s in entries[t.name].flatten().tolist()]
    return [
        sum(float(along(entries[n], dim, place).sum()) for n, dim, places in unit for place in places)
        for unit in owned(structure)
    ]


def train_gradually(
    family, structure, weights, examples, order, *, optimizer_name, hyper, score, kind, counts_at, n_batches, probe
):
    """Weights and kept units (nodes, or prunable weights by number) after one step on each row of `order`.

    Args:
        family: which parent.
        structure: of it.
        weights: name -> initial tensor.
        examples: training examples.
        order: (steps, batch) indices.
        optimizer_name: 'adam' or 'sgd'.
        hyper: of the optimiser.
        score: one of `SCORES_IN_TRAINING` or `ON_EXAMPLES`.
        kind: 'node' or 'weight'.
        counts_at: step -> survivors of each section after it, or None if no update is due.
        n_batches: before an update whose scores are averaged, of those since the one before.
        probe: examples that `ON_EXAMPLES` are of.
    """

    def scores_of(*given):
        """Of every unit."""
        entries = {n: of_entry(*(each[n] for each in given)) * keep[n] for n in leaves}
        if kind == "weight":
            return [of_sum(s) for name in prunable for s in entries[name].flatten().tolist()]
        return [
            of_sum(sum(float(along(entries[n], dim, place).sum()) for n, dim, places in unit for place in places))
            for unit in owned(structure)
        ]

    of_entry, of_sum = SCORES_IN_TRAINING.get(score, (None, None))
    leaves = {n: w.clone().requires_grad_(True) for n, w in weights.items()}
    steps = optimizer(optimizer_name, list(leaves.values()), hyper)
    start = {n: w.double() for n, w in weights.items()}
    total = {n: torch.zeros_like(w) for n, w in start.items()}
    keep = {n: torch.ones_like(w) for n, w in weights.items()}
    prunable = [t.name for t in structure.prunable]
    sizes = [len(owned(structure))] if kind == "node" else [weights[n].numel() for n in prunable]
    kept, seen = set(range(sum(sizes))), []
    for step, batch in enumerate(order):
        before = {n: leaf.detach().double() for n, leaf in leaves.items()}
        found = {n: g * keep[n] for n, g in gradients(family, leaves, examples, batch, hyper).items()}
        for name, leaf in leaves.items():
            leaf.grad = found[name].clone()
            total[name] += before[name] * found[name]
        steps.step()
        counts = counts_at(step)
        if counts is not None and score in ON_EXAMPLES:
            there = {n: leaf.detach() for n, leaf in leaves.items()}
            seen.append(score_on_examples(score, family, structure, there, keep, probe, kind))
        elif counts is not None or score in OF_GRADIENTS:
            after = {n: leaf.detach().double() for n, leaf in leaves.items()}
            seen.append(scores_of(before, {n: g.double() for n, g in found.items()}, after, start, total))
        if counts is None:
            continue
        means = [sum(each) for each in zip(*seen[-n_batches:], strict=True)] if score in OF_GRADIENTS else seen[-1]
        scores, seen = [s if u in kept else -math.inf for u, s in enumerate(means)], []
        if kind == "node":
            kept = best_units(structure, scores, counts)
            ones = {n: torch.ones_like(w) for n, w in weights.items()}
            keep = without(structure, ones, [u for u in range(len(scores)) if u not in kept])
        else:
            kept, first = set(), 0
            for name, size, k in zip(prunable, sizes, counts, strict=True):
                chosen = best(scores[first : first + size], k)
                keep[name] = torch.tensor([float(i in chosen) for i in range(size)]).view_as(keep[name])
                kept |= {first + i for i in chosen}
                first += size
        for name, leaf in leaves.items():
            slots = [s for s in steps.state[leaf].values() if s is not None and s.shape == leaf.shape]
            for state in (leaf.data, *slots, start[name], total[name]):
                state.mul_(keep[name])
    return {n: w.detach() for n, w in leaves.items()}, kept
