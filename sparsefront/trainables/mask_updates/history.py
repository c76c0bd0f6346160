"""Where masks began, where they are, and which weights they have ever held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsefront.trainables.mask_updates.contract import UpdateSettings, gather


@dataclass(frozen=True)
class MaskRecord:
    """What became of one lane's mask.

    Attributes:
        mask: (W,) or (N,) bool, the last one, in the order of a weight mask or a node mask.
        overlap: of the first and the last mask, as entries in both over entries in either (Jaccard).
        exploration_rate: share of the prunable weights that were ever active (the in-time over-parametrisation rate
            of Liu et al., Do we actually need dense over-parameterization?, 2021).
    """

    mask: torch.Tensor
    overlap: float
    exploration_rate: float


class MaskHistory:
    """Follows the masks of a pack's rows."""

    def __init__(self, settings: UpdateSettings, keep: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        """Begin with `keep` (L, P), or go on from the `slots` of an earlier pack; `keep` is read, never changed."""
        self._settings = settings
        self._first = saved["first_keep"].to(keep, copy=True) if "first_keep" in saved else keep.clone()
        self._ever = saved["ever_kept"].to(keep, copy=True) if "ever_kept" in saved else keep.clone()

    def note(self, keep: torch.Tensor) -> None:
        """Masks have changed to `keep` (L, P)."""
        torch.maximum(self._ever, keep, out=self._ever)

    def keep_lanes(self, lanes: torch.Tensor) -> None:
        """Forget all rows but these (index tensor)."""
        self._first, self._ever = self._first[lanes], self._ever[lanes]

    def slots(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """State by name, each (L, P); the masks themselves are among it."""
        return {"keep": keep, "first_keep": self._first, "ever_kept": self._ever}

    def records(self, keep: torch.Tensor, rows: Sequence[int]) -> list[MaskRecord]:
        """What became of some rows' masks, `keep` (L, P) being the last."""
        index = torch.as_tensor(list(rows), device=keep.device)
        last, first = (self._settings.kept(each[index]) for each in (keep, self._first))
        shares = (last & first).sum(dim=1).double() / (last | first).sum(dim=1)
        explored = gather(self._settings.sections, self._ever[index]).double().mean(dim=1)
        return [MaskRecord(*each) for each in zip(last, shares.tolist(), explored.tolist(), strict=True)]
