"""A search as users write, run and read it: what it resolves to, what it refuses, and what the commands say of it."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefront
from sparsefront.cli import main
from sparsefront.errors import ConfigError
from sparsefront.listing import listing
from sparsefront.search.design import SearchDesign
from sparsefront.search.ledger import Ledger
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.points import points_from_rows
from sparsefront.search.report.search_numbers import search_report_numbers
from sparsefront.search.run import longest_training
from sparsefront.search.rungs import RUNGS, rung_steps
from sparsefront.search.schema import OF_NETWORKS
from sparsefront.search.simulator import SYNTHETIC, LedgerObjective, Query
from sparsefront.search.strategies import STRATEGIES
from sparsefront.spaces.canonical import permuted
from sparsefront.spaces.domains import Float
from sparsefront.spaces.masks import unpack_bits
from sparsefront.spaces.ready import READY_SPACES
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Dimension, Space
from sparsefront.study import SearchStudy, Study
from sparsefront.trainables.data import held_out_counts, load_dataset, n_used
from tests.faults.inline_search import rows_of, run_search
from tests.test_study import as_toml

LR = {"low": 1e-3, "high": 1e-1, "log": True}
WIDTHS = {"low": 2, "high": 8, "depth": {"low": 1, "high": 2}}
BASE: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "replicates": 2,
    "data": {"name": "digits"},
    "training": {"steps": 18, "batch_size": 32},
    "space": {"training": {"lr": LR}, "model": {"widths": WIDTHS}, "masks": {"sparsity": {"low": 0.0, "high": 0.8}}},
    "search": {"candidates": 8, "batch": 4},
    "arms": {"random": {}, "other": {"strategy": "nsga2", "options": {"population": 4}}},
}


def table(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(BASE | changes)


def made(**changes: Any) -> SearchStudy:
    study = Study(**table(**changes))
    assert isinstance(study, SearchStudy)
    return study


# What a study is ------------------------------------------------------------------------------------------------------


def test_what_a_method_comes_to_is_recorded() -> None:
    chained = made(masks={"method": "ap", "sparsity": 0.5})
    assert chained.recorded()["resolved"]["method"] == {
        "when": "levels",
        "score": "magnitude",
        "pattern": "unstructured",
        "allocation": "global",
        "rate": 0.2,
        "survivors": "rewound",
        "rewind_fraction": 0.0,
        "ap_fraction": 0.02,
        "ap_sign": -1,
    }
    assert "method" not in made().recorded()["resolved"]


def test_a_study_with_a_space_is_a_search() -> None:
    assert isinstance(Study(**table()), SearchStudy)
    assert not isinstance(Study(name="a", seed=1, replicates=1, sparsities=[0.5], training={"steps": 1}), SearchStudy)


def test_arms_take_over_what_they_do_not_say() -> None:
    arms = {"random": {"batch": 5}, "asha": {"candidates": 99, "rungs": {"kind": "asha", "eta": 4}}}
    study = made(arms=arms, search={"batch": 16}, rungs={"kind": "hyperband", "min_steps": 2})
    found = study.identity()["arms"]
    assert (found["random"]["candidates"], found["random"]["batch"]) == (256, 5)
    assert (found["asha"]["candidates"], found["asha"]["batch"]) == (99, 16)
    assert [found["random"]["rungs"][k] for k in ("kind", "eta", "min_steps", "bracket")] == ["hyperband", 3, 2, 64]
    assert [found["asha"]["rungs"][k] for k in ("kind", "eta", "min_steps", "bracket")] == ["asha", 4, 2, 64]
    assert {name: (arm["strategy"], arm["against"]) for name, arm in found.items()} == {
        "random": ("random", "random"),
        "asha": ("random", "random"),
    }
    several = made(arms={"random": {}, "b": {}, "c": {"against": ["b", "random"]}})
    assert several.identity()["arms"]["c"]["against"] == ["b", "random"]
    assert [(arm.name, arm.against) for arm in several.design().arms] == [
        *(("b", ("random",)), ("random", ("random",)), ("c", ("b", "random")))
    ]
    assert made(arms={"random": {"against": ["random"]}}).digest == made(arms={"random": {}}).digest
    assert made(arms={"random": {"against": []}}).digest == made(arms={"random": {}}).digest
    alone = made(arms={"b": {"strategy": "tpe", "against": []}})
    assert alone.identity()["arms"]["b"]["against"] == []
    assert Study.from_dict(json.loads(json.dumps(alone.identity()))).digest == alone.digest
    assert alone.design().arms[0].opponents == ()
    assert "compute" not in study.identity()
    assert made(compute={"workers": 3}, record={"enabled": False}).digest == made().digest


def test_options_that_were_left_out_are_written_down() -> None:
    study = made(
        arms={"random": {}, "other": {"strategy": "nsga2", "options": {"population": 4}}, "tpe": {"strategy": "tpe"}}
    )
    arms = study.identity()["arms"]
    assert arms["random"]["options"] == {}
    assert arms["other"]["options"] == {
        "population": 4, "mutation_fraction": None, "crossover_fraction": 0.9, "swap_fraction": 0.5
    }  # fmt: skip
    assert Study.from_dict(study.identity()).digest == study.digest
    assert arms["tpe"]["options"] == {
        "n_startup_trials": 10, "n_ei_candidates": 24, "multivariate": True, "constant_liar": True
    }  # fmt: skip
    # A default that is written out is the same study, another value is not.
    tpe = {"strategy": "tpe", "options": {"n_ei_candidates": 24}}
    assert made(arms={"random": {}, "tpe": tpe}).digest == made(arms={"random": {}, "tpe": {"strategy": "tpe"}}).digest
    tpe["options"] = {"n_ei_candidates": 25}
    assert made(arms={"random": {}, "tpe": tpe}).digest != made(arms={"random": {}, "tpe": {"strategy": "tpe"}}).digest


def test_a_design_has_spaces_and_rungs_of_each_arm() -> None:
    arms = {
        "random": {"rungs": {"kind": "mo_asha"}},
        "asha": {"rungs": {"kind": "asha"}, "space": {"training": {"lr": 0.5, "optimizer": {"choices": ["sgd"]}}}},
        "told": {"rungs": {"kind": "asha", "objectives": ["val_error"]}},
        "both": {"rungs": {"kind": "mo_asha", "objectives": ["val_loss", "macs"]}},
    }
    design = made(arms=arms).design()
    assert isinstance(design, SearchDesign)
    by_name = {arm.name: arm for arm in design.arms}
    assert by_name["random"].rungs.objectives == ("val_error", "n_params")
    assert by_name["asha"].rungs.objectives == ("val_loss",)
    assert by_name["told"].rungs.objectives == ("val_error",)
    assert by_name["both"].rungs.objectives == ("val_loss", "macs")
    assert by_name["random"].space.names == ("depth", "width_1", "width_2", "sparsity", "lr")
    assert by_name["asha"].space.names == ("depth", "width_1", "width_2", "sparsity", "optimizer")
    assert by_name["asha"].space.constants == {"training.lr": 0.5}


@pytest.mark.parametrize("data", ["digits", "mnist1d"])
@pytest.mark.parametrize("name", READY_SPACES)
def test_ready_spaces_are_studies(name: str, data: str, tmp_path: Path) -> None:
    study = made(space={"ready": name}, data={"name": data})
    dataset = study._checked_data()
    assert study.model.name == READY_SPACES[name].model["name"]
    design = study.design(dataset)
    assert isinstance(design, SearchDesign)
    recorded = study.recorded(dataset)
    names = {n for arm in design.arms for n in arm.space.names}
    assert set(recorded["resolved"]["columns"]) == names - {"lr", "weight_decay"}  # those are columns of all ledgers
    describe = study._describer(dataset)
    for arm in design.arms:
        for point in arm.space.decode([[u] * arm.space.n_cube for u in (0.0, 0.3, 0.6, 1.0)]):
            assert describe(0, point, arm.space).n_params > 0
    assert_round_trip(study, tmp_path)


def assert_round_trip(study: Study, folder: Path) -> None:
    again = Study.from_dict(study.identity())
    assert (again, again.digest) == (study, study.digest)
    (folder / "a.toml").write_text(as_toml(study.identity()), encoding="utf-8")
    assert Study.from_toml(folder / "a.toml").digest == study.digest


def test_own_values_replace_those_of_a_ready_space(tmp_path: Path) -> None:
    space = {"ready": "lenet_300_100", "training": {"lr": 0.01}, "masks": {"allocation": "erk"}}
    study = made(space=space, masks={"kind": "weight"})
    assert study.model.options["widths"] == [300, 100]
    (arm, _) = study.design().arms
    assert arm.space.names == ("sparsity",)
    assert arm.space.constants == {"training.lr": 0.01, "masks.allocation": "erk"}
    assert_round_trip(study, tmp_path)


@settings(max_examples=20, deadline=None)
@given(st.randoms())
def test_the_order_of_keys_does_not_matter(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(part)) for key, part in value.items()]
        random.shuffle(items)
        return dict(items)

    study = made()
    again = Study(**shuffled(table()))
    assert again.digest == study.digest
    assert again.design() == study.design()


def test_what_the_ledger_needs_of_the_parent_is_recorded() -> None:
    allocation = {"choices": ["uniform", "erk", "searched"]}
    arms = {"random": {}, "searched": {"space": {"masks": {"allocation": allocation}}}}
    resolved = made(arms=arms).recorded()["resolved"]
    assert resolved["n_classes"] == 10
    assert (resolved["n_sections"], resolved["bits"]) == (3, None)  # two hidden layers at most, and the output layer
    assert resolved["columns"] == {
        "depth": "int64", "width_1": "int64", "width_2": "int64", "sparsity": "float64", "allocation": "string",
        "share_1": "float64", "share_2": "float64", "share_3": "float64",
    }  # fmt: skip


def digests(study: SearchStudy, *points: dict[str, Any]) -> list[str]:
    space = study.design().arms[0].space
    return [space.digest(point) for point in points]


def test_what_takes_no_effect_makes_no_other_candidate() -> None:
    choice = {"choices": ["adam", "sgd"]}
    numbers = {name: {"low": 0.1, "high": 0.9} for name in ("momentum", "beta1", "beta2")}
    study = made(space={"training": {"optimizer": choice, **numbers}}, arms={"random": {}})
    point = {"optimizer": "adam", "beta1": 0.9, "beta2": 0.9, "momentum": 0.1}
    adam = digests(study, point, {**point, "momentum": 0.5}, {**point, "beta1": 0.5}, {**point, "beta2": 0.5})
    assert [adam.index(d) for d in adam] == [0, 0, 2, 3]
    point["optimizer"] = "sgd"
    sgd = digests(study, point, {**point, "beta1": 0.5, "beta2": 0.5}, {**point, "momentum": 0.5})
    assert [sgd.index(d) for d in sgd] == [0, 0, 2]
    assert not set(adam) & set(sgd)
    # The optimiser may be the study's.
    training = {"steps": 18, "batch_size": 32, "optimizer": "sgd"}
    study = made(space={"training": numbers}, training=training, arms={"random": {}})
    assert len(set(digests(study, *({"beta1": b, "beta2": 0.5, "momentum": 0.5} for b in (0.2, 0.4))))) == 1


def test_a_mask_that_removes_nothing_is_none() -> None:
    masks: dict[str, Any] = {"draw": {"low": 0, "high": 9}, "sparsity": {"low": 0.0, "high": 0.9}}
    masks["allocation"] = {"choices": ["uniform", "erk"]}
    study = made(space={"masks": masks}, arms={"random": {}})
    dense = [{"mask_draw": i, "sparsity": 0.0, "allocation": a} for i in (0, 9) for a in ("uniform", "erk")]
    masked = [{**point, "sparsity": 0.5} for point in dense]
    assert len(set(digests(study, *dense))) == 1
    assert len(set(digests(study, *dense, *masked))) == 5


def test_shares_of_layers_that_are_not_there_make_no_other_candidate() -> None:
    space = {
        "model": {"widths": {**WIDTHS, "low": 8, "high": 16}},
        "masks": {"allocation": "searched", "sparsity": 0.5},
    }
    study = made(space=space, arms={"random": {}})
    shares = {"share_1": 0.5, "share_2": 0.2, "share_3": 0.3}
    short, long = {"depth": 1, "width_1": 8, **shares}, {"depth": 2, "width_1": 8, "width_2": 8, **shares}
    found = digests(study, short, {**short, "share_3": 1.0}, {**short, "share_2": 0.4})
    assert [found.index(d) for d in found] == [0, 0, 2]
    assert len(set(digests(study, long, {**long, "share_3": 1.0}))) == 2
    double = {**short, "share_1": 1.0, "share_2": 0.4}  # the same ratios
    assert digests(study, short) == digests(study, double)


def test_a_mask_is_what_it_is_drawn_from_however_it_was_written() -> None:
    masks: dict[str, Any] = {"draw": {"low": 0, "high": 9}, "sparsity": {"low": 0.0, "high": 0.9}}
    masks["allocation"] = {"choices": ["uniform", "global", "searched"]}
    model = {"name": "mlp", "widths": [16], "bias": True}
    study = made(space={"masks": masks}, model=model, arms={"random": {}})
    uniform = {"mask_draw": 1, "sparsity": 0.5, "allocation": "uniform"}
    searched = {**uniform, "allocation": "searched", "share_1": 0.5, "share_2": 0.5}
    found = digests(
        study,
        uniform,
        searched,
        {**searched, "share_1": 0.5001},  # too little for another weight
        {**searched, "share_1": 0.6},
        {**uniform, "mask_draw": 2},
        {**uniform, "allocation": "global"},
        # As many weights, drawn by other random numbers.
        {**uniform, "sparsity": 0.5001},
    )
    assert [found.index(d) for d in found] == [0, 0, 0, 3, 4, 5, 6]
    networks = study._networks(load_dataset("digits"))
    space = study.design().arms[0].space
    masked = [networks.describe(0, space.settings(p)) for p in (uniform, searched, {**uniform, "sparsity": 0.5001})]
    assert masked[0].kept == masked[1].kept == masked[2].kept
    assert masked[0].mask is not None
    assert (masked[0].mask == masked[1].mask).all()
    assert (masked[0].mask != masked[2].mask).any()


def test_what_removes_nothing_is_dense_however_it_was_written() -> None:
    masks: dict[str, Any] = {"draw": {"low": 0, "high": 9}, "sparsity": {"low": 0.0, "high": 0.9}}
    kinds = {"kind": {"choices": ["node", "weight"]}, "pattern": {"choices": ["unstructured", "2:4", "4:4", "2x2"]}}
    study = made(space={"masks": masks | kinds}, model={"name": "mlp", "widths": [8]}, arms={"random": {}})
    weight = {"mask_draw": 3, "sparsity": 0.0, "kind": "weight", "pattern": "unstructured"}
    node = {"mask_draw": 3, "sparsity": 0.0, "kind": "node"}
    found = digests(
        study,
        weight,
        node,
        {**node, "sparsity": 0.05},  # of eight units
        {**weight, "pattern": "4:4", "sparsity": 0.7},
        {**weight, "pattern": "2:4"},
        {**weight, "pattern": "2:4", "sparsity": 0.7},
        {**weight, "pattern": "2x2"},
        {**weight, "pattern": "2x2", "sparsity": 0.5},
        {**node, "sparsity": 0.5},
    )
    assert [found.index(d) for d in found] == [0, 0, 0, 0, 4, 4, 0, 7, 8]


def test_rates_that_come_to_the_same_are_the_same() -> None:
    training = {"warmup_fraction": {"low": 0.0, "high": 0.5}, "momentum": {"low": 0.0, "high": 0.9}}
    training |= {"nesterov": {"flag": True}}
    base = {"steps": 18, "batch_size": 32, "optimizer": "sgd"}
    study = made(space={"training": training}, training=base, arms={"random": {}})
    point = {"warmup_fraction": 0.0, "momentum": 0.0, "nesterov": False}
    found = digests(
        study,
        point,
        {**point, "warmup_fraction": 0.02},  # of 18 steps
        {**point, "warmup_fraction": 0.2},
        {**point, "nesterov": True},
        {**point, "momentum": 0.5},
        {**point, "momentum": 0.5, "nesterov": True},
    )
    assert [found.index(d) for d in found] == [0, 0, 2, 0, 4, 5]
    adam = made(space={"training": training}, arms={"random": {}})
    assert (
        len(set(digests(adam, *({**point, "momentum": m, "nesterov": n} for m in (0.0, 0.5) for n in (False, True)))))
        == 1
    )


MIXED: dict[str, Any] = {
    "model": {"widths": WIDTHS | {"low": 4}},
    "masks": {
        "kind": {"choices": ["node", "weight"]},
        "pattern": {"choices": ["unstructured", "2:4", "2x2"]},
        "sparsity": {"low": 0.3, "high": 0.8},
        "allocation": {"choices": ["uniform", "global", "searched"]},
    },
    "training": {
        "lr": LR,
        "lr_schedule": {"choices": ["constant", "cosine", "linear"]},
        "warmup_fraction": {"low": 0.0, "high": 0.3},
        "optimizer": {"choices": ["adam", "sgd"]},
        "momentum": {"low": 0.0, "high": 0.9},
        "nesterov": {"flag": True},
        "precision": {"choices": ["float32", "bfloat16"]},
    },
}


@pytest.mark.usefixtures("_one_thread")
def test_kinds_patterns_and_rates_are_searched(tmp_path: Path) -> None:
    """What was known of each candidate is what was trained; unlike ones share packs; the record reads back."""
    arms: dict[str, Any] = {
        "random": {},
        "evolution": {"strategy": "evolution", "options": {"population": 4}},
        "nodes": {"space": {"masks": {"kind": "node", "pattern": "unstructured"}}},
        "two_of_four": {
            "space": {"masks": {"kind": "weight", "pattern": "2:4", "sparsity": 0, "allocation": "uniform"}}
        },
    }
    study = made(space=MIXED, arms=arms, replicates=1, search={"candidates": 16, "batch": 8})
    assert_round_trip(study, tmp_path)
    design = study.design()
    assert design.mask_kind == "node and weight"
    assert study.recorded()["resolved"]["n_sections"] == 3  # two hidden layers, and the output layer
    columns = study.recorded()["resolved"]["columns"]
    assert {columns[n] for n in ("kind", "pattern", "lr_schedule", "allocation")} == {"string"}
    assert columns["warmup_fraction"] == "float64"
    run_search(study, tmp_path / "study")
    rows = [row for row in rows_of(tmp_path / "study").values() if not row["reused"]]
    assert len(rows) == 64
    assert {row["outcome"] for row in rows} == {"completed"}
    describe = study._describer(load_dataset("digits"))
    spaces = {arm.name: arm.space for arm in design.arms}
    for row in rows:
        space = spaces[row["arm"]]
        active = {name: row[name] for name in space.names if row[name] is not None}
        point = {d.name: active[d.name] for d in space.dimensions if d.is_active(active)}
        expected = describe(0, point, space)
        assert (row["candidate"], row["n_params"], row["macs"]) == (expected.id, expected.n_params, expected.macs)
        assert row["weight_sparsity"] == expected.weight_sparsity
        assert row["mask_kind"] == space.settings(point)["masks.kind"]
        if row["mask_kind"] == "node":
            assert row["pattern"] is None
            assert row["node_sparsity"] == expected.node_sparsity
    assert {row["mask_kind"] for row in rows if row["arm"] == "nodes"} == {"node"}
    of_four = [row["weight_sparsity"] for row in rows if row["arm"] == "two_of_four"]
    assert all(0.4 < sparsity <= 0.5 for sparsity in of_four)  # inputs left over by a width stay
    kinds_of_packs: dict[str, set[str]] = {}
    for row in rows:
        kinds_of_packs.setdefault(row["pack"], set()).add(row["mask_kind"])
    assert any(len(kinds) == 2 for kinds in kinds_of_packs.values())


def test_a_space_may_be_given_as_one(tmp_path: Path) -> None:
    space = Space.from_table(MIXED, n_sections=3)
    assert Study.from_dict(table(space=space)).digest == made(space=MIXED).digest
    study = made(space=space, arms={"random": {}, "b": {"space": {"training": {"lr": 0.1}}}})
    assert study.space == space.to_table()
    assert_round_trip(study, tmp_path)
    by_hand = Space((Dimension("lr", "training.lr", Float(1e-3, 1e-1, log=True)),), constraints=space.constraints)
    assert made(space=by_hand).digest == made(space={"training": {"lr": LR}}).digest
    masked = made(space=MIXED).design().arms[0].space
    assert made(space=masked).digest == made(space=MIXED).digest
    with pytest.raises(ConfigError, match=r"^space: its dimensions are not what any \[space\] table yields$"):
        made(space=Space((Dimension("rate", "training.lr", Float(0.1, 1.0)),)))
    with pytest.raises(ConfigError, match=r"^space\.training\.rate="):
        made(space=Space((Dimension("rate", "training.rate", Float(0.1, 1.0)),)))
    own = {"training": {"lr": {"low": 0.01, "high": 0.1}}, "masks": {"draw": 0}}
    study = made(space=space, arms={"random": {}, "b": {"space": Space.from_table(own)}})
    assert study.digest == made(space=MIXED, arms={"random": {}, "b": {"space": own}}).digest
    assert study.design().arms[1].space == made(space=MIXED).design().arms[0].space.with_overrides(own)
    assert_round_trip(study, tmp_path)
    with pytest.raises(ConfigError, match=r"^arms\.b\.space: its dimensions are not what any \[space\] table yields$"):
        made(arms={"random": {}, "b": {"space": Space((Dimension("rate", "training.lr", Float(0.1, 1.0)),))}})


def test_no_hint_names_what_is_refused() -> None:
    for section, key in (("masks", "sparsit"), ("training", "lrr"), ("model", "wdths")):
        with pytest.raises(ConfigError) as caught:
            made(space={section: {key: 1}})
        hints = str(caught.value).partition("must be one of ")[2].partition(";")[0].split(", ")
        chained_keys = {
            "rate",
            "ap_fraction",
            "rewind_fraction",
        }  # which are refused without a method, with that reason
        for hint in set(hints) - chained_keys:
            with pytest.raises(ConfigError) as again:
                made(space={section: {hint: {"nothing": 1}}})
            assert "no such key" not in str(again.value), hint
            assert str(again.value).startswith(f"space.{section}.{hint}"), hint
    with pytest.raises(ConfigError) as caught:
        made(space={"dat": {}})
    assert "data" not in str(caught.value)


@pytest.mark.usefixtures("_one_thread")
def test_a_run_trains_candidates_that_are_equal_once_and_ends_with_its_space(tmp_path: Path) -> None:
    space = {"training": {"optimizer": {"choices": ["adam", "sgd"]}, "momentum": {"choices": [0.0, 0.5, 0.9]}}}
    study = made(space=space, arms={"random": {}}, search={"candidates": 6, "batch": 4}, replicates=1)
    run_search(study, tmp_path / "study")
    rows = list(rows_of(tmp_path / "study").values())
    trained = {(row["optimizer"], row["momentum"] if row["optimizer"] == "sgd" else 0) for row in rows}
    assert len([row for row in rows if not row["reused"]]) == len(trained) == 4  # sgd thrice, adam once
    copies = [row for row in rows if row["reused"]]
    assert {"adam", "sgd"} >= {row["optimizer"] for row in copies}
    assert len({(row["optimizer"], row["momentum"]) for row in rows}) == 6
    assert len(rows) < 60


# Controls -------------------------------------------------------------------------------------------------------------

CONTROLLED: dict[str, Any] = {
    "model": {"name": "mlp", "widths": [24, 16]},
    "masks": {"kind": "weight", "sparsity": 0.8},
    "space": {"training": {"lr": LR}},
    "search": {"candidates": 5, "batch": 2},
    "arms": {
        "random": {"controls": ["shuffled", "dense_budget"]},
        "imp": {
            "space": {"masks": {"method": "imp_rewind", "rewind_fraction": 0.3, "rate": 0.6}},
            "controls": ["shuffled_layers", "shuffled", "fresh_weights", "small_dense", "dense_budget"],
        },
        "snip": {
            "strategy": "nsga2",
            "options": {"population": 2},
            "space": {"masks": {"method": "snip"}},
            "controls": ["shuffled_layers"],
        },
        "asha": {"rungs": {"kind": "asha", "min_steps": 6, "bracket": 5}, "space": {"masks": {"method": "snip"}}},
    },
}


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("controlled") / "study"
    run_search(made(**CONTROLLED), folder)
    torch.set_num_threads(before)
    return folder


def test_controls_are_recorded_beside_what_they_are_held_against(controlled: Path) -> None:
    rows = [row for row in rows_of(controlled).values() if row["stage"] == "trained"]
    results = sparsefront.load(controlled)
    design = results.design
    assert isinstance(design, SearchDesign)
    arms = [arm.name for arm in design.arms]
    assert len(design.names) == len(arms) + 8
    originals = {(r["arm"], r["replicate"], r["slot"]): r for r in rows if r["arm"] in arms}
    assert all(r["control_of"] is None for r in originals.values())
    with Ledger.read(controlled) as ledger:
        for control in design.controls:
            mine = [r for r in rows if r["arm"] == control.name]
            held = [originals[control.arm, r["replicate"], r["control_of"]] for r in mine]
            known = [r for r in originals.values() if r["arm"] == control.arm and r["outcome"] == "completed"]
            assert sorted(id(r) for r in held) == sorted(id(r) for r in known)
            assert 0 < len(mine) <= 10
            for row, original in zip(mine, held, strict=True):
                assert (row["outcome"], row["lr"]) == ("completed", original["lr"])
                bits = ledger.get_blob(original["mask_digest"])  # that of a mask which nobody could draw again
                n_left = int(np.count_nonzero(unpack_bits(bits, 64 * 24 + 24 * 16 + 16 * 10)))
                assert n_left == original["n_params"] - (24 + 16 + 10)
                if control.kind in ("shuffled_layers", "shuffled", "fresh_weights"):
                    assert row["n_params"] == original["n_params"]
                    assert (row["mask_digest"] == original["mask_digest"]) == (control.kind == "fresh_weights")
                elif control.kind == "small_dense":
                    assert row["n_params"] == pytest.approx(original["n_params"], rel=0.1)
                else:
                    assert row["weight_sparsity"] == 0.0
    assert results.n_trained() == (len(rows), len(rows))


def test_a_verdict_holds_the_networks_of_an_arm_against_their_controls(controlled: Path) -> None:
    results = sparsefront.load(controlled)
    verdict, rows = results.verdict(), [r for r in rows_of(controlled).values() if r["stage"] == "trained"]
    assert len(verdict.controls) == 8
    for found in verdict.controls:
        name = f"{found.arm}_{found.control}"
        arms, controls = [], []
        for replicate in range(2):
            theirs = {r["control_of"]: r for r in rows if r["arm"] == name and r["replicate"] == replicate}
            mine = [r for r in rows if r["arm"] == found.arm and r["replicate"] == replicate and r["slot"] in theirs]
            arms.append(1 - np.mean([r["test_error"] for r in mine]))
            controls.append(1 - np.mean([r["test_error"] for r in theirs.values()]))
        assert (found.n, found.sparsity, found.metric, found.margin) == (2, None, "accuracy", 0.01)
        assert found.arm_mean == pytest.approx(np.mean(arms))
        assert found.control_mean == pytest.approx(np.mean(controls))
        assert found.difference == pytest.approx(found.arm_mean - found.control_mean)
    (ratios,) = verdict.layer_ratios
    assert (ratios.arm, ratios.control) == ("imp", "layer_ratios")
    by_kind = {c.control: c for c in verdict.controls if c.arm == "imp"}
    assert ratios.difference == pytest.approx(
        by_kind["shuffled_layers"].control_mean - by_kind["shuffled"].control_mean
    )
    spent = {one.arm: one for one in verdict.spent}
    assert list(spent) == [*(arm.name for arm in results.design.arms), *(c.name for c in results.design.controls)]
    for name, one in spent.items():
        mine = [r for r in rows_of(controlled).values() if r["arm"] == name]
        assert one.passes == pytest.approx(sum(r["passes"] for r in mine))
    assert [s for s in verdict.sentences if s.startswith("imp: ")]
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["controls"][0]["sparsity"] is None


def test_controls_are_neither_contenders_nor_on_a_front(controlled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = sparsefront.load(controlled)
    arms = {arm.name for arm in results.design.arms}
    assert {c.arm for c in results.verdict().comparisons} | {"random"} == arms
    assert set(results.front(objectives=["val_error", "passes"]).column("arm").to_pylist()) <= arms
    with pytest.raises(ConfigError, match="imp_shuffled"):
        results.front(where="arm == 'imp_shuffled'")
    assert results.to_arrow(where="arm == 'imp_shuffled' and test_error < 2").num_rows == 10
    assert main(["verdict", str(controlled)]) == 0
    said = capsys.readouterr().out
    assert "Arms against their controls, candidate by candidate: accuracy in points" in said
    page = results.report().read_text()
    assert "Arms against their controls" in page
    assert "shuffled_layers" in page


def test_a_study_without_controls_is_what_it_was() -> None:
    """Their key is written where there are any, so that ledgers from before go on."""
    assert all("controls" not in arm for arm in made().identity()["arms"].values())
    assert "control_of" not in made().recorded()["resolved"]["columns"]
    found = made(**CONTROLLED)
    assert found.identity()["arms"]["snip"]["controls"] == ["shuffled_layers"]
    assert found.recorded()["resolved"]["columns"]["control_of"] == "int64"
    assert Study.from_dict(found.identity()).digest == found.digest


def test_controls_are_trained_once_whatever_is_lost(controlled: Path, tmp_path: Path) -> None:
    """In any order, in packs of any size, from masks that other packs left: the same rows."""
    run_search(made(**CONTROLLED), tmp_path / "again", slots=3, max_lanes=3, order=1)
    run_search(made(**CONTROLLED), tmp_path / "again")  # nothing is left to do
    expected, found = rows_of(controlled), rows_of(tmp_path / "again")
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key]["candidate"] == row["candidate"]
        assert found[key]["mask_digest"] == row["mask_digest"]
        assert found[key]["val_loss"] == pytest.approx(row["val_loss"], abs=1e-4)


def test_what_is_one_dense_parent_is_trained_once_and_counts_for_all(tmp_path: Path) -> None:
    """Networks that differ in their masks alone cost the same, and what that buys is one network."""
    space = {"masks": {"draw": {"low": 0, "high": 9}, "sparsity": {"choices": [0.0, 0.5]}}}
    arms = {"random": {"controls": ["dense_budget", "small_dense"]}}
    study = made(**CONTROLLED | {"space": space, "arms": arms, "search": {"candidates": 8, "batch": 4}})
    run_search(study, tmp_path / "study")
    rows = [row for row in rows_of(tmp_path / "study").values() if row["stage"] == "trained"]
    originals = [r for r in rows if r["arm"] == "random" and not r["reused"] and r["weight_sparsity"] > 0]
    bought = [r for r in rows if r["arm"] == "random_dense_budget"]
    small = [r for r in rows if r["arm"] == "random_small_dense"]
    assert 4 < len(originals) == len(bought) == len(small) < 16  # some remove nothing, and have no control
    assert [r["reused"] for r in bought] == [r["slot"] > 0 for r in bought]
    assert not any(r["reused"] for r in small)
    assert len({r["candidate"] for r in small}) == len(small)
    results = sparsefront.load(tmp_path / "study")
    found = {c.control: c for c in results.verdict().controls}["dense_budget"]
    first = {r["replicate"]: r for r in bought if not r["reused"]}
    expected = [
        (1 - np.mean([r["test_error"] for r in originals if r["replicate"] == i])) - (1 - first[i]["test_error"])
        for i in range(2)
    ]
    assert found.difference == pytest.approx(np.mean(expected))
    assert results.n_trained()[0] == results.n_trained()[1]


def test_the_budget_of_scores_is_that_of_the_examples_there_are(tmp_path: Path) -> None:
    """Of 512 scoring examples a share of the data may leave fewer: the dense parent is not paid for the others."""
    space = {"training": {"lr": LR, "data_fraction": 0.1}, "masks": {"method": "gmp", "score": "grasp"}}
    arms = {"random": {"controls": ["dense_budget"]}}
    study = made(**CONTROLLED | {"space": space, "arms": arms, "replicates": 1})
    run_search(study, tmp_path / "study")
    rows = [row for row in rows_of(tmp_path / "study").values() if row["stage"] == "trained"]
    dataset = load_dataset("digits", {})
    n_validation = int(held_out_counts([dataset.n_train], fraction=0.2)[0])
    n_scored = n_used(0.1, dataset.n_train - n_validation)
    assert n_scored < 512
    scores = 3 * n_scored * len(study.recipe().methods["gmp"].rankings(18, taken=18))  # three passes of each for GraSP
    for row in rows:
        ended = (n_validation + len(dataset.x_test)) / 3
        if row["arm"] == "random":
            assert row["passes"] == pytest.approx(18 * 32 + scores + ended, rel=0.1)  # validated on the way, maybe
        else:
            assert row["steps"] == 18 + round(scores / 32)
    assert Counter(row["arm"] for row in rows) == {"random": 5, "random_dense_budget": 5}


def test_a_simulation_leaves_controls_out() -> None:
    changes = {**CONTROLLED, "arms": {"random": {"controls": ["shuffled"]}}}
    (row,) = made(**changes).simulate(workers=1).as_table()
    assert (row["arm"], row["candidates"]) == ("random", 5)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"verdict": {"objectives": ["val_error", "node_sparsity"]}, "masks": {"kind": "weight"}},
            {},
            "verdict.objectives: 'node_sparsity' is measured of trained networks, and a simulation trains none",
        ),
        (
            {"arms": {"random": {"rungs": {"kind": "ray_asha"}}}},
            {},
            "arms.random.rungs.kind='ray_asha': stops by Ray's own scheduler, which only runs with Ray",
        ),
        ({}, {"objective": "bowl", "ledger": "old"}, "objective='bowl': the results of 'old' are replayed"),
    ],
)
def test_what_cannot_be_simulated_is_refused(changes: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        made(**changes).simulate(**arguments)


def test_simulations_recognise_masks_that_are_the_same_but_for_the_order_of_units() -> None:
    masks = {"kind": "weight", "sparsity": 0.9}
    study = made(space={"masks": {"bits": True}}, model={"widths": [6]}, masks=masks, arms={"random": {}})
    space = study.design().arms[0].space
    (point,) = space.draw(philox_key(1, "test"), 0, 1)
    packed = point["mask_bits"]
    assert isinstance(packed, bytes)
    structure = study._networks(load_dataset("digits")).describe(0, {}).structure
    mirrored = permuted(structure, unpack_bits(packed, 6 * 64 + 6 * 10), [np.arange(6)[::-1]])
    assert mirrored != packed
    assert space.digest({"mask_bits": mirrored}) == space.digest(point)


@pytest.mark.parametrize(("kind", "sections", "kept"), [("weight", [384, 60], [115, 18]), ("node", [6], [2])])
def test_the_counts_of_searched_bits_are_recorded(kind: str, sections: list[int], kept: list[int]) -> None:
    masks = {"kind": kind, "sparsity": 0.7}
    arms = {"random": {}, "evolution": {"strategy": "evolution"}}
    study = made(space={"masks": {"bits": True}}, model={"widths": [6]}, masks=masks, arms=arms)
    resolved = study.recorded()["resolved"]
    assert resolved["bits"] == {"sections": sections, "kept": kept}
    assert resolved["columns"] == {"mask_bits": "string"}


def test_what_the_depth_of_an_hourglass_and_its_lift_add_is_counted() -> None:
    space = {"ready": "hourglass", "masks": {"allocation": "searched"}}
    resolved = made(space=space, masks={"sparsity": 0.5}).recorded()["resolved"]
    assert resolved["n_sections"] == 2 + 2 * 6  # trained lift, two layers in each of at most six blocks, output layer


# What is refused ------------------------------------------------------------------------------------------------------


def test_activating_while_pruning_asks_for_rectified_units_only_where_it_is_done() -> None:
    for share in (0.0, {"choices": [0.0, 0.1]}):
        for units in ("relu", "tanh"):
            table = chained({"ap_fraction": share}, model={"name": "mlp", "activation": units})
            if share and units == "tanh":
                with pytest.raises(ConfigError, match=r"^model\.activation='tanh': masks\.method='imp' with ap_"):
                    made(**table)
            else:
                assert made(**table).model.options["activation"] == units


def test_candidates_may_prune_themselves() -> None:
    """Rungs are ends of levels; the longest chain of a space says where the last one may lie."""
    space = {"sparsity": {"low": 0.0, "high": 0.8}, "rate": {"low": 0.2, "high": 0.5}, "ap_fraction": 0.05}
    rungs = {"kind": "asha", "eta": 2, "fidelity": "level", "min_steps": 1}
    study = made(**chained(space, rungs=rungs))
    assert study.masks.allocation == "global"
    recipe = study.recipe()
    assert recipe.pruning is not None
    assert (recipe.pruning.when, recipe.pruning.rate) == ("levels", 0.2)
    design = study.design()
    (arm,) = design.arms
    assert arm.chain is not None
    assert longest_training(arm.space, design.steps, arm.chain) == 9 * 18
    assert rung_steps(arm.rungs, 9 * 18) == (18, 36, 72, 144)
    automatic = made(**chained(space, rungs={"kind": "asha", "eta": 2, "fidelity": "level"})).design().arms[0]
    assert rung_steps(automatic.rungs, 9 * 18) == (36, 72, 144)
    point = {"lr": 0.01, "sparsity": 0.8, "rate": 0.2}
    describe = study._describer(load_dataset("digits", {}))
    described = describe(0, point, arm.space)
    assert described.steps == 9 * 18
    assert described.weight_sparsity == pytest.approx(0.8, abs=1e-3)
    assert describe(0, point | {"rate": 0.5}, arm.space).steps == 4 * 18
    ready = {"ready": "lenet_300_100", "masks": {"allocation": "global"}}
    assert made(space=ready, masks={"method": "imp"}, arms={"random": {}}).masks.allocation == "global"
    # Of a fixed length of training that an arm sets, levels have that.
    shorter = made(**chained(space, rungs=rungs) | {"arms": {"random": {"space": {"training": {"steps": 6}}}}})
    assert shorter.design().arms[0].rungs.level_steps == 6


def test_every_arm_may_have_a_method_of_its_own() -> None:
    """On the same points of a space, each with the steps, rungs and allocation of its method."""
    levels = {"kind": "asha", "fidelity": "level", "min_steps": 2, "eta": 2}
    arms = {
        "random": {},
        "snip": {"space": {"masks": {"method": "snip"}}},
        "erk": {"space": {"masks": {"method": "synflow", "allocation": "erk"}}},
        "imp": {"space": {"masks": {"method": "imp", "rate": 0.5}}, "rungs": levels},
        "drawn": {"space": {"masks": {"method": "random", "draw": 3}}},
    }
    study = made(arms=arms, masks={"allocation": "erk"}, search={"candidates": 8, "probe_size": 99})
    assert study.recorded()["resolved"]["methods"].keys() == {"imp", "snip", "synflow"}
    assert study.recorded()["resolved"]["methods"]["snip"]["allocation"] == "global"
    assert (study.base()["probe_size"], study.recipe().probe_size) == (99, 99)
    assert made(**study.identity()).digest == study.digest
    design, describe = study.design(), study._describer(load_dataset("digits", {}))
    spaces = {arm.name: arm.space for arm in design.arms}
    assert {arm.name for arm in design.arms if arm.chain is not None} == {"imp"}
    points = spaces["random"].draw(philox_key(1, "propose", 0), 0, 4)
    assert all(space.draw(philox_key(1, "propose", 0), 0, 4) == points for space in spaces.values())
    for point in points:
        found = {name: describe(0, point, space) for name, space in spaces.items()}
        assert len({one.id for one in found.values()}) == len(arms)
        assert found["imp"].steps > 18 == found["snip"].steps
        # All have what a rule with an exact total has.
        assert len({one.n_params for one in found.values()}) == 1
    networks = study._networks(load_dataset("digits", {}))
    methods = {name: networks.describe(0, space.settings(points[0])) for name, space in spaces.items()}
    assert {name: one.scored is not None and one.scored.method.allocation for name, one in methods.items()} == {
        "random": False, "snip": "global", "erk": "erk", "imp": False, "drawn": False
    }  # fmt: skip


def test_chains_of_nodes_are_of_a_size_that_is_known() -> None:
    masks = {"method": "imp", "kind": "node", "allocation": "uniform", "sparsity": 0.5}
    study = made(**chained({"rate": {"low": 0.2, "high": 0.5}}, masks=masks, model={"name": "mlp", "widths": [8, 4]}))
    assert study.recorded()["resolved"]["method"]["allocation"] == "uniform"
    assert made(**study.identity()).digest == study.digest
    described = study._describer(load_dataset("digits", {}))(0, {"lr": 0.01, "rate": 0.5}, study.design().arms[0].space)
    assert described.n_params == 64 * 4 + 4 + 4 * 2 + 2 + 2 * 10 + 10
    assert described.node_sparsity == 0.5
    # Of an arm alone.
    own = {"method": "mirl", "allocation": "uniform"}
    study = made(masks={"kind": "node"}, arms={"random": {}, "mirl": {"space": {"masks": own}}})
    assert [arm.chain is not None for arm in study.design().arms] == [False, True]


def test_a_method_may_be_of_masks_of_both_kinds() -> None:
    """And in place of the patterns of other arms."""
    kinds = {"choices": ["node", "weight"]}
    arms = {
        "random": {},
        "snip": {
            "space": {"masks": {"method": "snip", "kind": kinds, "allocation": "uniform", "pattern": "unstructured"}}
        },
        "mirl": {
            "space": {"masks": {"method": "mirl", "kind": kinds, "allocation": "uniform", "pattern": "unstructured"}}
        },
    }
    space = {"training": {"lr": LR}, "masks": {"pattern": {"choices": ["unstructured", "2x2"]}}}
    study = made(arms=arms, space=space, masks={"sparsity": 0.5}, model={"name": "mlp", "widths": [8, 4]})
    describe = study._describer(load_dataset("digits", {}))
    for arm in study.design().arms[1:]:
        found = [describe(0, {"lr": 0.01, "kind": kind}, arm.space) for kind in ("node", "weight")]
        assert found[0].n_params == 64 * 4 + 4 + 4 * 2 + 2 + 2 * 10 + 10
        assert found[1].n_params == (64 * 8 + 8 * 4 + 4 * 10) // 2 + 8 + 4 + 10
        assert found[0].node_sparsity == 0.5


def test_what_a_method_does_not_look_at_makes_no_other_candidate() -> None:
    space = scored({"choices": ["random", "snip", "random_snip_ratio"]}, draw={"choices": [0, 1]})
    space["space"]["masks"]["allocation"] = {"choices": ["uniform", "erk"]}
    (arm,) = made(**space).design().arms
    points = [
        {"lr": 0.01, "method": method, "mask_draw": draw, "allocation": allocation}
        for method in ("random", "snip", "random_snip_ratio")
        for draw in (0, 1)
        for allocation in ("uniform", "erk")
    ]
    digests = [arm.space.digest(point) for point in points]
    assert [len(set(digests[i : i + 4])) for i in (0, 4, 8)] == [4, 2, 2]
    assert len(set(digests)) == 8


def test_candidates_may_be_pruned_once_after_their_training() -> None:
    """Chains of two trainings: their rung is the end of the first."""
    rungs = {"kind": "asha", "eta": 2, "fidelity": "level", "min_steps": 1}
    masks = {"method": "structured_taylor", "kind": "node", "allocation": "uniform", "sparsity": 0.5}
    study = made(**chained({}, masks=masks, rungs=rungs), model={"name": "mlp", "widths": [8, 4]})
    (arm,) = study.design().arms
    assert longest_training(arm.space, 18, arm.chain) == 2 * 18
    assert rung_steps(arm.rungs, 2 * 18) == (18,)
    # Scores of examples are of so many.
    assert (study.base()["probe_size"], study.recipe().probe_size) == (512, 512)
    described = study._describer(load_dataset("digits", {}))(0, {"lr": 0.01}, arm.space)
    assert (described.steps, described.node_sparsity) == (2 * 18, 0.5)
    plain = made(**chained({}, masks={"method": "magnitude", "sparsity": 0.5}))
    assert "probe_size" not in plain.base()
    assert "probe_size" in made(**chained({"score": {"choices": ["l1", "fisher"]}})).base()
    # Where masks change, the gradient of a step stands in for examples.
    for score, is_read in (("snip", False), ("grasp", True)):
        assert ("probe_size" in made(**scored("gmp", score={"choices": ["l1", score]})).base()) == is_read
    # The longest of a space's chains says where rungs lie.
    mixed = scored({"choices": ["magnitude", "imp"]}, rate={"low": 0.3, "high": 0.5}, pattern="2:4") | {"masks": {}}
    (arm,) = made(**mixed).design().arms
    assert longest_training(arm.space, 18, arm.chain) == 3 * 18  # dense, 3:4 and 2:4


def test_what_a_method_does_not_read_and_a_pattern_decides_make_no_other_candidate() -> None:
    masks = {
        "sparsity": {"choices": [0.5, 0.7]},
        "rate": {"choices": [0.3, 0.5]},
        "score": {"choices": ["magnitude", "l1"]},
        "draw": {"choices": [0, 1]},
    }
    methods = ["random", "set", "gmp", "magnitude", "nm_2_4", "imp"]
    (arm,) = made(**(scored({"choices": methods}, **masks) | {"masks": {}})).design().arms
    keys = list(masks)
    points = [
        dict(zip(keys, values, strict=True)) for values in itertools.product(*(masks[key]["choices"] for key in keys))
    ]

    def n_unlike(method: str) -> int:
        named = [{"lr": 0.01, "method": method, **p, "mask_draw": p["draw"]} for p in points]
        return len({arm.space.digest({k: v for k, v in p.items() if k != "draw"}) for p in named})

    # Sparsity and draw; both; sparsity and score; the same; score; all but the draw.
    assert {method: n_unlike(method) for method in methods} == {
        "random": 4, "set": 4, "gmp": 4, "magnitude": 4, "nm_2_4": 2, "imp": 8
    }  # fmt: skip


def test_rewinds_to_one_step_are_one_candidate() -> None:
    """Of 18 steps; the fraction is its own where trainings are longer."""
    space = {"rewind_fraction": {"choices": [0.0, 0.02, 0.1, 0.11, 0.2]}}
    (arm,) = made(**chained(space)).design().arms
    points = [{"lr": 0.01, "rewind_fraction": value} for value in space["rewind_fraction"]["choices"]]
    digests = [arm.space.digest(point) for point in points]
    assert [digests.index(digest) for digest in digests] == [0, 0, 2, 2, 4]
    lengths = chained(space)
    lengths["space"]["training"]["steps"] = {"choices": [18, 100]}
    (arm,) = made(**lengths).design().arms
    digests = [arm.space.digest(point | {"training_steps": steps}) for steps in (18, 100) for point in points]
    assert [digests.index(digest) for digest in digests] == [0, 0, 2, 2, 4, 5, 6, 7, 8, 9]
    # The longest training rewinds: it is no mistake that the others do not.
    made(**lengths | {"space": lengths["space"] | {"masks": {"rewind_fraction": 0.02}}})
    made(**chained({"rewind_fraction": 0.0}, masks={"method": "imp_rewind", "sparsity": 0.5}))


def test_masks_that_scores_cut_are_the_counts_that_they_leave() -> None:
    """Of 592 weights, half are 296; where positions are random, their numbers are the sparsity's own."""
    space = scored({"choices": ["random", "snip", "random_erk"]}, sparsity={"low": 0.0, "high": 0.9})
    space["space"]["masks"]["draw"] = {"low": 0, "high": 9}
    study = made(**space, model={"name": "mlp", "widths": [8], "bias": False})
    point = {"lr": 0.01, "mask_draw": 0}
    for method, expected in (("snip", [0, 0, 2, 3, 3]), ("random_erk", [0, 1, 2, 3, 3])):
        sparsities = (0.5, 0.5001, 0.51, 0.0, 0.0001)
        found = digests(study, *({**point, "method": method, "sparsity": s} for s in sparsities))
        assert [found.index(d) for d in found] == expected, method
        dense = digests(study, {**point, "method": "random", "sparsity": 0.0})
        assert found[-2:] == dense * 2, "what keeps everything is no mask"


