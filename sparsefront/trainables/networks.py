"""Networks of a search: what the settings of a candidate describe, and its initial weights.

A candidate's settings are study keys over the defaults of the recipe: `model.*` are options of the family, `masks.*`
(method, kind, pattern, sparsity, allocation, shares, bits, draw; of a method what `METHOD_FIELDS` names) say what is
removed, `training.*` how it is trained. Describing a candidate needs neither torch nor, with counts that the allocation
fixes, its mask.

A control (`sparsefront.spaces.controls`) has the settings of the candidate that it is held against, with
`masks.control`, its kind, and `masks.bits`, the mask that the other came to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from sparsefront.errors import ConfigError, SpaceError, nearest
from sparsefront.spaces.allocations import ALLOCATIONS, kept_counts
from sparsefront.spaces.allocations.registry import kept_count
from sparsefront.spaces.candidate import canonical_json, level_key
from sparsefront.spaces.controls import CONTROLS, control_key, fresh_weights_key, small_dense
from sparsefront.spaces.masks import (
    Mask,
    mask_digest,
    pack_bits,
    remains,
    split_sections,
    unpack_bits,
)
from sparsefront.spaces.patterns import Pattern, drawn_counts, parse_pattern
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.schedules import geometric
from sparsefront.spaces.seeds import generator, philox_key
from sparsefront.spaces.shape import Shape
from sparsefront.spaces.shares import counts_from_shares
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.data import Dataset, held_out_counts, n_used
from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.mask_updates import UPDATES, full_size_lanes
from sparsefront.trainables.models import Model, Options, SizedFamily, initial_weights, model_family
from sparsefront.trainables.network import Architecture, Chain, Changing, Controlled, Key, Network, Scored, shapes_of
from sparsefront.trainables.optimizers import OPTIMIZERS, Hyperparameters
from sparsefront.trainables.padding import Arrays, compact_weights
from sparsefront.trainables.pruning.cutting import Cutter
from sparsefront.trainables.rates import RATE_SCHEDULES
from sparsefront.trainables.recipe import PRECISIONS, Recipe

#: The allocation whose densities come with the candidate.
SEARCHED = "searched"
#: What a candidate names as the method of its mask where that is drawn, whatever method the recipe has.
DRAWN = "random"

#: What `masks.*` of a candidate may be, those of a chain aside.
_MASK_KEYS = ("kind", "pattern", "sparsity", "allocation", "shares", "bits", "draw")
#: Architectures whose description is kept; parents whose initial weights are kept; modules for packs.
_KEPT_ARCHITECTURES, _KEPT_PARENTS, _KEPT_MODULES = 4096, 8, 64

_HYPERPARAMETERS = tuple(f.name for f in fields(Hyperparameters))

#: Fields of its method that a candidate may set, if the method reads them: those of masks that change in training, and
#: all of them.
SCHEDULE_FIELDS = ("begin_fraction", "end_fraction", "every", "power", "drop_fraction")
METHOD_FIELDS = ("rate", "ap_fraction", "rewind_fraction", "score", *SCHEDULE_FIELDS)


class _Data(TypedDict):
    """What a family has to know of the data."""

    input_shape: tuple[int, ...]
    n_classes: int


class _Skeleton(NamedTuple):
    """What all architectures of a group have in common; see `Architecture`."""

    options: Options
    structure: Structure
    layout: Layout
    positions: tuple[int, ...]
    group: str
    is_perceptron: bool


@dataclass(frozen=True)
class DrawnMask:
    """All that a random mask of a structure depends on, but for the study's seed and the replicate.

    Attributes:
        pattern: which entries may be kept together; its `kind` is that of the mask.
        sparsity: that its random numbers are drawn for.
        kept: survivors of each section, or one number over all.
        number: of the draw.
    """

    pattern: Pattern
    sparsity: float
    kept: tuple[int, ...]
    number: int

    def draw(self, structure: Structure, seed: int, replicate: int) -> Mask:
        """The mask of one replicate, flat over the parent's sections."""
        counts = self.counts(structure, seed, replicate)
        key, number = self._key(seed, replicate), self.number
        mask: Mask = self.pattern.draw(structure, counts, key, start=number, stop=number + 1)[0]
        return mask

    def counts(self, structure: Structure, seed: int, replicate: int) -> tuple[int, ...]:
        """Survivors of each section, or one number where only the whole mask tells how single entries divide it."""
        if len(self.kept) == len(structure.section_sizes(self.pattern.kind)):
            return self.kept
        return drawn_counts(self.pattern, structure, self.kept, self._key(seed, replicate), number=self.number)

    def _key(self, seed: int, replicate: int) -> npt.NDArray[np.uint64]:
        return philox_key(seed, "mask", replicate, level_key(self.sparsity))


