"""Progress of a running study: the numbers, and how a terminal or a log shows them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sparsefront.search.design import Design
from sparsefront.search.front import front, front_columns
from sparsefront.search.schema import SCHEMA

#: Seconds between redraws on a terminal, and between lines in a log.
_REDRAW_S = 0.25
_LINE_S = 60.0


class Progress:
    """What has been done of a study: fed with committed rows, read by a view."""

    def __init__(self, design: Design, totals: Callable[[], tuple[int, int, int, int]]) -> None:
        self.design = design
        self._totals = totals
        self._front = SCHEMA.empty_table()
        self._began = time.monotonic()
        self._done_before = 0
        self.workers = 0
        self.best_val_error = float("inf")
        self.n_failures = 0

    def columns_with(self, columns: Iterable[str]) -> list[str]:
        """Columns that `absorb` reads, with those of others."""
        return list(dict.fromkeys([*columns, "outcome", "val_error", *front_columns(self.design.objectives)]))

    def start(self, workers: int) -> None:
        """Work begins now, on so many workers; what was done before counts for the total but not for the rate."""
        self.workers = workers
        self._began = time.monotonic()
        self._done_before = sum(self._totals()[::2])

    def absorb(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Learn from committed rows."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        trained = table.filter(pc.equal(table["stage"], "trained"))
        if not trained.num_rows:
            return
        self.n_failures += int(pc.sum(pc.invert(pc.is_in(trained["outcome"], pa.array(["completed", "stopped"])))).as_py() or 0)
        lowest = pc.min(trained["val_error"]).as_py()
        if lowest is not None:
            self.best_val_error = min(self.best_val_error, lowest)
        columns = front_columns(self.design.objectives)
        self._front = front(pa.concat_tables([self._front.select(columns), trained.select(columns)]), self.design.objectives)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """(masks scored, masks to score, networks trained, networks to train)."""
        return self._totals()

    @property
    def front_size(self) -> int:
        """Candidates on the front now."""
        return int(self._front.num_rows)

    @property
    def rate(self) -> float:
        """Candidates committed a second since `start`."""
        elapsed = time.monotonic() - self._began
        return (sum(self._totals()[::2]) - self._done_before) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Estimate from the networks trained so far; NaN until there are some."""
        _, _, trained, to_train = self._totals()
        elapsed = time.monotonic() - self._began
        return elapsed / trained * (to_train - trained) if trained else float("nan")


class ProgressView(Protocol):
    """Shows progress somewhere."""

    def say(self, text: str) -> None:
        """A line about what happens next."""

    def show(self, progress: Progress) -> None:
        """Called several times a second."""

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """The study is done."""


class TerminalView:
    """Live on a terminal: two bars and the numbers beside them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """A dim line."""
        self._console.print(Text(text, style="dim"))

    def show(self, progress: Progress) -> None:
        """Redraw at most four times a second."""
        now = time.monotonic()
        if now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        if not self._live.is_started:
            self._live.start()
        self._live.update(_panel(progress))

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """Replace the bars with one line."""
        if self._live.is_started:
            self._live.stop()
        self._console.print(_line(progress) + f" in {_duration(seconds)}", highlight=False)


class LogView:
    """One line a minute, for logs."""

    def __init__(self, write: Callable[[str], Any] = lambda text: print(text, file=sys.stderr, flush=True)) -> None:
        self._write = write
        self._said = time.monotonic()

    def say(self, text: str) -> None:
        """A line."""
        self._write(text)

    def show(self, progress: Progress) -> None:
        """A line if a minute has passed."""
        now = time.monotonic()
        if now - self._said >= _LINE_S:
            self._said = now
            self._write(_line(progress))

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """The last line."""
        self._write(_line(progress) + f" in {_duration(seconds)}")


def view_for(console: Console) -> ProgressView:
    """Live on a terminal, lines elsewhere."""
    return TerminalView(console) if console.is_terminal else LogView()


def _panel(progress: Progress) -> Group:
    scored, to_score, trained, to_train = progress.counts
    bars = Table.grid(padding=(0, 1))
    for label, done, total in (("masks scored", scored, to_score), ("networks trained", trained, to_train)):
        if total:
            bars.add_row(label, ProgressBar(total=total, completed=done, width=40), f"{done:,} / {total:,}")
    return Group(bars, Text(_numbers(progress)))


def _line(progress: Progress) -> str:
    scored, to_score, trained, to_train = progress.counts
    masks = f"{scored:,}/{to_score:,} masks scored, " if to_score else ""
    return f"{progress.design.name}: {masks}{trained:,}/{to_train:,} networks trained, {_numbers(progress)}"


def _numbers(progress: Progress) -> str:
    parts = [f"{progress.rate:,.0f} candidates/s on {progress.workers} workers"] if progress.workers else []
    left = progress.seconds_left
    if np.isfinite(left) and left > 0:
        parts.append(f"{_duration(left)} left")
    if np.isfinite(progress.best_val_error):
        parts.append(f"best validation accuracy {1 - progress.best_val_error:.1%}")
    parts.append(f"front of {progress.front_size}")
    if progress.n_failures:
        parts.append(f"{progress.n_failures} failed")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    """Seconds for people.

    >>> _duration(75), _duration(8.2), _duration(7300)
    ('1 min 15 s', '8 s', '2 h 1 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"
