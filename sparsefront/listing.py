"""What there is to choose from, read off the registries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sparsefront.search.methods import METHODS
from sparsefront.search.rungs import RUNGS
from sparsefront.search.simulator import SYNTHETIC
from sparsefront.search.strategies import STRATEGIES
from sparsefront.spaces.allocations import ALLOCATIONS
from sparsefront.spaces.ready import READY_SPACES
from sparsefront.trainables.data import DATASETS
from sparsefront.trainables.models import MODELS
from sparsefront.trainables.pruning import CRITERIA


def listing(what: str) -> dict[str, dict[str, str]]:
    """Facts by name, in the registry's order, of what the command `list` knows.

    >>> listing("models")["conv1d"]["options"].split(", activation")[0]
    'channels = [25, 25, 25]'
    """
    if what == "methods":
        return {name: {"what": m.summary, "source": m.source} for name, m in METHODS.items()}
    if what == "strategies":
        return {
            name: {
                "what": s.summary,
                "options": _options(s.options()),
                "source": s.source,
            }
            for name, s in STRATEGIES.items()
        }
    if what == "objectives":
        return {name: {"what": row.summary} for name, row in SYNTHETIC.items()}
    if what in ("rungs", "spaces", "allocations", "criteria"):
        registry: Mapping[str, Any] = {
            "rungs": RUNGS, "spaces": READY_SPACES, "allocations": ALLOCATIONS, "criteria": CRITERIA
        }[what]  # fmt: skip
        return {name: {"what": row.summary, "source": row.source} for name, row in registry.items()}
    if what == "datasets":
        return {
            name: {
                "what": d.summary,
                "examples": f"{d.n_train:,} to train and validate, {d.n_test:,} to test; "
                f"shape {list(d.example_shape)}, {d.n_classes} classes",
                "options": "; ".join(f"{o.name} = {o.default}: {o.meaning}, {o.accepted}" for o in d.options) or "none",
                "source": d.source,
                "licence": d.licence,
            }
            for name, d in DATASETS.items()
        }
    return {
        name: {
            "what": m.summary,
            "options": _options(m.options()),
            "source": m.source,
        }
        for name, m in MODELS.items()
    }


def _options(options: BaseModel) -> str:
    return ", ".join(f"{key} = {_toml(value)}" for key, value in options.model_dump(mode="json").items()) or "none"


def _toml(value: object) -> str:
    """A default as a study would write it.

    >>> _toml(True), _toml("relu"), _toml([1, 2])
    ('true', '"relu"', '[1, 2]')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
