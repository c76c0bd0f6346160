"""The command line. Exit codes: 0 done, 1 the study ran and something in it failed, 2 the user's input is wrong."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.table import Table

from sparsefront.errors import ConfigError, SparsefrontError

if TYPE_CHECKING:
    import pyarrow as pa

    from sparsefront.search.verdict import Verdict


class _Parser(argparse.ArgumentParser):
    """Argument errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        print(f"sparsefront: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore", category=FutureWarning)
    try:
        code: int = options.function(options)
    except SparsefrontError as error:
        print(f"sparsefront: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sparsefront: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparsefront", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="start a study, or go on where it stopped", allow_abbrev=False)
    run.add_argument("study", metavar="STUDY.toml", type=Path)
    run.add_argument("--dir", type=Path, help="folder of the study (default: runs/<name>)")
    run.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides", help="override a value")
    run.add_argument("--address", help="address of a running Ray cluster (default: one on this machine)")
    run.set_defaults(function=_run)

    front = commands.add_parser("front", help="the non-dominated candidates", allow_abbrev=False)
    front.add_argument("dir", metavar="DIR", type=Path)
    front.add_argument("--where", metavar="EXPR", help="e.g. \"arm == 'searched' and node_sparsity >= 0.9\"")
    front.add_argument("--objectives", metavar="a,b", help="default: those of the study")
    front.add_argument("--format", choices=("table", "json", "csv", "parquet"), default="table")
    front.add_argument("--output", metavar="FILE", type=Path, help="write there instead of to the terminal")
    front.set_defaults(function=_front)

    verdict = commands.add_parser("verdict", help="better than, equivalent to or worse than random search?", allow_abbrev=False)
    verdict.add_argument("dir", metavar="DIR", type=Path)
    verdict.add_argument("--format", choices=("table", "json"), default="table")
    verdict.set_defaults(function=_verdict)

    report = commands.add_parser("report", help="write DIR/report.html: one self-contained page", allow_abbrev=False)
    report.add_argument("dir", metavar="DIR", type=Path)
    report.set_defaults(function=_report)

    record = commands.add_parser("record", help="mirror the study into MLflow (again)", allow_abbrev=False)
    record.add_argument("dir", metavar="DIR", type=Path)
    record.set_defaults(function=_record)

    listing = commands.add_parser("list", help="what there is to choose from", allow_abbrev=False)
    listing.add_argument("what", choices=("methods", "strategies", "datasets", "models"))
    listing.set_defaults(function=_list)

    doctor = commands.add_parser("doctor", help="check this machine, or a cluster", allow_abbrev=False)
    doctor.add_argument("--address", help="address of a running Ray cluster (default: one on this machine)")
    doctor.set_defaults(function=_doctor)
    return parser


def _run(options: argparse.Namespace) -> int:
    from sparsefront.progress import view_for
    from sparsefront.study import Study

    study = Study.from_toml(options.study, options.overrides)
    console = Console()
    results = study.run(options.dir, address=options.address, view=view_for(console))
    outcomes = results.outcomes()
    _print_verdict(console, results.verdict())
    console.print(f"\nreport: {results.folder / 'report.html'}", highlight=False, soft_wrap=True)
    if results.recorded is not None:
        if results.recorded.error is None:
            console.print(f"MLflow: {results.recorded.tracking_uri}", highlight=False, soft_wrap=True)
        else:
            console.print(
                f"MLflow: not recorded ({results.recorded.error}); run 'sparsefront record {results.folder}' later",
                highlight=False,
                soft_wrap=True,
            )
    failed = {k: n for k, n in outcomes.items() if k not in ("completed", "stopped")}
    if failed:
        listed = ", ".join(f"{n} {k}" for k, n in sorted(failed.items()))
        print(f"sparsefront: {listed} of {sum(outcomes.values())} candidates; see the report", file=sys.stderr)
        return 1
    return 0


def _front(options: argparse.Namespace) -> int:
    from sparsefront.search.ledger import write_table
    from sparsefront.study import load

    if options.format == "parquet" and options.output is None:
        raise ConfigError("--format parquet: needs --output FILE")
    results = load(options.dir)
    objectives = [o.strip() for o in options.objectives.split(",")] if options.objectives else list(results.study.verdict.objectives)
    table = results.front(where=options.where, objectives=objectives)
    if options.format == "parquet":
        write_table(table, options.output)
        return 0
    shown = list(
        dict.fromkeys(
            ["candidate", "arm", "replicate", "node_sparsity", "weight_sparsity", *_columns_of(objectives), "test_error"]
        )
    )
    if options.format == "table" and options.output is None:
        _print_front(Console(), table.select(shown))
        return 0
    text = _as_text(table if options.format in ("json", "csv") else table.select(shown), options.format)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


