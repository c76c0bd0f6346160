"""The arms by name, in the order in which tables show them."""

from __future__ import annotations

from collections.abc import Mapping

from sparsefront.search.methods.dense import Dense
from sparsefront.search.methods.method import Method
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.methods.random import Random
from sparsefront.search.methods.selected import Selected
from sparsefront.search.methods.small_dense import SmallDense

METHODS: Mapping[str, Method] = {
    "dense": Dense(),
    "random": Random(),
    "searched": Selected("the mask of lowest initial loss among R", "lowest_initial_loss"),
    "searched_scalefree": Selected("the mask of lowest loss at its best temperature among R", "lowest_scalefree_loss"),
    "worst": Selected("the mask of highest initial loss among R (a control)", "highest_initial_loss"),
    "small_dense": SmallDense(),
    "magnitude": Pruned("train the parent, prune once by magnitude, rewind, retrain", "magnitude"),
}
