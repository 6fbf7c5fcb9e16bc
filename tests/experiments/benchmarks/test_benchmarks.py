"""The benchmarks at the size of tests: times are not tested, but all candidates of a row must agree.

The test environment has optax, SciPy, scikit-learn and NumPy; with the extra `bench` all baselines are compared.
"""

import json

import jax
import pytest
import rich.console

from experiments.benchmarks import (
    __main__ as benchmarks,
)
from experiments.benchmarks import (
    baselines,
    benchmarks_devices,
    benchmarks_growth,
    benchmarks_input,
    benchmarks_losses,
    benchmarks_metrics,
    benchmarks_network,
    benchmarks_pages,
    benchmarks_prediction,
    benchmarks_report,
    benchmarks_start,
    timing,
)
from experiments.benchmarks.baselines import NOT_INSTALLED, OURS, Candidate, Setting, Target
from segjax.configs import rare_class
from segjax.training import ConfigError

pytestmark = pytest.mark.slow
TINY = Setting(shape=(1, 32, 48), classes=3, rounds=1, compiled=False)
WITH_JAX_BASELINES = [name for name in benchmarks_losses.LOSSES if name in benchmarks_losses._JAX]
WITH_BASELINES = ["confusion matrix", "boundary F1", "average precision"]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0)


@pytest.fixture
def quiet():
    return rich.console.Console(quiet=True)


@pytest.mark.parametrize("name", WITH_JAX_BASELINES)
def test_losses_rows_agree(name):
    row = benchmarks_losses.rows(TINY)[name]()
    assert set(row["differs"]) >= {OURS, *benchmarks_losses._JAX[name]}
    assert max(row["differs"].values()) < 1e-4
    assert set(row["ms"]) > set(row["differs"])
    assert set(row["extra_memory"]) == {"float32", "bfloat16"}


@pytest.mark.parametrize("name", WITH_BASELINES)
def test_metrics_rows_agree(name):
    row = benchmarks_metrics.rows(TINY)[name]()
    assert {OURS, "SciPy" if name == "boundary F1" else "scikit-learn"} <= set(row["differs"])
    assert max(row["differs"].values()) < 1e-4


def test_losses_scene_has_every_class_in_every_image():
    _, labels = benchmarks_losses.scene((2, 64, 96), 19)
    assert all(set(image.ravel()) == set(range(19)) for image in labels)


def test_losses_torch_rows_have_known_baselines():
    named = {label for rows in benchmarks_losses._TORCH.values() for label in rows}
    assert named <= set(baselines.BASELINES)
    assert set(benchmarks_losses._TORCH) <= set(benchmarks_losses.LOSSES)


@pytest.fixture
def without_torch(monkeypatch):
    for label in [label for label, (module, _) in baselines.BASELINES.items() if module == "torch"]:
        monkeypatch.setitem(baselines.BASELINES, label, ("torch_that_is_not_there", "torch"))


@pytest.fixture
def tiny_network(monkeypatch, without_torch):
    monkeypatch.setattr(benchmarks_network, "WIDTHS", (2,))
    monkeypatch.setattr(benchmarks_network, "DEPTH", 1)
    return benchmarks_network.rows(TINY)["U-Net step, width 2"]()


def test_times_baseline_that_is_not_installed(tiny_network):
    assert tiny_network["not_installed"] == ["PyTorch", "PyTorch, channels last"]
    table = benchmarks_report.times(benchmarks_network, {"a step": tiny_network})
    assert table.columns == ("", "segjax, ms", "PyTorch", "PyTorch, channels last")
    assert table.rows[0][2:] == (NOT_INSTALLED, NOT_INSTALLED)
    found = benchmarks_network.targets({f"{benchmarks_network.STEP}, width 2": tiny_network})
    assert [target.met for target in found] == [None, None]
    assert {row[-1] for row in benchmarks_report.target_table(found).rows} == {NOT_INSTALLED}


def test_network_measures_convolutions_without_targets(tiny_network):
    rows = benchmarks_network.rows(TINY)
    convolutions = {name: measure for name, measure in rows.items() if not name.startswith(benchmarks_network.STEP)}
    height, width = 3 * TINY.shape[1] // 16 * 2, TINY.shape[2] // 8 * 2
    images = 2 * TINY.shape[0]
    assert list(convolutions) == [
        f"convolution, {images}×{height}×{width}×2",
        f"convolution, {images}×{height // 2}×{width // 2}×4",
    ]
    measured = {name: measure() for name, measure in convolutions.items()}
    assert all(row["ms"].keys() == {"segjax"} for row in measured.values())
    assert benchmarks_network.targets(measured) == []


