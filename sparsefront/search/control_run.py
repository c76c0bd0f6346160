"""The run of a control: for each candidate that another run completed, one that differs from it in one thing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sparsefront.search.design import RungSettings, SearchControl, SearchDesign
from sparsefront.search.run import Candidate, Measures, Run
from sparsefront.search.work import Describe, Described
from sparsefront.spaces.candidate import canonical_json
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.domains import Point, Value

#: Column of a control's rows: the number of the candidate that it is held against, in its arm and replicate.
CONTROL_OF = "control_of"


class ControlRun(Run):
    """Controls of one run, in the order of the candidates that they are held against.

    It begins when that run is over. No rung stops its candidates, for what they are held against was trained to its
    end, and no constraint keeps them out: they are what they are because of another network.
    """

    def __init__(
        self,
        design: SearchDesign,
        control: SearchControl,
        original: Run,
        describe: Describe,
        measures: Measures,
        stored: Callable[[str], bytes],
    ) -> None:
        """Prepare a run.

        Args:
            design: what was asked.
            control: which control of the run `original` it is.
            original: what it is held against.
            describe: what follows from a point.
            measures: columns that the study reads.
            stored: packed bits of a mask by its digest.
        """
        arm = replace(original.arm, name=control.name, strategy="random", options={}, rungs=RungSettings(), against=())
        super().__init__(design, arm, original.replicate, describe, measures)
        self._original, self._kind, self._stored = original, control.kind, stored
        self._known_before, self._known_after = [], []
        self._varies_steps = True
        self._numbers: list[int] = []

    @property
    def can_propose(self) -> bool:
        """Whether the other run is over, and has candidates that were not taken yet."""
        # A run that is replayed need not have asked yet whether it has more.
        while not self.is_exhausted and self._original.can_propose and self._is_settled:
            self._original.propose()
        return not self.is_exhausted and self._original.is_over

    @property
    def _is_settled(self) -> bool:
        return self._original.n_terminal == self._original.n_proposed

    def may_open(self, n_back: int) -> bool:
        """Whether something could be handed out; not while the other run goes on."""
        return self._original.is_over

    def propose(self) -> None:
        """Take the next batch of candidates that the other run completed."""
        if not self._numbers:
            self._numbers = sorted(self._original.completed)
        stop = min(len(self._numbers), self.n_proposed + self.arm.batch)
        self._grow(stop)
        for number in range(self.n_proposed, stop):
            self.n_proposed += 1
            point, _ = self._original.completed[self._numbers[number]]
            candidate = Candidate(self, number, point)
            first = self._first_of(candidate)
            if first == number:
                self._enter(candidate)
            else:
                self._repeat(candidate, first)
        if stop == len(self._numbers):
            self._exhaust()

    def _first_of(self, candidate: Candidate) -> int:
        """The number of the first candidate that is the same: dense parents of networks with other masks may be."""
        if CONTROLS[self._kind].network != "parent":
            return candidate.number
        named = canonical_json(self.settings_of(candidate))
        return self._seen.setdefault(hashlib.blake2b(named.encode(), digest_size=16).digest(), candidate.number)

    def described(self, candidate: Candidate, *, first: int) -> Described:
        """What follows from a candidate."""
        return self._describe(self.replicate, candidate.point, _Given(self.settings_of(candidate)))

    def settings_of(self, candidate: Candidate) -> dict[str, Any]:
        """Study keys that a candidate sets: those of the other, the kind of control, and the other's mask."""
        _, digest = self._original.completed[self._numbers[candidate.number]]
        settings = {**self.arm.space.settings(candidate.point), "masks.control": self._kind}
        if CONTROLS[self._kind].network == "parent":  # whose budget does not depend on which entries are kept
            return {key: value for key, value in settings.items() if key not in ("masks.bits", "masks.draw")}
        return {**settings, "masks.bits": self._stored(digest)}

    def fixed_of(self, candidate: Candidate, settings: Mapping[str, Any]) -> dict[str, Value]:
        """Columns of a candidate that its point does not tell: those of the other, and which that is."""
        of_other = self.arm.fixed.values(self.arm.space.settings(candidate.point))
        return {**of_other, CONTROL_OF: self._numbers[candidate.number]}


class _Given:
    """Settings that are known already, in place of a space."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def settings(self, point: Point) -> dict[str, Any]:
        """The settings, whatever the point."""
        return self._settings
