"""Candidates: one name for one thing, the same in every study of the same base."""

import hashlib
import json
from dataclasses import replace

import pytest

from sparsefront.spaces.candidate import Candidate, CandidateNames, canonical_json, level_key

BASE = {"seed": 1, "model": {"name": "mlp", "widths": [256, 128]}, "lr": 0.01}
DRAWN = Candidate(replicate=4, target_sparsity=0.9, network="masked", draw=73_211)


def test_the_id_is_pinned():
    assert CandidateNames(BASE).of(DRAWN) == "7f4affd52019c713c9c23aca25105ab1"


def test_the_id_is_the_hash_of_base_and_candidate_in_canonical_json():
    text = json.dumps(BASE, sort_keys=True, separators=(",", ":"))
    text += '{"draw":73211,"mask":null,"network":"masked","replicate":4,"target_sparsity":0.9}'
    assert CandidateNames(BASE).of(DRAWN) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_the_order_of_keys_does_not_matter():
    turned = {"lr": 0.01, "model": {"widths": [256, 128], "name": "mlp"}, "seed": 1}
    assert CandidateNames(turned).of(DRAWN) == CandidateNames(BASE).of(DRAWN)


def test_everything_that_defines_a_candidate_changes_its_id():
    names = CandidateNames(BASE)
    others = [
        replace(DRAWN, replicate=5),
        replace(DRAWN, target_sparsity=0.95),
        replace(DRAWN, network="small_dense"),
        replace(DRAWN, draw=0),
        replace(DRAWN, draw=None),
        replace(DRAWN, draw=None, mask="00" * 16),
    ]
    ids = {names.of(c) for c in (DRAWN, *others)} | {CandidateNames({**BASE, "lr": 0.02}).of(DRAWN)}
    assert len(ids) == len(others) + 2


def test_naming_has_no_memory():
    names = CandidateNames(BASE)
    first = names.of(DRAWN)
    names.of(replace(DRAWN, draw=1))
    assert names.of(DRAWN) == first


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value):
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        canonical_json({"lr": value})


def test_levels_that_differ_in_writing_only_have_one_key():
    assert level_key(0.9) == level_key(1 - 0.1) == DRAWN.level_key == 900_000_000
    assert len({level_key(s) for s in (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)}) == 7
