"""What there is to choose from, read off the registries."""

from __future__ import annotations

from sparsefront.search.methods import METHODS
from sparsefront.search.strategies import STRATEGIES
from sparsefront.trainables.data import DATASETS
from sparsefront.trainables.models import MODELS


def listing(what: str) -> dict[str, dict[str, str]]:
    """Facts by name, in the registry's order, of 'methods', 'strategies', 'datasets' or 'models'.

    >>> list(listing("models")), listing("models")["conv1d"]["options"].split(", activation")[0]
    (['mlp', 'residual_mlp', 'conv1d'], 'channels = [25, 25, 25]')
    """
    if what == "methods":
        return {name: {"what": m.summary, "source": m.source} for name, m in METHODS.items()}
    if what == "strategies":
        return {name: {"what": s.summary, "source": s.source} for name, s in STRATEGIES.items()}
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
            "options": ", ".join(
                f"{key} = {_toml(value)}" for key, value in m.options().model_dump(mode="json").items()
            ),
            "source": m.source,
        }
        for name, m in MODELS.items()
    }


def _toml(value: object) -> str:
    """A default as a study would write it.

    >>> _toml(True), _toml("relu"), _toml([1, 2])
    ('true', '"relu"', '[1, 2]')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
