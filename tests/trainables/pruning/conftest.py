"""Lanes of every small parent, ready to be scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables.lanes import dense_lanes
from sparsefront.trainables.models import initial_weights
from sparsefront.trainables.pruning import ScoringState
from tests.oracles import networks as oracle


@pytest.fixture
def state_of(examples):
    """A function: (family, lanes, options of the family) -> state with everything that any score needs."""

    def make(family, n_lanes=3, *, batch=None, **options):
        model = oracle.small_model(family, **options)
        weights = [initial_weights(model.structure, "torch", generator(i, "scores")) for i in range(n_lanes)]
        starts = [initial_weights(model.structure, "torch", generator(i, "start")) for i in range(n_lanes)]
        device = torch.device("cpu")
        return ScoringState(
            model,
            dense_lanes(model.structure, weights, device),
            examples[0].select(torch.arange(24)) if batch is None else batch,
            start=dense_lanes(model.structure, starts, device).flat,
            keys=[philox_key(i, "keys") for i in range(n_lanes)],
            products=dense_lanes(model.structure, weights[::-1], device).flat,
        )

    return make


@pytest.fixture
def alone():
    """A function: state -> the same with one lane."""

    def one(state, lane):
        return replace(
            state,
            lanes=state.lanes.select([lane]),
            start=state.start[[lane]],
            keys=[state.keys[lane]],
            products=state.products[[lane]],
        )

    return one
