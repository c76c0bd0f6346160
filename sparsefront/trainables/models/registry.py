"""The parents by name; a user's own is named ``package.module:object``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from sparsefront.errors import ConfigError, nearest
from sparsefront.trainables.models.conv1d import Conv1dFamily
from sparsefront.trainables.models.hourglass import HourglassFamily
from sparsefront.trainables.models.mlp import LeNet300100Family, MLPFamily
from sparsefront.trainables.models.model import Model, ModelFamily
from sparsefront.trainables.models.residual_mlp import ResidualMLPFamily
from sparsefront.trainables.models.restorer import RestorerFamily

MODELS: Mapping[str, ModelFamily] = {
    "mlp": MLPFamily(),
    "residual_mlp": ResidualMLPFamily(),
    "conv1d": Conv1dFamily(),
    "hourglass": HourglassFamily(),
    "lenet_300_100": LeNet300100Family(),
    "restorer": RestorerFamily(),
}


def model_family(name: str) -> ModelFamily:
    """The family called `name`.

    Raises:
        ConfigError: unknown name, or a ``package.module:object`` that cannot be imported.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ConfigError(f"model.name={name!r}: {nearest(name, MODELS)}, or your own as 'package.module:object'")
    module_name, _, attribute = name.partition(":")
    try:
        return cast(ModelFamily, getattr(importlib.import_module(module_name), attribute))
    except Exception as error:  # the user's module may raise anything
        place = "; its module must be in the current folder, beside the study or on PYTHONPATH"
        raise ConfigError(
            f"model.name={name!r}: cannot be imported ({type(error).__name__}: {error})"
            f"{place if isinstance(error, ModuleNotFoundError) else ''}"
        ) from error


def build_model(
    name: str,
    options: Mapping[str, Any],
    *,
    input_shape: tuple[int, ...],
    n_classes: int,
    prune_biases: bool = False,
) -> Model:
    """The parent `name` with `options` (as `ModelFamily.options` takes them) for data of this shape.

    Raises:
        ConfigError: `prune_biases` of a parent that has none.
    """
    family = model_family(name)
    model = family.build(family.options.model_validate(dict(options)), input_shape=input_shape, n_classes=n_classes)
    if not prune_biases:
        return model
    model = replace(model, structure=model.structure.with_prunable_biases())
    if not model.structure.has_prunable_biases:
        raise ConfigError("masks.prune_biases=true: its layers have no biases; leave it out, or give them some")
    return model
