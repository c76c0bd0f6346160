"""Time per mask of every score, beside a dense forward and backward pass over the same examples in plain PyTorch."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.machine import spread, table
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import dense_lanes
from sparsefront.trainables.models import Model, build_model, initial_weights
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.pruning import SCORES, ScoringState, iterative_mask

REPEATS = 15
SPARSITY = 0.9
#: Rounds of scoring anew; SynFlow's authors take 100.
ROUNDS = {"synflow": 10}
#: Name -> family, options, shape of an example.
PARENTS = {
    "784-1024-1024-10": ("mlp", {"widths": [1024, 1024]}, (784,)),
    "conv1d 40, 400-400-400": ("conv1d", {"channels": [400, 400, 400]}, (40,)),
}
#: 25 examples of each class, as GraSP's authors take, and ten batches of 100.
CASES = (("784-1024-1024-10", 250), ("784-1024-1024-10", 1000), ("conv1d 40, 400-400-400", 250))


def dense_network(model: Model) -> nn.Sequential:
    """The same parent as a user of plain PyTorch writes it."""
    shapes = {t.name: t.shape for t in model.structure.tensors}
    if "linear.weight" not in shapes:
        layers: list[nn.Module] = []
        for i in range(3):
            n_out, n_in = shapes[f"layers.{i}.weight"]
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    layers = [nn.Unflatten(1, (1, -1))]
    for i in range(3):
        n_out, n_in, kernel = shapes[f"convs.{i}.weight"]
        layers += [nn.Conv1d(n_in, n_out, kernel, stride=2, padding=1), nn.ReLU()]
    n_out, n_in = shapes["linear.weight"]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_in, n_out))


def counts_of(structure: Structure, kind: str, density: float) -> tuple[int, ...]:
    """One count over all layers."""
    return kept_counts(structure, kind, 1 - density, "global")


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rows_of(name: str, n_examples: int, device: torch.device) -> list[list[str]]:
    """One row for each score and kind of mask."""
    family, options, shape = PARENTS[name]
    model = build_model(family, options, input_shape=shape, n_classes=10)
    weights = initial_weights(model.structure, "kaiming", generator(1, "bench"))
    lanes = dense_lanes(model.structure, [weights], device)
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((n_examples, *shape)).astype(np.float32)
    examples = Examples.of(x, numbers.integers(0, 10, n_examples), 10, device)
    state = ScoringState(model, lanes, examples, start=lanes.flat * 0.9, keys=[philox_key(0, "bench")])
    network = dense_network(model).to(device)
    one = copy.deepcopy(network).double()

    def dense() -> None:
        network.zero_grad()
        nn.functional.cross_entropy(network(examples.x), examples.labels).backward()  # type: ignore[no-untyped-call]

    def dense_one() -> None:
        one.zero_grad()
        one(torch.ones_like(examples.x[:1], dtype=torch.float64)).sum().backward()

    rows = []
    for score_name, score in SCORES.items():
        for kind in score.kinds:
            rounds = ROUNDS.get(score_name, 1)
            cut = partial(
                iterative_mask,
                score,
                state,
                kind,
                density=1 - SPARSITY,
                counts_of=partial(counts_of, model.structure, kind),
                rounds=rounds,
            )
            cut()
            masks, passes, single = [], [], []
            for _ in range(REPEATS):
                passes.append(seconds(dense))
                single.append(seconds(dense_one))
                masks.append(seconds(cut))
            n_passes = score.passes_each * rounds
            ratios = [m / p / n_passes for m, p in zip(masks, passes, strict=True)] if n_passes else []
            ratio = spread(ratios) if ratios else ""
            if score.is_data_free:
                ratio += f"; {spread([m / p / n_passes for m, p in zip(masks, single, strict=True)])} of float64 ones "
                ratio += "of one example"
            rows.append(
                [
                    f"{name}, {n_examples} examples",
                    f"{score_name}, {kind}" + (f", {rounds} rounds" if rounds > 1 else ""),
                    f"{spread([1e3 * s for s in masks])}",
                    f"{n_passes:.3g} x {1e3 * statistics.median(passes):.3g} ms" if n_passes else "none",
                    ratio,
                    "<= 1.5" if ratios else "",
                ]
            )
    return rows


def main() -> str:
    """Measure and return the table."""
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return table(
        "Scores: time per mask beside dense forward and backward passes",
        ["parent", "score, mask", "ms a mask", "passes that it counts", "times those", "goal"],
        [row for name, n in CASES for row in rows_of(name, n, device)],
        f"One lane, {SPARSITY:.0%} removed by one global threshold, selection included; dense passes are plain PyTorch "
        f"on the same threads in the same run. Median (lowest-highest) of {REPEATS}.",
    )


if __name__ == "__main__":
    print(main())
