"""Parent networks: one file and one registry line each."""

from sparsefront.trainables.models.model import (
    Model,
    ModelFamily,
    Options,
    SizedFamily,
    changing_buffers,
    initial_weights,
    random_layer,
    uncuttable_layer,
)
from sparsefront.trainables.models.registry import MODELS, build_model, model_family

__all__ = [
    "MODELS",
    "Model",
    "ModelFamily",
    "Options",
    "SizedFamily",
    "build_model",
    "changing_buffers",
    "initial_weights",
    "model_family",
    "random_layer",
    "uncuttable_layer",
]
