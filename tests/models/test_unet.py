"""U-Net: parameters, sizes, statistics, rematerialization, dropout and errors; and the U-Net with a ResNet encoder."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from segjax.models import EncoderUNet, UNet, network

SMALL = {"num_classes": 3, "width": 4, "depth": 2}
SHALLOW = {**SMALL, "depth": 1}


def random_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


IMAGES = random_images(4, 16, 24, 3)
KEY = jax.random.key(4)


@cache
def start(model: UNet):
    """Returns variables like those of `init`, drawn by NumPy because compiling `init` takes longer than the tests."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(partial(model.init, train=False), KEY, IMAGES[:1])

    def drawn(path, leaf):
        if len(leaf.shape) == 1:
            return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), jnp.float32)
        return jnp.asarray(rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])), jnp.float32)

    return jax.tree.map_with_path(drawn, shapes)


@partial(jax.jit, static_argnums=0)
def train(model: UNet, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


@partial(jax.jit, static_argnums=0)
def evaluate(model: UNet, variables, images):
    return model.apply(variables, images, train=False)


def assert_trees_close(actual, expected, atol=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-4), actual, expected)


def parameters_by_formula(width: int, depth: int, channels: int, classes: int) -> int:
    """Counts parameters with batch norm and transposed convolutions, as milesial/Pytorch-UNet(3, n, bilinear=False)."""

    def block(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + 9 * outputs * outputs + 2 * 2 * outputs  # no bias; scale and bias of two norms

    widths = [width * 2**level for level in range(depth + 1)]
    down = sum(block(i, o) for i, o in zip([channels, *widths], widths, strict=False))
    up = sum(4 * 2 * w * w + w + block(2 * w, w) for w in widths[:-1])
    return down + up + width * classes + classes


def test_unet_parameter_count():
    for width in (16, 64):
        shapes = jax.eval_shape(partial(UNet(2, width=width).init, train=False), jax.random.key(0), IMAGES[:1])
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        assert count == parameters_by_formula(width, 4, 3, 2)
    # sum(p.numel() for p in UNet(3, 2).parameters()) of milesial/Pytorch-UNet.
    assert count == 31_037_698


def parameter_shapes(model: UNet):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES[:1])["params"]


def test_unet_max_width_limits_the_channels_of_every_level():
    shapes = parameter_shapes(UNet(2, width=4, depth=4, max_width=12, upsample="pixel_shuffle"))
    channels = [shapes[f"down{level}"]["conv2"]["kernel"].shape[-1] for level in range(5)]
    assert channels == [4, 8, 12, 12, 12]
    assert [shapes[f"up{level}"]["conv1"]["kernel"].shape[-2:] for level in range(4)] == [
        (2 * width, width) for width in channels[:-1]
    ]


def test_unet_multiscale_adds_one_projection_per_coarse_level_and_renames_none():
    plain, multiscale = (parameter_shapes(UNet(2, width=16, multiscale=value)) for value in (False, True))
    added = {f"coarse{level}": {"kernel": (16 * 2**level, 16)} for level in (1, 2, 3, 4)}
    assert jax.tree.map(lambda x: x.shape, multiscale) == jax.tree.map(lambda x: x.shape, plain) | added


def test_encoder_unet_multiscale_adds_one_projection_per_coarse_level_and_renames_none():
    plain, multiscale = (parameter_shapes(EncoderUNet(2, width=8, multiscale=value)) for value in (False, True))
    added = {f"coarse{level}": {"kernel": (width, 2)} for level, width in enumerate((4, 8, 16, 32, 64), 1)}
    assert jax.tree.map(lambda x: x.shape, multiscale) == jax.tree.map(lambda x: x.shape, plain) | added


