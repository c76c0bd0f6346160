"""Spaces: reading, round trips, points, draws, conditions, overrides, and 200 tables that are none."""

import copy
import itertools
import math
import pickle
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import SpaceError
from sparsefront.spaces.canonical import permuted
from sparsefront.spaces.domains import Bits, Choice, Float, Integer
from sparsefront.spaces.masks import unpack_bits
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Condition, Dimension, Space
from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor

KEY = philox_key(3, "test")
NET = Structure(
    (Tensor("a", (5, 3), True), Tensor("b", (2, 5), True)), (NodeGroup("h", 5, (Axis("a", 0), Axis("b", 1))),)
)
BITS = Bits((15, 10), (6, 4))
SWEEP = tomllib.loads(
    """
    constraints = ["n_params <= 20_000", "val_error <= 0.5"]
    [training]
    lr = { low = 1e-4, high = 1e-1, log = true }
    optimizer = { choices = ["adam", "sgd"] }
    nesterov = { flag = true }
    batch_size = { low = 32, high = 128, step = 32 }
    weight_decay = 0.0
    [model]
    widths = { low = 8, high = 128, log = true, depth = { low = 1, high = 3 } }
    activation = { choices = ["relu", "gelu"] }
    bias = true
    [masks]
    sparsity = { low = 0.5, high = 0.98 }
    allocation = { choices = ["uniform", "erk", "searched"] }
    """
)
UNLIKE = tomllib.loads(
    """
    [training]
    lr_schedule = { choices = ["constant", "cosine"] }
    warmup_fraction = { low = 0.0, high = 0.2 }
    precision = { choices = ["float32", "bfloat16"] }
    nesterov = { flag = true }
    momentum = { low = 0.0, high = 0.9 }
    [model]
    widths = { low = 8, high = 64, depth = { low = 1, high = 2 } }
    [masks]
    kind = { choices = ["node", "weight"] }
    pattern = { choices = ["unstructured", "2:4", "4x4"] }
    sparsity = { low = 0.2, high = 0.9 }
    draw = { low = 0, high = 9 }
    """
)


def sweep(**context):
    return Space.from_table(SWEEP, n_sections=3, **context)


def bits_space(**context):
    return Space.from_table(
        {"masks": {"bits": True}, "training": {"lr": {"low": 0.1, "high": 1.0}}}, bits=BITS, **context
    )


# Random tables --------------------------------------------------------------------------------------------------------

ENTRIES = st.one_of(
    st.tuples(st.floats(1e-6, 1e3), st.floats(1.01, 1e4), st.booleans()).map(
        lambda t: {"low": t[0], "high": t[0] * t[1], "log": t[2]}
    ),
    st.tuples(st.integers(1, 100), st.integers(1, 50), st.integers(1, 4)).map(
        lambda t: {"low": t[0], "high": t[0] + t[1] * t[2], "step": t[2]}
    ),
    st.tuples(st.integers(1, 100), st.integers(1, 500)).map(lambda t: {"low": t[0], "high": t[0] + t[1], "log": True}),
    st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True).map(lambda v: {"choices": v}),
    st.lists(st.integers(-50, 50) | st.floats(-5, 5), min_size=1, max_size=5, unique=True).map(
        lambda v: {"choices": v}
    ),
    st.just({"flag": True}),
    st.sampled_from([1, 2.5, "x", False]),
)
#: Of the model and the data, whose options may be lists.
LISTED = ENTRIES | st.sampled_from([[1, 2], ["a"]])


@st.composite
def tables(draw):
    keys = st.sampled_from(["alpha", "beta", "gamma", "delta_2", "omega"])
    entries = {"model": LISTED, "masks": ENTRIES, "training": ENTRIES, "data": LISTED}
    table = {section: draw(st.dictionaries(keys, entry, max_size=3)) for section, entry in entries.items()}
    if draw(st.booleans()):
        low = draw(st.integers(1, 4))
        depth = draw(st.sampled_from([low, {"low": low, "high": low + draw(st.integers(1, 4))}]))
        table["model"]["widths"] = {**draw(ENTRIES.filter(lambda e: isinstance(e, dict))), "depth": depth}
    if draw(st.booleans()):
        table["masks"]["allocation"] = draw(st.sampled_from(["searched", {"choices": ["erk", "searched"]}, "erk"]))
    if draw(st.booleans()):
        table["masks"]["kind"] = draw(st.sampled_from(["node", "weight", {"choices": ["node", "weight"]}]))
    if draw(st.booleans()):
        table["masks"]["pattern"] = draw(st.sampled_from(["2:4", {"choices": ["unstructured", "1:4", "8x1"]}]))
    if draw(st.booleans()):
        table["masks"]["bits"] = True
    if draw(st.booleans()):
        table["constraints"] = ["n_params <= 20_000", "val_loss >= -1.5"]
    return table


def read(table):
    return Space.from_table(table, bits=BITS, n_sections=2)


