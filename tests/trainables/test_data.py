"""Data sets and their splits: same data everywhere, exact strata, a cache that can only be right."""

import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefront.errors import ConfigError
from sparsefront.trainables import data
from sparsefront.trainables.data.cache import cached
from sparsefront.trainables.data.dataset import Dataset
from sparsefront.trainables.data.splits import held_out_counts

SMALL = {"num_samples": 100, "seed": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def mnist1d(folder):
    return data.load_dataset("mnist1d", cache=folder)


@pytest.fixture(scope="module")
def digits():
    return data.load_dataset("digits")


def arrays_of(labels, n_test=2):
    y = np.asarray(labels, dtype=np.int64)
    return {
        "x_train": np.arange(2.0 * len(y)).reshape(-1, 2),
        "y_train": y,
        "x_test": np.zeros((n_test, 2)),
        "y_test": np.zeros(n_test, dtype=np.int64),
    }


def dataset_of(labels, n_classes=None):
    n_classes = n_classes or int(max(labels)) + 1
    return Dataset.from_arrays("made", arrays_of(labels), n_classes=n_classes, source="here", licence="none")


def philox(key):
    return np.random.Generator(np.random.Philox(key=key))


@pytest.fixture(scope="module")
def xor_cluster():
    return data.load_dataset("xor_cluster")


@pytest.fixture(scope="module")
def restoration(folder):
    return data.load_dataset("restoration", cache=folder)


# The data sets.


@pytest.mark.parametrize("name", data.DATASETS)
def test_a_dataset_is_what_its_source_says(name, request):
    source, dataset = data.DATASETS[name], request.getfixturevalue(name)
    assert (dataset.name, dataset.example_shape, dataset.n_classes) == (name, source.example_shape, source.n_classes)
    assert (dataset.n_train, dataset.n_test) == (source.n_train, source.n_test)
    assert (dataset.source, dataset.licence) == (source.source, source.licence)
    assert (dataset.x_train.dtype, dataset.x_test.dtype) == (np.float32, np.float32)
    assert (dataset.y_train.dtype, dataset.y_test.dtype) == (np.int64, np.int64)
    assert set(dataset.y_train) == set(dataset.y_test) == set(range(source.n_classes))


@pytest.mark.parametrize("name", data.DATASETS)
@pytest.mark.parametrize("array", ["x_train", "y_train", "x_test", "y_test"])
def test_the_arrays_are_read_only(name, array, request):
    with pytest.raises(ValueError, match="read-only"):
        getattr(request.getfixturevalue(name), array)[0] = 0


def test_mnist1d_is_the_default_set_of_its_package(mnist1d):
    # Computed once with mnist1d 0.0.2.post1; a changed generator changes these. The tolerance is float32's rounding
    # of values of order 1, with room for another machine's last bits.
    np.testing.assert_allclose(
        mnist1d.x_train[0, :6], [-0.33200567, -0.47191037, -0.77869708, -1.00974083, -0.88235257, 0.10393481], atol=1e-6
    )
    np.testing.assert_allclose(mnist1d.x_test[0, :4], [-0.07877078, -0.21073171, -0.09175138, 0.28267112], atol=1e-6)
    assert mnist1d.y_train[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]
    assert mnist1d.y_test[:10].tolist() == [2, 6, 3, 9, 4, 3, 1, 9, 5, 2]
    every = np.concatenate([mnist1d.x_train, mnist1d.x_test]).astype(np.float64)
    assert every.mean() == pytest.approx(0, abs=1e-6)
    assert every.std() == pytest.approx(1, abs=1e-6)
    assert np.bincount(np.concatenate([mnist1d.y_train, mnist1d.y_test])).tolist() == [500] * 10


def test_digits_never_change(digits):
    # Sixteenths are exact in float32 and the held-out digits come from raw draws: the digest is the same anywhere.
    assert digits.digest == "b900a4714fc9bb3909b953a42fa034465020c825f1fb722d7e8fd5515f9e603f"
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    assert len(np.unique(np.concatenate([digits.x_train, digits.x_test]), axis=0)) == 1797
    share = np.bincount(digits.y_test) / (np.bincount(digits.y_test) + np.bincount(digits.y_train))
    assert np.abs(share - 0.2).max() < 1 / 150


XOR = {"num_samples": 1000, "dim": 6, "separation": 20}


def test_xor_clusters_lie_where_they_should():
    """Coordinates are standard normal around their centre: means of 200 within 5 standard errors, 5 / sqrt(200)."""
    dataset = data.load_dataset("xor_cluster", {**XOR, "flipped_samples": 0})
    assert np.bincount(dataset.y_train).tolist() == [400, 400]
    assert np.bincount(dataset.y_test).tolist() == [100, 100]
    x, y = dataset.x_train, dataset.y_train
    for label, axis in ((0, 0), (1, 1)):
        for sign in (1, -1):
            cluster = x[(y == label) & (sign * x[:, axis] > 0)]
            assert len(cluster) == 200
            centre = np.zeros(6)
            centre[axis] = 20 * sign
            np.testing.assert_allclose(cluster.mean(axis=0), centre, atol=5 / np.sqrt(200))
            # Relative standard error of a standard deviation: 1 / sqrt(2n).
            np.testing.assert_allclose(cluster.std(axis=0), 1, rtol=5 / np.sqrt(400))


def test_no_line_divides_xor_clusters_and_a_product_does(xor_cluster):
    easy = data.load_dataset("xor_cluster", {**XOR, "flipped_samples": 0})
    x, y = easy.x_train.astype(np.float64), 2.0 * easy.y_train - 1
    linear = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    assert abs(np.mean(np.sign(np.c_[x, np.ones(len(x))] @ linear) == y) - 0.5) < 0.1
    assert (np.sign(np.abs(x[:, 1]) - np.abs(x[:, 0])) == y).all()


@pytest.mark.parametrize("n_flipped", [0, 1, 7, 100, 400])
def test_exactly_so_many_labels_are_flipped_and_none_of_the_test(n_flipped):
    clean = data.load_dataset("xor_cluster", {**XOR, "flipped_samples": 0})
    flipped = data.load_dataset("xor_cluster", {**XOR, "flipped_samples": n_flipped})
    assert np.array_equal(clean.x_train, flipped.x_train)
    assert np.array_equal(clean.y_test, flipped.y_test)
    is_flipped = clean.y_train != flipped.y_train
    assert is_flipped.sum() == n_flipped
    assert abs(np.bincount(clean.y_train[is_flipped], minlength=2) @ [1, -1]) <= 1


def test_xor_clusters_are_those_of_their_seed(xor_cluster):
    assert data.load_dataset("xor_cluster").digest == xor_cluster.digest
    assert data.load_dataset("xor_cluster", {"seed": 1}).digest != xor_cluster.digest
    assert data.load_dataset("xor_cluster", {"test_samples": 100}).n_test == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_samples": 100, "test_samples": 61},
            "test_samples=61 for data set 'xor_cluster': must leave at least 40",
        ),
        ({"num_samples": 100, "flipped_samples": 41}, "flipped_samples=41 for data set .* at most half of the 80"),
        ({"dim": 1}, "dim=1 for data set 'xor_cluster': must be a whole number from 2"),
    ],
)
def test_xor_clusters_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        data.load_dataset("xor_cluster", options)


