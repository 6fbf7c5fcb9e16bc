"""A full disk: a small tmpfs in a mount namespace that ends with the test."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).parents[2]
# In the namespace: two steps; a disk with a few free kilobytes, and four steps; free space, and the same command.
SCRIPT = """
set -e
mkdir -p "$WORKDIR" "$DISK"
mount -t tmpfs -o size=4m tmpfs "$DISK"
{train} --config.training.steps=2 > /dev/null
head -c 16m /dev/zero > "$DISK/filler" || true
truncate --size=-20k "$DISK/filler"
echo full; {train} --config.training.steps=4 && echo "status 0" || echo "status $?"
rm "$DISK/filler"; ls "$WORKDIR/checkpoints"
echo again; {train} --config.training.steps=4; echo "status $?"
"""


def unshare(*command, **options):
    return subprocess.run(["unshare", "--mount", *command], capture_output=True, text=True, timeout=400, **options)


@pytest.fixture(scope="module")
def namespaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    try:
        probe = unshare("mount", "-t", "tmpfs", "tmpfs", folder)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted ({probe.stderr.strip()})")


def test_training_on_a_full_disk_stops_with_one_line_and_resumes(namespaces, tmp_path, process_environment, tiny_flags):
    overrides = " ".join(f"'{flag}'" for flag in tiny_flags(model__width=8, training__checkpoint_every=1))
    command = (
        f"{sys.executable} -m segjax.train --config=configs/rare_class.py --workdir=$WORKDIR "
        f"--config.data.data_dir={tmp_path / 'data'} {overrides}"
    )
    workdir = tmp_path / "run"
    done = unshare(
        "sh",
        "-c",
        SCRIPT.format(train=command),
        cwd=ROOT,
        env=process_environment | {"WORKDIR": str(workdir), "DISK": str(workdir / "checkpoints")},
    )
    assert done.returncode == 0, done.stderr
    full, again = done.stdout.split("again\n")
    assert "status 1\n" in full.split("full\n")[1]  # and not 134 or 135, an abort
    assert "2" in full.splitlines()[-3:]  # the checkpoint from before
    assert "resumed at step 2 of 4" in again
    assert "status 0" in again
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-3000:]
    assert "No space left on device" in errors[0] or "RESOURCE_EXHAUSTED" in errors[0]


# In the namespace: a command on a disk with too little space, whose files are then copied away.
OUTPUTS = """
set -e
mkdir -p "$DISK" "$LEFT"
mount -t tmpfs -o size={room}k tmpfs "$DISK"
{command} && echo "status 0" || echo "status $?"
cp -r "$DISK/." "$LEFT"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_flags, python):
    """Returns a run of one step, and a folder of images; the disk below has space for the masks of a few."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [f"--config.data.data_dir={folder / 'data'}", "--config.training.steps=1", *tiny_flags(model__width=4)]
    done = python("-m", "segjax.train", "--config=configs/rare_class.py", f"--workdir={folder / 'run'}", *flags)
    assert done.returncode == 0, done.stderr
    (folder / "images").mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (120, 160, 3)).astype(np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{i}.png"), noise)
    return folder


OUTPUT = "--output=$DISK"


@pytest.mark.parametrize(
    ("command", "room"),
    [
        (f"predict --checkpoint=$RUN {OUTPUT} $IMAGES", 200),
        (f"report $RUN {OUTPUT}", 100),
        (f"export --checkpoint=$RUN {OUTPUT}", 12),
    ],
    ids=["predict", "report", "export"],
)
def test_outputs_on_a_full_disk_are_whole_or_absent(namespaces, trained, tmp_path, process_environment, command, room):
    places = {
        "RUN": trained / "run",
        "IMAGES": trained / "images",
        "DISK": tmp_path / "disk",
        "LEFT": tmp_path / "left",
    }
    script = OUTPUTS.format(command=f"{sys.executable} -m segjax.{command}", room=room)
    environment = process_environment | {name: str(path) for name, path in places.items()}
    done = unshare("sh", "-c", script, cwd=ROOT, env=environment)
    assert done.stdout.endswith("status 1\n"), done.stderr[-3000:]
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in message
    assert str(places["DISK"]) in message
    left = [path for path in places["LEFT"].rglob("*") if path.is_file()]
    assert not [path.name for path in left if path.name.endswith(".partial")]
    for path in left:
        if path.suffix == ".png":
            assert cv2.imread(str(path)) is not None, path.name
        if path.suffix == ".json":
            json.loads(path.read_text())
    if command.startswith("predict"):
        masks = {path.name.removesuffix("_mask.png") for path in left if path.name.endswith("_mask.png")}
        assert 0 < len(masks) < 6
        assert all((places["LEFT"] / f"{name}_overlay.png").exists() for name in masks)
    if command.startswith("export"):
        assert [path.name for path in left] == [".segjax.sha256"]
