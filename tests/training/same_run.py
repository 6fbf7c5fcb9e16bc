"""One run on any devices, which `tests/training/test_same_run.py` calls and starts as a program on two hosts.

Program: `python same_run.py HOST PORT OUTPUT MODE...` is host HOST of two with two devices each.
"""

import os
import sys

import jax
import numpy as np

from segjax.training import defaults, hosts, parallel
from segjax.training.network import make_model
from segjax.training.objective import hparams_from_config
from segjax.training.segmentation import make_eval_step
from segjax.training.train_step import init_state, make_train_step

STEPS, EXAMPLES = 20, 4
# Adam divides by small numbers, which amplifies rounding: it is compared in float64.
KINDS = {"float64": "adam", "float32": "sgd"}


def config_of(mode, dtype):
    """Returns a config with synchronised batch norm and augmentation keyed by the example, without dropout."""
    config = defaults()
    config.parallel, config.model.dtype, config.optimizer.name = mode, dtype, KINDS[dtype]
    config.data.size = (16, 24)
    config.model.width, config.model.depth, config.model.padding = 4, 1, "zeros"
    config.objective.loss, config.optimizer.learning_rate = "sigmoid_focal", 1e-3
    config.augment.scale, config.augment.crop_fraction, config.augment.brightness = (0.8, 1.2), 0.75, 0.2
    config.training.steps, config.training.ema_decay = STEPS, 0.9
    return config


def batch_of(step):
    """Returns a global batch of noise; the first example is all void, the second half void."""
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 2, (EXAMPLES, 20, 28)).astype(np.uint8)
    labels[0], labels[1, :10] = 255, 255
    images = rng.integers(0, 256, (EXAMPLES, 20, 28, 3)).astype(np.uint8)
    return {"image": images, "label": labels, "index": np.arange(EXAMPLES, dtype=np.int32) + EXAMPLES * step}


def run(mode, dtype, devices=None):
    """Returns losses `[STEPS]`, the final parameters and statistics in one vector, and the counts of an evaluation."""
    with jax.enable_x64(dtype == "float64"):
        config = config_of(mode, dtype)
        mapping, axis_name = parallel.device_mapping(config, devices), parallel.axis_name(config)
        model = make_model(config, 2, axis_name)
        fresh = init_state(config, model)
        state = mapping.replicate(jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, fresh))
        train = mapping.map_step(make_train_step(config, model, 2, axis_name), arguments=3, donate=True)
        score = mapping.map_step(make_eval_step(config, model, 2, axis_name), arguments=3)
        hparams = jax.tree.map(lambda x: x.astype(dtype), hparams_from_config(config))
        losses = []
        for step in range(STEPS):
            state, measured = train(state, mapping.shard(share(batch_of(step))), hparams)
            losses.append(float(mapping.unreplicate(measured)["loss"]))
        batch = batch_of(STEPS)
        batch |= {"size": np.tile(np.int32([20, 28]), (EXAMPLES, 1)), "where": np.arange(EXAMPLES) < EXAMPLES - 1}
        del batch["index"]
        counts = mapping.unreplicate(score(state, mapping.shard(share(batch)), hparams))
        end = mapping.unreplicate(state)
        leaves = [np.ravel(x) for x in jax.tree.leaves((end.params, end.batch_stats, end.ema))]
        return np.array(losses), np.concatenate(leaves), np.asarray(counts["confusion"])


def share(batch):
    """Returns this host's part of a global batch, as the loader does."""
    part = EXAMPLES // jax.process_count()
    return {key: value[jax.process_index() * part :][:part] for key, value in batch.items()}


def main(host, port, output, *modes):
    """Runs every mode in float64 and writes this host's results."""
    hosts.join_hosts(f"localhost:{port}", 2, int(host))
    results = {}
    for mode in modes:
        results |= {f"{mode}/{i}": x for i, x in enumerate(run(mode, "float64"))}
    np.savez(f"{output}{host}.npz", **results)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(*sys.argv[1:])
