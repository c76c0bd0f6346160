"""What is measured of lanes once they are trained, beside their errors: diagnostics, and qualities beyond accuracy.

It is the referee's work, the same for every candidate of every arm, and therefore charged to no budget: the column
`quality_passes` says what it took. The exception is what a search is led by, which is its own expense.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy.typing as npt
import torch

from sparsefront.trainables.data import Dataset, load_dataset
from sparsefront.trainables.diagnostics import RealSize, diagnose, distances, instability
from sparsefront.trainables.lanes import LaneStack
from sparsefront.trainables.mask_updates import Nodes, sections_of
from sparsefront.trainables.mask_updates.contract import scatter
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples, LaneResult, Pack, evaluate_each, runs
from sparsefront.trainables.quality import QUALITIES, measure, passes

#: Validation examples that units are watched on: the first ones of the replicate.
N_WATCHED = 512
#: Diagnostics that the ledger has under another rule already: it counts what a mask leaves, not what training left.
_COUNTED_ELSEWHERE = ("macs",)
#: Points on the line between siblings, ends included.
_POINTS = 11
#: Longest text of a failure that is kept.
_ERROR_CHARACTERS = 8000
#: Prefix of columns that are measured on validation examples.
_VALIDATED = "val_"
_FORWARD_PASS = 1 / 3  # of a forward and backward pass, in multiply-accumulates


def fresh_examples(options: Mapping[str, int], dataset: Dataset, device: torch.device) -> Callable[[], Examples] | None:
    """Gives the test part of a data set that is drawn anew under `options`; None without any."""
    if not options:
        return None
    return cache(lambda: Examples.test(load_dataset(dataset.name, options), device))


class Measurer:
    """Measures the lanes of one recipe that end together."""

    def __init__(
        self,
        quality: Sequence[str],
        seed: int,
        test: Examples,
        *,
        validated: Sequence[str] = (),
        is_search: bool = False,
        fresh: Callable[[], Examples] | None = None,
    ) -> None:
        """Prepare for measuring; noise and shuffles are drawn under `seed`.

        Args:
            quality: names of `QUALITIES`, measured on test examples.
            seed: the study's.
            test: examples.
            validated: columns of these qualities that are measured on validation examples too, as 'val_' and their
                name. Of a search they are left out of `quality_passes`: see `search_passes`.
            is_search: whether what they took is charged to the candidates.
            fresh: gives as many examples that the data set's generator draws anew, for qualities that need them.
        """
        self._quality, self._seed, self._test, self._fresh = tuple(quality), seed, test, fresh
        self._validated, self._is_search = tuple(validated), is_search
        wanted = {column.removeprefix(_VALIDATED) for column in validated}
        self._on_validation = tuple(name for name in quality if wanted & QUALITIES[name].columns.keys())

    def search_passes(self, n_validation: int) -> float:
        """Passes that each completed candidate of a search is charged for objectives, over so many examples."""
        return passes(self._on_validation, n_validation)

    def columns(
        self,
        model: Model,
        lanes: LaneStack,
        ended: Sequence[LaneResult],
        validation: Examples,
        *,
        kind: str = "weight",
        real: Sequence[RealSize] | None = None,
        parent: Callable[[], torch.Tensor] | None = None,
    ) -> list[dict[str, Any]]:
        """Columns of the ledger for lanes that ended; of those that did not complete, only diagnostics.

        Args:
            model: the parent.
            lanes: the pack as it was made: its masks, before any of them changed.
            ended: some of its lanes.
            validation: examples of the replicate.
            kind: of the masks.
            real: of each lane of the pack, if they are padded to one size.
            parent: gives the trained weights of the parent, (P,) in the order of its layout; None if there are none.

        Returns:
            One for each of `ended`: name -> Python value, None for what is not a finite number; `error` says why
            something could not be measured.
        """
        rows: list[dict[str, Any]] = [
            {"mask_overlap": result.mask_overlap, "exploration_rate": result.exploration_rate, "quality_passes": 0.0}
            for result in ended
        ]
        try:
            chosen = _trained(model, lanes, ended, kind)
            self._diagnose(
                rows, model, chosen, validation, kind, None if real is None else [real[r.lane] for r in ended]
            )
            completed = [i for i, result in enumerate(ended) if result.outcome == "completed"]
            if validation.images is not None:
                self._compare_images(rows, model, chosen, ended, completed)
            elif completed:
                self._measure([rows[i] for i in completed], model, chosen.select(completed), validation, parent)
        except Exception as error:  # user code: a training that came to its end is not lost with what is measured of it
            if is_out_of_memory(error):
                raise
            _complain(rows, error)
        return rows

    def siblings(
        self,
        rows: Sequence[dict[str, Any]],
        model: Model,
        lanes: LaneStack,
        trained: Sequence[LaneResult],
        twins: Pack,
        validation: Sequence[Examples],
    ) -> Iterator[None]:
        """Train copies of lanes and write into `rows` how the validation error and loss rise on the line to them.

        Args:
            rows: of the lanes, as `columns` gave them.
            model: the parent.
            lanes: as they were before training.
            trained: what became of them, all completed.
            twins: the same lanes, about to be trained with another order of the data.
            validation: examples of each lane's replicate, those of one side by side.

        Yields:
            At every validation point of the copies.
        """
        try:
            flat, n_points = torch.full_like(lanes.flat, torch.nan), 0
            start = twins.step
            for ended in twins.run():
                n_points += 1
                for result in ended:
                    if result.outcome == "completed":  # a copy that diverged is connected with nothing
                        flat[result.lane] = result.parameters
                yield
        except Exception as error:  # as in `columns`
            if is_out_of_memory(error):
                raise
            _complain(rows, error)
            return
        n_evaluated = (n_points + _POINTS) * len(validation[0])
        n_passes = (twins.step - start) * twins.batch_size + n_evaluated * _FORWARD_PASS
        for row in rows:
            row["quality_passes"] += n_passes
        first = replace(lanes, flat=torch.stack([result.parameters for result in trained]))
        second = replace(lanes, flat=flat)
        for examples, a, b in runs(validation):
            try:  # what fails in one replicate is not taken from others
                line = instability(model, first.part(a, b), second.part(a, b), examples, points=_POINTS)
                apart = distances(model.structure, first.part(a, b), second.part(a, b))
                found = {
                    "instability_error": line.error_instability,
                    "instability_loss": line.loss_instability,
                    "sibling_distance": apart.l2,
                    "sibling_angle": apart.angle_rad,
                }
                _write(rows[a:b], found)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                _complain(rows[a:b], error)

    def _diagnose(
        self,
        rows: Sequence[dict[str, Any]],
        model: Model,
        lanes: LaneStack,
        validation: Examples,
        kind: str,
        real: Sequence[RealSize] | None,
    ) -> None:
        watched = validation.select(torch.arange(min(N_WATCHED, len(validation)), device=validation.x.device))
        _write(rows, {**diagnose(model, lanes, watched, kind=kind, real=real)})
        for row in rows:
            row["quality_passes"] += len(watched) * _FORWARD_PASS

    def _compare_images(
        self,
        rows: Sequence[dict[str, Any]],
        model: Model,
        lanes: LaneStack,
        ended: Sequence[LaneResult],
        completed: Sequence[int],
    ) -> None:
        for row, result in zip(rows, ended, strict=True):
            row |= {} if result.outcome == "diverged" else psnr_columns("val", result.val_squared_errors)
        if completed:
            _, _, squared = evaluate_each(model, lanes.select(completed), self._test)
            for j, i in enumerate(completed):
                rows[i] |= psnr_columns("test", {name: float(values[j]) for name, values in squared.items()})

    def _measure(
        self,
        rows: Sequence[dict[str, Any]],
        model: Model,
        lanes: LaneStack,
        validation: Examples,
        parent: Callable[[], torch.Tensor] | None,
    ) -> None:
        def possible(names: Sequence[str]) -> list[str]:
            return [name for name in names if parent is not None or not QUALITIES[name].needs_parent]

        names = possible(self._quality)
        if not names:
            return
        reference = None if parent is None else (model, parent())
        found = measure(names, model, lanes, self._test, parent=reference, seed=self._seed, fresh_examples=self._fresh)
        _write(rows, {**found})
        for row in rows:
            row["quality_passes"] += passes(names, len(self._test))
        if names := possible(self._on_validation):
            found = measure(names, model, lanes, validation, parent=reference, seed=self._seed, use="val_quality")
            _write(
                rows,
                {name: found[column] for name in self._validated if (column := name.removeprefix(_VALIDATED)) in found},
            )
            for row in rows if not self._is_search else ():
                row["quality_passes"] += passes(names, len(validation))


def _complain(rows: Sequence[dict[str, Any]], error: Exception) -> None:
    text = "".join(["not all was measured: ", *traceback.format_exception(error)])
    for row in rows:
        row["error"] = text[-_ERROR_CHARACTERS:]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left."""
    # The CPU allocator of torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _write(rows: Sequence[dict[str, Any]], columns: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, values in columns.items():
        if name not in _COUNTED_ELSEWHERE:
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = None if isinstance(value, float) and not math.isfinite(value) else value


