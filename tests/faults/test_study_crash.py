"""A study that is cut off at any effect on the disk comes to the same end when it is run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("inline_study.py")
TINY = """
name = "tiny"
seed = 7
replicates = 1
sparsities = [0.5]
arms = ["dense", "random", "searched", "small_dense", "magnitude"]
data = { name = "digits" }
model = { name = "mlp", widths = [16, 12] }
search = { draws = 10, probe_size = 64, random_draws = 3 }
training = { lr = 0.003, batch_size = 50, steps = 4, eval_every = 2 }
"""


#: Chains, one of which goes on from kept weights, with what is held against them; 0.5 comes after 0.206 and 0.37.
CHAINS = """
name = "chains"
seed = 7
replicates = 1
sparsities = [0.5]
masks = { kind = "weight" }
data = { name = "digits" }
model = { name = "mlp", widths = [12] }
search = { draws = 4, probe_size = 32, random_draws = 2 }
training = { lr = 0.003, batch_size = 50, steps = 4, eval_every = 2 }
[arms.random]
[arms.searched]
[arms.imp]
rewind_fraction = 0.5
rate = 0.25
controls = ["shuffled", "dense_budget"]
[arms.lr_rewind]
retrain_fraction = 0.5
rate = 0.25
controls = ["fresh_weights"]
[arms.nm_2_4]
[arms.set]
every = 1
"""
N_SLOTS = {
    "tiny": 10 + 1 + 1 + 3 + 1 + 1 + 1,  # scored, parent, pruned mask, arms
    "chains": 4 + 1 + 2 + 1 + 2 * (3 + 3) + 2 + 1 + 2 + 1,  # ... chains of three with their masks, controls, 2:4, SET
}


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("study", [TINY, CHAINS], ids=["tiny", "chains"])
def test_a_study_cut_at_every_effect_on_the_disk_ends_as_if_it_had_not_been(study: str, tmp_path: Path) -> None:
    toml = tmp_path / "study.toml"
    toml.write_text(study)
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(toml), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    whole = found["whole"]
    assert len(whole["slots"]) == N_SLOTS["tiny" if study is TINY else "chains"]
    assert whole["n_duplicates"] == 0
    assert {slot[-1] for slot in whole["slots"]} == {"completed"}
    assert found["n_effects"] > 25
    for k, one in found["studies"].items():
        assert (one["first"], one["again"]) == (9, 0), f"effect {k}"
        assert one["shown"] == whole, f"effect {k}"
