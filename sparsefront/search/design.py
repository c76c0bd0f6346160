"""The numbers of a study that decisions and judgements depend on; plain data, made by ``sparsefront.study``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """What was asked: arms, levels and replicates, and how the referee judges them.

    ``equivalence_margin`` is a difference in accuracy (fraction, 0.01 = one point); ``convergence_margin_fraction`` is
    a fraction of ``steps``; ``convergence_target_fraction`` is the share of the parent's accuracy that counts as
    converged.
    """

    name: str
    seed: int
    replicates: int
    sparsities: tuple[float, ...]
    arms: tuple[str, ...]
    draws: int
    random_draws: int
    probe_size: int
    steps: int
    mask_kind: str
    allocation: str
    model: str
    dataset: str
    n_classes: int = 10
    equivalence_margin: float = 0.01
    convergence_target_fraction: float = 0.95
    convergence_margin_fraction: float = 0.05
    alpha: float = 0.05
    objectives: tuple[str, ...] = ("val_error", "n_params", "macs")
