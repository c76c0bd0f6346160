"""The patterns by name, how a study writes them, and masks made by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefront.errors import SpaceError, did_you_mean
from sparsefront.spaces.masks import Mask, draw, split_sections
from sparsefront.spaces.patterns.block import Block
from sparsefront.spaces.patterns.free import Free
from sparsefront.spaces.patterns.n_m import NM
from sparsefront.spaces.patterns.pattern import Pattern, Scores
from sparsefront.spaces.structure import Structure, Tensor


@dataclass(frozen=True)
class PatternFamily:
    """One row of the registry.

    Attributes:
        summary: what may be kept.
        source: who proposed it.
        kind: of its masks.
        form: how a study writes one; "A:B" and "AxB" stand for two numbers.
        options: names of those numbers.
        build: from the options to the pattern.
    """

    summary: str
    source: str
    kind: str
    form: str
    options: tuple[str, ...]
    build: Callable[..., Pattern]


PATTERNS: Mapping[str, PatternFamily] = {
    "unstructured": PatternFamily(
        "any weights", "Han et al. 2015", "weight", "unstructured", (), lambda: Free("weight")
    ),
    "node": PatternFamily(
        "whole hidden units or channels, with everything that is tied to them", "Li et al. 2017", "node", "node", (),
        lambda: Free("node"),
    ),
    "n_m": PatternFamily(
        "N of each M consecutive weights along the inputs; left-over inputs stay dense", "Mishra et al. 2021",
        "weight", "N:M, such as 2:4", ("n", "m"), NM,
    ),
    "block": PatternFamily(
        "whole blocks of outputs x inputs; kernel positions stay together", "Narang et al. 2017", "weight",
        "OxI, such as 4x4", ("n_out", "n_in"), Block,
    ),
}  # fmt: skip

#: Families whose name is never written: two numbers and what stands between them.
_FORMS: Mapping[str, str] = {"n_m": r"(\d+):(\d+)", "block": r"(\d+)x(\d+)"}


def parse_pattern(name: str, **options: int) -> Pattern:
    """The pattern that a study names: 'unstructured', 'node', '2:4', '4x4'; or a row of `PATTERNS` with its options.

    Raises:
        SpaceError: no such pattern, or options that it has not.

    >>> parse_pattern("2:4") == parse_pattern("n_m", n=2, m=4)
    True
    >>> parse_pattern("16x1")
    Block(n_out=16, n_in=1)
    """
    for family, form in _FORMS.items():
        if (match := re.fullmatch(form, name)) and not options:
            return PATTERNS[family].build(*map(int, match.groups()))
    if name not in PATTERNS:
        forms = ", ".join(row.form for row in PATTERNS.values())
        written = [known for known in PATTERNS if known not in _FORMS]
        raise SpaceError(f"pattern={name!r}: must be one of {forms}{did_you_mean(name, written)}")
    row = PATTERNS[name]
    if set(options) != set(row.options):
        raise SpaceError(
            f"pattern={name!r} with options {sorted(options)}: takes {', '.join(row.options) or 'none'}; "
            f"written {row.form}"
        )
    return row.build(**options)


def pattern_counts(
    pattern: str | Pattern, structure: Structure, wanted: Sequence[int] | None = None, **options: int
) -> tuple[int, ...]:
    """Exact survivors of each section under `pattern`, when an allocation wants `wanted`; N:M needs none.

    >>> from sparsefront.spaces.structure import Tensor
    >>> net = Structure((Tensor("a", (8, 8), True),), ())
    >>> pattern_counts("2:4", net), pattern_counts("4x4", net, [40]), pattern_counts("unstructured", net, [40])
    ((32,), (32,), (40,))
    """
    return _pattern(pattern, options).counts(structure, wanted)


def select(
    pattern: str | Pattern,
    scores: Scores,
    structure: Structure,
    wanted: Sequence[int] | None = None,
    **options: int,
) -> Mask:
    """The mask of `pattern` that keeps the highest scores, with exactly the counts of `pattern_counts`.

    Args:
        pattern: a name that `parse_pattern` takes, or what it returned.
        scores: (W,) of all prunable weights, or (N,) of all nodes for the pattern 'node'; finite, higher is kept.
        structure: the parent.
        wanted: survivors of each section, or of all together (unstructured and node only); none for N:M.
        options: numbers of a pattern that is named by its row.

    Returns:
        (W,) or (N,) bool. Ties go to the lower flat index.

    Raises:
        SpaceError: a pattern, count or score that cannot be.

    >>> from sparsefront.spaces.structure import Tensor
    >>> net = Structure((Tensor("a", (1, 8), True),), ())
    >>> select("2:4", np.array([1.0, 2, 3, 4, 9, 9, 9, 0]), net).astype(int).tolist()
    [0, 0, 1, 1, 1, 1, 0, 0]
    """
    rule = _pattern(pattern, options)
    return rule.select(scores, structure, rule.counts(structure, wanted))


def random_masks(
    pattern: str | Pattern,
    structure: Structure,
    wanted: Sequence[int] | None,
    key: npt.NDArray[np.uint64],
    *,
    start: int,
    stop: int,
    **options: int,
) -> npt.NDArray[np.bool_]:
    """Masks number `start`..`stop` under `key`, uniform over those of `pattern` with the counts of `pattern_counts`.

    Returns:
        (stop - start, W or N) bool. Row i depends on the key and its own number only.
    """
    rule = _pattern(pattern, options)
    return rule.draw(structure, rule.counts(structure, wanted), key, start=start, stop=stop)


def drawn_counts(
    pattern: Pattern, structure: Structure, wanted: Sequence[int] | None, key: npt.NDArray[np.uint64], *, number: int
) -> tuple[int, ...]:
    """The counts that mask `number` under `key` has, for `random_masks` to draw it with.

    They are those of `pattern_counts`, but where units are larger than entries and `wanted` is one count over all
    sections: that is divided as this mask of single weights divides it, and then cut to whole units.

    >>> from sparsefront.spaces.seeds import philox_key
    >>> from sparsefront.spaces.structure import Tensor
    >>> net = Structure((Tensor("a", (8, 8), True), Tensor("b", (4, 8), True)), ())
    >>> drawn_counts(parse_pattern("4x4"), net, [60], philox_key(0, "doc"), number=3)
    (32, 16)
    """
    sizes = structure.section_sizes(pattern.kind)
    is_divided = wanted is not None and len(wanted) == 1 < len(sizes)
    if isinstance(pattern, Free) or pattern.density is not None or not is_divided:
        return pattern.counts(structure, wanted)
    assert wanted is not None
    singles = draw(sizes, wanted, key, start=number, stop=number + 1)[0]
    return pattern.counts(
        structure, [int(np.count_nonzero(part)) for part in split_sections(structure, pattern.kind, singles)]
    )


def _pattern(pattern: str | Pattern, options: Mapping[str, int]) -> Pattern:
    return parse_pattern(pattern, **options) if isinstance(pattern, str) else pattern


def untouched(pattern: Pattern, structure: Structure) -> tuple[Tensor, ...]:
    """The prunable tensors of which no weight mask of a pattern removes anything, whatever is asked for.

    >>> net = Structure((Tensor("a", (4, 8), True), Tensor("b", (2, 4), True)), ())
    >>> [t.name for t in untouched(parse_pattern("4x4"), net)], [t.name for t in untouched(parse_pattern("1:8"), net)]
    (['b'], ['b'])
    """
    least = pattern.counts(structure, [1] * len(structure.prunable))
    return tuple(t for t, k in zip(structure.prunable, least, strict=True) if k == t.size)
