"""The sections of a study file: each a frozen model of its keys, with their defaults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sparsefront.errors import ConfigError, nearest
from sparsefront.study.reading import first_error, unknown_key
from sparsefront.trainables.data import DATASETS, resolve_dataset_options
from sparsefront.trainables.models import model_family

FAMILY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

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
                raise ConfigError(unknown_key(key, value, [*type(self).model_fields, *known]))
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
            raise ConfigError(first_error(error, options)) from error
        assert self.__pydantic_extra__ is not None
        self.__pydantic_extra__.update(resolved.model_dump(mode="json"))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The family's own options, all of them."""
        return dict(self.__pydantic_extra__ or {})


class MasksSection(Section):
    """What masks remove, and how a sparsity is divided over layers; with `prune_biases` masks of weights cover biases.

    The biases of a layer then compete with its weights for one count, and prunable weights include them wherever they
    are counted.
    """

    kind: Literal["node", "weight"] = "node"
    allocation: str = "uniform"
    # Not written where it is not set: studies from before it was there stay what they were.
    prune_biases: Annotated[bool, Field(exclude_if=lambda value: not value)] = False


class ArmSection(Section):
    """One arm of a study of masks: a method under a name of its own, with what differs from it, and its controls.

    Siblings measure instability. Besides its own keys an arm takes the fields of a pruning method.
    """

    model_config = ConfigDict(extra="allow")

    method: Annotated[str, Field(description="method that the arm is, with what differs")] = ""
    controls: Annotated[
        tuple[str, ...], Field(strict=False, description="controls of the arm, each an arm of its own")
    ] = ()
    siblings: Annotated[
        bool, Field(description="whether each network is trained again with another order of the data")
    ] = False

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the pruning method that are set."""
        return dict(self.__pydantic_extra__ or {})


class SearchSection(Section):
    """How many masks are scored (draws), on how many training examples (probe), and how many are trained unseen.

    Left out, `random_draws` is 8, or at each level as many trainings as the longest arm takes to come there, so that
    random search has its budget: `random_draws_by_level` says so then, one number for each of `sparsities`, in their
    order. It may be written in place of the other.
    """

    draws: Annotated[int, Field(ge=1, le=10_000_000)] = 256
    probe_size: Annotated[int, Field(ge=1)] = 512
    random_draws: Annotated[int, Field(ge=1, le=100_000)] = 8
    # Not written where it is empty: studies from before it was there stay what they were.
    random_draws_by_level: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Field(strict=False, exclude_if=lambda value: not value)
    ] = ()


class TrainingSection(Section):
    """How every candidate is trained."""

    optimizer: str = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
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
    """How the referee judges: margins below which a difference does not matter, and the error rate.

    `equivalence_margin` is a fraction of accuracy (0.01 is one point); where images are restored it is in dB of PSNR,
    and 0.1 by default.
    """

    equivalence_margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    convergence_target_fraction: Fraction = 0.95
    convergence_margin_fraction: Fraction = 0.05
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=6, strict=False)] = (
        "val_error",
        "n_params",
        "macs",
    )


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


Text = Annotated[str, Field(min_length=1, max_length=2000)]


class ClaimTestSection(Section):
    """One test of a claim: the difference between `arm` and `against`, and what is expected of it.

    `sparsity` is one or a list, none for all; `metric` that of the study's task, or a column of the ledger; `margin`
    the difference that does not matter, if not the study's; `than` another study whose difference is subtracted.
    """

    arm: str
    against: str = "random"
    sparsity: Annotated[tuple[Sparsity, ...], BeforeValidator(_as_list), Field(strict=False)] = ()
    metric: str = "accuracy"
    expect: Literal["higher", "lower", "equivalent"]
    margin: Annotated[float | None, Field(gt=0)] = None
    than: str = ""


class ClaimSection(Section):
    """What a paper claims, at what scale, and what of it is tested here (claims.md). No part of a study's identity."""

    claim: Text
    paper: Text
    original_scale: Text
    our_scale: Text
    tests: Annotated[tuple[ClaimTestSection, ...], Field(min_length=1, max_length=100, strict=False)]


class ComputeSection(Section):
    """Where it runs; results do not depend on it. 0 = chosen by the machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0, le=100_000)] = 0
    lanes_per_pack: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    masks_per_pack: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    lanes_at_once: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    checkpoint_every_s: Annotated[float, Field(gt=0, le=1e9)] = 300.0
    max_retries: Annotated[int, Field(ge=0, le=100)] = 2
    memory_gib: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    cpus_per_trial: Annotated[int, Field(ge=1, le=100_000)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0.0001, le=1024)] = 1.0

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        """Refuse what Ray would refuse, once the study runs."""
        each = self.gpus_per_trial
        if each > 1 and not each.is_integer():
            raise ConfigError(f"gpus_per_trial={each!r}: must be a share of one GPU, or a whole number of them")
        return self


class RecordSection(Section):
    """The mirror in MLflow; an empty address means MLFLOW_TRACKING_URI, else SQLite in the study's folder."""

    enabled: bool = True
    tracking_uri: str = ""
    every_s: Annotated[float, Field(gt=0)] = 60.0
    timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 120.0