@given(tables())
def test_tables_and_toml_round_trip(table):
    before = copy.deepcopy(table)
    space = read(table)
    assert table == before
    assert read(space.to_table()) == space
    again = Space.from_toml(space.to_toml(), bits=BITS, n_sections=2)
    assert again == space
    assert hash(again) == hash(space)
    assert again.columns == space.columns
    assert read(space.to_table()).to_table() == space.to_table()
    assert pickle.loads(pickle.dumps(space)) == space  # noqa: S301 (our own bytes)


@given(tables(), st.integers(0, 1000), st.integers(0, 8))
def test_points_are_drawn_encoded_clipped_and_named(table, start, n):
    space = read(table)
    points = space.draw(KEY, start, start + n)
    assert len(points) == n
    unit = space.encode(points)
    assert unit.shape == (n, space.n_cube)
    bits = [p["mask_bits"] for p in points] if space.bits else None
    assert space.decode(unit, bits) == points
    for point, row in zip(points, unit, strict=True):
        space.check(point)
        assert space.clip(point) == point
        canonical = space.canonical(point)
        assert space.canonical(canonical) == canonical
        assert space.contains(canonical)
        assert space.digest(point) == space.digest(canonical)
        assert {d.name for d, u in zip(space.cube, row, strict=True) if not math.isnan(u)} == set(point) - {"mask_bits"}
        assert all(type(v) in (bool, int, float, str, bytes) for v in point.values())


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(0, 20))
def test_draws_do_not_depend_on_the_range_they_are_drawn_in(start, n, at):
    space = sweep()
    at = min(at, n - 1)
    assert space.draw(KEY, start, start + n)[at] == space.draw(KEY, start + at, start + at + 1)[0]


def test_draws_of_bits_do_not_depend_on_the_range():
    space = bits_space()
    assert space.draw(KEY, 0, 50)[17:20] == space.draw(KEY, 17, 20)


def test_spaces_that_share_a_dimension_draw_the_same_values_in_it():
    whole = sweep()
    erk = whole.with_overrides({"masks": {"allocation": "erk"}, "training": {"optimizer": "sgd"}})
    pairs = list(zip(whole.draw(KEY, 0, 50), erk.draw(KEY, 0, 50), strict=True))
    assert all(a["lr"] == b["lr"] and a["width_1"] == b["width_1"] and a["depth"] == b["depth"] for a, b in pairs)


def test_the_order_of_writing_changes_nothing():
    turned = {s: dict(reversed(e.items())) if isinstance(e, dict) else e for s, e in reversed(SWEEP.items())}
    assert Space.from_table(turned, n_sections=3) == sweep()


