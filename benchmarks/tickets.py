"""Lottery tickets and random masks on MNIST-1D, level by level: throughput against plain torch, and the curves.

The protocol is that of the data set's own notebook: 40-500-500-10 with a skip over the second layer, Adam at 2e-2,
batches of 100, 1,501 steps a level, the same sparsity in every layer, whose biases are pruned with its weights, rewound
to initialisation. Ours are five chains of tickets and five of random masks through 25 levels in one study, in every
round. The other contender is one such chain in plain torch, at the thread count that is fastest: trained, pruned by the
magnitude of each layer, validated and rewound, over some levels of the same 1,501 steps, which all cost it alike.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.machine import spread, table
from benchmarks.search import WORKERS, StudyClock
from benchmarks.search_asha import first_began, prepare
from sparsefront.spaces.seeds import generator
from sparsefront.study import MaskStudy, Study
from sparsefront.trainables.data import load_dataset

REPLICATES, N_LEVELS, STEPS, WIDTH, REPEATS = 5, 25, 1501, 500, 3
#: Densities of the levels that plain torch trains: the first, the named ones.
PLAIN_LEVELS = (1.0, 0.08, 0.04)
#: Sparsities of published accuracies, and the last.
NAMED = (0.92, 0.96, 0.99)
#: Accuracies at 92 and 96% of two trials, and of their dense networks: greydanus/mnist1d, notebook of lottery tickets.
PUBLISHED = {("imp", 0.92): (0.744, 0.756), ("random", 0.92): (0.606, 0.618), ("imp", 0.96): (0.693, 0.715),
             ("random", 0.96): (0.499, 0.515), ("dense", 0.0): (0.606, 0.664)}  # fmt: skip


def sparsities(n_levels: int) -> list[float]:
    """Levels from dense to 99%, each keeping nearly the same share of the last, the named ones among them."""
    densities = np.geomspace(1, 1 - NAMED[-1], n_levels + 1)[1:]
    for named in NAMED:
        densities[np.argmin(np.abs(np.log(densities / (1 - named))))] = 1 - named
    return [round(float(1 - d), 6) for d in densities]


def ticket_study(n_levels: int) -> MaskStudy:
    """Tickets and random masks at every level."""
    study = Study.from_dict(
        {
            "name": "bench-tickets",
            "seed": 42,
            "replicates": REPLICATES,
            "sparsities": sparsities(n_levels),
            "arms": {"dense": {}, "random": {}, "imp": {"allocation": "uniform", "rate": 0.6}},
            "data": {"name": "mnist1d", "validation_fraction": 0.02},
            "model": {"name": "residual_mlp", "width": WIDTH, "init": "torch"},
            "masks": {"kind": "weight", "allocation": "uniform", "prune_biases": True},
            "search": {"random_draws": 1, "probe_size": 512},
            "training": {"lr": 2e-2, "batch_size": 100, "steps": STEPS, "eval_every": STEPS},
            "record": {"enabled": False},
            "compute": {"workers": WORKERS, "device": "cpu"},
        }
    )
    assert isinstance(study, MaskStudy)
    return study


def run_study(n_levels: int) -> tuple[float, pa.Table]:
    """Seconds from the first worker's readiness to the end, and all rows."""
    clock = StudyClock()
    with tempfile.TemporaryDirectory() as folder, first_began() as moments:
        results = ticket_study(n_levels).run(Path(folder) / "study", view=clock)
        return clock.ended_s - moments[0], results.to_arrow()


