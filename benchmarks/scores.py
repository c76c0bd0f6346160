"""Time per mask of every score, beside a dense forward and backward pass over the same examples in plain PyTorch.

On a CPU both have one core, as in a worker of a study. A score without data is held to what it counts: passes of the
one example that it makes up, in its precision.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.machine import set_up_as_worker, spread, table
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import dense_lanes
from sparsefront.trainables.models import Model, build_model, initial_weights
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.pruning import SCORES, ScoringState, iterative_mask

REPEATS = 15
SPARSITY = 0.9
#: Rounds of scoring anew, for those that are not scored once; SynFlow's authors take 100, and so does its arm.
ROUNDS = {"synflow": (10, 100)}
#: Name -> family, options, shape of an example.
PARENTS = {
    "784-1024-1024-10": ("mlp", {"widths": [1024, 1024]}, (784,)),
    "conv1d 40, 400-400-400": ("conv1d", {"channels": [400, 400, 400]}, (40,)),
    "restorer 16 x 16, 16-16-16": ("restorer", {"channels": [16, 16, 16]}, (1, 16, 16)),
}
#: Parent, examples and scores: 25 examples of each class, as GraSP's authors take, ten batches of 100, and a network
#: whose weights meet many positions of an image, which is hard on squares of per-example gradients.
CASES = (
    ("784-1024-1024-10", 250, tuple(SCORES)),
    ("784-1024-1024-10", 1000, tuple(SCORES)),
    ("conv1d 40, 400-400-400", 250, tuple(SCORES)),
    ("restorer 16 x 16, 16-16-16", 96, ("snip", "fisher")),
)


def dense_network(model: Model) -> nn.Sequential:
    """The same parent as a user of plain PyTorch writes it."""
    shapes = {t.name: t.shape for t in model.structure.tensors}
    if len(shapes.get("convs.0.weight", ())) == 4:
        layers: list[nn.Module] = []
        for i in range(4):
            n_out, n_in, *_ = shapes[f"convs.{i}.weight"]
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    if "linear.weight" not in shapes:
        layers = []
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


def rows_of(name: str, n_examples: int, scores: Sequence[str], device: torch.device) -> list[list[str]]:
    """One row for each of some scores and kind of mask."""
    family, options, shape = PARENTS[name]
    model = build_model(family, options, input_shape=shape, n_classes=10)
    weights = initial_weights(model.structure, "kaiming", generator(1, "bench"))
    lanes = dense_lanes(model.structure, [weights], device)
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((n_examples, *shape)).astype(np.float32)
    examples = Examples.of(x, numbers.integers(0, 10, n_examples), 10, device)
    if family == "restorer":
        examples = replace(examples, images=examples.x.clone(), degradations=("noise",))
    keys = [philox_key(0, "bench")]
    state = ScoringState(model, lanes, examples, start=lanes.flat * 0.9, keys=keys, products=lanes.flat * 0.1)
    network = dense_network(model).to(device)
    one = copy.deepcopy(network).double()

    def dense() -> None:
        network.zero_grad()
        outputs = network(examples.x)
        if examples.images is None:
            loss = nn.functional.cross_entropy(outputs, examples.labels)
        else:
            loss = nn.functional.l1_loss(examples.x + outputs, examples.images)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it

    def dense_one() -> None:
        one.zero_grad()
        one(torch.ones_like(examples.x[:1], dtype=torch.float64)).sum().backward()

    rows = []
    for score_name in scores:
        score = SCORES[score_name]
        for kind, rounds in itertools.product(score.kinds, ROUNDS.get(score_name, (1,))):
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
            if score.is_data_free:
                passes = single
            ratios = [m / p / n_passes for m, p in zip(masks, passes, strict=True)] if n_passes else []
            rows.append(
                [
                    f"{name}, {n_examples} examples",
                    f"{score_name}, {kind}" + (f", {rounds} rounds" if rounds > 1 else ""),
                    f"{spread([1e3 * s for s in masks])}",
                    f"{n_passes:.3g} x {1e3 * statistics.median(passes):.3g} ms"
                    + (" (one example, float64)" if score.is_data_free else "")
                    if n_passes
                    else "none",
                    spread(ratios) if ratios else "",
                    "<= 1.5" if ratios else "",
                ]
            )
    return rows


def main() -> str:
    """Measure and return the table."""
    set_up_as_worker()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return table(
        "Scores: time per mask beside dense forward and backward passes",
        ["parent", "score, mask", "ms a mask", "passes that it counts", "times those", "goal"],
        [row for name, n, scores in CASES for row in rows_of(name, n, scores, device)],
        f"One lane, {SPARSITY:.0%} removed by one global threshold, selection included; dense passes are plain "
        f"PyTorch and take turns with them in one process, on one core, as in a worker. Median "
        f"(lowest-highest) of {REPEATS}.",
    )


if __name__ == "__main__":
    print(main())
