"""Searches: strategies on a space of architectures, masks and hyperparameters, compared at equal budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from sparsefront.cluster.halving import RayHalving
from sparsefront.cluster.ray_cluster import available_cores
from sparsefront.errors import ConfigError, SpaceError, SparsefrontError, nearest
from sparsefront.results import Results
from sparsefront.search.control_run import CONTROL_OF
from sparsefront.search.design import SearchArm, SearchDesign
from sparsefront.search.exploration import Exploration
from sparsefront.search.feasibility import N_DRAWN, scarcity
from sparsefront.search.methods.controls import control_name
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.search.metrics import METRICS
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.packing import CPU_COST, GPU_COST
from sparsefront.search.resolved import search_design_of, spaces_of
from sparsefront.search.run import MAX_PROPOSALS_EACH, longest_training
from sparsefront.search.rungs import RUNGS, check_settings, rung_steps
from sparsefront.search.schema import COLUMNS, SCHEMA
from sparsefront.search.simulator import SYNTHETIC, LedgerObjective, Objective, StudySimulation, simulate_study
from sparsefront.search.strategies import strategy_family
from sparsefront.search.work import Describe, Described, Sets
from sparsefront.spaces.allocations import kept_counts
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.spaces.domains import Point, shown
from sparsefront.spaces.entries import one_value
from sparsefront.spaces.ready import READY_SPACES
from sparsefront.spaces.seeds import philox_key
from sparsefront.spaces.space import Space
from sparsefront.study.objectives import check_objectives, check_reference, validated_columns
from sparsefront.study.patterns import check_pattern_fits, remark_on_pattern
from sparsefront.study.reading import first_error
from sparsefront.study.replay import check_replay
from sparsefront.study.search_masks import AT_INIT, CHAINS, MaskRules
from sparsefront.study.search_sections import (
    SEARCHED_OBJECTIVES,
    ArmSection,
    MasksSection,
    RungsSection,
    SearchSection,
    SearchTrainingSection,
    SearchVerdictSection,
    check_at_rungs,
    usual_opponent,
)
from sparsefront.study.study import MAX_BATCHED_EXAMPLES, NAME, Study
from sparsefront.trainables.data import DATASETS, Dataset, held_out_counts, load_dataset, n_used
from sparsefront.trainables.effect import effective
from sparsefront.trainables.models import model_family
from sparsefront.trainables.network import Network
from sparsefront.trainables.networks import DRAWN, METHOD_FIELDS, Networks
from sparsefront.trainables.optimizers import OPTIMIZERS
from sparsefront.trainables.quality import COLUMNS as QUALITY_COLUMNS
from sparsefront.trainables.quality import check_qualities
from sparsefront.trainables.recipe import Recipe

#: Keys of the sections `training` and `masks` that a space may search; of `model`, all options of the family may be.
_SEARCHED_TRAINING = (
    *("optimizer", "lr", "lr_schedule", "warmup_fraction", "weight_decay", "beta1", "beta2", "momentum", "nesterov"),
    *("label_smoothing", "batch_size", "steps", "data_fraction", "precision"),
)
#: Those of them that are no numbers, and whose values no range can be of.
_NAMED_TRAINING = ("lr_schedule", "nesterov", "precision")
_SEARCHED_MASKS = ("method", "kind", "pattern", "sparsity", "allocation", "shares", "bits", "draw")

#: Verdicts by one objective that is in decibels.
_PSNR_ALONE = [[name] for name, o in OBJECTIVES.items() if o.unit == "dB"]

#: Columns that say what became of a candidate, and not what it is.
_RESERVED = {
    *(column.name for column in COLUMNS if not column.hyperparameter),
    *(o.column for o in OBJECTIVES.values()),
    *QUALITY_COLUMNS,
    CONTROL_OF,
} - {"mask_draw"}

#: Candidates of a study: what the driver keeps of each that is not terminal is bounded, what it keeps of all is not.
_MAX_CANDIDATES = 10**8


class SearchStudy(Study):
    """Arms that search a space, each by its strategy, in every replicate anew."""

    plural = "searches"

    training: SearchTrainingSection
    masks: MasksSection = MasksSection()
    space: dict[str, Any]
    search: SearchSection = SearchSection()
    rungs: RungsSection = RungsSection()
    arms: Annotated[dict[str, ArmSection], Field(min_length=1, max_length=100)]
    verdict: SearchVerdictSection = SearchVerdictSection()

    @classmethod
    def is_for(cls, values: Mapping[str, Any]) -> bool:
        """Whatever has a space."""
        return "space" in values

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Write into every arm what it takes over from the study, and into the study what a ready space brings.

        A `Space` in place of the section, or of an arm's, becomes its table.
        """
        space = values.get("space")
        if isinstance(space, Space):
            space = _table_of(space)
            values = {**values, "space": space}
        longest = _longest_of(space)
        training = values.get("training", {})
        if longest is not None and isinstance(training, dict):
            values = {**values, "training": {"steps": longest, **training}}
        ready = READY_SPACES.get(str(space.get("ready"))) if isinstance(space, dict) else None
        if ready is not None:
            values = dict(values)
            for section, brought in (("model", ready.model), ("masks", ready.masks)):
                own = values.get(section, {})
                if isinstance(own, dict) and own.get("name", brought.get("name")) == brought.get("name"):
                    values[section] = {**brought, **own}
        for section, keys in (("training", _SEARCHED_TRAINING), ("masks", (*_SEARCHED_MASKS, *METHOD_FIELDS))):
            _check_one_value(section, values.get(section), keys)
        masks = values.get("masks")
        if isinstance(masks, dict) and masks.get("method") in PRUNERS:
            own_allocation = PRUNERS[masks["method"]].for_masks(str(masks.get("kind", "weight"))).allocation
            if own_allocation is not None:
                values = {**values, "masks": {"allocation": own_allocation, **masks}}
        verdict = values.get("verdict")
        chosen = verdict.get("objectives") if isinstance(verdict, dict) else None
        if isinstance(verdict, dict) and isinstance(chosen, list | tuple) and list(chosen) in _PSNR_ALONE:
            values = {**values, "verdict": {"equivalence_margin": METRICS["psnr"].margin, **verdict}}
        arms, search, rungs = (values.get(key, {}) for key in ("arms", "search", "rungs"))
        if not all(isinstance(table, dict) for table in (arms, search, rungs)):
            return values  # what is of a wrong type is refused as such
        defaults = {key: search.get(key, SearchSection.model_fields[key].default) for key in ("candidates", "batch")}
        strategies = {
            name: arm.get("strategy", "random") if isinstance(arm, dict) else "" for name, arm in arms.items()
        }
        defaults["against"] = usual_opponent(strategies)
        completed = {}
        for name, arm in arms.items():
            own_rungs = arm.get("rungs", {}) if isinstance(arm, dict) else {}
            both = {**rungs, **own_rungs} if isinstance(own_rungs, dict) else own_rungs
            completed[name] = {**defaults, **arm, "rungs": both} if isinstance(arm, dict) else arm
            if isinstance(arm, dict) and name == defaults["against"] and arm.get("against") in ([], ()):
                completed[name]["against"] = name  # as where nothing is said: both are the same study
            if isinstance(arm, dict) and isinstance(arm.get("space"), Space):
                completed[name]["space"] = _table_of(arm["space"], where=f"arms.{name}.")
        return {**values, "arms": completed}

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What no single value shows: names, registries, and what must fit each other."""
        if self.training.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"training.optimizer={self.training.optimizer!r}: {nearest(self.training.optimizer, OPTIMIZERS)}"
            )
        self._mask_rules.check_section()
        check_qualities(self.quality, has_parent=False)
        chosen = self.verdict.objectives
        for name in chosen:
            if name in OBJECTIVES and (OBJECTIVES[name].needs_parent or OBJECTIVES[name].needs_siblings):
                with_what = "its trained parent" if OBJECTIVES[name].needs_parent else "a second training"
                raise ConfigError(
                    f"verdict.objectives: {name!r} compares a candidate with {with_what}, and in a search there is "
                    "none; leave it out, or make it a study of masks"
                )
        check_objectives("verdict.objectives", chosen, SEARCHED_OBJECTIVES, self.quality)
        if self.verdict.reference and len(self.verdict.reference) != len(chosen):
            raise ConfigError(
                f"verdict.reference={list(self.verdict.reference)}: must have one number for each of the "
                f"{len(chosen)} objectives"
            )
        if self.verdict.reference:
            check_reference(chosen, self.verdict.reference)
        if len(self.arms) > 1 and "random" not in {arm.strategy for arm in self.arms.values()}:
            raise ConfigError(
                f"arms={list(self.arms)}: one of them must have strategy = 'random'; it is what the others have to beat"
            )
        spaces = [self._check_arm(name, arm) for name, arm in self.arms.items()]
        # Its default may stand in a file that was written from a study.
        if self.search.probe_size != type(self.search).model_fields["probe_size"].default and not self._scores:
            raise ConfigError(
                f"search.probe_size={self.search.probe_size}: is of methods that prune at initialisation "
                f"({', '.join(AT_INIT[:3])}, ...) or by a score of examples, and no arm names one in masks.method; "
                "remove it"
            )
        if not any(space.dimensions for space in spaces):
            raise ConfigError(
                f"space={shown(self.space)}: there is nothing to search; give a key a range or choices, as in "
                "[space.training] lr = { low = 1e-4, high = 1e-1, log = true }"
            )
        if self.replicates * sum((1 + len(a.controls)) * a.candidates for a in self.arms.values()) > _MAX_CANDIDATES:
            raise ConfigError(
                f"replicates={self.replicates}: with the candidates of all arms must be at most {_MAX_CANDIDATES:,} "
                "candidates; make it several studies"
            )
        return self

    @property
    def _mask_rules(self) -> MaskRules:
        return MaskRules(self.masks, self.training, self.model)

    @property
    def _scores(self) -> bool:
        """Whether masks of any arm are cut from initial weights, or by scores of examples."""
        return any(map(self._mask_rules.scores, spaces_of(self._written()).values()))

    def _check_fidelity(self, name: str, arm: ArmSection, space: Space) -> None:
        """Refuse rungs that lie elsewhere than at the ends of levels, and levels where there are none."""
        rungs, names = arm.rungs, self._mask_rules.methods_of(space)
        method = next((name for name in names if name in CHAINS), None)
        if method is None:
            if rungs.fidelity == "level":
                raise ConfigError(
                    f"arms.{name}.rungs.fidelity='level': needs a chain of levels; set masks.method = 'imp', or use "
                    "'steps'"
                )
            return
        if not RUNGS[rungs.kind].has_rungs:
            return
        if others := [other for other in names if other not in CHAINS]:
            raise ConfigError(
                f"arms.{name}.rungs.kind={rungs.kind!r}: compares candidates at one step, and those of masks.method="
                f"{method!r} train level by level, those of {others[0]!r} at once; give each an arm of its own, or set "
                "kind = 'none'"
            )
        if RUNGS[rungs.kind].is_scheduled:
            raise ConfigError(
                f"arms.{name}.rungs.kind={rungs.kind!r}: Ray's scheduler knows steps alone, and masks.method="
                f"{method!r} trains level by level; use 'asha'"
            )
        if rungs.fidelity != "level":
            raise ConfigError(
                f"arms.{name}.rungs.fidelity={rungs.fidelity!r}: must be 'level' with masks.method={method!r}, whose "
                "networks are compared at ends of levels; min_steps then counts levels"
            )
        if any(d.key == "training.steps" for d in space.dimensions):
            raise ConfigError(
                f"{self._place_of_space(name)}.training.steps: cannot be searched with rungs.fidelity='level', for "
                "levels must end at the same step in all candidates; set one value"
            )

    def _check_arm(self, name: str, arm: ArmSection) -> Space:
        """Refuse what contradicts itself or the study in one arm; returns its space."""
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"arms.{name!r}: must be letters, digits, '.', '_' or '-', beginning with a letter or digit"
            )
        opponents = (arm.against,) if isinstance(arm.against, str) else arm.against
        is_usual = name == usual_opponent({key: other.strategy for key, other in self.arms.items()})
        for other in opponents:
            if other not in self.arms:
                raise ConfigError(
                    f"arms.{name}.against={other!r}: {nearest(other, self.arms)}; it is the arm that this one is "
                    "judged against, and [] is nobody"
                )
            # Of the arm that all others are held against by default, it is how nobody is written down.
            if other == name and not (is_usual and len(opponents) == 1):
                raise ConfigError(
                    f"arms.{name}.against={other!r}: must be another arm, for nothing is judged against itself; write "
                    "[] if it is to be judged against nobody"
                )
        if len(set(opponents)) != len(opponents):
            raise ConfigError(f"arms.{name}.against={list(opponents)}: every value may appear once")
        try:
            space = spaces_of(self._written(), known_keys=self._known_keys())[name]
        except SpaceError as error:
            raise ConfigError(str(error)) from error
        try:
            family = strategy_family(arm.strategy)
        except ConfigError as error:
            raise ConfigError(f"arms.{name}.{error}") from error
        try:
            options = family.options.model_validate(arm.options)
        except ValidationError as error:
            raise ConfigError(f"arms.{name}.options.{first_error(error, family.options)}") from error
        # Written down with those that were left to their defaults: another default is another study.
        arm.options.update(options.model_dump(mode="json"))
        self._mask_rules.check(self._place_of_space(name), space)
        self._check_space(self._place_of_space(name), space)
        self._check_fidelity(name, arm, space)
        if RUNGS[arm.rungs.kind].is_multi_objective and not arm.rungs.objectives:
            check_at_rungs(
                f"arms.{name}.rungs.kind={arm.rungs.kind!r}: compares by verdict.objectives", self.verdict.objectives
            )
        self._check_reproducible(name, arm.rungs)
        for constraint in space.constraints:
            if constraint.quantity == "node_sparsity" and "weight" in space.choices_of("masks.kind", self.masks.kind):
                raise ConfigError(
                    f"arms.{name}.space.constraints: node_sparsity of weight masks is known only once they are drawn; "
                    "constrain weight_sparsity, or use node masks"
                )
        refusal = family.refusal(space, self.verdict.objectives)
        if refusal is not None:
            raise ConfigError(f"arms.{name}.strategy={arm.strategy!r}: cannot search this space ({refusal})")
        self._mask_rules.check_controls(f"arms.{name}.controls", arm.controls, space)
        if arm.controls and RUNGS[arm.rungs.kind].has_rungs:
            raise ConfigError(
                f"arms.{name}.controls: {arm.controls[0]!r} is of candidates that nothing has chosen, and rungs.kind="
                f"{arm.rungs.kind!r} trains the luckier ones to the end: even a random mask would seem better than "
                "another; give the controls to an arm with rungs = { kind = 'none' }"
            )
        if taken := {control_name(name, kind) for kind in arm.controls} & self.arms.keys():
            raise ConfigError(
                f"arms.{name}.controls: {min(taken)!r} is the name of a control and of an arm; rename the arm"
            )
        return space

    def _check_reproducible(self, name: str, rungs: RungsSection) -> None:
        """Refuse rungs that compare measured times, where the study does not say that it cannot be repeated."""
        kind = RUNGS[rungs.kind]
        compared = rungs.objectives or (self.verdict.objectives if kind.is_multi_objective else ())
        times = [objective for objective in compared if OBJECTIVES[objective].is_time]
        if kind.has_rungs and times and not rungs.asynchronous:
            said = "objectives" if rungs.objectives else f"kind={rungs.kind!r} compares by verdict.objectives"
            other = "" if kind.record is not None else " with kind = 'asha' or 'mo_asha'"
            raise ConfigError(
                f"arms.{name}.rungs.{said}: {times[0]!r} is measured, and another whenever a study is run, so that "
                "others would be stopped; name 'passes' or 'flops' in rungs.objectives, or set asynchronous = true"
                f"{other}, for rungs that are not reproducible"
            )

    def _written(self) -> dict[str, Any]:
        """What spaces are read from: as written, and not as recorded, for JSON has no NaN to complain about."""
        return {
            "space": self.space,
            "masks": {"kind": self.masks.kind},
            "resolved": _UNRESOLVED,
            "arms": {name: {"space": arm.space} for name, arm in self.arms.items()},
        }

    def _place_of_space(self, arm: str) -> str:
        """Where the space of an arm is written."""
        return f"arms.{arm}.space" if self.arms[arm].space else "space"

    def _check_space(self, where: str, space: Space) -> None:
        """What keys of a space ask of the study."""
        keys = space.keys
        for key, value in {**space.constants, **space.settings(space.corners()[0])}.items():
            section, _, option = key.partition(".")
            if section == "model" and isinstance(self.model.options.get(option), list) and not isinstance(value, list):
                raise ConfigError(
                    f"{where}.{key}: sets one number, and {key} is a list; say how long it is beside the range, as in "
                    f"{option} = {{ low = 8, high = 128, depth = 2 }}, or give a list"
                )
            is_scalar = isinstance(self.model.options.get(option), str | int | float)
            if section == "model" and isinstance(value, list | tuple) and is_scalar:
                raise ConfigError(f"{where}.{key}={shown(list(value))}: {one_value(value)}")
        if self.training.nesterov and not self.training.momentum and "training.momentum" not in keys:
            raise ConfigError("training.nesterov=true: needs training.momentum > 0, or a space with training.momentum")
        for name in _NAMED_TRAINING:
            for value in space.given(f"training.{name}"):
                try:
                    SearchTrainingSection.model_validate({"steps": 1, name: value})
                except ValidationError as error:
                    raise ConfigError(f"{where}.training.{first_error(error, SearchTrainingSection)}") from error
        is_ahead = any(space.choices_of("training.nesterov", self.training.nesterov))
        if is_ahead and not space.ends_of("training.momentum", self.training.momentum)[1]:
            raise ConfigError(
                f"{where}.training.nesterov: needs training.momentum > 0, in [training] or in the space; else there is "
                "none to look ahead by"
            )
        if space.bits is not None:
            if not self.masks.sparsity:
                raise ConfigError(
                    f"{where}.masks.bits=true: needs masks.sparsity > 0 in [masks]; else every mask keeps everything"
                )
            if self.masks.pattern != "unstructured":
                raise ConfigError(
                    f"{where}.masks.bits=true: needs masks.pattern='unstructured', and it is {self.masks.pattern!r}; "
                    "entries that trade places keep no other pattern"
                )
            others = sorted(key for key in keys if key.startswith("masks.") and key != "masks.bits")
            if others:
                raise ConfigError(
                    f"{where}.{others[0]}: cannot be set beside masks.bits=true; the bits are searched at the sparsity "
                    "and allocation of [masks]"
                )

    def _known_keys(self) -> set[str]:
        """Study keys that a space may set."""
        options = model_family(self.model.name).options.model_fields
        return {
            *(f"training.{key}" for key in _SEARCHED_TRAINING),
            *(f"masks.{key}" for key in (*_SEARCHED_MASKS, *METHOD_FIELDS)),
            *(f"model.{key}" for key in options),
        }

    # What it is ------------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """As of every study; without a method or a pattern nothing is said of it, as before there were any."""
        identity = super().identity()
        if self.masks.method is None:
            del identity["masks"]["method"]
        if self.masks.pattern == "unstructured":
            del identity["masks"]["pattern"]
        if not self._scores:
            del identity["search"]["probe_size"]
        return identity

    def base(self) -> dict[str, object]:
        """What candidate ids hash besides the candidate: what all candidates of the study share."""
        shared = {k: v for k, v in self.identity().items() if k in ("seed", "data", "model", "masks", "training")}
        return {**shared, "probe_size": self.search.probe_size} if self._scores else shared

    def design(self, dataset: Dataset | None = None) -> SearchDesign:
        """The numbers that decisions and judgements depend on; `dataset` saves loading it."""
        dataset = dataset or load_dataset(self.data.name, self.data.options)
        recorded, networks = self.recorded(dataset), self._networks(dataset)
        # Of node masks that keep fixed counts, all would be the same.
        is_weight = recorded["resolved"]["bits"] is not None and self.masks.kind == "weight"
        structure = networks.describe(0, {}).structure if is_weight else None
        (n_held_out,) = held_out_counts([dataset.n_train], fraction=self.data.validation_fraction)
        data_grow = any(
            a.rungs.fidelity == "data_fraction" and RUNGS[a.rungs.kind].has_rungs for a in self.arms.values()
        )
        n_train = None if data_grow else dataset.n_train - int(n_held_out)
        return search_design_of(
            recorded, structure=structure, effect=lambda settings: effective(networks, settings, n_train=n_train)
        )

    @property
    def _validated(self) -> tuple[str, ...]:
        return validated_columns(*self.verdict.objectives)

    def recipe(self) -> Recipe:
        """How every candidate is made and trained, where its point of the space does not say otherwise."""
        pruning = self._mask_rules.pruning
        return self._recipe(
            mask_kind=self.masks.kind,
            allocation=self.masks.allocation,
            sparsity=self.masks.sparsity,
            data_fraction=self.training.data_fraction,
            pruning=pruning,
            # A candidate may name the study's own method, and means that.
            methods={name: row.method for name, row in PRUNERS.items()}
            | ({} if pruning is None else {str(self.masks.method): pruning}),
            probe_size=self.search.probe_size,
            pattern=self.masks.pattern,
        )

    def _networks(self, dataset: Dataset) -> Networks:
        return Networks.of(self.recipe(), dataset)

    def _resolved(self, dataset: Dataset) -> dict[str, Any]:
        """With what of the space depends on the parent's structure, so that the ledger is read without building it."""
        networks = self._networks(dataset)
        unresolved = spaces_of({**self.identity(), "resolved": _UNRESOLVED})
        n_sections = max(
            len(_network_at(self._place_of_space(name), networks, model).structure.section_sizes(str(kind)))
            for name, space in unresolved.items()
            for kind in space.choices_of("masks.kind", self.masks.kind)
            for model in (_model_of(space.settings(point)) for point in space.corners())
        )
        bits: dict[str, list[int]] | None = None
        if any(space.bits is not None for space in unresolved.values()):
            structure = networks.describe(0, {}).structure
            sections = structure.section_sizes(self.masks.kind)
            for name, space in unresolved.items():
                models = [_model_of(space.settings(point)) for point in space.corners() if space.bits is not None]
                if any(networks.describe(0, m).structure.section_sizes(self.masks.kind) != sections for m in models):
                    raise ConfigError(
                        f"{self._place_of_space(name)}.masks.bits=true: needs the architecture of [model]; set or "
                        "search no widths and no depth beside it"
                    )
            kept = kept_counts(structure, self.masks.kind, self.masks.sparsity, self.masks.allocation)
            bits = {"sections": list(sections), "kept": list(kept)}
        resolved = {**super()._resolved(dataset), "n_sections": n_sections, "bits": bits}
        if (pruning := self._mask_rules.pruning) is not None:
            resolved["method"] = pruning.resolved(allocation=self.masks.allocation)
        named = {n for s in unresolved.values() for n in self._mask_rules.methods_of(s)} - {DRAWN, self.masks.method}
        if named:
            usual = self.masks.allocation
            resolved["methods"] = {name: PRUNERS[name].method.resolved(allocation=usual) for name in sorted(named)}
        columns: dict[str, str] = {}
        for name, space in spaces_of({**self.identity(), "resolved": resolved}).items():
            for column, kind in space.columns:
                if column in _RESERVED:
                    raise ConfigError(
                        f"{self._place_of_space(name)}: {column!r} is a column of the ledger already; give the model's "
                        "option another name"
                    )
                if columns.setdefault(column, kind) != kind:
                    raise ConfigError(
                        f"arms.{name}.space: {column!r} holds {kind} here and {columns[column]} in another arm; "
                        "give both the same kind of values"
                    )
        if any(arm.controls for arm in self.arms.values()):
            columns[CONTROL_OF] = "int64"
        measured = resolved.get("columns", {})
        return {**resolved, "columns": {**measured, **{c: k for c, k in columns.items() if c not in SCHEMA.names}}}

    # Running it ------------------------------------------------------------------------------------------------------

    def _check_task(self) -> None:
        super()._check_task()
        self._check_objectives_of_task("verdict.objectives", self.verdict.objectives)
        for name, arm in self.arms.items():
            self._check_objectives_of_task(f"arms.{name}.rungs.objectives", arm.rungs.objectives)
        if DATASETS[self.data.name].task == "classification":
            return
        for name, space in spaces_of(self._written()).items():
            if "training.label_smoothing" in space.keys:
                raise ConfigError(
                    f"{self._place_of_space(name)}.training.label_smoothing: data set {self.data.name!r} has no labels "
                    "to smooth; remove it"
                )
        if self.verdict.objectives == ("val_error",):
            raise ConfigError(
                "verdict.objectives=['val_error']: of images it is a mean squared difference, and those of errors are "
                "told in points; use 'val_psnr_worst', which ranks networks alike, or add another objective"
            )

    def _check_data(self, dataset: Dataset, n_train: int) -> None:
        try:
            design = self.design(dataset)
        except SpaceError as error:
            raise ConfigError(str(error)) from error
        networks = self._networks(dataset)
        for arm in design.arms:
            where = self._place_of_space(arm.name)
            ends = [_network_at(where, networks, arm.space.settings(point)) for point in arm.space.corners()]
            for model in {id(model): model for model in map(networks.model, ends)}.values():
                kinds = arm.space.choices_of("masks.kind", self.masks.kind)
                is_scaled = "small_dense" in self.arms[arm.name].controls
                self._check_module(model, dataset, has_node_masks="node" in kinds, has_small_dense=is_scaled)
            for key, pattern in self._patterns_of(arm):
                check_pattern_fits(key, pattern, [end.structure for end in ends])
            batch_size = max(end.batch_size for end in ends)
            longest = longest_training(arm.space, design.steps, arm.chain)
            try:
                check_settings(arm.rungs, longest)
            except ConfigError as error:
                raise ConfigError(f"arms.{arm.name}.{error}") from error
            if batch_size > n_train:
                raise ConfigError(
                    f"{where}.training.batch_size: {batch_size} must be at most {n_train}, the training examples of a "
                    "replicate"
                )
            each = max(end.level_steps for end in ends)
            if each * batch_size > MAX_BATCHED_EXAMPLES:
                raise ConfigError(
                    f"{where}.training.steps: {each} must be at most {MAX_BATCHED_EXAMPLES // batch_size} with a "
                    f"batch size of {batch_size}; the order of all batches is held in memory"
                )
            is_uneven = any(t.positions != 1 for end in ends for t in end.structure.prunable)
            is_told_later = any(
                (end.chain or end.scored or end.changing) and end.mask_kind == "weight" and not end.kept for end in ends
            )
            if is_told_later and is_uneven and any(c.quantity == "macs" for c in arm.space.constraints):
                raise ConfigError(
                    f"{where}.constraints: macs of a convolution that prunes itself are known only once its masks are "
                    "cut; constrain n_params"
                )
            fraction = min(end.data_fraction for end in ends)
            if arm.rungs.fidelity == "data_fraction":
                fraction *= min([*rung_steps(arm.rungs, longest), longest]) / longest
            if n_used(fraction, n_train) < batch_size:
                raise ConfigError(
                    f"arms.{arm.name}: trains on as little as {fraction:.3g} of the {n_train} training examples, which "
                    f"is less than a batch of {batch_size}; raise the data fraction or rungs.min_steps, or take "
                    "smaller batches"
                )

        describe = self._describer(dataset)
        for arm in design.arms:
            self._check_constraints(arm, describe)

    def _check_constraints(self, arm: SearchArm, describe: Describe) -> None:
        """Refuse bounds that no point drawn keeps: a search would end without having trained anything."""
        bounds = [c for c in arm.space.constraints if c.is_known_before_training]
        if not bounds:
            return
        n_drawn = min(N_DRAWN, MAX_PROPOSALS_EACH * arm.candidates)
        points = [*arm.space.corners(), *arm.space.draw(philox_key(self.seed, "propose", 0), 0, n_drawn)]
        costs: dict[str, list[float]] = {c.quantity: [] for c in bounds}
        for point in points:
            try:
                of_point = describe(0, point, arm.space).costs
            except SparsefrontError:  # there is no such network: whoever trains it will say so
                return
            if all(c.violation(of_point[c.quantity]) <= 0 for c in bounds):
                return
            for quantity, values in costs.items():
                values.append(of_point[quantity])
        reached = [
            f"{'smallest' if c.operator == '<=' else 'largest'} {c.quantity} "
            f"is {(min if c.operator == '<=' else max)(costs[c.quantity]):,.6g}"
            for c in bounds
        ]
        raise ConfigError(
            f"{self._constraints_of(arm)}: cannot be met; of "
            f"{len(points):,} points of the space the {', the '.join(reached)}; loosen the bounds or widen the space"
        )

    def _constraints_of(self, arm: SearchArm) -> str:
        """The constraints of an arm, where they are written."""
        where = f"arms.{arm.name}.space" if "constraints" in self.arms[arm.name].space else "space"
        return f"{where}.constraints={[str(c) for c in arm.space.constraints]}"

    def _patterns_of(self, arm: SearchArm) -> list[tuple[str, str]]:
        """Patterns of weight masks that candidates of an arm may have, each with the key that says so."""
        space = arm.space
        if space.bits is not None or "weight" not in space.choices_of("masks.kind", self.masks.kind):
            return []
        named = space.given("masks.pattern")
        key = f"{self._place_of_space(arm.name)}.masks.pattern" if named else "masks.pattern"
        said = [str(pattern) for pattern in named or [self.masks.pattern]]
        own = [PRUNERS[name].method.pattern for name in self._mask_rules.methods_of(space) if name != DRAWN]
        found = [(key, pattern) for pattern in said]
        if "unstructured" in said:
            place = f"{self._place_of_space(arm.name)}." if space.given("masks.method") else ""
            found += [(f"{place}masks.method, whose pattern", pattern) for pattern in own if pattern != "unstructured"]
        return found

    def _remarks(self, dataset: Dataset) -> list[str]:
        """What to say before anything starts.

        Strategies that never see a result, patterns that some layers are too small for, arms that cannot be repeated,
        and arms whose runs may end as failed.
        """
        networks = self._networks(dataset)
        remarks = dict.fromkeys(self._remarks_on_batches())
        for arm in self.design(dataset).arms:
            structures = [networks.describe(0, arm.space.settings(point)).structure for point in arm.space.corners()]
            for key, pattern in self._patterns_of(arm):
                if (remark := remark_on_pattern(key, pattern, structures)) is not None:
                    remarks[remark] = None
        return [*remarks, *self._remarks_on_times(), *self._remarks_on_constraints(dataset)]

    def _remarks_on_times(self) -> list[str]:
        """Arms whose strategies learn from what is measured anew whenever the study is run."""
        remarks = []
        for name, space in spaces_of(self._written()).items():
            told = {*self.verdict.objectives, *(c.quantity for c in space.constraints)}
            times = sorted(objective for objective in told if OBJECTIVES[objective].is_time)
            if times and strategy_family(self.arms[name].strategy).is_adaptive:
                remarks.append(
                    f"arms.{name}.strategy={self.arms[name].strategy!r}: learns from {times[0]!r}, which is measured, "
                    "and another whenever a study is run: what it proposes is not reproducible"
                )
        return remarks

    def _remarks_on_batches(self) -> list[str]:
        """Arms whose strategy learns from results and gets none, for one batch holds all of its candidates."""
        return [
            f"arms.{name}: all {arm.candidates:,} candidates are proposed at once (batch = {arm.batch:,}), so that it "
            f"never sees a result; set arms.{name}.batch"
            for name, arm in self.arms.items()
            if strategy_family(arm.strategy).is_adaptive and 1 < arm.candidates <= arm.batch
        ]

    def _remarks_on_constraints(self, dataset: Dataset) -> list[str]:
        """Arms whose constraints leave so little that their runs may end as failed."""
        describe, found = self._describer(dataset), dict[str, list[str]]()
        known: dict[tuple[int, int], tuple[int, int] | None] = {}
        for arm in self.design(dataset).arms:
            key = id(arm.space), arm.candidates
            if key not in known:
                known[key] = scarcity(arm, self.seed, describe, proposals_each=MAX_PROPOSALS_EACH)
            if (counts := known[key]) is not None:
                n_kept, n = counts
                clause = f"{self._constraints_of(arm)}: only {n_kept} of {n} points drawn keep them"
                found.setdefault(clause, []).append(arm.name)
        return [
            f"{clause}; runs of {', '.join(arms)} end as failed, with what they have by then, unless 1 proposal in "
            f"{MAX_PROPOSALS_EACH} does; loosen them or narrow the space"
            for clause, arms in found.items()
        ]

    def _worker_options(self, dataset: Dataset) -> dict[str, Any]:
        return {"is_search": True, "columns": self._resolved(dataset)["columns"]}

    def simulate(
        self, *, objective: str | None = None, ledger: str | Path | None = None, workers: int | None = None
    ) -> StudySimulation:
        """Run the study with imaginary workers and a simulated clock: nothing is trained or written.

        Args:
            objective: what candidates reach: a name of `sparsefront.search.simulator.SYNTHETIC`; None for 'tradeoff'.
            ledger: folder of a search on the same space, whose results are replayed instead; its candidates must have
                been trained as those of this study are.
            workers: packs at once; None as many as this machine has cores.

        Raises:
            ConfigError: an unknown objective, a ledger that cannot be replayed, or a study that cannot be simulated.
        """
        for name in self.verdict.objectives:
            is_unknown = name == "node_sparsity" and self.masks.kind == "weight"
            if OBJECTIVES[name].at_end or name.startswith("val_psnr") or is_unknown:
                raise ConfigError(
                    f"verdict.objectives: {name!r} is measured of trained networks, and a simulation trains none; "
                    "simulate the study without it"
                )
        if objective is not None and ledger is not None:
            raise ConfigError(f"objective={objective!r}: the results of {str(ledger)!r} are replayed; leave one out")
        objective = objective or "tradeoff"
        dataset = self._checked_data()
        design = self.design(dataset)
        for arm in design.arms:
            if arm.rungs.kind == "ray_asha":
                raise ConfigError(
                    f"arms.{arm.name}.rungs.kind='ray_asha': stops by Ray's own scheduler, which only runs with Ray; "
                    "simulate asha in its place"
                )
        measured: Objective
        if ledger is not None:
            results = Results(ledger)
            if not isinstance(results.design, SearchDesign):
                raise ConfigError(f"DIR={ledger}: holds a study of masks; only searches can be simulated")
            # With the defaults of keys that there were not yet when it was run.
            identity = SearchStudy.from_dict(results.identity, source=f"DIR={ledger}").identity()
            old = {**identity, "resolved": results.resolved}
            check_replay(results.folder, old, self.recorded(dataset), then=results.design, now=design)
            measured = LedgerObjective(results.to_arrow(), results.design)
        elif objective in SYNTHETIC:
            measured = SYNTHETIC[objective].objective
        else:
            raise ConfigError(f"objective={objective!r}: {nearest(objective, SYNTHETIC)}")
        sizes = self._pack_sizes(workers or self.compute.workers or available_cores(), "cpu")
        found = simulate_study(
            dataclasses.replace(design, controls=()),  # which need masks, and a simulation makes none
            self._describer(dataset),
            measured,
            pack_cost=CPU_COST,
            workers=sizes["workers"],
            max_lanes=sizes["max_lanes"],
        )
        return dataclasses.replace(found, remarks=tuple(self._remarks(dataset)))

    def _plan(
        self, dataset: Dataset, workers: int, device: str, *, stored: Callable[[str], bytes] | None = None
    ) -> Exploration:
        return Exploration(
            self.design(dataset),
            self._describer(dataset),
            pack_cost=CPU_COST if device == "cpu" else GPU_COST,
            **self._pack_sizes(workers, device),
            stored=stored,
        )

    def _ray_halving(self) -> dict[str, RayHalving]:
        design = self.design()
        found: dict[str, RayHalving] = {}
        for arm in design.arms:
            if RUNGS[arm.rungs.kind].is_scheduled:
                longest = longest_training(arm.space, design.steps)
                ladder = rung_steps(arm.rungs, longest)
                found[arm.name] = RayHalving(longest, ladder[0], arm.rungs.eta)
        return found

    def _counts(self, plan: Exploration) -> tuple[int, int, int, int]:
        totals = plan.totals()
        return 0, 0, totals.finished, totals.planned

    def _describer(self, dataset: Dataset) -> Describe:
        """What is known of a candidate before it is trained."""
        networks, names = self._networks(dataset), CandidateNames(self.base())

        def describe(replicate: int, point: Point, space: Sets) -> Described:
            settings = space.settings(point)
            network = networks.describe(replicate, settings)
            return Described(
                id=names.of_settings(replicate, settings),
                n_params=network.n_params,
                macs=network.macs,
                weight_sparsity=network.weight_sparsity,
                # Of a weight mask it would take drawing it: workers count it.
                node_sparsity=math.nan if network.mask_kind == "weight" else network.node_sparsity,
                shape=network.shape,
                steps=network.steps,
                data_fraction=network.data_fraction,
            )

        return describe

    def _pack_sizes(self, workers: int, device: str) -> dict[str, int]:
        return {"workers": workers, "max_lanes": self.compute.lanes_per_pack or (128 if device == "cpu" else 4096)}