def test_another_process_draws_the_same_points():
    code = (
        "from sparsefront.spaces.space import Space; from sparsefront.spaces.seeds import philox_key\n"
        "s = Space.from_table({'ready': 'mlp'}); p = s.draw(philox_key(3, 'test'), 5, 8)\n"
        "print([s.digest(x) for x in p])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    space = Space.from_table({"ready": "mlp"})
    assert ran.stdout.strip() == str([space.digest(p) for p in space.draw(KEY, 5, 8)])


def test_draws_are_uniform():
    # Kolmogorov-Smirnov per column at n = 20,000: P(sqrt(n) D > 2.6) < 2 exp(-2 2.6^2) = 3e-6; 14 columns, one seed.
    space, n = sweep(), 20_000
    unit = np.sort(space.draw_unit(KEY, 0, n), axis=0)
    assert unit.min() >= 0
    assert unit.max() < 1
    grid = np.arange(n)[:, None]
    distance = np.maximum(np.abs(unit - grid / n), np.abs(unit - (grid + 1) / n)).max(axis=0)
    assert (distance * math.sqrt(n) < 2.6).all()
    # columns are uncorrelated: |r| sqrt(n) > 5.5 has probability 4e-8 for each of the 91 pairs
    r = np.corrcoef(space.draw_unit(KEY, 0, n), rowvar=False) - np.eye(space.n_cube)
    assert np.abs(r).max() * math.sqrt(n) < 5.5


def test_drawn_bits_are_uniform():
    # 18 masks, 9,000 draws: chi^2 with 17 degrees of freedom exceeds 61 with probability 7e-7
    space = Space.from_table({"masks": {"bits": True}}, bits=Bits((4, 3), (2, 1)))
    points = space.draw(KEY, 0, 9000)
    counts = np.unique([p["mask_bits"] for p in points], return_counts=True)[1]
    assert len(counts) == 18
    assert ((counts - 500) ** 2 / 500).sum() < 61


# What a space is ------------------------------------------------------------------------------------------------------


def test_dimensions_of_a_sweep():
    space = sweep()
    assert space.names == (
        *("activation", "depth", "width_1", "width_2", "width_3", "allocation", "share_1", "share_2", "share_3"),
        *("sparsity", "batch_size", "lr", "nesterov", "optimizer"),
    )
    by = space.by_name
    assert by["width_1"] == Dimension("width_1", "model.widths", Integer(8, 128, log=True))
    assert by["width_3"].condition == Condition("depth", at_least=3)
    assert by["share_2"] == Dimension(
        "share_2", "masks.shares", Float(0.01, 1), Condition("allocation", equals="searched")
    )
    assert by["nesterov"].domain == Choice((False, True))
    assert space.constants == {"model.bias": True, "training.weight_decay": 0.0}
    assert dict(space.columns)["nesterov"] == "bool"
    assert dict(space.columns)["batch_size"] == "int64"
    assert dict(bits_space().columns) == {"mask_bits": "string", "lr": "float64"}
    assert space.size == math.inf


def test_settings_hold_lists_of_active_places():
    space = sweep()
    point = space.decode(np.full((1, space.n_cube), 0.4))[0]
    assert space.settings(point) == {
        "model.activation": "relu",
        "model.bias": True,
        "model.widths": [point["width_1"], point["width_2"]],
        "masks.allocation": "erk",
        "masks.sparsity": 0.692,
        "training.batch_size": 64,
        "training.lr": pytest.approx(10**-2.8),
        "training.nesterov": False,
        "training.optimizer": "adam",
        "training.weight_decay": 0.0,
    }
    searched = space.decode(np.full((1, space.n_cube), 0.9))[0]
    assert space.settings(searched)["masks.shares"] == [0.901] * 3
    single = Space.from_table({"model": {"widths": {"low": 4, "high": 8, "depth": 1}}})
    assert single.settings({"width_1": 5}) == {"model.widths": [5]}


def test_sizes_count_active_points():
    table = {
        "model": {"widths": {"low": 1, "high": 3, "depth": {"low": 1, "high": 3}}},
        "training": {"nesterov": {"flag": True}, "lr": {"choices": [0.1, 0.2]}},
    }
    space = Space.from_table(table)
    assert space.size == (3 + 9 + 27) * 4
    every = {tuple(p.items()) for p in space.decode(np.array(list(itertools.product(*[(np.arange(6) + 0.5) / 6] * 6))))}
    assert len(every) == space.size
    assert Space.from_table({}).size == 1
    assert Space.from_table({}).draw(KEY, 0, 2) == [{}, {}]
    assert bits_space().with_overrides({"training": {"lr": 0.1}}).size == math.comb(15, 6) * math.comb(10, 4)


def test_a_description_says_what_is_searched():
    text = sweep().describe()
    assert text.splitlines()[0] == "14 dimensions, infinitely many points"
    assert "width_2     an integer in 8..128 (log) where depth >= 2  [model.widths]" in text
    assert "share_1     a number in 0.01..1.0 where allocation = searched  [masks.shares]" in text
    assert "  training.weight_decay = 0.0 (fixed)" in text
    assert "  n_params <= 20000" in text
    assert Space.from_table({"training": {"nesterov": {"flag": True}}}).describe().startswith("1 dimension, 2 points")
    assert "keeps 6 of 15, 4 of 10" in bits_space().describe()
    large = {f"x{i}": {"low": 0, "high": 999} for i in range(6)}
    assert "about 10^18 points" in Space.from_table({"training": large}).describe()


def test_names_that_two_sections_share_are_prefixed():
    table = {
        "training": {"scale": {"low": 0.0, "high": 1.0}, "lr": {"low": 0.1, "high": 1.0}},
        "data": {"scale": {"low": 1, "high": 2}},
    }
    space = Space.from_table(table)
    assert space.names == ("lr", "training_scale", "data_scale")
    assert space.settings({"lr": 0.1, "training_scale": 0.5, "data_scale": 2})["data.scale"] == 2
    assert Space.from_table(space.to_table()) == space


def test_the_draw_of_a_mask_may_be_a_dimension():
    space = Space.from_table({"masks": {"draw": {"low": 0, "high": 99}}})
    assert space.names == ("mask_draw",)
    assert space.settings({"mask_draw": 7}) == {"masks.draw": 7}


def test_a_pattern_is_of_weight_masks():
    space = Space.from_table(UNLIKE)
    assert space.by_name["pattern"] == Dimension(
        "pattern", "masks.pattern", Choice(("unstructured", "2:4", "4x4")), Condition("kind", equals="weight")
    )
    assert "pattern  " in space.describe()
    assert "where kind = weight  [masks.pattern]" in space.describe()
    points = space.draw(KEY, 0, 50)
    assert {p["kind"] for p in points} == {"node", "weight"}
    assert all(("pattern" in p) == (p["kind"] == "weight") for p in points)
    assert all(("masks.pattern" in space.settings(p)) == ("pattern" in p) for p in points)
    for kind in ("weight", {"choices": ["weight"]}):
        assert space.with_overrides({"masks": {"kind": kind}}).by_name["pattern"].condition is None
    fixed = space.with_overrides({"masks": {"pattern": "2:4"}})
    assert fixed.constants == {"masks.pattern": "2:4"}
    assert fixed.with_overrides({"masks": {"pattern": UNLIKE["masks"]["pattern"]}}) == space
    assert dict(space.columns)["kind"] == dict(space.columns)["pattern"] == "string"
    sizes = Space.from_table({"masks": {k: UNLIKE["masks"][k] for k in ("kind", "pattern")}})
    assert sizes.size == 1 + 3
    shared = Space.from_table({"masks": UNLIKE["masks"], "model": {"kind": {"choices": ["a", "b"]}}})
    assert shared.by_name["pattern"].condition == Condition("masks_kind", equals="weight")
    assert Space.from_table(shared.to_table()) == shared


def test_a_space_cannot_be_changed():
    space = sweep()
    with pytest.raises(AttributeError):
        space.dimensions = ()
    space.constants["training.lr"] = 5
    space.to_table()["training"].clear()
    assert space == sweep()
    assert space.constants == {"model.bias": True, "training.weight_decay": 0.0}


# Overrides ------------------------------------------------------------------------------------------------------------


def test_overrides_replace_add_and_fix():
    space = sweep()
    erk = space.with_overrides({"masks": {"allocation": "erk"}})
    assert not {"allocation", "share_1"} & set(erk.names)
    assert erk.constants["masks.allocation"] == "erk"
    back = erk.with_overrides({"masks": {"allocation": SWEEP["masks"]["allocation"]}})
    assert back == space
    searched = space.with_overrides({"masks": {"allocation": "searched"}})
    assert searched.by_name["share_1"].condition is None
    fixed = space.with_overrides({"model": {"widths": [64, 32]}})
    assert fixed.constants["model.widths"] == [64, 32]
    assert "depth" not in fixed.names
    assert fixed.constraints == space.constraints
    assert space.with_overrides({"constraints": []}).constraints == ()
    assert space.with_overrides({}) == space
    assert space == sweep()
    assert bits_space().with_overrides({"masks": {"bits": False}}).bits is None


def test_overrides_are_checked():
    space = sweep(
        known_keys={
            "masks.allocation",
            "masks.sparsity",
            *(f"{s}.{k}" for s in ("model", "training") for k in SWEEP[s]),
        }
    )
    with pytest.raises(SpaceError, match=r"space\.masks\.alocation='erk': no such key .* did you mean 'allocation'"):
        space.with_overrides({"masks": {"alocation": "erk"}})
    with pytest.raises(SpaceError, match=r"space=5: must be a table"):
        space.with_overrides(5)


# Points ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1.0}, r"point: lr=1.0: must be a number in 0.0001..0.1 \(log\)"),
        ({"depth": 3}, "point: width_3 is missing"),
        ({"depth": 1}, "point: width_2=.*: this dimension is inactive here"),
        ({"optimizer": "lion"}, "point: optimizer='lion': must be one of adam, sgd"),
        ({"batch_size": 33}, "point: batch_size=33: must be an integer in 32..128 in steps of 32"),
        ({"batch_size": 32.0}, "point: batch_size=32.0"),
        ({"nesterov": 1}, "point: nesterov=1"),
        ({"momentum": 0.9}, "point: 'momentum' must be one of activation, depth"),
        ({"share_1": 0.5}, "point: share_1=0.5: this dimension is inactive here"),
    ],
)
def test_what_is_no_point_is_refused(change, message):
    space = sweep()
    point = {**space.decode(np.full((1, space.n_cube), 0.4))[0], **change}
    assert not space.contains(point)
    with pytest.raises(SpaceError, match=message):
        space.check(point)


