"""No rungs: every candidate is trained to the end."""

from __future__ import annotations

from sparsefront.search.rungs.rule import RungKind

NO_RUNGS = RungKind("every candidate is trained to the end", "Bergstra and Bengio 2012", has_rungs=False)
