"""What a pruning method comes to: every default that another version may have another of is written down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.pruning import N_UPDATES, OWN_DECAYS, Pruning
from sparsefront.spaces.schedules import Decay
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.mask_updates.contract import UpdateSettings
from sparsefront.trainables.mask_updates.gradual import Gradual
from sparsefront.trainables.workshop import LaneOrder, Workshop


def test_what_a_method_of_training_leaves_open_is_resolved() -> None:
    resolved = {name: Pruning("during", update=name).resolved(allocation="erk") for name in ("gradual", "set", "rigl")}
    span = {"begin_fraction": 0.0, "end_fraction": 0.75, "every": 0, "n_updates": 40}
    shared = {"when": "during", "pattern": "unstructured", "allocation": "erk", **span}
    assert resolved == {
        "gradual": {**shared, "update": "gradual", "score": "magnitude", "power": 3.0},
        "set": {**shared, "update": "set", "drop_fraction": 0.3, "decay": "constant"},
        "rigl": {**shared, "update": "rigl", "drop_fraction": 0.3, "decay": "cosine"},
    }


def test_what_a_method_says_or_does_not_read_stays_as_it_is() -> None:
    said = Pruning("during", update="set", every=7, decay="linear").resolved(allocation="erk")
    assert (said["every"], said["decay"]) == (7, "linear")
    assert "n_updates" not in said
    for method in (Pruning("during", update="edge_popup"), Pruning("levels"), Pruning("init", score="snip")):
        assert not {"n_updates", "decay"} & set(method.resolved(allocation="erk"))


def test_the_resolved_number_of_updates_is_that_of_training() -> None:
    settings = UpdateSettings((), steps=4000, counts=lambda sparsity: [1], sparsity=0.5, begin_fraction=0.0)
    assert len(Gradual(settings)._counts) == pytest.approx(N_UPDATES, abs=1)


@pytest.mark.parametrize("update", list(OWN_DECAYS))
def test_the_resolved_decay_is_that_of_training(update: Any) -> None:
    training = {"batch_size": 50, "steps": 24, "eval_every": 24, "lr": 0.01}
    study = {"name": "tiny", "seed": 7, "replicates": 1, "sparsities": [0.5], "masks": {"kind": "weight"}}
    data, model = {"name": "digits"}, {"name": "mlp", "widths": [8]}
    recipe = Study.from_dict({**study, "data": data, "model": model, "training": training}).recipe()
    workshop = Workshop(recipe, load_dataset("digits", {}), torch.device("cpu"))
    left_open = Pruning("during", update=update, every=2, drop_fraction=0.5)
    methods = {None: left_open, **{decay: replace(left_open, decay=decay) for decay in get_args(Decay)}}
    orders = [LaneOrder(Candidate(0, 0.5, "masked", method=method)) for method in methods.values()]
    ended = {one.candidate.method: one.mask_digest for part in workshop.train(orders) for one in part}
    same = [decay for decay in get_args(Decay) if ended[methods[decay]] == ended[left_open]]
    assert same == [OWN_DECAYS[update]]
