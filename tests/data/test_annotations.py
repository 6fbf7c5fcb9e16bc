"""Annotations: tiny files of every form, made by hand."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from segjax.data import DataError
from segjax.data import annotations as of

SIZE = (8, 10)


def box(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def masks(source, **options):
    """Returns the class names, and of each image the masks by label; the objects of one class are joined."""
    found, images = of.open_annotations(source, **options), {}
    for one in found.images:
        images[one.file] = {}
        for region in one.regions:
            mask = of.paint([region], one.size, dict.fromkeys(found.names, 1), rest=0, overlap="listed")[0] > 0
            images[one.file][region.label] = images[one.file].get(region.label, False) | mask
    return found.names, images


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 8}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
}
COCO["images"][1] |= {"width": 10, "height": 8}
OBJECT = {"id": 1, "image_id": 1, "category_id": 9}
SQUARES = [[1, 1, 3, 1, 3, 3, 1, 3], [5, 5, 7, 5, 7, 8, 5, 8]]


def coco(folder, *objects, **changes):
    return write(folder / "instances.json", COCO | {"annotations": [OBJECT | one for one in objects]} | changes)


def test_coco_polygons_and_runs(tmp_path):
    runs = {"size": [8, 10], "counts": [8 * 4 + 2, 3, 8 * 6 - 5]}
    file = coco(tmp_path, {"segmentation": SQUARES}, {"segmentation": runs, "category_id": 4, "image_id": 2})
    names, images = masks(file)
    assert names == ("cat", "dog")
    np.testing.assert_array_equal(images["a.png"]["cat"], box(1, 1, 3, 3) | box(5, 5, 8, 7))
    np.testing.assert_array_equal(images["b.png"]["dog"], box(2, 4, 5, 5))


def test_coco_crowd_is_of_its_class_or_void(tmp_path):
    file = coco(tmp_path, {"segmentation": SQUARES, "iscrowd": 1})
    assert list(masks(file)[1]["a.png"]) == ["cat"]
    assert list(masks(file, crowd_is_void=True)[1]["a.png"]) == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": []}, "annotation 1 of a.png has no segmentation, only a box"),
        ({}, "add one, or delete it"),
        ({"segmentation": [[1, 1, 3, 1]]}, r"at least 3 points.*\(2 point"),
        ({"segmentation": [[1, 1, 3]]}, "at least 3 points"),
        ({"segmentation": {"size": [8, 11], "counts": [88]}}, r"encoded for 8×11; the image is 8×10"),
        ({"segmentation": {"size": [8, 10], "counts": [79]}}, "add up to 79; expected 80"),
        ({"segmentation": SQUARES, "category_id": 5}, "its category_id 5 is not in the file; export"),
    ],
)
def test_coco_object_without_pixels_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        masks(coco(tmp_path, change))


def labelme(folder, name, *shapes, **changes):
    content = {"imagePath": f"{name}.jpg", "imageHeight": 8, "imageWidth": 10, "imageData": None}
    shapes = [{"label": "hole", "shape_type": kind, "points": points, **more} for kind, points, more in shapes]
    return write(folder / f"{name}.json", content | {"shapes": shapes} | changes)


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("kind", "points", "more", "expected"),
    [
        ("polygon", [[1, 1], [4, 1], [4, 3], [1, 3]], {}, box(1, 1, 3, 4)),
        ("rectangle", [[4, 3], [1, 1]], {}, box(1, 1, 3, 4)),
        ("circle", [[4, 4], [4, 5.2]], {}, np.hypot(*(np.indices(SIZE) + 0.5 - 4)) < 1.2),
        (
            "mask",
            [[6, 5], [8, 6]],
            {"mask": png(np.array([[True, False, True]] * 2))},
            box(5, 6, 7, 7) | box(5, 8, 7, 9),
        ),
        ("linestrip", [[1.5, 1.5], [5.5, 1.5], [5.5, 4.5]], {}, box(1, 1, 2, 6) | box(1, 5, 5, 6)),
        ("point", [[2.5, 6.5]], {}, box(6, 2, 7, 3)),
    ],
)
def test_labelme_shape(tmp_path, kind, points, more, expected):
    names, images = masks(labelme(tmp_path, "a", (kind, points, more)), line_width=1.0)
    assert names == ("hole",)
    np.testing.assert_array_equal(images["a.jpg"]["hole"], expected)


def test_labelme_hole_is_a_shape_of_the_background_after_the_object(tmp_path):
    square = ("rectangle", [[0, 0], [4, 4]], {"label": "ring"})
    hole = ("rectangle", [[1, 1], [3, 3]], {"label": "_background_"})
    (one,) = of.open_annotations(labelme(tmp_path, "a", square, hole)).images
    mask, _ = of.paint(one.regions, one.size, {"_background_": 0, "ring": 1}, rest=0, overlap="listed")
    assert mask[:4, :4].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


def test_labelme_line_without_a_width_is_refused(tmp_path):
    with pytest.raises(DataError, match="no area; --line_width=3"):
        masks(labelme(tmp_path, "a", ("line", [[1, 1], [4, 4]], {})))


def test_labelme_kind_without_pixels_is_refused(tmp_path):
    with pytest.raises(DataError, match="shape 1, 'hole': a shape of kind 'cuboid'; known are polygon"):
        masks(labelme(tmp_path, "a", ("cuboid", [[1, 1], [4, 4]], {})))


def test_labelme_folder_joins_labels_and_ignores_void(tmp_path):
    square = ("rectangle", [[1, 1], [4, 3]], {})
    labelme(tmp_path / "x", "a", square, ("rectangle", [[5, 1], [6, 3]], {"label": "__ignore__"}))
    labelme(tmp_path, "b", ("rectangle", [[1, 1], [4, 3]], {"label": "crack"}), imagePath="..\\elsewhere\\c.png")
    names, images = masks(tmp_path)
    assert names == ("crack", "hole")
    assert {name: list(found) for name, found in images.items()} == {"b.png": ["crack"], "x/a.jpg": ["hole", None]}


CVAT = """<annotations><meta><task><labels><label><name>road</name></label><label><name>sign</name></label></labels>
</task></meta><image id="0" name="day/a.png" width="10" height="8">
<polygon label="road" points="0,4;10,4;10,8;0,8" z_order="1"/>
<box label="sign" xtl="1" ytl="1" xbr="3" ybr="3" z_order="2"/>
<box label="sign" xtl="5" ytl="1" xbr="9" ybr="3" rotation="90"/>
<mask label="sign" rle="1, 2, 1" left="8" top="6" width="2" height="2"/>
<tag label="wet"/></image></annotations>"""


def test_cvat(tmp_path):
    file = write(tmp_path / "annotations.xml", CVAT)
    names, images = masks(file)
    assert names == ("road", "sign")
    np.testing.assert_array_equal(images["day/a.png"]["road"], box(4, 0, 8, 10))
    corner = box(6, 9, 7, 10) | box(7, 8, 8, 9)
    np.testing.assert_array_equal(images["day/a.png"]["sign"], box(1, 1, 3, 3) | box(0, 6, 4, 8) | corner)
    assert [region.level for region in next(of.open_annotations(tmp_path).images).regions] == [1, 2, 0, 0]


def test_cvat_tracks_are_refused(tmp_path):
    with pytest.raises(DataError, match="export the task as 'CVAT for images'"):
        of.open_annotations(write(tmp_path / "a.xml", "<annotations><track/></annotations>"))


@pytest.fixture
def voc(tmp_path):
    """Returns a folder of Pascal VOC with one mask: an aeroplane, its void border and background."""
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    mask = np.zeros(SIZE, np.uint8)
    mask[1:4, 1:4], mask[1, 1:4] = 1, 255
    image = Image.fromarray(mask, "P")
    image.putpalette([0, 0, 0, 128, 0, 0] + [0] * (253 * 3) + [224, 224, 192])
    image.save(tmp_path / "SegmentationClass/a.png")
    return tmp_path


def test_voc(voc):
    names, images = masks(voc)
    assert (len(names), names[:2]) == (21, ("background", "aeroplane"))
    np.testing.assert_array_equal(images["a"]["aeroplane"], box(2, 1, 4, 4))
    np.testing.assert_array_equal(images["a"][None], box(1, 1, 2, 4))


def test_voc_with_the_colours_of_a_tool(voc):
    write(voc / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nplane:128,0,0::\n")
    names, images = masks(voc)
    assert names == ("background", "plane")
    assert set(images["a"]) == {"background", "plane", None}


def test_voc_colour_of_no_class_is_named(voc):
    write(voc / "labelmap.txt", "background:0,0,0::\n")
    with pytest.raises(DataError, match=r"#800000 is not the colour of a class in .*add it to labelmap"):
        masks(voc)


def test_boxes_of_voc_are_refused(tmp_path):
    write(tmp_path / "Annotations/a.xml", "<annotation><object/></annotation>")
    for source in (tmp_path, tmp_path / "Annotations/a.xml"):
        with pytest.raises(DataError, match="boxes are not masks"):
            of.open_annotations(source)


def test_conversion_names_one_command_per_file(tmp_path):
    for split in ("train", "valid"):
        coco(tmp_path / "my set" / split, {"segmentation": SQUARES})
    (tmp_path / "my set/train/a.png").touch()
    root = f"'{tmp_path}/my set"
    expected = (
        f"segjax data masks {root}/train/instances.json' --output='my set_masks' --split=train && "
        f"segjax data masks {root}/valid/instances.json' --output='my set_masks' --split=val '--images={root[1:]}'"
    )
    assert of.conversion(tmp_path / "my set") == expected
    with pytest.raises(DataError, match=r"2 files of annotations; convert each .*: segjax data masks .*/valid/"):
        of.open_annotations(tmp_path / "my set")


def test_conversion_of_a_folder_and_of_none(tmp_path):
    assert of.conversion(tmp_path) == ""
    write(tmp_path / "package.json", {"name": "x"})
    assert of.conversion(tmp_path) == ""
    labelme(tmp_path, "a")
    assert of.conversion(tmp_path) == f"segjax data masks {tmp_path} --output={tmp_path.name}_masks"


def test_coco_file_in_a_folder_of_its_own_has_the_images_of_the_set(tmp_path):
    coco(tmp_path / "annotations", {"segmentation": SQUARES})
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()
    assert of.open_annotations(tmp_path).folder == tmp_path
    assert of.open_annotations(tmp_path / "annotations/instances.json").folder == tmp_path / "annotations"


@pytest.mark.parametrize(
    ("chosen", "rest_is_void", "expected"),
    [
        ((), False, (("background", "a", "b"), {"background": 0, "a": 1, "b": 2}, 0)),
        ((), True, (("a", "b"), {"a": 0, "b": 1}, 255)),
        (("b",), False, (("background", "b"), {"background": 0, "b": 1}, 0)),
    ],
)
def test_class_values(chosen, rest_is_void, expected):
    assert of.class_values(["a", "b"], chosen, rest_is_void=rest_is_void) == expected


@pytest.mark.parametrize("chosen", [(), ("a",)])
def test_class_values_background_of_the_annotations_comes_first(chosen):
    names, values, rest = of.class_values(["a", "_background_"], chosen)
    assert (names, values, rest) == (("_background_", "a"), {"_background_": 0, "a": 1}, 0)


def test_class_values_unknown_name():
    with pytest.raises(DataError, match="--classes: 'c' is not a class"):
        of.class_values(["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("overlap", "row"),
    [("listed", [1, 2, 2, 2]), ("first", [1, 1, 1, 2]), ("small", [1, 2, 2, 2]), ("void", [1, 255, 255, 2])],
)
def test_paint_overlap(overlap, row):
    one = [of.Region("a", 0, 0, np.ones((1, 3), bool)), of.Region("b", 0, 1, np.ones((1, 3), bool))]
    one[0] = one[0]._replace(inside=np.ones((2, 3), bool))
    mask, shared = of.paint(one, (2, 4), {"a": 1, "b": 2}, rest=0, overlap=overlap)
    assert mask.tolist() == [row, [1, 1, 1, 0]]
    assert shared == 2


def test_paint_higher_level_lies_on_top():
    regions = [of.Region("a", 0, 0, np.ones((1, 2), bool), level=1), of.Region("b", 0, 0, np.ones((1, 2), bool))]
    assert of.paint(regions, (1, 2), {"a": 1, "b": 2}, rest=0, overlap="listed")[0].tolist() == [[1, 1]]


def test_paint_leaves_out_other_classes():
    regions = [of.Region("a", 0, 0, np.ones((1, 1), bool)), of.Region(None, 0, 1, np.ones((1, 1), bool))]
    assert of.paint(regions, (1, 3), {"b": 1}, rest=0, overlap="listed")[0].tolist() == [[0, 255, 0]]


def test_paint_classes_keeps_every_class_of_a_pixel():
    three = [of.Region(name, 0, left, np.ones((1, 2), bool)) for name, left in (("a", 0), ("b", 1), (None, 3))]
    masks = of.paint_classes(three, (1, 6), {"a": 1, "b": 2}, 2)
    assert masks.tolist() == [[[255, 255, 0, 128, 128, 0]], [[0, 255, 255, 128, 128, 0]]]


def test_images_are_found_by_path_or_by_a_name_that_one_file_has(tmp_path):
    for path in ("x/a.png", "y/a.png", "y/b.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    images = of.Images(tmp_path)
    one = of.Annotated("x/a.png", SIZE, [], tmp_path)
    assert images.find(one)[0] == "x/a.png"
    assert images.find(one._replace(file="b.png"))[0] == "y/b.png"
    assert images.find(one._replace(file="b"))[0] == "y/b.png"  # Pascal VOC's masks have another suffix
    with pytest.raises(DataError, match=r"'a.png': 2 files of this name, x/a.png and y/a.png .*--images=FOLDER"):
        images.find(one._replace(file="a.png"))
    with pytest.raises(DataError, match=r"'c.png': no file of this name"):
        images.find(one._replace(file="c.png"))
    path, file = images.find(one._replace(file="c.png", embedded=b"pixels"))
    assert (path, file.read()) == ("c.png", b"pixels")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [*COCO["images"], COCO["images"][0]]}, r"images: two have the id .*; expected one"),
        ({"categories": [*COCO["categories"], COCO["categories"][0]]}, r"categories: two have the id .*; expected one"),
        ({"images": [COCO["images"][0] | {"id": [1]}]}, r"images: the id \[1\]; expected a number or a text"),
        ({"images": [one | {"width": 0} for one in COCO["images"]]}, "a size of 8×0 .*; expected at least 1 pixel"),
    ],
    ids=["image", "category", "list", "size"],
)
def test_coco_entry_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        masks(coco(tmp_path, {"segmentation": SQUARES}, **changes))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinate_that_is_not_finite_is_refused(tmp_path, value):
    xml = '<annotations><image name="a.png" width="8" height="6"><{}/></image></annotations>'
    shapes = [
        f'polygon label="x" points="1,1;{value},1;4,4"',
        f'ellipse label="x" cx="3" cy="3" rx="2" ry="{value}"',
        f'box label="x" xtl="1" ytl="1" xbr="2" ybr="2" rotation="{value}"',
    ]
    (tmp_path / "cvat").mkdir()
    files = [tmp_path / "cvat" / f"{i}.xml" for i in range(len(shapes))]
    for file, shape in zip(files, shapes, strict=True):
        file.write_text(xml.format(shape))
    files.append(coco(tmp_path, {"segmentation": [[1, 1, value, 1, 4, 4]]}))
    files.append(labelme(tmp_path, "a", ("polygon", [[1, 1], [value, 1], [4, 4]], {})))
    for file in files:
        with pytest.raises(DataError, match=r"a coordinate is NaN or infinite; .* correct or delete the object"):
            masks(file)


@pytest.mark.parametrize(
    ("points", "changes", "message"),
    [
        ([[1, 1], [2]], {}, r"expected points \[\[x, y\], …\]"),
        ([[1, 1], [4, 1], [4, 4]], {"imageData": 5}, "imageData is not an image in base64"),
        ([[1, 1], [4, 1], [4, 4]], {"imageHeight": -8}, "a size of -8×10 .*; expected at least 1 pixel"),
    ],
    ids=["points", "data", "size"],
)
def test_labelme_value_is_refused(tmp_path, points, changes, message):
    with pytest.raises(DataError, match=message):
        masks(labelme(tmp_path, "a", ("polygon", points, {}), **changes))


def test_cvat_level_is_refused(tmp_path):
    shape = '<polygon label="x" points="1,1;4,1;4,4" z_order="a"/>'
    (tmp_path / "a.xml").write_text(f'<annotations><image name="a" width="8" height="6">{shape}</image></annotations>')
    with pytest.raises(DataError, match="expected a whole number as z_order"):
        masks(tmp_path / "a.xml")
