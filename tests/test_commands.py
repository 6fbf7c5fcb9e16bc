"""Command lines as a user types them: they train, score, predict, export and report a tiny run.

Training, the first prediction and the export run as processes of their own, the others in this process.
"""

import errno
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from experiments import own_folders
from segjax import predict
from segjax.inference import WriteSummary, standalone_predict

CASES = Path(__file__).parent / "data" / "cases"
TINY = (
    "data.scene_size=(64, 96)",
    "data.train_examples=8",
    "data.val_examples=4",
    "data.size=(32, 48)",
    "model.width=4",
    "model.depth=2",
    "training.steps=2",
    "training.global_batch=4",
    "training.log_every=1",
)
PLAIN = ("augment.scale=(1.0, 1.0)", "augment.brightness=0.0", "augment.contrast=0.0")  # compiles faster


def train(python, workdir, *overrides):
    return python(
        "-m",
        "segjax.train",
        "--config=configs/rare_class.py",
        f"--workdir={workdir}",
        *(f"--config.{o}" for o in (*TINY, *overrides)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def run(folder, python):
    """Returns a trained workdir, and the output of training."""
    changes = (f"data.data_dir={folder / 'prepared'}", "data.workers=1", "model.head_stddev=None")
    done = train(python, folder / "run", *changes)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_train_prints_summary_progress_and_table(run):
    _, printed = run
    for part in (
        "8 training and 4 evaluation images",
        "2 steps",
        "step 2: loss ",
        "debris",
        "mean_iou",
        "average_precision",
    ):
        assert part in printed


def test_train_takes_none_for_an_optional_number(run):
    assert json.loads((run[0] / "config.json").read_text())["model.head_stddev"] is None


def test_evaluate_gives_the_scores_at_the_end_of_training(run, run_command):
    workdir, _ = run
    status, printed, error = run_command("evaluate", f"--checkpoint={workdir}/checkpoints/latest")
    assert (status, error) == (0, "")
    assert "debris" in printed
    scores = json.loads((workdir / "scores_val_2.json").read_text())
    assert scores["confusion"] == json.loads((workdir / "scores.json").read_text())["confusion"]
    assert f" --checkpoint={workdir}/checkpoints/latest" in scores["provenance"]["command"]


@pytest.mark.slow
def test_evaluate_on_a_labelled_folder(run, run_command, tmp_path):
    fields = ("name=folder", f"manual_dir={CASES / 'train_valid'}", "mask_values=(0, 255)")
    arguments = [f"--config.data.{field}" for field in fields]
    file = tmp_path / "scores.json"
    status, _, error = run_command("evaluate", f"--checkpoint={run[0]}", "--split=all", f"--output={file}", *arguments)
    assert (status, error) == (0, ""), error
    assert json.loads(file.read_text())["images"] == 12


def test_evaluate_predictions(run_command, tmp_path):
    root, file = CASES / "gif_masks", tmp_path / "scores.json"
    fields = (f"--predictions={root / 'masks'}", f"--config.data.manual_dir={root}", f"--output={file}")
    status, printed, error = run_command("evaluate", *fields)
    assert (status, error) == (0, "")
    assert (json.loads(file.read_text())["images"], "mean_iou 1.000" in printed) == (4, True)


def test_evaluate_needs_a_checkpoint_or_predictions(run_command):
    status, _, error = run_command("evaluate")
    assert status == 1
    assert "--checkpoint (or --predictions) must be given" in error


def test_evaluate_on_a_folder_of_other_classes(run, run_command):
    fields = ("name=folder", f"manual_dir={CASES / 'train_valid'}", "class_names=('a', 'b')")
    status, _, error = run_command("evaluate", f"--checkpoint={run[0]}", *(f"--config.data.{one}" for one in fields))
    assert status == 1
    assert "config.data must give the classes of the run, background, debris; got a, b" in error


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.data.manualdir=x", r"config.data.manualdir .*manual_dir"),
        ("--config.model.width=3", r"--config.model.width: .*only --config.data.FIELD=VALUE"),
        ("--config=rare_class", r"--config=NAME: .*only --config.data.FIELD=VALUE"),
    ],
)
def test_evaluate_refuses_other_fields_than_those_of_data(run_command, argument, message):
    status, _, error = run_command("evaluate", "--checkpoint=nowhere", argument)
    assert status == 1
    assert re.search(message, error), error