def test_unet_multiscale_sums_the_levels():
    """The features are those of the plain network plus the sum of the upsampled projections of the coarse levels."""
    model = UNet(2, width=2, depth=2, multiscale=True)
    variables = model.init(jax.random.key(0), IMAGES[:1], train=False)
    _, state = model.apply(variables, IMAGES[:1], train=False, capture_intermediates=True)
    coarse = [state["intermediates"][f"coarse{level}"]["__call__"][0] for level in (1, 2)]
    finest = state["intermediates"]["up0"]["__call__"][0]
    expected = finest + sum(jax.image.resize(x, finest.shape, "bilinear") for x in coarse)
    height, width = IMAGES.shape[1:3]
    features = model.apply(variables, IMAGES[:1], train=False).features
    np.testing.assert_allclose(features, expected[:, :height, :width], rtol=1e-5, atol=1e-6)


def test_unet_stride_adds_its_parameters_and_renames_none():
    plain, strided = (parameter_shapes(UNet(2, downsample=kind)) for kind in ("max", "stride"))
    added = {name: strided.pop(name) for name in sorted(set(strided) - set(plain))}
    assert list(added) == [f"down{level}_stride" for level in range(4)]
    assert strided == plain
    widths = (64, 128, 256, 512)
    assert sum(leaf.size for leaf in jax.tree.leaves(added)) == sum(9 * w * w + 2 * w for w in widths) == 3_135_360


@pytest.mark.parametrize("upsample", ["nearest", "max_unpool"])
def test_unet_fixed_upsampling_has_one_kernel_per_level(upsample):
    plain, fixed = (parameter_shapes(UNet(**SMALL, upsample=kind)) for kind in ("transpose", upsample))
    ups = {name: fixed.pop(name) for name in sorted(set(fixed) - set(plain))}
    assert jax.tree.map(jnp.shape, ups) == {
        f"up{level}_{upsample}": {"reduce": {"kernel": (8 * 2**level, 4 * 2**level), "bias": (4 * 2**level,)}}
        for level in (0, 1)
    }
    assert fixed == {name: leaves for name, leaves in plain.items() if "_transpose" not in name}


def test_unet_max_unpool_uses_the_positions_of_its_own_level():
    model = UNet(**SMALL, upsample="max_unpool", norm="none")
    seen = jax.jit(partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"]))
    _, state = seen(start(model), IMAGES)
    outputs = {name: leaves["__call__"][0] for name, leaves in state["intermediates"].items() if name != "__call__"}
    for level in (0, 1):
        b, h, w, c = outputs[f"down{level}"].shape

        def blocks(name, shape=(b, h // 2, 2, w // 2, 2, c)):
            return np.asarray(outputs[name]).reshape(shape).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)

        unpooled, skipped = blocks(f"up{level}_max_unpool"), blocks(f"down{level}")
        filled = np.flatnonzero(unpooled.any(axis=-1))
        assert filled.size > 0.9 * len(unpooled)
        np.testing.assert_array_equal((unpooled != 0).sum(axis=-1)[filled], 1)
        np.testing.assert_array_equal((unpooled != 0).argmax(axis=-1)[filled], skipped.argmax(axis=-1)[filled])


@pytest.mark.parametrize(("size", "padding"), [((1, 1), "reflect"), ((5, 3), "zeros")])
def test_unet_logits_have_the_size_of_the_images(size, padding):
    model = UNet(**SHALLOW, padding=padding)
    output = evaluate(model, start(model), random_images(2, *size, 3))
    assert output.logits.shape == (2, *size, 3)
    assert output.features.shape == (2, *size, 4)
    assert np.isfinite(output.logits).all()


def test_unet_pads_by_reflection():
    model = UNet(**SHALLOW)
    image = random_images(1, 13, 18, 3)
    reflected = np.pad(image, ((0, 0), (0, 1), (0, 0), (0, 0)), mode="reflect")
    outputs = [evaluate(model, start(model), jnp.asarray(x)).logits for x in (image, reflected)]
    np.testing.assert_allclose(outputs[0], outputs[1][:, :13, :18], atol=1e-5)


def test_unet_batch_statistics_change_only_in_training():
    model = UNet(**SHALLOW)
    variables = start(model)
    _, kept = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))(variables, IMAGES)
    assert_trees_close(kept["batch_stats"], variables["batch_stats"], atol=0)
    _, updated = train(model, variables, IMAGES)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def mapped(mapping: str, function):
    """Maps `function(shard)` over four shards of a batch of four; results are stacked along the batch."""
    if mapping == "shard_map":
        mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("devices"), out_specs=(P("devices"), P())))

    def whole(images):
        logits, statistics = jax.pmap(function, axis_name="devices")(images[:, None])
        return logits[:, 0], jax.tree.map(lambda x: x[0], statistics)

    return whole


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_unet_synchronized_statistics_equal_those_of_the_whole_batch(mapping):
    model = UNet(**SHALLOW)
    variables = start(model)

    def step(images, axis_name=None):
        output, updated = train(model.clone(axis_name=axis_name), variables, images)
        return output.logits, updated["batch_stats"]

    actual = mapped(mapping, partial(step, axis_name="devices"))(IMAGES)
    assert_trees_close(actual, step(IMAGES), atol=1e-4)


