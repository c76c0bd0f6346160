"""The comparisons within one bracket: who reached which rung with what, and who goes on.

Decisions are a function of what arrived. In a fixed bracket they do not depend on the order of arrival: a rule that
compares newcomers takes them in the order of their numbers, and waits for those that are still training. In an
asynchronous run they depend on that order and on nothing else. Either way a replay of the arrivals repeats them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.search.design import RungSettings
from sparsefront.search.rungs.brackets import Bracket
from sparsefront.search.rungs.ranks import n_continuing, ranks_of
from sparsefront.search.rungs.registry import RUNGS
from sparsefront.search.rungs.rule import Record


@dataclass(frozen=True)
class RungDecision:
    """Whether a candidate goes on after a rung."""

    number: int
    rung: int
    continues: bool


class Halving:
    """One bracket of candidates on their way through its rungs.

    With sparsity bands, candidates are compared within their band only: each band has records, counts and at least one
    survivor of its own.
    """

    def __init__(self, settings: RungSettings, bracket: Bracket) -> None:
        self.bracket = bracket
        kind = RUNGS[settings.kind]
        self._eta = settings.eta
        self._bands = settings.bands
        self._is_asynchronous = settings.asynchronous
        self._new_record = kind.record
        self._records: dict[tuple[int, int], Record] = {}
        self._arrivals: dict[int, dict[int, tuple[int, npt.NDArray[np.float64]]]] = {k: {} for k in bracket.rungs}
        # Numbers below a rung's cursor have been dealt with there: they arrived, or never will.
        self._cursors = dict.fromkeys(bracket.rungs, bracket.start)
        # First rung that a candidate never reaches, where that is known.
        self._ends: dict[int, int] = {}

    def arrive(
        self, number: int, rung: int, losses: Sequence[float], *, weight_sparsity: float = 0.0
    ) -> list[RungDecision]:
        """Record that a candidate reached a rung.

        Args:
            number: of the candidate.
            rung: index of the rung.
            losses: (m,) finite, minimised, in the order of the settings' objectives. A candidate without finite losses
                has diverged and leaves.
            weight_sparsity: that tells its band.

        Returns:
            Every decision that this settles, by rung and number: none, or several.

        Raises:
            ValueError: losses are not finite, or the candidate cannot be at this rung.
        """
        if not all(map(math.isfinite, losses)):
            raise ValueError(f"losses={list(losses)} of candidate {number}: must be finite; one that diverged leaves")
        values = np.array(losses, dtype=np.float64)
        band = bisect_right(self._bands, weight_sparsity)
        if self._is_asynchronous:
            return [RungDecision(number, rung, self._admits(rung, band, values))]
        b = self.bracket
        if rung not in b.rungs or not b.start <= number < b.stop:
            raise ValueError(
                f"candidate {number} at rung {rung}: must be one of {b.start}..{b.stop - 1} at one of {b.rungs}"
            )
        if number in self._arrivals[rung] or self._ends.get(number, b.rungs.stop) <= rung:
            raise ValueError(f"candidate {number} at rung {rung}: it was there before, or had left or stopped")
        self._arrivals[rung][number] = band, values
        return self._settle(rung)

    def leave(self, number: int) -> list[RungDecision]:
        """Record that a candidate reaches no further rung, and return the decisions that this settles.

        It has failed or diverged, was never trained (infeasible, duplicate, beyond the end of the run), or its whole
        training ends before the next rung. Where it was compared already, it stays in the record. Those who passed the
        last rung or were stopped need not leave.
        """
        if self._is_asynchronous:
            return []
        reached = (k for k in self.bracket.rungs if number not in self._arrivals[k])
        return self._settle(self._ends.setdefault(number, next(reached, self.bracket.rungs.stop)))

    def _settle(self, lowest: int) -> list[RungDecision]:
        """Decide what can be decided at this rung, where something became known, and above."""
        decisions: list[RungDecision] = []
        # Ascending: who stops at one rung is not waited for at the next.
        for rung in range(lowest, self.bracket.rungs.stop):
            arrivals, stop = self._arrivals[rung], self.bracket.stop
            first = number = self._cursors[rung]
            while number < stop and (number in arrivals or self._ends.get(number, rung + 1) <= rung):
                number += 1
            self._cursors[rung] = number
            if self._new_record is not None:
                for n in range(first, number):
                    if n in arrivals:
                        decisions.append(RungDecision(n, rung, self._admits(rung, *arrivals[n])))
                        self._note(decisions[-1])
            elif first < number == stop:
                for decision in self._compare(rung):
                    decisions.append(decision)
                    self._note(decision)
        return decisions

    def _note(self, decision: RungDecision) -> None:
        if not decision.continues:
            self._ends[decision.number] = decision.rung + 1

    def _admits(self, rung: int, band: int, losses: npt.NDArray[np.float64]) -> bool:
        record = self._records.get((rung, band))
        if record is None:
            assert self._new_record is not None, "only a rule that compares newcomers is asked about one"
            record = self._records[rung, band] = self._new_record(self._eta)
        return record.admits(losses)

    def _compare(self, rung: int) -> list[RungDecision]:
        """Of all that reached a rung, the best of each band; of equals, the lower number."""
        arrivals = self._arrivals[rung]
        bands: dict[int, list[int]] = {}
        for number in sorted(arrivals):
            bands.setdefault(arrivals[number][0], []).append(number)
        decisions = []
        for members in bands.values():
            ranks = ranks_of(np.stack([arrivals[n][1] for n in members]))
            n_best = n_continuing(len(members), self._eta)
            decisions += [RungDecision(n, rung, bool(r <= n_best)) for n, r in zip(members, ranks, strict=True)]
        return sorted(decisions, key=lambda d: d.number)
