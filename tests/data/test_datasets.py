import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tensorflow_datasets.datasets.cityscapes import cityscapes_dataset_builder

from segjax.data import DATASETS, UNSEEN, VOID, DataError, Source, label_set, open_split
from segjax.data.builders import CamVid, RoadDebris, RoadDebrisConfig
from segjax.data.labels import LABEL_SETS
from segjax.data.road_debris import scene


@pytest.fixture(scope="module")
def prepared(make, config, tmp_path_factory):
    """Prepares every data set of files once; returns its config by name."""
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
def test_open_split_reads_every_split_in_order(make, prepared, name, splits):
    for split, count in splits.items():
        source = open_split(prepared[name], split)
        assert isinstance(source, Source)
        assert (len(source), source.native_size, source.sizes) == (count, make.SIZE, [make.SIZE] * count)
        assert source.label_set is LABEL_SETS[name]
        names = [source.name(i) for i in range(count)]
        assert names == sorted(names)
        assert [source[i]["name"] for i in range(count)] == names


def test_open_split_returns_the_pixels_of_the_files(make, prepared):
    example = open_split(prepared["camvid"], "train")[2]
    np.testing.assert_array_equal(example["image"], make.image(2))
    raw = make.ids(2, classes=12)
    np.testing.assert_array_equal(example["label"], np.where(raw == 11, VOID, raw))


def test_open_split_reads_matlab_ground_truth(make, prepared):
    example = open_split(prepared["crackforest"], "train")[0]
    raw = make.ids(1, make.SIZE, 4) + 1
    np.testing.assert_array_equal(example["label"], np.select([raw == 1, raw == 2], [0, 1], VOID))


def test_prepared_cityscapes_has_the_catalogue_features_and_original_bytes(make, prepared):
    builder = tfds.builder("cityscapes", data_dir=prepared["cityscapes"].data_dir, try_gcs=False)
    assert builder.info.full_name == "cityscapes/semantic_segmentation/1.0.0"
    assert set(builder.info.features) == {"image_id", "image_left", "segmentation_label"}
    raw = builder.as_data_source("validation", decoders={"image_left": tfds.decode.SkipDecoding()})
    assert raw[0]["image_left"] == make.encoded(make.image(0))
    np.testing.assert_array_equal(raw[0]["segmentation_label"][..., 0], make.ids(0, make.SIZE, 34))


def test_open_split_unseen_classes_are_void_and_marked_on_request(make, prepared):
    data = SimpleNamespace(**vars(prepared["camvid"]), unseen_classes=("bicyclist", "road"))
    raw, names = make.ids(2, classes=12), LABEL_SETS["camvid"].names
    expected = np.where(np.isin(raw, (10, 3, 11)), VOID, raw - (raw > 3))
    np.testing.assert_array_equal(open_split(data, "train")[2]["label"], expected)
    marked = open_split(data, "train", mark_unseen=True)
    np.testing.assert_array_equal(marked[2]["label"], np.where(np.isin(raw, (10, 3)), UNSEEN, expected))
    assert marked.label_set.names == label_set(data).names == (*names[:3], *names[4:10])
    np.testing.assert_array_equal(marked.label_set.palette[3], LABEL_SETS["camvid"].palette[4])


@pytest.mark.parametrize(
    ("name", "unseen", "message"),
    [
        ("camvid", ("road", "bike"), r"unseen_classes must be classes of camvid: sky, .*; got \('road', 'bike'\)"),
        ("road_debris", ("debris",), r"unseen_classes must leave at least 2 of the 2 classes of road_debris; got \('d"),
    ],
)
def test_label_set_unknown_or_too_many_unseen_classes(config, name, unseen, message):
    with pytest.raises(DataError, match=f"^config.data.{message}"):
        label_set(config(name, unseen_classes=unseen))


@pytest.mark.parametrize(("name", "rare"), [("road_debris", "crack"), ("camvid", "car")])
def test_label_set_unknown_rare_class(config, name, rare):
    with pytest.raises(DataError, match=rf"^config.data.rare_class must be one of two classes; .*; got '{rare}'"):
        label_set(config(name, rare_class=rare))


def test_open_split_slices_and_folder_of_one_set(prepared, config):
    data = prepared["camvid"]
    assert [len(open_split(data, s)) for s in ("train[:2]", "val[1:]", "validation", "train+val")] == [2, 2, 3, 8]
    direct = config("camvid", f"{data.data_dir}/camvid/1.0.0")
    assert len(open_split(direct, "val")) == 3


def test_prepared_source_pickles(prepared):
    source = open_split(prepared["camvid"], "val")
    again = pickle.loads(pickle.dumps(source))
    assert (again.native_size, len(again)) == (source.native_size, len(source))
    np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


def test_open_split_unknown_or_empty_split(prepared):
    with pytest.raises(DataError, match=r"camvid/1.0.0: no split 'test'; prepared are train, validation\. If its raw"):
        open_split(prepared["camvid"], "test")
    for split in ("", "["):
        with pytest.raises(DataError, match=r"is not a split; expected train, validation, or a slice such as train\["):
            open_split(prepared["camvid"], split)
    with pytest.raises(DataError, match=r"the split 'train\[:0\]' is empty"):
        open_split(prepared["camvid"], "train[:0]")


