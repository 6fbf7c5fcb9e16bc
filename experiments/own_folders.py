"""Draws the pictures of "Train on your own folder": `python -m experiments.own_folders --workdir=runs/own_folders`.

Makes three sets in the layouts of DRIVE, labelme and COCO, trains on each as `segjax train --data` does, and shows an
image of the validation, its mask and the prediction. A finished run is not trained again. 10 minutes on two CPU cores.
"""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags
from PIL import Image

from segjax import cli, inference
from segjax.data import colorize
from segjax.inference.visualize import contact_sheet, overlay_palette
from segjax.storage import write_outputs
from segjax.trained_run import load_run
from segjax.training import open_split

COUNT, SIZE, STEPS, WIDTH = 20, (160, 192), 250, 256
SMALL = ("--config.model.width=8", "--config.model.depth=3", "--config.data.workers=0")  # minutes on CPUs


class Object(NamedTuple):
    """An outlined object of an image."""

    label: str
    points: np.ndarray  # corners (x, y) [n, 2]


def vessels(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws a retina: RGB image, and mask with 255 on vessels, which leave one point and get thinner."""
    (height, width), mask = SIZE, np.zeros(SIZE, np.uint8)
    start = np.array([0.3 * width, 0.5 * height]) + random.normal(0, 4, 2)
    branches = [(start, angle, 5.0) for angle in random.uniform(0, 2 * np.pi, 7)]
    while branches:
        point, angle, thickness = branches.pop()
        for _ in range(18):
            angle += random.normal(0, 0.18)
            end = point + 6 * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(mask, *(tuple(map(int, one)) for one in (point, end)), 255, max(1, round(thickness)))
            point, thickness = end, 0.97 * thickness
            if thickness > 1.5 and random.random() < 0.12:
                branches.append((point, angle + random.choice([-0.7, 0.7]), 0.7 * thickness))
    eye = cv2.circle(np.zeros(SIZE, np.uint8), (width // 2, height // 2), height // 2 - 4, 255, -1)
    mask &= eye
    light = 0.75 + 0.25 * np.cos(np.linspace(-2, 2, width))[None] * np.cos(np.linspace(-2, 2, height))[:, None]
    image = light[..., None] * (200, 90, 50) - 0.25 * cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None]
    return _noisy(image * (eye > 0)[..., None], random), mask


def cells(random: np.random.Generator) -> tuple[np.ndarray, list[Object]]:
    """Draws tissue with pale cells and a few small dark ones that divide."""
    image, objects = np.full((*SIZE, 3), (225, 190, 210), float), []
    for centre in _apart(random, 9, 30):
        rare = random.random() < 0.15
        radius, turns = (7 if rare else 13), np.linspace(0, 2 * np.pi, 16, endpoint=False)
        radii = radius * random.uniform(0.8, 1.15, (16, 1))
        points = centre + radii * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
        objects.append(Object("dividing" if rare else "cell", points))
        cv2.fillPoly(image, [points.astype(np.int32)], (90, 50, 120) if rare else (160, 110, 170))
    return _noisy(cv2.GaussianBlur(image, (0, 0), 1), random), objects


def roofs(random: np.random.Generator) -> tuple[np.ndarray, list[Object]]:
    """Draws an aerial picture of roofs and cars on grass."""
    image, objects = np.full((*SIZE, 3), (90, 120, 70), float), []
    for number, centre in enumerate(_apart(random, 7, 40)):
        label, sides, colour = ("roof", (36, 26), (150, 80, 60)) if number % 3 else ("car", (12, 6), (200, 200, 215))
        turn, corners = random.uniform(0, np.pi), np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * sides / 2
        points = centre + corners @ np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
        objects.append(Object(label, points))
        cv2.fillPoly(image, [points.astype(np.int32)], colour)
    return _noisy(image, random), objects


def _apart(random: np.random.Generator, count: int, distance: float) -> list[np.ndarray]:
    """Returns at most `count` points (x, y) inside the image that are this far apart."""
    points: list[np.ndarray] = []
    for point in random.uniform(distance / 2, np.array(SIZE[::-1]) - distance / 2, (20 * count, 2)):
        if len(points) < count and all(np.hypot(*(point - other)) > distance for other in points):
            points.append(point)
    return points


def _noisy(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def write_drive(root: Path, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], training: int = 16) -> None:
    """Writes images and masks as DRIVE has them, the first ones for training, with a field of view for each."""
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        part, number = ("training", f"{21 + i}") if i < training else ("test", f"{i - training + 1:02d}")
        _save(root / part / "images" / f"{number}_{part}.tif", image)
        _save(root / part / "mask" / f"{number}_{part}_mask.gif", np.full_like(mask, 255))
        _save(root / part / "1st_manual" / f"{number}_manual1.gif", mask)
        if part == "test":
            _save(root / part / "2nd_manual" / f"{number}_manual2.gif", mask)


def write_labelme(root: Path, images: Sequence[np.ndarray], objects: Sequence[Sequence[Object]]) -> None:
    """Writes images, and beside each the JSON file that labelme saves."""
    for i, (image, outlines) in enumerate(zip(images, objects, strict=True)):
        _save(root / f"slide_{i:02d}.jpg", image)
        shapes = [
            {"label": one.label, "points": one.points.tolist(), "shape_type": "polygon", "flags": {}, "group_id": None}
            for one in outlines
        ]
        size = {"imageHeight": image.shape[0], "imageWidth": image.shape[1]}
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"slide_{i:02d}.jpg"}
        (root / f"slide_{i:02d}.json").write_text(json.dumps(content | {"imageData": None} | size))


def write_coco(root: Path, images: Sequence[np.ndarray], objects: Sequence[Sequence[Object]]) -> None:
    """Writes images, and one COCO file of their polygons."""
    names = sorted({one.label for outlines in objects for one in outlines})
    content = {"images": [], "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)]}
    annotations = content["annotations"] = []
    for i, (image, outlines) in enumerate(zip(images, objects, strict=True)):
        _save(root / "images" / f"{i:06d}.jpg", image)
        size = {"height": image.shape[0], "width": image.shape[1]}
        content["images"].append({"id": i, "file_name": f"{i:06d}.jpg"} | size)
        for one in outlines:
            ids = {"id": len(annotations) + 1, "image_id": i, "category_id": names.index(one.label) + 1}
            annotations.append(ids | {"segmentation": [one.points.ravel().tolist()], "iscrowd": 0})
    (root / "annotations").mkdir()
    (root / "annotations" / "instances.json").write_text(json.dumps(content))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture(workdir: Path) -> bytes:
    """Returns a JPEG of one image of the validation: as it is, under its mask, and under the prediction."""
    run = load_run(workdir)
    source, palette, predict = open_split(run.config.data, "val"), overlay_palette(run.label_set), run.predictor()
    example = source[0]
    masks = (example["label"], predict(example["image"]).mask)
    pictures = [example["image"], *(inference.overlay(example["image"], colorize(mask, palette)) for mask in masks)]
    sheet = contact_sheet({example["name"]: pictures}, ("image", "mask", "prediction"), run.label_set, width=WIDTH)
    encoded = io.BytesIO()
    Image.fromarray(sheet).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def _segjax(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "segjax", *arguments], check=True)


def main(argv: list[str]) -> None:
    """Makes the sets, trains on them, and writes own_drive.jpg, own_labelme.jpg and own_coco.jpg."""
    cli.refuse_arguments(argv)
    workdir, random = Path(flags.FLAGS.workdir), np.random.default_rng(0)
    drawings = {
        "drive": (write_drive, vessels),
        "labelme": (write_labelme, cells),
        "coco": (write_coco, roofs),
    }
    for name, (write, draw) in drawings.items():
        root, run = workdir / name, workdir / f"{name}_run"
        images, truths = zip(*(draw(random) for _ in range(COUNT)), strict=True)
        if not root.exists():
            write(root, images, truths)
        if name != "drive":
            _segjax("data", "masks", str(root), f"--output={workdir / name}_masks")
            root = Path(f"{root}_masks")
        _segjax("train", f"--data={root}", f"--workdir={run}", f"--config.training.steps={STEPS}", *SMALL)
        write_outputs({workdir / f"own_{name}.jpg": picture(run)})


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the sets, the runs and the pictures.")
    cli.run(main, required=["workdir"])
