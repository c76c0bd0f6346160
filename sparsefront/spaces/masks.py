"""Exact-k masks: drawing, packing to bits, and the sub-network sizes that they leave.

A mask of kind 'node' has one bit for each hidden node of every group, a mask of kind 'weight' one for each prunable
weight, in the order of `Structure.groups` or `Structure.prunable`, each flattened row-major. True means kept.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError
from sparsefront.spaces.seeds import raw_rows
from sparsefront.spaces.structure import Structure

Mask = npt.NDArray[np.bool_]

#: Random words held at once while drawing; keeps the working set near 64 MiB.
_WORDS_AT_ONCE = 1 << 24
#: Redraws of a global mask that left a layer empty before giving up.
_ATTEMPTS = 1000


def draw(
    sizes: Sequence[int], counts: Sequence[int], key: npt.NDArray[np.uint64], *, start: int, stop: int
) -> npt.NDArray[np.bool_]:
    """Masks number `start`..`stop` under `key`, uniform over all masks with exactly these counts.

    Args:
        sizes: (s,) entries of each section.
        counts: (s,) survivors of each section; or (1,) survivors over all sections, of which each keeps at least one.
        key: (2,) uint64 from `seeds.philox_key`.
        start: first mask.
        stop: one past the last mask.

    Returns:
        (stop - start, sum of sizes) bool. Row i depends on the key and its own number only.

    Raises:
        SpaceError: a count outside 1..size.

    >>> from sparsefront.spaces.seeds import philox_key
    >>> draw([6, 4], [3, 1], philox_key(0, "doc"), start=0, stop=100).sum(axis=1).tolist() == [4] * 100
    True
    """
    total = sum(sizes)
    is_global = _is_global(sizes, counts)
    limits = [total] if is_global else sizes
    out = np.empty((stop - start, total), dtype=np.bool_)
    rows = max(1, _WORDS_AT_ONCE // max(1, total))
    for a in range(start, stop, rows):
        b = min(stop, a + rows)
        out[a - start : b - start] = _select(raw_rows(key, start=a, stop=b, width=total), limits, counts)
    if is_global:
        _redraw_empty_sections(out, sizes, counts, key, start)
    return out


def _is_global(sizes: Sequence[int], counts: Sequence[int]) -> bool:
    """Whether all sections share one count; refuses counts that no mask can have."""
    is_global = len(counts) == 1 and len(sizes) > 1
    limits = [sum(sizes)] if is_global else sizes
    if len(counts) != len(limits) or any(not 1 <= k <= n for k, n in zip(counts, limits, strict=True)):
        raise SpaceError(f"counts={list(counts)} for sections of {list(sizes)}: each must lie in 1..size")
    if is_global and counts[0] < len(sizes):
        raise SpaceError(f"counts={list(counts)} over {len(sizes)} sections: at least one survivor in each is needed")
    return is_global


def _select(words: npt.NDArray[np.uint32], sizes: Sequence[int], counts: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The `counts[s]` smallest words of each section of each row; ties go to the lower index."""
    out = np.empty(words.shape, dtype=np.bool_)
    a = 0
    for n, k in zip(sizes, counts, strict=True):
        section = words[:, a : a + n]
        kept = out[:, a : a + n]
        if k == n:
            kept[:] = True
        else:
            threshold = np.partition(section, k - 1, axis=1)[:, k - 1 : k]
            np.less_equal(section, threshold, out=kept)
            for row in np.flatnonzero(np.count_nonzero(kept, axis=1) != k):
                kept[row] = False
                kept[row, np.argsort(section[row], kind="stable")[:k]] = True
        a += n
    return out


def _redraw_empty_sections(
    out: npt.NDArray[np.bool_], sizes: Sequence[int], counts: Sequence[int], key: npt.NDArray[np.uint64], start: int
) -> None:
    """Draw rows that left a section empty again from a fresh table, until none does (rejection keeps them uniform)."""
    edges = np.cumsum([0, *sizes])[:-1]
    total = sum(sizes)
    empty = np.flatnonzero((np.add.reduceat(out, edges, axis=1, dtype=np.int64) == 0).any(axis=1))
    for attempt in range(1, _ATTEMPTS):
        if not len(empty):
            return
        for row in empty:
            words = raw_rows(key, start=start + int(row), stop=start + int(row) + 1, width=total, attempt=attempt)
            out[row] = _select(words, [total], counts)[0]
        still = (np.add.reduceat(out[empty], edges, axis=1, dtype=np.int64) == 0).any(axis=1)
        empty = empty[still]
    if len(empty):
        raise SpaceError(
            f"counts={list(counts)} over sections of {list(sizes)}: {_ATTEMPTS} draws left a layer without a survivor; "
            "use allocation 'uniform' or a lower sparsity"
        )


