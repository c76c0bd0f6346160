"""The arms by name, in the order in which tables show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefront.search.methods.controls import ControlArm, control_name
from sparsefront.search.methods.dense import Dense
from sparsefront.search.methods.method import Method
from sparsefront.search.methods.pruned import Pruned
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.search.methods.random import Random
from sparsefront.search.methods.selected import Selected
from sparsefront.search.methods.small_dense import SmallDense
from sparsefront.spaces.pruning import Pruning

METHODS: Mapping[str, Method] = {
    "dense": Dense(),
    "random": Random(),
    "searched": Selected("the mask of lowest initial loss among R", "lowest_initial_loss"),
    "searched_scalefree": Selected("the mask of lowest loss at its best temperature among R", "lowest_scalefree_loss"),
    "worst": Selected("the mask of highest initial loss among R (a control)", "highest_initial_loss"),
    "small_dense": SmallDense(),
    **{name: Pruned(name, row.summary, row.source, row.method) for name, row in PRUNERS.items()},
}

#: What may be written of an arm besides the fields of a pruning method.
ARM_KEYS = ("method", "controls", "siblings")

#: Arms of a study that names none: the random-search baseline and its controls.
BASELINE = ("dense", "random", "searched", "searched_scalefree", "worst", "small_dense", "magnitude")


def arm_names(arms: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of a study's arms, each followed by its controls, whether their methods are known here or not.

    >>> arm_names({"random": {}, "imp": {"controls": ["shuffled"]}})
    ('random', 'imp', 'imp_shuffled')
    """
    return tuple(
        name
        for arm, options in arms.items()
        for name in (arm, *(control_name(arm, control) for control in options.get("controls", ())))
    )


def tables_for(arms: Mapping[str, Mapping[str, Any]], mask_kind: str) -> dict[str, Mapping[str, Any]]:
    """Tables of arms (see `methods_of`) in a study of masks of a kind, completed where that makes a method another.

    >>> tables_for({"set": {}, "imp": {}}, "node"), tables_for({"set": {}}, "weight")
    ({'set': {'allocation': None}, 'imp': {}}, {'set': {}})
    """
    found: dict[str, Mapping[str, Any]] = {}
    for arm, options in arms.items():
        row = PRUNERS.get(options.get("method") or arm)
        own = row.for_masks(mask_kind).allocation if row is not None else None
        is_other = row is not None and own != row.method.allocation
        found[arm] = {"allocation": own, **options} if is_other else options
    return found


def known_methods(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    """`methods_of` those arms whose methods are known here: a ledger can name others, and is read all the same."""
    return methods_of({arm: options for arm, options in arms.items() if (options.get("method") or arm) in METHODS})


def methods_of(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    """The methods of a study's arms, each followed by its controls.

    Args:
        arms: of each arm what differs from the method that it is called after: `method` (the name of another one),
            `controls`, `siblings`, and fields of `sparsefront.spaces.pruning.Pruning`.

    Raises:
        KeyError: a method that does not exist.
        SpaceError: a field out of its range.

    >>> list(methods_of({"random": {}, "late": {"method": "imp", "rewind_fraction": 0.1, "controls": ["shuffled"]}}))
    ['random', 'late', 'late_shuffled']
    """
    found: dict[str, Method] = {}
    for arm, options in arms.items():
        changes = {k: v for k, v in options.items() if k not in ARM_KEYS}
        called = options.get("method") or arm
        if called in PRUNERS:
            row = PRUNERS[called]
            found[arm] = Pruned(arm, row.summary, row.source, Pruning.of_data({**row.method.as_data(), **changes}))
        else:
            found[arm] = METHODS[called]
        for kind in options.get("controls", ()):
            found[control_name(arm, kind)] = ControlArm(arm, found[arm], kind)
    return found
