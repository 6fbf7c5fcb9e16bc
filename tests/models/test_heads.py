import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import LinearHead, Segmentation


def test_bias_and_kernel_start_as_asked():
    features = jnp.ones((1, 4, 4, 64))
    params = LinearHead(64, bias_init=tuple(map(float, range(64))), kernel_stddev=0.01).init(
        jax.random.key(1), features
    )
    linear = params["params"]["linear"]
    np.testing.assert_array_equal(linear["bias"], np.arange(64))
    np.testing.assert_allclose(linear["kernel"].std(), 0.01, rtol=0.1)


def test_bfloat16_features_give_float32_logits():
    logits, variables = LinearHead(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 2, 4), jnp.bfloat16))
    assert logits.dtype == jnp.float32
    assert variables["params"]["linear"]["kernel"].dtype == jnp.float32


def test_a_bias_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match=r"one value a class, 3; got \(1.0, 2.0\)"):
        LinearHead(3, bias_init=(1.0, 2.0)).init(jax.random.key(0), jnp.ones((1, 2, 2, 4)))


def test_a_segmentation_is_a_pytree():
    output = Segmentation(jnp.ones((1, 2, 2, 3)), None, None, jnp.ones((1, 2, 2, 4)))
    doubled = jax.tree.map(lambda x: 2 * x, output)
    assert isinstance(doubled, Segmentation)
    assert doubled.mc_logits is None
    assert len(jax.tree.leaves(output)) == 2
