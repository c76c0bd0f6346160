"""Whether what one search recorded can stand for what another one would have measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsefront.errors import ConfigError
from sparsefront.search.design import SearchDesign
from sparsefront.search.ledger.header import differences
from sparsefront.spaces.space import Space

#: Sections of a study on which the result of a candidate depends.
_SECTIONS = ("seed", "data", "model", "masks", "training")


def check_replay(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], *, then: SearchDesign, now: SearchDesign
) -> None:
    """Refuse a replay of candidates that were trained otherwise, or in another space, than the study has it.

    Arms, strategies, rungs, numbers of candidates, constraints and the verdict may be others: that is what a replay is
    for. Replicates may be fewer.

    Args:
        folder: of the search on record.
        old: that search, as its ledger records it.
        new: the study, as a ledger would record it.
        then: the design of `old`.
        now: the design of `new`.

    Raises:
        ConfigError: with the keys that differ and both values of each.
    """
    if now.replicates > then.replicates:
        raise ConfigError(
            f"replicates={now.replicates}: must be at most {then.replicates}, the replicates on record in {folder}; "
            "there is nothing to replay in the others"
        )
    changed = differences(_deciding(old), _deciding(new))
    on_record = [_searched(arm.space) for arm in then.arms]
    of_arms: dict[str, list[str]] = {}
    for arm in now.arms:
        # Any arm of the record will do: what a candidate comes to depends on its point, and not on who proposed it.
        for line in min((differences(known, _searched(arm.space)) for known in on_record), key=len):
            of_arms.setdefault(line, []).append(arm.name)
    changed += [line if len(arms) == len(now.arms) else f"arms.{arms[0]}.{line}" for line, arms in of_arms.items()]
    if changed:
        shown = ", ".join(changed[:4]) + (f", and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise ConfigError(
            f"DIR={folder}: its candidates are of another study ({shown}); a replay needs the same data, model, masks, "
            "training, seed and spaces of arms: undo the change, or simulate a synthetic objective"
        )


def _deciding(study: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recorded study the result of a candidate depends on."""
    found = {section: study[section] for section in _SECTIONS}
    # A curve that is known at other steps is the same curve.
    found["training"] = {key: value for key, value in study["training"].items() if key != "eval_every"}
    found["resolved"] = {key: study["resolved"].get(key) for key in ("data_digest", "method")}
    found["search"] = {"probe_size": study["search"].get("probe_size")}
    return found


def _searched(space: Space) -> dict[str, Any]:
    """What a space searches and fixes; constraints aside."""
    return {"space": {key: value for key, value in space.to_table().items() if key != "constraints"}}
