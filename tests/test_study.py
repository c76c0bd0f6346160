"""A study: the same from TOML and from Python, and one line for everything that may be wrong with it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import ConfigError, LedgerError
from sparsefront.search.ledger.header import read_header
from sparsefront.search.methods import BASELINE, METHODS, PRUNERS
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.structure import SCALING
from sparsefront.study import MaskStudy, Study
from sparsefront.study.study import versions
from sparsefront.trainables.data import Dataset, load_dataset

BASE: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "replicates": 2,
    "sparsities": [0.5, 0.9],
    "data": {"name": "digits"},
    "training": {"steps": 10},
}


def made(**changes: Any) -> Study:
    return Study(**{**BASE, **changes})


def as_toml(table: dict[str, Any], path: str = "") -> str:
    """What a study's plain data look like in a file: every JSON scalar and list of scalars is TOML."""
    # TOML has no null: a key that is not set is not there.
    values = "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items() if v is not None and not isinstance(v, dict))
    sections = ((f"{path}.{k}".strip("."), v) for k, v in table.items() if isinstance(v, dict))
    return values + "".join(f"\n[{name}]\n{as_toml(section, name)}" for name, section in sections)


#: Methods of the kind of mask that a study has by default.
OF_NODES = [name for name in METHODS if name not in PRUNERS or "node" in PRUNERS[name].kinds]
fractions = st.floats(0.001, 0.999)
studies = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**63 - 1),
        "replicates": st.integers(1, 50),
        "sparsities": st.lists(fractions, min_size=1, max_size=5, unique_by=lambda s: round(s * 1e9)),
        "training": st.fixed_dictionaries(
            {"steps": st.integers(26, 1000)},  # of fewer, the 2% of imp_rewind are no step
            optional={"lr": st.floats(1e-6, 1.0), "weight_decay": st.one_of(st.just(0), st.floats(0, 1))},
        ),
    },
    optional={
        "arms": st.one_of(
            st.sets(st.sampled_from([a for a in OF_NODES if a != "random"])).map(lambda s: ["random", *sorted(s)]),
            st.fixed_dictionaries(
                {
                    "random": st.just({}),
                    "late": st.fixed_dictionaries(
                        {
                            "method": st.sampled_from(["imp", "imp_rewind"]),
                            "rewind_fraction": st.sampled_from([0, 0.05, 0.25]),
                        },
                        optional={"controls": st.lists(st.sampled_from(list(CONTROLS)), unique=True)},
                    ),
                    "snip": st.fixed_dictionaries({}, optional={"rounds": st.integers(1, 100)}),
                    "tuned": st.fixed_dictionaries(
                        {"method": st.just("magnitude_oneshot"), "retrain_fraction": st.integers(0, 3)}
                    ),
                }
            ),
        ),
        "data": st.one_of(
            st.fixed_dictionaries({"name": st.just("digits")}, optional={"validation_fraction": fractions}),
            st.fixed_dictionaries({"num_samples": st.integers(10, 500).map(lambda n: 10 * n)}),
        ),
        "model": st.one_of(
            st.fixed_dictionaries({"widths": st.lists(st.integers(1, 300), min_size=1, max_size=4)}),
            st.just({"name": "conv1d", "bias": False}),
        ),
        "compute": st.fixed_dictionaries({"workers": st.integers(0, 8)}),
    },
)


