"""Provenance of a result: the command, code, versions and device that made it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import jax

from segjax.data import Source
from segjax.storage import to_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "segjax")
# Settings of JAX and of its compilers on which numbers depend.
_JAX = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
_COMPILERS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_SYSTEM = ("GLIBC_TUNABLES", "MALLOC_", "OMP_")  # settings of memory and threads, on which times depend


def provenance() -> dict[str, Any]:
    """Returns command (after settings of the C library and OpenMP), code, versions, settings, device, time, for JSON.

    >>> sorted(provenance())
    ['code', 'command', 'commit', 'cpu_threads', 'date', 'device', 'python', 'settings', 'versions']
    """
    settings = [f"{name}={shlex.quote(os.environ[name])}" for name in sorted(os.environ) if name.startswith(_SYSTEM)]
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    arguments = ["-m", spec.name, *sys.argv[1:]] if spec and spec.name != "__main__" else sys.argv
    device = jax.devices()[0]
    return {
        "command": " ".join([*settings, Path(sys.executable).stem, *map(shlex.quote, arguments)]),
        "commit": _commit(),
        "code": _hash_of_code(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES} | {"opencv": cv2.__version__},
        "settings": {name: getattr(jax.config, name) for name in _JAX}
        | {name: os.environ.get(name, "") for name in _COMPILERS},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        # Of this process: a container or `taskset` may have fewer than the machine.
        "cpu_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }


def numerics(origin: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of `provenance` on which the numbers of a run depend, flat."""
    return {"code": origin["code"], "device": origin["device"], **origin["versions"], **origin["settings"]}


def run_record(settings: dict[str, Any], origin: dict[str, Any], data: dict[str, Source]) -> dict[str, Any]:
    """Returns everything on which the numbers of a run depend, flat and as JSON returns it.

    These are `settings` (`config.comparable`), the `numerics` of `origin`, and the number of images of each split of
    `data` with a hash of their names and contents.
    """
    images = {name: f"{len(source)} images, {source.digest}" for name, source in data.items()}
    return json.loads(to_json(settings | numerics(origin) | images))


def differences(now: dict[str, Any], before: dict[str, Any], step: int) -> list[str]:
    """Returns one line per entry of a `run_record` that is not that of the training of `step`."""
    changed = [key for key in now if now[key] != before.get(key)]
    return [f"{key} is now {now[key]!r}; step {step} was trained with {before.get(key)!r}" for key in changed]


def _hash_of_code() -> str:
    """Returns a hash of the package's source files, which a commit with changes does not identify."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _commit() -> str:
    """Returns the commit of the package's checkout, with `-dirty` if it was changed; "unknown" outside a checkout."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie inside somebody else's repository
        return "unknown"
    command = ["git", "-C", checkout, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        # git may wait for a lock or a slow disk, and nothing depends on its answer.
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
