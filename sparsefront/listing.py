"""What there is to choose from, read off the registries: each is imported when it is asked for, some take seconds."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

#: What has a summary and a source only: the registry's module, and its name there.
_REGISTRIES = {
    "rungs": ("sparsefront.search.rungs", "RUNGS"),
    "spaces": ("sparsefront.spaces.ready", "READY_SPACES"),
    "updates": ("sparsefront.trainables.mask_updates", "UPDATES"),
    "qualities": ("sparsefront.trainables.quality", "QUALITIES"),
}


def listing(what: str) -> dict[str, dict[str, str]]:
    """Facts by name, in the registry's order, of what the command `list` knows.

    >>> listing("models")["conv1d"]["options"].split(", activation")[0]
    'channels = [25, 25, 25]'
    """
    if what == "methods":
        from sparsefront.search.methods import METHODS

        return {name: {"what": m.summary, "source": m.source} for name, m in METHODS.items()}
    if what == "strategies":
        from sparsefront.search.strategies import STRATEGIES

        return {
            name: {
                "what": s.summary,
                "options": _options(s.options()),
                "source": s.source,
            }
            for name, s in STRATEGIES.items()
        }
    if what == "objectives":
        from sparsefront.search.objective import OBJECTIVES

        return {
            name: {
                "what": o.label,
                "unit": o.unit,
                "better": "higher" if o.higher_is_better else "lower",
                "known": o.known,
                "objective of": "fronts" if o.on_test else "all studies" if o.is_searched else "studies of masks",
            }
            for name, o in OBJECTIVES.items()
        }
    if what == "scores":
        from sparsefront.trainables.pruning import SCORES

        return {
            name: {
                "what": s.summary,
                "masks": " and ".join(s.kinds),
                "passes": f"{s.passes_each:.3g} an example" if s.passes_each else "none",
                "in training": f"{s.passes_each:.3g} an example at an update" if s.passes_at_update(1) else "no passes",
                "source": s.source,
            }
            for name, s in SCORES.items()
        }
    if what == "patterns":
        from sparsefront.spaces.patterns import PATTERNS

        return {
            form: {
                "what": f"keeps {row.summary}",
                "in a study": f"pattern = {_toml(example or form)}",
                "masks": row.kind,
                "source": row.source,
            }
            for row in PATTERNS.values()
            for form, _, example in [row.form.partition(", such as ")]
        }
    if what == "allocations":
        return _allocations()
    if what == "controls":
        from sparsefront.spaces.controls import CONTROLS

        return {name: {"what": c.summary, "a difference says": c.question} for name, c in CONTROLS.items()}
    if what == "simulations":
        from sparsefront.search.simulator import SYNTHETIC

        return {name: {"what": row.summary} for name, row in SYNTHETIC.items()}
    if what in _REGISTRIES:
        module, attribute = _REGISTRIES[what]
        registry: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
        return {name: {"what": row.summary, "source": row.source} for name, row in registry.items()}
    if what == "datasets":
        from sparsefront.trainables.data import DATASETS

        return {
            name: {
                "what": d.summary,
                "examples": f"{d.n_train:,} to train and validate, {d.n_test:,} to test; "
                f"shape {list(d.example_shape)}, {d.n_classes} "
                f"{'classes' if d.task == 'classification' else 'degradations'}",
                "options": "; ".join(f"{o.name} = {o.default}: {o.meaning}, {o.accepted}" for o in d.options) or "none",
                "source": d.source,
                "licence": d.licence,
            }
            for name, d in DATASETS.items()
        }
    from sparsefront.trainables.models import MODELS

    return {
        name: {
            "what": m.summary,
            "options": _options(m.options()),
            "source": m.source,
        }
        for name, m in MODELS.items()
    }


def _allocations() -> dict[str, dict[str, str]]:
    """The rules, and the two ways of an arm to have counts that follow from none of them."""
    from sparsefront.spaces.allocations import ALLOCATIONS, EXPLICIT

    of_arms = {
        EXPLICIT: {
            "what": "shares of your own, one for each layer; they belong to one sparsity",
            "masks": "node and weight",
            "in a study": f"[arms.NAME] allocation = {_toml(EXPLICIT)}, densities = [0.1, 0.5, 1.0]",
            "source": "convention",
        },
        "counts_of": {
            "what": "no allocation but a key in its place, for pruning at initialisation: the counts that a score's "
            "global mask leaves in each layer, wherever the weights or nodes are that are kept there; the arms "
            "random_snip_ratio and random_grasp_ratio have it",
            "masks": "node and weight",
            "in a study": f"[arms.NAME] counts_of = {_toml('snip')}",
            "source": "Liu et al. 2022",
        },
    }
    rules = {
        name: {
            "what": a.summary,
            "masks": " and ".join(a.kinds),
            "in a study": f"allocation = {_toml(name)}",
            "source": a.source,
        }
        for name, a in ALLOCATIONS.items()
    }
    return rules | of_arms


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
