import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.camvid import architectures
from experiments.camvid.uncertainty_ladder import TOLERANCE
from experiments.sweep import grid
from segjax import metrics
from segjax.data.labels import VOID
from segjax.models import Segmentation
from segjax.reporting import spread
from segjax.training import defaults
from segjax.training.fields import NETWORKS
from segjax.training.network import TrainState, make_model
from segjax.training.train_step import init_state

TINY = {"model.width": 4, "model.depth": 1, "model.padding": "zeros", "data.size": (16, 24)}


def test_rows_are_valid_configs_of_every_network_and_one_recipe():
    cells = grid.make_cells(architectures.base_config(), architectures.ROWS, (1,))
    for cell in cells:
        make_model(cell.config, architectures.CLASSES)
        assert (cell.config.seed, cell.config.training.steps, cell.config.training.global_batch) == (1, 1472, 2)
        assert all(key.startswith("model.") for key in cell.changes if key != "seed")
    assert {cell.config.model.name for cell in cells} == set(NETWORKS)
    strides = {"DeepLab v2, ResNet-18": 8, "DeepLab v3+, ResNet-18": 16}
    for cell in cells:
        if cell.row in strides:  # dilations must fit in the feature map
            assert max(cell.config.model.aspp_dilations) < min(cell.config.data.size) // strides[cell.row]


def test_segnet_boundary_f1_sums_add_up_to_the_metric():
    counts = np.random.default_rng(0).integers(0, 9, (6, 4, 4)).astype(np.int32)
    counts[..., 0], counts[..., 2] = (
        np.minimum(counts[..., 0], counts[..., 1]),
        np.minimum(counts[..., 2], counts[..., 3]),
    )
    counts[2, :, 3] = 0  # an image without a boundary
    counts[2, :, 2] = 0
    first, second = map(architectures.segnet_boundary_f1_sums, (counts[:2], counts[2:]))
    total, images = first + second
    assert images == 5
    expected = metrics.boundary_f1_per_image(counts)["mean_boundary_f1_per_image"]
    assert total / images == pytest.approx(expected, rel=1e-5)


def test_make_counts_scores_the_samples_of_deep_dropout():
    config = defaults()
    config.data.size, config.model.width, config.model.depth = (16, 24), 4, 1
    config.model.padding, config.model.deep_dropout = "zeros", 1
    model = make_model(config, 3)
    state = init_state(config, model)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3)).astype(np.uint8),
        "label": np.zeros((1, 16, 24), np.uint8),
        "size": np.array([[16, 24]], np.int32),
        "where": np.array([True]),
    }
    plain = config.copy_and_resolve_references()
    plain.model.deep_dropout = 0
    sampled, clean = (
        jax.jit(architectures.make_counts(one, make_model(one, 3), 3))(state, batch)["confusion"]
        for one in (config, plain)
    )
    assert int(sampled.sum()) == int(clean.sum()) == 16 * 24
    assert not np.array_equal(sampled, clean)


def test_make_counts_at_the_resolution_of_the_labels():
    rng, classes, shape = np.random.default_rng(0), 3, (2, 12, 16)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[0, :3] = VOID
    logits = jnp.asarray(rng.normal(size=(*shape, classes)), jnp.float32)

    class Fixed:
        def apply(self, variables, images, *, train):
            return Segmentation(logits, None, None, images)

    config = defaults()
    config.data.size = shape[1:]
    step = architectures.make_counts(config, Fixed(), classes)
    batch = {
        "image": jnp.zeros((*shape, 3), jnp.uint8),
        "label": jnp.asarray(labels),
        "size": jnp.full((2, 2), jnp.asarray(shape[1:])),
        "where": jnp.array([True, False]),
    }
    counts = jax.jit(step)(TrainState(0, {}, {}, None, None, None, None), batch)
    found = architectures.scores(jax.device_get(counts), images=1)
    predicted, kept = np.asarray(logits.argmax(-1))[:1], labels[:1] != VOID
    assert found["pixel_accuracy"] == pytest.approx((predicted == labels[:1])[kept].mean())
    boundary = metrics.boundary_counts(labels[:1].astype(np.int32), predicted, classes, tolerance=TOLERANCE, where=kept)
    assert found["boundary_f1"] == pytest.approx(float(metrics.boundary_f1(boundary)["mean_boundary_f1"]))


@pytest.mark.slow
def test_costs():
    timed = architectures.costs({"tiny": TINY}, rounds=1)["rows"]["tiny"]
    untimed = architectures.costs({"twice": TINY | {"model.width": 8}}, rounds=0)["rows"]["twice"]
    assert timed["parameters"] < untimed["parameters"]
    # At least the top level: 3×3 kernels from 8 to 4 and from 4 to 4 channels at 16×24 pixels, two operations each.
    assert 2 * 16 * 24 * 9 * (8 * 4 + 4 * 4) < timed["flops"] < untimed["flops"]
    assert timed["images_a_second"] > 0
    assert "images_a_second" not in untimed


def test_report_has_our_scores_beside_those_of_the_papers():
    scores = {"mean_iou": 0.5, "pixel_accuracy": 0.9, "boundary_f1": 0.4, "segnets_boundary_f1": 0.3, "steps": 9}
    origin = dict.fromkeys(("command", "commit", "device", "cpu_threads", "python", "versions"), "x")
    origin["wall_seconds"] = 3600
    cells = [{"row": "SegNet-Basic", "seed": seed, **scores, "provenance": origin} for seed in (0, 1)]
    price = {"parameters": 1.4e6, "flops": 2.5e9}
    cost = {"rows": dict.fromkeys(architectures.ROWS, price), "rounds": 0, "provenance": origin}
    report = architectures.report(cells, cost)
    (name, parameters, flops, rate, iou, *_, paper_iou, paper_accuracy, paper_bf), *others = (
        report.sections[0].tables[0].rows
    )
    assert [row[0] for row in others] == ["FC-DenseNet56", "FC-DenseNet103", "FC-HarDNet84"]
    assert others[0][1:8] == (None, None, None, *[spread([])] * 4)
    assert (name, parameters, flops, rate) == ("SegNet-Basic", "1.40", "2.50", None)
    assert iou.values == (0.5, 0.5)
    assert (paper_iou, paper_accuracy, paper_bf) == ("0.477", "0.827", "0.358")
    assert report.facts["images/s"] == "not timed"