@dataclass(frozen=True)
class Built:
    """Initial weights of one network by tensor, at their real size; `keep` (0 or 1) of those that a mask acts on."""

    weights: Arrays
    keep: Arrays


class Networks:
    """Describes and builds the networks of one recipe's search."""

    def __init__(
        self, recipe: Recipe, input_shape: tuple[int, ...], n_classes: int, *, n_train: int | None = None
    ) -> None:
        """Prepare for candidates of a recipe; `n_train` is of a replicate, None for as many examples as it takes."""
        self.recipe, self._n_train = recipe, n_train
        self._data = _Data(input_shape=tuple(input_shape), n_classes=n_classes)
        self._architecture = lru_cache(maxsize=_KEPT_ARCHITECTURES)(self._make_architecture)
        self._skeleton = lru_cache(maxsize=_KEPT_MODULES)(self._make_skeleton)
        self._is_sized = lru_cache(maxsize=_KEPT_MODULES)(_is_sized)
        self._parent = lru_cache(maxsize=_KEPT_PARENTS)(self._make_parent)
        self._module = lru_cache(maxsize=_KEPT_MODULES)(self._make_module)

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset) -> Networks:
        """Networks for the examples of a data set."""
        (n_held_out,) = held_out_counts([dataset.n_train], fraction=recipe.validation_fraction)
        n_train = dataset.n_train - int(n_held_out)
        return cls(recipe, dataset.example_shape, dataset.n_classes, n_train=n_train)

    def describe(self, replicate: int, settings: Mapping[str, Any]) -> Network:
        """The network that `settings` make of the recipe, in one replicate.

        Args:
            replicate: index of (data split, initial weights, data order).
            settings: study keys ('model.widths', 'masks.sparsity', 'training.lr', ...); others keep the recipe's value.

        Raises:
            ConfigError: a key or an option of the model that does not exist, or a value that it does not take.
            SpaceError: a mask that cannot exist.
        """
        recipe, schedule = self.recipe, self.recipe.schedule
        sections: dict[str, dict[str, Any]] = {"model": {}, "masks": {}, "training": {}}
        for key, value in settings.items():
            section, _, name = key.partition(".")
            if section not in sections:
                raise ConfigError(f"{key}={value!r}: must be a key of {', '.join(sections)}; correct the space")
            sections[section][name] = value
        model, masks, training = sections.values()
        control = masks.pop("control", None)
        method = self._method(masks)
        # The mask of a control stays, and its pack is that of any mask.
        has_updates = method is not None and method.when == "during" and control is None
        arch = self._architecture_of(model, is_alone=has_updates)
        hyper = replace(recipe.hyper, **{key: training.pop(key) for key in _HYPERPARAMETERS if key in training})
        optimizer = training.pop("optimizer", schedule.optimizer)
        steps = int(training.pop("steps", schedule.steps))
        batch_size = int(training.pop("batch_size", schedule.batch_size))
        data_fraction = float(training.pop("data_fraction", recipe.data_fraction))
        precision = training.pop("precision", recipe.precision)
        if training:
            raise ConfigError(f"training.{next(iter(training))}: is no key that a space can set; remove it from there")
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"training.optimizer={optimizer!r}: must be one of {', '.join(OPTIMIZERS)}")
        if hyper.lr_schedule is not None and hyper.lr_schedule not in RATE_SCHEDULES:
            raise ConfigError(
                f"training.lr_schedule={hyper.lr_schedule!r}: {nearest(hyper.lr_schedule, RATE_SCHEDULES)}"
            )
        if precision not in PRECISIONS:
            raise ConfigError(f"training.precision={precision!r}: {nearest(str(precision), PRECISIONS)}")
        if not 0 < data_fraction <= 1:
            raise ConfigError(f"training.data_fraction={data_fraction!r}: must lie in (0, 1]; correct the space")
        is_named = masks.pop("method", None) is not None
        for name in METHOD_FIELDS if method is not None or is_named else ():
            masks.pop(name, None)
        if method is not None and (density := parse_pattern(method.pattern).density) is not None:
            masks["sparsity"] = 1 - density
        chain = None if method is None or not method.needs_parent else self._chain(method, masks, steps)
        masked = partial(
            self._masked,
            arch,
            replicate=replicate,
            group=f"{arch.group} {optimizer} {batch_size} {data_fraction!r} {precision}",
            batch_size=batch_size,
            steps=steps,
            # Masks that change need the dense gradient of all weights at their places.
            is_ragged=arch.is_perceptron and precision == "float32" and not has_updates,
        )
        if control is None:
            own = {**masked(masks, method), "chain": chain}
        else:
            n_scored = recipe.probe_size
            if self._n_train is not None:
                n_scored = min(n_scored, n_used(data_fraction, self._n_train))
            how = Controlled(control, method, chain, steps, batch_size, n_scored)
            steps, own = self._controlled(how, arch, masks, replicate, masked)
            chain = own["chain"]
        return Network(
            replicate=replicate,
            optimizer=optimizer,
            hyper=hyper,
            steps=steps if chain is None else steps * len(chain.sparsities),
            batch_size=batch_size,
            data_fraction=data_fraction,
            precision=precision,
            architecture=arch,
            structure=arch.structure,
            **own,
        )

    def _method(self, masks: Mapping[str, Any]) -> Pruning | None:
        """How a candidate comes to its mask; None where that is drawn or searched."""
        recipe, name = self.recipe, masks.get("method")
        if name is not None and name != DRAWN and name not in recipe.methods:
            raise ConfigError(f"masks.method={name!r}: {nearest(str(name), (DRAWN, *recipe.methods))}")
        method = recipe.pruning if name is None else recipe.methods.get(name)
        if method is None:
            return None
        own = {field: masks[field] for field in METHOD_FIELDS if field in masks and method.reads(field)}
        kind = masks.get("kind", recipe.mask_kind)
        is_weight = kind == "weight"
        if method.allocation is not None and kind not in ALLOCATIONS[method.allocation].kinds:
            own["allocation"] = None  # it gives way to the study's, as in a study of masks
        try:
            method = replace(method, **own) if own else method
            return method.under(masks.get("pattern", recipe.pattern)) if is_weight else method
        except SpaceError as error:
            raise SpaceError(f"masks.{error}; correct the space") from error

    def _chain(self, method: Pruning, masks: Mapping[str, Any], steps: int) -> Chain:
        """The levels of a candidate."""
        if "allocation" in masks:
            method = replace(method, allocation=masks["allocation"])
        final = float(masks.get("sparsity", self.recipe.sparsity))
        # What is no sparsity is refused with its key.
        return Chain(method, method.chain(final) if 0 < final < 1 else (0.0,), steps)

    def _masked(
        self,
        arch: Architecture,
        masks: Mapping[str, Any],
        method: Pruning | None,
        *,
        replicate: int,
        group: str,
        batch_size: int,
        steps: int,
        is_ragged: bool,
    ) -> dict[str, Any]:
        """What depends on the mask: fields of `Network`."""
        recipe, structure = self.recipe, arch.structure
        unknown = next((name for name in masks if name not in _MASK_KEYS), None)
        if unknown is not None:
            raise ConfigError(f"masks.{unknown}: is no key that a space can set; remove it from there")
        kind, sparsity = masks.get("kind", recipe.mask_kind), masks.get("sparsity", recipe.sparsity)
        if not 0 <= sparsity < 1:
            raise SpaceError(f"masks.sparsity={sparsity!r}: must lie in [0, 1); correct the space")
        bits = masks.get("bits")
        draw_mask: Callable[[], Mask] | None = None
        scored: Scored | None = None
        changing: Changing | None = None
        n_left: int | None = None
        kept: tuple[int, ...] = ()
        sizes = structure.section_sizes(kind)
        if bits is not None:
            mask = unpack_bits(bits, sum(sizes))
            kept = tuple(int(np.count_nonzero(part)) for part in split_sections(structure, kind, mask))

            def draw_mask() -> Mask:
                return mask

        elif sparsity and method is not None:
            # How many are left is known; where, is not. Ratios that a score finds divide the same total.
            allocation = masks.get("allocation", method.allocation or recipe.allocation)
            kept = kept_counts(structure, kind, sparsity, "global" if method.counts_of else allocation)
            if kind == "weight" and method.pattern != "unstructured":
                kept = _counts_of_pattern(method, structure, kept, allocation)
            if kind == "node" and len(kept) != len(sizes):
                what = f"masks.allocation={allocation!r}" if method.counts_of is None else "masks.kind='node'"
                raise SpaceError(
                    f"{what}: leaves it to scores how many nodes a layer keeps, and the size of a network must be "
                    "known before; use masks.allocation = 'uniform', and a method that does not find ratios"
                )
            if method.when == "init":
                scored = Scored(replace(method, allocation=allocation), float(sparsity), int(masks.get("draw", 0)))
            if method.when == "during":
                changing = Changing(replace(method, allocation=allocation), float(sparsity))
                # Updates are of a pack: all of its lanes have one rule and one length.
                rule = canonical_json({**changing.method.as_data(), "steps": steps})
                group = f"{group} {kind} {arch.init} {rule}"
                draw_mask = self._beginning(arch, kind, changing, replicate, int(masks.get("draw", 0)))
            if kind == "weight" and len(kept) != len(sizes):
                n_left, kept = sum(kept), ()
        elif method is None and (drawn := self._drawn(structure, masks)) is not None:
            sparsity, kept = drawn.sparsity, drawn.counts(structure, recipe.seed, replicate)
            draw_mask = partial(drawn.draw, structure, recipe.seed, replicate)

        compact = structure
        n_params, macs, n_kept = structure.n_params, structure.macs, structure.n_weights
        if n_left is not None:
            n_removed = structure.n_weights - n_left
            macs_each = sum(t.size * t.positions for t in structure.prunable) / structure.n_weights
            n_params, macs, n_kept = n_params - n_removed, macs - round(n_removed * macs_each), n_left
        elif not kept:
            kind = "none"
        elif kind == "node":
            counts = kept
            # Of one count over all groups only the draw says how it is divided.
            if changing is None and draw_mask is not None and len(counts) != len(sizes):
                counts = tuple(int(np.count_nonzero(p)) for p in split_sections(structure, kind, draw_mask()))
            left = structure.compact(counts)
            n_params, macs, n_kept = left.n_params, left.macs, left.n_weights
            if method is None or method.when == "init":  # all others begin dense, or change
                compact = left
        else:
            n_kept = sum(kept)
            n_params += n_kept - structure.n_weights
            if len(kept) == len(sizes):
                by_tensor = dict(zip((t.name for t in structure.prunable), kept, strict=True))
                macs = sum(by_tensor.get(t.name, t.size) * t.positions for t in structure.multiplied)
            elif changing is None and draw_mask is not None and any(t.positions != 1 for t in structure.prunable):
                macs = remains(structure, kind, draw_mask()).macs
            else:
                macs += n_kept - structure.n_weights
        return {
            "compact": compact,
            "mask_kind": kind,
            "kept": kept,
            "sparsity": float(sparsity),
            "n_params": n_params,
            "macs": macs,
            "weight_sparsity": 1 - n_kept / structure.n_weights,
            "shape": Shape(
                group=group,
                tensors=shapes_of(arch, compact),
                positions=arch.positions,
                batch_size=batch_size,
                ragged=is_ragged,
            ),
            "draw_mask": draw_mask,
            "scored": scored,
            "changing": changing,
        }

    def _controlled(
        self,
        of: Controlled,
        arch: Architecture,
        masks: Mapping[str, Any],
        replicate: int,
        masked: Callable[..., dict[str, Any]],
    ) -> tuple[int, dict[str, Any]]:
        """Steps of a control's training (of a chain, of each level), and what else of `Network` it decides.

        Args:
            of: the candidate that it is held against.
            arch: of both.
            masks: what the settings say of masks; `bits` is the mask of that candidate.
            replicate: of both.
            masked: gives fields of a network with a mask, as `_masked` does.
        """
        recipe, structure, row, method = self.recipe, arch.structure, CONTROLS[of.control], of.method
        kind, sparsity = masks.get("kind", recipe.mask_kind), float(masks.get("sparsity", recipe.sparsity))
        dense = masked({"kind": kind, "sparsity": 0.0}, None) | {"sparsity": sparsity, "chain": None}
        if row.network == "parent":
            return of.budget, dense
        bits, level = masks["bits"], level_key(sparsity)
        mask = unpack_bits(bits, sum(structure.section_sizes(kind)))
        key = control_key(recipe.seed, of.control, mask_digest(bits), replicate, level)
        if row.network == "small":
            small = small_dense(structure, kind, mask)
            own = {
                "compact": small,
                "n_params": small.n_params,
                "macs": small.macs,
                "weight_sparsity": 1 - small.n_weights / structure.n_weights,
                "shape": replace(dense["shape"], tensors=shapes_of(arch, small)),
                "fresh": key,
            }
            return of.steps, dense | own
        fresh = fresh_weights_key(recipe.seed, replicate, level) if row.fresh_weights else None
        if row.shuffle is not None:
            pattern = masks.get("pattern", recipe.pattern) if method is None else method.pattern
            mask = row.shuffle(structure, kind, mask, key, 0, pattern=pattern if kind == "weight" else None)
        given = {"kind": kind, "sparsity": sparsity, "bits": pack_bits(mask).tobytes()}
        is_going_on = method is not None and (method.keeps_weights or bool(of.chain and of.chain.rewind_step))
        if of.chain is None or row.fresh_weights or not is_going_on:
            is_frozen = method is not None and method.update == "edge_popup"
            return 0 if is_frozen else of.steps, {**masked(given, None), "chain": None, "fresh": fresh}
        chain = replace(of.chain, sparsities=(0.0, sparsity), given=mask)
        return of.steps, {**masked(given, method), "chain": chain, "draw_mask": None}

    def _beginning(
        self, arch: Architecture, kind: str, changing: Changing, replicate: int, draw: int
    ) -> Callable[[], Mask] | None:
        """Draws the mask that a training begins with whose mask changes; None for one that begins dense."""
        method, sparsity = changing.method, changing.sparsity
        assert method.update is not None
        if UPDATES[method.update].starts_dense:
            return None
        cutter = Cutter(arch.structure, kind, self.recipe.allocation)
        key = pruning_key(self.recipe.seed, replicate, sparsity, draw)
        return partial(cutter.at_random, method, sparsity, key)

    def drawn(self, settings: Mapping[str, Any]) -> DrawnMask | None:
        """What the mask of a candidate is drawn from; None where it is not drawn, or nothing is removed.

        Masks of one parent that are drawn from equal things are equal; describing the whole network takes longer.

        Raises:
            ConfigError, SpaceError: as `describe`.
        """
        model, masks = (
            {key.removeprefix(section): value for key, value in settings.items() if key.startswith(section)}
            for section in ("model.", "masks.")
        )
        if self._method(masks) is not None or "bits" in masks:
            return None
        structure = self._architecture_of(model).structure
        found = self._drawn(structure, masks)
        is_whole = found is not None and sum(found.kept) == sum(structure.section_sizes(found.pattern.kind))
        return None if is_whole else found

    def cut(self, settings: Mapping[str, Any]) -> list[Any] | None:
        """What the masks of a candidate that a method cuts depend on; None where none does, or nothing is removed.

        All but the method's name, the parent and the examples: of two candidates that are equal in these, masks with
        equal numbers here are cut from equal scores. Sparsities, rates and allocations are the counts they lead to.

        Raises:
            ConfigError, SpaceError: as `describe`.
        """
        model, masks = (
            {key.removeprefix(section): value for key, value in settings.items() if key.startswith(section)}
            for section in ("model.", "masks.")
        )
        recipe, method = self.recipe, self._method(masks)
        if method is None or "bits" in masks:
            return None
        density = parse_pattern(method.pattern).density
        sparsity = masks.get("sparsity", recipe.sparsity) if density is None else 1 - density
        if not sparsity:
            return None
        structure, kind = self._architecture_of(model).structure, masks.get("kind", recipe.mask_kind)
        allocation = masks.get("allocation", method.allocation or recipe.allocation)
        if density is not None or method.counts_of:  # ratios that a score finds divide the same total
            allocation = "global"
        how = [kind, method.pattern, *([method.score] if method.reads("score") else [])]
        is_random = method.score == "random" and method.reads("score")  # its numbers are those of the sparsity

        def counts_at(each: float) -> tuple[float, ...]:
            """What of a sparsity on the way takes effect."""
            told = kept_counts(structure, kind, each, allocation) if density is None else (each,)
            return (*told, level_key(each)) if is_random else told

        if method.needs_parent:
            masks = {**masks, "sparsity": sparsity}
            chain = self._chain(method, masks, int(settings.get("training.steps", recipe.schedule.steps)))
            totals = [sum(kept_counts(structure, kind, each, allocation)) for each in chain.sparsities]
            n_late = [chain.method.n_activating(a - b) for a, b in itertools.pairwise(totals)]
            return [*how, chain.rewind_step, *map(counts_at, chain.sparsities), *n_late]
        draw = [int(masks.get("draw", 0))] if method.draws_positions else []
        if method.when == "during":  # on a way of its own from its first step to its last
            schedule = [getattr(method, name) for name in SCHEDULE_FIELDS if method.reads(name)]
            return [*how, allocation, level_key(sparsity), *schedule, *draw]
        if density is None and sum(kept_counts(structure, kind, sparsity, allocation)) == sum(
            structure.section_sizes(kind)
        ):
            return None
        densities = [geometric(1 - sparsity, i, method.rounds) for i in range(1, method.rounds + 1)]
        return [*how, *(counts_at(1 - each) for each in densities), *draw]

    def _drawn(self, structure: Structure, masks: Mapping[str, Any]) -> DrawnMask | None:
        recipe = self.recipe
        kind, sparsity = masks.get("kind", recipe.mask_kind), masks.get("sparsity", recipe.sparsity)
        # Of node masks any set is one; that there is no such kind is said by the structure.
        pattern = _pattern(masks.get("pattern", recipe.pattern) if kind == "weight" else "node")
        sizes, number = structure.section_sizes(kind), int(masks.get("draw", 0))
        if pattern.density is not None:
            return DrawnMask(pattern, 1 - pattern.density, pattern.counts(structure, None), number)
        if not sparsity:
            return None
        allocation, shares = masks.get("allocation", recipe.allocation), masks.get("shares")
        if allocation == SEARCHED:
            if shares is None or len(shares) < len(sizes):
                raise ConfigError(
                    f"masks.shares={shares!r}: masks.allocation='searched' needs one for each of the {len(sizes)} "
                    "sections of the mask; add them to the space"
                )
            total = max(kept_count(1 - sparsity, sum(sizes)), len(sizes))
            kept = counts_from_shares(sizes, total, shares[: len(sizes)])
        else:
            kept = kept_counts(structure, kind, sparsity, allocation)
        if len(kept) == len(sizes):
            kept = pattern.counts(structure, kept)
        return DrawnMask(pattern, sparsity, kept, number)

    def _architecture_of(self, model: Mapping[str, Any], *, is_alone: bool = False) -> Architecture:
        """The parent that options of the model make of the recipe's; `is_alone`: with a module of its own sizes."""
        name = model.get("name", self.recipe.model)
        options = {**(self.recipe.model_options if name == self.recipe.model else {}), **model}
        options.pop("name", None)
        return self._architecture(
            (name, tuple((k, tuple(v) if isinstance(v, list | tuple) else v) for k, v in sorted(options.items()))),
            is_alone=is_alone,
        )

    def _make_architecture(self, key: Key, *, is_alone: bool) -> Architecture:
        family, options = self._options(key)
        if not self._is_sized(key[0]):  # a user's own: no two of its networks share a pack but equal ones
            model = family.build(options, **self._data)
            skeleton = _skeleton_of(key[0], options, model.structure, is_perceptron=model.module.perceptron is not None)
            structure, init = model.structure, model.init
        else:
            structure = family.structure(options, **self._data)
            init = getattr(options, "init", "kaiming")
            if is_alone:
                skeleton = _skeleton_of(key[0], options, structure, is_perceptron=False)
            else:
                own: Options = family.skeleton(options)
                skeleton = self._skeleton(key[0], type(own), own.model_dump_json())
        return Architecture(
            key=key,
            structure=structure,
            init=init,
            layout=skeleton.layout,
            lacking=_lacking(structure, skeleton.structure),
            positions=skeleton.positions,
            group=skeleton.group,
            skeleton=skeleton.options,
            is_perceptron=skeleton.is_perceptron,
        )

    def _make_skeleton(self, name: str, kind: type[Options], options: str) -> _Skeleton:
        family: Any = model_family(name)
        known = kind.model_validate_json(options)
        model = family.build(known, **self._data)
        return _skeleton_of(name, known, model.structure, is_perceptron=model.module.perceptron is not None)

    def _options(self, key: Key) -> tuple[Any, Options]:
        name, options = key
        family = model_family(name)
        try:
            return family, family.options.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            value = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
            raise ConfigError(f"model.{where}={value!r}: {first['msg']} for model {name!r}") from error

    # Building --------------------------------------------------------------------------------------------------------

    def build(self, network: Network) -> Built:
        """Initial weights of a network, and its mask.

        Networks of one architecture start from the same weights in a replicate, whatever else distinguishes them; masks
        of the same counts, sparsity and number are the same.
        """
        parent = self._parent(network.architecture.key, network.replicate)
        if network.fresh is not None:
            own = network.compact if network.mask is None else network.structure
            numbers = np.random.Generator(np.random.Philox(key=network.fresh))
            parent = initial_weights(own, network.architecture.init, numbers)
        keep = self.keep(network)
        if network.changing is not None and network.mask is not None and network.mask_kind == "node":
            tensors = {name: torch.from_numpy(w) for name, w in parent.items()}
            lane = full_size_lanes(network.structure, tensors, network.mask[None])
            assert lane.keep is not None
            weights, keep = (
                {name: view[0].numpy() for name, view in lane.layout.views(flat).items()}
                for flat in (lane.flat, lane.keep)
            )
            return Built(weights, keep)
        if network.mask is not None and network.mask_kind == "node":
            parts = split_sections(network.structure, "node", network.mask)
            return Built(compact_weights(network.structure, parent, parts), keep)
        return Built({n: w * keep[n] if n in keep else w for n, w in parent.items()}, keep)

    def keep(self, network: Network) -> Arrays:
        """Which weights a network keeps, 0 or 1 for each, by tensor; those that are missing are kept as a whole."""
        structure, mask = network.structure, network.mask
        if mask is None:
            return {}
        check_mask = self.model(network).check_mask
        if check_mask is not None:
            check_mask(mask)
        if network.mask_kind == "node":
            return {}
        parts = split_sections(structure, network.mask_kind, mask)
        return {
            t.name: part.reshape(t.shape).astype(np.float32) for t, part in zip(structure.prunable, parts, strict=True)
        }

    def parent(self, arch: Architecture, replicate: int) -> tuple[Model, Arrays]:
        """The module of a parent alone, and the initial weights that masks of it are cut from."""
        family, options = self._options(arch.key)
        return family.build(options, **self._data), self.initial(arch, replicate)

    def initial(self, arch: Architecture, replicate: int) -> Arrays:
        """The initial weights of a parent."""
        return self._parent(arch.key, replicate)

    def _make_parent(self, key: Key, replicate: int) -> Arrays:
        arch = self._architecture(key, is_alone=False)
        return initial_weights(arch.structure, arch.init, generator(self.recipe.seed, "init", replicate))

    def model(self, network: Network) -> Model:
        """The module that runs a network and all others of its group; its structure is the group's skeleton."""
        return self._module(network.architecture.group, network.architecture.key[0], network.architecture.skeleton)

    def _make_module(self, _group: str, name: str, skeleton: Options) -> Model:
        return model_family(name).build(skeleton, **self._data)


