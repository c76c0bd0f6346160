"""The command line. Exit codes: 0 done, 1 the study ran and something in it failed, 2 the user's input is wrong."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sparsefront.errors import ConfigError, LedgerError, SpaceError, SparsefrontError

if TYPE_CHECKING:
    import pyarrow as pa

    from sparsefront.results import Results
    from sparsefront.search.claims import ClaimFinding
    from sparsefront.search.comparison import SearchVerdict
    from sparsefront.search.findings import Verdict


_FRONT_FORMATS = ("table", "json", "csv", "parquet")
_LISTS = (
    "methods",
    "strategies",
    "rungs",
    "objectives",
    "simulations",
    "spaces",
    "allocations",
    "scores",
    "patterns",
    "updates",
    "controls",
    "qualities",
    "datasets",
    "models",
)
#: Other words for them.
_ALSO_CALLED = {"schedules": "updates"}


class _Parser(argparse.ArgumentParser):
    """Argument errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see '{self.prog} --help'")
        raise SystemExit(2)


class _Console(Console):
    """A console that lets a reader close its end early; what is no terminal gets lines as long as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = 200

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Text to be written, without the blanks that rich fills lines with where nobody sees a background."""
        text = super()._render_buffer(buffer)
        return text if self.is_terminal else re.sub(r"[ \t]+(?=\n)", "", text)

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore", category=FutureWarning)
    try:
        code: int = options.function(options)
        sys.stdout.flush()
    except (ConfigError, SpaceError, LedgerError) as error:
        _complain(str(error))
        return 2
    except SparsefrontError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted" + ("; run the same command to go on" if options.function is _run else ""))
        return 130
    except BrokenPipeError:
        # Nobody reads on: what is still buffered must not fail when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _complain(message: str) -> None:
    """One line on stderr, without anything that a terminal would obey."""
    line = " ".join(message.split())
    print(f"sparsefront: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)}", file=sys.stderr)


