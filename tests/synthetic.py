"""Synthetic ledgers: tables that look like a study's record, with a known truth.

``make_design`` builds a :class:`Design`, ``make_table`` the table that such a study would have left, for tests of
everything that reads ledgers (fronts, verdicts, report, mirror) without training a single network.

The truth of a table: the test accuracy of a network is

    plateau(level) + replicate's shift + arm's effect + slope * (standardised initial loss) + noise,

and its validation accuracy the same with ``selection_noise`` added. So ``effect={"magnitude": 0.03}`` makes the
magnitude arm three accuracy points better than random at every level, and no argument at all is a true null.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from sparsefront.search.design import Design
from sparsefront.search.schema import KEY, SCHEMA

# A deadline would be a wall-clock assertion: a busy machine is no failure.
settings.register_profile("sparsefront", deadline=None)
settings.load_profile("sparsefront")

ARMS = ("random", "searched", "searched_scalefree", "worst", "dense", "small_dense", "magnitude")
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)

#: Parent 40-100-100-10: hidden widths, parameters and multiply-accumulates are those of a real network.
INPUTS, HIDDEN, CLASSES = 40, (100, 100), 10


def build_design(**changes: Any) -> Design:
    """Build the design of a small study; every field can be overridden by name."""
    fields: dict[str, Any] = {
        "name": "synthetic",
        "seed": 7,
        "replicates": 10,
        "sparsities": (0.5, 0.9),
        "arms": ARMS,
        "draws": 32,
        "random_draws": 8,
        "probe_size": 512,
        "steps": 1000,
        "mask_kind": "node",
        "allocation": "uniform",
        "model": "mlp",
        "dataset": "mnist1d",
    }
    return Design(**(fields | changes))


def build_table(
    design: Design,
    *,
    effect: Mapping[str, float | Mapping[float, float]] | None = None,
    convergence: Mapping[str, float] | None = None,
    noise: float = 0.01,
    selection_noise: float = 0.005,
    slope: float = 0.0,
    seed: int = 0,
    outcomes: Mapping[tuple[str, int, float, int], str] | None = None,
    without: Sequence[tuple[str, int, float, int]] = (),
    batch_size: int = 100,
    n_points: int = 20,
    n_test: int | None = 1000,
    reach: bool = True,
    reuse: bool = True,
) -> pa.Table:
    """Build the ledger that a finished study of this design could have left.

    Args:
        design: what was asked; only its arms, levels, replicates and sizes matter here.
        effect: gain in accuracy (fraction) of an arm over random, for all levels or {level: gain}.
        convergence: factor on the time constant of an arm's learning curve (0.5 = twice as fast).
        noise: standard deviation of the accuracy of one network around its truth.
        selection_noise: standard deviation between validation and test accuracy.
        slope: change in accuracy for one standard deviation of the initial loss (negative: low loss is good).
        seed: of every draw of this table.
        outcomes: {(arm, replicate, level, slot): outcome} of trained rows that did not complete (no results).
        without: the trained rows (same keys) that are left out, as in a study that was cut short.
        batch_size: examples in an optimiser step.
        n_points: length of the learning curves.
        n_test: accuracies are multiples of 1 / n_test, as counts of examples are; None leaves them real numbers.
        reuse: False keeps arms that choose among scored masks from choosing one of the random arm's, which is trained
            and recorded once: their ``effect`` and ``outcomes`` cannot reach such a copy.
        reach: False makes all curves end flat below every target, so that nothing converges (accuracies stay).

    Returns:
        A table of ``SCHEMA`` in commit order, replicate by replicate: scored, trained, pruned and its training.
    """
    rng = np.random.default_rng(seed)
    outcomes = dict(outcomes or {})
    rows: list[dict[str, Any]] = []
    replicate_shift = rng.normal(0.0, 0.01, design.replicates)

    def candidate(*parts: object) -> str:
        return hashlib.blake2b(repr((design.seed, *parts)).encode(), digest_size=16).hexdigest()

    def quantised(accuracy: float) -> float:
        accuracy = float(np.clip(accuracy, 0.0, 1.0))
        return accuracy if n_test is None else round(accuracy * n_test) / n_test

    def gain(arm: str, level: float) -> float:
        value = (effect or {}).get(arm, 0.0)
        return value if isinstance(value, float | int) else value.get(level, 0.0)

    def size(level: float) -> dict[str, Any]:
        kept = [max(1, round((1 - level) * width)) for width in HIDDEN]
        widths = (INPUTS, *kept, CLASSES)
        full = (INPUTS, *HIDDEN, CLASSES)
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        weights_full = sum(a * b for a, b in itertools.pairwise(full))
        return {
            "node_sparsity": 1 - sum(kept) / sum(HIDDEN),
            "weight_sparsity": 1 - weights / weights_full,
            "n_params": weights + sum(widths[1:]),
            "macs": weights,
        }

    def row(stage: str, arm: str, replicate: int, level: float, slot: int, **values: Any) -> dict[str, Any]:
        made: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        made |= {
            "stage": stage,
            "arm": arm,
            "replicate": replicate,
            "target_sparsity": level,
            "slot": slot,
            "outcome": "completed",
            "reused": False,
            "mask_kind": "none" if level == 0 else design.mask_kind,
            "attempt": 0,
            "pack": f"{stage}-{replicate}-{level:g}",
            "device": "cpu",
            "committed_at": START + dt.timedelta(milliseconds=10 * len(rows)),
        }
        made |= size(level) | values
        rows.append(made)
        return made

    def cost(passes: float, macs: int) -> dict[str, float]:
        return {"passes": passes, "flops": 3 * 2 * passes * macs, "seconds": 3 * passes * macs / 1e9}

    first_slot: dict[str, dict[str, Any]] = {}

    def train(arm: str, replicate: int, level: float, slot: int, name: str, source: Mapping[str, Any] | None) -> None:
        key = (arm, replicate, level, slot)
        earlier = first_slot.get(name)
        if earlier is not None:
            copied = {k: v for k, v in earlier.items() if k not in ("stage", "arm", "slot", "committed_at")}
            copied |= {"reused": True, "passes": 0.0, "flops": 0.0, "seconds": 0.0}
            row("trained", arm, replicate, level, slot, **{k: v for k, v in copied.items() if k not in _KEY_OF_ROW})
            return
        truth = 0.66 - 0.02 * (level > 0) - 0.25 * level**3 + replicate_shift[replicate] + gain(arm, level)
        truth += slope * (source["z"] if source else 0.0) + rng.normal(0.0, noise)
        test_accuracy = quantised(truth)
        val_accuracy = quantised(truth + rng.normal(0.0, selection_noise))
        points = np.unique(np.linspace(0, design.steps, n_points + 1).round().astype(int))[1:]
        constant = design.steps / 6 * (convergence or {}).get(arm, 1.0) * float(np.exp(rng.normal(0.0, 0.05)))
        start = 1 / CLASSES
        accuracy = start + (val_accuracy - start) * (1 - np.exp(-points / constant)) * (1.0 if reach else 0.5)
        if reach:
            accuracy[-1] = val_accuracy
        outcome = outcomes.get(key, "completed")
        values: dict[str, Any] = {
            "candidate": name,
            "outcome": outcome,
            "mask_draw": source["mask_draw"] if source else None,
            "mask_digest": None if level == 0 or arm == "small_dense" else candidate("mask", name),
            "initial_loss": source["initial_loss"] if source else 2.303 + float(rng.normal(0, 0.02)),
            "scalefree_loss": source["scalefree_loss"] if source else 2.29,
            "temperature": source["temperature"] if source else 1.0,
            "logit_std": source["logit_std"] if source else 0.1,
            "steps": design.steps,
            "optimizer": "adam",
            "lr": 0.002,
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "batch_size": batch_size,
        }
        values |= cost(float(design.steps * batch_size), size(level)["macs"])
        if outcome == "completed":
            values |= {
                "val_error": 1 - val_accuracy,
                "val_loss": 1.6 * (1 - val_accuracy) + 0.2,
                "test_error": 1 - test_accuracy,
                "test_loss": 1.6 * (1 - test_accuracy) + 0.2,
                "curve_step": points.tolist(),
                "curve_val_loss": (1.6 * (1 - accuracy) + 0.2).tolist(),
                "curve_val_error": (1 - accuracy).tolist(),
            }
        else:
            values |= {"error": f"{outcome}: synthetic <{arm}>"}
            values |= {"passes": values["passes"] / 2, "flops": values["flops"] / 2, "seconds": values["seconds"] / 2}
        first_slot[name] = row("trained", arm, replicate, level, slot, **values)

    for replicate in range(design.replicates):
        if "dense" in design.arms:
            train("dense", replicate, 0.0, 0, candidate("dense", replicate), None)
        for level in design.sparsities:
            pool: list[dict[str, Any]] = []
            for draw in range(design.draws):
                z, w = rng.normal(size=2)
                scored = {
                    "candidate": candidate("draw", replicate, level, draw),
                    "mask_draw": draw,
                    "initial_loss": 2.35 + 0.03 * float(z),
                    "scalefree_loss": 2.29 + 0.004 * float(0.5 * z + np.sqrt(0.75) * w),
                    "temperature": 1.5 + 0.1 * float(z),
                    "logit_std": 0.2 * float(np.exp(0.3 * (0.7 * z + 0.7 * w))),
                }
                macs = size(level)["macs"]
                row("scored", "pool", replicate, level, draw, **scored, **cost(design.probe_size / 3, macs))
                pool.append(scored | {"z": float(z)})
            for arm in design.arms:
                if arm == "random":
                    for slot in range(min(design.random_draws, design.draws)):
                        train(arm, replicate, level, slot, pool[slot]["candidate"], pool[slot])
                elif arm.startswith("searched") or arm == "worst":
                    by = "scalefree_loss" if "scale" in arm else "initial_loss"
                    sign = -1.0 if arm == "worst" else 1.0
                    choices = pool if reuse else pool[design.random_draws :]
                    chosen = min(choices, key=lambda s: (sign * s[by], s["mask_draw"]))
                    train(arm, replicate, level, 0, chosen["candidate"], chosen)
                elif arm == "magnitude":
                    name = candidate("magnitude", replicate, level)
                    row("pruned", arm, replicate, level, 0, candidate=name, **cost(0.0, 0))
                    train(arm, replicate, level, 0, name, None)
                elif arm != "dense":
                    train(arm, replicate, level, 0, candidate(arm, replicate, level), None)
    left_out = {("trained", *key) for key in without}
    kept = [r for r in rows if tuple(r[name] for name in KEY) not in left_out]
    return pa.Table.from_pylist(kept, schema=SCHEMA)


_KEY_OF_ROW = (*KEY, "committed_at")


@pytest.fixture(scope="session")
def make_design() -> Callable[..., Design]:
    """Give :func:`build_design`."""
    return build_design


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pa.Table]:
    """Give :func:`build_table`."""
    return build_table
