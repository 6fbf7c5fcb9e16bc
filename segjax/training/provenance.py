"""Where a number comes from: what is committed beside every result."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "segjax")
_SYSTEM = ("GLIBC_TUNABLES", "MALLOC_", "OMP_")


def provenance() -> dict[str, Any]:
    """The command, commit, versions, device and time of this process, ready for JSON.

    What the environment asks of the C library's memory and of OpenMP stands before the command: times depend on it.

    >>> sorted(provenance())
    ['command', 'commit', 'cpu_threads', 'date', 'device', 'python', 'versions']
    """
    device = jax.devices()[0]
    return {
        "command": " ".join([*_asked(), Path(sys.executable).stem, *map(shlex.quote, _argv())]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "cpu_threads": _cpus(),
    }


def _asked() -> list[str]:
    asked = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_SYSTEM)}
    return [f"{name}={shlex.quote(value)}" for name, value in asked.items()]


def _cpus() -> int:
    """The CPUs this process may use, which a container or `taskset` makes fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _argv() -> list[str]:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return ["-m", spec.name, *sys.argv[1:]] if spec and spec.name != "__main__" else sys.argv


def _commit() -> str:
    """The commit of the checkout this package runs from, `-dirty` if it was changed; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
