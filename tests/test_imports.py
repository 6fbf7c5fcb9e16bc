"""Who may import whom. A new package or module is one more line in a table here.

The rules are the design's: arrows point down only, a heavy library has one home, `segjax.losses` and `segjax.metrics`
need nothing but jax, chex and jaxtyping, and TensorFlow is not imported at all.
"""

import ast
import fnmatch
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import segjax

ROOT = Path(__file__).resolve().parents[1]

FOUNDATION = ("collectives", "checks", "boxes", "distance")
ENTRY_POINTS = ("cli", "train", "evaluate", "calibrate", "predict", "report", "compare", "demo", "export")
ENTRY_POINTS += ("shipped_configs", "data_commands", "__main__")
# Commands and experiments sit on top of everything else.
EVERYTHING = (
    *(*FOUNDATION, "storage", "losses", "metrics", "models", "data"),
    *("inference", "training", "trained_run", "reporting"),
)

PAGE = ("reporting.charts", "reporting.live_page", "reporting.report")

# What each part of segjax may import of segjax besides itself: a name allows the module and all below it.
MAY_USE = {
    "": (),
    "checks": (),
    "collectives": (),
    "boxes": ("checks",),
    "distance": ("checks",),
    "losses": FOUNDATION,
    "metrics": FOUNDATION,
    "models": FOUNDATION,
    "storage": (),
    "data": ("storage",),
    "inference": ("boxes", "storage", "models", "metrics", "data"),
    "training": (*FOUNDATION, "missing_extra", "storage", "losses", "metrics", "models", "data", "inference", *PAGE),
    # The page of a run is written while it trains.
    **dict.fromkeys(PAGE, ("storage", "inference", "reporting.figures", *PAGE)),
    "reporting.figures": ("storage", *PAGE),
    "trained_run": (*FOUNDATION, "storage", "metrics", "models", "data", "inference", "training"),
    "reporting": (*FOUNDATION, "storage", "metrics", "models", "data", "inference", "training", "trained_run"),
    **dict.fromkeys(ENTRY_POINTS, ("cli", "missing_extra", "__version__", "__doc__", *EVERYTHING)),
    "configs": (*EVERYTHING,),
    "experiments": ("configs", *ENTRY_POINTS, *EVERYTHING),
}

# The only files that may import a library: patterns of paths, in which * takes in folders too.
HOMES = {
    "tensorflow": (),
    "flax": (
        "segjax/models/*",
        "segjax/training/network.py",
        "segjax/training/train_step.py",
        "experiments/uncertainty/local_temperature.py",
    ),
    "orbax": ("segjax/training/checkpoint.py", "segjax/training/hosts.py"),
    "tensorflow_datasets": ("segjax/data/builders.py", "segjax/data/datasets.py"),
    "grain": ("segjax/data/loader.py",),
    "tensorboardX": ("segjax/training/trackers.py",),
    "mlflow": ("segjax/training/trackers.py",),
    "wandb": ("segjax/training/trackers.py",),
}

# The parts that the base install carries, and all that it installs (numpy and scipy come with jax).
BASE_PARTS = ("", "boxes", "checks", "collectives", "distance", "losses", "metrics")
BASE_LIBRARIES = {"jax", "chex", "jaxtyping", "numpy", "scipy"}

FILES = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("segjax", "experiments") for path in (ROOT / folder).rglob("*.py")
)


def part_of(path: str) -> str:
    """Returns the row of the tables that a file belongs to: "losses", "train", "" for segjax/__init__.py.

    A module of a package may have a row of its own.
    """
    top, *rest = Path(path).with_suffix("").parts
    if ".".join(rest) in MAY_USE:
        return ".".join(rest)
    return top if top == "experiments" else rest[0].removesuffix("__init__")


