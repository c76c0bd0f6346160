"""Packs: a lane's losses do not depend on the pack it travels in, nor on who diverges, stops or leaves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables import pack as pack_module
from sparsefront.trainables.lanes import LaneStack, dense_lanes, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.models import initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Feed, Pack, Schedule, batch_order, evaluate
from tests.oracles import networks as oracle
from tests.oracles import spaces as slow

STEPS, BATCH = 50, 32
SCHEDULE = Schedule("adam", steps=STEPS, batch_size=BATCH, eval_every=20)
POINTS = [20, 40, 50]
HYPER = Hyperparameters(lr=0.01)
#: The contract: losses within 1e-4 after 50 steps in float32 on a CPU.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def order(examples):
    return torch.from_numpy(batch_order(len(examples[0]), BATCH, STEPS, generator(1, "order")))


def weights_of(model, seed=2):
    return {
        n: torch.from_numpy(w) for n, w in initial_weights(model.structure, "torch", generator(seed, "pack")).items()
    }


def lanes_of(model, kind, n=5, *, allocation="uniform", start=0):
    """Random masks of one parent at half density, as lanes; and the masks."""
    sizes = model.structure.section_sizes(kind)
    counts = [s // 2 for s in sizes] if allocation == "uniform" else [sum(sizes) // 2]
    masks = draw(sizes, counts, philox_key(1, "mask"), start=start, stop=start + n)
    build = node_masked_lanes if kind == "node" else weight_masked_lanes
    return build(model.structure, weights_of(model), masks), masks


def run(model, lanes, hyper, examples, order, *, schedule=SCHEDULE, **more):
    """Results by lane number of a pack trained to its end."""
    hyper = [hyper] * len(lanes) if isinstance(hyper, Hyperparameters) else hyper
    train, validation = examples
    pack = Pack(model, lanes, hyper, schedule, data=Feed(train, validation, order), **more)
    results = [result for ended in pack.run() for result in ended]
    assert len({r.lane for r in results}) == len(results) == len(lanes)
    return {r.lane: r for r in results}


def assert_same(a, b, *, parameters=True):
    """Two results of one candidate agree to the contract's tolerance."""
    assert (a.outcome, a.steps, a.curve_step, a.rung) == (b.outcome, b.steps, b.curve_step, b.rung)
    np.testing.assert_allclose(a.curve_val_loss, b.curve_val_loss, rtol=0, atol=TOLERANCE)
    assert a.curve_val_loss[-1] == a.val_loss
    assert a.curve_val_error[-1] == a.val_error
    if parameters:
        torch.testing.assert_close(a.parameters, b.parameters, rtol=0, atol=TOLERANCE)


#: Unlike sizes in one pack have a recording each, a fifth of a second: one family always, the rest with the slow tests.
PACKED = [
    pytest.param(family, optimizer, kind, allocation, marks=() if is_fast else pytest.mark.slow)
    for family in oracle.SMALL
    for optimizer in ("adam", "sgd")
    for kind, allocation in (("node", "uniform"), ("node", "global"), ("weight", "uniform"))
    for is_fast in [family == "mlp" or (optimizer == "adam" and allocation == "uniform")]
]
TRAINED = [
    ("mlp", "adam"),
    ("mlp", "sgd"),
    ("residual_mlp", "adam"),
    ("conv1d", "adam"),
    pytest.param("residual_mlp", "sgd", marks=pytest.mark.slow),
    pytest.param("conv1d", "sgd", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "optimizer", "kind", "allocation"), PACKED)
def test_packed_is_alone(family, kind, allocation, optimizer, examples, order):
    model = oracle.small_model(family)
    schedule = replace(SCHEDULE, optimizer=optimizer)
    hyper = Hyperparameters(lr=0.01, momentum=0.9, weight_decay=1e-3)
    lanes, masks = lanes_of(model, kind, 3, allocation=allocation)
    together = run(model, lanes, hyper, examples, order, schedule=schedule)
    for i in range(len(masks)):
        single, _ = lanes_of(model, kind, 1, allocation=allocation, start=i)
        alone = run(model, single, hyper, examples, order, schedule=schedule)[0]
        # A global allocation pads: the parameters then have another shape.
        assert_same(together[i], alone, parameters=allocation == "uniform")