def test_clipping_follows_conditions():
    space = sweep()
    point = space.decode(np.full((1, space.n_cube), 0.4))[0]
    clipped = space.clip({**point, "depth": 0, "lr": 7.0, "batch_size": 50, "unknown": 3})
    assert clipped["depth"] == 1
    assert "width_2" not in clipped
    assert (clipped["lr"], clipped["batch_size"]) == (0.1, 64)
    assert space.contains(clipped)
    with pytest.raises(SpaceError, match="point: width_3 is missing"):
        space.clip({**point, "depth": 3})
    with pytest.raises(SpaceError, match="point: optimizer: value='lion': must be one of"):
        space.clip({**point, "optimizer": "lion"})


def test_coordinates_of_inactive_dimensions_are_ignored():
    space = sweep()
    unit = np.full((2, space.n_cube), 0.1)
    column = [d.name for d in space.cube].index("width_3")
    unit[:, column] = [math.nan, 0.7]
    first, second = space.decode(unit)
    assert first == second
    unit[0, 0] = math.nan
    with pytest.raises(SpaceError, match="NaN in dimension 'activation', which is active"):
        space.decode(unit)
    with pytest.raises(SpaceError, match=r"coordinates of shape \(2, 3\): \(n, 14\) is needed"):
        space.decode(np.zeros((2, 3)))
    with pytest.raises(SpaceError, match="bits=0: must be given for each point"):
        space.decode(unit, [])
    with pytest.raises(SpaceError, match="bits=None: must be given for each point"):
        bits_space().decode([[0.5]])


