r"""A folder of VOC 2007 or COCO 2014 -> pictures with the masks of their objects.

One example is an image with a bool mask for each class in it: the union of the boxes of
that class for VOC, of its segments, crowd regions included, for COCO. A pair of image
and class is difficult (Zhang et al., cited in Sec. 4.2) if the object is small and not
alone:

.. math:: |O| < \tfrac{1}{4} H W \quad \text{and another class is in the image.}

Nothing is downloaded; the folders are read as their archives unpack. An object whose
record makes no sense is left out of its class and named, the others are read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from captum_extremal._base.checks import check_choice
from captum_extremal.benchmark.annotations import (
    Flaw,
    Found,
    coco_object,
    short,
    voc_object,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_SMALL = 0.25  # of the image: the bound for a difficult object


class Example(NamedTuple):
    """An image and what is in it.

    Attributes:
        image: Name of the image: that of its file, without the suffix; with the folders
            before it where two images would share a name.
        picture: The image in RGB, in its own size (H, W).
        objects: Class -> where it is, (H, W) bool, at least one pixel True.
        difficult: Class -> whether the pair is difficult by `difficult_classes`.
        flaws: What is wrong with the records of its objects. A class that lost an
            object has the others in ``objects``, and is not there without any.

    Example:
        >>> from PIL import Image
        >>> picture, dog = Image.new("RGB", (6, 4)), torch.ones(4, 6).bool()
        >>> Example("000001", picture, {"dog": dog}, {"dog": False}).difficult
        {'dog': False}
    """

    image: str
    picture: Image
    objects: dict[str, Tensor]
    difficult: dict[str, bool]
    flaws: tuple[Flaw, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Images by name, read one at a time.

    Attributes:
        name: ``"voc2007"`` or ``"coco2014"``.
        images: The names of all images, in the order of the data set.
        read: Name -> `Example`; raises what the reader of a broken file raises.

    Example:
        A data set of your own, with the classes of one of the two::

            images = ImageSet("voc2007", ["kitchen", "garden"], read=my_function)

        >>> ImageSet("voc2007", ["kitchen"], read=Example).images
        ['kitchen']
    """

    name: str
    images: list[str]
    read: Callable[[str], Example]


def open_images(name: str, root: str | Path) -> ImageSet:
    """Open a data set that lies on the disk.

    Args:
        name: ``"voc2007"``, the test images of VOC 2007, below
            ``root/VOCdevkit/VOC2007``; or ``"coco2014"``, the validation images of COCO
            2014, in ``root/val2014`` with
            ``root/annotations/instances_val2014.json``. The latter needs pycocotools:
            ``pip install 'captum_extremal[benchmark]'``.
        root: The folder.

    Returns:
        The images; none of them has been read yet.

    Raises:
        ValueError: If ``name`` is another one, or the folder is not laid out like this.
        ImportError: If pycocotools is missing.

    Example:
        >>> open_images("imagenet", "data")
        Traceback (most recent call last):
        ...
        ValueError: dataset must be 'voc2007' or 'coco2014', got 'imagenet'
    """
    check_choice("dataset", name, tuple(DATASETS))
    return DATASETS[name](Path(root))


def difficult_classes(objects: Mapping[str, Tensor]) -> dict[str, bool]:
    """Which classes of an image are difficult: small, and not the only class.

    Args:
        objects: Class -> where it is, bool, all of one shape. Several objects of a
            class count together, overlaps once.

    Returns:
        For each class whether it covers less than a quarter of the image while another
        class is in the image too.

    Example:
        >>> import torch
        >>> small, large = torch.arange(8) < 1, torch.arange(8) < 6
        >>> difficult_classes({"dog": small, "person": large})
        {'dog': True, 'person': False}
        >>> difficult_classes({"dog": small})
        {'dog': False}
    """
    return {
        name: len(objects) > 1 and int(mask.sum()) < _SMALL * mask.numel()
        for name, mask in objects.items()
    }