def test_mnist1d_from_the_cache_is_mnist1d_generated(tmp_path, folder, mnist1d):
    assert data.load_dataset("mnist1d", cache=folder).digest == mnist1d.digest
    made = data.load_dataset("mnist1d", SMALL, cache=tmp_path / "a")
    assert data.load_dataset("mnist1d", SMALL, cache=tmp_path / "a").digest == made.digest
    assert data.load_dataset("mnist1d", SMALL, cache=tmp_path / "b").digest == made.digest
    assert (made.n_train, made.n_test) == (80, 20)
    for other in ({**SMALL, "seed": 8}, {**SMALL, "num_samples": 110}):
        assert data.load_dataset("mnist1d", other, cache=tmp_path / "a").digest != made.digest


def test_loading_leaves_the_global_generators_alone(tmp_path):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - it is the state that must survive
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    loaded = data.load_dataset("mnist1d", SMALL, cache=tmp_path / "a")
    assert random.getstate() == python_state
    for was, now in zip(numpy_state, np.random.get_state(), strict=True):  # noqa: NPY002
        np.testing.assert_array_equal(was, now)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002 - and must not matter
    assert data.load_dataset("mnist1d", SMALL, cache=tmp_path / "b").digest == loaded.digest


def test_the_registry_loads_nothing():
    code = (
        "import sys\nfrom sparsefront.trainables.data import DATASETS\n"
        "heavy = {'mnist1d', 'sklearn', 'matplotlib', 'torch'} & set(sys.modules)\n"
        "print(sorted(heavy), list(DATASETS), DATASETS['mnist1d'].options[0].accepted, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("|") == [
        "[]",
        "['mnist1d', 'digits', 'xor_cluster', 'restoration']",
        "a whole number from 100 to 1000000, a multiple of 10\n",
    ]