def test_target_met():
    met = [Target(1, "", ratio, 2.0, least).met for ratio in (1.9, 2.1) for least in (False, True)]
    assert met == [True, False, False, True]


def test_prediction_measures_all_candidates(monkeypatch):
    monkeypatch.setattr(benchmarks_prediction, "WIDTHS", (2,))
    monkeypatch.setattr(benchmarks_prediction, "DEPTH", 2)
    row = benchmarks_prediction.rows(TINY)["width 2"]()
    assert list(row["ms"]) == [OURS, *benchmarks_prediction.COLUMNS]
    assert [target.number for target in benchmarks_prediction.targets({"width 2": row})] == [5, 5, 5]


def test_growth_measures_time_and_memory_of_every_size(monkeypatch):
    monkeypatch.setattr(benchmarks_growth, "DOUBLINGS", 1)
    monkeypatch.setattr(benchmarks_growth, "FEATURES", 2)
    rows = {name: measure() for name, measure in benchmarks_growth.rows(TINY).items() if name != "dropout heads, fours"}
    tables = benchmarks_growth.tables(rows)
    assert all(table.columns == ("×", "1", "2") and len(table.rows) == len(rows) for table in tables)
    memory = rows["confusion matrix of logits, pixels"]["extra_bytes"]
    assert memory["2"] <= 2 * memory["1"] + 4096
    assert benchmarks_growth.pictures(rows)[0].content.startswith(b"\x89PNG")


def test_devices_memory_per_device(small, monkeypatch):
    small.parallel, small.training.global_batch = "shard_map", 4
    monkeypatch.setattr(benchmarks_devices, "COUNTS", (1, 4))
    rows = {name: benchmarks_devices.measured_here(name, TINY, small) for name in benchmarks_devices.rows(TINY)}
    split, side_by_side, in_turn = (row["extra_bytes"] for row in rows.values())
    assert split["4"] < split["1"] / 2
    assert side_by_side["4"] <= 1.1 * side_by_side["1"]
    assert in_turn["4"] == in_turn["1"]
    assert all(set(row["ms"]) == {"1", "4"} for row in rows.values())
    assert [target.limit for target in benchmarks_devices.targets(rows)] == [0.1, -0.8, 1.1, 0.1, 1.1, 0.1]


def test_devices_on_cpu_measure_in_a_process_with_four_devices(monkeypatch):
    monkeypatch.setattr(
        benchmarks_devices, "_CHILD", "import jax, json; print('…'); print(json.dumps(jax.device_count()))"
    )
    (first, *_) = benchmarks_devices.rows(TINY).values()
    assert first() == 4


def test_pages_requests_huge_pages_in_every_second_process(monkeypatch):
    milliseconds = iter([5.0, 3.0, 7.0, 2.0, 6.0, 4.0])
    asked = []

    def measured(name, setting, environment):
        asked.append(environment.get("GLIBC_TUNABLES"))
        return {"ms": {"1": next(milliseconds)}}

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
    monkeypatch.setattr(benchmarks_devices, "measured_in_process", measured)
    (row,) = (measure() for measure in benchmarks_pages.rows(TINY._replace(rounds=3)).values())
    assert asked == [None, "glibc.malloc.hugetlb=1"] * 3
    assert row["ms"] == {OURS: 6.0, benchmarks_pages.WITH: 3.0}
    (line,) = benchmarks_report.times(benchmarks_pages, {"a step": row}).rows
    assert line == ("a step", 6.0, 0.5)


def test_devices_error_of_the_measuring_process(monkeypatch):
    monkeypatch.setattr(benchmarks_devices, "_CHILD", "raise SystemExit('no such device')")
    (first, *_) = benchmarks_devices.rows(TINY).values()
    with pytest.raises(RuntimeError, match="'training step, one batch over devices' ended with 1: no such device"):
        first()


def test_devices_child_prints_its_row(small, monkeypatch, capsys):
    small.parallel, small.training.global_batch = "shard_map", 4
    monkeypatch.setattr(benchmarks_devices, "COUNTS", (1,))
    monkeypatch.setattr(benchmarks_devices, "_config", lambda: small)
    benchmarks_devices.child("sweep, one cell per device", json.dumps(TINY))
    assert set(json.loads(capsys.readouterr().out)["ms"]) == {"1"}


@pytest.fixture
def small(tmp_path):
    """Returns a config whose step compiles fast."""
    config = rare_class.get_config()
    config.data.data_dir, config.data.train_examples, config.data.val_examples = str(tmp_path), 8, 4
    config.data.scene_size, config.data.size = (64, 96), (32, 48)
    config.model.width, config.model.depth = 2, 1
    config.training.global_batch = 2
    return config


