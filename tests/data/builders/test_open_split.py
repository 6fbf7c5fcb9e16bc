import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tensorflow_datasets.datasets.cityscapes import cityscapes_dataset_builder

from segjax.data import DATASETS, VOID, DataError, Source, label_set, open_split, train_loader
from segjax.data.builders import tfds_builders
from segjax.data.builders.tfds_builders import CamVid, RoadDebris, RoadDebrisConfig
from segjax.data.labels import LABEL_SETS
from segjax.data.road_debris import scene


@pytest.fixture(scope="module")
def prepared(make, config, tmp_path_factory):
    """Every data set of files, prepared once: name → its config."""
    root = tmp_path_factory.mktemp("sets")
    return {
        name: config(name, root / "prepared", getattr(make, name)(root / name))
        for name in ("camvid", "crackforest", "cityscapes", "lost_and_found")
    }


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("camvid", {"train": 5, "val": 3}),
        ("crackforest", {"train": 4, "test": 2}),
        ("cityscapes", {"train": 4, "val": 2, "test": 2}),
        ("lost_and_found", {"train": 2, "test": 4}),
    ],
)
def test_every_split_is_read_in_order(make, prepared, name, splits):
    for split, count in splits.items():
        source = open_split(prepared[name], split)
        assert isinstance(source, Source)
        assert (len(source), source.native_size, source.largest_size) == (count, make.SIZE, make.SIZE)
        assert source.label_set is LABEL_SETS[name]
        names = [source.name(i) for i in range(count)]
        assert names == sorted(names)
        assert [source[i]["name"] for i in range(count)] == names


def test_images_and_labels_are_those_of_the_files(make, prepared):
    example = open_split(prepared["camvid"], "train")[2]
    np.testing.assert_array_equal(example["image"], make.image(2))
    raw = make.ids(2, classes=12)
    np.testing.assert_array_equal(example["label"], np.where(raw == 11, VOID, raw))


def test_ground_truth_in_matlab_files_is_read(make, prepared):
    example = open_split(prepared["crackforest"], "train")[0]
    raw = make.ids(1, make.SIZE, 4) + 1
    np.testing.assert_array_equal(example["label"], np.select([raw == 1, raw == 2], [0, 1], VOID))


def test_archives_are_stored_with_the_catalogues_features_and_bytes(make, prepared):
    builder = tfds.builder("cityscapes", data_dir=prepared["cityscapes"].data_dir, try_gcs=False)
    assert builder.info.full_name == "cityscapes/semantic_segmentation/1.0.0"
    assert set(builder.info.features) == {"image_id", "image_left", "segmentation_label"}
    raw = builder.as_data_source("validation", decoders={"image_left": tfds.decode.SkipDecoding()})
    assert raw[0]["image_left"] == make.encoded(make.image(0))
    np.testing.assert_array_equal(raw[0]["segmentation_label"][..., 0], make.ids(0, make.SIZE, 34))


def test_slices_of_a_split_and_a_folder_of_one_set_are_opened(prepared, config):
    data = prepared["camvid"]
    assert [len(open_split(data, s)) for s in ("train[:2]", "val[1:]", "validation", "train+val")] == [2, 2, 3, 8]
    direct = config("camvid", f"{data.data_dir}/camvid/1.0.0")
    assert len(open_split(direct, "val")) == 3


def test_sources_are_picklable(prepared):
    source = open_split(prepared["camvid"], "val")
    again = pickle.loads(pickle.dumps(source))
    assert (again.native_size, len(again)) == (source.native_size, len(source))
    np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


def test_an_unknown_split_is_named(prepared):
    with pytest.raises(DataError, match=r"camvid/1.0.0: no split 'test'; prepared are train, validation\. If its raw"):
        open_split(prepared["camvid"], "test")
    with pytest.raises(DataError, match=r"the split 'train\[:0\]' is empty"):
        open_split(prepared["camvid"], "train[:0]")


def test_different_sizes_and_grey_images_are_described(make, config, tmp_path):
    root = tmp_path / "raw"
    for split in ("train", "val"):
        for i, shape in enumerate([(12, 16), (20, 10)]):
            make.put(root / split / f"{i}.png", make.encoded(make.image(i, shape, 1)))
            make.put(root / f"{split}annot" / f"{i}.png", make.encoded(make.ids(i, shape)))
    source = open_split(config("camvid", tmp_path / "prepared", root), "train")
    assert (source.native_size, source.largest_size, source.channels) == (None, (20, 16), 1)
    assert source[1]["image"].shape == (20, 10, 1)