def test_unet_group_norm_and_pixel_shuffle_have_gradients():
    model = UNet(**SHALLOW, padding="zeros", norm="group", upsample="pixel_shuffle")

    def loss(params):
        output, _ = train(model, {"params": params}, IMAGES)
        return (output.logits * random_images(*output.logits.shape)).mean()

    gradients = jax.jit(jax.grad(loss))(start(model)["params"])
    reached = jax.tree.map(lambda g: bool(jnp.isfinite(g).all() & (g != 0).any()), gradients)
    assert all(jax.tree.leaves(reached)), reached


def loss_with_masks(model: UNet, params):
    """Returns a loss of the logits and the samples, and the new batch statistics."""
    variables = {**start(UNet(**SHALLOW)), "params": params}
    rngs = {"dropout": jax.random.key(4)}
    output, updated = model.apply(variables, IMAGES, train=True, rngs=rngs, mutable=["batch_stats"])
    return (output.logits**2).mean() + output.mc_logits.var(axis=0, ddof=1).mean(), updated


def test_unet_remat_has_the_same_masks_gradients_and_statistics():
    plain = UNet(**SHALLOW, padding="zeros", dropout="sampled", heads=2, deep_dropout=1)
    step = jax.jit(jax.value_and_grad(loss_with_masks, argnums=1, has_aux=True), static_argnums=0)
    params = start(UNet(**SHALLOW))["params"]
    assert_trees_close(step(plain.clone(remat=True), params), step(plain, params), atol=1e-6)


def test_unet_remat_keeps_less_for_the_backward_pass():
    def kept(remat: bool) -> int:
        model = UNet(**SHALLOW, remat=remat, dropout="sampled", heads=2)
        backward = jax.eval_shape(
            lambda params: jax.vjp(partial(loss_with_masks, model), params, has_aux=True)[1],
            start(UNet(**SHALLOW))["params"],
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    assert kept(remat=True) < 0.5 * kept(remat=False)


def test_unet_remat_sends_statistics_once():
    def reductions(remat: bool) -> int:
        model = UNet(**SHALLOW, axis_name="devices", remat=remat)

        def loss(params, images):
            variables = {**start(UNet(**SHALLOW)), "params": params}
            output, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return jax.lax.psum((output.logits**2).sum(), "devices")

        mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
        step = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P("devices")), out_specs=P())
        return jax.jit(step).lower(start(UNet(**SHALLOW))["params"], IMAGES).as_text().count("all_reduce")

    assert reductions(remat=True) == reductions(remat=False) > 0


def test_unet_bfloat16_has_float32_logits_and_statistics():
    model = UNet(**SHALLOW, dtype=jnp.bfloat16)
    variables = start(model)
    output, updated = train(model, variables, IMAGES)
    assert output.features.dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves((variables, updated))} == {jnp.dtype(jnp.float32)}
    expected, _ = train(UNet(**SHALLOW), variables, IMAGES)
    assert np.abs(output.logits - expected.logits).mean() < 0.05 * np.abs(expected.logits).mean()