def _counts_of_pattern(
    method: Pruning, structure: Structure, kept: tuple[int, ...], allocation: str
) -> tuple[int, ...]:
    """Survivors of each section of a method's mask, where an allocation asks for `kept`."""
    pattern = _pattern(method.pattern)
    if pattern.density is not None:
        return pattern.counts(structure, None)
    if len(kept) != len(structure.prunable):
        raise SpaceError(
            f"masks.pattern={method.pattern!r} with masks.allocation={allocation!r}: leaves it to scores how many "
            "whole blocks a layer keeps, and the size of a network must be known before; name an allocation with a "
            "count for each layer, such as 'erk'"
        )
    if method.when == "levels" or method.rounds > 1:
        raise SpaceError(
            f"masks.pattern={method.pattern!r}: of blocks that go little by little fewer may be left than at once, and "
            "the size of a network must be known before; use a method that prunes at once or in training"
        )
    return pattern.counts(structure, kept)


def pruning_key(seed: int, replicate: int, sparsity: float, draw: int = 0) -> npt.NDArray[np.uint64]:
    """Of what is drawn to prune a network: number 0 is that of a study of masks."""
    return philox_key(seed, f"prune/{draw}" if draw else "prune", replicate, level_key(sparsity))


@lru_cache(maxsize=64)
def _pattern(name: str) -> Pattern:
    """The pattern of a name; the candidates of a space have few, and reading one takes as long as counting by it."""
    try:
        return parse_pattern(name)
    except SpaceError as error:
        raise SpaceError(f"masks.{error}; correct the space") from error


