import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training.networks import make_model
from segjax.training.prediction import classify, make_eval_step, make_prediction, make_predictor, probabilities
from segjax.training.step import init_state


def test_the_evaluation_step_counts_every_labelled_pixel_at_native_resolution(parts, batch):
    config, model, state = parts
    data = batch(examples=3)
    sizes = np.array([[40, 56], [30, 56], [40, 20]], np.int32)
    for label, (height, width) in zip(data["label"], sizes, strict=True):
        label[height:], label[:, width:] = 255, 255
    shown = np.array([True, True, False])
    counts = jax.jit(make_eval_step(config, model, 2, None))(
        state, {"image": data["image"], "label": data["label"], "size": sizes, "where": shown}
    )
    labelled = int((data["label"][shown] != 255).sum())
    assert int(counts["confusion"].sum()) == labelled
    assert sum(int(c.sum()) for c in jax.tree.leaves(counts["scores"])) == labelled
    assert counts["confusion"][1].sum() == (data["label"][shown] == 1).sum()


def test_class_of_one_logit_is_its_sign_and_of_many_the_largest():
    assert classify(jnp.array([[[-1.0], [2.0]]]), 2).tolist() == [[0, 1]]
    assert classify(jnp.array([[[0.0, 3.0, 1.0]]]), 3).tolist() == [[1]]
    assert classify(jnp.array([[[0.0, 3.0, 9.0]]]), 2).tolist() == [[1]]  # the last is void


def test_a_network_that_learned_void_never_predicts_it(tiny, batch):
    tiny.objective.loss, tiny.objective.void = "softmax_cross_entropy", "class"
    tiny.model.prior = (0.01, 0.01, 0.98)  # void is by far the likeliest
    model = make_model(tiny, 2)
    state = init_state(tiny, model)
    mask = make_predictor(tiny, model, 2)(state)(batch(examples=1)["image"][0])
    assert set(np.unique(mask)) <= {0, 1}


def test_evaluation_uses_the_running_mean_where_there_is_one(tiny):
    tiny.training.ema_decay = 0.9
    model = make_model(tiny, 2)
    state = init_state(tiny, model)
    other = jax.tree.map(lambda p: p + 1, state.params)
    assert state.variables["params"] is state.ema["params"]
    assert state.replace(params=other).variables["params"] is state.ema["params"]


def test_probabilities_of_one_logit_are_its_sigmoid_and_what_that_leaves():
    logit = np.array([-80.0, -1, 0, 2], np.float32)
    p = np.asarray(probabilities(jnp.asarray(logit).reshape(1, 1, 4, 1), 2))[0, 0]
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-logit.astype(float))), rtol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)


def test_probabilities_of_a_network_that_learned_void_are_of_what_is_not_void():
    p = probabilities(jnp.log(jnp.array([0.1, 0.3, 0.6])).reshape(1, 1, 1, 3), 2)
    np.testing.assert_allclose(p[0, 0, 0], [0.25, 0.75], rtol=1e-6)


def test_a_prediction_is_of_the_images_size_and_a_threshold_is_of_the_log_odds(parts, batch):
    config, model, state = parts
    image = batch(examples=1)["image"][0]
    predict = make_prediction(config, model, 2)
    likelier = predict(state, image)
    assert likelier.probabilities.shape == (*image.shape[:2], 2)
    assert np.array_equal(likelier.mask, likelier.probabilities[..., 1] > 0.5)
    p = likelier.probabilities.astype(float)
    np.testing.assert_allclose(likelier.entropy, -(p * np.log(p)).sum(-1), atol=1e-5)
    odds = float(np.median(np.log(p[..., 1] / p[..., 0])))
    assert predict(state, image, odds).mask.mean() == pytest.approx(0.5, abs=0.01)
