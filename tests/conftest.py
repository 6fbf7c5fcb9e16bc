"""Four host devices, no accelerator, shapes checked at run time: set before anything imports jax or segjax."""

import os
import re
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Four devices on two busy cores may wait for each other longer than the 40 s after which XLA ends the process.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
# As many threads as wait for each other, and some more: a device that waits holds one, and XLA has one a device.
os.environ.setdefault("NPROC", "12")
# Nearly all of the suite's time is compilation: what one process or an earlier run has compiled is not compiled again.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("segjax", "beartype.beartype")

# The same examples on every run and machine; a compilation in the first example is no reason to fail.
hypothesis.settings.register_profile("segjax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("segjax")


@pytest.fixture(autouse=True, scope="module")
def compilation_effort(request):
    """The formulas are tested as their users compile them; all else has to compile fast, and no more."""
    optimized = request.path.stem in ("test_pixel", "test_devices")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()  # hundreds of programs a module: a worker would grow to 4 GB


@pytest.fixture(scope="session")
def page():
    """`page(name)`: what runs on a page of docs/, (language, text) of each of its blocks; a command is one line."""

    def blocks(name):
        text = (Path(__file__).parent.parent / "docs" / name).read_text(encoding="utf-8").replace("\\\n  ", "")
        return re.findall(r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)

    return blocks


@pytest.fixture(scope="session")
def process_environment():
    """The environment of a real process: one device, and compilation that is fast and no more."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return environment | {"COLUMNS": "120", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="session")
def python(process_environment):
    """`python(*arguments)`: a real process in the checkout, run to its end."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=Path(__file__).parent.parent,
            env=process_environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run
