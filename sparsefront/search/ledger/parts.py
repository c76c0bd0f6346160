"""Sealed parts: immutable Parquet files that name what they hold, and how a folder of them fits together.

A part is called ``<first>-<last>-<rows>-<bytes>-<sha256[:32]>.parquet``: the commits that it covers (both included),
and enough to verify it. Only this module imports PyArrow's file formats.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sparsefront.errors import LedgerError
from sparsefront.search.ledger.disk import Disk, require_plain, write_atomically
from sparsefront.search.schema import LATER

#: The one temporary name in a folder; one is enough for one writer.
TEMPORARY = "incoming.tmp"
#: Bounds of a row group: what a merge or a scan holds in memory at a time.
GROUP_ROWS = 32_768
GROUP_BYTES = 32 * 2**20

_NAME = re.compile(r"(\d{8,})-(\d{8,})-(\d+)-(\d+)-([0-9a-f]{32})\.parquet")
_HASH_BYTES = 4 * 2**20
# No dictionaries and no statistics in a fresh commit: they double its cost, and compaction soon rewrites it.
_FRESH = {"compression": "lz4", "use_dictionary": False, "write_statistics": False, "store_schema": False}
# Values that repeat within a row group. Ids, digests and measurements do not, and a dictionary would only cost.
_REPEATED = [
    *("stage", "arm", "replicate", "target_sparsity", "outcome", "mask_kind", "n_params", "macs", "steps", "optimizer"),
    *("batch_size", "passes", "flops", "pack", "device", "error", "committed_at", "curve_step.list.element"),
]
# Statistics let a scan skip row groups. Not on measurements: NaN is left out of a column's minimum and maximum,
# so that a filter which NaN meets (a negated comparison) would lose rows.
_PRUNABLE = ["stage", "arm", "replicate", "target_sparsity", "slot", "outcome", "rung", "steps", "n_params", "macs"]
_MERGED = {
    "compression": "zstd",
    "use_dictionary": _REPEATED,
    "write_statistics": _PRUNABLE,
    "store_schema": False,
}
# Without read-ahead of whole files: memory stays at a few row groups.
_PARQUET = pads.ParquetFileFormat(default_fragment_scan_options=pads.ParquetFragmentScanOptions(pre_buffer=False))


@dataclass(frozen=True, order=True)
class PartName:
    """What a part's file name says about it.

    >>> str(PartName(first=0, last=31, n_rows=64, n_bytes=900, digest="0" * 32))
    '00000000-00000031-64-900-00000000000000000000000000000000.parquet'
    """

    first: int
    last: int
    n_rows: int
    n_bytes: int
    digest: str

    def __str__(self) -> str:
        return f"{self.first:08d}-{self.last:08d}-{self.n_rows}-{self.n_bytes}-{self.digest}.parquet"

    @classmethod
    def parse(cls, text: str) -> PartName | None:
        """The name that `text` spells, or None if no part is called so.

        >>> PartName.parse("00000000-00000000-1-9-" + "a" * 32 + ".parquet").n_bytes
        9
        >>> PartName.parse("00000001-00000000-1-9-" + "a" * 32 + ".parquet") is None  # ends before it begins
        True
        """
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        name = cls(int(match[1]), int(match[2]), int(match[3]), int(match[4]), match[5])
        return name if str(name) == text and name.first <= name.last and name.n_rows > 0 else None

    @property
    def n_commits(self) -> int:
        """Commits that the part covers."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Part:
    """A part held open: it stays readable when compaction removes its name."""

    name: PartName
    path: Path
    file: pa.OSFile
    schema: pa.Schema

    @classmethod
    def open(cls, folder: Path, name: PartName, schema: pa.Schema) -> Part:
        """Open a part for reading; nothing of its content is checked yet.

        Raises:
            FileNotFoundError: if it has vanished (a compaction beside us).
            LedgerError: if a link or anything else is in its place.
        """
        path = folder / str(name)
        require_plain(path, path.lstat())
        file = pa.OSFile(str(path), "rb")
        opened, named = os.fstat(file.fileno()), path.lstat()
        require_plain(path, named)
        if (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino):
            raise LedgerError(f"{path} was replaced while it was opened: parts never change; look for who did it")
        return cls(name, path, file, schema)

    def verify(self) -> None:
        """Check size, digest, columns and number of rows against the name and the schema.

        Raises:
            LedgerError: if any of them differs.
        """
        self.verify_bytes()
        try:
            parquet = pq.ParquetFile(self.file)
            schema, n_rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise LedgerError(
                f"{self.path} is no Parquet file ({_one_line(error)}): another program wrote it; "
                "move it out of the ledger"
            ) from None
        if n_rows != self.name.n_rows or not _has_columns(schema, self.schema):
            raise LedgerError(
                f"{self.path} holds {n_rows} rows of {len(schema)} columns, not {self.name.n_rows} rows of the "
                f"ledger's {len(self.schema)} columns: another program or version wrote it; move it out of the ledger"
            )

    def verify_bytes(self) -> None:
        """Check size and digest against the name.

        Raises:
            LedgerError: if one of them differs.
        """
        advice = "parts never change once sealed; restore the file from a copy"
        size = self.file.size()
        if size != self.name.n_bytes:
            raise LedgerError(
                f"{self.path} has {size} bytes instead of the {self.name.n_bytes} it was sealed with: {advice}"
            )
        digest = hashlib.sha256()
        for offset in range(0, size, _HASH_BYTES):
            digest.update(self.file.read_at(min(_HASH_BYTES, size - offset), offset))
        found = digest.hexdigest()[:32]
        if found != self.name.digest:
            raise LedgerError(f"{self.path} has sha256={found}..., not what its name says: {advice}")

    def batches(self, *, columns: Sequence[str] | None, where: pc.Expression | None) -> Iterator[pa.RecordBatch]:
        """Rows in the order they were committed, at most `GROUP_ROWS` at a time; `where` skips whole row groups."""
        # Group by group: one scanner over all would decode the whole part ahead of whoever takes its time.
        for group in _PARQUET.make_fragment(self.file).split_by_row_group(where, schema=self.schema):
            scanner = group.scanner(schema=self.schema, columns=columns, filter=where, batch_size=GROUP_ROWS)
            for batch in scanner.to_batches():
                if batch.num_rows:
                    yield batch

    def groups(self) -> Iterator[pa.Table]:
        """The whole part, one row group after another."""
        parquet = pq.ParquetFile(self.file)
        for index in range(parquet.num_row_groups):
            yield parquet.read_row_group(index)