@settings(max_examples=50, deadline=None)
@given(table=studies)
def test_toml_and_python_give_the_same_study(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("study") / "study.toml"
    study = Study(**table)
    path.write_text(as_toml(table), encoding="utf-8")
    assert Study.from_toml(path) == study
    # ... and so does what it was resolved to.
    resolved = json.loads(study.model_dump_json())
    path.write_text(as_toml(resolved), encoding="utf-8")
    again = Study.from_toml(path)
    assert again == study
    assert again.digest == study.digest
    assert Study.from_dict(study.identity()).digest == study.digest


def test_defaults_are_written_down_options_included() -> None:
    identity = made(data={"name": "mnist1d", "num_samples": 1000}).identity()
    assert identity["data"] == {
        "name": "mnist1d",
        "validation_fraction": 0.2,
        "num_samples": 1000,
        "seed": 42,
        "test_samples": 0,
    }
    assert identity["model"]["activation"] == "relu"
    assert identity["arms"] == list(BASELINE)
    assert "compute" not in identity
    assert "record" not in identity


def test_a_study_can_be_resumed_elsewhere_but_not_changed() -> None:
    study = made()
    assert made(compute={"workers": 3}, record={"enabled": False}).digest == study.digest
    assert made(seed=2).digest != study.digest
    assert made(model={"activation": "tanh"}).digest != study.digest
    assert made(training={"steps": 10, "lr": 1}).digest == made(training={"steps": 10, "lr": 1.0}).digest


def test_a_number_of_an_arm_is_the_same_study_however_it_is_written() -> None:
    whole, real = ({"random": {}, "magnitude_oneshot": {"retrain_fraction": x}} for x in (2, 2.0))
    assert made(arms=whole).digest == made(arms=real).digest
    assert made(arms=whole).digest != made(arms={"random": {}, "magnitude_oneshot": {}}).digest


def test_fewer_draws_than_are_usually_trained_are_all_trained() -> None:
    assert [made(search={"draws": n}).identity()["search"]["random_draws"] for n in (1, 5, 8, 100)] == [1, 5, 8, 8]
    assert made(search={"draws": 5}).digest == made(search={"draws": 5, "random_draws": 5}).digest


def test_candidates_are_called_the_same_in_a_wider_study() -> None:
    assert made(replicates=5, sparsities=[0.3], arms=["random"]).base() == made().base()
    assert made(training={"steps": 11}).base() != made().base()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sparsities": [0.5, 1.0]}, "sparsities.1=1.0: must be less than 1.0"),
    ({"sparsities": [0.0]}, "sparsities.0=0.0: must be greater than 0.0"),
    ({"sparsities": ["0.5"]}, "sparsities.0='0.5': must be a number"),
    ({"sparsities": [True]}, "sparsities.0=True: must be a number"),
    ({"sparsities": []}, "sparsities=[]: must have 1 or more values"),
    ({"sparsities": 0.5}, "sparsities=0.5: must be a list"),
    ({"sparsities": [0.5, 0.5]}, "sparsities=[0.5, 0.5]: every value may appear once"),
    ({"sparsities": [0.5, 0.5 + 1e-10]}, "must differ in their first six digits"),
    ({"sparsities": [float("nan")]}, "sparsities.0=nan: must be a finite number"),
    ({"seed": True}, "seed=True: must be a whole number"),
    ({"seed": 1.0}, "seed=1.0: must be a whole number"),
    ({"seed": -1}, "seed=-1: must be at least 0"),
    ({"seed": 2**63}, "seed=9223372036854775808: must be less than 9223372036854775808"),
    ({"replicates": 0}, "replicates=0: must be at least 1"),
    (
        {"replicates": 100_000, "sparsities": [i / 12 for i in range(1, 12)]},
        "must be at most 1,000,000 levels and 1,000,000,000 masks",
    ),
    ({"name": "../x"}, "name='../x': must be 1-128 letters, digits, '.', '_' or '-', beginning with"),
    ({"name": 5}, "name=5: must be text in quotes"),
    ({"trainign": 5}, "trainign=5: unknown key; must be one of name, seed,"),
    ({"training": {"steps": 10, "stesp": 5}}, "training.stesp=5: unknown key; must be one of optimizer,"),
    ({"training": {"steps": 10, "stesp": 5}}, "did you mean 'steps'?"),
    ({"steps": 5}, "steps=5: unknown key; must be one of name, seed,"),
    ({"steps": 5}, "; did you mean 'training.steps'?"),
    ({"draws": 5}, "; did you mean 'search.draws'?"),
    ({"training": {}}, "training.steps: is missing and has no default; write it"),
    ({"training": {"step": 5}}, "training.step=5: unknown key; must be one of optimizer,"),
    ({"training": 5}, "training=5: must be a section of keys and values"),
    ({"training": {"steps": 10, "lr": float("inf")}}, "training.lr=inf: must be a finite number"),
    ({"training": {"steps": 10, "lr": True}}, "training.lr=True: must be a number"),
    ({"training": {"steps": 10, "nesterov": 1}}, "training.nesterov=1: must be true or false"),
    ({"training": {"steps": 10, "nesterov": True}}, "training.nesterov=true: needs training.momentum > 0"),
    ({"training": {"steps": 10, "optimizer": "adma"}}, "training.optimizer='adma': must be one of adam, sgd; did you"),
    ({"training": {"steps": 10, "precision": "f"}}, "training.precision='f': must be 'float32' or 'bfloat16'"),
    ({"masks": {"kind": "edge"}}, "masks.kind='edge': must be 'node' or 'weight'"),
    ({"masks": {"allocation": "erk"}}, "masks.allocation='erk': divides weight masks only, and masks.kind is 'node'"),
    ({"masks": {"allocation": "unifrom"}}, "masks.allocation='unifrom': must be one of uniform,"),
    ({"arms": ["searched"]}, "arms=['searched']: 'random' must be among them"),
    ({"arms": ["random", "searchd"]}, "arms: 'searchd' must be one of dense, random,"),
    ({"arms": "random"}, "arms='random': must be a list"),
    ({"data": {"name": "mnist"}}, "must be one of mnist1d, digits, xor_cluster, restoration; did you mean 'mnist1d'?"),
    ({"data": {"name": "digits", "foo": 1}}, "data.foo=1: unknown key; must be one of name, validation_fraction"),
    ({"data": {"num_samples": 7}}, "data.num_samples=7 for data set 'mnist1d': must be a whole number from 100"),
    ({"data": {"num_samples": True}}, "data.num_samples=True for data set 'mnist1d': must be a whole number"),
    ({"data": {"validation_fraction": float("nan")}}, "data.validation_fraction=nan: must be a finite number"),
    (
        {"model": {"name": "mpl"}},
        "model.name='mpl': must be one of mlp, residual_mlp, conv1d, hourglass, lenet_300_100",
    ),
    ({"model": {"name": ".a:b"}}, "model.name='.a:b': must be 'package.module:object'"),
    ({"model": {"name": "no_such_package:x"}}, "model.name='no_such_package:x': cannot be imported"),
    ({"model": {"name": "os:path"}}, "model.name='os:path': is no model family"),
    ({"model": {"widths": [0]}}, "model.widths.0=0: must be at least 1"),
    ({"model": {"width": [3]}}, "model.width=[3]: unknown key; must be one of widths,"),
    ({"search": {"draws": 2, "random_draws": 3}}, "search.draws=2: must be at least search.random_draws=3"),
    ({"verdict": {"objectives": ["val_eror"]}}, "verdict.objectives: 'val_eror' must be one of val_error,"),
    ({"verdict": {"objectives": ["macs", "macs"]}}, "verdict.objectives=['macs', 'macs']: every value may appear once"),
]


