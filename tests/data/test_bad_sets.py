"""Errors for raw files and prepared sets that are damaged, incomplete or changed."""

import os
import shutil
import zipfile

import cv2
import numpy as np
import pytest

from segjax.data import DataError, builders, datasets, open_split, train_loader
from segjax.data.pairs import fingerprint


def damage_image(make, root):
    make.put(root / "val" / "0001.png", make.encoded(make.image())[:-40])


def damage_size(make, root):
    make.put(root / "valannot" / "0001.png", make.encoded(make.ids(size=(3, 3))))


def damage_label(make, root):
    make.put(root / "valannot" / "0001.png", make.encoded(np.full(make.SIZE, 12, np.uint8)))


def damage_pair(make, root):
    (root / "val" / "0001.png").unlink()


def damage_split(make, root):
    for path in [*(root / "val").iterdir(), *(root / "valannot").iterdir()]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_image, r"val/0001.png: cannot be decoded; expected PNG, JPEG, .* got \d+ bytes"),
        (damage_size, r"valannot/0001.png: a mask of 3×3 for an image of 12×16"),
        (damage_label, r"valannot/0001.png: label id 12 is outside the 11 classes; expected the ids 0-11"),
        (damage_pair, r"valannot/0001.png: a mask without an image; expected an image named '0001'"),
        (damage_split, r"raw: an empty split; expected at least one image with its mask, found 0 images"),
    ],
)
def test_open_split_fails_before_preparing_bad_files(make, config, tmp_path, damage, message):
    root = make.camvid(tmp_path / "raw")
    damage(make, root)
    data = config("camvid", tmp_path / "prepared", root)
    for _ in range(2):  # the second run must not use the remains of the first
        with pytest.raises(ValueError, match=message):
            open_split(data, "train")
    assert [path.name for path in (tmp_path / "prepared" / "camvid").iterdir()] == [".1.0.0.lock"]


def test_open_split_skip_prepares_another_set_without_bad_pairs(make, config, tmp_path):
    root = make.camvid(tmp_path / "raw")
    whole = config("camvid", tmp_path / "prepared", root)
    assert len(open_split(whole, "val")) == 3
    damage_image(make, root)
    make.put(root / "train" / "9999.png", make.encoded(make.image()))
    skipping = config("camvid", tmp_path / "prepared", root, on_error="skip")
    for _ in range(2):  # prepared, then read
        train, val = (open_split(skipping, split) for split in ("train", "val"))
        assert [len(train), len(train.skipped), len(val), len(val.skipped)] == [5, 1, 2, 1]
        assert "train/9999.png: an image without a mask; expected a mask named '9999'" in train.skipped[0]
        assert "val/0001.png: cannot be decoded" in val.skipped[0]
    assert [val[i]["name"] for i in range(2)] == ["0000", "0002"]
    with pytest.raises(DataError, match="prepared from files that differ"):  # the whole set is out of date
        open_split(whole, "val")


def test_open_split_skip_detects_a_repaired_file(make, config, tmp_path):
    root = make.camvid(tmp_path / "raw")
    damage_pair(make, root)
    data = config("camvid", tmp_path / "prepared", root, on_error="skip")
    assert len(open_split(data, "val").skipped) == 1
    make.camvid(root)
    with pytest.raises(DataError, match=r"camvid/skip/1.0.0: prepared from files that differ from those in .*/raw"):
        open_split(data, "val")


def test_open_split_skip_keeps_the_split_of_archives(make, config, tmp_path):
    root = make.cityscapes(tmp_path / "raw")
    with zipfile.ZipFile(root / "gtFine_trainvaltest.zip", "a") as archive:
        archive.writestr("gtFine/val/lindau/lindau_000009_000019_gtFine_labelIds.png", make.encoded(make.ids()))
    data = config("cityscapes", tmp_path / "prepared", root, on_error="skip")
    val = open_split(data, "val")
    assert (len(val), len(val.skipped)) == (2, 1)
    assert "lindau_000009_000019_gtFine_labelIds.png: a mask without an image" in val.skipped[0]


def test_open_split_skip_leaves_out_damaged_matlab_file(make, config, tmp_path):
    root = make.crackforest(tmp_path / "raw")
    make.put(root / "groundTruth" / "002.mat", b"words" * 100)
    with pytest.raises(DataError, match=r"002.mat: expected a MATLAB file with groundTruth.Segmentation"):
        open_split(config("crackforest", tmp_path / "prepared", root), "train")
    train = open_split(config("crackforest", tmp_path / "prepared", root, on_error="skip"), "train")
    assert [train.name(i) for i in range(len(train))] == ["001", "004", "005"]
    assert "002.mat: expected a MATLAB file" in train.skipped[0]


def test_open_split_file_damaged_while_preparing_leaves_no_set(make, config, tmp_path, monkeypatch):
    root = make.camvid(tmp_path / "raw")
    verify = builders.verify

    def then_damage(*arguments):
        found = verify(*arguments)
        if found.pairs[0].image.path.startswith(str(root / "val")):
            damage_image(make, root)
        return found

    monkeypatch.setattr(builders, "verify", then_damage)
    data = config("camvid", tmp_path / "prepared", root)
    with pytest.raises(DataError, match=r"val/0001.png: has changed since it was verified"):
        open_split(data, "train")
    monkeypatch.undo()
    make.camvid(root)
    assert len(open_split(data, "val")) == 3