# What is refused.


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"'mnist' is no data set: known are digits, mnist1d, .*; did you mean 'mnist1d'\?"
    ):
        data.load_dataset("mnist")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist1d", {"num_sample": 100}, "did you mean 'num_samples'"),
        ("digits", {"seed": 1}, "'seed' is no option of data set 'digits': there are none"),
        (
            "mnist1d",
            {"num_samples": 4321},
            "num_samples=4321 for data set 'mnist1d': must be a whole number from 100 to",
        ),
        ("mnist1d", {"num_samples": -10}, "num_samples=-10 .* a multiple of 10"),
        ("mnist1d", {"num_samples": 10**9}, "num_samples=1000000000 .* to 1000000"),
        ("mnist1d", {"num_samples": 500.0}, "num_samples=500.0 .* whole number"),
        ("mnist1d", {"seed": True}, "seed=True .* whole number"),
        ("mnist1d", {"seed": 2**32}, "seed=4294967296 .* from 0 to 4294967295; correct the data set's options"),
    ],
)
def test_options_are_checked_before_anything_is_made(tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message):
        data.load_dataset(name, options, cache=tmp_path)
    with pytest.raises(ConfigError, match=message):
        data.resolve_dataset_options(name, options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.full((4, 2), np.nan)}, "x_train of data set 'made': holds NaN or infinity"),
        ({"y_train": np.array([0, 1, 2, 0])}, r"labels run from 0 to 2, must lie in \[0, 2\)"),
        ({"y_train": np.array([0, 1, -1, 0])}, "labels run from -1 to 1"),
        ({"y_train": np.array([0.0, 1.0, 0.5, 0.0])}, "y_train.dtype=float64 .* integer type"),
        ({"x_train": np.zeros((3, 2))}, r"x_train.shape=\(3, 2\), y_train.shape=\(4,\)"),
        ({"x_test": np.zeros((0, 2)), "y_test": np.zeros(0, dtype=int)}, r"x_test.shape=\(0, 2\)"),
        ({"x_test": np.zeros((2, 3))}, r"x_test.shape=\(2, 3\) .* shape of the training examples, \(2,\)"),
        ({"extra": np.zeros(1)}, "arrays=.*'extra'"),
    ],
)
def test_arrays_that_are_no_dataset(change, message):
    with pytest.raises(ConfigError, match=message):
        Dataset.from_arrays("made", {**arrays_of([0, 1, 1, 0]), **change}, n_classes=2, source="", licence="")


def test_the_digest_sees_values_shapes_and_parts_but_not_memory_layout():
    arrays = arrays_of([0, 1, 1, 0], n_test=4)

    def digest(**change):
        return Dataset.from_arrays("made", {**arrays, **change}, n_classes=2, source="", licence="").digest

    same = digest()
    assert digest(x_train=np.asfortranarray(arrays["x_train"])) == same
    assert digest(x_train=arrays["x_train"].astype(">f8")) == same
    assert digest(y_train=arrays["y_train"].astype(np.uint8)) == same
    others = [
        digest(x_train=arrays["x_train"] + np.eye(4, 2)),
        digest(x_train=arrays["x_train"][::-1]),
        digest(x_train=arrays["x_train"][..., None], x_test=arrays["x_test"][..., None]),
        digest(x_train=arrays["x_test"], x_test=arrays["x_train"]),
        digest(y_train=arrays["y_train"][::-1] * 0),
    ]
    assert len({same, *others}) == 6


# Splits.

labels = st.lists(st.integers(0, 3), min_size=2, max_size=80)
fractions = st.floats(0.01, 0.99)


def hamilton(class_counts, fraction):
    """The oracle: exact quotas, floors, and the rest by largest remainder."""
    n = sum(class_counts)
    n_held_out = int(fraction * n + 0.5)
    quotas = [Fraction(size * n_held_out, n) for size in class_counts]
    counts = [quota.numerator // quota.denominator for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda c: (counts[c] - quotas[c], c))
    for label in by_remainder[: n_held_out - sum(counts)]:
        counts[label] += 1
    return counts


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20).filter(any), st.floats(0, 1))
def test_counts_are_exact(class_counts, fraction):
    counts = held_out_counts(class_counts, fraction=fraction)
    assert counts.tolist() == hamilton(class_counts, fraction)
    assert all(0 <= count <= size for count, size in zip(counts, class_counts, strict=True))


