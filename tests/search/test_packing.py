import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.search import packing
from sparsefront.search.packing import CPU_COST, GPU_COST, PackCost, PlannedPack, plan_packs
from sparsefront.spaces.shape import Shape

#: Simple numbers: a launch costs 10 s, an entry of a matrix used once 6 s, one that is not used 0 s.
SIMPLE = PackCost(launch_s=10.0, lane_s=0.0, flops_per_s=1.0, elementwise_per_s=math.inf)


def mlp(*widths, group="mlp", batch_size=100):
    tensors, positions, n_in = [], [], 40
    for width in (*widths, 10):
        tensors += [(width, n_in), (width,)]
        positions += [1, 0]
        n_in = width
    return Shape(f"{group}-{len(widths)}", tuple(tensors), tuple(positions), batch_size)


def convolutions(*channels):
    """Three of them, each output at 20, 10 and 5 places, and a linear layer."""
    tensors = [(n, n_in, 3) for n_in, n in zip((1, *channels), channels, strict=False)]
    return Shape("conv", (*tensors, (10, 5 * channels[-1])), (20, 10, 5, 1), 50)


def blocks(*hidden):
    """Three blocks, those that are lacking of zeros, and a scalar parameter."""
    tensors = [(h, 8) if h else (0, 0) for h in (*hidden, 0, 0, 0)[:3]]
    return Shape("blocks", (*tensors, ()), (1, 1, 1, 0), 32)


def seconds_of(shapes, indices, steps, cost):
    """The cost model, written plainly."""
    padded = [
        tuple(map(max, zip(*tensors, strict=True)))
        for tensors in zip(*(shapes[i].tensors for i in indices), strict=True)
    ]
    first = shapes[indices[0]]
    flops = sum(6 * first.batch_size * uses * math.prod(t) for t, uses in zip(padded, first.positions, strict=True))
    n_params = sum(map(math.prod, padded))
    n_outputs = sum(t[0] * uses for t, uses in zip(padded, first.positions, strict=True) if uses > 1)
    lane_s = cost.lane_s + flops / cost.flops_per_s + n_params / cost.elementwise_per_s
    lane_s += n_outputs * first.batch_size * cost.output_s
    return cost.start_s + steps * (cost.launch_s + len(indices) * lane_s), tuple(padded)


def total_s(plan):
    return math.fsum(pack.predicted_s for pack in plan)


def end_s(plan, workers):
    """When the last of the workers ends, each taking the next pack."""
    ends = [0.0] * workers
    for pack in plan:
        ends[ends.index(min(ends))] += pack.predicted_s
    return max(ends)


def set_partitions(items):
    if not items:
        yield []
        return
    first, *rest = items
    for partition in set_partitions(rest):
        yield [[first], *partition]
        for i in range(len(partition)):
            yield [*partition[:i], [first, *partition[i]], *partition[i + 1 :]]


widths = st.integers(1, 64)
mixed = st.lists(
    st.one_of(
        st.lists(widths, min_size=1, max_size=3).map(lambda w: mlp(*w)),
        st.lists(widths, min_size=0, max_size=3).map(lambda w: blocks(*w)),
        st.lists(widths, min_size=3, max_size=3).map(lambda w: convolutions(*w)),
    ),
    min_size=1,
    max_size=24,
)
costs = st.sampled_from([CPU_COST, GPU_COST, SIMPLE])


@given(mixed, costs, st.integers(1, 30), st.integers(1, 6), st.data())
def test_a_plan_is_a_partition_with_its_cost(shapes, cost, max_lanes, workers, data):
    steps = data.draw(st.lists(st.sampled_from([50, 100]), min_size=len(shapes), max_size=len(shapes)))
    plan = plan_packs(shapes, steps, cost=cost, max_lanes=max_lanes, workers=workers)
    assert sorted(i for pack in plan for i in pack.indices) == list(range(len(shapes)))
    for pack in plan:
        assert 1 <= len(pack.indices) <= max_lanes
        assert len({(shapes[i].group, steps[i]) for i in pack.indices}) == 1
        expected_s, padded = seconds_of(shapes, pack.indices, steps[pack.indices[0]], cost)
        assert pack.padded == padded
        assert pack.predicted_s == pytest.approx(expected_s, rel=1e-9)
    assert [p.predicted_s for p in plan] == sorted((p.predicted_s for p in plan), reverse=True)
    assert plan == plan_packs(shapes, steps, cost=cost, max_lanes=max_lanes, workers=workers)


