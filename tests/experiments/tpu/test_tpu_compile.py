"""Cost of a training step by the compiler, on this machine and in the committed results."""

import json
from pathlib import Path

import jax
import pytest

from experiments.tpu import tpu_compile
from experiments.tpu.tpu_slices import CHIPS
from segjax.configs import cityscapes_unet_recipe
from segjax.data import label_set
from segjax.training import ConfigError
from segjax.training.network import make_model
from segjax.training.train_step import init_state

RESULT = Path(tpu_compile.__file__).parents[1] / "results" / "tpu_compile.json"
TINY = {
    "data.size": (16, 32),
    "model.width": 4,
    "model.depth": 2,
    "model.padding": "zeros",
    "model.dtype": "float32",
}


@pytest.fixture
def tiny(monkeypatch):
    """Returns the full recipe with small images and a small network."""
    monkeypatch.setitem(tpu_compile.NATIVE_SIZES, "cityscapes", (32, 64))
    config = cityscapes_unet_recipe.get_config()
    config.update_from_flattened_dict(TINY)
    config.training.global_batch = 4
    return config


@pytest.fixture
def row():
    """Returns an invented row of a program that fits."""
    return {
        "config": "recipe",
        "crops": [0.6, 1.0],
        "size": [512, 1024],
        "width": 64,
        "topology": "v5e:2x4",
        "parallel": "shard_map",
        "dtype": "bfloat16",
        "remat": True,
        "pack": 2,
        "strips": 8,
        "batch_per_chip": 2,
        "chips": 8,
        "fits": True,
        "flops": 4.8e12,
        "bytes_accessed": 107e9,
        "hbm_bytes": 52e9,
        "cycles": 256e6,
        "peak_bytes": 8.64e9,
        "collectives": {"all-reduce": {"count": 3, "bytes": 1.2e8}, "all-gather": {"count": 1, "bytes": 4e6}},
        "seconds": 0.1306,
        "bound": "memory",
        "provenance": {"command": "c", "commit": "abc", "python": "3", "versions": {"jax": "1"}},
    }


def shown(row) -> dict:
    (table,) = tpu_compile.tables([row])
    return dict(zip(table.columns, table.rows[0], strict=True))


@pytest.mark.slow
def test_measure_costs_of_a_step_on_four_devices(tiny):
    row = tpu_compile.measure(tiny, "cpu", 2)
    assert row["chips"] == len(jax.devices()) == 4
    assert row["fits"]
    assert row["flops"] > 1e6
    assert row["bytes_accessed"] > row["peak_bytes"] > row["memory"]["argument"] > 0
    # XLA counts the whole of a sliced array; every parameter is read and written.
    assert 2 * row["memory"]["argument"] < row["hbm_bytes"] < 1.5 * row["bytes_accessed"]
    # Gradients, and the statistics of five blocks with two norms each.
    assert row["collectives"]["all-reduce"]["count"] >= 5 * 2
    network = init_state(tiny, make_model(tiny, len(label_set(tiny.data).names)))
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(network.params))
    # Each gradient is reduced once.
    assert gradients < row["collectives"]["all-reduce"]["bytes"] < 1.2 * gradients
    assert (row["seconds"], row["bound"]) == (None, None)
    assert tiny.training.global_batch == 4  # the caller's config is not touched


@pytest.mark.slow
def test_lower_gives_one_program_for_all_phases(tiny):
    hparams_of_phases = tpu_compile.phase_hparams(tiny)
    assert [round(float(hparams.crop_fraction), 6) for hparams in hparams_of_phases] == [0.6, 0.75, 1.0]
    programs = {tpu_compile.lower(tiny, jax.devices(), hparams).as_text() for hparams in hparams_of_phases}
    assert len(programs) == 1


def test_run_writes_a_row_with_its_provenance_and_compiles_it_once(tiny, tmp_path, monkeypatch):
    output, compiled = tmp_path / "new" / "rows.json", []

    def measure(config, topology, batch_per_chip):
        compiled.append(batch_per_chip)
        return {"chips": 4, "fits": False, "peak_bytes": None, "compile_seconds": 1}

    monkeypatch.setattr(tpu_compile, "measure", measure)
    for batch in (1, 2, 1):
        rows = tpu_compile.run("configs/recipe.py:as_written", tiny, "cpu", batch, output)
    assert compiled == [1, 2]
    assert json.loads(output.read_text()) == json.loads(json.dumps(rows))
    assert [row["batch_per_chip"] for row in rows] == [1, 2]
    assert rows[0]["config"] == "recipe"
    assert {"command", "commit"} <= set(rows[0]["provenance"])
    assert "| cpu | shard_map | float32 | no | 1 | 1 | 2 |" in output.with_suffix(".md").read_text()