def test_unet_head_bias_sets_the_first_prediction():
    prior = 0.01
    head = {"head_bias": (float(np.log(prior / (1 - prior))),), "head_kernel_stddev": 0.001}
    model = UNet(1, width=4, depth=1, norm="none", padding="zeros", **head)
    output, _ = jax.jit(partial(model.init_with_output, train=False))(KEY, IMAGES)
    np.testing.assert_allclose(jax.nn.sigmoid(output.logits.mean()), prior, rtol=0.02)


@partial(jax.jit, static_argnums=(0,), static_argnames="train")
def stochastic(model: UNet, variables, images, key, train=False, **arguments):
    output, _ = model.apply(variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats"], **arguments)
    return output


TINY = UNet(num_classes=3, width=4, depth=1, norm="none", padding="zeros")
DEEP = TINY.clone(dropout="sampled", heads=2, deep_dropout=1)


def test_unet_parameters_do_not_depend_on_dropout():
    def last_kernel(model, train=False):  # alone, because compiling all of `init` takes longer
        return jax.jit(lambda: model.init(KEY, IMAGES, train=train)["params"]["up0"]["conv2"]["kernel"])()

    np.testing.assert_array_equal(last_kernel(DEEP, train=True), last_kernel(TINY))
    assert start(DEEP).keys() == start(TINY).keys()


def test_unet_samples_are_of_the_features_of_the_logits():
    output = stochastic(DEEP, start(TINY), IMAGES, KEY, rate=0.0)
    assert output.mc_logits.shape == (2, *output.logits.shape)
    np.testing.assert_allclose(output.mc_logits, jnp.broadcast_to(output.logits, output.mc_logits.shape), atol=1e-5)
    linear = start(TINY)["params"]["head"]["linear"]
    np.testing.assert_allclose(output.features @ linear["kernel"] + linear["bias"], output.logits, atol=1e-5)


def test_unet_dropout_key_selects_the_pass():
    one, other, off = (
        stochastic(DEEP, start(TINY), IMAGES, jax.random.key(seed), rate=0.2, deep_rate=deep_rate)
        for seed, deep_rate in ((4, 0.5), (5, 0.5), (4, 0.0))
    )
    assert np.abs(one.logits - other.logits).max() > 1e-3
    clean = evaluate(DEEP, start(TINY), IMAGES)
    assert clean.mc_logits is None
    np.testing.assert_array_equal(clean.logits, evaluate(TINY, start(TINY), IMAGES).logits)
    # Dropout of the heads alone does not change the logits.
    np.testing.assert_allclose(off.logits, clean.logits, atol=1e-5)
    assert np.ptp(off.mc_logits, axis=0).max() > 1e-3


def test_unet_compiles_once_for_all_rates():
    traces = []

    @jax.jit
    def spread(rate, deep_rate):
        traces.append(rate)
        rates = {"rate": rate, "deep_rate": deep_rate}
        output = DEEP.apply(start(TINY), IMAGES, train=False, rngs={"dropout": KEY}, **rates)
        return output.mc_logits

    np.testing.assert_allclose(spread(0.2, 0.5), stochastic(DEEP, start(TINY), IMAGES, KEY).mc_logits, atol=1e-5)
    assert np.ptp(spread(0.0, 0.5), axis=0).max() < 1e-5
    assert np.isfinite(spread(0.999, 0.999)).all()
    assert len(traces) == 1


def test_unet_masks_depend_on_examples_and_not_on_batch_order():
    examples, order = jnp.array([5, 0, 9, 2]), jnp.array([2, 3, 1, 0])
    whole = stochastic(DEEP, start(TINY), IMAGES, KEY, examples=examples)
    permuted = stochastic(DEEP, start(TINY), IMAGES[order], KEY, examples=examples[order])
    np.testing.assert_allclose(permuted.mc_logits, whole.mc_logits[:, order], atol=1e-5)
    np.testing.assert_allclose(permuted.logits, whole.logits[order], atol=1e-5)


def test_unet_logit_variance_needs_no_key_and_has_gradients():
    model, variables = TINY.clone(dropout="analytic"), start(TINY)
    output = evaluate(model, variables, IMAGES)
    w = variables["params"]["head"]["linear"]["kernel"]
    np.testing.assert_allclose(output.logit_variance, 0.25 * (output.features**2 @ w**2), rtol=1e-5, atol=1e-7)

    def loss(params):
        return evaluate(model, {"params": params}, IMAGES).logit_variance.mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert np.any(gradient["down0"]["conv1"]["kernel"])
    assert np.any(gradient["head"]["linear"]["kernel"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_unet_sample_variance_has_gradients_for_every_kernel():
    def loss(params):
        output = stochastic(DEEP, {"params": params}, IMAGES, KEY, train=True)
        return output.mc_logits.var(axis=0, ddof=1).mean()

    gradient = jax.jit(jax.grad(loss))(start(TINY)["params"])
    paths = jax.tree_util.tree_leaves_with_path(gradient)
    dead = [jax.tree_util.keystr(path) for path, leaf in paths if not (np.isfinite(leaf).all() and np.any(leaf))]
    # A variance does not depend on the bias.
    assert dead == ["['head']['linear']['bias']"]


@pytest.mark.parametrize(("deep_dropout", "widths"), [(1, [16, 8]), (2, [8, 16, 8, 4])])
def test_unet_deep_dropout_follows_the_deepest_blocks(deep_dropout, widths, monkeypatch):
    # Widths 4, 8, 16 down, then 8 and 4 up, in the order of computation.
    seen = []

    def spy(x, rate, keys):
        seen.append(x.shape[-1])
        return x

    monkeypatch.setattr(network, "dropout", spy)
    model = TINY.clone(depth=2, deep_dropout=deep_dropout)
    variables = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)
    jax.eval_shape(partial(model.apply, train=False, rngs={"dropout": KEY}), variables, IMAGES)
    assert seen == widths


@pytest.mark.parametrize(
    "fields", [{"dropout": "sampled"}, {"deep_dropout": 1}, {"dropout": "sampled", "deep_dropout": 1}]
)
def test_unet_training_with_dropout_needs_a_key(fields):
    model = UNet(**SMALL, **fields)
    with pytest.raises(
        ValueError, match=r'train=True with (dropout=\'sampled\'|deep_dropout=1).*rngs={"dropout": key}'
    ):
        model.apply(start(TINY), IMAGES, train=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": "some"}, "dropout must be one of 'none', 'sampled', 'analytic'; got 'some'"),
        ({"mask": "row"}, "mask must be one of 'element', 'channel'; got 'row'"),
        ({"upsample": "cubic"}, "upsample must be one of 'nearest', 'bed_of_nails', .*'pixel_shuffle'; got 'cubic'"),
        ({"max_width": 1}, "max_width must be at least width = 4, or None; got 1"),
        ({"downsample": "mean"}, "downsample must be one of 'max', 'stride'; got 'mean'"),
        ({"upsample": "max_unpool", "downsample": "stride"}, "max_unpool.* needs downsample='max'; got 'stride'"),
        ({"rate": 1.0}, "rate must be at least 0 and less than 1; got 1"),
        ({"deep_rate": -0.5}, "deep_rate must be at least 0 and less than 1; got -0.5"),
        ({"heads": 0}, "heads must be at least 1; got 0"),
        ({"deep_dropout": 3}, "deep_dropout of this UNet must be between 0 and 2; got 3"),
    ],
)
def test_unet_rejects_invalid_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL, **fields).init(jax.random.key(0), IMAGES, train=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0}, "rate must be at least 0 and less than 1; got 1"),
        ({"deep_rate": 2.0}, "deep_rate must be at least 0 and less than 1; got 2"),
        ({"examples": jnp.arange(3)}, r"examples must be one index per image, shape \(4,\); got \(3,\)"),
    ],
)
def test_unet_rejects_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DEEP.apply(start(TINY), IMAGES, train=False, rngs={"dropout": KEY}, **arguments)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (jnp.zeros((8, 8, 3)), ValueError, r"\[batch, height, width, channels\].*got shape \(8, 8, 3\)"),
        (jnp.zeros((1, 0, 8, 3)), ValueError, r"with pixels; got shape \(1, 0, 8, 3\)"),
        (jnp.zeros((1, 8, 8, 3), jnp.uint8), TypeError, "floating point and normalized.* got uint8"),
    ],
)
def test_unet_rejects_invalid_images(images, error, message):
    with pytest.raises(error, match=message):
        UNet(**SMALL).init(jax.random.key(0), images, train=False)


