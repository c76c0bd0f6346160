"""Masks that change in training: exact counts, nothing revived, and every lane as if it were alone."""

import itertools
from dataclasses import replace
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import draw, remains, split_sections
from sparsefront.spaces.patterns import parse_pattern, pattern_counts, random_masks, select
from sparsefront.spaces.schedules import cubic, drop_fraction
from sparsefront.spaces.seeds import generator, philox_key, raw_rows
from sparsefront.spaces.structure import Structure, Tensor
from sparsefront.trainables import pack as pack_module
from sparsefront.trainables import select as selection
from sparsefront.trainables.gradients import forward
from sparsefront.trainables.lanes import Layout, dense_lanes, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.mask_updates import UPDATES, Nodes, UpdateSettings, full_size_lanes, sections_of
from sparsefront.trainables.mask_updates.contract import gather, scatter
from sparsefront.trainables.mask_updates.node_rewiring import NodeRewiring
from sparsefront.trainables.models import initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Feed, Pack, Schedule, batch_order
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.pruning import in_training as in_training_module
from sparsefront.trainables.pruning.in_training import ScoreInTraining
from tests.oracles import dynamic as oracle
from tests.oracles.networks import small_model
from tests.oracles.spaces import is_of_pattern

STEPS, BATCH = 50, 32
SCHEDULE = Schedule("adam", steps=STEPS, batch_size=BATCH, eval_every=20)
HYPER = Hyperparameters(lr=0.01, momentum=0.9, weight_decay=0.01)
#: The contract: losses within 1e-4 after 50 steps in float32 on a CPU.
TOLERANCE = 1e-4
SPARSITY = 0.7
OPTIMIZERS = ["adam", "sgd"]
#: Every rule under every sort of pattern, nodes among them; of the layers of `mlp` none is divisible by N:M or blocks.
RULES = [(kind, pattern) for kind in UPDATES for pattern in ("unstructured", "2:4", "3x2", "node")]
every_rule = pytest.mark.parametrize(("kind", "pattern"), RULES)


@pytest.fixture(scope="module")
def order(examples):
    return torch.from_numpy(batch_order(len(examples[0]), BATCH, STEPS, generator(1, "order")))


@pytest.fixture(scope="module")
def model():
    return small_model("mlp")


def weights_of(model, seed=2):
    return initial_weights(model.structure, "torch", generator(seed, "pack"))


def sparsity_of(pattern, sparsity=SPARSITY):
    """That of the pattern, if it has its own."""
    density = parse_pattern(pattern).density
    return sparsity if density is None else 1 - density


def kind_of(pattern):
    return parse_pattern(pattern).kind


def final_counts(structure, pattern="unstructured"):
    """Survivors of each layer when training ends."""
    if pattern == "node":
        return kept_counts(structure, "node", SPARSITY, "uniform")
    return pattern_counts(pattern, structure, kept_counts(structure, "weight", sparsity_of(pattern), "erk"))


def kept_at(structure, pattern, sparsity, allocation="erk"):
    """How many units each group keeps when the network has this sparsity."""
    if pattern == "node":
        return kept_counts(structure, "node", sparsity, "uniform")
    counts = kept_counts(structure, "weight", sparsity, allocation)
    return parse_pattern(pattern).on_the_way(1 - sparsity).kept(structure, counts)


def masks_of(model, numbers, pattern="unstructured"):
    counts = final_counts(model.structure, pattern)
    every = random_masks(pattern, model.structure, counts, philox_key(1, "mask"), start=0, stop=max(numbers) + 1)
    return every[list(numbers)]


def lanes_of(model, kind, numbers, pattern="unstructured"):
    """One lane for each number; those that begin dense differ by their weights, the others by their masks."""
    if UPDATES[kind].starts_dense:
        return dense_lanes(model.structure, [weights_of(model, seed) for seed in numbers], torch.device("cpu"))
    parent = {n: torch.from_numpy(w) for n, w in weights_of(model).items()}
    make = full_size_lanes if pattern == "node" else weight_masked_lanes
    return make(model.structure, parent, masks_of(model, numbers, pattern))


def trained_row(model, weights):
    """The trained weights of one network in the order of a lane: (P,)."""
    layout = Layout.of(model.structure)
    return layout.flatten({n: torch.from_numpy(w)[None] for n, w in weights.items()})[0, : layout.trained_width]


def settings_of(model, numbers, pattern="unstructured", **options):
    structure = model.structure
    options = {"steps": STEPS, "sparsity": sparsity_of(pattern), "seed": 3, "every": 4} | options
    if pattern == "node":
        own = {"nodes": Nodes(structure, Layout.of(structure)), "initial": trained_row(model, weights_of(model))}
        options = own | options
    return UpdateSettings(
        sections_of(structure, Layout.of(structure), pattern),
        lanes=tuple((1, 100 + i) for i in numbers),
        counts=options.pop("counts", lambda s: kept_at(structure, pattern, s)),
        **options,
    )


def run(model, kind, examples, order, *, numbers=(0, 1, 2), schedule=SCHEDULE, hyper=HYPER, updates=None, **more):
    """Results by the number that a lane was made from."""
    pattern = more.pop("pattern", "unstructured")
    lanes = more.pop("lanes", None) or lanes_of(model, kind, numbers, pattern)
    options = more.pop("options", {})
    if score := more.pop("score", None):
        options = {**options, "score": in_training(score, model, lanes, numbers, examples[0], pattern)}
    updates = updates or UPDATES[kind].make(settings_of(model, numbers, pattern, **options))
    hyper = [hyper] * len(lanes) if isinstance(hyper, Hyperparameters) else hyper
    train, validation = examples
    pack = Pack(model, lanes, hyper, schedule, data=Feed(train, validation, order), updates=updates, **more)
    return {numbers[r.lane]: r for ended in pack.run() for r in ended}


def probe_of(train, number):
    """The examples that masks of a lane are scored on: others for every lane."""
    return train.select(torch.from_numpy(generator(9, "probe", number).permutation(len(train))[:60]))


def in_training(score, model, lanes, numbers, train, pattern="unstructured"):
    """A ranking for a pack of these lanes."""
    keys, probes = [philox_key(9, "rank", i) for i in numbers], [probe_of(train, i) for i in numbers]
    return ScoreInTraining(score, model, lanes, kind_of(pattern), keys, probes)


