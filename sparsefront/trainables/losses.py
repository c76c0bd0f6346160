"""Losses over logits and over restored images, written so that batching them over lanes stays fast.

Logits are reduced over a *leading* class dimension: a softmax along the innermost dimension of size 10 is not
vectorised on a CPU (measured: 163 ns a row against 20 ns in this layout, AVX-512, one core).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

#: Bounds of the search for the best inverse temperature (in units of 1 / standard deviation of the logits), and when
#: it ends: Newton's method on this smooth convex function needs 4-7 steps, the bracket bounds the rest; after a last
#: relative step of 1e-3 the loss, flat at its minimum, is right to about 1e-6.
_INVERSE_TEMPERATURE_RANGE = (1e-6, 1e3)
_NEWTON_STEPS = 30
_LAST_STEP = 1e-3


def cross_entropy(
    logits: torch.Tensor, one_hot: torch.Tensor, label_smoothing: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy in nats: scalar.

    Args:
        logits: (batch, classes).
        one_hot: (classes, batch) targets.
        label_smoothing: scalar share of the target spread over all classes, as in torch; None for none.
    """
    log_p = torch.log_softmax(logits.t().contiguous(), dim=0)
    loss = -(log_p * one_hot).sum() / logits.shape[0]
    if label_smoothing is None:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=0).sum() / logits.shape[0]


def absolute_error(
    restored: torch.Tensor, images: torch.Tensor, label_smoothing: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean absolute difference of intensities: scalar.

    Args:
        restored: (batch, ...) outputs.
        images: (batch, ...) what they should be.
        label_smoothing: None; images have no labels.
    """
    assert label_smoothing is None
    return (restored - images).abs().mean()


def squared_errors(restored: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean squared difference in every image: (..., batch, C, H, W) and (batch, C, H, W) -> (..., batch).

    >>> squared_errors(torch.full((2, 1, 2, 2), 0.5), torch.tensor([0.0, 0.5]).view(2, 1, 1, 1))
    tensor([0.2500, 0.0000])
    """
    return (restored - images).square().mean(dim=(-3, -2, -1))


#: What is minimised, by name: (outputs, targets, label smoothing or None) -> scalar.
LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "absolute_error": absolute_error,
}


def cross_entropy_gradient(
    logits: torch.Tensor, one_hot: torch.Tensor, label_smoothing: torch.Tensor | None = None
) -> torch.Tensor:
    """What `cross_entropy` of every lane changes with its logits: (softmax - smoothed target) / batch.

    Args:
        logits: (lanes, batch, classes).
        one_hot: (classes, batch) targets, or (lanes, classes, batch).
        label_smoothing: (lanes,); None for none.

    Returns:
        (lanes, batch, classes), a view of classes first.
    """
    n_classes, n = one_hot.shape[-2:]
    p = torch.softmax(logits.transpose(1, 2).contiguous(), dim=1)
    target = one_hot * (-1 / n)
    if label_smoothing is not None:
        eps = label_smoothing[:, None, None]
        target = target * (1 - eps) - eps / (n * n_classes)
    return torch.add(target, p, alpha=1 / n).transpose(1, 2)


def absolute_error_gradient(
    restored: torch.Tensor, images: torch.Tensor, label_smoothing: torch.Tensor | None = None
) -> torch.Tensor:
    """What `absolute_error` of every lane changes with its outputs: their sign against the images / intensities.

    Args:
        restored: (lanes, batch, ...) outputs.
        images: (batch, ...) or (lanes, batch, ...) what they should be.
        label_smoothing: None; images have no labels.
    """
    assert label_smoothing is None
    return (restored - images).sign() / restored[0].numel()


#: How each loss of `LOSSES` changes with the outputs of all lanes: (outputs, targets, label smoothing or None). In
#: training the loss itself is never needed.
OUTPUT_GRADIENTS: Mapping[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "cross_entropy": cross_entropy_gradient,
    "absolute_error": absolute_error_gradient,
}


def n_errors(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Misclassified examples: (..., batch, classes) and (batch,) -> (...) int64; ties go to the lower class."""
    return (logits.argmax(dim=-1) != labels).sum(dim=-1)


def n_errors_by_class(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same of (classes, batch) and (batch,): a scalar. On a CPU an argmax takes several times as long.

    >>> n_errors_by_class(torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 3.0]]), torch.tensor([1, 0, 1]))
    tensor(1)
    """
    top = logits.amax(dim=0)
    if int((logits == top).sum()) != len(labels):  # ties, or what is no number
        return n_errors(logits.t(), labels)
    return (logits.gather(0, labels[None])[0] != top).sum()


def scale_free_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss after the best temperature: the smallest cross-entropy of ``logits / T`` over T > 0.

    The loss of an untrained network mostly says how large its logits are, which a few steps of training undo; dividing
    out the best temperature leaves what does not depend on that scale. T is kept within 1e-3..1e6 standard deviations
    of the logits, so that it stays finite where no direction of the logits helps (the loss is then ln(classes)).

    Args:
        logits: (lanes, classes, batch).
        labels: (batch,) int64.

    Returns:
        (lanes,) losses in nats, (lanes,) temperatures in units of the logits, and (lanes,) standard deviations of the
        logits.
    """
    mean = logits.mean(dim=(1, 2))
    std = (logits - mean[:, None, None]).square_().mean(dim=(1, 2)).sqrt_()
    z = logits / std.clamp_min(1e-30)[:, None, None]
    z -= z.amax(dim=1, keepdim=True)
    target = z.gather(1, labels.expand(z.shape[0], 1, -1)).mean(dim=(1, 2))
    low = torch.full_like(std, _INVERSE_TEMPERATURE_RANGE[0])
    high = torch.full_like(std, _INVERSE_TEMPERATURE_RANGE[1])
    # Newton's first step from infinite temperature, where all classes are equally likely, needs no exponential.
    by_example = z.mean(dim=1)
    spread = (z - by_example[:, None]).square_().mean(dim=(1, 2))
    beta = ((target - by_example.mean(dim=1)) / spread.clamp_min(1e-12)).clamp(low, high)
    p = torch.empty_like(z)
    for _ in range(_NEWTON_STEPS):
        torch.mul(z, beta[:, None, None], out=p).exp_()
        total = p.sum(dim=1)
        first = p.mul_(z).sum(dim=1).div_(total)
        second = p.mul_(z).sum(dim=1).div_(total)
        loss = total.log_().mean(dim=1) - beta * target
        slope = first.mean(dim=1) - target
        curvature = second.sub_(first.square_()).mean(dim=1).clamp_min(1e-12)
        # The slope is increasing in beta: its sign says on which side the optimum lies.
        high = torch.where(slope > 0, torch.minimum(high, beta), high)
        low = torch.where(slope > 0, low, torch.maximum(low, beta))
        newton = beta - slope / curvature
        inside = (newton >= low) & (newton <= high)
        step = torch.where(inside, newton, torch.sqrt(low * high)) - beta
        beta = beta + step
        if bool((step.abs() <= _LAST_STEP * beta).all()):
            break
    # To second order at the last step, whose third order is below 1e-9.
    return loss + slope * step + curvature * step.square() / 2, std / beta, std
