"""Patch by patch and in one pass: FLOPs, equal logits and the report."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import patches
from experiments.benchmarks.patches import ONE_PASS, PATCHES
from experiments.benchmarks.timing import Case
from segjax.models import PatchClassifier


@pytest.mark.slow
def test_command_writes_every_depth(tmp_path, python):
    done = python(
        "-m",
        "experiments.benchmarks.patches",
        "--shape=1,6,9",
        "--width=2",
        "--depths=0,1",
        "--rounds=1",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "patches.json").read_text())
    assert [(row["depth"], row["patch"]) for row in written["data"]] == [(0, 3), (1, 10)]
    for row in written["data"]:
        assert row["ms"][PATCHES] > 0
        assert row["ms_ratio"] == pytest.approx(row["ms"][PATCHES] / row["ms"][ONE_PASS])
    assert written["facts"]["images, height, width"] == [1, 6, 9]
    assert "\n| 10×10 | " in (tmp_path / "patches.md").read_text()
    assert "10×10" in done.stdout


def test_flops_of_all_patches_and_one_pass():
    # Sides 10 → 8 → 6 → 3 → 1 with 3, 4, 4, 8 channels; two FLOPs per multiplication and addition.
    model, shape = PatchClassifier(patches.CLASSES, width=4, depth=1, norm="none"), (2, 5, 30)
    variables = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 1, 1, 3)), train=False), jax.random.key(0))
    per_patch = 64 * 9 * 3 * 4 + 36 * 9 * 4 * 4 + 9 * 4 * 8 + 8 * 12
    # The same kernels over the padded image of 14×39.
    one_pass = 2 * (12 * 37 * 9 * 3 * 4 + 10 * 35 * 9 * 4 * 4 + 5 * 30 * (9 * 4 * 8 + 8 * 12))
    counted = patches.flops(model, variables, shape)
    # The compiler also counts biases, ReLUs and poolings.
    assert 2 * 300 * per_patch < counted[PATCHES] < 1.1 * 2 * 300 * per_patch
    assert 2 * one_pass < counted[ONE_PASS] < 1.1 * 2 * one_pass


@pytest.mark.parametrize("other", [2.001, float("nan")])
def test_difference_above_the_tolerance(other):
    pair = [Case(PATCHES, lambda: jnp.array([1.0, 2.0])), Case(ONE_PASS, lambda: jnp.array([1.0, other]))]
    with pytest.raises(ValueError, match=r"must give the same logits to 0\.0001; they differ by (0\.001|nan)"):
        patches.difference(pair)
