"""Patches of two photographs, degraded by noise, rain streaks or haze: one network has to restore all three.

The photographs are cut into a grid of patches that do not overlap, and each patch is degraded once, in one way: no
pixel is in two examples. Whole columns of the grid are the test part.

References: MIR-L, 2025 (the three tasks for one network; there at full size with an own data set for each); Yang et
al., Deep joint rain detection and removal from a single image, 2017 (streaks are added to the scene); Narasimhan and
Nayar, Vision and the atmosphere, 2002 (haze: scene x transmission + airlight x (1 - transmission)).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsefront.spaces.seeds import generator
from sparsefront.trainables.data.cache import cached, default_cache
from sparsefront.trainables.data.dataset import Arrays, Dataset, DatasetSource, Option

DEGRADATIONS = ("noise", "rain", "haze")
_SOURCE = "china.jpg and flower.jpg of scikit-learn's load_sample_images, degraded locally"
_LICENCE = "CC-BY-2.0 (danielbuechele, vultilion)"

#: Every fifth column of the grid is for the test.
TEST_EVERY = 5
#: Luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114])
#: Changes with what is drawn: entries of the cache are of one version.
_VERSION = 1

Images = npt.NDArray[np.float64]


def _load(options: Mapping[str, int], cache: Path | None) -> Dataset:
    """Cut and degrade the patches, or read them from the cache; decoding the photographs takes half a second."""
    complete = dict(options)
    identity = {"generator": f"restoration {_VERSION}", "options": complete}
    arrays = cached("restoration", identity, lambda: _generate(**complete), folder=cache or default_cache())
    return Dataset.from_arrays(
        "restoration",
        arrays,
        n_classes=len(DEGRADATIONS),
        source=_SOURCE,
        licence=_LICENCE,
        degradations=DEGRADATIONS,
    )


def patch_grid(photographs: Images, side: int) -> tuple[Images, npt.NDArray[np.bool_]]:
    """Cut photographs into patches, photograph by photograph, row by row.

    Args:
        photographs: (n, rows, columns) intensities.
        side: rows and columns of a patch; what is left over at the right and at the bottom is not used.

    Returns:
        Patches (m, side, side), and which are for the test: (m,) bool.

    >>> patches, is_test = patch_grid(np.zeros((2, 9, 20)), 4)
    >>> patches.shape, int(is_test.sum())
    ((20, 4, 4), 4)
    """
    n, n_rows, n_columns = (len(photographs), photographs.shape[1] // side, photographs.shape[2] // side)
    used = photographs[:, : n_rows * side, : n_columns * side]
    patches = used.reshape(n, n_rows, side, n_columns, side).swapaxes(2, 3).reshape(-1, side, side)
    column = np.tile(np.arange(n_columns), n * n_rows)
    return patches, column % TEST_EVERY == TEST_EVERY // 2


def _generate(*, patch_size: int, noise_sigma: int, rain_streaks: int, haze_percent: int, seed: int) -> Arrays:
    """Both parts; in each, as many patches of either degradation as the number allows, at random."""
    # Imported here: scikit-learn takes a second, and a listing needs none of it.
    from sklearn.datasets import load_sample_images

    colour = np.stack(load_sample_images().images).astype(np.float64) / 255
    patches, is_test = patch_grid(colour @ _LUMA, patch_size)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for part, chosen in (("train", patches[~is_test]), ("test", patches[is_test])):
        rng = generator(seed, f"restoration {part}")
        kind = rng.permutation(np.arange(len(chosen)) % len(DEGRADATIONS))
        degraded = np.empty_like(chosen)
        amounts = (noise_sigma / 255, rain_streaks / 1000, haze_percent / 100)
        for i, (degrade, amount) in enumerate(zip((with_noise, with_rain, with_haze), amounts, strict=True)):
            own = generator(seed, f"restoration {part} {DEGRADATIONS[i]}")
            degraded[kind == i] = degrade(chosen[kind == i], amount, own)
        arrays[f"x_{part}"] = degraded[:, None].astype(np.float32)
        arrays[f"target_{part}"] = np.clip(chosen[:, None], 0, 1).astype(np.float32)
        arrays[f"y_{part}"] = kind.astype(np.int64)
    return arrays


def with_noise(clean: Images, sigma: float, rng: np.random.Generator) -> Images:
    """White Gaussian noise of standard deviation `sigma`, not clipped: (n, rows, columns)."""
    return np.asarray(clean + sigma * rng.standard_normal(clean.shape))


def with_rain(clean: Images, density: float, rng: np.random.Generator) -> Images:
    """Bright slanted streaks added to the scene, clipped at white: (n, rows, columns).

    In one patch all streaks fall in one direction, up to 30 degrees off the vertical. A streak is a segment of 5 to 12
    pixels whose brightness, 0.2 to 0.6, falls off across it as a Gaussian of 0.5 pixels.

    Args:
        clean: intensities in [0, 1].
        density: streaks a pixel; every patch has the same number, at least one unless the density is 0.
        rng: where the draws come from.
    """
    n, rows, columns = clean.shape
    n_streaks = max(1, round(density * rows * columns)) if density > 0 else 0
    slant = rng.uniform(-np.pi / 6, np.pi / 6, (n, 1, 1))
    vertical, horizontal = np.cos(slant), np.sin(slant)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    streaks = np.zeros_like(clean)
    for _ in range(n_streaks):
        y0, x0 = rng.uniform(0, rows, (n, 1, 1)), rng.uniform(0, columns, (n, 1, 1))
        half_length = rng.uniform(2.5, 6, (n, 1, 1))
        brightness = rng.uniform(0.2, 0.6, (n, 1, 1))
        along = (y - y0) * vertical + (x - x0) * horizontal
        across = (x - x0) * vertical - (y - y0) * horizontal
        streak = brightness * np.exp(-0.5 * (across / 0.5) ** 2) * (np.abs(along) <= half_length)
        streaks = np.maximum(streaks, streak)
    return np.minimum(clean + streaks, 1.0)


def with_haze(clean: Images, strength: float, rng: np.random.Generator) -> Images:
    """Light scattered by the air: scene x t + airlight x (1 - t), with one t and one airlight for each patch.

    Args:
        clean: (n, rows, columns) intensities.
        strength: mean share of the scene's light that is lost; a patch loses between 3/4 and 5/4 of it (at most all).
        rng: where the draws come from.
    """
    lost = np.minimum(strength * rng.uniform(0.75, 1.25, (len(clean), 1, 1)), 1.0)
    airlight = rng.uniform(0.8, 1.0, (len(clean), 1, 1))
    return np.asarray(clean * (1 - lost) + airlight * lost)


SOURCE = DatasetSource(
    name="restoration",
    summary="grey patches of two photographs with noise, rain streaks or haze, to be restored by one network",
    example_shape=(1, 16, 16),
    n_classes=len(DEGRADATIONS),
    n_train=1664,
    n_test=416,
    source=_SOURCE,
    licence=_LICENCE,
    options=(
        Option("patch_size", 16, 8, 64, "rows and columns of a patch, in pixels", multiple_of=4),
        Option("noise_sigma", 25, 0, 255, "standard deviation of the noise, in levels of 255"),
        Option("rain_streaks", 16, 0, 1000, "streaks in 1000 pixels"),
        Option("haze_percent", 40, 0, 100, "mean share of the scene's light that haze replaces, in percent"),
        Option("seed", 0, 0, 2**32 - 1, "seed of the degradations"),
    ),
    load=_load,
    task="restoration",
)
