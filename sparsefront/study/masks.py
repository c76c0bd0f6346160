"""Studies of masks: random search over masks at levels of sparsity, and the arms that it is compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from sparsefront.errors import ConfigError, SpaceError, nearest
from sparsefront.results import write_claim
from sparsefront.search.claims import Claim, checked_test
from sparsefront.search.design import Design
from sparsefront.search.methods import ARM_KEYS, BASELINE, METHODS, PRUNERS, Method, Pruner, methods_of, tables_for
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.methods.random import Random
from sparsefront.search.methods.selected import Selected
from sparsefront.search.metrics import METRIC_OF_TASK, METRICS
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.plan import Plan
from sparsefront.search.resolved import design_of
from sparsefront.search.schema import schema_of
from sparsefront.spaces.allocations import ALLOCATIONS, EXPLICIT, kept_counts
from sparsefront.spaces.candidate import CandidateNames
from sparsefront.spaces.controls import CONTROLS, budget_steps
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.structure import SCALING
from sparsefront.study.methods import check_control_names, check_scores
from sparsefront.study.objectives import check_objectives, validated_columns
from sparsefront.study.patterns import check_pattern_fits, remark_on_pattern
from sparsefront.study.reading import first_error, shown
from sparsefront.study.search_sections import ArmSection as SearchedArmSection
from sparsefront.study.sections import ArmSection, ClaimSection, MasksSection, SearchSection, Sparsity, VerdictSection
from sparsefront.study.study import Study
from sparsefront.trainables.data import DATASETS, Dataset, load_dataset
from sparsefront.trainables.models import Model, build_model
from sparsefront.trainables.optimizers import OPTIMIZERS
from sparsefront.trainables.pruning import SCORES
from sparsefront.trainables.pruning.during import making_passes
from sparsefront.trainables.quality import QUALITIES, check_qualities
from sparsefront.trainables.recipe import Recipe
from sparsefront.trainables.workshop import FORWARD_PASS

#: Masks to be scored, and levels of all replicates: what the driver can keep in memory (a byte, and about a kilobyte).
_MAX_MASKS = 10**9
_MAX_LEVELS = 10**6
#: Random masks that are trained at a level, where no arm takes longer.
_USUAL_DRAWS: int = SearchSection.model_fields["random_draws"].default
_ARM = re.compile(r"[A-Za-z]\w*")
_PRUNING_FIELDS = tuple(field.name for field in fields(Pruning))
_REAL_FIELDS = tuple(field.name for field in fields(Pruning) if field.type == "float")


_LIST: TypeAdapter[tuple[str, ...]] = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1, strict=False)])
_TABLE: TypeAdapter[dict[str, ArmSection]] = TypeAdapter(dict[str, ArmSection])


def _read_arms(value: Any, _: ValidatorFunctionWrapHandler) -> Any:
    """A list of names or a section for each arm: errors of the one that was meant, not of the union of both."""
    if not isinstance(value, list | tuple | Mapping):
        raise ConfigError(f"arms={shown(value)}: must be a list of names, or a section for each arm")
    try:
        if isinstance(value, Mapping):
            return _TABLE.validate_python({arm: _with_real_numbers(table) for arm, table in value.items()})
        return _LIST.validate_python(value)
    except ValidationError as error:
        text = first_error(error, ArmSection)
        raise ConfigError(f"arms{text}" if text.startswith("=") else f"arms.{text}") from error


def _with_real_numbers(table: Any) -> Any:
    """An arm's table in which 1 and 1.0 are the same study."""
    if not isinstance(table, Mapping):
        return table
    found = {k: float(v) if k in _REAL_FIELDS and type(v) is int else v for k, v in table.items()}
    if isinstance(densities := found.get("densities"), list | tuple):
        found["densities"] = [float(v) if type(v) is int else v for v in densities]
    return found


