"""The real CamVid and CrackForest, in the folders $SEGJAX_CAMVID_DIR and $SEGJAX_CRACKFOREST_DIR."""

import os

import numpy as np
import pytest

from segjax.data import VOID, open_split

pytestmark = pytest.mark.slow

# Per cent of the training pixels of CamVid, void last.
CAMVID_SHARES = (16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3, 4.0)


def shares(sources, classes):
    counts = sum(
        np.bincount(source[i]["label"].ravel(), minlength=256) for source in sources for i in range(len(source))
    )
    return 100 * np.array([*counts[:classes], counts[VOID]]) / counts.sum()


@pytest.fixture
def real(config, tmp_path):
    def build(name):
        variable = f"SEGJAX_{name.upper()}_DIR"
        if not os.environ.get(variable):
            pytest.skip(f"${variable} is not set: it would name the folder of the real {name}")
        return config(name, tmp_path)

    return build


@pytest.fixture
def plain_folder(config):
    """Returns a function that builds the config of the raw files as a folder, with the classes of a source."""

    def build(name, source, **fields):
        root = os.environ[f"SEGJAX_{name.upper()}_DIR"]
        return config("folder", manual_dir=root, class_names=source.label_set.names, **fields)

    return build


def assert_same_examples(folder, sources):
    places = {folder.name(i): i for i in range(len(folder))}
    assert len(places) == sum(map(len, sources))
    for example in (source[i] for source in sources for i in range(len(source))):
        same = folder[places[example["name"]]]
        np.testing.assert_array_equal(same["image"], example["image"])
        np.testing.assert_array_equal(same["label"], example["label"])


def test_real_camvid(real, plain_folder):
    data = real("camvid")
    train, val = open_split(data, "train"), open_split(data, "val")
    assert (len(train), len(val)) == (367, 101)
    assert {train.native_size, val.native_size} == {(360, 480)}
    np.testing.assert_allclose(shares([train], 11), CAMVID_SHARES, atol=0.1)
    as_folder = plain_folder("camvid", val, mask_values=tuple(range(11)), void_values=(11,))
    for split, source in (("train", train), ("val", val)):
        assert_same_examples(open_split(as_folder, split), [source])


def test_real_crackforest(real, plain_folder):
    data = real("crackforest")
    sources = [open_split(data, "train"), open_split(data, "test")]
    assert [len(source) for source in sources] == [79, 39]
    assert {source.native_size for source in sources} == {(320, 480)}
    np.testing.assert_allclose(shares(sources, 2), (97.7, 1.6, 0.67), atol=0.1)
    as_folder = plain_folder("crackforest", sources[0], mask_values=(1, 2), void_values=(3, 4), on_error="skip")
    assert_same_examples(open_split(as_folder, "all"), sources)
