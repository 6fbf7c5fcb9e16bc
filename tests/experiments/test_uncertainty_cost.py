import json
from pathlib import Path

import pytest

from experiments import uncertainty_cost
from experiments.uncertainty_cost import ANALYTIC, CHANNEL, CLEAN, ELEMENT, WHOLE

RESULT = Path(uncertainty_cost.__file__).parent / "results" / "uncertainty_cost.json"


def test_a_small_run_prints_a_table_and_writes_every_case(tmp_path, python):
    output = tmp_path / "new" / "cost.json"
    done = python(
        "-m", "experiments.uncertainty_cost", "--shape=2,16,32", "--widths=2,4", "--rounds=2", f"--output={output}"
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    assert list(written["widths"]) == ["2", "4"]
    for measured in written["widths"].values():
        assert list(measured["ms"]) == list(measured["ratios"]) == [CLEAN, CHANNEL, ELEMENT, ANALYTIC, WHOLE]
        assert all(taken > 0 for taken in measured["ms"].values())
        assert measured["ratios"][CHANNEL] == pytest.approx(measured["ms"][CHANNEL] / measured["ms"][CLEAN])
    assert written["shape"] == [2, 16, 32]
    assert all(name in done.stdout for name in (CLEAN, CHANNEL, ELEMENT, ANALYTIC, WHOLE, "width 4, ms"))


@pytest.mark.parametrize("width", ["16", "64"])
def test_what_was_measured_is_half_a_pass_at_most_for_thirty_heads(width):
    measured = json.loads(RESULT.read_text())
    ratios = measured["widths"][width]["ratios"]
    assert ratios[CHANNEL] <= 1.5
    assert ratios[ANALYTIC] <= ratios[CHANNEL] < ratios[ELEMENT]
    assert measured["shape"] == [1, 192, 256]
