"""Growth of a training step and of a sweep with devices and cells: 1, 2 and 4 of them.

One batch over several devices is the same work in smaller parts. n cells, one per device or in sequence on one device,
are n times the work, by one compiled program. On a CPU-only machine a process with four devices takes the measurements;
the devices share its cores, which limits the gain. The memory is that of one device: arguments and temporary memory of
the program.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.benchmarks import benchmarks_growth
from experiments.benchmarks.baselines import Candidate, Setting, Target, measure
from experiments.sweep.parallel_cells import map_cells
from segjax.configs import rare_class
from segjax.reporting import Picture, Table
from segjax.training import parallel
from segjax.training.config import input_shape
from segjax.training.network import TrainState, make_model
from segjax.training.objective import Hyperparams, hparams_at, hparams_from_config, phases
from segjax.training.train_step import init_state, make_train_step

TITLE = "Growth: devices and cells"
COLUMNS = ()
COUNTS, CLASSES = (1, 2, 4), 2
_CHILD = "import sys; from experiments.benchmarks import benchmarks_devices; benchmarks_devices.child(*sys.argv[1:])"


class _Work(NamedTuple):
    """Compiled program, its operands, and the number of calls."""

    program: Any
    operands: tuple[Any, ...]
    times: int = 1


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row per kind of growth; its columns are the counts."""
    return {name: partial(_row, name, setting) for name in _ROWS}


def _row(name: str, setting: Setting) -> dict[str, Any]:
    if jax.default_backend() != "cpu":
        return measured_here(name, setting)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(COUNTS)}"
    return measured_in_process(name, setting, os.environ | {"XLA_FLAGS": flags})


def measured_in_process(name: str, setting: Setting, environment: Mapping[str, str]) -> dict[str, Any]:
    """Measures a row in a process with this environment, on the counts that its devices allow.

    Raises:
      RuntimeError: the process failed; the message contains the end of its stderr.
    """
    command = [sys.executable, "-c", _CHILD, name, json.dumps(setting)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures {name!r} ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, setting: str) -> None:
    """Prints one row as JSON, in the process that `measured_in_process` starts."""
    print(json.dumps(measured_here(name, Setting(*json.loads(setting)))))


def measured_here(name: str, setting: Setting, config: ConfigDict | None = None) -> dict[str, Any]:
    """Measures a row on the counts that the devices of this process allow."""
    config = config or _config()
    candidates, extra = [], {}
    for count in (count for count in COUNTS if count <= len(jax.devices())):
        work = _ROWS[name].make(config, count)
        memory = work.program.memory_analysis()
        extra[str(count)] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        candidates.append(Candidate(str(count), lambda work=work: partial(_run, work)))
    return measure(candidates, setting) | {"extra_bytes": extra}


def _run(work: _Work) -> Any:
    return [work.program(*work.operands) for _ in range(work.times)]


def _config() -> ConfigDict:
    """Returns the config of the sweeps' small U-Net, whose batch of eight every count divides."""
    config = rare_class.get_config("cpu")
    config.parallel = "shard_map"
    return config


def step_operands(
    config: ConfigDict, classes: int, size: tuple[int, int]
) -> tuple[TrainState, dict[str, np.ndarray], Hyperparams]:
    """Returns the state, a random batch of images of `size`, and the hyperparameters of a training step."""
    batch, (height, width) = config.training.global_batch, size
    *_, channels = input_shape(config)
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (batch, height, width, channels), np.uint8),
        "label": rng.integers(0, classes, (batch, height, width), np.uint8),
        "index": np.arange(batch, dtype=np.int32),
    }
    state = init_state(config, make_model(config, classes))
    return state, data, hparams_at(1, hparams_from_config(config), phases(config))


def _mesh(count: int) -> Mesh:
    return parallel.make_mesh(jax.devices()[:count])


def _split(config: ConfigDict, count: int) -> _Work:
    mapping = parallel.device_mapping(config, jax.devices()[:count])
    state, data, hparams = step_operands(config, CLASSES, tuple(config.data.size))
    step = make_train_step(config, make_model(config, CLASSES), CLASSES, parallel.axis_name(config))
    operands = mapping.replicate(state), mapping.shard(data), hparams
    return _Work(mapping.map_step(step, arguments=3).lower(*operands).compile(), operands)


def _cells(config: ConfigDict, devices: int, cells: int) -> _Work:
    mesh, (state, data, hparams) = _mesh(devices), step_operands(config, CLASSES, tuple(config.data.size))
    step = make_train_step(config, make_model(config, CLASSES), CLASSES, None)
    stack = partial(jax.tree.map, lambda x: jnp.stack([x] * devices))
    operands = stack(state), data, stack(hparams)
    mapped = map_cells(step, mesh, shared=(False, True, False))
    program = mapped.lower(*operands).compile()
    return _Work(program, jax.device_put(operands, program.input_shardings[0]), cells // devices)


class _Growth(NamedTuple):
    """Function of a row, and the largest acceptable exponents of the time and of a device's memory."""

    make: Callable[[ConfigDict, int], _Work]
    time: float
    memory: float


STEP = "training step, one batch over devices"
_ROWS = {
    STEP: _Growth(_split, 0.1, -0.8),
    "sweep, one cell per device": _Growth(lambda config, count: _cells(config, count, count), 1.1, 0.1),
    "sweep, cells in sequence on one device": _Growth(lambda config, count: _cells(config, 1, count), 1.1, 0.1),
}


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 8."""
    found = []
    for name, row in measured.items():
        pairs = ("time", row["ms"], _ROWS[name].time), ("memory per device", row["extra_bytes"], _ROWS[name].memory)
        for what, values, limit in pairs:
            if len(values) > 1:
                exponent = benchmarks_growth.exponent(values)
                found.append(Target(8, f"{name}: exponent of the {what}", exponent, limit))
    return found


def tables(measured: dict[str, Any]) -> list[Table]:
    """Builds the tables of time and memory per device at each count, as multiples of those at 1."""
    return benchmarks_growth.tables(measured, "memory per device, with arguments")


def pictures(measured: dict[str, Any]) -> tuple[Picture, ...]:
    """Draws the time divided by the count."""
    return benchmarks_growth.pictures(measured, "growth_devices")
