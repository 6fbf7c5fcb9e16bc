"""TPU chips, their published figures and their slices."""

import importlib.util

import jax
import pytest

from experiments.tpu.tpu_slices import CHIPS, chip_of, devices_of, roofline
from segjax.training import ConfigError


@pytest.mark.parametrize(
    ("flops", "accessed", "expected"),
    [(197e12, 1.0, (1.0, "compute")), (1.0, 2 * 819e9, (2.0, "memory")), (98.5e12, 8.19e9, (0.5, "compute"))],
)
def test_roofline_bound(flops, accessed, expected):
    assert roofline(flops, accessed, CHIPS["v5e"]) == expected


@pytest.mark.parametrize("chip", CHIPS)
def test_chips_units(chip):
    flops, memory, bandwidth = CHIPS[chip]
    # Reading the whole memory takes 10 to 40 ms; compute and bandwidth balance at 160 to 560 FLOPs per byte.
    assert 0.01 < memory / bandwidth < 0.04
    assert 160 < flops / bandwidth < 600


def test_cpu_has_no_chip():
    assert chip_of("cpu") is None
    assert list(devices_of("cpu")) == jax.devices()


@pytest.mark.parametrize("topology", ["v5e", "v9:2x4", "tpu", ""])
def test_chip_of_unknown_topology(topology):
    message = rf"--topology must be a chip, one of v4, v5e, v5p, v6e, and a shape, such as v5e:2x4.*got '{topology}'"
    with pytest.raises(ConfigError, match=message):
        chip_of(topology)


def test_devices_of_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--topology=v5e:2x4 needs libtpu.*not installed: pip install .*\[tpu\]"):
        devices_of("v5e:2x4")


@pytest.mark.slow
def test_devices_of_a_slice():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install '.[tpu]'")
    assert len(devices_of("v5e:2x4")) == 8
    with pytest.raises(ConfigError, match="--topology=v5e:3x5 is refused by libtpu"):
        devices_of("v5e:3x5")
