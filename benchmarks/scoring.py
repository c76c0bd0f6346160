"""Drawing and scoring masks: against a loop over masks in one process, and through the whole system."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import spread, table
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.trainables.losses import scale_free_cross_entropy
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.pack import Examples
from sparsefront.trainables.scoring import Scorer

REPEATS = 5
N_SYSTEM = 100_000


def drawing() -> list[list[str]]:
    """100,000 masks of a 256-128 parent, one core."""
    seconds = []
    for i in range(REPEATS):
        began = time.perf_counter()
        draw([256, 128], [26, 13], philox_key(i, "bench"), start=0, stop=100_000)
        seconds.append(time.perf_counter() - began)
    return [["draw 100,000 node masks of a 256-128 parent, one core", f"{spread(seconds)} s", "", "< 2 s"]]


def against_loop() -> list[list[str]]:
    """784-1024-1024-10, probe 1,000, 90% of the nodes gone."""
    model = build_model("mlp", {"widths": [1024, 1024]}, input_shape=(784,), n_classes=10)
    weights = initial_weights(model.structure, "kaiming", generator(1, "bench"))
    parent = {k: torch.from_numpy(v) for k, v in weights.items()}
    numbers = np.random.default_rng(0)
    probe = Examples.of(
        numbers.standard_normal((1000, 784)).astype(np.float32), numbers.integers(0, 10, 1000), 10, torch.device("cpu")
    )
    counts = kept_counts(model.structure, "node", 0.9, "uniform")
    masks = draw([1024, 1024], counts, philox_key(0, "bench"), start=0, stop=512)
    scorer = Scorer(model, parent, probe, kind="node")
    rows = []
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        scorer.score(masks[:16])
        loop_rates, rates, difference = [], [], 0.0
        for _ in range(REPEATS):
            began = time.perf_counter()
            scores = scorer.score(masks)
            rates.append(len(masks) / (time.perf_counter() - began))
            began = time.perf_counter()
            losses = [_masked_scores(parent, mask, probe) for mask in masks[:24]]
            loop_rates.append(len(losses) / (time.perf_counter() - began))
            difference = max(difference, float(np.abs(np.array(losses) - scores.initial_loss[:24]).max()))
        ratios = [a / b for a, b in zip(rates, loop_rates, strict=True)]
        rows.append(
            [
                f"score node masks of 784-1024-1024-10 at 90%, probe 1,000, {threads} threads",
                f"{spread(rates)} masks/s; loop {spread(loop_rates)}; losses differ by {difference:.0e}",
                spread(ratios),
                ">= 20",
            ]
        )
    return rows


@torch.no_grad()
def _masked_scores(parent: dict[str, torch.Tensor], mask: np.ndarray, probe: Examples) -> float:
    """The four scores of one mask, the plain way: the dense network with masked activations."""
    one, two = torch.from_numpy(mask.astype(np.float32)).split([1024, 1024])
    h = torch.relu(torch.nn.functional.linear(probe.x, parent["layers.0.weight"], parent["layers.0.bias"])) * one
    h = torch.relu(torch.nn.functional.linear(h, parent["layers.1.weight"], parent["layers.1.bias"])) * two
    z = torch.nn.functional.linear(h, parent["layers.2.weight"], parent["layers.2.bias"])
    scale_free_cross_entropy(z.t()[None].contiguous(), probe.labels)
    return float(torch.nn.functional.cross_entropy(z, probe.labels))


SYSTEM = """
import resource, sys, time
from sparsefront.study import Study
n, folder = int(sys.argv[1]), sys.argv[2]
study = Study.from_dict({
    "name": "masks", "seed": 1, "replicates": 1, "sparsities": [0.9], "arms": ["random", "searched"],
    "search": {"draws": n, "random_draws": 1, "probe_size": 512}, "training": {"steps": 1},
    "record": {"enabled": False}, "compute": {"workers": 4, "device": "cpu"},
})
marks = []
class Clock:
    def say(self, text): pass
    def show(self, progress):
        if not marks: marks.append(time.perf_counter())
        if len(marks) == 1 and progress.counts[0] >= n: marks.append(time.perf_counter())
    def close(self): pass
    def finish(self, progress, *, seconds):
        if len(marks) == 1: marks.append(time.perf_counter())
results = study.run(folder, view=Clock())
began = time.perf_counter()
front = results.front(where="stage == 'scored'", objectives=["initial_loss", "macs", "scalefree_loss"])
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(marks[1] - marks[0], time.perf_counter() - began, peak_mib, front.num_rows)
"""


def whole_system() -> list[list[str]]:
    """The baseline's parent, 90%, probe of 512, through Ray, the ledger and the front, 4 workers."""
    rows, peaks = [], {}
    for n in (N_SYSTEM // 4, N_SYSTEM, 4 * N_SYSTEM):
        rates, fronts, memory = [], [], []
        for _ in range(3 if n == N_SYSTEM else 1):
            with tempfile.TemporaryDirectory() as folder:
                out = subprocess.run(
                    [sys.executable, "-c", SYSTEM, str(n), str(Path(folder) / "study")],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.split()
            rates.append(n / float(out[0]))
            fronts.append(float(out[1]))
            memory.append(float(out[2]))
        peaks[n] = statistics.median(memory)
        rows.append(
            [
                f"{n:,} node masks through the whole system, 4 workers, from the first dispatch",
                f"{spread(rates)} masks/s; front {spread(fronts)} s",
                "",
                ">= 5,000/s" if n == N_SYSTEM else "",
            ]
        )
    memory_row = ", ".join(f"{n:,}: {mib:.0f} MiB" for n, mib in peaks.items())
    rows.append(["peak memory of the driver, by masks scored", memory_row, "", "flat"])
    return rows


def main() -> str:
    """Measure and return the table."""
    torch.set_flush_denormal(True)
    return table(
        "Masks: drawing and scoring",
        ["what", "figure", "faster than the loop by", "goal"],
        [*drawing(), *against_loop(), *whole_system()],
        f"Median (lowest-highest) of {REPEATS} runs (whole system: 3 at 100,000, 1 at others). Every mask gets "
        "all scores: initial loss, loss at the best temperature, that temperature, logit deviation; so does the loop.",
    )


if __name__ == "__main__":
    print(main())
