import json

import pytest

from experiments.uncertainty_cost import ANALYTIC, CHANNEL, CLEAN, ELEMENT, WHOLE


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
