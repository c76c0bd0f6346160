"""Scores before training against the loss after it: what they would have been worth as predictors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from sparsefront.search.columns import equals, numbers_in
from sparsefront.search.design import Design
from sparsefront.search.findings import PREDICTORS, Correlation
from sparsefront.search.statistics import holm, rank_correlation
from sparsefront.search.verdict.families import seeded
from sparsefront.search.verdict.record import Record


def correlations_of(record: Record, design: Design) -> tuple[Correlation, ...]:
    """Correlate scores with final validation loss over the masks that were trained, ranked within replicates.

    Takes the random masks and those of arms that choose by a score, where they completed, each once. The chosen
    extremes widen the range of scores, which makes a correlation easier to see, not harder.
    """
    rows = record.trained
    if rows.num_rows == 0:
        return ()
    arms = rows["arm"].to_pylist()
    of_pool = np.array(
        [arm == "random" or arm == "worst" or arm.startswith("searched") for arm in arms], dtype=np.bool_
    )
    rows = rows.filter(pa.array(of_pool & equals(rows, "outcome", "completed")))
    candidates = rows["candidate"].to_pylist()
    level, replicate, val_loss = (
        numbers_in(rows, "target_sparsity"),
        numbers_in(rows, "replicate"),
        numbers_in(rows, "val_loss"),
    )
    first_rows: dict[tuple[Any, ...], int] = {}
    for i, key in enumerate(zip(candidates, replicate.tolist(), level.tolist(), strict=True)):
        first_rows.setdefault(key, i)
    once = np.zeros(len(candidates), dtype=np.bool_)
    once[list(first_rows.values())] = True
    found: list[Correlation] = []
    for predictor in PREDICTORS:
        scores = numbers_in(rows, predictor)
        ranked = []
        for sparsity in design.sparsities:
            inside = once & (level == sparsity)
            rng = seeded(design, f"correlation/{predictor}/{sparsity!r}")
            ranked.append(
                rank_correlation(scores[inside], val_loss[inside], replicate[inside], rng=rng, level=1.0 - design.alpha)
            )
        adjusted = holm([r.p_value for r in ranked])
        found.extend(
            Correlation(sparsity, predictor, r.n, r.n_strata, r.estimate, r.low, r.high, r.p_value, float(p))
            for sparsity, r, p in zip(design.sparsities, ranked, adjusted, strict=True)
            if r.n
        )
    return tuple(found)
