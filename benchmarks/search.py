"""The search study that the benchmarks of searches share: widths, depth, sparsity and learning rate of a perceptron."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sparsefront.progress import Progress
from sparsefront.study import SearchStudy, Study

WORKERS = 4
STEPS, FIRST_RUNG, ETA = 1200, 75, 2
#: Multi-objective ASHA: rungs after 75, 150, 300 and 600 of 1,200 steps. Replayed over curves of 6,000 full trainings
#: of this space, halving in large brackets kept more of the hypervolume for its passes than eta 3 or 4 and small ones.
RUNGS = {"kind": "mo_asha", "eta": ETA, "min_steps": FIRST_RUNG, "bracket": 1024}
SPACE = {
    "training": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    "model": {"widths": {"low": 8, "high": 128, "log": True, "depth": {"low": 1, "high": 3}}},
    "masks": {"sparsity": {"low": 0.5, "high": 0.98}},
}
#: What stands under the tables of this study.
ABOUT = (
    "Weight-masked perceptrons on MNIST-1D: widths 8-128 in 1-3 layers, sparsity 0.5-0.98, learning rate; "
    f"{STEPS} Adam steps of 100; rungs at {FIRST_RUNG} steps and every {ETA}-fold, one of {ETA} goes on; {WORKERS} "
    "workers of one thread. Objectives: validation error and parameters"
)


def search_study(
    arms: Mapping[str, Mapping[str, Any]], *, candidates: int, batch: int, replicates: int = 1, kind: str = "weight"
) -> SearchStudy:
    """Masked perceptrons on MNIST-1D: validation error against parameters."""
    study = Study.from_dict(
        {
            "name": "bench-search",
            "seed": 1,
            "replicates": replicates,
            "model": {"name": "mlp"},
            "masks": {"kind": kind},
            # Validation at the end of a segment only, as in the other contenders.
            "training": {"steps": STEPS, "batch_size": 100, "eval_every": STEPS},
            "space": SPACE,
            "search": {"candidates": candidates, "batch": batch},
            "arms": arms,
            "record": {"enabled": False},
            "compute": {"workers": WORKERS, "device": "cpu"},
        }
    )
    assert isinstance(study, SearchStudy)
    return study


class StudyClock:
    """A view of a study that shows nothing and keeps the moments of a run, as of `time.perf_counter`.

    Attributes:
        asked_s: Ray's workers were asked for.
        dispatched_s: Ray was there, and Tune's loop began.
        ended_s: everything was committed.
    """

    def __init__(self) -> None:
        self.asked_s = self.dispatched_s = self.ended_s = 0.0

    def say(self, text: str) -> None:
        """What happens next; the last thing before Ray is started is that it is."""
        if not self.dispatched_s:
            self.asked_s = time.perf_counter()

    def show(self, progress: Progress) -> None:
        """Tune's loop goes round."""
        self.dispatched_s = self.dispatched_s or time.perf_counter()

    def finish(self, progress: Progress, *, seconds: float) -> None:
        """All is committed; the report is not written yet."""
        self.ended_s = time.perf_counter()

    def close(self) -> None:
        """Nothing to put right."""

    @property
    def search_s(self) -> float:
        """Wall time from the first round of Tune's loop, the start of the worker processes included."""
        return self.ended_s - self.dispatched_s
