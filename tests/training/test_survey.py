"""The survey of a folder and the config that it suggests, on tiny folders made here."""

import re

import cv2
import numpy as np
import pytest
import rich.console
import tifffile

from segjax.data import DataError
from segjax.training import defaults, survey
from segjax.training.config import from_leaves, leaves

SIZE = (32, 48)


def write(root, split, name, mask, image=None):
    """Writes an image, grey noise seeded by its path unless one is given, and its mask."""
    noise = np.random.default_rng(list(f"{split}/{name}".encode())).integers(0, 256, (*mask.shape[:2], 3), np.uint8)
    for folder, pixels in (("images", noise if image is None else image), ("masks", mask)):
        file = root / split / folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), pixels if pixels.ndim == 2 else pixels[..., ::-1])


def mask(value, *, column=1, size=SIZE):
    """Returns a mask of 0 with every second column from `column` to 9 of a value."""
    array = np.zeros(size, np.uint8)
    array[:, column:10:2] = value
    return array


@pytest.fixture
def root(tmp_path):
    for split, names in {"train": "abc", "val": "d"}.items():
        for name in names:
            write(tmp_path, split, name, mask(255))
    return tmp_path


def survey_folder(root, keep=(), **fields):
    config = from_leaves(leaves(defaults()) | {f"data.{key}": value for key, value in fields.items()})
    return survey.survey_folder(
        root, config, {*keep, *(f"data.{key}" for key in fields)}, rich.console.Console(quiet=True)
    )


