"""Corruption: errors on examples that are damaged in five ways, at five severities each.

The damage is defined for examples of any shape. What needs neighbours (blur, shift) works along the last axis, and
along the one before it too if both have at least 8 entries (an image; channels are fewer); an image that is stored
flat is damaged along its rows, one after the other. Noise is in units of the examples' standard deviation; a
severity changes the strength and never the draw, so that damage grows along the severities.

The errors follow Hendrycks and Dietterich: they divide what corruption costs a network by what it costs a reference,
and that is the parent here. They take the mean of one such ratio for each corruption; here it is the ratio of the
means over all corruptions, for a shift that costs a small parent nothing at all must not decide the column.

References: Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations,
ICLR 2019 (section 4; severities of impulse noise: of ImageNet-C, of contrast: of CIFAR-10-C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sparsefront.trainables.quality.subject import Column, Inputs, Observed, Quality, Subject, wrong

#: Axes shorter than this are channels, unless they are the last one.
_SHORTEST_IMAGE_AXIS = 8


@dataclass(frozen=True)
class Corruption:
    """One way to damage examples: `apply` at one of five strengths."""

    meaning: str
    strengths: tuple[float, float, float, float, float]
    apply: Callable[[Inputs, float], torch.Tensor]


def corrupted(inputs: Inputs, name: str, severity: int) -> torch.Tensor:
    """The examples damaged by corruption `name` at `severity` (1..5): (n, ...) float32, a new tensor."""
    corruption = CORRUPTIONS[name]
    return corruption.apply(inputs, corruption.strengths[severity - 1])


def _gaussian_noise(inputs: Inputs, strength: float) -> torch.Tensor:
    return inputs.x + strength * inputs.std * inputs.normal


def _impulse_noise(inputs: Inputs, fraction: float) -> torch.Tensor:
    """Salt and pepper: numbers that become very small or very large, two standard deviations from the mean.

    That is about black and white in an image; the smallest and largest numbers of unbounded data are rare outliers.
    """
    low, high = inputs.mean - 2 * inputs.std, inputs.mean + 2 * inputs.std
    # Below the half is pepper, from the half on salt; both grow with the fraction.
    u = inputs.uniform
    x = torch.where(u < fraction / 2, low, inputs.x)
    return torch.where((u >= 0.5) & (u < 0.5 + fraction / 2), high, x)


def _blur(inputs: Inputs, n_times: float) -> torch.Tensor:
    """Moving average over three neighbours, again and again; the ends repeat themselves.

    Weighed 1, 2, 1, which takes from every frequency and inverts none, so that each time is farther from the example.
    """
    x = inputs.x
    for _ in range(round(n_times)):
        for axis in _axes(x):
            last = x.shape[axis] - 1
            at = torch.arange(last + 1, device=x.device)
            x = (
                x.index_select(axis, (at - 1).clamp_min(0)) + 2 * x + x.index_select(axis, (at + 1).clamp_max(last))
            ) / 4
    return x


def _shift(inputs: Inputs, n_places: float) -> torch.Tensor:
    """Translation to a side that is drawn for each example; the ends repeat themselves."""
    x = inputs.x
    is_forward = (inputs.uniform.flatten(1)[:, 0] < 0.5).view(-1, *([1] * (x.dim() - 1)))
    return torch.where(is_forward, _translated(x, round(n_places)), _translated(x, -round(n_places)))


def _translated(x: torch.Tensor, n_places: int) -> torch.Tensor:
    for axis in _axes(x):
        length = x.shape[axis]
        x = x.index_select(axis, (torch.arange(length, device=x.device) - n_places).clamp(0, length - 1))
    return x


def _contrast(inputs: Inputs, factor: float) -> torch.Tensor:
    """Distances from each example's own mean, shrunk."""
    mean = inputs.x.mean(dim=tuple(range(1, inputs.x.dim())), keepdim=True)
    return mean + factor * (inputs.x - mean)


def _axes(x: torch.Tensor) -> list[int]:
    """Axes with neighbours."""
    last = x.dim() - 1
    is_image = last >= 2 and min(x.shape[-2:]) >= _SHORTEST_IMAGE_AXIS
    return [last - 1, last] if is_image else [last]


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption("added noise, in standard deviations", (0.1, 0.2, 0.35, 0.55, 0.8), _gaussian_noise),
    "impulse_noise": Corruption(
        "fraction of very small and very large numbers", (0.03, 0.06, 0.09, 0.17, 0.27), _impulse_noise
    ),
    "blur": Corruption("moving averages over three neighbours", (1, 2, 4, 6, 10), _blur),
    "shift": Corruption("translation, in places", (1, 2, 3, 4, 5), _shift),
    "contrast": Corruption("factor of the contrast", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
}
N_SEVERITIES = 5


def _observe(subject: Subject) -> Observed:
    """Errors of every lane: clean (L,), and (L, severities) for each corruption; float64."""
    errors = {
        name: torch.stack(
            [subject.error(corrupted(subject.inputs, name, s)) for s in range(1, N_SEVERITIES + 1)], dim=1
        )
        for name in CORRUPTIONS
    }
    return {"clean": wrong(subject.clean, subject.labels).double().mean(dim=1), **errors}


def _compare(lanes: Observed, parent: Observed | None) -> Observed:
    columns = {f"corrupted_error_{name}": lanes[name].mean(dim=1) for name in CORRUPTIONS}
    increase = _increase(lanes)
    # A parent that corruption does not hurt is no reference.
    reference = torch.full_like(increase, torch.nan) if parent is None else _increase(parent).expand_as(increase)
    return {
        "corrupted_error": torch.stack(list(columns.values())).mean(dim=0),
        **columns,
        "corrupted_error_increase": increase,
        "relative_corrupted_error": torch.where(reference > 0, increase / reference, torch.nan),
    }


def _increase(observed: Observed) -> torch.Tensor:
    return torch.cat([observed[name] for name in CORRUPTIONS], dim=1).mean(dim=1) - observed["clean"]


QUALITY = Quality(
    summary="errors under five corruptions at five severities, and what they cost beside the parent",
    source="Hendrycks and Dietterich 2019",
    columns={
        "corrupted_error": Column("misclassified fraction over all corruptions and severities (0..1)"),
        **{
            f"corrupted_error_{name}": Column(
                f"misclassified fraction over the severities of {name.replace('_', ' ')} (0..1)"
            )
            for name in CORRUPTIONS
        },
        "corrupted_error_increase": Column("corrupted error less the error on clean examples (-1..1)"),
        "relative_corrupted_error": Column(
            "that increase as a multiple of the parent's; none without a parent, or if the parent's is not positive"
        ),
    },
    forward_passes=len(CORRUPTIONS) * N_SEVERITIES,
    observe=_observe,
    compare=_compare,
)
