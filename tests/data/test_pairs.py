import numpy as np
import pytest

from segjax.data.io import DataError, list_folder
from segjax.data.labels import LABEL_SETS, numbered_classes
from segjax.data.pairs import Sizes, fingerprint, mask_png, match, verify

CLASSES = numbered_classes(("a", "b", "c"))


@pytest.fixture
def pairs(make, tmp_path):
    """Builds the pairs of a folder with one good pair, `0.png`, and what a test adds."""
    make.put(tmp_path / "images" / "0.png", make.encoded(make.image()))
    make.put(tmp_path / "masks" / "0.png", make.encoded(make.ids()))

    def build(image=None, mask=None):
        if image is not None:
            make.put(tmp_path / "images" / "1.png", image)
        if mask is not None:
            make.put(tmp_path / "masks" / "1.png", mask)
        return match(list_folder(tmp_path / "images"), list_folder(tmp_path / "masks"), str(tmp_path))

    return build


def test_verifying_finds_the_sizes_and_the_channels(make, pairs):
    assert verify(pairs(), CLASSES).sizes == Sizes(make.SIZE, make.SIZE, 3)
    grey = make.image(1, (20, 8), channels=1)
    found = verify(pairs(make.encoded(grey), make.encoded(make.ids(1, (20, 8)))), CLASSES)
    assert found.sizes == Sizes(None, (20, 16), 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("lost", [12, 20, 0.5])
def test_a_file_that_is_cut_short_is_named(make, pairs, kind, lost):
    whole = make.encoded(make.image(1), kind)
    cut = whole[: -lost if lost > 1 else int(len(whole) * lost)]
    with pytest.raises(DataError, match=rf"images/1.png: cannot be decoded; expected a PNG or JPEG .* {len(cut)} byte"):
        verify(pairs(cut, make.encoded(make.ids(1))), CLASSES)


def test_a_flipped_bit_in_a_png_is_found(make, pairs):
    damaged = bytearray(make.encoded(make.image(1)))
    damaged[len(damaged) // 2] ^= 16
    with pytest.raises(DataError, match=r"images/1.png: cannot be decoded"):
        verify(pairs(bytes(damaged), make.encoded(make.ids(1))), CLASSES)


def test_a_mask_that_is_cut_short_is_named(make, pairs):
    with pytest.raises(DataError, match=r"masks/1.png: cannot be decoded; expected a PNG mask"):
        verify(pairs(make.encoded(make.image(1)), make.encoded(make.ids(1))[:-20]), CLASSES)


def test_sizes_that_differ_are_named(make, pairs):
    with pytest.raises(DataError, match=r"masks/1.png: a mask of 5×16 for an image of 12×16 \(.*images/1.png\)"):
        verify(pairs(make.encoded(make.image(1)), make.encoded(make.ids(1, (5, 16)))), CLASSES)


def test_a_label_outside_the_classes_is_named(make, pairs):
    strange = make.ids(1)
    strange[3, 3] = 77
    with pytest.raises(ValueError, match=r"masks/1.png: label id 77 is outside the 3 classes; .* 0-2, 255"):
        verify(pairs(make.encoded(make.image(1)), make.encoded(strange)), CLASSES)


def test_another_format_is_named(make, pairs):
    with pytest.raises(DataError, match=r"images/1.png: expected a PNG or JPEG image; got BMP"):
        verify(pairs(make.encoded(make.image(1), "BMP"), make.encoded(make.ids(1))), CLASSES)


def test_what_has_no_partner_is_named(make, pairs):
    with pytest.raises(DataError, match=r"masks/1.png: a mask without an image; expected an image named '1.png'"):
        verify(pairs(mask=make.encoded(make.ids(1))), CLASSES)


def test_an_image_without_a_mask_is_named_unless_that_is_allowed(make, pairs, tmp_path):
    with pytest.raises(DataError, match=r"images/1.png: an image without a mask; expected a mask named '1.png'"):
        verify(pairs(image=make.encoded(make.image(1))), CLASSES)
    images, masks = list_folder(tmp_path / "images"), list_folder(tmp_path / "masks")
    assert [pair.name for pair in match(images, masks, "x", unlabelled=True)] == ["0.png"]


def test_an_empty_split_and_a_missing_folder_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    files = list_folder(tmp_path / "empty")
    with pytest.raises(DataError, match=r"here: an empty split; expected at least one image with its mask, found 0"):
        match(files, files, "here")
    with pytest.raises(DataError, match="absent: expected a folder; it does not exist"):
        list_folder(tmp_path / "absent")


def test_a_matlab_file_that_is_none_is_named(make, tmp_path):
    root = make.crackforest(tmp_path)
    (root / "groundTruth" / "001.mat").write_bytes(b"words" * 100)
    mask = list_folder(root / "groundTruth", (".mat",))["001.mat"]
    image = list_folder(root / "image")["001.jpg"]
    with pytest.raises(DataError, match=r"001.mat: expected a MATLAB file with groundTruth.Segmentation"):
        verify(match({"1": image}, {"1": mask}, "x"), LABEL_SETS["crackforest"])


def test_grey_masks_keep_their_bytes_and_palettes_become_grey(make, pairs):
    palette = make.encoded(make.ids(1), palette=[1, 2, 3] * 3, mode="P")
    grey, recoded = (mask_png(pair.mask) for pair in pairs(make.encoded(make.image(1)), palette))
    assert grey == make.encoded(make.ids())
    assert recoded != palette
    assert verify(pairs(mask=recoded), CLASSES).sizes.native_size == make.SIZE
    np.testing.assert_array_equal(mask_png(pairs()[1].mask), np.frombuffer(recoded, np.uint8).tobytes())


def test_the_fingerprint_changes_with_the_files(make, pairs):
    before = fingerprint({"train": pairs()})
    assert before == fingerprint({"train": pairs()})
    after = pairs(make.encoded(make.image(1)), make.encoded(make.ids(1)))
    assert before != fingerprint({"train": after})
