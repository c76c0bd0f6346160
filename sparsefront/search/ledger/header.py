"""The file study.json: which study a ledger belongs to, written once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsefront.errors import LedgerError
from sparsefront.search.ledger.disk import read_plain
from sparsefront.spaces.candidate import canonical_json

#: Version of everything below the ledger's folder; a reader refuses what it does not know.
FORMAT = 1


@dataclass(frozen=True)
class Header:
    """Content of study.json: the resolved study, its digest, and the versions that started it."""

    study: dict[str, object]
    digest: str
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        """Canonical JSON, closed by the digest of everything else in it."""
        body = {"format": FORMAT, "study": self.study, "digest": self.digest, "versions": self.versions}
        return (canonical_json({**body, "sha256": _seal(body)}) + "\n").encode()


def plain(study: Mapping[str, object]) -> dict[str, object]:
    """The study as JSON gives it back (tuples become lists), so that two of them can be compared."""
    try:
        value = json.loads(canonical_json(dict(study)).encode())
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"the study cannot be written as JSON ({error}): strings, finite numbers, booleans, None, lists and "
            "mappings are accepted; resolve the study before its ledger is opened"
        ) from None
    assert isinstance(value, dict)
    return value


def read_header(path: Path) -> Header:
    """Read and check study.json.

    Raises:
        LedgerError: if it is missing, garbled, changed after it was written, or of an unknown format.
    """
    try:
        content = read_plain(path)
    except (FileNotFoundError, NotADirectoryError):
        raise LedgerError(
            f"{path} is missing: {path.parent} holds no study; check the folder's name, or start a study there"
        ) from None
    advice = "a study's header never changes; restore it from a copy"
    try:
        body = json.loads(content)
        if not isinstance(body, dict):
            raise ValueError(f"a JSON object expected, found {type(body).__name__}")
        if body.get("format") != FORMAT:
            raise LedgerError(
                f"{path} has format={body.get('format')!r}: this version reads format {FORMAT}; "
                "read it with the version of sparsefront that wrote it"
            )
        header = Header(body["study"], body["digest"], body["versions"])
        if header.to_bytes() != content:
            raise ValueError("it was changed after it was written")
    except KeyError as error:
        raise LedgerError(f"{path} is garbled (no {error}): {advice}") from None
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{path} is garbled ({error}): {advice}") from None
    kinds = (header.study, dict), (header.digest, str), (header.versions, dict)
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise LedgerError(f"{path} is garbled (study, digest or versions has another type): {advice}")
    return header


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Lines `key: old -> new` for every dotted key whose value differs, sorted by key.

    >>> differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}, "d": "x"})
    ['a.b: 1 -> 2', 'd: (absent) -> "x"']
    """
    before, after = _dotted(old), _dotted(new)
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key, width=None) != _shown(after, key, width=None)
    ]


def _seal(body: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _dotted(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _dotted(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _shown(flat: Mapping[str, object], key: str, *, width: int | None = 60) -> str:
    text = canonical_json(flat[key]) if key in flat else "(absent)"
    return text if width is None or len(text) <= width else text[: width - 3] + "..."
