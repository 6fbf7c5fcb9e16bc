"""Trackers: what MLflow, Weights & Biases and TensorBoard have afterwards, read by their own libraries."""

import contextlib
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import rich.console

from segjax.storage import path_of
from segjax.training import ConfigError, Terminated, trackers, train
from segjax.training.metrics_writer import MetricsWriter, read_log
from segjax.training.trackers import MLflow, Run, check_trackers

# Neither library sends anything about its use.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
SHEET = np.zeros((4, 6, 3), np.uint8)
FACTS = {"command": "python -m segjax.train", "commit": "abc123-dirty", "versions": {"jax": "1.2"}, "device": "1 x cpu"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Removes settings of the trackers that the user of this machine may have."""
    for name in [one for one in os.environ if one.startswith(("MLFLOW_", "WANDB_"))]:
        if not name.endswith(("TELEMETRY", "REPORTING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    import wandb

    wandb.teardown()  # ends its process, and forgets its settings


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Returns an MLflow database without runs, which takes seconds to create."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def workdir(tmp_path, database):
    """Returns the folder of a run, with an empty database."""
    folder = tmp_path / "a run"
    folder.mkdir()
    shutil.copy(database, folder)
    return folder


def writer_of(workdir, *names, start=0, steps=4, **params):
    console = rich.console.Console(file=io.StringIO(), width=1000)
    options = {"examples_per_step": 8, "trackers": names, "params": params, "facts": FACTS}
    return MetricsWriter(workdir, start=start, steps=steps, console=console, **options)


def train_from(start, writer, ended_by=None):
    """Logs steps as a training would, until it ends or `ended_by` is raised at step 4."""
    with contextlib.suppress(type(ended_by) if ended_by else ()), writer:
        for step in range(start + 1, 5):
            writer.scalars(step, {"train/loss": 1 / step})
            if step == 4 and ended_by:
                raise ended_by
            if step % 2 == 0:
                writer.scalars(step, {"eval/mean_iou": step / 8, "eval/iou/Sign (back)": 0.5})
                writer.image(step, "eval/image", SHEET)
                writer.publish()
    return writer.console.file.getvalue()


def mlflow_run(workdir):
    """Returns the client of a workdir's database, and its only run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("segjax").experiment_id])
    return client, run


def history(client, run, name):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def wandb_records(folder):
    """Returns the records of an offline run: blocks of 32 KiB as in LevelDB's log, which `wandb sync` reads."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process writes a moment after the run has ended
    (file,) = folder.glob("*.wandb")
    data, place, whole, records = file.read_bytes(), 7, b"", []
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # complete, or the last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


def wandb_lines(folder):
    """Returns the lines of an offline run: step, and the values logged there."""
    lines = []
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            shown = {key: float(value) for key, value in values.items() if key.startswith(("train/", "eval/m"))}
            lines.append((int(values["_step"]), shown))
    return lines


def wandb_folders(workdir):
    return sorted(folder for folder in (workdir / "wandb").iterdir() if folder.name.startswith("offline-run-"))


def test_mlflow_has_values_images_params_tags_and_outcome(workdir):
    said = train_from(0, writer_of(workdir, "mlflow", **{"objective.gamma": 2.0, "data.classes": None}))
    client, run = mlflow_run(workdir)
    assert f"MLflow: run {run.info.run_id}; mlflow ui --backend-store-uri 'sqlite:///{workdir}/mlflow.db' shows" in said
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a run")
    assert history(client, run, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert history(client, run, "eval/iou/Sign _back_") == [(2, 0.5), (4, 0.5)]
    assert run.data.params == {"objective.gamma": "2.0", "data.classes": "None"}
    assert {"workdir": str(workdir), "versions.jax": "1.2", "device": "1 x cpu"}.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    images = [one.path for one in client.list_artifacts(run.info.run_id, "images") if one.path.endswith(".png")]
    assert sorted(int(path.split("+")[2]) for path in images) == [2, 4]
    assert list((workdir / "mlartifacts").iterdir())


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "FAILED"), (Terminated("SIGTERM"), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_mlflow_has_the_outcome_of_a_run_that_did_not_finish(workdir, error, status):
    train_from(2, writer_of(workdir, "mlflow", start=2), ended_by=error)
    client, run = mlflow_run(workdir)
    assert run.info.status == status
    assert history(client, run, "train/loss") == [(3, 1 / 3), (4, 0.25)]


def test_mlflow_run_is_continued_without_a_second_point_and_with_the_missing_ones(workdir):
    train_from(0, writer_of(workdir, "mlflow", gamma=2), ended_by=ValueError())  # ends at step 4
    client, first = mlflow_run(workdir)
    with MetricsWriter(workdir, start=2, steps=4, examples_per_step=8, trackers=()) as writer:  # the tracker was away
        writer.scalars(3, {"train/loss": 1 / 3, "train/penalty": 7.0})
    train_from(3, writer_of(workdir, "mlflow", start=3, gamma=3, alpha=1))
    client, run = mlflow_run(workdir)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert history(client, run, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert history(client, run, "train/penalty") == [(3, 7.0)]
    assert history(client, run, "eval/mean_iou") == [(2, 0.25), (4, 0.5)]
    assert run.data.params == {"gamma": "2", "alpha": "1"}
    assert run.data.tags["gamma from step 4"] == "3"


def test_mlflow_uses_the_store_and_the_experiment_of_the_environment(tmp_path, workdir, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "roads")
    monkeypatch.chdir(tmp_path)  # into which MLflow writes the images of a database without a server
    said = train_from(0, writer_of(tmp_path, "mlflow"))
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("roads").experiment_id])
    assert f"MLflow: run {run.info.run_id}\n" in said
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_run_that_was_deleted_is_replaced(workdir):
    train_from(0, writer_of(workdir, "mlflow"))
    client, first = mlflow_run(workdir)
    client.delete_run(first.info.run_id)
    train_from(2, writer_of(workdir, "mlflow", start=2))
    client, run = mlflow_run(workdir)
    assert run.info.run_id != first.info.run_id
    assert [step for step, _ in history(client, run, "train/loss")] == [1, 2, 3, 4]


def test_mlflow_sends_a_thousand_values_at_once(workdir):
    sizes, tracker = [], MLflow(Run(path_of(workdir)), lambda line: None)
    send = tracker._client.log_batch
    tracker._client.log_batch = lambda run, metrics: sizes.append(len(metrics)) or send(run, metrics)
    tracker.scalars(1, {f"eval/iou/{i}": 0.5 for i in range(1500)})
    tracker.finish("finished")
    assert sizes == [1000, 500]


def test_wandb_has_values_images_config_and_outcome(workdir):
    said = train_from(0, writer_of(workdir, "wandb", **{"objective.gamma": 2.0}))
    (folder,) = wandb_folders(workdir)
    assert f"Weights & Biases: wandb sync '{folder}' uploads the run" in said
    assert wandb_lines(folder) == [
        (1, {"train/loss": 1.0}),
        (2, {"train/loss": 0.5, "eval/mean_iou": 0.25}),
        (3, {"train/loss": 1 / 3}),
        (4, {"train/loss": 0.25, "eval/mean_iou": 0.5}),
    ]
    records = wandb_records(folder)
    config = {item.key: item.value_json for record in records for item in record.config.update}
    assert config["objective.gamma"] == "2.0"
    assert '"versions.jax":"1.2"' in config["provenance"].replace(" ", "")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert len(list((folder / "files").rglob("image_*.png"))) == 2


@pytest.mark.parametrize(("error", "preempted"), [(ValueError("bad"), False), (Terminated("SIGTERM"), True)])
def test_wandb_has_the_outcome_of_a_run_that_did_not_finish(workdir, error, preempted):
    train_from(2, writer_of(workdir, "wandb", start=2), ended_by=error)
    records = wandb_records(*wandb_folders(workdir))
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    assert any(record.HasField("preempting") for record in records) == preempted


def test_wandb_run_that_is_continued_offline_has_every_step_once_in_its_new_folder(workdir):
    train_from(0, writer_of(workdir, "wandb"), ended_by=ValueError())
    (first,) = wandb_folders(workdir)
    time.sleep(1)  # folders are named after seconds
    train_from(2, writer_of(workdir, "wandb", start=2))
    (second,) = (folder for folder in wandb_folders(workdir) if folder != first)
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    assert [step for step, _ in wandb_lines(second)] == [1, 2, 3, 4]


def test_wandb_without_a_login_is_one_warning(workdir, monkeypatch, tmp_path):
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    monkeypatch.setenv("WANDB_MODE", "online")
    said = train_from(0, writer_of(workdir, "wandb"))
    assert said.count("warning: tracker wandb is given up (RuntimeError: not logged in; use wandb login") == 1
    assert len(read_log(workdir)) == 6


def test_server_that_is_gone_is_one_warning(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = train_from(0, writer_of(tmp_path, "mlflow"))
    assert said.count("warning: tracker mlflow is given up (") == 1
    assert "metrics.jsonl has all values" in said
    assert len(read_log(tmp_path)) == 6


def test_server_that_does_not_answer_ends_no_run_later_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_WAIT", {"finished": 0.2})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        said = train_from(0, writer_of(tmp_path, "mlflow"))
    assert said.count("TimeoutError: no answer at the end of the run") == 1


def test_disk_that_is_full_is_one_warning_per_tracker(workdir, monkeypatch):
    def write(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segjax.training.trackers.write_json", write)
    said = train_from(0, writer_of(workdir, "mlflow", "wandb"))
    assert said.count("warning: tracker mlflow is given up (OSError: [Errno 28] No space left on device)") == 1
    assert said.count("warning: tracker wandb is given up (OSError: [Errno 28] No space left on device)") == 1
    assert len(read_log(workdir)) == 6


def test_tracker_that_does_not_keep_up_is_given_up(workdir, monkeypatch):
    class Slow:
        def __init__(self, run, say):
            time.sleep(1)

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Slow)
    monkeypatch.setattr(trackers, "_PENDING", 3)
    said = train_from(0, writer_of(workdir, "mlflow"))
    assert said.count("TimeoutError: 3 calls are waiting for it") == 1


def test_several_trackers_or_none(workdir):
    train_from(0, writer_of(workdir, "tensorboard", "mlflow"))
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert mlflow_run(workdir)[1].info.status == "FINISHED"
    train_from(0, writer_of(workdir / "none"))
    assert not (workdir / "none" / "tensorboard").exists()
    assert len(read_log(workdir / "none")) == 6


@pytest.mark.slow
def test_mlflow_database_of_a_killed_start_is_created_anew(tmp_path):
    (tmp_path / "mlflow.db.partial").write_bytes(b"SQLite format 3")
    train_from(0, writer_of(tmp_path, "mlflow"))
    assert mlflow_run(tmp_path)[1].info.status == "FINISHED"
    assert not (tmp_path / "mlflow.db.partial").exists()


@pytest.mark.slow
def test_killed_process_leaves_no_process_of_wandb(tmp_path, process_environment):
    program = (
        "import sys, time; from segjax.training.metrics_writer import MetricsWriter as Writer\n"
        "Writer(sys.argv[1], start=0, steps=9, examples_per_step=1, trackers=('wandb',)); time.sleep(600)"
    )
    environment = process_environment | {"WANDB_MODE": "offline"}
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path], env=environment, stdout=subprocess.PIPE)
    try:
        assert b"wandb sync" in child.stdout.readline()
    finally:
        child.kill()
        child.communicate()

    def services():
        return [line for line in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines() if mark in line]

    mark, deadline = f"--pid {child.pid}", time.monotonic() + 60
    while services() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert services() == []


@pytest.mark.parametrize(
    ("names", "workdir", "message"),
    [
        (
            ("mlfow",),
            "runs/x",
            r"trackers = \('mlfow',\): expected a tuple of tensorboard, mlflow, wandb; \(\) for none",
        ),
        ("mlflow", "runs/x", "trackers = 'mlflow': expected a tuple"),
        (("wandb",), "gs://b/x", "the tracker wandb needs a workdir on this machine; got gs://b/x"),
    ],
)
def test_check_trackers_names_the_mistake(names, workdir, message):
    with pytest.raises(ConfigError, match=message):
        check_trackers(names, workdir)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_train_without_the_package_names_the_extra_before_it_starts(name, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda library, package=None: None)
    message = rf"the tracker {name} needs the extra \"{name}\": pip install 'segjax\[{name}\]'"
    with pytest.raises(ConfigError, match=message):
        train(tiny, tmp_path / "run", trackers=(name,))
    assert not (tmp_path / "run").exists()