def test_points_that_are_one_candidate_have_one_digest():
    space = sweep()
    point = space.decode(np.full((1, space.n_cube), 0.9))[0]
    halved = {**point, **{f"share_{i}": point[f"share_{i}"] / 2 for i in (1, 2, 3)}}
    assert space.digest(halved) == space.digest(point)
    other = {**point, "share_1": 0.5}
    assert space.digest(other) != space.digest(point)
    assert len(space.digest(point)) == 32
    assert space.digest(dict(reversed(point.items()))) == space.digest(point)


def test_digest_is_pinned():
    # digests of finished studies depend on it
    space = Space.from_table({"model": {"widths": {"low": 1, "high": 9, "depth": 2}}, "training": {"lr": 0.1}})
    assert space.digest({"width_1": 3, "width_2": 4}) == "9c8eef088ccb273ee5d7021542d16e34"


def test_permuted_hidden_units_of_searched_bits_have_one_digest():
    known, unknown = bits_space(structure=NET), bits_space()
    point = known.draw(KEY, 0, 1)[0]
    mask = unpack_bits(point["mask_bits"], 25)
    moved = {**point, "mask_bits": permuted(NET, mask, [np.array([4, 2, 0, 1, 3])])}
    assert moved != point
    assert known.digest(moved) == known.digest(point)
    assert unknown.digest(moved) != unknown.digest(point)
    assert known.with_overrides({"training": {"lr": 0.5}})._context.structure is NET
    assert known.contains(known.canonical(moved))
    nodes = Space.from_table({"masks": {"bits": True}}, bits=Bits((5,), (3,)), structure=NET, mask_kind="node")
    assert len({nodes.digest(p) for p in nodes.draw(KEY, 0, 20)}) == 1


# Made by hand ---------------------------------------------------------------------------------------------------------


def test_a_space_may_be_made_of_dimensions():
    space = Space((Dimension("lr", "training.lr", Float(0.1, 1.0)), Dimension("n", "model.n", Integer(1, 3))))
    assert space.draw(KEY, 0, 3)[1] == space.draw(KEY, 1, 2)[0]
    for read in (sweep(), bits_space()):  # whose tables need more than themselves
        made = Space(read.dimensions, read.constraints, read.fixed)
        assert made.to_table() == read.to_table()
        assert made.with_overrides({"training": {"lr": 0.1}}) == read.with_overrides({"training": {"lr": 0.1}})
    with pytest.raises(SpaceError, match=r"not what any \[space\] table yields"):
        Space((Dimension("rate", "training.lr", Float(0.1, 1.0)),)).to_table()


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ([("a b", "model.a", None)], "dimension 'a b': its name must be"),
        ([("a", "model.a", None), ("a", "data.a", None)], r"space\.data\.a: would be dimension 'a'"),
        ([("a", "model.a", Condition("b", at_least=1))], "'a' depends on 'b': that must be an unconditional dimension"),
        ([("b", "model.b", None), ("a", "model.a", Condition("b", at_least=1)), ("c", "x.c", Condition("a", equals=1))],
         "'c' depends on 'a'"),
        ([(f"d{i}", f"model.d{i}", None) for i in range(1001)], "space of 1001 dimensions: at most 1,000"),
    ],
)  # fmt: skip
def test_dimensions_that_make_no_space_are_refused(dimensions, message):
    with pytest.raises(SpaceError, match=message):
        Space(tuple(Dimension(n, k, Integer(0, 3), c) for n, k, c in dimensions))


# Refusals -------------------------------------------------------------------------------------------------------------

