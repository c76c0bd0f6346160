"""Progress of a running study: the numbers, and how a terminal or a log shows them."""

from __future__ import annotations

import contextlib
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

from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.front import front, front_columns
from sparsefront.search.metrics import METRICS
from sparsefront.search.schema import SCHEMA

#: Seconds between redraws on a terminal, and between lines in a log.
_REDRAW_S = 0.25
#: What the stages of the ledger's rows are work on.
_WORK_OF = {"scored": "scored", "trained": "trained", "rung": "trained"}
_LINE_S = 60.0
#: Rows that wait for the next front at most.
_JUDGED_ROWS = 10_000


def _field(name: str) -> pa.Field:
    """A column of a front; those that only some ledgers have are objectives."""
    return SCHEMA.field(name) if name in SCHEMA.names else pa.field(name, pa.float64())


class Progress:
    """What has been done of a study: fed with committed rows, read by a view."""

    def __init__(
        self,
        design: Design | SearchDesign,
        totals: Callable[[], tuple[int, int, int, int]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is done yet.

        Args:
            design: the study's.
            totals: gives (masks scored, masks to score, networks trained, networks to train).
            clock: seconds.
        """
        self.design = design
        self.workers = 0
        self.best_val_error = float("inf")
        self.n_failures = 0
        self._totals, self._clock = totals, clock
        #: Of a search: arms of the ledger that are no result of it.
        self._controls: pa.Array | None = None
        if isinstance(design, SearchDesign) and design.controls:
            self._controls = pa.array([control.name for control in design.controls])
        self._front = pa.schema([_field(name) for name in front_columns(design.objectives)]).empty_table()
        #: Rows since the front was asked for.
        self._unjudged: list[pa.Table] = []
        self._n_unjudged = 0
        self._worker_s = {"scored": 0.0, "trained": 0.0}
        self._began = clock()
        self._done_before = 0

    def columns_with(self, columns: Iterable[str]) -> list[str]:
        """Columns that `absorb` reads, with those of others."""
        return list(dict.fromkeys([*columns, "seconds", "val_error", *front_columns(self.design.objectives)]))

    def start(self, workers: int) -> None:
        """Work begins now, on so many workers; what was done before counts for the total but not for the rate."""
        self.workers = workers
        self._began = self._clock()
        self._done_before = self._n_done

    def absorb(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Learn from committed rows."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        fresh = pc.invert(pc.fill_null(table["reused"], False))
        ended_well = pc.is_in(table["outcome"], pa.array(["completed", "stopped", "infeasible", None], pa.string()))
        failed = pc.and_(fresh, pc.invert(ended_well))
        self.n_failures += pc.sum(failed).as_py() or 0
        for stage, of in _WORK_OF.items():
            seconds = table["seconds"].filter(pc.equal(table["stage"], stage))
            self._worker_s[of] += pc.sum(seconds).as_py() or 0.0
        is_trained = pc.equal(table["stage"], "trained")
        if self._controls is not None:
            is_trained = pc.and_(is_trained, pc.invert(pc.is_in(table["arm"], self._controls)))
        trained = table.filter(is_trained)
        if not trained.num_rows:
            return
        lowest = pc.min(trained["val_error"]).as_py()
        if lowest is not None:
            self.best_val_error = min(self.best_val_error, lowest)
        self._unjudged.append(trained.select(self._front.column_names))
        self._n_unjudged += trained.num_rows
        if self._n_unjudged >= _JUDGED_ROWS:
            self._judge()

    def _judge(self) -> None:
        """Take in the rows since the last call: a front is drawn a few times a second, and commits are many."""
        if self._unjudged:
            self._front = front(pa.concat_tables([self._front, *self._unjudged]), self.design.objectives)
            self._unjudged, self._n_unjudged = [], 0

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """(masks scored, masks to score, networks trained, networks to train)."""
        return self._totals()

    @property
    def front_size(self) -> int:
        """Candidates on the front now."""
        self._judge()
        return int(self._front.num_rows)

    @property
    def rate(self) -> float:
        """Candidates committed a second since `start`."""
        elapsed = self._clock() - self._began
        return (self._n_done - self._done_before) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Estimate from the worker time of what was done so far; NaN until there is some of everything."""
        scored, to_score, trained, to_train = self._totals()
        if not self.workers or not trained or (to_score and not scored):
            return float("nan")
        of_masks = self._worker_s["scored"] / scored * (to_score - scored) if scored else 0.0
        of_networks = self._worker_s["trained"] / trained * (to_train - trained)
        return (of_masks + of_networks) / self.workers

    @property
    def _n_done(self) -> int:
        scored, _, trained, _ = self._totals()
        return scored + trained


class ProgressView(Protocol):
    """Shows progress somewhere."""

    def say(self, text: str) -> None:
        """A line about what happens next."""

    def show(self, progress: Progress) -> None:
        """Called several times a second."""

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """The study is done."""

    def close(self) -> None:
        """Leave the terminal as it was, whatever happened; may be called twice."""


class TerminalView:
    """Live on a terminal: two bars and the numbers beside them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._drawn = float("-inf")

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
        self._live.update(_panel(progress, self._console.width))

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """Replace the bars with one line."""
        self.close()
        self._console.print(_last_line(progress, seconds), highlight=False)

    def close(self) -> None:
        """Take the bars away, and give the cursor back."""
        self._live.stop()


class LogView:
    """One line a minute, for logs."""

    def __init__(
        self,
        write: Callable[[str], Any] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock = write or _tell, clock
        self._said = clock()

    def say(self, text: str) -> None:
        """A line."""
        self._write(text)

    def show(self, progress: Progress) -> None:
        """A line if a minute has passed."""
        now = self._clock()
        if now - self._said >= _LINE_S:
            self._said = now
            self._write(line(progress))

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """The last line."""
        self._write(_last_line(progress, seconds))

    def close(self) -> None:
        """Nothing."""


def _tell(text: str) -> None:
    """A line on the error stream; a study goes on, and is reported, where nobody reads that any more."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def view_for(console: Console) -> ProgressView:
    """Live on a terminal, lines elsewhere."""
    return TerminalView(console) if console.is_terminal else LogView()


def _panel(progress: Progress, width: int) -> Group:
    scored, to_score, trained, to_train = progress.counts
    bars = Table.grid(padding=(0, 1))
    bar_width = max(10, min(40, width - 42))
    for label, done, total in (("masks scored", scored, to_score), ("networks trained", trained, to_train)):
        if total:
            bars.add_row(label, ProgressBar(total=total, completed=done, width=bar_width), f"{done:,} / {total:,}")
    return Group(bars, Text(", ".join(_numbers(progress))))


def line(progress: Progress) -> str:
    """What has been done so far, in one line."""
    scored, to_score, trained, to_train = progress.counts
    masks = [f"{scored:,}/{to_score:,} masks scored"] if to_score else []
    parts = [*masks, f"{trained:,}/{to_train:,} networks trained", *_numbers(progress)]
    return f"{progress.design.name}: {', '.join(parts)}"


def _last_line(progress: Progress, seconds: float) -> str:
    did = f"done in {_duration(seconds)}" if progress.workers else "nothing was left to do"
    return f"{line(progress)}; {did}"


def _numbers(progress: Progress) -> list[str]:
    parts = [f"{progress.workers} workers"] if progress.workers else []
    if progress.workers and progress.rate:
        parts.append(f"{_count(progress.rate)} candidates/s")
    left = progress.seconds_left
    if np.isfinite(left) and left > 0:
        parts.append(f"{_duration(left)} left")
    if np.isfinite(progress.best_val_error):
        parts.append(f"best validation {_result(progress)}")
    if progress.front_size:
        parts.append(f"front of {progress.front_size:,}")
    if progress.n_failures:
        parts.append(f"{progress.n_failures:,} failed")
    return parts


def _result(progress: Progress) -> str:
    """The lowest validation error, as people read it."""
    name = progress.design.metric if isinstance(progress.design, Design) else "accuracy"
    value = float(METRICS[name].from_error(progress.best_val_error))
    return f"accuracy {value:.1%}" if name == "accuracy" else f"PSNR {value:.2f} dB"


def _duration(seconds: float) -> str:
    """Seconds for people.

    >>> _duration(75), _duration(8.2), _duration(7300)
    ('1 min 15 s', '8 s', '2 h 1 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"


def _count(rate: float) -> str:
    """A rate for people.

    >>> _count(1234.5), _count(12.34), _count(0.5)
    ('1,234', '12', '0.5')
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
