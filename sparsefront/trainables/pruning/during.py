"""How a method changes the masks of lanes while they train: what its rule of `UPDATES` is made from, and its cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.candidate import level_key
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.seeds import philox_key
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.mask_updates import UPDATES, MaskUpdates, Nodes, UpdateSettings, sections_of
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.pruning.cutting import Cutter
from sparsefront.trainables.pruning.in_training import ScoreInTraining
from sparsefront.trainables.pruning.registry import SCORES


def changes_masks(
    method: Pruning,
    *,
    sparsities: Sequence[float],
    steps: int,
    model: Model,
    lanes: LaneStack,
    initial: torch.Tensor,
    cutter: Cutter,
    seed: int,
    replicates: Sequence[int],
    probes: Sequence[Examples],
) -> MaskUpdates:
    """What changes the masks of lanes that train together, for one pack alone.

    Args:
        method: with an update.
        sparsities: of each lane's mask in the end.
        steps: of the whole training.
        model: the parent's module.
        lanes: of the parent's own shapes.
        initial: (P,) or (L, P) weights that lanes had before their masks.
        cutter: of the parent; it knows the kind of the masks and the counts that they keep.
        seed: of the study.
        replicates: that of each lane.
        probes: examples that masks of each lane's replicate are scored on.

    Raises:
        SpaceError: a method whose masks stay, a rule that the lanes do not fit, or a score of other masks.
    """
    if method.update is None:
        raise SpaceError(f"update=None: masks of a method with when={method.when!r} stay as they are in training")
    layout, structure = lanes.layout, cutter.structure
    numbers = tuple(zip(replicates, map(level_key, sparsities), strict=True))
    settings = UpdateSettings(
        sections=sections_of(structure, layout, method.pattern, device=lanes.flat.device),
        steps=steps,
        nodes=Nodes(structure, layout) if cutter.kind == "node" else None,
        sparsity=sparsities[0] if len(set(sparsities)) == 1 else tuple(sparsities),
        counts=lambda at: cutter.kept(method, at),
        seed=seed,
        lanes=numbers,
        begin_fraction=method.begin_fraction,
        end_fraction=method.end_fraction,
        every=method.every or None,
        drop_fraction=method.drop_fraction,
        decay=method.decay,
        score=ScoreInTraining(
            method.score, model, lanes, cutter.kind, [philox_key(seed, "prune", *each) for each in numbers], probes
        ),
        power=method.power,
        initial=initial[..., : layout.trained_width],
    )
    return UPDATES[method.update].make(settings)


def ranking_passes(method: Pruning, n_examples: int, *, steps: int, taken: int, since: int = 0) -> float:
    """Forward+backward passes that a lane's score has taken while its mask changed.

    Args:
        method: any; of one whose masks do not change in training, or that ranks by what a step has, there are none.
        n_examples: that masks are scored on.
        steps: of the whole training.
        taken: steps of it that are done.
        since: so many of these are left out.

    >>> gradual = Pruning("during", score="grasp", update="gradual", every=4, end_fraction=0.5)
    >>> ranking_passes(gradual, 100, steps=20, taken=5), ranking_passes(gradual, 100, steps=20, taken=20, since=5)
    (600.0, 600.0)
    """
    n_rankings = len(method.rankings(steps, taken=taken, since=since))
    return n_rankings * SCORES[method.score].passes_at_update(n_examples) if n_rankings else 0.0


def making_passes(method: Pruning, n_examples: int, *, steps: int) -> float:
    """Forward+backward passes of an example that scores take for one mask of a method, before its training and in it.

    Args:
        method: how the mask is made.
        n_examples: that masks are scored on.
        steps: of the whole training.

    >>> making_passes(Pruning("init", score="snip"), 100, steps=20)
    100.0
    >>> gradual = Pruning("during", score="grasp", update="gradual", every=4, end_fraction=0.5)
    >>> making_passes(gradual, 100, steps=20)
    1200.0
    """
    if method.when == "during":
        return ranking_passes(method, n_examples, steps=steps, taken=steps)
    ratios = SCORES[method.counts_of].passes(n_examples) if method.counts_of else 0.0
    return ratios + SCORES[method.score].passes(n_examples, method.rounds)
