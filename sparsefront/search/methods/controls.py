"""Matched controls as arms: is it the mask, the ratios of the layers, the weights or the budget?"""

from __future__ import annotations

from sparsefront.search.methods.method import Context, EveryLevel, Method, Missing
from sparsefront.search.methods.pruned import Pruned
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.controls import CONTROLS


class ControlArm(EveryLevel):
    """One control of one arm, at every level that the study asks for."""

    source = "Frankle and Carbin 2019; Frankle et al. 2021; Liu et al. 2019"
    goes_alone = True

    def __init__(self, arm: str, method: Method, control: str) -> None:
        self._arm, self._method, self._control = arm, method, control
        self.summary = f"{arm}: {CONTROLS[control].summary}"

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The control, once the network that it is held against is trained."""
        place = context.replicate, context.sparsity
        row = CONTROLS[self._control]
        if row.network == "parent":
            return [Candidate(*place, "parent", steps=self._n_trainings(context) * context.steps)]
        original = context.trained.get(self._arm)
        if original is None or isinstance(original, Missing):
            return original
        if row.network == "small" or original.mask is None:
            return [Candidate(*place, "small_dense")]
        method = self._method.method if isinstance(self._method, Pruned) else None
        step = 0 if method is None or row.fresh_weights else method.rewind_step(context.steps)
        if not step:
            return [Candidate(*place, "masked", mask=original.mask, control=self._control)]
        return [
            Candidate(*place, "masked", mask=original.mask, control=self._control, start="rewound", rewind_step=step)
        ]

    def _n_trainings(self, context: Context) -> int:
        """Trainings that the arm needs for one network of this level, those of its parent and its chain included."""
        levels = self._method.levels(context.sparsities)
        before = sum(s < context.sparsity for s in levels) if self._method.goes_alone else 0
        return 1 + self._method.needs_parent + before


def control_name(arm: str, control: str) -> str:
    """Name of the arm that a control is.

    >>> control_name("imp", "shuffled")
    'imp_shuffled'
    """
    return f"{arm}_{control}"