@given(mixed, costs)
def test_a_plan_costs_no_more_than_the_obvious_ones(shapes, cost):
    steps = [100] * len(shapes)
    found_s = total_s(plan_packs(shapes, steps, cost=cost, max_lanes=len(shapes)))
    for key in (lambda i: shapes[i].group, lambda i: shapes[i], lambda i: i):
        classes = {}
        for i in range(len(shapes)):
            classes.setdefault(key(i), []).append(i)
        assert found_s <= sum(seconds_of(shapes, c, 100, cost)[0] for c in classes.values()) * (1 + 1e-9)


@given(mixed, costs, st.integers(1, 10), st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_plan_follows_its_candidates(shapes, cost, max_lanes, workers, random):
    def packs(order):
        arranged = [shapes[i] for i in order]
        plan = plan_packs(arranged, [7] * len(order), cost=cost, max_lanes=max_lanes, workers=workers)
        return sorted(sorted(repr(arranged[i]) for i in pack.indices) for pack in plan)

    order = list(range(len(shapes)))
    before = packs(order)
    random.shuffle(order)
    assert packs(order) == before


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 6))
def test_sizes_of_one_dimension_are_parted_optimally(sizes, max_lanes):
    shapes = [Shape("line", ((size,),), (1,), 1) for size in sizes]
    plan = plan_packs(shapes, [1] * len(sizes), cost=SIMPLE, max_lanes=max_lanes)
    best_s = min(
        sum(seconds_of(shapes, pack, 1, SIMPLE)[0] for pack in partition)
        for partition in set_partitions(list(range(len(sizes))))
        if max(map(len, partition)) <= max_lanes
    )
    assert total_s(plan) == pytest.approx(best_s, rel=1e-12)


def test_padding_is_weighed_against_launches_by_hand():
    # Together 10 + 2 x 6 x 3 = 46 s; apart (10 + 6 x 2) + (10 + 6 x 3) = 50 s.
    near = [Shape("line", ((size,),), (1,), 1) for size in (2, 3)]
    assert plan_packs(near, [1, 1], cost=SIMPLE, max_lanes=8) == [PlannedPack((0, 1), ((3,),), 46.0)]
    # Together 10 + 2 x 6 x 4 = 58 s; apart (10 + 6 x 2) + (10 + 6 x 4) = 56 s.
    far = [Shape("line", ((size,),), (1,), 1) for size in (2, 4)]
    assert plan_packs(far, [1, 1], cost=SIMPLE, max_lanes=8) == [
        PlannedPack((1,), ((4,),), 34.0),
        PlannedPack((0,), ((2,),), 22.0),
    ]


def test_what_cannot_travel_together_does_not():
    shapes = [mlp(8), mlp(8, group="tanh"), mlp(8, 8), mlp(8, batch_size=32), mlp(8)]
    plan = plan_packs(shapes, [10, 10, 10, 10, 20], cost=GPU_COST, max_lanes=99)
    assert sorted(pack.indices for pack in plan) == [(0,), (1,), (2,), (3,), (4,)]


def test_sizes_of_several_dimensions_are_packed_with_their_like():
    # Wide then narrow, and narrow then wide, are of much the same size; one pack of both would be padded to wide-wide.
    generator = np.random.default_rng(0)
    wide, narrow = generator.integers(100, 128, (20, 2)), generator.integers(8, 12, (20, 2))
    shapes = [mlp(a, b) for a, b in zip(wide[:, 0], narrow[:, 0], strict=True)]
    shapes += [mlp(b, a) for a, b in zip(wide[:, 1], narrow[:, 1], strict=True)]
    plan = plan_packs(shapes, [100] * 40, cost=CPU_COST, max_lanes=64)
    assert all(len({i < 20 for i in pack.indices}) == 1 for pack in plan)