def _path(text: str) -> Path:
    """A path that was given, and is not the empty value of a forgotten variable."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


#: What commands are told of, wherever they take it.
_STUDY = "file that says what the study is; examples/ has some to start from"
_DIR = "folder of a study that was run (default of 'run': runs/<name>)"
_OVERRIDE = "another value for one key of the file, as in training.steps=500; again for more"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sparsefront",
        description="Train pruning methods and searches for sparse networks beside random search, at equal budget, and "
        "say which are better; and find the Pareto front of error and size.",
        epilog="Exit codes: 0 done, 1 the study ran and something in it failed, 2 the user's input is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"sparsefront {importlib.metadata.version('sparsefront')}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser(
        "run",
        help="start a study, or go on where it stopped",
        description="Start a study. However it was stopped, the same line again goes on where it was: what is done is "
        "not done again. At the end the verdict is printed and the report written.",
        allow_abbrev=False,
    )
    run.add_argument("study", metavar="STUDY.toml", type=_path, help=_STUDY)
    run.add_argument("--dir", type=_path, help="folder of the study (default: runs/<name>)")
    run.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides", help=_OVERRIDE)
    run.add_argument("--address", help="address of a running Ray cluster (default: one on this machine)")
    run.set_defaults(function=_run)

    front = commands.add_parser("front", help="the non-dominated candidates", allow_abbrev=False)
    front.add_argument("dir", metavar="DIR", type=_path, help=_DIR)
    front.add_argument("--where", metavar="EXPR", help="e.g. \"arm == 'searched' and node_sparsity >= 0.9\"")
    front.add_argument("--objectives", metavar="a,b", help="default: those of the study")
    front.add_argument("--format", choices=_FRONT_FORMATS, help="default: as the output is called, else table")
    front.add_argument("--output", metavar="FILE", type=_path, help="write there instead of to the terminal")
    front.set_defaults(function=_front)

    verdict = commands.add_parser(
        "verdict", help="better than, equivalent to or worse than random search?", allow_abbrev=False
    )
    verdict.add_argument("dir", metavar="DIR", type=_path, help=_DIR)
    verdict.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    verdict.set_defaults(function=_verdict)

    claims = commands.add_parser(
        "claims", help="are the claims of papers reproduced by the studies that test them?", allow_abbrev=False
    )
    claims.add_argument("dirs", metavar="DIR", nargs="+", type=_path, help=f"{_DIR}; one or several")
    claims.add_argument("--format", choices=("table", "markdown", "json"), default="table", help="default: table")
    claims.add_argument(
        "--output",
        metavar="FILE",
        type=_path,
        help="write there instead of to the terminal; a page with the marks that docs/claims.md has keeps the rest",
    )
    claims.set_defaults(function=_claims)

    report = commands.add_parser("report", help="write DIR/report.html: one self-contained page", allow_abbrev=False)
    report.add_argument("dir", metavar="DIR", type=_path, help=_DIR)
    report.set_defaults(function=_report)

    record = commands.add_parser("record", help="mirror the study into MLflow (again)", allow_abbrev=False)
    record.add_argument("dir", metavar="DIR", type=_path, help=_DIR)
    record.set_defaults(function=_record)

    simulate = commands.add_parser(
        "simulate", help="a search with imaginary workers: nothing is trained or written", allow_abbrev=False
    )
    simulate.add_argument(
        "study", metavar="STUDY.toml|DIR", type=_path, help="a study, or the folder of a finished one"
    )
    simulate.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides", help=_OVERRIDE)
    simulate.add_argument(
        "--objective", metavar="NAME", help="what candidates reach (default: tradeoff); see 'list simulations'"
    )
    simulate.add_argument("--ledger", metavar="DIR", type=_path, help="replay the results of this finished search")
    simulate.add_argument("--workers", metavar="N", type=int, help="packs at once (default: cores of this machine)")
    simulate.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    simulate.set_defaults(function=_simulate)

    listing = commands.add_parser("list", help="what there is to choose from", allow_abbrev=False)
    listing.add_argument(
        "what", type=lambda what: _ALSO_CALLED.get(what, what), choices=_LISTS, nargs="?", help="what to list"
    )
    listing.set_defaults(function=_list)

    doctor = commands.add_parser(
        "doctor",
        help="check this machine, or a cluster",
        description="Check versions, memory, disk, devices, training, Ray and MLflow. Without --address it starts Ray "
        "on this machine, as a study does, and ends it again: that takes some seconds.",
        allow_abbrev=False,
    )
    doctor.add_argument("--address", help="address of a running Ray cluster (default: one on this machine)")
    doctor.set_defaults(function=_doctor)
    return parser


def _import_beside(path: Path) -> None:
    """Let a study name modules in the current folder and beside its file; they hide no module that is there."""
    for folder in (str(Path.cwd()), str(path.absolute().parent)):
        if folder not in sys.path:
            sys.path.append(folder)


def _run(options: argparse.Namespace) -> int:
    from sparsefront.progress import view_for
    from sparsefront.study import Study, attributed

    _import_beside(options.study)
    study = Study.from_toml(options.study, options.overrides)
    console = _Console()
    try:
        results = study.run(options.dir, address=options.address, view=view_for(console))
    except ConfigError as error:
        raise ConfigError(attributed(str(error), str(options.study), options.overrides)) from error
    console.print()
    _print_verdict(console, results.verdict(), alpha=results.design.alpha)
    _print_unmet(console, results)
    _print_exhausted(console, results)
    console.print()
    console.print(Text(f"report: {results.folder / 'report.html'}"), soft_wrap=True)
    if results.recorded is not None:
        shown = results.recorded.tracking_uri
        if results.recorded.error is not None:
            shown = f"not recorded ({results.recorded.error}); run 'sparsefront record {results.folder}' later"
        console.print(Text(f"MLflow: {shown}"), soft_wrap=True)
    outcomes = results.outcomes()
    failed = {k: n for k, n in sorted(outcomes.items()) if k not in ("completed", "stopped", "infeasible")}
    if failed:
        listed = ", ".join(f"{n:,} {k}" for k, n in failed.items())
        _complain(f"{listed} of {sum(outcomes.values()):,} candidates; the report says which, and why")
        return 1
    return 0


def _front(options: argparse.Namespace) -> int:
    from sparsefront.results import load
    from sparsefront.search.ledger import write_table
    from sparsefront.search.objective import OBJECTIVES

    if options.output is not None:
        _check_output(options.output)
        called = options.output.suffix.removeprefix(".")
        if called in _FRONT_FORMATS and options.format not in (None, called):
            raise ConfigError(f"--format {options.format}: --output {options.output} is called otherwise; change one")
        options.format = options.format or (called if called in _FRONT_FORMATS else "table")
    elif options.format == "parquet":
        raise ConfigError("--format parquet: is no text to print; name a file, as in --output front.parquet")
    options.format = options.format or "table"
    results = load(options.dir)
    objectives: Sequence[str] = results.design.objectives
    if options.objectives is not None:
        objectives = [name.strip() for name in options.objectives.split(",")]
    table = results.front(where=options.where, objectives=objectives)
    if on_test := [name for name in objectives if OBJECTIVES[name].on_test]:
        _complain(f"{', '.join(on_test)}: measured on test examples, by which nothing may be chosen")
    if options.where is not None and not table.num_rows:
        n = results.to_arrow(where=options.where, columns=["stage"]).num_rows
        what = f"only {n:,} rows that can be on no front" if n else "nothing in this ledger"
        _complain(f"--where {options.where}: matches {what}")
    try:
        if options.format == "parquet":
            write_table(table, options.output.resolve())
            return 0
        text = {"json": _json, "csv": _csv}[options.format](table) if options.format != "table" else None
        if options.output is not None:
            with options.output.open("w", encoding="utf-8") as file:
                if text is None:
                    _print_front(_Console(file=file, width=200), table, results, objectives, where=options.where)
                else:
                    file.write(text)
            return 0
    except OSError as error:
        raise ConfigError(f"--output {options.output}: cannot be written ({error.strerror})") from error
    if text is None:
        _print_front(_Console(), table, results, objectives, where=options.where)
    else:
        print(text, end="")
    return 0


def _check_output(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is read."""
    if path.is_dir():
        raise ConfigError(f"--output {path}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output {path}: {path.absolute().parent} is no folder; make it first")


