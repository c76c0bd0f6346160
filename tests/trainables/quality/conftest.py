"""Small trained parents, and lanes cut from them and trained a little."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables.lanes import Layout, node_masked_lanes
from sparsefront.trainables.models import initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from tests.oracles import networks as oracle


@pytest.fixture(scope="session")
def trained(examples):
    """family -> (model, flat parent (P,), masks (8, nodes), lanes): a parent after 60 steps, and nodes cut from it."""
    train, _ = examples

    @cache
    def build(family):
        model = oracle.small_model(family)
        start = initial_weights(model.structure, "torch", generator(3, "quality"))
        weights = {n: torch.from_numpy(w) for n, w in start.items()}
        order = torch.from_numpy(generator(3, "order").integers(0, len(train), (60, 40)))
        hyper = Hyperparameters(lr=0.02)
        weights = oracle.train(family, weights, train, order, optimizer_name="adam", hyper=hyper)
        flat = torch.cat([weights[n].flatten() for n in Layout.of(model.structure).names])
        n_nodes = sum(model.structure.section_sizes("node"))
        masks = draw([n_nodes], [max(4, 2 * n_nodes // 3)], philox_key(3, "mask"), start=0, stop=40)
        sections = np.split(masks, np.cumsum(model.structure.section_sizes("node"))[:-1], axis=1)
        masks = masks[np.all([s.any(axis=1) for s in sections], axis=0)][:8]
        return model, flat, masks, node_masked_lanes(model.structure, weights, masks)

    return build
