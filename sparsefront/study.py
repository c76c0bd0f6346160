"""A study: what a user writes, checked and completed, and what running it composes. No algorithm.

A study is a TOML file or a `Study(...)`. Sections `compute` and `record` say where it runs and where it is shown; they
are no part of its identity, so that a study may be resumed on another machine. All else is hashed: a resume with a
changed study is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsefront.cluster.address import check_address
from sparsefront.cluster.dispatch import Resources, available_cores, dispatch, ray_cluster
from sparsefront.cluster.record import LiveRecorder
from sparsefront.cluster.worker import WorkerSettings
from sparsefront.errors import ConfigError, LedgerError, SpaceError, SparsefrontError, nearest
from sparsefront.progress import Progress, ProgressView, line
from sparsefront.results import Results, design_of
from sparsefront.search.design import Design
from sparsefront.search.ledger import Ledger
from sparsefront.search.methods import METHODS
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.plan import Plan
from sparsefront.spaces.allocations import ALLOCATIONS, kept_counts
from sparsefront.spaces.candidate import CandidateNames, canonical_json
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.data import DATASETS, Dataset, load_dataset, resolve_dataset_options, split
from sparsefront.trainables.models import build_model, model_family
from sparsefront.trainables.optimizers import OPTIMIZERS, Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.recipe import Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FAMILY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

#: No study is as large as this; a file that is was named by mistake.
_MAX_STUDY_BYTES = 1 << 20
#: Examples in all batches of one training: their order takes 8 bytes each in every worker.
_MAX_BATCHED_EXAMPLES = 250_000_000
#: Masks to be scored, and levels of all replicates: what the driver can keep in memory (a byte, and about a kilobyte).
_MAX_MASKS = 10**9
_MAX_LEVELS = 10**6

Sparsity = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a study: frozen, unknown keys refused, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSection(Section):
    """Which examples; the data set's own options are written beside its name."""

    model_config = ConfigDict(extra="allow")

    name: str = "mnist1d"
    validation_fraction: Fraction = 0.2

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Check the data set's own options, and write down those that were left to their defaults."""
        if self.name not in DATASETS:
            raise ConfigError(f"name={self.name!r}: {nearest(self.name, DATASETS)}")
        known = [option.name for option in DATASETS[self.name].options]
        for key, value in self.options.items():
            if key not in known:
                raise ConfigError(_unknown(key, value, [*type(self).model_fields, *known]))
        assert self.__pydantic_extra__ is not None
        self.__pydantic_extra__.update(resolve_dataset_options(self.name, self.options))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The data set's own options, all of them."""
        return dict(self.__pydantic_extra__ or {})


class ModelSection(Section):
    """Which parent; the family's own options are written beside its name."""

    model_config = ConfigDict(extra="allow")

    name: str = "mlp"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Check the family's own options, and write down those that were left to their defaults."""
        if ":" in self.name and not FAMILY.fullmatch(self.name):
            raise ConfigError(f"name={self.name!r}: must be 'package.module:object'")
        family = model_family(self.name)
        options = getattr(family, "options", None)
        if not (
            isinstance(options, type) and issubclass(options, BaseModel) and callable(getattr(family, "build", None))
        ):
            raise ConfigError(
                f"name={self.name!r}: is no model family; it needs what sparsefront.trainables.models.ModelFamily has"
            )
        try:
            resolved = options.model_validate(self.options)
        except ValidationError as error:
            raise ConfigError(_first_error(error, options)) from error
        assert self.__pydantic_extra__ is not None
        self.__pydantic_extra__.update(resolved.model_dump(mode="json"))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The family's own options, all of them."""
        return dict(self.__pydantic_extra__ or {})


class MasksSection(Section):
    """What masks remove, and how a sparsity is divided over layers."""

    kind: Literal["node", "weight"] = "node"
    allocation: str = "uniform"


class SearchSection(Section):
    """How many masks are scored (draws), on how many training examples (probe), and how many are trained unseen."""

    draws: Annotated[int, Field(ge=1, le=10_000_000)] = 256
    probe_size: Annotated[int, Field(ge=1)] = 512
    random_draws: Annotated[int, Field(ge=1, le=100_000)] = 8