def top_k(scores: npt.NDArray[np.floating], sizes: Sequence[int], counts: Sequence[int]) -> Mask:
    """The mask that keeps the highest scores: exactly `counts`, ties to the lower flat index.

    With a global count every section keeps at least its best entry.

    Raises:
        SpaceError: a score that is not finite, or a count outside 1..size.

    >>> top_k(np.array([3.0, 1.0, 1.0, 1.0]), [4], [2]).tolist()
    [True, True, False, False]
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise SpaceError("scores: must be finite; a diverged network cannot be pruned")
    out = np.zeros(scores.shape, dtype=np.bool_)
    edges = np.cumsum([0, *sizes])
    if _is_global(sizes, counts):
        for a, b in itertools.pairwise(edges):
            out[a + int(np.argmax(scores[a:b]))] = True
        order = np.argsort(-scores, kind="stable")
        rest = order[~out[order]][: counts[0] - int(out.sum())]
        out[rest] = True
        return out
    for a, b, k in zip(edges[:-1], edges[1:], counts, strict=True):
        out[a + np.argsort(-scores[a:b], kind="stable")[:k]] = True
    return out


def pack_bits(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Eight entries a byte along the last axis, lowest bit first; the tail is padded with zeros."""
    return np.packbits(masks, axis=-1, bitorder="little")


def unpack_bits(packed: npt.NDArray[np.uint8] | bytes, size: int) -> npt.NDArray[np.bool_]:
    """Inverse of `pack_bits` for masks of `size` entries.

    Raises:
        SpaceError: if the bytes do not fit `size`, or set bits in the padding.

    >>> unpack_bits(pack_bits(np.array([True, False, True])), 3).tolist()
    [True, False, True]
    """
    raw = np.frombuffer(packed, dtype=np.uint8) if isinstance(packed, bytes) else packed
    if raw.shape[-1] != -(-size // 8):
        raise SpaceError(f"packed mask of {raw.shape[-1]} bytes: a mask of {size} entries has {-(-size // 8)}")
    bits = np.unpackbits(raw, axis=-1, bitorder="little")
    if bits[..., size:].any():
        raise SpaceError(f"packed mask of {size} entries: bits beyond its end are set; the mask is damaged")
    return bits[..., :size].astype(np.bool_)


def mask_digest(packed: npt.NDArray[np.uint8] | bytes) -> str:
    """Content digest of one packed mask: the first 32 hex digits of its sha256."""
    return hashlib.sha256(packed if isinstance(packed, bytes) else packed.tobytes()).hexdigest()[:32]


@dataclass(frozen=True)
class Remains:
    """What a mask leaves of a parent, exactly counted; sparsities are realised, never requested."""

    node_sparsity: float
    weight_sparsity: float
    n_params: int
    macs: int


def remains(structure: Structure, kind: str, mask: Mask) -> Remains:
    """Count what `mask` leaves.

    A node mask is counted as its compact network. A weight mask removes weights only: node sparsity is the share of
    hidden nodes that lost every incoming or every outgoing weight (a bias is neither).
    """
    if kind == "node":
        edges = np.cumsum([0, *structure.section_sizes("node")])
        kept = [int(np.count_nonzero(mask[a:b])) for a, b in itertools.pairwise(edges)]
        return remains_of(structure, structure.compact(kept))
    parts = dict(zip((t.name for t in structure.prunable), split_tensors(structure, mask), strict=True))
    n_kept = int(np.count_nonzero(mask))
    parts |= {t.name: np.ones(t.size, dtype=np.bool_) for t in structure.multiplied if not t.prunable}
    kept_weights = {name: int(np.count_nonzero(part)) for name, part in parts.items()}
    dead = 0
    for group in structure.groups:
        incoming = np.zeros(group.size, dtype=np.bool_)
        outgoing = np.zeros(group.size, dtype=np.bool_)
        for axis in group.axes:
            shape = next((t.shape for t in structure.multiplied if t.name == axis.tensor), ())
            if len(shape) < 2:
                continue
            per_entry = (
                np.moveaxis(parts[axis.tensor].reshape(shape), axis.dim, 0).reshape(shape[axis.dim], -1).any(axis=1)
            )
            per_node = per_entry.reshape(group.size, axis.repeat).any(axis=1)
            if axis.dim == 0:
                incoming |= per_node
            else:
                outgoing |= per_node
        dead += int(group.size - np.count_nonzero(incoming & outgoing))
    return Remains(
        node_sparsity=dead / structure.n_nodes if structure.n_nodes else 0.0,
        weight_sparsity=1 - n_kept / structure.n_weights,
        n_params=structure.n_params - structure.n_weights + n_kept,
        macs=sum(kept_weights[t.name] * t.positions for t in structure.multiplied),
    )


def remains_of(parent: Structure, compact: Structure) -> Remains:
    """What a smaller network of the same family is, relative to `parent`."""
    return Remains(
        node_sparsity=1 - compact.n_nodes / parent.n_nodes if parent.n_nodes else 0.0,
        weight_sparsity=1 - compact.n_weights / parent.n_weights,
        n_params=compact.n_params,
        macs=compact.macs,
    )


def split_sections(structure: Structure, kind: str, mask: Mask) -> list[Mask]:
    """The mask cut into its sections, each flat."""
    edges = np.cumsum([0, *structure.section_sizes(kind)])
    return [mask[..., a:b] for a, b in itertools.pairwise(edges)]


def split_tensors(structure: Structure, mask: Mask) -> list[Mask]:
    """A weight mask cut into its tensors, each flat: sections, but for biases that are pruned with their weights."""
    edges = np.cumsum([0, *structure.tensor_sizes])
    return [mask[..., a:b] for a, b in itertools.pairwise(edges)]