@given(labels, fractions, st.integers(0, 2**64 - 1))
def test_a_split_is_a_stratified_partition(y, validation_fraction, key):
    sizes = np.bincount(y)
    expected = np.array(hamilton(sizes.tolist(), validation_fraction))
    dataset = dataset_of(y)
    if ((sizes > 0) & ((expected == 0) | (expected == sizes))).any():
        with pytest.raises(ConfigError, match="at least one on either side"):
            data.split(dataset, validation_fraction=validation_fraction, generator=philox(key))
        return
    made = data.split(dataset, validation_fraction=validation_fraction, generator=philox(key))
    both = np.concatenate([made.train_indices, made.validation_indices])
    assert sorted(both) == list(range(len(y)))
    assert np.bincount(dataset.y_train[made.validation_indices], minlength=len(sizes)).tolist() == expected.tolist()
    for indices in (made.train_indices, made.validation_indices):
        assert indices.dtype == np.int64
        assert not indices.flags.writeable
        assert (np.diff(indices) > 0).all()
    again = data.split(dataset, validation_fraction=validation_fraction, generator=philox(key))
    np.testing.assert_array_equal(made.validation_indices, again.validation_indices)


def test_a_split_follows_its_generator_alone(digits):
    first, second = (data.split(digits, validation_fraction=0.1, generator=philox(key)) for key in (0, 1))
    assert len(first.validation_indices) == len(second.validation_indices) == 144
    assert set(first.validation_indices) != set(second.validation_indices)
    # From raw draws of Philox, which NumPy keeps: a replicate's split is the same on any machine.
    assert first.validation_indices[:6].tolist() == [0, 2, 21, 38, 43, 54]


def test_every_example_is_as_likely_to_validate():
    # 2,000 splits of 10 + 30 examples, a fifth each: every example is chosen Binomial(2000, 0.2) times, sd 17.9. 40
    # examples beyond 5 sd of the mean: false alarm below 40 x 6e-7, and the keys are fixed.
    dataset = dataset_of([0] * 10 + [1] * 30)
    times = np.zeros(40)
    for key in range(2000):
        times[data.split(dataset, validation_fraction=0.2, generator=philox(key)).validation_indices] += 1
    assert np.abs(times - 400).max() < 5 * 17.9


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ConfigError, match=rf"validation_fraction={fraction} for data set 'made': must lie in \(0, 1\)"):
        data.split(dataset_of([0, 1] * 10), validation_fraction=fraction, generator=philox(0))


@pytest.mark.parametrize(
    ("y", "fraction", "message"),
    [
        ([0] * 20 + [1], 0.1, "takes 0 of the 1 examples of class 1"),
        ([0] * 20 + [1], 0.9, "takes 1 of the 1 examples of class 1 .* at least one on either side"),
        ([0, 1] * 10, 0.01, "takes 0 of the 10 examples of class 0"),
    ],
)
def test_a_class_that_a_split_would_lose_is_refused(y, fraction, message):
    with pytest.raises(ConfigError, match=message):
        data.split(dataset_of(y), validation_fraction=fraction, generator=philox(0))


def test_a_class_without_examples_needs_none():
    made = data.split(dataset_of([0, 2] * 10, n_classes=4), validation_fraction=0.2, generator=philox(0))
    assert len(made.validation_indices) == 4


# The cache.


def entry(folder):
    (manifest,) = folder.glob("*.json")
    (content,) = folder.glob("*.safetensors")
    return SimpleNamespace(manifest=manifest, content=content)


def made_once():
    return {"a": np.arange(1000.0)}


def never():
    raise AssertionError("made although it is in the cache")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path, **change):
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


