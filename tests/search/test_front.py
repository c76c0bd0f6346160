import tracemalloc

import moocore
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import ConfigError
from sparsefront.search.front import (
    front,
    front_columns,
    hypervolume,
    hypervolume_curve,
    is_nondominated,
    mean_front,
    reference_point,
)
from sparsefront.search.objective import ideal_point, losses
from sparsefront.search.schema import SCHEMA

OBJECTIVES = ("val_error", "n_params")


def table_of(rows):
    """Build a ledger of completed trained rows, one candidate each unless said otherwise."""
    defaults = {"stage": "trained", "arm": "random", "replicate": 0, "target_sparsity": 0.5, "outcome": "completed"}
    filled = [
        dict.fromkeys(SCHEMA.names) | defaults | {"slot": i, "candidate": f"c{i:04d}", "reused": False} | row
        for i, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(filled, schema=SCHEMA)


def points_table(points):
    return table_of([{"val_error": float(a), "n_params": int(b)} for a, b in points])


def slow_nondominated(points):
    """Compare every pair: the definition."""
    return [
        not any(all(q <= p for q, p in zip(b, a, strict=True)) and tuple(b) != tuple(a) for b in points) for a in points
    ]


def slow_hypervolume(points, reference):
    """Count the unit cells of an integer grid that some point dominates."""
    cells = np.stack(np.meshgrid(*[np.arange(r) for r in reference], indexing="ij"), axis=-1).reshape(
        -1, len(reference)
    )
    return sum(any(all(p <= c) for p in np.asarray(points)) for c in cells)


small_points = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 5)), max_size=25)


@settings(max_examples=40)
@given(small_points)
def test_members_are_those_that_nothing_dominates(points):
    table = points_table(points)
    expected = {p for p, keep in zip(points, slow_nondominated(points), strict=True) if keep}
    found = front(table, OBJECTIVES)
    assert [tuple(p) for p in losses(found, OBJECTIVES)] == sorted(expected)
    every = front(table, OBJECTIVES, keep_duplicates=True)
    assert every.num_rows == sum(slow_nondominated(points))


@pytest.mark.parametrize(
    ("arms", "expected"),
    [((), ["a", "a"]), (("b", "a"), ["b", "b"]), (("c",), ["a", "c"]), (("z", "c", "b"), ["b", "c"])],
)
def test_of_equal_candidates_that_of_the_first_arm_stands_for_all(arms, expected):
    rows = [
        {"arm": "b", "candidate": "same", "slot": 7, "val_error": 0.5, "n_params": 10},
        {"arm": "a", "candidate": "same", "slot": 3, "val_error": 0.5, "n_params": 10},
        {"arm": "c", "candidate": "other", "slot": 1, "val_error": 0.5, "n_params": 10},
        # Measured twice, and neither result is better in all.
        {"arm": "a", "candidate": "third", "slot": 2, "replicate": 1, "val_error": 0.1, "n_params": 20},
        {"arm": "b", "candidate": "third", "slot": 2, "replicate": 1, "val_error": 0.2, "n_params": 15},
    ]
    for start in range(len(rows)):
        for order in (rows[start:] + rows[:start], (rows[start:] + rows[:start])[::-1]):
            assert front(table_of(order), OBJECTIVES, arms=arms)["arm"].to_pylist() == expected


@settings(max_examples=30)
@given(small_points, st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
def test_order_and_batches_change_nothing(points, seed, size, keep_duplicates):
    table = points_table(points)
    shuffled = table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))
    expected = front(table, OBJECTIVES, keep_duplicates=keep_duplicates)
    assert front(shuffled, OBJECTIVES, keep_duplicates=keep_duplicates).equals(expected)
    in_batches = iter(shuffled.to_batches(max_chunksize=size))
    assert front(in_batches, OBJECTIVES, keep_duplicates=keep_duplicates).equals(expected)