def arm(name: str, kind: str = "node", **table: Any) -> dict[str, Any]:
    """A study with one arm besides the random one."""
    return {"arms": {"random": {}, name: table}, "masks": {"kind": kind}}


def biases(name: str = "imp", *, allocation: str = "uniform", **table: Any) -> dict[str, Any]:
    """The same under masks that cover biases; `allocation` is of the arm, or of the study if that is `imp`."""
    own = {"allocation": allocation} if name != "imp" else {}
    general = allocation if name == "imp" else "uniform"
    masks = {"kind": "weight", "prune_biases": True, "allocation": general}
    return {"arms": {"random": {}, name: {**own, **table}}, "masks": masks}


#: Tables of arms with which something is wrong.
WRONG_ARMS: list[tuple[dict[str, Any], str]] = [
    ({"arms": 5}, "arms=5: must be a list of names, or a section for each arm"),
    ({"arms": []}, "arms=[]: must have 1 or more values"),
    ({"verdict": {"objectives": ["macs"] * 20}}, "...: must have 6 or fewer values, not 20"),
    ({"arms": {}}, "arms=[]: 'random' must be among them"),
    ({"arms": [5]}, "arms.0=5: must be text in quotes"),
    ({"arms": ["random", "random"]}, "arms=['random', 'random']: every value may appear once"),
    ({"arms": {"random": 5}}, "arms.random=5: must be a section of keys and values"),
    ({"arms": {"imp": {}}}, "arms=['imp']: 'random' must be among them"),
    ({"arms": {"random": {"draws": 3}}}, "arms.random.draws: method 'random' has no options; remove it"),
    (
        {"arms": {"random": {"controls": ["shuffled_layers"]}}},
        "arms.random.controls: 'shuffled_layers' is another random mask of the same layer counts; remove it",
    ),
    (
        {"arms": {"random": {"controls": ["fresh_weights"]}}},
        "arms.random.controls: 'fresh_weights' asks whether a mask belongs to its weights, and a random one has seen",
    ),
    (
        {"arms": {"random": {"controls": ["shuffled"]}}, "masks": {"allocation": "global"}},
        "arms.random.controls: 'shuffled' is another random mask, for allocation 'global' fixes no ratios of layers",
    ),
    (arm("dense", controls=["dense_budget"]), "arms.dense.controls: 'dense_budget' is of networks under a mask, and"),
    (arm("small_dense", controls=["shuffled"]), "arms.small_dense.controls: 'shuffled' is of networks under a mask"),
    (arm("searched", controls=["shufled"]), "arms.searched.controls: 'shufled' must be one of shuffled_layers,"),
    (
        arm("lr_rewind", "weight", controls=["shuffled"]),
        "goes on from those of its own mask alone; remove it, or add an arm of this method with score='random', whose",
    ),
    (
        arm("nm_2_4", "weight", retrain_fraction=0, controls=["small_dense"]),
        "arms.nm_2_4.controls: 'small_dense' trains new weights for as long as the arm's survivors, and retrain_",
    ),
    ({"arms": ["random", "ap"]}, "arms.ap: prunes weight masks only, and masks.kind is 'node'; change one of them"),
    (arm("set", allocation="erk"), "arms.set.allocation='erk': divides weight masks only"),
    (arm("gmp", pattern="2:4"), "arms.gmp.pattern='2:4': is one of weight masks, not of node masks"),
    (arm("gmp", "weight", score="apoz"), "arms.gmp.score='apoz': scores node masks only, and masks.kind is 'weight'"),
    ({"arms": {"random": {}, "a-b": {"method": "imp"}}}, "arms: 'a-b' must be letters, digits and _"),
    ({"arms": {"random": {}, "2nd": {"method": "imp"}}}, "arms: '2nd' must be letters, digits and _"),
    (arm("mine"), "must be one of dense, random,"),
    (arm("mine"), "or give [arms.mine] a method"),
    (arm("mine", method="ipm"), "arms: 'ipm' must be one of dense,"),
    (arm("mine", method="ipm"), "did you mean 'imp'?"),
    (arm("mine", method="random"), "arms.mine.method='random': this method has no options; call the arm 'random'"),
    (arm("imp", method=5), "arms.imp.method=5: must be text in quotes"),
    (arm("imp", widths=3), "arms.imp.widths: must be one of method, controls, siblings, when,"),
    (arm("imp", rewind_fractoin=0.1), "did you mean 'rewind_fraction'?"),
    (arm("imp", controls=3), "arms.imp.controls=3: must be a list"),
    (arm("imp", controls="shuffled"), "arms.imp.controls='shuffled': must be a list"),
    (arm("imp", controls=["shufled"]), "arms.imp.controls: 'shufled' must be one of shuffled_layers,"),
    (arm("imp", controls=["shuffled", "shuffled"]), "arms.imp.controls=['shuffled', 'shuffled']: every value may"),
    (
        {"arms": {"random": {}, "imp": {"controls": ["shuffled"]}, "imp_shuffled": {"method": "imp"}}},
        "arms=['random', 'imp', 'imp_shuffled']: a control and an arm have the same name; rename the arm",
    ),
    (arm("imp", when="later"), "arms.imp.when='later': must be one of 'init', 'trained', 'levels', 'during'"),
    (arm("imp", survivors="dead"), "arms.imp.survivors='dead': must be one of 'rewound', 'trained', 'fresh'"),
    (arm("lr_rewind", "weight", lr="first"), "arms.lr_rewind.lr='first': must be one of 'last', 'rewound'"),
    (arm("set", "weight", update="grow"), "arms.set.update='grow': must be one of 'gradual', 'set',"),
    (arm("rigl", "weight", update="rigle"), "'rigl', 'edge_popup'; did you mean 'rigl'?"),
    (arm("imp", when="level"), "must be one of 'init', 'trained', 'levels', 'during'; did you mean 'levels'?"),
    (arm("imp", survivors="rewind"), "must be one of 'rewound', 'trained', 'fresh'; did you mean 'rewound'?"),
    (arm("lr_rewind", "weight", lr="rewund"), "must be one of 'last', 'rewound'; did you mean 'rewound'?"),
    (arm("rigl", "weight", decay="cosin"), "must be one of 'constant', 'cosine', 'linear'; did you mean 'cosine'?"),
    (arm("imp", survivors=3), "arms.imp.survivors=3: must be one of 'rewound', 'trained', 'fresh'"),
    (arm("magnitude", "weight", pattern="unstructred"), "such as 4x4; did you mean 'unstructured'?"),
    ({"masks": {"kind": "nodes"}}, "masks.kind='nodes': must be 'node' or 'weight'; did you mean 'node'?"),
    ({"masks": {"kind": 3}}, "masks.kind=3: must be 'node' or 'weight'"),
    ({"masks": {"allocation": "unifrom"}}, "; did you mean 'uniform'?"),
    # What is of searches, where [space] was forgotten.
    ({"masks": {"pattern": "2:4"}}, "masks.pattern='2:4': is a key of searches: add [space], or use one of kind, all"),
    ({"rungs": {"kind": "asha"}}, "rungs={'kind': 'asha'}: is a section of searches: add [space], or leave it out"),
    ({"search": {"batch": 8}}, "search.batch=8: is a key of searches: add [space], or use one of draws, probe_size,"),
    ({"arms": {"tpe": {"strategy": "tpe"}}}, "arms.tpe.strategy='tpe': is a key of searches: add [space], or use one"),
    (arm("snip", update="set"), "arms.snip.update='set': belongs to when='during', and when is 'init'"),
    (arm("imp", rate="0.2"), "arms.imp.rate='0.2': must be a number"),
    (arm("imp", rate=True), "arms.imp.rate=True: must be a number"),
    (arm("imp", rate=0), "arms.imp.rate=0.0: must lie in [0.001, 0.999]"),
    (arm("imp", rate=float("nan")), "arms.imp.rate=nan: must lie in [0.001, 0.999]"),
    (arm("imp", rewind_fraction=-0.1), "arms.imp.rewind_fraction=-0.1: must lie in [0, 1]"),
    (arm("imp", rewind_fraction=1.1), "arms.imp.rewind_fraction=1.1: must lie in [0, 1]"),
    (arm("imp", rewind_fraction=1), "arms.imp.rewind_fraction=1.0: goes back to the end of the training ("),
    (arm("imp", rewind_fraction=0.9999), "arms.imp.rewind_fraction=0.9999: goes back to the end of the training ("),
    (arm("imp", rewind_fraction=1e-6), "arms.imp.rewind_fraction=1e-06: rounds to step 0 of a training of "),
    (arm("imp", rewind_fraction=1e-6), "which is initialisation; set "),
    (arm("magnitude", rewind_fraction=1e-6), "arms.magnitude.rewind_fraction=1e-06: rounds to step 0 of a training of"),
    (arm("magnitude_oneshot", retrain_fraction=-1), "retrain_fraction=-1.0: must lie in [0, 100]"),
    (arm("imp", retrain_fraction=0.5), "arms.imp.retrain_fraction=0.5: has no effect on an arm with when='levels'"),
    (arm("magnitude_oneshot", rewind_fraction=0.5), "rewind_fraction=0.5: has no effect on an arm with"),
    (arm("imp", rounds=3), "arms.imp.rounds=3: has no effect on an arm with when='levels'"),
    (arm("snip", rounds=0), "arms.snip.rounds=0: must lie in [1, 10000]"),
    (arm("snip", rounds=1.5), "arms.snip.rounds=1.5: must be a whole number"),
    (arm("snip", rate=0.5), "arms.snip.rate=0.5: has no effect on an arm with when='init'"),
    (arm("snip", survivors="trained"), "arms.snip.survivors='trained': has no effect on an arm with when='init'"),
    (arm("imp", score="magntude"), "arms.imp.score='magntude': must be one of random, magnitude,"),
    (arm("imp", score=["snip"]), "arms.imp.score=['snip']: must be text in quotes"),
    (arm("imp", "weight", score="apoz"), "arms.imp.score='apoz': scores node masks only, and masks.kind is 'weight'"),
    (arm("snip", score="movement"), "arms.snip.score='movement': nothing has moved before training"),
    (arm("snip", score="first_order_movement"), "arms.snip.score='first_order_movement': is a sum over the steps of a"),
    (arm("imp", score="first_order_movement"), "whose mask changes in it; use when='during' with update='gradual'"),
    (arm("random_snip_ratio", "weight", counts_of="movement"), "counts_of='movement': nothing has moved before"),
    (arm("set", "weight", score="lamp"), "arms.set.score='lamp': has no effect on an arm with when='during'"),
    (arm("imp", allocation="unifrom"), "arms.imp.allocation='unifrom': must be one of uniform,"),
    (arm("imp", allocation="unifrom"), "; did you mean 'uniform'?"),
    (arm("imp", allocation="erk"), "arms.imp.allocation='erk': divides weight masks only"),
    (arm("snip", "weight", counts_of="snap"), "arms.snip.counts_of='snap': must be one of random,"),
    (arm("imp", "weight", counts_of="snip"), "arms.imp.counts_of='snip': has no effect on an arm with when='levels'"),
    (arm("random_snip_ratio", "weight", rounds=2), "counts_of='snip': gives the layers their counts at once"),
    (arm("imp", "weight", pattern=7), "arms.imp.pattern=7: must be text in quotes"),
    (arm("imp", "weight", pattern="2x"), "arms.imp.pattern='2x': must be one of unstructured, node, N:M"),
    (arm("ap", "weight", pattern="2:4"), "arms.ap.ap_fraction=0.02: removes single weights, and not by pattern='2:4'"),
    (arm("gmp", "weight", pattern="4x4", allocation="global"), "arms.gmp.pattern='4x4': blocks that are chosen in"),
    (arm("magnitude", pattern="2:4"), "arms.magnitude.pattern='2:4': is one of weight masks, not of node masks"),
    (arm("magnitude", "weight", pattern="node"), "arms.magnitude.pattern='node': is one of node masks, not of weight"),
    (arm("magnitude", "weight", pattern="1:4"), "pattern='1:4': has sparsity 0.75 alone, which is not among"),
    (arm("nm_2_4", "weight", controls=["shuffled"]), "arms.nm_2_4.controls: 'shuffled' moves survivors between layers"),
    (arm("imp", survivors="fresh", controls=["fresh_weights"]), "'fresh_weights' is what survivors='fresh' is already"),
    (arm("ap", "weight", ap_fraction=0.2), "arms.ap.ap_fraction=0.2: must be less than rate=0.2, it is part of it"),
    (arm("ap", "weight", allocation="uniform"), "arms.ap.ap_fraction=0.02: removes single weights wherever they are"),
    (
        {**arm("ap", "weight"), "model": {"name": "mlp", "activation": "tanh"}},
        "it needs model.activation='relu', which is 'tanh'",
    ),
    (arm("snip", "weight", allocation="explicit"), "arms.snip.densities=[]: allocation='explicit' needs the"),
    (arm("random_erk", "weight", allocation="explicit", densities=[1, True]), "densities=(1.0, True): must be a list"),
    ({"masks": {"allocation": "explicit"}}, "densities of your own are for an arm; give [arms.NAME] allocation and"),
    (arm("ap", "weight", ap_sign=0), "arms.ap.ap_sign=0: must be -1 or 1"),
    (arm("ap", "weight", ap_sign=1.0), "arms.ap.ap_sign=1.0: must be a whole number"),
    (arm("magnitude", "weight", ap_fraction=0.01), "arms.magnitude.ap_fraction=0.01: rides on pruning by levels"),
    (arm("imp", ap_fraction=0.01), "arms.imp.ap_fraction=0.01: removes single weights wherever they are"),
    (arm("set", "weight", every=2.5), "arms.set.every=2.5: must be a whole number"),
    (arm("edge_popup", "weight", begin_fraction=0.1), "arms.edge_popup.begin_fraction=0.1: has no effect on an arm"),
    (arm("gmp", "weight", decay="cosine"), "arms.gmp.decay='cosine': has no effect on an arm with"),
    (arm("rigl", "weight", power=2), "arms.rigl.power=2.0: has no effect on an arm with"),
    (arm("gmp", "weight", begin_fraction=0.9), "begin_fraction=0.9: must be at most end_fraction=0.75"),
    (arm("gmp", "weight", drop_fraction=0.1), "arms.gmp.drop_fraction=0.1: has no effect on an arm with"),
    (arm("edge_popup", "weight", every=3), "arms.edge_popup.every=3: has no effect on an arm with when='during'"),
    (
        {"search": {"random_draws_by_level": [3, 3, 3, 3, 3, 3]}},
        "search.random_draws_by_level=[3, 3, 3, 3, 3, 3]: ",
    ),
    (
        {"sparsities": [0.5, 0.9], "search": {"random_draws_by_level": [3, 4], "random_draws": 3}},
        "search.random_draws=3: search.random_draws_by_level has the numbers of all levels; leave one of the two out",
    ),
    ({"search": {"random_draws_by_level": [0]}}, "search.random_draws_by_level"),
    ({"masks": {"prune_biases": True}}, "masks.prune_biases=true: is of weight masks, and masks.kind is 'node', whose"),
    (
        biases(allocation="erk"),
        "masks.allocation='erk': has no density for biases, which masks.prune_biases=true prunes",
    ),
    (biases("snip", allocation="erk"), "prunes, too; use one of uniform, global, explicit"),
    (biases("magnitude", pattern="4x4"), "arms.magnitude.pattern='4x4': is of weights, and masks.prune_biases=true"),
    (biases("rigl", allocation="uniform"), "arms.rigl.update='rigl': changes masks of weights, and masks.prune_biases"),
    (biases("gmp", allocation="uniform"), "use an arm whose mask is made before or after training"),
    (biases("synflow"), "arms.synflow.score='synflow': is the same of every bias, and masks.prune_biases=true prunes"),
    (
        {"replicates": 100_000, **arm("imp", rate=0.05)},
        "must be at most 1,000,000 levels and 1,000,000,000 masks",
    ),
]
assert len(WRONG_ARMS) > 60
WRONG += WRONG_ARMS


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_wrong_is_named_with_what_is_accepted(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError) as from_table:
        Study.from_dict({**BASE, **change}, source="a.toml")
    assert str(from_table.value) == f"a.toml: {caught.value}"