def test_unet_layers_have_readable_names():
    table = UNet(**SMALL).tabulate(jax.random.key(0), IMAGES[:1], train=False, console_kwargs={"width": 240})
    names = ("down0/conv1", "down2/norm2", "up1_transpose", "up0/conv2", "head/linear")
    assert [name for name in names if name not in table] == []


RESNET_SMALL = {"num_classes": 3, "width": 4, "decoder": (16, 12, 8, 6, 4)}
RESNET_IMAGES = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)


@cache
def resnet_shapes(model):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), RESNET_IMAGES)


def test_encoder_unet_parameter_count():
    # sum(p.numel() for p in smp.Unet("resnet34", encoder_weights=None, classes=12).parameters()), version 0.6.0.
    theirs = 24_437_964
    ours = sum(leaf.size for leaf in jax.tree.leaves(resnet_shapes(EncoderUNet(12, encoder_depth=34))["params"]))
    # Their head is a 3×3 convolution of the 16 channels, ours 1×1.
    assert ours + 8 * 16 * 12 == theirs


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("resnet", [32 + 16, 16 + 8, 12 + 4, 8 + 4, 6]),
        ("efficientnet_lite0", [320 + 112, 16 + 40, 12 + 24, 8 + 16, 6]),
        ("efficientnet_lite2", [352 + 120, 16 + 48, 12 + 24, 8 + 16, 6]),
    ],
)
def test_encoder_unet_joins_features_of_the_same_size(encoder, expected):
    params = resnet_shapes(EncoderUNet(**RESNET_SMALL, encoder=encoder))["params"]
    assert [params[f"up{level}"]["conv1"]["kernel"].shape[2] for level in (4, 3, 2, 1, 0)] == expected
    assert params["head"]["linear"]["kernel"].shape == (4, 3)


