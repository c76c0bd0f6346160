"""Tables of what there is to choose from, read off the registries."""

from __future__ import annotations

from sparsefront.search.methods import METHODS
from sparsefront.search.strategies import STRATEGIES
from sparsefront.trainables.data import describe_datasets
from sparsefront.trainables.models import MODELS


def listing(what: str) -> tuple[str, list[dict[str, str]]]:
    """Title and rows of one listing: 'methods', 'strategies', 'datasets' or 'models'.

    >>> [row["name"] for row in listing("models")[1]]
    ['mlp', 'residual_mlp', 'conv1d']
    """
    if what == "methods":
        return "Arms of a study", [{"name": n, "what": m.summary, "source": m.source} for n, m in METHODS.items()]
    if what == "strategies":
        return "Strategies", [{"name": n, "what": s.summary, "source": s.source} for n, s in STRATEGIES.items()]
    if what == "datasets":
        return "Data sets", [
            {
                "name": str(d["name"]),
                "shape": f"{d['n_train']} + {d['n_test']} x {d['example_shape']}, {d['n_classes']} classes",
                "options": ", ".join(f"{o['name']}={o['default']}" for o in _options(d)) or "none",
                "source": str(d["source"]),
                "licence": str(d["licence"]),
            }
            for d in describe_datasets()
        ]
    return "Parents", [
        {
            "name": n,
            "what": m.summary,
            "options": ", ".join(f"{k}={f.default}" for k, f in m.options.model_fields.items()),
            "source": m.source,
        }
        for n, m in MODELS.items()
    ]


def _options(described: dict[str, object]) -> list[dict[str, object]]:
    options = described["options"]
    assert isinstance(options, list)
    return options
