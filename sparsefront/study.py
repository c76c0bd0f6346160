"""A study: what a user writes, checked and completed, and what running it composes. No algorithm.

A study is a TOML file or a `Study(...)`. Sections `compute` and `record` say where it runs and where it is shown; they
are no part of its identity, so that a study may be resumed on another machine. All else is hashed: a resume with a
changed study is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsefront.cluster.dispatch import Resources, available_cores, dispatch, ray_cluster
from sparsefront.cluster.record import LiveRecorder, RecordResult, record_in_process
from sparsefront.cluster.worker import WorkerSettings
from sparsefront.errors import ConfigError, LedgerError, nearest
from sparsefront.search.design import Design
from sparsefront.search.filters import parse_where
from sparsefront.search.front import front, front_columns
from sparsefront.search.ledger import Ledger
from sparsefront.search.methods import METHODS
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.plan import Plan
from sparsefront.search.report import write_report
from sparsefront.search.verdict import Verdict, judge
from sparsefront.spaces.allocations import ALLOCATIONS, kept_counts
from sparsefront.spaces.candidate import CandidateNames, canonical_json
from sparsefront.trainables.data import load_dataset, resolve_dataset_options
from sparsefront.trainables.models import build_model, model_family
from sparsefront.trainables.optimizers import OPTIMIZERS, Hyperparameters
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.recipe import Recipe
from sparsefront.progress import Progress, ProgressView

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REPORT = "report.html"

Sparsity = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a study: frozen, unknown keys refused, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSection(Section):
    """Which examples; the data set's own options are written beside its name."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str = "mnist1d"
    validation_fraction: Fraction = 0.2

    @property
    def options(self) -> dict[str, Any]:
        """The data set's own options."""
        return dict(self.__pydantic_extra__ or {})


class ModelSection(Section):
    """Which parent; the family's own options are written beside its name."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str = "mlp"

    @property
    def options(self) -> dict[str, Any]:
        """The family's own options."""
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
    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=6, strict=False)] = ("val_error", "n_params", "macs")


class ComputeSection(Section):
    """Where it runs; results do not depend on it. 0 = chosen by the machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0, le=100_000)] = 0
    lanes_per_pack: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    masks_per_pack: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    lanes_at_once: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    max_retries: Annotated[int, Field(ge=0, le=100)] = 2
    memory_gib: Annotated[float, Field(ge=0)] = 0.0


class RecordSection(Section):
    """The mirror in MLflow; an empty address means MLFLOW_TRACKING_URI, else SQLite in the study's folder."""

    enabled: bool = True
    tracking_uri: str = ""
    every_s: Annotated[float, Field(gt=0)] = 60.0
    timeout_s: Annotated[float, Field(gt=0)] = 120.0


