r"""The rows of a folder -> the table in the paper's form, with intervals and costs.

A value is that of a pair of image and class: 1 for a hit, 0 for a miss. The published
number is the mean over the classes of the mean over a class's pairs,

.. math:: \frac{1}{|C|} \sum_{c \in C} \frac{1}{|P_c|} \sum_{p \in P_c} v_p ,

on all pairs and on the difficult ones. The interval is that of a bootstrap over images:
all pairs of an image come and go together.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from captum_extremal._base.checks import check_choice, check_count, check_non_negative
from captum_extremal.benchmark.store import Content, Row, configuration_of
from captum_extremal.methods.registry import METHODS

Measure = Literal["hit", "inside", "energy"]
Format = Literal["text", "markdown", "latex", "csv"]
_DRAWS = 1000
_TOGETHER = 50  # draws whose weights are in memory at once


class Mean(NamedTuple):
    """The mean of a set of pairs.

    Attributes:
        over_classes: The published number, NaN without a pair.
        low: Lower end of its 95 % interval.
        high: Upper end.
        over_pairs: The plain mean.
        pairs: Number of pairs.
        classes: Number of classes among them.
        images: Number of images among them.
    """

    over_classes: float
    low: float
    high: float
    over_pairs: float
    pairs: int
    classes: int
    images: int


class Line(NamedTuple):
    """One method on one data set with one model.

    Attributes:
        method: Its label.
        all_pairs: The mean over all pairs.
        difficult: The mean over the difficult ones.
        seconds: Of the method for an image, all its pairs together.
    """

    method: str
    all_pairs: Mean
    difficult: Mean
    seconds: float


@dataclass(frozen=True)
class Block:
    """One data set with one model.

    Attributes:
        dataset: Name of the data set.
        model: Name of the model.
        lines: In the order of `METHODS`.
    """

    dataset: str
    model: str
    lines: list[Line]


@dataclass(frozen=True)
class Report:
    r"""All that a folder says.

    Attributes:
        blocks: One for each data set and model.
        notes: What labels stand for, where a method was run in several ways.
        failed: A line for each image or pair that failed.
        flaws: A line for each object that was left out, or taken by its box, because
            of its record.

    Example:
        >>> nothing = Mean(math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
        >>> half = Mean(0.5, 0.4, 0.6, 0.5, 9, 1, 9)
        >>> block = Block("voc2007", "demo", [Line("ig", half, nothing, seconds=2.0)])
        >>> print(Report([block], [], []).render("latex"), end="")
        \begin{tabular}{lc}
        \hline
        method & voc2007 demo \\
        \hline
        ig & 50.0/-- \\
        \hline
        \end{tabular}
    """

    blocks: list[Block]
    notes: list[str]
    failed: list[str]
    flaws: list[str] = field(default_factory=list)

    def render(self, format: Format = "text") -> str:
        """The tables as text.

        Args:
            format: ``"text"`` and ``"markdown"`` (the paper's table, then one with
                intervals and costs for each data set and model), ``"latex"`` (the
                paper's), ``"csv"`` (everything, unrounded).

        Returns:
            Lines, with an end of line after the last.

        Raises:
            ValueError: If the format is another one.
        """
        check_choice("format", format, get_args(Format))
        return _FORMATS[format](self)


def report(
    content: Content,
    measure: Measure = "hit",
    min_probability: float = 0.0,
    draws: int = _DRAWS,
) -> Report:
    """Count what a folder holds.

    Args:
        content: From `read`.
        measure: ``"hit"`` (15 pixels of tolerance), ``"inside"`` (none) or
            ``"energy"``.
        min_probability: Pairs whose probability is lower are left out.
        draws: Of the bootstrap.

    Returns:
        The report.

    Raises:
        ValueError: If there are no rows, or an argument is out of range.

    Example:
        >>> common = {"dataset": "voc2007", "model": "demo"}
        >>> settings = {"common": common, "method": {"method": "ig"}}
        >>> def row(image, label, hit):
        ...     return Row("c", image, label, "ig", 0, False, 1.0, 0.5, 0, 0, hit, hit,
        ...                0.5, None, 2.0)
        >>> rows = [row("a", "dog", 1.0), row("b", "dog", 0.0), row("b", "cat", 1.0)]
        >>> content = Content({it.key: it for it in rows}, settings={"c": settings})
        >>> line = report(content).blocks[0].lines[0]
        >>> line.all_pairs.over_classes, round(line.all_pairs.over_pairs, 3)
        (0.75, 0.667)
        >>> line.seconds  # 6 seconds on 2 images
        3.0
    """
    check_choice("measure", measure, get_args(Measure))
    check_non_negative("min_probability", min_probability)
    check_count("draws", draws)
    rows = [row for row in content.rows.values() if row.probability >= min_probability]
    if not rows:
        raise ValueError("report needs results, got none")
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        common = configuration_of(content.settings[row.configuration]["common"])
        groups.setdefault(common, {}).setdefault(row.configuration, []).append(row)
    labels, notes = _labels(content.settings, groups)
    blocks = []
    models, told_apart = _model_names(content.settings, groups)
    notes += told_apart
    for common, by_method in groups.items():
        first = content.settings[next(iter(by_method))]["common"]
        order = sorted(
            by_method, key=lambda it: (_place(by_method[it][0].method), labels[it])
        )
        lines = []
        for configuration in order:
            listed = content.difficult.get(first["dataset"])
            found = _line(
                labels[configuration], by_method[configuration], listed, measure, draws
            )
            lines.append(found)
        blocks.append(Block(first["dataset"], models[common], lines))
    blocks.sort(key=lambda block: (block.dataset, block.model))
    failed = [
        f"{it.image}{f', {it.label}' if it.label else ''} ({it.method}): {it.error}"
        for it in content.failures
    ]
    return Report(blocks, notes, failed, flaws_of(content))


def flaws_of(content: Content) -> list[str]:
    """A line for each object with a flaw in its record, for all methods together.

    Args:
        content: From `read`.

    Returns:
        The lines, by image.

    Example:
        >>> lines = ["object 2 of Annotations/a.xml: no bndbox: left out"]
        >>> flaws_of(Content(flaws={("0a1b", "a", "dog"): lines}))
        ['a, dog, object 2 of Annotations/a.xml: no bndbox: left out']
    """
    found = {
        (image, label, line): f"{image}, {f'{label}, ' if label else ''}{line}"
        for (_, image, label), lines in content.flaws.items()
        for line in lines
    }
    return [found[key] for key in sorted(found)]


def mean_of(
    values: Sequence[float],
    labels: Sequence[str],
    images: Sequence[str],
    draws: int = _DRAWS,
) -> Mean:
    """Means over classes and pairs, with the interval of the former.

    Args:
        values: One for each pair.
        labels: Its class.
        images: Its image.
        draws: Of the bootstrap: so many times as many images are drawn as there are,
            with replacement; the interval holds the middle 95 % of the means over the
            classes that were drawn. Seeded: the same each time.

    Returns:
        The means; NaN for no pairs.

    Example:
        >>> found = mean_of([1.0, 0.0, 1.0], ["dog", "dog", "cat"], ["a", "b", "b"])
        >>> found.over_classes, round(found.over_pairs, 3), found.pairs
        (0.75, 0.667, 3)
    """
    if not values:
        return Mean(math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
    _, class_of = np.unique(labels, return_inverse=True)
    _, image_of = np.unique(images, return_inverse=True)
    shape = (int(image_of.max()) + 1, int(class_of.max()) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (image_of, class_of), np.asarray(values, dtype=float))
    np.add.at(counts, (image_of, class_of), 1.0)
    means = (sums.sum(axis=0) / counts.sum(axis=0)).mean()
    generator = np.random.default_rng(0)
    drawn = []
    for start in range(0, draws, _TOGETHER):
        number = min(_TOGETHER, draws - start)
        even = np.full(shape[0], 1 / shape[0])
        weights = generator.multinomial(shape[0], even, size=number).astype(float)
        hits, all_pairs = weights @ sums, weights @ counts
        # A class of which no image was drawn is left out of that draw.
        shares = np.divide(
            hits, all_pairs, out=np.full_like(hits, np.nan), where=all_pairs > 0
        )
        drawn.append(np.nanmean(shares, axis=1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Mean(
        float(means),
        float(low),
        float(high),
        float(np.mean(values)),
        len(values),
        shape[1],
        shape[0],
    )


# --- counting ---


def _line(
    label: str,
    rows: Sequence[Row],
    listed: Iterable[Sequence[str]] | None,
    measure: Measure,
    draws: int,
) -> Line:
    named = None if listed is None else {tuple(pair) for pair in listed}
    hard = [
        row.difficult if named is None else (row.image, row.label) in named
        for row in rows
    ]
    difficult = [row for row, is_hard in zip(rows, hard, strict=True) if is_hard]
    images = len({row.image for row in rows})
    seconds = sum(row.seconds for row in rows) / images
    return Line(
        label, _mean(rows, measure, draws), _mean(difficult, measure, draws), seconds
    )


def _mean(rows: Sequence[Row], measure: Measure, draws: int) -> Mean:
    """Undefined values (an energy of nothing) are left out."""
    defined = [row for row in rows if getattr(row, measure) is not None]
    return mean_of(
        [getattr(row, measure) for row in defined],
        [row.label for row in defined],
        [row.image for row in defined],
        draws,
    )


def _labels(
    settings: Mapping[str, dict[str, Any]], groups: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, str], list[str]]:
    """Configuration -> label, and what labels with a hash stand for.

    A method is called by its name, and by a hash too if it was run with several options
    on the same data set and model.
    """
    names = [
        [settings[configuration]["method"]["method"] for configuration in group]
        for group in groups.values()
    ]
    several = {name for group in names for name in group if group.count(name) > 1}
    labels, notes = {}, set()
    for configuration in [it for group in groups.values() for it in group]:
        method = settings[configuration]["method"]
        name = method["method"]
        labels[configuration] = name
        if name in several:
            labels[configuration] = f"{name} {configuration_of(method)[:4]}"
            given = ", ".join(f"{k} {v}" for k, v in method.items() if k != "method")
            notes.add(f"{labels[configuration]}: {given}")
    return labels, sorted(notes)


def _model_names(
    settings: Mapping[str, dict[str, Any]], groups: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, str], list[str]]:
    """Group -> the model's name, and what names with a hash stand for.

    A name has a hash where two groups would share it: the same model on the same data
    set with other weights, another size, normalisation, targets or version.
    """
    firsts = {it: settings[next(iter(group))]["common"] for it, group in groups.items()}
    names, notes = {}, []
    for group, common in firsts.items():
        alike = [
            it
            for it in firsts.values()
            if (it["dataset"], it["model"]) == (common["dataset"], common["model"])
        ]
        names[group] = common["model"]
        if len(alike) > 1:
            names[group] = f"{common['model']} {group[:4]}"
            differ = [
                key for key in common if any(it[key] != common[key] for it in alike)
            ]
            given = ", ".join(f"{key} {common[key]}" for key in differ)
            notes.append(f"{names[group]}: {given}")
    return names, sorted(notes)


def _place(method: str) -> int:
    names = list(METHODS)
    return names.index(method) if method in names else len(names)


# --- text ---


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}"


def _interval(mean: Mean) -> str:
    return f"{_percent(mean.low)}–{_percent(mean.high)}" if mean.pairs else "–"


def _paper_table(found: Report) -> list[list[str]]:
    """Rows of methods; a cell is All/Difficult, in percent."""
    methods: dict[str, None] = {}
    for block in found.blocks:
        methods |= dict.fromkeys(line.method for line in block.lines)
    order = sorted(methods, key=lambda label: (_place(label.split(" ")[0]), label))
    table = [["method", *(f"{it.dataset} {it.model}" for it in found.blocks)]]
    for method in order:
        cells = []
        for block in found.blocks:
            lines = [line for line in block.lines if line.method == method]
            cells.append("/".join(_both(lines[0])) if lines else "")
        table.append([method, *cells])
    return table


def _both(line: Line) -> tuple[str, str]:
    return _percent(line.all_pairs.over_classes), _percent(line.difficult.over_classes)


_HEAD = (
    *("method", "all", "95 %", "diff.", "95 %"),
    *("pairs all", "pairs diff.", "n all", "n diff.", "s/image"),
)


def _detail_table(block: Block) -> list[list[str]]:
    table = [list(_HEAD)]
    for line in block.lines:
        every, hard = line.all_pairs, line.difficult
        table.append(
            [
                line.method,
                _percent(every.over_classes),
                _interval(every),
                _percent(hard.over_classes),
                _interval(hard),
                _percent(every.over_pairs),
                _percent(hard.over_pairs),
                str(every.pairs),
                str(hard.pairs),
                f"{line.seconds:.3g}",
            ]
        )
    return table


_NOTES = (
    "all, diff.: mean over classes in percent, on all pairs of image and class and on",
    "the difficult ones; 95 %: bootstrap over images; pairs: mean over pairs; n: pairs",
)


def _text(found: Report) -> str:
    lines = [*_aligned(_paper_table(found)), ""]
    for block in found.blocks:
        lines += [
            f"{block.dataset}, {block.model}",
            *_aligned(_detail_table(block)),
            "",
        ]
    return "\n".join([*lines, *_NOTES, *found.notes]) + "\n"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _markdown(found: Report) -> str:
    lines = [*_piped(_paper_table(found)), ""]
    for block in found.blocks:
        head = f"{block.dataset}, {block.model}:"
        lines += [head, "", *_piped(_detail_table(block)), ""]
    notes = [f"- {note}" for note in found.notes]
    return "\n".join([*lines, *_NOTES, *notes]) + "\n"


def _piped(table: Sequence[Sequence[str]]) -> list[str]:
    rows = ["| " + " | ".join(row) + " |" for row in table]
    rows.insert(1, "|---" + "|---:" * (len(table[0]) - 1) + "|")
    return rows


def _latex(found: Report) -> str:
    table = [[_escaped(cell) for cell in row] for row in _paper_table(found)]
    rows = [" & ".join(row) + r" \\" for row in table]
    columns = "l" + "c" * (len(table[0]) - 1)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    lines = [begin, r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", end]
    return "\n".join([*lines, *(f"% {note}" for note in found.notes)]) + "\n"


def _escaped(text: str) -> str:
    for character in "_%&#":
        text = text.replace(character, rf"\{character}")
    return text.replace("–", "--")


def _csv(found: Report) -> str:
    names = [
        f"{subset}_{name}" for subset in ("all", "difficult") for name in Mean._fields
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "model", "method", *names, "seconds_per_image"])
    for block in found.blocks:
        for line in block.lines:
            numbers = [*line.all_pairs, *line.difficult, line.seconds]
            writer.writerow([block.dataset, block.model, line.method, *numbers])
    return text.getvalue()


_FORMATS = {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}
