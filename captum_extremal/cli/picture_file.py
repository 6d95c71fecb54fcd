r"""A file of a picture -> the picture as networks know them: RGB, 8 bits a colour.

It is the first frame, the right way up, transparency on white. Grey values of more than
8 bits are scaled: a value :math:`v` between those of black and white, :math:`b < w`,
becomes

.. math:: \min\left(255, \left\lfloor 256\,\frac{v - b}{w - b} \right\rfloor\right).

For 16 bits that are used up, 0 to 65535, this is :math:`\lfloor v / 256 \rfloor`. Other
pictures rarely fill their type: cameras of 10 to 14 bits, CT in Hounsfield units, bytes
in 32 bits, floats. The range is then what a TIFF says of it, if its values keep to it,
or else what is there: from 0, or the least value if it is below 0, to the greatest one.
A line on stderr tells the range.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from captum_extremal.cli.printing import say, shown

if TYPE_CHECKING:
    from PIL.Image import Image

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # of Pillow: more than 8 bits
_16_BITS = (0.0, 65535.0)
_UNIT = (0.0, 1.0)


class _Tag:
    """Numbers of the tags of a TIFF."""

    BITS, PHOTOMETRIC, LEAST, GREATEST, FORMAT, SIGNED_LEAST, SIGNED_GREATEST = (
        258, 262, 280, 281, 339, 340, 341,
    )  # fmt: skip


def open_picture(path: Path) -> Image:
    """Read a picture of any kind, as the module's first lines tell.

    Args:
        path: A file of any format that Pillow reads.

    Returns:
        The picture in RGB.

    Raises:
        click.UsageError: If it is none, or its grey values are not finite.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tags that do not matter
            with Image.open(path) as file:
                tiles: Any = getattr(file, "tile", ())
                deep_colours = any(";16" in str(tile[3]) for tile in tiles)
                file.load()
                turn = _turn_of(file)
    except Exception as error:  # whatever the bytes of any other file lead a reader to
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "" if unknown else f": {str(error) or type(error).__name__}"
        raise click.UsageError(f"IMAGE must be a picture, got {path}{reason}") from None
    if file.mode in _DEEP:
        picture = _from_grey(file, path).convert("RGB")
    else:
        picture = _on_white(file, path)
        if deep_colours:
            _tell_if_dark(file)
    return picture if turn is None else picture.transpose(turn)


def _turn_of(file: Image) -> Any:  # noqa: ANN401
    """How a loaded picture is to be turned; TIFFs are turned by then."""
    from PIL import ExifTags
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    # A block of tags may be damaged in any way, and the value be of any type.
    with suppress(Exception):
        return turns.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _on_white(file: Image, path: Path) -> Image:
    """A picture of 8 bits a colour in RGB, on white where it is transparent."""
    from PIL import Image

    picture = file.convert("LA") if file.mode == "La" else file
    try:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")
    except ValueError:
        raise click.UsageError(
            f"IMAGE must be grey or in colours, got mode {file.mode}: {path}"
        ) from None


def _tell_if_dark(file: Image) -> None:
    """Of 16 bits a colour Pillow reads the upper 8, whatever the picture uses."""
    extrema: Any = file.convert("RGB").getextrema()
    brightest = max(high for _, high in extrema)
    if brightest < 128:
        say(
            f"IMAGE has 16 bits a colour, of which the upper 8 are read: its brightest "
            f"value is {brightest} of 255",
            err=True,
        )


# --- grey of more than 8 bits ---


class _Range(NamedTuple):
    black: float
    white: float
    holds: str = "holds grey values"


def _from_grey(file: Image, path: Path) -> Image:
    """Grey values of any range in 8 bits."""
    from PIL import Image

    tags = getattr(file, "tag_v2", {})
    values: npt.NDArray[Any] = np.asarray(file)
    if file.mode == "F":
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise click.UsageError(
                f"IMAGE must hold finite grey values, got NaN or infinity: {path}"
            )
    else:
        values = values.astype(np.int64)
        if file.mode == "I" and _number(tags, _Tag.FORMAT, 1) == 1 and tags:
            values &= 2**32 - 1  # Pillow reads unsigned values as signed ones
    key = file.info.get("transparency")
    hidden = values == (key if isinstance(key, int) else np.nan)
    seen = values[~hidden]
    found = _range_of(seen if seen.size else values, _told_by(tags))
    _tell(found, path)
    span = found.white - found.black
    share = (values - found.black) / (span if span > 0 else 1)
    grey = (256 * share).clip(0, 255).astype(np.uint8)  # rounded down
    if _number(tags, _Tag.PHOTOMETRIC, 1) == 0:
        grey = 255 - grey  # 0 is white, which Pillow sees to for 8 bits alone
    grey[hidden] = 255
    return Image.fromarray(grey)


def _range_of(values: npt.NDArray[Any], told: _Range | None) -> _Range:
    low, high = float(values.min()), float(values.max())
    if told is not None and told.black <= low and high <= told.white:
        return told
    whole = not np.issubdtype(values.dtype, np.floating)
    if whole and low >= 0 and 2**15 <= high < 2**16:
        return _Range(*_16_BITS)
    return _Range(min(low, 0.0), high)


def _tell(found: _Range, path: Path) -> None:
    if found[:2] not in (_16_BITS, _UNIT):
        say(
            f"IMAGE {found.holds} {found.black:.6g}..{found.white:.6g}, shown as black "
            f"to white: {shown(path)}",
            err=True,
        )


def _told_by(tags: Any) -> _Range | None:  # noqa: ANN401
    """What a TIFF says of its values, if this is more than what its type can hold."""
    bits, sample = _number(tags, _Tag.BITS, 16), _number(tags, _Tag.FORMAT, 1)
    low = _number(tags, _Tag.SIGNED_LEAST, _number(tags, _Tag.LEAST, 0))
    high = _number(tags, _Tag.SIGNED_GREATEST, _number(tags, _Tag.GREATEST))
    if high is None and bits not in (16, 32):
        high = 2**bits - 1  # such as 12
    full = 2 ** (bits - 1 if sample == 2 else bits) - 1
    if high is None or low >= high or (high >= full and bits in (16, 32)):
        return None
    return _Range(low, high, "says that its grey values are")


def _number(tags: Any, tag: int, default: float | None = None) -> Any:  # noqa: ANN401
    """One finite number of a tag; the default where there is none."""
    with suppress(Exception):  # tags are decoded here, and may be damaged
        value = tags[tag]
        number = float(value[0] if isinstance(value, tuple) else value)
        if math.isfinite(number):
            return number
    return default