def _verdict(options: argparse.Namespace) -> int:
    from sparsefront.study import load

    verdict = load(options.dir).verdict()
    if options.format == "json":
        print(json.dumps(verdict.to_dict(), indent=2, allow_nan=False))
    else:
        _print_verdict(Console(), verdict)
    return 0


def _report(options: argparse.Namespace) -> int:
    from sparsefront.study import load

    print(load(options.dir).report())
    return 0


def _record(options: argparse.Namespace) -> int:
    from sparsefront.study import load

    result = load(options.dir).record()
    if result.error is not None:
        print(f"sparsefront: MLflow at {result.tracking_uri}: {result.error}; run the same command again later", file=sys.stderr)
        return 1
    print(f"{result.tracking_uri}: run {result.run_id}, front of {result.n_members}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from sparsefront.listing import listing

    title, rows = listing(options.what)
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from sparsefront.cluster.doctor import examine

    findings = examine(options.address)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    marks = {"good": "[green]ok[/green]", "warning": "[yellow]note[/yellow]", "bad": "[red]bad[/red]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.what, finding.detail)
    Console().print(table)
    return 1 if any(f.state == "bad" for f in findings) else 0


#: Columns of the verdict on a terminal, and their headings; `--format json` has all of them.
_VERDICT_COLUMNS = {
    "arm": "arm",
    "sparsity": "sparsity",
    "arm mean": "arm",
    "random mean": "random",
    "difference": "difference",
    "interval": "95% interval",
    "p": "p",
    "p equivalence": "p equiv.",
    "verdict": "verdict",
    "replicates needed": "needs n",
}
_COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def _print_verdict(console: Console, verdict: Verdict) -> None:
    from sparsefront.search.verdict import verdict_rows

    rows = verdict_rows(verdict)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        chosen = [row for row in rows if row["metric"] == metric]
        title = f"{metric} against random search at equal budget, in {chosen[0]['unit']}"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column, heading in _VERDICT_COLUMNS.items():
            left = column in ("arm", "verdict")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for row in chosen:
            colour = _COLOURS[row["verdict"]]
            cells = (f"[{colour}]{row[c]}[/{colour}]" if c == "verdict" else row[c] for c in _VERDICT_COLUMNS)
            table.add_row(*cells)
        console.print(table)
        for note in dict.fromkeys(row["note"] for row in chosen if row["note"]):
            arms = ", ".join(dict.fromkeys(f"{row['arm']} at {row['sparsity']}" for row in chosen if row["note"] == note))
            console.print(f"  note ({arms}): {note}", style="dim", highlight=False)
        console.print()
    console.print(verdict.headline, style="bold", highlight=False)
    for sentence in verdict.sentences[-1:]:  # the rank correlation; the others repeat the table
        console.print(sentence, highlight=False)


def _columns_of(objectives: Sequence[str]) -> list[str]:
    from sparsefront.search.objective import OBJECTIVES

    return [OBJECTIVES[name].column for name in objectives]


def _print_front(console: Console, table: pa.Table) -> None:
    shown = Table(box=None, padding=(0, 2, 0, 0), caption=f"{table.num_rows} candidates on the front", caption_justify="left")
    for name in table.column_names:
        shown.add_column(name, justify="left" if name in ("candidate", "arm") else "right", no_wrap=True)
    for row in table.to_pylist():
        shown.add_row(*(_cell(name, value) for name, value in row.items()))
    console.print(shown)


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "candidate":
        return str(value)[:12]
    return f"{value:.4g}" if isinstance(value, float) else (f"{value:,}" if isinstance(value, int) else str(value))


def _as_text(table: pa.Table, kind: str) -> str:
    if kind == "json":
        return json.dumps(table.to_pylist(), indent=2, default=str)
    if kind == "csv":
        flat = table.drop_columns([f.name for f in table.schema if str(f.type).startswith("list")])
        lines = [flat.column_names, *(row.values() for row in flat.to_pylist())]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue().rstrip("\n")
    console = Console(file=io.StringIO(), width=200)
    _print_front(console, table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip("\n")


if __name__ == "__main__":
    raise SystemExit(main())
