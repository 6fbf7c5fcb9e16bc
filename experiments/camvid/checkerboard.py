"""Checkerboards per upsampling: `python -m experiments.camvid.checkerboard --config=configs/rare_class.py --output=…`.

Eight versions of one U-Net, which differ only in the upsampling, process the images of the config's validation split.
The table gives the percentage of the energy of their logits that repeats with the stride of the last upsampling, 2, for
new networks (several seeds) and trained ones (`--checkpoint=RUN`, repeated; runs of one upsampling are its seeds).
Energy over whole images counts patterns of the same sign everywhere. Energy in windows of 16×16 pixels also counts
patterns that change with the image content. For comparison, the table has the images themselves, and the share of white
noise. New networks predict with the initial running statistics of batch norm.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import rich.console
from absl import flags
from ml_collections import ConfigDict

from segjax import cli, metrics
from segjax.metrics import CheckerboardSums
from segjax.reporting import Table, markdown, show, spread
from segjax.storage import say, to_json, write_outputs
from segjax.trained_run import load_run, model_of
from segjax.training import ConfigError, open_split, parallel
from segjax.training.evaluation import counter, sum_counts
from segjax.training.network import TrainState, preprocessing_of
from segjax.training.provenance import provenance
from segjax.training.train_step import init_state

UPSAMPLINGS = (
    "nearest",
    "bilinear",
    "bed_of_nails",
    "max_unpool",
    "transpose",
    "transpose3",
    "transpose4",
    "pixel_shuffle",
)
IMAGES = "the images"
WINDOW = 16
WINDOWS = {"whole": None, "windows": WINDOW}


def make_sums(config: ConfigDict, maps_of: Callable) -> Callable:
    """Builds `step(state, batch) -> sums` of `maps_of(state, images)`, for both kinds of window."""
    preprocessing, axis_name = preprocessing_of(config, 0), parallel.axis_name(config)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        maps = maps_of(state, preprocessing.network_input(batch["image"], batch["size"]))
        where = batch["where"][:, None, None]
        sums = {}
        for name, window in WINDOWS.items():
            found = metrics.checkerboard_sums(maps, window=window, where=where, axis_name=axis_name)
            sums |= {f"{name}, {field}": value for field, value in found._asdict().items()}
        return sums

    return step


def shares(config: ConfigDict, maps_of: Callable, states: Iterable[TrainState]) -> list[dict[str, float]]:
    """Returns percentages of the energy over the validation split, one dictionary per state."""
    mapping, source = parallel.device_mapping(config), open_split(config.data, config.data.eval_split)
    step = mapping.map_step(make_sums(config, maps_of), arguments=2)
    found = []
    for state in states:
        sums = sum_counts(counter(step, mapping.replicate(state), mapping), source, config, devices=mapping.mesh.size)
        by_window = {
            name: CheckerboardSums(*(sums[f"{name}, {field}"] for field in CheckerboardSums._fields))
            for name in WINDOWS
        }
        found.append({name: 100 * metrics.checkerboard_energy(totals) for name, totals in by_window.items()})
    return found


def logits_of(model: Any) -> Callable:
    """Returns `maps_of` for `shares`: the logits of the network, not resized."""
    return lambda state, images: model.apply(state.variables, images, train=False).logits


def new(config: ConfigDict, upsample: str, seeds: int) -> list[dict[str, float]]:
    """Returns `shares` of new networks, one per seed from `config.seed` on.

    Raises:
      ConfigError: the config's network is not a U-Net, and therefore has no choice of upsampling.
    """
    if config.model.name != "unet":
        raise ConfigError(f"config.model.name must be 'unet', which has every upsampling; got {config.model.name!r}")
    model, states = model_of(config).clone(upsample=upsample), []
    for seed in range(config.seed, config.seed + seeds):
        seeded = config.copy_and_resolve_references()
        seeded.seed = seed
        states.append(init_state(seeded, model))
    return shares(config, logits_of(model), states)


def trained(checkpoints: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """Returns `shares` of trained networks on their own validation images, by the upsampling of their configs."""
    found: dict[str, list[dict[str, float]]] = {}
    for checkpoint in checkpoints:
        run = load_run(checkpoint)
        measured = shares(run.config, logits_of(run.model), [run.state])
        found.setdefault(run.config.model.upsample, []).extend(measured)
    return found


def table(measured: dict[str, dict[str, list[dict[str, float]]]]) -> Table:
    """Returns one row per upsampling, mean ± standard deviation over the seeds."""
    kinds = ("new", "trained")
    rows = [
        (name, *(spread([one[window] for one in by_kind.get(kind, [])]) for kind in kinds for window in WINDOWS))
        for name, by_kind in measured.items()
    ]
    columns = tuple(f"{kind}, {window}" for kind in kinds for window in WINDOWS)
    noise = 100 * 3 / (WINDOW**2 - 1)
    title = f"% of the logits' energy at stride 2; in windows of {WINDOW}×{WINDOW} white noise has {noise:.1f}"
    return Table(title, ("upsampling", *columns), rows)


def main(argv: list[str]) -> None:
    """Measures all versions of one network, prints the table and writes it as Markdown and JSON."""
    del argv
    options, config, console = flags.FLAGS, flags.FLAGS.config, rich.console.Console()
    after = trained(options.checkpoint)
    measured = {IMAGES: {"new": shares(config, lambda _, images: images, [init_state(config, model_of(config))])}}
    for upsample in dict.fromkeys([*options.upsampling, *after]):
        measured[upsample] = {"new": new(config, upsample, options.seeds), "trained": after.get(upsample, [])}
    show(table(measured), console)
    output = Path(options.output)
    about = {
        "window": WINDOW,
        "seeds": options.seeds,
        "checkpoints": options.checkpoint,
        "size": list(config.data.size),
    }
    data = {**about, "percentages": measured, "provenance": provenance()}
    text = markdown(table(measured)) + "\n"
    write_outputs({output / "checkerboard.md": text.encode(), output / "checkerboard.json": to_json(data)})
    say(f"Wrote checkerboard.md and .json to {output}/", console)


if __name__ == "__main__":
    cli.define_config("config")
    flags.DEFINE_multi_string("checkpoint", [], "A trained run: its workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_multi_enum("upsampling", UPSAMPLINGS, UPSAMPLINGS, "An upsampling; may be repeated.")
    flags.DEFINE_integer("seeds", 5, "Number of new networks per upsampling.", lower_bound=1)
    flags.DEFINE_string("output", "runs/checkerboard", "Folder of the table.")
    cli.run(main, required=["config"])