@settings(max_examples=30)
@given(small_points)
def test_chunks_that_really_meet_give_the_same(points):
    table = points_table(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsefront.search.front._CHUNK_ROWS", 3)
        chunked = front(table, OBJECTIVES)
    assert chunked.equals(front(table, OBJECTIVES))


@settings(max_examples=40)
@given(small_points)
def test_monotone_scaling_keeps_the_members(points):
    table = points_table(points)
    scaled = points_table([(a**3 / 2, 7 * b + 1) for a, b in points])
    assert front(table, OBJECTIVES)["candidate"].equals(front(scaled, OBJECTIVES)["candidate"])


@settings(max_examples=40)
@given(small_points)
def test_the_same_rows_again_change_nothing(points):
    table = points_table(points)
    assert front(pa.concat_tables([table, table]), OBJECTIVES).equals(front(table, OBJECTIVES))


def test_members_are_sorted_by_objectives_then_candidate():
    table = table_of(
        [
            {"val_error": 0.5, "n_params": 1, "candidate": "b", "slot": 2},
            {"val_error": 0.1, "n_params": 9, "candidate": "z"},
            {"val_error": 0.5, "n_params": 1, "candidate": "a", "slot": 7},
        ]
    )
    assert front(table, OBJECTIVES, keep_duplicates=True)["candidate"].to_pylist() == ["z", "a", "b"]
    assert front(table, OBJECTIVES)["candidate"].to_pylist() == ["z", "b"], "equal points: the lowest key stays"


def test_a_candidate_in_several_slots_counts_once_with_its_lowest_key():
    rows = [
        {"val_error": 0.5, "n_params": 1, "candidate": "x", "arm": "searched", "slot": 0, "reused": True},
        {"val_error": 0.5, "n_params": 1, "candidate": "x", "arm": "random", "slot": 3},
        {"val_error": 0.5, "n_params": 1, "candidate": "x", "arm": "random", "slot": 1},
    ]
    for keep_duplicates in (False, True):
        found = front(table_of(rows), OBJECTIVES, keep_duplicates=keep_duplicates)
        assert [(r["arm"], r["slot"]) for r in found.to_pylist()] == [("random", 1)]


def test_only_completed_finite_rows_of_the_right_stage_take_part():
    rows = [
        {"val_error": 0.5, "n_params": 5, "macs": 5},
        {"val_error": 0.0, "n_params": 4, "macs": 4, "outcome": "diverged"},
        {"val_error": float("nan"), "n_params": 4, "macs": 4},
        {"val_error": float("-inf"), "n_params": 4, "macs": 4},
        {"val_error": None, "n_params": 4, "macs": 4},
        {"val_error": None, "n_params": 3, "macs": 3, "stage": "scored"},
        {"val_error": None, "n_params": 1, "macs": 1, "stage": "pruned"},
    ]
    assert front(table_of(rows), OBJECTIVES)["slot"].to_pylist() == [0]
    assert front(table_of(rows), ["macs"])["slot"].to_pylist() == [5]


def test_costs_of_reused_results_are_not_taken_for_cheap():
    rows = [
        {"val_error": 0.5, "seconds": 9.0, "candidate": "x", "slot": 1},
        {"val_error": 0.5, "seconds": 0.0, "candidate": "x", "slot": 0, "reused": True},
    ]
    assert front(table_of(rows), ["val_error", "seconds"])["seconds"].to_pylist() == [9.0]


def test_higher_can_be_better():
    rows = [{"val_error": 0.2, "node_sparsity": 0.5}, {"val_error": 0.2, "node_sparsity": 0.9}]
    assert front(table_of(rows), ["val_accuracy", "node_sparsity"])["slot"].to_pylist() == [1]


@pytest.mark.parametrize("source", [SCHEMA.empty_table(), [], iter([])])
def test_nothing_gives_an_empty_front(source):
    found = front(source, OBJECTIVES)
    assert (found.num_rows, found.schema) == (0, SCHEMA)


def test_few_columns_suffice():
    table = points_table([(0.5, 1), (0.25, 2)]).select(front_columns(OBJECTIVES))
    assert front(table, OBJECTIVES).num_rows == 2
    with pytest.raises(ConfigError, match="column 'outcome' is missing from this table: read it with the columns"):
        front(table.drop_columns(["outcome"]), OBJECTIVES)


@pytest.mark.parametrize("function", [front, reference_point])
def test_test_results_never_decide(function):
    with pytest.raises(ConfigError, match="objective='test_error': test results are reported and never decide"):
        function(SCHEMA.empty_table(), ["test_error"])


def synthetic_batches(n, *, batch_rows, seed=0):
    """Stream n random rows without ever holding them together."""
    rng = np.random.default_rng(seed)
    names = front_columns(("val_error", "n_params", "macs"))
    constant = {"stage": "trained", "arm": "random", "replicate": 0, "target_sparsity": 0.5, "outcome": "completed"}
    for start in range(0, n, batch_rows):
        size = min(batch_rows, n - start)
        slots = np.arange(start, start + size)
        params = rng.integers(100, 100_000, size)
        columns = {name: pa.array([value] * size, SCHEMA.field(name).type) for name, value in constant.items()}
        columns |= {
            "slot": pa.array(slots, pa.int32()),
            "candidate": pa.array([f"{slot:032x}" for slot in slots]),
            "reused": pa.array(np.zeros(size, bool)),
            "val_error": pa.array(rng.random(size)),
            "n_params": pa.array(params),
            "macs": pa.array(params + rng.integers(0, 50_000, size)),
        }
        yield pa.record_batch([columns[name] for name in names], names=names)


def test_a_large_stream_agrees_with_one_sort():
    objectives = ("val_error", "n_params", "macs")
    whole = pa.Table.from_batches(list(synthetic_batches(150_000, batch_rows=50_000)))
    found = front(whole.combine_chunks().to_batches(max_chunksize=7_001), objectives)
    points = losses(whole, objectives)
    expected = points[moocore.is_nondominated(points)]
    assert np.array_equal(losses(found, objectives), expected[np.lexsort(expected.T[::-1])])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream():
    def peak(n):
        pool, before = pa.default_memory_pool(), pa.total_allocated_bytes()
        tracemalloc.start()
        front(synthetic_batches(n, batch_rows=50_000), ("val_error", "n_params", "macs"))
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert pool.bytes_allocated() - before < 2**20
        return traced

    # Ten times as many rows may cost a larger front and noise, not ten times the memory.
    assert peak(1_000_000) < 1.5 * peak(200_000)


def test_equal_rows_do_not_pile_up():
    """All masks of one level have the same size: a front over sizes alone holds one of them at any time."""
    n = 200_000
    batch = next(synthetic_batches(n, batch_rows=n))
    same = batch.set_column(batch.schema.get_field_index("macs"), "macs", pa.array(np.full(n, 7)))
    found = front([same], ["macs"])
    assert found["slot"].to_pylist() == [0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_hypervolume_counts_cells(points):
    reference = np.array([4.0, 5.0, 3.0])
    volume = hypervolume(np.array(points, dtype=float).reshape(-1, 3), reference=reference)
    assert volume == slow_hypervolume(points, (4, 5, 3))
    fraction = hypervolume(np.array(points, dtype=float).reshape(-1, 3), reference=reference, ideal=np.zeros(3))
    assert fraction == pytest.approx(volume / 60, abs=1e-12)


def test_hypervolume_at_the_edges():
    assert hypervolume(np.empty((0, 2)), reference=np.ones(2)) == 0.0
    assert hypervolume(np.array([[1.0, 0.0]]), reference=np.ones(2)) == 0.0, "on the reference counts nothing"
    assert hypervolume(np.array([[-1.0, -1.0]]), reference=np.ones(2), ideal=np.zeros(2)) == 1.0
    with pytest.raises(ConfigError, match=r"reference=\[1.0, 0.0\]: must be worse than the ideal"):
        hypervolume(np.empty((0, 2)), reference=np.array([1.0, 0.0]), ideal=np.zeros(2))


def test_the_reference_is_the_bound_then_the_parent_then_the_worst():
    rows = [
        {"val_error": 0.4, "n_params": 900, "val_loss": 3.0},
        {"val_error": 0.3, "n_params": 1000, "val_loss": 1.0, "arm": "dense"},
        {"val_error": None, "n_params": 1100, "val_loss": None, "arm": "dense", "outcome": "diverged"},
        {"val_error": 0.3, "n_params": 5000, "val_loss": 2.0},
    ]
    names = ("val_error", "n_params", "val_loss", "val_accuracy")
    assert reference_point(table_of(rows), names).tolist() == [1.0, 1100.0, 1.0, 0.0]
    without_parents = [row for row in rows if row.get("arm") != "dense"]
    assert reference_point(table_of(without_parents), names).tolist() == [1.0, 5000.0, 3.0, 0.0]
    assert np.isnan(reference_point(SCHEMA.empty_table(), ["n_params"])).all()


def test_the_curve_is_the_hypervolume_of_each_prefix(make_design, make_table):
    table = make_table(make_design(replicates=3))
    names = ("val_error", "n_params", "macs")
    reference, ideal = reference_point(table, names), ideal_point(names)
    curve = hypervolume_curve(table, names, reference=reference, ideal=ideal)
    trained = table.filter(pa.compute.field("stage") == "trained")
    trained = trained.filter(~pa.compute.field("reused"))
    assert curve["n_candidates"].to_pylist()[-1] == trained.num_rows
    for row in curve.to_pylist():
        prefix = trained.slice(0, row["n_candidates"])
        points = losses(prefix, names)
        assert row["hypervolume"] == pytest.approx(hypervolume(points, reference=reference, ideal=ideal))
        assert row["front_size"] == sum(is_nondominated(points))
        assert row["committed_at"] == prefix["committed_at"][-1].as_py()


def test_the_curve_of_a_longer_study_passes_through_the_earlier_points(make_design, make_table):
    table = make_table(make_design(replicates=3))
    options = {"reference": np.array([1.0, 20_000.0]), "ideal": np.zeros(2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsefront.search.front._CHUNK_ROWS", 11)
        later = hypervolume_curve(table.to_batches(max_chunksize=5), OBJECTIVES, **options).to_pylist()
    earlier = hypervolume_curve(table.slice(0, 200), OBJECTIVES, **options).to_pylist()
    assert all(row in later for row in earlier[:-1])
    assert [row["hypervolume"] for row in later] == sorted(row["hypervolume"] for row in later)
    assert all(0 <= row["hypervolume"] <= 1 for row in later)


def test_failed_candidates_were_evaluated_and_add_nothing():
    rows = [{"val_error": 0.5, "n_params": 1}, {"outcome": "diverged", "n_params": 0, "val_error": 0.0}]
    curve = hypervolume_curve(table_of(rows), OBJECTIVES, reference=np.array([1.0, 2.0]))
    assert curve["n_candidates"].to_pylist() == [1, 2]
    assert curve["hypervolume"].to_pylist() == [0.5, 0.5]
    assert hypervolume_curve(SCHEMA.empty_table(), OBJECTIVES, reference=np.ones(2)).num_rows == 0


def test_means_over_replicates():
    rows = [
        {"arm": "a", "replicate": 0, "slot": 0, "val_error": 0.25, "n_params": 10},
        {"arm": "a", "replicate": 1, "slot": 0, "val_error": 0.75, "n_params": 10},
        {"arm": "b", "replicate": 0, "slot": 0, "val_error": 0.5, "n_params": 20},
        {"arm": "b", "replicate": 1, "slot": 0, "val_error": 0.625, "n_params": 20},
        {"arm": "c", "replicate": 0, "slot": 0, "val_error": 0.125, "n_params": 30, "outcome": "failed"},
        {"arm": "d", "replicate": 0, "slot": 0, "val_error": 0.125, "n_params": 30},
    ]
    found = mean_front(table_of(rows), ("val_accuracy", "n_params"), rng=np.random.default_rng(1), resamples=4000)
    by_arm = {row.pop("arm"): row for row in found.to_pylist()}
    assert list(by_arm) == ["d", "a", "b"]
    assert by_arm["a"]["val_accuracy"] == 0.5
    assert by_arm["b"] | {"front_probability": 0} == {
        "target_sparsity": 0.5,
        "slot": 0,
        "n_replicates": 2,
        "val_accuracy": 0.4375,
        "n_params": 20.0,
        "on_front": False,
        "front_probability": 0,
    }
    # b leads only when replicate 1 is drawn twice: probability 1/4, standard error sqrt(3/16/4000) = 0.007.
    assert by_arm["b"]["front_probability"] == pytest.approx(0.25, abs=5 * 0.007)
    assert by_arm["a"]["front_probability"] == 1.0
    assert (by_arm["d"]["n_replicates"], by_arm["d"]["on_front"]) == (1, True)


def test_means_do_not_depend_on_batches_and_accept_other_groups(make_design, make_table):
    table = make_table(make_design(replicates=3))
    options = {"by": ("target_sparsity", "lr", "momentum"), "resamples": 50}
    whole = mean_front(table, OBJECTIVES, rng=np.random.default_rng(0), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsefront.search.front._CHUNK_ROWS", 17)
        parts = mean_front(table, OBJECTIVES, rng=np.random.default_rng(0), **options)
    assert whole["target_sparsity"].to_pylist() == parts["target_sparsity"].to_pylist()
    assert np.allclose(whole["val_error"], parts["val_error"], rtol=1e-12, atol=0)
    assert whole.num_rows == 3
    assert whole["momentum"].null_count == 3
    with pytest.raises(ConfigError, match=r"by=\['colour'\]: must name columns of the ledger"):
        mean_front(table, OBJECTIVES, rng=np.random.default_rng(0), by=["colour"])


def test_means_of_nothing():
    found = mean_front(SCHEMA.empty_table(), OBJECTIVES, rng=np.random.default_rng(0))
    assert found.num_rows == 0
    assert found.schema.names == [
        *("arm", "target_sparsity", "slot", "n_replicates"),
        *OBJECTIVES,
        *("on_front", "front_probability"),
    ]
