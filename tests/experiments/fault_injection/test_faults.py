"""Two real kills, one of them inside a save; `make faults` does twenty."""

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "newest"),
    [(Kill("save: it has checksums but not its name", 3), 2), (Kill("in the middle of a line of the log", 5), 3)],
)
def test_try_kill_loses_nothing(prepared, kill, newest):
    outcome = faults.try_kill(prepared, kill)
    assert faults.lost_nothing(outcome), outcome
    assert outcome["resumed_from_step"] <= newest


@pytest.mark.slow
def test_differences_finds_another_log_and_other_scores(prepared, tmp_path):
    undisturbed, other = prepared / "undisturbed", tmp_path / "other"
    assert all(faults.differences(undisturbed, undisturbed).values())
    shutil.copytree(undisturbed, other)
    (other / "metrics.jsonl").write_text("")
    scores = json.loads((other / "scores.json").read_text())
    (other / "scores.json").write_text(json.dumps(scores | {"confusion": [[0, 0], [0, 0]]}))
    found = faults.differences(other, undisturbed)
    assert (found["same_state"], found["same_log"], found["same_scores"]) == (True, False, False)
    assert not faults.lost_nothing({"status_of_the_rerun": 0, **found})


def test_choose_draws_every_moment_from_the_seed():
    kills = faults.choose(20, seed=0)
    assert kills == faults.choose(20, seed=0) != faults.choose(20, seed=1)
    assert sum(kill.moment.startswith("save: ") for kill in kills) >= 5
    assert {kill.moment for kill in kills} == set(faults.TIMES) == set(fault_child.MOMENTS)
    assert all(1 <= kill.count <= faults.TIMES[kill.moment] for kill in kills)


def test_arm_unknown_moment(tmp_path):
    with pytest.raises(ValueError, match=r"expected a moment of before a batch is read, .*; got 'teatime'"):
        fault_child.arm("teatime", 1, tmp_path)


def test_arm_dispatch_counts_train_steps_only(monkeypatch, tmp_path):
    killed = []
    monkeypatch.setattr(fault_child, "kill", lambda: killed.append(True))
    monkeypatch.setattr(fault_child.parallel.DeviceMapping, "map_step", lambda mapping, step, **options: step)
    fault_child.arm(fault_child.DISPATCH, 2, tmp_path)
    mapping = fault_child.parallel.DeviceMapping("jit", None)
    train_step = mapping.map_step(lambda: "trained", arguments=3, donate=True)
    eval_step = mapping.map_step(lambda: "scored", arguments=3)
    for step, kills in ((train_step, 0), (eval_step, 0), (train_step, 1)):
        step()
        assert len(killed) == kills


def test_table_counts_losses():
    outcome = {"moment": "teatime", "count": 1, "resumed_from_step": 2, "set_aside": 0, "status_of_the_rerun": 0}
    table = faults.table([outcome | {"same_log": True}, outcome | {"same_log": False}])
    assert "1 of 2 ended as if undisturbed" in table.title
    assert [row[-1] for row in table.rows] == ["nothing", "something"]
