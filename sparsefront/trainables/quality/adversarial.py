"""Adversarial examples: errors after small changes of the inputs that raise the loss most.

Both attacks move every number of an example by at most a tenth of the examples' standard deviation and start from the
example itself, so that they are deterministic. They follow the sign of the gradient of the rivals' log-odds, which is
the sign of cross-entropy's gradient but does not vanish for a network that is sure of itself (gradient masking:
Carlini and Wagner, Towards evaluating the robustness of neural networks, 2017). Data have no range here, so nothing
is clipped to one.

References: Goodfellow et al., Explaining and harnessing adversarial examples, 2015 (FGSM); Madry et al., Towards deep
learning models resistant to adversarial attacks, 2018 (PGD; steps of 2.5 x radius / steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call, grad, vmap

from sparsefront.trainables.quality.subject import Column, Observed, Quality, Subject, rivals_log_odds, wrong

#: Radius of the attacks in the maximum norm, in standard deviations of the examples.
RADIUS_STD = 0.1
N_STEPS = 10
_STEP_FRACTION = 2.5 / N_STEPS


@dataclass(frozen=True)
class Attacked:
    """What attacks made of examples: (L, n) each; PGD's is the worst of all points that were tried, FGSM's included.

    `fgsm_log_odds`, `pgd_log_odds`: of the rivals against the label, which rise with the loss.
    """

    fgsm_wrong: torch.Tensor
    pgd_wrong: torch.Tensor
    fgsm_log_odds: torch.Tensor
    pgd_log_odds: torch.Tensor


def attack(subject: Subject, rows: slice) -> Attacked:
    """Attack some of the examples on behalf of every lane."""
    clean, labels = subject.inputs.x[rows], subject.labels[rows]
    radius = RADIUS_STD * subject.inputs.std
    module = subject.model.module

    def one(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = functional_call(module, parameters, (x,))
        return rivals_log_odds(logits, labels).sum(), logits

    # Examples do not meet in a network: the gradient of the sum holds each example's own.
    differentiate: Any = vmap(grad(one, argnums=1, has_aux=True))

    def look(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return wrong(logits, labels), rivals_log_odds(logits, labels)

    def logits_at(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = vmap(lambda p, x: functional_call(module, p, (x,)))(subject.tensors, x)
        return logits

    x = clean.expand(len(subject.flat), *clean.shape)
    gradient, logits = differentiate(subject.tensors, x)
    pgd_wrong, pgd_log_odds = look(logits)
    fgsm_wrong, fgsm_log_odds = look(logits_at(x + radius * gradient.sign()))
    pgd_wrong, pgd_log_odds = pgd_wrong | fgsm_wrong, torch.maximum(pgd_log_odds, fgsm_log_odds)
    for step in range(1, N_STEPS + 1):
        moved = x + _STEP_FRACTION * radius * gradient.sign()
        x = torch.minimum(torch.maximum(moved, clean - radius), clean + radius)
        if step < N_STEPS:
            gradient, logits = differentiate(subject.tensors, x)
        else:
            logits = logits_at(x)
        is_wrong, log_odds = look(logits)
        pgd_wrong, pgd_log_odds = pgd_wrong | is_wrong, torch.maximum(pgd_log_odds, log_odds)
    return Attacked(fgsm_wrong, pgd_wrong, fgsm_log_odds, pgd_log_odds)


def _observe(subject: Subject) -> Observed:
    attacked = [attack(subject, rows) for rows in subject.batches()]
    return {
        "fgsm_error": torch.cat([a.fgsm_wrong for a in attacked], dim=1).double().mean(dim=1),
        "pgd_error": torch.cat([a.pgd_wrong for a in attacked], dim=1).double().mean(dim=1),
    }


QUALITY = Quality(
    summary="errors under one-step and ten-step adversarial attacks",
    source="Goodfellow et al. 2015; Madry et al. 2018",
    columns={
        "fgsm_error": Column(
            f"misclassified fraction after one gradient-sign step of {RADIUS_STD} standard deviations of the data "
            "(0..1)"
        ),
        "pgd_error": Column(
            f"fraction misclassified at any point of {N_STEPS} projected gradient steps within that distance, the "
            "one-step attack and the example itself included (0..1)"
        ),
    },
    # A gradient at the example and after all steps but the last; logits of the one-step attack and after the last.
    forward_passes=2 * N_STEPS + 2,
    observe=_observe,
)
