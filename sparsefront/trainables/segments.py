"""Where the candidates of a search are trained on one device, a segment of their steps at a time, failures included.

A segment begins at step 0 or at a checkpoint, and ends at a rung or with the training. What a lane's result is does
neither depend on the pack it travels in nor on how its training is divided into segments (float32, 1e-4).

A pruning chain is a training of several levels; a network that is pruned once, after its training, is one of two. Its
steps are counted through: level l ends at step (l + 1) x the steps of a level, and segments of it end there. A level
after the first (dense) one begins with the mask cut from the weights at the end of the level before, and with the
weights of its rewind step, those of all steps before it being skipped.

A mask that scores of the initial weights leave is cut before step 0, and travels in the checkpoints from then on: it is
paid for once, and no other rounding can make another one of it. So does a mask that changes in training, with all that
its next changes depend on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import CandidateFailed, CheckpointError, SparsefrontError
from sparsefront.spaces.masks import Mask, Remains, mask_digest, pack_bits, remains, remains_of, split_sections
from sparsefront.spaces.seeds import generator
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.checkpoints import WEIGHTS, LaneState, OnTheWay, read_checkpoint, write_checkpoint
from sparsefront.trainables.data import Dataset, n_used
from sparsefront.trainables.diagnostics import RealSize
from sparsefront.trainables.lanes import LaneStack, Layout, dense_lanes
from sparsefront.trainables.mask_updates import MaskUpdates
from sparsefront.trainables.measuring import Measurer, fresh_examples, is_out_of_memory, psnr_columns
from sparsefront.trainables.models import Model
from sparsefront.trainables.network import Architecture, Network, Scored
from sparsefront.trainables.networks import Built, Networks, pruning_key
from sparsefront.trainables.pack import Examples, Feed, LaneResult, Pack, batch_order, evaluate
from sparsefront.trainables.padding import Arrays, compact_weights, padded_layout, padded_rows, real_tensors, stack
from sparsefront.trainables.pruning.cutting import CutMask, Cutter, scatter_nodes
from sparsefront.trainables.pruning.during import changes_masks, ranking_passes
from sparsefront.trainables.pruning.registry import SCORES
from sparsefront.trainables.pruning.state import ScoringState
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import FORWARD_PASS, lanes_at_once, split_examples

#: Parameters, padded, of lanes that train together without padding: 15 to 30 times as much memory (1 to 2 GiB).
_RAGGED_ENTRIES = 1 << 24
#: Longest text of a failure that is kept.
_ERROR_CHARACTERS = 8000
#: Floating-point operations of a whole pass, for each multiply-accumulate: two forward, and twice as many backward.
_FLOPS_PER_MAC = 6.0
#: Parts of a chain's checkpoint: which entries its last level kept, and the weights that every level begins with. Of a
#: mask that changes in training, which entries it keeps; what else its updates go on from is beside the optimiser's.
_KEEP, _REWOUND = "keep", "rewound"
#: Part of the checkpoint of a candidate whose mask was cut from its initial weights, and of a chain of node masks (its
#: weights are those of the nodes that are left): the entries of the mask, 0 or 1, by this name.
_MASK, _ENTRIES = "mask", "entries"
#: Masks of initial weights that are kept: candidates that differ in their training alone have one.
_KEPT_MASKS = 256


@dataclass(frozen=True)
class LaneSpec:
    """One segment of one candidate: its settings, and the steps after which it begins and ends.

    With `keeps_mask` the bits of its mask are told of it, once it has completed: its controls need them.

    It goes on from the last good state there is: one that was left on the way, `checkpoint`, one of those `behind` it,
    or the beginning. `behind` are the ends of earlier segments, ascending and with the last one: (step, checkpoint,
    share of the training examples used on the way there, None for that of the settings). What has to be trained again
    is trained as it was.
    """

    id: str
    settings: Mapping[str, Any]
    start_step: int
    stop_step: int
    checkpoint: str | None = None
    behind: tuple[tuple[int, str | None, float | None], ...] = ()
    keeps_mask: bool = False


@dataclass(frozen=True)
class SegmentResult:
    """What became of one lane.

    Attributes:
        id: the candidate's.
        outcome: None if it reached the end of a segment that is not the last; else completed, diverged, failed or
            out_of_memory.
        steps: done since the beginning of the training; of a chain with those that rewinding skips.
        val_loss: validation loss at the end, nats; None if it never came to a validation point.
        val_error: validation error there.
        curve_step: steps at which validation was measured, those of earlier segments included.
        curve_val_loss: validation loss there.
        curve_val_error: validation error there.
        test_loss: of a completed candidate only; reported, never decided on.
        test_error: likewise.
        passes: examples passed forward and backward in this segment, and in attempts at it; a forward pass counts 1/3.
        flops: floating-point operations of those passes, each at the size that the network had then: scores of initial
            weights and the dense level of a chain at the parent's.
        seconds: wall time of the pack divided over its lanes.
        checkpoint: what the next segment goes on from; None unless `outcome` is.
        remains: what the mask leaves, exactly; of a chain that of the level it is in. None if the network could not be
            built.
        mask_kind: 'none', 'node' or 'weight'.
        mask_digest: of the packed bits; None without a mask.
        mask_bits: these bits, where they are kept; None where not.
        error: what failed, with traceback.
        columns: what was measured besides of a candidate that ended.
    """

    id: str
    outcome: str | None
    steps: int
    passes: float
    flops: float
    seconds: float
    val_loss: float | None = None
    val_error: float | None = None
    curve_step: list[int] = field(default_factory=list)
    curve_val_loss: list[float] = field(default_factory=list)
    curve_val_error: list[float] = field(default_factory=list)
    test_loss: float | None = None
    test_error: float | None = None
    checkpoint: str | None = None
    remains: Remains | None = None
    mask_kind: str = "none"
    mask_digest: str | None = None
    mask_bits: bytes | None = None
    error: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)  # a job is itself
class _Job:
    """One lane on its way through the shop.

    `mask` is that of the level that a chain is in, None for its dense one; of a mask that changes in training, the last
    that is known; and None of all others. What was spent
    earlier is that of packs that broke off, and that of the segment before a checkpoint on its way; what was made
    before is what it took to cut masks. `flops` are those of all passes so
    far: unlike passes they depend on the lane, and on its level. `saved_s` is when its state was saved last, on the
    clock of `perf_counter`.
    """

    spec: LaneSpec
    way: OnTheWay
    network: Network | None = None
    state: LaneState | None = None
    mask: Mask | None = None
    earlier_passes: float = 0.0
    earlier_s: float = 0.0
    making_passes: float = 0.0
    making_s: float = 0.0
    flops: float = 0.0
    saved_s: float = 0.0

    @property
    def before_passes(self) -> float:
        """Passes that were done for it before the pack it is in."""
        return self.earlier_passes + self.making_passes

    @property
    def before_s(self) -> float:
        """The same in seconds."""
        return self.earlier_s + self.making_s

    @property
    def start_step(self) -> int:
        return 0 if self.state is None else self.state.step

    def part(self, name: str) -> Mapping[str, npt.NDArray[np.float32]]:
        """One part of its state; nothing if there is none."""
        return {} if self.state is None else self.state.parts.get(name, {})

    def left(self) -> tuple[str, Mask | None, Remains]:
        """Kind of its mask, the mask, and what that leaves."""
        network = self.network
        assert network is not None
        if network.chain is None and network.changing is None:
            return network.mask_kind, network.mask, network.remains
        if self.mask is None:
            return "none", None, remains_of(network.structure, network.structure)
        return network.mask_kind, self.mask, remains(network.structure, network.mask_kind, self.mask)

    @property
    def current(self) -> Network:
        """What is trained of its network at the level that it is in."""
        assert self.network is not None
        return self.network.at_level(self.mask)

    def macs(self, since: int, step: int) -> float:
        """Multiply-accumulates of an example at its size in training, as the mean over steps `since` to `step`.

        Of weights that go in training they are taken to fall with the number of weights from the parent's, as in a
        study of masks. Nodes that come and go take the whole parent.
        """
        network = self.network
        assert network is not None
        changing = network.changing
        if changing is None:
            return self.left()[2].macs
        if network.mask_kind == "node":
            return network.structure.macs
        density = changing.method.mean_density(changing.sparsity, steps=network.steps, taken=step, since=since)
        share = (density - (1 - changing.sparsity)) / changing.sparsity
        return network.macs + (network.structure.macs - network.macs) * share

    def ranking_flops(self, n_examples: int, since: int, step: int) -> float:
        """Of the passes that ranked what is left from step `since` to `step`, each at the size that was ranked."""
        network = self.network
        assert network is not None
        if network.changing is None:
            return 0.0
        method = network.changing.method
        each = SCORES[method.score].passes_at_update(n_examples)
        ranked = method.rankings(network.steps, taken=step, since=since) if each else ()
        return _FLOPS_PER_MAC * each * sum(self.macs(at, at + 1) for at in ranked)


@dataclass
class _Spent:
    """Passes and seconds of one lane that is still in training."""

    passes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Leg:
    """A stretch of a segment within one training: of level `level`, from its step `start` to its step `stop`."""

    level: int
    start: int
    stop: int
    data_fraction: float | None = None


class SegmentShop:
    """Trains candidates of one recipe's search on one device."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: torch.device,
        checkpoint_dir: Path,
        *,
        checkpoint_every_s: float = math.inf,
    ) -> None:
        """Prepare for any number of packs.

        Args:
            recipe: how candidates are made.
            dataset: what they are trained on.
            device: where.
            checkpoint_dir: folder that all workers share.
            checkpoint_every_s: time after which a lane that trains alone leaves a checkpoint at the next validation
                point, or the next level if it is a chain.
        """
        self.recipe, self.device = recipe, device
        self._checkpoint_every_s = checkpoint_every_s
        self.networks = Networks.of(recipe, dataset)
        self._dataset, self._folder = dataset, checkpoint_dir
        self._test = Examples.test(dataset, device)
        self._measurer = Measurer(
            recipe.quality,
            recipe.seed,
            self._test,
            validated=recipe.validated,
            is_search=True,
            fresh=fresh_examples(recipe.fresh, dataset, device),
        )
        self._examples = lru_cache(maxsize=4)(self._split)
        self._order = lru_cache(maxsize=4)(self._make_order)
        self._scored = lru_cache(maxsize=_KEPT_MASKS)(self._cut_initial)
        self._probe = lru_cache(maxsize=4)(self._make_probe)

    def _split(self, replicate: int) -> tuple[Examples, Examples]:
        return split_examples(self.recipe, self._dataset, replicate, self.device)

    def _make_order(self, replicate: int, batch_size: int, data_fraction: float, steps: int) -> torch.Tensor:
        """Indices of the batches of the first `steps` steps: (steps, batch) int64.

        Of the data, the first ``ceil(fraction x n)`` examples of a permutation are used that is the replicate's own, so
        that a larger fraction holds the smaller ones.
        """
        used = self._used(replicate, data_fraction)
        order = used[batch_order(len(used), batch_size, steps, generator(self.recipe.seed, "order", replicate))]
        return torch.from_numpy(order).to(self.device)

    def _used(self, replicate: int, data_fraction: float) -> npt.NDArray[np.int64]:
        """Which training examples a candidate sees, ascending."""
        n_train = len(self._examples(replicate)[0])
        used: npt.NDArray[np.int64] = np.sort(
            generator(self.recipe.seed, "fraction", replicate).permutation(n_train)[: n_used(data_fraction, n_train)]
        )
        return used

    def train(
        self, lanes: Sequence[LaneSpec], replicate: int, padded: Sequence[tuple[int, ...]] | None = None
    ) -> Iterator[list[SegmentResult]]:
        """Train lanes of one replicate to the end of their segments; yields at every validation point those that ended.

        Whatever a candidate does (diverge, raise, exhaust memory), its neighbours' results are the same: a pack that
        breaks is halved until the culprit is alone.

        Args:
            lanes: best of one group, with one start and one stop: others are trained one group after the other.
            replicate: index of (data split, initial weights, data order).
            padded: shape of each tensor of the pack (`Network.shape.tensors`); None for the smallest that fits.

        Raises:
            CheckpointError: a checkpoint cannot be written: the machine's failure, not the candidates'.
        """
        jobs = [_Job(spec, OnTheWay(self._folder, spec.id, spec.stop_step)) for spec in lanes]
        yield self._describe(jobs, replicate)
        self._restore(jobs)
        for job in jobs:
            if job.network is not None and job.network.scored is not None:
                yield self._cut_first(job)
        groups = self._groups([job for job in jobs if job.network is not None], padded)
        while groups:
            jobs = groups.pop(0)
            waiting = {id(job): job for job in jobs}
            began = perf_counter()
            spent = _Spent()
            try:
                for ended in self._train_together(jobs, padded, spent):
                    for job, _ in ended:
                        waiting.pop(id(job), None)
                    yield [result for _, result in ended]
            except CheckpointError:
                raise
            except Exception as error:  # the candidate boundary: user code or the device failed, which is data
                left = list(waiting.values())
                for job in left:
                    job.earlier_passes += spent.passes
                    job.earlier_s += (perf_counter() - began) / len(jobs)
                if len(left) == 1:
                    yield [_broken(left[0], error)]
                elif left:
                    middle = (len(left) + 1) // 2
                    groups[:0] = [left[:middle], left[middle:]]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _describe(self, jobs: Sequence[_Job], replicate: int) -> list[SegmentResult]:
        """Describe what every lane is; returns those that are no network."""
        broken: list[SegmentResult] = []
        for job in jobs:
            try:
                job.network = self.networks.describe(replicate, job.spec.settings)
            except Exception as error:  # the candidate boundary, as in `train`
                broken.append(_broken(job, error))
        return broken

    def _restore(self, jobs: Sequence[_Job]) -> None:
        """Give every lane the last good state it has; one whose states are lost, or are not its own, begins anew."""
        waiting = [job for job in jobs if job.network is not None]
        for n_back in itertools.count():
            by_name: dict[str, list[_Job]] = {}
            waiting = [job for job in waiting if job.state is None and n_back < len(_ends_behind(job.spec))]
            if not waiting:
                break
            for job in waiting:
                name = _ends_behind(job.spec)[n_back][1]
                if name is not None:
                    by_name.setdefault(name, []).append(job)
            for name, resumed in by_name.items():
                try:
                    states = read_checkpoint(self._folder, name, [job.spec.id for job in resumed])
                except CheckpointError:
                    continue
                for job in resumed:
                    assert job.network is not None
                    state = states[job.spec.id]
                    if state.step == _ends_behind(job.spec)[n_back][0] and _fits(job.network, state):
                        job.state = state
        if OnTheWay.exist(self._folder):
            for job in jobs:
                if job.network is not None:
                    self._restore_on_the_way(job)

    def _restore_on_the_way(self, job: _Job) -> None:
        """Go on from further on, if it was left on the way to the same end: maybe where its segment had begun anew."""
        assert job.network is not None
        for state in job.way.states():
            if job.start_step < state.step < job.spec.stop_step and _fits(job.network, state):
                job.state, job.earlier_passes, job.earlier_s = state, state.passes, state.seconds
                job.flops = state.flops
                break

    def _cut_first(self, job: _Job) -> list[SegmentResult]:
        """Give a network the mask that its initial weights are to have; returns it if that cannot be."""
        began = perf_counter()
        network = job.network
        assert network is not None
        try:
            if _ENTRIES in job.part(_MASK):
                job.network = network.with_mask(job.part(_MASK)[_ENTRIES] > 0)
            else:
                assert network.scored is not None
                # On the examples of the first segment, also where that is trained again.
                fraction = next((f for _, f in _to_repeat(job) if f is not None), network.data_fraction)
                cut = self._scored(network.architecture, network.replicate, network.mask_kind, network.scored, fraction)
                job.network = network.with_mask(cut.mask)
                # Every candidate pays for its own, whoever else has the same.
                job.making_passes = cut.passes
                job.flops += _FLOPS_PER_MAC * network.structure.macs * cut.passes  # the parent is scored
            job.making_s = perf_counter() - began
        except Exception as error:  # the candidate boundary, as in `train`
            job.network, job.making_s = None, perf_counter() - began
            return [_broken(job, error)]
        return []

    def _cut_initial(
        self, arch: Architecture, replicate: int, kind: str, scored: Scored, data_fraction: float
    ) -> CutMask:
        seed = self.recipe.seed
        model, weights = self.networks.parent(arch, replicate)
        lanes = dense_lanes(model.structure, [weights], self.device)
        key = pruning_key(seed, replicate, scored.sparsity, scored.draw)
        state = ScoringState(model, lanes, self._probe(replicate, data_fraction), lanes.flat, (key,))
        cutter = Cutter(model.structure, kind, self.recipe.allocation)
        return cutter.at_init(scored.method, scored.sparsity, state)

    def _make_probe(self, replicate: int, data_fraction: float) -> Examples:
        """The examples that masks are scored on: some of those that are trained on."""
        used = self._used(replicate, data_fraction)
        chosen = used[generator(self.recipe.seed, "probe", replicate).permutation(len(used))[: self.recipe.probe_size]]
        return self._examples(replicate)[0].select(torch.from_numpy(chosen).to(self.device))

    def _groups(self, jobs: Sequence[_Job], padded: Sequence[tuple[int, ...]] | None) -> list[list[_Job]]:
        """Jobs that train together: of one group, start and stop, and as many as the device takes.

        Where learning rates change, trainings are of one length; how they change is each lane's own. Chains have one
        rewind step, too, and levels of one length. Where segments are trained again, they are the same ones.
        """
        has_rates = self.recipe.schedule.has_rates or any(
            job.network.hyper.has_own_rates for job in jobs if job.network is not None
        )
        classes: dict[tuple[Any, ...], list[_Job]] = {}
        for job in jobs:
            assert job.network is not None
            stop = min(job.spec.stop_step, job.network.steps)
            chain = job.network.chain
            rates = job.network.level_steps if has_rates else 0
            kind: tuple[Any, ...] = ()
            if chain is not None:
                ends_early = chain.given is not None
                kind = (chain.level_steps, chain.rewind_step, chain.goes_on, chain.lr_offset, ends_early)
            key = (job.network.shape.group, job.start_step, stop, rates, *kind, _to_repeat(job))
            classes.setdefault(key, []).append(job)
        groups: list[list[_Job]] = []
        for members in classes.values():
            at_once = self.recipe.lanes_at_once or self._lanes_at_once(members, padded)
            n_parts = -(-len(members) // at_once)
            edges = [round(i * len(members) / n_parts) for i in range(n_parts + 1)]
            groups += [members[a:b] for a, b in itertools.pairwise(edges)]
        return groups

    def _lanes_at_once(self, jobs: Sequence[_Job], padded: Sequence[tuple[int, ...]] | None) -> int:
        networks = [job.network for job in jobs if job.network is not None]
        layout = padded_layout(networks, padded)
        if self.device.type == "cpu" and networks[0].shape.ragged:  # divided by what a core's caches hold as they train
            return max(1, _RAGGED_ENTRIES // layout.width)
        positions = networks[0].shape.positions
        n_outputs = sum(shape[0] * n for shape, n in zip(layout.shapes, positions, strict=True))
        return lanes_at_once(layout.width, networks[0].batch_size * n_outputs, self.device)

    def _train_together(
        self, jobs: Sequence[_Job], padded: Sequence[tuple[int, ...]] | None, spent: _Spent
    ) -> Iterator[list[tuple[_Job, SegmentResult]]]:
        first = jobs[0].network
        assert first is not None
        legs = _legs(first, jobs[0].start_step, min(jobs[0].spec.stop_step, first.steps), _to_repeat(jobs[0]))
        for job in jobs:
            job.saved_s = perf_counter()
        for leg in legs:
            jobs = yield from self._train_leg(jobs, leg, padded, spent, is_last=leg is legs[-1])
            if len(jobs) == 1 and jobs[0].state is not None and self._is_due(jobs[0]):
                self._save_on_the_way(jobs[0], jobs[0].state, spent)

    def _is_due(self, job: _Job) -> bool:
        return perf_counter() - job.saved_s >= self._checkpoint_every_s

    def _save_on_the_way(self, job: _Job, state: LaneState, spent: _Spent) -> None:
        """Leave a checkpoint that a segment which is cut off goes on from, with what it has cost by then."""
        passes, seconds = job.before_passes + spent.passes, job.before_s + spent.seconds
        # The training does not need it: where there is no room for it, it goes on without.
        with contextlib.suppress(CheckpointError):
            job.way.write(replace(state, passes=passes, flops=job.flops, seconds=seconds))
        job.saved_s = perf_counter()

    def _train_leg(
        self, jobs: Sequence[_Job], leg: _Leg, padded: Sequence[tuple[int, ...]] | None, spent: _Spent, *, is_last: bool
    ) -> Generator[list[tuple[_Job, SegmentResult]], None, list[_Job]]:
        """Train lanes through one leg; returns those that go on, in the state that they go on from."""
        if not jobs:
            return []
        began = perf_counter()
        networks = [job.network for job in jobs if job.network is not None]
        first = networks[0]
        stop = leg.level * first.level_steps + leg.stop
        train, validation = self._examples(first.replicate)
        fraction = leg.data_fraction or first.data_fraction
        # The first level goes on where it was; later ones begin anew, at a later step of the same batches and rates.
        n_skipped = leg.start if leg.level else 0
        offset = leg.level * first.level_steps + n_skipped
        # Where weights go on, so do the batches, as they do in a study of masks: with those after the dense training.
        is_going_on = leg.level > 0 and first.chain is not None and first.chain.goes_on
        n_before = first.level_steps if is_going_on else n_skipped
        n_steps = leg.stop - n_skipped
        probe = self._probe(first.replicate, fraction) if first.changing is not None else None
        built = [self._begin(job, leg) for job in jobs]
        networks = [job.current for job in jobs]
        if leg.level and first.mask_kind == "node":  # what is left of them is far below what they began with
            padded = None
        lanes = stack(networks, [each.weights for each in built], [each.keep for each in built], padded, self.device)
        model = self.networks.model(first)
        shapes = self._real_shapes(networks) if train.images is None else None
        pack = Pack(
            model,
            lanes,
            [network.hyper for network in networks],
            replace(
                self.recipe.schedule,
                optimizer=first.optimizer,
                steps=n_steps,
                batch_size=first.batch_size,
                lr_steps=first.level_steps,
                lr_offset=first.chain.lr_offset if is_going_on and first.chain is not None else n_skipped,
            ),
            data=Feed(
                train,
                validation,
                self._order(first.replicate, first.batch_size, fraction, n_before + n_steps)[n_before:],
            ),
            precision=first.precision,
            start_step=leg.start - n_skipped,
            slots={} if leg.level else self._slots(jobs, lanes.layout),
            updates=None if probe is None else self._updates(jobs, model, lanes, probe),
            real=shapes,
        )
        before, start = spent.passes, pack.step
        counted, measured_at, ranking = before, start, 0.0
        flops_of_pass = [_FLOPS_PER_MAC * job.macs(start, pack.step) for job in jobs]
        parents = [network.structure for network in networks]
        real = [
            RealSize(network.shape.tensors, parent.n_weights, parent.n_params, parent.macs)
            for network, parent in zip(networks, parents, strict=True)
        ]
        n_left = len(jobs)
        going_on: list[_Job] = []
        for n_points, ended in enumerate(pack.run(), start=1):
            passes = before + (pack.step - start) * first.batch_size + FORWARD_PASS * n_points * len(validation)
            if first.changing is not None and probe is not None:
                flops_of_pass = [_FLOPS_PER_MAC * job.macs(measured_at, pack.step) for job in jobs]
                ranking = ranking_passes(
                    first.changing.method, len(probe), steps=first.steps, taken=pack.step, since=start
                )
                for job in jobs:
                    job.flops += job.ranking_flops(len(probe), measured_at, pack.step)
            for job, flops in zip(jobs, flops_of_pass, strict=True):  # a lane that has ended is not asked again
                job.flops += flops * (passes - counted)
            counted, measured_at, spent.passes = passes, pack.step, passes + ranking
            for r in ended:
                if r.mask is not None:
                    jobs[r.lane].mask = r.mask.cpu().numpy()
            completed = [r for r in ended if r.outcome == "completed"]
            staying = [] if is_last else completed
            if staying:
                ended, completed = [r for r in ended if r.outcome != "completed"], []
            finished = [r for r in completed if networks[r.lane].steps <= stop]
            pausing = [r for r in completed if networks[r.lane].steps > stop]
            test: dict[int, tuple[float, float]] = {}
            if finished:
                final = LaneStack(lanes.layout, torch.stack([r.parameters for r in finished]), None)
                own = None if shapes is None else [shapes[r.lane] for r in finished]
                losses, errors = evaluate(model, final, self._test, own)
                test = {r.lane: (float(a), float(b)) for r, a, b in zip(finished, losses, errors, strict=True)}
            states = {jobs[r.lane].spec.id: _state(jobs[r.lane], r, leg, lanes.layout, offset) for r in pausing}
            checkpoint = write_checkpoint(self._folder, states) if pausing else None
            now = perf_counter()
            spent.seconds += (now - began) / n_left  # each interval is divided over the lanes it served
            began = now
            n_left -= len(ended)
            if len(jobs) == 1 and first.chain is None and n_left and not staying and self._is_due(jobs[0]):
                (going,) = pack.paused()
                self._save_on_the_way(jobs[0], _state(jobs[0], going, leg, lanes.layout, offset), spent)
            paused = {r.lane for r in pausing}
            over = [r for r in ended if r.lane not in paused]
            measured: list[dict[str, Any]] = []
            if over and first.changing is not None:  # at the parent's size
                measured = self._measurer.columns(model, lanes, over, validation, kind=first.mask_kind)
            elif over:
                measured = self._measurer.columns(model, lanes, over, validation, real=real)
            columns = {r.lane: found for r, found in zip(over, measured, strict=True)}
            if validation.images is not None:  # what rungs may compare by
                columns |= {r.lane: psnr_columns("val", r.val_squared_errors) for r in pausing}
            rows: list[tuple[_Job, SegmentResult]] = []
            for r in ended:
                job = jobs[r.lane]
                kind, mask, left = job.left()
                bits = None if mask is None else pack_bits(mask).tobytes()
                is_kept = job.spec.keeps_mask and r.lane in test
                test_loss, test_error = test.get(r.lane, (None, None))
                curve = _curve(job.state, r, offset)
                ending = 0.0
                if r.lane in test:
                    ending = len(self._test) * FORWARD_PASS + self._measurer.search_passes(len(validation))
                rows.append(
                    (
                        job,
                        SegmentResult(
                            id=job.spec.id,
                            outcome=None if r.lane in paused else r.outcome,
                            steps=curve.step,
                            val_loss=r.val_loss,
                            val_error=r.val_error,
                            curve_step=curve.curve_step,
                            curve_val_loss=curve.curve_val_loss,
                            curve_val_error=curve.curve_val_error,
                            test_loss=test_loss,
                            test_error=test_error,
                            passes=job.before_passes + spent.passes + ending,
                            flops=job.flops + flops_of_pass[r.lane] * ending,
                            seconds=job.before_s + spent.seconds,
                            checkpoint=checkpoint if r.lane in paused else None,
                            remains=left,
                            mask_kind=kind,
                            mask_digest=None if bits is None else mask_digest(bits),
                            mask_bits=bits if is_kept else None,
                            columns=columns.get(r.lane, {}),
                        ),
                    )
                )
            yield rows
            # All at once and last: should anything have failed until here, the pack trains this leg again as it was.
            reached = [_state(jobs[r.lane], r, leg, lanes.layout, offset) for r in staying]
            going_on = [jobs[r.lane] for r in staying]
            for job, state in zip(going_on, reached, strict=True):
                job.state = state
        return going_on

    def _updates(self, jobs: Sequence[_Job], model: Model, lanes: LaneStack, probe: Examples) -> MaskUpdates:
        """What changes the masks of jobs that train together."""
        networks = [job.network for job in jobs if job.network is not None]
        first = networks[0]
        assert first.changing is not None
        parents = [self.networks.initial(n.architecture, n.replicate) for n in networks]
        return changes_masks(
            first.changing.method,
            sparsities=[n.changing.sparsity for n in networks if n.changing is not None],
            steps=first.steps,
            model=model,
            lanes=lanes,
            initial=dense_lanes(first.structure, parents, self.device).flat,
            cutter=Cutter(first.structure, first.mask_kind, self.recipe.allocation),
            seed=self.recipe.seed,
            replicates=[n.replicate for n in networks],
            probes=[probe] * len(networks),
        )

    def _real_shapes(self, networks: Sequence[Network]) -> list[dict[str, tuple[int, ...]]] | None:
        """What `Pack` needs to train without padding: where that can be, it is so, whatever the pack."""
        if self.device.type != "cpu" or not networks[0].shape.ragged:
            return None
        return [{t.name: t.shape for t in network.compact.tensors} for network in networks]

    def _begin(self, job: _Job, leg: _Leg) -> Built:
        """What a lane goes on from; a chain's level after the first one from the weights and the mask that it has."""
        network = job.network
        assert network is not None
        there = job.part(WEIGHTS)
        if not leg.level and all(t.name in there for t in network.compact.tensors):
            return Built(there, self.networks.keep(network))
        built = self.networks.build(network)
        if not leg.level:
            return Built({**built.weights, **there}, built.keep)
        assert network.chain is not None
        had, weights = self._reached(job, built.weights)
        origin: Arrays = {**built.weights, **job.part(_REWOUND)}
        # The dense level had begun with the initial weights, whatever the others rewind to.
        start = built.weights if leg.level == 1 else origin
        given = network.chain.given
        job.mask = self._cut(job, had, weights, start, leg.level) if given is None else given
        if network.chain.goes_on:
            origin = weights if had is None else _scattered(network.structure, had, weights)
        parts = split_sections(network.structure, network.mask_kind, job.mask)
        if network.mask_kind == "node":
            return Built(compact_weights(network.structure, origin, parts), {})
        keep = {
            t.name: part.reshape(t.shape).astype(np.float32)
            for t, part in zip(network.structure.prunable, parts, strict=True)
        }
        return Built({name: w * keep[name] if name in keep else w for name, w in origin.items()}, keep)

    def _reached(self, job: _Job, parent: Arrays) -> tuple[Mask | None, Arrays]:
        """What a chain's last level left: the mask, if nodes are gone with their weights, and weights at real size.

        `parent` are the initial weights, of which some may never be trained.
        """
        network, there = job.network, job.part(_MASK)
        assert network is not None
        if _ENTRIES not in there:
            return None, {**parent, **job.part(WEIGHTS)}
        had: Mask = there[_ENTRIES] > 0
        parts = split_sections(network.structure, "node", had)
        return had, {**compact_weights(network.structure, parent, parts), **job.part(WEIGHTS)}

    def _cut(self, job: _Job, had: Mask | None, weights: Arrays, start: Arrays, level: int) -> Mask:
        """The mask of a level, from what the one before left (see `_reached`) and what that had begun with.

        Scoring is charged to the candidate, at the size that was scored.
        """
        network = job.network
        assert network is not None
        assert network.chain is not None
        structure, chain, before = network.at_level(had).compact, network.chain, had
        if had is not None:
            start = compact_weights(network.structure, start, split_sections(network.structure, "node", had))
        lanes, began = (dense_lanes(structure, [each], self.device) for each in (weights, start))
        if job.part(_KEEP):
            kept = {**{name: np.ones_like(w) for name, w in weights.items()}, **job.part(_KEEP)}
            lanes = replace(lanes, keep=dense_lanes(structure, [kept], self.device).flat)
            before = np.concatenate([kept[t.name].reshape(-1) for t in structure.prunable]) > 0
        sparsity, *later = chain.sparsities[level:]
        reads_examples = "examples" in SCORES[chain.method.score].needs
        # Only a module of their own sizes runs weights that are not padded.
        model = self.networks.parent(network.architecture, network.replicate)[0] if reads_examples else None
        state = ScoringState(
            replace(model or self.networks.model(network), structure=structure),
            lanes,
            self._probe(network.replicate, network.data_fraction) if reads_examples else None,
            began.flat,
            (pruning_key(self.recipe.seed, network.replicate, sparsity),),
        )
        cutter = Cutter(network.structure, network.mask_kind, self.recipe.allocation)
        cut = cutter.after_training(chain.method, sparsity, state, before, later=later)
        job.making_passes += cut.passes
        macs = structure.macs if before is None else remains(network.structure, network.mask_kind, before).macs
        job.flops += _FLOPS_PER_MAC * macs * cut.passes
        return cut.mask

    def _slots(self, jobs: Sequence[_Job], layout: Layout) -> dict[str, torch.Tensor]:
        """The optimiser's state of a pack that goes on, (L, trained part of P) by name."""
        names = {part for job in jobs if job.state is not None for part in job.state.parts}
        names -= {WEIGHTS, _REWOUND, _MASK}
        return {
            part: torch.from_numpy(
                padded_rows(layout, [{} if job.state is None else job.state.parts.get(part, {}) for job in jobs])
            )[:, : layout.trained_width].to(self.device)
            for part in sorted(names)
        }


def _ends_behind(spec: LaneSpec) -> list[tuple[int, str | None]]:
    """Steps where earlier segments ended, and the checkpoints there, the last one first."""
    ends = [(step, name) for step, name, _ in reversed(spec.behind)]
    return list(dict.fromkeys([(spec.start_step, spec.checkpoint), *ends]))


def _to_repeat(job: _Job) -> tuple[tuple[int, float | None], ...]:
    """Ends of the segments that a lane trains again before its own, and the share of the examples used in each."""
    return tuple((step, fraction) for step, _, fraction in job.spec.behind if step > job.start_step)


def _legs(network: Network, start: int, stop: int, repeated: Sequence[tuple[int, float | None]] = ()) -> list[_Leg]:
    """The stretches of a segment: one, but for what is trained again before it, and for a chain one for each level.

    The first level is divided where the weights lie that later ones rewind to.
    """
    chain = network.chain
    legs: list[_Leg] = []
    if chain is None:
        for end, fraction in (*repeated, (stop, None)):
            legs.append(_Leg(0, start, end, fraction))
            start = end
        return legs
    length, rewind = chain.level_steps, chain.rewind_step
    while start < stop:
        level, done = divmod(start, length)
        if chain.given is not None and not level and done == rewind > 0:  # its mask is not cut from what comes then
            start = length
            continue
        end = rewind if not level and done < rewind else length
        legs.append(_Leg(level, rewind if level else done, end))
        start = level * length + end
    return legs


def _parts_at(network: Network, step: int) -> set[str]:
    """Parts that the state of a lane needs after so many steps."""
    parts = {WEIGHTS} if network.scored is None else {WEIGHTS, _MASK}
    chain = network.chain
    if network.changing is not None and step:
        parts.add(_KEEP)
    if chain is not None and chain.rewind_step:
        parts.add(_REWOUND)
    if chain is not None and step > chain.level_steps:
        parts.add(_MASK if network.mask_kind == "node" else _KEEP)
    return parts


def _fits(network: Network, state: LaneState) -> bool:
    """Whether a state has what its lane needs after so many steps, each tensor at its size."""
    if not _parts_at(network, state.step) <= state.parts.keys():
        return False
    current = network
    if _MASK in state.parts:
        n_entries = sum(network.structure.section_sizes(network.mask_kind))
        if {name: a.shape for name, a in state.parts[_MASK].items()} != {_ENTRIES: (n_entries,)}:
            return False
        if network.chain is not None:
            current = network.at_level(state.parts[_MASK][_ENTRIES] > 0)

    def has(part: str, structure: Structure) -> bool:
        return {n: a.shape for n, a in state.parts[part].items()} == {
            t.name: t.shape for t in structure.tensors if t.trained
        }

    others = state.parts.keys() - {_MASK, _REWOUND}
    return all(has(part, current.compact) for part in others) and (
        _REWOUND not in state.parts or has(_REWOUND, network.compact)
    )


def _scattered(structure: Structure, mask: Mask, compact: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """Weights of a compact network at their places in the parent's, zeros elsewhere."""
    whole = scatter_nodes(structure, mask, {name: torch.from_numpy(w) for name, w in compact.items()})
    return {name: w.numpy() for name, w in whole.items()}


def _state(job: _Job, result: LaneResult, leg: _Leg, layout: Layout, offset: int) -> LaneState:
    """What a lane goes on from after a leg."""
    network = job.network
    assert network is not None
    chain = network.chain
    is_level = chain is not None and leg.stop == chain.level_steps  # the next one has an optimiser of its own
    rows = {WEIGHTS: result.parameters} if is_level else {WEIGHTS: result.parameters, **result.slots}
    parts: dict[str, Arrays] = {
        part: real_tensors(layout, job.current, row.cpu().numpy()) for part, row in rows.items()
    }
    if chain is not None and chain.rewind_step:
        is_there = not leg.level and leg.stop == chain.rewind_step
        parts[_REWOUND] = parts[WEIGHTS] if is_there else job.part(_REWOUND)
    if network.scored is not None and network.mask is not None:
        parts[_MASK] = {_ENTRIES: network.mask.astype(np.float32)}
    if chain is None or job.mask is None:
        return _curve(job.state, result, offset, parts)
    if network.mask_kind == "node":
        parts[_MASK] = {_ENTRIES: job.mask.astype(np.float32)}
    else:
        ones = {name: np.ones_like(w) for name, w in parts[WEIGHTS].items()}
        sections = split_sections(network.structure, "weight", job.mask)
        parts[_KEEP] = ones | {
            t.name: part.reshape(t.shape).astype(np.float32)
            for t, part in zip(network.structure.prunable, sections, strict=True)
        }
    return _curve(job.state, result, offset, parts)


def _curve(
    before: LaneState | None, result: LaneResult, offset: int, parts: Mapping[str, Mapping[str, Any]] | None = None
) -> LaneState:
    """Where a lane stands, its curves joined to those of earlier segments; the pack's steps come after `offset`."""
    before = before or LaneState(0, {})
    return LaneState(
        step=offset + result.steps,
        parts=parts or {},
        curve_step=before.curve_step + [offset + step for step in result.curve_step],
        curve_val_loss=before.curve_val_loss + result.curve_val_loss,
        curve_val_error=before.curve_val_error + result.curve_val_error,
    )


def _broken(job: _Job, error: Exception) -> SegmentResult:
    """A candidate that could not be built or trained."""
    refused = isinstance(error, CandidateFailed | SparsefrontError)
    text = str(error) if refused else "".join(traceback.format_exception(error))
    return SegmentResult(
        id=job.spec.id,
        outcome="out_of_memory" if is_out_of_memory(error) else "failed",
        steps=job.start_step,
        passes=job.before_passes,
        flops=job.flops,
        seconds=job.before_s,
        error=text[-_ERROR_CHARACTERS:],
    )