class MaskStudy(Study):
    """Every arm at every sparsity and in every replicate."""

    plural = "studies of masks"

    sparsities: Annotated[tuple[Sparsity, ...], Field(min_length=1, max_length=1000, strict=False)]
    arms: Annotated[tuple[str, ...] | Mapping[str, ArmSection], WrapValidator(_read_arms)] = BASELINE
    masks: MasksSection = MasksSection()
    search: SearchSection = SearchSection()
    verdict: VerdictSection = VerdictSection()
    claim: ClaimSection | None = None

    @classmethod
    def is_for(cls, values: Mapping[str, Any]) -> bool:
        """Whatever has no space."""
        return "space" not in values

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Write down the margin of the task, where the study does not say one."""
        if "equivalence_margin" not in self.verdict.model_fields_set and self.data.name in DATASETS:
            margin = METRICS[METRIC_OF_TASK[DATASETS[self.data.name].task]].margin
            verdict = self.verdict.model_copy(update={"equivalence_margin": margin})
            object.__setattr__(self, "verdict", verdict)  # frozen for everybody else
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What no single value shows: names, registries, and numbers that must fit each other."""
        for key, values in (("sparsities", self.sparsities), ("arms", tuple(self.arms))):
            if len(set(values)) != len(values):
                raise ConfigError(f"{key}={list(values)}: every value may appear once")
        if len({f"{s:g}" for s in self.sparsities}) != len(self.sparsities):
            raise ConfigError(f"sparsities={list(self.sparsities)}: must differ in their first six digits")
        if self.masks.allocation == EXPLICIT:
            raise ConfigError(
                f"masks.allocation={EXPLICIT!r}: densities of your own are for an arm; give [arms.NAME] allocation and "
                "densities"
            )
        if self.masks.allocation not in ALLOCATIONS:
            raise ConfigError(
                f"masks.allocation={self.masks.allocation!r}: {nearest(self.masks.allocation, ALLOCATIONS)}"
            )
        kinds = ALLOCATIONS[self.masks.allocation].kinds
        if self.masks.kind not in kinds:
            raise ConfigError(
                f"masks.allocation={self.masks.allocation!r}: divides {' and '.join(kinds)} masks only, and "
                f"masks.kind is {self.masks.kind!r}; change one of the two"
            )
        if self.masks.prune_biases:
            if self.masks.kind != "weight":
                raise ConfigError(
                    f"masks.prune_biases=true: is of weight masks, and masks.kind is {self.masks.kind!r}, whose nodes "
                    "leave with their biases; leave it out"
                )
            self._check_divides_biases("masks", self.masks.allocation)
        methods = self._methods()
        if "random" not in methods:
            raise ConfigError(f"arms={list(self.arms)}: 'random' must be among them; every verdict is against it")
        if self.training.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"training.optimizer={self.training.optimizer!r}: {nearest(self.training.optimizer, OPTIMIZERS)}"
            )
        if self.training.nesterov and not self.training.momentum:
            raise ConfigError("training.nesterov=true: needs training.momentum > 0")
        check_qualities(self.quality, has_parent=True)
        check_objectives("verdict.objectives", self.verdict.objectives, OBJECTIVES, self.quality)
        tables = self._arm_tables().values()
        for objective in self.verdict.objectives:
            if OBJECTIVES[objective].needs_siblings and not any(table.get("siblings") for table in tables):
                raise ConfigError(
                    f"verdict.objectives: {objective!r} is measured of arms with siblings = true, and there is none; "
                    "set it in [arms.NAME], or leave the objective out"
                )
        needs_scores = any(method.needs_scores for method in methods.values())
        is_said = bool({"random_draws", "random_draws_by_level"} & self.search.model_fields_set)
        self._check_draws_by_level()
        if needs_scores and is_said and self.search.draws < max(self._draws):
            raise ConfigError(
                f"search.draws={self.search.draws}: must be at least search.random_draws={max(self._draws)}; "
                "the random arm trains the first of them"
            )
        n_sparsities = len(
            {s for method in methods.values() for s in (*method.levels(self._ascending), *self.sparsities)}
        )
        n_levels, n_draws = self.replicates * n_sparsities, self.replicates * len(self.sparsities) * self.search.draws
        if n_levels > _MAX_LEVELS or n_draws > _MAX_MASKS:
            raise ConfigError(
                f"replicates={self.replicates}: with {n_sparsities} sparsities of {self.search.draws:,} draws "
                f"must be at most {_MAX_LEVELS:,} levels and {_MAX_MASKS:,} masks; make it several studies"
            )
        self._check_claim()
        return self

    @model_validator(mode="after")
    def _grant(self) -> Self:
        """Write down how many random masks the budget of the longest arm pays for, where the study does not say."""
        if not {"random_draws", "random_draws_by_level"} & self.search.model_fields_set:
            draws = self._draws_at_budget()
            by_level = draws if len(set(draws)) > 1 else ()
            update = {"random_draws": max(draws), "random_draws_by_level": by_level}
            object.__setattr__(self, "search", self.search.model_copy(update=update))  # frozen for everybody else
        elif self.search.random_draws_by_level:
            update = {"random_draws": max(self.search.random_draws_by_level)}
            object.__setattr__(self, "search", self.search.model_copy(update=update))
        return self

    def _check_draws_by_level(self) -> None:
        """Refuse numbers of draws that are not those of the levels, or that another number contradicts."""
        by_level = self.search.random_draws_by_level
        if not by_level:
            return
        if len(by_level) != len(self.sparsities):
            raise ConfigError(
                f"search.random_draws_by_level={shown(list(by_level))}: {len(self.sparsities)} are needed, one for "
                "each of sparsities"
            )
        if "random_draws" in self.search.model_fields_set and self.search.random_draws != max(by_level):
            raise ConfigError(
                f"search.random_draws={self.search.random_draws}: search.random_draws_by_level has the numbers of all "
                "levels; leave one of the two out"
            )

    def _draws_at_budget(self) -> tuple[int, ...]:
        """How many random masks the budget of each level's longest arm pays for, at least the usual number."""
        methods = self._methods().values()
        pruned = [method for method in methods if isinstance(method, Pruned)]
        # The random arm trains the first of those that are scored.
        most = self.search.draws if any(method.needs_scores for method in methods) else math.inf
        return tuple(
            int(min(most, max([_USUAL_DRAWS, *(math.ceil(round(self._trainings(m, s), 6)) for m in pruned)])))
            for s in self.sparsities
        )

    def _trainings(self, method: Pruned, sparsity: float) -> float:
        """What an arm's network of a level takes, everything before it included, in trainings of a random mask."""
        pruning, levels = method.method, method.levels(self._ascending)
        if sparsity not in levels:
            return 0.0
        n_networks = levels.index(sparsity) + 1 if method.goes_alone else 1
        making = budget_steps(passes, self.training.batch_size) if (passes := self._making_passes(method)) else 0
        each = pruning.retrain_fraction if pruning.survivors == "trained" and method.needs_parent else 1.0
        return method.needs_parent + n_networks * (each + making / self.training.steps)

    def _patterns(self) -> list[tuple[str, str]]:
        """Patterns of arms, each with the key that says so, or the arm whose method does."""
        tables, methods = self._arm_tables(), self._methods()
        return [
            (f"arms.{arm}.pattern" if "pattern" in table else f"arms.{arm}: pattern", method.method.pattern)
            for arm, table in tables.items()
            if isinstance(method := methods[arm], Pruned)
        ]

    def _remarks(self, dataset: Dataset) -> list[str]:
        """Patterns that some layers or sparsities are not for, and what random search takes beside a longer arm."""
        structures = [self._parent(dataset).structure]
        remarks = (remark_on_pattern(key, pattern, structures) for key, pattern in self._patterns())
        return [
            *(remark for remark in remarks if remark is not None),
            *self._remarks_on_levels(),
            *self._remarks_on_draws(dataset),
        ]

    def _remarks_on_levels(self) -> list[str]:
        """Sparsities at which an arm has no network, because its pattern has another one alone."""
        remarks = []
        for arm, method in self._methods().items():
            if isinstance(method, Pruned) and (density := parse_pattern(method.method.pattern).density) is not None:
                absent = [f"{s:g}" for s in self._ascending if s not in method.levels(self._ascending)]
                if absent:
                    remarks.append(
                        f"arms.{arm}: its pattern {method.method.pattern!r} has sparsity {1 - density:g} alone; it has "
                        f"no network at {', '.join(absent)} and is compared with nothing there"
                    )
        return remarks

    def _remarks_on_draws(self, dataset: Dataset) -> list[str]:
        """What random search takes, where it has the budget of a longer arm at every level."""
        draws = self._draws
        if max(draws) <= _USUAL_DRAWS or draws != self._draws_at_budget():
            return []
        n_random = self.replicates * sum(draws)
        n_trained = self._counts(self._plan(dataset, 1, "cpu"))[3]
        key = f"_by_level={shown(list(draws))}" if len(set(draws)) > 1 else f"={draws[0]}"
        remark = (
            f"search.random_draws{key}: what the longest arm takes to each sparsity, in each of {self.replicates} "
            f"replicates; {n_random:,} of {n_trained:,} networks ({n_random / n_trained:.0%}) are of the random arm; "
            "write search.random_draws, a smaller number, to train fewer"
        )
        return [remark]

    @property
    def _draws(self) -> tuple[int, ...]:
        """Random masks that are trained at each of the sparsities."""
        return self.search.random_draws_by_level or (self.search.random_draws,) * len(self.sparsities)

    def _check_claim(self) -> None:
        """Refuse tests that this study cannot answer."""
        if self.claim is None:
            return
        source = DATASETS[self.data.name]
        design = design_of({**self.identity(), "resolved": {"n_classes": source.n_classes, "task": source.task}})
        assert isinstance(design, Design)
        schema = schema_of({"resolved": self._measured()})
        for number, test in enumerate(Claim.of_data(self.claim.model_dump(mode="json")).tests):
            checked_test(test, design, schema, where=f"claim.tests.{number}")

    def _annotate(self, folder: Path) -> None:
        write_claim(folder, None if self.claim is None else self.claim.model_dump(mode="json"))

    @property
    def _ascending(self) -> tuple[float, ...]:
        return tuple(sorted(self.sparsities))

    def _arm_tables(self) -> dict[str, dict[str, Any]]:
        """What the user wrote of each arm."""
        if not isinstance(self.arms, Mapping):
            return {arm: {} for arm in self.arms}
        return {
            arm: {**section.model_dump(mode="json", exclude_defaults=True), **section.fields}
            for arm, section in self.arms.items()
        }

    def _methods(self) -> dict[str, Method]:
        """All arms, controls included, after all that can be wrong with them."""
        tables = self._arm_tables()
        for arm, table in tables.items():
            where = f"arms.{arm}"
            if not _ARM.fullmatch(arm):
                raise ConfigError(f"arms: {arm!r} must be letters, digits and _, beginning with a letter")
            for key in table:
                if key in SearchedArmSection.model_fields and key not in (*ARM_KEYS, *_PRUNING_FIELDS):
                    raise ConfigError(
                        f"{where}.{key}={shown(table[key])}: is a key of searches: add [space], or use one of "
                        f"{', '.join((*ARM_KEYS, *_PRUNING_FIELDS))}"
                    )
            called = table.get("method") or arm
            if called not in METHODS:
                missing = "" if arm != called else f"; or give [{where}] a method"
                raise ConfigError(
                    f"arms: {called!r} {nearest(called, METHODS)}{missing if isinstance(self.arms, Mapping) else ''}"
                )
            controls = table.get("controls", ())
            check_control_names(f"{where}.controls", controls)
            if called not in PRUNERS:
                odd = [key for key in table if key not in ARM_KEYS]
                if odd:
                    raise ConfigError(f"{where}.{odd[0]}: method {called!r} has no options; remove it")
                if called != arm:
                    raise ConfigError(f"{where}.method={called!r}: this method has no options; call the arm {called!r}")
                self._check_controls_of_drawn(where, METHODS[called], controls)
                continue
            for key in table:
                if key not in (*ARM_KEYS, *_PRUNING_FIELDS):
                    raise ConfigError(f"{where}.{key}: {nearest(key, (*ARM_KEYS, *_PRUNING_FIELDS))}")
            self._check_pruner(where, PRUNERS[called], table)
        methods = methods_of(tables_for(tables, self.masks.kind))
        n_arms = sum(1 + len(table.get("controls", ())) for table in tables.values())
        if len(methods) != n_arms:
            raise ConfigError(f"arms={list(tables)}: a control and an arm have the same name; rename the arm")
        return methods

    def _check_controls_of_drawn(self, where: str, method: Method, controls: Sequence[str]) -> None:
        """Refuse controls of arms that do not prune, where they say nothing."""
        if controls and not isinstance(method, Random | Selected):
            raise ConfigError(
                f"{where}.controls: {controls[0]!r} is of networks under a mask, and this arm has dense ones; remove it"
            )
        for control in controls:
            why = CONTROLS[control].of_drawn if isinstance(method, Random) else ""
            if control == "shuffled" and isinstance(method, Random) and self.masks.allocation == "global":
                why = "is another random mask, for allocation 'global' fixes no ratios of layers"
            if why:
                raise ConfigError(f"{where}.controls: {control!r} {why}; remove it")

    def _check_pruner(self, where: str, row: Pruner, table: Mapping[str, Any]) -> None:
        kind = self.masks.kind
        if kind not in row.kinds:
            raise ConfigError(
                f"{where}: prunes {' and '.join(row.kinds)} masks only, and masks.kind is {kind!r}; change one of them"
            )
        changes = {key: value for key, value in table.items() if key not in ARM_KEYS}
        try:
            method = Pruning.of_data({**row.for_masks(kind).as_data(), **changes})
        except SpaceError as error:
            raise ConfigError(f"{where}.{error}") from error
        for key, value in changes.items():
            if not method.reads(key):
                raise ConfigError(
                    f"{where}.{key}={shown(value)}: has no effect on an arm with when={method.when!r}, "
                    f"survivors={method.survivors!r} and update={method.update!r}; remove it"
                )
        steps = self.training.steps
        if method.needs_parent and method.survivors == "rewound" and method.rewind_step(steps) >= steps:
            raise ConfigError(
                f"{where}.rewind_fraction={method.rewind_fraction!r}: goes back to the end of the training "
                f"({steps} steps), after which nothing is left to train; lower it, or use survivors='trained'"
            )
        if method.reads("rewind_fraction") and method.rewind_fraction and not method.rewind_step(steps):
            raise ConfigError(
                f"{where}.rewind_fraction={method.rewind_fraction!r}: rounds to step 0 of a training of {steps} steps, "
                f"which is initialisation; set {1 / steps:.3g} or more, train for more steps, or say that it is 0"
            )
        if table.get("siblings") and method.when == "during":
            raise ConfigError(
                f"{where}.siblings=true: siblings share a mask, and that of an arm with when='during' changes in its "
                "training; remove it"
            )
        if (pattern := parse_pattern(method.pattern)).kind != kind and (kind, method.pattern) != (
            "node",
            "unstructured",
        ):
            raise ConfigError(
                f"{where}.pattern={method.pattern!r}: is one of {pattern.kind} masks, not of {kind} masks"
            )
        if not Pruned(where, "", "", method).levels(self._ascending):
            raise ConfigError(
                f"{where}.pattern={method.pattern!r}: has sparsity {1 - (pattern.density or 0.0):g} alone, which is "
                f"not among sparsities={list(self.sparsities)}; add it, or remove the arm"
            )
        controls = table.get("controls", ())
        if "shuffled" in controls and method.pattern not in ("unstructured", "node"):
            raise ConfigError(
                f"{where}.controls: 'shuffled' moves survivors between layers, which pattern {method.pattern!r} ties "
                "to them; use 'shuffled_layers'"
            )
        shuffles = [control for control in controls if CONTROLS[control].shuffle is not None]
        if shuffles and method.when == "levels" and method.survivors == "trained":
            raise ConfigError(
                f"{where}.controls: {shuffles[0]!r} needs weights at other positions, and a level with "
                "survivors='trained' goes on from those of its own mask alone; remove it, or add an arm of this method "
                "with score='random', whose levels remove at random"
            )
        anew = [control for control in controls if CONTROLS[control].fresh_weights]
        if anew and method.keeps_weights and not method.steps_after(self.training.steps):
            raise ConfigError(
                f"{where}.controls: {anew[0]!r} trains new weights for as long as the arm's survivors, and "
                f"retrain_fraction={method.retrain_fraction!r} of {self.training.steps} steps is none; remove one"
            )
        if "fresh_weights" in controls and method.needs_parent and method.survivors == "fresh":
            raise ConfigError(f"{where}.controls: 'fresh_weights' is what survivors='fresh' is already; remove it")
        check_scores(where, method, kind)
        allocation = method.allocation or self.masks.allocation
        if allocation not in (*ALLOCATIONS, EXPLICIT):
            raise ConfigError(f"{where}.allocation={allocation!r}: {nearest(allocation, (*ALLOCATIONS, EXPLICIT))}")
        if allocation in ALLOCATIONS and kind not in ALLOCATIONS[allocation].kinds:
            raise ConfigError(
                f"{where}.allocation={allocation!r}: divides {' and '.join(ALLOCATIONS[allocation].kinds)} masks only"
            )
        is_block = pattern.density is None and method.pattern not in ("unstructured", "node")
        is_global = allocation in ALLOCATIONS and ALLOCATIONS[allocation].densities is None
        if is_block and is_global and method.update in ("gradual", "edge_popup"):
            raise ConfigError(
                f"{where}.pattern={method.pattern!r}: blocks that are chosen in training need a count for each layer, "
                f"and allocation {allocation!r} has one for all; name another for this arm, such as allocation='erk'"
            )
        if self.masks.prune_biases:
            self._check_prunes_biases(where, method, allocation)
        if method.ap_fraction and (kind != "weight" or allocation != "global"):
            raise ConfigError(
                f"{where}.ap_fraction={method.ap_fraction!r}: removes single weights wherever they are; it needs "
                "masks.kind 'weight' and allocation 'global'"
            )
        activation = self.model.options.get("activation", "relu")
        if method.ap_fraction and activation != "relu":
            raise ConfigError(
                f"{where}.ap_fraction={method.ap_fraction!r}: removes negative weights to keep rectified units active; "
                f"it needs model.activation='relu', which is {activation!r}"
            )

    def _check_divides_biases(self, where: str, allocation: str) -> None:
        """Refuse an allocation that says nothing of biases."""
        if allocation != EXPLICIT and not ALLOCATIONS[allocation].of_biases:
            able = [name for name, row in ALLOCATIONS.items() if row.of_biases]
            able += [] if where == "masks" else [EXPLICIT]  # which is for arms
            raise ConfigError(
                f"{where}.allocation={allocation!r}: has no density for biases, which masks.prune_biases=true prunes, "
                f"too; use one of {', '.join(able)}"
            )

    def _check_prunes_biases(self, where: str, method: Pruning, allocation: str) -> None:
        """Refuse what an arm cannot do to biases."""
        self._check_divides_biases(where, allocation)
        if method.pattern != "unstructured":
            raise ConfigError(
                f"{where}.pattern={method.pattern!r}: is of weights, and masks.prune_biases=true prunes biases, too; "
                "use 'unstructured'"
            )
        if method.when == "during":
            raise ConfigError(
                f"{where}.update={method.update!r}: changes masks of weights, and masks.prune_biases=true prunes "
                "biases, too; use an arm whose mask is made before or after training"
            )
        for key in ("score", "counts_of"):
            if (score := getattr(method, key)) is not None and not SCORES[score].of_biases:
                raise ConfigError(
                    f"{where}.{key}={score!r}: is the same of every bias, and masks.prune_biases=true prunes them, "
                    "too; use another score"
                )

    def base(self) -> dict[str, object]:
        """What candidate ids hash besides the candidate: what all candidates of the study share."""
        shared = {k: v for k, v in self.identity().items() if k in ("seed", "data", "model", "masks", "training")}
        return {**shared, "probe_size": self.search.probe_size, **self._scaling}

    @property
    def _scaling(self) -> dict[str, str]:
        """How small dense networks come to their size; nothing where there is none that is scaled to a count."""
        tables = self._arm_tables()
        is_scaled = any("small_dense" in table.get("controls", ()) for table in tables.values())
        # Under masks of nodes the arm has the counts of the level.
        is_scaled = is_scaled or (self.masks.kind == "weight" and "small_dense" in tables)
        return {"small_dense": SCALING} if is_scaled else {}

    def design(self, dataset: Dataset | None = None) -> Design:
        """The numbers that decisions and judgements depend on."""
        source = DATASETS[self.data.name]
        resolved: dict[str, Any] = {"n_classes": source.n_classes}
        if source.task != "classification":
            resolved = self._resolved(dataset or load_dataset(self.data.name, self.data.options))
        design = design_of({**self.identity(), "resolved": {**resolved, **self._measured()}})
        assert isinstance(design, Design)
        return design

    def _resolved(self, dataset: Dataset) -> dict[str, Any]:
        """With the sections of masks, to compare them without building the parent, and with what methods come to."""
        try:
            sections = list(self._parent(dataset).structure.section_sizes(self.masks.kind))
        except (ConfigError, SpaceError):  # a parent that these data do not fit is refused when the study is run
            sections = []
        # A name of a method says less than what it stands for, which a version may change: then nothing is resumed.
        methods = {
            arm: method.method.resolved(allocation=self.masks.allocation)
            for arm, method in self._methods().items()
            if isinstance(method, Pruned)
        }
        return {
            **super()._resolved(dataset),
            "mask_sections": sections,
            **({"methods": methods} if methods else {}),
            **self._scaling,
        }

    def _parent(self, dataset: Dataset) -> Model:
        return build_model(
            self.model.name,
            self.model.options,
            input_shape=dataset.example_shape,
            n_classes=dataset.n_classes,
            prune_biases=self.masks.prune_biases,
        )

    def _measured(self) -> dict[str, Any]:
        """With whether trained parents are kept, which some qualities compare with, and what making a mask takes."""
        is_compared = any(QUALITIES[name].compare is not None for name in self.quality)
        tables = self._arm_tables()
        making = {
            arm: budget_steps(passes, self.training.batch_size)
            for arm, method in self._methods().items()
            if (
                passes := self._making_passes(
                    method, is_bought="dense_budget" in tables.get(arm, {}).get("controls", ())
                )
            )
        }
        return {
            **super()._measured(),
            **({"keeps_parents": True} if is_compared else {}),
            **({"making_steps": making} if making else {}),
        }

    def _making_passes(self, arm: Method, *, is_bought: bool = False) -> float:
        """Forward+backward passes of an example that scoring takes for one mask, in its training too."""
        if isinstance(arm, Selected) and is_bought:  # all else counts the scores that were taken, row by row
            return self.search.draws * self.search.probe_size * FORWARD_PASS
        if not isinstance(arm, Pruned):
            return 0.0
        return making_passes(arm.method, self.search.probe_size, steps=self.training.steps)

    @property
    def _validated(self) -> tuple[str, ...]:
        return validated_columns(*self.verdict.objectives)

    def recipe(self) -> Recipe:
        """How every candidate is made and trained."""
        return self._recipe(
            mask_kind=self.masks.kind,
            allocation=self.masks.allocation,
            probe_size=self.search.probe_size,
            prune_biases=self.masks.prune_biases,
        )

    def _check_task(self) -> None:
        super()._check_task()
        task = DATASETS[self.data.name].task
        if task != "classification" and "searched_scalefree" in self.arms:
            raise ConfigError(
                f"arms: 'searched_scalefree' chooses by a loss of logits, and data set {self.data.name!r} is for "
                f"{task}; leave it out"
            )
        self._check_objectives_of_task("verdict.objectives", self.verdict.objectives)

    def _check_data(self, dataset: Dataset, n_train: int) -> None:
        if self.search.probe_size > n_train:
            raise ConfigError(
                f"search.probe_size={self.search.probe_size}: must be at most {n_train}, the training examples of a "
                "replicate"
            )
        try:
            model = self._parent(dataset)
            for sparsity in self.sparsities:
                kept_counts(model.structure, self.masks.kind, sparsity, self.masks.allocation)
        except (ConfigError, SpaceError) as error:
            raise ConfigError(f"model.name={self.model.name!r}: cannot be the parent here ({error})") from error
        self._check_module(
            model, dataset, has_node_masks=self.masks.kind == "node", has_small_dense=bool(self._scaling)
        )
        for key, pattern in self._patterns():
            check_pattern_fits(key, pattern, [model.structure])
        for arm, method in self._methods().items():
            if isinstance(method, Pruned) and (densities := method.method.densities):
                sizes = model.structure.section_sizes(self.masks.kind)
                if len(densities) != len(sizes):
                    raise ConfigError(
                        f"arms.{arm}.densities={shown(list(densities))}: {len(sizes)} are needed, one for each layer "
                        f"of {self.model.name!r}"
                    )
                try:
                    for sparsity in method.levels(self._ascending):
                        kept_counts(model.structure, self.masks.kind, sparsity, EXPLICIT, explicit=densities)
                except SpaceError as error:
                    raise ConfigError(f"arms.{arm}.densities: {error}") from error

    def _plan(
        self, dataset: Dataset, workers: int, device: str, *, stored: Callable[[str], bytes] | None = None
    ) -> Plan:
        return Plan(self.design(), CandidateNames(self.base()), **self._pack_sizes(workers, device))

    def _counts(self, plan: Plan) -> tuple[int, int, int, int]:
        return plan.totals()

    def _pack_sizes(self, workers: int, device: str) -> dict[str, int]:
        """Masks and lanes in a pack: enough to pay for a trial, few enough to keep all workers busy to the end."""
        levels = self.replicates * len(self.sparsities)
        # About four packs of masks and two of networks for each worker.
        masks = -(-levels * self.search.draws // (workers * 4))
        n_networks = self.replicates * sum(self._draws) + levels * len(self.arms)
        lanes = -(-n_networks // (workers * 2))
        largest = 128 if device == "cpu" else 4096
        return {
            "masks_per_pack": self.compute.masks_per_pack or min(4096, max(256, masks)),
            "workers": workers,
            "lanes_per_pack": self.compute.lanes_per_pack or min(largest, max(16, lanes)),
        }
