"""Adam and SGD over a pack's flat buffer, each lane with its own hyperparameters.

Lane by lane they agree with ``torch.optim.Adam`` and ``torch.optim.SGD`` (same recurrences; weight decay is added to
the gradient). Entries that a lane's mask removes have zero gradient, zero moments and zero weight, and keep them.

References: Kingma and Ba, Adam, 2015, algorithm 1 with the efficient order of section 2; Sutskever et al., On the
importance of initialization and momentum, 2013 (Nesterov's form as torch implements it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Hyperparameters:
    """What one lane is trained with; defaults are torch's.

    `lr_schedule` (a name of `sparsefront.trainables.rates.RATE_SCHEDULES`) and `warmup_fraction` (of the schedule's
    length) are of lanes that do not follow their pack's; None: they do.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    label_smoothing: float = 0.0
    lr_schedule: str | None = None
    warmup_fraction: float | None = None

    @property
    def has_own_rates(self) -> bool:
        """Whether its learning rate may change otherwise than its pack's."""
        return self.lr_schedule is not None or self.warmup_fraction is not None


#: Entries in the widest vector of a CPU, of which kernels take whole ones at a time (float32, 512 bits).
_VECTOR = 16

#: A hyperparameter of all lanes: one number if they agree (one fused pass), else a column (L, 1).
PerLane = float | torch.Tensor


class LaneOptimizer(Protocol):
    """Updates all lanes of a pack in place; `flat` (L, P) is what is trained of them.

    Lanes may also lie one behind the other, `flat` being (1, N): then it is told the entries of each lane, and `keep`
    and `silence` are not asked of it. It then goes the same way for one lane as for many that differ in their rates and
    decays, so that no lane's last digits depend on its neighbours (Adam's do where betas or epsilons differ).

    Attributes:
        rate: what the learning rates of the next steps are multiplied by.
    """

    rate: PerLane

    def step(self, flat: torch.Tensor, gradient: torch.Tensor) -> None:
        """One step: `flat` (L, P) is updated; `gradient` (L, P) is scratch afterwards."""

    def keep(self, lanes: torch.Tensor) -> None:
        """Forget all lanes but these (index tensor)."""

    def silence(self, lanes: Sequence[int]) -> None:
        """Train these lanes no more: forget their state, and make their learning rate zero."""

    def slots(self) -> dict[str, torch.Tensor]:
        """State by name, each (L, P), not copied; with the number of steps it is all that `restore` needs."""

    def restore(self, step: int, slots: Mapping[str, torch.Tensor]) -> None:
        """Go on as after `step` steps that ended in `slots`; a slot that is missing is zero."""