RANGES = [
    ({"low": 1}, "high is missing"),
    ({"high": 1}, "low is missing"),
    ({"low": 2, "high": 1}, "high=1: must be greater than low=2"),
    ({"low": 1.0, "high": 1.0}, "must be greater than low"),
    ({"low": 0.0, "high": 1.0, "log": True}, "low=0.0: must be greater than 0 where log=true"),
    ({"low": -1, "high": 8, "log": True}, "low=-1: must be greater than 0"),
    ({"low": "1", "high": 2}, "low='1': must be a number"),
    ({"low": 1, "high": None}, "high=None: must be a number"),
    ({"low": 1, "high": [2]}, r"high=\[2\]: must be a number"),
    ({"low": math.nan, "high": 2.0}, "low=nan: must be a finite number"),
    ({"low": 1.0, "high": math.inf}, "high=inf: must be a finite number"),
    ({"low": -1e308, "high": 1e308}, "their distance must be a finite float"),
    ({"low": True, "high": 2}, "low=True: must be a number"),
    ({"low": 1, "high": 2**70}, r"must be an integer of at most 2\^53"),
    ({"low": 1, "high": 10**5000}, r"must be an integer of at most 2\^53"),
    ({"low": 1, "high": 9, "log": "yes"}, "log='yes': must be true or false"),
    ({"low": 1, "high": 9, "log": 1}, "log=1: must be true or false"),
    ({"low": 1, "high": 9, "int": 1}, "int=1: must be true or false"),
    ({"low": 1.5, "high": 9, "int": True}, "low=1.5: must be an integer"),
    ({"low": 1.5, "high": 9, "step": 1}, "step=1: only ranges of integers have a step"),
    ({"low": 1, "high": 9, "step": 0}, "step=0: must be at least 1"),
    ({"low": 1, "high": 9, "step": -2}, "step=-2: must be at least 1"),
    ({"low": 1, "high": 9, "step": 3}, "step=3: must divide high - low = 8"),
    ({"low": 1, "high": 9, "step": 0.5}, "step=0.5: must be an integer"),
    ({"low": 1, "high": 9, "step": True}, "step=True: must be an integer"),
    ({"low": 1, "high": 9, "step": 2, "log": True}, "step=2: must be 1 where log=true"),
    ({"low": 1, "high": 9, "logg": True}, "logg=True: must be one of .* did you mean 'log'"),
    ({"low": 1, "high": 9, "min": 0}, "min=0: must be one of low, high"),
    ({"low": 1, "high": 9, "a\nb": 0}, r"'a\\nb'=0: must be one of low, high"),
    ({"low": 1, "high": 9, "choices": [1]}, r"must be one of \{low, high\}, \{choices\}"),
    ({"low": 1, "high": 9, "flag": True}, r"must be one of \{low, high\}, \{choices\}"),
    ({"choices": [1], "flag": True}, r"must be one of \{low, high\}, \{choices\}"),
    ({}, r"={}: must be one of \{low, high\}"),
    ({"choices": []}, r"choices=\[\]: must be a list of 1 to 1,000 values"),
    ({"choices": "adam"}, "choices='adam': must be a list"),
    ({"choices": {"a": 1}}, r"choices={'a': 1}: must be a list"),
    ({"choices": ["a", "a"]}, "'a' may appear once"),
    ({"choices": [1, 1.0]}, "1.0 may appear once"),
    ({"choices": ["a", 1]}, "must be all text, all numbers or all flags"),
    ({"choices": [True, 1]}, "must be all text, all numbers or all flags"),
    ({"choices": [[1], [2]]}, "must be all text, all numbers or all flags"),
    ({"choices": [None]}, "must be all text, all numbers or all flags"),
    ({"choices": [math.nan]}, "choices=nan: must be a finite number"),
    ({"choices": [2**60, 1]}, r"integers must be of at most 2\^53"),
    ({"choices": list(range(1001))}, "must be a list of 1 to 1,000"),
    ({"flag": False}, "flag=False: must be true"),
    ({"flag": "true"}, "flag='true': must be true"),
    (None, "=None: must be a finite number, text, a flag, or a table"),
    (math.inf, "=inf: must be a finite number"),
    ([], r"=\[\]: must be a value, a list of values"),
    ([[1], [2]], "must be a value, a list of values"),
    ([{"low": 1, "high": 2}], "must be a value, a list of values"),
    (b"x", "=b'x': must be a finite number"),
]  # fmt: skip
LISTS = [
    ({"low": 8, "high": 64, "depth": 0}, r"depth=0: must lie in 1\.\.64"),
    ({"low": 8, "high": 64, "depth": 65}, r"depth=65: must lie in 1\.\.64"),
    ({"low": 8, "high": 64, "depth": True}, "depth=True: must lie in"),
    ({"low": 8, "high": 64, "depth": 2.0}, "depth=2.0: must lie in"),
    ({"low": 8, "high": 64, "depth": "3"}, "depth='3': must lie in"),
    ({"low": 8, "high": 64, "depth": [1, 3]}, r"depth=\[1, 3\]: must lie in"),
    ({"low": 8, "high": 64, "depth": {"low": 0, "high": 3}}, r"depth=.*: must lie in 1\.\.64"),
    ({"low": 8, "high": 64, "depth": {"low": 1, "high": 99}}, r"depth=.*: must lie in 1\.\.64"),
    ({"low": 8, "high": 64, "depth": {"low": 3, "high": 3}}, r"depth\.high=3: must be greater than low=3"),
    ({"low": 8, "high": 64, "depth": {"low": 3}}, r"depth\.high is missing"),
    ({"low": 8, "high": 64, "depth": {"low": 1.5, "high": 3}}, "depth=.*: must be an integer or"),
    ({"low": 8, "high": 64, "depth": {"choices": [1, 2]}}, "depth=.*: must be an integer or"),
    ({"low": 8, "high": 64, "depth": {"low": 1, "high": 3, "step": 2}}, "depth=.*: must be an integer or"),
    ({"low": 8, "high": 64, "depth": {"low": 1, "hihg": 3}}, r"depth\.hihg=3: must be one of .* did you mean 'high'"),
    ({"low": 0, "high": 64, "depth": 2}, "low=0: must be at least 1"),
    ({"low": 8, "high": 4, "depth": 2}, "high=4: must be greater than low=8"),
    ({"depth": 2}, r"must be one of \{low, high\}"),
    ({"low": 8, "high": 64, "depht": 2}, "depht=2: must be one of .* did you mean 'depth'"),
]  # fmt: skip
BOUNDED = [
    ("masks", "sparsity", {"low": -0.1, "high": 0.5}, r"low=-0.1: must lie in \[0, 1\)"),
    ("masks", "sparsity", {"low": 0.5, "high": 1.0}, r"high=1.0: must lie in \[0, 1\)"),
    ("masks", "sparsity", {"low": 50, "high": 90}, r"low=50: must lie in \[0, 1\)"),
    ("masks", "sparsity", {"choices": [0.5, 1.5]}, r"choices=1.5: must lie in \[0, 1\)"),
    ("masks", "sparsity", {"choices": ["a"]}, "choices='a': must be a number"),
    ("masks", "sparsity", 1.0, r"sparsity=1.0: must lie in \[0, 1\)"),
    ("masks", "sparsity", "high", "sparsity='high': must be a number"),
    ("masks", "sparsity", True, "sparsity=True: must be a number"),
    ("masks", "draw", {"low": -1, "high": 5}, "low=-1: must lie in"),
    ("masks", "draw", {"low": 0.0, "high": 5.5}, "low=0.0: must be an integer"),
    ("masks", "bits", 1, "bits=1: must be true or false"),
    ("masks", "bits", {"low": 0, "high": 1}, "bits={.*}: must be true or false"),
    ("masks", "kind", "edge", "kind='edge': must be one of node, weight"),
    ("masks", "kind", {"choices": ["node", "wieght"]}, "choices='wieght': must be one of .*did you mean 'weight'"),
    ("masks", "kind", {"flag": True}, "kind.choices=False: must be one of node, weight"),
    ("masks", "kind", {"low": 1, "high": 2}, "low=1: must be one of node, weight"),
    ("masks", "pattern", "2-4", "pattern='2-4': must be one of unstructured, node, N:M"),
    ("masks", "pattern", "4:2", "pattern='4:2': N of M with 1 <= N <= M is needed"),
    ("masks", "pattern", "0x4", "pattern='0x4': a block has at least 1x1 entries"),
    ("masks", "pattern", "node", "pattern='node': is no pattern of weight masks; write masks.kind = 'node'"),
    ("masks", "pattern", 24, "pattern=24: must be a name in quotes, as in '2:4'"),
    ("masks", "pattern", "1" * 5000 + ":4", "must be a name in quotes"),
    ("masks", "pattern", {"choices": ["2:4", "n_m"]}, "choices='n_m': takes n, m; written N:M"),
    ("masks", "pattern", {"low": 2, "high": 4}, "low=2: must be a name in quotes"),
    ("training", "warmup_fraction", {"low": 0.0, "high": 1.0}, r"high=1.0: must lie in \[0, 1\)"),
    ("training", "warmup_fraction", {"choices": ["a"]}, "choices='a': must be a number"),
    ("training", "warmup_fraction", -0.5, r"warmup_fraction=-0.5: must lie in \[0, 1\)"),
    ("masks", "shares", [0.5, 1.0], r"shares: is searched where masks\.allocation may be 'searched'"),
    ("training", "lr", {"low": 0.0, "high": 1.0}, r"low=0.0: must lie in \(0, inf\)"),
    ("training", "lr", {"low": -1.0, "high": 1.0}, r"low=-1.0: must lie in \(0, inf\)"),
    ("training", "lr", 0, r"lr=0: must lie in \(0, inf\)"),
    ("training", "momentum", {"low": 0.5, "high": 1.0}, r"high=1.0: must lie in \[0, 1\)"),
    ("training", "beta1", {"low": 0.5, "high": 1.5}, r"high=1.5: must lie in \[0, 1\)"),
    ("training", "beta2", {"low": -0.5, "high": 0.5}, r"low=-0.5: must lie in \[0, 1\)"),
    ("training", "label_smoothing", {"low": 0.0, "high": 2.0}, r"high=2.0: must lie in \[0, 1\)"),
    ("training", "weight_decay", {"low": -1e-3, "high": 1e-3}, r"low=-0.001: must lie in \[0, inf\)"),
    ("training", "batch_size", {"low": 0, "high": 64}, r"low=0: must lie in \[1, 1e\+08\]"),
    ("training", "batch_size", {"low": 8.0, "high": 64.5}, "low=8.0: must be an integer"),
    ("training", "steps", {"low": 1, "high": 10**9}, "high=1000000000: must lie in"),
    ("training", "steps", {"choices": [100, 0]}, "choices=0: must lie in"),
    ("training", "data_fraction", {"low": 0.0, "high": 1.0}, r"low=0.0: must lie in \(0, 1\]"),
    ("training", "lr", {"low": 1e-3, "high": 1e-1, "depth": 2}, "depth: only lists of the model"),
    ("model", "width", {"low": 8, "high": 64, "depth": 2}, "depth: only lists of the model"),
    ("training", "a b", 1, "'a b': a key must be at most 64 letters"),
    ("training", "1st", 1, "1st: a key must be at most 64 letters"),
    ("training", "x" * 65, 1, "a key must be at most 64 letters"),
    ("training", "a\nb", 1, "a key must be at most 64 letters"),
    ("training", 5, 1, "5: a key must be at most 64 letters"),
]  # fmt: skip
TABLES = [
    (5, "space=5: must be a table of the sections model, masks, training, data"),
    ([], r"space=\[\]: must be a table"),
    ({"trainig": {}}, r"space\.trainig: must be one of .*did you mean 'training'"),
    ({"a\nb": {}}, r"space\.'a\\nb': must be one of"),
    ({"search": {}}, r"space\.search: must be one of"),
    ({"training": 5}, r"space\.training=5: must be a table of keys to search"),
    ({"training": [{"lr": 1}]}, r"space\.training=\[.*\]: must be a table"),
    ({"constraints": "n_params <= 5"}, r"space\.constraints='n_params <= 5': must be a list"),
    ({"constraints": ["n_params < 5"]}, r"space\.constraints: constraint 'n_params < 5': must be a quantity"),
    ({"constraints": ["params <= 5"]}, r"space\.constraints: .*did you mean 'n_params'"),
    ({"constraints": [5]}, r"space\.constraints: constraint 5"),
    ({"constraints": ["macs <= 5", "test_error <= 1"]}, r"space\.constraints: .*'test_error' must be one of"),
    ({"ready": "mpl"}, r"space\.ready='mpl': must be one of mlp, .*did you mean 'mlp'"),
    ({"ready": ["mlp"]}, r"space\.ready="),
    ({"model": {"widths": {"low": 1, "high": 9, "depth": {"low": 1, "high": 3}}, "depth": {"low": 1, "high": 3}}},
     r"space\.model\.widths: would be dimension 'depth', which space\.model\.depth is"),
    ({"training": {f"x{i}": {"flag": True} for i in range(1001)}}, "makes more than 1,000 dimensions"),
    ({"model": {f"x{i}s": {"low": 1, "high": 9, "depth": 64} for i in range(20)}}, "makes more than 1,000 dimensions"),
]  # fmt: skip
MALFORMED = [
    *(
        ({s: {k: e}}, rf"^space\.{s}\.{k}.*{m}")
        for e, m in RANGES
        for s, k in (("training", "gain"), ("data", "noise"))
    ),
    *(({"model": {k: {**e}}}, rf"^space\.model\.{k}.*{m}") for e, m in LISTS for k in ("widths", "channels")),
    *(({"model": {"widths": {**e, "depth": 2}}}, m) for e, m in RANGES if isinstance(e, dict)),
    *(({s: {k: e}}, rf"^space\.{s}\..*{m}") for s, k, e, m in BOUNDED),
    *TABLES,
]