def test_every_round_of_a_score_counts() -> None:
    """Two sparsities leave 118 of 1184 weights, and other numbers of them on the way there."""
    space = {"training": {"lr": LR}, "masks": {"sparsity": {"low": 0.5, "high": 0.95}}}
    model = {"name": "mlp", "widths": [16], "bias": False}
    for method, n in (("snip", 1), ("snip_iterative", 2)):
        study = made(space=space, masks={"method": method, "sparsity": 0.5}, model=model, arms={"random": {}})
        assert len(set(digests(study, *({"lr": 0.01, "sparsity": s} for s in (0.9001, 0.9005))))) == n, method


def test_chains_are_the_counts_of_their_levels() -> None:
    space = {
        "rate": {"low": 0.1, "high": 0.5},
        "ap_fraction": {"low": 0.0, "high": 0.05},
        "sparsity": {"low": 0.0, "high": 0.9},
    }
    study = made(**chained(space, model={"name": "mlp", "widths": [8], "bias": False}))
    point = {"lr": 0.01, "sparsity": 0.5, "ap_fraction": 0.0, "rate": 0.5}
    found = digests(
        study,
        point,
        {**point, "rate": 0.4},  # two levels
        {**point, "rate": 0.35},  # two as well, which remove as much
        {**point, "sparsity": 0.4999},  # as many weights
        {**point, "sparsity": 0.51},
        {**point, "rate": 0.4, "ap_fraction": 0.05},
        {**point, "rate": 0.35, "ap_fraction": 0.05},  # a larger share of as many
        {**point, "rate": 0.35, "ap_fraction": 0.0501 * 0.35 / 0.4},
    )
    assert [found.index(d) for d in found] == [0, 1, 1, 0, 4, 5, 6, 5]