class Adam:
    """Adam with L2 weight decay.

    torch's fused kernel goes through memory once; it takes one rate, one pair of betas and one epsilon. Where lanes
    agree on all but the rate, it moves zeros, and each lane goes that way as far as its own rate says. Lanes of unlike
    betas are updated operation by operation, which takes two to three times as long.

    On a CPU the kernel goes by vectors, and rounds what is left over at the end of a tensor otherwise. Which entries
    those are would depend on the lanes of a pack: the moments end with room for a whole vector, and the last entries of
    weights and gradients are taken aside.
    """

    def __init__(
        self, flat: torch.Tensor, hyper: Sequence[Hyperparameters], lengths: Sequence[int] | None = None
    ) -> None:
        self._hyper, self._lengths = list(hyper), _lengths(lengths, flat.device)
        self._first, self._second = _roomy(torch.zeros_like(flat)), _roomy(torch.zeros_like(flat))
        self._n_steps = 0
        # The kernel counts on its own device; a Python number would be converted at every step.
        self._n_steps_there, self._one = torch.zeros((), device=flat.device), torch.ones((), device=flat.device)
        self.rate: PerLane = 1.0
        self._prepare()

    def _prepare(self) -> None:
        device = self._first.device
        self._decay = self._per_lane([h.weight_decay for h in self._hyper])
        self._lr = self._per_lane([h.lr for h in self._hyper])
        self._fuses = len({(h.beta1, h.beta2, h.eps) for h in self._hyper}) == 1 and self._first.is_contiguous()
        self._way: torch.Tensor | None = None
        n_left = self._first.numel() % _VECTOR
        self._edges = [self._first.numel() - n_left, n_left]
        # The last entries of the weights and of their gradient, zeros behind them.
        self._ways, self._slopes = torch.zeros(2, _VECTOR, device=device)
        self._last_way, self._last_slope = self._ways[:n_left], self._slopes[:n_left]
        self._divided: tuple[torch.Tensor, ...] = (self._first,)
        self._firsts, self._seconds = (
            list(torch.split(_whole(moments), [self._edges[0], _VECTOR if n_left else 0]))
            for moments in (self._first, self._second)
        )
        columns = {
            name: np.array([[getattr(h, name)] for h in self._hyper]) for name in ("lr", "beta1", "beta2", "eps")
        }
        self._columns = columns
        # As wide as the weights of lanes one behind the other, and needed only where the kernel is not.
        self._betas: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def _column(self, values: np.ndarray) -> torch.Tensor:
        """(L, 1) as it is broadcast over the weights."""
        return _spread(_column(values, self._first.device), self._lengths)

    def _per_lane(self, values: Sequence[float]) -> PerLane:
        return _per_lane(values, self._lengths, self._first.device)

    def step(self, flat: torch.Tensor, gradient: torch.Tensor) -> None:
        """One step of all lanes."""
        self._n_steps += 1
        add_decay(gradient, flat, self._decay)
        if not (self._fuses and flat.is_contiguous() and gradient.is_contiguous()):
            self._step_apart(flat, gradient)
        elif isinstance(self.rate, torch.Tensor) or isinstance(self._lr, torch.Tensor):
            if self._way is None:
                self._way = torch.empty_like(self._first)
            self._fused(self._way.zero_(), gradient, 1.0)
            _go(flat, self._way, self._lr, self.rate, self._lengths)
        else:
            self._fused(flat, gradient, self._lr * self.rate)

    def _fused(self, flat: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        n_steps = self._n_steps_there.add_(self._one)
        n_left = flat.numel() % _VECTOR
        if not n_left or flat.device.type != "cpu":
            self._kernel([flat], [gradient], [self._first], [self._second], n_steps, lr)
            return
        if flat is not self._divided[0]:  # it is the same for many steps
            self._divided = flat, *torch.split(flat.view(-1), self._edges)
        _, way, last_way = self._divided
        slope, last_slope = torch.split(gradient.view(-1), self._edges)
        self._last_way.copy_(last_way)
        self._last_slope.copy_(last_slope)
        self._kernel([way, self._ways], [slope, self._slopes], self._firsts, self._seconds, n_steps, lr)
        last_way.copy_(self._last_way)

    def _kernel(
        self,
        flat: list[torch.Tensor],
        gradient: list[torch.Tensor],
        first: list[torch.Tensor],
        second: list[torch.Tensor],
        n_steps: torch.Tensor,
        lr: float,
    ) -> None:
        h = self._hyper[0]
        # The kernel itself: what torch.optim.Adam does about it takes longer than the kernel where packs are small.
        torch._fused_adam_(
            flat,
            gradient,
            first,
            second,
            [],
            [n_steps] * len(flat),
            amsgrad=False,
            beta1=h.beta1,
            beta2=h.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=h.eps,
            maximize=False,
        )

    def _step_apart(self, flat: torch.Tensor, gradient: torch.Tensor) -> None:
        """The same for lanes that agree on nothing."""
        step = self._n_steps
        self._n_steps_there.add_(self._one)  # the lanes that stay may agree, and go on with the kernel
        # With c1, c2 the bias corrections: lr/c1 m / (sqrt(v/c2) + eps) = lr sqrt(c2)/c1 m / (sqrt(v) + eps sqrt(c2)).
        roots = np.sqrt(1 - self._columns["beta2"] ** step)
        # It stays on its device.
        own = _spread(self.rate, self._lengths) if isinstance(self.rate, torch.Tensor) else None
        factor = self.rate if isinstance(self.rate, float) else 1.0
        rate = self._columns["lr"] * factor * roots / (1 - self._columns["beta1"] ** step)
        if self._betas is None:
            beta1, beta2 = self._columns["beta1"], self._columns["beta2"]
            self._betas = self._column(1 - beta1), self._column(beta2), self._column(1 - beta2)
        weight1, second, weight2 = self._betas
        self._first.lerp_(gradient, weight1)
        self._second.mul_(second).addcmul_(gradient * weight2, gradient)
        _square_root(self._second, out=gradient)
        gradient.add_(self._column(self._columns["eps"] * roots))
        torch.div(self._first, gradient, out=gradient)
        gradient.mul_(self._column(rate))
        flat.sub_(gradient if own is None else gradient.mul_(own))

    def keep(self, lanes: torch.Tensor) -> None:
        """Forget all lanes but these."""
        self._first, self._second = _roomy(self._first[lanes]), _roomy(self._second[lanes])
        self._hyper = [self._hyper[i] for i in lanes.tolist()]
        self._prepare()

    def silence(self, lanes: Sequence[int]) -> None:
        """Train these lanes no more."""
        _silence(self._hyper, lanes, self.slots())
        self._prepare()

    def slots(self) -> dict[str, torch.Tensor]:
        """First and second moments."""
        return {"first": self._first, "second": self._second}

    def restore(self, step: int, slots: Mapping[str, torch.Tensor]) -> None:
        """Go on as after `step` steps."""
        self._n_steps = step
        self._n_steps_there.fill_(step)
        _restore(self.slots(), slots)


class SGD:
    """Stochastic gradient descent with momentum (Nesterov's form on request) and L2 weight decay."""

    def __init__(
        self, flat: torch.Tensor, hyper: Sequence[Hyperparameters], lengths: Sequence[int] | None = None
    ) -> None:
        self._hyper, self._lengths = list(hyper), _lengths(lengths, flat.device)
        self._velocity = torch.zeros_like(flat) if any(h.momentum for h in hyper) else None
        self._device = flat.device
        self.rate: PerLane = 1.0
        self._prepare(flat.device)

    def _prepare(self, device: torch.device) -> None:
        self._negative_lr = self._per_lane([-h.lr for h in self._hyper], device)
        self._decay = self._per_lane([h.weight_decay for h in self._hyper], device)
        self._momentum = self._per_lane([h.momentum for h in self._hyper], device)
        # Nesterov: gradient + momentum x velocity; otherwise the velocity itself (the gradient, where momentum is 0).
        self._any_nesterov = any(h.nesterov for h in self._hyper)
        self._plain = self._per_lane([float(h.nesterov) for h in self._hyper], device)
        self._ahead = self._per_lane([h.momentum if h.nesterov else 1.0 for h in self._hyper], device)

    def _per_lane(self, values: Sequence[float], device: torch.device) -> PerLane:
        return _per_lane(values, self._lengths, device)

    def step(self, flat: torch.Tensor, gradient: torch.Tensor) -> None:
        """One step of all lanes."""
        add_decay(gradient, flat, self._decay)
        if self._velocity is None:
            update = gradient
        else:
            # The velocity starts at zero, so that the first one is the gradient itself, as in torch.
            self._velocity.mul_(self._momentum).add_(gradient)
            update = self._velocity
            if self._any_nesterov:
                update = gradient.mul_(self._plain).add_(self._velocity * self._ahead)
        _go(flat, update, self._negative_lr, self.rate, self._lengths)

    def keep(self, lanes: torch.Tensor) -> None:
        """Forget all lanes but these."""
        if self._velocity is not None:
            self._velocity = self._velocity[lanes]
        self._hyper = [self._hyper[i] for i in lanes.tolist()]
        self._prepare(lanes.device)

    def silence(self, lanes: Sequence[int]) -> None:
        """Train these lanes no more."""
        _silence(self._hyper, lanes, self.slots())
        self._prepare(self._device)

    def slots(self) -> dict[str, torch.Tensor]:
        """Velocities, if any lane has momentum."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def restore(self, step: int, slots: Mapping[str, torch.Tensor]) -> None:
        """Go on as after `step` steps."""
        _restore(self.slots(), slots)


class OptimizerFactory(Protocol):
    """Makes an optimiser for a pack."""

    def __call__(
        self, flat: torch.Tensor, hyper: Sequence[Hyperparameters], lengths: Sequence[int] | None = None, /
    ) -> LaneOptimizer:
        """Optimiser state for `flat` (L, P), or for lanes of these lengths one behind the other, (1, N)."""


OPTIMIZERS: Mapping[str, OptimizerFactory] = {"adam": Adam, "sgd": SGD}


def per_lane(values: Sequence[float], device: torch.device) -> PerLane:
    """One number if all lanes agree, else an (L, 1) float32 column.

    >>> per_lane([0.1, 0.1], torch.device("cpu"))
    0.1
    """
    if len(set(values)) == 1:
        return float(values[0])
    return _column(np.array(values)[:, None], device)


def _lengths(lengths: Sequence[int] | None, device: torch.device) -> torch.Tensor | None:
    return None if lengths is None else torch.tensor(list(lengths), device=device)


def _spread(column: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """(L, 1) as it is broadcast over (L, P); or, over lanes of some lengths one behind the other, (1, N)."""
    return column if lengths is None else column.view(-1).repeat_interleave(lengths)[None]


def _per_lane(values: Sequence[float], lengths: torch.Tensor | None, device: torch.device) -> PerLane:
    """What `per_lane` says; of lanes one behind the other always as it is broadcast, unless it is zero."""
    if lengths is None or not any(values):
        return per_lane(values, device)
    return _spread(_column(np.array(values)[:, None], device), lengths)


def _roomy(values: torch.Tensor) -> torch.Tensor:
    """A copy with zeros behind it up to a whole number of vectors."""
    room = values.new_zeros(-(-values.numel() // _VECTOR) * _VECTOR)
    copy = room[: values.numel()].view(values.shape)
    return copy.copy_(values)


def _whole(values: torch.Tensor) -> torch.Tensor:
    """A roomy tensor with what is behind it, (n,), not copied."""
    return values.as_strided((-(-values.numel() // _VECTOR) * _VECTOR,), (1,))


def add_decay(gradient: torch.Tensor, flat: torch.Tensor, decay: PerLane) -> None:
    """Add ``decay x flat`` to the gradient in place."""
    if isinstance(decay, torch.Tensor):
        gradient.addcmul_(flat, decay)
    elif decay:
        gradient.add_(flat, alpha=decay)


def _go(flat: torch.Tensor, way: torch.Tensor, lr: PerLane, rate: PerLane, lengths: torch.Tensor | None = None) -> None:
    """Add ``lr x rate x way`` in place."""
    if lengths is not None and isinstance(lr, torch.Tensor):
        factor = _spread(rate, lengths) if isinstance(rate, torch.Tensor) else rate
        flat.addcmul_(way, lr if isinstance(factor, float) and factor == 1 else lr * factor)
    elif isinstance(rate, torch.Tensor):
        flat.addcmul_(way, rate * lr)
    elif isinstance(lr, torch.Tensor):
        flat.addcmul_(way, lr, value=rate)
    else:
        flat.add_(way, alpha=lr * rate)


def _silence(hyper: list[Hyperparameters], lanes: Sequence[int], slots: Mapping[str, torch.Tensor]) -> None:
    for lane in lanes:
        hyper[lane] = replace(hyper[lane], lr=0.0, weight_decay=0.0)
        for state in slots.values():
            state[lane] = 0.0


def _restore(slots: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    for name, state in slots.items():
        if name in saved:
            state.copy_(saved[name])


def _square_root(second: torch.Tensor, *, out: torch.Tensor) -> None:
    """Square root of second moments, correct to 1e-18.

    The vector library behind `torch.sqrt` leaves its fast path for every exact zero, and masked entries are zeros
    (measured: 4.8 ns an entry at 90% sparsity against 0.3 ns).
    """
    torch.add(second, 1e-36, out=out).sqrt_()


def _column(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device)
