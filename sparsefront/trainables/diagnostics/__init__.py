"""What became of trained networks: densities, dead units, collapse, and how trained siblings are connected."""

from sparsefront.trainables.diagnostics.columns import COLUMNS, RealSize, diagnose
from sparsefront.trainables.diagnostics.connectivity import (
    Connectivity,
    Distances,
    distances,
    instability,
)

__all__ = [
    "COLUMNS",
    "Connectivity",
    "Distances",
    "RealSize",
    "diagnose",
    "distances",
    "instability",
]
