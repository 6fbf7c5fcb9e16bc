"""Wheel and sdist, built from a copy of the checkout, and the wheel tried in empty environments in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from segjax import __version__

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
COMMANDS = ("train", "calibrate", "evaluate", "predict", "report", "compare", "demo", "export", "configs")
NEEDS = "segjax{} needs the extra \"train\": pip install 'segjax[train]'"
BUILD = "import setuptools.build_meta as b, sys; folder = sys.argv[1]; b.build_sdist(folder); b.build_wheel(folder)"
TINY = ("data.scene_size=(64,96)", "data.size=(32,48)", "data.train_examples=8", "data.val_examples=4")
TINY += ("model.width=4", "model.depth=1", "training.steps=4", "training.evaluate_every=4", "data.workers=1")
TINY += ("model.padding=zeros", "augment.scale=(1,1)", "augment.brightness=0", "augment.contrast=0")

pytestmark = pytest.mark.slow


def run(*command, cwd, environment=None):
    """Runs a program to its end, without the checkout on its path; returns (status, output, errors)."""
    environment = {key: value for key, value in (environment or os.environ).items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=400
    )
    return done.returncode, done.stdout, done.stderr


def make_environment(folder, *packages, path=()):
    """Returns the `bin` folder of a new virtual environment with these packages, and with `path` behind its own."""
    status, _, errors = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    assert status == 0, errors
    install = ("-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--disable-pip-version-check")
    status, _, errors = run(sys.executable, *install, "--no-deps", *packages, cwd=ROOT)
    assert status == 0, errors
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    Path(site, "libraries.pth").write_text("\n".join(map(str, path)))
    return folder / "bin"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Returns the sdist, its wheel, and the wheel built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "source"
    for name in ("segjax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python = make_environment(folder / "build", "setuptools>=77", "pip") / "python"
    status, _, errors = run(python, "-c", BUILD, folder, cwd=source)
    assert status == 0, errors
    ((sdist,), (wheel,)) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "again")
    status, _, errors = run(python, *command, sdist, cwd=folder)
    assert status == 0, errors
    return sdist, next((folder / "again").glob("*.whl")), wheel


def test_wheel_and_sdist_contain_configs_and_license(packages):
    sdist, wheel_of_sdist, wheel = packages
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"segjax/configs/{name}" for name in CONFIGS} | {"LICENSE", "segjax/py.typed"} <= names
    (in_wheel, in_other) = (sorted(zipfile.ZipFile(path).namelist()) for path in (wheel, wheel_of_sdist))
    assert in_wheel == in_other
    assert sorted(name.removeprefix("segjax/configs/") for name in in_wheel if "/configs/" in name) == CONFIGS
    assert {name.split("/")[0] for name in in_wheel} == {"segjax", f"segjax-{__version__}.dist-info"}


def test_base_install_names_the_extra(packages, linked_site, tmp_path, process_environment):
    site = linked_site("jax", "chex", "jaxtyping")
    programs, folder = make_environment(tmp_path / "base", packages[2], path=[site]), tmp_path / "empty"
    folder.mkdir()

    def segjax(*command):
        return run(programs / command[0], *command[1:], cwd=folder, environment=process_environment)

    assert segjax("segjax", "--version") == (0, f"segjax {__version__}\n", "")
    assert segjax("segjax", "--help")[::2] == (0, "")
    for command in COMMANDS:
        assert segjax("segjax", command, "--help") == (1, "", f"error: {NEEDS.format(f' {command}')}\n")
    assert segjax("python", "-m", "segjax.train") == (1, "", f"error: {NEEDS.format(' train')}\n")
    status, _, errors = segjax("python", "-c", "import segjax; segjax.losses.mean, segjax.metrics; segjax.training")
    assert (status, errors.splitlines()[-1]) == (1, f"ImportError: {NEEDS.format('.training')}")
    assert list(folder.iterdir()) == []


def test_commands_in_an_empty_folder(packages, tmp_path, process_environment):
    libraries = [sysconfig.get_path("purelib")]
    programs, folder = make_environment(tmp_path / "train", packages[2], path=libraries), tmp_path / "empty"
    folder.mkdir()
    assert cv2.imwrite(str(folder / "street.jpg"), np.full((50, 70, 3), 120, np.uint8))

    def segjax(line, *more):
        done = run(programs / "segjax", *line.split(), *more, cwd=folder, environment=process_environment)
        assert done[0] == 0, done
        return done[1]

    tiny = [f"--config.{change}" for change in (*TINY, f"data.data_dir={folder / 'prepared'}")]
    assert "average_precision" in segjax("train --config=road_debris_uncertainty --workdir=runs/debris", *tiny)
    assert "wrote runs/debris/report/report.html" in segjax("report runs/debris --images=1")
    assert "predicted 1 image(s)" in segjax("predict --checkpoint=runs/debris --output=out --uncertainty street.jpg")
    assert {path.name for path in (folder / "out").iterdir()} >= {"street_mask.png", "street_uncertainty.png"}
    assert all(f"\n{Path(name).stem}\n" in f"\n{segjax('configs list')}" for name in CONFIGS[:2])