def test_survey_folder_finds_classes_channels_and_pixel_statistics(root):
    found = survey_folder(root)
    images = np.stack([cv2.imread(str(file))[..., ::-1] for file in sorted(root.glob("train/images/*"))]) / 255
    data = found.config.data
    assert (data.name, data.manual_dir, data.channels) == ("folder", str(root), 3)
    assert (data.class_names, data.mask_values) == (("background", "object"), (0, 255))
    np.testing.assert_allclose(data.mean, images.mean(axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(data.std, images.std(axis=(0, 1, 2)), atol=1e-4)
    assert (found.refusals, found.warnings) == ([], [])


def test_survey_folder_suggests_prior_and_weights_of_a_rare_class(root):
    found = survey_folder(root)
    assert survey_folder(root).config.model.prior == ()  # a share of 5 of 48 columns is not rare
    write(root, "train", "e", mask(0))
    found, share = survey_folder(root), 0.75 * 5 / 48
    np.testing.assert_allclose(found.config.model.prior, (1 - share, share), rtol=1e-2)
    # Frequencies over the images with the class: 1 - share and share / 0.75, whose median is their mean.
    frequencies = np.array([1 - share, share / 0.75])
    np.testing.assert_allclose(
        found.config.objective.class_weights, np.sqrt(np.median(frequencies) / frequencies), rtol=1e-2
    )


@pytest.mark.parametrize("first", ["background", "object"])
def test_survey_folder_finds_the_rare_class(root, first):
    values = {"background": (0, 255), "object": (255, 0)}[first]
    second = "object" if first == "background" else "background"
    found = survey_folder(root, class_names=(first, second), mask_values=values)
    assert found.label_set.names[found.label_set.rare] == "object"


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (256, 336)), ((96, 128), (96, 128)), ((256, 8192), (176, 5792))]
)
def test_survey_folder_suggests_a_size_at_which_large_objects_are_recognised(tmp_path, size, expected):
    labels = np.zeros(size, np.uint8)
    labels[:, : size[1] // 2] = 255
    for split in ("train", "val"):
        write(tmp_path, split, "a", labels, np.zeros(size, np.uint8))
    assert survey_folder(tmp_path).config.data.size == expected


def test_survey_folder_keeps_given_fields(root):
    found = survey_folder(
        root, keep=["data.size", "objective.class_weights"], class_names=("sky", "wire"), mask_values=(0, 255)
    )
    assert found.config.data.class_names == ("sky", "wire")
    assert found.config.data.size == defaults().data.size
    assert found.label_set.names == ("sky", "wire")


def test_survey_folder_counts_pixels_per_image_and_split(root):
    void = mask(255)
    void[0] = 7
    write(root, "val", "d", void)
    found = survey_folder(root, class_names=("a", "b"), mask_values=(0, 7))
    assert found.images["train"].tolist() == [[32 * 43, 0, 32 * 5]] * 3  # 255 is void
    assert found.images["val"].tolist() == [[31 * 43, 48, 31 * 5]]
    assert found.warnings == ["train has no pixel of b"]


def test_survey_folder_refuses_values_that_no_class_has(root):
    found = survey_folder(root, class_names=("a", "b"), mask_values=(1, 255))
    assert len(found.refusals) == 4
    assert all(re.search(r"masks/.\.png: .*\b0\b.*\b1, 255", refusal) for refusal in found.refusals)
    assert found.label_set is None


def test_survey_folder_refuses_a_mask_of_another_size(root):
    write(root, "val", "d", mask(255)[:16], np.zeros((32, 48), np.uint8))
    (refusal,) = survey_folder(root).refusals
    assert re.search(r"masks/d\.png: a mask of 16×48 for an image of 32×48", refusal)


def test_survey_folder_refuses_a_damaged_file(root):
    (root / "train/images/a.png").write_bytes(b"no")
    (refusal,) = survey_folder(root).refusals
    assert "images/a.png: cannot be decoded" in refusal


def test_survey_folder_suggests_the_range_of_deep_images(tmp_path):
    image = np.linspace(1000, 3000, 32 * 48).reshape(SIZE).astype(np.uint16)
    for split, name in (("train", "a"), ("val", "b")):
        write(tmp_path, split, name, mask(255), image)
    found, (low, high) = survey_folder(tmp_path), np.percentile(image, [0.1, 99.9])
    data, scaled = found.config.data, (image - low) / (high - low)
    np.testing.assert_allclose(data.range, (low, high), atol=3)
    np.testing.assert_allclose([*data.mean, *data.std], [scaled.mean(), scaled.std()], atol=2e-3)
    assert (data.channels, found.refusals) == (1, [])
    assert "config.data.range=dtype would scale by 65535" in survey_folder(tmp_path, range="dtype").refusals[0]


def test_survey_folder_names_images_in_two_splits(root):
    write(root, "val", "d", mask(255), cv2.imread(str(root / "train/images/a.png"))[..., ::-1])
    (warning,) = survey_folder(root).warnings
    assert "train/a = val/d" in warning


def test_survey_folder_does_not_take_a_mirrored_image_for_a_duplicate(root):
    write(root, "val", "d", mask(255), cv2.imread(str(root / "train/images/a.png"))[:, ::-1, ::-1])
    assert survey_folder(root).warnings == []


def test_survey_of_a_folder_holds_no_pixels(root):
    pairs = [*survey.survey_pairs(survey.find_layout(root))]
    assert len(pairs) == 4
    assert max(np.asarray(value).nbytes for pair in pairs for value in pair if isinstance(value, np.ndarray)) < 100


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 7], [7, 7]], np.uint8), {0: 1, 7: 3}),
        (np.array([[300, 7]], np.uint16), {7: 1, 300: 1}),
        (np.array([[(0, 0, 1), (9, 8, 7)], [(9, 8, 7), (0, 0, 1)]], np.uint8), {(0, 0, 1): 2, (9, 8, 7): 2}),
    ],
)
def test_count_values(array, expected):
    assert survey.count_values(array) == expected


@pytest.mark.parametrize(
    ("values", "names", "fields"),
    [
        ([0, 255], ("background", "object"), {"mask_values": (0, 255)}),
        ([0, 1, 255], ("background", "object"), {"mask_values": (0, 1)}),  # 255 is void
        ([1, 2], ("background", "object"), {"mask_values": (1, 2)}),
        ([0, 128, 255], ("background", "class 128", "class 255"), {"mask_values": (0, 128, 255)}),
        ([0, 300], ("background", "object"), {"mask_values": (0, 300)}),
        ([*range(9), *range(240, 256)], ("background", "object"), {"mask_threshold": 128}),
        (
            [(0, 0, 9), (0, 0, 0), (255, 0, 0)],
            ("background", "#000009", "#ff0000"),
            {"mask_colours": ("#000000", "#000009", "#ff0000")},
        ),
    ],
)
def test_find_classes(values, names, fields):
    assert survey.find_classes(dict.fromkeys(values, 9)) == {"class_names": names} | fields


