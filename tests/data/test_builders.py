import zipfile

import pytest

from segjax.data.builders import CamVid, Cityscapes, CrackForest, LostAndFound
from segjax.data.io import DataError
from segjax.data.pairs import refuse_problems


def counts(splits):
    return {split: len(pairs) for split, pairs in splits.items()}


def test_camvid_lists_test_split_if_its_folders_exist(make, tmp_path):
    root = make.camvid(tmp_path)
    assert counts(CamVid.list_files(root)) == {"train": 5, "validation": 3}
    make.camvid(root, splits=[("test", 2)])
    assert counts(CamVid.list_files(root)) == {"train": 5, "validation": 3, "test": 2}


def test_crackforest_splits_by_image_number(make, tmp_path):
    root = make.crackforest(tmp_path)
    make.put(root / "image" / "007.jpg", b"")  # without ground truth
    splits = CrackForest.list_files(root)
    assert [pair.name for pair in splits["train"]] == ["001", "002", "004", "005"]
    assert [pair.name for pair in splits["test"]] == ["003", "006"]


def test_crackforest_empty_split_or_invalid_name(make, tmp_path):
    root = make.crackforest(tmp_path, (3,))
    with pytest.raises(DataError, match=r"the split 'train' is empty; found 1 image\(s\)"):
        CrackForest.list_files(root)
    for folder, suffix in (("image", "jpg"), ("groundTruth", "mat")):
        make.put(root / folder / f"copy.{suffix}", b"")
    with pytest.raises(DataError, match=r"copy.mat: expected a number as its name"):
        CrackForest.list_files(root)


def test_cityscapes_archives_equal_extracted_folders(make, tmp_path):
    packed, extracted = make.cityscapes(tmp_path / "packed"), tmp_path / "extracted"
    for archive in packed.iterdir():
        with zipfile.ZipFile(archive) as file:
            file.extractall(extracted)
    assert counts(Cityscapes.list_files(packed)) == {"train": 4, "validation": 2, "test": 2}
    for split, pairs in Cityscapes.list_files(packed).items():
        assert [(p.name, p.image.read(), p.mask.read()) for p in pairs] == [
            (p.name, p.image.read(), p.mask.read()) for p in Cityscapes.list_files(extracted)[split]
        ]


def test_lost_and_found_names_contain_the_scene(make, tmp_path):
    splits = LostAndFound.list_files(make.lost_and_found(tmp_path))
    assert counts(splits) == {"train": 2, "test": 4}
    assert splits["train"][0].name == "01_Hanns_Klemm_Str_45_000000_000019"


def test_lost_and_found_missing_archive(make, tmp_path):
    (make.lost_and_found(tmp_path) / "gtCoarse.zip").unlink()
    with pytest.raises(DataError, match=r"expected the archive gtCoarse.zip or its extracted folder gtCoarse; found"):
        LostAndFound.list_files(tmp_path)


def test_lost_and_found_missing_split(make, tmp_path):
    archive = make.lost_and_found(tmp_path) / "gtCoarse.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "words")
    with pytest.raises(DataError, match=r"leftImg8bit.png: an image without a mask; .* split train"):
        refuse_problems(LostAndFound.list_files(tmp_path)["train"])
