"""The sections of a search's study file that no study of masks has, or that say something else there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sparsefront.errors import ConfigError, nearest
from sparsefront.search.objective import OBJECTIVES
from sparsefront.search.rungs import RUNGS
from sparsefront.spaces.domains import shown
from sparsefront.spaces.entries import toml
from sparsefront.study.objectives import check_objectives
from sparsefront.study.sections import Fraction, Section, TrainingSection

#: What a search can compare candidates by, and what of it is known at a rung.
SEARCHED_OBJECTIVES = [name for name, o in OBJECTIVES.items() if o.is_searched]
_AT_RUNGS = [name for name in SEARCHED_OBJECTIVES if not OBJECTIVES[name].at_end]


class MasksSection(Section):
    """What masks remove from every candidate, where the space does not say otherwise.

    With a `method` they are not drawn: every candidate's mask is cut from its initial weights or changes while it
    trains, or the candidate is trained, pruned once or level by level to its sparsity, and trained again. The method
    brings its allocation. A `pattern` ('2:4', '4x4') is of weight masks; N:M is a sparsity of its own, whatever is
    asked for.
    """

    method: str | None = None
    kind: Literal["node", "weight"] = "weight"
    pattern: str = "unstructured"
    allocation: str = "uniform"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0


class SearchTrainingSection(TrainingSection):
    """How every candidate is trained, where the space does not say otherwise.

    Where `[space.training]` has `steps`, they may be left out here, and are then its largest number. Networks are
    validated every `eval_every` steps, or every `steps` if these are fewer.
    """

    data_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0


class SearchSection(Section):
    """How many candidates a run (an arm in one replicate) trains, and how many are proposed at once.

    Methods that score examples do so on `probe_size` training examples, or on all if there are fewer.
    """

    candidates: Annotated[int, Field(ge=1, le=10_000_000)] = 256
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    probe_size: Annotated[int, Field(ge=1)] = 512


def check_at_rungs(key: str, chosen: Sequence[str]) -> None:
    """Refuse what a rung cannot compare by."""
    for name in chosen:
        if name in SEARCHED_OBJECTIVES and name not in _AT_RUNGS:
            raise ConfigError(
                f"{key}: {name!r} is measured once a candidate has ended, and rungs compare before; name what is known "
                "there, such as 'val_error'"
            )
    check_objectives(key, chosen, _AT_RUNGS, ())


class RungsSection(Section):
    """At which steps candidates are compared, and how many go on; every arm may change any key.

    `objectives` are what they are compared by; empty: those of the verdict where the kind knows several, else val_loss.
    With fidelity 'level' rungs are ends of a pruning chain's levels, and `min_steps` counts levels.
    """

    kind: str = "none"
    eta: Annotated[int, Field(ge=2, le=100)] = 3
    min_steps: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    bracket: Annotated[int, Field(ge=2, le=1_000_000)] = 64
    objectives: Annotated[tuple[str, ...], Field(max_length=4, strict=False)] = ()
    bands: Annotated[tuple[Fraction, ...], Field(max_length=100, strict=False)] = ()
    asynchronous: bool = False
    fidelity: Literal["steps", "data_fraction", "level"] = "steps"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind not in RUNGS:
            raise ConfigError(f"kind={self.kind!r}: {nearest(self.kind, RUNGS)}")
        if list(self.bands) != sorted(set(self.bands)):
            raise ConfigError(f"bands={list(self.bands)}: must ascend")
        check_at_rungs("objectives", self.objectives)
        return self


class ArmSection(Section):
    """One contender: a strategy with its options, and what it changes of the study's budget, rungs and space.

    It is judged against the arm `against`, or against each of a list: by default 'random', or the first arm by name
    whose strategy is random, which itself is judged against nobody. So is an arm with an empty list. Its controls are
    of the candidates that it completed, each trained once it is over.
    """

    strategy: str = "random"
    options: dict[str, Any] = Field(default_factory=dict)
    candidates: Annotated[int, Field(ge=1, le=10_000_000)]
    batch: Annotated[int, Field(ge=1, le=1_000_000)]
    rungs: RungsSection
    space: dict[str, Any] = Field(default_factory=dict)
    against: str | tuple[str, ...]
    # Not written where there are none: studies from before it was there stay what they were.
    controls: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            exclude_if=lambda value: not value,
            description="controls of the arm's candidates, each an arm of its own",
        ),
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _check_known_elsewhere(cls, values: Any) -> Any:
        """Refuse what arms of a study of masks have and those of a search cannot."""
        if isinstance(values, dict) and "method" in values:
            raise ConfigError(
                f"method={toml(values['method'])}: is a key of studies of masks; an arm of a search has it in its "
                "space: [arms.NAME.space.masks] method"
            )
        if isinstance(values, dict) and "siblings" in values:
            raise ConfigError(
                f"siblings={toml(values['siblings'])}: are second trainings of single networks, and an arm of a search "
                "has as many as its candidates; take members of its front, with their widths and sparsities, into a "
                "study of masks with siblings"
            )
        return values

    @model_validator(mode="before")
    @classmethod
    def _read_against(cls, values: Any) -> Any:
        """A list of one name is that name: both are the same study."""
        against = values.get("against", "") if isinstance(values, dict) else ""
        if isinstance(against, str):
            return values
        if not isinstance(against, list | tuple) or not all(isinstance(name, str) for name in against):
            raise ConfigError(f"against={shown(against)}: must be the name of an arm, or a list of names")
        return {**values, "against": against[0] if len(against) == 1 else tuple(against)}


class SearchVerdictSection(Section):
    """What is minimised, and how the referee judges: by the hypervolume that is reached at equal budget.

    `reference` is the corner that hypervolumes are measured from, in the units of the objectives, and worse than the
    best value that each can have; empty: the error of guessing, and a tenth beyond the largest that completed.
    `equivalence_margin` is a fraction of the box between ideal and reference; of one objective alone, a difference of
    that: of a PSNR by default 0.1 dB.
    """

    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=4, strict=False)] = ("val_error", "n_params")
    reference: Annotated[tuple[float, ...], Field(strict=False)] = ()
    equivalence_margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05


def usual_opponent(strategies: Mapping[str, str]) -> str:
    """The arm that others are judged against where they do not say, of arms with these strategies."""
    drawn = [name for name, strategy in strategies.items() if strategy == "random"]
    return "random" if "random" in strategies or not drawn else min(drawn)
