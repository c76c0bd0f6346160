"""What each arm wants trained (the contract that all of them keep: tests/contracts)."""

from __future__ import annotations

from sparsefront.search.methods import METHODS, Best, Context
from sparsefront.spaces.candidate import Candidate

KNOWN = Context(2, 0.9, 3, Best(5, 6, 7), {"magnitude": "cd" * 16})


def test_random_takes_the_first_draws_whatever_their_scores() -> None:
    wanted = [Candidate(2, 0.9, "masked", draw=i) for i in range(3)]
    assert METHODS["random"].candidates(KNOWN) == wanted
    assert METHODS["random"].candidates(Context(2, 0.9, 3)) == wanted


def test_the_selected_arms_take_the_draw_that_stands_out() -> None:
    drawn = {
        arm: [c.draw for c in METHODS[arm].candidates(KNOWN) or () if isinstance(c, Candidate)]  # type: ignore[union-attr]
        for arm in ("searched", "searched_scalefree", "worst")
    }
    assert drawn == {"searched": [5], "searched_scalefree": [6], "worst": [7]}


def test_magnitude_takes_the_mask_that_was_cut_from_the_trained_parent() -> None:
    assert METHODS["magnitude"].candidates(KNOWN) == [Candidate(2, 0.9, "masked", mask="cd" * 16)]


def test_the_dense_arms_need_no_mask() -> None:
    assert METHODS["dense"].candidates(Context(2, 0.0, 3)) == [Candidate(2, 0.0, "parent")]
    assert METHODS["small_dense"].candidates(KNOWN) == [Candidate(2, 0.9, "small_dense")]


def test_random_comes_with_every_default_study() -> None:
    assert list(METHODS) == ["dense", "random", "searched", "searched_scalefree", "worst", "small_dense", "magnitude"]