def test_evaluate_refuses_a_corruption_without_a_severity(run, python):
    done = python("-m", "segjax.evaluate", f"--checkpoint={run[0]}", "--corruption=fog")
    assert done.returncode == 1
    assert "--corruption=fog needs a severity; add --severity=1" in done.stderr


def test_predict_writes_a_mask_and_an_overlay_of_the_images_own_size(run, tmp_path, python):
    image = tmp_path / "strada bagnata è.png"
    assert cv2.imwrite(str(image), np.full((50, 70, 3), 120, np.uint8))
    done = python("-m", "segjax.predict", f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", image)
    assert done.returncode == 0, done.stderr
    mask = cv2.imread(str(tmp_path / "out" / "strada bagnata è_mask.png"), cv2.IMREAD_UNCHANGED)
    overlay = cv2.imread(str(tmp_path / "out" / "strada bagnata è_overlay.png"))
    assert mask.shape == (50, 70)
    assert set(np.unique(mask)) <= {0, 1}
    assert overlay.shape == (50, 70, 3)


@pytest.mark.slow
def test_predict_of_images_of_every_format_with_the_values_of_the_data_set(run, tmp_path, run_command):
    files = sorted((CASES / "predict_folder").iterdir())
    arguments = (f"--checkpoint={run[0]}", f"--output={tmp_path}", "--values=dataset", "--class=debris")
    # The smallest threshold: every pixel is debris, whose id is 4.
    status, printed, error = run_command("predict", *arguments, "--threshold=1e-30", CASES / "predict_folder")
    assert (status, error) == (0, "")
    assert f"predicted {len(files)} image(s)" in printed
    for file in files:
        mask = np.asarray(Image.open(tmp_path / f"{file.stem}_mask.png"))
        assert mask.shape == (48, 64)  # of phone.jpg, too, which is stored as 64 × 48
        assert set(np.unique(mask)) == {4}


@pytest.mark.slow
def test_predict_names_a_file_that_is_not_an_image(run, tmp_path, run_command):
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    status, _, error = run_command("predict", f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", text)
    assert status == 1
    assert error.startswith(f"error: {text}: cannot be decoded")


@pytest.fixture
def street(tmp_path):
    """Returns a folder with an image in a subfolder, and a file that is not an image."""
    (tmp_path / "street" / "è").mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    assert cv2.imwrite(str(tmp_path / "street" / "è" / "one.png"), image)
    (tmp_path / "street" / "notes.jpg").write_text("not an image")
    return tmp_path / "street"


@pytest.mark.slow
def test_predict_of_a_folder_writes_all_files_and_resumes(run, street, tmp_path, run_command):
    arguments = ["predict", f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", "--on_error=skip"]
    arguments += ["--probabilities", "--palette", "--contact_sheet", "--class=debris", "--threshold=0.3"]
    arguments += ["--uncertainty=mutual_information", "--augment=flip", "--samples=2", "--rate=0.1", "--tile=32,48"]
    status, printed, error = run_command(*arguments, street)
    assert (status, error) == (0, "")
    assert "predicted 1 image(s)\nskipped 1 bad image(s):\n" in printed
    assert f"{street / 'notes.jpg'}: cannot be decoded" in printed
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("[!.]*.*"))
    kinds = ("mask.png", "overlay.png", "probabilities.npz", "uncertainty.png")
    assert written == ["contact_sheet.png", "predicted_by.json", *(f"è/one_{kind}" for kind in kinds)]
    with np.load(tmp_path / "out" / "è" / "one_probabilities.npz") as arrays:
        debris = arrays["probabilities"][..., 1] >= 0.3
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "è" / "one_mask.png")), debris)
    assert "black to pale yellow: mutual information, 0 to 0.173 nats" in printed
    origin = json.loads((tmp_path / "out" / "predicted_by.json").read_text())
    assert origin["tile"] == [32, 48]
    assert (origin["augment"], origin["samples"], origin["rate"], origin["overlap"]) == ("flip", 2, 0.1, 8)
    _, printed, _ = run_command(*arguments, street / "**" / "*.png")
    assert "predicted 0 image(s); kept 1 that had been predicted before" in printed


