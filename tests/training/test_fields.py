"""A config field that nothing reads is an error: train, open a folder, and see which fields were asked for."""

import io
import sys

import cv2
import numpy as np
import pytest
import rich.console
from ml_collections import ConfigDict

from segjax.data import open_split
from segjax.training import defaults, train
from segjax.training.config import NETWORKS, leaves
from segjax.training.train_step import make_model


@pytest.fixture
def read(monkeypatch):
    """The names of the fields read so far, by anything but the config's own bookkeeping."""
    names = set()
    original = ConfigDict.__getitem__

    def spy(config, key):
        frame = sys._getframe(1)
        while "ml_collections" in frame.f_code.co_filename:
            frame = frame.f_back
        if not frame.f_code.co_filename.endswith("config.py"):
            names.add(key)
        return original(config, key)

    monkeypatch.setattr(ConfigDict, "__getitem__", spy)
    return names


def test_every_field_is_read_by_somebody(tiny, tmp_path, read):
    train(tiny, tmp_path / "run", console=rich.console.Console(file=io.StringIO()))
    folder = defaults()
    folder.data.name, folder.data.manual_dir = "folder", str(tmp_path / "folder")
    folder.data.class_names = ("a", "b")
    for sub in ("images", "masks"):
        (tmp_path / "folder" / sub).mkdir(parents=True)
        for i in range(4):
            pixels = np.zeros((8, 8) if sub == "masks" else (8, 8, 3), np.uint8)
            assert cv2.imwrite(str(tmp_path / "folder" / sub / f"{i}.png"), pixels)
    open_split(folder.data, "train")
    for name in NETWORKS:
        folder.model.name = name
        make_model(folder, 2)
    fields = {name.rsplit(".")[-1] for name in leaves(defaults())}
    assert fields - read == set()
