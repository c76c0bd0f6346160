"""Results of a study: what its folder holds, read without anything that a study needs to run (torch, Ray)."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sparsefront.cluster.record import RecordResult, record_in_process
from sparsefront.errors import ConfigError, LedgerError, SparsefrontError
from sparsefront.search.attainment import within_constraints
from sparsefront.search.claims import Claim, ClaimFinding, Evidence, claim_columns, judge_claim
from sparsefront.search.comparison import SearchVerdict, compare_arms, verdict_columns
from sparsefront.search.controlled import controlled_columns, count_controls
from sparsefront.search.design import SearchDesign
from sparsefront.search.exhaustion import Exhausted, exhausted_runs, exhaustion_clauses, exhaustion_columns
from sparsefront.search.feasibility import feasibility_columns, unmet_constraints
from sparsefront.search.filters import ALIASES_OF_SEARCHES, parse_where
from sparsefront.search.findings import Verdict
from sparsefront.search.front import front, front_columns
from sparsefront.search.ledger import Ledger
from sparsefront.search.ledger.disk import Disk, read_plain, write_atomically
from sparsefront.search.objective import objectives_named
from sparsefront.search.pack_times import PACK_TIME_COLUMNS, PackTimes, pack_times
from sparsefront.search.plan import Plan
from sparsefront.search.resolved import design_of
from sparsefront.search.schema import SCHEMA, VALUES
from sparsefront.search.verdict import VERDICT_COLUMNS, judge
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.spaces.domains import Choice

REPORT = "report.html"
CLAIM = "claim.json"


class Results:
    """What a study's folder holds: everything is a function of its ledger."""

    def __init__(self, folder: str | Path) -> None:
        """Open for reading; the ledger is read anew by every method.

        Raises:
            ConfigError: if there is no study in `folder`.
            LedgerError: if it is damaged.
        """
        self.folder = Path(folder)
        if not os.path.lexists(self.folder / "study.json"):
            what = "is no study, it has no study.json" if self.folder.is_dir() else "is no folder"
            raise ConfigError(
                f"DIR={self.folder}: {what}; give the folder of a study that was run (default: runs/<name>)"
            )
        self.recorded: RecordResult | None = None
        with Ledger.read(self.folder) as ledger:
            self.versions = dict(ledger.versions)
            recorded: dict[str, Any] = dict(ledger.study)
            self.digest = ledger.study_digest
        try:
            self.design = design_of(recorded)
            #: What follows from the study and its data.
            self.resolved: dict[str, Any] = recorded.pop("resolved")
            #: The study, as `Study.from_dict` takes it.
            self.identity = recorded
        except (KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise LedgerError(
                f"{self.folder / 'study.json'}: holds no study ({what}); restore it from a copy"
            ) from error

    def __repr__(self) -> str:
        """The study, its folder, and how far it is.

        A folder that can no longer be read is said to be one: what a debugger prints must not fail.
        """
        try:
            trained, to_train = self.n_trained()
            state = f"{trained:,} of {to_train:,} networks trained"
        except SparsefrontError as error:
            state = f"unreadable: {error}"
        return f"<Results of {self.design.name!r} in {str(self.folder)!r}: {state}>"

    def to_arrow(self, *, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The ledger's rows as an Arrow table (its columns: `sparsefront.search.schema.COLUMNS`).

        Args:
            where: condition over columns (`sparsefront.search.filters`), test results included.
            columns: those wanted; None for all.
        """
        with Ledger.read(self.folder) as ledger:
            expression = None if where is None else self._condition(where, ledger.schema, allow_test=True)
            return ledger.table(columns=columns, where=expression)

    def to_pandas(self, *, where: str | None = None, columns: Sequence[str] | None = None) -> Any:
        """The same rows as `to_arrow`, as a pandas data frame."""
        return self.to_arrow(where=where, columns=columns).to_pandas()

    def front(self, *, where: str | None = None, objectives: Sequence[str] | str | None = None) -> pa.Table:
        """Non-dominated candidates among the rows that `where` selects, best first by the first objective.

        Args:
            where: condition over columns; test results are refused, for validation decides.
            objectives: names of `sparsefront.search.objective.OBJECTIVES`; None for those of the study. Those that are
                measured on test examples are shown, but nothing should be chosen by such a front.
        """
        if isinstance(objectives, str):
            objectives = [objectives]
        chosen = self.design.objectives if objectives is None else tuple(objectives)
        front_columns(chosen)
        with Ledger.read(self.folder) as ledger:
            for objective, column in zip(chosen, objectives_named(chosen), strict=True):
                if column.column not in ledger.schema.names:
                    where = "" if column.on_test else f", and its verdict.objectives {objective!r}"
                    raise ConfigError(
                        f"objective={objective!r}: was not measured in this study; its key quality must name "
                        f"{column.quality!r}{where}"
                    )
            self._check_no_control(where or "")
            expression = None if where is None else self._condition(where, ledger.schema)
            rows = ledger.scan(where=expression)
            arms: list[str] = []
            if isinstance(self.design, SearchDesign):
                rows = within_constraints(rows, self.design)
                arms = [arm.name for arm in self.design.arms]
            found = front(rows, chosen, arms=arms, schema=ledger.schema)
            if not found.num_rows:
                _require_measured(ledger, chosen)
            return found

    def verdict(self) -> Verdict | SearchVerdict:
        """Better than, equivalent to or worse than random search, arm by arm (and level by level)."""
        with Ledger.read(self.folder) as ledger:
            return self._judged(ledger)

    @property
    def states_claim(self) -> bool:
        """Whether the study tests a claim: it is one of masks, and its file states one."""
        return not isinstance(self.design, SearchDesign) and os.path.lexists(self.folder / CLAIM)

    def claims(self, *others: Results) -> ClaimFinding:
        """What the study found about the claim that its file states, judged anew from the ledger.

        Args:
            others: results of the studies that tests of the claim name with `than`.

        Raises:
            ConfigError: a study without a claim, or a test that a study cannot answer.
        """
        claim = self._claim()
        named = {test.than for test in claim.tests}
        by_name = {other.design.name: other._evidence(claim) for other in others if other.design.name in named}
        n_trained, n_planned = self.n_trained()
        return judge_claim(claim, self._evidence(claim), by_name, n_trained=n_trained, n_planned=n_planned)

    def _claim(self) -> Claim:
        path = self.folder / CLAIM
        again = "run the study's file again, which trains nothing that is there"
        if isinstance(self.design, SearchDesign):
            raise ConfigError(f"DIR={self.folder}: is a search; claims are tested by studies of masks")
        try:
            return Claim.of_data(json.loads(read_plain(path)))
        except FileNotFoundError:
            raise ConfigError(
                f"DIR={self.folder}: its study states no claim; add [claim] to its file and {again}"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path}: holds no claim ({type(error).__name__}: {error}); {again}") from None

    def _evidence(self, claim: Claim) -> Evidence:
        if isinstance(self.design, SearchDesign):
            raise ConfigError(f"DIR={self.folder}: is a search; claims are tested by studies of masks")
        with Ledger.read(self.folder) as ledger:
            columns = [name for name in claim_columns(claim) if name in ledger.schema.names]
            expression = parse_where("stage == 'trained'", schema=ledger.schema)
            return Evidence(self.design, ledger.table(columns=columns, where=expression))

    def n_trained(self) -> tuple[int, int]:
        """Networks recorded, and networks that the whole study trains; equal once it is finished."""
        if isinstance(self.design, SearchDesign):
            return self._n_searched(self.design)
        where = "stage in ('trained', 'level')"  # a chain trains networks on its way, too
        planned = Plan(self.design, CandidateNames({}), masks_per_pack=1, lanes_per_pack=1).totals()[3]
        return self.to_arrow(where=where, columns=["stage"]).num_rows, planned

    def _n_searched(self, design: SearchDesign) -> tuple[int, int]:
        """The same of a search: a run that could not go on trains what it has trained."""
        dimensions = dict.fromkeys(name for arm in design.arms for name, _ in arm.space.columns)
        # Columns that all ledgers have say how it would have been trained.
        columns = ["arm", "replicate", "candidate", *(name for name in dimensions if name not in SCHEMA.names)]
        failed = self.to_arrow(where="stage == 'trained' and outcome == 'failed'", columns=columns).to_pylist()
        # The row that ends a run is of no point; one of a network that cannot be is.
        ended = {(r["arm"], r["replicate"]) for r in failed if all(r[name] is None for name in columns[2:])}
        where = "stage == 'trained' and outcome != 'infeasible' and not reused"
        n_trained = self.to_arrow(where=where, columns=["arm"]).num_rows - len(ended)
        planned = design.replicates * sum(arm.candidates for arm in design.arms)
        with Ledger.read(self.folder) as ledger:
            planned += count_controls(ledger.scan(columns=controlled_columns(design)), design)[0]
        return n_trained, planned - sum(run.n_asked - run.n_trained for run in self._exhausted(design))

    def exhausted(self) -> tuple[str, ...]:
        """Which arms of a search trained fewer candidates than they might have, and why."""
        return tuple(exhaustion_clauses(self._exhausted(self.design))) if isinstance(self.design, SearchDesign) else ()

    def _exhausted(self, design: SearchDesign) -> list[Exhausted]:
        with Ledger.read(self.folder) as ledger:
            return exhausted_runs(ledger.scan(columns=exhaustion_columns(design)), design)

    def unmet_constraints(self) -> tuple[str, ...]:
        """Why a search has no front, or an arm nothing on it: the measured constraints that no candidate meets."""
        if not isinstance(self.design, SearchDesign):
            return ()
        with Ledger.read(self.folder) as ledger:
            return unmet_constraints(ledger.scan(columns=feasibility_columns(self.design)), self.design)

    def outcomes(self) -> dict[str, int]:
        """How many masks and networks came to each outcome; what several arms share counts once."""
        rows = self.to_arrow(where="stage in ('scored', 'trained') and not reused", columns=["outcome"])
        return {row["values"]: row["counts"] for row in rows.column("outcome").value_counts().to_pylist()}

    def pack_times(self) -> list[PackTimes]:
        """What packs took beside what the packing had expected, device by device; nothing of a study of masks."""
        with Ledger.read(self.folder) as ledger:
            return pack_times(ledger.scan(columns=list(PACK_TIME_COLUMNS)))

    def report(self) -> Path:
        """Write the report into the study's folder and return its path.

        Raises:
            ConfigError: if it cannot be written there.
        """
        path = self.folder / REPORT
        with Ledger.read(self.folder) as ledger:
            verdict, provenance = self._judged(ledger), self._provenance(ledger)
            # They bring plotly, which no other method needs.
            from sparsefront.search.report import write_report, write_search_report

            try:
                if isinstance(self.design, SearchDesign):
                    assert isinstance(verdict, SearchVerdict)
                    write_search_report(ledger, self.design, verdict, path, provenance=provenance)
                else:
                    assert isinstance(verdict, Verdict)
                    masks = ledger.get_blob
                    write_report(ledger, self.design, verdict, path, provenance=provenance, masks=masks)
            except OSError as error:
                if isinstance(error, SparsefrontError):
                    raise
                raise ConfigError(f"DIR={self.folder}: {path.name} cannot be written ({error.strerror})") from error
        return path

    def record(self, *, tracking_uri: str | None = None, timeout_s: float = 600.0) -> RecordResult:
        """Mirror the study into MLflow (again); what is there already is left as it is."""
        report = self.folder / REPORT
        self.recorded = record_in_process(
            self.folder,
            tracking_uri=tracking_uri,
            design=self.design,
            report=report if report.exists() else None,
            timeout_s=timeout_s,
        )
        return self.recorded

    def _check_no_control(self, where: str) -> None:
        """Refuse a front of controls, which are held against networks of fronts and are on none."""
        for control in self.design.controls if isinstance(self.design, SearchDesign) else ():
            if repr(control.name) in where or f'"{control.name}"' in where:
                raise ConfigError(
                    f"where={where!r}: {control.name!r} is a control, and controls are on no front; the verdict "
                    "compares it with its arm, and to_arrow(where=...) has its rows"
                )

    def _condition(self, where: str, schema: pa.Schema, *, allow_test: bool = False) -> pc.Expression:
        """A condition over this study's columns, in which its arms and settings are called by names that it has."""
        values: dict[str, Collection[str]] = dict(VALUES)
        if not isinstance(self.design, SearchDesign):
            # The parent is trained where an arm or a quality needs it, and scored masks belong to no arm.
            values["arm"] = dict.fromkeys([*self.design.arms, "dense", "pool"])
            return parse_where(where, allow_test=allow_test, schema=schema, values=values)
        # Controls are no part of what was searched, and on no front.
        values["arm"] = self.design.names if allow_test else [arm.name for arm in self.design.arms]
        for dimension in (dimension for arm in self.design.arms for dimension in arm.space.dimensions):
            if isinstance(dimension.domain, Choice) and dimension.name not in VALUES:
                texts = [value for value in dimension.domain.values if isinstance(value, str)]
                values[dimension.name] = dict.fromkeys([*values.get(dimension.name, ()), *texts])
        for arm in self.design.arms:
            for name, value in arm.fixed.values(arm.space.constants).items():
                if isinstance(value, str) and name in values and name not in VALUES:
                    values[name] = dict.fromkeys([*values[name], value])
        return parse_where(where, allow_test=allow_test, schema=schema, values=values, aliases=ALIASES_OF_SEARCHES)

    def _judged(self, ledger: Ledger) -> Verdict | SearchVerdict:
        if isinstance(self.design, SearchDesign):
            return compare_arms(ledger.scan(columns=verdict_columns(self.design)), self.design)
        return judge(ledger.scan(columns=VERDICT_COLUMNS), self.design)

    def _provenance(self, ledger: Ledger) -> dict[str, str]:
        devices = {d for rows in ledger.scan(columns=["device"]) for d in rows.column(0).unique().to_pylist() if d}
        return {
            "Digest of the study": self.digest[:16],
            "Digest of the data": str(self.resolved.get("data_digest", "unknown"))[:16],
            "Devices": ", ".join(sorted(devices)) or "none",
            **self.versions,
        }


def _require_measured(ledger: Ledger, objectives: Sequence[str]) -> None:
    """Refuse an objective that no network has a value of, where there are networks: a front over it is always empty."""
    for name, objective in zip(objectives, objectives_named(objectives), strict=True):
        values = ledger.table(columns=[objective.column], where=pc.field("outcome") == "completed").column(0)
        if 0 < values.null_count == len(values):
            raise ConfigError(
                f"objective={name!r}: no network of this study has a value of it; it is not measured here, or was not "
                "yet by the version that trained them; choose another"
            )


def write_claim(folder: Path, claim: Mapping[str, Any] | None) -> None:
    """Leave a claim beside the ledger that tests it, in place of an earlier one; None leaves none.

    It is no part of study.json, which never changes: its words may, and its tests, without training anything again.

    Raises:
        LedgerError: if the disk fails.
    """
    path, temporary = folder / CLAIM, folder / f"{CLAIM}.tmp"
    try:
        temporary.unlink(missing_ok=True)
        if claim is None:
            path.unlink(missing_ok=True)
            return
        content = json.dumps(claim, indent=2, ensure_ascii=False) + "\n"
        write_atomically(Disk(), path, [content.encode()], temporary=temporary)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written ({error.strerror}); free or repair the disk") from error


def load(folder: str | Path) -> Results:
    """Results of the study in `folder`."""
    return Results(folder)
