"""Whether two trained siblings lie in one valley: the error along the straight line between them, and their distance.

Siblings are trained from one rewind point in two data orders. The smallest rewind step from which they stay connected
is where iterative pruning has to rewind to.

References: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis, 2020 (instability; 30 points and
a threshold of 2%); Frankle et al., Stabilizing the lottery ticket hypothesis, 2019 (distance, angle).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples, evaluate


@dataclass(frozen=True)
class Connectivity:
    """Error and loss between L pairs of networks.

    Attributes:
        positions: (points,) a in a W_a + (1 - a) W_b, ascending from 0 to 1.
        error: (points, L) misclassified fraction.
        loss: (points, L) mean cross-entropy in nats.
        error_instability: (L,) largest error on the line less the mean of its ends, >= 0.
        loss_instability: (L,) the same of the loss.
    """

    positions: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    error_instability: npt.NDArray[np.float64]
    loss_instability: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distances:
    """How far L pairs of networks are apart in the prunable weights that both keep.

    Attributes:
        l2: (L,) Euclidean norm of the difference.
        angle_rad: (L,) angle between them, 0..pi; not a number where one of them is zero.
    """

    l2: npt.NDArray[np.float64]
    angle_rad: npt.NDArray[np.float64]


@torch.no_grad()
def instability(
    model: Model, lanes_a: LaneStack, lanes_b: LaneStack, examples: Examples, *, points: int = 11
) -> Connectivity:
    """Error and loss at evenly spaced points between lane i of one stack and lane i of the other.

    Each end is multiplied by its own mask (siblings share one). Where a loss is not finite, the instabilities and
    that point's error are not a number.

    Args:
        model: the parent.
        lanes_a: one end of every line.
        lanes_b: the other ends, of the same shape.
        examples: to measure on.
        points: at least 3, ends included.

    Raises:
        SpaceError: stacks of unlike shape, or too few points.

    Cost: `points` forward passes of all lanes.
    """
    if points < 3:
        raise SpaceError(f"points={points}: at least 3 are needed, of which 2 are the ends of the line")
    a, b = _ends(lanes_a, lanes_b)
    positions = np.linspace(0, 1, points)
    loss, error = np.empty((points, len(lanes_a))), np.empty((points, len(lanes_a)))
    for i, position in enumerate(positions):
        # The ends themselves come out exact: 1 * a + 0 * b.
        between = replace(lanes_a, flat=a * float(position) + b * float(1 - position))
        loss[i], error[i] = evaluate(model, between, examples)
    error[~np.isfinite(loss)] = np.nan
    return Connectivity(positions, error, loss, _bump(error), _bump(np.where(np.isfinite(loss), loss, np.nan)))


@torch.no_grad()
def distances(structure: Structure, lanes_a: LaneStack, lanes_b: LaneStack) -> Distances:
    """Distance and angle between lane i of one stack and lane i of the other, over prunable weights that both keep.

    Raises:
        SpaceError: stacks of unlike shape.
    """
    a, b = _ends(lanes_a, lanes_b)
    names = [t.name for t in structure.prunable]
    for keep in (lanes_a.keep, lanes_b.keep):
        if keep is not None:
            a, b = a * keep, b * keep
    first, second = (
        torch.cat([tensors[n].flatten(1) for n in names], dim=1).double()
        for tensors in (lanes_a.layout.views(a), lanes_a.layout.views(b))
    )
    # 2 atan2(|u - v|, |u + v|) of unit vectors (Kahan): exact near 0 and pi, where the arccosine is not.
    u, v = (w / torch.linalg.vector_norm(w, dim=1, keepdim=True) for w in (first, second))
    angle = 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))
    return Distances(torch.linalg.vector_norm(first - second, dim=1).cpu().numpy(), angle.cpu().numpy())


def _ends(lanes_a: LaneStack, lanes_b: LaneStack) -> tuple[torch.Tensor, torch.Tensor]:
    """The masked parameters of both stacks, (L, P) each."""
    if lanes_a.layout != lanes_b.layout or len(lanes_a) != len(lanes_b):
        raise SpaceError(
            f"lanes_a of {len(lanes_a)} x {lanes_a.layout.width} parameters, lanes_b of {len(lanes_b)} x "
            f"{lanes_b.layout.width}: must be siblings of the same shape, one of each for every line"
        )
    a, b = (s.flat if s.keep is None else s.flat * s.keep for s in (lanes_a, lanes_b))
    return a, b


def _bump(curve: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The highest point of each column less the mean of its ends."""
    height: npt.NDArray[np.float64] = curve.max(axis=0) - (curve[0] + curve[-1]) / 2
    return height