DAMAGES = {
    "a flipped byte": lambda e: flip_a_byte(e.content),
    "a short file": lambda e: e.content.write_bytes(e.content.read_bytes()[:-1]),
    "an empty file": lambda e: e.content.write_bytes(b""),
    "no file": lambda e: e.content.unlink(),
    "half a manifest": lambda e: e.manifest.write_bytes(e.manifest.read_bytes()[:20]),
    "an empty manifest": lambda e: e.manifest.write_bytes(b""),
    "a manifest of another kind": lambda e: e.manifest.write_text("[]"),
    "a manifest without its keys": lambda e: e.manifest.write_text("{}"),
    "another's manifest": lambda e: edit(e.manifest, identity={"seed": 2}),
    "a path for a digest": lambda e: edit(e.manifest, sha256="../../etc/passwd"),
    "no text for a digest": lambda e: edit(e.manifest, sha256=3),
    "not utf-8": lambda e: e.manifest.write_bytes(b"\xff\xfe{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_made_again_and_said(tmp_path, damage):
    cached("x", {"seed": 1}, made_once, folder=tmp_path)
    np.testing.assert_array_equal(cached("x", {"seed": 1}, never, folder=tmp_path)["a"], np.arange(1000.0))
    damage(entry(tmp_path))
    with pytest.warns(data.DatasetCacheWarning, match=rf"{tmp_path}.*\.json is damaged or unreadable .*made again"):
        again = cached("x", {"seed": 1}, made_once, folder=tmp_path)
    np.testing.assert_array_equal(again["a"], np.arange(1000.0))
    np.testing.assert_array_equal(cached("x", {"seed": 1}, never, folder=tmp_path)["a"], np.arange(1000.0))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_warning_points_at_who_asked(tmp_path):
    data.load_dataset("mnist1d", SMALL, cache=tmp_path)
    flip_a_byte(entry(tmp_path).content)
    with pytest.warns(data.DatasetCacheWarning) as caught:
        data.load_dataset("mnist1d", SMALL, cache=tmp_path)
    assert [Path(warning.filename).name for warning in caught] == ["test_data.py"]


def test_entries_do_not_meet(tmp_path):
    for seed in range(3):
        cached("x", {"seed": seed}, lambda seed=seed: {"a": np.array([seed])}, folder=tmp_path)
    assert [cached("x", {"seed": seed}, never, folder=tmp_path)["a"].tolist() for seed in range(3)] == [[0], [1], [2]]
    assert cached("y", {"seed": 0}, lambda: {"a": np.array([9])}, folder=tmp_path)["a"].tolist() == [9]


def test_a_cache_that_cannot_be_used_stops_nothing(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.warns(data.DatasetCacheWarning) as caught:
        arrays = cached("x", {}, made_once, folder=in_the_way / "cache")
    assert arrays["a"].shape == (1000,)
    assert "cannot be written" in str(caught[-1].message)
    assert "choose another" in str(caught[-1].message)


def test_nothing_is_left_when_making_fails(tmp_path):
    with pytest.raises(AssertionError, match="made although"):
        cached("x", {}, never, folder=tmp_path)
    assert not any(tmp_path.iterdir())


RACER = """
import sys, warnings
from pathlib import Path
import numpy as np
from sparsefront.trainables.data.cache import cached
warnings.simplefilter("error")
print("ready", flush=True)
sys.stdin.readline()
for seed in range(60):
    made = cached("x", {"seed": seed}, lambda: {"a": np.full(5000, seed)}, folder=Path(sys.argv[1]))["a"]
    assert made.shape == (5000,) and (made == seed).all(), seed
print("done")
"""


def test_processes_may_make_the_same_entries_at_once(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate()
        assert (out, racer.returncode) == ("done\n", 0)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.safetensors"))) == 60
    assert len(list(tmp_path.iterdir())) == 120


def test_the_default_folder_follows_the_xdg_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.default_cache() == tmp_path / "xdg" / "sparsefront" / "data"
    for unusable in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert data.default_cache() == tmp_path / "home" / ".cache" / "sparsefront" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.default_cache() == tmp_path / "home" / ".cache" / "sparsefront" / "data"


@pytest.mark.slow
def test_the_default_cache_is_used_and_another_process_reads_the_same(tmp_path, mnist1d):
    code = "from sparsefront.trainables.data import load_dataset; print(load_dataset('mnist1d').digest)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == mnist1d.digest
    assert len(list((tmp_path / "sparsefront" / "data").iterdir())) == 2


def test_mnist1d_keeps_the_test_part_asked_for(tmp_path: Path) -> None:
    whole = data.load_dataset("mnist1d", {"num_samples": 200}, cache=tmp_path)
    cut = data.load_dataset("mnist1d", {"num_samples": 200, "test_samples": 120}, cache=tmp_path)
    assert (whole.n_train, whole.n_test, cut.n_train, cut.n_test) == (160, 40, 80, 120)
    both = [np.concatenate([d.x_train, d.x_test]) for d in (whole, cut)]
    assert np.array_equal(both[0], both[1])
    with pytest.raises(ConfigError, match=r"test_samples=160 .* at least 50 of num_samples=200"):
        data.load_dataset("mnist1d", {"num_samples": 200, "test_samples": 160}, cache=tmp_path)
