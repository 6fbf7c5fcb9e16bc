"""The same run on one device, on four devices, and on two processes with two devices each, in every mapping."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # starts processes

PROGRAM = Path(__file__).parent / "same_run.py"
MODES = ("jit", "pmap", "shard_map")
# In float32 both runs round differently at every step, and 20 steps accumulate the difference.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@pytest.fixture(scope="module")
def same_run():
    spec = importlib.util.spec_from_file_location("same_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(same_run):
    return {dtype: same_run.run("jit", dtype, jax.devices()[:1]) for dtype in TOLERANCE}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, process_environment):
    """Returns the results of each of two processes, connected over TCP."""
    folder = tmp_path_factory.mktemp("hosts")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    one_order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"  # as in conftest.py
    two_devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {one_order}"}
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(host), str(port), folder / "host", *MODES],
            env=process_environment | two_devices,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
    return [np.load(folder / f"host{host}.npz") for host in range(2)]


def assert_equal_runs(run, expected, tolerance):
    losses, parameters, confusion = run
    assert np.ptp(expected[0]) > 0.01  # the run learns
    np.testing.assert_allclose(losses, expected[0], rtol=tolerance)
    np.testing.assert_allclose(parameters, expected[1], atol=tolerance, rtol=tolerance)
    np.testing.assert_array_equal(confusion, expected[2])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
def test_four_devices_equal_one(same_run, alone, mode, dtype):
    assert_equal_runs(same_run.run(mode, dtype), alone[dtype], TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
def test_two_hosts_equal_one_device(hosts, alone, mode):
    for host in hosts:
        assert_equal_runs([host[f"{mode}/{part}"] for part in range(3)], alone["float64"], TOLERANCE["float64"])