def test_tables_units(row):
    cells = shown(row)
    assert cells["TFLOP"] == "4.80"
    assert cells["GB accessed"] == "107.0"
    assert cells["GB through HBM"] == "52.0"
    assert cells["GB needed"] == "8.6"
    assert cells["collectives"] == 4
    assert cells["their GB"] == "0.124"
    assert cells["least ms"] == "131, memory"


@pytest.mark.parametrize(("peak", "needs"), [(20.5e9, "20.5, does not fit"), (None, "does not fit")])
def test_tables_program_that_does_not_fit(row, peak, needs):
    measured = ("flops", "bytes_accessed", "hbm_bytes", "collectives", "seconds", "bound")
    cells = shown({k: v for k, v in row.items() if k not in measured} | {"fits": False, "peak_bytes": peak})
    assert cells["GB needed"] == needs
    assert cells["TFLOP"] is cells["collectives"] is cells["least ms"] is None


def test_measure_program_that_the_compiler_refuses_for_memory(tiny, monkeypatch):
    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory. Used 20.00G of 15.75G hbm.")

    monkeypatch.setattr(tpu_compile, "lower", lambda *_: Refused())
    row = tpu_compile.measure(tiny, "cpu", 1)
    assert row["fits"] is False
    assert row["peak_bytes"] == 20 * 2**30


def test_measure_refuses_pmap(tiny):
    tiny.parallel = "pmap"
    with pytest.raises(ConfigError, match=r"config.parallel must be jit or shard_map.*got 'pmap'"):
        tpu_compile.measure(tiny, "cpu", 1)


@pytest.mark.slow
def test_command_resumes(tmp_path, python):
    command = (
        "-m",
        "experiments.tpu.tpu_compile",
        "--config=configs/rare_class.py",
        "--topology=cpu",
        "--batch_per_chip=1",
        f"--output={tmp_path / 'rows.json'}",
        *(f"--config.{key}={value}" for key, value in TINY.items()),
    )
    first, second = python(*command), python(*command)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 1
    assert "rare_class, width 4, 16×32 pixels" in first.stdout


@pytest.mark.slow
def test_command_error_is_one_line(tmp_path, python):
    done = python(
        "-m",
        "experiments.tpu.tpu_compile",
        "--config=configs/rare_class.py",
        "--topology=v9:2x4",
        f"--output={tmp_path}/x",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --topology must be a chip, one of v4, v5e,")


@pytest.mark.slow
def test_measure_on_a_v5e_slice(tiny):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install '.[tpu]'")
    tiny.model.dtype = "bfloat16"
    row = tpu_compile.measure(tiny, "v5e:2x4", 1)
    assert (row["chips"], row["fits"]) == (8, True)
    assert row["collectives"]["all-reduce"]["count"] > 0
    assert row["bound"] in ("memory", "compute")


@pytest.fixture(scope="module")
def compiled():
    """Returns the rows of the full recipe without rematerialization and packing, by slice and batch per chip."""
    rows = [row for row in json.loads(RESULT.read_text()) if row["config"] == "cityscapes_unet_recipe"]
    rows = [row for row in rows if row["parallel"] == "shard_map" and not row["remat"] and row["pack"] == 1]
    return {(row["topology"], row["batch_per_chip"]): row for row in rows}


@pytest.mark.parametrize("batch", [2, 4])
def test_result_full_recipe_fits_a_v5e_chip(compiled, batch):
    row = compiled["v5e:2x4", batch]
    assert row["crops"] == pytest.approx([0.6, 0.75, 1.0])
    assert row["fits"]
    assert row["peak_bytes"] < CHIPS["v5e"].memory


def test_result_full_recipe_has_as_many_collectives_on_256_chips_as_on_8(compiled):
    small, large = compiled["v5e:2x4", 2], compiled["v5e:16x16", 2]
    assert (small["chips"], large["chips"]) == (8, 256)
    assert {kind: one["count"] for kind, one in large["collectives"].items()} == {
        kind: one["count"] for kind, one in small["collectives"].items()
    }


def test_result_packed_layout_needs_a_third_less_memory_and_half_the_traffic(compiled):
    rows = {(row["pack"], row["strips"]): row for row in json.loads(RESULT.read_text()) if row["pack"] > 1}
    plain, packed, in_strips = compiled["v5e:2x4", 2], rows[2, 1], rows[2, 8]
    assert packed["hbm_bytes"] < 0.75 * plain["hbm_bytes"]
    assert in_strips["hbm_bytes"] < 0.5 * plain["hbm_bytes"]
    assert in_strips["bytes_accessed"] < 0.65 * plain["bytes_accessed"]
    assert in_strips["cycles"] < 0.25 * plain["cycles"]
    for laid_out in (packed, in_strips):
        assert laid_out["peak_bytes"] < 0.67 * plain["peak_bytes"]
        assert laid_out["collectives"] == plain["collectives"]
