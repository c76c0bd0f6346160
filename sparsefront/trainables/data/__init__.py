"""Data sets by name, and how their training part is split for a replicate; NumPy arrays only."""

from sparsefront.trainables.data.cache import DatasetCacheWarning, default_cache
from sparsefront.trainables.data.dataset import Dataset, DatasetSource, Option
from sparsefront.trainables.data.registry import (
    DATASETS,
    fresh_options,
    load_dataset,
    resolve_dataset_options,
)
from sparsefront.trainables.data.splits import Split, held_out_counts, n_used, split

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetCacheWarning",
    "DatasetSource",
    "Option",
    "Split",
    "default_cache",
    "fresh_options",
    "held_out_counts",
    "load_dataset",
    "n_used",
    "resolve_dataset_options",
    "split",
]
