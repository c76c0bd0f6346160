"""The qualities by name, and how lanes are measured by them.

What is measured of a trained network is reported, like its test error, and never decided on, unless a study names it
as an objective: then it is measured on validation examples. Costs follow from that. Measured on test examples it is
the referee's work, the same for every result of every arm: `passes` says how much, for a column of its own, and no arm
is charged. Measured on validation examples for an objective it is a search's expense and is charged like validation.

Nothing that is chosen by comes from test examples: on validation examples corruptions, attacks and inputs from outside
of the distribution are made from these examples, with noise and shuffles of their own. Under the same draws the noise
that a network was chosen for telling from the data would be the noise that it is tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import ConfigError, nearest
from sparsefront.trainables.lanes import LaneStack, Layout
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.quality import adversarial, calibration, corruption, fresh, ood, shift
from sparsefront.trainables.quality.subject import Column, Inputs, Observed, Quality, Subject, lanes_at_once

QUALITIES: Mapping[str, Quality] = {
    "calibration": calibration.QUALITY,
    "corruption": corruption.QUALITY,
    "adversarial": adversarial.QUALITY,
    "ood": ood.QUALITY,
    "shift": shift.QUALITY,
    "fresh": fresh.QUALITY,
}

#: Every column of every quality, by name.
COLUMNS: Mapping[str, Column] = {name: c for quality in QUALITIES.values() for name, c in quality.columns.items()}

_FORWARD_PASS = 1 / 3  # of a forward and backward pass, in multiply-accumulates


def check_qualities(names: Sequence[str], *, has_parent: bool) -> None:
    """Refuse names that cannot be measured.

    Raises:
        ConfigError: unknown or repeated name, or one that compares with a parent where there is none.
    """
    for name in names:
        if name not in QUALITIES:
            raise ConfigError(f"quality={list(names)}: {name!r} is none, {nearest(name, QUALITIES)}")
        if QUALITIES[name].needs_parent and not has_parent:
            raise ConfigError(
                f"quality={list(names)}: {name!r} compares candidates with their trained parent, and there is "
                "none; leave it out"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"quality={list(names)}: every name must be there once")


def passes(names: Sequence[str], n_examples: int) -> float:
    """Forward and backward passes that `measure` costs each lane, and the parent once in every call.

    >>> passes(["calibration"], 30), round(passes(["calibration", "corruption"], 30), 6), passes([], 30)
    (10.0, 260.0, 0.0)
    """
    if not names:
        return 0.0
    return n_examples * (1 + sum(QUALITIES[name].forward_passes for name in names)) * _FORWARD_PASS


@torch.no_grad()
def measure(
    names: Sequence[str],
    model: Model,
    lanes: LaneStack,
    examples: Examples,
    *,
    parent: tuple[Model, torch.Tensor] | None,
    seed: int,
    use: str = "quality",
    fresh_examples: Callable[[], Examples] | None = None,
) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
    """Columns of every lane.

    Memory is bounded by cutting the lanes, and then the examples of one lane, into chunks; columns do not depend on
    them. The columns of a lane whose logits on the examples are not all finite are NaN (indices: -1), and so are those
    that compare with such a parent.

    Args:
        names: of `QUALITIES`.
        model: the module that the lanes are run through.
        lanes: trained lanes, masked entries zero; not modified.
        examples: to measure on.
        parent: the parent's model and its trained weights (P,), in the order of its own layout; None if there is none.
        seed: of noise and shuffles, which are the same for all lanes, and the same again under the same seed.
        use: of the seed: under another one they are drawn independently.
        fresh_examples: gives as many others of the same source, for qualities that need them.

    Returns:
        (L,) float64 for each of the qualities' columns; `fragile_indices` is (L, 16) int64.

    Raises:
        ConfigError: see `check_qualities`; a model of which 'shift' finds no last Linear layer.
    """
    check_qualities(names, has_parent=parent is not None)
    if names and examples.images is not None:
        raise ConfigError(
            f"quality={list(names)}: are measured on classes, and these examples are images to restore; leave them out"
        )
    inputs = Inputs(examples, seed=seed, use=use, fresh=fresh_examples)
    parents: dict[str, Observed] = {}
    if parent is not None:
        subject = Subject(parent[0], Layout.of(parent[0].structure), parent[1][None], inputs)
        if subject.is_finite:
            parents = {name: QUALITIES[name].observe(subject) for name in names if QUALITIES[name].compare is not None}
    at_once = lanes_at_once(model, lanes.layout, examples.x)
    parts: dict[str, list[torch.Tensor]] = {column: [] for name in names for column in QUALITIES[name].columns}
    for a in range(0, len(lanes), at_once):
        subject = Subject(model, lanes.layout, lanes.flat[a : a + at_once], inputs)
        for name in names:
            quality = QUALITIES[name]
            observed = quality.observe(subject)
            is_known = subject.is_finite
            if quality.compare is not None:
                # What needs a parent is compared with itself if the parent is of no use, and then unknown.
                reference = parents.get(name, observed if quality.needs_parent else None)
                is_known = is_known & (name in parents or not quality.needs_parent)
                observed = quality.compare(observed, reference)
            for column in quality.columns:
                values = observed[column]
                known = is_known.view(-1, *([1] * (values.dim() - 1)))
                parts[column].append(torch.where(known, values, torch.nan if values.is_floating_point() else -1))
    return {column: torch.cat(values).cpu().numpy() for column, values in parts.items()}