def test_road_debris_is_drawn_and_read_as_scene_or_binary(config, tmp_path):
    data = ConfigDict({"name": "road_debris", "data_dir": str(tmp_path), "manual_dir": "", "scene_seed": 3})
    data.update(scene_size=(64, 96), train_examples=3, val_examples=2)
    assert [len(open_split(data, split)) for split in ("train", "val")] == [3, 2]
    drawn = scene(3, 1, height=64, width=96)
    binary = open_split(data, "train")
    np.testing.assert_array_equal(binary[1]["image"], drawn.image)
    truth = np.where(drawn.label == VOID, VOID, drawn.label == 4)
    np.testing.assert_array_equal(binary[1]["label"], truth)
    data.name = "road_debris_scene"
    np.testing.assert_array_equal(open_split(data, "train")[1]["label"], drawn.label)
    assert [path.name for path in (tmp_path / "road_debris").iterdir()] == [binary_config(data)]


def binary_config(data):
    return RoadDebrisConfig(height=64, width=96, seed=data.scene_seed, train_examples=3, val_examples=2).name


def test_another_drawing_is_another_set(monkeypatch, tmp_path):
    before = RoadDebris(data_dir=tmp_path).data_dir
    monkeypatch.setattr("segjax.data.builders.tfds_builders.edition", lambda: "changed")
    assert RoadDebris(data_dir=tmp_path).data_dir == before.rsplit("_", 1)[0] + "_changed/1.0.0"


def test_a_set_of_no_scenes_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="road_debris: val_examples must be at least 1; got 0"):
        open_split(config("road_debris", tmp_path, val_examples=0), "train")


class FromTheCatalogue(cityscapes_dataset_builder.Builder, skip_registration=True):
    """The catalogue's features, version and names; only its listing of files, which needs TensorFlow, is replaced."""

    name = "cityscapes"
    url_infos = None
    images: tuple = ()

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self, **paths):
        for i, (image, mask) in enumerate(self.images):
            yield f"x_{i}", {"image_id": f"x_{i}", "image_left": image, "segmentation_label": mask}


def test_what_the_catalogues_builder_prepared_is_read(make, config, tmp_path):
    image, mask = np.full((1024, 2048, 3), 7, np.uint8), np.full((1024, 2048), 26, np.uint8)
    builder = FromTheCatalogue(data_dir=tmp_path, config="semantic_segmentation", file_format="array_record")
    builder.images = ((make.encoded(image), make.encoded(mask)),)
    builder.download_and_prepare()
    source = open_split(config("cityscapes", tmp_path), "train")
    assert (len(source), source.native_size, source.channels) == (1, (1024, 2048), 3)
    example = source[0]
    assert example["name"] == "x_0"
    np.testing.assert_array_equal(example["image"], image)
    assert (example["label"] == source.label_set.names.index("car")).all()


def test_a_set_without_random_access_says_how_to_get_it(make, config, tmp_path):
    data = config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw"))
    open_split(data, "train")
    info = tmp_path / "prepared" / "camvid" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"prepared as tfrecord, which has no random access; .*'array_record'"):
        open_split(config("camvid", info.parent), "train")


def test_features_of_another_task_are_named(config, tmp_path, monkeypatch, make):
    monkeypatch.setattr(CamVid, "IMAGE", "picture")
    with pytest.raises(DataError, match=r"expected the features image or image_left, segm.*; got .*picture"):
        open_split(config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw")), "train")


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
        (damage_image, r"val/0001.png: cannot be decoded; expected a PNG or JPEG image, got \d+ bytes"),
        (damage_size, r"valannot/0001.png: a mask of 3×3 for an image of 12×16"),
        (damage_label, r"valannot/0001.png: label id 12 is outside the 11 classes; expected the ids 0-11"),
        (damage_pair, r"valannot/0001.png: a mask without an image; expected an image named '0001'"),
        (damage_split, r"raw: an empty split; expected at least one image with its mask, found 0 images"),
    ],
)
def test_bad_input_fails_before_anything_is_prepared(make, config, tmp_path, damage, message):
    root = make.camvid(tmp_path / "raw")
    damage(make, root)
    data = config("camvid", tmp_path / "prepared", root)
    for _ in range(2):  # the second run must not take the remains of the first for the data
        with pytest.raises(ValueError, match=message):
            open_split(data, "train")
    assert [path.name for path in (tmp_path / "prepared" / "camvid").iterdir()] == [".1.0.0.lock"]