def _print_unmet(console: Console, results: Results) -> None:
    """Say which constraints nothing meets: a search then has no front, and nothing to judge."""
    for clause in results.unmet_constraints():
        console.print(Text(clause, style="yellow"))


def _print_exhausted(console: Console, results: Results) -> None:
    """Say where a search had no more candidates: it is finished, with fewer than were asked for."""
    for clause in results.exhausted():
        console.print(Text(clause, style="dim"))


def _unfinished(console: Console, results: Results) -> None:
    """Say so if a study is not finished: its numbers will change."""
    trained, to_train = results.n_trained()
    if trained < to_train:
        text = f"not finished: {trained:,} of {to_train:,} networks trained; 'sparsefront run' goes on"
        console.print(Text(text, style="yellow"))


def _verdict(options: argparse.Namespace) -> int:
    from sparsefront.results import load

    results = load(options.dir)
    verdict = results.verdict()
    if options.format == "json":
        print(json.dumps(verdict.to_dict(), indent=2, allow_nan=False))
    else:
        console = _Console()
        _print_verdict(console, verdict, alpha=results.design.alpha)
        _print_unmet(console, results)
        _print_exhausted(console, results)
        _unfinished(console, results)
    return 0


def _claims(options: argparse.Namespace) -> int:
    from sparsefront.search.claim_words import claim_dict, claims_markdown, replaced

    if options.output is not None:
        _check_output(options.output)
    findings = _claim_findings(options.dirs)
    text = None
    if options.format == "json":
        text = json.dumps([claim_dict(finding) for finding in findings], indent=2, allow_nan=False) + "\n"
    elif options.format == "markdown":
        text = claims_markdown(findings)
    if options.output is None:
        if text is None:
            _print_claims(_Console(), findings)
        else:
            print(text, end="")
        return 0
    try:
        if options.format == "markdown" and options.output.exists():
            text = replaced(options.output.read_text(encoding="utf-8"), text or "")
        with options.output.open("w", encoding="utf-8") as file:
            if text is None:
                _print_claims(_Console(file=file, width=200), findings)
            else:
                file.write(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--output {options.output}: cannot be written ({error})") from error
    return 0


def _claim_findings(folders: Sequence[Path]) -> list[ClaimFinding]:
    """What the studies found that state a claim; which folders hold none is said, so that a whole folder can be given.

    Raises:
        ConfigError: nothing states a claim, or two studies that count have the same name.
    """
    from sparsefront.results import load

    if len(folders) == 1:
        return [load(folders[0]).claims()]
    left_out = {f: "is no study" for f in folders if f.exists() and not os.path.lexists(f / "study.json")}
    loaded = [load(folder) for folder in folders if folder not in left_out]
    findings = {id(results): results.claims(*loaded) for results in loaded if results.states_claim}
    if not findings:
        raise ConfigError(
            f"DIR={folders[0]} and {len(folders) - 1} more: no study in them states a claim; add [claim] to a study's "
            "file and run it again, which trains nothing that is there"
        )
    named = {test.than for finding in findings.values() for test in finding.claim.tests}
    names: dict[str, Path] = {}
    for results in loaded:
        name = results.design.name
        if id(results) not in findings and name not in named:
            left_out[results.folder] = "its study states no claim"
        elif names.setdefault(name, results.folder) is not results.folder:
            raise ConfigError(
                f"DIR={results.folder}: holds a study called {name!r}, as {names[name]} does; give one of them"
            )
    for folder, why in left_out.items():
        _complain(f"DIR={folder}: {why}; left out")
    return list(findings.values())


def _report(options: argparse.Namespace) -> int:
    from sparsefront.results import load

    print(load(options.dir).report())
    return 0


def _record(options: argparse.Namespace) -> int:
    from sparsefront.results import load

    result = load(options.dir).record()
    if result.error is not None:
        _complain(f"MLflow at {result.tracking_uri}: {result.error}; run the same command again later")
        return 1
    print(f"{result.tracking_uri}: run {result.run_id}, front of {result.n_members}")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from sparsefront.results import load
    from sparsefront.search.simulator import SYNTHETIC
    from sparsefront.study import SearchStudy, Study, attributed

    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: must be at least 1")
    _import_beside(options.study)
    if options.study.is_dir():
        source, ledger = str(options.study), options.ledger or options.study
        study = Study.from_dict(load(options.study).identity, source=source)
    else:
        source, ledger = str(options.study), options.ledger
        study = Study.from_toml(options.study, options.overrides)
    if not isinstance(study, SearchStudy):
        raise ConfigError(f"{source}: has no section 'space'; only searches can be simulated")
    try:
        found = study.simulate(objective=options.objective, ledger=ledger, workers=options.workers)
    except ConfigError as error:
        raise ConfigError(attributed(str(error), source, options.overrides)) from error
    rows = found.as_table()
    took, objective = found.simulated, options.objective or "tradeoff"
    if options.format == "json":
        of_what = {"objective": objective if ledger is None else None, "ledger": ledger and str(ledger)}
        of_what["ledger_trained"], of_what["ledger_to_train"] = (
            (None, None) if ledger is None else load(ledger).n_trained()
        )
        numbers = {**of_what, "makespan_s": took.makespan_s, "utilisation": took.utilisation, "packs": took.n_packs}
        numbers |= {"replicates": found.replicates, "remarks": found.remarks}
        print(json.dumps({**numbers, "metric": found.metric, "arms": [_plain(row) for row in rows]}, indent=2))
        return 0
    console = _Console()
    for remark in found.remarks:
        console.print(Text(remark, style="yellow"))
    headings = [name for name in rows[0] if name not in ("low", "high")]
    _table(
        console,
        [
            _Column(
                name.replace("_", "\n"),
                [_cell(name, row[name]) for row in rows],
                rank=0 if name in ("arm", found.metric, "passes", "candidates") else 1,
                is_left=name == "arm",
            )
            for name in headings
        ],
        title=f"simulated: {study.name}",
    )
    each = f"means over {found.replicates:,} replicates" if found.replicates > 1 else "those of its one replicate"
    console.print(Text(f"passes, candidates, reused and infeasible are {each}", style="dim"))
    console.print(
        Text(
            f"{took.n_packs:,} packs of {took.lanes_each:.1f} candidates in all; {took.makespan_s:,.0f} simulated "
            f"seconds, workers busy {took.utilisation:.0%}",
            style="dim",
        )
    )
    reached = f"is replayed from the ledger in {ledger}"
    if ledger is None:
        what = SYNTHETIC[objective].summary
        reached = f"is made up, by the synthetic objective '{objective}' ({what})"
    console.print(Text(f"what candidates reach {reached}; nothing was trained", style="yellow"))
    if ledger is not None:
        _unfinished(console, load(ledger))
    return 0


def _list(options: argparse.Namespace) -> int:
    from sparsefront.listing import listing

    if options.what is None:
        raise ConfigError(f"list: say what to list, one of {', '.join(_LISTS)}; as in 'sparsefront list {_LISTS[0]}'")
    console = _Console()
    for name, facts in listing(options.what).items():
        console.print(Text(name, style="bold"))
        for fact, value in facts.items():
            console.print(Padding(Text(value if fact == "what" else f"{fact}: {value}"), (0, 0, 0, 4)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from sparsefront.cluster.doctor import examine

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    colours = {"good": "green", "warning": "yellow", "bad": "red"}
    findings = examine(options.address)
    for finding in findings:
        table.add_row(Text(finding.state, style=colours[finding.state]), finding.what, Text(finding.detail))
    _Console().print(table)
    return 1 if any(finding.state == "bad" for finding in findings) else 0


# Tables --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of a table on a terminal; where there is no room, those of the highest `rank` are left out first."""

    heading: str
    cells: Sequence[str]
    rank: int = 0
    is_left: bool = False

    @property
    def width(self) -> int:
        """Characters of its widest line."""
        return max(len(line) for cell in (self.heading, *self.cells) for line in cell.split("\n"))


#: Columns of words, which stand on the left.
_WORDS = ("study", "tested", "arm", "against", "control", "verdict")
_GAP = 2
_COLOURS = {
    "better": "green",
    "worse": "red",
    "equivalent": "cyan",
    "undecided": "yellow",
    "not judged": "dim",
    "reproduced": "green",
    "not reproduced": "red",
    "inconclusive": "yellow",
}


def _column(rows: Sequence[Mapping[str, str]], heading: str, name: str, *, rank: int = 0) -> _Column:
    """The column called `name` of some rows."""
    return _Column(heading, [row[name] for row in rows], rank, is_left=name in _WORDS)


def _table(console: Console, columns: Iterable[_Column], *, title: str | None = None) -> list[str]:
    """Print columns as far as they fit, and return the headings of those that do not."""
    shown = list(columns)
    left_out: list[str] = []
    while sum(c.width + _GAP for c in shown) - _GAP > console.width and any(c.rank for c in shown):
        widest = max(shown, key=lambda c: c.rank)
        shown.remove(widest)
        left_out.append(widest.heading.replace("-\n", "").replace("\n", " "))
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, _GAP, 0, 0), pad_edge=False
    )
    for column in shown:
        table.add_column(column.heading, justify="left" if column.is_left else "right", no_wrap=True, vertical="bottom")
    for row in zip(*(c.cells for c in shown), strict=True):
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    console.print(table)
    return left_out


def _print_claims(console: Console, findings: Sequence[ClaimFinding]) -> None:
    from sparsefront.search.claim_words import claim_rows, whole

    rows = claim_rows(findings)
    levels = {f"{100 * (1 - finding.alpha):g}%" for finding in findings}
    columns = (
        _column(rows, "study", "study"),
        _column(rows, "tested", "tested"),
        _column(rows, "sparsity", "sparsity"),
        _column(rows, "metric", "metric", rank=1),
        _column(rows, "expected", "expected", rank=2),
        _column(rows, "diff.", "difference"),
        _column(rows, f"{levels.pop()} interval" if len(levels) == 1 else "interval", "interval"),
        _column(rows, "unit", "unit", rank=4),
        _column(rows, "p (Holm)", "p", rank=6),
        _column(rows, "p equiv.", "p equivalence", rank=7),
        _column(rows, "pairs", "pairs", rank=5),
        _column(rows, "verdict", "verdict"),
    )
    left_out = _table(console, columns)
    for row in rows:
        if row["note"]:
            note = f"{row['study']}, {row['tested']} at {row['sparsity']}: {row['note']}"
            console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
    console.print()
    for finding in findings:
        console.print(Text(f"{finding.study}: {whole(finding)}", style="bold"))
        console.print(Padding(Text(f"{finding.claim.claim} ({finding.claim.paper})"), (0, 0, 0, 2)))
        console.print(Padding(Text(f"original: {finding.claim.original_scale}", style="dim"), (0, 0, 0, 2)))
        console.print(Padding(Text(f"here: {finding.claim.our_scale}", style="dim"), (0, 0, 0, 2)))
    _print_left_out(console, left_out)


def _print_verdict(console: Console, verdict: Verdict | SearchVerdict, *, alpha: float) -> None:
    from sparsefront.search.comparison import SearchVerdict

    if isinstance(verdict, SearchVerdict):
        _print_search_verdict(console, verdict, alpha=alpha)
    else:
        _print_mask_verdict(console, verdict, alpha=alpha)


def _print_search_verdict(console: Console, verdict: SearchVerdict, *, alpha: float) -> None:
    from sparsefront.search.comparison import NEVER_REACHED, verdict_rows
    from sparsefront.search.wording import control_rows

    rows = verdict_rows(verdict)
    left_out: list[str] = []
    if rows:
        columns = (
            _column(rows, "arm", "arm"),
            _column(rows, "against", "against"),
            _column(rows, "arm", "arm mean", rank=1),
            _column(rows, "against", "against mean", rank=2),
            _column(rows, "diff.", "difference"),
            _column(rows, f"{100 * (1 - alpha):g}% interval", "interval"),
            _column(rows, "p (Holm)", "p", rank=4),
            _column(rows, "p equiv.", "p equivalence", rank=5),
            _column(rows, "verdict", "verdict"),
            _column(rows, "budget\nneeded", "cost ratio", rank=3),
            _column(rows, "needs n", "replicates needed", rank=6),
        )
        left_out = _table(console, columns, title=f"{rows[0]['metric']} at equal budget, in {rows[0]['unit']}")
        for row in rows:
            if row["note"] not in ("", NEVER_REACHED):  # which a sentence below says
                console.print(Padding(Text(f"{row['arm']}: {row['note']}", style="dim"), (0, 0, 0, 2)))
        console.print()
    controls = control_rows(verdict.controls)
    left_out += _print_controls(console, controls, each="candidate by candidate", alpha=alpha)
    console.print(Text(verdict.headline, style="bold"))
    for sentence in verdict.sentences[len(rows) + len(verdict.controls) :]:  # the first ones say what tables do
        console.print(Text(sentence))
    _print_left_out(console, left_out)


def _print_left_out(console: Console, headings: Iterable[str]) -> None:
    """Say which columns had no room."""
    if listed := ", ".join(dict.fromkeys(headings)):
        console.print(Text(f"(no room for {listed}; --format json has everything)", style="dim"))


def _print_mask_verdict(console: Console, verdict: Verdict, *, alpha: float) -> None:
    from sparsefront.search.wording import control_rows, verdict_rows

    rows, controls = verdict_rows(verdict), control_rows(verdict.controls)
    left_out: list[str] = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        chosen = [row for row in rows if row["metric"] == metric]
        title = f"{metric} against random search at equal budget, in {chosen[0]['unit']}"
        left_out += _print_judged(console, chosen, against="random", title=title, alpha=alpha)
    left_out += _print_controls(console, controls, each="one network each", alpha=alpha)
    console.print(Text(verdict.headline, style="bold"))
    n_of_table = len({(row["metric"], row["arm"]) for row in rows}) + len({(r["arm"], r["control"]) for r in controls})
    for sentence in verdict.sentences[n_of_table:]:  # the first ones say what the table does
        console.print(Text(sentence))
    _print_left_out(console, left_out)


def _print_controls(console: Console, rows: Sequence[Mapping[str, str]], *, each: str, alpha: float) -> list[str]:
    """Print what arms came to against their controls, if they have any, as `_print_judged` does."""
    if not rows:
        return []
    what = f"{rows[0]['metric']} in {rows[0]['unit']}"
    title = f"Arms against their controls, {each}: {what}"
    return _print_judged(console, rows, against="control", title=title, alpha=alpha)


def _print_judged(
    console: Console, rows: Sequence[Mapping[str, str]], *, against: str, title: str, alpha: float
) -> list[str]:
    """Print what arms came to `against` another network, and return the headings that had no room."""
    columns = (
        _column(rows, "arm", "arm"),
        *([_column(rows, "control", "control")] if against == "control" else []),
        *([_column(rows, "sparsity", "sparsity")] if any(row["sparsity"] for row in rows) else []),
        _column(rows, "arm", "arm mean", rank=1),
        _column(rows, against, f"{against} mean", rank=2),
        _column(rows, "saved" if rows[0]["metric"] == "convergence" else "diff.", "difference"),
        _column(rows, f"{100 * (1 - alpha):g}% interval", "interval"),
        _column(rows, "p (Holm)", "p", rank=4),
        _column(rows, "p equiv.", "p equivalence", rank=5),
        _column(rows, "verdict", "verdict"),
        _column(rows, "needs n", "replicates needed", rank=3),
    )
    left_out = _table(console, columns, title=title)
    _print_notes(console, rows)
    return left_out


def _print_notes(console: Console, rows: Iterable[Mapping[str, str]]) -> None:
    """Print the remarks on rows of a table, each once with its places, and an empty line."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            who = f"{row['arm']} against {row['control']}" if "control" in row else row["arm"]
            notes.setdefault(row["note"], []).append(f"{who} at {row['sparsity']}" if row["sparsity"] else who)
    for note, places in notes.items():
        console.print(Padding(Text(f"{note}: {', '.join(places)}", style="dim"), (0, 0, 0, 2)))
    console.print()


def _dimensions(results: Results) -> list[str]:
    """Dimensions of a search's space; none of a study of masks."""
    from sparsefront.search.design import SearchDesign

    if not isinstance(results.design, SearchDesign):
        return []
    return list(dict.fromkeys(name for arm in results.design.arms for name, _ in arm.space.columns))


def _print_front(
    console: Console, table: pa.Table, results: Results, objectives: Sequence[str], *, where: str | None
) -> None:
    from sparsefront.search.filters import ALIASES, where_columns
    from sparsefront.search.objective import objectives_named

    dimensions = _dimensions(results)
    is_weight = results.design.mask_kind == "weight"  # whose nodes are all there, or nearly
    fixed = {
        "candidate": ("candidate", 0),
        "arm": ("arm", 0),
        "replicate": ("repli-\ncate", 4),
        **({} if dimensions else {"target_sparsity": ("level", 6)}),
        **({} if is_weight else {"node_sparsity": ("node\nsparsity", 5 if dimensions else 1)}),
        "weight_sparsity": ("weight\nsparsity", 3),
    }
    chosen = {o.column: (o.column.replace("_", "\n"), 0) for o in objectives_named(objectives)}
    searched = {name: (name.replace("_", "\n"), 10 + i) for i, name in enumerate(dimensions)}
    columns = {**fixed, **chosen, "test_error": ("test\nerror", 2), **searched}
    # What was asked for is what somebody wants to see: of a dimension named like an alias, the dimension.
    asked = where_columns(where) if where is not None else []
    asked = [name if name in table.schema.names else ALIASES[name] for name in asked]
    for name in asked:
        if name not in ("stage", "outcome", "reused") and not str(table.schema.field(name).type).startswith("list"):
            columns[name] = (columns.get(name, (name.replace("_", "\n"), 0))[0], min(columns.get(name, (0, 1))[1], 1))
    left_out = _table(
        console,
        [
            _Column(
                heading, [_cell(name, value) for value in table[name].to_pylist()], rank, name in ("candidate", "arm")
            )
            for name, (heading, rank) in columns.items()
        ],
    )
    note = f"; no room for {', '.join(left_out)}: take a wider terminal, or --format csv" if left_out else ""
    counted = f"{table.num_rows:,} candidate{'s' * (table.num_rows != 1)} on the front"
    console.print(Text(f"{counted}{note}", style="dim"))
    _print_unmet(console, results)


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "candidate":
        return str(value)[:12]
    return f"{value:.4g}" if isinstance(value, float) else (f"{value:,}" if isinstance(value, int) else str(value))


def _json(table: pa.Table) -> str:
    return json.dumps([_plain(row) for row in table.to_pylist()], indent=2, default=str, allow_nan=False) + "\n"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _csv(table: pa.Table) -> str:
    """The table without its learning curves, which no cell could hold."""
    flat = table.drop_columns([f.name for f in table.schema if str(f.type).startswith("list")])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([flat.column_names, *(r.values() for r in flat.to_pylist())])
    return text.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
