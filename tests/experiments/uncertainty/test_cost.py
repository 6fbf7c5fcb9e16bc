import pytest

from experiments.uncertainty import cost


@pytest.mark.slow
def test_measure_and_report_of_a_small_network():
    rows = cost.measure(2, (16, 32), rounds=1)
    assert [row["method"] for row in rows] == list(cost.programs(2, (16, 32)))
    assert rows[0]["ratio"] == 1
    members = rows[-1]["argument_megabytes"] / rows[0]["argument_megabytes"]
    assert 4 < members < 5.1
    made = cost.report({2: rows}, (16, 32), 1)
    assert made.text.startswith("Time over one pass of a U-Net of width 2: energy ")