def flip(file):
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 20):
        data[i] ^= 0x55
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("camvid-train.array_record-00000-of-00001", lambda file: file.unlink()),
        ("camvid-train.array_record-00000-of-00001", lambda file: os.truncate(file, 70_000)),
        ("camvid-train.array_record-00000-of-00001", lambda file: os.truncate(file, 0)),
        ("camvid-train.array_record-00000-of-00001", flip),
        ("dataset_info.json", lambda file: os.truncate(file, 100)),
        ("dataset_info.json", lambda file: file.unlink()),
        ("features.json", lambda file: os.truncate(file, 100)),
        ("features.json", lambda file: file.unlink()),
    ],
)
def test_open_split_damaged_prepared_set(make, config, tmp_path, name, damage):
    data = config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw"))
    open_split(data, "train")
    damage(tmp_path / "prepared" / "camvid" / "1.0.0" / name)
    with pytest.raises(DataError, match=r"prepared/camvid(/1.0.0)?: a prepared set that is damaged .*Delete this"):
        open_split(data, "train")


@pytest.mark.slow  # TFDS reads the set a hundred times
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
def test_open_split_any_damage_to_the_json_of_a_prepared_set(make, config, tmp_path, misread, name):
    data = config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw"))
    open_split(data, "train")
    returned = misread(
        tmp_path / "prepared" / "camvid" / "1.0.0" / name, lambda: open_split(data, "train"), without=["pipe"]
    )
    assert not {"empty", "half", "lists", "binary"} & returned


@pytest.mark.slow
def test_worker_reports_a_deleted_prepared_file(make, config, tmp_path):
    source = open_split(config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw")), "train")
    (tmp_path / "prepared" / "camvid" / "1.0.0" / "camvid-train.array_record-00000-of-00001").unlink()
    loader = train_loader(source, global_batch_size=2, seed=0, size=None, workers=1)
    with pytest.raises(DataError, match=r"camvid/1.0.0: a prepared set that is damaged .*camvid-train.array_record"):
        next(loader)
    loader.close()


def test_open_split_prepares_after_a_failure_or_a_kill(make, config, tmp_path):
    root = make.camvid(tmp_path / "raw")
    data, home = config("camvid", tmp_path / "prepared", root), tmp_path / "prepared" / "camvid"
    damage_image(make, root)
    with pytest.raises(DataError):
        open_split(data, "train")
    make.camvid(root)
    make.put(home / "incomplete.A1B2C3_1.0.0" / "camvid-train.array_record-00000-of-00001", b"half")
    assert len(open_split(data, "train")) == 5
    assert sorted(path.name for path in home.iterdir()) == [".1.0.0.lock", "1.0.0"]


def test_open_split_refuses_changed_raw_files(make, config, tmp_path, monkeypatch):
    root = make.camvid(tmp_path / "raw")
    data = config("camvid", tmp_path / "prepared", root)
    open_split(data, "train")
    make.camvid(root, splits=[("test", 2)])
    with pytest.raises(
        DataError, match=r"camvid/1.0.0: prepared from files that differ from those in .*raw, or .*Delete it"
    ):
        open_split(data, "train")
    assert len(open_split(config("camvid", tmp_path / "prepared", tmp_path), "train")) == 5  # raw files tidied away
    monkeypatch.delenv("SEGJAX_CAMVID_DIR", raising=False)
    assert len(open_split(config("camvid", tmp_path / "prepared"), "train")) == 5


def repaint(mask):
    """Paints class 3 over the upper half of a mask; the size of the file stays the same."""
    ids = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    ids[: len(ids) // 2] = 3
    mask.write_bytes(stored_png(ids))


def stored_png(ids):
    return cv2.imencode(".png", ids, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()


def test_open_split_refuses_a_mask_repainted_at_the_same_size(make, config, tmp_path):
    mask = make.camvid(tmp_path / "raw") / "trainannot" / "0001.png"
    make.put(mask, stored_png(make.ids(1)))
    data, before = config("camvid", tmp_path / "prepared", tmp_path / "raw"), mask.stat()
    open_split(data, "train")
    repaint(mask)
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert mask.stat().st_size == before.st_size
    with pytest.raises(DataError, match=r"prepared from files that differ from those in .*raw, .*Delete it"):
        open_split(data, "train")


def test_open_split_reads_raw_files_again_only_if_their_times_differ(make, config, tmp_path, monkeypatch):
    root = make.camvid(tmp_path / "raw")
    data = config("camvid", tmp_path / "prepared", root)
    open_split(data, "train")
    calls = []
    monkeypatch.setattr(datasets, "fingerprint", lambda splits: calls.append(splits) or fingerprint(splits))
    open_split(data, "train")
    assert not calls
    shutil.copytree(root, tmp_path / "copy")
    assert len(open_split(config("camvid", tmp_path / "prepared", tmp_path / "copy"), "train")) == 5
    assert len(calls) == 1


def test_fingerprint_of_an_archive_reads_no_member(make, monkeypatch, tmp_path):
    splits = builders.Cityscapes.list_files(make.cityscapes(tmp_path / "raw"))
    monkeypatch.setattr("segjax.data.pairs.read_bytes", None)
    assert len(fingerprint(splits)) == 16
