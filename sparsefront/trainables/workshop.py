"""Where candidates are built, scored, trained and measured on one device, failures included."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import CandidateFailed, CheckpointError, SparsefrontError
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import Candidate, level_key
from sparsefront.spaces.controls import CONTROLS, control_key, fresh_weights_key, small_dense
from sparsefront.spaces.masks import (
    Mask,
    Remains,
    draw,
    mask_digest,
    pack_bits,
    remains,
    remains_of,
    split_sections,
    unpack_bits,
)
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.checkpoints import WEIGHTS, LaneState, read_checkpoint, write_checkpoint
from sparsefront.trainables.data import Dataset, split
from sparsefront.trainables.lanes import LaneStack, dense_lanes, kept_nodes, node_masked_lanes, weight_masked_lanes
from sparsefront.trainables.mask_updates import UPDATES, MaskUpdates, full_size_lanes
from sparsefront.trainables.measuring import Measurer, fresh_examples, is_out_of_memory
from sparsefront.trainables.models import build_model, initial_weights
from sparsefront.trainables.pack import Examples, Feed, LaneResult, Pack, batch_order, evaluate, runs
from sparsefront.trainables.pruning.cutting import Cutter, scatter_nodes
from sparsefront.trainables.pruning.during import changes_masks, ranking_passes
from sparsefront.trainables.pruning.state import ScoringState
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.scoring import Scorer, Scores, score_lanes

#: Working set of the lanes trained together. On a CPU small enough to stay near the core's caches (larger packs gain
#: nothing, benchmarks/lanes.py); on a GPU this share of its free memory.
_CPU_WORKING_SET_BYTES = 24 << 20
_GPU_MEMORY_FRACTION = 0.5
#: Replicates whose data and weights are kept.
_KEPT_REPLICATES = 32
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
class CutOrder:
    """A mask to be cut from a network once it is trained: for which arm, at which sparsity, and how.

    `later` are the sparsities of the chain's levels after it.
    """

    arm: str
    sparsity: float
    method: Pruning
    later: tuple[float, ...] = ()


@dataclass(frozen=True)
class LaneOrder:
    """One candidate to train.

    Attributes:
        candidate: what is trained.
        mask_bits: packed bits of its stored mask.
        id: of the candidate; checkpoints know it by that.
        cuts: masks to be cut from it.
        checkpoint: name of the checkpoint that holds the weights of `candidate.origin`.
        keeps_weights: whether to leave a checkpoint of its own weights.
        parent: id of the trained parent that it is compared with, and name of the checkpoint that holds its weights.
        siblings: whether it is trained again with another order of the data, to be compared with that.
    """

    candidate: Candidate
    mask_bits: bytes | None = None
    id: str = ""
    cuts: tuple[CutOrder, ...] = ()
    checkpoint: str | None = None
    keeps_weights: bool = False
    parent: tuple[str, str] | None = None
    siblings: bool = False


@dataclass(frozen=True)
class DerivedMask:
    """A mask cut from trained weights: packed bits, their digest, what the mask leaves, and what it took to make."""

    arm: str
    target_sparsity: float
    bits: bytes
    digest: str
    remains: Remains
    passes: float = 0.0


@dataclass(frozen=True)
class Trained:
    """What became of one candidate; `result` is None if it never came to a validation point.

    `mask_bits` are the packed bits of a mask that is neither drawn nor stored, `columns` what was measured of it
    besides. Of `passes`, `making_passes` are those of the whole parent that its mask took, and `ranking_passes` those
    that ranked what was left while its mask changed.
    """

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
    making_passes: float = 0.0
    ranking_passes: float = 0.0
    derived: tuple[DerivedMask, ...] = ()
    error: str | None = None
    mask_bits: bytes | None = None
    checkpoint: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Replicate:
    """Data and initial weights of one replicate, on the device; `rows` are its training examples, of all there are."""

    rows: torch.Tensor
    validation: Examples
    probe: Examples
    weights: dict[str, npt.NDArray[np.float32]]
    parent: dict[str, torch.Tensor]


@dataclass(eq=False)  # a job is itself: comparing masks entry by entry is slow, and ambiguous for equal orders
class _Job:
    """One candidate on its way through the workshop.

    `wasted_passes` are those of packs that broke off, `making_passes` those that its mask took before its training.
    """

    order: LaneOrder
    mask: Mask | None = None
    wasted_passes: float = 0.0
    wasted_s: float = 0.0
    remains: Remains | None = None
    making_passes: float = 0.0

    @property
    def method(self) -> Pruning | None:
        return self.order.candidate.method


class Workshop:
    """Builds, scores, trains and measures candidates of one recipe on one device."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, device: torch.device, checkpoint_dir: Path | None = None
    ) -> None:
        """Prepare a workshop; `checkpoint_dir` is needed where networks go on from the weights of others."""
        self.recipe, self.device, self._folder = recipe, device, checkpoint_dir
        self._dataset = dataset
        self._model = build_model(
            recipe.model,
            recipe.model_options,
            input_shape=dataset.example_shape,
            n_classes=dataset.n_classes,
            prune_biases=recipe.prune_biases,
        )
        self._test = Examples.test(dataset, device)
        self._measurer = Measurer(
            recipe.quality,
            recipe.seed,
            self._test,
            validated=recipe.validated,
            fresh=fresh_examples(recipe.fresh, dataset, device),
        )
        self._training = Examples.training(dataset, np.arange(len(dataset.x_train)), device)
        self._replicate = lru_cache(maxsize=_KEPT_REPLICATES)(self._make_replicate)
        self._scorer = lru_cache(maxsize=1)(self._make_scorer)
        self._order = lru_cache(maxsize=_KEPT_REPLICATES)(self._make_order)
        self._rewound = lru_cache(maxsize=_KEPT_REPLICATES)(self._make_rewound)
        self._trained_parent = lru_cache(maxsize=_KEPT_REPLICATES)(self._read_parent)
        self._cutter = Cutter(self.structure, recipe.mask_kind, recipe.allocation)

    @property
    def structure(self) -> Structure:
        """The parent's structure."""
        return self._model.structure

    def _make_replicate(self, replicate: int) -> _Replicate:
        recipe = self.recipe
        rows, validation = split_rows(recipe, self._dataset, replicate)
        probe = generator(recipe.seed, "probe", replicate).permutation(len(rows))[: recipe.probe_size]
        weights = initial_weights(self.structure, self._model.init, generator(recipe.seed, "parent", replicate))
        return _Replicate(
            rows=torch.tensor(rows, device=self.device),
            validation=Examples.training(self._dataset, validation, self.device),
            probe=Examples.training(self._dataset, rows[probe], self.device),
            weights=weights,
            parent={name: torch.from_numpy(w).to(self.device) for name, w in weights.items()},
        )

    def _make_order(self, replicate: int, steps: int, use: str = "order") -> torch.Tensor:
        """Training examples in the batches of a replicate's first steps, (steps, batch) int64; longer begin alike."""
        rows = self._replicate(replicate).rows
        order = batch_order(
            len(rows), self.recipe.schedule.batch_size, steps, generator(self.recipe.seed, use, replicate)
        )
        return rows[torch.from_numpy(order).to(self.device)]

    def _feeds(self, replicates: Sequence[int], start: int, stop: int, use: str = "order") -> list[Feed]:
        """What lanes of these replicates see between two steps."""
        feeds = {
            r: Feed(self._training, self._replicate(r).validation, self._order(r, stop, use)[start:])
            for r in dict.fromkeys(replicates)
        }
        return [feeds[r] for r in replicates]

    def _make_rewound(self, replicate: int, step: int) -> dict[str, torch.Tensor]:
        """The parent's weights after so many steps of its training, trained again.

        Where a candidate is to begin with them, the parent's training paid for them; where they were kept and are lost,
        the candidate does.
        """
        state = self._replicate(replicate)
        lanes = dense_lanes(self.structure, [state.weights], self.device)
        pack = self._pack(lanes, self._feeds([replicate], 0, step), step, lr_steps=self.recipe.schedule.steps)
        (result,) = [one for ended in pack.run() for one in ended]
        if result.outcome != "completed":
            raise CandidateFailed(f"rewind_step={step}: the parent diverged before it; rewind to an earlier step")
        return {name: view[0] for name, view in lanes.layout.views(result.parameters[None]).items()}

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

    def train(self, orders: Sequence[LaneOrder]) -> Iterator[list[Trained]]:
        """Train candidates; yields at every validation point those that ended (often none).

        Whatever a candidate does (diverge, raise, exhaust memory), its neighbours' results are the same: a pack that
        breaks is halved until the culprit is alone.

        Args:
            orders: the candidates; those of several replicates train side by side, too.

        Raises:
            CheckpointError: a checkpoint cannot be written: the machine's failure, not the candidates'.
        """
        groups: list[list[_Job]] = []
        for jobs in self._by_shape([_Job(order) for order in orders]):
            at_once = self._lanes_at_once(jobs)
            groups += [jobs[a : a + at_once] for a in range(0, len(jobs), at_once)]
        while groups:
            jobs = groups.pop(0)
            waiting = {id(job): job for job in jobs}
            began = perf_counter()
            spent: list[float] = [0.0]
            try:
                for ended in self._train_together(jobs, spent):
                    for job, _ in ended:
                        waiting.pop(id(job), None)
                    yield [trained for _, trained in ended]
            except CheckpointError:
                raise
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
        """Candidates that can share a pack, those of a replicate side by side."""
        shapes: dict[tuple[object, ...], list[_Job]] = {}
        for job in jobs:
            key = (*job.order.candidate.together(self.recipe.mask_kind), self._layout_of(job))
            shapes.setdefault(key, []).append(job)
        return [sorted(members, key=lambda job: job.order.candidate.replicate) for members in shapes.values()]

    def _layout_of(self, job: _Job) -> tuple[object, ...]:
        """What candidates have in common whose lanes have one layout, padded or not."""
        c = job.order.candidate
        if c.network == "parent":
            return ("parent",)
        if c.network == "small_dense" and c.mask is not None:
            try:
                return tuple(t.shape for t in self._small(job).tensors)
            except SparsefrontError:  # it fails by itself, when it is built
                return ("small_dense", c.mask)
        if self.recipe.mask_kind == "weight":
            return (c.network,)
        if c.mask_changes and not all(t.trained for t in self.structure.tensors):
            return (c.network, c.replicate)  # nodes are ranked by what is not trained, too
        if self.recipe.allocation != "global" and self._has_counts_of_level(job):
            return ("counts of the level",)
        return (c.network,)

    def _has_counts_of_level(self, job: _Job) -> bool:
        """Whether every layer keeps as many nodes as the study's allocation says."""
        c = job.order.candidate
        is_shuffled = c.control != "" and CONTROLS[c.control].shuffle is not None
        if c.network == "small_dense" or (c.draw is not None and not is_shuffled):
            return True
        if c.mask is None or is_shuffled:
            return False
        try:
            mask = self._stored(job.order)
        except SparsefrontError:  # it fails by itself, when it is built
            return False
        counts = tuple(int(np.count_nonzero(part)) for part in split_sections(self.structure, "node", mask))
        return counts == kept_counts(self.structure, "node", c.target_sparsity, self.recipe.allocation)

    def _span(self, candidate: Candidate) -> tuple[int, int]:
        """First and last step of a candidate's training, in the order of its replicate's batches."""
        steps = candidate.steps or self.recipe.schedule.steps
        if candidate.start == "trained" and candidate.method is not None:
            return steps, steps + round(candidate.method.retrain_fraction * steps)
        if candidate.start == "frozen":
            return steps, steps
        return candidate.rewind_step, steps

    def _lanes_at_once(self, jobs: Sequence[_Job]) -> int:
        if self.recipe.lanes_at_once is not None:
            return self.recipe.lanes_at_once
        c = jobs[0].order.candidate
        net = (
            self.structure
            if c.network == "parent" or self.recipe.mask_kind == "weight" or c.mask_changes
            else self._of_level(c.target_sparsity)
        )
        batch_size, data = self.recipe.schedule.batch_size, self._training
        activations = batch_size * sum(t.shape[0] * t.positions for t in net.multiplied)
        is_own = any(job.order.candidate.replicate != c.replicate for job in jobs)
        inputs = data.x[0].numel() + (len(data.one_hot) if data.images is None else data.images[0].numel())
        return lanes_at_once(net.n_params, activations, self.device, n_inputs=batch_size * inputs if is_own else 0)

    def _small(self, job: _Job) -> Structure:
        """A small dense network: of the size that a mask of the level leaves; a control, that its arm's mask leaves."""
        if job.order.candidate.mask is None:
            return self._of_level(job.order.candidate.target_sparsity)
        return small_dense(self.structure, self.recipe.mask_kind, self._stored(job.order))

    def _small_weights(self, small: Structure, c: Candidate) -> dict[str, npt.NDArray[np.float32]]:
        """Initial weights of a small dense network: those of the level; of a control, those of its arm's mask."""
        if c.mask is None:
            rng = generator(self.recipe.seed, "small_dense", c.replicate, c.level_key)
        else:
            key = control_key(self.recipe.seed, c.control, c.mask, c.replicate, c.level_key)
            rng = np.random.Generator(np.random.Philox(key=key))
        return initial_weights(small, self._model.init, rng)

    def _of_level(self, sparsity: float) -> Structure:
        """The dense network of the size that a mask of a level leaves."""
        kind = self.recipe.mask_kind
        counts = kept_counts(self.structure, kind, sparsity, self.recipe.allocation)
        if kind == "node" and len(counts) == len(self.structure.groups):
            return self.structure.compact(counts)
        if kind == "node":  # one count over all layers: divide it as the layers are sized
            share = counts[0] / self.structure.n_nodes
            return self.structure.compact([max(1, round(share * g.size)) for g in self.structure.groups])
        kept_weights = sum(counts)
        return self.structure.scaled_to(self.structure.n_params - self.structure.n_weights + kept_weights)

    def _lanes(self, jobs: Sequence[_Job]) -> tuple[LaneStack, list[Remains]]:
        """Initial weights of jobs of one shape class."""
        first = jobs[0].order.candidate
        if first.network == "parent":
            weights = [self._replicate(job.order.candidate.replicate).weights for job in jobs]
            left_of_parent = remains_of(self.structure, self.structure)
            return dense_lanes(self.structure, weights, self.device), [left_of_parent] * len(jobs)
        masked = [job for job in jobs if job.order.candidate.network == "masked"]
        origins: dict[_OriginKey, list[int]] = {}
        for i, job in enumerate(masked):
            job.mask = self._mask(job, self._replicate(job.order.candidate.replicate))
            if self._model.check_mask is not None:
                self._model.check_mask(job.mask)
            origins.setdefault(_origin_of(job.order.candidate), []).append(i)
        stacks: list[LaneStack] = []
        in_order: list[_Job] = []
        left: dict[int, Remains] = {}
        is_compact = self.recipe.mask_kind == "node" and not first.mask_changes
        if masked:
            masks = np.stack([job.mask for job in masked if job.mask is not None])
            left.update(zip(map(id, masked), self._remains_of_masks(masks), strict=True))
            # Networks that are cut from different weights are padded to each other all the same.
            kept = kept_nodes(self.structure, masks) if is_compact else []
        for (fresh_start, *_), members in origins.items():
            origin = self._origin(masked[members[0]], is_fresh=fresh_start)
            if is_compact:
                of_members = [each.of(members) for each in kept]
                stacks.append(node_masked_lanes(self.structure, origin, masks[members], kept=of_members))
            elif self.recipe.mask_kind == "node":  # nodes come and go: not at their real size yet
                stacks.append(full_size_lanes(self.structure, origin, masks[members]))
            else:
                stacks.append(weight_masked_lanes(self.structure, origin, masks[members]))
            in_order += [masked[i] for i in members]
        fresh = [job for job in jobs if job.order.candidate.network == "small_dense"]
        if fresh:
            small = self._small(fresh[0])
            weights = [self._small_weights(small, job.order.candidate) for job in fresh]
            stacks.append(dense_lanes(small, weights, self.device))
            left.update((id(job), remains_of(self.structure, small)) for job in fresh)
            in_order += fresh
        jobs_order = [in_order.index(job) for job in jobs]
        return _concatenate(stacks).select(jobs_order), [left[id(job)] for job in jobs]

    def _origin(self, job: _Job, *, is_fresh: bool) -> Mapping[str, torch.Tensor]:
        """The parent's weights that a masked candidate begins with what its mask leaves of."""
        c = job.order.candidate
        if is_fresh:
            key = fresh_weights_key(self.recipe.seed, c.replicate, c.level_key)
            weights = initial_weights(self.structure, self._model.init, np.random.Generator(np.random.Philox(key=key)))
            return {name: torch.from_numpy(w).to(self.device) for name, w in weights.items()}
        if c.start == "rewound":
            return self._rewound(c.replicate, c.rewind_step)
        if c.start != "trained":
            return self._replicate(c.replicate).parent
        if self._folder is None or job.order.checkpoint is None or c.origin is None:
            raise CandidateFailed(f"origin={c.origin!r}: its weights were not kept; start the study in another folder")
        try:
            parts = read_checkpoint(self._folder, job.order.checkpoint, [c.origin])[c.origin].parts
        except CheckpointError as error:
            if c.method is not None and c.method.when == "trained":  # the parent's own, and those can be made again
                job.wasted_passes += self.recipe.schedule.steps * self.recipe.schedule.batch_size
                return self._rewound(c.replicate, self.recipe.schedule.steps)
            raise CandidateFailed(
                f"origin={c.origin!r}: the weights that this network goes on from are lost ({error}); start the study "
                "in another folder to train them again"
            ) from error
        return {name: torch.from_numpy(w).to(self.device) for name, w in parts[WEIGHTS].items()}

    def _read_parent(self, parent: str, checkpoint: str) -> torch.Tensor:
        """Weights of a trained parent, (P,) in the order of its layout."""
        if self._folder is None:
            raise CheckpointError("checkpoints: this workshop has no folder for them; name one in its settings")
        weights = read_checkpoint(self._folder, checkpoint, [parent])[parent].parts[WEIGHTS]
        return dense_lanes(self.structure, [weights], self.device).flat[0]

    def _mask(self, job: _Job, state: _Replicate) -> Mask:
        """The mask that a candidate begins with."""
        order, c, kind = job.order, job.order.candidate, self.recipe.mask_kind
        sizes = self.structure.section_sizes(kind)
        if c.draw is not None and not c.control:
            return self._drawn(c)
        key = philox_key(self.recipe.seed, "prune", c.replicate, c.level_key)
        if c.mask is None and c.method is not None:
            if c.method.update is None:
                cut = self._cutter.at_init(c.method, c.target_sparsity, self._whole(state, key))
                job.making_passes = cut.passes
                return cut.mask
            if UPDATES[c.method.update].starts_dense:
                return np.ones(sum(sizes), dtype=np.bool_)
            return self._cutter.at_random(c.method, c.target_sparsity, key)
        stored = self._stored(order)
        shuffle = CONTROLS[c.control].shuffle if c.control else None
        if shuffle is None or c.mask is None:
            return stored
        # A key of its own: under that of the arms, shuffled random masks would be the very same again.
        key = control_key(self.recipe.seed, c.control, c.mask, c.replicate, c.level_key)
        # Of nodes there is but one pattern, which a method of theirs need not name.
        pattern = None if c.method is None or kind == "node" else c.method.pattern
        return shuffle(self.structure, kind, stored, key, 0, pattern=pattern)

    def _stored(self, order: LaneOrder) -> Mask:
        """The mask that a candidate was given."""
        digest = order.candidate.mask
        if order.candidate.draw is not None:
            return self._drawn(order.candidate)
        if order.mask_bits is None or mask_digest(order.mask_bits) != digest:
            raise CandidateFailed(f"mask={digest!r}: its stored bits are missing or do not match the digest")
        return unpack_bits(order.mask_bits, sum(self.structure.section_sizes(self.recipe.mask_kind)))

    def _drawn(self, c: Candidate) -> Mask:
        """The random mask that a candidate names."""
        assert c.draw is not None
        mask: Mask = self.draw_masks(c.replicate, c.target_sparsity, c.draw, c.draw + 1)[0]
        return mask

    def _whole(self, state: _Replicate, key: npt.NDArray[np.uint64]) -> ScoringState:
        """The parent with its initial weights, to be scored."""
        lanes = dense_lanes(self.structure, [state.weights], self.device)
        return ScoringState(self._model, lanes, state.probe, lanes.flat, (key,))

    def _updates(self, jobs: Sequence[_Job], lanes: LaneStack) -> MaskUpdates | None:
        """What changes the masks of jobs that train together."""
        first, method = jobs[0].order.candidate, jobs[0].method
        if method is None or method.update is None:
            return None
        start, stop = self._span(first)
        replicates = [job.order.candidate.replicate for job in jobs]
        parents = {
            r: torch.cat([self._replicate(r).parent[name].flatten() for name in lanes.layout.names])
            for r in set(replicates)
        }
        return changes_masks(
            method,
            sparsities=[job.order.candidate.target_sparsity for job in jobs],
            steps=stop - start,
            model=self._model,
            lanes=lanes,
            initial=parents[first.replicate] if len(parents) == 1 else torch.stack([parents[r] for r in replicates]),
            cutter=self._cutter,
            seed=self.recipe.seed,
            replicates=replicates,
            probes=[self._replicate(r).probe for r in replicates],
        )

    def _pack(
        self,
        lanes: LaneStack,
        feeds: Sequence[Feed],
        steps: int,
        updates: MaskUpdates | None = None,
        *,
        lr_steps: int = 0,
        lr_offset: int = 0,
    ) -> Pack:
        """Lanes in training; `feeds` begin with their first step."""
        return Pack(
            self._model,
            lanes,
            [self.recipe.hyper] * len(lanes),
            replace(self.recipe.schedule, steps=steps, lr_steps=lr_steps, lr_offset=lr_offset),
            data=feeds,
            precision=self.recipe.precision,
            updates=updates,
        )

    def _train_together(self, jobs: Sequence[_Job], spent: list[float]) -> Iterator[list[tuple[_Job, Trained]]]:
        recipe = self.recipe
        began = perf_counter()
        replicates = [job.order.candidate.replicate for job in jobs]
        states = [self._replicate(replicate) for replicate in replicates]
        lanes, left = self._lanes(jobs)
        for job, remaining in zip(jobs, left, strict=True):
            job.remains = remaining
        scores = self._initial_scores(lanes, states)
        start, stop = self._span(jobs[0].order.candidate)
        method = jobs[0].method
        is_anew = jobs[0].order.candidate.start == "trained" and method is not None and method.lr == "rewound"
        rates = {
            "lr_steps": stop - start if is_anew else jobs[0].order.candidate.steps or recipe.schedule.steps,
            "lr_offset": 0 if is_anew else start,
        }
        feeds = self._feeds(replicates, start, stop)
        updates = self._updates(jobs, lanes)
        pack = self._pack(lanes, feeds, stop - start, updates, **rates)
        ranking = 0.0  # of each lane
        n_points = 0
        n_left = len(jobs)
        seconds = 0.0  # of one lane that is still in training: each interval is divided over the lanes it served
        for ended in pack.run():
            n_points += 1
            now = perf_counter()
            seconds += (now - began) / n_left
            began = now
            n_left -= len(ended)
            if updates is not None and method is not None:
                ranking = ranking_passes(method, len(states[0].probe), steps=stop - start, taken=pack.step)
            scored = n_points * len(states[0].validation) + len(states[0].probe)
            spent[0] = pack.step * recipe.schedule.batch_size + FORWARD_PASS * scored + ranking
            if not ended:
                yield []
                continue
            completed = [r for r in ended if r.outcome == "completed"]
            test: dict[int, tuple[float, float]] = {}
            if completed:
                final = LaneStack(lanes.layout, torch.stack([r.parameters for r in completed]), None)
                losses, errors = evaluate(self._model, final, self._test)
                test = {r.lane: (float(a), float(b)) for r, a, b in zip(completed, losses, errors, strict=True)}
            measured: list[dict[str, Any]] = []
            for replicate, members in itertools.groupby(ended, lambda result: replicates[result.lane]):
                some = list(members)
                of = jobs[some[0].lane].order.parent
                measured += self._measurer.columns(
                    self._model,
                    lanes,
                    some,
                    self._replicate(replicate).validation,
                    kind=recipe.mask_kind,
                    parent=None if of is None else partial(self._trained_parent, *of),
                )
            doubled = [i for i, r in enumerate(ended) if r.outcome == "completed" and jobs[r.lane].order.siblings]
            if doubled and stop > start:
                numbers = [ended[i].lane for i in doubled]
                again = lanes.select(numbers)
                feeds = self._feeds([replicates[i] for i in numbers], start, stop, "sibling_order")
                twins = self._pack(again, feeds, stop - start, None, **rates)
                compared = self._measurer.siblings(
                    [measured[i] for i in doubled],
                    self._model,
                    again,
                    [ended[i] for i in doubled],
                    twins,
                    [feed.validation for feed in feeds],
                )
                yield from ([] for _ in compared)
            rows: list[tuple[_Job, Trained]] = []
            for result, columns in zip(ended, measured, strict=True):
                job, i = jobs[result.lane], result.lane
                test_loss, test_error = test.get(i, (None, None))
                if result.mask is not None:
                    job.mask = result.mask.cpu().numpy()
                    job.remains = remains(self.structure, recipe.mask_kind, job.mask)
                bits = None if job.mask is None else pack_bits(job.mask).tobytes()
                digest = None if bits is None else mask_digest(bits)
                # Drawn again by its number, or stored already; any other mask is known here alone.
                c = job.order.candidate
                is_known = not c.control if c.draw is not None else digest == c.mask
                rows.append(
                    (
                        job,
                        Trained(
                            candidate=job.order.candidate,
                            outcome=result.outcome,
                            result=result,
                            mask_digest=digest,
                            remains=job.remains,
                            scores=scores[i],
                            test_loss=test_loss,
                            test_error=test_error,
                            passes=job.wasted_passes
                            + job.making_passes
                            + spent[0]
                            + (len(self._test) * FORWARD_PASS if i in test else 0),
                            seconds=job.wasted_s + seconds,
                            making_passes=job.making_passes,
                            ranking_passes=ranking,
                            derived=self._cut(job, result, lanes, states[i]),
                            mask_bits=None if is_known else bits,
                            checkpoint=self._save(job, result, lanes),
                            columns=columns,
                        ),
                    )
                )
            yield rows

    def _initial_scores(
        self, lanes: LaneStack, states: Sequence[_Replicate]
    ) -> list[tuple[float, float, float, float]]:
        """Scores of lanes before training, each on the probe of its replicate."""
        found: list[tuple[float, float, float, float]] = []
        for state, start, stop in runs(states):
            scores = score_lanes(self._model, lanes.part(start, stop), state.probe)
            columns = (scores.initial_loss, scores.scalefree_loss, scores.temperature, scores.logit_std)
            found += zip(*(column.tolist() for column in columns), strict=True)
        return found

    def _cut(self, job: _Job, result: LaneResult, lanes: LaneStack, state: _Replicate) -> tuple[DerivedMask, ...]:
        """Masks cut from a trained network."""
        if result.outcome != "completed":
            return ()
        i, kind, c = result.lane, self.recipe.mask_kind, job.order.candidate
        one = LaneStack(lanes.layout, result.parameters[None], None if lanes.keep is None else lanes.keep[i : i + 1])
        found: list[DerivedMask] = []
        for order in job.order.cuts:
            key = philox_key(self.recipe.seed, "prune", c.replicate, level_key(order.sparsity))
            scored = ScoringState(self._model, one, state.probe, lanes.flat[i : i + 1], (key,))
            cut = self._cutter.after_training(order.method, order.sparsity, scored, job.mask, later=order.later)
            bits = pack_bits(cut.mask).tobytes()
            left = remains(self.structure, kind, cut.mask)
            found.append(DerivedMask(order.arm, order.sparsity, bits, mask_digest(bits), left, cut.passes))
        return tuple(found)

    def _save(self, job: _Job, result: LaneResult, lanes: LaneStack) -> str | None:
        """Write a checkpoint of weights that others go on from, at their places in the parent; returns its name."""
        if not job.order.keeps_weights or result.outcome != "completed":
            return None
        if self._folder is None:
            raise CheckpointError("checkpoints: this workshop has no folder for them; name one in its settings")
        weights = {name: view[0] for name, view in lanes.layout.views(result.parameters[None]).items()}
        if self.recipe.mask_kind == "node" and job.mask is not None:
            weights = scatter_nodes(self.structure, job.mask, weights)
        arrays = {name: weight.cpu().numpy() for name, weight in weights.items()}
        return write_checkpoint(self._folder, {job.order.id: LaneState(result.steps, {WEIGHTS: arrays})})