def test_shares_of_the_data_that_round_to_as_many_examples_are_one_candidate() -> None:
    """But not where data grow from rung to rung: they would round elsewhere there."""
    space = {"training": {"data_fraction": {"low": 0.2, "high": 1.0}}}
    arm = {"rungs": {"kind": "asha", "min_steps": 12, "fidelity": "data_fraction"}}
    points = [{"data_fraction": fraction} for fraction in (0.5, 0.4999, 0.501)]  # of 1149 examples
    for arms, expected in (({"random": {}}, [0, 0, 2]), ({"random": {}, "rungs": arm}, [0, 1, 2])):
        found = digests(made(space=space, arms=arms), *points)
        assert [found.index(d) for d in found] == expected


@pytest.mark.usefixtures("_one_thread")
def test_a_copy_says_of_its_network_what_is_known_of_the_first(tmp_path: Path) -> None:
    space = {"masks": {"sparsity": {"choices": [0.5, 0.501, 0.502]}}}
    masks, model = {"method": "snip", "sparsity": 0.5}, {"name": "mlp", "widths": [4], "bias": False}
    study = made(space=space, masks=masks, model=model, arms={"random": {}}, replicates=1)
    run_search(study, tmp_path / "study")
    rows = list(rows_of(tmp_path / "study").values())
    firsts = {row["n_params"]: row for row in rows if not row["reused"]}
    copies = [row for row in rows if row["reused"]]
    assert len(firsts) == 2  # of 296 weights 148 and 147
    assert {row["sparsity"] for row in copies} & {0.5, 0.501}
    for row in copies:
        first = firsts[row["n_params"]]
        assert first["mask_digest"] is not None
        assert {name: row[name] for name in OF_NETWORKS} == {name: first[name] for name in OF_NETWORKS}


