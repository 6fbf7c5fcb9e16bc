"""Files of a run that are damaged, of another form or encoding, or not files: each reader has one line for them."""

import contextlib
import shutil

import pytest
from etils import epath

from segjax import export
from segjax.trained_run import facts_of, load_run
from segjax.training.checkpoint import CheckpointError, Checkpoints
from segjax.training.config import read_config
from segjax.training.metrics_writer import drop_after, read_log

# Same content, in an encoding that json detects.
SAME = {"utf-16", "utf-32", "utf-8-sig"}


@pytest.fixture(scope="module")
def copy(trained, tmp_path_factory):
    """Returns a copy of the trained workdir, for each test to damage and to restore."""
    return epath.Path(shutil.copytree(trained.workdir, tmp_path_factory.mktemp("copy") / "run"))


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr("segjax.training.provenance._commit", lambda: "abc")


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained.workdir)


def test_read_config(copy, misread):
    returned = misread(copy / "config.json", lambda: read_config(copy / "config.json"))
    assert returned >= SAME
    assert not {"empty", "half", "cut", "latin-1", "{}", "null", "lists"} & returned


def test_read_log(copy, misread):
    returned = misread(copy / "metrics.jsonl", lambda: read_log(copy))
    assert not {"empty", "binary", "latin-1", "lists", "missing"} & returned


def test_drop_after(copy, misread):
    log = copy / "metrics.jsonl"
    returned = misread(log, lambda: drop_after(log, 10**9))
    assert {"half", "missing"} <= returned


@pytest.mark.parametrize("file", ["sha256.json", "metrics/metrics", "loader/metadata", "state/_METADATA"])
def test_checkpoints(copy, misread, file):
    def restore():
        with Checkpoints(copy, read_only=True) as checkpoints:
            return checkpoints.step_named("best"), checkpoints.all_steps()

    misread(copy / "checkpoints" / "4" / file, restore)


@pytest.mark.slow  # orbax reads the file 70 times
def test_checkpoints_metadata_that_no_checksum_covers(copy, misread, parts):
    another = parts[2]  # which is refused before its arrays are read

    def restore():
        with contextlib.suppress(CheckpointError), Checkpoints(copy, read_only=True) as checkpoints:
            checkpoints.restore(another, checkpoints.step_named("4"))

    misread(copy / "checkpoints" / "4" / "_CHECKPOINT_METADATA", restore)


def test_facts_of(copy, misread, run):
    scores, run = {"images": 1, "skipped": 0}, run._replace(workdir=copy)
    returned = misread(copy / "scores.json", lambda: facts_of(run, "val", scores))
    assert "missing" in returned  # of a run that has not ended
    assert "without provenance" not in returned


def test_model_card(copy, misread, run):
    run = run._replace(workdir=copy)
    misread(copy / "scores.json", lambda: export.model_card(run, uncertainty=False, size=None))
