"""What people would use instead of segjax, as far as it is installed: the extra `bench` brings all of it.

A benchmark's row is one piece of work, and its columns the ways to do it: ours first, then the peers, then limits (a
copy of the same arrays). A peer that is not installed is a column that says so, never an error.
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
# What the environment has to say when the process starts: that PyTorch's threads, when they wait, leave the CPUs to the
# others (it reads that as it is imported, which TensorBoard's writer does before anybody here could), and huge pages.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **HUGE_PAGES}
# How a column is called, the module to import, and the package that brings it.
PEERS = {
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
# Libraries that run one operation after another, as most people use them.
EAGER = ("PyTorch", "torchvision", "kornia", "MONAI", "SMP")
NOT_INSTALLED = "not installed"


class Setting(NamedTuple):
    """What all rows of a run share.

    Attributes:
      shape: images, height and width.
      classes: C.
      rounds: how often each way is timed.
      clock: "wall" or "cpu" (`timing.milliseconds`).
      compiled: also time `torch.compile`, which compiles C++ for half a minute.
    """

    shape: tuple[int, int, int] = (2, 512, 1024)
    classes: int = 19
    rounds: int = 11
    clock: str = "wall"
    compiled: bool = True


class Way(NamedTuple):
    """One way to do a row's work: `make` imports what it needs and returns a `Case`'s `run`."""

    who: str
    make: Callable[[], Callable[[], Any]]
    answer: Callable[[Any], Any] | None = None


class Target(NamedTuple):
    """What a ratio is to be.

    Attributes:
      number: of the target in the plan, 1 to 8.
      of: what is divided by what.
      ratio: as measured; None where a peer it needs is not installed.
      limit: the most, or with `least` the least.
      least: whether `limit` is the least.
    """

    number: int
    of: str
    ratio: float | None
    limit: float
    least: bool = False

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.ratio is None:
            return None
        return self.ratio >= self.limit if self.least else self.ratio <= self.limit


def installed(who: str) -> bool:
    """Whether that column can be measured; ours and the limits always can."""
    return who not in PEERS or importlib.util.find_spec(PEERS[who][0]) is not None


def versions() -> dict[str, str]:
    """Of the packages of all peers, or that they are not installed."""
    found = {}
    for module, package in PEERS.values():
        here = importlib.util.find_spec(module) is not None
        found[package] = importlib.metadata.version(package) if here else NOT_INSTALLED
    return found


def measure(ways: list[Way], setting: Setting, tolerance: float = 0.0) -> dict[str, Any]:
    """One row: who takes how long, who is not installed, and how far their answers are from each other.

    Raises:
      ValueError: two ways do not find the same.
    """
    here = [way for way in ways if installed(way.who) and (setting.compiled or way.who != "torch.compile")]
    cases = [Case(way.who, way.make(), way.answer) for way in here]
    load = os.getloadavg()[0]
    differs = agree(cases, tolerance)
    return {
        "ms": milliseconds(cases, setting.rounds, setting.clock),
        "not_installed": [way.who for way in ways if not installed(way.who)],
        "differs": differs,
        "load_average": load,
    }


def fastest(row: dict[str, Any], among: tuple[str, ...]) -> float | None:
    """The shortest time of those peers in the row; None where none of them was measured."""
    return min((taken for who, taken in row["ms"].items() if who in among), default=None)


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """Their ratio; None where one of them was not measured."""
    return None if numerator is None or denominator is None else numerator / denominator


def torch_here() -> Any:
    """PyTorch, with as many threads as JAX has."""
    import torch

    torch.set_num_threads(threads())
    return torch


def copy_of(arrays: Any) -> Callable[[], Any]:
    """Reads and writes the arrays once: no work on them is faster."""
    # Negated, for a plain copy could be handed back uncopied.
    copy = jax.jit(lambda arrays: jax.tree.map(lambda x: -x, arrays))
    return lambda: copy(arrays)