@pytest.mark.parametrize(
    ("n", "workers", "expected"),
    [
        (1000, 1, [1000]),
        (1000, 4, [250] * 4),
        (8, 4, [2] * 4),
        (9, 4, [3] * 3),  # a fourth pack would shorten none of them
        (3, 4, [1] * 3),
    ],
)
def test_workers_are_kept_busy(n, workers, expected):
    plan = plan_packs([mlp(64, 64)] * n, [100] * n, cost=CPU_COST, max_lanes=1000, workers=workers)
    assert sorted(len(pack.indices) for pack in plan) == expected


@given(mixed, costs, st.integers(1, 30), st.integers(2, 6))
def test_workers_end_no_later_than_with_the_least_work(shapes, cost, max_lanes, workers):
    steps = [100] * len(shapes)
    alone = plan_packs(shapes, steps, cost=cost, max_lanes=max_lanes)
    plan = plan_packs(shapes, steps, cost=cost, max_lanes=max_lanes, workers=workers)
    assert end_s(plan, workers) <= end_s(alone, workers)
    assert total_s(plan) >= total_s(alone) * (1 - 1e-9)


def test_a_giant_among_dwarfs_is_divided():
    shapes = [mlp(64, 64)] * 400 + [mlp(8, group=str(i)) for i in range(10)]
    plan = plan_packs(shapes, [100] * len(shapes), cost=CPU_COST, max_lanes=400, workers=4)
    assert end_s(plan, 4) <= 1.1 * total_s(plan) / 4


def test_nothing_is_planned_for_nothing():
    assert plan_packs([], [], cost=CPU_COST, max_lanes=8, workers=4) == []


@pytest.mark.parametrize(("max_lanes", "workers"), [(0, 1), (1, 0)])
def test_limits_are_checked(max_lanes, workers):
    with pytest.raises(ValueError, match=f"max_lanes={max_lanes}, workers={workers}: must be at least 1"):
        plan_packs([mlp(8)], [1], cost=CPU_COST, max_lanes=max_lanes, workers=workers)


@given(st.data(), st.sampled_from([1, 7, 40]), costs, st.sampled_from([9, 300]))
def test_a_plan_does_not_depend_on_how_many_packs_are_priced_at_once(data, max_lanes, cost, widest):
    width = st.integers(0, widest)
    hidden = st.tuples(width, width, width)
    shapes = [blocks(*each) for each in data.draw(st.lists(hidden, min_size=1, max_size=30))]
    steps = [100] * len(shapes)
    plan = plan_packs(shapes, steps, cost=cost, max_lanes=max_lanes, workers=3)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_BLOCK", "_COLUMNS", "_AT_ONCE", "_REACH"):
            patch.setattr(packing, name, data.draw(st.integers(1, 200)))
        assert plan_packs(shapes, steps, cost=cost, max_lanes=max_lanes, workers=3) == plan


@pytest.mark.parametrize(("widest", "cost"), [(300, CPU_COST), (300, GPU_COST), (12, GPU_COST)])
def test_packs_that_are_not_priced_would_not_be_taken(widest, cost, monkeypatch):
    generator = np.random.default_rng(1)
    shapes = [mlp(*each) for each in generator.integers(8, widest, (400, 2)).tolist()]
    reached = []
    further = packing._Block.reach_further

    def recorded(block, of):
        further(block, of)
        reached.append(block.seconds.shape[1])

    monkeypatch.setattr(packing._Block, "reach_further", recorded)
    plan = plan_packs(shapes, [500] * 400, cost=cost, max_lanes=400)
    assert (max(reached) < 400) == (cost is CPU_COST)
    monkeypatch.setattr(packing, "_REACH", 400)
    assert plan_packs(shapes, [500] * 400, cost=cost, max_lanes=400) == plan
