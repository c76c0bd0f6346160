"""What a user is told of a search: constraints that cannot be met, and what was run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import sparsefront
from sparsefront.cli import main
from sparsefront.errors import ConfigError
from sparsefront.search.ledger import Ledger
from sparsefront.search.report import write_search_report
from sparsefront.spaces.constraints import Constraint
from sparsefront.study import MaskStudy, SearchStudy, Study
from tests.faults.inline_search import Died, MortalDisk, run_search
from tests.test_study import as_toml

pytestmark = pytest.mark.usefixtures("_one_thread")

Capture = pytest.CaptureFixture[str]
BASE: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "replicates": 2,
    "data": {"name": "digits"},
    "model": {"name": "mlp", "widths": [4, 4], "bias": True},
    "training": {"steps": 4, "batch_size": 32},
    "space": {
        "training": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}},
        "model": {"widths": {"low": 2, "high": 8, "depth": {"low": 1, "high": 2}}},
        "masks": {"sparsity": {"low": 0.0, "high": 0.8}},
    },
    "search": {"candidates": 4, "batch": 4},
    "arms": {"random": {}, "other": {"strategy": "qmc"}},
    "record": {"enabled": False},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a search that was run to its end."""
    folder = tmp_path_factory.mktemp("searches") / "tiny"
    study = Study(**BASE)
    assert isinstance(study, SearchStudy)
    run_search(study, folder, slots=2)
    return folder