def _table_of(space: Space, where: str = "") -> dict[str, Any]:
    """A space made in Python as it would be written; `where` says whose it is."""
    try:
        return space.to_table()
    except SpaceError as error:
        raise ConfigError(f"{where}{error}") from error


def _check_one_value(section: str, table: object, keys: Collection[str]) -> None:
    """Refuse several values of one of `keys` in a section that says what all candidates have."""
    for key, value in table.items() if isinstance(table, dict) else ():
        if key in keys and isinstance(value, dict | list | tuple):
            raise ConfigError(
                f"{section}.{key}={shown(value)}: must be one value, that of all candidates; what is searched, as "
                f"{{ low, high }} or {{ choices }}, is written in [space.{section}]"
            )


def _longest_of(space: Any) -> int | None:
    """Steps of the longest training that the table of a space asks for; None where it says nothing of them."""
    training = space.get("training") if isinstance(space, dict) else None
    entry = training.get("steps") if isinstance(training, dict) else None
    if isinstance(entry, dict):
        entry = entry.get("choices", entry.get("high"))
    values = entry if isinstance(entry, list | tuple) else [entry]
    # What is no number of steps is refused as an entry of the space.
    return max(values) if values and all(type(value) is int and value > 0 for value in values) else None


def _network_at(where: str, networks: Networks, settings: Mapping[str, Any]) -> Network:
    """The network at a corner of the space that is written at `where`."""
    try:
        return networks.describe(0, settings)
    except (ConfigError, SpaceError) as error:
        joined = "." if str(error).partition("=")[0] in settings else ": "
        raise ConfigError(f"{where}{joined}{error}") from error


#: Stands for what is known of the space only once the data are there.
_UNRESOLVED = {"n_sections": 1, "bits": {"sections": [2], "kept": [1]}}


def _model_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say what the parent is: a mask can be described only once its sections are known."""
    return {key: value for key, value in settings.items() if key.startswith("model.")}
