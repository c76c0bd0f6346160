"""A strategy and a parent of the user's own, from modules that lie beside the study or in the current folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsefront
from sparsefront.cli import main
from sparsefront.errors import ConfigError
from sparsefront.study import Study

ROOT = Path(__file__).resolve().parents[1]

TOML = """
name = "own"
seed = 3
replicates = 2
[data]
name = "digits"
[model]
name = "own_parent:FAMILY"
[masks]
sparsity = 0.5
[training]
steps = 4
eval_every = 2
batch_size = 32
[space.training]
lr = { low = 1e-3, high = 1e-1, log = true }
optimizer = { choices = ["adam", "sgd"] }
[search]
candidates = 8
batch = 4
[arms.random]
strategy = "random"
[arms.own]
strategy = "mystrategy:NearTheBest"
[compute]
workers = 1
device = "cpu"
[record]
enabled = false
"""

PARENT = """
from sparsefront.trainables.models.residual_mlp import ResidualMLPFamily

FAMILY = ResidualMLPFamily()
"""


def documented_strategy() -> str:
    """The module of docs/searching.md, as it stands there."""
    found = re.search(r"```python\n(# mystrategy\.py\n.*?)```", (ROOT / "docs/searching.md").read_text("utf-8"), re.S)
    assert found is not None
    return found[1]


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of studies; neither can be imported from."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "own.toml").write_text(TOML, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Nor from the repository's root, where a reader of docs/searching.md may have put modules of these names.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and Path(path).resolve() != ROOT])
    for name in ("mystrategy", "own_parent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.parametrize("place", [".", "studies"])
def test_modules_are_found_in_the_current_folder_and_beside_the_study(
    studies: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies.parent / place / "mystrategy.py").write_text(documented_strategy(), encoding="utf-8")
    (studies.parent / place / "own_parent.py").write_text(PARENT, encoding="utf-8")
    before = list(sys.path)
    assert main(["simulate", "studies/own.toml", "--workers", "1"]) == 0
    assert re.search(r"^own +\S+ +\S+ +8 ", capsys.readouterr().out, re.MULTILINE)
    # At the end: a file beside a study hides no module.
    assert sys.path == [*before, str(studies.parent), str(studies)]


def test_a_module_that_is_nowhere_is_said_to_be(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (studies / "own_parent.py").write_text(PARENT, encoding="utf-8")
    assert main(["simulate", "studies/own.toml"]) == 2
    assert (
        "arms.own.strategy='mystrategy:NearTheBest': must name an importable class that is made without arguments "
        "(ModuleNotFoundError: No module named 'mystrategy'); its module must be in the current folder, beside the "
        "study or on PYTHONPATH"
    ) in capsys.readouterr().err


def test_a_module_that_cannot_be_read_is_the_users_to_mend(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (studies / "own_parent.py").write_text("FAMILY = (\n", encoding="utf-8")
    assert main(["simulate", "studies/own.toml"]) == 2
    assert "model.name='own_parent:FAMILY': cannot be imported (SyntaxError: " in capsys.readouterr().err


#: A parent of the user's own whose hidden layer is normalised by `{norm}`.
NORMED = """
import torch
from torch import nn

from sparsefront.spaces.structure import Axis, NodeGroup, Structure, Tensor
from sparsefront.trainables.models.model import Model, Options, StagedModule, meta_module


class Normed(StagedModule):
    def __init__(self, n_inputs, n_classes):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(n_inputs, 16), {norm}, nn.Linear(16, n_classes)
        self.register_buffer("scale", torch.ones(16))

    def stem(self, x):
        return torch.relu(self.norm(self.fc1(x.flatten(1))))

    def head(self, h):
        return self.fc2(h)


class Family:
    summary, source, options = "one normalised layer", "a test", Options

    def build(self, options, *, input_shape, n_classes):
        module = meta_module(Normed(input_shape[0], n_classes))
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        tensors = tuple(Tensor(name, shape, prunable=len(shape) == 2) for name, shape in shapes.items())
        axes = tuple(Axis(n, 0) for n in ("fc1.weight", "fc1.bias", "norm.weight", "norm.bias"))
        group = NodeGroup("fc1", 16, (*axes, Axis("fc2.weight", 1)))
        return Model(module, Structure(tensors, (group,)), "torch")


