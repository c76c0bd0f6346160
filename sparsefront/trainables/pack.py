"""Packs: many candidates trained at once in one batched computation, each as if it were alone.

A lane's losses do not depend on the pack it travels in: lanes share the batches of their replicate and nothing else,
and lanes of several replicates see the batches of their own.
Lanes that diverge or are stopped leave at the next validation point, and the pack shrinks when that is worth a new
recording, or at once where nothing is recorded (`sparsefront.trainables.ragged`). A pack can begin where another
ended: `LaneResult` holds the weights and the optimiser's state, and that of masks which change in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.func import vmap

from sparsefront.trainables.data import Dataset
from sparsefront.trainables.gradients import forward, gradient_function
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.losses import absolute_error, n_errors, squared_errors
from sparsefront.trainables.mask_updates import MaskHistory, MaskUpdates
from sparsefront.trainables.models import Model
from sparsefront.trainables.optimizers import OPTIMIZERS, Hyperparameters, LaneOptimizer, PerLane, per_lane
from sparsefront.trainables.ragged import RaggedLanes
from sparsefront.trainables.rates import rate_factor

_Any = TypeVar("_Any")

#: Validation forward passes hold at most this many activations (float32) at once.
_ACTIVATIONS_AT_ONCE = 1 << 22
#: Steps that a pack must save to shrink: it is recorded anew, which costs seven (measured on a CPU, 32 lanes of
#: 40-64-64-10: 16 ms against 2.2 ms), and the state of the lanes that stay is copied.
_RECORDING_STEPS = 12


@dataclass(frozen=True)
class Examples:
    """Examples on a device: x (n, ...) float32, labels (n,) int64, one-hot labels (classes, n) float32.

    Where images are restored, `images` (n, ...) float32 are the targets, and labels are the `degradations` by index.
    """

    x: torch.Tensor
    labels: torch.Tensor
    one_hot: torch.Tensor
    images: torch.Tensor | None = None
    degradations: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], n_classes: int, device: torch.device
    ) -> Examples:
        """Copy arrays to `device`."""
        y = torch.tensor(labels, device=device)
        one_hot = torch.nn.functional.one_hot(y, n_classes).t().to(torch.float32).contiguous()
        return cls(torch.tensor(x, device=device), y, one_hot)

    @classmethod
    def training(cls, dataset: Dataset, rows: npt.NDArray[np.int64], device: torch.device) -> Examples:
        """Copy some rows of the training part to `device`."""
        examples = cls.of(dataset.x_train[rows], dataset.y_train[rows], dataset.n_classes, device)
        return examples if dataset.target_train is None else examples._to(dataset, dataset.target_train[rows])

    @classmethod
    def test(cls, dataset: Dataset, device: torch.device) -> Examples:
        """Copy the test part to `device`."""
        examples = cls.of(dataset.x_test, dataset.y_test, dataset.n_classes, device)
        return examples if dataset.target_test is None else examples._to(dataset, dataset.target_test)

    def _to(self, dataset: Dataset, images: npt.NDArray[np.float32]) -> Examples:
        """The same examples, to be restored."""
        return replace(self, images=torch.tensor(images, device=self.x.device), degradations=dataset.degradations)

    @property
    def loss(self) -> str:
        """Name of the loss that fits: classification is trained by cross-entropy, restoration by absolute error."""
        return "cross_entropy" if self.images is None else "absolute_error"

    def targets(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """What that loss takes of some examples: one-hot classes (classes, rows), or images (rows, ...)."""
        if isinstance(rows, slice):
            return self.one_hot[:, rows] if self.images is None else self.images[rows]
        return self.one_hot.index_select(1, rows) if self.images is None else self.images.index_select(0, rows)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Examples (rows, ...) and their targets."""
        return self.x.index_select(0, rows), self.targets(rows)

    def batches(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Examples (L, B, ...), a batch for each lane, by `rows` (L, B); targets (L, classes, B) or (L, B, ...)."""
        x, targets = self.batch(rows.flatten())
        if self.images is None:
            return x.view(*rows.shape, *x.shape[1:]), targets.view(-1, *rows.shape).transpose(0, 1).contiguous()
        return x.view(*rows.shape, *x.shape[1:]), targets.view(*rows.shape, *targets.shape[1:])

    def __len__(self) -> int:
        return self.x.shape[0]

    def select(self, indices: torch.Tensor) -> Examples:
        """Some of the examples."""
        return replace(
            self,
            x=self.x[indices],
            labels=self.labels[indices],
            one_hot=self.one_hot[:, indices].contiguous(),
            images=None if self.images is None else self.images[indices],
        )


@dataclass(frozen=True, eq=False)  # one is another only if it is the same
class Feed:
    """What the lanes of one replicate see.

    Attributes:
        train: training examples; one object for all replicates of a pack, each of which has its own rows of it.
        validation: validation examples.
        order: (steps, batch) int64 indices into `train`, of the steps before the pack too.
    """

    train: Examples
    validation: Examples
    order: torch.Tensor


def runs(objects: Sequence[_Any]) -> Iterator[tuple[_Any, int, int]]:
    """Stretches of one and the same object, which need not be comparable: (object, start, stop).

    >>> a, b = [0], [0]
    >>> list(runs([a, a, b]))
    [([0], 0, 2), ([0], 2, 3)]
    """
    start = 0
    for _, same in itertools.groupby(objects, id):
        members = list(same)
        yield members[0], start, start + len(members)
        start += len(members)


@dataclass(frozen=True)
class Schedule:
    """How long and on what the lanes of a pack train.

    Attributes:
        optimizer: a name of `OPTIMIZERS`.
        steps: optimiser steps, those before the pack included.
        batch_size: examples in a step.
        eval_every: steps between validation points; the last step is always one.
        lr_schedule: a name of `RATE_SCHEDULES`.
        warmup_fraction: share of the schedule in which the learning rate rises to its full value.
        lr_steps: length of that schedule; 0 for `steps`.
        lr_offset: steps of it that came before the first step of the lanes.
    """

    optimizer: str
    steps: int
    batch_size: int
    eval_every: int
    lr_schedule: str = "constant"
    warmup_fraction: float = 0.0
    lr_steps: int = 0
    lr_offset: int = 0

    @property
    def has_rates(self) -> bool:
        """Whether the learning rate changes."""
        return self.lr_schedule != "constant" or self.warmup_fraction > 0

    def rate(self, step: int, lane: Hyperparameters | None = None) -> float:
        """What learning rates of the lanes' step number `step` are multiplied by; `lane` may have its own schedule."""
        total, name, warmup = self.lr_steps or self.steps, self.lr_schedule, self.warmup_fraction
        if lane is not None:
            name = name if lane.lr_schedule is None else lane.lr_schedule
            warmup = warmup if lane.warmup_fraction is None else lane.warmup_fraction
        return rate_factor(name, self.lr_offset + step, steps=total, warmup=round(warmup * total))

    def rates(self, step: int, lanes: Sequence[Hyperparameters], device: torch.device) -> PerLane:
        """The same of lanes that may have schedules of their own: one number if all agree."""
        own = {(h.lr_schedule, h.warmup_fraction): h for h in lanes}
        factors = {key: self.rate(step, h) for key, h in own.items()}
        return per_lane([factors[h.lr_schedule, h.warmup_fraction] for h in lanes], device)

    def is_evaluation(self, step: int) -> bool:
        """Whether validation is measured after `step` steps."""
        return step == self.steps or step % self.eval_every == 0


@dataclass
class LaneResult:
    """What became of one lane: `lane` is its number in the pack as it was made.

    `parameters` are (P,); `slots` the optimiser's state, (trained part of P) by name, of a lane that came to the end.
    Where masks change in training, `slots` holds what they go on from too, `mask` is the last one, (W,) or (N,) bool in
    the order of a mask of its kind, `mask_overlap` what the first and the last share (entries in both over entries in
    either), and `exploration_rate` the share of the prunable weights that were ever active; otherwise these are None.
    `val_squared_errors` are those of `evaluate_each` at the end, by degradation.
    """

    lane: int
    outcome: str
    steps: int
    val_loss: float
    val_error: float
    curve_step: list[int]
    curve_val_loss: list[float]
    curve_val_error: list[float]
    parameters: torch.Tensor
    rung: int | None = None
    slots: Mapping[str, torch.Tensor] = field(default_factory=dict)
    mask: torch.Tensor | None = None
    mask_overlap: float | None = None
    exploration_rate: float | None = None
    val_squared_errors: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Curves:
    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)


