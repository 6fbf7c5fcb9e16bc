import json
import os
import re
import zipfile
import zlib

import pytest

from segjax.data.io import (
    IMAGE_SUFFIXES,
    DataError,
    by_stem,
    from_listing,
    list_folder,
    list_zip,
    named_images,
    read_bytes,
    to_listing,
)

SUFFIXES = ", ".join(IMAGE_SUFFIXES)


def test_list_folder_ignores_hidden_files_and_other_suffixes(make, tmp_path):
    for name in ("a.png", ".b.png", "Thumbs.db", "deep/c.JPG"):
        make.put(tmp_path / name, b"")
    assert list(list_folder(tmp_path)) == ["a.png", "deep/c.JPG"]


def test_from_listing_reads_the_file_of_to_listing(make, tmp_path):
    make.put(tmp_path / "a.png", b"1234")
    file = list_folder(tmp_path)["a.png"]._replace(checksum=zlib.crc32(b"1234"), problem="")
    again = from_listing(json.loads(json.dumps(to_listing(file))))
    assert read_bytes(again) == b"1234"
    assert again._replace(read=file.read) == file
    with pytest.raises(DataError, match="bad mask"):
        read_bytes(from_listing(to_listing(file._replace(problem="bad mask"))))


def test_list_folder_ignores_hidden_folders(make, tmp_path):
    for name in ("a.png", ".ipynb_checkpoints/b.png"):
        make.put(tmp_path / name, b"")
    assert list(list_folder(tmp_path)) == ["a.png"]


@pytest.fixture
def archive(make, tmp_path):
    """Returns a ZIP archive of one PNG, and the bytes of the PNG."""
    path, data = tmp_path / "a.zip", make.encoded(make.image())
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("top/x.png", data)
    return path, data


def test_list_zip_reads_in_place(archive):
    path, data = archive
    listed = list_zip(path)
    assert {name: read_bytes(file) for name, file in listed.items()} == {"top/x.png": data}
    assert listed["top/x.png"].size == len(data)


def test_read_bytes_wrong_checksum_in_archive(archive):
    path, data = archive
    path.write_bytes(path.read_bytes().replace(data[-40:-20], b"?" * 20))
    with pytest.raises(DataError, match=r"a.zip:top/x.png: cannot be read \(Bad CRC-32"):
        read_bytes(list_zip(path)["top/x.png"])


def test_list_zip_truncated_archive(archive):
    path, _ = archive
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a.zip: expected a whole ZIP archive"):
        list_zip(path)


@pytest.mark.parametrize("name", ["../x.png", "top/../../x.png", "/x.png"])
def test_list_zip_member_outside_the_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name, b"")
    with pytest.raises(DataError, match=r"a.zip: its member '.*x.png' leads out of the archive"):
        list_zip(tmp_path / "a.zip")


def test_read_bytes_link_out_of_the_data_set(make, tmp_path):
    make.put(tmp_path / "secret.png", make.encoded(make.image()))
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "0.png").symlink_to(tmp_path / "secret.png")
    listed = list_folder(tmp_path / "set" / "images", root=tmp_path / "set")["0.png"]
    with pytest.raises(DataError, match=r"images/0.png: a link that leads out of the data set, to .*/secret.png"):
        read_bytes(listed)


def test_read_bytes_linked_folder_out_of_the_data_set(make, tmp_path):
    make.put(tmp_path / "elsewhere" / "0.png", make.encoded(make.image()))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"set/images/0.png: a link that leads out of the data set"):
        read_bytes(list_folder(tmp_path / "set" / "images", root=tmp_path / "set")["0.png"])


def test_list_folder_links_within_the_data_set(make, tmp_path):
    make.put(tmp_path / "set" / "images" / "0.png", b"picture")
    (tmp_path / "set" / "images" / "1.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    listed = list_folder(tmp_path / "link" / "images", root=tmp_path / "link")
    assert [read_bytes(file) for file in listed.values()] == [b"picture"] * 2


def test_list_folder_refuses_a_linked_subfolder(make, tmp_path):
    make.put(tmp_path / "elsewhere" / "0.png", b"")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "day").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"images/day: a link to a folder, which is not followed"):
        list_folder(tmp_path / "images")


def test_read_bytes_broken_link(tmp_path):
    (tmp_path / "0.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"0.png: cannot be read \(.*No such file or directory"):
        read_bytes(list_folder(tmp_path)["0.png"])


def test_read_bytes_pipe(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0.png: expected a regular file; got prw"):
        read_bytes(list_folder(tmp_path)["0.png"])


@pytest.mark.parametrize("named", ["0.png", "/dev/zero"])
def test_named_images_reads_no_pipe_and_no_device(tmp_path, named):
    os.mkfifo(tmp_path / "0.png")
    (file,) = named_images([str(tmp_path / named)]).values()
    with pytest.raises(DataError, match=rf"{file.path}: expected a regular file; got [pc]rw"):
        read_bytes(file)


def test_read_bytes_name_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/stra\xdfe.png", "wb"):
        pass
    (listed,) = list_folder(tmp_path).values()
    with pytest.raises(DataError, match=r"stra.*dfe.png: the name is not UTF-8"):
        read_bytes(listed)


def test_read_bytes_changed_file(tmp_path):
    (tmp_path / "0.png").write_bytes(b"12345")
    listed = list_folder(tmp_path)["0.png"]
    with pytest.raises(DataError, match=r"0.png: has changed since it was verified; expected the 5 bytes of then, got"):
        read_bytes(listed._replace(checksum=0))


def test_by_stem_duplicate(make, tmp_path):
    for name in ("0.jpg", "0.png"):
        make.put(tmp_path / name, b"")
    with pytest.raises(DataError, match=r"0.png: another file has the same stem, .*0.jpg; expected one file named '0'"):
        by_stem(list_folder(tmp_path))


@pytest.fixture
def root(tmp_path):
    for name in ("a.png", "b.JPG", "sub/a.png", "sub/deep/è [1].jpeg", "sub/notes.txt", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_named_images_of_a_folder(root):
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
        ("sub/deep/è [1].jpeg", ["è [1]"]),  # an existing file is not a pattern
    ],
)
def test_named_images_of_a_pattern(root, pattern, names):
    assert list(named_images([str(root / pattern)])) == names


def test_named_images_lists_a_repeated_image_once(root):
    assert list(named_images([str(root / "sub"), str(root / "sub" / "a.png")])) == ["a", "deep/è [1]"]


def test_named_images_follows_links(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    elsewhere.write_bytes(b"far")
    os.symlink(elsewhere, root / "sub" / "link.png")
    assert named_images([str(root / "sub")])["link"].problem == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "sub/a.png"], "{root}/a.png and {root}/sub/a.png would both be written as a_mask.png"),
        (
            ["nothing.png"],
            "{root}/nothing.png: expected an image, a folder of images or a pattern; it does not exist. "
            "Correct the path",
        ),
        (["*.xml"], f"{{root}}/*.xml: no image matches this pattern; expected one of {SUFFIXES}"),
        (
            ["empty"],
            f"{{root}}/empty: no image in this folder or in those within it; expected one of {SUFFIXES}",
        ),
    ],
)
def test_named_images_invalid_arguments(root, arguments, said):
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=f"^{re.escape(said.format(root=root))}$"):
        named_images([str(root / argument) for argument in arguments])


def test_named_images_duplicate_stem(root):
    (root / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would both be written as a_mask\.png"):
        named_images([str(root)])