def test_there_are_200_of_them():
    assert len(MALFORMED) >= 200


@pytest.mark.parametrize(("table", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_spaces_are_refused_in_one_line(table, message):
    with pytest.raises(SpaceError, match=message) as error:
        Space.from_table(table, n_sections=3, bits=BITS)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("space")
    assert len(str(error.value)) < 500


def test_what_the_study_must_offer_is_said():
    with pytest.raises(SpaceError, match=r"space\.masks\.bits=true: .* only where the architecture and the sparsity"):
        Space.from_table({"masks": {"bits": True}})
    with pytest.raises(SpaceError, match=r"space\.masks\.allocation='searched': needs the number of sections"):
        Space.from_table({"masks": {"allocation": "searched"}})
    with pytest.raises(
        SpaceError, match=r"space\.training\.learning_rate=0\.1: no such key can be searched; it must be one of lr$"
    ):
        Space.from_table({"training": {"learning_rate": 0.1}}, known_keys={"training.lr"})
    with pytest.raises(SpaceError, match="no valid TOML"):
        Space.from_toml("[space")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutations(draw):
    """A good table with something in it replaced, renamed or added."""
    table = copy.deepcopy(draw(st.sampled_from([SWEEP, UNLIKE])))
    section = draw(st.sampled_from(["training", "model", "masks"]))
    name = draw(st.sampled_from(sorted(table[section])))
    place = table[section]
    if isinstance(place[name], dict) and draw(st.booleans()):
        place, name = place[name], draw(st.sampled_from(sorted(place[name])))
    if draw(st.booleans()):
        place[name] = draw(JUNK)
    else:
        place[draw(st.text(max_size=6))] = place.pop(name)
    return table


@given(mutations() | JUNK)
def test_a_mutated_table_is_a_space_or_one_line(table):
    try:
        space = Space.from_table(table, n_sections=3)
    except SpaceError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
        assert str(error).startswith("space")  # noqa: PT017
    else:
        assert Space.from_table(space.to_table(), n_sections=3) == space
        assert all(space.contains(p) for p in space.draw(KEY, 0, 3))
