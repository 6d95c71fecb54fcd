r"""A folder of VOC 2007 or COCO 2014 -> pictures with the masks of their objects.

One example is an image with a bool mask for each class in it: the union of the boxes of
that class for VOC, of its segments, crowd regions included, for COCO. A pair of image
and class is difficult (Zhang et al., cited in Sec. 4.2) if the object is small and not
alone:

.. math:: |O| < \tfrac{1}{4} H W \quad \text{and another class is in the image.}

Nothing is downloaded; torchvision reads the folders as their archives unpack.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from captum_extremal._checks import check_choice
from captum_extremal.metrics import boxes_to_masks

if TYPE_CHECKING:
    from PIL.Image import Image

_SMALL = 0.25  # of the image: the bound for a difficult object


class Example(NamedTuple):
    """An image and what is in it.

    Attributes:
        image: Name of the image: that of its file, without the suffix.
        picture: The image in RGB, in its own size (H, W).
        objects: Class -> where it is, (H, W) bool, at least one pixel True.
        difficult: Class -> whether the pair is difficult by `difficult_classes`.

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
    from torchvision.datasets import VOCDetection

    split = "VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    _check_file(root, split, "voc2007")
    # Its constructor pairs each name with two files that it does not open.
    images = VOCDetection(str(root), year="2007", image_set="test", download=False)
    place = _places(images.images)

    def read(image: str) -> Example:
        picture, annotation = images[place[image]]
        return _voc_example(image, picture, annotation["annotation"].get("object", []))

    return ImageSet("voc2007", list(place), read)


def _voc_example(image: str, picture: Image, found: list[dict[str, Any]]) -> Example:
    """The union of the boxes of each class.

    A class whose boxes are all marked difficult to recognise, by VOC's own flag, takes
    no part in the game; it is still another class in the image.
    """
    size = (picture.height, picture.width)
    masks: dict[str, Tensor] = {}
    plays: dict[str, bool] = {}
    for item in found:
        name, box = item["name"], item["bndbox"]
        edges = [[float(box[key]) for key in ("xmin", "ymin", "xmax", "ymax")]]
        mask = boxes_to_masks(torch.tensor(edges), size, one_based_inclusive=True)[0]
        masks[name] = masks.get(name, torch.zeros_like(mask)) | mask
        plays[name] = plays.get(name, False) or item["difficult"] != "1"
    return _example(image, picture, masks, plays)


def _coco2014(root: Path) -> ImageSet:
    from torchvision.datasets import CocoDetection

    annotations = "annotations/instances_val2014.json"
    _check_file(root, annotations, "coco2014")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports to it
            images = CocoDetection(str(root / "val2014"), str(root / annotations))
    except ValueError as error:
        raise ValueError(f"{root / annotations} must be JSON, got {error}") from None
    except ModuleNotFoundError as error:
        if error.name != "pycocotools":
            raise
        raise ImportError(
            "coco2014 needs pycocotools: pip install 'captum_extremal[benchmark]'"
        ) from None
    coco = images.coco
    names = {key: category["name"] for key, category in coco.cats.items()}
    place = _places([coco.imgs[key]["file_name"] for key in images.ids])

    def read(image: str) -> Example:
        picture, found = images[place[image]]
        masks: dict[str, Tensor] = {}
        for item in found:
            if not item["segmentation"]:  # an object without a pixel
                continue
            mask = torch.from_numpy(coco.annToMask(item)).bool()
            name = names[item["category_id"]]
            masks[name] = masks.get(name, torch.zeros_like(mask)) | mask
        return _example(image, picture, masks, dict.fromkeys(masks, True))

    return ImageSet("coco2014", list(place), read)


def _example(
    image: str, picture: Image, masks: dict[str, Tensor], plays: dict[str, bool]
) -> Example:
    """Leave out what cannot be pointed at, after the rule has seen all classes."""
    size = (picture.height, picture.width)
    wrong = [tuple(mask.shape) for mask in masks.values() if mask.shape != size]
    if wrong:
        raise ValueError(
            f"objects of {image} must be of its size {size}, got {wrong[0]}"
        )
    seen = {name: mask for name, mask in masks.items() if mask.any()}
    difficult = difficult_classes(seen)
    objects = {name: mask for name, mask in seen.items() if plays[name]}
    return Example(image, picture, objects, {name: difficult[name] for name in objects})


def _places(files: Sequence[str]) -> dict[str, int]:
    """Name of each image -> its place in the list."""
    places = {Path(file).stem: index for index, file in enumerate(files)}
    if len(places) < len(files):
        names = [Path(file).stem for file in files]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"images must have names of their own, got {twice} twice")
    return places


def _check_file(root: Path, file: str, name: str) -> None:
    if not (root / file).is_file():
        raise ValueError(f"root of {name} must hold {file}, got {root}")


DATASETS: dict[str, Callable[[Path], ImageSet]] = {
    "voc2007": _voc2007,
    "coco2014": _coco2014,
}