def test_a_constraint_that_nothing_met_is_explained(
    done: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def bounded(folder: str | Path) -> Any:
        results = load_results(folder)
        bound = Constraint.parse("val_error <= 0.0001")
        arms = [
            dataclasses.replace(arm, space=dataclasses.replace(arm.space, constraints=(bound,)))
            for arm in results.design.arms
        ]
        results.design = dataclasses.replace(results.design, arms=tuple(arms))
        return results

    load_results = sparsefront.load
    monkeypatch.setattr("sparsefront.results.load", bounded)
    monkeypatch.setenv("COLUMNS", "200")
    results = load_results(done)
    assert results.unmet_constraints() == ()
    errors = results.to_arrow(where="stage == 'trained' and outcome == 'completed'", columns=["val_error", "reused"])
    n = pc.sum(pc.invert(errors["reused"])).as_py()
    said = f"no candidate meets val_error <= 0.0001 ({n} completed, best {pc.min(errors['val_error']).as_py():.4g})\n"
    for command in ("front", "verdict"):
        assert main([command, str(done)]) == 0
        out = capsys.readouterr().out
        assert said in out, command
    results = bounded(done)
    with Ledger.read(done) as ledger:
        write_search_report(ledger, results.design, results.verdict(), tmp_path / "r.html", provenance={})
    assert f'<p class="note">N{said[1:-1].replace("<", "&lt;")}; what breaks' in (tmp_path / "r.html").read_text(
        "utf-8"
    )


def test_a_constraint_that_nothing_can_meet_is_refused_before_anything_is_started(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = BASE["space"] | {"constraints": ["n_params <= 10", "weight_sparsity >= 0.2"]}
    Path("t.toml").write_text(as_toml(BASE | {"space": space}), encoding="utf-8")
    assert main(["run", "t.toml"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(
        r"^sparsefront: t\.toml: space\.constraints=\['n_params <= 10', 'weight_sparsity >= 0\.2'\]: cannot be met; of "
        r"\d+ points of the space the smallest n_params is \d+, the largest weight_sparsity is 0\.\d+; "
        "loosen the bounds or widen the space$",
        err,
        re.MULTILINE,
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masks": {"pattern": "65x65", "sparsity": 0.5}}, "masks.pattern='65x65'"),
        ({"space": {"masks": {"pattern": {"choices": ["2x2", "65x65"]}}}}, "space.masks.pattern='65x65'"),
        ({"space": {"masks": {"pattern": {"choices": ["2:4", "1:65"]}}}}, "space.masks.pattern='1:65'"),
        (
            {"arms": {"random": {}, "b": {"space": {"masks": {"pattern": "65x65"}}}}},
            "arms.b.space.masks.pattern='65x65'",
        ),
    ],
)
def test_a_pattern_that_no_layer_has_room_for_is_refused(changes: dict[str, Any], said: str) -> None:
    """A layer may be narrower than a block one way: it has several the other way."""

    def checked(changes: dict[str, Any]) -> None:
        space = {"training": BASE["space"]["training"]} | changes.get("space", {})
        Study(**BASE | {"masks": {"sparsity": 0.5}} | changes | {"space": space})._checked_data()

    with pytest.raises(ConfigError) as caught:
        checked(changes)
    assert str(caught.value) == (
        f"{said}: must fit into a layer, and the largest is 4x64 (outputs x inputs), so that nothing would be removed; "
        "choose a smaller one"
    )
    checked(json.loads(json.dumps(changes).replace("65x65", "65x63").replace("1:65", "1:64")))


def test_layers_that_are_too_small_for_a_pattern_are_told_before_anything_is_started() -> None:
    space = {"training": {"lr": {"low": 0.001, "high": 0.1}}}
    changes: dict[str, Any] = {"space": space, "model": {"name": "mlp", "widths": [4, 4]}}
    study = Study(**BASE | changes | {"masks": {"pattern": "16x16", "sparsity": 0.5}})
    assert isinstance(study, SearchStudy)
    dataset = study._checked_data()
    names = [t.name for t in study._networks(dataset).describe(0, {}).structure.prunable]
    assert study._remarks(dataset) == [
        (
            f"masks.pattern='16x16': removes nothing of {names[1]} (4x4), {names[2]} (10x4), for no more than one "
            "block fits there; choose a smaller pattern if they are to be pruned"
        )
    ]
    searched = {
        "model": {"widths": {"low": 2, "high": 32, "depth": 1}},
        "masks": {"pattern": {"choices": ["4x4", "2:4"]}},
    }
    study = Study(**BASE | {"space": space | searched, "masks": {"sparsity": 0.5}})
    assert isinstance(study, SearchStudy)
    (remark,) = study._remarks(dataset)
    assert remark.startswith("space.masks.pattern='2:4': removes nothing of ")
    assert "(10x2), in some of the networks, for no more" in remark
    free = Study(**BASE | changes | {"masks": {"pattern": "4x4", "sparsity": 0.5}})
    assert isinstance(free, SearchStudy)
    assert len(free._remarks(dataset)) == 1  # a layer of 4x4 is one block


def test_a_strategy_that_never_sees_a_result_is_told_before_anything_is_started(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arms = {
        "random": {},
        "qmc": {"strategy": "qmc"},
        "tpe": {"strategy": "tpe"},
        "one": {"strategy": "tpe", "batch": 2},
    }
    study = Study(**BASE | {"arms": arms})
    assert isinstance(study, SearchStudy)
    said = "arms.tpe: all 4 candidates are proposed at once (batch = 4), so that it never sees a result"
    assert study._remarks(study._checked_data()) == [f"{said}; set arms.tpe.batch"]
    (tmp_path / "t.toml").write_text(as_toml(BASE | {"arms": arms}), encoding="utf-8")
    assert main(["simulate", str(tmp_path / "t.toml"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{said}; set arms.tpe.batch\n")
    assert main(["simulate", str(tmp_path / "t.toml"), "--workers", "1", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == [f"{said}; set arms.tpe.batch"]


@pytest.mark.parametrize(
    ("own", "where", "who"),
    [
        ({}, "space.", "random, other"),
        ({"space": {"constraints": ["n_params <= 52"]}}, "arms.other.space.", "other"),
    ],
    ids=["study", "arm"],
)
def test_constraints_that_leave_little_are_told_before_anything_is_started(
    own: dict[str, Any], where: str, who: str
) -> None:
    constraints = {} if own else {"constraints": ["n_params <= 52"]}
    study = Study(**BASE | {"space": BASE["space"] | constraints, "arms": {"random": {}, "other": {**own}}})
    assert isinstance(study, SearchStudy)
    dataset = study._checked_data()
    (remark,) = study._remarks(dataset)
    assert re.fullmatch(
        rf"{where}constraints=\['n_params <= 52'\]: only \d of 200 points drawn keep them; runs of {who} "
        "end as failed, with what they have by then, unless 1 proposal in 50 does; loosen them or narrow the space",
        remark,
    )
    enough = Study(**BASE | {"space": BASE["space"] | {"constraints": ["n_params <= 600"]}})
    assert enough._remarks(dataset) == []


def test_a_run_that_constraints_leave_nothing_for_ends_and_the_study_is_finished(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tight = {"space": {"constraints": ["n_params <= 52"]}}
    study = Study(**BASE | {"arms": {"random": {}, "tight": tight}})
    assert isinstance(study, SearchStudy)
    folder = tmp_path / "tight"
    run_search(study, folder, slots=2)
    results = sparsefront.load(folder)
    rows = results.to_arrow(where="stage == 'trained' and not reused").to_pylist()
    assert sum(row["outcome"] == "completed" and row["arm"] == "random" for row in rows) == 8
    why = [row for row in rows if row["outcome"] == "failed"]
    assert {(row["arm"], row["replicate"], row["slot"]) for row in why} == {("tight", 0, 200), ("tight", 1, 200)}
    assert all("proposals violate n_params <= 52: constraints leave too little" in row["error"] for row in why)
    n, planned = results.n_trained()
    assert n == planned == 8 + sum(row["outcome"] == "completed" and row["arm"] == "tight" for row in rows)
    assert main(["verdict", str(folder)]) == 0
    assert "not finished" not in capsys.readouterr().out
    assert "constraints leave too little of the space" in results.report().read_text("utf-8")
    run_search(study, folder, slots=2)
    assert sparsefront.load(folder).to_arrow().equals(results.to_arrow())


ENDS = """
from sparsefront.search.strategies.random import Random, random_points


class Ends(Random):
    def make(self, task, options):
        self.task = task
        return self

    def propose(self, history, numbers):
        return random_points(self.task, numbers.start, max(numbers.start, min(numbers.stop, 5)))
"""


def test_a_users_strategy_that_has_no_more_points_is_finished_and_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "strategy_that_ends.py").write_text(ENDS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"strategy": "strategy_that_ends:Ends"}
    study = Study(**BASE | {"search": {"candidates": 8, "batch": 4}, "arms": {"random": {}, "own": own}})
    assert isinstance(study, SearchStudy)
    folder = tmp_path / "ends"
    run_search(study, folder, slots=2)
    results = sparsefront.load(folder)
    assert results.n_trained() == (26, 26)
    assert results.exhausted() == ("own: the run failed: 10 of 16 candidates, in 2 replicates",)
    assert main(["verdict", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not finished" not in out
    assert "own: the run failed: 10 of 16 candidates, in 2 replicates" in out
    why = "strategy 'strategy_that_ends:Ends' proposed 1 of the 4 points that it was asked for"
    assert why.replace("'", "&#x27;") in results.report().read_text("utf-8")
    run_search(study, folder, slots=2)
    assert sparsefront.load(folder).to_arrow().equals(results.to_arrow())


def test_a_run_that_came_to_the_end_of_its_space_is_finished_and_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    choices = {"optimizer": {"choices": ["adam", "sgd"]}}
    finite = {"training": choices, "masks": {"sparsity": {"choices": [0.0, 0.5, 0.8]}}}
    coarse = {"strategy": "grid", "options": {"levels": 2}, "space": {"training": {"lr": {"low": 1e-3, "high": 1e-1}}}}
    study = Study(
        **BASE
        | {
            "space": finite,
            "search": {"candidates": 20, "batch": 4},
            "arms": {"random": {}, "grid": coarse, "short": {"candidates": 6}},
        }
    )
    assert isinstance(study, SearchStudy)
    folder = tmp_path / "finite"
    with pytest.raises(Died):
        run_search(study, folder, disk=MortalDisk(8))
    assert sparsefront.load(folder).exhausted() == ()
    assert main(["verdict", str(folder)]) == 0
    assert "not finished" in capsys.readouterr().out
    run_search(study, folder)
    results = sparsefront.load(folder)
    clauses = (
        "random: the space is exhausted: 12 of 40 candidates, in 2 replicates",
        "grid: the space is exhausted: 24 of 40 candidates, in 2 replicates",
    )
    assert results.exhausted() == clauses
    assert results.n_trained() == (48, 48)
    assert main(["verdict", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not finished" not in out
    assert all(clause in out for clause in clauses)
    assert all(clause in results.report().read_text("utf-8") for clause in clauses)


def test_a_simulation_says_where_its_results_come_from(
    done: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    toml = tmp_path / "tiny.toml"
    toml.write_text(as_toml(BASE), encoding="utf-8")
    said = {
        (str(toml),): "is made up, by the synthetic objective 'tradeoff' (the bowl, with an error that falls as the "
        "network grows); nothing was trained",
        (str(toml), "--objective", "bowl"): "is made up, by the synthetic objective 'bowl' (a smooth bowl with "
        "exponential learning curves); nothing was trained",
        (str(toml), "--ledger", str(done)): f"is replayed from the ledger in {done}; nothing was trained",
        (str(done),): f"is replayed from the ledger in {done}; nothing was trained",
    }
    for arguments, expected in said.items():
        assert main(["simulate", *arguments, "--workers", "1"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert f"what candidates reach {expected}" in out
        assert "passes, candidates, reused and infeasible are means over 2 replicates" in out
        assert "not finished" not in out
        assert main(["simulate", *arguments, "--workers", "1", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["replicates"] == 2
        assert [arm["candidates"] for arm in found["arms"]] == [4, 4]  # as the study asks of a replicate
        is_replayed = "replayed" in expected
        assert found["ledger"] == (str(done) if is_replayed else None)
        assert found["objective"] == (None if is_replayed else "bowl" if "bowl" in arguments else "tradeoff")


def test_a_replay_of_what_is_not_finished_says_so(tmp_path: Path, capsys: Capture) -> None:
    study = Study(**BASE | {"replicates": 1})
    assert isinstance(study, SearchStudy)
    with pytest.raises(Died):
        run_search(study, tmp_path / "study", max_lanes=4, disk=MortalDisk(12))
    trained, planned = sparsefront.load(tmp_path / "study").n_trained()
    assert (0 < trained < planned, planned) == (True, 8)
    assert main(["simulate", str(tmp_path / "study"), "--workers", "1"]) == 0
    assert f"not finished: {trained} of 8 networks trained" in " ".join(capsys.readouterr().out.split())
    assert main(["simulate", str(tmp_path / "study"), "--workers", "1", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ledger_trained"], found["ledger_to_train"]) == (trained, 8)


def test_a_search_without_its_space_is_told_so() -> None:
    """Where nothing is wrong but that, a key of studies of masks seems to be missing."""
    without = {key: value for key, value in BASE.items() if key not in ("space", "search")}
    with pytest.raises(ConfigError, match=r"^sparsities: is missing and has no default; write it, or add \[space\] if"):
        Study(**without)


@pytest.mark.parametrize(
    ("entry", "longest"),
    [({"low": 2, "high": 9}, 9), ({"choices": [8, 3, 5]}, 8), (7, 7), ({"low": 2, "high": 8, "step": 2}, 8)],
)
def test_a_space_that_has_steps_says_how_long_candidates_train(entry: Any, longest: int) -> None:
    space = BASE["space"] | {"training": BASE["space"]["training"] | {"steps": entry}}
    left_out = Study(**BASE | {"space": space, "training": {"batch_size": 32}})
    written = Study(**BASE | {"space": space, "training": {"batch_size": 32, "steps": longest}})
    assert left_out.training.steps == longest
    assert left_out.digest == written.digest
    own = Study(**BASE | {"space": space, "training": {"batch_size": 32, "steps": 4}})
    assert own.training.steps == 4
    none = {key: value for key, value in BASE.items() if key != "training"}
    assert Study(**none | {"space": space}).training.steps == longest


@pytest.mark.parametrize("entry", [{"low": 2}, {"low": 2.0, "high": 9.5}, 0, {"choices": []}, {"choices": "x"}, True])
def test_steps_of_a_space_that_are_none_leave_those_of_the_study_to_be_written(entry: Any) -> None:
    space = BASE["space"] | {"training": {"steps": entry}}
    with pytest.raises(ConfigError, match=r"^training\.steps: is missing"):
        Study(**BASE | {"space": space, "training": {"batch_size": 32}})


def test_results_are_shown_as_what_they_are_of(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "copy")
    results = sparsefront.load(tmp_path / "copy")
    assert repr(results) == f"<Results of 'tiny' in '{tmp_path / 'copy'}': 16 of 16 networks trained>"
    shutil.rmtree(tmp_path / "copy")
    assert repr(results).startswith(f"<Results of 'tiny' in '{tmp_path / 'copy'}': unreadable: ")


def test_what_the_space_sets_is_not_shown_as_the_parents() -> None:
    shown = Study(**BASE).design().model
    assert "widths searched" in shown
    assert "bias=true" in shown
    of_arm = {"arms": {"random": {}, "other": {"space": {"model": {"activation": "tanh"}}}}}
    assert "activation by arm" in Study(**BASE | of_arm).design().model


def test_hooks_of_a_study_must_be_there() -> None:
    assert inspect.isabstract(Study)
    assert not any(inspect.isabstract(kind) for kind in (SearchStudy, MaskStudy))


def test_the_front_shows_what_was_asked_for_where_there_is_room(
    done: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def headings(width: int, *options: str) -> tuple[str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["front", str(done), *options]) == 0
        head, _, rest = capsys.readouterr().out.partition("\ncandidate")
        return " ".join((head + rest.partition("\n")[0]).split()), " ".join(rest.split())

    shown, note = headings(60)
    assert "lr" not in shown
    assert re.search(r"on the front; no room for lr, .*: take a wider terminal, or --format csv$", note)
    # Of a weight mask, nearly every node is there.
    assert "node" not in shown
    assert "node" in headings(200, "--where", "node_sparsity < 1")[0]
    shown, note = headings(60, "--where", "lr > 0 and val_accuracy > 0")
    assert "lr" in shown
    assert not re.search(r"no room for .*\blr\b", note)
    assert headings(200)[1].endswith("on the front")
