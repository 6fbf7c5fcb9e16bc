"""Configs to leaves and back, and which fields change the compiled step."""

import json

import jax
import numpy as np
import pytest

from segjax.training import defaults
from segjax.training.config import TRACED, from_leaves, leaves, program
from segjax.training.objective import hparams_at, hparams_from_config, phases
from segjax.training.train_step import init_state, make_model, make_train_step


def test_leaves_survive_json():
    config = defaults()
    config.objective.alpha = 0.25
    config.model.prior = (0.01,)
    config.training.phases = ((0.6, 500, 2e-3), (1.0, 500, 1e-3))
    assert leaves(from_leaves(json.loads(json.dumps(leaves(config))))) == leaves(config)


# Which fields are values and which are program.


BINARY = {"objective.loss": "sigmoid_focal"}
SOFTMAX = {"objective.loss": "softmax_focal", "objective.background": 0}
HEADS = {"model.dropout": "sampled", "objective.uncertainty_weight": 1.0}
# Each traced field, with what it needs to have an effect, and two of its values.
VALUES = {
    "augment.crop_fraction": ({}, 0.5, 0.75),
    "model.dropout_rate": (HEADS, 0.1, 0.3),
    "model.deep_dropout_rate": ({"model.deep_dropout": 1}, 0.1, 0.3),
    "objective.gamma": (BINARY, 0.0, 2.0),
    "objective.beta": ({"objective.loss": "sigmoid_focal_star"}, 0.0, 1.0),
    "objective.alpha": (BINARY, 0.25, 0.75),
    "objective.class_weights": (SOFTMAX, (1.0, 2.0), (1.0, 5.0)),
    "objective.boundary_factor": ({}, 2.0, 4.0),
    "objective.hard_fraction": ({}, 0.25, 0.5),
    "objective.hard_threshold": ({}, 0.1, 0.5),
    "objective.negatives_per_positive": (SOFTMAX, 1.0, 3.0),
    "objective.region_weight": ({"objective.region": "dice"}, 0.5, 2.0),
    "objective.uncertainty_weight": (HEADS, 1.0, 10.0),
    "optimizer.learning_rate": ({}, 1e-3, 1e-2),
    "training.ema_decay": ({}, 0.9, 0.99),
}


def test_every_traced_field_is_tried():
    assert set(VALUES) == set(TRACED)


@pytest.mark.parametrize("key", VALUES)
def test_a_traced_field_is_an_argument_of_the_step_and_not_a_part_of_it(key, tiny, batch):
    needs, *values = VALUES[key]
    programs, steps, arguments = [], [], []
    for value in values:
        config = from_leaves(leaves(tiny) | needs | {key: value})
        model, hparams = make_model(config, 2), hparams_at(1, hparams_from_config(config), phases(config))
        step = make_train_step(config, model, 2, None)
        programs.append(program(config))
        steps.append(str(jax.make_jaxpr(step)(init_state(config, model), batch(), hparams)))
        arguments.append(jax.tree.leaves(hparams))
    assert programs[0] == programs[1]
    assert steps[0] == steps[1]
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*arguments, strict=True))


def test_what_a_run_begins_with_is_not_in_its_program_and_the_loss_is(tiny):
    for key, value in (("seed", 7), ("model.prior", (0.01,)), ("model.head_stddev", 0.01)):
        assert program(from_leaves(leaves(tiny) | {key: value})) == program(tiny)
    for key, value in (("objective.loss", "hinge"), ("objective.hard_fraction", 0.5), ("data.train_examples", 13)):
        assert program(from_leaves(leaves(tiny) | {key: value})) != program(tiny)
