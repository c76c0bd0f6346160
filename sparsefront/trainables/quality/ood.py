"""Out of distribution: whether confidence tells the data from inputs that are none.

Confidence is the largest softmax probability, ranked by its log-odds: the same order, without the ties that rounding
makes at probability 1.

Reference: Hendrycks and Gimpel, A baseline for detecting misclassified and out-of-distribution examples in neural
networks, ICLR 2017.
"""

from __future__ import annotations

import torch

from sparsefront.trainables.quality.subject import Column, Inputs, Observed, Quality, Subject, rivals_log_odds


def auroc(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Chance that a positive scores above a negative, ties counted half: (L, n) and (L, m) -> (L,) float64.

    >>> auroc(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])).tolist()
    [0.875]
    """
    ordered = negative.sort(dim=1).values
    positive = positive.contiguous()
    below = torch.searchsorted(ordered, positive, right=False)
    not_above = torch.searchsorted(ordered, positive, right=True)
    area = (below + not_above).double().mean(dim=1) / (2 * negative.shape[1])
    is_finite = positive.isfinite().all(dim=1) & negative.isfinite().all(dim=1)
    return torch.where(is_finite, area, torch.nan)


def shuffled(inputs: Inputs) -> torch.Tensor:
    """The examples with their numbers in another order, drawn for each: the same values, no structure."""
    order = inputs.uniform.flatten(1).argsort(dim=1, stable=True)
    return inputs.x.flatten(1).gather(1, order).view_as(inputs.x)


def noise(inputs: Inputs) -> torch.Tensor:
    """Gaussian noise of the examples' mean and standard deviation."""
    return inputs.mean + inputs.std * inputs.normal


def _observe(subject: Subject) -> Observed:
    known = _confidence(subject.clean)
    return {
        "ood_auroc_shuffled": auroc(known, _confidence(subject.logits(shuffled(subject.inputs)))),
        "ood_auroc_noise": auroc(known, _confidence(subject.logits(noise(subject.inputs)))),
    }


def _confidence(logits: torch.Tensor) -> torch.Tensor:
    return -rivals_log_odds(logits, logits.argmax(dim=-1))


_MEANING = "area under the ROC curve of the largest softmax probability, the data against {} (0..1, chance 0.5)"
QUALITY = Quality(
    summary="detection of shuffled examples and of noise by the confidence",
    source="Hendrycks and Gimpel 2017",
    columns={
        "ood_auroc_shuffled": Column(_MEANING.format("themselves with shuffled positions"), "higher"),
        "ood_auroc_noise": Column(_MEANING.format("Gaussian noise of their mean and deviation"), "higher"),
    },
    forward_passes=2,
    observe=_observe,
)
