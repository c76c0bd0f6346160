"""Unlike networks of one group side by side in a pack: each at the beginning of every axis, zeros behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from sparsefront.errors import SpaceError
from sparsefront.spaces.masks import Mask
from sparsefront.spaces.structure import Structure
from sparsefront.trainables.lanes import LaneStack, Layout
from sparsefront.trainables.network import Network

Arrays = Mapping[str, npt.NDArray[np.float32]]


def stack(
    networks: Sequence[Network],
    weights: Sequence[Arrays],
    keep: Sequence[Arrays],
    padded: Sequence[tuple[int, ...]] | None,
    device: torch.device,
) -> LaneStack:
    """Networks of one group side by side: each at the beginning of every axis, zeros behind it.

    Args:
        networks: of one group.
        weights: of each network, by tensor, at real size.
        keep: 0 or 1 for each weight, by tensor; a tensor that is missing is kept as a whole.
        padded: shape of each tensor of the pack, at least that of every network; None for the smallest that fits all.
        device: where the lanes are put.
    """
    layout = padded_layout(networks, padded)
    flat = padded_rows(layout, weights)
    # A tensor that a network lacks may have entries even so: the bias of a stream.
    lacking = [
        n for n, size in zip(layout.names, layout.sizes, strict=True) if size and any(n not in w for w in weights)
    ]
    is_padded = bool(lacking) or any(n.shape.tensors != layout.shapes for n in networks)
    mask = None
    if is_padded or any(keep):
        ones = [
            {name: kept.get(name, np.float32(1)) * np.ones_like(w) for name, w in each.items()}
            for each, kept in zip(weights, keep, strict=True)
        ]
        mask = torch.from_numpy(padded_rows(layout, ones)).to(device)
    return LaneStack(layout, torch.from_numpy(flat).to(device), mask)


def padded_layout(networks: Sequence[Network], padded: Sequence[tuple[int, ...]] | None) -> Layout:
    """Layout of a pack of networks of one group; see `stack`."""
    shapes = tuple(
        tuple(int(n) for n in np.max(each, axis=0)) for each in zip(*(n.shape.tensors for n in networks), strict=True)
    )
    if padded is not None:
        if any(
            len(a) != len(b) or any(i > j for i, j in zip(a, b, strict=True))
            for a, b in zip(shapes, padded, strict=True)
        ):
            raise SpaceError(
                f"padded={list(padded)}: must be at least {list(shapes)}, which the networks of the pack have"
            )
        shapes = tuple(tuple(p) for p in padded)
    return replace(networks[0].architecture.layout, shapes=shapes)


def padded_rows(layout: Layout, arrays: Sequence[Arrays]) -> npt.NDArray[np.float32]:
    """Tensors of each lane at their places in a row: (L, P) float32, zeros elsewhere.

    >>> layout = Layout(("a",), ((2, 3),))
    >>> padded_rows(layout, [{"a": np.ones((1, 2), dtype=np.float32)}])
    array([[1., 1., 0., 0., 0., 0.]], dtype=float32)
    """
    rows = np.zeros((len(arrays), layout.width), dtype=np.float32)
    for row, each in zip(rows, arrays, strict=True):
        start = 0
        for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
            if name in each:
                row[start : start + size].reshape(shape)[tuple(slice(n) for n in each[name].shape)] = each[name]
            start += size
    return rows


def real_tensors(layout: Layout, network: Network, row: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Trained tensors of one lane at their real size, copied out of its row (P,) or the trained part of it."""
    shapes = {t.name: t.shape for t in network.compact.tensors}
    out: dict[str, npt.NDArray[np.float32]] = {}
    start = 0
    for name, padded, size in zip(layout.trained_names, layout.shapes, layout.sizes, strict=False):
        if name in shapes:
            out[name] = row[start : start + size].reshape(padded)[tuple(slice(n) for n in shapes[name])].copy()
        start += size
    return out


def compact_weights(structure: Structure, parent: Arrays, parts: Sequence[Mask]) -> dict[str, npt.NDArray[np.float32]]:
    """The rows and columns of the kept nodes, `parts` being the sections of a node mask."""
    out = dict(parent)
    for group, part in zip(structure.groups, parts, strict=True):
        for axis in group.axes:
            nodes = np.flatnonzero(np.repeat(part, axis.repeat))
            out[axis.tensor] = out[axis.tensor].take(nodes, axis=axis.dim)
    return out
