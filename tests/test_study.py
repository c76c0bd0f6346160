"""A study: the same from TOML and from Python, and one line for everything that may be wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import ConfigError, LedgerError
from sparsefront.search.methods import METHODS
from sparsefront.study import Study
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
    values = "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items() if not isinstance(v, dict))
    sections = ((f"{path}.{k}".strip("."), v) for k, v in table.items() if isinstance(v, dict))
    return values + "".join(f"\n[{name}]\n{as_toml(section, name)}" for name, section in sections)


fractions = st.floats(0.001, 0.999)
studies = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**63 - 1),
        "replicates": st.integers(1, 50),
        "sparsities": st.lists(fractions, min_size=1, max_size=5, unique_by=lambda s: round(s * 1e9)),
        "training": st.fixed_dictionaries(
            {"steps": st.integers(1, 1000)},
            optional={"lr": st.floats(1e-6, 1.0), "weight_decay": st.one_of(st.just(0), st.floats(0, 1))},
        ),
    },
    optional={
        "arms": st.sets(st.sampled_from([a for a in METHODS if a != "random"])).map(lambda s: ["random", *sorted(s)]),
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
    assert identity["arms"] == list(METHODS)
    assert "compute" not in identity
    assert "record" not in identity


def test_a_study_can_be_resumed_elsewhere_but_not_changed() -> None:
    study = made()
    assert made(compute={"workers": 3}, record={"enabled": False}).digest == study.digest
    assert made(seed=2).digest != study.digest
    assert made(model={"activation": "tanh"}).digest != study.digest
    assert made(training={"steps": 10, "lr": 1}).digest == made(training={"steps": 10, "lr": 1.0}).digest


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
    ({"training": {}}, "training.steps: is missing and has no default; write it"),
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
    ({"data": {"name": "mnist"}}, "must be one of mnist1d, digits, xor_cluster; did you mean 'mnist1d'?"),
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
    ({"search": {"draws": 2}}, "search.draws=2: must be at least search.random_draws=8"),
    ({"verdict": {"objectives": ["val_eror"]}}, "verdict.objectives: 'val_eror' must be one of val_error,"),
    ({"verdict": {"objectives": ["macs", "macs"]}}, "verdict.objectives=['macs', 'macs']: every value may appear once"),
]


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
    assert study._pack_sizes(4, "cpu") == {"masks_per_pack": 256, "lanes_per_pack": 16}
    assert made(compute={"masks_per_pack": 7, "lanes_per_pack": 3})._pack_sizes(4, "cpu") == {
        "masks_per_pack": 7,
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


def test_more_batches_than_memory_holds_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.steps=100000000: must be at most 2500000 with training\.batch_size=100"
    ):
        made(data={"name": "digits"}, training={"steps": 100_000_000}).run("unused")
