"""Lanes a second by pack size, on a CPU core and on a GPU if there is one: what packing is worth."""

from __future__ import annotations

import time

import torch

from benchmarks.machine import spread, table
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.lanes import node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Feed, Pack, Schedule, batch_order

REPEATS = 5
SIZES = {"cpu": (1, 4, 16, 64, 256, 1024), "cuda": (1, 4, 16, 64, 256, 1024, 4096)}
CASES = (("mlp", [100, 100], "weight"), ("mlp", [100, 100], "node"), ("mlp", [256, 128], "node"))


def rate(widths: list[int], kind: str, n_lanes: int, device: torch.device, precision: str) -> float:
    """Lane-steps a second of one pack."""
    data = load_dataset("mnist1d")
    model = build_model("mlp", {"widths": widths, "init": "torch"}, input_shape=(40,), n_classes=10)
    weights = initial_weights(model.structure, "torch", generator(1, "bench"))
    parent = {k: torch.from_numpy(v).to(device) for k, v in weights.items()}
    masks = draw(
        model.structure.section_sizes(kind),
        kept_counts(model.structure, kind, 0.9, "uniform"),
        philox_key(0, "bench"),
        start=0,
        stop=n_lanes,
    )
    build = node_masked_lanes if kind == "node" else weight_masked_lanes
    train = Examples.of(data.x_train[:3200], data.y_train[:3200], 10, device)
    validation = Examples.of(data.x_train[3200:], data.y_train[3200:], 10, device)
    steps = max(20, min(200, 20_000 // n_lanes)) if device.type == "cpu" else 200
    order = torch.from_numpy(batch_order(3200, 100, 2 * steps, generator(1, "order"))).to(device)
    pack = Pack(
        model,
        build(model.structure, parent, masks),
        [Hyperparameters(lr=0.01)] * n_lanes,
        Schedule("adam", 2 * steps, 100, steps),
        data=Feed(train, validation, order),
        precision=precision,
    )
    pack.advance()  # records the gradient, warms caches
    _synchronise(device)
    began = time.perf_counter()
    pack.advance()
    _synchronise(device)
    return n_lanes * steps / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> str:
    """Measure and return the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    devices = [("cpu", "float32")] + ([("cuda", "float32"), ("cuda", "bfloat16")] if torch.cuda.is_available() else [])
    rows = []
    for name, precision in devices:
        device = torch.device(name)
        shown = "CPU, one core" if name == "cpu" else torch.cuda.get_device_name()
        for model, widths, kind in CASES:
            alone: list[float] = []
            for n in SIZES[name]:
                rates = [rate(widths, kind, n, device, precision) for _ in range(REPEATS)]
                alone = alone or rates
                ratio = sorted(rates)[REPEATS // 2] / sorted(alone)[REPEATS // 2]
                net = f"40-{widths[0]}-{widths[1]}-10"
                rows.append(
                    [
                        f"{shown}, {precision}",
                        f"{model} {net}, {kind} masks 90%",
                        f"{n:,}",
                        spread(rates),
                        f"{ratio:.3g}",
                    ]
                )
    if not torch.cuda.is_available():
        rows.append(["GPU", "the same, 1 to 4,096 lanes", "", "not measured (no GPU)", ""])
    return table(
        "Lanes a second by pack size",
        ["device", "network", "lanes", "lane-steps/s", "times one lane"],
        rows,
        f"Adam steps of 100 examples; validation once a few hundred steps; median (lowest-highest) of {REPEATS}.",
    )


if __name__ == "__main__":
    print(main())