#: Decides at a validation point which lanes stop: (step, lane numbers, validation losses, errors) -> rung of each lane
#: that stops, by lane number.
StopRule = Callable[[int, Sequence[int], npt.NDArray[np.float64], npt.NDArray[np.float64]], dict[int, int]]


class Pack:
    """L lanes in training; advance it validation point by validation point."""

    def __init__(
        self,
        model: Model,
        lanes: LaneStack,
        hyper: Sequence[Hyperparameters],
        schedule: Schedule,
        *,
        data: Feed | Sequence[Feed],
        precision: str = "float32",
        stop_rule: StopRule | None = None,
        start_step: int = 0,
        slots: Mapping[str, torch.Tensor] | None = None,
        updates: MaskUpdates | None = None,
        real: Sequence[Mapping[str, tuple[int, ...]]] | None = None,
    ) -> None:
        """Prepare a pack.

        Args:
            model: the parent's module.
            lanes: initial weights; not modified.
            hyper: one set for each lane.
            schedule: shared by all lanes.
            data: of the lanes' replicate; or one for each lane, those of a replicate side by side.
            precision: 'float32', or 'bfloat16' for matrix products in training (validation stays float32).
            stop_rule: consulted at each validation point but the last.
            start_step: steps that the lanes have behind them.
            slots: the optimiser's state after them, (L, trained part of P) by name; None for a fresh one. That of
                changing masks is among it; they stand above those of `lanes`.
            updates: changes the masks, made for these lanes and this pack alone; None if they stay.
            real: shapes of each lane's own tensors by name, of perceptrons of one replicate whose masks stay: they are
                trained without padding (`sparsefront.trainables.ragged`) on a CPU, in float32; None for as they lie.
        """
        self._model = model
        self._lanes = lanes.select(slice(None))
        self._schedule = schedule
        self._data = [data] * len(lanes) if isinstance(data, Feed) else list(data)
        if any(feed.train is not self._data[0].train for feed in self._data):
            raise ValueError("data: all replicates of a pack need one object that holds their training examples")
        self._stop_rule = stop_rule
        self._precision = precision
        self._hyper = list(hyper)
        self._has_own_rates = any(h.has_own_rates for h in self._hyper)
        self._real = None if real is None else list(real)
        self._ragged, self._optimizer = self._start_optimizer()
        self._updates, self._history = updates, None
        if updates is not None:
            self._history = self._start_updates(updates, slots or {})
        if start_step:
            n_skipped = 0 if updates is None else updates.n_skipped(start_step)
            self._restore_optimizer(start_step - n_skipped, slots or {})
        self._numbers = list(range(len(lanes)))
        self._curves = [_Curves() for _ in self._numbers]
        self._rows = list(range(len(lanes)))  # of the buffers, whose lanes are in training
        self._set_smoothing()
        self.step = start_step

    def _start_optimizer(self) -> tuple[RaggedLanes | None, LaneOptimizer]:
        """The weights as they are trained, if that is not as they lie, and their optimiser."""
        optimizer = OPTIMIZERS[self._schedule.optimizer]
        if self._real is None:
            return None, optimizer(self._trained(self._lanes.flat), self._hyper, None)
        perceptron = self._model.module.perceptron
        assert perceptron is not None
        ragged = RaggedLanes(perceptron, self._lanes, self._real, self._schedule.batch_size)
        return ragged, optimizer(ragged.flat, self._hyper, ragged.lengths)

    def _restore_optimizer(self, step: int, slots: Mapping[str, torch.Tensor]) -> None:
        if self._ragged is not None:
            slots = {name: self._ragged.gathered(state) for name, state in slots.items()}
        self._optimizer.restore(step, slots)

    def _start_updates(self, updates: MaskUpdates, saved: Mapping[str, torch.Tensor]) -> MaskHistory:
        lanes = self._lanes
        if lanes.keep is None:
            lanes = self._lanes = replace(lanes, keep=torch.ones_like(lanes.flat))
        assert lanes.keep is not None
        keep = self._trained(lanes.keep)
        if "keep" in saved:
            keep.copy_(saved["keep"])
        updates.start(self._trained(lanes.flat), keep, saved)
        return MaskHistory(updates.settings, keep, saved)

    def _trained(self, flat: torch.Tensor) -> torch.Tensor:
        """The part of (L, P) that is trained, not copied."""
        return flat[:, : self._lanes.layout.trained_width]

    def _set_smoothing(self) -> None:
        values = [h.label_smoothing for h in self._hyper]
        self._smoothing = torch.tensor(values, dtype=torch.float32, device=self._lanes.flat.device)
        self._any_smoothing = any(values)

    @property
    def batch_size(self) -> int:
        """Examples in a step."""
        return self._schedule.batch_size

    @property
    def n_lanes(self) -> int:
        """Lanes still in training."""
        return len(self._rows)

    def run(self) -> Iterator[list[LaneResult]]:
        """Train to the end; after every validation point, yield the lanes that finished there (often none)."""
        while self.n_lanes:
            yield self.advance()

    @torch.no_grad()
    def advance(self) -> list[LaneResult]:
        """Train to the next validation point and return the lanes that end there; without steps, measure them."""
        flat = self._lanes.flat
        trained = self._trained(flat)
        keep = None if self._lanes.keep is None else self._trained(self._lanes.keep)
        # Masks that change need the gradient of what they remove.
        masking = keep if self._updates is None else None
        compute = None
        if self.step == self._schedule.steps:
            return self._evaluate()
        if self._ragged is not None:
            return self._advance_ragged(self._ragged)
        train, feeds = self._data[0].train, list(dict.fromkeys(self._data))
        of_lanes = torch.tensor([feeds.index(feed) for feed in self._data], device=flat.device)
        while True:
            rows = [feed.order[self.step] for feed in feeds]
            if len(feeds) > 1:
                x, targets = train.batches(torch.stack(rows).index_select(0, of_lanes))
            else:
                x, targets = train.batch(rows[0])
            if compute is None:
                compute = gradient_function(
                    self._model,
                    self._lanes.layout,
                    flat,
                    x,
                    targets,
                    smoothing=self._any_smoothing,
                    precision=self._precision,
                    loss=train.loss,
                    keep=masking,
                    is_own=len(feeds) > 1,
                )
            if self._updates is not None:
                assert keep is not None
                self._updates.prepare(self.step, trained, keep)
            gradient = compute(x, targets, self._smoothing)
            self._set_rate()
            if self._updates is not None:
                assert keep is not None
                assert self._history is not None
                if self._updates.step(self.step, trained, keep, gradient, self._optimizer):
                    self._history.note(keep)
            else:
                self._optimizer.step(trained, gradient)
            self.step += 1
            if self._schedule.is_evaluation(self.step):
                return self._evaluate()

    def _advance_ragged(self, ragged: RaggedLanes) -> list[LaneResult]:
        """The same for lanes that are trained without padding."""
        feed = self._data[0]
        smoothing = self._smoothing if self._any_smoothing else None
        while True:
            x, one_hot = feed.train.batch(feed.order[self.step])
            gradient = ragged.gradient(x, one_hot, smoothing)
            self._set_rate()
            self._optimizer.step(ragged.flat, gradient)
            self.step += 1
            if self._schedule.is_evaluation(self.step):
                ragged.scatter(ragged.flat, self._lanes.flat)
                return self._evaluate()

    def _set_rate(self) -> None:
        """Tell the optimiser the learning rates of the next step."""
        if self._has_own_rates:
            self._optimizer.rate = self._schedule.rates(self.step, self._hyper, self._lanes.flat.device)
        elif self._schedule.has_rates:
            self._optimizer.rate = self._schedule.rate(self.step)

    def _evaluate(self) -> list[LaneResult]:
        losses, errors, squared = self._validate()
        is_last = self.step == self._schedule.steps
        finite = np.isfinite(losses)
        if self._updates is not None:  # of scores that are no numbers any more no mask can be told
            for state in self._updates.slots().values():
                finite &= torch.isfinite(state).all(dim=1).cpu().numpy()
        stopped: dict[int, int] = {}
        if self._stop_rule is not None and not is_last:
            alive = [i for i in self._rows if finite[i]]
            if alive:
                stopped = self._stop_rule(self.step, [self._numbers[i] for i in alive], losses[alive], errors[alive])
        slots = self._slots() if is_last else {}
        ended: list[LaneResult] = []
        staying: list[int] = []
        for i in self._rows:
            curve, number = self._curves[i], self._numbers[i]
            curve.step.append(self.step)
            curve.loss.append(float(losses[i]))
            curve.error.append(float(errors[i]))
            if finite[i] and not is_last and number not in stopped:
                staying.append(i)
                continue
            outcome = "diverged" if not finite[i] else ("stopped" if number in stopped else "completed")
            ended.append(
                LaneResult(
                    lane=number,
                    outcome=outcome,
                    steps=self.step,
                    val_loss=float(losses[i]),
                    val_error=float(errors[i]),
                    curve_step=curve.step,
                    curve_val_loss=curve.loss,
                    curve_val_error=curve.error,
                    parameters=self._lanes.flat[i].clone(),
                    rung=stopped.get(number),
                    slots={name: state[i] for name, state in slots.items()} if outcome == "completed" else {},
                    val_squared_errors={name: float(values[i]) for name, values in squared.items()},
                )
            )
        if ended:
            self._record_masks(ended, [i for i in self._rows if i not in set(staying)])
            self._keep(staying)
        return ended

    def paused(self) -> list[LaneResult]:
        """The lanes in training as they stand at the validation point that was reached: what they could go on from."""
        slots = self._slots()
        return [
            LaneResult(
                lane=self._numbers[i],
                outcome="completed",
                steps=self.step,
                val_loss=curve.loss[-1],
                val_error=curve.error[-1],
                curve_step=list(curve.step),
                curve_val_loss=list(curve.loss),
                curve_val_error=list(curve.error),
                parameters=self._lanes.flat[i].clone(),
                slots={name: state[i].clone() for name, state in slots.items()},
            )
            for i, curve in ((i, self._curves[i]) for i in self._rows)
        ]

    def _slots(self) -> dict[str, torch.Tensor]:
        """All that a lane goes on from, but for its weights."""
        slots = self._optimizer.slots()
        if self._ragged is not None:
            slots = {n: self._ragged.scatter(s, torch.zeros_like(self._lanes.flat)) for n, s in slots.items()}
        if self._updates is not None and self._history is not None and self._lanes.keep is not None:
            slots |= self._updates.slots() | self._history.slots(self._trained(self._lanes.keep))
        return slots

    def _record_masks(self, ended: Sequence[LaneResult], rows: Sequence[int]) -> None:
        """Say in the results of these rows what became of their masks."""
        if self._history is None or self._lanes.keep is None:
            return
        records = self._history.records(self._trained(self._lanes.keep), rows)
        for result, record in zip(ended, records, strict=True):
            result.mask, result.mask_overlap = record.mask, record.overlap
            result.exploration_rate = record.exploration_rate

    def _validate(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """What `evaluate_each` says of all lanes, each on the validation examples of its replicate."""
        if self._ragged is not None:
            examples = self._data[0].validation
            return *self._ragged.evaluate(examples.x, examples.one_hot, examples.labels), {}
        found: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]] = []
        for validation, start, stop in runs([feed.validation for feed in self._data]):
            found.append(evaluate_each(self._model, self._lanes.part(start, stop), validation))
        if len(found) == 1:
            return found[0]
        losses, errors, squared = zip(*found, strict=True)
        by_name = {name: np.concatenate([each[name] for each in squared]) for name in squared[0]}
        return np.concatenate(losses), np.concatenate(errors), by_name

    def _keep(self, staying: list[int]) -> None:
        """Go on with these rows: the others are cut out, or left behind as networks of zeros where that is cheaper."""
        leaving = sorted(set(self._rows) - set(staying))
        self._rows = staying
        if not staying:
            return
        n_rows = len(self._numbers)
        if self._real is None and (self._schedule.steps - self.step) * (1 - len(staying) / n_rows) < _RECORDING_STEPS:
            self._lanes.flat[leaving] = 0.0
            self._optimizer.silence(leaving)
            return
        self._numbers = [self._numbers[i] for i in staying]
        self._curves = [self._curves[i] for i in staying]
        self._hyper = [self._hyper[i] for i in staying]
        self._data = [self._data[i] for i in staying]
        index = torch.tensor(staying, device=self._lanes.flat.device)
        slots = {} if self._real is None else {name: state[index] for name, state in self._slots().items()}
        self._lanes = self._lanes.select(staying)
        if self._real is None:
            self._optimizer.keep(index)
        else:
            self._real = [self._real[i] for i in staying]
            self._ragged, self._optimizer = self._start_optimizer()
            self._restore_optimizer(self.step, slots)
        if self._updates is not None and self._history is not None:
            self._updates.keep_lanes(index)
            self._history.keep_lanes(index)
        self._rows = list(range(len(staying)))
        self._set_smoothing()


