"""The known data sets: one file and one line here for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sparsefront.errors import ConfigError
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.data import digits, mnist1d, restoration, xor_cluster
from sparsefront.trainables.data.dataset import Dataset, DatasetSource, unknown_name

DATASETS: Mapping[str, DatasetSource] = MappingProxyType(
    {
        source.name: source
        for source in (
            mnist1d.SOURCE,
            digits.SOURCE,
            xor_cluster.SOURCE,
            restoration.SOURCE,
        )
    }
)


def load_dataset(name: str, options: Mapping[str, object] | None = None, *, cache: Path | None = None) -> Dataset:
    """Load a data set; generated ones come from the cache after the first time.

    Args:
        name: a name in ``DATASETS``.
        options: the data set's options; missing ones take their defaults.
        cache: folder for generated data; None = :func:`~sparsefront.trainables.data.cache.default_cache`.

    Raises:
        ConfigError: if the name or an option is unknown, or a value is not accepted.

    Warns:
        DatasetCacheWarning: if the cache was damaged or cannot be written; the data are right all the same.
    """
    source = _source(name)
    return source.load(source.resolve(options or {}), cache)


def resolve_dataset_options(name: str, options: Mapping[str, object] | None = None) -> dict[str, int]:
    """Check options without loading anything, and complete them with their defaults.

    Raises:
        ConfigError: as :func:`load_dataset`.

    >>> resolve_dataset_options("mnist1d", {"num_samples": 10_000})
    {'num_samples': 10000, 'test_samples': 0, 'seed': 42}
    """
    return _source(name).resolve(options or {})


def fresh_options(name: str, options: Mapping[str, object], seed: int) -> dict[str, int]:
    """Options under which the generator of a data set draws another one of its kind.

    Args:
        name: a name in ``DATASETS``.
        options: those of the data set itself.
        seed: a study's; the new data set's own derives from it, and is another than that in `options`.

    Raises:
        ConfigError: as :func:`load_dataset`, and a data set that is not generated.

    >>> fresh_options("mnist1d", {"num_samples": 1000}, 0)["num_samples"]
    1000
    """
    resolved = _source(name).resolve(options)
    if "seed" not in resolved:
        drawn = [known for known, source in DATASETS.items() if any(o.name == "seed" for o in source.options)]
        raise ConfigError(f"{name!r} is the same under every seed; data sets that are drawn are {', '.join(drawn)}")
    own = int(generator(seed, "fresh sample").integers(2**32))
    return {**resolved, "seed": own if own != resolved["seed"] else (own + 1) % 2**32}


def _source(name: str) -> DatasetSource:
    if name not in DATASETS:
        raise ConfigError(unknown_name(name, DATASETS, "data set"))
    return DATASETS[name]
