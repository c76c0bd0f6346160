"""Where candidates are built, scored, trained and measured on one device, failures included."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import CandidateFailed
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import Candidate, level_key
from sparsefront.spaces.masks import Mask, Remains, draw, mask_digest, pack_bits, remains, remains_of, unpack_bits
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.data import Dataset, split
from sparsefront.trainables.lanes import LaneStack, dense_lanes, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.pack import Examples, LaneResult, Pack, batch_order, evaluate
from sparsefront.trainables.pruning import pruned_mask
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.scoring import Scorer, Scores, score_lanes

#: Working set of the lanes trained together. On a CPU small enough to stay near the core's caches (larger packs gain
#: nothing, benchmarks/lanes.py); on a GPU this share of its free memory.
_CPU_WORKING_SET_BYTES = 24 << 20
_GPU_MEMORY_FRACTION = 0.5
FORWARD_PASS = 1 / 3  # of a forward and backward pass, in multiply-accumulates


@dataclass(frozen=True)
class ScoredMasks:
    """Scores of the masks number start..stop of one replicate and level; arrays are (stop - start,)."""

    scores: Scores
    digests: list[str]
    remains: list[Remains]
    passes_each: float
    seconds_each: float


@dataclass(frozen=True)
class LaneOrder:
    """One candidate to train: `mask_bits` are the packed bits of a stored mask."""

    candidate: Candidate
    mask_bits: bytes | None = None


@dataclass(frozen=True)
class DerivedMask:
    """A mask cut from trained weights: packed bits, their digest, and what the mask leaves."""

    criterion: str
    target_sparsity: float
    bits: bytes
    digest: str
    remains: Remains


@dataclass(frozen=True)
class Trained:
    """What became of one candidate; `result` is None if it never came to a validation point."""

    candidate: Candidate
    outcome: str
    result: LaneResult | None
    mask_digest: str | None
    remains: Remains | None
    scores: tuple[float, float, float, float] | None
    test_loss: float | None
    test_error: float | None
    passes: float
    seconds: float
    derived: tuple[DerivedMask, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class _Replicate:
    """Data, initial weights and data order of one replicate, on the device."""

    train: Examples
    validation: Examples
    probe: Examples
    order: torch.Tensor
    weights: dict[str, npt.NDArray[np.float32]]
    parent: dict[str, torch.Tensor]


@dataclass(eq=False)  # a job is itself: comparing masks entry by entry is slow, and ambiguous for equal orders
class _Job:
    """One candidate on its way through the workshop; `wasted_passes` are those of packs that broke off."""

    order: LaneOrder
    mask: Mask | None = None
    wasted_passes: float = 0.0
    wasted_s: float = 0.0
    remains: Remains | None = None


class Workshop:
    """Builds, scores, trains and measures candidates of one recipe on one device."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self._dataset = dataset
        self._model = build_model(
            recipe.model, recipe.model_options, input_shape=dataset.example_shape, n_classes=dataset.n_classes
        )
        self._test = Examples.of(dataset.x_test, dataset.y_test, dataset.n_classes, device)
        self._replicate = lru_cache(maxsize=4)(self._make_replicate)
        self._scorer = lru_cache(maxsize=1)(self._make_scorer)

    @property
    def structure(self) -> Structure:
        """The parent's structure."""
        return self._model.structure

    def _make_replicate(self, replicate: int) -> _Replicate:
        recipe = self.recipe
        train, validation = split_examples(recipe, self._dataset, replicate, self.device)
        order = batch_order(
            len(train), recipe.schedule.batch_size, recipe.schedule.steps, generator(recipe.seed, "order", replicate)
        )
        probe = generator(recipe.seed, "probe", replicate).permutation(len(train))[: recipe.probe_size]
        weights = initial_weights(self.structure, self._model.init, generator(recipe.seed, "parent", replicate))
        return _Replicate(
            train=train,
            validation=validation,
            probe=train.select(torch.from_numpy(probe).to(self.device)),
            order=torch.from_numpy(order).to(self.device),
            weights=weights,
            parent={name: torch.from_numpy(w).to(self.device) for name, w in weights.items()},
        )

    def _make_scorer(self, replicate: int) -> Scorer:
        state = self._replicate(replicate)
        return Scorer(self._model, state.parent, state.probe, kind=self.recipe.mask_kind)

    # Scoring ---------------------------------------------------------------------------------------------------------

    def draw_masks(self, replicate: int, sparsity: float, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Random masks number start..stop of one replicate and level: (stop - start, entries) bool."""
        kind = self.recipe.mask_kind
        return draw(
            self.structure.section_sizes(kind),
            kept_counts(self.structure, kind, sparsity, self.recipe.allocation),
            philox_key(self.recipe.seed, "mask", replicate, level_key(sparsity)),
            start=start,
            stop=stop,
        )

    def score(self, replicate: int, sparsity: float, start: int, stop: int) -> ScoredMasks:
        """Draw and score the random masks number start..stop of one replicate and level."""
        began = perf_counter()
        scorer = self._scorer(replicate)
        masks = self.draw_masks(replicate, sparsity, start, stop)
        scores = scorer.score(masks)
        return ScoredMasks(
            scores=scores,
            digests=[mask_digest(bits) for bits in pack_bits(masks)],
            remains=self._remains_of_masks(masks),
            passes_each=len(self._replicate(replicate).probe) * FORWARD_PASS,
            seconds_each=(perf_counter() - began) / (stop - start),
        )

    def _remains_of_masks(self, masks: npt.NDArray[np.bool_]) -> list[Remains]:
        """What each mask leaves; masks with equal node counts are counted once."""
        if self.recipe.mask_kind != "node":
            return [remains(self.structure, "weight", mask) for mask in masks]
        edges = np.cumsum([0, *self.structure.section_sizes("node")])[:-1]
        counts, inverse = np.unique(np.add.reduceat(masks, edges, axis=1, dtype=np.int64), axis=0, return_inverse=True)
        left = [remains_of(self.structure, self.structure.compact(row.tolist())) for row in counts]
        return [left[i] for i in inverse.reshape(-1)]

    # Training --------------------------------------------------------------------------------------------------------

    def train(
        self, orders: Sequence[LaneOrder], *, derive: Sequence[tuple[str, float]] = ()
    ) -> Iterator[list[Trained]]:
        """Train candidates of one replicate; yields at every validation point those that ended (often none).

        Whatever a candidate does (diverge, raise, exhaust memory), its neighbours' results are the same: a pack that
        breaks is halved until the culprit is alone.

        Args:
            orders: the candidates, all of one replicate.
            derive: (criterion, sparsity) masks to cut from the trained parent, if it is among the candidates.
        """
        groups: list[list[_Job]] = []
        for jobs in self._by_shape([_Job(order) for order in orders]):
            at_once = self._lanes_at_once(jobs[0])
            groups += [jobs[a : a + at_once] for a in range(0, len(jobs), at_once)]
        while groups:
            jobs = groups.pop(0)
            waiting = {id(job): job for job in jobs}
            began = perf_counter()
            spent: list[float] = [0.0]
            try:
                for ended in self._train_together(jobs, derive, spent):
                    for job, _ in ended:
                        waiting.pop(id(job), None)
                    yield [trained for _, trained in ended]
            except Exception as error:  # the candidate boundary: user code or the device failed, which is data
                outcome = "out_of_memory" if is_out_of_memory(error) else "failed"
                left = list(waiting.values())
                for job in left:
                    job.wasted_passes += spent[0]
                    job.wasted_s += (perf_counter() - began) / len(jobs)
                if len(left) == 1:
                    yield [_broken(left[0], outcome, error)]
                elif left:
                    middle = (len(left) + 1) // 2
                    groups[:0] = [left[:middle], left[middle:]]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _by_shape(self, jobs: Sequence[_Job]) -> list[list[_Job]]:
        """Candidates that can share a batch: by network and level.

        Where a level fixes the size of every layer, small dense networks have the shape of the masked ones.
        """
        fixed_size = self.recipe.mask_kind == "node" and self.recipe.allocation != "global"
        shapes: dict[tuple[str, float], list[_Job]] = {}
        for job in jobs:
            c = job.order.candidate
            network = "masked" if fixed_size and c.network == "small_dense" else c.network
            shapes.setdefault((network, c.target_sparsity), []).append(job)
        return list(shapes.values())

    def _lanes_at_once(self, job: _Job) -> int:
        if self.recipe.lanes_at_once is not None:
            return self.recipe.lanes_at_once
        c = job.order.candidate
        net = self.structure if c.network == "parent" or self.recipe.mask_kind == "weight" else self._small(c)
        activations = self.recipe.schedule.batch_size * sum(t.shape[0] * t.positions for t in net.multiplied)
        return lanes_at_once(net.n_params, activations, self.device)

    def _small(self, candidate: Candidate) -> Structure:
        """The dense network of the size that a mask of this level leaves."""
        kind, sparsity = self.recipe.mask_kind, candidate.target_sparsity
        counts = kept_counts(self.structure, kind, sparsity, self.recipe.allocation)
        if kind == "node" and len(counts) == len(self.structure.groups):
            return self.structure.compact(counts)
        if kind == "node":  # one count over all layers: divide it as the layers are sized
            share = counts[0] / self.structure.n_nodes
            return self.structure.compact([max(1, round(share * g.size)) for g in self.structure.groups])
        kept_weights = sum(counts)
        return self.structure.scaled_to(self.structure.n_params - self.structure.n_weights + kept_weights)

    def _lanes(self, jobs: Sequence[_Job], state: _Replicate) -> tuple[LaneStack, list[Remains]]:
        """Initial weights of jobs of one shape class."""
        first = jobs[0].order.candidate
        if first.network == "parent":
            return dense_lanes(self.structure, [state.weights] * len(jobs), self.device), [
                remains_of(self.structure, self.structure)
            ] * len(jobs)
        masked = [job for job in jobs if job.order.candidate.network == "masked"]
        for job in masked:
            job.mask = self._mask(job.order)
            if self._model.check_mask is not None:
                self._model.check_mask(job.mask)
        stacks: dict[str, LaneStack] = {}
        left: dict[int, Remains] = {}
        if masked:
            masks = np.stack([job.mask for job in masked if job.mask is not None])
            build = node_masked_lanes if self.recipe.mask_kind == "node" else weight_masked_lanes
            stacks["masked"] = build(self.structure, state.parent, masks)
            left.update(zip(map(id, masked), self._remains_of_masks(masks), strict=True))
        fresh = [job for job in jobs if job.order.candidate.network == "small_dense"]
        if fresh:
            small = self._small(first)
            weights = [
                initial_weights(
                    small,
                    self._model.init,
                    generator(self.recipe.seed, "small_dense", c.replicate, c.level_key),
                )
                for c in (job.order.candidate for job in fresh)
            ]
            stacks["fresh"] = dense_lanes(small, weights, self.device)
            left.update((id(job), remains_of(self.structure, small)) for job in fresh)
        in_order = [*masked, *fresh]
        jobs_order = [in_order.index(job) for job in jobs]
        return _concatenate(list(stacks.values())).select(jobs_order), [left[id(job)] for job in jobs]

    def _mask(self, order: LaneOrder) -> Mask:
        c = order.candidate
        if c.draw is not None:
            mask: Mask = self.draw_masks(c.replicate, c.target_sparsity, c.draw, c.draw + 1)[0]
            return mask
        if order.mask_bits is None or mask_digest(order.mask_bits) != c.mask:
            raise CandidateFailed(f"mask={c.mask!r}: its stored bits are missing or do not match the digest")
        return unpack_bits(order.mask_bits, sum(self.structure.section_sizes(self.recipe.mask_kind)))

    def _train_together(
        self, jobs: Sequence[_Job], derive: Sequence[tuple[str, float]], spent: list[float]
    ) -> Iterator[list[tuple[_Job, Trained]]]:
        recipe = self.recipe
        began = perf_counter()
        state = self._replicate(jobs[0].order.candidate.replicate)
        lanes, left = self._lanes(jobs, state)
        for job, remaining in zip(jobs, left, strict=True):
            job.remains = remaining
        scores = score_lanes(self._model, lanes, state.probe)
        pack = Pack(
            self._model,
            lanes,
            [recipe.hyper] * len(jobs),
            recipe.schedule,
            train=state.train,
            validation=state.validation,
            order=state.order,
            precision=recipe.precision,
        )
        n_points = 0
        n_left = len(jobs)
        seconds = 0.0  # of one lane that is still in training: each interval is divided over the lanes it served
        for ended in pack.run():
            n_points += 1
            now = perf_counter()
            seconds += (now - began) / n_left
            began = now
            n_left -= len(ended)
            spent[0] = pack.step * recipe.schedule.batch_size + FORWARD_PASS * (
                n_points * len(state.validation) + len(state.probe)
            )
            if not ended:
                yield []
                continue
            completed = [r for r in ended if r.outcome == "completed"]
            test: dict[int, tuple[float, float]] = {}
            if completed:
                final = LaneStack(lanes.layout, torch.stack([r.parameters for r in completed]), None)
                losses, errors = evaluate(self._model, final, self._test)
                test = {r.lane: (float(a), float(b)) for r, a, b in zip(completed, losses, errors, strict=True)}
            rows: list[tuple[_Job, Trained]] = []
            for result in ended:
                job, i = jobs[result.lane], result.lane
                test_loss, test_error = test.get(i, (None, None))
                rows.append(
                    (
                        job,
                        Trained(
                            candidate=job.order.candidate,
                            outcome=result.outcome,
                            result=result,
                            mask_digest=None if job.mask is None else mask_digest(pack_bits(job.mask)),
                            remains=left[i],
                            scores=(
                                float(scores.initial_loss[i]),
                                float(scores.scalefree_loss[i]),
                                float(scores.temperature[i]),
                                float(scores.logit_std[i]),
                            ),
                            test_loss=test_loss,
                            test_error=test_error,
                            passes=job.wasted_passes + spent[0] + (len(self._test) * FORWARD_PASS if i in test else 0),
                            seconds=job.wasted_s + seconds,
                            derived=self._derive(job, result, lanes, derive),
                        ),
                    )
                )
            yield rows

    def _derive(
        self, job: _Job, result: LaneResult, lanes: LaneStack, derive: Sequence[tuple[str, float]]
    ) -> tuple[DerivedMask, ...]:
        """Masks cut from the trained parent."""
        if job.order.candidate.network != "parent" or result.outcome != "completed":
            return ()
        weights: Mapping[str, npt.NDArray[np.float32]] = {
            name: view[0].cpu().numpy() for name, view in lanes.layout.views(result.parameters[None]).items()
        }
        cut: list[DerivedMask] = []
        for criterion, sparsity in derive:
            mask = pruned_mask(
                criterion,
                self.structure,
                weights,
                kind=self.recipe.mask_kind,
                sparsity=sparsity,
                allocation=self.recipe.allocation,
            )
            bits = pack_bits(mask).tobytes()
            left = remains(self.structure, self.recipe.mask_kind, mask)
            cut.append(DerivedMask(criterion, sparsity, bits, mask_digest(bits), left))
        return tuple(cut)


def split_examples(recipe: Recipe, dataset: Dataset, replicate: int, device: torch.device) -> tuple[Examples, Examples]:
    """Training and validation examples of a replicate, on a device."""
    parts = split(
        dataset,
        validation_fraction=recipe.validation_fraction,
        generator=generator(recipe.seed, "split", replicate),
    )
    train, validation = (
        Examples.of(dataset.x_train[indices], dataset.y_train[indices], dataset.n_classes, device)
        for indices in (parts.train_indices, parts.validation_indices)
    )
    return train, validation


def lanes_at_once(n_params: int, n_activations: int, device: torch.device) -> int:
    """How many lanes of a size to train together: what stays near a core's caches, or fits into a GPU's memory."""
    # Parameters, gradient, two moments and a mask; activations forward and backward.
    lane_bytes = 4 * (5 * n_params + 3 * n_activations)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, int(free * _GPU_MEMORY_FRACTION) // lane_bytes)
    return max(1, _CPU_WORKING_SET_BYTES // lane_bytes)


def _concatenate(stacks: Sequence[LaneStack]) -> LaneStack:
    """Lanes of one layout in one stack."""
    if len(stacks) == 1:
        return stacks[0]
    keep = None
    if any(s.keep is not None for s in stacks):
        keep = torch.cat([torch.ones_like(s.flat) if s.keep is None else s.keep for s in stacks])
    return LaneStack(stacks[0].layout, torch.cat([s.flat for s in stacks]), keep)


def _broken(job: _Job, outcome: str, error: Exception) -> Trained:
    """A candidate that could not be built or trained."""
    text = str(error) if isinstance(error, CandidateFailed) else "".join(traceback.format_exception(error))
    return Trained(
        candidate=job.order.candidate,
        outcome=outcome,
        result=None,
        mask_digest=job.order.candidate.mask,
        remains=job.remains,
        scores=None,
        test_loss=None,
        test_error=None,
        passes=job.wasted_passes,
        seconds=job.wasted_s,
        error=text[-8000:],
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory left."""
    # The CPU allocator of torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
