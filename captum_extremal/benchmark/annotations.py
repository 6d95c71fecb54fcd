r"""What a record says of one object -> its mask (H, W), or a reason why not.

Records come from many tools, and a library of compiled code trusts their numbers: here
all of them are checked first. A box or polygon whose numbers make no sense is a
`Flaw`, and the other objects of the image are read all the same.

Run lengths are decoded here, not by pycocotools. Of a compressed string, a character
:math:`c` holds five bits of a number and whether more follow; the number :math:`x_i` is
the count itself for :math:`i \le 2` (from 0), else what it exceeds count
:math:`i - 2` by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
import torch
from torch import Tensor

from captum_extremal.metrics import boxes_to_masks

Size = tuple[int, int]  # height, width of the picture

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FLAGS = {"": 0.0, "false": 0.0, "no": 0.0, "true": 1.0, "yes": 1.0}
_CUT = "reaches beyond the picture: cut off"
_MOST_BITS = 60  # of a run length in a compressed string


class Flaw(NamedTuple):
    """What is wrong with the record of an object.

    Attributes:
        object: Which object, of which file.
        label: Its class; empty where that is what is wrong.
        reason: What is wrong, and what was done.

    Example:
        >>> Flaw("object 2 of Annotations/000001.xml", "dog", "no bndbox: left out")
        Flaw(object='object 2 of Annotations/000001.xml', label='dog',
             reason='no bndbox: left out')
    """

    object: str
    label: str
    reason: str


class Found(NamedTuple):
    """What a record says of an object.

    Attributes:
        label: Its class, empty where it has none.
        mask: Where it is, (H, W) bool, not empty; None if it is left out.
        plays: Whether it makes its class take part in the game.
        reasons: What is wrong with the record.

    Example:
        >>> Found("dog", None, True, ["no bndbox: left out"]).plays
        True
    """

    label: str
    mask: Tensor | None
    plays: bool
    reasons: list[str]


class _Wrong(ValueError):
    """Why an object, or a part of it, cannot be drawn."""


# --- VOC ---


def voc_object(record: Element, size: Size) -> Found:
    """An ``object`` of VOC's XML: the pixels of its box.

    Args:
        record: The element.
        size: (H, W) of the picture.

    Returns:
        The object. It does not play if VOC's own flag says that it is difficult to
        recognise; without the flag it is not.

    Example:
        >>> from xml.etree.ElementTree import fromstring
        >>> box = "<xmin>2</xmin><ymin>1</ymin><xmax>3</xmax><ymax>1</ymax>"
        >>> record = f"<object><name>dog</name><bndbox>{box}</bndbox></object>"
        >>> voc_object(fromstring(record), (1, 4)).mask
        tensor([[False,  True,  True, False]])
    """
    reasons: list[str] = []
    label = mask = None
    try:
        label = _text(_only(record, "name"))
        if not label:
            raise _Wrong("an empty name")
        mask = _box(_edges(_only(record, "bndbox")), size, True, reasons)
    except _Wrong as wrong:
        reasons.append(f"{wrong}: left out")
    flags = [_flag(item) for item in record.findall("difficult")]
    if None in flags:
        reasons.append("a difficult that is neither 0 nor 1: taken for 0")
    return Found(label or "", mask, plays=True not in flags, reasons=reasons)


def _only(record: Element, tag: str) -> Element:
    found = record.findall(tag)
    if len(found) != 1:
        raise _Wrong(f"{len(found)} {tag} in place of one" if found else f"no {tag}")
    return found[0]


def _text(item: Element) -> str:
    return (item.text or "").strip()


def _edges(box: Element) -> list[float]:
    edges = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(_only(box, tag))
        number = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(number):
            raise _Wrong(f"{tag} is no number but {text[:20]!r}")
        edges.append(number)
    return edges


def _flag(item: Element) -> bool | None:
    text = _text(item).lower()
    number = _FLAGS.get(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
    return bool(number) if number in (0.0, 1.0) else None


# --- COCO ---


def coco_object(record: dict[str, Any], label: str, size: Size) -> Found:
    """An annotation of COCO: the pixels of its segments, or of its box without any.

    Args:
        record: The annotation.
        label: Its class.
        size: (H, W) of the picture.

    Returns:
        The object.

    Example:
        >>> box = {"bbox": [1, 0, 2, 1], "segmentation": [[]]}
        >>> found = coco_object(box, "dog", (1, 4))
        >>> found.mask
        tensor([[False,  True,  True, False]])
        >>> found.reasons
        ['no segmentation: its bbox is taken']
        >>> runs = {"counts": [3, 1], "size": [1, 4]}
        >>> coco_object({"segmentation": runs}, "dog", (1, 4)).mask
        tensor([[False, False, False,  True]])
    """
    reasons: list[str] = []
    mask = None
    segments = record.get("segmentation")
    try:
        if _is_empty(segments):
            edges = _coco_edges(record.get("bbox"))
            mask = _box(edges, size, False, reasons)
            reasons.append("no segmentation: its bbox is taken")
        elif isinstance(segments, dict):
            mask = _runs(segments, size)
        else:
            mask = _polygons(segments, size, reasons)
    except _Wrong as wrong:
        reasons.append(f"{wrong}: left out")
    return Found(label, mask, True, reasons)


def _is_empty(segments: object) -> bool:
    """Whether nothing is there: None, an empty list or dict, a list of such lists."""
    if isinstance(segments, list):
        return all(isinstance(it, list) and not it for it in segments)
    return segments is None or segments == {}


def _coco_edges(box: object) -> list[float]:
    if box is None:
        raise _Wrong("neither segmentation nor bbox")
    numbers = _numbers(box)
    if numbers is None or len(numbers) != 4:
        raise _Wrong(f"bbox is not four numbers but {short(box)}")
    x, y, width, height = numbers
    if not (width > 0 and height > 0):
        raise _Wrong(f"bbox has no width or height, {short(box)}")
    return [x, y, x + width, y + height]


def _polygons(segments: object, size: Size, reasons: list[str]) -> Tensor:
    """The union of the polygons that can be drawn."""
    if not isinstance(segments, list):
        raise _Wrong(f"segmentation is neither list nor object but {short(segments)}")
    if not any(isinstance(it, list) for it in segments):
        segments = [segments]  # of one polygon, that another tool did not nest
    good, cut = [], False
    for number, polygon in enumerate(segments, start=1):
        if isinstance(polygon, list) and not polygon:
            continue
        try:
            points = _points(polygon)
            cut |= _is_cut(points, size)
            good.append(points)
        except _Wrong as wrong:
            if len(segments) == 1:
                raise
            reasons.append(f"polygon {number}: {wrong}: left out")
    if not good:
        raise _Wrong("no polygon can be drawn")
    from pycocotools import mask as drawn

    height, width = size
    parts = drawn.frPyObjects(good, height, width)
    mask = _some(torch.from_numpy(drawn.decode(drawn.merge(parts)).astype(bool)))
    reasons += [_CUT] * cut
    return mask


def _points(polygon: object) -> list[float]:
    numbers = _numbers(polygon)
    if numbers is None:
        raise _Wrong(f"a polygon is not numbers but {short(polygon)}")
    if len(numbers) % 2 or len(numbers) < 6:
        raise _Wrong(f"a polygon has {len(numbers)} numbers, not three points or more")
    return numbers


def _runs(runs: dict[str, Any], size: Size) -> Tensor:
    """Zeros and ones in turn, column by column."""
    if runs.get("size") != list(size):
        raise _Wrong(f"size is {short(runs.get('size'))}, not the picture's {size}")
    counts = runs.get("counts")
    if isinstance(counts, str | bytes):
        counts = _uncompressed(counts)
    numbers = _numbers(counts)
    if numbers is None or not all(it >= 0 and it.is_integer() for it in numbers):
        raise _Wrong("counts are not whole numbers from 0")
    if sum(numbers) != math.prod(size):
        raise _Wrong(f"counts add up to {sum(numbers):.0f}, not {math.prod(size)}")
    values = np.arange(len(numbers)) % 2 == 1
    flat = np.repeat(values, np.asarray(numbers, dtype=np.int64))
    return _some(torch.from_numpy(flat.reshape(size[::-1]).T.copy()))


def _uncompressed(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths as numbers; see the first lines of the module."""
    codes = text.encode("utf-8", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    number = bits = 0
    for code in codes:
        code -= 48
        if not 0 <= code < 64 or bits > _MOST_BITS:
            raise _Wrong("counts are a damaged string")
        number |= (code & 31) << bits
        bits += 5
        if code & 32:  # more of it follows
            continue
        if code & 16:  # it is negative
            number -= 1 << bits
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = bits = 0
    if bits:
        raise _Wrong("counts are a string that breaks off")
    return counts


# --- both ---


def _box(
    edges: Sequence[float], size: Size, one_based_inclusive: bool, reasons: list[str]
) -> Tensor:
    """The mask of (xmin, ymin, xmax, ymax)."""
    if not (edges[0] <= edges[2] and edges[1] <= edges[3]):
        raise _Wrong(f"the box ends before it begins, {short(list(edges))}")
    box = torch.tensor([list(edges)], dtype=torch.float64)
    cut = _is_cut(edges, size)
    mask = _some(boxes_to_masks(box, size, one_based_inclusive=one_based_inclusive)[0])
    reasons += [_CUT] * cut
    return mask


def _is_cut(points: Sequence[float], size: Size) -> bool:
    """Whether x, y, x, y, ... lie outside by more than a pixel, of rounding.

    What lies outside by more than the picture's side belongs to another picture.
    """
    beyond = 0.0
    for values, length in zip((points[0::2], points[1::2]), size[::-1], strict=True):
        for value in (min(values), max(values)):
            outside = max(-value, value - length)
            if outside > length:
                raise _Wrong(f"{value:g} is far outside of the picture, 0 to {length}")
            beyond = max(beyond, outside)
    return beyond > 1


def _some(mask: Tensor) -> Tensor:
    if not mask.any():
        raise _Wrong("covers no pixel of the picture")
    return mask


def _numbers(values: object) -> list[float] | None:
    """Finite numbers as floats; None if it is anything else."""
    if not isinstance(values, list):
        return None
    found = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            number = float(value)
        except OverflowError:  # an int of more than 308 digits
            return None
        if not math.isfinite(number):
            return None
        found.append(number)
    return found


def short(value: object) -> str:
    """What came, in a few characters.

    Example:
        >>> short([None] * 99)
        '[None, None, None, None, None, None, ...'
    """
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