class Plain(torch.nn.Module):
    """The network as anyone would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = torch.nn.Linear(40, WIDTH)
        self.linear2 = torch.nn.Linear(WIDTH, WIDTH)
        self.linear3 = torch.nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        h = torch.relu(self.linear1(x))
        logits: torch.Tensor = self.linear3(h + torch.relu(self.linear2(h)))
        return logits


def plain_chain(threads: int) -> float:
    """Seconds a step of a chain in plain torch: training, pruning, validating and rewinding."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as our workers: averages of units that died become tiny numbers
    data = load_dataset("mnist1d")
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train)
    n_train = len(x) - len(x) // 50
    torch_draws = torch.Generator().manual_seed(0)
    model = Plain()
    with torch.no_grad():
        for p in model.parameters():  # as torch initialises a Linear layer
            bound = (p.shape[1] if p.dim() == 2 else WIDTH) ** -0.5
            p.uniform_(-bound, bound, generator=torch_draws)
    start = [p.detach().clone() for p in model.parameters()]
    masks = [torch.ones_like(p) for p in start]
    orders = torch.from_numpy(generator(0, "plain").integers(0, n_train, (STEPS, 100)))
    began = time.perf_counter()
    for density in PLAIN_LEVELS:
        with torch.no_grad():
            if density < 1:
                sizes = [p.abs() for p in model.parameters()]
                ranks = [min(round((1 - density) * size.numel()), size.numel() - 1) + 1 for size in sizes]
                masks = [(s >= s.flatten().kthvalue(rank).values).float() for s, rank in zip(sizes, ranks, strict=True)]
            for p, first, mask in zip(model.parameters(), start, masks, strict=True):
                p.copy_(first * mask)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2, fused=True)
        for batch in orders:
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            for p, mask in zip(model.parameters(), masks, strict=True):
                if p.grad is not None:
                    p.grad.mul_(mask)
            optimizer.step()
        with torch.no_grad():
            (model(x[n_train:]).argmax(1) != y[n_train:]).float().mean()
    return (time.perf_counter() - began) / (STEPS * len(PLAIN_LEVELS))


def curves(rows: pa.Table) -> list[list[str]]:
    """Accuracy of arms at the published levels beside what was published."""
    data = rows.select(["stage", "arm", "target_sparsity", "test_error", "outcome"]).to_pylist()
    lines, placed = [], []
    for (arm, level), (low, high) in PUBLISHED.items():
        found = [
            100 * (1 - row["test_error"])
            for row in data
            if row["stage"] == "trained"
            and row["arm"] == arm
            and abs(row["target_sparsity"] - level) < 1e-9
            and row["outcome"] == "completed"
        ]
        where = "dense" if level == 0 else f"`{arm}` at {level:.0%}"
        lines.append(
            [f"test accuracy, {where}: median (lowest-highest) of {len(found)} chains", f"{spread(found)}%",
             f"published: {100 * low:.1f} and {100 * high:.1f}%"]
        )  # fmt: skip
        placed.append((where, float(np.median(found)), 100 * low, 100 * high))
    outside = [f"{where} {value:.1f}%" for where, value, low, high in placed if not low <= value <= high]
    verdict = "yes" if not outside else f"{len(placed) - len(outside)} of {len(placed)}; not {', '.join(outside)}"
    return [*lines, ["medians between the two published trials", verdict, "all"]]


def main(n_levels: int = N_LEVELS) -> str:
    """Measure and return the table."""
    prepare()
    n_threads = (1, 2, 4)
    ours: list[float] = []
    plain: dict[int, list[float]] = {n: [] for n in n_threads}
    rows: pa.Table | None = None
    for _ in range(REPEATS):
        wall_s, rows = run_study(n_levels)
        trainings = rows.filter(pc.is_in(rows["stage"], pa.array(["trained", "level"])))["steps"].drop_null()
        ours.append(wall_s / (len(trainings) * STEPS))
        for n in n_threads:
            plain[n].append(plain_chain(n))
        torch.set_num_threads(1)
        print({"ours": ours, "plain": plain}, file=sys.stderr, flush=True)
    best = min(n_threads, key=lambda n: float(np.median(plain[n])))
    ratios = [p / o for p, o in zip(plain[best], ours, strict=True)]
    assert rows is not None
    return table(
        "Tickets and random masks on MNIST-1D",
        ["what", "figure", "goal"],
        [
            [f"steps/s of the study, {WORKERS} workers, ledger included", spread([1 / v for v in ours]), ""],
            *(
                [f"steps/s of plain torch, one network after the other, {n} threads",
                 spread([1 / v for v in plain[n]]), ""]
                for n in n_threads
            ),
            [f"the study is faster by (against {best} threads)", spread(ratios), ">= 2.5"],
            *curves(rows),
        ],
        f"{REPLICATES} chains of tickets and as many of random masks, {n_levels} levels to {NAMED[-1]:.0%}; "
        f"40-{WIDTH}-{WIDTH}-10 with a skip, Adam 2e-2, batch 100, {STEPS} steps a level, layer-wise magnitude of "
        f"weights and biases, rewound to initialisation. Throughput: {REPEATS} rounds over all levels, plain torch "
        f"over {len(PLAIN_LEVELS)} levels of one chain in each. Published: single runs, two trials, nothing at other "
        "levels.",
    )  # fmt: skip


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
