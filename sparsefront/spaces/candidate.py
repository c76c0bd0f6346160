"""One point of the space, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sparsefront.spaces.masks import mask_digest
from sparsefront.spaces.pruning import Pruning


@dataclass(frozen=True)
class Candidate:
    """A network to train: where its weights come from and what is cut out of them.

    Attributes:
        replicate: index of (data split, initial weights, data order).
        target_sparsity: level that the mask was made for; 0 for the dense parent.
        network: 'parent' (all of it), 'masked' (a mask of it), or 'small_dense' (a fresh dense network of the size that
            a mask of this level leaves).
        draw: number of the random mask, if the mask was drawn.
        mask: digest of the stored mask, if it was derived from trained weights; of a control of a network whose mask
            was drawn, the digest of that.
        method: how its mask is made or changes in its own training, or how it trains after pruning; None where neither
            is part of it.
        start: weights that it begins with: the parent's initial ones ('init'), the parent's after `rewind_step` steps
            ('rewound'), those of network `origin` at its end ('trained'), newly drawn ones ('fresh'), or initial ones
            that are never trained ('frozen').
        rewind_step: see `start`.
        origin: id of the network that it goes on from.
        control: name of the control that it is of the network which `mask` belongs to; '' for none.
        steps: of its training; 0 for the study's.
    """

    replicate: int
    target_sparsity: float
    network: Literal["parent", "masked", "small_dense"]
    draw: int | None = None
    mask: str | None = None
    method: Pruning | None = None
    start: Literal["init", "rewound", "trained", "fresh", "frozen"] = "init"
    rewind_step: int = 0
    origin: str | None = None
    control: str = ""
    steps: int = 0

    def as_data(self) -> dict[str, Any]:
        """What defines it, as plain data: later fields only where they are not their defaults."""
        data = asdict(self) | {"method": None if self.method is None else self.method.as_data()}
        return {f.name: data[f.name] for f in fields(self) if f.name in _ALWAYS or data[f.name] != f.default}

    @property
    def level_key(self) -> int:
        """The level as an integer counter for seeds: sparsity in parts per billion."""
        return level_key(self.target_sparsity)

    def together(self, mask_kind: str) -> tuple[Hashable, ...]:
        """What candidates have in common that may train side by side, of whatever replicate they are.

        Lanes of a pack begin and end at the same steps, and their masks change by one rule. Weight masks of all levels
        have the shapes of the parent; others are of one level.
        """
        is_sized = self.network != "parent" and (mask_kind == "node" or self.network != "masked" or self.mask_changes)
        method = self.method
        return (
            self.network if mask_kind == "weight" or self.network == "parent" else "",
            self.target_sparsity if is_sized else None,
            self.steps,
            self.rewind_step,
            self.start == "frozen",
            None if method is None or self.start != "trained" else (method.retrain_fraction, method.lr),
            method if self.mask_changes else None,
        )

    @property
    def mask_changes(self) -> bool:
        """Whether its mask changes while it trains."""
        return self.network == "masked" and self.method is not None and self.method.when == "during"


_ALWAYS = ("replicate", "target_sparsity", "network", "draw", "mask")


def level_key(sparsity: float) -> int:
    """A sparsity as an integer counter for seeds, in parts per billion.

    >>> level_key(0.9)
    900000000
    """
    return round(sparsity * 1e9)


class CandidateNames:
    """Ids of candidates of one study.

    The id hashes the candidate together with `base`: everything that all candidates of the study share (data, parent,
    mask rule, training, seed). Arms, replicate counts and levels are no part of it, so that a wider study of the same
    base calls the same candidate by the same name. Only where an arm or control has small dense networks that are
    scaled to a count of parameters, the rule for this is part of it: names changed with it.

    >>> names = CandidateNames({"seed": 1})
    >>> names.of(Candidate(0, 0.9, "masked", draw=3)) == names.of(Candidate(0, 0.9, "masked", draw=3))
    True
    >>> names.of(Candidate(0, 0.9, "masked", draw=3)) == names.of(Candidate(0, 0.9, "masked", draw=4))
    False
    """

    def __init__(self, base: Mapping[str, object]) -> None:
        self._hash = hashlib.blake2b(canonical_json(base).encode(), digest_size=16)

    def of(self, candidate: Candidate) -> str:
        """Id of `candidate`: 32 hex digits."""
        return self._named(candidate.as_data())

    def of_settings(self, replicate: int, settings: Mapping[str, object]) -> str:
        """Id of a candidate of a search, by the study keys that it sets: 32 hex digits.

        >>> names = CandidateNames({"seed": 1})
        >>> names.of_settings(0, {"training.lr": 0.1}) == names.of_settings(1, {"training.lr": 0.1})
        False
        """
        plain = {key: mask_digest(value) if isinstance(value, bytes) else value for key, value in settings.items()}
        return self._named({"replicate": replicate, "settings": plain})

    def _named(self, what: Mapping[str, object]) -> str:
        named = self._hash.copy()
        named.update(canonical_json(what).encode())
        return named.hexdigest()


#: Made once: `json.dumps` makes one at each call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text.

    >>> canonical_json({"b": 1, "a": 0.9})
    '{"a":0.9,"b":1}'
    """
    return _CANONICAL.encode(value)