@pytest.mark.slow
def test_predict_prints_the_threshold_of_a_precision_and_its_recall(run, street, tmp_path, run_command):
    # Debris is half a percent: even calling every pixel debris is more precise than this.
    arguments = (f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", "--at_precision=0.0001", street / "è")
    status, printed, error = run_command("predict", *arguments)
    assert (status, error) == (0, "")
    assert "debris from an uncalibrated probability of " in printed
    assert "its recall 1.000" in printed


@pytest.mark.slow
def test_predict_names_the_highest_precision_if_none_reaches_at_precision(run, street, tmp_path, run_command):
    arguments = (f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", "--at_precision=1", street / "è")
    status, _, error = run_command("predict", *arguments)
    assert (status, error.count("\n")) == (1, 0)
    assert f"no threshold of {run[0]} reaches it for debris on val; the highest precision is 0." in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class=dust"], "--class: expected one of background, debris; got 'dust'"),
        (["--uncertainty=variance"], "--uncertainty=variance needs several samples; add --samples=30 or --passes=30"),
        (["--samples=2", "--uncertainty"], "was trained without dropout of the head (config.model.dropout = 'none')"),
        (["--threshold=0.5", "--guarantee"], "--threshold and --guarantee exclude each other; remove all but one"),
        (["--sets", "--augment=flip"], "--sets is measured with the default options; remove --augment; segjax"),
    ],
)
def test_predict_refuses_invalid_flags(run, street, tmp_path, run_command, flags, message):
    status, _, error = run_command("predict", f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", *flags, street)
    assert status == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_threshold": 128}, "--palette would replace the grey values that config.data.mask_threshold compares"),
        ({"mask_values": [0, 300]}, "--palette has 256 entries, and --values=dataset needs larger ids"),
    ],
    ids=["threshold", "large ids"],
)
def test_predict_refuses_a_palette_for_values_of_the_data_set(run, street, tmp_path, run_command, fields, message):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    fields = {"name": "folder", "class_names": ["background", "debris"]} | fields
    values = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(values | {f"data.{name}": value for name, value in fields.items()}))
    arguments = (f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}", "--values=dataset", "--palette", street)
    status, _, error = run_command("predict", *arguments)
    assert status == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_calibrate_and_predict_with_a_guarantee(run, street, tmp_path, python):
    (run[0] / "calibration.json").write_text("{")  # damaged
    options = ("--split=val", "--risk=fnr", "--level=0.5", "--class=debris", "--scaling=none", "--overwrite")
    done = python("-m", "segjax.calibrate", f"--checkpoint={run[0]}", *options)
    assert done.returncode == 0, done.stderr
    assert f"wrote {run[0]}/calibration.json" in done.stdout
    (guarantee,) = json.loads((run[0] / "calibration.json").read_text())["guarantees"]
    arguments = (f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", "--guarantee", street / "è")
    done = python("-m", "segjax.predict", *arguments)
    assert done.returncode == 0, done.stderr
    assert "guarantee: at most 50.00% of the debris pixels" in done.stdout
    origin = json.loads((tmp_path / "out" / "predicted_by.json").read_text())
    assert (origin["threshold"], origin["guarantee"]) == (guarantee["threshold"], guarantee)
    done = python(
        "-m", "segjax.predict", *arguments[:1], f"--output={tmp_path / 'tiles'}", "--tile=32,48", *arguments[2:]
    )
    assert done.returncode == 1
    assert "--guarantee is measured with the default options; remove --tile, or use --threshold" in done.stderr
    (run[0] / "calibration.json").unlink()  # other tests predict without it


def test_exported_script_predicts_an_image(run, street, tmp_path, python):
    folder = tmp_path / "exported"
    done = python("-m", "segjax.export", f"--checkpoint={run[0]}", f"--output={folder}")
    assert done.returncode == 0, done.stderr
    assert "unet of step 2: images of any size; cpu, cuda, tpu" in done.stdout
    ran = python(folder / "run.py", street / "è" / "one.png")
    assert ran.returncode == 0, ran.stderr
    mask = np.asarray(Image.open(street / "è" / "one_mask.png"))
    assert mask.shape == (50, 70)
    assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ((27, 3, 0.9), "3 of 27 detections reach --min_score=0.5"),
        ((27, 0, 0.0594), "0 of 27 detections reach --min_score=0.5; the highest score is 0.059: lower --min_score"),
        ((0, 0, 0.0), "no object was detected"),
    ],
)
def test_score_line(counts, line):
    assert predict.score_line(WriteSummary(1, 0, (), *counts), 0.5) == line


