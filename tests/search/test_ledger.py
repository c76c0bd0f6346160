"""The ledger: what is committed comes back, and what is damaged is refused.

Run as a script with the name of a new folder, this file writes the golden ledger of the current format there.
"""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsefront.errors import ConfigError, LedgerError
from sparsefront.search.ledger import Disk, Ledger, write_table
from sparsefront.search.ledger.parts import PartName, arrange, list_parts
from sparsefront.search.schema import KEY, LATER, SCHEMA
from tests.faults.older_ledger import forget_columns

STUDY: dict[str, Any] = {"name": "tiny", "train": {"lr": 0.01, "steps": 100}, "sparsities": [0.5, 0.9]}
GOLDEN = Path(__file__).parent.parent / "golden" / "ledger-format-1"
MODULE = "sparsefront.search.ledger.ledger"


def rows(first_slot: int, n: int = 2, **columns: Any) -> pa.Table:
    """Trained rows in slots first_slot, first_slot + 1, ...; every other column null unless given."""
    records = [
        {"candidate": f"{slot:032x}", "stage": "trained", "arm": "random", "replicate": 0, "target_sparsity": 0.5}
        | {"slot": slot, "outcome": "completed", "val_loss": 1.0 / (1 + slot), "curve_step": [0, 10], **columns}
        for slot in range(first_slot, first_slot + n)
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def create(folder: Path, **changes: Any) -> Ledger:
    return Ledger.create(folder, STUDY, digest="d1", versions={"sparsefront": "0"}, **changes)


def slots(ledger: Ledger) -> list[int]:
    return ledger.table(columns=["slot"])["slot"].to_pylist()


def parts_of(folder: Path) -> list[Path]:
    return sorted((folder / "ledger").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a closed ledger with commits 0, 1 and 2 of two rows each."""
    with create(tmp_path / "study") as ledger:
        for number in range(3):
            assert ledger.commit(rows(2 * number)) == number
    return tmp_path / "study"


@pytest.fixture
def small_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.FAN_IN", 3)


# ---- round trips


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_list(kind):
        return st.none() | st.lists(st.none() | values(kind.value_type), max_size=3)
    if pa.types.is_string(kind):
        return st.none() | st.text(max_size=8)
    if pa.types.is_boolean(kind):
        return st.none() | st.booleans()
    if pa.types.is_timestamp(kind):
        start, stop = dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)  # noqa: DTZ001 (hypothesis adds the zone)
        return st.none() | st.datetimes(start, stop, timezones=st.just(dt.UTC))
    if pa.types.is_floating(kind):
        return st.none() | st.floats(width=kind.bit_width)
    bound = 2 ** (kind.bit_width - 1)
    return st.none() | st.integers(-bound, bound - 1)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_column_round_trips(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    n = data.draw(st.integers(1, 3))
    columns = {
        field.name: pa.array(data.draw(st.lists(values(field.type), min_size=n, max_size=n)), field.type)
        for field in SCHEMA
    }
    table = pa.table(columns, schema=SCHEMA)
    folder = tmp_path_factory.mktemp("ledger") / "study"
    with create(folder) as ledger:
        ledger.commit(table)
        ledger.commit(table.to_batches()[0])
        assert repr(ledger.table().to_pylist()) == repr(table.to_pylist() * 2)  # repr: NaN is itself, -0.0 is not 0.0
        ledger.compact()
        assert ledger.n_parts == 1
    with Ledger.read(folder) as ledger:
        assert ledger.table().schema.equals(SCHEMA)
        assert repr(ledger.table().to_pylist()) == repr(table.to_pylist() * 2)


def test_special_floats_and_empty_lists_survive(tmp_path: Path) -> None:
    special = [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, None]
    table = pa.concat_tables(
        [
            rows(i, 1, val_loss=x, curve_val_loss=y)
            for i, (x, y) in enumerate(zip(special, [[], None, *special], strict=False))
            if not isinstance(y, float)
        ]
        + [rows(9, 1, curve_val_loss=special)]
    )
    with create(tmp_path / "study") as ledger:
        ledger.commit(table)
        ledger.commit(table.slice(1))
        ledger.compact()
        assert repr(ledger.table()["val_loss"].to_pylist()) == repr(
            table["val_loss"].to_pylist() + table["val_loss"].to_pylist()[1:]
        )
        assert repr(ledger.table()["curve_val_loss"].to_pylist()[: len(table)]) == repr(
            table["curve_val_loss"].to_pylist()
        )


def test_chunked_and_sliced_tables_are_stored_as_their_values(tmp_path: Path) -> None:
    whole = rows(0, 10)
    chunked = pa.concat_tables([whole.slice(1, 3), whole.slice(4, 1), whole.slice(5)])
    with create(tmp_path / "a") as a, create(tmp_path / "b") as b:
        a.commit(chunked)
        b.commit(whole.slice(1).combine_chunks())
        assert a.table().equals(b.table())
        assert a.table().equals(whole.slice(1))


def test_same_commits_give_the_same_files(tmp_path: Path) -> None:
    for name in "ab":
        with create(tmp_path / name) as ledger:
            for number in range(4):
                ledger.commit(rows(number))
            ledger.compact()
    assert [path.name for path in parts_of(tmp_path / "a")] == [path.name for path in parts_of(tmp_path / "b")]


def test_a_resume_goes_on_where_it_ended(folder: Path) -> None:
    with Ledger.open(folder, digest="d1") as ledger:
        assert (ledger.n_rows, ledger.n_commits, ledger.n_parts) == (6, 3, 3)
        assert ledger.n_bytes == sum(path.stat().st_size for path in parts_of(folder))
        assert (ledger.study, ledger.study_digest, ledger.versions) == (STUDY, "d1", {"sparsefront": "0"})
        assert ledger.commit(rows(6)) == 3
    with Ledger.read(folder) as ledger:
        assert slots(ledger) == list(range(8))


def test_an_empty_ledger_reads_as_an_empty_table(tmp_path: Path) -> None:
    create(tmp_path / "deep" / "study").close()
    with Ledger.read(tmp_path / "deep" / "study") as ledger:
        assert ledger.table().equals(SCHEMA.empty_table())
        assert ledger.table(columns=["slot", "lr"]).schema.names == ["slot", "lr"]
        assert (ledger.n_rows, ledger.n_commits, ledger.n_parts) == (0, 0, 0)


def test_a_read_ledger_is_a_snapshot(folder: Path, small_tiers: None) -> None:
    with Ledger.read(folder) as before, Ledger.open(folder) as writer:
        scan = before.scan(columns=["slot"])
        for number in range(3, 12):
            writer.commit(rows(2 * number))
        assert not [path for path in parts_of(folder) if path.name.startswith("00000000-00000000")]
        assert [slot for batch in scan for slot in batch["slot"].to_pylist()] == list(range(6))
        assert slots(before) == list(range(6))
        assert slots(writer) == list(range(24))


def test_a_scan_of_the_writer_outlives_compaction(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        scan = ledger.scan(columns=["slot"])
        first = next(scan)["slot"].to_pylist()
        ledger.commit(rows(6))
        ledger.compact()
        assert first + [slot for batch in scan for slot in batch["slot"].to_pylist()] == list(range(6))


# ---- scans


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, pa.Table]]:
    """A ledger of merged and fresh parts with small row groups, beside its rows as one table."""
    generator = np.random.default_rng(3)
    pieces = []
    for number in range(8):
        n = 5
        loss = [
            None if x < 0.1 else float("nan") if x < 0.3 else float("inf") if x < 0.4 else x
            for x in generator.random(n)
        ]
        columns = {"slot": range(n * number, n * number + n), "val_loss": loss, "arm": generator.choice(["a", "b"], n)}
        columns |= {"rung": [None if x < 2 else int(x) for x in generator.integers(0, 5, n)], "lr": [0.5] * n}
        columns |= {"n_params": [int(generator.integers(0, 3))] * n}
        pieces.append(pa.table([pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA], schema=SCHEMA))
    with create(tmp_path_factory.mktemp("varied") / "study") as ledger:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparsefront.search.ledger.parts.GROUP_ROWS", 5)
            for piece in pieces[:6]:
                ledger.commit(piece)
            ledger.compact()
        for piece in pieces[6:]:
            ledger.commit(piece)
        assert ledger.n_parts == 3
        assert pq.ParquetFile(parts_of(ledger.folder)[0]).num_row_groups == 6
        yield ledger, pa.concat_tables(pieces)


def test_a_scan_does_not_run_ahead_of_who_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was decoded whole while its reader works would be in memory all at once."""
    monkeypatch.setattr("sparsefront.search.ledger.parts.GROUP_ROWS", 64)
    with create(tmp_path / "study") as ledger:
        for number in range(40):
            ledger.commit(rows(64 * number, 64, error="".join(random.Random(number).choices("abcdef", k=4096))))
        ledger.compact()
        held = []
        before = pa.total_allocated_bytes()
        for batch in ledger.scan():
            held.append((pa.total_allocated_bytes() - before) / batch.nbytes)
            digests = [hashlib.sha256(repr(row).encode()).digest() for row in batch.to_pylist()]  # a reader at work
            assert len(digests) == 64
        assert len(held) == 40
        assert max(held) < 3


def predicates() -> st.SearchStrategy[pc.Expression]:
    compare: list[Callable[[Any, Any], Any]] = [
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a == b,
        lambda a, b: a != b,
    ]
    leaf = st.one_of(
        st.builds(lambda f, x: f(pc.field("val_loss"), x), st.sampled_from(compare), st.sampled_from([0.0, 0.5, 1.0])),
        st.builds(lambda f, x: f(pc.field("lr"), x), st.sampled_from(compare), st.sampled_from([0.4, 0.5])),
        st.builds(lambda f, x: f(pc.field("slot"), x), st.sampled_from(compare), st.integers(-1, 41)),
        st.builds(lambda f, x: f(pc.field("n_params"), x), st.sampled_from(compare), st.integers(0, 2)),
        st.builds(lambda f, x: f(pc.field("rung"), x), st.sampled_from(compare), st.integers(0, 5)),
        st.builds(lambda x: pc.field("arm") == x, st.sampled_from(["a", "b", "c"])),
        st.sampled_from([pc.field("rung").is_null(), pc.field("val_loss").is_null(), pc.field("val_loss").is_nan()]),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(lambda a: ~a, inner),
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
        ),
        max_leaves=4,
    )


@settings(max_examples=100, deadline=None)
@given(where=predicates())
def test_a_pushed_down_predicate_equals_a_filter_in_memory(
    varied: tuple[Ledger, pa.Table], where: pc.Expression
) -> None:
    ledger, table = varied
    found = ledger.table(columns=["slot", "val_loss"], where=where)
    assert found["slot"].to_pylist() == table.filter(where)["slot"].to_pylist()


def test_a_negated_comparison_keeps_nan_in_merged_parts(tmp_path: Path) -> None:
    # With statistics on the column, Arrow skips the row group: NaN counts for neither its minimum nor its maximum.
    with create(tmp_path / "study") as ledger:
        ledger.commit(rows(0, 1, val_loss=0.5))
        ledger.commit(rows(1, 1, val_loss=float("nan")))
        ledger.compact()
        for where in (~(pc.field("val_loss") < 1), ~(pc.field("val_loss") > 0.1), pc.field("val_loss") != 0.5):
            assert ledger.table(columns=["slot"], where=where)["slot"].to_pylist() == [1]


def test_a_predicate_on_the_key_skips_whole_row_groups(varied: tuple[Ledger, pa.Table]) -> None:
    ledger, _ = varied
    metadata = pq.ParquetFile(parts_of(ledger.folder)[0]).metadata
    columns = [metadata.row_group(2).column(i) for i in range(metadata.num_columns)]
    slot = next(column for column in columns if column.path_in_schema == "slot")
    assert (slot.statistics.min, slot.statistics.max) == (10, 14)


def test_scan_keeps_the_order_of_commits_and_of_the_columns_asked_for(varied: tuple[Ledger, pa.Table]) -> None:
    ledger, table = varied
    assert ledger.table(columns=["val_loss", "slot"]).schema.names == ["val_loss", "slot"]
    assert slots(ledger) == table["slot"].to_pylist()
    assert all(batch.num_rows > 0 for batch in ledger.scan(where=pc.field("slot") == 7))


def test_an_unknown_column_is_refused_before_anything_is_read(folder: Path) -> None:
    with (
        Ledger.read(folder) as ledger,
        pytest.raises(ConfigError, match=r"column='val_los'.*did you mean 'val_loss'\?"),
    ):
        ledger.scan(columns=["slot", "val_los"])


def test_duplicates_lists_keys_held_twice(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        assert ledger.duplicates().num_rows == 0
        ledger.commit(rows(5))
        ledger.commit(rows(5, 1))
        assert ledger.duplicates().to_pylist() == [
            dict(zip(KEY, ("trained", "random", 0, 0.5, 5), strict=True)) | {"count": 3}
        ]


# ---- compaction


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.sampled_from(["commit", "commit", "commit", "big", "compact", "reopen"]), max_size=30))
def test_compaction_keeps_every_row_in_order(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ledger") / "study"
    expected = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{MODULE}.FAN_IN", 3)
        patch.setattr(f"{MODULE}.FULL_BYTES", 20_000)
        patch.setattr("sparsefront.search.ledger.parts.GROUP_ROWS", 7)
        ledger = create(folder)
        for step in steps:
            if step in ("commit", "big"):
                n = 1 if step == "commit" else 16
                noise = random.Random(expected).randbytes(500 * n).hex()
                ledger.commit(rows(expected, n, error=noise))
                expected += n
            elif step == "compact":
                ledger.compact()
            else:
                ledger.close()
                ledger = Ledger.open(folder)
            assert ledger.n_rows == expected
        assert slots(ledger) == list(range(expected))
        assert len(parts_of(folder)) == ledger.n_parts
        ledger.close()
    with Ledger.read(folder) as ledger:
        assert slots(ledger) == list(range(expected))


def test_commits_keep_parts_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.FAN_IN", 4)
    with create(tmp_path / "study") as ledger:
        for number in range(40):
            ledger.commit(rows(number, 1))
            digits = np.base_repr(number + 1, 4)
            assert ledger.n_parts == sum(int(digit) for digit in digits)  # one part for each unit of each tier
        assert slots(ledger) == list(range(40))


def test_a_full_part_is_never_merged_again(tmp_path: Path, small_tiers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.FULL_BYTES", 10_000)
    with create(tmp_path / "study") as ledger:
        full = set()
        for number in range(12):
            ledger.commit(rows(number, 1, error=random.Random(number).randbytes(3000).hex()))
            full |= {path.name for path in parts_of(ledger.folder) if path.stat().st_size >= 10_000}
            assert full <= {path.name for path in parts_of(ledger.folder)}
        ledger.compact()
        assert full <= {path.name for path in parts_of(ledger.folder)}
        assert len(full) > 1


def test_compaction_is_idempotent(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.compact()
        before = parts_of(folder)
        ledger.compact()
        assert parts_of(folder) == before
        assert len(before) == 1


def test_parts_that_lack_later_columns_are_merged_with_those_that_have_them(folder: Path) -> None:
    forget_columns(folder, {"density_macs"})
    with Ledger.open(folder) as ledger:
        ledger.commit(rows(6, density_macs=0.5))
        before = ledger.table()
        ledger.compact()
        assert ledger.n_parts == 1
        assert ledger.table().equals(before)
        assert ledger.table(columns=["density_macs"]).column(0).to_pylist() == [None] * 6 + [0.5] * 2
    forget_columns(folder, LATER)
    with Ledger.open(folder) as ledger:  # all parts lack them
        ledger.commit(rows(8, val_psnr_worst=20.0))
        forget_columns(folder, LATER)
    with Ledger.open(folder) as ledger:
        ledger.compact()
        assert ledger.n_parts == 1
        assert slots(ledger) == list(range(10))
    assert pq.read_schema(parts_of(folder)[0]).equals(SCHEMA)


def test_a_part_damaged_after_it_was_opened_is_not_merged(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        flip(parts_of(folder)[1], 700)
        with pytest.raises(LedgerError, match=r"has sha256=.* not what its name says"):
            ledger.compact()
    assert len(parts_of(folder)) == 3


# ---- damage


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def refused(folder: Path, pattern: str, *others: type[Exception]) -> None:
    """Both ways to open the ledger refuse it with one line that matches, and change nothing."""
    before = {path: path.lstat().st_size for path in folder.rglob("*") if path.name != "lock"}
    for way in (Ledger.read, Ledger.open):
        with pytest.raises((LedgerError, *others), match=pattern) as caught:
            way(folder)
        assert "\n" not in str(caught.value)
        assert len(caught.value.args) == 1
    assert {path: path.lstat().st_size for path in folder.rglob("*") if path.name != "lock"} == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.integers(0, 2), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(folder: Path, part: int, place: float, bit: int) -> None:
    path = parts_of(folder)[part]
    offset = int(place * path.stat().st_size)
    flip(path, offset, bit)
    refused(folder, rf"{path.name} has sha256=.*restore the file")
    flip(path, offset, bit)
    Ledger.read(folder).close()


def test_a_flipped_bit_in_every_byte_of_the_header_is_refused(folder: Path) -> None:
    path = folder / "study.json"
    for offset in range(path.stat().st_size):
        for bit in {0, 5, offset % 8}:
            flip(path, offset, bit)
            with pytest.raises(LedgerError, match=r"study.json (is garbled|has format=)"):
                Ledger.read(folder)
            flip(path, offset, bit)
    Ledger.read(folder).close()


def test_a_torn_end_is_skipped_by_readers_and_trimmed_by_the_writer(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_torn_ends(folder, step=397, caplog=caplog)


@pytest.mark.slow
def test_a_torn_end_is_trimmed_at_every_byte(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_torn_ends(folder, step=1, caplog=caplog)


def check_torn_ends(folder: Path, *, step: int, caplog: pytest.LogCaptureFixture) -> None:
    path = parts_of(folder)[-1]
    content = path.read_bytes()
    for size in (*range(0, len(content), step), len(content) - 1):
        path.write_bytes(content[:size])
        with Ledger.read(folder) as ledger:
            assert (ledger.n_commits, ledger.n_rows) == (2, 4)
        assert path.stat().st_size == size
        caplog.clear()
        with caplog.at_level(logging.WARNING), Ledger.open(folder) as ledger:
            assert (ledger.n_commits, ledger.n_rows) == (2, 4)
        assert f"{path.name} is torn: {size} of {len(content)} bytes" in caplog.text
        assert not path.exists()
    with Ledger.read(folder) as ledger:
        assert slots(ledger) == [0, 1, 2, 3]


def test_a_commit_follows_a_trimmed_end(folder: Path) -> None:
    path = parts_of(folder)[-1]
    path.write_bytes(path.read_bytes()[:100])
    with Ledger.open(folder) as ledger:
        assert ledger.commit(rows(4)) == 2
        assert slots(ledger) == list(range(6))


@pytest.mark.parametrize("part", [0, 1])
def test_a_truncation_before_the_end_is_refused(folder: Path, part: int) -> None:
    path = parts_of(folder)[part]
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, rf"{path.name} has \d+ bytes instead of the \d+ .*not a torn last commit: restore")


def test_two_torn_parts_are_refused(folder: Path) -> None:
    for path in parts_of(folder)[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    refused(folder, "00000002-00000002.*not a torn last commit")


def test_a_truncated_merged_part_is_refused_although_it_is_the_last(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.compact()
    (path,) = parts_of(folder)
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, rf"{path.name} has \d+ bytes instead of the \d+")


def test_a_part_that_grew_is_refused(folder: Path) -> None:
    path = parts_of(folder)[-1]
    path.write_bytes(path.read_bytes() + b"x")
    refused(folder, rf"{path.name} has \d+ bytes instead of the \d+.*never change")


@pytest.mark.parametrize(("part", "lacking"), [(0, "commits 0 to 0"), (1, "commits 1 to 1")])
def test_a_missing_part_is_refused(folder: Path, part: int, lacking: str) -> None:
    parts_of(folder)[part].unlink()
    refused(folder, rf"ledger lacks {lacking} \(before 0000.*restore the missing part")


def test_parts_superseded_by_a_merge_are_ignored_and_removed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "ledger", tmp_path / "before")
    with Ledger.open(folder) as ledger:
        ledger.compact()
        ledger.commit(rows(6))
    for path in (tmp_path / "before").iterdir():
        shutil.copy(path, folder / "ledger")
    with Ledger.read(folder) as ledger:
        assert slots(ledger) == list(range(8))
    assert len(parts_of(folder)) == 5
    with Ledger.open(folder) as ledger:
        assert slots(ledger) == list(range(8))
    assert len(parts_of(folder)) == 2


def test_the_parts_of_a_merge_stay_when_it_is_damaged(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "ledger", tmp_path / "before")
    with Ledger.open(folder) as ledger:
        ledger.compact()
    (merged,) = parts_of(folder)
    for path in (tmp_path / "before").iterdir():
        shutil.copy(path, folder / "ledger")
    flip(merged, 500)
    refused(folder, f"{merged.name} has sha256=")
    merged.write_bytes(merged.read_bytes()[:500])
    with Ledger.open(folder) as ledger:
        assert slots(ledger) == list(range(6))
    assert not merged.exists()


def test_overlapping_parts_are_refused(folder: Path, tmp_path: Path) -> None:
    with create(tmp_path / "other") as other:
        for number in range(2):
            other.commit(rows(number))
        other.compact()
    with Ledger.open(folder) as ledger:
        ledger.commit(rows(6))
    (merged,) = parts_of(tmp_path / "other")
    renamed = merged.name.replace("00000000-00000001", "00000002-00000003")
    shutil.copy(merged, folder / "ledger" / renamed)  # commits 2 to 3 as one part, beside parts 2 and 3: nested
    with Ledger.read(folder) as ledger:
        assert ledger.n_commits == 4
    (folder / "ledger" / renamed).rename(folder / "ledger" / renamed.replace("00000002-00000003", "00000003-00000004"))
    shutil.copy(merged, folder / "ledger" / renamed)  # commits 2 to 3 and 3 to 4
    refused(folder, "both hold commit 3: a commit is recorded once")


def test_the_same_commit_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    with create(tmp_path / "other") as other:
        other.commit(rows(100))
    shutil.copy(parts_of(tmp_path / "other")[0], folder / "ledger")
    refused(folder, "both hold commit 0")


@pytest.mark.parametrize("name", ["notes.txt", "00000003-00000003-1-2-abc.parquet", "3-3-1-2-" + "a" * 32 + ".parquet"])
def test_a_foreign_file_is_refused(folder: Path, name: str) -> None:
    (folder / "ledger" / name).write_bytes(b"x")
    refused(folder, rf"{name} is no part of a ledger: .*move the file elsewhere")


def test_hidden_files_are_left_alone(folder: Path) -> None:
    hidden = folder / "ledger" / ".nfs0001"
    hidden.write_bytes(b"x")
    with Ledger.open(folder) as ledger:
        assert ledger.n_commits == 3
    assert hidden.exists()


@pytest.mark.parametrize("kind", ["garbage", "other columns"])
def test_a_foreign_file_with_an_honest_name_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "garbage":
        source.write_bytes(b"x" * 1000)
    else:
        write_table(pa.table({"x": [1]}), source)
    content = source.read_bytes()
    name = PartName(3, 3, 1, len(content), hashlib.sha256(content).hexdigest()[:32])
    shutil.copy(source, folder / "ledger" / str(name))
    refused(folder, rf"{name} (is no Parquet file|holds 1 rows of 1 columns).*another program")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (None, r"study.json is missing: .* holds no study"),
        (b"", r"study.json is garbled \(Expecting value"),
        (b"\xff", r"study.json is garbled"),
        (b"[]", r"study.json is garbled \(a JSON object expected, found list\)"),
        (b'{"format":2}', r"study.json has format=2: this version reads format 1; read it with the version"),
        (b'{"format":1}', r"study.json is garbled \(no 'study'\)"),
    ],
)
def test_a_damaged_header_is_refused(folder: Path, content: bytes | None, pattern: str) -> None:
    if content is None:
        (folder / "study.json").unlink()
    else:
        (folder / "study.json").write_bytes(content)
    refused(folder, pattern)


def test_an_edited_header_is_refused(folder: Path) -> None:
    path = folder / "study.json"
    path.write_text(path.read_text().replace('"lr":0.01', '"lr":0.02'))
    refused(folder, r"study.json is garbled \(it was changed after it was written\)")


@pytest.mark.parametrize("name", ["study.json", "ledger", "blobs", "lock", "part"])
def test_a_link_inside_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = parts_of(folder)[1] if name == "part" else folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match=rf"{path.name} is a symbolic link.*follows no links"):
        Ledger.open(folder)
    if name not in ("lock", "blobs"):
        refused(folder, rf"{path.name} is a symbolic link")


def test_a_pipe_in_place_of_a_part_is_refused_without_waiting(folder: Path) -> None:
    path = parts_of(folder)[1]
    path.unlink()
    os.mkfifo(path)
    refused(folder, rf"{path.name} is not a regular file")


def test_a_missing_folder_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "ledger")
    refused(folder, r"ledger is missing: .*restore the folder")


def test_the_study_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with Ledger.open(tmp_path / "link") as ledger:
        assert slots(ledger) == list(range(6))


def test_leftover_temporary_files_are_removed_by_the_writer_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [folder / "ledger" / "incoming.tmp", folder / "blobs" / "incoming.tmp"]
    for path in paths:
        path.write_bytes(b"half")
    with Ledger.read(folder) as ledger:
        assert ledger.n_commits == 3
    assert all(path.exists() for path in paths)
    Ledger.open(folder).close()
    assert not any(path.exists() for path in paths)
    assert "incoming.tmp was being written when a driver died: removed" in caplog.text


def test_a_gap_is_found_among_names_alone() -> None:
    names = [PartName(first, last, 1, 9, "a" * 32) for first, last in ((0, 3), (1, 2), (4, 4), (6, 6))]
    with pytest.raises(LedgerError, match="lacks commits 5 to 5"):
        arrange(Path("x"), dict.fromkeys(names, 9))
    kept = arrange(Path("x"), dict.fromkeys(names[:3], 9))
    assert (kept.kept, kept.superseded, kept.torn) == ((names[0], names[2]), (names[1],), ())


# ---- who may do what


def test_a_second_writer_is_refused(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        with pytest.raises(LedgerError, match=rf"{folder} is being written by another driver \(pid {os.getpid()} on "):
            Ledger.open(folder)
        with pytest.raises(LedgerError, match="is being written by another driver"):
            create(folder)
        ledger.commit(rows(6))
    Ledger.open(folder).close()


def test_a_changed_study_is_refused_with_the_keys_that_differ(folder: Path) -> None:
    changed = {"name": "tiny", "train": {"lr": 0.02, "steps": 100, "momentum": 0.9}, "sparsities": (0.5,)}
    with pytest.raises(LedgerError) as caught:
        Ledger.open(folder, digest="d2", study=changed)
    assert str(caught.value) == (
        f"{folder} holds another study (changed: sparsities: [0.5,0.9] -> [0.5], "
        "train.lr: 0.01 -> 0.02, train.momentum: (absent) -> 0.9): a ledger belongs to one study; "
        "undo the change to resume, or start the new study in another folder (--dir)"
    )
    with pytest.raises(LedgerError, match="digest d2 where d1 was started"):
        Ledger.open(folder, digest="d2")
    with Ledger.open(folder, digest="d1", study=STUDY) as ledger:
        assert ledger.n_commits == 3


def test_what_another_version_made_of_the_study_is_no_change_of_the_user(tmp_path: Path) -> None:
    began = STUDY | {"resolved": {"data_digest": "aa", "methods": {"rigl": {"every": 0}}}}
    Ledger.create(tmp_path, began, digest="d1", versions={"sparsefront": "0.0.9"}).close()
    now = STUDY | {"resolved": {"data_digest": "aa", "methods": {"rigl": {"every": 0, "n_updates": 40}}}}
    with pytest.raises(LedgerError) as caught:
        Ledger.open(tmp_path, digest="d2", study=now)
    assert str(caught.value) == (
        f"{tmp_path} was started by a version of the program, or of modules of its own, that does this study in "
        f"another way (started by sparsefront 0.0.9, this is {importlib.metadata.version('sparsefront')}; changed: "
        "resolved.methods.rigl.n_updates: (absent) -> 40): the study itself did not change, and a ledger goes on as it "
        "was started; resume it with the version that started it, or start the study in another folder (--dir); what "
        "it holds can still be read"
    )
    with Ledger.read(tmp_path) as ledger:
        assert ledger.n_rows == 0
    # What the user changed, or the data that they gave, is theirs to undo.
    for changed in (now | {"name": "other"}, now | {"resolved": {"data_digest": "bb"}}):
        with pytest.raises(LedgerError, match=r"holds another study .* undo the change to resume"):
            Ledger.open(tmp_path, digest="d2", study=changed)


def test_versions_of_one_number_or_of_none_are_told_apart(tmp_path: Path) -> None:
    now = importlib.metadata.version("sparsefront")
    said = {"none": ({}, f"unknown, this is {now}; "), "one": ({"sparsefront": now}, f"{now} as well, but another; ")}
    for name, (versions, shown) in said.items():
        Ledger.create(tmp_path / name, STUDY, digest="d1", versions=versions).close()
        with pytest.raises(LedgerError, match=rf"\(started by sparsefront .*{re.escape(shown)}changed: resolved\."):
            Ledger.open(tmp_path / name, digest="d2", study=STUDY | {"resolved": {"methods": {"gmp": {"every": 0}}}})


def test_many_changed_keys_are_cut_short(folder: Path) -> None:
    with pytest.raises(LedgerError, match=r"k00: \(absent\) -> 0, .*k11: .*, and 5 more\): a ledger"):
        Ledger.open(folder, digest="d2", study=STUDY | {f"k{i:02d}": i for i in range(17)})


def test_a_ledger_is_created_once(folder: Path) -> None:
    with pytest.raises(LedgerError, match=r"already holds a study: .*open it to resume"):
        create(folder)
    (folder / "study.json").unlink()
    with pytest.raises(LedgerError, match=r"study.json is missing but .*ledger holds commits: restore study.json"):
        create(folder)


def test_a_study_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    for study in ({"x": float("nan")}, {"x": object()}, {"x": "\ud800"}):
        with pytest.raises(LedgerError, match="the study cannot be written as JSON"):
            Ledger.create(tmp_path / "study", study, digest="d", versions={})
    assert not (tmp_path / "study").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("x")
    with pytest.raises(LedgerError, match=r"study could not be started \(.*Not a directory"):
        create(tmp_path / "study")
    refused(tmp_path / "study", r"study.json is missing: .* holds no study")


def test_a_reader_cannot_write_and_a_closed_ledger_cannot_be_used(folder: Path) -> None:
    with Ledger.read(folder) as ledger:
        for act in (lambda: ledger.commit(rows(6)), lambda: ledger.put_blob(b"x"), ledger.compact):
            with pytest.raises(LedgerError, match="was opened for reading: only the writer"):
                act()
    for act in (ledger.table, ledger.scan, lambda: ledger.commit(rows(6)), lambda: ledger.get_blob("a" * 32)):
        with pytest.raises(LedgerError, match="is closed: open it again"):
            act()
    ledger.close()


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: t.slice(0, 0), "n_rows=0: a commit holds at least one row"),
        (lambda t: t.drop_columns(["lr"]), r"columns \(missing: lr\)"),
        (lambda t: t.append_column("x", t["lr"]), r"columns \(unknown: x\)"),
        (lambda t: t.select(sorted(t.column_names)), r"columns \(in another order"),
        (lambda t: t.set_column(5, "slot", t["slot"].cast(pa.int64())), r"columns \(slot is int64 instead of int32\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(folder: Path, change: Callable[[pa.Table], pa.Table], pattern: str) -> None:
    with Ledger.open(folder) as ledger:
        with pytest.raises(LedgerError, match=pattern):
            ledger.commit(change(rows(6)))
        assert ledger.commit(rows(6)) == 3


# ---- a disk that fails


class FailingDisk(Disk):
    """Refuses every effect of one kind while `failing` names it."""

    failing = ""

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        def cut() -> Iterator[bytes]:
            for chunk in chunks:
                yield chunk[: len(chunk) // 2]
                raise OSError(errno.ENOSPC, "No space left on device")

        super().write(path, cut() if self.failing == "write" else chunks)

    def _refuse(self, kind: str) -> None:
        if self.failing == kind:
            raise OSError(errno.EIO, "Input/output error")

    def rename(self, source: Path, target: Path) -> None:
        self._refuse("rename")
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._refuse("sync_folder")
        super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        self._refuse("unlink")
        super().unlink(path)


def test_a_full_disk_loses_nothing_and_the_commit_can_be_repeated(folder: Path) -> None:
    disk = FailingDisk()
    with Ledger.open(folder, disk=disk) as ledger:
        disk.failing = "write"
        with pytest.raises(LedgerError, match=r"commit 3 .*No space left.*nothing was recorded .*free the disk"):
            ledger.commit(rows(6))
        with pytest.raises(LedgerError, match=r"blob \w+ \(4 bytes\) could not be stored .*No space left"):
            ledger.put_blob(b"mask")
        with pytest.raises(LedgerError, match=r"merging 3 parts .*nothing is lost"):
            ledger.compact()
        assert sorted(path.name for path in (folder / "blobs").rglob("*") if path.is_file()) == []
        disk.failing = ""
        assert ledger.commit(rows(6)) == 3
        ledger.compact()
        assert slots(ledger) == list(range(8))


@pytest.mark.parametrize("kind", ["rename", "sync_folder"])
def test_a_failed_sync_ends_the_writing(folder: Path, kind: str) -> None:
    disk = FailingDisk()
    with Ledger.open(folder, disk=disk) as ledger:
        disk.failing = kind
        with pytest.raises(LedgerError, match=r"commit 3 .*may or may not be recorded .*open the ledger again"):
            ledger.commit(rows(6))
        disk.failing = ""
        with pytest.raises(LedgerError, match=r"an earlier commit .* failed: open the ledger again"):
            ledger.commit(rows(6))
        assert slots(ledger) == list(range(6))
    with Ledger.open(folder) as ledger:
        assert slots(ledger) == list(range(6 if kind == "rename" else 8))


def test_a_full_disk_during_a_merge_only_puts_it_off(
    folder: Path, small_tiers: None, caplog: pytest.LogCaptureFixture
) -> None:
    class NoRoomToMerge(FailingDisk):
        writes = 0

        def write(self, path: Path, chunks: Iterable[bytes]) -> None:
            self.writes += 1
            self.failing = "write" if self.writes == 2 else ""
            super().write(path, chunks)

    with Ledger.open(folder, disk=NoRoomToMerge()) as ledger:
        assert ledger.commit(rows(6)) == 3
        assert ledger.n_parts == 4
        assert "merging 4 parts" in caplog.text
        assert ledger.commit(rows(8)) == 4
        assert ledger.n_parts == 1
        assert slots(ledger) == list(range(10))


@pytest.mark.parametrize("kind", ["rename", "sync_folder", "unlink"])
def test_a_merge_cut_by_the_disk_loses_nothing(folder: Path, kind: str) -> None:
    disk = FailingDisk()
    with Ledger.open(folder, disk=disk) as ledger:
        disk.failing = kind
        with pytest.raises(LedgerError, match=r"merging 3 parts .*was cut .*no row is lost"):
            ledger.compact()
    with Ledger.open(folder) as ledger:
        assert slots(ledger) == list(range(6))
        ledger.compact()
    assert len(parts_of(folder)) == 1


# ---- blobs


def test_blobs_come_back_by_their_digest(folder: Path) -> None:
    data = random.Random(1).randbytes(1000)
    with Ledger.open(folder) as ledger:
        digest = ledger.put_blob(data)
        assert ledger.put_blob(data) == digest
        assert ledger.get_blob(digest) == data
        assert ledger.get_blob(ledger.put_blob(b"")) == b""
    with Ledger.read(folder) as ledger:
        assert ledger.get_blob(digest) == data
    path = folder / "blobs" / digest[:2] / digest
    flip(path, 10)
    with Ledger.read(folder) as ledger, pytest.raises(LedgerError, match=f"{digest} does not match its name"):
        ledger.get_blob(digest)
    with Ledger.open(folder) as ledger:
        ledger.put_blob(data)
        assert ledger.get_blob(digest) == data


@pytest.mark.parametrize("digest", ["", "../../lock", "a" * 31, "A" * 32, "a" * 32 + "\n", "a" * 64])
def test_a_digest_never_becomes_another_path(folder: Path, digest: str) -> None:
    with Ledger.read(folder) as ledger, pytest.raises(LedgerError, match="names no blob: 32 lower-case hex digits"):
        ledger.get_blob(digest)


def test_a_missing_or_linked_blob_is_refused(folder: Path, tmp_path: Path) -> None:
    with Ledger.open(folder) as ledger:
        with pytest.raises(LedgerError, match=f"{'a' * 32} is missing: restore the blob"):
            ledger.get_blob("a" * 32)
        digest = ledger.put_blob(b"x")
        path = folder / "blobs" / digest[:2] / digest
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        for act in (lambda: ledger.get_blob(digest), lambda: ledger.put_blob(b"x")):
            with pytest.raises(LedgerError, match=f"{digest} is a symbolic link"):
                act()
        path.unlink()
        path.parent.rmdir()
        path.parent.symlink_to(tmp_path)
        for act in (lambda: ledger.get_blob(digest), lambda: ledger.put_blob(b"x")):
            with pytest.raises(LedgerError, match=f"{digest[:2]} is a symbolic link"):
                act()


# ---- beside a writer


def test_readers_beside_a_merging_writer_see_a_prefix(tmp_path: Path, small_tiers: None) -> None:
    n_commits = 60
    folder = tmp_path / "study"
    ledger = create(folder)
    done = threading.Event()
    committed = [0]
    seen: list[tuple[int, int, list[int]]] = []
    failures: list[BaseException] = []

    def watch() -> None:
        try:
            while not done.is_set() or not seen or seen[-1][0] < n_commits:
                before = committed[0]
                with Ledger.read(folder) as reader:
                    seen.append((before, reader.n_commits, slots(reader)))
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=watch) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(n_commits):
        ledger.commit(rows(number, 1))
        committed[0] = number + 1
    done.set()
    for reader in readers:
        reader.join()
    ledger.close()
    assert failures == []
    for before, now, found in seen:
        assert before <= now <= n_commits
        assert found == list(range(now))


@pytest.mark.parametrize("merging", [False, True])
def test_a_listing_that_misses_a_part_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, merging: bool
) -> None:
    calls = 0

    def list_during_a_merge(path: Path) -> dict[PartName, int]:
        nonlocal calls
        calls += 1
        listed = list_parts(path)
        if calls == 1:  # too early for the merged part, too late for the last of those it replaces
            listed.pop(max(listed))
            if merging:
                with Ledger.open(folder) as writer:
                    writer.compact()
        return listed

    monkeypatch.setattr(f"{MODULE}.list_parts", list_during_a_merge)
    with Ledger.read(folder) as ledger:
        assert slots(ledger) == list(range(6))


# ---- memory


@pytest.mark.slow
def test_neither_writer_nor_scan_hold_the_rows(tmp_path: Path) -> None:
    table = rows(0, 20_000, error="x" * 200)
    start = pa.total_allocated_bytes()
    with create(tmp_path / "study") as ledger:
        for _ in range(40):
            ledger.commit(table)
        assert pa.total_allocated_bytes() - start < 1e6
        peak = 0
        for batch in ledger.scan():
            assert batch.num_rows <= 32_768
            peak = max(peak, pa.total_allocated_bytes() - start)
        # A row group of 32,768 rows takes 25 MB here, the whole ledger 600 MB; at most six are on their way.
        assert peak < 6 * 25e6
        assert table.nbytes * 40 > 2 * peak


# ---- other files


def test_write_table_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "front.parquet"
    for table in (
        pa.table({"x": [1]}),
        pa.table({"y": ["a", None], "z": [[1.0], []]}),
        pa.table({"y": pa.array([], pa.int8())}),
    ):
        write_table(table, path)
        assert pq.read_table(path).equals(table)
    assert list(tmp_path.iterdir()) == [path]


def write_golden(folder: Path) -> None:
    """A ledger with a merged part, two fresh ones, and a blob."""
    moment = dt.datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    with create(folder) as ledger:
        ledger.commit(rows(0, 2, committed_at=moment, error="boom\nline 2"))
        ledger.commit(rows(2, 1, val_error=float("nan"), curve_val_loss=[0.5, None, float("inf")]))
        ledger.compact()
        ledger.commit(rows(3, 1, reused=True, mask_draw=2**40))
        ledger.commit(rows(4, 1, lr=1e-3, curve_step=[]))
        ledger.put_blob(b"mask")


def test_the_golden_ledger_of_format_1_is_still_read(tmp_path: Path) -> None:
    with Ledger.read(GOLDEN) as ledger:
        assert (ledger.study, ledger.study_digest, ledger.n_commits, ledger.n_parts) == (STUDY, "d1", 4, 3)
        records = ledger.table().to_pylist()
        assert ledger.get_blob("48bf9b4f142ab45cac6f33cf99415bca") == b"mask"
    write_golden(tmp_path / "new")
    with Ledger.read(tmp_path / "new") as ledger:
        assert repr(ledger.table().to_pylist()) == repr(records)
    assert json.loads((GOLDEN / "study.json").read_text())["format"] == 1


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
