"""The table of finished runs: rows of seeds, from measured columns."""

import pytest

from experiments.camvid import finished_runs

PROVENANCE = {"command": "python", "commit": "abc", "device": "cpu", "cpu_threads": 1, "python": "3", "versions": {}}


def cell(row, seed, mean_iou):
    scores = {"mean_iou": mean_iou, "pixel_accuracy": 0.75, "boundary_f1": 0.5, "iou_per_class": [mean_iou, 0.25]}
    fixed = {"size": [192, 256], "parameters": 1_950_000, "classes": ["sky", "pole"], "provenance": PROVENANCE}
    return {"row": row, "seed": seed} | scores | fixed


def test_report_has_a_row_per_config_with_its_mean_over_seeds():
    found = finished_runs.report([cell("unet", 0, 0.5), cell("unet", 1, 0.25), cell("lite0", 0, 0.75)], "validation")
    unet, lite0 = found.sections[0].tables[0].rows
    assert unet[:4] == ("unet", 2, "192×256", "1.95")
    assert [value.mean for value in unet[4:]] == pytest.approx([0.375, 0.75, 0.5, 0.375, 0.25])
    assert lite0[4].values == (0.75,)
    assert found.text.startswith("lite0 has the highest mean IoU, 0.750.")