class TrainingSection(Section):
    """How every candidate is trained."""

    optimizer: str = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 100
    steps: Annotated[int, Field(ge=1, le=100_000_000)]
    eval_every: Annotated[int, Field(ge=1)] = 100
    precision: Literal["float32", "bfloat16"] = "float32"


class VerdictSection(Section):
    """How the referee judges: margins below which a difference does not matter, and the error rate."""

    equivalence_margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    convergence_target_fraction: Fraction = 0.95
    convergence_margin_fraction: Fraction = 0.05
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=6, strict=False)] = (
        "val_error",
        "n_params",
        "macs",
    )


class ComputeSection(Section):
    """Where it runs; results do not depend on it. 0 = chosen by the machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0, le=100_000)] = 0
    lanes_per_pack: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    masks_per_pack: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    lanes_at_once: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    max_retries: Annotated[int, Field(ge=0, le=100)] = 2
    memory_gib: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class RecordSection(Section):
    """The mirror in MLflow; an empty address means MLFLOW_TRACKING_URI, else SQLite in the study's folder."""

    enabled: bool = True
    tracking_uri: str = ""
    every_s: Annotated[float, Field(gt=0)] = 60.0
    timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 120.0


class Study(Section):
    """One study, resolved: defaults are filled in for all but the seed, the budget and the levels."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    replicates: Annotated[int, Field(ge=1, le=100_000)]
    sparsities: Annotated[tuple[Sparsity, ...], Field(min_length=1, max_length=1000, strict=False)]
    arms: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = tuple(METHODS)
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    masks: MasksSection = MasksSection()
    search: SearchSection = SearchSection()
    training: TrainingSection
    verdict: VerdictSection = VerdictSection()
    compute: ComputeSection = ComputeSection()
    record: RecordSection = RecordSection()

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, /, **values: Any) -> None:
            """Check and complete a study.

            Raises:
                ConfigError: one line with key, value and what is accepted.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(_first_error(error, type(self))) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What no single value shows: names, registries, and numbers that must fit each other."""
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"name={self.name!r}: must be 1-128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            )
        for key, values in (("sparsities", self.sparsities), ("arms", self.arms)):
            if len(set(values)) != len(values):
                raise ConfigError(f"{key}={list(values)}: every value may appear once")
        if len({f"{s:g}" for s in self.sparsities}) != len(self.sparsities):
            raise ConfigError(f"sparsities={list(self.sparsities)}: must differ in their first six digits")
        for arm in self.arms:
            if arm not in METHODS:
                raise ConfigError(f"arms: {arm!r} {nearest(arm, METHODS)}")
        if "random" not in self.arms:
            raise ConfigError(f"arms={list(self.arms)}: 'random' must be among them; every verdict is against it")
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
        if self.training.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"training.optimizer={self.training.optimizer!r}: {nearest(self.training.optimizer, OPTIMIZERS)}"
            )
        if self.training.nesterov and not self.training.momentum:
            raise ConfigError("training.nesterov=true: needs training.momentum > 0")
        for objective in self.verdict.objectives:
            if objective not in OBJECTIVES:
                raise ConfigError(f"verdict.objectives: {objective!r} {nearest(objective, OBJECTIVES)}")
        if len(set(self.verdict.objectives)) != len(self.verdict.objectives):
            raise ConfigError(f"verdict.objectives={list(self.verdict.objectives)}: every value may appear once")
        needs_scores = any(METHODS[arm].needs_scores for arm in self.arms)
        if needs_scores and self.search.draws < self.search.random_draws:
            raise ConfigError(
                f"search.draws={self.search.draws}: must be at least search.random_draws={self.search.random_draws}; "
                "the random arm trains the first of them"
            )
        n_levels = self.replicates * len(self.sparsities)
        if n_levels > _MAX_LEVELS or n_levels * self.search.draws > _MAX_MASKS:
            raise ConfigError(
                f"replicates={self.replicates}: with {len(self.sparsities)} sparsities of {self.search.draws:,} draws "
                f"must be at most {_MAX_LEVELS:,} levels and {_MAX_MASKS:,} masks; make it several studies"
            )
        return self

    # Making one ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Study:
        """Read a study from a TOML file.

        Args:
            path: the file.
            overrides: ``key=value`` pairs with dotted keys and TOML values, applied on top.

        Raises:
            ConfigError: one line with file, key, value and what is accepted.
        """
        path = Path(path)
        table = _read_toml(path)
        for override in overrides:
            _override(table, override)
        try:
            return cls(**table)
        except ConfigError as error:
            message = attributed(str(error), str(path), overrides)
            raise ConfigError(message if message != str(error) else f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, source: str = "Study") -> Study:
        """Check and complete a study given as nested tables.

        Raises:
            ConfigError: one line that begins with `source`.
        """
        try:
            return cls(**table)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    # What it is ------------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What the study is, as plain data: all but where it runs and where it is shown."""
        identity: dict[str, Any] = json.loads(self.model_dump_json(exclude={"compute", "record"}))
        return identity

    @property
    def digest(self) -> str:
        """Hash of the identity: 64 hex digits."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()

    def base(self) -> dict[str, object]:
        """What candidate ids hash besides the candidate: what all candidates of the study share."""
        shared = {k: v for k, v in self.identity().items() if k in ("seed", "data", "model", "masks", "training")}
        return {**shared, "probe_size": self.search.probe_size}

    def design(self) -> Design:
        """The numbers that decisions and judgements depend on."""
        return design_of(self.identity())

    def recipe(self) -> Recipe:
        """How every candidate is made and trained."""
        t = self.training
        return Recipe(
            seed=self.seed,
            model=self.model.name,
            model_options=self.model.options,
            validation_fraction=self.data.validation_fraction,
            mask_kind=self.masks.kind,
            allocation=self.masks.allocation,
            probe_size=self.search.probe_size,
            schedule=Schedule(t.optimizer, t.steps, t.batch_size, min(t.eval_every, t.steps)),
            hyper=Hyperparameters(
                lr=t.lr,
                weight_decay=t.weight_decay,
                beta1=t.beta1,
                beta2=t.beta2,
                momentum=t.momentum,
                nesterov=t.nesterov,
                label_smoothing=t.label_smoothing,
            ),
            precision=t.precision,
            lanes_at_once=self.compute.lanes_at_once or None,
        )

    # Running it ------------------------------------------------------------------------------------------------------

    def run(
        self, folder: str | Path | None = None, *, address: str | None = None, view: ProgressView | None = None
    ) -> Results:
        """Start the study in `folder`, or go on where it stopped.

        Args:
            folder: default ``runs/<name>``.
            address: of a Ray cluster; None starts one for this study on this machine.
            view: shows progress; None shows nothing.

        Returns:
            The results, complete.

        Raises:
            ConfigError: the study cannot run with its data (a batch larger than the training examples, say).
            LedgerError: the folder holds another study, is damaged, or is being written by another driver.
        """
        folder = Path("runs") / self.name if folder is None else Path(folder)
        if address is not None:
            check_address(address)
        device = _device(self.compute.device, address)
        dataset = self._checked_data()
        design, recipe = self.design(), self.recipe()
        resources = Resources(address, device, self.compute.workers or None, self.compute.max_retries)
        settings = WorkerSettings(
            recipe=recipe,
            base=self.base(),
            device=device,
            timeout_s=self.compute.timeout_s,
            memory_bytes=int(self.compute.memory_gib * 2**30) or None,
        )
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            slots: int | None = None
            if address is not None and not (folder / "study.json").exists():
                slots = _connected(stack, resources)  # first: a wrong address must leave no folder behind
            ledger = stack.enter_context(self._ledger(folder, dataset))
            workers = self.compute.workers or (available_cores() if device == "cpu" else 1)
            plan = Plan(design, CandidateNames(self.base()), **self._pack_sizes(workers, device))
            progress = Progress(design, plan.totals)
            for batch in ledger.scan(columns=progress.columns_with(plan.columns)):
                plan.absorb(batch)
                progress.absorb(batch)
            recorder = None
            if self.record.enabled:
                recorder = LiveRecorder(
                    folder,
                    tracking_uri=self.record.tracking_uri or None,
                    design=design,
                    every_s=self.record.every_s,
                    timeout_s=self.record.timeout_s,
                    n_planned=plan.totals()[3],
                )
                recorder.start(time.monotonic())
            if view is not None:
                stack.callback(view.close)

            def tick() -> None:
                if view is not None:
                    view.show(progress)
                if recorder is not None:
                    recorder.maybe_export(time.monotonic())

            if not plan.is_complete:
                if view is not None:
                    begun = any(progress.counts[::2])
                    view.say(f"{line(progress)}; going on" if begun else f"{self.name}: starting")
                    if self.replicates < 2:
                        view.say("with one replicate nothing can be judged; a verdict needs at least 2, better 10")
                    view.say(f"starting Ray's workers on {address or 'this machine'}, {device}")
                slots = slots or _connected(stack, resources)
                plan.resize(**self._pack_sizes(slots, device))
                progress.start(slots)
                try:
                    dispatch(
                        plan,
                        ledger,
                        settings,
                        dataset,
                        resources,
                        slots=slots,
                        on_commit=progress.absorb,
                        on_tick=tick,
                    )
                except KeyboardInterrupt:
                    if view is not None:
                        view.close()
                        view.say(line(progress))
                    raise
                except LedgerError as error:  # not the user's input: the disk, most likely
                    raise SparsefrontError(
                        f"{error}; what was committed is safe, run the same command to go on"
                    ) from error
            if view is not None:
                view.finish(progress, seconds=time.monotonic() - began)
            results = Results(folder)
            report = results.report()
            if recorder is not None:
                if view is not None:
                    view.say("recording in MLflow")
                results.recorded = recorder.finish(self.record.timeout_s, report=report)
        return results

    def _checked_data(self) -> Dataset:
        """Load the data set, and refuse what could only fail later: before anything is written."""
        dataset = load_dataset(self.data.name, self.data.options)
        try:
            # The sizes of a split do not depend on its generator.
            parts = split(
                dataset,
                validation_fraction=self.data.validation_fraction,
                generator=generator(self.seed, "split", 0),
            )
        except ConfigError as error:
            raise ConfigError(f"data.{error}") from error
        n_left = len(parts.train_indices)
        sizes = {"training.batch_size": self.training.batch_size, "search.probe_size": self.search.probe_size}
        for key, value in sizes.items():
            if value > n_left:
                raise ConfigError(f"{key}={value}: must be at most {n_left}, the training examples of a replicate")
        most = _MAX_BATCHED_EXAMPLES // self.training.batch_size
        if self.training.steps > most:
            raise ConfigError(
                f"training.steps={self.training.steps}: must be at most {most} with training.batch_size="
                f"{self.training.batch_size}; the order of all batches is held in memory"
            )
        try:
            model = build_model(
                self.model.name, self.model.options, input_shape=dataset.example_shape, n_classes=dataset.n_classes
            )
            for sparsity in self.sparsities:
                kept_counts(model.structure, self.masks.kind, sparsity, self.masks.allocation)
        except (ConfigError, SpaceError) as error:
            raise ConfigError(f"model.name={self.model.name!r}: cannot be the parent here ({error})") from error
        return dataset

    def _pack_sizes(self, workers: int, device: str) -> dict[str, int]:
        """Masks and lanes in a pack: enough to pay for a trial, few enough to keep all workers busy to the end."""
        levels = self.replicates * len(self.sparsities)
        # About four packs of masks and two of networks for each worker.
        masks = -(-levels * self.search.draws // (workers * 4))
        lanes = -(-levels * (self.search.random_draws + len(self.arms)) // (workers * 2))
        largest = 128 if device == "cpu" else 4096
        return {
            "masks_per_pack": self.compute.masks_per_pack or min(4096, max(256, masks)),
            "lanes_per_pack": self.compute.lanes_per_pack or min(largest, max(16, lanes)),
        }

    def _ledger(self, folder: Path, dataset: Dataset) -> Ledger:
        # Other data under the same options (another generator) must not be mixed into one ledger.
        recorded = {**self.identity(), "data_digest": dataset.digest}
        digest = hashlib.sha256(canonical_json(recorded).encode()).hexdigest()
        if os.path.lexists(folder / "study.json"):
            return Ledger.open(folder, digest=digest, study=recorded)
        _check_folder(folder)
        return Ledger.create(folder, recorded, digest=digest, versions=versions())


def versions() -> dict[str, str]:
    """Versions that a study's results may depend on."""
    packages = ("sparsefront", "torch", "ray", "numpy", "pyarrow", "moocore", "scipy")
    found = {name: importlib.metadata.version(name) for name in packages}
    machine = f"{platform.system()} {platform.machine()}, {available_cores()} cores"
    return {"python": platform.python_version(), **found, "machine": machine}