class Study(Section):
    """One study, resolved: every default is filled in but the seed, the budget and the levels, which must be written."""

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
        for arm in self.arms:
            if arm not in METHODS:
                raise ConfigError(f"arms: {arm!r} {nearest(arm, METHODS)}")
        if "random" not in self.arms:
            raise ConfigError(f"arms={list(self.arms)}: 'random' must be among them; every verdict is against it")
        if self.masks.allocation not in ALLOCATIONS:
            raise ConfigError(f"masks.allocation={self.masks.allocation!r}: {nearest(self.masks.allocation, ALLOCATIONS)}")
        if self.training.optimizer not in OPTIMIZERS:
            raise ConfigError(f"training.optimizer={self.training.optimizer!r}: {nearest(self.training.optimizer, OPTIMIZERS)}")
        if self.training.nesterov and not self.training.momentum:
            raise ConfigError("training.nesterov=true: needs training.momentum > 0")
        for objective in self.verdict.objectives:
            if objective not in OBJECTIVES:
                raise ConfigError(f"verdict.objectives: {objective!r} {nearest(objective, OBJECTIVES)}")
        needs_scores = any(METHODS[arm].needs_scores for arm in self.arms)
        if needs_scores and self.search.draws < self.search.random_draws:
            raise ConfigError(
                f"search.draws={self.search.draws}: must be at least search.random_draws={self.search.random_draws}; "
                "the random arm trains the first of them"
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
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; see examples/ for studies to start from") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: is not TOML ({error})") from error
        for override in overrides:
            _override(table, override)
        return cls.from_dict(table, source=str(path))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, source: str = "Study") -> Study:
        """Check and complete a study given as nested tables.

        Raises:
            ConfigError: one line that begins with `source`.
        """
        try:
            return cls.model_validate(dict(table)).resolved()
        except ValidationError as error:
            raise ConfigError(f"{source}: {_first_error(error)}") from error
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from error

    def resolved(self) -> Study:
        """This study with the options of its data set and parent checked and completed."""
        data = resolve_dataset_options(self.data.name, self.data.options)
        try:
            options = model_family(self.model.name).options.model_validate(self.model.options)
        except ValidationError as error:
            raise ConfigError(_first_error(error, prefix="model.")) from error
        return self.model_copy(
            update={
                "data": DataSection(name=self.data.name, validation_fraction=self.data.validation_fraction, **data),
                "model": ModelSection(name=self.model.name, **options.model_dump(mode="json")),
            }
        )

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
        v = self.verdict
        return Design(
            name=self.name,
            seed=self.seed,
            replicates=self.replicates,
            sparsities=self.sparsities,
            arms=self.arms,
            draws=self.search.draws,
            random_draws=self.search.random_draws,
            probe_size=self.search.probe_size,
            steps=self.training.steps,
            mask_kind=self.masks.kind,
            allocation=self.masks.allocation,
            model=_described(self.model.name, self.model.options),
            dataset=_described(self.data.name, self.data.options),
            equivalence_margin=v.equivalence_margin,
            convergence_target_fraction=v.convergence_target_fraction,
            convergence_margin_fraction=v.convergence_margin_fraction,
            alpha=v.alpha,
            objectives=v.objectives,
        )

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
        dataset = load_dataset(self.data.name, self.data.options)
        self._check_sizes(dataset.n_train, dataset.example_shape, dataset.n_classes)
        device = _device(self.compute.device, address)
        design, recipe = self.design(), self.recipe()
        resources = Resources(address, device, self.compute.workers or None, self.compute.max_retries)
        settings = WorkerSettings(
            recipe=recipe,
            base=self.base(),
            device=device,
            timeout_s=self.compute.timeout_s,
            memory_bytes=int(self.compute.memory_gib * 2**30) or None,
        )
        with self._ledger(folder) as ledger:
            began = time.monotonic()
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

            def tick() -> None:
                if view is not None:
                    view.show(progress)
                if recorder is not None:
                    recorder.maybe_export(time.monotonic())

            if not plan.is_done:
                if view is not None:
                    view.say(f"starting Ray ({resources.address or 'on this machine'}, {device})")
                with ray_cluster(resources) as slots:
                    progress.start(slots)
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
            results = Results(folder)
            if view is not None:
                view.finish(progress, seconds=time.monotonic() - began)
            report = results.report()
            if recorder is not None:
                results.recorded = recorder.finish(self.record.timeout_s, report=report)
        return results

    def _check_sizes(self, n_train: int, example_shape: tuple[int, ...], n_classes: int) -> None:
        """Refuse what could only fail later: before anything is written."""
        n_left = n_train - math.ceil(n_train * self.data.validation_fraction)
        for key, value in (("training.batch_size", self.training.batch_size), ("search.probe_size", self.search.probe_size)):
            if value > n_left:
                raise ConfigError(f"{key}={value}: must be at most {n_left}, the training examples of a replicate")
        model = build_model(self.model.name, self.model.options, input_shape=example_shape, n_classes=n_classes)
        for sparsity in self.sparsities:
            kept_counts(model.structure, self.masks.kind, sparsity, self.masks.allocation)

    def _pack_sizes(self, workers: int, device: str) -> dict[str, int]:
        """Masks and lanes in a pack: enough to pay for a trial, few enough to keep all workers busy to the end."""
        levels = self.replicates * len(self.sparsities)
        masks = -(-levels * self.search.draws // (workers * 4))
        lanes = -(-levels * (self.search.random_draws + len(self.arms)) // (workers * 2))
        largest = 128 if device == "cpu" else 4096
        return {
            "masks_per_pack": self.compute.masks_per_pack or min(4096, max(256, masks)),
            "lanes_per_pack": self.compute.lanes_per_pack or min(largest, max(16, lanes)),
        }

    def _ledger(self, folder: Path) -> Ledger:
        if (folder / "study.json").exists():
            return Ledger.open(folder, digest=self.digest, study=self.identity())
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"DIR={folder}: is a file; a folder is needed")
        return Ledger.create(folder, self.identity(), digest=self.digest, versions=versions())


class Results:
    """What a study's folder holds: everything is a function of its ledger."""

    def __init__(self, folder: str | Path) -> None:
        """Open for reading; the ledger is read anew by every method.

        Raises:
            LedgerError: if there is no study in `folder`, or it is damaged.
        """
        self.folder = Path(folder)
        self.recorded: RecordResult | None = None
        with Ledger.read(self.folder) as ledger:
            self.versions = dict(ledger.versions)
            try:
                self.study = Study.from_dict({**ledger.study, "compute": {}, "record": {}})
            except ConfigError as error:
                raise LedgerError(f"{self.folder / 'study.json'}: holds no valid study ({error}); restore it from a copy") from error

    def to_arrow(self, *, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The ledger's rows as an Arrow table (docs/columns.md)."""
        with Ledger.read(self.folder) as ledger:
            return ledger.table(columns=columns, where=None if where is None else parse_where(where))

    def to_pandas(self, *, where: str | None = None) -> Any:
        """The ledger's rows as a pandas data frame."""
        return self.to_arrow(where=where).to_pandas()

    def front(self, *, where: str | None = None, objectives: Sequence[str] | None = None) -> pa.Table:
        """Non-dominated candidates among the rows that `where` selects, best first by the first objective."""
        chosen = tuple(objectives or self.study.verdict.objectives)
        front_columns(chosen)
        expression = None if where is None else parse_where(where)
        with Ledger.read(self.folder) as ledger:
            return front(ledger.scan(where=expression), chosen)

    def verdict(self) -> Verdict:
        """Better than, equivalent to or worse than random search, arm by arm and level by level."""
        with Ledger.read(self.folder) as ledger:
            return judge(ledger.scan(), self.study.design())

    def outcomes(self) -> dict[str, int]:
        """How many trained slots came to each outcome."""
        column = self.to_arrow(where="stage == 'trained'", columns=["outcome"]).column("outcome")
        return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}

    def report(self) -> Path:
        """Write the report into the study's folder and return its path."""
        path = self.folder / REPORT
        design = self.study.design()
        with Ledger.read(self.folder) as ledger:
            table = ledger.table()
        write_report(table, design, judge(table, design), path, provenance=self._provenance(table))
        return path

    def record(self, *, tracking_uri: str | None = None, timeout_s: float = 600.0) -> RecordResult:
        """Mirror the study into MLflow (again); what is there already is left as it is."""
        report = self.folder / REPORT
        self.recorded = record_in_process(
            self.folder,
            tracking_uri=tracking_uri,
            design=self.study.design(),
            report=report if report.exists() else None,
            timeout_s=timeout_s,
        )
        return self.recorded

    def _provenance(self, table: pa.Table) -> dict[str, str]:
        devices = sorted({d for d in table.column("device").unique().to_pylist() if d})
        return {
            "study": self.study.digest[:16],
            "devices": ", ".join(devices) or "none",
            **self.versions,
        }


def load(folder: str | Path) -> Results:
    """Results of the study in `folder`."""
    return Results(folder)


def versions() -> dict[str, str]:
    """Versions that a study's results may depend on."""
    packages = ("sparsefront", "torch", "ray", "numpy", "pyarrow", "moocore", "scipy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found, "machine": f"{platform.system()} {platform.machine()}, {available_cores()} cores"}


def _device(wanted: str, address: str | None) -> str:
    """'cpu' or 'cuda'; on another cluster the driver's own hardware says nothing, so that 'auto' means the CPU there."""
    import torch

    if wanted == "auto":
        return "cuda" if address is None and torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and address is None and not torch.cuda.is_available():
        raise ConfigError("compute.device='cuda': this machine has no CUDA device that torch can use; use 'auto' or 'cpu'")
    return wanted


def _described(name: str, options: Mapping[str, Any]) -> str:
    """A name with its options, for people."""
    return f"{name}({', '.join(f'{k}={v}' for k, v in options.items())})" if options else name


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: must be key=value with a dotted key, e.g. training.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    table[parts[-1]] = value


def _first_error(error: ValidationError, *, prefix: str = "") -> str:
    """The first thing that is wrong, as key, value and what is accepted."""
    first = error.errors(include_url=False)[0]
    if isinstance(first.get("ctx", {}).get("error"), ConfigError):
        return str(first["ctx"]["error"])
    key = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key}={first['input']!r}: unknown key; remove it or correct its name"
    if first["type"] == "missing":
        return f"{key}: is missing and has no default; write it"
    return f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"