@pytest.mark.parametrize("family", oracle.SMALL)
def test_lanes_see_the_examples_of_their_own_replicate(family, examples, order):
    """Of three replicates, one lane diverges, one is stopped, and each is measured on examples of its own."""
    model = oracle.small_model(family)
    train, validation = examples
    feeds = [
        Feed(train, validation.select(torch.arange(5 * i, 20 + 5 * i)), order.roll(i, dims=0).contiguous())
        for i in range(3)
    ]
    lanes, _ = lanes_of(model, "weight", 5)
    of_lanes = [feeds[i] for i in (0, 0, 1, 2, 2)]
    hyper = [replace(HYPER, lr=1e30 if i == 1 else HYPER.lr, label_smoothing=0.1 * (i == 4)) for i in range(5)]

    def stop(step, numbers, losses, errors):
        return {3: 1} if step == SCHEDULE.eval_every and 3 in numbers else {}

    pack = Pack(model, lanes, hyper, SCHEDULE, data=of_lanes, stop_rule=stop)
    together = {result.lane: result for ended in pack.run() for result in ended}
    for i, feed in enumerate(of_lanes):
        more = {"stop_rule": lambda *_: {0: 1}} if i == 3 else {}
        alone = run(model, lanes.select([i]), hyper[i], (train, feed.validation), feed.order, **more)[0]
        assert alone.outcome == ("diverged" if i == 1 else "stopped" if i == 3 else "completed")
        if i == 1:
            assert together[i].outcome == "diverged"
        else:
            assert_same(together[i], alone)


@pytest.mark.parametrize("family", ["mlp", "residual_mlp"])
def test_a_perceptron_trains_bit_for_bit_as_alone(family, examples, order):
    """On a CPU: what a study finds does not depend on how many workers it had, nor on which of them was free."""
    model = oracle.small_model(family)
    train, validation = examples
    feeds = [Feed(train, validation, order.roll(i, dims=0).contiguous()) for i in range(3)]
    lanes, _ = lanes_of(model, "weight", 5)
    of_lanes = [feeds[i] for i in (0, 0, 1, 2, 2)]
    hyper = [HYPER] * 5
    pack = Pack(model, lanes, hyper, SCHEDULE, data=of_lanes)
    together = {result.lane: result for ended in pack.run() for result in ended}
    for i, feed in enumerate(of_lanes):
        alone = run(model, lanes.select([i]), HYPER, (train, validation), feed.order)[0]
        assert torch.equal(together[i].parameters, alone.parameters)
        assert all(torch.equal(together[i].slots[name], state) for name, state in alone.slots.items())


def test_replicates_of_a_pack_share_one_object_that_holds_their_examples(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "weight", 2)
    train, validation = examples
    feeds = [Feed(part, validation, order) for part in (train, train.select(torch.arange(60)))]
    with pytest.raises(ValueError, match=r"data: all replicates of a pack need one object"):
        Pack(model, lanes, [HYPER] * 2, SCHEDULE, data=feeds)


