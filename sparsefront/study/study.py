"""A study: what a user writes, checked and completed, and what running it composes. No algorithm.

A study is a TOML file or a `Study(...)`: a study of masks (`MaskStudy`: levels of sparsity and the arms of the
random-search protocol), or, where it has a section `space`, a search (`SearchStudy`: strategies on a space). Sections
`compute` and `record` say where it runs and where it is shown; they are no part of its identity, so that a study may be
resumed on another machine. All else is hashed: a resume with a changed study is refused.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from sparsefront.cluster.address import check_address
from sparsefront.cluster.checkpoints import CheckpointKeeper
from sparsefront.cluster.dispatch import dispatch
from sparsefront.cluster.halving import RayHalving
from sparsefront.cluster.ray_cluster import Resources, available_cores, ray_cluster
from sparsefront.cluster.record import LiveRecorder
from sparsefront.cluster.worker import WorkerSettings
from sparsefront.errors import ConfigError, LedgerError, SparsefrontError
from sparsefront.progress import Progress, ProgressView, line
from sparsefront.results import Results
from sparsefront.search.design import Design, SearchDesign
from sparsefront.search.ledger import Ledger
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.seeds import generator
from sparsefront.study.reading import first_error, keys_beside, override_key, read_toml, shown
from sparsefront.study.sections import (
    ComputeSection,
    DataSection,
    ModelSection,
    RecordSection,
    Section,
    TrainingSection,
)
from sparsefront.trainables.data import DATASETS, Dataset, fresh_options, load_dataset, split
from sparsefront.trainables.models import Model, changing_buffers, model_family, random_layer, uncuttable_layer
from sparsefront.trainables.optimizers import Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.quality import QUALITIES
from sparsefront.trainables.recipe import Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: Examples in all batches of one training: their order takes 8 bytes each in every worker.
MAX_BATCHED_EXAMPLES = 250_000_000


#: The kinds of study; each is added where it is defined.
_KINDS: list[type[Study]] = []


class Study(Section):
    """One study, resolved: defaults are filled in for all but the seed and the budget.

    `Study(...)` with a `space` is a `SearchStudy`, without one a `MaskStudy`.
    """

    #: How studies of a kind are called.
    plural: ClassVar[str]

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    replicates: Annotated[int, Field(ge=1, le=100_000)]
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    training: TrainingSection
    quality: Annotated[tuple[str, ...], Field(strict=False)] = ()
    compute: ComputeSection = ComputeSection()
    record: RecordSection = RecordSection()

    if not TYPE_CHECKING:  # type checkers see the fields

        def __new__(cls, /, **values: Any) -> Self:
            """Choose the kind of study by whether it has a space."""
            return super().__new__(next(k for k in _KINDS if k.is_for(values)) if cls is Study else cls)

        def __init__(self, /, **values: Any) -> None:
            """Check and complete a study.

            Raises:
                ConfigError: one line with key, value and what is accepted.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(_of_another_kind(error, type(self)) or first_error(error, type(self))) from error

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Make the kind known."""
        _KINDS.append(cls)

    @classmethod
    @abc.abstractmethod
    def is_for(cls, values: Mapping[str, Any]) -> bool:
        """Whether these values are meant for this kind of study."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"name={self.name!r}: must be 1-128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            )
        return self

    @model_validator(mode="after")
    def _check_fresh(self) -> Self:
        self._fresh_options()
        return self

    def _fresh_options(self) -> dict[str, int]:
        """Options under which the data are drawn anew, where a quality asks for that."""
        asking = [name for name in self.quality if name in QUALITIES and QUALITIES[name].needs_fresh]
        if not asking:
            return {}
        try:
            return fresh_options(self.data.name, self.data.options, self.seed)
        except ConfigError as error:
            raise ConfigError(
                f"quality={list(self.quality)}: {asking[0]!r} needs data that are drawn anew ({error}); leave it out"
            ) from error

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
        table = read_toml(path)
        for override in overrides:
            override_key(table, override)
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
        """What the study is, as plain data: all but where it runs, where it is shown, and what a paper claims."""
        identity: dict[str, Any] = json.loads(self.model_dump_json(exclude={"claim", "compute", "record"}))
        return identity

    @property
    def digest(self) -> str:
        """Hash of the identity: 64 hex digits."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()

    def recorded(self, dataset: Dataset | None = None) -> dict[str, Any]:
        """The identity, and what follows of it from the data: what a ledger records of a study."""
        dataset = dataset or load_dataset(self.data.name, self.data.options)
        return {**self.identity(), "resolved": self._resolved(dataset)}

    @abc.abstractmethod
    def base(self) -> dict[str, object]:
        """What candidate ids hash besides the candidate: what all candidates of the study share."""

    @abc.abstractmethod
    @abc.abstractmethod
    def design(self, dataset: Dataset | None = None) -> Design | SearchDesign:
        """The numbers that decisions and judgements depend on; `dataset` saves loading it, where it is needed."""

    @abc.abstractmethod
    def recipe(self) -> Recipe:
        """How every candidate is made and trained."""

    def _recipe(self, **of_kind: Any) -> Recipe:
        """The recipe of a study: what all kinds have, and what is of this one's."""
        t = self.training
        return Recipe(
            seed=self.seed,
            model=self.model.name,
            model_options=self.model.options,
            validation_fraction=self.data.validation_fraction,
            schedule=Schedule(
                t.optimizer,
                t.steps,
                t.batch_size,
                min(t.eval_every, t.steps),
                lr_schedule=t.lr_schedule,
                warmup_fraction=t.warmup_fraction,
            ),
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
            quality=self.quality,
            fresh=self._fresh_options(),
            validated=self._validated,
            **of_kind,
        )

    # What the kinds of study do in their own way ---------------------------------------------------------------------

    @abc.abstractmethod
    def _check_data(self, dataset: Dataset, n_train: int) -> None:
        """Refuse what the data, of which a replicate trains on `n_train` examples, do not allow."""

    def _resolved(self, dataset: Dataset) -> dict[str, Any]:
        """What the ledger records of the study besides its identity."""
        # Other data under the same options (another generator) must not be mixed into one ledger.
        resolved: dict[str, Any] = {"data_digest": dataset.digest, "n_classes": dataset.n_classes}
        if dataset.task != "classification":
            resolved |= {"task": dataset.task, "untouched_psnr": dataset.untouched_psnr}
        return resolved | self._measured()

    def _measured(self) -> dict[str, Any]:
        """What follows from the qualities: columns of the ledger; nothing without any."""
        columns = {name: column for quality in self.quality for name, column in QUALITIES[quality].columns.items()}
        kinds = {name: f"test_{column.kind}" for name, column in columns.items()}
        return {"columns": {**kinds, **dict.fromkeys(self._validated, "float64")}} if columns else {}

    @property
    @abc.abstractmethod
    def _validated(self) -> tuple[str, ...]:
        """Columns of qualities that decide something, and are measured on validation examples for it."""

    def _worker_options(self, dataset: Dataset) -> dict[str, Any]:
        """Settings of the workers that only some kinds of study have."""
        return {"columns": self._resolved(dataset).get("columns", {})}

    @abc.abstractmethod
    def _plan(
        self, dataset: Dataset, workers: int, device: str, *, stored: Callable[[str], bytes] | None = None
    ) -> Any:
        """All of its work, for so many workers; `stored` gives the bits of masks by digest, once there is a ledger."""

    def _ray_halving(self) -> dict[str, RayHalving]:
        """Arms whose candidates train alone until Ray's own scheduler stops them."""
        return {}

    @abc.abstractmethod
    def _counts(self, plan: Any) -> tuple[int, int, int, int]:
        """(masks scored, masks to score, networks trained, networks to train)."""

    @abc.abstractmethod
    def _pack_sizes(self, workers: int, device: str) -> dict[str, int]:
        """Arguments of the plan's `resize` once it is known where it runs."""

    def _remarks(self, dataset: Dataset) -> list[str]:
        """What a user should know before anything is trained, and nothing is refused for."""
        return []

    def _annotate(self, folder: Path) -> None:
        """Leave beside the ledger what is no part of the study's identity."""

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
        design, recipe = self.design(dataset), self.recipe()
        compute = self.compute
        resources = Resources(
            address,
            device,
            compute.workers or None,
            compute.max_retries,
            cpus_per_trial=compute.cpus_per_trial,
            gpus_per_trial=compute.gpus_per_trial,
        )
        settings = WorkerSettings(
            recipe=recipe,
            base=self.base(),
            device=device,
            threads=compute.cpus_per_trial,
            checkpoint_every_s=compute.checkpoint_every_s,
            checkpoints=str(folder.absolute() / "checkpoints"),
            **self._worker_options(dataset),
            # Workers find a user's own strategies and parents where this process does.
            import_paths=tuple(str(Path(path).absolute()) for path in sys.path),
            timeout_s=self.compute.timeout_s,
            memory_bytes=int(self.compute.memory_gib * 2**30) or None,
        )
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            slots: int | None = None
            if address is not None and not (folder / "study.json").exists():
                slots = _connected(stack, resources)  # first: a wrong address must leave no folder behind
            ledger = stack.enter_context(self._ledger(folder, dataset))
            self._annotate(folder)
            cores = max(1, available_cores() // compute.cpus_per_trial)
            workers = compute.workers or (cores if device == "cpu" else 1)
            plan = self._plan(dataset, workers, device, stored=ledger.get_blob)
            progress = Progress(design, lambda: self._counts(plan))
            for batch in ledger.scan(columns=progress.columns_with(plan.columns)):
                plan.absorb(batch)
                progress.absorb(batch)
            recorder = None
            if self.record.enabled:
                recorder = LiveRecorder(
                    folder,
                    tracking_uri=self.record.tracking_uri or None,
                    # As it is read from the folder ever after: in the order of arms that is recorded there.
                    design=Results(folder).design,
                    every_s=self.record.every_s,
                    timeout_s=self.record.timeout_s,
                    n_planned=self._counts(plan)[3],
                )
                recorder.start(time.monotonic())
                stack.callback(recorder.close)
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
                    for remark in self._remarks(dataset):
                        view.say(remark)
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
                        halving=self._ray_halving(),
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
            else:  # a driver that died after its last commit left them behind
                CheckpointKeeper(Path(settings.checkpoints)).clear()
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
        self._check_task()
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
        n_train = len(parts.train_indices)
        if self.training.batch_size > n_train:
            raise ConfigError(
                f"training.batch_size={self.training.batch_size}: must be at most {n_train}, the training examples of "
                "a replicate"
            )
        most = MAX_BATCHED_EXAMPLES // self.training.batch_size
        if self.training.steps > most:
            raise ConfigError(
                f"training.steps={self.training.steps}: must be at most {most} with training.batch_size="
                f"{self.training.batch_size}; the order of all batches is held in memory"
            )
        self._check_data(dataset, n_train)
        return dataset

    def _check_module(self, model: Model, dataset: Dataset, *, has_node_masks: bool, has_small_dense: bool) -> None:
        """Refuse a parent that the networks of a pack cannot share, or that does not run at their sizes."""
        where, shape = f"model.name={self.model.name!r}", dataset.example_shape
        if changing := changing_buffers(model.module, shape):
            # Groups do not divide what is left of nodes, and a norm over fewer of them is another one.
            other = "LayerNorm over what no node group cuts," if has_node_masks else "LayerNorm or GroupNorm"
            raise ConfigError(
                f"{where}: every forward pass changes the buffer {changing[0]!r} (running "
                "statistics?), and the networks of a pack share it, so that none would have its own; use a layer "
                f"without such state, {other} in place of BatchNorm"
            )
        if layer := random_layer(model.module, shape):
            raise ConfigError(
                f"{where}: layer {layer} draws random numbers in every forward pass, which the networks of a pack "
                "would share and no seed of the study reaches; remove it (training.weight_decay and "
                "training.label_smoothing regularise here)"
            )
        if not has_node_masks and not has_small_dense:
            return
        if layer := uncuttable_layer(model, shape):
            what, other = (
                ("networks under node masks have the kept nodes alone", "use masks.kind='weight'")
                if has_node_masks
                else ("small dense networks have fewer", "leave 'small_dense' out")
            )
            raise ConfigError(
                f"{where}: layer {layer} does not run with fewer nodes than it was made for, and {what}; normalise "
                f"only what no node group cuts, or {other}"
            )

    def _check_task(self) -> None:
        """Refuse what does not go with the task of the data set: another's parent, and what only classes have."""
        name, task = self.data.name, DATASETS[self.data.name].task
        family_task = getattr(model_family(self.model.name), "task", "classification")
        if family_task != task:
            raise ConfigError(
                f"model.name={self.model.name!r}: is made for {family_task}, and data set {name!r} is for {task}; "
                "change one of the two"
            )
        if task != "classification" and self.training.label_smoothing:
            raise ConfigError(
                f"training.label_smoothing={self.training.label_smoothing!r}: data set {name!r} is for {task} and has "
                "no labels to smooth; leave it out"
            )
        if task != "classification" and self.quality:
            raise ConfigError(
                f"quality={list(self.quality)}: is measured of classifiers, and data set {name!r} is for {task}; leave "
                "it out"
            )

    def _check_objectives_of_task(self, key: str, objectives: Sequence[str]) -> None:
        """Refuse what is not measured in the task of the data set."""
        task = DATASETS[self.data.name].task
        of_others = "val_psnr" if task == "classification" else "val_accuracy"
        for objective in objectives:
            if objective.startswith(of_others):
                raise ConfigError(
                    f"{key}: {objective!r} is not measured in {task}, which data set {self.data.name!r} is for; use "
                    "'val_error'"
                )

    def _ledger(self, folder: Path, dataset: Dataset) -> Ledger:
        recorded = self.recorded(dataset)
        digest = hashlib.sha256(canonical_json(recorded).encode()).hexdigest()
        if os.path.lexists(folder / "study.json"):
            return Ledger.open(folder, digest=digest, study=recorded)
        _check_folder(folder)
        return Ledger.create(folder, recorded, digest=digest, versions=versions())


def _of_another_kind(error: ValidationError, kind: type[Study]) -> str:
    """What to say of a key that only studies of another kind have; nothing where there is none.

    Whether there is a section `space` makes the kind: it was forgotten, or should not be there.
    """
    for unknown in error.errors(include_url=False):
        place = unknown["loc"]
        for other in _KINDS:
            if unknown["type"] != "extra_forbidden" or place[-1] not in keys_beside(other, place):
                continue
            what = "section" if isinstance(unknown["input"], dict) else "key"
            change = "add" if other.is_for({"space": {}}) else "remove"
            instead = f"use one of {', '.join(keys_beside(kind, place))}" if len(place) > 1 else "leave it out"
            return (
                f"{'.'.join(map(str, place))}={shown(unknown['input'])}: is a {what} of {other.plural}: {change} "
                f"[space], or {instead}"
            )
    return ""


def versions() -> dict[str, str]:
    """Versions that a study's results may depend on."""
    packages = ("sparsefront", "torch", "ray", "optuna", "cmaes", "numpy", "pyarrow", "moocore", "scipy")
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
        raise ConfigError(f"DIR={shown(str(folder))}: a name in it is longer than {longest} bytes; give a shorter one")
    if not is_folder:
        what = "is a file" if existing == folder else f"{existing} is a file"
        raise ConfigError(f"DIR={folder}: {what}; give a new or empty folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"DIR={folder}: {existing} cannot be written; give another folder, or change its permissions")


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
    if found is None:
        return message
    keys = (override.partition("=")[0].strip() for override in overrides)
    if any(f"{found[0]}.".startswith(f"{key}.") or key.startswith(f"{found[0]}.") for key in keys):
        return f"--set {message}"
    return f"{source}: {message}" if any(found[1] in kind.model_fields for kind in _KINDS) else message
