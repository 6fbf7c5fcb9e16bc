"""Which files a person's words mean, and what each is called."""

import os
import re

import pytest

from segjax.data import DataError
from segjax.data.io import named_images


@pytest.fixture
def root(tmp_path):
    for name in ("a.png", "b.JPG", "sub/a.png", "sub/deep/è [1].jpeg", "sub/notes.txt", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_folder_gives_its_images_however_deep_by_their_path_in_it(root):
    found = named_images([str(root)])
    assert list(found) == ["a", "b", "sub/a", "sub/deep/è [1]"]
    assert found["sub/a"].read() == b"sub/a.png"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["a"]),
        ("*/*.png", ["sub/a"]),
        ("sub/**/*", ["a", "deep/è [1]"]),
        ("**/*.[jJ]*", ["b", "sub/deep/è [1]"]),
        ("sub/deep/è [1].jpeg", ["è [1]"]),  # a file of that name is no pattern
    ],
)
def test_a_pattern_gives_images_by_their_path_behind_the_folder_without_wildcards(root, pattern, names):
    assert list(named_images([str(root / pattern)])) == names


def test_an_image_that_is_named_twice_is_predicted_once(root):
    assert list(named_images([str(root / "sub"), str(root / "sub" / "a.png")])) == ["a", "deep/è [1]"]


def test_a_link_in_a_persons_own_folder_is_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    elsewhere.write_bytes(b"far")
    os.symlink(elsewhere, root / "sub" / "link.png")
    assert named_images([str(root / "sub")])["link"].problem == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "sub/a.png"], "{root}/a.png and {root}/sub/a.png would both be written as a_mask.png"),
        (["nothing.png"], "{root}/nothing.png: expected an image, a folder of images or a pattern; it does not exist"),
        (["*.tif"], "{root}/*.tif: no image matches this pattern; expected one of .png, .jpg, .jpeg"),
        (["empty"], "{root}/empty: no image in this folder or in those within it; expected one of .png, .jpg, .jpeg"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_its_name(root, arguments, said):
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=f"^{re.escape(said.format(root=root))}$"):
        named_images([str(root / argument) for argument in arguments])


def test_a_folder_with_two_images_of_one_stem_is_refused(root):
    (root / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would both be written as a_mask\.png"):
        named_images([str(root)])
