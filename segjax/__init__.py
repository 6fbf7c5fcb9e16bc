"""Semantic segmentation in JAX for rare classes, with per-pixel uncertainty, and object detection.

`segjax.losses`, `segjax.metrics` and `segjax.boxes` are pure functions that need jax, chex and jaxtyping alone;
everything else comes with the extra `segjax[train]`. Each part loads when it is first used: `import segjax` loads no
library.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segjax import boxes, data, inference, losses, metrics, models, reporting, trained_run, training

__version__ = "0.1.0"
__all__ = ["boxes", "data", "inference", "losses", "metrics", "models", "reporting", "trained_run", "training"]

# What each extra brings, by the names that are imported.
_EXTRAS = {
    "train": (
        *(
            "absl",
            "array_record",
            "cv2",
            "flax",
            "grain",
            "imagecodecs",
            "jinja2",
            "matplotlib",
            "ml_collections",
            "optax",
            "orbax",
        ),
        *("PIL", "rich", "scipy", "tensorboardX", "tensorflow_datasets", "tifffile"),
    ),
    "export": ("flatbuffers",),
    "mlflow": ("alembic", "mlflow", "sqlalchemy"),
    "wandb": ("wandb",),
}
_BASE = (
    "__main__",
    "boxes",
    "checks",
    "collectives",
    "distance",
    "losses",
    "metrics",
)  # the modules that need no extra


def missing_extra(extra: str, user: str) -> str:
    """Returns how to install the extra that `user`, a module or a command, needs; "" if all its libraries are there."""
    if all(importlib.util.find_spec(library) for library in _EXTRAS[extra]):
        return ""
    return f"{user} needs the extra \"{extra}\": pip install 'segjax[{extra}]'"


class _ExtraCheck:
    """An import hook that finds no module, and raises where a part of segjax needs libraries that are not installed."""

    passed = False

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Raises ImportError if `name` needs the extra; `python -m`, which looks for a command, ends with one line."""
        package, _, part = name.partition(".")
        if cls.passed or package != __name__ or part.split(".")[0] in ("", *_BASE):
            return
        if sys.argv[:1] == ["-m"] and (message := missing_extra("train", f"{package} {part}")):
            sys.exit(f"error: {message}")
        if message := missing_extra("train", name):
            raise ImportError(message, name=name)
        cls.passed = True


sys.meta_path.insert(0, _ExtraCheck)


def __getattr__(name: str) -> object:
    """Returns a part of segjax, imported at its first use."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the names of the module and of the parts that are not loaded yet."""
    return sorted({*globals(), *__all__})
