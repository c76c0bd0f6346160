"""A pruning method as data: score x pattern x allocation x schedule, and what its survivors train from.

The cut is that of jaxpruner (Lee et al. 2023). What a score, a pattern or an update does stands with their registries;
here is what an arm is made of, so that a plan can order it, a worker can do it, and an id can hash it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

from sparsefront.errors import SpaceError, did_you_mean
from sparsefront.spaces.allocations import EXPLICIT
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.spaces.schedules import Decay, cubic, levels, update_steps

When = Literal["init", "trained", "levels", "during"]
Survivors = Literal["rewound", "trained", "fresh"]
Rates = Literal["last", "rewound"]
Update = Literal["gradual", "set", "rigl", "edge_popup"]

#: Updates of a training, about, where a method leaves the steps between them open (20 to 60 are usual at small scale).
N_UPDATES = 40
#: How the drop fraction of a rule decays, where a method leaves it open.
OWN_DECAYS: Mapping[str, Decay] = {"set": "constant", "rigl": "cosine"}


@dataclass(frozen=True)
class Pruning:
    """One pruning method.

    Attributes:
        when: 'init' (before training), 'trained' (once, from the trained parent), 'levels' (train and prune in turn),
            or 'during' (the mask changes within one training).
        score: which entries matter; 'random' for none.
        pattern: which sets of entries may be kept (2:4, 4x4, ...); for masks of nodes any set.
        allocation: how the sparsity is divided over sections; None for the study's.
        densities: of allocation 'explicit', one for each section; they belong to one sparsity.
        counts_of: score whose global mask gives each section its count, positions being left to `score`; None for the
            allocation.
        rounds: of scoring at initialisation, the density falling geometrically.
        rate: largest share of the survivors that a level removes.
        survivors: what is trained after pruning by a trained network: the parent's weights after `rewind_fraction` of
            its training ('rewound'), the weights as they were pruned ('trained'), or newly drawn ones ('fresh').
        rewind_fraction: share of the training that rewinding goes back to; 0 is initialisation.
        retrain_fraction: length of the training after pruning, in trainings, where the weights stay as they were.
        lr: 'last' goes on with the last learning rate, 'rewound' replays the schedule from its beginning.
        update: of 'during': 'gradual', 'set', 'rigl' or 'edge_popup'.
        begin_fraction: of the training, before which no update of 'gradual', 'set' or 'rigl' comes.
        end_fraction: of the training, at which they end.
        every: steps between updates; 0 for about forty of them.
        power: of the polynomial by which the sparsity of 'gradual' rises.
        drop_fraction: share of the connections that the first dynamic update replaces, were it at step 0.
        decay: of that share to 0 at the end; None for the rule's own ('set' constant, 'rigl' cosine).
        ap_fraction: share of the survivors that each level removes by activating-while-pruning, of `rate`.
        ap_sign: sign of the weights that this takes: -1, or +1 as the control.
    """

    when: When
    score: str = "magnitude"
    pattern: str = "unstructured"
    allocation: str | None = None
    densities: tuple[float, ...] = ()
    counts_of: str | None = None
    rounds: int = 1
    rate: float = 0.2
    survivors: Survivors = "rewound"
    rewind_fraction: float = 0.0
    retrain_fraction: float = 1.0
    lr: Rates = "last"
    update: Update | None = None
    begin_fraction: float = 0.0
    end_fraction: float = 0.75
    every: int = 0
    power: float = 3.0
    drop_fraction: float = 0.3
    decay: Decay | None = None
    ap_fraction: float = 0.0
    ap_sign: int = -1

    def __post_init__(self) -> None:
        """Refuse what is no method.

        Raises:
            SpaceError: a field of the wrong kind or out of its range, or fields that do not fit each other.
        """
        self._check_kinds()
        pattern = parse_pattern(self.pattern)
        if self.counts_of is not None and (pattern.density is not None or self.rounds > 1):
            raise SpaceError(
                f"counts_of={self.counts_of!r}: gives the layers their counts at once; leave pattern and rounds out"
            )
        for name, low, high in RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise SpaceError(f"{name}={value!r}: must lie in [{low:g}, {high:g}]")
        if self.begin_fraction > self.end_fraction:
            raise SpaceError(
                f"begin_fraction={self.begin_fraction!r}: must be at most end_fraction={self.end_fraction!r}"
            )
        if (self.when == "during") != (self.update is not None):
            raise SpaceError(f"update={self.update!r}: belongs to when='during', and when is {self.when!r}")
        if self.ap_fraction and self.when != "levels":
            raise SpaceError(f"ap_fraction={self.ap_fraction!r}: rides on pruning by levels, and when is {self.when!r}")
        if self.ap_fraction and self.pattern != "unstructured":
            raise SpaceError(
                f"ap_fraction={self.ap_fraction!r}: removes single weights, and not by pattern={self.pattern!r}; leave "
                "one of them out"
            )
        if self.ap_fraction >= self.rate:
            raise SpaceError(
                f"ap_fraction={self.ap_fraction!r}: must be less than rate={self.rate!r}, it is part of it"
            )
        self._check_densities()
        if self.ap_sign not in (-1, 1):
            raise SpaceError(f"ap_sign={self.ap_sign!r}: must be -1 or 1")

    def _check_densities(self) -> None:
        """Explicit densities are those of one sparsity: what passes through others on its way has none there."""
        if self.allocation == EXPLICIT and not self.densities:
            raise SpaceError(
                "densities=[]: allocation='explicit' needs the fraction of weights that each layer keeps; write "
                "densities = [0.1, 0.2, 0.5], one for each"
            )
        if self.densities and self.allocation != EXPLICIT:
            raise SpaceError(
                f"densities={list(self.densities)}: belong to allocation='explicit', which needs one for each layer; "
                f"allocation is {self.allocation!r}"
            )
        if self.densities and (self.when == "levels" or self.rounds > 1 or self.update == "gradual" or self.counts_of):
            raise SpaceError(
                f"densities={list(self.densities)}: are those of one sparsity, and when={self.when!r} with "
                f"rounds={self.rounds}, update={self.update!r} and counts_of={self.counts_of!r} has other counts too; "
                "choose another allocation"
            )

    def _check_kinds(self) -> None:
        """Fields may come from a file: whole numbers are taken for real ones, all else must be what it says."""
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                words = [choice for choice in choices if choice is not None]  # None is to leave the key out
                raise SpaceError(
                    f"{name}={value!r}: must be one of {', '.join(map(repr, words))}{did_you_mean(str(value), words)}"
                )
        for name in ("score", "pattern", "allocation", "counts_of"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in ("allocation", "counts_of")):
                raise SpaceError(f"{name}={value!r}: must be text in quotes")
        if not isinstance(self.densities, tuple) or not all(
            isinstance(x, int | float) and not isinstance(x, bool) and 0 < x <= 1 for x in self.densities
        ):
            raise SpaceError(f"densities={self.densities!r}: must be a list of numbers in (0, 1], one for each layer")
        object.__setattr__(self, "densities", tuple(map(float, self.densities)))
        for name in (*(name for name, _, _ in RANGES), "ap_sign"):
            value, is_whole = getattr(self, name), name in _WHOLE
            if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
                raise SpaceError(f"{name}={value!r}: must be a {'whole ' if is_whole else ''}number")
            if not is_whole:
                object.__setattr__(self, name, float(value))  # 1 and 1.0 are one method, with one id

    def reads(self, name: str) -> bool:
        """Whether this method looks at the field called `name`.

        >>> Pruning("init").reads("rounds"), Pruning("levels").reads("rounds"), Pruning("levels").reads("lr")
        (True, False, False)
        """
        if name in ("lr", "retrain_fraction"):
            return self.keeps_weights
        if name == "rewind_fraction":
            return self.needs_parent and self.survivors == "rewound"
        if name == "power" or (name == "score" and self.when == "during"):
            return self.update == "gradual"
        if name in ("begin_fraction", "end_fraction", "every"):
            return self.update not in (None, "edge_popup")
        if name in ("drop_fraction", "decay"):
            return self.update in ("set", "rigl")
        return self.when in _READ_WHEN.get(name, get_args(When))

    @property
    def needs_parent(self) -> bool:
        """Whether its first mask is cut from the trained parent."""
        return self.when in ("trained", "levels")

    @property
    def draws_positions(self) -> bool:
        """Whether the mask that its training begins with is drawn at random."""
        return self.update in ("set", "rigl") or (self.when == "init" and self.score == "random")

    @property
    def keeps_weights(self) -> bool:
        """Whether its survivors go on from the weights that were pruned."""
        return self.needs_parent and self.survivors == "trained"

    def rewind_step(self, steps: int) -> int:
        """Optimiser steps of the parent's training that its survivors have behind them."""
        return round(self.rewind_fraction * steps) if self.survivors == "rewound" else 0

    def steps_after(self, steps: int) -> int:
        """Optimiser steps of the training of its survivors, where a whole training takes `steps`.

        >>> Pruning("levels", rewind_fraction=0.1).steps_after(200), Pruning("init").steps_after(200)
        (180, 200)
        """
        if self.keeps_weights:
            return round(self.retrain_fraction * steps)
        return steps - self.rewind_step(steps) if self.needs_parent else steps

    def under(self, pattern: str) -> Pruning:
        """The same method under a pattern of masks; 'unstructured' leaves it its own."""
        return self if pattern == "unstructured" else replace(self, pattern=pattern)

    def levels(self, sparsities: Sequence[float]) -> tuple[float, ...]:
        """Sparsities of its networks, of those that were asked for: ascending, without the dense one.

        They are those that its pattern can have. A method that prunes by levels passes others on its way.

        >>> [round(s, 3) for s in Pruning("levels").levels([0.5])], Pruning("trained", pattern="2:4").levels([0.5, 0.9])
        ([0.159, 0.293, 0.405, 0.5], (0.5,))
        """
        pattern = parse_pattern(self.pattern)
        if pattern.density is not None:
            sparsities = [s for s in sparsities if math.isclose(1 - s, pattern.density, rel_tol=1e-9)]
        if self.when != "levels" or not sparsities:
            return tuple(sparsities)
        chain = levels(sorted(sparsities), self.rate)
        if pattern.density is not None:  # the levels are those at which groups lose a weight
            chain = tuple(dict.fromkeys(pattern.on_the_way(density).density or 1.0 for density in chain))
        return tuple(
            next((s for s in sparsities if math.isclose(1 - s, density, rel_tol=1e-9)), 1 - density)
            for density in chain[1:]
        )

    def chain(self, sparsity: float) -> tuple[float, ...]:
        """Sparsities of its trainings up to one of `sparsity`, the dense one first; those of N:M end at its own.

        >>> Pruning("trained").chain(0.9), Pruning("levels", rate=0.5).chain(0.75), Pruning("levels").chain(0.0)
        ((0.0, 0.9), (0.0, 0.5, 0.75), (0.0,))
        """
        density = parse_pattern(self.pattern).density
        final = sparsity if density is None else 1 - density
        return (0.0, *self.levels([final])) if final else (0.0,)

    def n_activating(self, n_removed: int) -> int:
        """How many of a level's removals activating-while-pruning takes: its share of them, rounded down.

        >>> Pruning("levels", rate=0.2, ap_fraction=0.05).n_activating(10)
        2
        """
        return int(n_removed * self.ap_fraction / self.rate + 1e-9)

    def gradual_steps(self, steps: int) -> tuple[int, int, int]:
        """First and last step of a training of `steps` at which 'gradual' changes masks, and the steps between.

        >>> Pruning("during", update="gradual", begin_fraction=0.1).gradual_steps(1000)
        (100, 750, 16)
        """
        return update_span(steps, self.begin_fraction, self.end_fraction, self.every)

    def mean_density(self, sparsity: float, *, steps: int, taken: int, since: int = 0) -> float:
        """Share of the weights that are left to train, as the mean over the first `taken` of `steps` steps.

        Of 'gradual' it falls as its schedule says; the other masks keep their number. With `since`, the first so many
        of these steps are left out.

        >>> gradual = Pruning("during", update="gradual", end_fraction=0.0)
        >>> gradual.mean_density(0.9, steps=10, taken=5), gradual.mean_density(0.9, steps=10, taken=5, since=1)
        (0.28, 0.1)
        """
        if self.update != "gradual" or taken <= since:
            return 1 - sparsity
        begin, end, every = self.gradual_steps(steps)
        rise = partial(cubic, begin=begin, end=end, every=every, final=sparsity, power=self.power)
        # An update follows the step that it is numbered by.
        before = range(max(0, since - 1), taken - 1)
        return round(1 - sum(map(rise, before)) / (taken - since), 12)

    def rankings(self, steps: int, *, taken: int, since: int = 0) -> tuple[int, ...]:
        """Steps at which its score ranks what is left, of the first `taken` of a training of `steps`.

        They are the updates of 'gradual', each of which follows the step that it is numbered by. With `since`, those at
        the first so many steps are left out.

        >>> gradual = Pruning("during", update="gradual", every=4, end_fraction=0.5)
        >>> gradual.rankings(20, taken=20), gradual.rankings(20, taken=8, since=1)
        ((0, 4, 8, 10), (4,))
        """
        if self.update != "gradual":
            return ()
        return tuple(step for step in update_steps(*self.gradual_steps(steps)) if since <= step < taken)

    def as_data(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data.

        >>> Pruning("levels", ap_fraction=0.02).as_data()
        {'when': 'levels', 'ap_fraction': 0.02}
        """
        default = {field.name: field.default for field in fields(self)}
        found = {name: value for name, value in asdict(self).items() if value != default[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def resolved(self, *, allocation: str) -> dict[str, Any]:
        """All that this method looks at, as plain data: its defaults too, which another version may have others of.

        Args:
            allocation: the study's, for a method without one of its own.

        >>> Pruning("init", score="snip").resolved(allocation="erk")
        {'when': 'init', 'score': 'snip', 'pattern': 'unstructured', 'allocation': 'erk', 'rounds': 1}
        >>> rigl = Pruning("during", update="rigl").resolved(allocation="erk")
        >>> rigl["begin_fraction"], rigl["n_updates"], rigl["decay"]
        (0.0, 40, 'cosine')
        """
        found = {name: value for name, value in asdict(self).items() if self.reads(name)}
        found["allocation"] = self.allocation or allocation
        if self.reads("every") and not self.every:
            found["n_updates"] = N_UPDATES
        if self.reads("decay"):
            assert self.update is not None
            found["decay"] = self.decay or OWN_DECAYS[self.update]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        return {name: value for name, value in plain.items() if value not in (None, [])}

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Pruning:
        """Inverse of `as_data`.

        >>> Pruning.of_data({"when": "init", "score": "snip"}).score
        'snip'
        """
        given = dict(data)
        if isinstance(given.get("densities"), list):
            given["densities"] = tuple(given["densities"])
        return cls(**given)


def update_span(steps: int, begin_fraction: float, end_fraction: float, every: int) -> tuple[int, int, int]:
    """First and last step of the updates of 'gradual', and the steps between; `every` 0 for about `N_UPDATES` of them.

    >>> update_span(1000, 0.1, 0.75, 0), update_span(10, 0.9, 1.0, 5)
    ((100, 750, 16), (9, 9, 5))
    """
    end = last_update(steps, end_fraction)
    begin = min(end, round(begin_fraction * steps))
    return begin, end, every or max(1, round((end - begin) / N_UPDATES))


def last_update(steps: int, end_fraction: float) -> int:
    """The last step at which masks that change in training may do so."""
    return min(steps - 1, round(end_fraction * steps))


_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "when": get_args(When),
    "survivors": get_args(Survivors),
    "lr": get_args(Rates),
    "update": (None, *get_args(Update)),
    "decay": (None, *get_args(Decay)),
}
#: Where a field is read only by some methods: by those of these.
_READ_WHEN: Mapping[str, tuple[str, ...]] = {
    "score": ("init", "trained", "levels"),
    "counts_of": ("init",),
    "rounds": ("init",),
    "rate": ("levels",),
    "survivors": ("trained", "levels"),
    "update": ("during",),
    "ap_fraction": ("levels",),
    "ap_sign": ("levels",),
}
_WHOLE = ("rounds", "every", "ap_sign")
#: Least and largest value of every number.
RANGES = (
    ("rounds", 1, 10_000),
    ("rate", 0.001, 0.999),
    ("rewind_fraction", 0.0, 1.0),
    ("retrain_fraction", 0.0, 100.0),
    ("begin_fraction", 0.0, 1.0),
    ("end_fraction", 0.0, 1.0),
    ("every", 0, 10**9),
    ("power", 0.1, 100.0),
    ("drop_fraction", 0.0, 1.0),
    ("ap_fraction", 0.0, 0.999),
)
