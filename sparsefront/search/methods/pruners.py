"""The pruning methods by name: each a point of score x pattern x allocation x schedule, with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsefront.spaces.allocations import ALLOCATIONS
from sparsefront.spaces.pruning import Pruning

_BOTH = ("node", "weight")


@dataclass(frozen=True)
class Pruner:
    """One row of the registry; `kinds` are the kinds of mask that it can make."""

    summary: str
    source: str
    method: Pruning
    kinds: tuple[str, ...] = ("weight",)

    def for_masks(self, kind: str) -> Pruning:
        """The method for masks of a kind: an allocation that does not divide those gives way to the study's."""
        allocation = self.method.allocation
        if allocation is not None and kind not in ALLOCATIONS[allocation].kinds:
            return replace(self.method, allocation=None)
        return self.method


PRUNERS: Mapping[str, Pruner] = {
    "magnitude": Pruner(
        "train the parent, prune once by magnitude, rewind, retrain",
        "Frankle and Carbin 2019, one-shot",
        Pruning("trained"),
        _BOTH,
    ),
    "magnitude_oneshot": Pruner(
        "train the parent, prune once by magnitude, fine-tune",
        "Han et al. 2015",
        Pruning("trained", survivors="trained"),
        _BOTH,
    ),
    "lr_rewind": Pruner(
        "train the parent, prune by magnitude level by level, retrain each with the whole schedule of learning rates",
        "Renda et al. 2020",
        Pruning("levels", survivors="trained", lr="rewound", allocation="global"),
        _BOTH,
    ),
    "imp": Pruner(
        "lottery ticket: train, prune by magnitude and rewind to initialisation, level by level",
        "Frankle and Carbin 2019",
        Pruning("levels", allocation="global"),
        _BOTH,
    ),
    "imp_rewind": Pruner(
        "stabilised lottery ticket: rewind to 2% of the training",
        "Frankle et al. 2019",
        Pruning("levels", allocation="global", rewind_fraction=0.02),
        _BOTH,
    ),
    "ap": Pruner(
        "lottery ticket whose levels also take the negative weights that moved least",
        "Liu et al., Activate-while-pruning",
        Pruning("levels", allocation="global", ap_fraction=0.02),
    ),
    "mirl": Pruner(
        "iterative magnitude pruning with reset to initialisation, of a multi-task network",
        "MIR-L 2025",
        Pruning("levels", allocation="global"),
        _BOTH,
    ),
    "gmp": Pruner(
        "gradual magnitude pruning by a cubic schedule",
        "Zhu and Gupta 2017",
        Pruning("during", update="gradual", begin_fraction=0.1),
        _BOTH,
    ),
    "snip": Pruner(
        "prune at initialisation by connection sensitivity",
        "Lee et al. 2019",
        Pruning("init", score="snip", allocation="global"),
        _BOTH,
    ),
    "snip_iterative": Pruner(
        "prune at initialisation by connection sensitivity in 100 rounds",
        "de Jorge et al. 2021",
        Pruning("init", score="snip", allocation="global", rounds=100),
        _BOTH,
    ),
    "grasp": Pruner(
        "prune at initialisation by the gradient flow that is left",
        "Wang et al. 2020",
        Pruning("init", score="grasp", allocation="global"),
        _BOTH,
    ),
    "synflow": Pruner(
        "prune at initialisation by synaptic flow in 100 rounds, without data",
        "Tanaka et al. 2020",
        Pruning("init", score="synflow", allocation="global", rounds=100),
        _BOTH,
    ),
    "random_erk": Pruner(
        "random positions in Erdos-Renyi-Kernel ratios",
        "Liu et al. 2022; Evci et al. 2020",
        Pruning("init", score="random", allocation="erk"),
    ),
    "random_snip_ratio": Pruner(
        "random positions in the ratios of layers that connection sensitivity leaves",
        "Liu et al. 2022",
        Pruning("init", score="random", counts_of="snip"),
        _BOTH,
    ),
    "random_grasp_ratio": Pruner(
        "random positions in the ratios of layers that gradient flow leaves",
        "Liu et al. 2022",
        Pruning("init", score="random", counts_of="grasp"),
        _BOTH,
    ),
    "set": Pruner(
        "dynamic sparse training: drop the smallest weights or nodes, grow as many at random",
        "Mocanu et al. 2018",
        Pruning("during", update="set", allocation="erk"),
        _BOTH,
    ),
    "rigl": Pruner(
        "dynamic sparse training: drop the smallest weights or nodes, grow those of largest gradient",
        "Evci et al. 2020",
        Pruning("during", update="rigl", allocation="erk"),
        _BOTH,
    ),
    "edge_popup": Pruner(
        "train scores of frozen weights, straight through the mask of the highest",
        "Ramanujan et al. 2020",
        Pruning("during", update="edge_popup"),
        _BOTH,
    ),
    "nm_2_4": Pruner(
        "train the parent, keep the two largest of every four inputs, fine-tune (at sparsity 0.5)",
        "Mishra et al. 2021",
        Pruning("trained", pattern="2:4", survivors="trained"),
    ),
    "structured_l1": Pruner(
        "train the parent, remove nodes of smallest sum of absolute weights, fine-tune",
        "Li et al. 2017; Fang et al. 2023",
        Pruning("trained", score="l1", survivors="trained"),
        ("node",),
    ),
    "structured_taylor": Pruner(
        "train the parent, remove nodes of smallest first-order effect on the loss, fine-tune",
        "Molchanov et al. 2019",
        Pruning("trained", score="taylor", survivors="trained"),
        ("node",),
    ),
}