def test_a_method_whose_own_rewind_is_none_says_which_key_would_change_it() -> None:
    with pytest.raises(ConfigError, match=r"set 0\.0556 or more as space\.masks\.rewind_fraction, train for more"):
        made(**chained({}, masks={"method": "imp_rewind", "sparsity": 0.5})).design()


def test_without_a_method_a_study_says_nothing_of_one() -> None:
    """So that what was begun before there were chains is the same study, with the same candidates."""
    study = made()
    assert "method" not in study.identity()["masks"]
    assert study.identity()["search"] == {"candidates": 8, "batch": 4}
    assert "probe_size" not in study.base()
    assert study.recorded()["resolved"].keys() == {"data_digest", "n_classes", "n_sections", "bits", "columns"}
    assert study.design().arms[0].rungs.level_steps == 1
    pruning = made(**chained({}))
    assert pruning.identity()["masks"]["method"] == "imp"
    assert made(**pruning.identity()).identity() == pruning.identity()


def test_draws_of_a_pattern_with_a_sparsity_of_its_own_are_searched() -> None:
    patterns = {"choices": ["unstructured", "2:4"]}
    study = made(space={"masks": {"pattern": patterns, "draw": {"low": 0, "high": 9}}}, masks={"sparsity": 0.0})
    assert [d.name for d in study.design().arms[0].space.dimensions] == ["mask_draw", "pattern"]


def test_times_may_decide_where_a_study_says_that_it_is_not_reproducible() -> None:
    by_time = {"kind": "mo_asha", "objectives": ["val_error", "seconds"], "asynchronous": True}
    study = made(**arms_with(rungs=by_time))
    assert study.design().arms[1].rungs.objectives == ("val_error", "seconds")
    made(**arms_with(rungs={"kind": "mo_asha", "objectives": ["val_error", "flops"]}))
    made(**arms_with(rungs={"kind": "none", "objectives": ["seconds"]}))
    timed = {"verdict": {"objectives": ["val_error", "seconds"]}}
    learning = arms_with(strategy="nsga2")
    dataset = load_dataset("digits")
    assert made(**learning)._remarks(dataset) == []
    assert made(**timed, **arms_with(strategy="qmc"))._remarks(dataset) == []
    bounded = {"space": BASE["space"] | {"constraints": ["seconds <= 5"]}}
    for study in (made(**learning, **timed), made(**learning, **bounded)):
        (remark,) = study._remarks(dataset)
        assert remark.startswith("arms.b.strategy='nsga2': learns from 'seconds', which is measured, and another when")


def arms_with(**arm: Any) -> dict[str, Any]:
    return {"arms": {"random": {}, "b": arm}}


