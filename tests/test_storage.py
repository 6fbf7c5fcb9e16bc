import errno
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from segjax.storage import (
    StorageError,
    in_bucket,
    nan_to_none,
    output_folder,
    path_of,
    read_json,
    scratch,
    write_bytes,
    write_json,
    write_together,
)


def test_path_of_returns_a_local_path_unchanged(tmp_path):
    assert str(path_of("runs/a")) == str(path_of(Path("runs/a"))) == "runs/a"
    assert path_of(tmp_path) == epath.Path(tmp_path)
    assert not in_bucket(tmp_path)


@pytest.mark.parametrize("path", ["s3://bucket/run", "https://storage/bucket/run", Path("gs://bucket/run")])
def test_path_of_refuses_an_address_of_another_kind(path):
    with pytest.raises(StorageError, match=r"run: expected a path of this machine, or gs://BUCKET/PATH as a str"):
        path_of(path)


@pytest.mark.parametrize("path", ["gs://", "gs://bucket", "gs://bucket/", "gs:///run"])
def test_path_of_refuses_a_bucket_without_a_folder(path):
    with pytest.raises(StorageError, match=f"^{path}: expected a path in a bucket, gs://BUCKET/PATH$"):
        path_of(path)


def test_path_of_names_the_extra_that_installs_gcsfs(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gcsfs" else found(name, *rest)
    )
    with pytest.raises(
        StorageError, match=r"^gs://b/run: .* gcsfs, which is not installed: pip install .*'\.\[train,gcs\]'$"
    ):
        path_of("gs://b/run")


def test_write_json_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for value, text in (({"a": 1}, '{\n "a": 1\n}\n'), ([float("nan")], "[\n NaN\n]\n")):
        write_json(tmp_path / "a.json", value)
        assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert np.isnan(read_json(tmp_path / "a.json")).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_nan_to_none_replaces_numbers_that_are_not_finite_at_any_depth():
    value = {"a": [1.0, float("nan"), (float("inf"), "NaN", None)], "b": 2}
    assert nan_to_none(value) == {"a": [1.0, None, [None, "NaN", None]], "b": 2}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system does not have /dev/full")
def test_full_disk_keeps_the_old_file_and_removes_the_partial_one(tmp_path):
    write_bytes(tmp_path / "a.png", b"old")
    (tmp_path / "a.png.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.png'$"):
        write_bytes(tmp_path / "a.png", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system does not have /dev/full")
def test_write_together_on_a_full_disk_keeps_all_old_files(tmp_path):
    names = ("model", "card", "script")
    for name in names:
        write_bytes(tmp_path / name, b"old")
    (tmp_path / "card.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/card'$"):
        write_together({tmp_path / name: b"new" for name in names})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys(names, b"old")


def test_output_folder_refuses_a_file(tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert output_folder(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(StorageError, match=r"/notes: expected a folder to write into; it is a file$"):
        output_folder(tmp_path / "notes")


def test_large_scratch_array_is_an_unnamed_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small, large = scratch((5, 5), np.float32, most=100), scratch((5, 6), np.float32, most=100)
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[:] = 3
    assert large.sum() == 90
    assert not any(tmp_path.iterdir())


def test_scratch_array_on_a_full_disk_is_refused_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device (120 bytes needed): '{tmp_path}'")):
        scratch((5, 6), np.float32, most=100)
