import re

import numpy as np
import pytest

from segjax.data.decode import mask_png
from segjax.data.io import DataError, list_folder
from segjax.data.labels import LABEL_SETS, numbered_classes
from segjax.data.pairs import Sizes, check_split, fingerprint, make_example, match, summarize, verify

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
    assert summarize(verify(pairs(), CLASSES).shapes) == Sizes(make.SIZE, make.SIZE, 3)
    grey = make.image(1, (20, 8), channels=1)
    found = verify(pairs(make.encoded(grey), make.encoded(make.ids(1, (20, 8)))), CLASSES)
    assert found.shapes == [(*make.SIZE, 3), (20, 8, 1)]
    assert summarize(found.shapes) == Sizes(None, (20, 16), 3)


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
    assert verify(pairs(mask=recoded), CLASSES).shapes[0][:2] == make.SIZE
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
    assert found.absent == ["a", "b", "c"]
    ids = np.full(make.SIZE, 255, np.uint8)
    ids[0, 0] = 1  # one pixel is enough
    assert verify(pairs(mask=make.encoded(ids))[1:], CLASSES).absent == ["a", "c"]


def test_check_split_absent_classes():
    source = Skipping(1)
    source.absent = ["b", "c"]
    warning, *rest = check_split(source, "val")
    assert re.search(r"val has no pixel of b, c\. .*config.data.mask_values", warning)
    assert rest == check_split(Skipping(1), "val")


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