@pytest.mark.parametrize(
    ("rare", "common", "fields"),
    [(0, 255, {"mask_values": (255, 0)}), ((0, 0, 0), (255, 255, 0), {"mask_colours": ("#ffff00", "#000000")})],
)
def test_find_classes_of_two_with_a_rare_first(rare, common, fields):
    assert survey.find_classes({rare: 5, common: 95}) == {"class_names": ("background", "object")} | fields


@pytest.mark.parametrize(
    ("count", "message"),
    [(1, r"masks has the value 0; check .*config\.data\.masks"), (256, "have 256 different values.* and mask_values")],
)
def test_find_classes_of_too_few_or_too_many_values(count, message):
    with pytest.raises(DataError, match=message):
        survey.find_classes(dict.fromkeys(range(count), 9))


def test_survey_folder_reads_the_class_file(root):
    (root / "classes.csv").write_text("name,id\nsky,0\nwire,255\nbird,3\n")
    found = survey_folder(root)
    assert (found.config.data.class_names, found.config.data.mask_values) == (("sky", "wire", "bird"), (0, 255, 3))
    assert found.warnings == ["train has no pixel of bird", "val has no pixel of bird"]


def test_survey_folder_class_file_of_other_masks(root):
    (root / "classes.csv").write_text("sky,0\nwire,1\nbird,2\n")
    found = survey_folder(root, void_values=(9,))
    assert found.config.data.class_names == ("background", "object")
    assert "classes.csv does not fit the masks" in found.warnings[0]


def test_survey_folder_joins_masks_of_grey_and_of_equal_colours(root):
    write(root, "val", "d", np.repeat(mask(255)[..., None], 3, axis=2))
    assert survey_folder(root).config.data.mask_values == (0, 255)
    write(root, "val", "d", np.stack([mask(255), mask(0), mask(0)], axis=2))
    assert survey_folder(root).config.data.mask_colours == ("#000000", "#ffffff", "#ff0000")


def test_iou_caps_of_thin_lines(root):
    caps = survey_folder(root).caps
    assert list(caps[1.0]) == [1, 1]
    assert caps[0.5][1] == 0.5  # half the size keeps the odd columns of the left half, and each comes back as two


def test_survey_folder_takes_no_class_from_the_masks_of_test(root):
    write(root, "test", "e", mask(7))
    found = survey_folder(root)
    assert (found.config.data.mask_values, found.config.data.void_values) == ((0, 255), (7,))
    assert "only the masks of test have 7" in found.warnings[0]
    assert found.images["test"].tolist() == [[32 * 43, 0, 32 * 5]]


def test_survey_folder_trains_on_all_splits(root):
    found = survey_folder(root, train_split="all")
    assert found.refusals == []
    (refusal,) = survey_folder(root, train_split="x").refusals
    assert "config.data.train_split = 'x' does not exist; valid: train, val" in refusal


def test_survey_folder_refuses_the_range_of_the_training_images_alone(root):
    dark, bright = (np.full((*SIZE, 3), value, np.uint16) for value in (9000, 60000))
    dark[0], bright[0] = 5000, 100
    for name in "abc":
        write(root, "train", name, mask(255), dark)
    write(root, "val", "d", mask(255), bright)
    assert survey_folder(root).config.data.range == (5000, 9000)
    assert "config.data.range=dtype would scale by 65535" in survey_folder(root, range="dtype").refusals[0]


def test_survey_folder_refuses_stacks_of_different_lengths(tmp_path):
    for name, pages in (("images", 3), ("masks", 2)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", np.zeros((pages, *SIZE), np.uint8), photometric="minisblack")
    write(tmp_path / "x", "train", "b", mask(255))
    for name in ("images", "masks"):
        (tmp_path / f"x/train/{name}/b.png").rename(tmp_path / name / "b.png")
    assert "a.tif: 2 page(s) for an image of 3" in survey_folder(tmp_path).refusals[0]


def test_survey_folder_refuses_what_the_network_refuses(root):
    (root / "classes.csv").write_text("name,id\nunlabelled,0\nwire,255\n")
    assert "folder has 1 class; expected at least 2" in survey_folder(root).refusals[0]