@pytest.mark.parametrize("command", ["predict", "export"])
def test_min_score_is_for_detectors(run, street, tmp_path, run_command, command):
    arguments = [f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", "--min_score=0.3"]
    status, _, error = run_command(command, *arguments, *([street] if command == "predict" else []))
    assert status == 1
    assert f"--min_score is for detectors; {run[0]} is a segmentation network: remove it" in error


def test_report_contains_the_scores_at_the_end_of_training(run, run_command):
    workdir, _ = run
    status, printed, error = run_command("report", f"{workdir}/checkpoints/latest", "--images=1")
    assert (status, error) == (0, "")
    assert f"wrote {workdir}/report/report.html" in printed
    report = workdir / "report"
    found = json.loads((report / "report.json").read_text())
    scores = json.loads((workdir / "scores.json").read_text())
    assert found["data"]["scores"]["confusion"] == scores["confusion"]
    assert found["data"]["scores"]["average_precision"] == pytest.approx(scores["average_precision"], abs=1e-6)
    facts = found["facts"]
    assert facts["training command"] == scores["provenance"]["command"]
    assert facts["this page's command"].endswith(f" {workdir}/checkpoints/latest --images=1")
    assert facts["checkpoint"] == f"{workdir}/checkpoints/2"
    addresses = re.findall(r"https?://[^'\"]*", (report / "report.html").read_text())
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # the name of SVG, which is not loaded


@pytest.mark.slow
def test_report_shows_all_its_pictures_in_a_browser(run, tmp_path, run_command, browser):
    run_command("report", f"{run[0]}/checkpoints/latest", "--images=1", f"--output={tmp_path}")
    for width, seen in browser((tmp_path / "report.html").read_text()).items():
        assert (seen["images"], seen["charts"], seen["wide"]) == ([True] * 10, 7, False), width


def test_compare_has_the_scores_of_every_run_and_the_fields_that_differ(run, run_command, tmp_path):
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"objective.gamma": 0.5}))
    arguments = [workdir, tmp_path / "other", "--images=1", f"--output={tmp_path}"]
    status, printed, error = run_command("compare", *arguments)
    assert (status, error) == (0, "")
    assert "has the highest mean IoU" in printed
    data = json.loads((tmp_path / "comparison.json").read_text())["data"]
    scores = json.loads((workdir / "scores.json").read_text())
    for group in data["groups"]:
        assert group["runs"][0]["scores"]["confusion"] == scores["confusion"]
        assert len(group["mean_iou_per_image"]) == 4
    page = (tmp_path / "comparison.md").read_text()
    assert "| config.objective.gamma | 2.0 | 0.5 |" in page
    assert page.count("](comparison_image_") == 1
    assert "](comparison_train_loss.png)" in page


@pytest.mark.slow
def test_compare_shows_all_its_pictures_in_a_browser(run, tmp_path, run_command, browser):
    shutil.copytree(run[0], tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"seed": 9}))
    run_command("compare", run[0], tmp_path / "other", "--images=2", f"--output={tmp_path}")
    for width, seen in browser((tmp_path / "comparison.html").read_text()).items():
        assert (all(seen["images"]), seen["wide"]) == (True, False), width


@pytest.mark.slow
def test_demo_serves_until_it_is_interrupted(run, street, process_environment, page):
    image = street / "è" / "one.png"
    _, documented = page("howto/demo.md")[0]
    arguments = shlex.split(documented.replace("runs/debris", str(run[0])))[1:]
    command = [sys.executable, "-m", "segjax", *arguments, "--port=0", str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=process_environment) as process:
        try:
            line = process.stdout.readline()
            address = re.fullmatch(rf"{run[0]} on (http://127\.0\.0\.1:\d+) until you press Ctrl-C\n", line)[1]
            with urllib.request.urlopen(f"{address}/images/0", timeout=60) as found:
                assert found.read() == image.read_bytes()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["nosuchhost.invalid", "192.0.2.1"])
def test_demo_names_a_host_that_is_not_of_this_machine(run, run_command, host):
    status, printed, error = run_command("demo", f"--checkpoint={run[0]}", f"--host={host}", "--port=0")
    assert (status, printed) == (1, "")
    assert re.match(rf"error: --host={re.escape(host)} cannot be served on \(.*\); use 127\.0\.0\.1", error)