def assert_same(a, b):
    assert (a.outcome, a.steps, a.curve_step) == (b.outcome, b.steps, b.curve_step)
    assert torch.equal(a.mask, b.mask)
    assert a.mask_overlap == b.mask_overlap
    assert a.exploration_rate == b.exploration_rate
    np.testing.assert_allclose(a.curve_val_loss, b.curve_val_loss, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(a.parameters, b.parameters, rtol=0, atol=TOLERANCE)


class Watched:
    """Updates that note what every step leaves: masks, counts and weights; nothing masked is anything but zero."""

    def __init__(self, updates):
        self._updates = updates
        self.counts, self.masks, self.weights, self.changed = [], [], [], []

    def __getattr__(self, name):
        return getattr(self._updates, name)

    def step(self, step, flat, keep, gradient, optimizer):
        changed = self._updates.step(step, flat, keep, gradient, optimizer)
        assert set(keep.unique().tolist()) <= {0.0, 1.0}
        slots = {} if "popup_score" in self._updates.slots() else optimizer.slots()  # its optimiser has the scores'
        for state in (flat, *slots.values()):
            assert not state[keep == 0].any()
        masks = self.settings.kept(keep)
        again = torch.ones_like(keep)
        self.settings.write(masks, again)
        assert torch.equal(again, keep)
        self.counts.append([part.sum(dim=1).tolist() for part in torch.split(masks, self.settings.sizes, dim=1)])
        self.masks.append(masks)
        self.weights.append(gather(self.settings.sections, keep) > 0)
        self.changed.append(changed)
        return changed


def assert_nothing_masked(settings, result):
    """What the last mask removes is zero."""
    trained = result.parameters[None]
    keep = torch.ones_like(trained)
    settings.write(result.mask[None], keep)
    assert not trained[keep == 0].any()


def every_mask(watched):
    """The masks of all lanes after each change."""
    return [m for masks, changed in zip(watched.masks, watched.changed, strict=True) if changed for m in masks.numpy()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_rule
def test_counts_are_exact_after_every_step_and_nothing_masked_comes_back(
    kind, pattern, optimizer, model, examples, order
):
    settings = settings_of(model, (0, 1, 2), pattern)
    watched = Watched(UPDATES[kind].make(settings))
    hyper = replace(HYPER, lr={"adam": 0.01, "sgd": 0.1}[optimizer], weight_decay=0.1)
    if (kind, pattern) == ("edge_popup", "node"):  # a score stands for many weights, and few steps move it past another
        hyper = replace(hyper, lr=0.05 if optimizer == "adam" else 0.3)
    results = run(
        model,
        kind,
        examples,
        order,
        pattern=pattern,
        schedule=replace(SCHEDULE, optimizer=optimizer),
        hyper=hyper,
        updates=watched,
    )
    final = [[k] * 3 for k in final_counts(model.structure, pattern)]
    assert len(watched.counts) == STEPS
    assert watched.counts[-1] == final
    if kind != "gradual":
        assert all(counts == final for counts in watched.counts)
        assert all(is_of_pattern(parse_pattern(pattern), model.structure, m) for m in every_mask(watched))
    for lane, result in results.items():
        assert_nothing_masked(settings, result)
        assert torch.equal(result.mask, watched.masks[-1][lane])
        ever = torch.stack(watched.weights)[:, lane].any(dim=0)
        first = watched.weights[0][lane]
        if kind == "gradual":
            assert result.exploration_rate == 1
            assert result.mask_overlap == pytest.approx(result.mask.double().mean().item())
        else:
            assert result.exploration_rate >= ever.double().mean().item()
            assert result.exploration_rate > first.double().mean().item()
            assert 0 < result.mask_overlap < 1


@every_rule
def test_packed_is_alone(kind, pattern, model, examples, order):
    together = run(model, kind, examples, order, numbers=(0, 1, 2), pattern=pattern)
    for i in together:
        assert_same(together[i], run(model, kind, examples, order, numbers=(i,), pattern=pattern)[i])


@pytest.mark.parametrize("recording_steps", [0, 10**6])
@every_rule
def test_lanes_that_leave_change_nothing_for_those_that_stay(
    kind, pattern, recording_steps, model, examples, order, monkeypatch
):
    """Who leaves is cut out if that is worth a recording, and is left behind as zeros if not."""
    expected = run(model, kind, examples, order, numbers=(0, 1, 2), pattern=pattern)
    monkeypatch.setattr(pack_module, "_RECORDING_STEPS", recording_steps)
    lanes = lanes_of(model, kind, (3, 0, 4, 1, 2), pattern)
    lanes.flat[2, 0] = torch.nan
    found = run(
        model,
        kind,
        examples,
        order,
        numbers=(3, 0, 4, 1, 2),
        lanes=lanes,
        pattern=pattern,
        stop_rule=lambda step, *_: {0: 0} if step == 40 else {},
    )
    assert [(found[i].outcome, found[i].steps) for i in (3, 4)] == [("stopped", 40), ("diverged", 20)]
    assert int(found[3].mask.sum()) >= sum(final_counts(model.structure, pattern))
    for i in expected:
        assert_same(found[i], expected[i])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_rule
def test_training_goes_on_where_it_ended(kind, pattern, optimizer, model, examples, order):
    """Bit for bit, from what a lane's result holds."""
    again = partial(run, model, kind, examples, order, pattern=pattern)
    schedule = replace(SCHEDULE, optimizer=optimizer)
    whole = again(schedule=schedule)
    first = again(schedule=replace(schedule, steps=20))
    names = first[0].slots
    slots = {name: torch.stack([first[i].slots[name] for i in first]) for name in names}
    lanes = replace(lanes_of(model, kind, (0, 1, 2), pattern), flat=torch.stack([first[i].parameters for i in first]))
    second = again(schedule=schedule, lanes=lanes, start_step=20, slots=slots)
    for i, result in second.items():
        assert torch.equal(result.parameters, whole[i].parameters)
        assert torch.equal(result.mask, whole[i].mask)
        assert result.mask_overlap == whole[i].mask_overlap
        assert result.exploration_rate == whole[i].exploration_rate
        assert result.curve_val_loss == whole[i].curve_val_loss[1:]


@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_lanes_may_differ_in_the_counts_of_their_layers(kind, model, examples, order):
    """Masks of a global count: every lane keeps those that it came with."""
    structure, numbers = model.structure, (0, 1, 2)
    counts = kept_counts(structure, "weight", SPARSITY, "global")
    masks = draw(structure.section_sizes("weight"), counts, philox_key(1, "mask"), start=0, stop=3)
    parent = {n: torch.from_numpy(w) for n, w in weights_of(model).items()}
    lanes = weight_masked_lanes(structure, parent, masks)
    together = run(model, kind, examples, order, lanes=lanes)
    for i in numbers:
        alone = run(model, kind, examples, order, numbers=(i,), lanes=lanes.select([i]))
        assert_same(together[i], alone[i])
        assert together[i].mask_overlap < 1
        parts = zip(
            *(split_sections(structure, "weight", m) for m in (masks[i], together[i].mask.numpy())), strict=True
        )
        for before, after in parts:
            assert before.sum() == after.sum()


@pytest.mark.parametrize("family", ["conv1d", "hourglass", "residual_mlp"])
@every_rule
def test_every_family_keeps_its_counts_and_what_is_not_trained(kind, pattern, family, examples, order):
    model = small_model(family)
    structure, layout = model.structure, Layout.of(model.structure)
    lanes = lanes_of(model, kind, (0, 1, 2), pattern)
    schedule = replace(SCHEDULE, eval_every=50)
    results = run(model, kind, examples, order, lanes=lanes, pattern=pattern, schedule=schedule)
    for i, result in results.items():
        parts = split_sections(structure, kind_of(pattern), result.mask.numpy())
        assert tuple(int(part.sum()) for part in parts) == final_counts(structure, pattern)
        assert is_of_pattern(parse_pattern(pattern), structure, result.mask.numpy())
        assert torch.equal(result.parameters[layout.trained_width :], lanes.flat[i, layout.trained_width :])
        left = 1 - remains(structure, kind_of(pattern), result.mask.numpy()).weight_sparsity
        assert result.exploration_rate > 0.99 * left
        assert_nothing_masked(settings_of(model, (0,), pattern), result)


# Against plain PyTorch.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_rewiring_is_what_plain_torch_makes_of_it(kind, optimizer, model, examples, order):
    numbers, structure = (0, 1, 2), model.structure
    hyper = [
        Hyperparameters(lr=0.01),
        Hyperparameters(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
        Hyperparameters(lr=0.005, label_smoothing=0.2),
    ]
    results = run(model, kind, examples, order, schedule=replace(SCHEDULE, optimizer=optimizer), hyper=hyper)
    settings = settings_of(model, numbers)
    decay = "cosine" if kind == "rigl" else "constant"

    def fraction_at(step):
        due = step > 0 and step % settings.every == 0
        return drop_fraction(step, fraction=0.3, end=settings.end, kind=decay) if due else 0.0

    for i, mask in zip(numbers, masks_of(model, numbers), strict=True):

        def words_at(step, lane=settings.lanes[i]):
            width = sum(structure.section_sizes("weight"))
            words = raw_rows(philox_key(3, "updates", *lane, step), start=0, stop=1, width=width) >> 8
            parts = split_sections(structure, "weight", words[0])
            return {t.name: part.tolist() for t, part in zip(structure.prunable, parts, strict=True)}

        keep = {
            t.name: torch.from_numpy(part).float().view(t.shape)
            for t, part in zip(structure.prunable, split_sections(structure, "weight", mask), strict=True)
        }
        trained, last = oracle.train(
            "mlp",
            {n: torch.from_numpy(w) for n, w in weights_of(model).items()},
            keep,
            examples[0],
            order,
            optimizer_name=optimizer,
            hyper=hyper[i],
            fraction_at=fraction_at,
            words_at=None if kind == "rigl" else words_at,
        )
        assert torch.equal(results[i].mask, torch.cat([last[t.name].flatten() for t in structure.prunable]) > 0)
        for name, view in Layout.of(structure).views(results[i].parameters[None]).items():
            torch.testing.assert_close(view[0], trained[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_edge_popup_is_what_plain_torch_makes_of_it(optimizer, model, examples, order):
    """Scores trained by autograd through a choice whose gradient is the identity."""
    structure = model.structure
    hyper = Hyperparameters(lr=0.05, weight_decay=0.01)
    results = run(model, "edge_popup", examples, order, schedule=replace(SCHEDULE, optimizer=optimizer), hyper=hyper)
    counts = kept_counts(structure, "weight", SPARSITY, "erk")
    for i, result in results.items():
        weights = {n: torch.from_numpy(w) for n, w in weights_of(model, i).items()}
        scores, masks = oracle.train_scores(
            "mlp",
            weights,
            dict(zip((t.name for t in structure.prunable), counts, strict=True)),
            examples[0],
            order,
            optimizer_name=optimizer,
            hyper=hyper,
        )
        assert torch.equal(result.mask, torch.cat([masks[t.name].flatten() for t in structure.prunable]) > 0)
        found = Layout.of(structure).views(result.slots["popup_score"][None])
        for name, score in scores.items():
            torch.testing.assert_close(found[name][0], score, rtol=0, atol=TOLERANCE)


# Nodes.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["gradual", "set", "rigl"])
@pytest.mark.parametrize("family", ["mlp", "residual_mlp", "conv1d"])
def test_nodes_change_as_plain_torch_makes_them_change(family, kind, optimizer, examples, order):
    model = small_model(family)
    structure, numbers = model.structure, (0, 1)
    hyper = Hyperparameters(lr=0.02, momentum=0.9, weight_decay=0.01)
    order, steps = order[:20], 20
    options = {"steps": steps, "every": 3, "drop_fraction": 0.5, "sparsity": 0.6}
    options["counts"] = lambda s: kept_counts(structure, "node", s, "global" if family == "conv1d" else "uniform")
    settings = settings_of(model, numbers, "node", **options)
    lanes = lanes_of(model, kind, numbers, "node")
    schedule = replace(SCHEDULE, optimizer=optimizer, steps=steps)
    updates = UPDATES[kind].make(settings)
    results = run(
        model, kind, examples, order, numbers=numbers, lanes=lanes, schedule=schedule, hyper=hyper, updates=updates
    )
    groups = [range(a, b) for a, b in itertools.pairwise(itertools.accumulate(settings.sizes, initial=0))]
    for i, mask in zip(numbers, masks_of(model, numbers, "node"), strict=True):
        is_dense = UPDATES[kind].starts_dense
        weights = {n: torch.from_numpy(w) for n, w in weights_of(model, i if is_dense else 2).items()}

        def leaving(step, tensors, kept, gradient_of):
            if step not in (2, 5, 8, 11, 14, 15):
                return None
            sparsity = cubic(step, begin=2, end=15, every=3, final=0.6)
            scores = [oracle.norm(structure, tensors, u) if u in kept else -1.0 for u in range(structure.n_nodes)]
            return oracle.best_units(structure, scores, options["counts"](sparsity))

        def replaced(step, tensors, kept, gradient_of, lane=settings.lanes[i], weights=weights):
            if step % 3 or not 0 < step < 15:
                return None
            fraction = drop_fraction(step, fraction=0.5, end=15, kind="cosine" if kind == "rigl" else "constant")
            away = [u for u in range(structure.n_nodes) if u not in kept]
            if kind == "set":
                words = raw_rows(philox_key(3, "updates", *lane, step), start=0, stop=1, width=structure.n_nodes)
                growth = (words[0] >> 8).tolist()
            else:
                probed = gradient_of(oracle.with_incoming(structure, tensors, away, weights))
                growth = [oracle.norm(structure, probed, u, dims=(1,)) for u in range(structure.n_nodes)]
            left = set(kept)
            for group in groups:
                mine = [u for u in group if u in kept]
                n = min(int(fraction * len(mine) + 1e-9), len(group) - len(mine))
                weakest = sorted(mine, key=lambda u: (oracle.norm(structure, tensors, u), -u))
                left -= set(weakest[:n])
                left |= set(sorted((u for u in group if u in away), key=lambda u: (-growth[u], u))[:n])
            return left

        trained, last = oracle.train_units(
            family,
            structure,
            weights,
            range(structure.n_nodes) if is_dense else np.flatnonzero(mask).tolist(),
            examples[0],
            order,
            optimizer_name=optimizer,
            hyper=hyper,
            update=leaving if kind == "gradual" else replaced,
            takes_step=kind == "rigl",
        )
        assert set(results[i].mask.nonzero()[:, 0].tolist()) == last
        for name, view in Layout.of(structure).views(results[i].parameters[None]).items():
            torch.testing.assert_close(view[0], trained[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("family", ["mlp", "conv1d", "hourglass"])
def test_nodes_leave_as_the_schedule_says_and_none_comes_back(family, allocation, examples, order):
    model = small_model(family)
    structure = model.structure
    options = {"every": 3, "sparsity": 0.6, "counts": lambda s: kept_counts(structure, "node", s, allocation)}
    watched = Watched(UPDATES["gradual"].make(settings_of(model, (0, 1), "node", **options)))
    run(model, "gradual", examples, order, numbers=(0, 1), pattern="node", updates=watched)
    steps = [t for t, changed in enumerate(watched.changed) if changed]
    assert steps == [*range(5, 38, 3), 38]
    for step in steps:
        wanted = kept_counts(structure, "node", cubic(step, begin=5, end=38, every=3, final=0.6), allocation)
        found = watched.counts[step]
        if allocation == "global":
            assert [sum(lane) for lane in zip(*found, strict=True)] == [*wanted] * 2
            assert min(map(min, found)) >= 1
        else:
            assert found == [[k] * 2 for k in wanted]
    for before, after in itertools.pairwise(watched.masks):
        assert not (after & ~before).any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", ["mlp", "residual_mlp", "conv1d"])
def test_edge_popup_of_nodes_is_what_masks_of_activations_make_of_it(family, optimizer, examples, order):
    """Autograd through a choice of activations whose gradient is the identity, of a network that keeps all weights."""
    model = small_model(family)
    structure, n_nodes = model.structure, model.structure.n_nodes
    hyper = Hyperparameters(lr=0.05, weight_decay=0.01)
    schedule = replace(SCHEDULE, optimizer=optimizer)
    lanes = lanes_of(model, "edge_popup", (0, 1), "node")
    updates = UPDATES["edge_popup"].make(settings_of(model, (0, 1), "node"))
    results = run(
        model,
        "edge_popup",
        examples,
        order,
        numbers=(0, 1),
        lanes=lanes,
        schedule=schedule,
        hyper=hyper,
        updates=updates,
    )
    for i, result in results.items():
        weights = {n: torch.from_numpy(w) for n, w in weights_of(model, i).items()}
        scores, mask = oracle.train_unit_scores(
            family,
            structure,
            weights,
            final_counts(structure, "node"),
            examples[0],
            order,
            optimizer_name=optimizer,
            hyper=hyper,
        )
        assert torch.equal(result.mask, mask)
        torch.testing.assert_close(result.slots["popup_score"][:n_nodes], torch.cat(scores), rtol=0, atol=TOLERANCE)
        assert not result.slots["popup_score"][n_nodes:].any()
        kept = oracle.without(structure, weights, (~mask).nonzero()[:, 0].tolist())
        for name, view in Layout.of(structure).views(result.parameters[None]).items():
            assert torch.equal(view[0], kept[name])


@pytest.mark.parametrize("family", ["mlp", "residual_mlp", "conv1d", "hourglass"])
def test_what_comes_in_has_its_initial_incoming_weights_and_changes_no_output(family, examples, order):
    model = small_model(family)
    structure, layout = model.structure, Layout.of(model.structure)
    settings = settings_of(model, (0, 1, 2), "node", drop_fraction=0.5)
    nodes = settings.nodes
    lanes = lanes_of(model, "set", (0, 1, 2), "node")
    flat, keep = lanes.flat.clone(), lanes.keep.clone()
    rewiring = NodeRewiring(settings, nodes, "constant")
    rewiring.count(keep)
    optimizer = Still(flat)
    growth = torch.arange(structure.n_nodes, dtype=torch.float32).expand(3, -1).clone()
    rewiring.rewire(0.5, flat, keep, optimizer, growth)
    before, after = nodes.kept(lanes.keep), nodes.kept(keep)
    grown = after & ~before
    assert torch.equal(before.sum(dim=1), after.sum(dim=1))
    assert grown.any()
    stayed = torch.ones_like(keep)
    nodes.write(before & after, stayed)
    assert torch.equal(optimizer.momentum, 7.0 * stayed)
    torch.testing.assert_close(
        forward(model, layout, flat, examples[0].x),
        forward(model, layout, flat * stayed, examples[0].x),
        rtol=0,
        atol=0,
    )
    initial = {n: torch.from_numpy(w) for n, w in weights_of(model).items()}
    for lane in range(3):
        gone = (~(before & after)[lane]).nonzero()[:, 0].tolist()
        left = oracle.without(structure, {n: v[lane] for n, v in layout.views(lanes.flat).items()}, gone)
        expected = oracle.with_incoming(structure, left, grown[lane].nonzero()[:, 0].tolist(), initial)
        assert all(torch.equal(v[lane], expected[n]) for n, v in layout.views(flat).items())


def test_of_equal_nodes_the_last_leave_first(model):
    """Whatever the rule; and the first of equals come in."""
    width = Layout.of(model.structure).width
    for kind, expected in (("gradual", [0, 1, 2, 3]), ("rigl", [0, 1, 4, 5])):
        settings = settings_of(model, (0,), "node", every=1, begin_fraction=0.0, drop_fraction=0.5, decay="constant")
        updates = UPDATES[kind].make(
            replace(settings, initial=torch.ones(width), end_fraction=0.0 if kind == "gradual" else 1.0)
        )
        flat, keep = torch.ones(1, width), torch.ones(1, width)
        if kind == "rigl":
            mask = torch.zeros(1, 21, dtype=torch.bool)
            mask[:, :4] = mask[:, 12:15] = True
            settings.write(mask, keep)
        updates.start(flat, keep, {})
        step = 0 if kind == "gradual" else 1
        updates.prepare(step, flat, keep)
        assert updates.step(step, flat, keep, torch.ones(1, width), Still(flat))
        assert settings.kept(keep)[0, :12].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("kind", UPDATES)
def test_node_masks_of_a_lane_that_diverged_keep_their_counts(kind, model, examples, order):
    lanes = lanes_of(model, kind, (0, 1, 2), "node")
    lanes.flat[1] = torch.nan
    results = run(model, kind, examples, order, lanes=lanes, pattern="node")
    assert results[1].outcome == "diverged"
    counts = final_counts(model.structure, "node")
    found = [int(part.sum()) for part in split_sections(model.structure, "node", results[1].mask.numpy())]
    if kind == "gradual":  # it had not come to its end
        assert all(a <= b for a, b in zip(counts, found, strict=True))
    else:
        assert tuple(found) == counts
    assert_same(results[0], run(model, kind, examples, order, numbers=(0,), pattern="node")[0])


def test_a_long_lane_that_diverged_is_pruned_as_a_short_one_is(model, examples, order, monkeypatch):
    """Of a count over all sections, a lane of nothing but what is not a number keeps one entry of each."""

    def pruned():
        lanes = lanes_of(model, "gradual", (0, 1, 2))
        lanes.flat[1] = torch.nan
        options = {"counts": lambda sparsity: (sum(kept_at(model.structure, "unstructured", sparsity)),)}
        return run(model, "gradual", examples, order, lanes=lanes, options=options)

    short = pruned()
    assert short[1].outcome == "diverged"
    monkeypatch.setattr(selection, "_MANY", 9)
    monkeypatch.setattr(selection, "_SAMPLED", 16)
    long = pruned()
    assert long[1].outcome == "diverged"
    assert torch.equal(long[1].mask, short[1].mask)
    for number in (0, 2):
        assert_same(long[number], short[number])


def test_nodes_that_come_in_need_the_weights_that_training_began_with(model):
    for kind in ("set", "rigl"):
        with pytest.raises(SpaceError, match=r"initial=None: nodes that come in while a network trains need"):
            UPDATES[kind].make(settings_of(model, (0,), "node", initial=None))


# Patterns.


class Still:
    """An optimiser that moves nothing and knows something of every weight."""

    def __init__(self, flat):
        self.momentum = torch.full_like(flat, 7.0)

    def step(self, flat, gradient):
        pass

    def slots(self):
        return {"momentum": self.momentum}


@st.composite
def patterned(draw_from):
    """A network, a pattern, masks of it, and few distinct weights and gradients, whose sums are exact."""
    sizes = draw_from(st.lists(st.integers(1, 11), min_size=2, max_size=3))
    kernel = draw_from(st.sampled_from([(), (3,)]))
    structure = Structure(
        tuple(Tensor(str(i), (b, a, *kernel), True) for i, (a, b) in enumerate(itertools.pairwise(sizes))), ()
    )
    pattern = draw_from(st.sampled_from(["2:4", "3:4", "1:3", "5:9", "2x3", "3x1", "4x4"]))
    counts = [draw_from(st.integers(1, n)) for n in structure.section_sizes("weight")]
    seed = draw_from(st.integers(0, 2**32 - 1))
    masks = random_masks(pattern, structure, counts, philox_key(seed, "mask"), start=0, stop=3)
    rng = np.random.Generator(np.random.Philox(key=seed))
    numbers = torch.from_numpy(rng.integers(-4, 5, (2, 3, structure.n_weights)) / 4).float()
    return structure, pattern, counts, torch.from_numpy(masks).float(), *numbers


@pytest.mark.parametrize("kind", ["rigl", "set"])
@hypothesis.settings(deadline=None, max_examples=60)
@given(case=patterned(), fraction=st.sampled_from([0.125, 0.25, 0.5, 1.0]))
def test_units_are_replaced_as_one_after_the_other_would_be(kind, case, fraction):
    structure, pattern, _, keep, flat, gradient = case
    sections = sections_of(structure, Layout.of(structure), pattern)
    options = {"decay": "constant", "drop_fraction": fraction, "every": 1, "lanes": ((0, 5), (0, 6), (0, 7)), "seed": 2}
    updates = UPDATES[kind].make(UpdateSettings(sections, 100, **options))
    flat, found = flat * keep, keep.clone()
    expected, before = [], flat.clone()
    words = torch.stack(
        [
            torch.from_numpy(
                (raw_rows(philox_key(2, "updates", 0, lane, 1), start=0, stop=1, width=flat.shape[1])[0] >> 8).astype(
                    np.float64
                )
            )
            for lane in (5, 6, 7)
        ]
    )
    for row in range(3):
        lane = []
        for tensor, section in zip(structure.prunable, sections, strict=True):
            growth = section.of(gradient.abs() if kind == "rigl" else words)[row].tolist()
            rivals = [index.tolist() for index in parse_pattern(pattern).rivals(tensor)]
            norm = (lambda g: sum(x * x for x in g)) if kind == "rigl" else (lambda g: g[0])
            mine = (section.of(each)[row].tolist() for each in (flat, keep))
            lane += oracle.rewire_units(*mine, growth, fraction, rivals, norm)
        expected.append(lane)
    optimizer = Still(flat)
    updates.start(flat, found, {})
    assert updates.step(1, flat, found, gradient.clone(), optimizer)
    assert found.tolist() == expected
    assert torch.equal(flat, before * keep * found)
    assert torch.equal(optimizer.momentum[keep == 1], 7.0 * found[keep == 1])
    for mask in found.numpy() > 0:
        assert is_of_pattern(parse_pattern(pattern), structure, mask)


@hypothesis.settings(deadline=None, max_examples=60)
@given(case=patterned())
def test_the_best_of_a_pattern_are_those_of_spaces(case):
    structure, pattern, wanted, _, scores, _ = case
    rule = parse_pattern(pattern)
    settings = UpdateSettings(sections_of(structure, Layout.of(structure), pattern), 1)
    found = settings.best(scores, torch.tensor(rule.kept(structure, wanted))[:, None])
    assert found.tolist() == [select(pattern, row.numpy(), structure, wanted).tolist() for row in scores]


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "2x4", "3x1"])
def test_gradual_pruning_obeys_its_pattern_on_the_way(pattern, model, examples, order):
    """Whole blocks, as many as the schedule leaves; of every M the n that its density leaves, down to N."""
    structure, rule = model.structure, parse_pattern(pattern)
    settings = settings_of(model, (0, 1, 2), pattern, every=2)
    watched = Watched(UPDATES["gradual"].make(settings))
    run(model, "gradual", examples, order, pattern=pattern, updates=watched)
    steps = [t for t, changed in enumerate(watched.changed) if changed]
    assert steps[-1] == 38
    stages = []
    for step in steps:
        sparsity = cubic(step, begin=5, end=38, every=2, final=settings.sparsity)
        stage = rule.on_the_way(1 - sparsity)
        stages.append(stage)
        assert all(is_of_pattern(stage, structure, mask) for mask in watched.masks[step].numpy())
        counts = pattern_counts(stage, structure, kept_counts(structure, "weight", sparsity, "erk"))
        found = [lanes[0] for lanes in watched.counts[step]]
        assert all(k >= c for k, c in zip(found, counts, strict=True))
        assert sum(found) - sum(counts) <= (0 if rule.density else 3 * 8)  # a block that is needed later stays
    assert found == list(counts) == list(final_counts(structure, pattern))
    if rule.density is not None:
        assert {stage.n for stage in stages} == set(range(rule.n, rule.m + 1))
    for before, after in itertools.pairwise(watched.masks):
        assert not (after & ~before).any()


def test_edge_popup_trains_scores_of_what_is_not_chosen_too(model, examples, order):
    """A weight that its group left out can come in: the choice of every step is within the pattern, not for ever."""
    settings = settings_of(model, (0, 1, 2), "2:4")
    watched = Watched(UPDATES["edge_popup"].make(settings))
    run(model, "edge_popup", examples, order, pattern="2:4", updates=watched)
    assert (watched.masks[-1] & ~watched.masks[0]).any(dim=1).all()


# Each rule's own promises.


@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_a_drop_fraction_of_zero_is_static_training_to_the_last_bit(kind, model, examples, order):
    lanes = lanes_of(model, kind, (0, 1, 2))
    train, validation = examples
    static = Pack(model, lanes, [HYPER] * 3, SCHEDULE, data=Feed(train, validation, order))
    expected = {r.lane: r for ended in static.run() for r in ended}
    found = run(model, kind, examples, order, options={"drop_fraction": 0.0})
    for i, result in found.items():
        assert torch.equal(result.parameters, expected[i].parameters)
        assert result.curve_val_loss == expected[i].curve_val_loss
        assert result.mask_overlap == 1
        assert result.exploration_rate == pytest.approx(result.mask.double().mean().item())
        assert expected[i].mask is expected[i].mask_overlap is expected[i].exploration_rate is None


def test_an_update_of_rigl_takes_the_place_of_the_optimisers_step(model, examples, order):
    """The weights that stay are those of before, and those that are new are zero; SET moves them first."""
    for kind in ("rigl", "set"):
        before = run(model, kind, examples, order, schedule=replace(SCHEDULE, steps=4))[0]
        after = run(model, kind, examples, order, schedule=replace(SCHEDULE, steps=5))[0]
        sections = settings_of(model, (0,)).sections
        old, new = (gather(sections, r.parameters[None])[0] for r in (before, after))
        stayed = before.mask & after.mask
        assert (after.mask & ~before.mask).any()
        assert not new[~stayed].any()
        assert bool((old == new)[stayed].all()) == (kind == "rigl")


def test_set_draws_by_lane_replicate_and_step(model, examples, order):
    def masks(numbers=(0, 0), **options):
        lanes = lanes_of(model, "set", numbers)
        updates = UPDATES["set"].make(replace(settings_of(model, (0, 1)), **options))
        done = run(model, "set", examples, order, numbers=(0, 1), lanes=lanes, updates=updates)
        return done[0].mask, done[1].mask

    first, second = masks()
    assert not torch.equal(first, second)  # the same mask and weights, but lanes of their own
    assert torch.equal(masks()[0], first)
    assert not torch.equal(masks(lanes=((2, 100), (2, 101)))[0], first)
    assert not torch.equal(masks(seed=4)[0], first)


def test_set_grows_every_masked_weight_equally_often(model):
    """Chi-square over the masked weights of one section: 99.9% quantile."""
    section = settings_of(model, (0,)).sections[1]
    n_lanes, n_steps = 40, 25
    settings = replace(settings_of(model, range(n_lanes)), decay="constant", every=1, steps=10**6, drop_fraction=0.5)
    updates = UPDATES["set"].make(settings)
    flat = torch.zeros(n_lanes, Layout.of(model.structure).width)
    keep = torch.ones_like(flat)
    section.of(keep)[:, 30:] = 0
    grown = torch.zeros(section.size - 30)

    updates.start(flat, keep, {})
    for step in range(1, n_steps + 1):
        now = keep.clone()
        updates.step(step, flat, now, torch.zeros_like(flat), Still(flat))
        grown += section.of(now)[:, 30:].sum(dim=0)
    n = n_lanes * n_steps * 15
    assert grown.sum() == n
    expected = n / len(grown)
    # 77 degrees of freedom; draws without replacement vary less than independent ones, so that the bound is generous.
    assert ((grown - expected) ** 2 / expected).sum() < 121.1


def test_what_was_just_dropped_is_not_grown_again(model, examples, order):
    settings = settings_of(model, (0, 1, 2))
    watched = Watched(UPDATES["rigl"].make(settings))
    run(model, "rigl", examples, order, updates=watched)
    n_updates = 0
    for (before, after), changed in zip(itertools.pairwise(watched.masks), watched.changed[1:], strict=True):
        if changed:
            n_updates += 1
            n_gone = (before & ~after).sum(dim=1).tolist()
            fraction = drop_fraction(4 * n_updates, fraction=0.3, end=settings.end)
            counts = kept_counts(model.structure, "weight", SPARSITY, "erk")
            room = [n - k for n, k in zip(settings.sizes, counts, strict=True)]
            assert n_gone == [sum(min(int(fraction * k), r) for k, r in zip(counts, room, strict=True))] * 3
        else:
            assert torch.equal(before, after)
    assert n_updates == 9  # every 4 steps below 38, three quarters of 50


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_gradual_pruning_only_removes_and_ends_at_the_exact_counts(allocation, model, examples, order):
    structure = model.structure
    settings = settings_of(
        model, (0, 1, 2), counts=lambda s: kept_counts(structure, "weight", s, allocation), sparsity=0.9, every=3
    )
    watched = Watched(UPDATES["gradual"].make(settings))
    run(model, "gradual", examples, order, updates=watched)
    for before, after in itertools.pairwise(watched.masks):
        assert not (after & ~before).any()
    assert watched.masks[4].all()  # dense for the first tenth
    assert [t for t, changed in enumerate(watched.changed) if changed] == [*range(5, 38, 3), 38]
    counts = kept_counts(structure, "weight", 0.9, allocation)
    found = [sum(lane) for lane in zip(*watched.counts[38], strict=True)]
    assert found == [sum(counts)] * 3
    if len(counts) > 1:
        assert watched.counts[38] == [[k] * 3 for k in counts]
    assert min(min(section) for section in watched.counts[38]) >= 1


def test_counts_that_rise_by_one_on_the_way_grow_nothing(model, examples, order):
    sizes = model.structure.section_sizes("weight")

    def counts(sparsity):
        most, *rest = (max(1, round((1 - sparsity) * n)) for n in sizes)
        return most, *rest[:-1], rest[-1] + (sparsity > 0.5)

    settings = settings_of(model, (0, 1, 2), counts=counts, sparsity=0.8, every=3)
    watched = Watched(UPDATES["gradual"].make(settings))
    run(model, "gradual", examples, order, updates=watched)
    for before, after in itertools.pairwise(watched.masks):
        assert not (after & ~before).any()
    assert watched.counts[-1] == [[k] * 3 for k in counts(0.8)]


#: Scores by which masks that change are ranked, under every sort of pattern; N:M, where sums decide nothing, once.
RANKINGS = [
    (score, pattern)
    for score, row in SCORES.items()
    for pattern in ("unstructured", "3x2", "node", *(["2:4"] if score in ("snip", "grasp") else []))
    if kind_of(pattern) in row.kinds
]
every_ranking = pytest.mark.parametrize(("score", "pattern"), RANKINGS)


@every_ranking
def test_every_score_ranks_in_training_and_no_lane_knows_of_another(
    score, pattern, model, examples, order, monkeypatch
):
    """Exact counts, alone as in company, and unmoved by lanes that leave."""
    ranked = partial(run, model, "gradual", examples, order, pattern=pattern, score=score)
    together = ranked()
    for result in together.values():
        parts = split_sections(model.structure, kind_of(pattern), result.mask.numpy())
        assert tuple(int(part.sum()) for part in parts) == final_counts(model.structure, pattern)
        assert is_of_pattern(parse_pattern(pattern), model.structure, result.mask.numpy())
        assert_nothing_masked(settings_of(model, (0,), pattern), result)
    assert_same(together[1], ranked(numbers=(1,))[1])
    monkeypatch.setattr(pack_module, "_RECORDING_STEPS", 0)
    lanes = lanes_of(model, "gradual", (3, 0, 4, 1, 2), pattern)
    lanes.flat[2, 0] = torch.nan
    stop = {"stop_rule": lambda step, *_: {0: 0} if step == 40 else {}}
    found = ranked(numbers=(3, 0, 4, 1, 2), lanes=lanes, **stop)
    assert [(found[i].outcome, found[i].steps) for i in (3, 4)] == [("stopped", 40), ("diverged", 20)]
    for i in together:
        assert_same(found[i], together[i])


@every_ranking
def test_a_ranking_goes_on_where_it_ended(score, pattern, model, examples, order):
    """Bit for bit: what it adds up is among the slots of a lane, of which a score of its own examples has none."""
    again = partial(run, model, "gradual", examples, order, pattern=pattern, score=score)
    whole, first = again(), again(schedule=replace(SCHEDULE, steps=20))
    slots = {name: torch.stack([first[i].slots[name] for i in first]) for name in first[0].slots}
    if SCORES[score].reads_examples_in_training:
        assert slots.keys() == {"first", "second", "keep", "first_keep", "ever_kept"}
    flat = torch.stack([first[i].parameters for i in first])
    lanes = replace(lanes_of(model, "gradual", (0, 1, 2), pattern), flat=flat)
    for i, result in again(lanes=lanes, start_step=20, slots=slots).items():
        assert torch.equal(result.parameters, whole[i].parameters)
        assert torch.equal(result.mask, whole[i].mask)


@pytest.mark.parametrize(("family", "optimizer"), [("mlp", "adam"), ("conv1d", "sgd")])
@pytest.mark.parametrize("kind", ["weight", "node"])
@pytest.mark.parametrize("score", [*oracle.SCORES_IN_TRAINING, *oracle.ON_EXAMPLES])
def test_rankings_are_what_plain_torch_makes_of_them(family, score, kind, optimizer, examples, order, monkeypatch):
    monkeypatch.setattr(in_training_module, "_BATCHES", 2)  # of the three between updates
    if kind not in SCORES[score].kinds:
        return
    model = small_model(family)
    structure, numbers, order, steps = model.structure, (0, 1), order[:20], 20
    pattern = "node" if kind == "node" else "unstructured"
    options = {"steps": steps, "every": 3, "sparsity": 0.6}
    options["counts"] = lambda s: kept_counts(structure, kind, s, "uniform")
    hyper = Hyperparameters(lr=0.02, momentum=0.9, weight_decay=0.01)
    schedule = replace(SCHEDULE, optimizer=optimizer, steps=steps)
    results = run(
        model,
        "gradual",
        examples,
        order,
        numbers=numbers,
        schedule=schedule,
        hyper=hyper,
        pattern=pattern,
        options=options,
        score=score,
    )

    def counts_at(step):
        if step not in (2, 5, 8, 11, 14, 15):
            return None
        return options["counts"](cubic(step, begin=2, end=15, every=3, final=0.6))

    for i in numbers[1:]:
        trained, kept = oracle.train_gradually(
            family,
            structure,
            {n: torch.from_numpy(w) for n, w in weights_of(model, i).items()},
            examples[0],
            order,
            optimizer_name=optimizer,
            hyper=hyper,
            score=score,
            kind=kind,
            counts_at=counts_at,
            n_batches=2,
            probe=probe_of(examples[0], i),
        )
        assert set(results[i].mask.nonzero()[:, 0].tolist()) == kept
        for name, view in Layout.of(structure).views(results[i].parameters[None]).items():
            torch.testing.assert_close(view[0], trained[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pattern", ["unstructured", "node"])
def test_a_random_ranking_ends_at_the_mask_that_is_drawn_under_its_key(pattern, model, examples, order):
    found = run(model, "gradual", examples, order, pattern=pattern, score="random")
    sizes = model.structure.section_sizes(kind_of(pattern))
    for i, result in found.items():
        key = philox_key(9, "rank", i)
        drawn = draw(sizes, final_counts(model.structure, pattern), key, start=0, stop=1)
        assert result.mask.tolist() == drawn[0].tolist()


def test_what_a_ranking_lacks_is_said(model, examples):
    lanes = lanes_of(model, "gradual", (0, 1))
    with pytest.raises(SpaceError, match=r"probes: 1 are given; score='grasp' ranks .*: one set for each of 2 lanes"):
        ScoreInTraining("grasp", model, lanes, "weight", probes=[examples[0]])
    with pytest.raises(SpaceError, match=r"mask kind='weight': this score .* is of node masks only"):
        ScoreInTraining("apoz", model, lanes, "weight", probes=[examples[0]] * 2)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_the_sparsity_of_gradual_pruning_rises_by_its_power(power, model, examples, order):
    structure = model.structure
    settings = settings_of(
        model, (0, 1, 2), counts=lambda s: kept_counts(structure, "weight", s, "uniform"), every=3, power=power
    )
    watched = Watched(UPDATES["gradual"].make(settings))
    run(model, "gradual", examples, order, updates=watched)
    for step in (5, 11, 20):
        done = (step - 5) / (38 - 5)
        wanted = kept_counts(structure, "weight", SPARSITY * (1 - (1 - done) ** power), "uniform")
        assert watched.counts[step] == [[k] * 3 for k in wanted]


@pytest.mark.parametrize("kind", ["set", "rigl"])
def test_no_connection_is_replaced_before_the_updates_begin(kind, model, examples, order):
    settings = settings_of(model, (0, 1, 2), begin_fraction=0.3)
    watched = Watched(UPDATES[kind].make(settings))
    run(model, kind, examples, order, updates=watched)
    assert [t for t, changed in enumerate(watched.changed) if changed] == [16, 20, 24, 28, 32, 36]  # 15 is the first
    assert watched.n_skipped(STEPS) == (6 if kind == "rigl" else 0)


def test_edge_popup_leaves_every_weight_as_it_was_drawn(model, examples, order):
    lanes = lanes_of(model, "edge_popup", (0, 1, 2))
    settings = settings_of(model, (0, 1, 2))
    results = run(model, "edge_popup", examples, order, hyper=replace(HYPER, weight_decay=0.1))
    for i, result in results.items():
        keep = torch.ones_like(result.parameters)[None]
        scatter(settings.sections, result.mask[None].float(), keep)
        assert torch.equal(result.parameters, lanes.flat[i] * keep[0])
        assert torch.equal(result.slots["drawn"], lanes.flat[i])
        assert result.val_loss < result.curve_val_loss[0] < 1.45  # it learns all the same


# Settings.


def test_about_forty_updates_unless_the_interval_is_given(model):
    settings = replace(settings_of(model, (0,)), steps=1500, every=None)
    rigl = UPDATES["rigl"].make(settings)
    assert rigl.n_skipped(1500) == 40
    assert rigl.n_skipped(29) == 1  # every 28 steps, not at the first
    gradual = UPDATES["gradual"].make(settings)
    assert 38 <= len(gradual._counts) <= 42
    assert min(gradual._counts) == 150
    assert max(gradual._counts) == 1125


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("pattern", ["unstructured", "node"])
def test_trainings_of_a_few_steps_end_at_the_exact_counts(kind, pattern, steps, model, examples, order):
    schedule, options = replace(SCHEDULE, steps=steps), {"steps": steps, "every": None}
    results = run(model, kind, examples, order, pattern=pattern, schedule=schedule, options=options)
    for result in results.values():
        assert result.mask.sum() == sum(final_counts(model.structure, pattern))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": 0}, r"steps=50, every=0: mask updates need both to be at least 1"),
        ({"steps": 0}, r"steps=0, every=4: mask updates need"),
        (
            {"end_fraction": 1.5},
            r"begin_fraction=None, end_fraction=1.5 of mask updates: shares of the training's steps",
        ),
        ({"begin_fraction": 0.8}, r"begin_fraction=0.8, end_fraction=0.75 of mask updates"),
    ],
)
def test_settings_that_no_training_can_follow_are_refused(wrong, message, model):
    with pytest.raises(SpaceError, match=message):
        settings_of(model, (0,), **wrong)


@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_a_drop_fraction_that_cannot_be_is_refused_before_training(kind, model):
    with pytest.raises(SpaceError, match=r"fraction=1.5 of connections to drop: must lie in \[0, 1\]"):
        UPDATES[kind].make(settings_of(model, (0,), drop_fraction=1.5))


@pytest.mark.parametrize("kind", ["gradual", "edge_popup"])
def test_rules_that_decide_the_counts_need_them(kind, model):
    with pytest.raises(SpaceError, match=r"counts=None: .* needs the survivors of each section at a sparsity"):
        UPDATES[kind].make(replace(settings_of(model, (0,)), counts=None))


def test_set_needs_a_number_for_each_lane(model, examples, order):
    updates = UPDATES["set"].make(settings_of(model, (0, 1)))
    with pytest.raises(
        SpaceError, match=r"lanes=\[\(1, 100\), \(1, 101\)\]: one \(replicate, number\) for each of the 3"
    ):
        run(model, "set", examples, order, updates=updates)


def test_compacted_lanes_are_refused(model):
    nodes = np.zeros((1, model.structure.n_nodes), dtype=bool)
    nodes[:, ::2] = True
    parent = {n: torch.from_numpy(w) for n, w in weights_of(model).items()}
    layout = node_masked_lanes(model.structure, parent, nodes).layout
    with pytest.raises(
        SpaceError, match=r"shape=\(6, 15\) of 'layers.0.weight': .* the parent's own shapes, not compact ones"
    ):
        sections_of(model.structure, layout)


def test_sections_are_the_weight_mask_in_its_order(model):
    structure = model.structure
    sections = sections_of(structure, Layout.of(structure))
    assert tuple(s.size for s in sections) == structure.section_sizes("weight")
    flat = torch.arange(Layout.of(structure).width, dtype=torch.float32)[None]
    views = Layout.of(structure).views(flat)
    expected = torch.cat([views[t.name].flatten(1) for t in structure.prunable], dim=1)
    assert torch.equal(gather(sections, flat), expected)
    back = torch.zeros_like(flat)
    scatter(sections, expected, back)
    assert torch.equal(gather(sections, back), expected)
    assert [s.fan_in for s in sections] == [15, 12, 9]