def stage(
    disk: Disk,
    folder: Path,
    groups: Iterable[pa.Table],
    *,
    schema: pa.Schema,
    first: int,
    last: int,
    n_rows: int,
    merged: bool,
) -> PartName:
    """Write the rows of commits first..last to the temporary file, synced; `publish` makes it a part.

    Args:
        disk: where the effects go.
        folder: the folder of parts.
        groups: row groups in order; only one is held at a time.
        schema: the ledger's, and theirs.
        first: number of the first commit covered.
        last: number of the last one.
        n_rows: rows in all groups together.
        merged: whether other parts are merged here; then bytes are saved rather than time.

    Raises:
        OSError: if the disk fails; then no file is left behind.
    """
    digest, n_bytes = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes]:
        nonlocal n_bytes
        for chunk in _encode(groups, _MERGED if merged else _FRESH, schema):
            digest.update(chunk)
            n_bytes += len(chunk)
            yield chunk

    disk.write(folder / TEMPORARY, hashed())
    return PartName(first, last, n_rows, n_bytes, digest.hexdigest()[:32])


def publish(disk: Disk, folder: Path, name: PartName, schema: pa.Schema) -> Part:
    """Turn the temporary file into the part `name`, durable when this returns.

    Raises:
        OSError: if the disk fails; then nobody knows whether the part is there.
    """
    disk.rename(folder / TEMPORARY, folder / str(name))
    disk.sync_folder(folder)
    return Part.open(folder, name, schema)


