"""Checkpoints: the state of the lanes of a pack in one safetensors file, named by the sha256 of its content.

A file holds ``<candidate>/<part>/<tensor>`` for the parts ``weights`` and the optimiser's slots, each tensor at its
real size, so that a lane can go on in a pack of another shape; steps and curves are JSON in the file's header. What is
read has the content that its name promises, or is refused.

Those that a long training leaves between the ends of its segments lie in folders of their own (`OnTheWay`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sparsefront.errors import CheckpointError
from sparsefront.trainables.disk import write_durably

_NAME = re.compile(r"[0-9a-f]{64}")
_METADATA = "sparsefront"
#: Folder of the checkpoints that are left on the way.
_WAY = "way"
WEIGHTS = "weights"


@dataclass(frozen=True)
class LaneState:
    """Where one lane stands.

    Attributes:
        step: steps behind it.
        parts: 'weights' and the optimiser's slots, each float32 arrays by tensor at real size.
        curve_step: steps at which validation was measured.
        curve_val_loss: validation loss there, nats.
        curve_val_error: validation error there.
        passes: that its segment has cost so far, where it was left on the way; those of a segment that ended are in
            the ledger.
        flops: likewise.
        seconds: likewise.
    """

    step: int
    parts: Mapping[str, Mapping[str, npt.NDArray[np.float32]]]
    curve_step: list[int] = field(default_factory=list)
    curve_val_loss: list[float] = field(default_factory=list)
    curve_val_error: list[float] = field(default_factory=list)
    passes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0


def write_checkpoint(folder: Path, states: Mapping[str, LaneState]) -> str:
    """Write the states of lanes by candidate id, durably: returns the file's name, 64 hex digits.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    tensors = {
        f"{lane}/{part}/{name}": np.ascontiguousarray(array)
        for lane, state in states.items()
        for part, arrays in state.parts.items()
        for name, array in arrays.items()
    }
    about = {
        lane: {
            "step": state.step,
            "curve_step": state.curve_step,
            "curve_val_loss": state.curve_val_loss,
            "curve_val_error": state.curve_val_error,
            "passes": state.passes,
            "flops": state.flops,
            "seconds": state.seconds,
        }
        for lane, state in states.items()
    }
    content = save(tensors, metadata={_METADATA: json.dumps(about, sort_keys=True)})
    name = hashlib.sha256(content).hexdigest()
    path = checkpoint_path(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint={str(path)!r}: cannot be written ({error}); make room or correct the permissions, and resume"
        ) from error
    return name


def read_checkpoint(folder: Path, name: str, ids: Collection[str]) -> dict[str, LaneState]:
    """The states of some candidates of a checkpoint, by their id.

    Raises:
        CheckpointError: if the file is missing, is not what its name promises, or does not hold a candidate.
    """
    path = checkpoint_path(folder, name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint={str(path)!r}: cannot be read ({error}); its lanes go on from an earlier one"
        ) from error
    if hashlib.sha256(content).hexdigest() != name:
        raise CheckpointError(
            f"checkpoint={str(path)!r}: is damaged, for it does not have the sha256 that it is named by; its lanes "
            "go on from an earlier one"
        )
    parts: dict[str, dict[str, dict[str, npt.NDArray[np.float32]]]] = {lane: {} for lane in ids}
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()[_METADATA])
            # Of the many lanes of a file a pack goes on with a few.
            for key in file.keys():  # noqa: SIM118  (no mapping)
                lane, part, tensor = key.split("/", 2)
                if lane in parts:
                    parts[lane].setdefault(part, {})[tensor] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint={str(path)!r}: is no checkpoint of lanes ({error})") from error
    missing = [lane for lane in ids if lane not in about or WEIGHTS not in parts[lane]]
    if missing:
        raise CheckpointError(
            f"checkpoint={str(path)!r}: does not hold candidate {missing[0]!r}; its lanes go on from an earlier one"
        )
    return {lane: LaneState(parts=parts[lane], **about[lane]) for lane in ids}


def list_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder; other files are left out."""
    try:
        found = [path.stem for path in folder.iterdir() if path.suffix == ".safetensors"]
    except OSError:
        return []
    return sorted(name for name in found if _NAME.fullmatch(name))


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where a checkpoint lies."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"checkpoint={name!r}: a name of 64 hex digits is needed; the record of it is damaged")
    return folder / f"{name}.safetensors"


class OnTheWay:
    """Checkpoints that one lane leaves on its way to the end of a segment: the last one, and the one before it."""

    def __init__(self, folder: Path, lane: str, stop_step: int) -> None:
        """Of `lane`, whose name may hold anything, and whose segment ends at `stop_step`; touches nothing."""
        self._folder = folder / _WAY / f"{_digest(lane)}-{stop_step}"
        self._lane = lane
        self._last: str | None = None

    def write(self, state: LaneState) -> None:
        """Leave a checkpoint, durably.

        Raises:
            CheckpointError: if it cannot be written; those before are still there.
        """
        name = write_checkpoint(self._folder, {self._lane: state})
        kept, self._last = {name, self._last}, name
        for other in set(list_checkpoints(self._folder)) - kept:
            with contextlib.suppress(OSError):
                checkpoint_path(self._folder, other).unlink()

    def states(self) -> Iterator[LaneState]:
        """What can be gone on from, the latest first; what is damaged is passed over."""
        found = []
        for name in list_checkpoints(self._folder):
            with contextlib.suppress(OSError):  # another worker may remove it meanwhile
                found.append((checkpoint_path(self._folder, name).stat().st_mtime_ns, name))
        for _, name in sorted(found, reverse=True):
            with contextlib.suppress(CheckpointError):
                state = read_checkpoint(self._folder, name, [self._lane])[self._lane]
                self._last = name
                yield state

    @staticmethod
    def remove(folder: Path, lane: str, stop_step: int | None = None) -> None:
        """Remove what a lane left on its way to one step, or to any; never raises."""
        end = "*" if stop_step is None else str(stop_step)
        for left in (folder / _WAY).glob(f"{_digest(lane)}-{end}"):
            shutil.rmtree(left, ignore_errors=True)

    @staticmethod
    def exist(folder: Path) -> bool:
        """Whether any lane left any."""
        return (folder / _WAY).is_dir()

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove those of all lanes; never raises."""
        shutil.rmtree(folder / _WAY, ignore_errors=True)


def _digest(lane: str) -> str:
    return hashlib.blake2b(lane.encode(), digest_size=16).hexdigest()