def test_densities_are_one_for_each_layer_and_belong_to_the_sparsity() -> None:
    def with_densities(densities: list[float], *sparsities: float) -> Study:
        table = {"method": "random_erk", "allocation": "explicit", "densities": densities}
        arms = {"arms": {"random": {}, "mine": table}, "masks": {"kind": "weight"}}
        return made(model={"name": "mlp", "widths": [10, 10]}, sparsities=list(sparsities), **arms)

    # 64 x 10, 10 x 10 and 10 x 10 weights of digits.
    study = with_densities([0.1, 0.5, 1], 1 - 214 / 840)
    study._checked_data()
    assert study.identity()["arms"] == with_densities([0.1, 0.5, 1.0], 1 - 214 / 840).identity()["arms"]
    with pytest.raises(
        ConfigError, match=r"^arms\.mine\.densities=\[0\.1, 0\.5\]: 3 are needed, one for each layer of 'mlp'$"
    ):
        with_densities([0.1, 0.5], 0.7)._checked_data()
    with pytest.raises(ConfigError, match=r"^arms\.mine\.densities: sparsity=0\.5 with .*: these leave sparsity 0\.74"):
        with_densities([0.1, 0.5, 1], 0.5, 1 - 214 / 840)._checked_data()


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        made(name=["x" * 1000])
    assert len(str(caught.value)) < 120


