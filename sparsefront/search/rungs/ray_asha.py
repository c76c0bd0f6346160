"""Ray Tune's own ASHA, for candidates that train alone: Ray's scheduler stops them, and the record follows.

Its rule differs from `asha`: a newcomer is compared with the quantile of those before it, itself left out; the first
one always goes on. It knows what was reported since the driver began and nothing before: it is not reproducible.

Reference: Li et al., A system for massively parallel hyperparameter tuning, MLSys 2020, as in `ray.tune`.
"""

from __future__ import annotations

from sparsefront.search.rungs.rule import RungKind

RAY_ASHA = RungKind(
    "Ray Tune's own ASHA: one candidate a trial, compared with those that reached the rung before it",
    "Li et al. 2020, as Ray Tune has it",
    is_scheduled=True,
)
