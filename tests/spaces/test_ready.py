"""Ready spaces are readable, complete, and can be changed where they are used."""

import copy

import pytest

from sparsefront.errors import SpaceError
from sparsefront.spaces.ready import READY_SPACES, with_ready
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import SECTIONS, Space

NAMES = {"mlp", "conv1d", "residual_mlp", "hourglass", "lenet_300_100"}


def test_registry_has_the_ready_spaces():
    assert set(READY_SPACES) == NAMES
    for row in READY_SPACES.values():
        assert row.summary
        assert row.source
        assert "name" in row.model


@pytest.mark.parametrize("name", sorted(NAMES))
def test_ready_spaces_draw_and_round_trip(name):
    space = Space.from_table({"ready": name}, n_sections=3)
    points = space.draw(philox_key(0, "ready"), 0, 200)
    assert all(space.contains(p) for p in points)
    assert len({space.digest(p) for p in points}) == 200
    assert Space.from_toml(space.to_toml(), n_sections=3) == space
    assert "training.lr" in space.settings(points[0])


def test_entries_beside_the_name_replace_and_add():
    before = copy.deepcopy(READY_SPACES)
    table = {
        "ready": "hourglass",
        "model": {"lift": "identity", "skip_width": 40},
        "training": {"momentum": {"low": 0.0, "high": 0.9}},
        "constraints": ["n_params <= 5000"],
    }
    space = Space.from_table(table)
    assert space.constants == {"model.lift": "identity", "model.skip_width": 40}
    assert {"momentum", "lr", "depth", "hidden_width", "norm"} <= set(space.names)
    assert [str(c) for c in space.constraints] == ["n_params <= 5000"]
    assert before == READY_SPACES


def test_the_ready_table_is_not_shared():
    table = with_ready({"ready": "mlp"})
    table["model"]["widths"]["low"] = 1
    assert READY_SPACES["mlp"].space["model"]["widths"]["low"] == 8


def test_sections_are_those_of_a_space():
    for row in READY_SPACES.values():
        assert set(row.space) <= {*SECTIONS, "constraints"}


def test_the_spaces_are_searched_over_what_their_names_say():
    assert set(Space.from_table({"ready": "mlp"}).names) >= {"depth", "width_1", "width_3", "sparsity", "lr"}
    assert set(Space.from_table({"ready": "conv1d"}).names) >= {"channel_1", "channel_3"}
    lenet = Space.from_table({"ready": "lenet_300_100"}, n_sections=3)
    assert set(lenet.names) == {"allocation", "share_1", "share_2", "share_3", "sparsity", "lr"}
    assert READY_SPACES["lenet_300_100"].model == {"name": "mlp", "widths": [300, 100]}


@pytest.mark.parametrize("name", ["mpl", 3, "", "x" * 1000, "a\nb"])
def test_unknown_names_are_refused(name):
    with pytest.raises(SpaceError, match=r"space\.ready=.*: must be one of mlp, conv1d") as error:
        Space.from_table({"ready": name})
    assert "\n" not in str(error.value)