@pytest.mark.parametrize("kind", ["node", "weight"])
@pytest.mark.parametrize(("family", "optimizer"), TRAINED)
def test_a_lane_is_what_plain_torch_makes_of_it(family, kind, optimizer, examples, order):
    model = oracle.small_model(family, activation="tanh")
    hyper = [
        Hyperparameters(lr=0.01),
        Hyperparameters(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
        Hyperparameters(lr=0.005, label_smoothing=0.2),
    ]
    lanes, masks = lanes_of(model, kind, 3)
    results = run(model, lanes, hyper, examples, order, schedule=replace(SCHEDULE, optimizer=optimizer))
    parent = weights_of(model)
    for i, mask in enumerate(masks):
        keep, weights = None, parent
        if kind == "node":
            weights = oracle.compact_weights(model.structure, parent, mask)
        else:
            parts = slow.weight_parts(model.structure, mask.tolist())
            keep = {
                n: torch.from_numpy(parts[n]).float() if n in parts else torch.ones_like(w) for n, w in weights.items()
            }
        trained = oracle.train(
            family, weights, examples[0], order, optimizer_name=optimizer, hyper=hyper[i], activation="tanh", keep=keep
        )
        loss, error = oracle.measure(family, trained, examples[1], activation="tanh")
        assert results[i].val_loss == pytest.approx(loss, abs=TOLERANCE)
        assert results[i].val_error == pytest.approx(error, abs=1e-6)
        views = lanes.layout.views(results[i].parameters[None])
        for name, weight in trained.items():
            torch.testing.assert_close(views[name][0], weight, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "allocation"), [("node", "global"), ("weight", "uniform")])
@pytest.mark.parametrize(("family", "optimizer"), TRAINED)
def test_training_revives_no_masked_weight(family, kind, allocation, optimizer, examples, order):
    model = oracle.small_model(family)
    lanes, _ = lanes_of(model, kind, 3, allocation=allocation)
    if len(model.structure.section_sizes(kind)) == 1:  # one node group: a global count pads nothing
        assert lanes.keep is None
        return
    hyper = Hyperparameters(lr=0.02, momentum=0.9, weight_decay=0.1)
    results = run(model, lanes, hyper, examples, order, schedule=replace(SCHEDULE, optimizer=optimizer))
    for i, keep in enumerate(lanes.keep):
        assert (results[i].parameters[keep == 0] == 0).all()
        assert (results[i].parameters != lanes.flat[i]).any()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("ruin", ["rate", "weights"])
@pytest.mark.parametrize("kind", ["node", "weight"])
def test_neighbours_that_diverge_change_nothing(kind, ruin, optimizer, examples, order):
    model = oracle.small_model("mlp")
    schedule = replace(SCHEDULE, optimizer=optimizer)
    lanes, _ = lanes_of(model, kind)
    expected = run(model, lanes, HYPER, examples, order, schedule=schedule)
    hyper, flat = [HYPER] * 5, lanes.flat.clone()
    for bad in (1, 4):
        if ruin == "rate":
            hyper[bad] = replace(HYPER, lr=1e30)
        else:
            flat[bad, 0] = torch.nan
    found = run(model, replace(lanes, flat=flat), hyper, examples, order, schedule=schedule)
    for lane in (0, 2, 3):
        assert_same(found[lane], expected[lane])
    for bad in (1, 4):
        assert found[bad].outcome == "diverged"
        assert found[bad].steps == 20
        assert found[bad].curve_step == [20]
        assert not np.isfinite(found[bad].val_loss)


