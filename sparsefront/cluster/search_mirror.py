"""What MLflow shows of a search: a function of its ledger, as ``mirror`` is of a study of masks.

Not here: the export (``record``), and what is found (``search.comparison``).
"""

from __future__ import annotations

import pyarrow.compute as pc

from sparsefront.cluster.mirror import (
    MAX_PARAM_CHARS,
    MAX_TAG_CHARS,
    LedgerSpan,
    Mirror,
    Moment,
    Page,
    cut,
    mirror_of,
    study_page,
)
from sparsefront.search.attainment import attain, attainment_columns, has_ended, within_constraints
from sparsefront.search.comparison import judge_runs, search_record
from sparsefront.search.controlled import controlled_columns, judge_controls
from sparsefront.search.design import SearchDesign
from sparsefront.search.exhaustion import exhausted_runs, exhaustion_columns
from sparsefront.search.front import front
from sparsefront.search.importance import arm_importances, importance_columns
from sparsefront.search.ledger import Ledger
from sparsefront.search.pack_times import PACK_TIME_COLUMNS, pack_times
from sparsefront.search.schema import SCHEMA


def build_search_mirror(
    ledger: Ledger, design: SearchDesign, *, n_planned: int | None = None, is_finished: bool = False
) -> Mirror:
    """Compute what MLflow shall show of a search: its run, and nested ones for its arms and its front.

    Args:
        ledger: open for reading; of a running study as well.
        design: of its study.
        n_planned: trainings that the study will have done at its end, for the progress tag.
        is_finished: whether its driver says that it has come to its end, which rows alone do not always show.

    Raises:
        LedgerError: if the ledger has no rows yet.
    """
    span = LedgerSpan.of(ledger)
    attainment = attain(ledger.scan(columns=attainment_columns(design)), design)
    controlled = judge_controls(ledger.scan(columns=controlled_columns(design)), design)
    verdict = judge_runs(attainment, design, controlled)
    n_ended = sum(found.n_candidates for found in verdict.arms) + controlled.n_ended
    importances = arm_importances(
        ledger.scan(columns=importance_columns(design), where=pc.field("stage") == "trained"), design
    )
    is_complete = is_finished
    if not is_complete:
        exhausted = exhausted_runs(ledger.scan(columns=exhaustion_columns(design)), design)
        is_complete = has_ended(attainment, design, exhausted={(run.arm, run.replicate) for run in exhausted})
        is_complete = is_complete and controlled.n_ended == controlled.n_planned
    shown = search_record(attainment, design, verdict, importances=importances, is_complete=is_complete)
    now = Moment(span.ended_ms, n_ended)
    study = study_page(
        ledger,
        design,
        verdict,
        n_trained=n_ended,
        n_planned=n_planned,
        params={**shown["study"]["params"], "name": design.name, "model": design.model, "dataset": design.dataset},
        points=now.points(shown["study"]["metrics"] | _pack_metrics(ledger)),
    )
    arms = [
        Page(
            key=f"arm/{name}",
            name=name,
            tags={f"sparsefront.{tag}": cut(value, MAX_TAG_CHARS) for tag, value in arm["tags"].items()},
            params={key: cut(value, MAX_PARAM_CHARS) for key, value in arm["params"].items()},
            points=(
                *now.points(arm["metrics"]),
                *(
                    point
                    for metric, series in arm["series"].items()
                    for passes, value in series
                    for point in Moment(span.ended_ms, passes).points({metric: value})
                ),
            ),
        )
        for name, arm in shown["arms"].items()
    ]
    completed = within_constraints(ledger.scan(where=pc.field("outcome") == "completed"), design)
    members = front(completed, design.objectives, arms=[arm.name for arm in design.arms], schema=ledger.schema)
    columns = [name for name in ledger.schema.names if name not in SCHEMA.names]
    return mirror_of(span, design, verdict, study, arms, members, dimensions=columns, is_complete=is_complete)


def _pack_metrics(ledger: Ledger) -> dict[str, float]:
    """Measured over predicted time of packs, on the device that ran most of them; nothing before there are any."""
    found = pack_times(ledger.scan(columns=list(PACK_TIME_COLUMNS)))
    if not found:
        return {}
    most = max(found, key=lambda times: times.n_packs)
    ratios = {"median": most.median, "lower_quartile": most.low, "upper_quartile": most.high}
    return {"packs": float(most.n_packs), **{f"packs_measured_over_predicted_{k}": v for k, v in ratios.items()}}