def chained(space: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A study of pruning chains to half their weights: of five levels, if the space does not say otherwise."""
    masks = {"method": "imp", "sparsity": 0.5}
    return {"masks": masks, "space": {"training": {"lr": LR}, "masks": space}, "arms": {"random": {}}} | more


def scored(method: Any, **masks: Any) -> dict[str, Any]:
    """A study whose candidates are pruned at initialisation to half their weights."""
    space = {"training": {"lr": LR}, "masks": {"method": method, **masks}}
    return {"masks": {"sparsity": 0.5}, "space": space, "arms": {"random": {}}}


UNITS = ["relu", "tanh"]
BITS: dict[str, Any] = {"space": {"masks": {"bits": True}}, "masks": {"sparsity": 0.9}, "arms": {"random": {}}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"foo": 1}, "foo=1: unknown key; must be one of name, seed, replicates, data, model, training,"),
    ({"sparsities": [0.5]}, "sparsities=[0.5]: is a key of studies of masks: remove [space], or leave it out"),
    ({"claim": {"paper": "x"}}, "claim={'paper': 'x'}: is a section of studies of masks: remove [space], or leave it"),
    ({"name": "a/b"}, "name='a/b': must be 1-128 letters"),
    ({"replicates": 0}, "replicates=0: must be at least 1"),
    ({"replicates": 100_000, "search": {"candidates": 501}}, "replicates=100000: with the candidates of all arms must"),
    ({"training": 5}, "training=5: must be a section of keys and values"),
    ({"training": {"steps": 0}}, "training.steps=0: must be at least 1"),
    ({"training": {"steps": 18, "data_fraction": 0.0}}, "training.data_fraction=0.0: must be greater than 0.0"),
    ({"training": {"steps": 18, "optimizer": "sdg"}}, "training.optimizer='sdg': must be one of adam, sgd; did you"),
    ({"training": {"steps": 18, "nesterov": True}}, "training.nesterov=true: needs training.momentum > 0, or a space"),
    ({"training": {"steps": 18, "batch_size": 1151}}, "training.batch_size=1151: must be at most 1150, the training"),
    ({"masks": []}, "masks=[]: must be a section of keys and values"),
    ({"masks": {"kind": "edge"}}, "masks.kind='edge': must be 'node' or 'weight'"),
    ({"masks": {"sparsity": 1.0}}, "masks.sparsity=1.0: must be less than 1.0"),
    ({"masks": {"allocation": "ekr"}}, "masks.allocation='ekr': must be one of uniform, global, er, erk"),
    (
        {"masks": {"allocation": "erk", "kind": "node"}},
        "masks.allocation='erk': divides weight masks only, and masks.kind is 'node'",
    ),
    # The budget and the rungs.
    ({"search": 5}, "search=5: must be a section of keys and values"),
    ({"search": {"candidates": -1}}, "search.candidates=-1: must be at least 1"),
    ({"search": {"candidates": 1.5}}, "search.candidates=1.5: must be a whole number"),
    ({"search": {"candidates": 10_000_001}}, "search.candidates=10000001: must be at most 10000000"),
    ({"search": {"batch": 0}}, "search.batch=0: must be at least 1"),
    ({"search": {"draws": 4}}, "search.draws=4: is a key of studies of masks: remove [space], or use one of ca"),
    ({"rungs": ["asha"]}, "rungs=['asha']: must be a section of keys and values"),
    ({"rungs": {"kind": "ahsa"}}, "rungs.kind='ahsa': must be one of none, successive_halving, hyperband, asha,"),
    ({"rungs": {"kinds": "asha"}}, "rungs.kinds='asha': unknown key; must be one of kind, eta,"),
    ({"rungs": {"eta": 1}}, "rungs.eta=1: must be at least 2"),
    ({"rungs": {"fidelity": "imp"}}, "rungs.fidelity='imp': must be 'steps', 'data_fraction' or 'level'"),
    ({"rungs": {"kind": "asha", "bands": [0.9, 0.5]}}, "rungs.bands=[0.9, 0.5]: must ascend"),
    ({"rungs": {"kind": "asha", "bands": [1.5]}}, "rungs.bands.0=1.5: must be less than 1.0"),
    ({"rungs": {"kind": "asha", "min_steps": -1}}, "rungs.min_steps=-1: must be at least 0"),
    ({"rungs": {"objectives": ["val_eror"]}}, "rungs.objectives: 'val_eror' must be one of val_error,"),
    ({"rungs": {"objectives": ["test_loss"]}}, "rungs.objectives: 'test_loss' is a test result; validation decides"),
    ({"rungs": {"objectives": ["macs", "macs"]}}, "rungs.objectives=['macs', 'macs']: every value may appear once"),
    (
        arms_with(rungs={"kind": "asha", "objectives": ["val_error", "macs"]}),
        "arms.b.rungs.objectives=['val_error', 'macs']: rungs.kind='asha' compares by one objective; mo_asha by",
    ),
    (
        arms_with(rungs={"kind": "ray_asha", "objectives": ["val_error"]}),
        "arms.b.rungs.objectives=['val_error'] with rungs.kind='ray_asha': Ray's scheduler is told 'val_loss'; leave",
    ),
    (
        {"arms": {"random": {"rungs": {"kind": "asha", "min_steps": 18}}}},
        "arms.random.rungs.min_steps=18: must be 0 (automatic) or less than the full training, 18",
    ),
    (
        arms_with(rungs={"kind": "hyperband", "asynchronous": True}),
        "arms.b.rungs.asynchronous=true with rungs.kind='hyperband': only asha, mo_asha decide",
    ),
    # What is measured decides nothing, unless the study says that it cannot be repeated.
    (
        arms_with(rungs={"kind": "mo_asha", "objectives": ["val_error", "seconds"]}),
        "arms.b.rungs.objectives: 'seconds' is measured, and another whenever a study is run, so that others would be",
    ),
    (
        arms_with(rungs={"kind": "mo_asha"}) | {"verdict": {"objectives": ["val_error", "seconds"]}},
        "arms.b.rungs.kind='mo_asha' compares by verdict.objectives: 'seconds' is measured, and another whenever",
    ),
    (
        arms_with(rungs={"kind": "successive_halving", "objectives": ["seconds"]}),
        "arms.b.rungs.objectives: 'seconds' is measured, and another whenever a study is run, so that others would be",
    ),
    (
        arms_with(rungs={"kind": "ray_asha", "bands": [0.5]}),
        "arms.b.rungs.bands=[0.5] with rungs.kind='ray_asha': Ray's scheduler compares all candidates, by steps; leave",
    ),
    (
        {"rungs": {"kind": "asha", "fidelity": "data_fraction"}, "training": {"steps": 18, "batch_size": 128}},
        "arms.random: trains on as little as 0.0556 of the 1150 training examples",
    ),
    # Pruning chains.
    (
        {"masks": {"method": "ipm"}},
        "masks.method='ipm': must be one of magnitude, magnitude_oneshot, lr_rewind, imp, imp_rewind, ap, mirl, gmp,",
    ),
    ({"masks": {"method": ["imp"]}}, "masks.method=['imp']: must be one value, that of all candidates; what is"),
    (
        {"masks": {"method": {"choices": ["imp", "snip"]}}},
        "masks.method={'choices': ['imp', 'snip']}: must be one value, that of all candidates; what is searched,",
    ),
    ({"masks": {"sparsity": {"low": 0.1, "high": 0.9}}}, "masks.sparsity={'low': 0.1, 'high': 0.9}: must be one value"),
    ({"training": {"steps": 18, "lr": [0.1, 0.2]}}, "training.lr=[0.1, 0.2]: must be one value, that of all candid"),
    (
        chained({"allocation": ["erk"]}),
        "space.masks.allocation=['erk']: is one value of all candidates; to search these, write { choices = ",
    ),
    (
        {"masks": {"method": "searched"}},
        "masks.method='searched': must be one of magnitude, magnitude_oneshot, lr_rewind, imp, imp_rewind, ap, mirl,",
    ),
    (
        chained({"rewind_fraction": 0.1}, masks={"method": "lr_rewind", "sparsity": 0.5}),
        "space.masks.rewind_fraction: is of pruning chains, and not of masks.method='lr_rewind'; set masks.method = 'i",
    ),
    (
        chained({"ap_fraction": 0.1}, masks={"method": "lr_rewind", "sparsity": 0.5}),
        "space.masks.ap_fraction: is of levels that are rewound, and those of masks.method='lr_rewind' go on from the",
    ),
    # Pruning once.
    (
        chained({"rate": 0.5}, masks={"method": "magnitude", "sparsity": 0.5}),
        "space.masks.rate: is of pruning chains, and not of masks.method='magnitude'; set masks.method = 'imp', or",
    ),
    (
        {"masks": {"method": "structured_l1", "sparsity": 0.5}},
        "masks.kind='weight': masks.method='structured_l1' prunes nodes alone; set kind = 'node' and an allocation",
    ),
    (
        {"masks": {"method": "nm_2_4", "kind": "node", "sparsity": 0.5}},
        "masks.kind='node': masks.method='nm_2_4' makes no masks of nodes whose",
    ),
    (
        chained({}, masks={"method": "nm_2_4", "sparsity": 0.9}),
        "masks.sparsity=0.9: '2:4' of masks.method='nm_2_4' is one of its own, 0.5; leave it out",
    ),
    (
        scored("nm_2_4", sparsity={"low": 0.1, "high": 0.9}) | {"masks": {}},
        "space.masks.sparsity: cannot be searched where masks.pattern='2:4' has sparsity 0.5 alone; remove it",
    ),
    (
        scored({"choices": ["magnitude", "snip"]}) | {"rungs": {"kind": "asha"}},
        "arms.random.rungs.kind='asha': compares candidates at one step, and those of masks.method='magnitude' train",
    ),
    # What is of studies of masks, and of single networks.
    (
        {"masks": {"sparsity": 0.5, "prune_biases": True}},
        "masks.prune_biases=True: is a key of studies of masks: remove [space], or use one of method, kind, pattern,",
    ),
    (
        arms_with(controls=["shufled"]),
        "arms.b.controls: 'shufled' must be one of shuffled_layers, shuffled, fresh_weights",
    ),
    (
        arms_with(controls=["shuffled", "shuffled"]),
        "arms.b.controls=['shuffled', 'shuffled']: every value may appear on",
    ),
    (
        arms_with(controls=["shuffled_layers"]),
        "arms.b.controls: 'shuffled_layers' is another random mask of the same layer counts, and this arm draws masks",
    ),
    (
        arms_with(controls=["fresh_weights"], space={"masks": {"method": {"choices": ["snip", "random"]}}}),
        "arms.b.controls: 'fresh_weights' asks whether a mask belongs to its weights, and a random one has seen none, ",
    ),
    (
        {"masks": {"kind": "weight"}}
        | arms_with(controls=["shuffled"], space={"masks": {"method": "nm_2_4", "sparsity": 0.0}}),
        "arms.b.controls: 'shuffled' moves survivors between layers, which patterns tie to them; use 'shuffled_layers'",
    ),
    (
        arms_with(controls=["shuffled"], space={"masks": {"method": "lr_rewind"}}),
        "arms.b.controls: 'shuffled' needs weights at other positions, and a level of masks.method='lr_rewind' goes on",
    ),
    (
        arms_with(controls=["shuffled"], space={"masks": {"sparsity": 0.0}}),
        "arms.b.controls: 'shuffled' is of networks under a mask, and masks.sparsity is 0 in all candidates; set it, ",
    ),
    (
        arms_with(controls=["shuffled"], rungs={"kind": "asha"}),
        "arms.b.controls: 'shuffled' is of candidates that nothing has chosen, and rungs.kind='asha' trains the lucki",
    ),
    (
        {"arms": {"random": {"controls": ["shuffled"]}, "random_shuffled": {}}},
        "arms.random.controls: 'random_shuffled' is the name of a control and of an arm; rename the arm",
    ),
    (arms_with(siblings=True), "arms.b.siblings=true: are second trainings of single networks, and an arm of a search"),
    # Lists where there can be one value, and what is no name.
    (
        {"space": {"masks": {"method": ["imp", "snip"]}}},
        "space.masks.method=['imp', 'snip']: is one value of all candidates; to search these, write { choices = [\"",
    ),
    (
        {"space": {"training": {"lr": [0.1, 0.2]}}},
        "space.training.lr=[0.1, 0.2]: is one value of all candidates; to search these, write { choices = [0.1, 0.2] }",
    ),
    (
        {"space": {"model": {"activation": ["relu", "tanh"]}}},
        "space.model.activation=['relu', 'tanh']: is one value of all candidates; to search these, write { choices =",
    ),
    (scored(True), "space.masks.method=True: must be one of random, magnitude,"),
    # Scores.
    (scored("set", score="l1"), "space.masks.score: is of pruning methods, and not of masks.method='set'; set masks."),
    ({"space": {"masks": {"score": "l1"}}}, "space.masks.score: is of pruning methods; set masks.method = 'imp', or"),
    (scored("rigl", power=2.0), "space.masks.power: is of a gradual rise, and not of masks.method='rigl'; set masks.m"),
    (
        scored("gmp", drop_fraction=0.2),
        "space.masks.drop_fraction: is of masks that are rewired, and not of masks.meth",
    ),
    (
        {"space": {"masks": {"every": 5}}},
        "space.masks.every: is of a gradual rise; set masks.method = 'gmp', or remove",
    ),
    (
        scored("gmp", begin_fraction={"low": 0.0, "high": 0.5}, end_fraction={"low": 0.4, "high": 0.9}),
        "space.masks: begin_fraction up to 0.5 must be at most every end_fraction, from 0.4 on, with masks.method='gm",
    ),
    (scored("set", every=-1), "space.masks.every=-1: must lie in [0, 1e+09]"),
    (scored("set", drop_fraction={"low": 0.5, "high": 1.5}), "space.masks.drop_fraction=1.5: must lie in [0, 1]"),
    (scored("imp", score="magnitud"), "space.masks.score='magnitud': must be one of random, magnitude, l1, lamp,"),
    (scored("imp", score=1), "space.masks.score=1: must be text in quotes"),
    (scored("gmp", score="apoz"), "space.masks.score='apoz': scores node masks only, and masks.kind is 'weight'"),
    (scored("imp", score="apoz"), "space.masks.score='apoz': scores node masks only, and masks.kind is 'weight'"),
    (
        scored("imp", score={"choices": ["l1", "first_order_movement"]}),
        "space.masks.score='first_order_movement': is a sum over the steps of a training whose mask changes in it;",
    ),
    ({"masks": {"method": "random"}}, "masks.method='random': masks are drawn where there is no method; leave it out"),
    ({"masks": {"method": 1}}, "masks.method=1: must be text in quotes"),
    (
        {"masks": {"method": "imp", "kind": "node"}},
        "masks.allocation='global': leaves it to the scores of masks.method='imp' how many nodes a layer keeps, and a",
    ),
    ({"masks": {"method": "ap", "kind": "node"}}, "masks.kind='node': masks.method='ap' makes no masks of nodes whose"),
    (
        chained(
            {"ap_fraction": 0.1}, masks={"method": "imp", "kind": "node", "allocation": "uniform", "sparsity": 0.5}
        ),
        "space.masks.ap_fraction: removes single weights, and masks.kind may be 'node'; leave it out",
    ),
    (
        {"masks": {"method": "imp", "allocation": "erk"}},
        "masks.allocation='erk': masks.method='imp' divides a sparsity",
    ),
    # Pruning at initialisation.
    (
        scored("dense"),
        "space.masks.method='dense': must be one of random, magnitude, magnitude_oneshot, lr_rewind, imp, imp_rewind,",
    ),
    (scored("snap"), "space.masks.method='snap': must be one of random, magnitude, magnitude_oneshot,"),
    (
        scored({"choices": ["random", "imp"]}) | {"rungs": {"kind": "asha", "fidelity": "level"}},
        "arms.random.rungs.kind='asha': compares candidates at one step, and those of masks.method='imp' train level b",
    ),
    # Patterns beside methods.
    (
        scored("snip") | {"masks": {"pattern": "4x4", "sparsity": 0.5}},
        "masks.pattern='4x4': masks.allocation='global' leaves it to the scores of masks.method='snip' how many blocks",
    ),
    (
        scored("gmp", pattern={"choices": ["unstructured", "4x4"]}, allocation={"choices": ["erk", "global"]}),
        "space.masks.pattern='4x4': masks.allocation='global' leaves it to the scores of masks.method='gmp' how many",
    ),
    (
        scored("snip_iterative", pattern="4x4", allocation="erk"),
        "space.masks.pattern='4x4': of blocks that go little by little, as masks.method='snip_iterative' has it, fewer",
    ),
    (
        scored("random_snip_ratio", pattern="2:4") | {"masks": {}},
        "space.masks.pattern='2:4': masks.method='random_snip_ratio' finds ratios of single weights, and not of a patt",
    ),
    (
        scored("ap", pattern={"choices": ["unstructured", "2:4"]}),
        "space.masks.pattern='2:4': masks.method='ap' with ap_fraction up to 0.02 removes single weights, and not by a",
    ),
    (
        scored("snip", kind={"choices": ["node", "weight"]}),
        "masks.allocation='global': leaves it to the scores of space.masks.method='snip' how many nodes a layer keeps",
    ),
    (
        scored("random_grasp_ratio", kind="node"),
        "masks.kind='node': space.masks.method='random_grasp_ratio' makes no masks of nodes whose counts are known",
    ),
    (scored("snip") | {"masks": {}}, "masks.method='snip': needs masks.sparsity > 0, in [masks] or in the space; else"),
    (
        scored("snip", rate=0.2),
        "space.masks.rate: is of pruning chains, and not of masks.method='snip'; set masks.meth",
    ),
    (
        scored("snip", bits=True),
        "space.masks.bits: cannot be set beside masks.method='snip', which says what is removed",
    ),
    (
        scored("snip", draw={"low": 0, "high": 9}),
        "space.masks.draw: numbers masks that are drawn, and those of masks.method='snip' are not; remove it, or",
    ),
    (
        scored("snip", allocation={"choices": ["erk", "searched"]}),
        "space.masks.allocation='searched': divides masks that are drawn, and not those of masks.method='snip'; name",
    ),
    (
        {"masks": {"method": "snip", "kind": "node"}},
        "masks.allocation='global': leaves it to the scores of masks.method='snip' how many nodes a layer keeps, and a",
    ),
    (
        scored("snip") | {"masks": {"kind": "node", "sparsity": 0.5}},
        "masks.allocation='global': leaves it to the scores of space.masks.method='snip' how many nodes a layer keeps",
    ),
    (
        {"masks": {"method": "random_snip_ratio", "kind": "node"}},
        "masks.kind='node': masks.method='random_snip_ratio' makes no masks of nodes whose counts are known before a",
    ),
    (
        {"search": {"probe_size": 9, "candidates": 8}},
        "search.probe_size=9: is of methods that prune at initialisation (snip, snip_iterative, grasp, ...) or by a sc",
    ),
    (
        arms_with(space={"masks": {"method": "snip"}}, rungs={"kind": "asha", "fidelity": "level"}),
        "arms.b.rungs.fidelity='level': needs a chain of levels; set masks.method = 'imp', or use 'steps'",
    ),
    (
        scored("snip")
        | {"model": {"name": "conv1d"}, "data": {"name": "mnist1d"}, "arms": {"random": {}}}
        | {"space": {"training": {"lr": LR}, "masks": {"method": "snip"}, "constraints": ["macs <= 9"]}},
        "space.constraints: macs of a convolution that prunes itself are known only once its masks are cut; constrain",
    ),
    (chained({"sparsity": 0.0}), "masks.method='imp': needs masks.sparsity > 0, in [masks] or in the space; else"),
    (
        chained({"draw": 3}),
        "space.masks.draw: numbers masks that are drawn, and those of masks.method='imp' are not; remove",
    ),
    (chained({"allocation": "uniform"}), "space.masks.allocation: cannot be set beside masks.method='imp', which says"),
    (chained({"bits": True}), "space.masks.bits: cannot be set beside masks.method='imp'"),
    (chained({"rate": {"low": 0.0, "high": 0.5}}), "space.masks.rate.low=0.0: must lie in [0.001, 0.999]"),
    (chained({"rewind_fraction": 1.0}), "space.masks.rewind_fraction=1.0: must lie in [0, 1)"),
    (
        chained({"rewind_fraction": 0.02}),
        "space.masks.rewind_fraction=0.02: rounds to step 0 of a training of 18 steps, which is initialisation; set 0.",
    ),
    (
        chained({"rewind_fraction": 0.98}),
        "space.masks.rewind_fraction=0.98: goes back to the end of the training (18 steps), after which nothing",
    ),
    (
        chained({}, masks={"method": "imp_rewind", "sparsity": 0.5}),
        "masks.method='imp_rewind': rewind_fraction=0.02 rounds to step 0 of a training of 18 steps, which is initial",
    ),
    (
        chained({"rate": {"low": 0.1, "high": 0.5}, "ap_fraction": {"choices": [0.0, 0.1]}}),
        "space.masks.ap_fraction: up to 0.1 must be less than every masks.rate, from 0.1 on; it is part of what a",
    ),
    (
        {"masks": {"method": "ap", "sparsity": 0.5}, "model": {"name": "mlp", "activation": "tanh"}},
        "model.activation='tanh': masks.method='ap' with ap_fraction up to 0.02 removes negative weights to keep",
    ),
    (
        chained({})
        | {"space": {"masks": {"ap_fraction": {"low": 0.0, "high": 0.1}}, "model": {"activation": {"choices": UNITS}}}},
        "space.model.activation='tanh': masks.method='imp' with ap_fraction up to 0.1 removes negative weights to",
    ),
    (
        {"space": {"masks": {"rate": {"low": 0.1, "high": 0.5}}}},
        "space.masks.rate: is of pruning chains; set masks.method = 'imp', or remove it",
    ),
    (
        {"rungs": {"kind": "asha", "fidelity": "level"}},
        "arms.random.rungs.fidelity='level': needs a chain of levels; set masks.method = 'imp', or use 'steps'",
    ),
    (
        chained({}, rungs={"kind": "asha"}),
        "arms.random.rungs.fidelity='steps': must be 'level' with masks.method='imp', whose networks are compared at",
    ),
    (
        chained({}, rungs={"kind": "asha", "fidelity": "data_fraction"}),
        "arms.random.rungs.fidelity='data_fraction': must be 'level' with masks.method='imp'",
    ),
    (
        chained({}, rungs={"kind": "ray_asha"}),
        "arms.random.rungs.kind='ray_asha': Ray's scheduler knows steps alone, and masks.method='imp' trains level by",
    ),
    (
        chained({}, rungs={"kind": "asha", "fidelity": "level", "min_steps": 5}),
        "arms.random.rungs.min_steps=5: must be 0 (automatic) or less than the full training, 5 levels",
    ),
    (
        chained({}, rungs={"kind": "asha", "fidelity": "level"})
        | {"arms": {"random": {"space": {"training": {"steps": {"low": 9, "high": 18}}}}}},
        "arms.random.space.training.steps: cannot be searched with rungs.fidelity='level', for levels must end at the",
    ),
    (
        chained({}) | {"model": {"name": "conv1d"}, "space": {"training": {"lr": LR}, "constraints": ["macs <= 9"]}},
        "space.constraints: macs of a convolution that prunes itself are known only once its masks are cut; constrain",
    ),
    # The arms.
    ({"arms": ["random"]}, "arms=['random']: must be a section of keys and values"),
    ({"arms": {}}, "arms={}: must have 1 or more values"),
    ({"arms": {"random": "random"}}, "arms.random='random': must be a section of keys and values"),
    ({"arms": {"random": {"rungs": ["asha"]}}}, "arms.random.rungs=['asha']: must be a section of keys and values"),
    ({"arms": {"random": {"candidates": 0}}}, "arms.random.candidates=0: must be at least 1"),
    (arms_with(method="imp"), 'arms.b.method="imp": is a key of studies of masks; an arm of a search has it in its'),
    (arms_with(strat="tpe"), "arms.b.strat='tpe': unknown key; must be one of strategy, options,"),
    (arms_with(rungs={"etta": 3}), "arms.b.rungs.etta=3: unknown key; must be one of kind, eta,"),
    (arms_with(strategy=3), "arms.b.strategy=3: must be text in quotes"),
    (arms_with(strategy="tpee"), "arms.b.strategy='tpee': must be one of random, size_stratified, qmc, grid, tpe,"),
    (arms_with(strategy="no_such_module:X"), "arms.b.strategy='no_such_module:X': must name an importable class"),
    (arms_with(strategy="collections:Counter"), "arms.b.strategy='collections:Counter': has no 'summary'"),
    (arms_with(strategy="tpe", options=[1]), "arms.b.options=[1]: must be a section of keys and values"),
    (arms_with(strategy="tpe", options={"gama": 3}), "arms.b.options.gama=3: unknown key; must be one of n_startup"),
    (arms_with(strategy="nsga2", options={"population": 1}), "arms.b.options.population=1: must be at least 2"),
    (arms_with(strategy="nsga2", options={"population": "9"}), "arms.b.options.population='9': must be a whole number"),
    (arms_with(options={"x": 1}), "arms.b.options.x=1: unknown key; must be left out; there is nothing to set"),
    (arms_with(against=3), "arms.b.against=3: must be the name of an arm, or a list of names"),
    (arms_with(against=[3]), "arms.b.against=[3]: must be the name of an arm, or a list of names"),
    (arms_with(against="b"), "arms.b.against='b': must be another arm, for nothing is judged against itself; write []"),
    (arms_with(against=["random", "b"]), "arms.b.against='b': must be another arm, for nothing is judged against its"),
    ({"arms": {"b": {"strategy": "tpe", "against": "b"}}}, "arms.b.against='b': must be another arm, for nothing is"),
    ({"arms": {"b": {"strategy": "tpe"}}}, "arms.b.against='random': must be one of b; it is the arm that this one is"),
    (arms_with(against=["random", "random"]), "arms.b.against=['random', 'random']: every value may appear once"),
    (arms_with(against=["random", "rnd"]), "arms.b.against='rnd': must be one of random, b; did you mean 'random'?"),
    (arms_with(against="rnd"), "arms.b.against='rnd': must be one of random, b; did you mean 'random'?"),
    (
        {"arms": {"a": {"strategy": "qmc"}, "b": {"strategy": "grid"}}},
        "arms=['a', 'b']: one of them must have strategy = 'random'; it is what the others have to beat",
    ),
    (BITS | arms_with(strategy="tpe"), "arms.b.strategy='tpe': cannot search this space (searched mask bits"),
    (BITS | arms_with(strategy="grid"), "arms.b.strategy='grid': cannot search this space (searched mask bits"),
    (arms_with(strategy="cmaes"), "arms.b.strategy='cmaes': cannot search this space (2 objectives"),
    # What is judged.
    ({"verdict": [1]}, "verdict=[1]: must be a section of keys and values"),
    ({"verdict": {"objectives": []}}, "verdict.objectives=[]: must have 1 or more values"),
    ({"verdict": {"objectives": ["test_error"]}}, "verdict.objectives: 'test_error' is a test result; validation"),
    ({"verdict": {"objectives": ["val_eror"]}}, "verdict.objectives: 'val_eror' must be one of val_error,"),
    ({"verdict": {"objectives": ["initial_loss"]}}, "verdict.objectives: 'initial_loss' must be one of val_error,"),
    ({"verdict": {"objectives": ["macs", "macs"]}}, "verdict.objectives=['macs', 'macs']: every value may appear once"),
    (
        {"verdict": {"reference": [0, 0]}},
        "verdict.reference=[0.0, 0.0]: that of 'val_error' must be greater than 0 and at most 1; a candidate counts",
    ),
    (
        {"verdict": {"reference": [-1, 5]}},
        "verdict.reference=[-1.0, 5.0]: that of 'val_error' must be greater than 0 a",
    ),
    (
        {"verdict": {"reference": [90, 5]}},
        "verdict.reference=[90.0, 5.0]: that of 'val_error' must be greater than 0 a",
    ),
    ({"verdict": {"reference": [0.9, 1]}}, "verdict.reference=[0.9, 1.0]: that of 'n_params' must be greater than 1;"),
    (
        {"verdict": {"objectives": ["n_params"], "reference": [0]}},
        "verdict.reference=[0.0]: that of 'n_params' must be greater than 0; a candidate counts where",
    ),
    (
        {"verdict": {"objectives": ["val_accuracy", "macs"], "reference": [1, 5e3]}},
        "verdict.reference=[1.0, 5000.0]: that of 'val_accuracy' must be less than 1 and at least 0; a candidate",
    ),
    ({"verdict": {"reference": [1.0]}}, "verdict.reference=[1.0]: must have one number for each of the 2 objectives"),
    ({"verdict": {"equivalence_margin": 0}}, "verdict.equivalence_margin=0: must be greater than 0.0"),
    # The space: those that are wrong by themselves are in tests/spaces.
    ({"space": {}}, "space={}: there is nothing to search; give a key a range or choices, as in [space.training] lr"),
    ({"space": {"training": {"lr": 0.1}}}, "space={'training': {'lr': 0.1}}: there is nothing to search; give a key"),
    (
        {"space": {"model": {"widths": {"low": 4, "high": 8}}}},
        "space.model.widths: sets one number, and model.widths is a list; say how long it is beside the range, as in",
    ),
    (
        arms_with(space={"model": {"widths": {"choices": [4, 8]}}}),
        "arms.b.space.model.widths: sets one number, and model.widths is a list; say how long it is beside the range",
    ),
    ({"space": {"model": {"widths": 8, "bias": {"flag": True}}}}, "space.model.widths: sets one number, and"),
    (
        {
            "model": {"name": "conv1d"},
            "space": {"model": {"channels": {"low": 4, "high": 9, "depth": {"low": 1, "high": 4}}}},
        },
        "space.model.channels=[4]: must be three numbers of channels, one for each convolution (beside a range: depth",
    ),
    (
        arms_with(rungs={"kind": "mo_asha", "bracket": 2000}),
        "arms.b.rungs.bracket=2000: must be at most 1024 with rungs.kind='mo_asha', which compares a newcomer with the",
    ),
    ({"space": "mlp"}, "space='mlp': must be a section of keys and values"),
    ({"space": {"ready": "mpl"}}, "space.ready='mpl': must be one of mlp, conv1d,"),
    ({"space": {"training": {"lr": {"low": 0.0, "high": 1.0}}}}, "space.training.lr.low=0.0: must lie in (0, inf)"),
    ({"space": {"training": {"learning_rate": 0.1}}}, "space.training.learning_rate=0.1: no such key can be searched"),
    (
        {"space": {"training": {"nesterov": {"flag": True}}}},
        "space.training.nesterov: needs training.momentum > 0, in [training] or in the space; else there is none to",
    ),
    (
        {"space": {"training": {"nesterov": {"choices": [0, 1]}, "momentum": 0.9}}},
        "space.training.nesterov=0: must be true or false",
    ),
    (
        {"space": {"training": {"lr_schedule": {"choices": ["cosine", "sine"]}}}},
        "space.training.lr_schedule='sine': must be 'constant', 'cosine', 'linear' or 'step'; did you mean 'cosine'?",
    ),
    (
        {"space": {"training": {"lr_schedule": {"low": 0.1, "high": 0.2}}}},
        "space.training.lr_schedule=0.1: must be 'constant', 'cosine', 'linear' or 'step'",
    ),
    (
        arms_with(space={"training": {"precision": "float16"}}),
        "arms.b.space.training.precision='float16': must be 'float32' or 'bfloat16'; did you mean 'bfloat16'?",
    ),
    (
        {"space": {"training": {"warmup_fraction": {"low": 0.0, "high": 1.0}}}},
        "space.training.warmup_fraction.high=1.0: must lie in [0, 1)",
    ),
    # Kinds and patterns of masks.
    ({"masks": {"pattern": 4}}, "masks.pattern=4: must be text in quotes"),
    ({"masks": {"pattern": "2;4"}}, "masks.pattern='2;4': must be one of unstructured, node, N:M, such as 2:4, OxI"),
    ({"masks": {"pattern": "5:4"}}, "masks.pattern='5:4': N of M with 1 <= N <= M is needed, such as 2:4"),
    ({"masks": {"pattern": "node"}}, "masks.pattern='node': is no pattern of weight masks; write masks.kind = 'node'"),
    (
        {"masks": {"pattern": "2:4", "kind": "node"}},
        "masks.pattern='2:4': is one of weight masks, and masks.kind is 'node'; change one of the two",
    ),
    (
        {"masks": {"pattern": "1:4", "sparsity": 0.5}},
        "masks.sparsity=0.5: masks.pattern='1:4' is one of its own, 0.75; leave it out",
    ),
    (
        {"masks": {"pattern": "4x4", "method": "imp", "sparsity": 0.5}, "space": {"training": {"lr": LR}}},
        "masks.pattern='4x4': of blocks that go little by little, as masks.method='imp' has it, fewer may be left than",
    ),
    (
        {"masks": {"pattern": "2:4"}},
        "space.masks.sparsity: cannot be searched where masks.pattern='2:4' has sparsity 0.5 alone; remove it",
    ),
    (
        {"space": {"masks": {"pattern": {"choices": ["2:4", "1:4"]}, "allocation": {"choices": ["uniform", "erk"]}}}},
        "space.masks.allocation: cannot be searched where masks.pattern='2:4' has sparsity 0.5 and '1:4' has sparsity",
    ),
    (
        arms_with(space={"masks": {"pattern": "2:4", "sparsity": 0.9}}),
        "arms.b.space.masks.sparsity=0.9: masks.pattern='2:4' has sparsity 0.5 alone; write 0",
    ),
    (
        {"space": {"masks": {"pattern": {"choices": ["4x4", "2:4"]}}}},
        "space.masks.pattern='4x4': needs masks.sparsity > 0, in [masks] or in the space; else nothing is removed",
    ),
    (
        {"space": {"masks": {"pattern": {"choices": ["2:4", "2:5:4"]}}}},
        "space.masks.pattern.choices='2:5:4': must be one of unstructured,",
    ),
    ({"space": {"masks": {"kind": {"choices": ["node", "edge"]}}}}, "space.masks.kind.choices='edge': must be one of"),
    (
        {"space": {"masks": {"kind": "node", "pattern": {"choices": ["unstructured", "2:4"]}}}},
        "space.masks.pattern='2:4': is one of weight masks, and masks.kind is 'node'; write 'unstructured', or",
    ),
    (
        {"space": {"masks": {"kind": {"choices": ["node", "weight"]}, "allocation": {"choices": ["uniform", "erk"]}}}},
        "space.masks.allocation='erk': divides weight masks only, and masks.kind may be 'node'",
    ),
    (
        {"masks": {"allocation": "erk"}} | arms_with(space={"masks": {"kind": "node"}}),
        "arms.b.space.masks.kind='node': masks.allocation='erk' divides weight masks only; set another allocation",
    ),
    (
        {
            "space": {
                "masks": {"kind": {"choices": ["node", "weight"]}, "sparsity": 0.5},
                "constraints": ["node_sparsity >= 0.5"],
            }
        },
        "arms.random.space.constraints: node_sparsity of weight masks is known only once they are drawn",
    ),
    (
        BITS | {"masks": {"sparsity": 0.9, "pattern": "4x4"}},
        "space.masks.bits=true: needs masks.pattern='unstructured', and it is '4x4'",
    ),
    (BITS | arms_with(space={"masks": {"kind": "node"}}), "arms.b.space.masks.kind: cannot be set beside masks.bits"),
    (chained({"pattern": "4x4"}), "space.masks.pattern='4x4': of blocks that go little by little, as masks.method="),
    # What cannot be searched is named by no hint.
    ({"space": {"masks": {"share": 1}}}, "space.masks.share=1: no such key can be searched; it must be one of "),
    ({"space": {"trainign": {}}}, "space.trainign: must be one of model, masks, training, constraints, ready; did you"),
    ({"space": {"model": {"width": 8}}}, "space.model.width=8: no such key can be searched; it must be one of"),
    ({"space": {"data": {"num": 3}}}, "space.data: must be one of model, masks, training, constraints, ready"),
    ({"space": {"ready": "conv1d"}, "model": {"name": "mlp"}}, "space.model.channels={'low': 4"),
    (arms_with(space=5), "arms.b.space=5: must be a section of keys and values"),
    (arms_with(space={"training": 5}), "arms.b.space.training=5: must be a table of keys to search"),
    (arms_with(space={"training": {"lr": -1.0}}), "arms.b.space.training.lr=-1.0: must lie in (0, inf)"),
    (arms_with(space={"training": {"learning_rate": 0.1}}), "arms.b.space.training.learning_rate=0.1: no such key can"),
    (
        arms_with(space={"training": {"batch_size": 4096}}),
        "arms.b.space.training.batch_size: 4096 must be at most 1150",
    ),
    (
        {"space": {"training": {"batch_size": {"choices": [32, 1151]}}}},
        "space.training.batch_size: 1151 must be at most 1150, the training examples",
    ),
    ({"space": {"training": {"steps": {"low": 1, "high": 10**8}}}}, "space.training.steps: 100000000 must be at most"),
    (
        {"space": {"training": {"data_fraction": {"low": 0.01, "high": 1.0}}}},
        "arms.random: trains on as little as 0.01 of the 1150 training examples, which is less than a batch of 32",
    ),
    (
        {"space": {"training": {"optimizer": {"choices": ["adam", "sdg", "sgd"]}}}},
        "space.training.optimizer='sdg': must be one of adam, sgd",
    ),
    (
        {"space": {"model": {"activation": {"choices": ["relu", "rellu", "tanh"]}}}},
        "space.model.activation='rellu': Input should be 'relu', 'tanh', 'gelu' or 'silu'",
    ),
    (
        {"space": {"masks": {"allocation": {"choices": ["uniform", "ekr", "erk"]}}}},
        "space.masks.allocation='ekr': must be one of uniform, global, er, erk",
    ),
    (
        {"space": {"masks": {"allocation": "erk"}}, "masks": {"kind": "node"}},
        "space.masks.allocation='erk': divides weight masks only, and masks.kind is 'node'",
    ),
    (
        {"space": {"constraints": ["node_sparsity >= 0.5"]}},
        "arms.random.space.constraints: node_sparsity of weight masks is known only once they are drawn",
    ),
    ({"space": {"constraints": ["test_error <= 0.5"]}}, "space.constraints: "),
    # Dimensions of masks that remove nothing.
    (
        {"space": {"training": {"lr": LR}, "masks": {"allocation": "searched"}}},
        "space.masks.allocation: is searched where masks.sparsity is 0, and no mask removes anything; set mas",
    ),
    (
        {
            "space": {"masks": {"allocation": {"choices": ["uniform", "erk"]}, "sparsity": 0.0}},
            "masks": {"sparsity": 0.5},
        },
        "space.masks.allocation: is searched where masks.sparsity is 0",
    ),
    (
        {"space": {"training": {"lr": LR}, "masks": {"draw": {"low": 0, "high": 9}}}},
        "space.masks.draw: is searched where masks.sparsity is 0",
    ),
    (
        {"space": {"training": {"lr": LR}, "masks": {"kind": {"choices": ["node", "weight"]}}}},
        "space.masks.kind: is searched where masks.sparsity is 0",
    ),
    (
        {
            "space": {"masks": {"sparsity": {"low": 0.5, "high": 0.9}, "draw": {"low": 0, "high": 9}}},
            **arms_with(space={"masks": {"sparsity": 0.0}}),
        },
        "arms.b.space.masks.draw: is searched where masks.sparsity is 0, and no mask removes anything; set masks.spars",
    ),
    (
        {
            "space": {
                "masks": {
                    "pattern": {"choices": ["unstructured", "2:4"]},
                    "allocation": {"choices": ["uniform", "erk"]},
                }
            }
        },
        "space.masks.allocation: is searched where masks.sparsity is 0",
    ),
    (BITS | {"masks": {}}, "space.masks.bits=true: needs masks.sparsity > 0 in [masks]"),
    (
        BITS | {"space": {"masks": {"bits": True, "sparsity": {"low": 0.1, "high": 0.9}}}},
        "space.masks.sparsity: cannot be set beside masks.bits=true",
    ),
    (
        BITS | {"space": {"masks": {"bits": True}, "model": {"widths": WIDTHS}}},
        "space.masks.bits=true: needs the architecture of [model]",
    ),
    (BITS | arms_with(space={"model": {"widths": [4]}}), "arms.b.space.masks.bits=true: needs the architecture of"),
    (
        {
            "arms": {
                "random": {"space": {"training": {"weight_decay": {"choices": [0, 1]}}}},
                "b": {"space": {"training": {"weight_decay": {"low": 0.0, "high": 1.0}}}},
            }
        },
        "arms.b.space: 'weight_decay' holds float64 here and int64 in another arm; give both the same kind of values",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m[:50] for _, m in WRONG])
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsefront.study.study._connected", lambda *_: pytest.fail("was not refused"))
    with pytest.raises(ConfigError) as caught:
        made(**change).run(tmp_path / "new")
    said = str(caught.value)
    assert said.startswith(message)
    assert "\n" not in said
    assert len(said) < 500
    toml = tmp_path / "a.toml"
    toml.write_text(as_toml(table(**change)), encoding="utf-8")
    assert main(["run", str(toml), "--dir", str(tmp_path / "new")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"sparsefront: {toml}: {said}\n"
    assert list(tmp_path.iterdir()) == [toml]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("space.training.lr = { low = nan, high = 1.0 }", "space.training.lr.low=nan: must be a finite number"),
        ("space.training.lr = { low = 0.1, high = inf }", "space.training.lr.high=inf: must be a finite number"),
        ("space.training.lr = -inf", "space.training.lr=-inf: must be a finite number, text, a flag, or a table"),
        ("arms.b.space.masks.sparsity = nan", "arms.b.space.masks.sparsity=nan: must be a finite number"),
        ("space.training.lr = 1979-05-27", "space.training.lr=datetime.date(1979, 5, 27): must be a finite number"),
    ],
)
def test_what_json_cannot_hold_is_named_as_it_is_written(tmp_path: Path, line: str, message: str) -> None:
    head = 'name = "a"\nseed = 1\nreplicates = 1\ntraining.steps = 9\nspace.model.bias = true\narms.random = {}\n'
    (tmp_path / "a.toml").write_text(f"{head}{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Study.from_toml(tmp_path / "a.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'a.toml'}: {message}")


@pytest.mark.parametrize("name", ["b c", "", "../b", ".b"])
def test_names_of_arms(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^arms\.{re.escape(repr(name))}: must be letters, digits, "):
        made(arms={"random": {}, name: {}})


def test_a_dimension_may_not_take_the_place_of_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "family_with_seconds.py").write_text(
        "from sparsefront.trainables.models.mlp import MLPFamily\n"
        "class Options(MLPFamily.options):\n"
        "    seconds: float = 1.0\n"
        "class Family(MLPFamily):\n"
        "    options = Options\n"
        "family = Family()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    study = made(model={"name": "family_with_seconds:family"}, space={"model": {"seconds": {"low": 0.5, "high": 1.0}}})
    with pytest.raises(ConfigError, match=r"^space: 'seconds' is a column of the ledger already"):
        study.run(tmp_path / "new")


def test_an_override_of_an_arm_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(as_toml(table()), encoding="utf-8")
    study = Study.from_toml(path, ["arms.other.strategy=tpe", "arms.other.options={}", "search.candidates=3"])
    assert study.identity()["arms"]["other"]["strategy"] == "tpe"
    assert study.identity()["arms"]["other"]["candidates"] == 3
    with pytest.raises(ConfigError, match=r"^--set arms\.other\.candidates=0: must be at least 1$"):
        Study.from_toml(path, ["arms.other.candidates=0"])
    with pytest.raises(
        ConfigError, match=r"^--set space\.training\.lr\.low=-1\.0: must be greater than 0 where log=true$"
    ):
        Study.from_toml(path, ["space.training.lr.low=-1"])


# What comes of it -----------------------------------------------------------------------------------------------------

STRATEGY = """
from sparsefront.search.strategies.strategy import Options

class Halves(Options):
    step: float = 0.5

class Asked:
    def __init__(self, task, options):
        self.task, self.step = task, options.step

    def propose(self, history, numbers):
        if numbers.start >= 8:
            raise ZeroDivisionError("no more ideas")
        return self.task.space.decode([[self.step ** (1 + number)] * self.task.space.n_cube for number in numbers])

class Halving:
    summary, source, is_adaptive, options = "halves", "made up", True, Halves
    def refusal(self, space, objectives):
        return None if len(space.dimensions) == 1 else "it knows one dimension"
    def make(self, task, options):
        return Asked(task, options)
"""


@pytest.mark.usefixtures("_one_thread")
def test_a_users_own_strategy_is_run_and_what_it_raises_ends_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_strategy.py").write_text(STRATEGY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"strategy": "my_strategy:Halving", "options": {"step": 0.25}}
    space = {"training": {"lr": {"low": 0.0001, "high": 1.0}}}
    with pytest.raises(ConfigError, match=r"^arms\.own\.options\.stop=1: unknown key; must be one of step; did you"):
        made(space=space, arms={"random": {}, "own": own | {"options": {"stop": 1}}})
    with pytest.raises(
        ConfigError, match=r"^arms\.own\.strategy='my_strategy:Halving': .* \(it knows one dimension\)$"
    ):
        made(arms={"random": {}, "own": own})
    arms = {"random": {"candidates": 4}, "own": own | {"candidates": 12}}
    study = made(space=space, arms=arms, replicates=1, model={"widths": [4]})
    run_search(study, tmp_path / "a")
    rows = rows_of(tmp_path / "a")
    assert [rows["trained", "own", 0, 0.0, i]["lr"] for i in range(8)] == pytest.approx(
        [0.0001 + 0.9999 * 0.25 ** (1 + i) for i in range(8)]
    )
    last = rows["trained", "own", 0, 0.0, 8]
    assert (last["outcome"], last["passes"]) == ("failed", 0.0)
    assert last["error"].endswith("ZeroDivisionError: no more ideas\n")
    assert sum(row["arm"] == "own" for row in rows.values()) == 9
    assert [rows["trained", "random", 0, 0.0, i]["outcome"] for i in range(4)] == ["completed"] * 4


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a search that was run to its end."""
    folder = tmp_path_factory.mktemp("searches") / "tiny"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    arms = {
        "random": {},
        "asha": {"rungs": {"kind": "mo_asha", "eta": 2, "bracket": 4}},
        "other": BASE["arms"]["other"],
    }
    space = BASE["space"] | {"constraints": ["n_params <= 300"]}
    study = made(arms=arms, space=space, record={"enabled": False})
    folder.with_suffix(".toml").write_text(
        as_toml(table(arms=arms, space=space, record={"enabled": False})), encoding="utf-8"
    )
    run_search(study, folder, slots=2)
    torch.set_num_threads(before)
    return folder


def test_dimensions_are_columns_of_their_type(done: Path) -> None:
    found = sparsefront.load(done).to_arrow(where="stage == 'trained'")
    types = {name: found.schema.field(name).type for name in ("depth", "width_1", "width_2", "sparsity", "lr")}
    assert types == {
        "depth": pa.int64(), "width_1": pa.int64(), "width_2": pa.int64(), "sparsity": pa.float64(), "lr": pa.float64()
    }  # fmt: skip
    for row in found.to_pylist():
        assert (row["width_2"] is not None) == (row["depth"] == 2)
        assert 1e-3 <= row["lr"] <= 1e-1
        assert (row["optimizer"], row["batch_size"], row["mask_kind"] in ("weight", "none")) == ("adam", 32, True)


def test_every_run_has_its_budget_and_says_what_was_infeasible(done: Path) -> None:
    rows = sparsefront.load(done).to_arrow(where="stage == 'trained'").to_pylist()
    outcomes = {row["outcome"] for row in rows}
    assert outcomes == {"completed", "stopped", "infeasible"}
    for arm in ("random", "asha", "other"):
        for replicate in range(2):
            mine = [row for row in rows if (row["arm"], row["replicate"]) == (arm, replicate)]
            assert sorted(row["slot"] for row in mine) == list(range(len(mine)))
            assert sum(row["outcome"] != "infeasible" and not row["reused"] for row in mine) == 8
    for row in rows:
        if row["outcome"] == "infeasible":
            assert row["n_params"] > 300
            assert row["error"] == f"n_params={row['n_params']:g} violates n_params <= 300"
            assert (row["passes"], row["val_error"]) == (0.0, None)
    assert sparsefront.load(done).n_trained() == (48, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicates": 3}, "replicates=3: must be at most 2, the replicates on record in DIR; there is nothing to re"),
        ({"seed": 2}, "DIR=DIR: its candidates are of another study (seed: 1 -> 2); a replay needs the same data, mod"),
        ({"training": {"steps": 17, "batch_size": 32}}, "DIR=DIR: its candidates are of another study (training.steps"),
        (
            {"model": {"bias": False}, "data": {"name": "digits", "validation_fraction": 0.3}},
            "DIR=DIR: its candidates are of another study (data.validation_fraction: 0.2 -> 0.3, model.bias: true -> f",
        ),
        ({"data": {"name": "mnist1d"}}, "DIR=DIR: its candidates are of another study (data.name: "),
        ({"masks": {"kind": "node"}}, 'DIR=DIR: its candidates are of another study (masks.kind: "weight" -> "node")'),
        (
            {"space": BASE["space"] | {"training": {"lr": LR | {"high": 1.0}}}},
            "DIR=DIR: its candidates are of another study (space.training.lr.high: 0.1 -> 1.0); a replay needs",
        ),
        (
            {"space": BASE["space"] | {"training": {}}},
            "DIR=DIR: its candidates are of another study (space.training.lr.high: 0.1 -> (absent), space.tra",
        ),
        (
            {"arms": {"random": {}, "other": {"space": {"training": {"beta1": {"low": 0.8, "high": 0.9}}}}}},
            "DIR=DIR: its candidates are of another study (arms.other.space.training.beta1.high: (absent) -> 0.9, ",
        ),
    ],
)
def test_what_was_not_recorded_of_such_candidates_is_not_replayed(done: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**changes).simulate(ledger=done)
    said = str(caught.value)
    assert said.replace(str(done), "DIR").startswith(message)
    assert "\n" not in said


