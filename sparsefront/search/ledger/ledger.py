"""The ledger of a study: rows are committed to a folder, in order, and never change.

```
DIR/study.json          the resolved study, its digest and versions; written once
DIR/ledger/*.parquet    sealed parts, each named by the commits it covers and its digest
DIR/blobs/ab/abcd...    immutable bytes by digest: masks, checkpoints
DIR/lock                held by the one writer
```

Only names below DIR are checked for links; DIR itself may be one. A ledger object belongs to one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.errors import ConfigError, LedgerError, did_you_mean
from sparsefront.search.ledger.disk import Disk, lock, read_plain, require_folder, write_atomically
from sparsefront.search.ledger.header import Header, differences, plain, read_header
from sparsefront.search.ledger.parts import (
    TEMPORARY,
    Arrangement,
    Part,
    PartName,
    arrange,
    list_parts,
    publish,
    regroup,
    split,
    stage,
)
from sparsefront.search.schema import KEY, schema_of

#: Neighbours of one tier that are merged into one part of the next.
FAN_IN = 32
#: A part of this size is never merged again, and a merge stops when it has reached it: bounds the pause of a commit.
FULL_BYTES = 64 * 2**20

_LOG = logging.getLogger(__name__)
_BLOB = re.compile(r"[0-9a-f]{32}")
_READ_ATTEMPTS = 100
#: Of the lines of `differences`: other data, which are the user's to change back.
_OF_DATA = "resolved.data_digest:"


class Ledger:
    """The append-only record of a study, on disk; nothing of it but the names of its parts is held in memory."""

    def __init__(
        self, folder: Path, header: Header, parts: Sequence[Part], *, writer: FileIO | None, disk: Disk
    ) -> None:
        """Not for callers: use `create`, `open` or `read`."""
        self.folder = folder
        self.study = header.study
        self.study_digest = header.digest
        self.versions = header.versions
        self.schema = _schema(header)
        self._parts = list(parts)
        self._writer = writer
        self._disk = disk
        self._state = "open"

    @classmethod
    def create(
        cls,
        folder: Path,
        study: Mapping[str, object],
        *,
        digest: str,
        versions: Mapping[str, str],
        disk: Disk | None = None,
    ) -> Ledger:
        """Start the ledger of a study in a new or existing folder, and become its writer.

        Args:
            folder: the study's folder; may hold other files, but no ledger.
            study: the resolved study, as JSON can hold it.
            digest: its digest; a later `open` with another one is refused.
            versions: what it was started with, for the record.
            disk: where durable effects go.

        Raises:
            LedgerError: if the folder already holds a study, or another driver is starting one.
        """
        disk = disk or Disk()
        header = Header(plain(study), digest, dict(versions))
        with _disk_errors(folder, "started"):
            return cls._create(folder, header, disk)

    @classmethod
    def _create(cls, folder: Path, header: Header, disk: Disk) -> Ledger:
        missing = [parent for parent in folder.parents if not parent.exists()]
        for new in (*reversed(missing), folder):
            disk.make_folder(new)
        writer = lock(folder)
        try:
            path = folder / "study.json"
            if os.path.lexists(path):
                raise LedgerError(
                    f"{folder} already holds a study: a ledger is created once; open it to resume, or choose "
                    "another folder"
                )
            for name in ("ledger", "blobs"):
                disk.make_folder(folder / name)
                require_folder(folder / name)
            if list_parts(folder / "ledger"):
                raise LedgerError(
                    f"{path} is missing but {folder / 'ledger'} holds commits: restore study.json from a copy, "
                    "or choose another folder"
                )
            _remove_temporaries(disk, folder)
            write_atomically(disk, path, [header.to_bytes()], temporary=folder / f"study.json.{TEMPORARY}")
        except BaseException:
            writer.close()
            raise
        return cls(folder, header, (), writer=writer, disk=disk)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        digest: str | None = None,
        study: Mapping[str, object] | None = None,
        disk: Disk | None = None,
    ) -> Ledger:
        """Open an existing ledger as its one writer: verify all of it, then clear away what a crash left behind.

        Args:
            folder: the study's folder.
            digest: digest of the study about to go on; None accepts whatever study is there.
            study: that study, to list the keys that differ.
            disk: where durable effects go.

        Raises:
            LedgerError: if the ledger is damaged, belongs to another study, or has a writer.
        """
        with _disk_errors(folder, "opened"):
            return cls._open(folder, digest, study, disk or Disk())

    @classmethod
    def _open(cls, folder: Path, digest: str | None, study: Mapping[str, object] | None, disk: Disk) -> Ledger:
        read_header(folder / "study.json")  # before the lock, which would leave a file in a folder without a study
        writer = lock(folder)
        try:
            header = read_header(folder / "study.json")
            if digest is not None and digest != header.digest:
                raise LedgerError(_other_study(folder, header, digest, study))
            parts_folder = folder / "ledger"
            require_folder(parts_folder)
            require_folder(folder / "blobs")
            sizes = list_parts(parts_folder)
            arrangement = arrange(parts_folder, sizes)
            schema = _schema(header)
            parts = [Part.open(parts_folder, name, schema) for name in arrangement.kept]
            _verify(parts)
            # Only now: nothing is removed from a ledger that is refused.
            _remove_temporaries(disk, folder)
            _trim(disk, parts_folder, arrangement, sizes)
        except BaseException:
            writer.close()
            raise
        return cls(folder, header, parts, writer=writer, disk=disk)

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """Open a ledger for reading: a snapshot of what is committed now; takes no lock and changes nothing.

        Safe beside a live writer. The snapshot does not grow; read again to see later commits.

        Raises:
            LedgerError: if the ledger is damaged.
        """
        with _disk_errors(folder, "read"):
            header = read_header(folder / "study.json")
            parts_folder = folder / "ledger"
            require_folder(parts_folder)
            parts = _snapshot(parts_folder, _schema(header))
            _verify(parts)
        return cls(folder, header, parts, writer=None, disk=Disk())

    @property
    def n_rows(self) -> int:
        """Rows committed."""
        return sum(part.name.n_rows for part in self._parts)

    @property
    def n_commits(self) -> int:
        """Commits made; the number of the next one."""
        return self._parts[-1].name.last + 1 if self._parts else 0

    @property
    def n_parts(self) -> int:
        """Files that hold them."""
        return len(self._parts)

    @property
    def n_bytes(self) -> int:
        """Bytes in these files."""
        return sum(part.name.n_bytes for part in self._parts)

    def commit(self, rows: pa.Table | pa.RecordBatch) -> int:
        """Append rows; they are durable when this returns. Now and then also merges small parts (see `compact`).

        Args:
            rows: one or more rows, with exactly the columns of `schema`.

        Returns:
            The number of the commit, counted from 0.

        Raises:
            LedgerError: if the ledger is not open for writing, the rows do not fit, or the disk fails.
        """
        self._require_writer()
        table = _checked(rows, self.schema)
        number = self.n_commits
        folder = self.folder / "ledger"
        # Pessimistic until it is over: after an interrupt or a failed sync nobody knows what the disk holds.
        self._state = "failed"
        try:
            name = stage(
                self._disk,
                folder,
                split(table),
                schema=self.schema,
                first=number,
                last=number,
                n_rows=table.num_rows,
                merged=False,
            )
        except OSError as error:
            self._state = "open"
            raise LedgerError(
                f"commit {number} ({table.num_rows} rows) to {self.folder} failed ({error}): nothing was recorded and "
                "earlier commits are safe; free the disk and commit again"
            ) from error
        try:
            part = publish(self._disk, folder, name, self.schema)
        except OSError as error:
            raise LedgerError(
                f"commit {number} ({table.num_rows} rows) to {self.folder} may or may not be recorded ({error}): "
                "earlier commits are safe; repair the disk and open the ledger again"
            ) from error
        self._state = "open"
        self._parts.append(part)
        self._merge_tiers()
        return number

    def scan(
        self, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Rows in the order they were committed, in batches; memory stays at a few row groups.

        Args:
            columns: names of the columns wanted, in this order; None for all.
            where: predicate over any columns; pushed down, so that whole row groups are skipped.

        Returns:
            Batches without empty ones; what is committed after this call is not among them.

        Raises:
            ConfigError: if a column does not exist.
        """
        self._require_open()
        parts = tuple(self._parts)
        names = None if columns is None else [_known_column(name, self.schema) for name in columns]
        return (batch for part in parts for batch in part.batches(columns=names, where=where))

    def table(self, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """The same rows as `scan`, in memory as one table."""
        batches = list(self.scan(columns=columns, where=where))
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches(batches, schema=schema)

    def duplicates(self) -> pa.Table:
        """Keys that more than one row has, with their `count`; empty in a sound study.

        A key is `sparsefront.search.schema.KEY`. Holds the key columns of the whole ledger in memory.
        """
        counted = self.table(columns=KEY).group_by(list(KEY)).aggregate([([], "count_all")])
        return counted.filter(pc.field("count_all") > 1).rename_columns([*KEY, "count"])

    def put_blob(self, data: bytes) -> str:
        """Store immutable bytes, durable when this returns; the same bytes are stored once.

        Returns:
            Their digest: the first 32 hex digits of their sha256.

        Raises:
            LedgerError: if the ledger is not open for writing, or the disk fails.
        """
        self._require_writer()
        digest = hashlib.sha256(data).hexdigest()[:32]
        path = self._blob_path(digest)
        try:
            self._disk.make_folder(path.parent)
            require_folder(path.parent)
            if _holds(path, data):
                self._disk.sync_folder(path.parent)
            else:
                write_atomically(self._disk, path, [data], temporary=self.folder / "blobs" / TEMPORARY)
        except LedgerError:
            raise
        except OSError as error:
            raise LedgerError(
                f"blob {digest} ({len(data)} bytes) could not be stored in {self.folder} ({error}): "
                "repair or free the disk and run the same command again"
            ) from error
        return digest

    def get_blob(self, digest: str) -> bytes:
        """Bytes stored under a digest, verified.

        Raises:
            LedgerError: if there are none, or they do not match the digest.
        """
        self._require_open()
        if not _BLOB.fullmatch(digest):
            raise LedgerError(f"digest={digest!r} names no blob: 32 lower-case hex digits are accepted")
        path = self._blob_path(digest)
        require_folder(self.folder / "blobs")
        try:
            if path.parent.is_symlink():
                require_folder(path.parent)
            data = read_plain(path)
        except FileNotFoundError:
            raise LedgerError(f"{path} is missing: restore the blob from a copy, or run the study again") from None
        if hashlib.sha256(data).hexdigest()[:32] != digest:
            raise LedgerError(f"{path} does not match its name: blobs never change; restore the file from a copy")
        return data

    def compact(self) -> None:
        """Merge all neighbours into as few parts as their size allows.

        `commit` already keeps parts few: every `FAN_IN` neighbours of a tier become one part of the next tier, so
        that a row is rewritten at most a few times. A merged part is durable before those it replaces are removed.

        Raises:
            LedgerError: if the ledger is not open for writing, or the disk fails.
        """
        self._require_writer()
        start = 0
        while start < len(self._parts):
            stop, n_bytes = start, 0
            while stop < len(self._parts) and n_bytes < FULL_BYTES and not _is_full(self._parts[stop]):
                n_bytes += self._parts[stop].name.n_bytes
                stop += 1
            if stop - start > 1:
                self._merge(start, stop)
                start += 1
            else:
                start = max(stop, start + 1)

    def close(self) -> None:
        """Give back the lock; what is committed stays. A closed ledger cannot be used; closing twice is harmless."""
        self._state = "closed"
        self._parts.clear()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _merge_tiers(self) -> None:
        while True:
            run = 0
            n_bytes = 0
            tier = _tier(self._parts[-1])
            for part in reversed(self._parts):
                if _tier(part) != tier or _is_full(part):
                    break
                run += 1
                n_bytes += part.name.n_bytes
            if run < 2 or (run < FAN_IN and n_bytes < FULL_BYTES):
                return
            try:
                self._merge(len(self._parts) - run, len(self._parts))
            except LedgerError as error:
                if self._state != "open":
                    raise
                # The rows are safe where they are; the next commit tries again.
                _LOG.warning("%s", error)
                return

    def _merge(self, start: int, stop: int) -> None:
        old = self._parts[start:stop]
        folder = self.folder / "ledger"
        self._state = "failed"
        try:
            name = stage(
                self._disk,
                folder,
                regroup(old, self.schema),
                schema=self.schema,
                first=old[0].name.first,
                last=old[-1].name.last,
                n_rows=sum(part.name.n_rows for part in old),
                merged=True,
            )
        except LedgerError:
            raise  # a damaged part
        except OSError as error:
            self._state = "open"
            raise LedgerError(
                f"merging {len(old)} parts of {self.folder} failed ({error}): nothing is lost, they stay as they are; "
                "free the disk"
            ) from error
        try:
            merged = publish(self._disk, folder, name, self.schema)
            self._parts[start:stop] = [merged]
            # Ascending: a reader whose listing missed one of these finds those before it gone, and lists again.
            for part in old:
                self._disk.unlink(part.path)
        except OSError as error:
            raise LedgerError(
                f"merging {len(old)} parts of {self.folder} was cut ({error}): no row is lost; "
                "repair the disk and open the ledger again"
            ) from error
        self._state = "open"

    def _blob_path(self, digest: str) -> Path:
        return self.folder / "blobs" / digest[:2] / digest

    def _require_open(self) -> None:
        if self._state == "closed":
            raise LedgerError(f"the ledger of {self.folder} is closed: open it again")

    def _require_writer(self) -> None:
        self._require_open()
        if self._writer is None:
            raise LedgerError(f"{self.folder} was opened for reading: only the writer (Ledger.open) can add to it")
        if self._state == "failed":
            raise LedgerError(f"an earlier commit to {self.folder} failed: open the ledger again to see what is there")


def _tier(part: Part) -> int:
    """How often FAN_IN divides the commits of a part: 0 for a commit, 1 from FAN_IN commits on, ..."""
    tier, n_commits = 0, part.name.n_commits
    while n_commits >= FAN_IN:
        tier, n_commits = tier + 1, n_commits // FAN_IN
    return tier


def _is_full(part: Part) -> bool:
    return part.name.n_bytes >= FULL_BYTES


def _schema(header: Header) -> pa.Schema:
    try:
        return schema_of(header.study)
    except (AssertionError, KeyError) as error:
        raise LedgerError(
            f"study.json names columns of an unknown kind ({error}): another version wrote it; read it with that one"
        ) from None


@contextlib.contextmanager
def _disk_errors(folder: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except LedgerError:
        raise
    except OSError as error:
        raise LedgerError(
            f"{folder} could not be {doing} ({error}): a readable folder is needed, writable for the driver; "
            "check its path, its permissions and the disk"
        ) from error


def _verify(parts: Sequence[Part]) -> None:
    # Hashing releases the interpreter's lock; below the bound (50 ms of hashing) threads cost more than they save.
    n_bytes = sum(part.name.n_bytes for part in parts)
    with ThreadPoolExecutor(max_workers=4 if n_bytes > 64 * 2**20 else 1) as pool:
        for _ in pool.map(Part.verify, parts):
            pass


def _snapshot(folder: Path, schema: pa.Schema) -> list[Part]:
    """Open the parts that count, beside a writer that may add and merge meanwhile.

    A listing is not atomic: it may miss both a merged part and those it replaces. It is believed when a second one,
    made after all its parts were opened, is the same.
    """
    opened: dict[PartName, Part] = {}
    sizes = list_parts(folder)
    for _ in range(_READ_ATTEMPTS):
        refusal: LedgerError | None = None
        kept: tuple[PartName, ...] = ()
        try:
            kept = arrange(folder, sizes).kept
            opened = {name: opened.get(name) or Part.open(folder, name, schema) for name in kept}
        except LedgerError as error:
            refusal = error
        except FileNotFoundError:
            sizes = list_parts(folder)
            continue
        again = list_parts(folder)
        if again == sizes:
            if refusal is not None:
                raise refusal
            return [opened[name] for name in kept]
        sizes = again
    raise LedgerError(f"{folder} kept changing while it was read ({_READ_ATTEMPTS} attempts): try again")


def _remove_temporaries(disk: Disk, folder: Path) -> None:
    for path in (folder / f"study.json.{TEMPORARY}", folder / "ledger" / TEMPORARY, folder / "blobs" / TEMPORARY):
        if os.path.lexists(path):
            _LOG.warning("%s was being written when a driver died: removed", path)
            disk.unlink(path)


def _trim(disk: Disk, folder: Path, arrangement: Arrangement, sizes: Mapping[PartName, int]) -> None:
    for name in arrangement.torn:
        _LOG.warning(
            "%s is torn: %d of %d bytes; removed, its %d rows will be recorded again",
            folder / str(name),
            sizes[name],
            name.n_bytes,
            name.n_rows,
        )
    for name in (*arrangement.superseded, *arrangement.torn):
        disk.unlink(folder / str(name))


def _checked(rows: pa.Table | pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
    if not table.schema.equals(schema):
        difference = _schema_difference(table.schema, schema)
        raise LedgerError(f"rows do not have the ledger's columns ({difference}): see sparsefront.search.schema")
    if table.num_rows == 0:
        raise LedgerError("n_rows=0: a commit holds at least one row; leave empty commits out")
    table.validate()
    return table


def _schema_difference(schema: pa.Schema, accepted: pa.Schema) -> str:
    unknown = [name for name in schema.names if name not in accepted.names]
    lacking = [name for name in accepted.names if name not in schema.names]
    other = [
        f"{field.name} is {field.type} instead of {accepted.field(field.name).type}"
        for field in schema
        if schema.names.count(field.name) == 1
        and field.name in accepted.names
        and field.type != accepted.field(field.name).type
    ]
    found = [f"unknown: {', '.join(unknown)}"] if unknown else []
    found += [f"missing: {', '.join(lacking)}"] if lacking else []
    return "; ".join(found + other) or "in another order, repeated, or not nullable"


def _known_column(name: str, schema: pa.Schema) -> str:
    if name not in schema.names:
        columns = ", ".join(schema.names)
        raise ConfigError(
            f"column={name!r} is not in the ledger: columns are {columns}{did_you_mean(name, schema.names)}"
        )
    return name


def _other_study(folder: Path, header: Header, digest: str, study: Mapping[str, object] | None) -> str:
    changed = [] if study is None else differences(header.study, plain(study))
    shown = ", ".join(changed[:12]) + (f", and {len(changed) - 12} more" if len(changed) > 12 else "")
    keys = f"changed: {shown}" if changed else f"digest {digest[:12]} where {header.digest[:12]} was started"
    # What the program made of the study, but for the data that it was given.
    if changed and all(line.startswith("resolved.") and not line.startswith(_OF_DATA) for line in changed):
        now, then = importlib.metadata.version("sparsefront"), header.versions.get("sparsefront", "unknown")
        both = f"started by sparsefront {then}, this is {now}" + (" as well, but another" if then == now else "")
        return (
            f"{folder} was started by a version of the program, or of modules of its own, that does this study in "
            f"another way ({both}; {keys}): the study itself did not change, and "
            "a ledger goes on as it was started; resume it with the version that started it, or start the study in "
            "another folder (--dir); what it holds can still be read"
        )
    return (
        f"{folder} holds another study ({keys}): a ledger belongs to one study; undo the change to resume, or start "
        "the new study in another folder (--dir)"
    )


def _holds(path: Path, data: bytes) -> bool:
    try:
        same = read_plain(path) == data
    except FileNotFoundError:
        return False
    if not same:
        _LOG.warning("%s does not match its name: written again", path)
    return same
