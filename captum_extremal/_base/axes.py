"""Spatial sizes -> the length of each axis that widths and distances are fractions of.

A mask's lattice, its edges, blurs, disks and shifts are as long as a part of the input,
7 of 224 pixels say. Where the axes are alike, as those of a picture, a length is the
same along each of them. Where one is much shorter than another (leads x time, few
slices or frames, mel bands x time) a step along it is worth more than one along the
other, and one length for both would swallow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# So many times as long is the longest axis at least where another one is not alike; or
# more than twice, where that has few steps, which then stand by themselves.
_TIMES = 3
_STEPS = 64
_PUBLISHED = 224  # side of the inputs that published lengths are for


def is_short(size: Sequence[int]) -> list[bool]:
    """Of each axis whether another one is much longer.

    That is three times as long, or more than twice if the axis has at most 64 steps.

    Example:
        >>> is_short((12, 1000)), is_short((480, 960)), is_short((22, 64))
        ([True, False], [False, False], [True, False])
    """
    return [
        _TIMES * side <= max(size) or (side <= _STEPS and 2 * side < max(size))
        for side in size
    ]


def scales(size: Sequence[int]) -> tuple[float, ...]:
    """Of each axis the length, in pixels, that fractions are taken of.

    Args:
        size: Spatial size, 1 to 3 axes.

    Returns:
        For axes that are alike (none `is_short`) the geometric mean of the sides, for
        each. Else the same mean over the long axes for these; for a short axis its own
        side, so that it is divided into as many parts; or 0 for one of at most 64 steps
        (leads, slices, frames), which stand by themselves: nothing is smoothed, blurred
        or shifted across them.

    Example:
        >>> scales((200, 128)), scales((12, 1000)), scales((16, 112, 112))
        ((160.0, 160.0), (0.0, 1000.0), (0.0, 112.0, 112.0))
        >>> scales((80, 400))
        (80.0, 400.0)
    """
    short = is_short(size)
    long = [side for side, is_one in zip(size, short, strict=True) if not is_one]
    mean = float(math.prod(long) ** (1 / len(long)))
    return tuple(
        mean if not is_one else float(side) if side > _STEPS else 0.0
        for side, is_one in zip(size, short, strict=True)
    )


def scaled(pixels: float, size: Sequence[int]) -> tuple[float, ...]:
    """As many pixels at 224 x 224, the published size, are how many along each axis.

    Example:
        >>> scaled(20, (112, 112)), scaled(20, (12, 448))
        ((10.0, 10.0), (0.0, 40.0))
    """
    return tuple(pixels / _PUBLISHED * length for length in scales(size))


def lattice_step(length: float) -> int:
    """Spacing of a lattice in pixels along an axis of this length: 7 at 224.

    Example:
        >>> lattice_step(480.0), lattice_step(10.0)
        (15, 1)
    """
    return max(1, round(7 / _PUBLISHED * length))


def lattice_steps(size: Sequence[int]) -> tuple[int, ...]:
    """Of each axis the spacing of a lattice in pixels, see `lattice_step`.

    Args:
        size: Spatial size.

    Returns:
        That of the length which counts; 0 for steps that stand by themselves.

    Example:
        >>> lattice_steps((224, 224)), lattice_steps((12, 1000))
        ((7, 7), (0, 31))
    """
    return tuple(lattice_step(length) if length else 0 for length in scales(size))