@pytest.mark.parametrize(("deep_dropout", "widths"), [(1, [32]), (5, [32, 16, 12, 8, 6])])
def test_encoder_unet_deep_dropout_follows_encoder_and_first_decoder_steps(deep_dropout, widths, monkeypatch):
    seen = []
    monkeypatch.setattr(network, "dropout", lambda x, rate, keys: seen.append(x.shape[-1]) or x)
    model, key = EncoderUNet(**RESNET_SMALL, deep_dropout=deep_dropout), jax.random.key(0)
    variables = resnet_shapes(EncoderUNet(**RESNET_SMALL))
    jax.eval_shape(partial(model.apply, train=False, rngs={"dropout": key}), variables, RESNET_IMAGES)
    assert seen == widths


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": (8, 4)}, r"decoder must have 5 positive widths, one per step; got \(8, 4\)"),
        (
            {"encoder": "unet"},
            "encoder must be one of 'resnet', 'efficientnet_lite0', 'efficientnet_lite2'; got 'unet'",
        ),
        ({"encoder_depth": 19}, "encoder_depth must be one of 18, 34, 50, 101; got 19"),
        ({"deep_dropout": 6}, "deep_dropout of this EncoderUNet must be between 0 and 5; got 6"),
    ],
)
def test_encoder_unet_rejects_invalid_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        EncoderUNet(**RESNET_SMALL | fields).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
