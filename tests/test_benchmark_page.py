"""The page of benchmark results: a table is measured anew, and what was written about it stays."""

from __future__ import annotations

import doctest

from benchmarks import __main__ as page

STAMP = "Measured today."


def test_doctests() -> None:
    assert doctest.testmod(page).failed == 0


def test_the_page_is_its_sections() -> None:
    text = page.RESULTS.read_text(encoding="utf-8")
    assert "\n".join([page.HEAD, *page.sections(text).values()]) == text


def test_only_the_table_and_the_stamp_of_a_section_change() -> None:
    found = page.sections(page.RESULTS.read_text(encoding="utf-8"))
    title = "## ASHA in packs"
    words = found[title].partition(page.COMMENTS)[2].rpartition("\n\nMeasured ")[0]
    assert words
    renewed = page.renewed(found[title], f"{title}\n\n| a |\n", STAMP)
    assert renewed == f"{title}\n\n| a |\n\n{page.COMMENTS}{words}\n\n{STAMP}\n"
    assert page.sections(f"\n{renewed}") == {title: renewed}
    # Again: what was written is not lost, and not written twice.
    assert page.renewed(renewed, f"{title}\n\n| a |\n", STAMP) == renewed
