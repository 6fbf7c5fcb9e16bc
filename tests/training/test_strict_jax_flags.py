"""One training step under JAX's strict flags, the dtype flag limited to our own code."""

import jax
import jax.numpy as jnp
import pytest

from segjax.data.augment import augment, example_keys
from segjax.models import Segmentation
from segjax.training.objective import hparams_at, hparams_from_config, make_objective, phases
from segjax.training.train_step import init_state, make_train_step, split


@pytest.mark.parametrize("accumulate", [1, 2])
def test_make_train_step_rank_promotion_raise(parts, batch, accumulate):
    config, model, _ = parts
    config.training.accumulate, config.training.ema_decay, config.training.skip_nonfinite = accumulate, 0.9, 2
    with jax.numpy_rank_promotion("raise"):
        hparams = hparams_at(1, hparams_from_config(config), phases(config))
        jax.eval_shape(
            make_train_step(config, model, 2, None),
            init_state(config, model),
            jax.tree.map(jnp.asarray, batch()),
            hparams,
        )


@pytest.mark.parametrize("loss", ["sigmoid_focal", "softmax_focal"])
def test_augmentation_and_objective_dtype_promotion_strict(tiny, batch, loss):
    tiny.objective.loss, tiny.objective.region, tiny.objective.boundary_factor = loss, "dice", 2.0
    examples = jax.tree.map(jnp.asarray, batch())
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        images, labels = augment(
            examples["image"],
            examples["label"],
            example_keys(jax.random.key(0), jnp.int32(0), examples["index"]),
            crop_fraction=jnp.float32(0.5),
            flip=True,
            scale=(0.8, 1.2),
            rotation=10.0,
            brightness=0.1,
            contrast=0.1,
            size=(32, 48),
            mean=(0.45,),
            std=(0.25,),
        )
        logits = images[..., : 1 if loss == "sigmoid_focal" else 2]
        objective, hparams = make_objective(tiny, 2), hparams_from_config(tiny)

        def value(logits):
            return objective(
                Segmentation(logits=logits, mc_logits=None, logit_variance=None, features=logits), labels, hparams
            )[0]

        assert jnp.isfinite(jax.grad(value)(logits)).all()
        assert split(images, 2).shape == (2, 2, 32, 48, 3)
