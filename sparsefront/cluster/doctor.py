"""What may keep a study from running on this machine or cluster, found out before it is started."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import ray
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sparsefront.cluster.address import check_address, is_loopback
from sparsefront.cluster.ray_cluster import Resources, available_cores, ray_cluster
from sparsefront.spaces.candidate import Candidate
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import LaneOrder, Workshop

State = Literal["good", "warning", "bad"]

_GIB = 2**30
#: Below these a study of the size of examples/baseline.toml gets into trouble.
_LITTLE_MEMORY = 2 * _GIB
_LITTLE_DISK = _GIB
#: Ray's object store on this machine, which lives in shared memory.
_OBJECT_STORE = 256 << 20
_TRACKING_TIMEOUT_S = 2.0
_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: 'good', 'warning' (it may matter) or 'bad' (a study will not run)."""

    state: State
    what: str
    detail: str


def examine(address: str | None = None) -> list[Finding]:
    """Look at everything that a study needs; a bad environment is a finding, never an error.

    Args:
        address: of a running Ray cluster; None tries to start one on this machine, and ends it again.

    Returns:
        Findings, without passwords or tokens.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("versions", _versions),
        ("machine", _machine),
        ("device", _devices),
        ("training", _training),
        ("Ray", lambda: _ray(address)),
        ("MLflow", lambda: _mlflow(os.environ.get("MLFLOW_TRACKING_URI", ""))),
        ("telemetry", _telemetry),
    )
    findings: list[Finding] = []
    for what, check in checks:
        try:
            findings += check()
        except Exception as error:  # whatever is wrong with the environment is what was asked for
            findings.append(Finding("bad", what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return findings


def _versions() -> Iterator[Finding]:
    own = importlib.metadata.metadata("sparsefront")
    wanted, version = own["Requires-Python"] or "", platform.python_version()
    is_good = SpecifierSet(wanted).contains(version, prereleases=True)
    yield Finding("good" if is_good else "bad", "Python", f"{version} (needs {wanted})")
    right: list[str] = []
    for line in importlib.metadata.requires("sparsefront") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("bad", requirement.name, f"is not installed (needs {requirement.specifier})")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            right.append(f"{requirement.name} {found}")
        else:
            yield Finding("bad", requirement.name, f"{found} is installed (needs {requirement.specifier})")
    yield Finding("good", "packages", f"sparsefront {own['Version']} with {', '.join(right)}")


def _machine() -> Iterator[Finding]:
    yield Finding("good", "cores", f"{available_cores()} of {os.cpu_count()} usable")
    memory = _available_memory()
    yield Finding("good" if memory >= _LITTLE_MEMORY else "warning", "memory", f"{memory / _GIB:.1f} GiB available")
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    state: State = "good" if free >= _LITTLE_DISK else "warning"
    if not os.access(folder, os.W_OK):
        yield Finding("warning", "disk", f"{folder} cannot be written; run studies with --dir elsewhere")
    else:
        yield Finding(state, "disk", f"{free / _GIB:.1f} GiB free in {folder}")
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    enough = shared >= _OBJECT_STORE
    advice = "" if enough else f"; Ray wants {_OBJECT_STORE >> 20} MiB and is slow without (containers: --shm-size)"
    yield Finding("good" if enough else "warning", "shared memory", f"{shared / _GIB:.1f} GiB free in /dev/shm{advice}")


def _available_memory() -> float:
    """Bytes, of the machine."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return 0.0


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("good", "device", f"CPU; torch {torch.__version__} sees no CUDA device")
        return
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        yield Finding("good", "device", f"cuda:{i} {name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")


def _training() -> Iterator[Finding]:
    """Train a pack of three small networks in this process."""
    dataset = load_dataset("digits")
    recipe = Recipe(
        seed=1,
        model="mlp",
        model_options={"widths": [16]},
        validation_fraction=0.2,
        mask_kind="node",
        allocation="uniform",
        probe_size=64,
        schedule=Schedule("adam", steps=20, batch_size=64, eval_every=20),
        hyper=Hyperparameters(lr=0.01),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    orders = [LaneOrder(Candidate(0, 0.5, "masked", draw=i)) for i in range(3)]
    trained = [one for ended in Workshop(recipe, dataset, device).train(orders) for one in ended]
    outcomes = {one.outcome for one in trained}
    if outcomes == {"completed"}:
        yield Finding("good", "training", f"a pack of {len(trained)} networks trained on {device}")
    else:
        reason = next((one.error for one in trained if one.error), None) or "no reason given"
        yield Finding("bad", "training", f"a pack on {device} came to {', '.join(sorted(outcomes))}: {reason[-300:]}")


def _ray(address: str | None) -> Iterator[Finding]:
    if address is not None:
        check_address(address)
    with ray_cluster(Resources(address, "cpu", 1 if address is None else None, 0)):
        total = ray.cluster_resources()
        size = f"{len(ray.nodes())} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    where = "starts on this machine, on loopback" if address is None else f"{address} answers: {size}"
    yield Finding("good", "Ray", f"{ray.__version__} {where}")
    named = os.environ.get("RAY_ADDRESS")
    if named and address is None:
        yield Finding("warning", "RAY_ADDRESS", f"is set to {named}: ignored, pass --address to use that cluster")
    if _ADDRESS_FILE.exists() and address is None:
        detail = f"{_ADDRESS_FILE} names a Ray cluster of this machine: ignored, pass --address auto to use it"
        yield Finding("warning", "other cluster", detail)


def _mlflow(uri: str) -> Iterator[Finding]:
    if not uri:
        yield Finding("good", "MLflow", "a SQLite store in each folder of a study (MLFLOW_TRACKING_URI is not set)")
        return
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        # Any other address may hold a password, which is nobody's business here.
        yield Finding("good", "MLflow", f"MLFLOW_TRACKING_URI names a store of kind {parts.scheme or 'folder'!r}")
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    shown = f"{parts.scheme}://{parts.hostname}:{port}"
    try:
        socket.create_connection((parts.hostname, port), timeout=_TRACKING_TIMEOUT_S).close()
    except OSError as error:
        yield Finding("warning", "MLflow", f"{shown} cannot be reached ({error}); studies run, 'record' them later")
        return
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        yield Finding("warning", "MLflow", f"{shown} answers, but http is clear text: prefer https beyond this machine")
    else:
        yield Finding("good", "MLflow", f"{shown} answers")


def _telemetry() -> Iterator[Finding]:
    """Ray's and MLflow's are turned off by Sparsefront, unless the user turned them on."""
    on = [
        name
        for name, sends in (("RAY_USAGE_STATS_ENABLED", "1"), ("MLFLOW_DISABLE_TELEMETRY", "false"))
        if os.environ.get(name, "").lower() == sends
    ]
    if on:
        yield Finding("warning", "telemetry", f"turned on by {' and '.join(on)}")
    else:
        yield Finding("good", "telemetry", "Ray's and MLflow's are off")
