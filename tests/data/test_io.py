"""What lies in a folder or an archive: listed, read, and nothing from outside."""

import os
import zipfile

import pytest

from segjax.data.io import DataError, by_stem, list_folder, list_zip, read_bytes


def test_hidden_files_and_other_kinds_are_not_taken_for_images(make, tmp_path):
    for name in ("a.png", ".b.png", "Thumbs.db", "deep/c.JPG"):
        make.put(tmp_path / name, b"")
    assert list(list_folder(tmp_path)) == ["a.png", "deep/c.JPG"]


def test_hidden_folders_are_not_looked_into(make, tmp_path):
    for name in ("a.png", ".ipynb_checkpoints/b.png"):
        make.put(tmp_path / name, b"")
    assert list(list_folder(tmp_path)) == ["a.png"]


@pytest.fixture
def archive(make, tmp_path):
    """A ZIP archive of one PNG, and the PNG's bytes."""
    path, data = tmp_path / "a.zip", make.encoded(make.image())
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("top/x.png", data)
    return path, data


def test_an_archive_is_read_in_place(archive):
    path, data = archive
    listed = list_zip(path)
    assert {name: read_bytes(file) for name, file in listed.items()} == {"top/x.png": data}
    assert listed["top/x.png"].size == len(data)


def test_a_member_whose_checksum_does_not_fit_is_named(archive):
    path, data = archive
    path.write_bytes(path.read_bytes().replace(data[-40:-20], b"?" * 20))
    with pytest.raises(DataError, match=r"a.zip:top/x.png: cannot be read \(Bad CRC-32"):
        read_bytes(list_zip(path)["top/x.png"])


def test_an_archive_that_is_cut_short_is_named(archive):
    path, _ = archive
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a.zip: expected a whole ZIP archive"):
        list_zip(path)


@pytest.mark.parametrize("name", ["../x.png", "top/../../x.png", "/x.png"])
def test_an_archive_whose_member_leads_out_of_it_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name, b"")
    with pytest.raises(DataError, match=r"a.zip: its member '.*x.png' leads out of the archive"):
        list_zip(tmp_path / "a.zip")


def test_a_link_out_of_the_data_set_is_never_read(make, tmp_path):
    make.put(tmp_path / "secret.png", make.encoded(make.image()))
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "0.png").symlink_to(tmp_path / "secret.png")
    listed = list_folder(tmp_path / "set" / "images", root=tmp_path / "set")["0.png"]
    with pytest.raises(DataError, match=r"images/0.png: a link that leads out of the data set, to .*/secret.png"):
        read_bytes(listed)


def test_a_linked_folder_cannot_lead_out_either(make, tmp_path):
    make.put(tmp_path / "elsewhere" / "0.png", make.encoded(make.image()))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"set/images/0.png: a link that leads out of the data set"):
        read_bytes(list_folder(tmp_path / "set" / "images", root=tmp_path / "set")["0.png"])


def test_links_within_the_data_set_and_to_all_of_it_are_read(make, tmp_path):
    make.put(tmp_path / "set" / "images" / "0.png", b"picture")
    (tmp_path / "set" / "images" / "1.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    listed = list_folder(tmp_path / "link" / "images", root=tmp_path / "link")
    assert [read_bytes(file) for file in listed.values()] == [b"picture"] * 2


def test_a_folder_behind_a_link_is_not_left_out_without_a_word(make, tmp_path):
    make.put(tmp_path / "elsewhere" / "0.png", b"")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "day").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"images/day: a link to a folder, which is not followed"):
        list_folder(tmp_path / "images")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "0.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"0.png: cannot be read \(.*No such file or directory"):
        read_bytes(list_folder(tmp_path)["0.png"])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0.png: expected a regular file; got prw"):
        read_bytes(list_folder(tmp_path)["0.png"])


def test_a_name_that_is_no_text_is_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/stra\xdfe.png", "wb"):
        pass
    (listed,) = list_folder(tmp_path).values()
    with pytest.raises(DataError, match=r"stra.*dfe.png: the name is not UTF-8"):
        read_bytes(listed)


def test_a_file_that_changed_since_it_was_verified_is_named(tmp_path):
    (tmp_path / "0.png").write_bytes(b"12345")
    listed = list_folder(tmp_path)["0.png"]
    with pytest.raises(DataError, match=r"0.png: has changed since it was verified; expected the 5 bytes of then, got"):
        read_bytes(listed._replace(checksum=0))


def test_two_files_of_one_stem_are_named(make, tmp_path):
    for name in ("0.jpg", "0.png"):
        make.put(tmp_path / name, b"")
    with pytest.raises(DataError, match=r"0.png: another file has the same stem, .*0.jpg; expected one file named '0'"):
        by_stem(list_folder(tmp_path))
