"""Two real kills, one of them inside a save; `make faults` makes twenty."""

import json
import shutil

import pytest

from experiments.fault_injection import fault_child, faults
from experiments.fault_injection.faults import Kill


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, process_environment):
    folder = tmp_path_factory.mktemp("faults") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        for key in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
            if key in process_environment:
                patch.setenv(key, process_environment[key])
            else:
                patch.delenv(key, raising=False)
        faults.prepare(folder)
        yield folder


@pytest.mark.parametrize(
    ("kill", "goes_on_from"),
    [(Kill("save: summed up, without its name", 3), 2), (Kill("in the middle of a line of the log", 5), 3)],
)
def test_a_killed_run_ends_as_if_undisturbed(prepared, kill, goes_on_from):
    outcome = faults.try_kill(prepared, kill)
    assert faults.kept(outcome), outcome
    assert outcome["went_on_from_step"] <= goes_on_from


def test_a_difference_is_seen(prepared, tmp_path):
    undisturbed, other = prepared / "undisturbed", tmp_path / "other"
    assert all(faults.differences(undisturbed, undisturbed).values())
    shutil.copytree(undisturbed, other)
    (other / "metrics.jsonl").write_text("")
    scores = json.loads((other / "scores.json").read_text())
    (other / "scores.json").write_text(json.dumps(scores | {"confusion": [[0, 0], [0, 0]]}))
    seen = faults.differences(other, undisturbed)
    assert (seen["same_state"], seen["same_log"], seen["same_scores"]) == (True, False, False)
    assert not faults.kept({"status_of_the_rerun": 0, **seen})


def test_the_moments_are_drawn_from_the_seed_and_many_are_inside_a_save():
    kills = faults.choose(20, seed=0)
    assert kills == faults.choose(20, seed=0) != faults.choose(20, seed=1)
    assert sum(kill.moment.startswith("save: ") for kill in kills) >= 5
    assert {kill.moment for kill in kills} == set(faults.TIMES) == set(fault_child.MOMENTS)
    assert all(1 <= kill.count <= faults.TIMES[kill.moment] for kill in kills)


def test_an_unknown_moment_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"expected a moment of before a batch is read, .*; got 'teatime'"):
        fault_child.arm("teatime", 1, tmp_path)


def test_the_table_counts_what_was_lost():
    outcome = {"moment": "teatime", "count": 1, "went_on_from_step": 2, "set_aside": 0, "status_of_the_rerun": 0}
    table = faults.table([outcome | {"same_log": True}, outcome | {"same_log": False}])
    assert "1 of 2 ended as if undisturbed" in table.title
    assert [row[-1] for row in table.rows] == ["nothing", "something"]
