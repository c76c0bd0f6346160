"""The scores by name, and the exact masks that they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.schedules import geometric
from sparsefront.trainables.pruning.scores import (
    apoz,
    first_order_movement,
    fisher,
    gradient_norm,
    grasp,
    l1,
    lamp,
    magnitude,
    mean_activation,
    movement,
    random,
    snip,
    synflow,
    taylor,
)
from sparsefront.trainables.pruning.selection import check_finite, keep_best
from sparsefront.trainables.pruning.state import ScoringState

#: Scores of a state: (L, entries), higher = keep.
ScoreFunction = Callable[[ScoringState], torch.Tensor]
Weights = Mapping[str, npt.NDArray[np.float32]]


class Rounds(Protocol):
    """A lane that is scored, loses some of what it has, and is scored again."""

    def cut(self, kind: str, counts: Sequence[int]) -> None:
        """Keep what scores best of what is left, as `selection.keep_best` selects it.

        Args:
            kind: 'node' or 'weight', the same in all rounds.
            counts: what to keep.

        Raises:
            SpaceError: scores that are not finite.
        """

    @property
    def left(self) -> torch.Tensor | None:
        """What is left after the last round: (1, entries) bool; None before the first."""


@dataclass(frozen=True)
class Score:
    """One row of the registry.

    Attributes:
        summary: what is kept.
        source: of the definition.
        nodes: scores of nodes.
        weights: scores of weights; None where only nodes have a score.
        needs: fields of the state that it reads besides the weights: 'examples', 'start', 'keys', 'products'.
        uses_labels: whether it reads the labels of the examples.
        passes_each: forward+backward passes of one example (a forward pass alone is 1/3).
        is_data_free: whether it runs one made-up example instead of the scoring batch, of which only the shape is read.
        by_gradient: whether it reads examples for the gradient of their loss alone, in place of which masks that
            change in training have that of the steps (`in_training`).
        in_rounds: makes of one lane what scores it again and again, where that takes less than to begin anew.
        of_biases: whether it tells the biases of a layer apart, where weight masks cover them.
    """

    summary: str
    source: str
    nodes: ScoreFunction
    weights: ScoreFunction | None = None
    needs: tuple[str, ...] = ()
    uses_labels: bool = False
    passes_each: float = 0.0
    is_data_free: bool = False
    by_gradient: bool = False
    in_rounds: Callable[[ScoringState], Rounds] | None = None
    of_biases: bool = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of masks that it scores."""
        return ("node",) if self.weights is None else ("node", "weight")

    def passes(self, n_examples: int, rounds: int = 1) -> float:
        """Cost of one lane's mask in forward+backward passes of an example.

        >>> SCORES["snip"].passes(100), SCORES["synflow"].passes(100, rounds=50), SCORES["magnitude"].passes(100)
        (100.0, 50.0, 0.0)
        """
        return self.passes_each * rounds * (1 if self.is_data_free else n_examples)

    @property
    def reads_examples_in_training(self) -> bool:
        """Whether a mask that changes in training is ranked on examples of its own at every update."""
        return "examples" in self.needs and not self.by_gradient

    def passes_at_update(self, n_examples: int) -> float:
        """Cost of ranking one lane in its training, once, in forward+backward passes of an example.

        >>> SCORES["snip"].passes_at_update(100), SCORES["grasp"].passes_at_update(100)
        (0.0, 300.0)
        """
        return self.passes(n_examples) if self.reads_examples_in_training else 0.0

    def function(self, kind: str) -> ScoreFunction:
        """What scores masks of `kind`.

        Raises:
            SpaceError: a kind that it does not score.
        """
        if kind not in self.kinds:
            raise SpaceError(
                f"mask kind={kind!r}: this score ({self.summary}) is of {' and '.join(self.kinds)} masks only"
            )
        return self.nodes if self.weights is None or kind == "node" else self.weights

    def of(self, state: ScoringState, kind: str) -> torch.Tensor:
        """Score of every entry of a mask of `kind`: (L, entries), higher = keep; minus infinity for what is gone.

        Raises:
            SpaceError: a kind that it does not score, something that it needs is missing, or a lane with scores that
                are not finite.
        """
        self.check(state, kind)
        scores = self.function(kind)(state)
        check_finite("weights", state.lanes.flat)
        check_finite("scores", scores)
        return state.without_gone(scores, kind)

    def check(self, state: ScoringState, kind: str) -> None:
        """Refuse a kind that it does not score, and a state without something that it needs."""
        self.function(kind)
        for need in self.needs:
            value = getattr(state, need)
            if value is None or (need == "keys" and len(value) != len(state.lanes)):
                raise SpaceError(
                    f"{need}: must be given for every lane to score by {self.summary!r}; see {self.source}"
                )


