"""What a figure was measured on, and how it is written."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import torch

from sparsefront.cluster.ray_cluster import Resources, ray_cluster
from sparsefront.cluster.worker import keep_freed_memory, round_alike


def set_up_as_worker(threads: int = 1) -> None:
    """Make this process what a worker of a study is before its first pack."""
    round_alike()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()


def describe() -> str:
    """Hardware and versions in one line."""
    names = ("torch", "ray", "numpy", "pyarrow", "moocore")
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """Name of the processor, as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@contextlib.contextmanager
def cluster_of_tune(workers: int) -> Iterator[None]:
    """A cluster as Ray starts it: Ray Tune's own workers take nothing over that is loaded ahead."""
    with patch.dict(os.environ, {"RAY_preload_python_modules": ""}), ray_cluster(Resources(None, "cpu", workers, 0)):
        yield


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median with the lowest and highest value.

    >>> spread([1.0, 3.0, 2.0])
    '2 (1-3)'
    """
    middle = statistics.median(values)
    return f"{middle:.{digits}g} ({min(values):.{digits}g}-{max(values):.{digits}g})"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A Markdown table under a heading."""
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *([note, ""] if note else [])])
