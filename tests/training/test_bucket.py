"""A workdir in a bucket: the real libraries use a server on this machine, and a real process is killed."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console

from segjax.storage import path_of
from segjax.training import StorageError, train
from segjax.training.checkpoint import CheckpointError, Checkpoints
from segjax.training.config import leaves
from segjax.training.network import make_model
from segjax.training.train_step import init_state

pytestmark = pytest.mark.slow  # starts processes and a server

ROOT = Path(__file__).parents[2]
TRAIN = """
import json, sys
from segjax.training import train
from segjax.training.config import from_leaves
train(from_leaves(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def bucket():
    """Returns an empty bucket, which this process and its children use as if it were in the cloud."""
    spec = importlib.util.spec_from_file_location("fake_gcs", Path(__file__).parent / "fake_gcs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.FakeBucket() as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served


@pytest.fixture(scope="module")
def disk(config, tmp_path_factory):
    """Returns the folder of the undisturbed run."""
    folder = tmp_path_factory.mktemp("disk") / "run"
    train(config, folder, console=quiet())
    return folder


@pytest.fixture(scope="module")
def killed(bucket, config):
    """Returns the objects that the same run leaves when it is killed as it commits checkpoint 3."""
    reached, over = threading.Event(), threading.Event()

    def stop(name):
        if name == "run/checkpoints/3/commit_success.txt":
            reached.set()
            over.wait(60)
            return 503  # not received
        return None

    bucket.before_write = stop
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(leaves(config)), "gs://bucket/run"],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert reached.wait(240), process.communicate(timeout=5)[1].decode()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    over.set()
    bucket.before_write = lambda name: None
    return dict(bucket.objects)


@pytest.fixture(scope="module")
def resumed(killed, config):
    """Returns the output of the second start of the killed run."""
    console = quiet()
    train(config, "gs://bucket/run", console=console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def fresh(config):
    return init_state(config, make_model(config, 2))


def quiet():
    return rich.console.Console(file=io.StringIO(), width=160)


def saved(workdir, like, step):
    """Returns the state and the loader's position of a checkpoint."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(like, step)


def under(objects, folder):
    return {
        name.removeprefix(folder + "/"): content for name, (content, _) in objects.items() if name.startswith(folder)
    }


def copy(bucket, source, target):
    """Copies a workdir, which a test can change."""
    for name, content in under(bucket.objects, source).items():
        bucket.put(f"{target}/{name}", content)


def test_killed_run_leaves_lines_and_events_up_to_the_last_checkpoint(killed):
    lines = [json.loads(line) for line in under(killed, "run")["metrics.jsonl"].splitlines()]
    # Step 4 is logged or not: it runs while checkpoint 3 is written.
    assert [line["step"] for line in lines if "train/loss" in line][:3] == [1, 2, 3]
    assert [line["step"] for line in lines if "eval/mean_iou" in line][:1] == [2]
    events = b"".join(under(killed, "run/tensorboard").values())
    assert events.count(b"train/loss") >= 3
    assert b"\x89PNG" in events


def test_save_without_its_last_file_is_not_a_checkpoint_and_is_repeated(killed, resumed, bucket):
    left = under(killed, "run/checkpoints/3")
    assert "sha256.json" in left
    assert "commit_success.txt" not in left
    assert "resumed at step 2 of 4" in resumed
    assert "commit_success.txt" in under(bucket.objects, "run/checkpoints/3")
    assert not set(left) & set(under(bucket.objects, "run/checkpoints/3")) - {
        *("_CHECKPOINT_METADATA", "sha256.json", "loader/metadata", "metrics/metrics"),
        *("loader/commit_success.txt", "metrics/commit_success.txt", "state/commit_success.txt"),
        *("state/_METADATA", "state/_sharding", "state/manifest.ocdbt", "state/array_metadatas/process_0"),
        "state/ocdbt.process_0/manifest.ocdbt",
    }


def test_resumed_run_has_the_parameters_of_an_undisturbed_one_on_disk(resumed, disk, fresh):
    there, here = (saved(workdir, fresh, 4) for workdir in ("gs://bucket/run", disk))
    jax.tree.map(
        np.testing.assert_array_equal,
        (there[0].params, there[0].opt_state, there[0].batch_stats),
        (here[0].params, here[0].opt_state, here[0].batch_stats),
    )
    assert there[1] == here[1]


def test_resumed_run_has_the_lines_and_scores_of_an_undisturbed_one_on_disk(resumed, disk, bucket):
    objects = under(bucket.objects, "run")
    assert objects["metrics.jsonl"] == (disk / "metrics.jsonl").read_bytes()
    there, here = json.loads(objects["scores.json"]), json.loads((disk / "scores.json").read_bytes())
    del there["provenance"], here["provenance"]
    assert there == here
    assert objects["config.json"] == (disk / "config.json").read_bytes()


def test_evaluate_scores_the_best_checkpoint_of_the_bucket(resumed, bucket, python, process_environment, monkeypatch):
    for name, value in bucket.environment.items():
        monkeypatch.setitem(process_environment, name, value)
    done = python("-m", "segjax.evaluate", "--checkpoint=gs://bucket/run")
    assert done.returncode == 0, done.stderr
    assert "wrote gs://bucket/run/scores_val_2.json" in done.stdout
    objects = under(bucket.objects, "run")
    logged = [json.loads(line) for line in objects["metrics.jsonl"].splitlines()]
    (at_best,) = (line for line in logged if line["step"] == 2 and "eval/mean_iou" in line)
    assert json.loads(objects["scores_val_2.json"])["mean_iou"] == at_best["eval/mean_iou"]


def test_report_writes_its_page_to_the_bucket(resumed, bucket, python, process_environment, monkeypatch, browser):
    for name, value in bucket.environment.items():
        monkeypatch.setitem(process_environment, name, value)
    done = python("-m", "segjax.report", "gs://bucket/run", "--images=1")
    assert done.returncode == 0, done.stderr
    assert "wrote gs://bucket/run/report/report.html" in done.stdout
    written = under(bucket.objects, "run/report")
    report = json.loads(written["report.json"])
    assert report["facts"]["checkpoint"] == "gs://bucket/run/checkpoints/2"
    for width, seen in browser(written["report.html"].decode()).items():
        assert seen["images"], width
        assert (all(seen["images"]), seen["wide"]) == (True, False), width


def test_every_object_of_a_checkpoint_has_a_checksum(resumed, bucket):
    for step in (2, 3, 4):
        objects = under(bucket.objects, f"run/checkpoints/{step}")
        late = {name for name in objects if name.endswith(("commit_success.txt", "_CHECKPOINT_METADATA"))}
        assert set(json.loads(objects["sha256.json"])) == set(objects) - late - {"sha256.json"}


def test_events_are_written_once(resumed, bucket):
    written = [name for name in bucket.written if name.startswith("run/tensorboard/")]
    assert len(written) == len(set(written)) > 3


def test_damaged_checkpoint_is_set_aside_with_all_its_objects(resumed, bucket, fresh):
    copy(bucket, "run", "damaged")
    name = "damaged/checkpoints/4/state/manifest.ocdbt"
    content = bytearray(bucket.objects[name][0])
    content[-1] ^= 4
    bucket.put(name, bytes(content))
    before = under(bucket.objects, "damaged/checkpoints/4")
    with Checkpoints("gs://bucket/damaged") as checkpoints:
        assert checkpoints.damaged == [
            f"checkpoint 4 is damaged: gs://bucket/{name} is not what was saved (its SHA-256 differs)"
        ]
        assert checkpoints.all_steps() == [2, 3]
        checkpoints.save(fresh.replace(step=np.int32(4)), {"position": 17})
    assert under(bucket.objects, "damaged/checkpoints/4.damaged") == before
    assert saved("gs://bucket/damaged", fresh, 4)[1] == {"position": 17}


def test_unfinished_save_is_removed(resumed, bucket):
    copy(bucket, "run", "unfinished")
    for name in ("commit_success.txt", "sha256.json", "state/manifest.ocdbt"):
        del bucket.objects[f"unfinished/checkpoints/4/{name}"]
    with Checkpoints("gs://bucket/unfinished") as checkpoints:
        assert checkpoints.all_steps() == [2, 3]
        assert checkpoints.damaged == []
    assert not under(bucket.objects, "unfinished/checkpoints/4")


def test_failed_save_names_the_bucket_and_keeps_older_checkpoints(resumed, bucket, fresh, monkeypatch):
    copy(bucket, "run", "full")
    # tensorstore waits for this object; it would report others after orbax has given up.
    monkeypatch.setattr(bucket, "before_write", lambda name: 403 if name.endswith("5/state/manifest.ocdbt") else None)
    with (
        pytest.raises(
            CheckpointError, match=r"checkpoint 5 could not be written to gs://bucket/full/checkpoints: .* 4, "
        ),
        Checkpoints("gs://bucket/full") as checkpoints,
    ):
        checkpoints.save(fresh.replace(step=np.int32(5)), {})
    assert len(under(bucket.objects, "full/checkpoints/4")) > 8


def test_path_of_lists_objects_of_other_writers_at_once(bucket):
    bucket.put("shared/checkpoints/a", b"")
    folder = path_of("gs://bucket/shared/checkpoints")
    assert [path.name for path in folder.iterdir()] == ["a"]
    bucket.put("shared/checkpoints/b", b"")
    assert [path.name for path in folder.iterdir()] == ["a", "b"]


def test_path_of_missing_bucket_does_not_create_it(bucket):
    with pytest.raises(StorageError, match=r"^gs://bucked/run: there is no bucket bucked. Make it first, or correct"):
        path_of("gs://bucked/run")


def test_train_in_an_unreadable_bucket_is_one_line(bucket, config, monkeypatch):
    monkeypatch.setattr(bucket, "closed", True)
    expected = r"^gs://bucket/run: the bucket cannot be read or written: OSError Forbidden: .*$"
    with pytest.raises(StorageError, match=expected):
        train(config, "gs://bucket/run", console=quiet())
