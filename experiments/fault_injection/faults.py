"""Runs killed with SIGKILL and restarted: `python -m experiments.fault_injection.faults --kills=20`.

Each kill has its own run. The run is killed at an event (see `fault_child`), started again, and compared with an
undisturbed run: the final state bit for bit, the log byte for byte, the scores, and the position of the loader.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from experiments.fault_injection.fault_child import CALLS, DATA, DISPATCH, FILES
from segjax import cli
from segjax.reporting import Report, Section, Table, show, write_report
from segjax.storage import StorageError, say, write_json
from segjax.trained_run import load_run
from segjax.training import defaults
from segjax.training.config import leaves
from segjax.training.provenance import provenance

STEPS, EVALUATIONS = 6, 2
# Occurrences of each moment in a run that saves after every step and keeps the last two checkpoints and the best.
TIMES = (
    dict.fromkeys(CALLS, STEPS)
    | {"before the images are scored": EVALUATIONS, "after the images were scored": EVALUATIONS}
    | {"before a file of the run is replaced": 2}
    | {FILES[0]: STEPS, FILES[1]: STEPS - 3, FILES[2]: STEPS - 3, DATA: STEPS, DISPATCH: STEPS}
)


class Kill(NamedTuple):
    """A kill at the `count`-th occurrence of `moment`."""

    moment: str
    count: int


def choose(kills: int, seed: int) -> list[Kill]:
    """Draws kills from `seed`: every moment once before any comes twice, those inside a save first."""
    rng = random.Random(seed)
    kinds = sorted(TIMES, key=lambda moment: (not moment.startswith("save: "), moment))
    return [Kill(kind, rng.randint(1, TIMES[kind])) for kind in (kinds[i % len(kinds)] for i in range(kills))]


def config_of(workdir: Path) -> ConfigDict:
    """Returns the config of a small network with phases, dropout, augmentation and a running mean."""
    config = defaults()
    config.data.data_dir = str(workdir / "data")
    config.data.scene_size, config.data.size = (64, 96), (32, 48)
    config.data.train_examples, config.data.val_examples, config.data.workers = 12, 6, 0
    config.augment.scale, config.augment.brightness = (0.8, 1.2), 0.2
    config.model.width, config.model.depth, config.model.padding = 4, 2, "zeros"
    config.model.dropout, config.model.dropout_mask = "sampled", "channel"
    config.objective.loss, config.objective.uncertainty_weight = "sigmoid_focal", 1.0
    config.training.steps, config.training.global_batch = STEPS, 4
    config.training.phases = ((0.6, STEPS // 2, 2e-3), (1.0, STEPS - STEPS // 2, 2e-3))
    config.training.ema_decay = 0.9
    config.training.log_every, config.training.checkpoint_every = 1, 1
    config.training.evaluate_every = STEPS // EVALUATIONS
    return config


def run_child(workdir: Path, name: str, kill: Kill | None = None) -> tuple[int, str]:
    """Trains in `workdir/name`, up to `kill` if given; returns the exit status and the printed text."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    moment = (kill.moment, str(kill.count)) if kill else ("", "0")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.fault_injection.fault_child",
            str(workdir / "config.json"),
            str(workdir / name),
            *moment,
        ],
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout


def prepare(workdir: Path) -> None:
    """Writes the config and trains the undisturbed run."""
    workdir.mkdir(parents=True)
    write_json(workdir / "config.json", leaves(config_of(workdir)))
    status, printed = run_child(workdir, "undisturbed")
    if status:
        raise RuntimeError(f"the undisturbed run failed:\n{printed}")


def try_kill(workdir: Path, kill: Kill) -> dict[str, Any]:
    """Kills a run, starts it again, and compares it with the undisturbed run."""
    shutil.rmtree(workdir / "killed", ignore_errors=True)
    status, printed = run_child(workdir, "killed", kill)
    if status != -signal.SIGKILL:
        raise RuntimeError(f"{kill}: the run was not killed but ended with status {status}:\n{printed}")
    status, printed = run_child(workdir, "killed")
    lines = printed.splitlines()
    resumed = [line.split()[3] for line in lines if line.startswith("resumed at step")]
    outcome = {
        **kill._asdict(),
        "status_of_the_rerun": status,
        "resumed_from_step": int(resumed[0]) if resumed else 0,
        "set_aside": sum(line.startswith("warning: checkpoint") for line in lines),
    }
    return outcome | differences(workdir / "killed", workdir / "undisturbed")


def differences(run: Path, expected: Path) -> dict[str, bool]:
    """Compares the states, the positions of the loader, the logs and the scores of two runs."""
    one, other = (load_run(folder / "checkpoints" / "latest").state for folder in (run, expected))
    same = jax.tree.map(
        lambda a, b: bool(np.array_equal(a, b)), *(x.replace(key=jax.random.key_data(x.key)) for x in (one, other))
    )
    positions = [
        json.loads((f / "checkpoints" / str(STEPS) / "loader" / "metadata").read_bytes()) for f in (run, expected)
    ]
    confusions = [json.loads((folder / "scores.json").read_text())["confusion"] for folder in (run, expected)]
    logs = [(folder / "metrics.jsonl").read_bytes() for folder in (run, expected)]
    return {
        "same_state": all(jax.tree.leaves(same)),
        "same_position": positions[0] == positions[1],
        "same_log": logs[0] == logs[1],
        "same_scores": confusions[0] == confusions[1],
    }


def lost_nothing(outcome: dict[str, Any]) -> bool:
    """Returns True if the rerun succeeded and equals the undisturbed run."""
    return outcome["status_of_the_rerun"] == 0 and all(v for k, v in outcome.items() if k.startswith("same_"))


def table(outcomes: Sequence[dict[str, Any]]) -> Table:
    """Builds the table with one row per kill."""
    rows = [
        (o["moment"], o["count"], o["resumed_from_step"], o["set_aside"], "nothing" if lost_nothing(o) else "something")
        for o in outcomes
    ]
    return Table(
        f"Killed, and started again: {sum(map(lost_nothing, outcomes))} of {len(outcomes)} ended as if undisturbed",
        ("killed", "occurrence", "resumed from step", "checkpoints set aside", "lost"),
        rows,
    )


def main(argv: list[str]) -> None:
    """Kills, compares and reports; exits with status 1 if anything was lost."""
    del argv
    options, console, origin = flags.FLAGS, rich.console.Console(), provenance()
    workdir = Path(options.workdir)
    if workdir.exists():
        raise StorageError(f"--workdir={workdir} exists; delete it, or choose another folder")
    prepare(workdir)
    outcomes = []
    for kill in choose(options.kills, options.seed):
        outcomes.append(try_kill(workdir, kill))
        console.print(
            f"{kill.moment}, no. {kill.count}: {'nothing' if lost_nothing(outcomes[-1]) else 'SOMETHING'} lost"
        )
    report = Report(
        "Kill -9",
        "A run is killed at an event and started again with the same command. Its final state, its log, its loader's "
        "position and its scores are compared with those of an undisturbed run.",
        (Section("Kills", "", (table(outcomes),)),),
        {"steps per run": STEPS, "seed of the moments": options.seed, **origin},
    )
    show(table(outcomes), console)
    written = write_report(report, workdir, "faults", outcomes)
    say(f"Wrote {written[0]}", console)
    if not all(map(lost_nothing, outcomes)):
        raise SystemExit(1)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    flags.DEFINE_string("workdir", "runs/faults", "New folder for the runs and the report.")
    cli.run(main, required=[])
