"""What a quality is measured on: lanes, and the examples with the inputs that are derived from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from sparsefront.errors import ConfigError
from sparsefront.spaces.seeds import generator
from sparsefront.trainables.gradients import forward
from sparsefront.trainables.lanes import Layout
from sparsefront.trainables.models import Model
from sparsefront.trainables.pack import Examples

#: Activations (float32) of one forward pass: 32 MiB on a CPU, 1 GiB on a GPU; with gradients about three times that.
_ACTIVATIONS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 28}


class Inputs:
    """Examples, and random tables of their shape that are the same for all lanes, on any machine and device."""

    def __init__(
        self, examples: Examples, *, seed: int, use: str = "quality", fresh: Callable[[], Examples] | None = None
    ) -> None:
        """Derive inputs from `examples` under `seed`; under another `use` they are drawn independently.

        `fresh` gives as many examples that the data set's generator drew anew.
        """
        self.examples = examples
        self._fresh = fresh
        self._seed, self._use = seed, use

    @property
    def x(self) -> torch.Tensor:
        """The examples as they are: (n, ...) float32."""
        return self.examples.x

    def fresh(self) -> Examples:
        """As many examples of the same source that are not in the data set.

        Raises:
            ConfigError: there is nothing to draw them.
        """
        if self._fresh is None:
            raise ConfigError("quality: 'fresh' needs a data set that is generated; leave it out")
        return self._fresh()

    @cached_property
    def mean(self) -> float:
        """Mean over all numbers of all examples."""
        return float(self.x.double().mean())

    @cached_property
    def std(self) -> float:
        """Standard deviation over all numbers of all examples: the unit of noise and attacks."""
        return float(self.x.double().std(correction=0))

    @cached_property
    def normal(self) -> torch.Tensor:
        """Standard normal table: (n, ...) float32. More examples keep the rows of fewer."""
        drawn = generator(self._seed, f"{self._use}_normal").standard_normal(tuple(self.x.shape))
        return torch.from_numpy(drawn).to(self.x)

    @cached_property
    def uniform(self) -> torch.Tensor:
        """Uniform table over [0, 1): (n, ...) float32."""
        drawn = generator(self._seed, f"{self._use}_uniform").random(tuple(self.x.shape))
        return torch.from_numpy(drawn).to(self.x)


@dataclass(frozen=True, eq=False)
class Subject:
    """Lanes that are measured together, few enough for the memory; a parent is a subject of one lane."""

    model: Model
    layout: Layout
    flat: torch.Tensor
    inputs: Inputs

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters of all lanes: name -> (L, ...)."""
        return self.layout.views(self.flat)

    @cached_property
    def clean(self) -> torch.Tensor:
        """Logits on the examples as they are: (L, n, classes)."""
        return self.logits(self.inputs.x)

    @property
    def labels(self) -> torch.Tensor:
        """(n,) int64 classes of the examples."""
        return self.inputs.examples.labels

    @cached_property
    def is_finite(self) -> torch.Tensor:
        """Lanes whose clean logits are all finite: (L,) bool."""
        return self.clean.isfinite().all(dim=2).all(dim=1)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every lane: (n, ...) -> (L, n, classes) float32."""
        parts = [forward(self.model, self.layout, self.flat, x[rows]) for rows in self.batches()]
        return torch.cat(parts, dim=1).float()

    def error(self, x: torch.Tensor) -> torch.Tensor:
        """Misclassified fraction of every lane on inputs that replace the examples one by one: (L,) float64."""
        return wrong(self.logits(x), self.labels).double().mean(dim=1)

    def batches(self) -> Iterator[slice]:
        """Slices of the examples that fit into memory with all lanes."""
        limit = _ACTIVATIONS_AT_ONCE["cpu" if self.flat.device.type == "cpu" else "cuda"]
        n = max(1, limit // (len(self.flat) * activations_of(self.model, self.layout, self.inputs.x)))
        for a in range(0, len(self.labels), n):
            yield slice(a, a + n)


def activations_of(model: Model, layout: Layout, x: torch.Tensor) -> int:
    """Numbers that one lane holds for one example: its input and what every multiplied tensor makes of it."""
    positions = {t.name: t.positions for t in model.structure.multiplied}
    made = sum(s[0] * positions[name] for name, s in zip(layout.names, layout.shapes, strict=True) if name in positions)
    return max(1, x[0].numel() + made)


def lanes_at_once(model: Model, layout: Layout, x: torch.Tensor) -> int:
    """Lanes that fit into memory with all examples; at least one (its examples are then cut)."""
    limit = _ACTIVATIONS_AT_ONCE["cpu" if x.device.type == "cpu" else "cuda"]
    return max(1, limit // (len(x) * activations_of(model, layout, x)))


def wrong(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which examples are misclassified: (L, n, classes) and (n,) -> (L, n) bool; ties go to the lower class."""
    return logits.argmax(dim=-1) != labels


def rivals_log_odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-odds of all other classes together against `labels`: (..., n, classes) and (..., n) -> (..., n).

    This is log((1 - p) / p) for the probability p of the label, taken without the rounding that makes p = 1: it ranks
    and points as cross-entropy, -log p = log(1 + exp(log-odds)), but neither saturates nor loses its gradient.

    >>> rivals_log_odds(torch.tensor([[0.0, 0.0, 100.0]]), torch.tensor([2])).round(decimals=3)
    tensor([-99.3070])
    """
    own = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    others = torch.logsumexp(logits.scatter(-1, own, -torch.inf), dim=-1)
    return others - logits.gather(-1, own).squeeze(-1)


#: What a quality looks at in each lane: name -> (L, ...).
Observed = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Column:
    """A column of a quality: its meaning with unit, what is better ('lower', 'higher', or 'neither'), and its kind.

    The kind is 'float64', or 'indices' for several whole numbers.
    """

    meaning: str
    better: str = "lower"
    kind: str = "float64"


@dataclass(frozen=True)
class Quality:
    """One row of the registry.

    Attributes:
        summary: one line for a listing.
        source: where the definition comes from.
        columns: what it reports for every lane.
        forward_passes: its cost in forward passes for each lane and example, those over the clean examples left out,
            which all qualities share; an input gradient counts as two.
        observe: looks at lanes, or at their parent.
        compare: columns of lanes from what was seen of them and of their parent (one lane, None if there is none);
            without it the columns are what was seen.
        needs_parent: whether there are no columns without a parent.
        needs_fresh: whether it looks at examples that the data set's generator draws anew.
    """

    summary: str
    source: str
    columns: Mapping[str, Column]
    forward_passes: int
    observe: Callable[[Subject], Observed]
    compare: Callable[[Observed, Observed | None], Observed] | None = None
    needs_parent: bool = False
    needs_fresh: bool = False
