"""What of a candidate's settings takes effect, so that candidates that differ in the rest alone are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefront.errors import SparsefrontError
from sparsefront.spaces.candidate import level_key
from sparsefront.trainables.data import n_used
from sparsefront.trainables.networks import Networks

#: Hyperparameters that an optimiser does not have.
_UNUSED_BY = {"adam": ("training.momentum", "training.nesterov"), "sgd": ("training.beta1", "training.beta2")}


def effective(networks: Networks, settings: Mapping[str, Any], *, n_train: int | None) -> Mapping[str, Any]:
    """What of a candidate's settings takes effect: equal of two candidates, they are trained once in a run.

    Left out are hyperparameters of another optimiser, Nesterov's form of no momentum, and everything about masks where
    nothing is removed. What is rounded is what it is rounded to: a warmup or a rewind so many steps, a share of the
    data so many examples. A drawn mask is what it is drawn from, however that was written: its pattern, the counts that
    remain, the sparsity and the number of the draw. The sparsity counts even where another rounds to the same counts:
    its random numbers are its own, so that the two keep other entries. Of masks that a method cuts by scores, the
    counts of every round or level are enough (see `Networks.cut`).

    Args:
        networks: of the study.
        settings: study keys that the candidate sets.
        n_train: training examples of a replicate; None where the share that is used grows from rung to rung.
    """
    recipe = networks.recipe
    unused = _UNUSED_BY.get(settings.get("training.optimizer", recipe.schedule.optimizer), ())
    found = {key: value for key, value in settings.items() if key not in unused}
    if not found.get("training.momentum", recipe.hyper.momentum):
        found.pop("training.nesterov", None)
    steps = found.get("training.steps", recipe.schedule.steps)
    if "training.warmup_fraction" in found:
        found["training.warmup_fraction"] = round(found["training.warmup_fraction"] * steps)
    if "training.data_fraction" in found and n_train is not None:
        found["training.data_fraction"] = n_used(found["training.data_fraction"], n_train)
    if "masks.bits" in found:
        return found
    try:
        cut, drawn = networks.cut(settings), networks.drawn(settings)
    except SparsefrontError:  # there is no such network: whoever trains it will say so
        return found
    method = found.get("masks.method")
    found = {key: value for key, value in found.items() if not key.startswith("masks.")}
    if cut is not None:
        found["masks.cut"] = [method, *cut]
    if drawn is not None:
        found["masks.drawn"] = [repr(drawn.pattern), *drawn.kept, level_key(drawn.sparsity), drawn.number]
    return found
