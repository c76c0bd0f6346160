"""ASHA in packs: wall time against Ray Tune's own ASHA, one candidate a trial.

The same candidates here and on Ray Tune: a class trainable with reused actors and Ray's `ASHAScheduler` at the same
rungs, each candidate trained by plain torch, one thread a worker. Contenders take turns in one run.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from benchmarks.machine import cluster_of_tune, spread, table
from benchmarks.search import ABOUT, ETA, FIRST_RUNG, RUNGS, STEPS, WORKERS, StudyClock, search_study
from sparsefront.cluster.driver import Driver
from sparsefront.search.comparison import SearchVerdict
from sparsefront.spaces.seeds import philox_key
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.segments import SegmentShop

CANDIDATES = 2000
BATCH = 256
REPEATS = 3
ASHA: dict[str, Any] = {"strategy": "random", "rungs": RUNGS}
#: A study of ASHA alone has nobody to be judged against.
ASHA_ALONE: dict[str, Any] = {"asha": {**ASHA, "against": []}}

Settings = Sequence[Mapping[str, Any]]


@contextlib.contextmanager
def first_began() -> Iterator[list[float]]:
    """Yields the moments at which workers begin with packs: those before the first belong to Ray's start."""
    moments: list[float] = []
    began = Driver.began

    def noted(self: Driver, trial_id: str) -> None:
        moments.append(time.perf_counter())
        began(self, trial_id)

    Driver.began = noted  # type: ignore[method-assign]
    try:
        yield moments
    finally:
        Driver.began = began  # type: ignore[method-assign]


def run_study(
    arms: Mapping[str, Any], replicates: int, n: int, kind: str = "weight"
) -> tuple[StudyClock, float, pa.Table, SearchVerdict]:
    """Run a study: its clock, the moment its first worker was ready, its rows, and what was found."""
    study = search_study(arms, candidates=n, batch=BATCH, replicates=replicates, kind=kind)
    clock = StudyClock()
    with tempfile.TemporaryDirectory() as folder, first_began() as moments:
        results = study.run(Path(folder) / "study", view=clock)
        verdict = results.verdict()
        assert isinstance(verdict, SearchVerdict)
        return clock, moments[0], results.to_arrow(), verdict


def busy_fraction(rows: pa.Table, wall_s: float) -> float:
    """Share of the workers' time in which they had a pack: built, trained, validated and checkpointed it."""
    return float(np.nansum(rows["seconds"].to_numpy())) / (WORKERS * wall_s)