@pytest.mark.slow
def test_demo_names_a_port_that_needs_a_privilege(run, run_command, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("segjax.reporting.demo_page.make_server", refuse)
    status, _, error = run_command("demo", f"--checkpoint={run[0]}", "--port=80")
    assert status == 1
    assert error.startswith("error: --port=80 cannot be served on (Permission denied): ports below 1024")


@pytest.mark.slow
def test_demo_names_an_empty_host(run, run_command):
    status, _, error = run_command("demo", f"--checkpoint={run[0]}", "--host=")
    assert status == 1
    assert error.startswith("error: --host= is empty; use 127.0.0.1, for this machine only, or 0.0.0.0")


@pytest.mark.slow
def test_demo_refuses_a_port_that_is_taken(run, run_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, printed, error = run_command("demo", f"--checkpoint={run[0]}", f"--port={taken.getsockname()[1]}")
    assert (status, printed) == (1, "")
    assert error.startswith("error: [Errno 98] Address already in use. Choose another port")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["scores.json", "metrics.jsonl"])
@pytest.mark.parametrize("command", ["report", "compare"])
def test_damaged_file_ends_a_command_before_it_scores(run, run_command, tmp_path, monkeypatch, command, file):
    def score(*arguments, **options):
        raise AssertionError("scored")

    monkeypatch.setattr("segjax.report.inspect_run", score)
    monkeypatch.setattr("segjax.reporting.comparison.compare", score)
    workdir = shutil.copytree(run[0], tmp_path / "damaged")
    (workdir / file).write_text('{"step":\n')
    runs = [workdir] if command == "report" else [run[0], workdir]
    status, _, error = run_command(command, *runs, f"--output={tmp_path / 'out'}")
    assert (status, error.count("\n")) == (1, 0)
    assert error.startswith(f"error: {workdir / file}")
    assert "the training command" in error
    assert not (tmp_path / "out").exists()


def test_report_of_another_folder_prints_one_line_and_writes_nothing(tmp_path, run_command):
    status, _, error = run_command("report", tmp_path, f"--output={tmp_path / 'out'}")
    assert (status, error.count("\n")) == (1, 0)
    assert error.startswith(f"error: {tmp_path} is not a run: expected {tmp_path}/config.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_predict_refuses_two_images_of_one_name(run, tmp_path, run_command):
    images = tmp_path / "a" / "x.png", tmp_path / "b" / "x.jpg"
    for image in images:
        image.parent.mkdir()
        assert cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    status, _, error = run_command("predict", f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}", *images)
    assert status == 1
    assert f"{images[0]} and {images[1]} would both be written as x_mask.png" in error
    assert not (tmp_path / "out").exists()


def train_folder(run_command, root, workdir, *overrides):
    tiny = [o for o in TINY if not o.startswith(("data.scene_size", "data.train_examples", "data.val_examples"))]
    return run_command(
        "train",
        "--config=folder_unet",
        f"--config.data.manual_dir={root}",
        f"--workdir={workdir}",
        *(f"--config.{o}" for o in (*tiny, "data.workers=0", *overrides)),
    )


@pytest.fixture
def own_images(tmp_path):
    """Returns a folder of six `train` and two `val` images; one mask of each split has an unknown label."""
    root = tmp_path / "strade d'inverno è [1]"
    for split, count in (("train", 6), ("val", 2)):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for i in range(count):
            image, mask = np.full((40, 50, 3), 30 * i, np.uint8), np.zeros((40, 50), np.uint8)
            mask[10:20] = 77 if i == 1 else 255
            assert cv2.imwrite(str(root / split / "images" / f"via {i}.png"), image)
            assert cv2.imwrite(str(root / split / "masks" / f"via {i}.png"), mask)
    return root


@pytest.mark.slow
def test_bad_data_prints_one_line_before_anything_is_written(own_images, tmp_path, run_command):
    status, _, line = train_folder(run_command, own_images, tmp_path / "run")
    assert (status, line.count("\n")) == (1, 0)
    mask = own_images / "train" / "masks" / "via 1.png"
    expected = f"error: {mask}: label id 77 is outside the 2 classes; expected the ids 0, 255"
    assert line.startswith(expected)
    assert "config.data.on_error=skip" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_on_error_skip_trains_on_the_rest_and_counts_skipped_pairs(own_images, tmp_path, run_command):
    status, printed, error = train_folder(run_command, own_images, tmp_path / "run", "data.on_error=skip")
    assert (status, error) == (0, "")
    for split in ("train", "val"):
        assert f"{split}: skipped 1 bad pair(s) of image and mask (config.data.on_error = 'skip'):" in printed
        assert f"  {own_images / split / 'masks' / 'via 1.png'}: label id 77 is outside the 2 classes" in printed
    assert "5 training and 1 evaluation images" in printed
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (scores["images"], scores["skipped"], scores["skipped_in_training"]) == (1, 1, 1)


@pytest.mark.slow
def test_train_without_absl_flags(folder, python):
    """Trains as in a notebook: without a file behind `__main__` and without absl, but with worker processes."""
    program = (
        "from segjax.configs.rare_class import get_config\n"
        "from segjax.training import train\n"
        "config = get_config()\n"
        f"config.data.data_dir = {str(folder / 'prepared')!r}\n"
        "config.data.scene_size, config.data.size = (64, 96), (32, 48)\n"
        "config.data.train_examples, config.data.val_examples, config.data.workers = 8, 4, 1\n"
        "config.model.width, config.model.depth = 4, 2\n"
        "config.training.steps, config.training.global_batch = 1, 4\n"
        f"print('images', train(config, {str(folder / 'notebook')!r})['images'])\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert "images 4" in done.stdout


@pytest.mark.slow
def test_error_of_the_system_prints_one_line_and_with_verbose_the_traceback(python):
    full = "def main(argv): raise OSError(28, 'No space left on device', 'runs/a/metrics.jsonl')"
    program = f"from segjax import cli\n{full}\ncli.run(main, [])"
    plain, verbose = (python("-c", program, *options) for options in ((), ("--verbose",)))
    assert (plain.returncode, verbose.returncode) == (1, 1)
    assert re.fullmatch("error: .*No space left on device: 'runs/a/metrics.jsonl'.*", plain.stderr.strip())
    assert verbose.stderr.startswith(plain.stderr)
    assert "Traceback" in verbose.stderr


NEVER_RETURNS = """
import ctypes, os, signal, threading
from segjax import cli
from segjax.training import hosts

def main(argv):
    # Locked twice in C, where Python handles no signal, as during a compilation.
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    with hosts.Preemption():
        for delay in (0.1, 0.3):
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        lock(mutex)

cli.run(main, [])
"""


@pytest.mark.slow
def test_second_ctrl_c_ends_a_command_that_handles_no_signal(python):
    done = python("-c", NEVER_RETURNS)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "")
    assert re.fullmatch("stopping after this step; press Ctrl-C again.*\ninterrupted, .*\n", done.stderr)


@pytest.mark.slow
def test_ctrl_c_prints_one_line(python):
    main = "def main(argv): os.kill(os.getpid(), signal.SIGINT)"
    done = python("-c", f"import os, signal\nfrom segjax import cli\n{main}\ncli.run(main, [])")
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted\n")


def scenes(count):
    """Returns grey images of a bright rectangle on noise, and masks of 0 and 255: one program for all layouts."""
    random = np.random.default_rng(0)
    images, masks = random.integers(0, 90, (count, 32, 48), np.uint8), np.zeros((count, 32, 48), np.uint8)
    images[:, 8:20, 10:30] += 120
    masks[:, 8:20, 10:30] = 255
    return images, masks


def isbi(root, images, masks):
    for name, stack in (("train-volume", images), ("train-labels", masks), ("test-volume", images)):
        tifffile.imwrite(root / f"{name}.tif", stack, photometric="minisblack")


def drive(root, images, masks):
    own_folders.write_drive(root, images, masks, training=4)


def kvasir(root, images, masks):
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        save(root / "images" / f"cju{i}.jpg", image)
        save(root / "masks" / f"cju{i}.jpg", mask)


def chase(root, images, masks):
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        name = f"Image_{1 + i // 2:02d}{'LR'[i % 2]}"
        save(root / f"{name}.jpg", image)
        save(root / f"{name}_1stHO.png", mask > 0)  # 1 bit, as in the set
        save(root / f"{name}_2ndHO.png", mask > 0)


def cityscapes(root, images, masks):
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        split, city = ("train", "ulm") if i < 4 else ("val", "bonn")
        name = f"{city}_{i:06d}_000019"
        save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
        for kind, pixels in (("labelIds", mask // 10 + 1), ("color", image), ("instanceIds", mask)):
            save(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", pixels)


def voc(root, images, masks):
    root = root / "VOCdevkit" / "VOC2012"
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        save(root / "JPEGImages" / f"2007_{i:06d}.jpg", image)
        if i < 5:  # most images have no mask
            for kind in ("SegmentationClass", "SegmentationObject"):
                save(root / kind / f"2007_{i:06d}.png", mask // 255, palette=[0, 0, 0, 128, 0, 0])
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000000\n2007_000001\n2007_000002\n2007_000003\n")
    (lists / "val.txt").write_text("2007_000004\n")


def save(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    image.save(path)


OUTLINE = own_folders.Object("object", np.array([(10, 8), (30, 8), (30, 20), (10, 20)]))


def labelme(root, images, masks):
    own_folders.write_labelme(root, images, [[OUTLINE]] * len(masks))


def coco(root, images, masks):
    own_folders.write_coco(root, images, [[OUTLINE]] * len(masks))


@pytest.mark.slow
@pytest.mark.parametrize("write", [isbi, drive, kvasir, chase, cityscapes, voc, labelme, coco])
def test_train_on_a_set_in_its_own_layout(run_command, tmp_path, monkeypatch, write):
    """Two flags are enough, --data and --workdir; the fields make a short training of one program for all layouts."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "set"
    data.mkdir()
    write(data, *scenes(6))
    if write in (labelme, coco):
        *_, error = run_command("train", f"--data={data}", "--workdir=run")
        _, *convert = shlex.split(error.rpartition(": ")[2])  # the command that the error names
        assert run_command(*convert)[0] == 0
        data = tmp_path / "set_masks"
    fields = ("data.mean=(0.3,)", "data.std=(0.2,)", "data.size=(32, 48)", "data.workers=0", "model.padding=zeros")
    fields += ("model.width=4", "model.depth=1", "training.global_batch=4", "training.steps=10", *PLAIN)
    status, printed, error = run_command(
        "train", f"--data={data}", "--workdir=run", *(f"--config.{field}" for field in fields)
    )
    assert (status, error) == (0, "")
    assert "warning" not in printed


@pytest.mark.slow
def test_commands_with_16_bit_images_of_five_bands(run_command, python, tmp_path):
    """Trained, predicted, reported and exported; the export takes the values of the files."""
    root, rng = tmp_path / "set", np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(6):
        mask, bands = np.zeros((32, 48), np.uint8), rng.normal(1500, 100, (32, 48, 5))
        mask[8:24, 4 * i : 4 * i + 16] = 255
        bands[mask > 0, 3] += 1500
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(root / "images" / f"{i}.tif", bands.astype(np.uint16), compression="lzw", **options)
        assert cv2.imwrite(str(root / "masks" / f"{i}.png"), mask)
    fields = [one for one in TINY if not one.startswith(("data.scene", "data.train_ex", "data.val_ex"))]
    fields += [f"data.manual_dir={root}", "data.range=percentile", "data.workers=0", "model.depth=1"]
    fields += ["model.padding=zeros", *PLAIN]
    config, workdir = [f"--config.{field}" for field in fields], tmp_path / "run"
    status, printed, error = run_command("train", "--config=folder_unet", f"--workdir={workdir}", *config)
    assert (status, error) == (0, "")
    values = json.loads((workdir / "config.json").read_text())
    low, high = values["data.range"]
    assert values["data.channels"] == 5
    assert 1000 < low < 1500 < 2500 < high < 3500
    assert "of 5 channels, values" in printed

    out, exported, checkpoint = tmp_path / "out", tmp_path / "exported", f"--checkpoint={workdir}"
    for command in (
        ("predict", checkpoint, f"--output={out}", "--contact_sheet", "--probabilities", root / "images"),
        ("report", workdir),
    ):
        status, _, error = run_command(*command)
        assert (status, error) == (0, ""), (command, error)
    done = python("-m", "segjax.export", checkpoint, f"--output={exported}")
    assert done.returncode == 0, done.stderr
    network, card = standalone_predict.load(exported)
    assert card["input"]["range"] == [low, high]
    image = tifffile.imread(root / "images" / "0.tif").astype(np.float32)
    found = standalone_predict.predict(network, image[None])
    with np.load(out / "0_probabilities.npz") as written:
        np.testing.assert_allclose(found["probabilities"][0], written["probabilities"], atol=1e-4)
    np.testing.assert_array_equal(found["mask"][0], cv2.imread(str(out / "0_mask.png"), cv2.IMREAD_UNCHANGED))
