"""Connecting to a Ray cluster, or starting one of this process's own that ends with it, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from sparsefront import errors
from sparsefront.cluster.wording import one_line
from sparsefront.errors import ConfigError, SparsefrontError

_KNOCK_S = 10.0
#: Folders of this program in the system's temporary folder; also those of drivers that were killed.
_SCRATCH_PREFIX = "sparsefront-run-"
#: Unix sockets below such a folder must stay under 107 characters: the system's short temporary folder.
_SCRATCH_PLACE = Path("/tmp")

#: Set before Ray Tune is used; the user's own values win.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    # Tune's own handler waits for the workers; `_interrupts` does not have to.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's snapshots are never read back; the ledger is the record.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}


#: Loads what a worker needs.
_WORKER_MODULE = "sparsefront.cluster.ahead"
#: Workers that load it ahead, 240 MB each, whether there is work for all of them or not.
_MOST_AHEAD = 16


@dataclass(frozen=True)
class Resources:
    """Where a study runs.

    Attributes:
        address: of a running Ray cluster, or None for one of this process's own, on loopback, ended with it.
        device: 'cpu' or 'cuda'.
        workers: packs at once; None = as many as the cluster has room for.
        max_retries: how often work is run again after its worker was lost, once it is a single candidate.
        cpus_per_trial: cores of one pack.
        gpus_per_trial: GPUs of one pack, if the device is 'cuda'; a fraction shares one, without any isolation.
    """

    address: str | None
    device: str
    workers: int | None
    max_retries: int
    cpus_per_trial: int = 1
    gpus_per_trial: float = 1.0

    def __str__(self) -> str:
        """What one pack occupies, as messages name it."""
        return " and ".join(f"{name.upper()}: {each:g}" for name, each in self.of_trial.items())

    @property
    def of_trial(self) -> dict[str, float]:
        """What one pack occupies, as Ray Tune is asked for it."""
        gpus = {"gpu": self.gpus_per_trial} if self.device == "cuda" else {}
        return {"cpu": self.cpus_per_trial, **gpus}

    def capacity(self) -> int:
        """Packs that the cluster has room for."""
        return sum(self.room(node["Resources"]) for node in ray.nodes() if node["Alive"])

    def room(self, found: Mapping[str, float]) -> int:
        """Packs that one machine has room for, of its resources by Ray's names: none lies on two of them.

        >>> half = Resources(None, "cuda", None, 0, gpus_per_trial=0.5)
        >>> half.room({"CPU": 16.0, "GPU": 2.0}), half.room({"CPU": 3.0, "GPU": 2.0}), half.room({"CPU": 16.0})
        (4, 3, 0)

        A share of a GPU lies on one GPU:

        >>> Resources(None, "cuda", None, 0, gpus_per_trial=0.6).room({"CPU": 16.0, "GPU": 2.0})
        2
        """
        cpus = int(found.get("CPU", 0.0) / self.cpus_per_trial)
        if self.device != "cuda":
            return cpus
        gpus, each = found.get("GPU", 0.0), self.gpus_per_trial
        return min(cpus, int(gpus) * int(1 / each + 1e-9) if each < 1 else int(gpus / each))


@contextlib.contextmanager
def ray_cluster(resources: Resources) -> Iterator[int]:
    """Connect to a cluster, or start one; yields the number of packs that can run at once.

    A cluster started here listens on loopback, has its own temporary folder, and is ended by `ray.shutdown`; its
    processes also end by themselves when this one is killed.

    Raises:
        ConfigError: if no cluster answers at the address, or it has not what the study needs.
        SparsefrontError: if no cluster could be started here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    with contextlib.ExitStack() as stack:
        if resources.address is not None:
            try:
                _knock(resources.address)
                ray.init(address=resources.address, **quiet)
            except (OSError, RayError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"address={resources.address!r}: no Ray cluster could be joined there ({one_line(error)}); "
                    "'auto' or the HOST:PORT of a running head is accepted, from a machine with the same Ray and Python"
                ) from error
        else:
            folder = stack.enter_context(scratch_folder())
            stack.enter_context(_caretaker(folder))
            try:
                with _loaded_ahead(resources):
                    ray.init(
                        address="local",
                        num_cpus=_local_cores(resources),
                        include_dashboard=False,
                        # Ray opens this folder to everyone; the one around it is this user's alone.
                        _temp_dir=str(folder / "r"),
                        _node_ip_address="127.0.0.1",
                        object_store_memory=256 << 20,
                        **quiet,
                    )
            except (ConnectionError, RayError, RuntimeError, ValueError, OSError) as error:
                raise SparsefrontError(
                    f"Ray could not be started on this machine ({one_line(error)}): free memory, /dev/shm and space "
                    f"in {_SCRATCH_PLACE}, or give the --address of a running cluster"
                ) from error
        stack.callback(ray.shutdown)
        slots = resources.capacity()
        if slots < 1:
            raise ConfigError(
                f"device={resources.device!r}: no machine of the cluster has what one pack takes ({resources}); lower "
                "compute.cpus_per_trial or compute.gpus_per_trial, use the other device, or another address"
            )
        yield min(slots, resources.workers or slots)


