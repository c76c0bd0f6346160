"""Results of a study: what its folder holds, read without anything that a study needs to run (torch, Ray)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparsefront.cluster.record import RecordResult, record_in_process
from sparsefront.errors import ConfigError, LedgerError, SparsefrontError
from sparsefront.search.attainment import attainment_columns, within_constraints
from sparsefront.search.comparison import SearchVerdict, compare_arms
from sparsefront.search.design import SearchDesign
from sparsefront.search.filters import parse_where
from sparsefront.search.findings import Verdict
from sparsefront.search.front import front, front_columns
from sparsefront.search.ledger import Ledger
from sparsefront.search.plan import Plan
from sparsefront.search.resolved import design_of
from sparsefront.search.verdict import VERDICT_COLUMNS, judge
from sparsefront.spaces.candidate import CandidateNames

REPORT = "report.html"


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
            self._resolved: dict[str, Any] = recorded.pop("resolved")
            #: The study, as `Study.from_dict` takes it.
            self.identity = recorded
        except (KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise LedgerError(
                f"{self.folder / 'study.json'}: holds no study ({what}); restore it from a copy"
            ) from error

    def to_arrow(self, *, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The ledger's rows as an Arrow table (its columns: `sparsefront.search.schema.COLUMNS`).

        Args:
            where: condition over columns (`sparsefront.search.filters`), test results included.
            columns: those wanted; None for all.
        """
        with Ledger.read(self.folder) as ledger:
            expression = None if where is None else parse_where(where, allow_test=True, schema=ledger.schema)
            return ledger.table(columns=columns, where=expression)

    def to_pandas(self, *, where: str | None = None, columns: Sequence[str] | None = None) -> Any:
        """The same rows as `to_arrow`, as a pandas data frame."""
        return self.to_arrow(where=where, columns=columns).to_pandas()

    def front(self, *, where: str | None = None, objectives: Sequence[str] | str | None = None) -> pa.Table:
        """Non-dominated candidates among the rows that `where` selects, best first by the first objective.

        Args:
            where: condition over columns; test results are refused, for validation decides.
            objectives: names of `sparsefront.search.objective.OBJECTIVES`; None for those of the study.
        """
        if isinstance(objectives, str):
            objectives = [objectives]
        chosen = self.design.objectives if objectives is None else tuple(objectives)
        front_columns(chosen)
        with Ledger.read(self.folder) as ledger:
            expression = None if where is None else parse_where(where, schema=ledger.schema)
            rows = ledger.scan(where=expression)
            if isinstance(self.design, SearchDesign):
                rows = within_constraints(rows, self.design)
            return front(rows, chosen, schema=ledger.schema)

    def verdict(self) -> Verdict | SearchVerdict:
        """Better than, equivalent to or worse than random search, arm by arm (and level by level)."""
        with Ledger.read(self.folder) as ledger:
            return self._judged(ledger)

    def n_trained(self) -> tuple[int, int]:
        """Networks recorded, and networks that the whole study trains; equal once it is finished."""
        where = "stage == 'trained'"
        if isinstance(self.design, SearchDesign):
            planned = self.design.replicates * sum(arm.candidates for arm in self.design.arms)
            where += " and outcome != 'infeasible' and not reused"
        else:
            planned = Plan(self.design, CandidateNames({}), masks_per_pack=1, lanes_per_pack=1).totals()[3]
        return self.to_arrow(where=where, columns=["stage"]).num_rows, planned

    def outcomes(self) -> dict[str, int]:
        """How many masks and networks came to each outcome; what several arms share counts once."""
        rows = self.to_arrow(where="stage in ('scored', 'trained') and not reused", columns=["outcome"])
        return {row["values"]: row["counts"] for row in rows.column("outcome").value_counts().to_pylist()}

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
                    write_report(ledger, self.design, verdict, path, provenance=provenance)
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

    def _judged(self, ledger: Ledger) -> Verdict | SearchVerdict:
        if isinstance(self.design, SearchDesign):
            return compare_arms(ledger.scan(columns=attainment_columns(self.design)), self.design)
        return judge(ledger.scan(columns=VERDICT_COLUMNS), self.design)

    def _provenance(self, ledger: Ledger) -> dict[str, str]:
        devices = {d for rows in ledger.scan(columns=["device"]) for d in rows.column(0).unique().to_pylist() if d}
        return {
            "Digest of the study": self.digest[:16],
            "Digest of the data": str(self._resolved.get("data_digest", "unknown"))[:16],
            "Devices": ", ".join(sorted(devices)) or "none",
            **self.versions,
        }


def load(folder: str | Path) -> Results:
    """Results of the study in `folder`."""
    return Results(folder)