SCORES: Mapping[str, Score] = {
    "random": Score(
        "any, all masks equally likely",
        "control",
        random.nodes,
        random.weights,
        ("keys",),
    ),
    "magnitude": Score(
        "largest weights, or nodes of largest group norm",
        "Han et al. 2015; Fang et al. 2023",
        magnitude.nodes,
        magnitude.weights,
    ),
    "l1": Score(
        "largest weights, or nodes of largest sum of absolute weights",
        "Li et al. 2017",
        l1.nodes,
        l1.weights,
    ),
    "lamp": Score(
        "largest squares relative to the layer's that are not smaller",
        "Lee et al. 2021",
        lamp.nodes,
        lamp.weights,
    ),
    "movement": Score(
        "what training moved farthest from its start",
        "Zhou et al. 2019",
        movement.nodes,
        movement.weights,
        ("start",),
    ),
    "first_order_movement": Score(
        "largest sum of -w dL/dw over the training, which is of weights that grew",
        "Sanh et al. 2020",
        first_order_movement.nodes,
        first_order_movement.weights,
        ("products",),
    ),
    "snip": Score(
        "largest |w dL/dw|",
        "Lee et al. 2019",
        snip.nodes,
        snip.weights,
        ("examples",),
        uses_labels=True,
        passes_each=1.0,
        by_gradient=True,
    ),
    # A gradient (1), and back-propagation through it (2).
    "grasp": Score(
        "what removal would weaken the gradient flow",
        "Wang et al. 2020",
        grasp.nodes,
        grasp.weights,
        ("examples",),
        uses_labels=True,
        passes_each=3.0,
    ),
    "synflow": Score(
        "largest share of the flow through the absolute weights; no data",
        "Tanaka et al. 2020",
        synflow.nodes,
        synflow.weights,
        ("examples",),
        passes_each=1.0,
        is_data_free=True,
        in_rounds=synflow.Flow,
        of_biases=False,
    ),
    # Gradients by the layers' outputs, and at most as much again for their squares (`derivatives`).
    "fisher": Score(
        "largest w^2 F / 2 with the empirical Fisher information",
        "LeCun et al. 1990; Theis et al. 2018",
        fisher.nodes,
        fisher.weights,
        ("examples",),
        uses_labels=True,
        passes_each=2.0,
    ),
    "taylor": Score(
        "largest squared first-order change of the loss",
        "Molchanov et al. 2019",
        taylor.nodes,
        taylor.weights,
        ("examples",),
        uses_labels=True,
        passes_each=1.0,
        by_gradient=True,
    ),
    "gradient_norm": Score(
        "largest |dL/dw|",
        "Evci et al. 2020",
        gradient_norm.nodes,
        gradient_norm.weights,
        ("examples",),
        uses_labels=True,
        passes_each=1.0,
        by_gradient=True,
    ),
    "apoz": Score(
        "nodes that are zero on the fewest examples",
        "Hu et al. 2016",
        apoz.nodes,
        None,
        ("examples",),
        passes_each=1 / 3,
    ),
    "mean_activation": Score(
        "nodes of largest mean |activation|",
        "Molchanov et al. 2017",
        mean_activation.nodes,
        None,
        ("examples",),
        passes_each=1 / 3,
    ),
}


def iterative_mask(
    score: Score,
    state: ScoringState,
    kind: str,
    *,
    density: float,
    counts_of: Callable[[float], Sequence[int]],
    rounds: int = 1,
) -> torch.Tensor:
    """Masks cut in `rounds`, after each of which what is left is scored anew: (L, entries) bool.

    Round i keeps `geometric(density, i, rounds)`; what is gone never comes back. One round is the one-shot mask.

    Args:
        score: a row of `SCORES`.
        state: lanes at their initial weights; a mask that they already have is kept within.
        kind: 'node' or 'weight'.
        density: share of the entries to keep, in (0, 1].
        counts_of: exact counts of a density, as `keep_best` takes them.
        rounds: 1 or more.

    Raises:
        SpaceError: as `Score.of` and `keep_best` do.
    """
    sizes, final = state.structure.section_sizes(kind), counts_of(density)
    counts = list(sizes) if len(final) == len(sizes) else [sum(sizes)]
    kept = state.kept(kind)
    if kept is not None:  # lanes of one stack may have lost unlike numbers of entries
        parts = torch.split(kept, list(sizes), dim=1) if len(final) == len(sizes) else [kept]
        counts = [int(part.sum(dim=1).min()) for part in parts]
    masks: torch.Tensor | None = None
    lanes: list[Rounds] = []
    if score.in_rounds is not None and kept is None:
        score.check(state, kind)
        check_finite("weights", state.lanes.flat)
        lanes = [score.in_rounds(lane) for lane in state.alone()]
    for i in range(1, rounds + 1):
        # Apportioned counts can rise by one from a density to a lower one.
        wanted = zip(counts, counts_of(geometric(density, i, rounds)), final, strict=True)
        counts = [min(before, max(now, last)) for before, now, last in wanted]
        if lanes:
            for lane in lanes:
                lane.cut(kind, counts)
            continue
        if masks is not None:
            state = state.masked(masks, kind)
        masks = keep_best(score.of(state, kind), sizes, counts)
    if rounds < 1:
        raise SpaceError(f"rounds={rounds}: must be at least 1")
    if lanes:
        masks = torch.cat([lane.left for lane in lanes if lane.left is not None])
    assert masks is not None
    return masks
