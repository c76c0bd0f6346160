"""Bounds on what a candidate may cost or reach, written as ``n_params <= 20_000``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from sparsefront.errors import SpaceError, nearest
from sparsefront.spaces.domains import shown

#: Quantities that follow from a candidate alone: a candidate that exceeds its bound is not trained.
BEFORE_TRAINING = ("n_params", "macs", "weight_sparsity", "node_sparsity")
#: Quantities that are measured: a strategy is told by how much a candidate exceeded its bound. Never test results.
AFTER_TRAINING = ("val_loss", "val_error", "passes", "flops", "seconds")

#: Digits may be grouped, as Python and TOML have it: one underscore between two of them.
_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=)\s*([-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Constraint:
    """A quantity, a direction and a bound.

    >>> Constraint.parse("n_params <= 20_000")
    Constraint(quantity='n_params', operator='<=', bound=20000.0)
    """

    quantity: str
    operator: Literal["<=", ">="]
    bound: float

    @classmethod
    def parse(cls, text: object) -> Constraint:
        """Read a constraint.

        Raises:
            SpaceError: another form, or an unknown quantity.
        """
        matched = _FORM.fullmatch(text) if isinstance(text, str) else None
        if matched is None:
            raise SpaceError(
                f"constraint {shown(text)}: must be a quantity, '<=' or '>=', and a number, as in 'n_params <= 20_000'"
            )
        quantity, operator, number = matched.groups()
        known = (*BEFORE_TRAINING, *AFTER_TRAINING)
        if quantity not in known:
            raise SpaceError(f"constraint {shown(text)}: {shown(quantity)} {nearest(quantity, known)}")
        bound = float(number)
        if not math.isfinite(bound):
            raise SpaceError(f"constraint {shown(text)}: the bound must be finite")
        return cls(quantity, "<=" if operator == "<=" else ">=", bound)

    @property
    def is_known_before_training(self) -> bool:
        """Whether the quantity follows from the candidate alone."""
        return self.quantity in BEFORE_TRAINING

    def violation(self, value: float) -> float:
        """By how much a value exceeds the bound, relative to |bound| (absolute where it is 0); 0 or less is feasible.

        What is not a number violates infinitely.

        >>> Constraint("macs", "<=", 200.0).violation(300.0), Constraint("val_error", ">=", 0.0).violation(0.5)
        (0.5, -0.5)
        """
        if math.isnan(value):
            return math.inf
        excess = value - self.bound if self.operator == "<=" else self.bound - value
        return excess / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        """As it is written in a study."""
        whole = self.bound.is_integer() and abs(self.bound) < 1e15
        return f"{self.quantity} {self.operator} {int(self.bound) if whole else self.bound!r}"
