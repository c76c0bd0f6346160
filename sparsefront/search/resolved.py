"""The design of a study, from the study as its ledger records it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sparsefront.errors import SpaceError
from sparsefront.search.design import ChainSettings, Design, RungSettings, SearchArm, SearchControl, SearchDesign
from sparsefront.search.fixed import Fixed
from sparsefront.search.methods import arm_names, tables_for
from sparsefront.search.methods.controls import control_name
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.search.rungs import RUNGS
from sparsefront.spaces.domains import Bits
from sparsefront.spaces.space import Effect, Space
from sparsefront.spaces.structure import Structure


def design_of(identity: Mapping[str, Any]) -> Design | SearchDesign:
    """The numbers that decisions and judgements depend on, of a resolved study as plain data.

    Raises:
        KeyError: if it is none.
    """
    if "space" in identity:
        return search_design_of(identity)
    search, masks, verdict = identity["search"], identity["masks"], identity["verdict"]
    arms = identity["arms"]
    tables = dict(arms) if isinstance(arms, Mapping) else {arm: {} for arm in arms}
    return Design(
        name=identity["name"],
        seed=identity["seed"],
        replicates=identity["replicates"],
        sparsities=tuple(identity["sparsities"]),
        arms=arm_names(tables),
        methods=tables_for(tables, masks["kind"]),
        draws=search["draws"],
        random_draws=search["random_draws"],
        random_draws_by_level=tuple(search.get("random_draws_by_level", ())),
        probe_size=search["probe_size"],
        steps=identity["training"]["steps"],
        mask_kind=masks["kind"],
        allocation=masks["allocation"],
        model=_described(identity["model"]),
        dataset=_described(identity["data"]),
        n_classes=identity["resolved"]["n_classes"],
        equivalence_margin=verdict["equivalence_margin"],
        convergence_target_fraction=verdict["convergence_target_fraction"],
        convergence_margin_fraction=verdict["convergence_margin_fraction"],
        alpha=verdict["alpha"],
        objectives=tuple(verdict["objectives"]),
        task=identity["resolved"].get("task", "classification"),
        untouched_psnr=identity["resolved"].get("untouched_psnr"),
        keeps_parents=identity["resolved"].get("keeps_parents", False),
        making_steps=identity["resolved"].get("making_steps", {}),
        mask_sections=tuple(identity["resolved"].get("mask_sections", ())),
    )


def _described(section: Mapping[str, Any], elsewhere: Mapping[str, str] | None = None) -> str:
    """A name with its options, for people; the same in whatever order they are stored.

    Args:
        section: `[data]` or `[model]`.
        elsewhere: options whose value here counts for nothing, and what is said of them instead.

    >>> _described({"name": "digits", "validation_fraction": 0.2}), _described({"name": "mlp", "widths": [8]})
    ('digits', 'mlp(widths=[8])')
    >>> _described({"name": "mlp", "widths": [8], "bias": True}, {"widths": "searched"})
    'mlp(bias=true, widths searched)'
    """
    options = {k: v for k, v in sorted(section.items()) if k not in ("name", "validation_fraction")}
    elsewhere = elsewhere or {}
    texts = [f"{k} {elsewhere[k]}" if k in elsewhere else f"{k}={_toml(v)}" for k, v in options.items()]
    return f"{section['name']}({', '.join(texts)})" if texts else str(section["name"])


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def spaces_of(
    identity: Mapping[str, Any],
    *,
    known_keys: Collection[str] | None = None,
    structure: Structure | None = None,
    effect: Effect | None = None,
) -> dict[str, Space]:
    """The space of each arm of a resolved search study.

    Args:
        identity: the study; its `resolved` says what `n_sections` and `bits` the masks have.
        known_keys: study keys that a space may set; None if that was checked before.
        structure: the parent of searched masks, for those that are the same but for the order of hidden units.
        effect: what of a candidate's settings takes effect, for those that are the same but for the rest.

    Raises:
        SpaceError: one line with key, value and what is accepted.
    """
    resolved = identity["resolved"]
    bits = None
    if resolved["bits"] is not None:
        bits = Bits(tuple(resolved["bits"]["sections"]), tuple(resolved["bits"]["kept"]))
    base = Space.from_table(
        identity["space"],
        bits=bits,
        n_sections=resolved["n_sections"],
        known_keys=known_keys,
        structure=structure,
        mask_kind=identity["masks"]["kind"],
        effect=effect,
    )
    spaces: dict[str, Space] = {}
    for name, arm in identity["arms"].items():
        try:
            spaces[name] = base.with_overrides(arm["space"]) if arm["space"] else base
        except SpaceError as error:
            raise SpaceError(f"arms.{name}.{error}") from error
    return spaces


def search_design_of(
    identity: Mapping[str, Any], *, structure: Structure | None = None, effect: Effect | None = None
) -> SearchDesign:
    """The same of a search; `structure` and `effect`: see `spaces_of`."""
    masks = identity["masks"]
    verdict, spaces = identity["verdict"], spaces_of(identity, structure=structure, effect=effect)
    return SearchDesign(
        name=identity["name"],
        seed=identity["seed"],
        replicates=identity["replicates"],
        arms=tuple(
            SearchArm(
                name=name,
                strategy=arm["strategy"],
                space=spaces[name],
                candidates=arm["candidates"],
                batch=arm["batch"],
                options=arm["options"],
                rungs=_rungs(
                    arm["rungs"],
                    tuple(verdict["objectives"]),
                    level_steps=spaces[name].constants.get("training.steps", identity["training"]["steps"]),
                ),
                against=_against(arm),
                chain=_chain(spaces[name], masks),
                fixed=Fixed.of(spaces[name], spaces, identity),
            )
            for name, arm in _ordered(identity["arms"])
        ),
        steps=identity["training"]["steps"],
        eval_every=identity["training"]["eval_every"],
        model=_described(identity["model"], _set_by_spaces("model", spaces.values())),
        dataset=_described(identity["data"]),
        mask_kind=" and ".join(sorted({k for space in spaces.values() for k in _mask_kinds(space, masks["kind"])})),
        n_classes=identity["resolved"]["n_classes"],
        objectives=tuple(verdict["objectives"]),
        reference=tuple(verdict["reference"]) or None,
        equivalence_margin=verdict["equivalence_margin"],
        alpha=verdict["alpha"],
        task=identity["resolved"].get("task", "classification"),
        untouched_psnr=identity["resolved"].get("untouched_psnr"),
        controls=tuple(
            SearchControl(control_name(name, kind), name, kind)
            for name, arm in _ordered(identity["arms"])
            for kind in arm.get("controls", ())
        ),
    )


def _chain(space: Space, masks: Mapping[str, Any]) -> ChainSettings | None:
    """What the pruning chains of a space are; None where there are none."""
    names = space.choices_of("masks.method", masks.get("method"))
    patterns = space.choices_of("masks.pattern", masks.get("pattern", "unstructured"))
    methods = [PRUNERS[str(name)].method for name in names if name in PRUNERS]
    chains = [method.under(str(pattern)) for method in methods for pattern in patterns if method.needs_parent]
    return ChainSettings(masks["sparsity"], tuple(chains)) if chains else None


def _mask_kinds(space: Space, usual: str) -> tuple[str, ...]:
    """Kinds of masks in a space; `usual` where it does not say."""
    return tuple(map(str, space.choices_of("masks.kind", usual)))


def _set_by_spaces(section: str, spaces: Iterable[Space]) -> dict[str, str]:
    """Options of a section that the space of any arm searches or fixes."""
    found: dict[str, str] = {}
    for space in spaces:
        found |= {key: "by arm" for key, _ in space.fixed if found.get(key) != "searched"}
        found |= {dimension.key: "searched" for dimension in space.dimensions}
    return {key.removeprefix(f"{section}."): how for key, how in found.items() if key.startswith(f"{section}.")}


def _ordered(arms: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arms in an order that does not depend on how they were written: those that others are held against, then by name.

    >>> [name for name, _ in _ordered({"b": {"against": "r"}, "a": {"against": "r"}, "r": {"against": "r"}})]
    ['r', 'a', 'b']
    """
    against = {name for arm in arms.values() for name in _against(arm)}
    return sorted(arms.items(), key=lambda item: (item[0] not in against, item[0]))


def _against(arm: Mapping[str, Any]) -> tuple[str, ...]:
    """Whom an arm is judged against: one name, or a list."""
    return (arm["against"],) if isinstance(arm["against"], str) else tuple(arm["against"])


def _rungs(settings: Mapping[str, Any], objectives: tuple[str, ...], *, level_steps: int) -> RungSettings:
    """What a rung compares: what it is told to, else all objectives if its rule knows several, else the loss."""
    usual = objectives if RUNGS[settings["kind"]].is_multi_objective else ("val_loss",)
    compared = tuple(settings.get("objectives", ())) or usual
    own = {**settings, "bands": tuple(settings["bands"]), "objectives": compared}
    return RungSettings(**own, level_steps=level_steps if own.get("fidelity") == "level" else 1)