def test_other_arms_rungs_and_budgets_are_replayed(done: Path) -> None:
    arms = {
        "random": {"candidates": 5},
        "early": {"rungs": {"kind": "asha", "eta": 2, "min_steps": 4}},
        "qmc": {"strategy": "qmc"},
    }
    training = {"steps": 18, "batch_size": 32, "eval_every": 3}
    constrained = BASE["space"] | {"constraints": ["n_params <= 400"]}
    study = made(arms=arms, replicates=1, training=training, space=constrained, verdict={"objectives": ["val_loss"]})
    found = study.simulate(ledger=done, workers=1)
    assert {arm.arm: arm.candidates for arm in found.arms} == {"random": 5, "early": 8, "qmc": 8}


def test_a_front_may_be_asked_for_by_dimensions(done: Path) -> None:
    results = sparsefront.load(done)
    front = results.front(where="lr < 0.03 and depth == 2 and width_2 > 2").to_pylist()
    rows = results.to_arrow(where="stage == 'trained' and outcome == 'completed'").to_pylist()
    eligible = [r for r in rows if r["lr"] < 0.03 and r["depth"] == 2 and r["width_2"] > 2]
    losses = [(r["val_error"], r["n_params"]) for r in eligible]
    best = {
        one for one in losses if not any(other[0] <= one[0] and other[1] <= one[1] and other != one for other in losses)
    }
    assert best
    assert {(r["val_error"], r["n_params"]) for r in front} == best
    with pytest.raises(ConfigError, match=r"there is no column 'widht_2'; did you mean 'width_2'\?"):
        results.front(where="widht_2 > 2")
    assert results.front(where="sparsity < 0.8").num_rows


