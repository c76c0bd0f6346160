"""What packing needs to know of one candidate."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefront.errors import SpaceError


@dataclass(frozen=True)
class Shape:
    """Sizes of one candidate, and with whom it may travel.

    Attributes:
        group: candidates share a pack only if theirs are equal: it names all that cannot be padded or mixed (module,
            optimiser, batch size, data fraction, ...).
        tensors: real (compact) shape of each tensor; as many as in all of the group, and of the same numbers of
            dimensions: a block that a candidate lacks has zeros.
        positions: uses of each tensor's entries in one example's forward pass; 0 for biases.
        batch_size: examples in an optimiser step.
        ragged: whether a CPU trains it beside others without padding (`sparsefront.trainables.ragged`).
    """

    group: str
    tensors: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    batch_size: int
    ragged: bool = False

    def __post_init__(self) -> None:
        if len(self.tensors) != len(self.positions):
            raise SpaceError(f"positions={self.positions}: one for each of the {len(self.tensors)} tensors is needed")
