"""The kinds of rungs by name."""

from __future__ import annotations

from collections.abc import Mapping

from sparsefront.search.rungs.asha import ASHA
from sparsefront.search.rungs.hyperband import HYPERBAND
from sparsefront.search.rungs.mo_asha import MO_ASHA
from sparsefront.search.rungs.no_rungs import NO_RUNGS
from sparsefront.search.rungs.ray_asha import RAY_ASHA
from sparsefront.search.rungs.rule import RungKind
from sparsefront.search.rungs.successive_halving import SUCCESSIVE_HALVING

RUNGS: Mapping[str, RungKind] = {
    "none": NO_RUNGS,
    "successive_halving": SUCCESSIVE_HALVING,
    "hyperband": HYPERBAND,
    "asha": ASHA,
    "mo_asha": MO_ASHA,
    "ray_asha": RAY_ASHA,
}
