import numpy as np
import pytest

from segjax.data.io import DataError
from segjax.data.labels import (
    LABEL_SETS,
    UNDEFINED,
    UNSEEN,
    VOID,
    LabelSet,
    class_values,
    colorize,
    numbered_classes,
    read_class_file,
    to_train_ids,
)
from segjax.data.road_debris import SCENE_CLASSES
from segjax.data.road_debris import VOID as SCENE_VOID


@pytest.mark.parametrize("name", LABEL_SETS)
def test_label_sets_every_class_has_an_id_and_a_colour(name):
    labels = LABEL_SETS[name]
    assert sorted(set(labels.lut.tolist()) - {VOID, UNDEFINED}) == list(range(labels.num_classes))
    assert len({tuple(colour) for colour in labels.palette.tolist()}) == labels.num_classes


@pytest.mark.parametrize(
    ("name", "classes", "raw", "train_ids"),
    [
        ("camvid", 11, [0, 10, 11], [0, 10, VOID]),
        ("cityscapes", 19, [0, 6, 7, 8, 26, 29, 33, 255], [VOID, VOID, 0, 1, 13, VOID, 18, VOID]),
        ("lost_and_found", 2, [0, 1, 2, 42], [VOID, 0, 1, 1]),
        ("crackforest", 2, [1, 2, 3, 4], [0, 1, VOID, VOID]),
        ("road_debris", 2, [0, 1, 2, 3, 4, 255], [0, 0, 0, 0, 1, VOID]),
        ("road_debris_scene", 5, [0, 4, 255], [0, 4, VOID]),
    ],
)
def test_to_train_ids_known_sets(name, classes, raw, train_ids):
    labels = LABEL_SETS[name]
    assert labels.num_classes == classes
    assert to_train_ids(np.array(raw, np.uint8), labels, "file").tolist() == train_ids


def test_class_values_under_a_threshold_are_black_and_white():
    assert class_values(numbered_classes(("a", "b"), mask_threshold=9)).tolist() == [0, 255]


def test_label_set_of_scenes_equals_scene_classes():
    assert LABEL_SETS["road_debris_scene"].names == SCENE_CLASSES
    assert SCENE_CLASSES[4] == "debris"
    assert SCENE_VOID == VOID


def test_to_train_ids_unknown_id():
    with pytest.raises(ValueError, match=r"a/mask.png: label ids 5, 9-10 are outside the 2 classes; .* the ids 1-4"):
        to_train_ids(np.array([[1, 9], [5, 10]], np.uint8), LABEL_SETS["crackforest"], "a/mask.png")


def test_colorize_void_unseen_and_unknown_id():
    palette = LABEL_SETS["camvid"].palette
    painted = colorize(np.array([[0, 10], [VOID, UNSEEN]]), palette)
    assert painted.tolist() == [[[128, 128, 128], [0, 128, 192]], [[0, 0, 0], [0, 255, 255]]]
    with pytest.raises(ValueError, match="no colour for train id 11; the palette has 11 classes"):
        colorize(np.array([11]), palette)


def test_numbered_classes_values_and_default():
    assert numbered_classes(("a", "b", "c")).lut[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, UNDEFINED, VOID]
    assert numbered_classes(("a", "b"), (0, 255)).lut[[0, 1, 255]].tolist() == [0, UNDEFINED, 1]
    assert numbered_classes(("a", "b")).palette.tolist() == [[128, 0, 0], [0, 128, 0]]  # VOC's aeroplane and bicycle


@pytest.mark.parametrize("values", [(0,), (0, 0), (0, 65536)])
def test_numbered_classes_invalid_values(values):
    with pytest.raises(ValueError, match=r"expected 2 different mask values in 0..65535, one per class"):
        numbered_classes(("a", "b"), values)


def test_numbered_classes_several_values_and_void():
    classes = numbered_classes(("road", "car", "car"), (7, 300, 2), void_values=(0,))
    assert classes.names == ("road", "car")
    raw = np.array([7, 300, 2, 0], np.uint16)
    assert to_train_ids(raw, classes, "file").tolist() == [0, 1, 1, VOID]
    with pytest.raises(DataError, match="label id 255 is outside the 2 classes; expected the ids 0, 2, 7, 300"):
        to_train_ids(np.array([255], np.uint8), classes, "file")


def test_to_train_ids_16_bits_beyond_the_table():
    with pytest.raises(DataError, match=r"label id 9000 is outside .*config.data.mask_values"):
        to_train_ids(np.array([9000], np.uint16), numbered_classes(("a", "b")), "file")


def test_numbered_classes_void_value_of_a_class():
    with pytest.raises(DataError, match=r"config.data.void_values = \(1,\): 1 is the value of a class too"):
        numbered_classes(("a", "b"), void_values=(1,))


RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)


def test_to_train_ids_colours():
    classes = numbered_classes(
        ("a", "b", "b"), mask_colours=("#0000ff", "#FF0000", "#00ff00"), void_colours=("#000000",)
    )
    raw = np.array([[BLUE, RED], [BLACK, (0, 255, 0)]], np.uint8)
    assert to_train_ids(raw, classes, "file").tolist() == [[0, 1], [VOID, 1]]
    assert classes.palette.tolist() == [list(BLUE), list(RED)]
    with pytest.raises(DataError, match=r"colours #010203 \(75 %\), #ffffff \(25 %\) .*config.data.mask_colours"):
        to_train_ids(np.array([[[1, 2, 3]] * 3 + [[255] * 3]], np.uint8), classes, "file")


