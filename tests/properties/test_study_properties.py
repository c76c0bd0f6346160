"""Whole studies with something wrong in them: whatever it is, they are accepted or refused in one line."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsefront.errors import ConfigError
from sparsefront.study import Study

Path_ = tuple[str, ...]

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.toml"))

#: What no bundled study has: conditions, choices and flags of every kind, chains, searched bits, methods by arm.
OTHERS = [
    """
    [model]
    widths = [20, 20]
    [masks]
    sparsity = 0.5
    [space]
    constraints = ["n_params <= 20_000", "val_error <= 0.9"]
    [space.training]
    optimizer = { choices = ["adam", "sgd"] }
    lr = { low = 1e-3, high = 1e-1, log = true }
    momentum = { low = 0.0, high = 0.9 }
    nesterov = { flag = true }
    steps = { low = 20, high = 60, step = 20 }
    batch_size = { choices = [25, 50] }
    data_fraction = { low = 0.5, high = 1.0 }
    lr_schedule = { choices = ["constant", "cosine"] }
    [space.masks]
    sparsity = { low = 0.1, high = 0.9 }
    allocation = { choices = ["uniform", "erk", "searched"] }
    pattern = { choices = ["unstructured", "2:4"] }
    draw = { low = 0, high = 99 }
    [space.model]
    widths = { low = 8, high = 32, log = true, depth = { low = 1, high = 3 } }
    bias = { flag = true }
    [rungs]
    kind = "mo_asha"
    eta = 2
    min_steps = 10
    bracket = 8
    bands = [0.5, 0.8]
    [arms.random]
    [arms.e]
    strategy = "evolution"
    options = { population = 4 }
    rungs = { kind = "none" }
    against = ["random"]
    [verdict]
    objectives = ["val_error", "n_params", "macs"]
    reference = [0.9, 20_000.0, 20_000.0]
    """,
    """
    [masks]
    method = "imp"
    [space.masks]
    sparsity = { low = 0.5, high = 0.95 }
    rate = { low = 0.2, high = 0.5 }
    ap_fraction = { low = 0.0, high = 0.1 }
    rewind_fraction = { choices = [0.0, 0.1] }
    score = { choices = ["magnitude", "snip"] }
    [rungs]
    kind = "asha"
    fidelity = "level"
    min_steps = 2
    eta = 2
    [arms.random]
    rungs = { kind = "none" }
    [arms.a]
    """,
    """
    [search]
    probe_size = 32
    [masks]
    sparsity = 0.5
    [space.training]
    lr = { low = 1e-3, high = 1e-1, log = true }
    [arms.random]
    [arms.b.space.masks]
    bits = true
    [arms.s.space.masks]
    method = { choices = ["random", "snip", "gmp", "set"] }
    allocation = "erk"
    sparsity = { low = 0.5, high = 0.9 }
    [arms.n]
    controls = ["shuffled_layers", "dense_budget"]
    [arms.n.space.masks]
    method = "structured_l1"
    kind = "node"
    allocation = "uniform"
    """,
    """
    sparsities = [0.5]
    quality = ["calibration"]
    [masks]
    kind = "weight"
    allocation = "erk"
    [arms.random]
    [arms.searched]
    [arms.snip]
    rounds = 3
    controls = ["shuffled", "fresh_weights"]
    [arms.mine]
    method = "imp"
    rate = 0.3
    rewind_fraction = 0.1
    siblings = true
    [arms.own]
    method = "magnitude_oneshot"
    allocation = "explicit"
    densities = [0.5, 0.5]
    [verdict]
    objectives = ["val_error", "val_ece"]
    """,
]

SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "replicates": 2,
    "data": {"name": "mnist1d", "num_samples": 1000, "test_samples": 200},
    "model": {"name": "mlp", "widths": [20]},
    "training": {"steps": 60, "batch_size": 50},
}


def _studies() -> list[dict[str, Any]]:
    found = [tomllib.loads(path.read_text("utf-8")) for path in EXAMPLES]
    for text in OTHERS:
        own = tomllib.loads(text)
        found.append(SMALL | own | {"model": SMALL["model"] | own.get("model", {})})
    for table in found:
        if table.get("data", SMALL["data"])["name"] == "mnist1d":
            table["data"] = SMALL["data"]
    return found


STUDIES = _studies()


def places(table: dict[str, Any], above: Path_ = ()) -> Iterator[Path_]:
    """Every key of a table and of those in it."""
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def held(table: dict[str, Any], place: Path_) -> Any:
    for key in place:
        table = table[key]
    return table


#: Values that are of a wrong type in most places, and the right ones of others.
JUNK: list[Any] = [
    *(0, -1, 1, 3, 40, 10**18, -(10**18), 2**53, 2**63, 0.5, 1e308, -0.0, float("nan"), float("inf"), True, False),
    *("", "a", "ü\u2028\U0001f600", "\x00", "uniform", "searched", "imp", "snip", "2:4", "node", "random"),
    *("mo_asha", "hyperband", "n_params", "n_params <= 5", "seconds"),
    *([], [1], ["a"], [[1]], [{}], ["imp"], [0.5, float("nan")], [0, 0], ["random", "random"], ["n_params <= 5_000"]),
    *({}, {"": 1}, {"a": {"b": {}}}, {"low": 1, "high": 2}, {"low": 0.1, "high": 0.2}, {"low": "a", "high": []}),
    *({"choices": [1, 2]}, {"choices": ["a", "b"]}, {"choices": [["a"]]}, {"choices": {}}, {"flag": True}),
    {"low": 1, "high": 4, "depth": {"low": 1, "high": 2}},
]


@st.composite
def mutants(draw: Any) -> dict[str, Any]:
    """A valid study of which up to three places are other values, or gone, or elsewhere, or called otherwise."""
    table = copy.deepcopy(draw(st.sampled_from(STUDIES)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        known = list(places(table))
        if not known:
            break
        place = draw(st.sampled_from(known))
        above, key = held(table, place[:-1]), place[-1]
        what = draw(st.sampled_from(["junk", "junk", "junk", "removed", "renamed", "copied", "foreign"]))
        if what == "junk":
            above[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif what == "removed":
            del above[key]
        elif what == "renamed":
            above[draw(st.sampled_from([f"{key}s", key[:-1], "", "ü", "x" * 300, "a.b"]))] = above.pop(key)
        elif what == "copied":
            other = held(table, draw(st.sampled_from(known)))
            if isinstance(other, dict) and other is not above[key]:
                other[draw(st.sampled_from([key, "low", "name", "kind"]))] = copy.deepcopy(above[key])
        else:
            foreign = draw(st.sampled_from(STUDIES))
            above[key] = copy.deepcopy(held(foreign, draw(st.sampled_from(list(places(foreign))))))
    return table


def assert_one_line(said: str, of: object) -> None:
    assert said.isprintable(), of  # which the end of a line is not
    assert len(said) < 1000, of


def verdict_on(table: dict[str, Any]) -> str:
    """'accepted', or the line in which the study is refused, before or once its data are there."""
    try:
        study = Study.from_dict(table)
        assert Study.from_dict(study.identity()).digest == study.digest
        dataset = study._checked_data()
        study.recorded(dataset)
        study._remarks(dataset)
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutants())
def test_a_study_is_accepted_or_refused_in_one_line(table: dict[str, Any]) -> None:
    assert_one_line(verdict_on(table), table)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: str(study["name"]))
def test_no_key_of_a_study_holds_what_is_not_expected(study: dict[str, Any]) -> None:
    """Every key, of every type that a file may give it."""
    for place in places(study):
        for value in ([], ["a"], [[1]], {}, {"choices": ["a", "b"]}, "a", -1, 0.5, float("nan"), True):
            table = copy.deepcopy(study)
            held(table, place[:-1])[place[-1]] = copy.deepcopy(value)
            try:
                Study.from_dict(table)
            except ConfigError as error:
                assert_one_line(str(error), (place, value))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: str(study["name"]))
def test_what_the_mutants_are_made_of_is_accepted(study: dict[str, Any]) -> None:
    assert verdict_on(study) == "accepted"
