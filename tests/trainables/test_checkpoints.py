"""Checkpoints: what is read is what was written, or is refused."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefront.errors import CheckpointError
from sparsefront.trainables.checkpoints import LaneState, read_checkpoint, write_checkpoint


def state_of(n=3, step=7):
    rng = np.random.Generator(np.random.Philox(key=n))
    tensors = {"a.weight": rng.standard_normal((n, 2)).astype(np.float32), "a.bias": np.zeros(n, dtype=np.float32)}
    return LaneState(step, {"weights": tensors, "first": tensors}, [3, 7], [1.5, float(n)], [0.5, 0.25])


def assert_equal(a, b):
    assert (a.step, a.curve_step, a.curve_val_loss, a.curve_val_error) == (
        b.step,
        b.curve_step,
        b.curve_val_loss,
        b.curve_val_error,
    )
    assert a.parts.keys() == b.parts.keys()
    for part, tensors in a.parts.items():
        assert tensors.keys() == b.parts[part].keys()
        for name, array in tensors.items():
            assert array.dtype == b.parts[part][name].dtype
            assert array.tobytes() == b.parts[part][name].tobytes()


def test_lanes_come_back_as_they_were_written(tmp_path):
    states = {"x" * 32: state_of(3), "y": state_of(5, 9), "z": state_of(1)}
    name = write_checkpoint(tmp_path / "new" / "folder", states)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == [f"{name}.safetensors"]
    for ids in (["y"], ["z", "x" * 32], list(states), []):
        read = read_checkpoint(tmp_path / "new" / "folder", name, ids)
        assert list(read) == ids
        for lane, state in read.items():
            assert_equal(state, states[lane])


def test_equal_states_have_one_name_and_others_another(tmp_path):
    assert write_checkpoint(tmp_path, {"a": state_of()}) == write_checkpoint(tmp_path, {"a": state_of()})
    assert len(list(tmp_path.iterdir())) == 1
    assert write_checkpoint(tmp_path, {"a": state_of(step=8)}) != write_checkpoint(tmp_path, {"b": state_of()})


def test_no_number_is_lost(tmp_path):
    tiny = np.array([np.nan, -0.0, np.inf, 1e-45, np.float32(0.1)], dtype=np.float32)
    state = LaneState(1, {"weights": {"w": tiny}}, [1], [float(np.float64(0.1) + 1e-17)], [1 / 3])
    assert_equal(read_checkpoint(tmp_path, write_checkpoint(tmp_path, {"a": state}), ["a"])["a"], state)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_found(tmp_path_factory, position, change):
    folder = tmp_path_factory.mktemp("checkpoints")
    name = write_checkpoint(folder, {"a": state_of()})
    path = folder / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= change
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"checkpoint='{path}': is damaged, for it does not have the sha256"):
        read_checkpoint(folder, name, ["a"])


def test_a_cut_or_missing_file_is_refused(tmp_path):
    name = write_checkpoint(tmp_path, {"a": state_of()})
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path, name, ["a"])
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"checkpoint='{path}': cannot be read \(.*No such file"):
        read_checkpoint(tmp_path, name, ["a"])


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    import hashlib

    from safetensors.numpy import save

    for content in (b"", b"x" * 30, save({"w": np.zeros(2)}), save({"w": np.zeros(2)}, metadata={"sparsefront": "{"})):
        name = hashlib.sha256(content).hexdigest()
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="is no checkpoint of lanes"):
            read_checkpoint(tmp_path, name, ["a"])


def test_a_lane_that_is_not_there_is_named(tmp_path):
    name = write_checkpoint(tmp_path, {"a": state_of()})
    with pytest.raises(CheckpointError, match="does not hold candidate 'b'; its lanes go on from an earlier one"):
        read_checkpoint(tmp_path, name, ["a", "b"])


@pytest.mark.parametrize("name", ["../secret", "", "A" * 64, "0" * 63, "0" * 64 + "\n", "/etc/passwd"])
def test_a_name_that_is_none_never_touches_a_path(tmp_path, name):
    with pytest.raises(CheckpointError, match="a name of 64 hex digits is needed"):
        read_checkpoint(tmp_path, name, ["a"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoint='.*/file/.*': cannot be written"):
        write_checkpoint(tmp_path / "file", {"a": state_of()})


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*make room"):
        write_checkpoint(tmp_path, {"a": state_of()})
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_plain_safetensors(tmp_path):
    from safetensors import safe_open

    name = write_checkpoint(tmp_path, {"a": state_of()})
    with safe_open(tmp_path / f"{name}.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {f"a/{p}/{t}" for p in ("weights", "first") for t in ("a.weight", "a.bias")}
        assert json.loads(file.metadata()["sparsefront"])["a"]["step"] == 7