def _is_sized(name: str) -> bool:
    """Whether networks of a family can be padded: to be asked once, which takes a tenth of a description."""
    return isinstance(model_family(name), SizedFamily)


def _skeleton_of(name: str, options: Options, structure: Structure, *, is_perceptron: bool) -> _Skeleton:
    layout = Layout.of(structure)
    positions = {t.name: t.positions for t in structure.multiplied}
    return _Skeleton(
        options=options,
        structure=structure,
        layout=layout,
        positions=tuple(positions.get(tensor, 0) for tensor in layout.names),
        group=f"{name} {canonical_json(options.model_dump(mode='json', exclude={'init'}))}",
        is_perceptron=is_perceptron,
    )


def _lacking(structure: Structure, skeleton: Structure) -> dict[str, tuple[tuple[str | None, int], ...]]:
    """Tensors of the skeleton that the structure has not, with what their axes follow (`Architecture.lacking`).

    What follows a group that the structure has not either has size zero: padded to the sizes of a pack, such a tensor
    fits those of the lanes that have it.
    """
    present = {t.name for t in structure.tensors}
    axes: dict[str, list[tuple[str | None, int]]] = {
        t.name: [(None, n) for n in t.shape] for t in skeleton.tensors if t.name not in present
    }
    for group in skeleton.groups:
        for axis in group.axes:
            if axis.tensor in axes:
                axes[axis.tensor][axis.dim] = (group.name, axis.repeat)
    return {name: tuple(each) for name, each in axes.items()}
