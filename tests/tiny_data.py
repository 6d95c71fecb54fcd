"""VOC and COCO folders of a few small images, laid out as the real ones are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (32, 40)  # height, width

Box = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax, from 1, the last one included


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def make_voc(root: Path, images: dict[str, list[tuple[str, Box, int]]]) -> Path:
    """Images with objects (class, box, VOC's own difficult flag)."""
    base = root / "VOCdevkit" / "VOC2007"
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (base / name).mkdir(parents=True)
    (base / "ImageSets/Main/test.txt").write_text("\n".join(images) + "\n")
    for seed, (name, objects) in enumerate(images.items()):
        picture(seed).save(base / "JPEGImages" / f"{name}.jpg")
        parts = [
            f"<object><name>{label}</name><difficult>{flag}</difficult><bndbox>"
            f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for label, box, flag in objects
        ]
        text = f"<annotation><filename>{name}.jpg</filename>{''.join(parts)}"
        (base / "Annotations" / f"{name}.xml").write_text(f"{text}</annotation>")
    return root


def many(count: int) -> dict[str, list[tuple[str, Box, int]]]:
    """Images with a dog on the left and, in every second one, a cat on the right."""
    dog, cat = ("dog", (1, 1, 8, 16), 0), ("cat", (25, 1, 40, 32), 0)
    return {f"{i:06d}": [dog, cat] if i % 2 else [dog] for i in range(1, count + 1)}


def make_coco(root: Path) -> Path:
    """Two images: a dog's polygon and a crowd of persons; nothing at all."""
    (root / "val2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    height, width = SIZE
    names = {7: "COCO_val2014_000000000007", 9: "COCO_val2014_000000000009"}
    for key, name in names.items():
        picture(key).save(root / "val2014" / f"{name}.jpg")
    counts = [0, height * 4, height * width - height * 4]  # column by column: four
    square = [20.0, 8.0, 28.0, 8.0, 28.0, 16.0, 20.0, 16.0]
    content = {
        "images": [
            {"id": key, "file_name": f"{name}.jpg", "height": height, "width": width}
            for key, name in names.items()
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "iscrowd": 0, "area": 64,
             "bbox": [20, 8, 8, 8], "segmentation": [square]},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 1, "area": 128,
             "bbox": [0, 0, 4, height],
             "segmentation": {"counts": counts, "size": [height, width]}},
        ],
    }  # fmt: skip
    (root / "annotations/instances_val2014.json").write_text(json.dumps(content))
    return root


def make_voc_record(root: Path, *objects: str, more: str = "") -> Path:
    """One image ``a`` whose annotation holds what is given, valid or not."""
    make_voc(root, {"a": []})
    file = root / "VOCdevkit/VOC2007/Annotations/a.xml"
    file.write_text(f"<annotation>{more}{''.join(objects)}</annotation>")
    return root


def voc_object(name: str, box: str, more: str = "<difficult>0</difficult>") -> str:
    """XML of an object; the box as four texts with spaces between."""
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    edges = "".join(f"<{tag}>{text}</{tag}>" for tag, text in tags)
    return f"<object><name>{name}</name>{more}<bndbox>{edges}</bndbox></object>"


def make_coco_record(root: Path, *annotations: object, **changes: object) -> Path:
    """One image ``a.jpg`` of id 1 with a cat (category 17) and a dog (18).

    Annotations get an id, the image's and the dog's where they lack them; changes
    replace whole lists of the file, or take them out where they are None.
    """
    (root / "val2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    picture(0).save(root / "val2014/a.jpg")
    height, width = SIZE
    usual = {"image_id": 1, "category_id": 18}
    content: dict[str, object] = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": height, "width": width}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"id": number, **usual, **it} if isinstance(it, dict) else it
            for number, it in enumerate(annotations, start=1)
        ],
    }
    content = {k: v for k, v in (content | changes).items() if v is not None}
    file = root / "annotations/instances_val2014.json"
    file.write_text(json.dumps(content))
    return root
