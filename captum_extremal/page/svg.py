"""Scores over the area -> an SVG drawing with a cursor for the page to move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from captum_extremal.curve import Curve

WIDTH, HEIGHT = 400, 290  # so small that the letters are large enough on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 28, 46


def finite(curve: Curve) -> list[float]:
    """All scores that are numbers."""
    levels = (curve.input_score, curve.perturbed_score)
    runs = [score for scores in curve.runs for score in scores]
    values = [*curve.scores, *curve.complement_scores, *levels, *runs]
    return [value for value in values if math.isfinite(value)]


def text_of(curve: Curve, score: float) -> str:
    """A score with as many decimals as tell those of a curve apart.

    Example:
        >>> text_of(Curve([0.1], [3.0], [1.0], 2.0, 0.0, 0), 2.5)
        '2.50'
        >>> text_of(Curve([0.1], [0.03], [0.01], 0.02, 0.0, 0), 0.025)
        '0.0250'
    """
    values = finite(curve) or [0.0]
    span = max(values) - min(values)
    decimals = 2 if span <= 0 else 2 - math.floor(math.log10(span))
    return f"{score:.{min(max(2, decimals), 8)}f}"


def percent(area: float) -> str:
    r"""An area in words.

    Example:
        >>> percent(0.125)
        '12.5\xa0%'
    """
    return f"{100 * area:.3g}\N{NO-BREAK SPACE}%"


def place_x(curve: Curve, place: int) -> float:
    """Where an area stands in the drawing."""
    share = curve.sizes[place] / _last(curve)
    return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)


def draw(curve: Curve, title: str) -> str:
    """The drawing, an `<svg>` without any style of its own.

    Args:
        curve: What is drawn.
        title: Its description, for those who cannot see it.

    Returns:
        The element.

    Example:
        >>> curve = Curve([0.1, 0.2], [1.0, 3.0], [2.0, 0.0], 2.5, 0.0, 1)
        >>> draw(curve, "scores").count('class="dot kept"')
        2
    """
    low, high, ticks = _scale(finite(curve))

    def y(score: float) -> float:
        share = (score - low) / (high - low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg id="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">',
        *_axes(curve, ticks, y),
    ]
    for name, score in (
        ("whole", curve.input_score),
        ("perturbed", curve.perturbed_score),
    ):
        if math.isfinite(score):
            parts.append(_line(f"level {name}", _LEFT, y(score), WIDTH - _RIGHT))
    parts += _a_star(curve)
    parts.append(
        f'<line class="cursor" x1="0" x2="0" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    )
    for place, scores in enumerate(curve.runs):
        parts.append(
            f'<line class="runs" x1="{(x := place_x(curve, place))}" x2="{x}" '
            f'y1="{y(min(scores))}" y2="{y(max(scores))}"/>'
        )
    for name, series in (("removed", curve.complement_scores), ("kept", curve.scores)):
        points = [
            (place, place_x(curve, place), y(score))
            for place, score in enumerate(series)
            if math.isfinite(score)
        ]
        path = " ".join(f"{x},{height}" for _, x, height in points)
        parts.append(f'<polyline class="series {name}" points="{path}"/>')
        parts += [_dot(name, place, x, height) for place, x, height in points]
    return "".join([*parts, "</svg>"])


def _dot(name: str, place: int, x: float, y: float) -> str:
    shared = f'class="dot {name}" data-place="{place}"'
    if name == "kept":
        return f'<circle {shared} cx="{x}" cy="{y}" r="4.5"/>'
    corner = f'x="{round(x - 4, 1)}" y="{round(y - 4, 1)}"'
    return f'<rect {shared} {corner} width="8" height="8"/>'


def _axes(
    curve: Curve, ticks: Sequence[float], y: Callable[[float], float]
) -> list[str]:
    floor = HEIGHT - _BOTTOM
    parts = []
    for tick in ticks:
        parts.append(_line("grid", _LEFT, y(tick), WIDTH - _RIGHT))
        parts.append(_text("end", _LEFT - 7, y(tick) + 4.5, f"{tick:.6g}"))
    parts.append(_line("axis", _LEFT, floor, WIDTH - _RIGHT))
    last = 100 * _last(curve)
    for tick in _ticks(0.0, last, 5):
        x = round(_LEFT + tick / last * (WIDTH - _LEFT - _RIGHT), 1)
        parts.append(_text("middle", x, floor + 18, f"{tick:.6g}"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(_text("middle", middle, HEIGHT - 6, "area of the mask in %"))
    return parts


def _a_star(curve: Curve) -> list[str]:
    if curve.a_star is None:
        return []
    x = place_x(curve, curve.a_star)
    text = f"a* = {percent(curve.sizes[curve.a_star])}"
    anchor = "end" if x > WIDTH - 50 else "middle"
    edge = x + 8 if anchor == "end" else max(x, 40)
    return [
        f'<line class="a-star" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>',
        _text(anchor, edge, _TOP - 9, text, "a-star"),
    ]


def _line(name: str, x: float, y: float, end: float) -> str:
    return f'<line class="{name}" x1="{x}" x2="{end}" y1="{y}" y2="{y}"/>'


def _text(anchor: str, x: float, y: float, text: str, name: str = "") -> str:
    label = f' class="{name}"' if name else ""
    where = f'x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}"'
    return f"<text{label} {where}>{escape(text)}</text>"


def _last(curve: Curve) -> float:
    """The right end of the drawing, an area."""
    return 1.06 * max(curve.sizes)


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """The lowest and highest score of the drawing, and where its lines are."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    low, high = low - room, high + room
    return low, high, _ticks(low, high, 5)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [place * step for place in range(first, last + 1)]
