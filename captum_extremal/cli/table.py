"""Masks, scores and probabilities -> the table that the commands print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from captum_extremal.models.probabilities import (
    Rule,
    told,
)
from captum_extremal.results.extremal import ExtremalResult


@dataclass(frozen=True)
class View:
    """A picture as the network sees it."""

    name: str
    image: Tensor  # (3, H, W) in [0, 1]
    inputs: Tensor  # the same, normalised


@dataclass(frozen=True)
class Found:
    """The masks of N views and A areas, with what the tables say about them."""

    views: Sequence[View]
    targets: list[str]
    result: ExtremalResult
    areas_at_half: Tensor  # (N, A): the share of pixels that each mask has at >= 0.5
    input_probability: Tensor  # (N,)
    probability: Tensor  # (N, A): of what each mask keeps
    perturbed_probability: Tensor  # (N,)
    rule: Rule = "softmax"  # of the probabilities
    others: Mapping[str, Tensor] = field(default_factory=dict)
    """Maps (N, 1, H, W) of other methods."""


_ROW = "{:<14} {:<20} {:>9} {:>8} {:>9} {:>9} {:>8}  {}"
_HEAD = ("picture", "target", "area", "at 0.5", "kept", "removed", "p(kept)", "")
_NOTES = (
    "",
    "kept, removed: the target's score in what the mask keeps, and in the rest",
    "p(kept): the target's probability in what the mask keeps",
    "p: {rule}",
    "a*: the smallest area whose score reaches that of the input",
)


def table(found: Found) -> list[str]:
    """The lines of the table: a paragraph for each view."""
    lines = [_ROW.format(*_HEAD)]
    for index in range(len(found.views)):
        rows = [_input_row(found, index), *_mask_rows(found, index)]
        lines += ["", *(_ROW.format(*row) for row in rows)]
        lines.append(_ROW.format(*_perturbed_row(found, index)))
    lines += [note.format(rule=told(found.rule)) for note in _NOTES]
    return [line.rstrip() for line in lines]


def _input_row(found: Found, index: int) -> tuple[str, ...]:
    result = found.result
    return (
        _shortened(found.views[index].name, 14),
        _shortened(found.targets[index], 20),
        "input",
        "",
        f"{result.input_score[index]:.2f}",
        "",
        f"{found.input_probability[index]:.3f}",
        "no area reaches this score" if result.curve(index).a_star is None else "",
    )


def _shortened(text: str, width: int) -> str:
    """The beginning of a text that is too wide for its column."""
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _mask_rows(found: Found, index: int) -> Iterator[tuple[str, ...]]:
    result = found.result
    a_star = result.curve(index).smallest_sufficient
    for place, area in enumerate(result.areas):
        yield (
            "",
            "",
            f"{100 * area:.3g} %",
            f"{100 * found.areas_at_half[index, place]:.2f} %",
            f"{result.scores[index, place]:.2f}",
            f"{result.complement_scores[index, place]:.2f}",
            f"{found.probability[index, place]:.3f}",
            "a*" if area == a_star else "",
        )


def _perturbed_row(found: Found, index: int) -> tuple[str, ...]:
    score = f"{found.result.perturbed_score[index]:.2f}"
    probability = f"{found.perturbed_probability[index]:.3f}"
    return ("", "", "perturbed", "", score, "", probability, "")