class Alone(tune.Trainable):  # type: ignore[misc]
    """One candidate after the other: plain torch, a step of Tune from rung to rung."""

    def setup(self, config: dict[str, Any], *, settings: Settings = (), data: Any = None, kind: str = "weight") -> None:
        """Once a process: what all candidates share."""
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        study = search_study(ASHA_ALONE, candidates=len(settings), batch=BATCH, kind=kind)
        # It reads and writes checkpoints nowhere: only what describes and builds candidates is used.
        nowhere = Path(tempfile.gettempdir(), "sparsefront-no-checkpoints")
        self._settings, self._shop = settings, SegmentShop(study.recipe(), data, torch.device("cpu"), nowhere)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next candidate: the initial weights and the mask that it has in a pack."""
        networks = self._shop.networks
        network = networks.describe(0, self._settings[new_config["candidate"]])
        built = networks.build(network)
        layers = len(built.weights) // 2
        names = [f"layers.{i}.weight" for i in range(layers)]
        self._weights = [torch.from_numpy(built.weights[n].copy()).requires_grad_() for n in names]
        biases = [torch.from_numpy(built.weights[f"layers.{i}.bias"].copy()).requires_grad_() for i in range(layers)]
        self._biases = biases
        self._masks = [torch.from_numpy(built.keep[n]) if n in built.keep else None for n in names]
        self._optimizer = torch.optim.Adam([*self._weights, *biases], lr=network.hyper.lr, fused=True)
        self._train, self._validation = self._shop._examples(0)
        self._order = self._shop._order(0, network.batch_size, 1.0, STEPS)
        self._done_steps = 0
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung."""
        stop = min(STEPS, FIRST_RUNG if self._done_steps == 0 else ETA * self._done_steps)
        for batch in self._order[self._done_steps : stop]:
            loss = self._loss(self._train.x[batch], self._train.labels[batch])
            self._optimizer.zero_grad()
            loss.backward()
            # Weights that the mask removes begin at zero, and without a gradient they stay there.
            for weight, mask in zip(self._weights, self._masks, strict=True):
                if mask is not None and weight.grad is not None:
                    weight.grad.mul_(mask)
            self._optimizer.step()
        self._done_steps = stop
        with torch.no_grad():
            measured = float(self._loss(self._validation.x, self._validation.labels))
        return {"val_loss": measured, "steps": stop, "done": stop == STEPS or not math.isfinite(measured)}

    def _loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        last = len(self._weights) - 1
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            x = torch.nn.functional.linear(x, weight, bias)
            if i < last:
                x = torch.relu(x)
        return torch.nn.functional.cross_entropy(x, labels)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """None: nobody goes on from one."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """None."""


def run_tune(settings: Settings, data: Any, kind: str) -> tuple[float, float, dict[int, tuple[int, float]]]:
    """Seconds of `fit`, seconds with Ray's start, and steps and loss of each candidate."""
    asked = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, cluster_of_tune(WORKERS):
        trainable = tune.with_parameters(Alone, settings=ray.put(settings), data=ray.put(data), kind=kind)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"candidate": tune.grid_search(list(range(len(settings))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                scheduler=ASHAScheduler(
                    time_attr="steps",
                    metric="val_loss",
                    mode="min",
                    max_t=STEPS,
                    grace_period=FIRST_RUNG,
                    reduction_factor=ETA,
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        began = time.perf_counter()
        results = tuner.fit()
        ended = time.perf_counter()
        reached = {r.config["candidate"]: (r.metrics["steps"], r.metrics["val_loss"]) for r in results}
    assert len(reached) == len(settings)
    return ended - began, ended - asked, reached


def drawn_settings(n: int) -> Settings:
    """Settings of the candidates of arm `asha`, replicate 0, by number."""
    design = search_study(ASHA_ALONE, candidates=n, batch=BATCH).design()
    space = design.arms[0].space
    return [space.settings(point) for point in space.draw(philox_key(design.seed, "propose", 0), 0, n)]


def against_tune(n: int, kind: str = "weight") -> list[list[str]]:
    """ASHA alone against Ray's own, the same candidates."""
    data, settings = load_dataset("mnist1d"), drawn_settings(n)
    own: dict[str, list[float]] = {"s": [], "whole_s": [], "busy": [], "steps": []}
    other: dict[str, list[float]] = {"s": [], "whole_s": [], "steps": []}
    difference = 0.0
    for _ in range(REPEATS):
        clock, ready, rows, _ = run_study(ASHA_ALONE, 1, n, kind)
        own["s"].append(clock.search_s)
        own["whole_s"].append(clock.ended_s - clock.asked_s)
        own["busy"].append(busy_fraction(rows, clock.ended_s - ready))
        own["steps"].append(float(np.nansum(rows["passes"].to_numpy())) / 100)
        seconds, whole_s, reached = run_tune(settings, data, kind)
        other["s"].append(seconds)
        other["whole_s"].append(whole_s)
        other["steps"].append(float(sum(steps for steps, _ in reached.values())))
        ours = {
            row["slot"]: row["val_loss"]
            for row in rows.select(["slot", "val_loss", "outcome", "stage"]).to_pylist()
            if row["stage"] == "trained" and row["outcome"] == "completed"
        }
        both = [abs(reached[slot][1] - loss) for slot, loss in ours.items() if reached[slot][0] == STEPS]
        difference = max(difference, float(np.median(both)))
        print({"own": own, "tune": other, "in both": len(both), "difference": difference}, file=sys.stderr, flush=True)
    ratio, whole = (list(np.array(other[key]) / np.array(own[key])) for key in ("s", "whole_s"))
    rate = float(np.median(np.array(other["steps"]) / np.array(other["s"])))
    own_rate = float(np.median(np.array(own["steps"]) / np.array(own["s"])))
    return [
        [
            f"`asha` alone, {n:,} candidates: wall time in packs, ledger included, from the first dispatch",
            f"{spread(own['s'])} s, {own_rate:,.0f} steps/s",
            "",
        ],
        [
            "the same on Ray Tune: Ray's ASHAScheduler, one candidate a trial, class trainable, reused actors",
            f"{spread(other['s'])} s, {rate:,.0f} steps/s",
            "",
        ],
        ["packs are faster by", spread(ratio), ">= 10"],
        ["packs are faster by, Ray's start included in both", spread(whole), ""],
        [
            f"share of wall time in which {WORKERS} workers have a pack, `asha` alone, from the first pack",
            f"{spread([100 * v for v in own['busy']])}%",
            "",
        ],
        [
            "optimiser steps trained in all: packs; Ray Tune (each by its own rule)",
            f"{np.median(own['steps']):,.0f}; {np.median(other['steps']):,.0f}",
            "",
        ],
        [
            "final validation losses of candidates that both trained to the end differ by (median)",
            f"{difference:.1e}",
            "",
        ],
    ]


def prepare() -> None:
    """Silence Ray, and give this process one thread."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "86400",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    torch.set_num_threads(1)


def main(n: int = CANDIDATES) -> str:
    """Measure and return the table."""
    prepare()
    return table(
        "ASHA in packs",
        ["what", "figure", "goal"],
        against_tune(n),
        f"{ABOUT}. Against Ray Tune: median (lowest-highest) of {REPEATS} runs, in turn. Ray's start: until its first "
        "worker is ready.",
    )


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