def split_rows(recipe: Recipe, dataset: Dataset, replicate: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which examples of the training part a replicate trains and validates on: two (n,) int64."""
    parts = split(
        dataset,
        validation_fraction=recipe.validation_fraction,
        generator=generator(recipe.seed, "split", replicate),
    )
    return parts.train_indices, parts.validation_indices


def split_examples(recipe: Recipe, dataset: Dataset, replicate: int, device: torch.device) -> tuple[Examples, Examples]:
    """Training and validation examples of a replicate, on a device."""
    train, validation = (Examples.training(dataset, rows, device) for rows in split_rows(recipe, dataset, replicate))
    return train, validation


def lanes_at_once(n_params: int, n_activations: int, device: torch.device, *, n_inputs: int = 0) -> int:
    """How many lanes of a size to train together: what stays near a core's caches, or fits into a GPU's memory.

    Args:
        n_params: of a lane.
        n_activations: of a lane in a step.
        device: where they train.
        n_inputs: entries of a batch that each lane has of its own, targets among them.
    """
    # Parameters, gradient, two moments and a mask; activations forward and backward; a batch and what it is made of.
    lane_bytes = 4 * (5 * n_params + 3 * n_activations + 2 * n_inputs)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, int(free * _GPU_MEMORY_FRACTION) // lane_bytes)
    return max(1, _CPU_WORKING_SET_BYTES // lane_bytes)


#: Whether weights are drawn anew, the replicate, the parent's step and the level that they are of, and the network that
#: they come from.
_OriginKey = tuple[bool, int, int, int, str | None]


def _origin_of(c: Candidate) -> _OriginKey:
    """Which weights of the parent a masked candidate begins with."""
    is_fresh = c.start == "fresh" or (c.control != "" and CONTROLS[c.control].fresh_weights)
    # Drawn anew for every level: packs of weight masks have lanes of several.
    return is_fresh, c.replicate, c.rewind_step, c.level_key if is_fresh else 0, c.origin


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
