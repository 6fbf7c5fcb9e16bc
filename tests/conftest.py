"""Four host devices, no accelerator, shapes checked at run time: set before anything imports jax or segjax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

from jaxtyping import install_import_hook

install_import_hook("segjax", "beartype.beartype")