FIXING: dict[str, Any] = {
    "model": {"widths": [4, 2]},
    "training": {"lr": 0.01, "nesterov": True},
    "masks": {"method": "snip", "sparsity": 0.5},
}


@pytest.mark.usefixtures("_one_thread")
def test_what_an_arm_fixes_is_found_where_other_arms_search(tmp_path: Path) -> None:
    """In their columns: a filter, the front and the report see it."""
    space = {
        "model": {"widths": WIDTHS | {"depth": {"low": 1, "high": 3}}},
        "masks": {"method": {"choices": ["random", "grasp"]}, "sparsity": {"low": 0.1, "high": 0.8}},
        "training": {"lr": LR, "nesterov": {"flag": True}, "weight_decay": {"low": 0.0, "high": 0.1}},
    }
    training = {"steps": 18, "batch_size": 32, "optimizer": "sgd", "momentum": 0.9}
    arms = {"random": {}, "fixing": {"space": FIXING, "rungs": {"kind": "asha", "min_steps": 9}}}
    study = made(space=space, training=training, arms=arms, replicates=1)
    run_search(study, tmp_path / "study")
    results = sparsefront.load(tmp_path / "study")
    rows = results.to_arrow(where="arm == 'fixing'").to_pylist()
    assert {row["outcome"] for row in rows} == {None, "completed", "stopped"}
    own = {"depth": 2, "width_1": 4, "width_2": 2, "width_3": None, "method": "snip", "sparsity": 0.5, "lr": 0.01}
    own |= {"nesterov": True}
    assert all({name: row[name] for name in own} == own for row in rows)
    where = (
        "method == 'snip' and nesterov == true and lr <= 0.01 and depth == 2 and sparsity == 0.5 and width_3 is None"
    )
    front = results.front(where=where).to_pylist()
    assert {row["arm"] for row in front} == {"fixing"}
    assert results.front(where="method != 'snip'").num_rows
    points = search_report_numbers(results.to_arrow(), study.design(), results.verdict())["points"]
    shown = {name: {points["dims"][name][i] for i, arm in enumerate(points["arm"]) if arm == "fixing"} for name in own}
    assert shown == {name: {value} for name, value in own.items()}


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({}, {"kind": "weight", "pattern": "unstructured", "sparsity": 0.5, "method": "random", "mask_draw": 0}),
        ({"kind": "node"}, {"kind": "node", "sparsity": 0.5, "method": "random", "mask_draw": 0}),
        # N:M is a sparsity of its own, and no allocation divides it.
        ({"pattern": "2:4", "sparsity": 0.0}, {"pattern": "2:4", "sparsity": 0.5, "allocation": None}),
        ({"pattern": "2x2", "allocation": "erk"}, {"pattern": "2x2", "allocation": "erk"}),
        ({"method": "snip"}, {"method": "snip", "allocation": "global", "mask_draw": None, "rate": None}),
        ({"method": "random_erk"}, {"method": "random_erk", "allocation": "erk", "mask_draw": 0}),
        ({"method": "random_snip_ratio"}, {"method": "random_snip_ratio", "allocation": None, "mask_draw": 0}),
        ({"method": "imp", "rate": 0.3}, {"method": "imp", "rate": 0.3, "rewind_fraction": 0.0, "mask_draw": None}),
        ({"method": "imp_rewind"}, {"rate": 0.2, "rewind_fraction": 0.02, "allocation": "global"}),
        ({"method": "lr_rewind"}, {"rate": 0.2, "rewind_fraction": None}),
        # An allocation of weights gives way to the study's where nodes are pruned.
        ({"method": "set", "kind": "node"}, {"method": "set", "kind": "node", "allocation": "uniform"}),
    ],
)
def test_what_is_fixed_is_what_a_candidate_trains_with(fixed: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whether the space of the arm says it, or the study does, or the method that one of them names."""
    others = {
        "kinds": {"kind": {"choices": ["node", "weight"]}, "pattern": {"choices": ["unstructured", "2:4", "4x4"]}},
        "methods": {"method": {"choices": ["random", "snip"]}, "draw": {"low": 0, "high": 9}},
        "allocations": {"allocation": {"choices": ["uniform", "global"]}, "sparsity": {"low": 0.1, "high": 0.9}},
        "chains": {
            "method": "imp_rewind",
            "rate": {"low": 0.1, "high": 0.5},
            "rewind_fraction": {"low": 0.06, "high": 0.5},
        },
    }
    arms: dict[str, Any] = {name: {"space": {"masks": masks}} for name, masks in others.items()}
    arms["asked"] = {"space": {"masks": fixed}}
    training = {"steps": 100, "batch_size": 32}
    study = made(space={"training": {"lr": LR}}, masks={"sparsity": 0.5}, training=training, arms=arms)
    (arm,) = (arm for arm in study.design().arms if arm.name == "asked")
    found = arm.fixed.values(arm.space.settings({"lr": 0.01}))
    assert {name: found.get(name) for name in expected} == expected
    assert "lr" not in found


def test_a_methods_own_allocation_is_of_the_kind_of_mask_that_an_arm_has() -> None:
    """Recorded of a study of nodes, SET divides weights as it does: by ERK."""
    arms = {
        "searching": {"space": {"masks": {"kind": "weight", "allocation": {"choices": ["uniform", "erk"]}}}},
        "nodes": {"space": {"masks": {"method": "set"}}},
        "weights": {"space": {"masks": {"method": "set", "kind": "weight"}}},
    }
    study = made(space={"training": {"lr": LR}}, masks={"kind": "node", "sparsity": 0.5}, arms={"random": {}} | arms)
    found = {arm.name: arm.fixed.values(arm.space.settings({"lr": 0.01})) for arm in study.design().arms}
    assert {name: found[name]["allocation"] for name in ("random", "nodes", "weights")} == {
        "random": "uniform",
        "nodes": "uniform",
        "weights": "erk",
    }


@pytest.mark.usefixtures("_one_thread")
def test_a_replay_knows_every_candidate_that_is_on_record(tmp_path: Path) -> None:
    """By its point, whatever of it takes effect: those that were stopped have no other curve than their own."""
    arms = {"random": {"rungs": {"kind": "asha", "min_steps": 6}}}
    study = made(arms=arms, replicates=1)
    run_search(study, tmp_path / "study")
    results = sparsefront.load(tmp_path / "study")
    assert isinstance(results.design, SearchDesign)
    replayed = LedgerObjective(results.to_arrow(), results.design)
    dataset = load_dataset("digits")
    (arm,), describe = study.design(dataset).arms, study._describer(dataset)
    rows = results.to_arrow(where="stage == 'rung'")
    for row, point in zip(rows.to_pylist(), points_from_rows(rows, arm.space, lambda _: b""), strict=True):
        query = Query(arm, 0, point, describe(0, point, arm.space), row["steps"])
        assert replayed(query) == (row["val_loss"], row["val_error"])


def test_what_a_front_asks_for_is_something_that_the_search_has(tmp_path: Path) -> None:
    space = {"training": {"lr": LR}, "masks": {"allocation": {"choices": ["uniform", "erk"]}}}
    study = made(space=space, masks={"sparsity": 0.5}, arms={"random": {}, "tpe": {"strategy": "tpe"}})
    Ledger.create(tmp_path / "new", study.recorded(), digest=study.digest, versions={}).close()
    results = sparsefront.load(tmp_path / "new")
    for where, message in {
        "sparsity > 0.8": r"there is no column 'sparsity', for it is not searched; what candidates have is in node_sp",
        "arm == 'tep'": r"arm='tep' must be one of random, tpe; did you mean 'tpe'\?",
        "allocation in ('erk', 'uniforn')": r"allocation='uniforn' must be one of uniform, erk; did you mean 'uniform'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            results.front(where=where)
        with pytest.raises(ConfigError, match=message):
            results.to_arrow(where=where)
    assert results.front(where="weight_sparsity > 0.8 and arm == 'tpe' and allocation == 'erk'").num_rows == 0


Capture = pytest.CaptureFixture[str]


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("_terminal")
def test_commands_read_a_search(done: Path, capsys: Capture) -> None:
    verdict = sparsefront.load(done).verdict()
    assert main(["verdict", str(done)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert " ".join(verdict.headline.split()) in " ".join(out.split())
    for arm in ("asha", "other"):
        assert re.search(rf"^{arm} +random ", out, re.MULTILINE)
    assert "not finished" not in out
    assert main(["verdict", str(done), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == json.loads(json.dumps(verdict.to_dict()))
    assert main(["front", str(done), "--where", "depth == 1", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert {(row["depth"], row["width_2"]) for row in rows} == {(1, None)}
    assert main(["front", str(done)]) == 0
    out = capsys.readouterr().out
    assert "on the front" in out
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.usefixtures("_terminal")
def test_a_search_that_is_complete_is_not_run_again(done: Path, capsys: Capture) -> None:
    toml = str(done.with_suffix(".toml"))
    before = rows_of(done)
    assert main(["run", toml, "--dir", str(done), "--set", "compute.workers=1"]) == 0
    out = capsys.readouterr().out
    assert f"report: {done / 'report.html'}" in out
    assert (done / "report.html").stat().st_size > 100_000
    assert rows_of(done) == before
    assert main(["run", toml, "--dir", str(done), "--set", "arms.asha.rungs.eta=3"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{done} holds another study (changed: arms.asha.rungs.eta: 2 -> 3)" in err


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("strategies", STRATEGIES),
        ("rungs", RUNGS),
        ("spaces", READY_SPACES),
        ("objectives", OBJECTIVES),
        ("simulations", SYNTHETIC),
    ],
)
def test_what_there_is_to_choose_from_is_listed(what: str, names: dict[str, Any], capsys: Capture) -> None:
    assert list(listing(what)) == list(names)
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    for name, facts in listing(what).items():
        assert re.search(rf"^{name}$", out, re.MULTILINE)
        assert all(facts.values())


def test_results_know_a_search_without_torch_or_its_space(done: Path) -> None:
    results = sparsefront.load(done)
    study = Study.from_dict(results.identity)
    assert study.digest == Study.from_toml(done.with_suffix(".toml")).digest
    assert results.design == study.design(load_dataset("digits"))