def test_skip_prepares_a_set_of_its_own_without_the_bad_pairs(make, config, tmp_path):
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
    with pytest.raises(DataError, match="was prepared from other files"):  # and what was whole is not it
        open_split(whole, "val")


def test_skip_notices_that_a_file_was_repaired(make, config, tmp_path):
    root = make.camvid(tmp_path / "raw")
    damage_pair(make, root)
    data = config("camvid", tmp_path / "prepared", root, on_error="skip")
    assert len(open_split(data, "val").skipped) == 1
    make.camvid(root)
    with pytest.raises(DataError, match=r"camvid/skip/1.0.0: was prepared from other files than .*/raw holds now"):
        open_split(data, "val")


def test_skip_of_a_set_with_configs_keeps_the_split(make, config, tmp_path):
    root = make.cityscapes(tmp_path / "raw")
    with zipfile.ZipFile(root / "gtFine_trainvaltest.zip", "a") as archive:
        archive.writestr("gtFine/val/lindau/lindau_000009_000019_gtFine_labelIds.png", make.encoded(make.ids()))
    data = config("cityscapes", tmp_path / "prepared", root, on_error="skip")
    val = open_split(data, "val")
    assert (len(val), len(val.skipped)) == (2, 1)
    assert "lindau_000009_000019_gtFine_labelIds.png: a mask without an image" in val.skipped[0]


def test_crackforest_skips_ground_truth_that_cannot_be_read(make, config, tmp_path):
    root = make.crackforest(tmp_path / "raw")
    make.put(root / "groundTruth" / "002.mat", b"words" * 100)
    with pytest.raises(DataError, match=r"002.mat: expected a MATLAB file with groundTruth.Segmentation"):
        open_split(config("crackforest", tmp_path / "prepared", root), "train")
    train = open_split(config("crackforest", tmp_path / "prepared", root, on_error="skip"), "train")
    assert [train.name(i) for i in range(len(train))] == ["001", "004", "005"]
    assert "002.mat: expected a MATLAB file" in train.skipped[0]


def test_a_file_that_turns_bad_between_verifying_and_preparing_leaves_nothing(make, config, tmp_path, monkeypatch):
    root = make.camvid(tmp_path / "raw")
    verify = tfds_builders.verify

    def then_damage(*arguments):
        found = verify(*arguments)
        if found.pairs[0].image.path.startswith(str(root / "val")):
            damage_image(make, root)
        return found

    monkeypatch.setattr(tfds_builders, "verify", then_damage)
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
def test_a_prepared_set_that_is_damaged_is_named(make, config, tmp_path, name, damage):
    data = config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw"))
    open_split(data, "train")
    damage(tmp_path / "prepared" / "camvid" / "1.0.0" / name)
    with pytest.raises(DataError, match=r"prepared/camvid(/1.0.0)?: a prepared set that is damaged .*Delete this"):
        open_split(data, "train")