FAMILY = Family()
"""
MASKS = """
sparsities = [0.5]
[masks]
kind = "weight"
[search]
draws = 8
"""


def write_normed(studies: Path, *, kind: str, masks: str, norm: str) -> None:
    """A study of masks, or a search of networks under masks, of a parent with a layer `norm`."""
    common = TOML[: TOML.index("[masks]")] + TOML[TOML.index("[training]") : TOML.index("[space.training]")]
    head, tail = MASKS.split("[masks]")
    text = TOML.replace('[arms.own]\nstrategy = "mystrategy:NearTheBest"\n', "")
    if kind == "masks":
        text = common.replace("[data]", f"{head}[data]") + "[masks]" + tail
    text = text.replace('kind = "weight"\n', "").replace("[masks]\n", f'[masks]\nkind = "{masks}"\n')
    (studies / "normed.toml").write_text(text, encoding="utf-8")
    (studies / "own_parent.py").write_text(NORMED.replace("{norm}", norm), encoding="utf-8")
    sys.modules.pop("own_parent", None)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of the study, which leaves nothing behind."""
    assert main(["run", "studies/normed.toml", "--dir", "out"]) == 2
    assert not Path("out").exists()
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("masks", ["weight", "node"])
@pytest.mark.parametrize("kind", ["search", "masks"])
def test_a_parent_with_running_statistics_is_refused_before_anything_is_written(
    studies: Path, kind: str, masks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_normed(studies, kind=kind, masks=masks, norm="nn.BatchNorm1d(16)")
    # Of kept nodes there may be other numbers than groups divide.
    other = {"weight": "LayerNorm or GroupNorm", "node": "LayerNorm over what no node group cuts,"}[masks]
    assert (
        "model.name='own_parent:FAMILY': every forward pass changes the buffer 'norm.num_batches_tracked' (running "
        "statistics?), and the networks of a pack share it, so that none would have its own; use a layer without such "
        f"state, {other} in place of BatchNorm"
    ) in refusal(capsys)


@pytest.mark.parametrize("kind", ["search", "masks"])
def test_a_layer_that_does_not_run_with_fewer_nodes_is_refused_under_node_masks_alone(
    studies: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_normed(studies, kind=kind, masks="node", norm="nn.LayerNorm(16)")
    said = refusal(capsys)
    assert "model.name='own_parent:FAMILY': layer 'norm' (LayerNorm) (Expected weight to be of same" in said
    assert (
        "does not run with fewer nodes than it was made for, and networks under node masks have the kept nodes alone; "
        "normalise only what no node group cuts, or use masks.kind='weight'"
    ) in said
    write_normed(studies, kind=kind, masks="weight", norm="nn.LayerNorm(16)")
    study = Study.from_toml("studies/normed.toml")
    if kind == "masks":
        message = r"made for, and small dense networks have fewer; .* cuts, or leave 'small_dense' out"
        with pytest.raises(ConfigError, match=message):
            study._checked_data()
        study = Study.from_dict({**study.identity(), "arms": ["random"]})
    study._checked_data()  # buffers that are only read are no matter


@pytest.mark.parametrize("masks", ["weight", "node"])
@pytest.mark.parametrize("kind", ["search", "masks"])
def test_a_layer_that_draws_random_numbers_is_refused(
    studies: Path, kind: str, masks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = "nn.Sequential(nn.LayerNorm(16), nn.Dropout(0.1))"
    text = NORMED.replace("norm.weight", "norm.0.weight").replace("norm.bias", "norm.0.bias")
    write_normed(studies, kind=kind, masks=masks, norm="")
    (studies / "own_parent.py").write_text(text.replace("{norm}", noisy), encoding="utf-8")
    assert (
        "model.name='own_parent:FAMILY': layer 'norm.1' (Dropout) draws random numbers in every forward pass, which "
        "the networks of a pack would share and no seed of the study reaches; remove it (training.weight_decay and "
        "training.label_smoothing regularise here)"
    ) in refusal(capsys)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_find_what_lies_beside_the_study(studies: Path) -> None:
    (studies / "mystrategy.py").write_text(documented_strategy(), encoding="utf-8")
    (studies / "own_parent.py").write_text(PARENT, encoding="utf-8")
    # -P: as the installed command, which does not import from the current folder by itself.
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "sparsefront.cli", "run", "studies/own.toml"],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert ran.returncode == 0, ran.stderr
    outcomes = sparsefront.load("runs/own").to_arrow(where="arm == 'own'", columns=["outcome"])
    assert outcomes["outcome"].to_pylist() == ["completed"] * 16