@pytest.mark.parametrize("rare", [False, True])
def test_input_measures_per_batch(small, monkeypatch, rare):
    monkeypatch.setattr(benchmarks_input, "DRAWN", 2)
    row = benchmarks_input._row(TINY, small, rare=rare)
    assert set(row["ms"]) == {OURS, *benchmarks_input.COLUMNS}
    assert row["data"] == "road_debris, 2×64×96×3"
    assert [target.number for target in benchmarks_input.targets({"a": row})] == [6, 6]


def test_start_first_step_and_error(small, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks_start.rare_class, "get_config", lambda: small)
    assert benchmarks_start.compilation() > 0
    leaves = {"data.data_dir": tmp_path, "data.train_examples": 8, "data.val_examples": 4, "data.scene_size": (64, 96)}
    leaves |= {"data.size": (32, 48), "model.width": 2, "model.depth": 1, "training.global_batch": 4}
    flags = (*benchmarks_start.OVERRIDES, *(f"--config.{key}={value}" for key, value in leaves.items()))
    assert benchmarks_start.first_step(tmp_path / "run", flags, {}) > 0
    assert (tmp_path / "run" / "config.json").exists()
    with pytest.raises(RuntimeError, match=r"segjax\.train .*: no step was taken: error: config.training.steps"):
        benchmarks_start.first_step(tmp_path / "other", ("--config.training.steps=-1",), {})


def test_start_targets_are_ratios():
    row = {"ms": {OURS: 9000.0, benchmarks_start.AGAIN: 4500.0, benchmarks_start.COMPILATION: 6000.0}}
    assert [(target.ratio, target.met) for target in benchmarks_start.targets({"a": row})] == [
        (1.5, True),
        (0.5, False),
    ]


def test_growth_exponent():
    assert benchmarks_growth.exponent({"1": 3.0, "4": 48.0}) == pytest.approx(2)


class Counted:
    """Section of two rows that records its measurements."""

    TITLE, COLUMNS = "Counted", ("twice", "SMP")
    __doc__ = "Counted rows."

    def __init__(self):
        self.calls = []

    def rows(self, setting):
        return {name: lambda name=name: self._row(name, setting) for name in ("first", "second")}

    def _row(self, name, setting):
        self.calls.append(name)
        candidates = [Candidate(label, lambda: lambda: jax.numpy.zeros(())) for label in (OURS, "twice")]
        return baselines.measure(candidates, setting)

    def targets(self, rows):
        return [Target(1, name, 1.0, 2.0) for name in rows]


@pytest.fixture
def counted(monkeypatch):
    section = Counted()
    monkeypatch.setattr(benchmarks, "SECTIONS", {"counted": section})
    return section


def test_run_resumes_with_the_missing_row(tmp_path, counted, quiet):
    benchmarks.run(["counted"], TINY, tmp_path, quiet)
    file = tmp_path / "rows_counted.json"
    stored = json.loads(file.read_text())
    del stored["rows"]["first"]
    file.write_text(json.dumps(stored))
    found = benchmarks.run(["counted"], TINY, tmp_path, quiet)["counted"]
    assert counted.calls == ["first", "second", "first"]
    assert set(found) == {"first", "second"}
    assert found["first"]["provenance"]["commit"]


def test_run_refuses_rows_of_another_setting(tmp_path, counted, quiet):
    benchmarks.run(["counted"], TINY, tmp_path, quiet)
    with pytest.raises(ConfigError, match=r"rows_counted\.json was measured with rounds = 1, and this run has 2"):
        benchmarks.run(["counted"], TINY._replace(rounds=2), tmp_path, quiet)


@pytest.mark.parametrize(("name", "value"), baselines.ENVIRONMENT.items())
def test_run_refuses_rows_of_another_environment(name, value, tmp_path, counted, quiet, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    benchmarks.run(["counted"], TINY, tmp_path, quiet)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} = None, and this run has {value}"):
        benchmarks.run(["counted"], TINY, tmp_path, quiet)


def test_run_unknown_section(tmp_path, counted, quiet):
    with pytest.raises(ConfigError, match=r"--only must contain sections of counted; got memory"):
        benchmarks.run(["memory"], TINY, tmp_path, quiet)


def test_show_all_has_times_and_targets(tmp_path, counted, quiet):
    measured = benchmarks.run(["counted"], TINY, tmp_path, quiet)
    report = benchmarks_report.show_all({"counted": counted}, measured, TINY, quiet)
    targets, times = (section.tables[0] for section in report.sections)
    assert [row[-1] for row in targets.rows] == ["met", "met"]
    assert times.columns == ("", "segjax, ms", "twice")
    assert [row[0] for row in times.rows] == ["first", "second"]
    assert report.facts["rounds"] == 1