def _device(wanted: str, address: str | None) -> str:
    """'cpu' or 'cuda'; of another cluster the driver's own hardware says nothing, so that 'auto' means the CPU."""
    import torch

    if wanted == "auto":
        return "cuda" if address is None and torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and address is None and not torch.cuda.is_available():
        raise ConfigError(
            "compute.device='cuda': this machine has no CUDA device that torch can use; use 'auto' or 'cpu'"
        )
    return wanted


def _connected(stack: contextlib.ExitStack, resources: Resources) -> int:
    """Connect to the cluster until `stack` is closed, or start one: the packs that can run at once."""
    if resources.address is None:
        return stack.enter_context(ray_cluster(resources))
    try:
        return stack.enter_context(ray_cluster(resources))
    except (SparsefrontError, ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--address {resources.address}: {error}") from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder that a study cannot be started in, before anything is made."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        is_folder = existing.resolve(strict=True).is_dir()
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise ConfigError(f"DIR={folder}: is not usable ({error}); give a new or empty folder") from error
    longest = os.pathconf(existing, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in folder.parts):
        raise ConfigError(f"DIR={_shown(str(folder))}: a name in it is longer than {longest} bytes; give a shorter one")
    if not is_folder:
        what = "is a file" if existing == folder else f"{existing} is a file"
        raise ConfigError(f"DIR={folder}: {what}; give a new or empty folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"DIR={folder}: {existing} cannot be written; give another folder, or change its permissions")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_STUDY_BYTES + 1)
        if len(content) > _MAX_STUDY_BYTES:
            raise ConfigError(f"{path}: is larger than {_MAX_STUDY_BYTES:,} bytes, which no study is; name a TOML file")
        return tomllib.loads(content.decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see examples/ for studies to start from") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: must be key=value with a dotted key, e.g. training.steps=500")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text.strip()
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()  # a bare word is a string
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    table[parts[-1]] = value


def attributed(message: str, source: str, overrides: Sequence[str] = ()) -> str:
    """Say where the key that a message begins with was written; a message about something else stays as it is.

    >>> attributed("training.steps=0: must be at least 1", "a.toml")
    'a.toml: training.steps=0: must be at least 1'
    >>> attributed("training.steps=0: must be at least 1", "a.toml", ["training.steps=0"])
    '--set training.steps=0: must be at least 1'
    >>> attributed("DIR=x: is a file", "a.toml")
    'DIR=x: is a file'
    """
    found = re.match(r"([A-Za-z_]\w*)[\w.]*(?=[=:])", message)
    if found is None or found[1] not in Study.model_fields:
        return message
    keys = (override.partition("=")[0].strip() for override in overrides)
    return f"--set {message}" if any(f"{found[0]}.".startswith(f"{key}.") for key in keys) else f"{source}: {message}"


#: What is accepted, by the type of pydantic's error; its own words speak of Python.
_ACCEPTED = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text in quotes",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be a section of keys and values",
    "literal_error": "must be {expected}",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} or fewer values",
}


def _first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, as key, value and what is accepted."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    context = first.get("ctx", {})
    reason = context.get("error")
    if isinstance(reason, ConfigError):
        text = str(reason)
        return f"{key}.{text}" if key and not text.startswith(f"{key}.") else text
    if first["type"] == "extra_forbidden":
        for part in first["loc"][:-1]:
            section = model.model_fields[str(part)].annotation
            assert isinstance(section, type)
            model = section
        return _unknown(key, first["input"], model.model_fields)
    if first["type"] == "missing":
        return f"{key}: is missing and has no default; write it"
    accepted = _ACCEPTED.get(first["type"], "{message}").format(message=reason or first["msg"], **context)
    return f"{key}={_shown(first['input'])}: {accepted}"


def _unknown(key: str, value: object, known: Iterable[str]) -> str:
    """Message for a key that does not exist; `key` may be dotted, `known` are the last parts."""
    return f"{key}={_shown(value)}: unknown key; {nearest(key.rpartition('.')[2], known)}"


def _shown(value: object) -> str:
    """A value as a message quotes it: never more than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