def test_a_prepared_file_that_vanishes_while_training_is_named_by_a_worker(make, config, tmp_path):
    source = open_split(config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw")), "train")
    (tmp_path / "prepared" / "camvid" / "1.0.0" / "camvid-train.array_record-00000-of-00001").unlink()
    loader = train_loader(source, global_batch_size=2, seed=0, size=None, workers=1)
    with pytest.raises(DataError, match=r"camvid/1.0.0: a prepared set that is damaged .*camvid-train.array_record"):
        next(loader)
    loader.close()


def test_after_a_failure_or_a_kill_the_next_run_prepares(make, config, tmp_path):
    root = make.camvid(tmp_path / "raw")
    data, home = config("camvid", tmp_path / "prepared", root), tmp_path / "prepared" / "camvid"
    damage_image(make, root)
    with pytest.raises(DataError):
        open_split(data, "train")
    make.camvid(root)
    make.put(home / "incomplete.A1B2C3_1.0.0" / "camvid-train.array_record-00000-of-00001", b"half")
    assert len(open_split(data, "train")) == 5
    assert sorted(path.name for path in home.iterdir()) == [".1.0.0.lock", "1.0.0"]


def test_files_that_changed_since_are_refused(make, config, tmp_path, monkeypatch):
    root = make.camvid(tmp_path / "raw")
    data = config("camvid", tmp_path / "prepared", root)
    open_split(data, "train")
    make.camvid(root, splits=[("test", 2)])
    with pytest.raises(DataError, match=r"camvid/1.0.0: was prepared from other files than .*/raw holds now\. Delete"):
        open_split(data, "train")
    assert len(open_split(config("camvid", tmp_path / "prepared", tmp_path), "train")) == 5  # raw files tidied away
    monkeypatch.delenv("SEGJAX_CAMVID_DIR", raising=False)
    assert len(open_split(config("camvid", tmp_path / "prepared"), "train")) == 5


def test_raw_files_are_found_by_the_environment_or_tfds(make, config, tmp_path, monkeypatch):
    monkeypatch.delenv("SEGJAX_CAMVID_DIR", raising=False)
    make.camvid(tmp_path / "a" / "downloads" / "manual" / "camvid")
    assert len(open_split(config("camvid", tmp_path / "a"), "val")) == 3
    monkeypatch.setenv("SEGJAX_CAMVID_DIR", str(make.camvid(tmp_path / "raw")))
    assert len(open_split(config("camvid", tmp_path / "b"), "val")) == 3


def test_raw_files_that_are_nowhere_say_what_to_set(config, tmp_path, monkeypatch):
    monkeypatch.delenv("SEGJAX_LOST_AND_FOUND_DIR", raising=False)
    with pytest.raises(
        DataError,
        match=r"lost_and_found: not prepared in .* and no raw files in .*\$SEGJAX_LOST_AND_FOUND_DIR to: left",
    ):
        open_split(config("lost_and_found", tmp_path), "train")


def test_an_unknown_name_lists_the_known_ones(config):
    with pytest.raises(ValueError, match=r"config.data.name must be one of road_debris, .*, folder; got 'kitti'"):
        open_split(config("kitti"), "train")


def test_every_data_set_has_classes(config):
    for name in DATASETS.keys() - {"folder"}:
        assert label_set(config(name)).num_classes >= 2


TWO_AT_ONCE = """
import sys
from types import SimpleNamespace
from segjax.data import eval_batches, open_split, train_loader

data = SimpleNamespace(name="camvid", data_dir=sys.argv[1], manual_dir=sys.argv[2])
batch = next(train_loader(open_split(data, "train"), global_batch_size=2, seed=0, size=None))
read = sum(int(batch["where"].sum()) for batch in eval_batches(open_split(data, "val"), global_batch_size=2, size=None))
print(batch["image"].shape, read, "tensorflow" in sys.modules)
"""


def test_two_processes_prepare_once_and_never_import_tensorflow(make, tmp_path):
    command = [sys.executable, "-c", TWO_AT_ONCE, tmp_path / "prepared", make.camvid(tmp_path / "raw")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in results] == ["(2, 12, 16, 3) 3 False\n"] * 2, results
    said = "".join(err for _, err in results)
    assert said.count("segjax: preparing camvid from") == 1


READ_EVERYTHING = """
import pickle, sys
from types import SimpleNamespace
from segjax.data import open_split

unpickled = []
sys.addaudithook(lambda event, _: unpickled.append(event) if event == "pickle.find_class" else None)
for name, split in (("camvid", "val"), ("crackforest", "train"), ("cityscapes", "val")):
    folder = f"{sys.argv[1]}/{name}"
    source = open_split(SimpleNamespace(name=name, data_dir=f"{folder}_prepared", manual_dir=folder), split)
    print(name, len([source[i] for i in range(len(source))]))
print(unpickled)
pickle.loads(pickle.dumps(SimpleNamespace()))
print(unpickled)
"""


def test_no_file_is_unpickled(make, tmp_path, python):
    for name in ("camvid", "crackforest", "cityscapes"):
        getattr(make, name)(tmp_path / name)
    done = python("-c", READ_EVERYTHING, tmp_path)
    *read, before, after = done.stdout.splitlines()
    assert read == ["camvid 3", "crackforest 4", "cityscapes 2"], done.stderr
    assert before == "[]"
    assert after == "['pickle.find_class']"  # so the hook does hear it
