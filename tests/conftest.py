"""Four host devices, no accelerator, shapes checked at run time: set before anything imports jax or segjax."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
# Nearly all of the suite's time is compilation: what one process or an earlier run has compiled is not compiled again.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("segjax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def compilation_effort(request):
    """Losses and metrics are tested as their users compile them; networks have to compile fast, and no more."""
    optimized = {"losses", "metrics"} & set(request.path.parts)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