def test_a_pack_in_which_all_diverge_ends(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node")
    results = run(model, lanes, replace(HYPER, lr=1e30), examples, order)
    assert {r.outcome for r in results.values()} == {"diverged"}
    assert {r.steps for r in results.values()} == {20}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("hyper", [[HYPER] * 5, [replace(HYPER, lr=0.002 * (i + 1), momentum=0.9) for i in range(5)]])
def test_lanes_that_are_stopped_change_nothing_for_those_that_stay(hyper, optimizer, examples, order):
    model = oracle.small_model("mlp")
    schedule = replace(SCHEDULE, optimizer=optimizer)
    lanes, _ = lanes_of(model, "node", allocation="global")
    expected = run(model, lanes, hyper, examples, order, schedule=schedule)
    asked = []

    def rule(step, numbers, losses, errors):
        asked.append((step, list(numbers), len(losses), len(errors)))
        return {20: {0: 0, 3: 0}, 40: {4: 1}}[step]

    found = run(model, lanes, hyper, examples, order, schedule=schedule, stop_rule=rule)
    assert asked == [(20, [0, 1, 2, 3, 4], 5, 5), (40, [1, 2, 4], 3, 3)]  # never at the last step
    for lane in (1, 2):
        assert_same(found[lane], expected[lane])
    for lane, (steps, rung) in {0: (20, 0), 3: (20, 0), 4: (40, 1)}.items():
        assert (found[lane].outcome, found[lane].steps, found[lane].rung) == ("stopped", steps, rung)
        n = len(found[lane].curve_step)
        np.testing.assert_allclose(found[lane].curve_val_loss, expected[lane].curve_val_loss[:n], atol=TOLERANCE)


@pytest.mark.parametrize("recording_steps", [0, 10**6])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_whether_a_pack_shrinks_changes_nothing(optimizer, recording_steps, examples, order, monkeypatch):
    """Who leaves is cut out if that is worth a recording, and is left behind as zeros if not."""
    model = oracle.small_model("mlp")
    schedule = replace(SCHEDULE, optimizer=optimizer)
    lanes, _ = lanes_of(model, "node", 6, allocation="global")
    hyper = [
        replace(HYPER, lr=1e30 if i in (1, 4) else 0.002 * (i + 1), label_smoothing=0.1 * (i == 2)) for i in range(6)
    ]
    expected = [run(model, lanes.select([i]), hyper[i], examples, order, schedule=schedule)[0] for i in range(6)]
    monkeypatch.setattr(pack_module, "_RECORDING_STEPS", recording_steps)
    train, validation = examples
    pack = Pack(
        model,
        lanes,
        hyper,
        schedule,
        data=Feed(train, validation, order),
        stop_rule=lambda step, numbers, losses, errors: {0: 7} if step == 40 else {},
    )
    ended = [pack.advance(), pack.advance()]
    assert [[r.lane for r in each] for each in ended] == [[1, 4], [0]]
    assert pack.n_lanes == 3
    results = {r.lane: r for each in (*ended, *pack.run()) for r in each}
    assert (results[0].outcome, results[0].rung, results[0].steps) == ("stopped", 7, 40)
    for lane in (2, 3, 5):
        assert_same(results[lane], expected[lane], parameters=False)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kind", ["node", "weight"])
def test_a_pack_goes_on_where_another_ended(kind, optimizer, examples, order):
    model = oracle.small_model("mlp")
    schedule = replace(SCHEDULE, optimizer=optimizer)
    lanes, _ = lanes_of(model, kind, 3)
    hyper = [replace(HYPER, lr=0.01 * (i + 1), momentum=0.3 * i, weight_decay=1e-3) for i in range(3)]
    whole = run(model, lanes, hyper, examples, order, schedule=schedule)
    first = run(model, lanes, hyper, examples, order, schedule=replace(schedule, steps=20))
    flat = torch.stack([first[i].parameters for i in range(3)])
    slots = {name: torch.stack([first[i].slots[name] for i in range(3)]) for name in first[0].slots}
    assert set(slots) == ({"first", "second"} if optimizer == "adam" else {"velocity"})
    second = run(
        model,
        replace(lanes, flat=flat),
        hyper,
        examples,
        order,
        schedule=schedule,
        start_step=20,
        slots=slots,
    )
    for lane, result in second.items():
        assert torch.equal(result.parameters, whole[lane].parameters)
        assert result.curve_step == [40, 50]
        assert result.curve_val_loss == whole[lane].curve_val_loss[1:]
        assert result.steps == 50


def test_only_a_lane_that_came_to_the_end_has_slots(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node", 3)
    lanes.flat[0, 0] = torch.nan
    results = run(model, lanes, HYPER, examples, order, stop_rule=lambda step, *_: {1: 0} if step == 20 else {})
    assert [bool(results[i].slots) for i in range(3)] == [False, False, True]


def test_a_stop_rule_never_sees_a_lane_that_diverged(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node")
    lanes.flat[2, 0] = torch.inf

    def rule(step, numbers, losses, errors):
        assert 2 not in numbers
        assert np.isfinite(losses).all()
        assert np.isfinite(errors).all()
        return {}

    results = run(model, lanes, HYPER, examples, order, stop_rule=rule)
    assert [results[i].outcome for i in range(5)] == ["completed", "completed", "diverged", "completed", "completed"]


def test_lanes_leave_in_every_order_and_the_results_name_them(examples, order):
    """Everyone stops at the first point but one, which is the last lane."""
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node")
    train, validation = examples
    pack = Pack(
        model,
        lanes,
        [HYPER] * 5,
        SCHEDULE,
        data=Feed(train, validation, order),
        stop_rule=lambda step, numbers, losses, errors: dict.fromkeys(numbers[:-1], 0),
    )
    assert [r.lane for r in pack.advance()] == [0, 1, 2, 3]
    assert pack.n_lanes == 1
    assert pack.step == 20
    assert [[r.lane for r in ended] for ended in pack.run()] == [[], [4]]
    assert pack.n_lanes == 0


@pytest.mark.parametrize(
    ("steps", "every", "points"), [(50, 20, POINTS), (50, 25, [25, 50]), (50, 60, [50]), (3, 1, [1, 2, 3])]
)
def test_curves_hold_every_validation_point_and_the_last_step(steps, every, points, examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node", 2)
    schedule = Schedule("adam", steps=steps, batch_size=BATCH, eval_every=every)
    for result in run(model, lanes, HYPER, examples, order, schedule=schedule).values():
        assert result.curve_step == points
        assert len(result.curve_val_loss) == len(result.curve_val_error) == len(points)
        assert result.steps == steps


def test_the_initial_lanes_are_not_modified(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "weight")
    before = lanes.flat.clone(), lanes.keep.clone()
    run(model, lanes, HYPER, examples, order)
    assert torch.equal(lanes.flat, before[0])
    assert torch.equal(lanes.keep, before[1])


def test_training_learns(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node")
    before, _ = evaluate(model, lanes, examples[1])
    for lane, result in run(model, lanes, HYPER, examples, order).items():
        assert result.val_loss < before[lane] - 0.2


def test_smoothing_of_one_lane_is_none_of_its_neighbours_business(examples, order):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node", 3)
    expected = run(model, lanes, HYPER, examples, order)
    found = run(model, lanes, [HYPER, replace(HYPER, label_smoothing=0.3), HYPER], examples, order)
    assert_same(found[0], expected[0])
    assert_same(found[2], expected[2])
    assert abs(found[1].val_loss - expected[1].val_loss) > 1e-3


def test_lanes_keep_their_own_smoothing_when_others_leave(examples, order):
    model = oracle.small_model("mlp")
    hyper = [replace(HYPER, label_smoothing=0.1 * i) for i in range(4)]
    lanes, _ = lanes_of(model, "node", 4)
    expected = run(model, lanes, hyper, examples, order)
    found = run(model, lanes, hyper, examples, order, stop_rule=lambda step, *_: {0: 0, 2: 0} if step == 20 else {})
    assert_same(found[1], expected[1])
    assert_same(found[3], expected[3])


def test_bfloat16_trains_near_float32(examples, order):
    """Products of 8 significant bits: relative errors of 2^-9 each; after 50 steps within 0.05 nats here."""
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node", 3)
    full = run(model, lanes, HYPER, examples, order)
    half = run(model, lanes, HYPER, examples, order, precision="bfloat16")
    for lane in full:
        assert half[lane].parameters.dtype == torch.float32
        assert half[lane].val_loss == pytest.approx(full[lane].val_loss, abs=0.05)
        assert half[lane].val_loss != full[lane].val_loss


@pytest.mark.slow
@pytest.mark.parametrize("family", oracle.SMALL)
def test_packed_is_alone_for_two_hundred_lanes(family, examples, order):
    model = oracle.small_model(family)
    lanes, masks = lanes_of(model, "node", 200)
    together = run(model, lanes, HYPER, examples, order)
    for i in range(0, len(masks), 23):
        single, _ = lanes_of(model, "node", 1, start=i)
        assert_same(together[i], run(model, single, HYPER, examples, order)[0])


# Measuring.


@pytest.mark.parametrize("family", oracle.SMALL)
def test_evaluation_agrees_with_torch(family, examples):
    model = oracle.small_model(family)
    weights = [weights_of(model, seed) for seed in range(4)]
    lanes = dense_lanes(
        model.structure, [{n: w.numpy() for n, w in each.items()} for each in weights], torch.device("cpu")
    )
    losses, errors = evaluate(model, lanes, examples[1])
    assert losses.dtype == errors.dtype == np.float64
    for each, loss, error in zip(weights, losses, errors, strict=True):
        expected_loss, expected_error = oracle.measure(family, each, examples[1])
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        assert error == pytest.approx(expected_error, abs=1e-6)


def test_evaluation_does_not_depend_on_how_many_lanes_fit_at_once(examples, monkeypatch):
    model = oracle.small_model("conv1d")
    lanes, _ = lanes_of(model, "node", 7)
    losses, errors = evaluate(model, lanes, examples[1])
    for at_once in (1, 1 << 10, 1 << 12):
        monkeypatch.setattr(pack_module, "_ACTIVATIONS_AT_ONCE", at_once)
        again_losses, again_errors = evaluate(model, lanes, examples[1])
        np.testing.assert_allclose(again_losses, losses, atol=1e-6)
        assert (again_errors == errors).all()


def test_a_lane_that_is_not_finite_is_measured_alone(examples):
    model = oracle.small_model("mlp")
    lanes, _ = lanes_of(model, "node", 3)
    expected, _ = evaluate(model, lanes, examples[1])
    flat = lanes.flat.clone()
    flat[1] = torch.nan
    losses, errors = evaluate(model, LaneStack(lanes.layout, flat, None), examples[1])
    assert np.isnan(losses[1])
    assert 0 <= errors[1] <= 1
    np.testing.assert_allclose(losses[[0, 2]], expected[[0, 2]], atol=1e-6)


# Data.


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_batches_are_epochs_of_distinct_examples(n_train, data):
    batch_size = data.draw(st.integers(1, n_train))
    steps = data.draw(st.integers(1, 40))
    order = batch_order(n_train, batch_size, steps, generator(data.draw(st.integers(0, 9)), "order"))
    assert order.shape == (steps, batch_size)
    assert order.dtype == np.int64
    per_epoch = n_train // batch_size
    for a in range(0, steps, per_epoch):
        epoch = order[a : a + per_epoch].ravel()
        assert len(set(epoch.tolist())) == len(epoch)
        assert epoch.min() >= 0
        assert epoch.max() < n_train


def test_a_longer_training_begins_with_the_batches_of_a_shorter_one():
    long = batch_order(50, 8, 40, generator(0, "order"))
    assert (batch_order(50, 8, 13, generator(0, "order")) == long[:13]).all()


def test_epochs_are_fresh_permutations():
    order = batch_order(32, 32, 3, generator(0, "order"))
    assert sorted(order[0]) == sorted(order[1]) == list(range(32))
    assert (order[0] != order[1]).any()


@pytest.mark.parametrize("batch_size", [0, 33])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size):
    with pytest.raises(
        ValueError, match=rf"batch_size={batch_size}: must lie in 1..32, the number of training examples"
    ):
        batch_order(32, batch_size, 3, generator(0, "order"))


def test_examples_carry_their_labels_one_hot(blobs):
    made = Examples.of(blobs.x_train, blobs.y_train, 4, torch.device("cpu"))
    assert len(made) == 240
    assert torch.equal(made.one_hot, functional.one_hot(made.labels, 4).t().float())
    some = made.select(torch.tensor([5, 2]))
    assert torch.equal(some.x, made.x[[5, 2]])
    assert torch.equal(some.labels, made.labels[[5, 2]])
    assert torch.equal(some.one_hot, made.one_hot[:, [5, 2]])