@contextlib.contextmanager
def _loaded_ahead(resources: Resources) -> Iterator[None]:
    """Let the worker processes of a cluster that is started here load their modules while the driver gets ready.

    Ray starts one with the cluster for every core that it offers: not where a worker has several of them or a GPU,
    where they would be many, or where a new process finds another copy of this program.
    """
    ahead = {"RAY_preload_python_modules": _WORKER_MODULE, "OMP_NUM_THREADS": "1"}  # Ray would set the latter too late
    n_workers = resources.workers or available_cores()
    is_one_each = resources.device == "cpu" and resources.cpus_per_trial == 1
    if not is_one_each or n_workers > _MOST_AHEAD or not _is_found_afresh():
        yield
        return
    ours = [name for name in ahead if name not in os.environ]
    os.environ.update({name: ahead[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _is_found_afresh() -> bool:
    """Whether a new process of this Python would import the program from where this one has it."""
    asked = "import importlib.util as u; s = u.find_spec('sparsefront'); print(s and s.origin)"
    found = subprocess.run([sys.executable, "-P", "-c", asked], capture_output=True, text=True, check=False)
    return found.stdout.strip() == str(Path(errors.__file__).with_name("__init__.py"))


def _knock(address: str) -> None:
    """See whether anyone listens at HOST:PORT: Ray itself would try for a minute."""
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _local_cores(resources: Resources) -> int | None:
    """Cores that a cluster of one's own offers, None for all; those of `workers` packs, if there are to be so many."""
    if resources.device == "cuda":
        return None
    workers = resources.workers or max(1, available_cores() // resources.cpus_per_trial)
    return workers * resources.cpus_per_trial


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that only this user can enter; those left behind by killed drivers are removed first.

    A folder is in use as long as its lock is held, and the lock ends with its process.
    """
    for left in _SCRATCH_PLACE.glob(f"{_SCRATCH_PREFIX}*"):
        _remove_unless_locked(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=_SCRATCH_PLACE))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # another driver may have taken it for one left behind before it was locked
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_unless_locked(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, not a folder, or another user's
        return
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use
        pass
    finally:
        os.close(lock)


#: Waits until the driver is gone, however it went (its end of the pipe is closed), and clears away what it left.
_CARETAKER = r"""
import os, shutil, signal, sys, time

folder = sys.argv[1]

def processes_of_ray_with_files_in_the_folder():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read(4096)
            if not command.startswith(b"ray::") and b"/ray/" not in command:
                continue
            names = os.listdir(f"/proc/{pid}/fd")
            if any(os.readlink(f"/proc/{pid}/fd/{name}").startswith(folder + "/") for name in names):
                yield int(pid)
        except OSError:  # ended meanwhile, or another user's
            pass

sys.stdin.buffer.read()
for _ in range(100):
    left = list(processes_of_ray_with_files_in_the_folder())
    if not left:
        break
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.1)
shutil.rmtree(folder, ignore_errors=True)
"""


@contextlib.contextmanager
def _caretaker(folder: Path) -> Iterator[None]:
    """See to it that no process of the cluster with its files in `folder` outlives this one, even if it is killed.

    Ray's own main processes end with the driver, but its agents stay for a minute when they cannot report that.
    """
    caretaker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CARETAKER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    try:
        yield
    finally:
        assert caretaker.stdin is not None
        caretaker.stdin.close()
        caretaker.wait()
