"""Calibration: whether probabilities mean what they say.

References: Guo et al., On calibration of modern neural networks, 2017 (expected calibration error, 15 bins of equal
width); Brier, Verification of forecasts expressed in terms of probability, 1950 (the sum over classes, 0..2).
"""

from __future__ import annotations

import torch

from sparsefront.trainables.quality.subject import Column, Observed, Quality, Subject

N_BINS = 15


def expected_calibration_error(confidence: torch.Tensor, is_correct: torch.Tensor) -> torch.Tensor:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by examples: (L,) float64.

    Bin m of 15 holds the confidences in (m / 15, (m + 1) / 15].

    Args:
        confidence: (L, n) float64 in [0, 1].
        is_correct: (L, n) bool.

    >>> float(expected_calibration_error(torch.full((1, 4), 0.75), torch.tensor([[True, True, True, False]])))
    0.0
    """
    excess = is_correct.double() - confidence
    bins = (confidence * N_BINS).ceil().clamp(1, N_BINS)
    # Bin by bin: adding at indices has no fixed order on a GPU.
    total = torch.stack([torch.where(bins == m, excess, 0.0).sum(dim=1).abs() for m in range(1, N_BINS + 1)]).sum(dim=0)
    return total / confidence.shape[1]


def _observe(subject: Subject) -> Observed:
    by_class = subject.clean.double().transpose(1, 2).contiguous()
    log_p = torch.log_softmax(by_class, dim=1)
    p = log_p.exp()
    one_hot = subject.inputs.examples.one_hot.double()
    confidence, predicted = p.max(dim=1)
    return {
        "ece": expected_calibration_error(confidence, predicted == subject.labels),
        "nll": -(log_p * one_hot).sum(dim=1).mean(dim=1),
        "brier": (p - one_hot).square().sum(dim=1).mean(dim=1),
    }


QUALITY = Quality(
    summary="expected calibration error, negative log-likelihood and Brier score",
    source="Guo et al. 2017; Brier 1950",
    columns={
        "ece": Column(f"expected calibration error over {N_BINS} confidence bins of equal width (0..1)"),
        "nll": Column("negative log-likelihood of the labels in nats, the mean over examples"),
        "brier": Column("squared distance between probabilities and one-hot labels, the mean over examples (0..2)"),
    },
    forward_passes=0,
    observe=_observe,
)
