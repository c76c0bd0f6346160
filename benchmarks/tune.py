"""Packs against Ray Tune as it is usually written: the same candidates, steps and cores, side by side in one run.

(a) a function trainable, one candidate a trial; (b) a class trainable with reused actors, one candidate a trial; and
Sparsefront, which trains the same candidates in packs through its whole system (Ray, ledger, everything). Rates are
candidates a second from the first dispatch to the last result; starting Ray is left out for all three.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from benchmarks.machine import cluster_of_tune, spread, table
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.workshop import Workshop

STEPS = 300
BATCH = 100
WORKERS = 4
REPEATS = 3
#: Candidates of each contender: enough for 10-60 s, and rates do not depend on it (checked at twice as many).
N_FUNCTION, N_CLASS = 16, 400
N_PACKS = {"weight": 2048, "node": 16384}
REPLICATES = 4


def study(kind: str) -> Study:
    """Random masks of a 40-100-100-10 perceptron at 90%, trained 300 steps."""
    return Study.from_dict(
        {
            "name": f"bench-{kind}",
            "seed": 1,
            "replicates": REPLICATES,
            "sparsities": [0.9],
            "arms": ["random"],
            "model": {"name": "mlp", "widths": [100, 100], "init": "torch"},
            "masks": {"kind": kind},
            "search": {"random_draws": N_PACKS[kind] // REPLICATES, "draws": N_PACKS[kind]},
            "training": {"steps": STEPS, "lr": 0.01, "batch_size": BATCH, "eval_every": STEPS},
            "record": {"enabled": False},
            "compute": {"workers": WORKERS, "device": "cpu"},
        }
    )


class Plain:
    """One candidate trained the ordinary way: torch.nn, torch.optim, a mask in the forward pass."""

    def __init__(self, kind: str, arrays: Any, *, compact: bool) -> None:
        torch.set_num_threads(1)
        self.kind, self.compact = kind, compact
        self.data = arrays
        self.workshop = Workshop(study(kind).recipe(), arrays, torch.device("cpu"))
        self.states: dict[int, Any] = {}

    def state(self, replicate: int) -> Any:
        """Data, weights and order of a replicate, made once a process."""
        if replicate not in self.states:
            self.states[replicate] = self.workshop._make_replicate(replicate)
        return self.states[replicate]

    def train(self, replicate: int, draw: int) -> float:
        """Train the random mask number `draw`; returns its validation loss."""
        state = self.state(replicate)
        mask = torch.from_numpy(self.workshop.draw_masks(replicate, 0.9, draw, draw + 1)[0])
        net = _Masked(state.parent, mask, self.kind, compact=self.compact)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(STEPS):
            batch = state.order[step]
            loss = torch.nn.functional.cross_entropy(net(state.train.x[batch]), state.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(net(state.validation.x), state.validation.labels))


class _Masked(torch.nn.Module):
    def __init__(self, parent: dict[str, torch.Tensor], mask: torch.Tensor, kind: str, *, compact: bool) -> None:
        super().__init__()
        weights = [parent[f"layers.{i}.weight"] for i in range(3)]
        biases = [parent[f"layers.{i}.bias"] for i in range(3)]
        self.node_masks = self.weight_masks = None
        if kind == "weight":
            parts = mask.split([w.numel() for w in weights])
            self.weight_masks = [p.view_as(w).float() for p, w in zip(parts, weights, strict=True)]
        elif compact:
            one, two = mask.split([100, 100])
            weights = [weights[0][one], weights[1][two][:, one], weights[2][:, two]]
            biases = [biases[0][one], biases[1][two], biases[2]]
        else:
            self.node_masks = [m.float() for m in mask.split([100, 100])]
        self.weights = torch.nn.ParameterList([w.clone() for w in weights])
        self.biases = torch.nn.ParameterList([b.clone() for b in biases])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.nn.functional.linear(x, w if self.weight_masks is None else w * self.weight_masks[i], b)
            if i < 2:
                x = torch.relu(x)
                if self.node_masks is not None:
                    x = x * self.node_masks[i]
        return x


def function_trainable(config: dict[str, Any], kind: str, data: Any) -> None:
    """(a): what a tutorial would write."""
    loss = Plain(kind, data, compact=False).train(*config["candidate"])
    tune.report({"loss": loss})


class ClassTrainable(tune.Trainable):
    """(b): state made once in an actor that is used again."""

    def setup(self, config: dict[str, Any], kind: str = "", data: Any = None, compact: bool = False) -> None:
        """Once a process."""
        if not hasattr(self, "plain"):
            self.plain = Plain(kind, data, compact=compact)
        self.settings = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next candidate."""
        self.settings = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Train it."""
        return {"loss": self.plain.train(*self.settings["candidate"]), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """None."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """None."""


def candidates(n: int) -> list[tuple[int, int]]:
    """The first n of the study's candidates as (replicate, draw), over its replicates in turn."""
    return [(i % REPLICATES, i // REPLICATES) for i in range(n)]


def run_tune(trainable: Any, n: int, *, reuse: bool) -> tuple[float, dict[tuple[int, int], float]]:
    """Candidates a second, and the losses by candidate."""
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"candidate": tune.grid_search(candidates(n))},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - began
        losses = {tuple(r.config["candidate"]): r.metrics["loss"] for r in results}
    assert len(losses) == n
    return n / seconds, losses


def run_packs(kind: str) -> tuple[float, dict[tuple[int, int], float]]:
    """The same for Sparsefront: a whole study, ledger included; Ray's start is taken out by running inside it."""
    marks: list[float] = []

    class Clock:
        def say(self, text: str) -> None:
            pass

        def show(self, progress: Any) -> None:
            if not marks:
                marks.append(time.perf_counter())

        def close(self) -> None:
            pass

        def finish(self, progress: Any, *, seconds: float) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        results = study(kind).run(Path(folder) / "study", view=Clock())
        table_ = results.to_arrow(where="stage == 'trained'", columns=["replicate", "slot", "val_loss"]).to_pylist()
    losses = {(r["replicate"], r["slot"]): r["val_loss"] for r in table_}
    assert len(losses) == N_PACKS[kind]
    return N_PACKS[kind] / (marks[1] - marks[0]), losses


def main() -> str:
    """Measure and return the table."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    data = load_dataset("mnist1d")
    rows: list[list[str]] = []
    for kind in ("weight", "node"):
        rates: dict[str, list[float]] = {}
        agreement = 0.0
        for _ in range(REPEATS):
            contenders = [
                ("a", tune.with_parameters(function_trainable, kind=kind, data=data), N_FUNCTION, False),
                ("b", tune.with_parameters(ClassTrainable, kind=kind, data=data), N_CLASS, True),
            ]
            if kind == "node":
                compact = tune.with_parameters(ClassTrainable, kind=kind, data=data, compact=True)
                contenders.append(("b, compact by hand", compact, N_CLASS, True))
            found: dict[tuple[int, int], float] = {}
            with cluster_of_tune(WORKERS):
                for name, trainable, n, reuse in contenders:
                    rate, losses = run_tune(trainable, n, reuse=reuse)
                    rates.setdefault(name, []).append(rate)
                    found |= losses
            rate, losses = run_packs(kind)
            rates.setdefault("packs", []).append(rate)
            agreement = max(agreement, *(abs(losses[k] - v) for k, v in found.items()))
        print(
            kind, {k: spread(v) for k, v in rates.items()}, "largest difference of losses", agreement, file=sys.stderr
        )
        for name, label in (
            ("a", "(a) function trainable, one candidate a trial"),
            ("b", "(b) class trainable, reused actors"),
            ("b, compact by hand", "(b) the same, networks shrunk by hand"),
            ("packs", "Sparsefront, packs"),
        ):
            if name in rates:
                ratios = np.array(rates["packs"]) / np.array(rates[name])
                goal = {
                    ("weight", "a"): ">= 50",
                    ("weight", "b"): ">= 4",
                    ("node", "a"): ">= 200",
                    ("node", "b"): ">= 20",
                }
                rows.append(
                    [
                        f"{kind} masks, 90%",
                        label,
                        spread(rates[name]),
                        "" if name == "packs" else spread(list(ratios)),
                        goal.get((kind, name), ""),
                    ]
                )
        rows.append([f"{kind} masks, 90%", "largest difference of final validation losses", f"{agreement:.1e}", "", ""])
    return table(
        "Packs against one candidate a trial",
        ["masks", "contender", "candidates/s", "packs are faster by", "goal"],
        rows,
        f"40-100-100-10 perceptron on MNIST-1D, {STEPS} Adam steps of {BATCH}, {WORKERS} workers of one thread; median "
        f"(lowest-highest) of {REPEATS} runs, contenders in turn; {N_FUNCTION} candidates for (a), {N_CLASS} for (b), "
        f"{N_PACKS['weight']} and {N_PACKS['node']} in packs (the same candidates first), study and ledger included.",
    )


if __name__ == "__main__":
    print(main())
    ray.shutdown()
