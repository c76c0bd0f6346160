"""Matched controls as arms: is it the mask, the ratios of the layers, the weights or the budget?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sparsefront.search.methods.method import Context, EveryLevel, Method, Missing, Trained
from sparsefront.search.methods.pruned import Pruned
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.pruning import Pruning


class ControlArm(EveryLevel):
    """One control of one arm, at every level of the study at which the arm has a network; of several, the first."""

    source = "Frankle and Carbin 2019; Frankle et al. 2021; Liu et al. 2019"
    goes_alone = True

    def __init__(self, arm: str, method: Method, control: str) -> None:
        self._arm, self._method, self._control = arm, method, control
        self.summary = f"{arm}: {CONTROLS[control].summary}"
        # All but the parent, which waits for nothing, are known once the arm's network is.
        self.goes_with = "" if CONTROLS[control].network == "parent" else f"controls of {arm}"

    def levels(self, sparsities: Sequence[float]) -> tuple[float, ...]:
        """Those of the arm, without the ones on its way."""
        return tuple(s for s in self._method.levels(sparsities) if s in sparsities)

    def candidates(self, context: Context) -> list[Candidate] | Missing | None:
        """The control, once the network that it is held against is trained."""
        place = context.replicate, context.sparsity
        row = CONTROLS[self._control]
        if row.network == "parent":
            return [Candidate(*place, "parent", steps=self._n_steps(context))]
        original = context.trained.get(self._arm)
        if original is None or isinstance(original, Missing):
            return original
        if original.mask is None:
            return Missing(f"{self._arm} has no mask")
        method = self._method.method if isinstance(self._method, Pruned) else None
        network: Literal["masked", "small_dense"] = "small_dense" if row.network == "small" else "masked"
        control = Candidate(*place, network, mask=original.mask, control=self._control)
        if method is None:
            # The mask is not stored anywhere, but it can be drawn again by its number.
            drawn = self._method.candidates(context)
            return [replace(control, draw=drawn[0].draw)] if isinstance(drawn, list) else drawn
        if method.keeps_weights and row.fresh_weights and method.steps_after(context.steps) != context.steps:
            control = replace(control, steps=method.steps_after(context.steps))
        if row.network == "small":
            return [control]
        if method.update == "edge_popup":
            return [replace(control, start="frozen")]
        if row.shuffle is not None and method.pattern != "unstructured":
            control = replace(control, method=Pruning("trained", pattern=method.pattern))
        if method.needs_parent and not row.fresh_weights:
            if method.survivors == "trained":
                cut = context.derived.get(self._arm)
                if not isinstance(cut, Trained):
                    return cut
                return [replace(control, start="trained", method=method, origin=cut.id)]
            if method.survivors == "fresh":
                control = replace(control, start="fresh")
            elif step := method.rewind_step(context.steps):
                control = replace(control, start="rewound", rewind_step=step)
        return [control]

    def _n_steps(self, context: Context) -> int:
        """Steps that the arm takes for one network of this level: its parent, its chain and the making of masks too."""
        making = context.making_steps.get(self._arm, 0)
        if not isinstance(self._method, Pruned):
            return context.steps + making
        levels = self._method.levels(context.sparsities)
        before = sum(s < context.sparsity for s in levels) if self._method.goes_alone else 0
        parent = context.steps if self._method.needs_parent else 0
        each = making + self._method.method.steps_after(context.steps)
        return parent + (1 + before) * each


def control_name(arm: str, control: str) -> str:
    """Name of the arm that a control is.

    >>> control_name("imp", "shuffled")
    'imp_shuffled'
    """
    return f"{arm}_{control}"