@torch.no_grad()
def evaluate(
    model: Model,
    lanes: LaneStack,
    examples: Examples,
    real: Sequence[Mapping[str, tuple[int, ...]]] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Loss and error of every lane on `examples`: two (L,) float64 arrays.

    Lanes that were trained without padding are evaluated so, too, where `real` are the shapes of their own tensors.

    Of classes: mean cross-entropy (nats) and misclassified fraction. Of restored images: mean absolute difference of
    intensities, and the mean squared difference under the degradation that is restored worst.
    """
    if real is not None:
        assert model.module.perceptron is not None
        ragged = RaggedLanes(model.module.perceptron, lanes, real, batch_size=1)
        return ragged.evaluate(examples.x, examples.one_hot, examples.labels)
    losses, errors, _ = evaluate_each(model, lanes, examples)
    return losses, errors


@torch.no_grad()
def evaluate_each(
    model: Model, lanes: LaneStack, examples: Examples
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
    """What `evaluate` gives, and the mean squared difference under each degradation by name, (L,) float64.

    These are empty for classes. A degradation that no example has is NaN, and not the worst.
    """
    if examples.images is not None:
        return _evaluate_restoration(model, lanes, examples, examples.images)
    n_lanes, n = len(lanes), len(examples)
    widest = max(s[0] for s in lanes.layout.shapes)
    chunk = max(1, min(n_lanes, _ACTIVATIONS_AT_ONCE // max(1, n * widest)))
    losses: list[torch.Tensor] = []
    wrong: list[torch.Tensor] = []
    for a in range(0, n_lanes, chunk):
        logits = forward(model, lanes.layout, lanes.flat[a : a + chunk], examples.x).float()
        by_class = logits.transpose(1, 2).contiguous()
        log_p = torch.log_softmax(by_class, dim=1)
        losses.append(-(log_p * examples.one_hot).sum(dim=(1, 2)) / n)
        wrong.append(n_errors(logits, examples.labels))
    loss = torch.cat(losses).double().cpu().numpy()
    return loss, torch.cat(wrong).double().cpu().numpy() / n, {}


def _evaluate_restoration(
    model: Model, lanes: LaneStack, examples: Examples, images: torch.Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
    n_lanes, n = len(lanes), len(examples)
    positions = {t.name: t.positions for t in model.structure.multiplied}
    shapes = zip(lanes.layout.names, lanes.layout.shapes, strict=True)
    each = n * max(shape[0] * positions[name] for name, shape in shapes if name in positions)
    chunk = max(1, min(n_lanes, _ACTIVATIONS_AT_ONCE // each))
    losses: list[torch.Tensor] = []
    squared: list[torch.Tensor] = []
    for a in range(0, n_lanes, chunk):
        restored = forward(model, lanes.layout, lanes.flat[a : a + chunk], examples.x).float()
        losses.append(vmap(absolute_error, in_dims=(0, None))(restored, images))
        squared.append(squared_errors(restored, images))
    sums = torch.cat(squared).double() @ examples.one_hot.double().t()
    by_degradation = (sums / examples.one_hot.double().sum(dim=1)).cpu().numpy()
    # NaN where there is no example; a lane that diverged is not finite in any case.
    present = examples.one_hot.any(dim=1).cpu().numpy()
    each_error = dict(zip(examples.degradations, by_degradation.T, strict=True))
    return torch.cat(losses).double().cpu().numpy(), by_degradation[:, present].max(axis=1), each_error


def batch_order(n_train: int, batch_size: int, steps: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of every batch: (steps, batch_size) int64, epoch after epoch in fresh permutations.

    An epoch's incomplete last batch is dropped, so that every batch has the same size.

    Raises:
        ValueError: if a batch is larger than the data.

    >>> batch_order(4, 2, 3, np.random.default_rng(0)).shape
    (3, 2)
    """
    if not 1 <= batch_size <= n_train:
        raise ValueError(f"batch_size={batch_size}: must lie in 1..{n_train}, the number of training examples")
    per_epoch = n_train // batch_size
    epochs = [
        generator.permutation(n_train)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        for _ in range(max(1, -(-steps // per_epoch)))
    ]
    return np.concatenate(epochs)[:steps].astype(np.int64)
