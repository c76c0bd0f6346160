"""Arrays that are slow to make, kept on disk and verified when read.

An entry is a manifest ``<name>-<key>.json`` and a safetensors file named by its content. Both are written under
another name and renamed, the manifest last: several processes may make the same entry at once, and a reader sees a
complete entry or none. A cache never stops a run: what cannot be read is made again, what cannot be written is not
kept, and either is said in a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from sparsefront.errors import ConfigError
from sparsefront.trainables.data.dataset import Arrays
from sparsefront.trainables.disk import write_durably

_SHA256 = re.compile(r"[0-9a-f]{64}")


class DatasetCacheWarning(UserWarning):
    """An entry of the cache was damaged, or the cache cannot be used; the data are right all the same."""


def default_cache() -> Path:
    """Folder of the cache unless told otherwise: ``sparsefront/data`` under ``$XDG_CACHE_HOME``, or ``~/.cache``.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG base directory specification asks.

    Raises:
        ConfigError: if the variable is not set and the user has no home directory.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            raise ConfigError(
                "XDG_CACHE_HOME is not an absolute path and the user has no home directory: generated data sets need a "
                "folder to be kept in; set XDG_CACHE_HOME"
            ) from None
    return root / "sparsefront" / "data"


def cached(name: str, identity: Mapping[str, object], make: Callable[[], Arrays], *, folder: Path) -> Arrays:
    """Arrays from the cache, or made and put there.

    Args:
        name: what the entry's files are called; a plain file name.
        identity: everything that the arrays depend on, as JSON values; the entry is addressed by its digest.
        make: makes the arrays when there is no valid entry.
        folder: folder of the cache; created if missing.

    Warns:
        DatasetCacheWarning: if the entry is damaged or unreadable (it is made again), or cannot be written.
    """
    identity = {"format": 1, "name": name, **identity}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    manifest_path = folder / f"{name}-{key}.json"
    try:
        arrays = _read(manifest_path, identity)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _warn(f"cache entry {manifest_path} is damaged or unreadable ({type(error).__name__}: {error}): made again")
    else:
        if arrays is not None:
            return arrays
    arrays = make()
    try:
        _write(manifest_path, identity, arrays)
    except OSError as error:
        _warn(f"cache {folder} cannot be written ({error}): data set {name!r} is not kept; make room or choose another")
    return arrays


def _warn(message: str) -> None:
    # 5 = the caller of load_dataset.
    warnings.warn(message, DatasetCacheWarning, stacklevel=5)


def _content_path(manifest_path: Path, sha256: str) -> Path:
    return manifest_path.with_name(f"{manifest_path.stem}-{sha256[:16]}.safetensors")


def _read(manifest_path: Path, identity: Mapping[str, object]) -> Arrays | None:
    """The arrays of an entry; None if there is no manifest, an error if what it promises is not there."""
    try:
        manifest = json.loads(manifest_path.read_bytes())
    except FileNotFoundError:
        return None
    if manifest["identity"] != identity:
        raise ValueError(f"made for {manifest['identity']}, asked for {identity}")
    sha256 = manifest["sha256"]
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256={sha256!r} is not 64 hex digits")
    content = _content_path(manifest_path, sha256).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("its safetensors file does not have the sha256 of the manifest")
    return dict(load_safetensors(content))


def _write(manifest_path: Path, identity: Mapping[str, object], arrays: Arrays) -> None:
    folder = manifest_path.parent
    folder.mkdir(parents=True, exist_ok=True)
    content = save_safetensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    manifest = {"identity": identity, "sha256": sha256}
    write_durably(_content_path(manifest_path, sha256), content)
    write_durably(manifest_path, json.dumps(manifest, indent=1, sort_keys=True).encode())
