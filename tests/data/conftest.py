"""Tiny data sets in the layouts of the real ones."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
from PIL import Image

SIZE = (12, 16)


def image(index=0, size=SIZE, channels=3):
    pixels = np.random.default_rng(index).integers(0, 256, (*size, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def ids(index=0, size=SIZE, classes=3):
    return np.random.default_rng(1000 + index).integers(0, classes, size, dtype=np.uint8)


def encoded(pixels, kind="PNG", palette=None, mode=None):
    picture = Image.fromarray(pixels)
    if mode:
        picture = picture.convert(mode)
    if palette is not None:
        picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def camvid(root, size=SIZE, splits=(("train", 5), ("val", 3))):
    for split, count in splits:
        for i in range(count):
            put(root / split / f"{i:04d}.png", encoded(image(i, size)))
            put(root / f"{split}annot" / f"{i:04d}.png", encoded(ids(i, size, 12)))
    return root


def crackforest(root, numbers=range(1, 7)):
    for i in numbers:
        put(root / "image" / f"{i:03d}.jpg", encoded(image(i), "JPEG"))
        (root / "groundTruth").mkdir(exist_ok=True)
        truth = {"Segmentation": ids(i, SIZE, 4) + np.uint8(1), "Boundaries": np.zeros(SIZE, np.uint8)}
        scipy.io.savemat(root / "groundTruth" / f"{i:03d}.mat", {"groundTruth": truth})
    put(root / "image" / "329.jpg", encoded(image(9), "JPEG"))  # has no ground truth, as in the real set
    return root


def by_city(root, images, masks, splits, suffix, classes):
    """Writes archives in the layout of Cityscapes; `images` and `masks` are (ZIP file, top folder)."""
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / images[0], "w") as left, zipfile.ZipFile(root / masks[0], "w") as truth:
        left.writestr("license.txt", "words")
        for split, cities in splits.items():
            for city in cities:
                for i in range(2):
                    stem = f"{split}/{city}/{city}_00000{i}_000019"
                    left.writestr(f"{images[1]}/{stem}_leftImg8bit.png", encoded(image(i)))
                    truth.writestr(f"{masks[1]}/{stem}_{suffix}_labelIds.png", encoded(ids(i, SIZE, classes)))
                    truth.writestr(f"{masks[1]}/{stem}_{suffix}_color.png", encoded(image(i)))
    return root


def cityscapes(root):
    splits = {"train": ["aachen", "bochum"], "val": ["lindau"], "test": ["berlin"]}
    archives = ("leftImg8bit_trainvaltest.zip", "leftImg8bit"), ("gtFine_trainvaltest.zip", "gtFine")
    return by_city(root, *archives, splits, "gtFine", 34)


def lost_and_found(root):
    splits = {"train": ["01_Hanns_Klemm_Str_45"], "test": ["02_Hanns_Klemm_Str_44", "04_Maurener_Weg_8"]}
    return by_city(root, ("leftImg8bit.zip", "leftImg8bit"), ("gtCoarse.zip", "gtCoarse"), splits, "gtCoarse", 43)


def folder(root, count=10, size=None, channels=3, sub=""):
    """Writes images, half of them JPEG and of different sizes unless `size` is given, with palette masks."""
    for i in range(count):
        shape = size or (10 + i % 3, 14 + i % 2)
        kind = ("PNG", "JPEG")[i % 2]
        put(root / sub / "images" / f"road_{i:02d}.{kind.lower()}", encoded(image(i, shape, channels), kind))
        mask = encoded(ids(i, shape), palette=[255, 0, 0, 0, 255, 0, 0, 0, 255], mode="P")
        put(root / sub / "masks" / f"road_{i:02d}.png", mask)
    return root


@pytest.fixture(scope="session")
def make():
    """Returns the functions above, because pytest imports test modules without a package."""
    names = (image, ids, encoded, put, camvid, crackforest, cityscapes, lost_and_found, folder)
    return SimpleNamespace(SIZE=SIZE, **{function.__name__: function for function in names})


@pytest.fixture(scope="session")
def config():
    """Returns a function that builds the data section of a config."""

    def build(name, data_dir="", manual_dir="", **more):
        return SimpleNamespace(name=name, data_dir=str(data_dir), manual_dir=str(manual_dir), **more)

    return build