def imported_modules(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, absolute name) of every import in a file, at any depth; `from a import b` gives a.b.

    Imports for type checkers are left out.
    """
    package, tree = list(Path(path).with_suffix("").parts)[:-1], ast.parse(source, path)
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unseen = {node for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(name)) for name in names)


def violations(path: str, source: str) -> list[str]:
    """Returns one line per violation of the rules, with the file and the import."""
    part, found = part_of(path), []
    if part not in MAY_USE:
        return [f"{path}: {part!r} has no row in MAY_USE of tests/test_imports.py: say there what it may import"]
    for line, name in imported_modules(path, source):
        library, _, inside = name.partition(".")
        broken = None
        if library in ("segjax", "experiments"):
            target = f"{library}.{inside}" if library == "experiments" else inside
            allowed = [one for one in dict.fromkeys((part, *MAY_USE[part])) if one]
            if not any(target == one or target.startswith(f"{one}.") for one in allowed):
                broken = f"it may use {', '.join(allowed) or 'nothing'} only"
        elif not any(fnmatch.fnmatch(path, home) for home in HOMES.get(library, ("*",))):
            broken = f"only {', '.join(HOMES[library])} may" if HOMES[library] else "nothing may"
        elif part in BASE_PARTS and library not in BASE_LIBRARIES | sys.stdlib_module_names:
            broken = f"the base install has {', '.join(sorted(BASE_LIBRARIES))} only"
        if broken:
            found.append(f"{path}:{line} imports {name}: {broken}")
    return found


@pytest.mark.parametrize("path", FILES)
def test_imports_point_down_and_libraries_stay_at_home(path):
    found = violations(path, (ROOT / path).read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("segjax/losses/a.py", "from segjax.collectives import psum\nimport segjax.losses.b, jax, math", None),
        (
            "segjax/losses/a.py",
            "from segjax import checks, metrics",
            "segjax/losses/a.py:1 imports segjax.metrics: it may",
        ),
        ("segjax/losses/a.py", "from ..metrics import b", "a.py:1 imports segjax.metrics.b"),
        ("segjax/losses/a.py", "def f():\n    import cv2", "a.py:2 imports cv2: the base install has chex, jax,"),
        ("segjax/losses/__init__.py", "from .a import b", None),
        ("segjax/__init__.py", "from segjax import losses", "segjax/__init__.py:1 imports segjax.losses"),
        ("segjax/__init__.py", "if TYPE_CHECKING:\n    from segjax import losses", None),
        ("segjax/models/unet.py", "import flax.linen as nn\nimport segjax.models.layers", None),
        ("segjax/models/unet.py", "import segjax.losses", "unet.py:1 imports segjax.losses"),
        (
            "segjax/data/pairs.py",
            "import tensorflow_datasets",
            "imports tensorflow_datasets: only segjax/data/builders.py, segjax/data/datasets.py",
        ),
        ("segjax/data/builders.py", "import tensorflow_datasets as tfds", None),
        ("segjax/data/builders.py", "import tensorflow as tf", "builders.py:1 imports tensorflow: nothing may"),
        (
            "segjax/data/a.py",
            "import importlib\nimportlib.import_module('grain.python')",
            "a.py:2 imports grain.python",
        ),
        ("segjax/train.py", "from segjax import training\nfrom segjax.data.labels import palette", None),
        (
            "segjax/data/a.py",
            "from segjax.inference import x",
            "a.py:1 imports segjax.inference.x: it may use data, storage only",
        ),
        (
            "segjax/reporting/a.py",
            "from segjax import losses",
            "imports segjax.losses: it may use reporting, collectives, checks, boxes, distance, storage, metrics",
        ),
        ("experiments/sweep/grid.py", "import experiments.table\nfrom segjax import training", None),
        ("experiments/sweep/grid.py", "import flax", "grid.py:1 imports flax: only segjax/models"),
        (
            "segjax/reporting/report.py",
            "from segjax.training import evaluation",
            "imports segjax.training.evaluation: it may use reporting.report, storage, inference",
        ),
        ("segjax/training/a.py", "import segjax.reporting.run_page", "imports segjax.reporting.run_page: it may use"),
        ("segjax/sounds/a.py", "", "'sounds' has no row in MAY_USE"),
    ],
)
def test_a_violation_is_found_and_named(path, source, expected):
    found = violations(path, source)
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def modules_loaded_by(statement: str) -> list[str]:
    """Returns the modules that an import statement loads in a fresh process, after jax, chex and jaxtyping."""
    program = (
        f"import json, sys, jax, chex, jaxtyping\nbefore = set(sys.modules)\n{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_import_train_loads_at_most_73_of_our_modules():
    loaded = [name for name in modules_loaded_by("import segjax.train") if name.split(".")[0] == "segjax"]
    assert len(loaded) <= 73, loaded
    assert {"segjax.training.loop", "segjax.data.builders", "segjax.losses.classification"} <= set(loaded)


def test_losses_and_metrics_load_nothing_but_jax_chex_and_jaxtyping():
    loaded = modules_loaded_by("import segjax.losses, segjax.metrics")
    assert "segjax.losses" in loaded
    assert [name for name in loaded if name.split(".")[0] != "segjax"] == []
    assert {name.split(".")[1] for name in loaded if "." in name} <= set(BASE_PARTS)


def normalized(distribution):
    return distribution.lower().replace("_", "-")


def test_extra_train_installs_the_libraries_that_its_check_imports():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {re.match(r"[\w-]+", one)[0] for extra in segjax._EXTRAS for one in declared[extra]}
    providers = importlib.metadata.packages_distributions()
    checked = [{normalized(one) for one in providers[name]} for extra in segjax._EXTRAS.values() for name in extra]
    assert {normalized(name) for name in declared} <= set().union(*checked)
    assert len(declared) == len(checked)


def test_every_file_is_looked_at():
    assert {"segjax/losses/classification.py", "segjax/metrics/ranking.py", "segjax/collectives.py"} <= set(FILES)