def split(rows: pa.Table) -> Iterator[pa.Table]:
    """Cut a table into row groups within the bounds of memory."""
    if rows.num_rows <= GROUP_ROWS and rows.get_total_buffer_size() <= GROUP_BYTES:
        yield rows  # by far the most; to count the bytes of a slice's own rows takes much longer
        return
    n_rows = min(GROUP_ROWS, max(1, GROUP_BYTES * rows.num_rows // max(1, rows.nbytes)))
    for start in range(0, rows.num_rows, n_rows):
        yield rows.slice(start, n_rows)


def _has_columns(schema: pa.Schema, accepted: pa.Schema) -> bool:
    """Whether a part has a ledger's columns, in order; those that came later may be lacking."""
    lacking = LATER - set(schema.names)
    return bool(schema.equals(pa.schema([field for field in accepted if field.name not in lacking])))


def regroup(parts: Iterable[Part], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of several parts in order, in row groups as large as the bounds of memory allow."""
    waiting: list[pa.Table] = []
    n_rows = n_bytes = 0
    for part in parts:
        # A fault of the disk since the part was opened must not be sealed under a new digest.
        part.verify_bytes()
        for group in part.groups():
            own_bytes = group.get_total_buffer_size()
            if waiting and (n_rows + group.num_rows > GROUP_ROWS or n_bytes + own_bytes > GROUP_BYTES):
                yield pa.concat_tables(waiting)
                waiting, n_rows, n_bytes = [], 0, 0
            waiting.append(_completed(group, schema))
            n_rows += group.num_rows
            n_bytes += own_bytes
    if waiting:
        yield pa.concat_tables(waiting)


def _completed(group: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with all columns of the ledger: those that came later than their part are null."""
    if group.schema.equals(schema):
        return group
    # Asked for once: PyArrow makes the names of all columns anew at each question.
    present = dict(zip(group.column_names, group.columns, strict=True))
    columns = [
        present[field.name] if field.name in present else pa.nulls(group.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)


def list_parts(folder: Path) -> dict[PartName, int]:
    """Parts in a folder and their true sizes in bytes; temporary and hidden files are left out.

    Raises:
        LedgerError: if a link, a folder or a file that is no part lies there.
    """
    sizes: dict[PartName, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == TEMPORARY or entry.name.startswith("."):
                continue
            path = folder / entry.name
            name = PartName.parse(entry.name)
            if name is None:
                raise LedgerError(
                    f"{path} is no part of a ledger: only the driver writes there; move the file elsewhere"
                )
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since it was listed: a compaction beside us
            require_plain(path, status)
            sizes[name] = status.st_size
    return sizes


@dataclass(frozen=True)
class Arrangement:
    """How the parts of a folder fit together: `kept` cover commits 0..n-1 once each, the others count for nothing."""

    kept: tuple[PartName, ...]
    superseded: tuple[PartName, ...]
    torn: tuple[PartName, ...]


def arrange(folder: Path, sizes: Mapping[PartName, int]) -> Arrangement:
    """Decide which parts count, from their names and sizes alone.

    A part that lies within another is superseded: a compaction was cut before it could remove it. A part shorter
    than its name says is torn, which a machine that lost power can only do to the last commit; a short part in any
    other place, or one that stands alone for several commits, is damage.

    Raises:
        LedgerError: if commits are missing, parts overlap without one lying within the other, or a part is damaged.
    """
    whole = sorted((n for n, size in sizes.items() if size >= n.n_bytes), key=lambda n: (n.first, -n.last))
    short = sorted(n for n, size in sizes.items() if size < n.n_bytes)
    kept: list[PartName] = []
    superseded: list[PartName] = []
    for name in whole:
        if not kept or name.first > kept[-1].last:
            kept.append(name)
        elif name.last <= kept[-1].last and name.n_commits < kept[-1].n_commits:
            superseded.append(name)
        else:
            raise LedgerError(
                f"{folder / str(name)} and {kept[-1]} both hold commit {name.first}: a commit is recorded once; "
                "remove the one that does not belong to this study"
            )
    n_commits = 0
    for name in kept:
        if name.first != n_commits:
            break
        n_commits = name.last + 1
    later = [name for name in kept if name.first > n_commits]
    for name in short:
        covered = name.last < n_commits
        if not covered and (later or not name.first == name.last == n_commits):
            raise LedgerError(
                f"{folder / str(name)} has {sizes[name]} bytes instead of the {name.n_bytes} it was sealed with, and "
                "is not a torn last commit: restore the file from a copy"
            )
    if later:
        raise LedgerError(
            f"{folder} lacks commits {n_commits} to {later[0].first - 1} (before {later[0]}): every commit is needed; "
            "restore the missing part from a copy"
        )
    return Arrangement(tuple(kept), tuple(superseded), tuple(short))


def write_table(table: pa.Table, path: Path) -> None:
    """Write any table (a front, an export) as one Parquet file, atomically; an existing file is replaced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_atomically(Disk(), path, _encode(split(table), {"compression": "zstd"}, table.schema), temporary=temporary)


class _Chunks:
    """A file for ParquetWriter that hands on what was written, so that no part is ever held whole."""

    closed = False

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> int:
        self._chunks.append(chunk)
        return len(chunk)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def drain(self) -> bytes:
        content = b"".join(self._chunks)
        self._chunks.clear()
        return content


def _encode(groups: Iterable[pa.Table], options: Mapping[str, object], schema: pa.Schema) -> Iterator[bytes]:
    sink = _Chunks()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, **options) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=GROUP_ROWS)
            yield sink.drain()
    yield sink.drain()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