def test_open_split_different_sizes_and_grey_images(make, config, tmp_path):
    root = tmp_path / "raw"
    for split in ("train", "val"):
        for i, shape in enumerate([(12, 16), (20, 10)]):
            make.put(root / split / f"{i}.png", make.encoded(make.image(i, shape, 1)))
            make.put(root / f"{split}annot" / f"{i}.png", make.encoded(make.ids(i, shape)))
    source = open_split(config("camvid", tmp_path / "prepared", root), "train")
    assert (source.native_size, source.sizes, source.channels) == (None, [(12, 16), (20, 10)], 1)
    assert source[1]["image"].shape == (20, 10, 1)
    seen = np.unique([label for i in (0, 1) for label in np.unique(source[i]["label"])])
    assert source.absent == [name for i, name in enumerate(source.label_set.names) if i not in seen] != []


def test_open_split_road_debris_scene_and_binary_labels(config, tmp_path):
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


def test_road_debris_edition_is_part_of_the_folder(monkeypatch, tmp_path):
    before = RoadDebris(data_dir=tmp_path).data_dir
    monkeypatch.setattr("segjax.data.builders.edition", lambda: "changed")
    assert RoadDebris(data_dir=tmp_path).data_dir == before.rsplit("_", 1)[0] + "_changed/1.0.0"


def test_road_debris_config_without_scenes(config, tmp_path):
    with pytest.raises(ValueError, match="road_debris: val_examples must be at least 1; got 0"):
        open_split(config("road_debris", tmp_path, val_examples=0), "train")


class FromTheCatalogue(cityscapes_dataset_builder.Builder, skip_registration=True):
    """The catalogue's builder, without its listing of files, which needs TensorFlow."""

    name = "cityscapes"
    url_infos = None
    images: tuple = ()

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self, **paths):
        for i, (image, mask) in enumerate(self.images):
            yield f"x_{i}", {"image_id": f"x_{i}", "image_left": image, "segmentation_label": mask}


def test_open_split_reads_a_set_prepared_by_the_catalogue(make, config, tmp_path):
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


def test_open_split_set_without_random_access(make, config, tmp_path):
    data = config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw"))
    open_split(data, "train")
    info = tmp_path / "prepared" / "camvid" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"prepared as tfrecord, which has no random access; .*'array_record'"):
        open_split(config("camvid", info.parent), "train")


def test_open_split_features_of_another_task(config, tmp_path, monkeypatch, make):
    monkeypatch.setattr(CamVid, "IMAGE", "picture")
    with pytest.raises(DataError, match=r"expected the features image or image_left, segm.*; got .*picture"):
        open_split(config("camvid", tmp_path / "prepared", make.camvid(tmp_path / "raw")), "train")


def test_open_split_finds_raw_files_by_environment_or_tfds_folder(make, config, tmp_path, monkeypatch):
    monkeypatch.delenv("SEGJAX_CAMVID_DIR", raising=False)
    make.camvid(tmp_path / "a" / "downloads" / "manual" / "camvid")
    assert len(open_split(config("camvid", tmp_path / "a"), "val")) == 3
    monkeypatch.setenv("SEGJAX_CAMVID_DIR", str(make.camvid(tmp_path / "raw")))
    assert len(open_split(config("camvid", tmp_path / "b"), "val")) == 3


def test_open_split_missing_raw_files(config, tmp_path, monkeypatch):
    monkeypatch.delenv("SEGJAX_LOST_AND_FOUND_DIR", raising=False)
    with pytest.raises(
        DataError,
        match=r"lost_and_found: not prepared .* no raw files in .*\$SEGJAX_LOST_AND_FOUND_DIR to the folder with left",
    ):
        open_split(config("lost_and_found", tmp_path), "train")


def test_open_split_unknown_name(config):
    with pytest.raises(ValueError, match=r"config.data.name must be one of road_debris, .*, folder, coco; got 'kitti'"):
        open_split(config("kitti"), "train")


def test_label_set_of_every_data_set(config):
    for name in DATASETS.keys() - {"folder", "coco"}:
        assert label_set(config(name)).num_classes >= 2


TWO_AT_ONCE = """
import sys
from types import SimpleNamespace
from segjax.data import eval_batches, open_split, train_loader

data = SimpleNamespace(name="camvid", data_dir=sys.argv[1], manual_dir=sys.argv[2])
batch = next(train_loader(open_split(data, "train"), global_batch_size=2, seed=0, size=None))
read = sum(int(batch["where"].sum()) for batch in eval_batches(open_split(data, "val"), global_batch_size=2))
print(batch["image"].shape, read, "tensorflow" in sys.modules)
"""


@pytest.mark.slow
def test_two_processes_prepare_once_without_tensorflow(make, tmp_path):
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


@pytest.mark.slow
def test_opening_data_sets_unpickles_no_file(make, tmp_path, python):
    for name in ("camvid", "crackforest", "cityscapes"):
        getattr(make, name)(tmp_path / name)
    done = python("-c", READ_EVERYTHING, tmp_path)
    *read, before, after = done.stdout.splitlines()
    assert read == ["camvid 3", "crackforest 4", "cityscapes 2"], done.stderr
    assert before == "[]"
    assert after == "['pickle.find_class']"  # the hook does detect unpickling