def test_to_train_ids_colours_of_grey_masks():
    classes = numbered_classes(("a", "b"), mask_colours=("#000000", "#ffffff"))
    assert to_train_ids(np.array([[0, 255]], np.uint8), classes, "file").tolist() == [[0, 1]]


def test_to_train_ids_colours_without_a_table():
    raw = np.array([[BLUE, RED]], np.uint8)
    with pytest.raises(DataError, match=r"#0000ff \(50 %\), #ff0000 \(50 %\); .*config.data.mask_colours"):
        to_train_ids(raw, numbered_classes(("a", "b")), "file")


def test_to_train_ids_equal_red_green_and_blue():
    raw = np.repeat(np.array([[[0], [255]]], np.uint8), 3, axis=-1)
    assert to_train_ids(raw, numbered_classes(("a", "b"), (0, 255)), "file").tolist() == [[0, 1]]


def test_to_train_ids_threshold():
    classes = numbered_classes(("a", "b"), mask_threshold=128)
    assert to_train_ids(np.array([[3, 127, 128, 255]], np.uint8), classes, "file").tolist() == [[0, 0, 1, 1]]
    noisy = np.array([[[2, 0, 1], [254, 255, 250]]], np.uint8)  # of a JPEG in colour
    assert to_train_ids(noisy, classes, "file").tolist() == [[0, 1]]


def test_to_train_ids_noise_of_a_jpeg_names_the_threshold():
    raw = np.array([[0, 3, 9, 251, 255]], np.uint8)
    with pytest.raises(DataError, match=r"label ids 3, 9, 251 are outside .*config.data.mask_threshold=128"):
        to_train_ids(raw, numbered_classes(("a", "b"), (0, 255)), "file")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_colours": ("#ff0000",)}, "config.data.mask_colours: expected 2 colours"),
        ({"mask_colours": ("#ff0000", "#ff0000")}, "config.data.mask_colours: expected 2 colours"),
        ({"mask_colours": ("red", "blue")}, "config.data.mask_colours: expected colours such as .* got 'red'"),
        (
            {"mask_colours": ("#ff0000", "#0000ff"), "void_colours": ("#black",)},
            "config.data.void_colours: expected colours such as .* got '#black'",
        ),
        ({"mask_colours": ("#ff0000", "#000000"), "mask_threshold": 9}, "mask_colours and config.data.mask_threshold"),
        ({"void_colours": ("#ff0000",)}, "config.data.void_colours needs config.data.mask_colours"),
        (
            {"class_names": ("a", "b", "c"), "mask_threshold": 9},
            "config.data.mask_threshold needs exactly two class names",
        ),
    ],
)
def test_numbered_classes_invalid_fields(fields, message):
    with pytest.raises(DataError, match=message):
        numbered_classes(**{"class_names": ("a", "b")} | fields)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            "64 128 64\tAnimal\n192 0 128\t\tTraffic Cone\n0 0 0\t\tVoid\n",
            {
                "class_names": ("Animal", "Traffic Cone"),
                "mask_colours": ("#408040", "#c00080"),
                "void_colours": ("#000000",),
            },
        ),
        (
            'name,r,g,b\nroad,128,64,128\n"car, parked",64,0,128\n',
            {"class_names": ("road", "car, parked"), "mask_colours": ("#804080", "#400080"), "void_colours": ()},
        ),
        ("0 wall\n1 floor lamp\n", {"class_names": ("wall", "floor lamp"), "mask_values": (0, 1), "void_values": ()}),
        ("id,name\n0,unlabelled\n1,wall\n", {"class_names": ("wall",), "mask_values": (1,), "void_values": (0,)}),
    ],
    ids=["CamVid", "class_dict.csv", "ids", "ids with void"],
)
def test_read_class_file(tmp_path, text, fields):
    (tmp_path / "classes.txt").write_text(text)
    assert read_class_file(tmp_path / "classes.txt") == fields


@pytest.mark.parametrize("text", ["road\n", "road 1\ncar 1 2 3\n", "1 2 3 300 road\n", ""])
def test_read_class_file_invalid(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"classes.txt"):
        read_class_file(tmp_path / "classes.txt")


def test_label_set_inconsistent_fields():
    palette, lut = np.zeros((2, 3), np.uint8), np.full(256, 5, np.uint8)
    with pytest.raises(ValueError, match="palette must have 1 colours, one per class; got 2"):
        LabelSet(("a",), palette, lut)
    with pytest.raises(ValueError, match="the lookup table contains train id 5, but there are 2 classes"):
        LabelSet(("a", "b"), palette, lut)


@pytest.mark.parametrize("names", [("a", ""), ("a", "b\n"), ("a", "\x1b[2J"), ("a", "\udcff")])
def test_numbered_classes_empty_or_unprintable_names(names):
    with pytest.raises(DataError, match=r"config.data.class_names: expected names that are not empty .*; got \('a', "):
        numbered_classes(names)


def test_numbered_classes_repeated_name_without_values():
    with pytest.raises(DataError, match=r"config.data.class_names: .* \('a', 'a'\); set config.data.mask_values"):
        numbered_classes(("a", "a"))