def psnr_columns(part: str, squared_errors: Mapping[str, float]) -> dict[str, float | None]:
    """Peak signal-to-noise ratios in dB of images with intensities in [0, 1], by column; None if infinite or unknown.

    Args:
        part: 'val' or 'test'.
        squared_errors: mean squared error under each degradation.

    >>> psnr_columns("val", {"noise": 0.01, "rain": 0.001})
    {'val_psnr_noise': 20.0, 'val_psnr_rain': 30.0, 'val_psnr_worst': 20.0}
    """
    worst = {"worst": max(squared_errors.values(), default=math.nan)}
    return {
        f"{part}_psnr_{name}": -10 * math.log10(error) if 0 < error < math.inf else None
        for name, error in {**squared_errors, **worst}.items()
    }


def _trained(model: Model, lanes: LaneStack, ended: Sequence[LaneResult], kind: str) -> LaneStack:
    """The lanes that ended, with their last weights and masks, which are of `kind`."""
    flat = torch.stack([result.parameters for result in ended])
    keep = None if lanes.keep is None else lanes.keep[[result.lane for result in ended]].clone()
    masks = [result.mask for result in ended if result.mask is not None]
    if masks:  # of all of them: masks change in whole packs
        keep = torch.ones_like(flat) if keep is None else keep
        if kind == "node":
            Nodes(model.structure, lanes.layout).write(torch.stack(masks), keep)
            flat = flat * keep  # weights that are not trained are left to nodes that may come back
        else:
            scatter(sections_of(model.structure, lanes.layout), torch.stack(masks).to(keep), keep)
    return replace(lanes, flat=flat, keep=keep)
