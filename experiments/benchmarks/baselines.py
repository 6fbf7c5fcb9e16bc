"""Other libraries that compute the same, as far as they are installed: the extra `bench` installs all of them.

A row of a benchmark is one task, and its columns are implementations of it: segjax first, then the baselines, then
limits (a copy of the same arrays). The column of a baseline that is not installed contains "not installed".
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.timing import Case, agree, milliseconds, threads
from experiments.sweep.grid import HUGE_PAGES

OURS = "segjax"
# Variables to set before the process starts: waiting threads of PyTorch release their CPU (PyTorch reads the variable
# when it is imported, which TensorBoard's writer does early), and the allocator uses huge pages.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **HUGE_PAGES}
# Label of the column: module and package.
BASELINES = {
    "PyTorch": ("torch", "torch"),
    "PyTorch, channels last": ("torch", "torch"),
    "torch.compile": ("torch", "torch"),
    "torchvision": ("torchvision", "torchvision"),
    "kornia": ("kornia", "kornia"),
    "MONAI": ("monai", "monai"),
    "SMP": ("segmentation_models_pytorch", "segmentation-models-pytorch"),
    "torchmetrics": ("torchmetrics", "torchmetrics"),
    "torchmetrics, unchecked": ("torchmetrics", "torchmetrics"),
    "scikit-learn": ("sklearn", "scikit-learn"),
    "SciPy": ("scipy", "scipy"),
    "NumPy": ("numpy", "numpy"),
    "optax": ("optax", "optax"),
}
# Libraries in their usual eager mode.
EAGER = ("PyTorch", "torchvision", "kornia", "MONAI", "SMP")
NOT_INSTALLED = "not installed"


class Setting(NamedTuple):
    """Setting of all rows of a run.

    Attributes:
      shape: images, height and width.
      classes: C.
      rounds: number of timed rounds.
      clock: "wall" or "cpu" (`timing.milliseconds`).
      compiled: also time `torch.compile`, which compiles C++ for half a minute.
    """

    shape: tuple[int, int, int] = (2, 512, 1024)
    classes: int = 19
    rounds: int = 11
    clock: str = "wall"
    compiled: bool = True


class Candidate(NamedTuple):
    """Candidate of a row's task: `make` imports its library and returns the `run` of a `Case`."""

    label: str
    make: Callable[[], Callable[[], Any]]
    outputs: Callable[[Any], Any] | None = None


class Target(NamedTuple):
    """Target of a ratio.

    Attributes:
      number: number of the target, 1 to 8.
      of: description of the ratio.
      ratio: measured ratio; None if a baseline is not installed.
      limit: largest acceptable ratio, or with `least` the smallest.
      least: `limit` is a lower limit.
    """

    number: int
    of: str
    ratio: float | None
    limit: float
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Returns True if the target is met, and None without a measurement."""
        if self.ratio is None:
            return None
        return self.ratio >= self.limit if self.least else self.ratio <= self.limit


def installed(label: str) -> bool:
    """Returns True if a column can be measured; segjax and the limits always can."""
    return label not in BASELINES or importlib.util.find_spec(BASELINES[label][0]) is not None


def versions() -> dict[str, str]:
    """Returns the version of each baseline's package, or "not installed"."""
    found = {}
    for module, package in BASELINES.values():
        here = importlib.util.find_spec(module) is not None
        found[package] = importlib.metadata.version(package) if here else NOT_INSTALLED
    return found


def measure(candidates: list[Candidate], setting: Setting, tolerance: float = 0.0) -> dict[str, Any]:
    """Measures a row: times, labels that are not installed, and differences of the outputs.

    Raises:
      ValueError: the outputs of two implementations differ by more than `tolerance`.
    """
    available = [one for one in candidates if installed(one.label)]
    chosen = [one for one in available if setting.compiled or one.label != "torch.compile"]
    cases = [Case(one.label, one.make(), one.outputs) for one in chosen]
    load = os.getloadavg()[0]
    differs = agree(cases, tolerance)
    return {
        "ms": milliseconds(cases, setting.rounds, setting.clock),
        "not_installed": [one.label for one in candidates if not installed(one.label)],
        "differs": differs,
        "load_average": load,
    }


def fastest(row: dict[str, Any], among: tuple[str, ...]) -> float | None:
    """Returns the shortest time of some labels in a row; None if none of them was measured."""
    return min((taken for label, taken in row["ms"].items() if label in among), default=None)


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """Returns a ratio; None if one of its terms was not measured."""
    return None if numerator is None or denominator is None else numerator / denominator


def torch_here() -> Any:
    """Imports PyTorch with as many threads as JAX."""
    import torch

    torch.set_num_threads(threads())
    return torch


def copy_of(arrays: Any) -> Callable[[], Any]:
    """Returns a function that reads and writes the arrays once: a lower limit for any function of them."""
    # Negated, because XLA may return an unchanged array without a copy.
    copy = jax.jit(lambda arrays: jax.tree.map(lambda x: -x, arrays))
    return lambda: copy(arrays)
