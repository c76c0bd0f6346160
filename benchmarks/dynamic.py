"""Lane-steps a second of packs whose masks change in training, beside static masks and one lane alone.

On a CPU both have the same cores: the lane alone at its best number of threads, the packs one on each core, as the
trials of a study run. Lanes of a pack are of several replicates, each with batches of its own. A study of SET,
RigL and random masks is measured as a whole, too: there the packs are those that it makes of ten replicates.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch

from benchmarks.machine import set_up_as_worker, spread, table
from benchmarks.search import StudyClock
from benchmarks.search_asha import first_began, prepare
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.masks import draw
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.study import Study
from sparsefront.trainables.data import load_dataset
from sparsefront.trainables.lanes import Layout, dense_lanes, weight_masked_lanes
from sparsefront.trainables.mask_updates import UPDATES, UpdateSettings, sections_of
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Examples, Feed, Pack, Schedule, batch_order

REPEATS = 5
#: Of the lanes of a pack; and of the study, whose rows of stage 'trained' say how many steps were trained.
REPLICATES, STUDY_REPLICATES = 8, 10
WIDTHS = [256, 128]
SPARSITY = 0.9
#: Of the whole training; what is measured is a stretch of it that has updates at their usual density.
STEPS = 1500
MEASURED = {1: 560, 32: 56}
KINDS = ("static", *UPDATES)
N_CORES = len(os.sched_getaffinity(0))
_together: list[Barrier] = []  # of a worker


def rate(kind: str, n_lanes: int, device: torch.device, measured: int | None = None) -> float:
    """Lane-steps a second of one pack, over whole intervals between updates unless told how many steps."""
    data = load_dataset("mnist1d")
    model = build_model("mlp", {"widths": WIDTHS, "init": "torch"}, input_shape=(40,), n_classes=10)
    structure = model.structure
    weights = initial_weights(structure, "torch", generator(1, "bench"))
    masks = draw(
        structure.section_sizes("weight"),
        kept_counts(structure, "weight", SPARSITY, "erk"),
        philox_key(0, "bench"),
        start=0,
        stop=n_lanes,
    )
    starts_dense = kind in UPDATES and UPDATES[kind].starts_dense
    lanes = (
        dense_lanes(structure, [weights] * n_lanes, device)
        if starts_dense
        else weight_masked_lanes(structure, {k: torch.from_numpy(v).to(device) for k, v in weights.items()}, masks)
    )
    settings = UpdateSettings(
        sections_of(structure, Layout.of(structure)),
        steps=STEPS,
        sparsity=SPARSITY,
        counts=lambda sparsity: kept_counts(structure, "weight", sparsity, "erk"),
        lanes=tuple((0, i) for i in range(n_lanes)),
        begin_fraction=0.0,
    )
    measured = measured or MEASURED[n_lanes]
    train = Examples.of(data.x_train[:3200], data.y_train[:3200], 10, device)
    validation = Examples.of(data.x_train[3200:], data.y_train[3200:], 10, device)
    feeds = [
        Feed(
            train,
            validation,
            torch.from_numpy(batch_order(3200, 100, 2 * measured, generator(1, "order", replicate))).to(device),
        )
        for replicate in range(min(REPLICATES, n_lanes))
    ]
    pack = Pack(
        model,
        lanes,
        [Hyperparameters(lr=0.01)] * n_lanes,
        Schedule("adam", 2 * measured, 100, measured),
        data=[feeds[i * len(feeds) // n_lanes] for i in range(n_lanes)],
        updates=UPDATES[kind].make(settings) if kind in UPDATES else None,
    )
    pack.advance()  # records the gradient, warms caches
    _synchronise(device)
    for barrier in _together:
        barrier.wait()
    began = time.perf_counter()
    pack.advance()
    _synchronise(device)
    return n_lanes * measured / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _join(barrier: Barrier) -> None:
    """Make this process one of those that measure together."""
    _one_thread()
    _together.append(barrier)


def _one_thread() -> None:
    set_up_as_worker()


def on_every_core(pool: Pool, kind: str) -> float:
    """Lane-steps a second of one pack on each core at once."""
    return sum(pool.starmap(rate, [(kind, 32, torch.device("cpu"))] * N_CORES, chunksize=1))


def best_n_threads() -> int:
    """Threads with which one lane alone is fastest: by the median of some probes that take turns.

    Of few steps: more threads than free cores are very slow.
    """
    rates: dict[int, list[float]] = {}
    for _ in range(REPEATS):
        for n_threads in sorted({1, 2, N_CORES}):
            torch.set_num_threads(n_threads)
            rates.setdefault(n_threads, []).append(rate("static", 1, torch.device("cpu"), 28))
    torch.set_num_threads(1)
    return max(rates, key=lambda n: sorted(rates[n])[REPEATS // 2])


def alone(kind: str, n_threads: int) -> float:
    """Lane-steps a second of one lane."""
    torch.set_num_threads(n_threads)
    found = rate(kind, 1, torch.device("cpu"))
    torch.set_num_threads(1)
    return found


def study_rate() -> float:
    """Lane-steps a second of a study of SET, RigL and random masks, from the first pack to its end, ledger included."""
    study = Study.from_dict(
        {
            "name": "bench-dynamic",
            "seed": 7,
            "replicates": STUDY_REPLICATES,
            "sparsities": [SPARSITY],
            "arms": {"random": {}, "set": {}, "rigl": {}},
            "model": {"name": "mlp", "widths": WIDTHS, "init": "torch"},
            "masks": {"kind": "weight", "allocation": "erk"},
            "search": {"draws": 1, "random_draws": 1, "probe_size": 100},
            "training": {"lr": 0.01, "batch_size": 100, "steps": STEPS, "eval_every": STEPS},
            "record": {"enabled": False},
            "compute": {"workers": N_CORES, "device": "cpu"},
        }
    )
    clock = StudyClock()
    with tempfile.TemporaryDirectory() as folder, first_began() as moments:
        rows = study.run(Path(folder) / "study", view=clock).to_arrow()
        trained = rows.filter(pc.equal(rows["stage"], "trained"))
        return float(pc.sum(trained["steps"]).as_py()) / (clock.ended_s - moments[0])


def main() -> str:
    """Measure and return the table."""
    prepare()
    _one_thread()
    found: dict[tuple[str, str], list[float]] = {}
    n_threads = best_n_threads()
    context = multiprocessing.get_context("spawn")
    with context.Pool(N_CORES, _join, (context.Barrier(N_CORES),)) as pool:
        for _ in range(REPEATS):  # interleaved, so that a busy spell of the machine meets all
            for kind in KINDS:
                found.setdefault((kind, "alone"), []).append(alone(kind, n_threads))
                found.setdefault((kind, "core"), []).append(rate(kind, 32, torch.device("cpu")))
                found.setdefault((kind, "packs"), []).append(on_every_core(pool, kind))
    studies = [study_rate() for _ in range(REPEATS)]
    columns = (("alone", "core", "packs"), ("gpu alone", "", "gpu"))
    if torch.cuda.is_available():
        for _ in range(REPEATS):
            for kind in KINDS:
                for name, n in (("gpu alone", 1), ("gpu", 32)):
                    found.setdefault((kind, name), []).append(rate(kind, n, torch.device("cuda")))
    middle = {key: sorted(rates)[REPEATS // 2] for key, rates in found.items()}
    rows = []
    for names in columns:
        for kind in KINDS:
            if (kind, names[0]) not in found:
                continue
            packed = middle[kind, names[2]]
            rows.append(
                [
                    f"CPU, {N_CORES} cores" if names[1] else torch.cuda.get_device_name(),
                    kind,
                    *(spread(found[kind, name]) if name else "" for name in names),
                    f"{packed / middle[kind, names[0]]:.3g}",
                    f"{packed / middle['static', names[2]]:.2f}",
                ]
            )
    one = np.mean([middle[kind, "alone"] for kind in ("set", "rigl")])
    times = f"{sorted(studies)[REPEATS // 2] / one:.3g}"
    what = f"a study of set, rigl and random masks, {STUDY_REPLICATES} replicates, as a whole"
    rows.append([f"CPU, {N_CORES} cores", what, f"{one:.4g}", "", spread(studies), times, ""])
    return table(
        "Masks that change in training: packs against one lane alone",
        [
            "device",
            "masks",
            f"one lane, best number of threads ({n_threads})",
            f"a pack of 32 lanes of {REPLICATES} replicates on one core",
            "such a pack on every core (GPU: one pack)",
            "times one lane",
            "times static",
        ],
        rows,
        f"Lane-steps/s. MLP 40-256-128-10, weights at {SPARSITY:.0%} sparsity (ERK), Adam steps of 100 examples, about "
        f"40 updates in {STEPS} steps (edge_popup: one a step); median (lowest-highest) of {REPEATS}. Target: 4 times "
        "one lane for SET and RigL.",
    )


if __name__ == "__main__":
    print(main())