def _voc2007(root: Path) -> ImageSet:
    base = root / "VOCdevkit/VOC2007"
    split = base / "ImageSets/Main/test.txt"
    _check_file(root, split, "voc2007")
    pictures = base / "JPEGImages"
    # Whatever bytes a name is of, it is looked for by the same ones.
    lines = split.read_text("utf-8-sig", errors="surrogateescape").split("\n")
    listed = [_listed(line.strip(), pictures) for line in lines]
    files = _named([f"{name}.jpg" for name in listed if name])

    def read(image: str) -> Example:
        picture = _picture(pictures / files[image])
        file = (base / "Annotations" / files[image]).with_suffix(".xml")
        return _voc_example(image, picture, file)

    return ImageSet("voc2007", list(files), read)


def _listed(line: str, pictures: Path) -> str:
    """The name in a line of a list of images, empty where there is none.

    Lists of a class say in a second column whether it is in the image (1, 0 or -1). A
    name that only looks like that, or like a comment, has a picture.
    """
    name = re.sub(r"\s+[-+]?[01]$", "", line.partition("#")[0].strip())
    if name != line and (pictures / f"{line}.jpg").is_file():
        return line
    return name


def _voc_example(image: str, picture: Image, file: Path) -> Example:
    """The union of the boxes of each class.

    A class whose boxes are all marked difficult to recognise, by VOC's own flag, takes
    no part in the game; it is still another class in the image.
    """
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} must be XML, got {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"{file} must hold an annotation, got {root.tag}")
    said = [root.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    _check_size(picture, [int(it) if it.isdecimal() else None for it in said], file)
    size = (picture.height, picture.width)
    found = [
        (f"object {number} of {file.parent.name}/{file.name}", voc_object(it, size))
        for number, it in enumerate(root.findall("object"), start=1)
    ]
    return _example(image, picture, found)


def _coco2014(root: Path) -> ImageSet:
    file = root / "annotations/instances_val2014.json"
    _check_file(root, file, "coco2014")
    try:
        import pycocotools.mask  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "pycocotools":
            raise
        raise ImportError(
            "coco2014 needs pycocotools: pip install 'captum_extremal[benchmark]'"
        ) from None
    coco = _Coco.of(file, root / "val2014")
    return ImageSet("coco2014", list(coco.files), coco.read)


@dataclass(frozen=True)
class _Coco:
    """The lists of COCO's file, by what they are asked for.

    Attributes:
        source: The file.
        folder: Of the pictures.
        files: Name of an image -> its file below the folder.
        entries: File -> what ``images`` has of it.
        files_of: Id of an image -> its files, one if all is well.
        records: Id of an image -> its annotations.
        labels: Id of a category -> its names, one if all is well.
    """

    source: Path
    folder: Path
    files: dict[str, str]
    entries: dict[str, list[dict[str, Any]]]
    files_of: dict[object, dict[str, None]]
    records: dict[object, list[dict[str, Any]]]
    labels: dict[object, dict[str, None]]

    @classmethod
    def of(cls, source: Path, folder: Path) -> _Coco:
        """Read the file."""
        content = _coco_content(source)
        entries: dict[str, list[dict[str, Any]]] = {}
        files_of: dict[object, dict[str, None]] = {}
        for it in content["images"]:
            file = str(Path(it["file_name"]))
            entries.setdefault(file, []).append(it)
            files_of.setdefault(_key(it.get("id")), {})[file] = None
        records: dict[object, list[dict[str, Any]]] = {}
        for it in content["annotations"]:
            records.setdefault(_key(it.get("image_id")), []).append(it)
        labels: dict[object, dict[str, None]] = {}
        for it in content["categories"]:
            if isinstance(it.get("name"), str):
                labels.setdefault(_key(it.get("id")), {})[_escaped(it["name"])] = None
        files = _named(list(entries))
        return cls(source, folder, files, entries, files_of, records, labels)

    def read(self, image: str) -> Example:
        """A picture and its objects."""
        file = self.files[image]
        keys = {_key(it.get("id")): None for it in self.entries[file]}
        for key in keys:
            if key is None or len(self.files_of[key]) > 1:
                raise ValueError(
                    f"images of {self.source} must have ids of their own, got {key} "
                    f"for {' and '.join(self.files_of[key])}"
                )
        picture = _picture(self.folder / file)
        for entry in self.entries[file]:
            said = [entry.get("height"), entry.get("width")]
            _check_size(picture, said, self.source)
        size = (picture.height, picture.width)
        found = [
            (
                f"annotation {short(record.get('id'))} of {self.source.name}",
                self.object(record, size),
            )
            for key in keys
            for record in self.records.get(key, [])
        ]
        return _example(image, picture, found)

    def object(self, record: dict[str, Any], size: tuple[int, int]) -> Found:
        """One annotation."""
        category = record.get("category_id")
        names = list(self.labels.get(_key(category), {}))
        if len(names) == 1:
            return coco_object(record, names[0], size)
        which = f"names {' and '.join(names)}" if names else "no name"
        reason = f"category {short(category)} has {which}: left out"
        return Found("", None, True, [reason])


def _coco_content(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of COCO, of JSON objects alone."""
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got {error}") from None
    lists = {}
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise ValueError(
                f"{file} must hold the lists images, annotations and categories, got "
                f"no {key}"
            )
        lists[key] = [it for it in found if isinstance(it, dict)]
    for number, it in enumerate(lists["images"]):
        if not isinstance(it.get("file_name"), str):  # reading it fails, and says so
            it["file_name"] = f"no file_name of images[{number}]"
    lists["images"] = _in_order(lists["images"])
    return lists


def _in_order(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By their ids, where these have an order."""
    try:
        return sorted(images, key=lambda it: it["id"])
    except (KeyError, TypeError):
        return images


def _key(value: object) -> object:
    """An id that can be looked up, else None."""
    return value if type(value) in (int, str, float) else None


def _escaped(text: str) -> str:
    """Text that can be written, of whatever a file's name or JSON may hold."""
    return text.encode(errors="backslashreplace").decode()


def _example(image: str, picture: Image, found: list[tuple[str, Found]]) -> Example:
    """The union of each class's objects, by the rule that has seen all classes.

    The class of an object that is left out is in the image all the same.
    """
    masks: dict[str, Tensor] = {}
    plays: dict[str, bool] = {}
    flaws = []
    nowhere = torch.zeros(picture.height, picture.width, dtype=torch.bool)
    for what, one in found:
        flaws += [Flaw(what, one.label, reason) for reason in one.reasons]
        if one.label:
            mask = nowhere if one.mask is None else one.mask
            masks[one.label] = masks.get(one.label, nowhere) | mask
            plays[one.label] = plays.get(one.label, False) or (
                one.plays and one.mask is not None
            )
    difficult = difficult_classes(masks)
    objects = {name: mask for name, mask in masks.items() if plays[name]}
    hard = {name: difficult[name] for name in objects}
    return Example(image, picture, objects, hard, tuple(flaws))


def _picture(file: Path) -> Image:
    from PIL import Image

    with Image.open(file) as opened:
        picture: Image.Image = opened.convert("RGB")
    return picture


def _check_size(picture: Image, said: Sequence[object], file: Path) -> None:
    """Refuse a record of a picture of another size; 0 or no number says nothing."""
    size = (picture.height, picture.width)
    if all(isinstance(it, int | float) and it > 0 for it in said) and said != [*size]:
        turned = " (turned by EXIF?)" if tuple(said[::-1]) == size else ""
        raise ValueError(
            f"objects must be of the picture's size {size}, got {tuple(said)} in "
            f"{file}{turned}"
        )


def _named(files: Sequence[str]) -> dict[str, str]:
    """Name of each image -> its file, each file once.

    The name is that of the file without the suffix; where several would share one, with
    the folders before it, and if they do so still, with the suffix too.
    """
    files = list(dict.fromkeys(files))
    ways = [
        (path.stem, str(path.parent / path.stem), str(path), f"{path} {number}")
        for number, path in enumerate(map(Path, map(_escaped, files)))
    ]
    level = [0] * len(files)
    while True:
        names = [way[place] for way, place in zip(ways, level, strict=True)]
        count = Counter(names)
        shared = [i for i, it in enumerate(names) if count[it] > 1 and level[i] < 3]
        if not shared:
            return dict(zip(names, files, strict=True))
        for index in shared:
            level[index] += 1


def _check_file(root: Path, file: Path, name: str) -> None:
    if not file.is_file():
        raise ValueError(
            f"root of {name} must hold {file.relative_to(root)}, got {root}"
        )


DATASETS: dict[str, Callable[[Path], ImageSet]] = {
    "voc2007": _voc2007,
    "coco2014": _coco2014,
}
