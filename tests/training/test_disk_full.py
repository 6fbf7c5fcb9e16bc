"""A disk that fills up: a small tmpfs, in a mount namespace that ends with the test."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In the namespace: two steps, a disk full but for a few kilobytes, four steps more; room again, and the same command.
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
        pytest.skip("unshare is not here: a full disk cannot be made")
    if probe.returncode:
        pytest.skip(f"a tmpfs may not be mounted here: a full disk cannot be made ({probe.stderr.strip()})")


def test_the_run_stops_with_one_line_and_goes_on_when_there_is_room(
    namespaces, tmp_path, process_environment, tiny_flags
):
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
