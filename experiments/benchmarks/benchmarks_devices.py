"""How a training step and a sweep grow with devices and cells: 1, 2 and 4 of them.

One batch split over devices is the same work in smaller pieces; a cell a device, and cells in turn on one device, are
as much more work as there are cells, by one compiled program. Where the machine has CPUs only, a process of four
devices takes the measurements: they share its cores, and no more than those can be gained. The memory is one device's:
the program's arguments and what it needs beside them.
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

from configs import rare_class
from experiments.benchmarks import benchmarks_growth
from experiments.benchmarks.baselines import Setting, Target, Way, measure
from segjax.reporting import Picture, Table
from segjax.training import parallel
from segjax.training.objective import Hyperparams, hparams_at, hparams_from_config, phases
from segjax.training.train_step import TrainState, init_state, make_model, make_train_step

TITLE = "Growth: devices and cells"
COLUMNS = ()
COUNTS, CLASSES = (1, 2, 4), 2
_CHILD = "import sys; from experiments.benchmarks import benchmarks_devices; benchmarks_devices.child(*sys.argv[1:])"


class _Work(NamedTuple):
    """What is timed: a compiled program, its operands, and how often it is called."""

    program: Any
    operands: tuple[Any, ...]
    times: int = 1


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """A row a way to grow; its columns are the counts."""
    return {name: partial(_row, name, setting) for name in _ROWS}


def _row(name: str, setting: Setting) -> dict[str, Any]:
    if jax.default_backend() != "cpu":
        return measured_here(name, setting)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(COUNTS)}"
    return measured_in_process(name, setting, os.environ | {"XLA_FLAGS": flags})


def measured_in_process(name: str, setting: Setting, environment: Mapping[str, str]) -> dict[str, Any]:
    """One row, on as many of the devices of a process with this environment as there are counts for.

    Raises:
      RuntimeError: the process ended with an error, whose text the message has.
    """
    command = [sys.executable, "-c", _CHILD, name, json.dumps(setting)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures {name!r} ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, setting: str) -> None:
    """Prints one row as JSON: of a process that was given its devices."""
    print(json.dumps(measured_here(name, Setting(*json.loads(setting)))))


def measured_here(name: str, setting: Setting, config: ConfigDict | None = None) -> dict[str, Any]:
    """One row, on as many of this process's devices as there are counts for."""
    config = config or _config()
    ways, extra = [], {}
    for count in (count for count in COUNTS if count <= len(jax.devices())):
        work = _ROWS[name].make(config, count)
        memory = work.program.memory_analysis()
        extra[str(count)] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        ways.append(Way(str(count), lambda work=work: partial(_run, work)))
    return measure(ways, setting) | {"extra_bytes": extra}


def _run(work: _Work) -> Any:
    return [work.program(*work.operands) for _ in range(work.times)]


def _config() -> ConfigDict:
    """The sweeps' small U-Net, whose batch of eight every count divides."""
    config = rare_class.get_config("cpu")
    config.parallel = "shard_map"
    return config


def _operands(config: ConfigDict) -> tuple[TrainState, dict[str, np.ndarray], Hyperparams]:
    batch, (height, width) = config.training.global_batch, config.data.size
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (batch, height, width, config.data.channels), np.uint8),
        "label": rng.integers(0, CLASSES, (batch, height, width), np.uint8),
        "index": np.arange(batch, dtype=np.int32),
    }
    state = init_state(config, make_model(config, CLASSES))
    return state, data, hparams_at(1, hparams_from_config(config), phases(config))


def _mesh(count: int) -> Mesh:
    return parallel.make_mesh(jax.devices()[:count])


def _split(config: ConfigDict, count: int) -> _Work:
    mesh, (state, data, hparams) = _mesh(count), _operands(config)
    step = make_train_step(config, make_model(config, CLASSES), CLASSES, parallel.axis_name(config))
    operands = parallel.replicate(state, config, mesh), parallel.shard(data, config, mesh), hparams
    return _Work(parallel.map_step(step, config, mesh, arguments=3).lower(*operands).compile(), operands)


def _cells(config: ConfigDict, devices: int, cells: int) -> _Work:
    mesh, (state, data, hparams) = _mesh(devices), _operands(config)
    step = make_train_step(config, make_model(config, CLASSES), CLASSES, None)
    stack = partial(jax.tree.map, lambda x: jnp.stack([x] * devices))
    operands = stack(state), data, stack(hparams)
    mapped = parallel.map_cells(step, mesh, shared=(False, True, False))
    program = mapped.lower(*operands).compile()
    return _Work(program, jax.device_put(operands, program.input_shardings[0]), cells // devices)


class _Growth(NamedTuple):
    """What is doubled, and the most that the exponents may be, of the time and of a device's memory."""

    make: Callable[[ConfigDict, int], _Work]
    time: float
    memory: float


STEP = "training step, one batch over devices"
_ROWS = {
    STEP: _Growth(_split, 0.1, -0.8),
    "sweep, a cell a device": _Growth(lambda config, count: _cells(config, count, count), 1.1, 0.1),
    "sweep, cells in turn on one device": _Growth(lambda config, count: _cells(config, 1, count), 1.1, 0.1),
}


def targets(measured: dict[str, Any]) -> list[Target]:
    """Target 8."""
    found = []
    for name, row in measured.items():
        pairs = ("time", row["ms"], _ROWS[name].time), ("memory a device", row["extra_bytes"], _ROWS[name].memory)
        for what, values, limit in pairs:
            if len(values) > 1:
                exponent = benchmarks_growth.exponent(values)
                found.append(Target(8, f"{name}: exponent of the {what}", exponent, limit))
    return found


def tables(measured: dict[str, Any]) -> list[Table]:
    """Time and a device's memory at each count, as multiples of those at 1."""
    return benchmarks_growth.tables(measured, "memory of a device, arguments too")


def pictures(measured: dict[str, Any]) -> tuple[Picture, ...]:
    """The times, each divided by its count."""
    return benchmarks_growth.pictures(measured, "growth_devices")
