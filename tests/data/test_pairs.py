import io
import re

import numpy as np
import pytest

from segjax.data.decode import mask_png, turned
from segjax.data.io import DataError, RawFile, by_stem, list_folder
from segjax.data.labels import LABEL_SETS, numbered_classes
from segjax.data.pairs import (
    Sizes,
    align_mask,
    check_split,
    find_range,
    fingerprint,
    make_example,
    match,
    percentile_range,
    summarize,
    verify,
)

CLASSES = numbered_classes(("a", "b", "c"))


@pytest.fixture
def pairs(make, tmp_path):
    """Returns a function that lists a folder of one good pair, `0.png`, and a pair given by a test."""
    make.put(tmp_path / "images" / "0.png", make.encoded(make.image()))
    make.put(tmp_path / "masks" / "0.png", make.encoded(make.ids()))

    def build(image=None, mask=None):
        if image is not None:
            make.put(tmp_path / "images" / "1.png", image)
        if mask is not None:
            make.put(tmp_path / "masks" / "1.png", mask)
        return match(list_folder(tmp_path / "images"), list_folder(tmp_path / "masks"), str(tmp_path))

    return build


def test_verify_sizes_and_channels(make, pairs):
    assert summarize(verify(pairs(), CLASSES).images) == Sizes(make.SIZE, make.SIZE, 3)
    grey = make.image(1, (20, 8), channels=1)
    found = verify(pairs(make.encoded(grey), make.encoded(make.ids(1, (20, 8)))), CLASSES)
    assert [image[:3] for image in found.images] == [(*make.SIZE, 3), (20, 8, 1)]
    assert summarize(found.images) == Sizes(None, (20, 16), 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("lost", [12, 20, 0.5])
def test_verify_truncated_image(make, pairs, kind, lost):
    whole = make.encoded(make.image(1), kind)
    cut = whole[: -lost if lost > 1 else int(len(whole) * lost)]
    with pytest.raises(DataError, match=rf"images/1.png: cannot be decoded; expected PNG, .* {len(cut)} byte"):
        verify(pairs(cut, make.encoded(make.ids(1))), CLASSES)


def test_verify_flipped_bit_in_png(make, pairs):
    damaged = bytearray(make.encoded(make.image(1)))
    damaged[len(damaged) // 2] ^= 16
    with pytest.raises(DataError, match=r"images/1.png: cannot be decoded"):
        verify(pairs(bytes(damaged), make.encoded(make.ids(1))), CLASSES)


def test_verify_truncated_mask(make, pairs):
    with pytest.raises(DataError, match=r"masks/1.png: cannot be decoded; expected PNG, JPEG, "):
        verify(pairs(make.encoded(make.image(1)), make.encoded(make.ids(1))[:-20]), CLASSES)


def test_verify_different_sizes(make, pairs):
    with pytest.raises(DataError, match=r"masks/1.png: a mask of 5×16 for an image of 12×16 \(.*images/1.png\)"):
        verify(pairs(make.encoded(make.image(1)), make.encoded(make.ids(1, (5, 16)))), CLASSES)


def test_verify_label_outside_the_classes(make, pairs):
    strange = make.ids(1)
    strange[3, 3] = 77
    with pytest.raises(ValueError, match=r"masks/1.png: label id 77 is outside the 3 classes; .* 0-2, 255"):
        verify(pairs(make.encoded(make.image(1)), make.encoded(strange)), CLASSES)


def test_verify_other_format(make, pairs):
    with pytest.raises(DataError, match=r"images/1.png: expected PNG, JPEG, .*; got ICO"):
        verify(pairs(make.encoded(make.image(1), "ICO"), make.encoded(make.ids(1))), CLASSES)


def test_verify_mask_without_image(make, pairs):
    with pytest.raises(DataError, match=r"masks/1.png: a mask without an image; expected an image named '1.png'"):
        verify(pairs(mask=make.encoded(make.ids(1))), CLASSES)


def test_verify_image_without_mask(make, pairs):
    with pytest.raises(DataError, match=r"images/1.png: an image without a mask; expected a mask named '1.png'"):
        verify(pairs(image=make.encoded(make.image(1))), CLASSES)


def test_match_empty_split_and_list_folder_missing_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    files = list_folder(tmp_path / "empty")
    with pytest.raises(DataError, match=r"here: an empty split; expected at least one image with its mask, found 0"):
        match(files, files, "here")
    with pytest.raises(DataError, match="absent: expected a folder; it does not exist"):
        list_folder(tmp_path / "absent")


def test_verify_damaged_matlab_file(make, tmp_path):
    root = make.crackforest(tmp_path)
    (root / "groundTruth" / "001.mat").write_bytes(b"words" * 100)
    mask = list_folder(root / "groundTruth", (".mat",))["001.mat"]
    image = list_folder(root / "image")["001.jpg"]
    with pytest.raises(DataError, match=r"001.mat: expected a MATLAB file with groundTruth.Segmentation"):
        verify(match({"1": image}, {"1": mask}, "x"), LABEL_SETS["crackforest"])


def test_mask_png_grey_and_palette(make, pairs):
    palette = make.encoded(make.ids(1), palette=[1, 2, 3] * 3, mode="P")
    grey, recoded = (mask_png(pair.mask) for pair in pairs(make.encoded(make.image(1)), palette))
    assert grey == make.encoded(make.ids())
    assert recoded != palette
    assert verify(pairs(mask=recoded), CLASSES).images[0][:2] == make.SIZE
    np.testing.assert_array_equal(mask_png(pairs()[1].mask), np.frombuffer(recoded, np.uint8).tobytes())


def test_fingerprint_depends_on_names_and_contents(make, pairs):
    before, (one,) = fingerprint({"train": pairs()}), pairs()
    assert before == fingerprint({"train": pairs()}) == fingerprint({"train": verify(pairs(), CLASSES).pairs})
    changed = one.mask._replace(read=lambda: b"x" * one.mask.size)
    unreadable = one.mask._replace(problem="unreadable")
    for pair in (one._replace(name="z"), one._replace(mask=changed), one._replace(mask=unreadable)):
        assert fingerprint({"train": [pair]}) != before


class Skipping:
    """A source in which only `skipped` matters."""

    label_set, channels, native_size, sizes, absent, digest = CLASSES, 3, (1, 1), [(1, 1)] * 7, (), ""
    void, pixels, notes = None, None, ()
    value_range, dtype, unsure_turns = None, "uint8", 0

    def __init__(self, count):
        self.skipped = tuple(f"{i}.png: bad" for i in range(count))

    def __len__(self):
        return 7

    def __getitem__(self, index):
        raise IndexError(index)

    def name(self, index):
        return str(index)


def test_check_split_few():
    assert check_split(Skipping(0), "train") == []
    first, *rest = check_split(Skipping(2), "train")
    assert first == "train: skipped 2 bad pair(s) of image and mask (config.data.on_error = 'skip'):"
    assert rest == ["  0.png: bad", "  1.png: bad"]


def test_check_split_many():
    lines = check_split(Skipping(25), "val")
    assert lines[0].startswith("val: skipped 25 ")
    assert lines[-2:] == ["  19.png: bad", "  and 5 more"]


def test_verify_absent_classes(pairs, make):
    ids = make.encoded(np.full(make.SIZE, 255, np.uint8))
    found = verify(pairs(make.encoded(make.image()), ids)[1:], CLASSES)
    assert (found.absent, found.void, found.pixels) == (["a", "b", "c"], 1.0, [0, 0, 0])
    ids = np.full(make.SIZE, 255, np.uint8)
    ids[0, 0] = 1  # one pixel is enough
    found = verify(pairs(mask=make.encoded(ids))[1:], CLASSES)
    assert (found.absent, found.pixels[0], found.pixels[1] > 0) == (["a", "c"], 0, True)


def test_check_split_absent_classes():
    source = Skipping(1)
    source.absent = ["b", "c"]
    warning, *rest = check_split(source, "val")
    assert re.search(r"val has no pixel of b \(1\), c \(2\)\. .*config.data.mask_values", warning)
    assert rest == check_split(Skipping(1), "val")


def test_check_split_void_by_accident():
    source = Skipping(0)
    source.absent, source.void = ["b"], 0.25
    (warning,) = check_split(source, "train")
    assert re.search(
        r"no pixel of b \(1\), and 25\.0% of its pixels are void \(255\)\. .*config.data.mask_values", warning
    )


def test_check_split_of_void_alone():
    source = Skipping(0)
    source.absent = CLASSES.names
    with pytest.raises(DataError, match=r"val: all pixels of the 7 masks are void; .*config.data.mask_values"):
        check_split(source, "val")


def test_make_example_invalid_parts(make):
    files = ("image.png", "mask.png")
    image = make.encoded(make.image(size=(4, 6)))
    with pytest.raises(DataError, match=r"mask.png: a mask of 4×5 for an image of 4×6 \(image.png\); expected one"):
        make_example(image, make.encoded(make.ids(size=(4, 5))), "a", 3, CLASSES, files)
    with pytest.raises(ValueError, match=r"mask.png: label id 7 is outside the 3 classes; expected the ids 0-2, 255"):
        make_example(image, make.encoded(np.full((4, 6), 7, np.uint8)), "a", 3, CLASSES, files)
    with pytest.raises(DataError, match=r"image.png: cannot be decoded; expected PNG, JPEG, .* got 5 bytes"):
        make_example(b"words", image, "a", 3, CLASSES, files)


def put_images(make, root, images, kind=".npy"):
    """Writes images and masks of zeros, and returns the pairs."""
    for i, pixels in enumerate(images):
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        make.put(root / "images" / f"{i}.npy", buffer.getvalue())
        make.put(root / "masks" / f"{i}.png", make.encoded(np.zeros(pixels.shape[:2], np.uint8)))
    files = (by_stem(list_folder(root / part, (".npy", ".png"))) for part in ("images", "masks"))
    return match(*files, "")


def found_range(make, root, images, option):
    pairs = put_images(make, root, images)
    return find_range(option, verify(pairs, CLASSES), pairs)


DEEP = np.random.default_rng(0).integers(0, 65_536, (2, 30, 40, 2), dtype=np.uint16)


@pytest.mark.parametrize(
    ("images", "option", "expected"),
    [
        (DEEP.astype(np.uint8), "dtype", None),
        (DEEP, "dtype", (0, 65535)),
        (DEEP / 65_535, "dtype", (0, 1)),
        (DEEP, (100.0, 4000.0), (100, 4000)),
        (DEEP.astype(np.uint8), (10.0, 200.0), (10, 200)),
    ],
)
def test_find_range(make, tmp_path, images, option, expected):
    assert found_range(make, tmp_path, images, option) == expected


@pytest.mark.parametrize(
    ("images", "option", "reason"),
    [
        (
            DEEP >> 4,
            "dtype",
            r"dtype would scale by 65535, but the 2 uint16 images have values from 0 to 409\d; .*409\d",
        ),
        (DEEP / 255, "dtype", r"dtype expects values from 0 to 1, but the 2 float32 images .*; set it to percentile"),
        (-DEEP.astype(np.float32), "dtype", "dtype expects values from 0 to 1"),
        (DEEP, (70_000.0, 80_000.0), "70000,80000, but the 2 uint16 images"),
        (DEEP.astype(np.uint8), (0.0, 4095.0), "0,4095, but the 2 uint8 images"),
        (np.full((1, 8, 8), 7, np.uint16), "percentile", "percentile: 99.8 % of the pixels .* are equal"),
    ],
)
def test_find_range_refused(make, tmp_path, images, option, reason):
    with pytest.raises(DataError, match=f"^config.data.range={reason}"):
        found_range(make, tmp_path, images, option)


def test_find_range_of_several_dtypes(make, tmp_path):
    with pytest.raises(DataError, match=r"several dtypes, uint16 \(.*0.npy\) and uint8 \(.*1.npy\)"):
        found_range(make, tmp_path, [DEEP[0], DEEP[1].astype(np.uint8)], "dtype")


@pytest.mark.parametrize("far", [(), (1e9, -1e30)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentile_range(make, tmp_path, dtype, far):
    values = np.random.default_rng(1).normal(100, 15, (3, 60, 70, 3))
    values[0, 0, 0, : len(far)] = far if dtype == np.float32 else 0
    images = values.astype(dtype)
    pairs = put_images(make, tmp_path, images)
    low, high = percentile_range([pair.image for pair in pairs], np.dtype(dtype).name)
    tolerance = (high - low) / 100  # the tails are thin
    np.testing.assert_allclose((low, high), np.percentile(images, (0.1, 99.9)), atol=tolerance)


def test_percentile_range_skips_bad_files(make, tmp_path):
    pairs = put_images(make, tmp_path, DEEP)
    bad = RawFile("bad.npy", 0, lambda: b"words")
    files = [pair.image for pair in pairs]
    assert percentile_range([*files, bad], "uint16", on_error="skip") == percentile_range(files, "uint16")
    with pytest.raises(DataError, match=r"bad\.npy"):
        percentile_range([*files, bad], "uint16")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn_on", ["displayed", "stored"])
@pytest.mark.parametrize("mask_is", ["displayed", "stored"])
def test_align_mask(orientation, drawn_on, mask_is):
    """A mask drawn on the displayed picture stays, one drawn on the stored pixels is turned; of two sizes, always."""
    stored = np.arange(12).reshape(3, 4)
    displayed = turned(stored, orientation)
    mask = displayed if mask_is == "displayed" else stored
    if stored.shape != displayed.shape or drawn_on == mask_is:
        np.testing.assert_array_equal(align_mask(mask, displayed.shape, orientation, drawn_on), displayed)


def test_make_example_scales_deep_images(make):
    buffer = io.BytesIO()
    np.save(buffer, DEEP[0])
    mask = make.encoded(np.zeros((30, 40), np.uint8))
    example = make_example(buffer.getvalue(), mask, "a", 2, CLASSES, ("a", "b"), (1000.0, 50_000.0))
    assert example["image"].dtype == np.float32
    expected = np.clip((DEEP[0] - 1000.0) / 49_000 * 255, 0, 255)
    np.testing.assert_allclose(example["image"], expected, atol=1e-4)
