"""A user's model family whose workers write down which devices they see, and what Ray has given them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ray

from sparsefront.trainables.models.mlp import MLPFamily
from sparsefront.trainables.models.model import Model, Options


class Family(MLPFamily):
    def build(self, options: Options, *, input_shape: tuple[int, ...], n_classes: int) -> Model:
        # The driver builds a small one, too, to see what it computes.
        if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
            seen = {
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "assigned": ray.get_runtime_context().get_assigned_resources(),
                "pid": os.getpid(),
            }
            Path(os.environ["SEEN"], f"{os.getpid()}.json").write_text(json.dumps(seen), encoding="utf-8")
        return super().build(options, input_shape=input_shape, n_classes=n_classes)


family = Family()
