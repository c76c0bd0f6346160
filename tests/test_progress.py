"""Progress: the numbers, and how a terminal and a log show them, on a clock of the test's own."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from sparsefront.progress import LogView, Progress, TerminalView, _panel, view_for
from sparsefront.search.design import Design
from sparsefront.search.schema import SCHEMA

DESIGN = Design(
    name="tiny",
    seed=1,
    replicates=1,
    sparsities=(0.5,),
    arms=("random", "searched"),
    draws=1_000_000,
    random_draws=8,
    probe_size=8,
    steps=10,
    mask_kind="node",
    allocation="uniform",
    model="mlp",
    dataset="digits",
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Study:
    """Totals that a test sets."""

    def __init__(self) -> None:
        self.counts = [0, 1_000_000, 0, 9]
        self.clock = Clock()
        self.progress = Progress(DESIGN, lambda: tuple(self.counts), clock=self.clock)  # type: ignore[arg-type, return-value]


def rows(*changes: dict[str, Any]) -> pa.RecordBatch:
    base = {
        "candidate": "a",
        "stage": "trained",
        "arm": "random",
        "replicate": 0,
        "target_sparsity": 0.5,
        "slot": 0,
        "outcome": "completed",
        "reused": False,
        "val_error": 0.25,
        "n_params": 10,
        "macs": 10,
        "seconds": 2.0,
    }
    return pa.RecordBatch.from_pylist([{**base, "slot": i, **c} for i, c in enumerate(changes)], schema=SCHEMA)


def test_numbers_come_from_committed_rows() -> None:
    study = Study()
    progress = study.progress
    progress.absorb(rows({"candidate": "a"}, {"candidate": "b", "val_error": 0.2, "n_params": 20, "macs": 20}))
    progress.absorb(rows({"candidate": "c", "val_error": None, "outcome": "diverged"}))
    progress.absorb(rows({"stage": "scored", "outcome": "lost", "val_error": None}))
    progress.absorb(rows({"candidate": "b", "val_error": 0.2, "n_params": 20, "macs": 20, "reused": True}))
    assert progress.best_val_error == 0.2
    assert progress.front_size == 2
    assert progress.n_failures == 2


def test_a_failure_that_several_arms_share_counts_once() -> None:
    study = Study()
    study.progress.absorb(rows({"outcome": "failed"}, {"outcome": "failed", "reused": True}))
    assert study.progress.n_failures == 1


def test_the_rate_leaves_out_what_was_done_before() -> None:
    study = Study()
    study.counts = [5_000, 1_000_000, 0, 9]
    assert study.progress.rate == 0.0
    study.progress.start(4)
    study.clock.now_s += 10
    study.counts = [9_990, 1_000_000, 10, 9]
    assert study.progress.rate == 500.0


def test_the_time_left_follows_from_the_workers_time() -> None:
    study = Study()
    progress = study.progress
    progress.start(2)
    assert math.isnan(progress.seconds_left)
    study.counts = [3, 13, 0, 6]
    progress.absorb(rows(*({"stage": "scored", "seconds": 1.0} for _ in range(3))))
    assert math.isnan(progress.seconds_left)
    study.counts = [3, 13, 2, 6]
    progress.absorb(rows({}, {}))
    assert progress.seconds_left == (10 * 1.0 + 4 * 2.0) / 2
    study.counts = [13, 13, 6, 6]
    assert progress.seconds_left == 0.0


def test_a_log_gets_one_line_a_minute() -> None:
    study = Study()
    study.progress.design = dataclasses.replace(DESIGN, name="s")
    lines: list[str] = []
    view = LogView(lines.append, clock=study.clock)
    view.say("starting")
    study.progress.start(2)
    for _ in range(250):
        study.clock.now_s += 0.5
        view.show(study.progress)
    study.counts = [1_000_000, 1_000_000, 9, 9]
    view.finish(study.progress, seconds=125.0)
    view.close()
    assert lines == [
        "starting",
        "s: 0/1,000,000 masks scored, 0/9 networks trained, 2 workers",
        "s: 0/1,000,000 masks scored, 0/9 networks trained, 2 workers",
        "s: 1,000,000/1,000,000 masks scored, 9/9 networks trained, 2 workers, 8,000 candidates/s; done in 2 min 5 s",
    ]


def test_nothing_left_to_do_is_said() -> None:
    study = Study()
    lines: list[str] = []
    LogView(lines.append).finish(study.progress, seconds=1.0)
    assert lines == ["tiny: 0/1,000,000 masks scored, 0/9 networks trained; nothing was left to do"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_bars_fit_the_terminal(width: int) -> None:
    study = Study()
    study.progress.absorb(rows({}, {"outcome": "lost", "val_error": None}))
    study.progress.start(64)
    study.counts = [999_999, 1_000_000, 5, 9]
    study.clock.now_s += 3600
    out = io.StringIO()
    Console(file=out, width=width).print(_panel(study.progress, width))
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    if width >= 80:
        assert "999,999 / 1,000,000" in text
        assert "64 workers, 278 candidates/s, " in text
        assert "best validation accuracy 75.0%, front of 1, 1 failed" in " ".join(text.split())


def test_a_terminal_is_left_as_it_was() -> None:
    study = Study()
    out = io.StringIO()
    view = view_for(Console(file=out, force_terminal=True, width=80))
    assert isinstance(view, TerminalView)
    view.say("starting")
    view.close()  # before anything was shown
    view.show(study.progress)
    view.close()
    view.close()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert out.getvalue().count(hidden) == out.getvalue().count(shown) == 1
    assert isinstance(view_for(Console(file=out)), LogView)


def test_a_study_goes_on_where_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `sparsefront run STUDY 2>&1 | head`: its report is written all the same."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    LogView().say("starting")