def test_an_override_names_itself_the_rest_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(as_toml({**BASE, "replicates": 0}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^.*/a\.toml: replicates=0: must be at least 1$"):
        Study.from_toml(path, ["training.steps=5"])
    with pytest.raises(ConfigError, match=r"^--set replicates=-1: must be at least 1$"):
        Study.from_toml(path, ["replicates=-1"])
    with pytest.raises(ConfigError, match=r"^--set training\.steps=0: must be at least 1$"):
        Study.from_toml(path, ["replicates=1", "training={steps=0}"])
    study = Study.from_toml(path, ["replicates=3", "model.widths=[8, 4]", "name=other", "masks.kind=weight"])
    assert (study.replicates, study.name, study.masks.kind) == (3, "other", "weight")
    assert study.model.options["widths"] == [8, 4]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set 'steps': must be key=value"),
        ("=5", "--set '=5': must be key=value"),
        ("training..steps=5", "--set 'training..steps=5': must be key=value"),
        ("seed.x=5", "--set 'seed.x=5': 'seed' is a value, not a section"),
        ("sparsities=[0.5", "--set sparsities='[0.5': must be a list"),
        ("training.lr=nan", "--set training.lr=nan: must be a finite number"),
        ("seed=1\nreplicates=5", "--set seed='1\\nreplicates=5': must be a whole number"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(as_toml(BASE), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Study.from_toml(path, [override])
    assert str(caught.value).startswith(message)


def test_files_that_are_no_studies(tmp_path: Path) -> None:
    cases = {
        "binary": (b"\xff\xfe", "is not TOML"),
        "huge": (b"a" * (1 << 20) + b"a", "is larger than 1,048,576 bytes"),
        "deep": (b"x=" + b"[" * 5000, "is not TOML"),
        "text": (b"a file\n", "is not TOML"),
        "empty": (b"", "name: is missing"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            Study.from_toml(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
    with pytest.raises(ConfigError, match="no such file; see examples/"):
        Study.from_toml(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        Study.from_toml(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="cannot be read"):
        Study.from_toml(tmp_path / "loop")


RUN_WRONG: list[tuple[dict[str, Any], str]] = [
    # 1,438 training examples, of which floor(0.2 x 1438 + 1/2) = 288 validate.
    ({"training": {"steps": 10, "batch_size": 1151}}, "training.batch_size=1151: must be at most 1150, the training"),
    (
        {"masks": {"kind": "weight", "prune_biases": True}, "model": {"name": "mlp", "bias": False}},
        "model.name='mlp': cannot be the parent here (masks.prune_biases=true: its layers have no biases; leave it out",
    ),
    ({"search": {"probe_size": 1151}}, "search.probe_size=1151: must be at most 1150, the training examples"),
    (
        {"data": {"name": "digits", "validation_fraction": 0.001}},
        "data.validation_fraction=0.001 for data set 'digits'",
    ),
    (
        {"data": {"name": "digits", "validation_fraction": 0.999}},
        "data.validation_fraction=0.999 for data set 'digits'",
    ),
]


@pytest.mark.parametrize(("change", "message"), RUN_WRONG, ids=[m[:30] for _, m in RUN_WRONG])
def test_what_only_the_data_show_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**change).run(tmp_path / "new")
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_batch_and_probe_are_accepted() -> None:
    study = made(training={"steps": 10, "batch_size": 1150}, search={"probe_size": 1150})
    assert study._checked_data().n_train == 1438


def test_a_parent_that_does_not_fit_the_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tall_family.py").write_text(
        "from sparsefront.errors import ConfigError\n"
        "from sparsefront.trainables.models.mlp import MLPFamily\n"
        "class Tall(MLPFamily):\n"
        "    def build(self, options, *, input_shape, n_classes):\n"
        "        raise ConfigError(f'inputs of shape {input_shape}: images are needed')\n"
        "family = Tall()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    study = made(model={"name": "tall_family:family"})
    del sys.modules["tall_family"]
    message = (
        r"^model.name='tall_family:family': cannot be the parent here \(inputs of shape \(64,\): images are needed\)$"
    )
    with pytest.raises(ConfigError, match=message):
        study.run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folders_that_no_study_can_be_started_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        tmp_path / "file": "is a file; give a new or empty folder",
        tmp_path / "file" / "x" / "y": "/file is a file; give a new or empty folder",
        tmp_path / "loop": "is not usable",
        tmp_path / "loop" / "x": "is not usable",
        tmp_path / "new" / ("n" * 256): "a name in it is longer than 255 bytes",
    }
    before = sorted(tmp_path.iterdir())
    for folder, message in cases.items():
        with pytest.raises(ConfigError) as caught:
            made().run(folder)
        assert str(caught.value).startswith("DIR=")
        assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost", "--address localhost: must be 'host:port', 'ray://host:port' or 'auto'"),
        ("local", "--address local: must be"),
        ("me@host:1", "--address me@host:1: must be"),
        ("127.0.0.1:99999", "--address 127.0.0.1:99999: must be"),
        ("127.0.0.1:1", "--address 127.0.0.1:1: cannot be reached ("),
        ("ray://[::1]:1", "--address ray://[::1]:1: cannot be reached ("),
    ],
)
def test_a_wrong_address_leaves_nothing_behind(tmp_path: Path, address: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made().run(tmp_path / "new", address=address)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_study_in_the_way_is_neither_changed_nor_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LedgerError, match="reads format 1"):
        made().run(folder)
    (folder / "study.json").unlink()
    (folder / "study.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="symbolic link"):
        made().run(folder)
    assert [path.name for path in folder.iterdir()] == ["study.json"]


def test_packs_keep_all_workers_busy() -> None:
    study = made(search={"draws": 1000})
    assert study._pack_sizes(4, "cpu") == {
        "masks_per_pack": 256,
        "workers": 4,
        "lanes_per_pack": 16,
    }
    assert made(compute={"masks_per_pack": 7, "lanes_per_pack": 3})._pack_sizes(4, "cpu") == {
        "masks_per_pack": 7,
        "workers": 4,
        "lanes_per_pack": 3,
    }


def test_a_study_is_not_resumed_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made(data={"name": "digits"})
    dataset = load_dataset("digits")
    folder = tmp_path / "study"
    study._ledger(folder, dataset).close()
    other = Dataset.from_arrays(
        "digits",
        {
            "x_train": dataset.x_train + 1,
            "y_train": dataset.y_train,
            "x_test": dataset.x_test,
            "y_test": dataset.y_test,
        },
        n_classes=10,
        source="made up",
        licence="none",
    )
    with pytest.raises(LedgerError, match=r"changed: resolved\.data_digest: "):
        study._ledger(folder, other)
    study._ledger(folder, dataset).close()


def test_a_study_is_not_resumed_with_methods_that_come_to_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"random": {}, "imp": {"rate": 0.4, "controls": ["shuffled"]}, "late": {"method": "snip"}}
    dataset, folder = load_dataset("digits"), tmp_path / "study"
    made(arms=arms)._ledger(folder, dataset).close()
    made(arms=arms)._ledger(folder, dataset).close()
    recorded = read_header(folder / "study.json").study["resolved"]
    assert isinstance(recorded, dict)
    assert recorded["methods"] == {
        "imp": {
            "when": "levels",
            "score": "magnitude",
            "pattern": "unstructured",
            "allocation": "global",
            "rate": 0.4,
            "survivors": "rewound",
            "rewind_fraction": 0.0,
            "ap_fraction": 0.0,
            "ap_sign": -1,
        },
        "late": {"when": "init", "score": "snip", "pattern": "unstructured", "allocation": "global", "rounds": 1},
    }
    # A version that means something else by a name: what was written of the arm is the same.
    row = PRUNERS["imp"]
    other = replace(row, method=replace(row.method, rewind_fraction=0.1))
    monkeypatch.setitem(PRUNERS, "imp", other)  # type: ignore[arg-type]  # the registry is read-only to others
    with pytest.raises(LedgerError, match=r"; changed: resolved\.methods\.imp\.rewind_fraction: 0\.0 -> 0\.1\)"):
        made(arms=arms)._ledger(folder, dataset)
    assert "methods" not in made(arms=["random", "dense"]).recorded(dataset)["resolved"]


def test_a_study_is_not_resumed_where_small_dense_networks_were_sized_by_another_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same study and the same names, which stood for other networks before."""
    dataset = load_dataset("digits")
    scaled: list[dict[str, Any]] = [
        {"arms": {"random": {}, "imp": {"controls": ["small_dense"]}}},
        {"arms": ["random", "small_dense"], "masks": {"kind": "weight"}},
    ]
    with monkeypatch.context() as patch:  # as an earlier version did
        patch.setattr(MaskStudy, "_scaling", {})
        bases = [made(**changes).base() for changes in scaled]
        for number, changes in enumerate(scaled):
            made(**changes)._ledger(tmp_path / f"{number}", dataset).close()
    for number, changes in enumerate(scaled):
        with pytest.raises(
            LedgerError,
            match=r"was started by a version of the program, .* changed: resolved\.small_dense: \(absent\) -> \"one f",
        ):
            made(**changes)._ledger(tmp_path / f"{number}", dataset)
        assert made(**changes).base() == {**bases[number], "small_dense": SCALING}
        made(**changes)._ledger(tmp_path / f"new {number}", dataset).close()
        made(**changes)._ledger(tmp_path / f"new {number}", dataset).close()
    for changes in ({}, {"arms": ["random"]}, {"arms": ["random"], "masks": {"kind": "weight"}}):
        study = made(**changes)
        assert "small_dense" not in {**study.recorded(dataset)["resolved"], **study.base()}


def test_more_batches_than_memory_holds_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.steps=100000000: must be at most 2500000 with training\.batch_size=100"
    ):
        made(data={"name": "digits"}, training={"steps": 100_000_000}).run("unused")


def test_the_versions_of_all_that_proposes_trains_and_judges_are_recorded() -> None:
    found = versions()
    assert {"sparsefront", "python", "torch", "ray", "optuna", "cmaes", "numpy", "moocore", "scipy"} <= found.keys()
    assert all(found.values())
