"""Costs of losses and metrics by the compiler."""

import json

import pytest

from experiments.benchmarks import benchmarks_losses
from experiments.tpu import tpu_programs
from segjax.training import ConfigError

SHAPE, CLASSES = (1, 16, 24), 3


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Writes the rows of the copy, a loss and a metric, compiled for this machine; returns their file."""
    path = tmp_path_factory.mktemp("programs") / "rows.json"
    tpu_programs.run("cpu", SHAPE, CLASSES, path, only=["softmax focal", "confusion"])
    return path


def test_run_writes_rows_and_does_not_compile_them_again(output, monkeypatch):
    rows = json.loads(output.read_text())
    names = [tpu_programs.COPY, "softmax focal", "confusion matrix of logits"]
    assert [row["of"] for row in rows] == names
    monkeypatch.setattr(tpu_programs, "costs", lambda *_: pytest.fail("compiled again"))
    assert tpu_programs.run("cpu", SHAPE, CLASSES, output, only=["softmax focal", "confusion"]) == rows
    assert all(name in output.with_suffix(".md").read_text() for name in names)


def test_run_refuses_rows_of_another_size(output):
    with pytest.raises(ConfigError, match=r"has rows of .*\[1, 16, 24\].* choose another --output"):
        tpu_programs.run("cpu", (1, 32, 24), CLASSES, output)


def test_table_ratios_to_the_copy():
    def row(of, **costs):
        facts = {"of": of, "topology": "v5e:2x2", "shape": [2, 512, 1024], "classes": 19}
        return facts | {"gather": 1, "scatter": 2, "sort": 3, "extra_bytes": 5e6} | costs

    rows = [
        row(tpu_programs.COPY, hbm_bytes=2e9, cycles=4e6),
        row("a loss", hbm_bytes=3e9, cycles=10e6),
        row("a metric", hbm_bytes=1e9, cycles=None),
    ]
    table = tpu_programs.table(rows)
    assert table.title == "One chip of v5e:2x2, float32 logits of 2×512×1024×19"
    assert table.rows[1] == ("a loss", 10.0, 2.5, 3.0, 1.5, 5.0, 3, 3)
    assert table.rows[2][1:3] == (None, None)


def test_programs_contain_every_loss_of_the_benchmark():
    programs = tpu_programs.programs(SHAPE, CLASSES)
    assert set(programs) == {tpu_programs.COPY, *benchmarks_losses.LOSSES, *tpu_programs.METRICS}


def test_run_unknown_topology(tmp_path):
    with pytest.raises(ConfigError, match="--topology must be a chip"):
        tpu_programs.run("v9:2x2", SHAPE, CLASSES, tmp_path / "rows.json")


@pytest.mark.slow
def test_run_dice_on_a_chip_has_no_gather_or_scatter(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install '.[tpu]'")
    rows = tpu_programs.run("v5e:2x2", SHAPE, CLASSES, tmp_path / "rows.json", only=["Dice, the batch"])
    assert [row["gather"] + row["scatter"] for row in rows] == [0, 0]
    assert all(row["cycles"] > 0 for row in rows)
