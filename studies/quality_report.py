"""Records of `quality.py`, by method and image -> tables in Markdown and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np

TICKS = (20, 50, 100, 200, 400, 800)  # units, in the figure

Record = dict[str, Any]

SCORES = {
    "hard": "logit, binarised mask",
    "hard_probability": "probability, binarised mask",
    "soft": "logit, soft edge (9 x 9 box)",
    "faded": "logit, binarised mask, TorchRay's blur",
    "mirror": "soft edge, picture mirrored",
    "grey": "soft edge, grey instead of blur",
    "lite1": "soft edge, on EfficientNet-Lite1",
    "mobilenet": "soft edge, on MobileNetV2",
    "mobilenet_grey": "the same, grey instead of blur",
}
_SMOOTH = ("hard", "soft", "lite1", "mobilenet", "mobilenet_grey")


def records_of(folder: Path) -> dict[str, dict[str, Record]]:
    """Method -> image -> record."""
    return {
        method.name: {
            file.stem: json.loads(file.read_text())
            for file in sorted(method.glob("*.json"))
        }
        for method in sorted(folder.iterdir())
        if method.is_dir()
    }


def shared_by(records: dict[str, dict[str, Record]], names: Sequence[str]) -> list[str]:
    """Images that all methods were measured on."""
    return sorted(set.intersection(*(set(records[name]) for name in names)))


def known(records: dict[str, dict[str, Record]], names: Sequence[str]) -> list[str]:
    """Scores that every record of these methods has."""
    found = [record for name in names for record in records[name].values()]
    return [score for score in SCORES if all(score in record for record in found)]


def means_table(records: dict[str, dict[str, Record]], names: Sequence[str]) -> str:
    """Every method on the images that it was measured on."""
    header = ["", *names]
    rows = [["images", *(str(len(records[name])) for name in names)]]

    def row(text: str, name: str, digits: int) -> list[str]:
        cells = [
            np.mean([record[name] for record in records[method].values()])
            for method in names
        ]
        return [text, *(f"{cell:.{digits}f}" for cell in cells)]

    rows += [row(SCORES[name], name, 2) for name in known(records, names)]
    rows += [
        row("logit, mask as delivered", "delivered", 2),
        row("share of pixels within 0.05 of 0 or 1", "near_binary", 2),
        row("units a mask", "units", 0),
    ]
    errors = [
        np.abs([record["area_error"] for record in records[name].values()])
        for name in names
    ]
    rows.append(["area error, worst", *(f"{error.max():.0e}" for error in errors)])
    seconds = [
        np.median([record["seconds"] for record in records[name].values()])
        for name in names
    ]
    rows.append(["seconds an image, median", *(f"{value:.0f}" for value in seconds)])
    return measuring.table(header, rows)


def paired_table(
    records: dict[str, dict[str, Record]],
    name: str,
    against: str,
    held_out: Sequence[str],
) -> str:
    """Differences of two methods on the same images, with intervals."""
    shared = shared_by(records, [name, against])
    unseen = np.array([image in held_out for image in shared])
    part = f"on the {unseen.sum()} held out"
    rows = []
    subset = {
        method: {i: records[method][i] for i in shared} for method in (name, against)
    }
    for score in known(subset, [name, against]):
        ours, theirs = (
            np.array([records[method][image][score] for image in shared])
            for method in (name, against)
        )
        gains = ours - theirs
        low, high = measuring.interval(gains[unseen].mean(axis=1))
        rows.append(
            [
                SCORES[score],
                f"{ours.mean():.2f}",
                f"{theirs.mean():.2f}",
                f"{gains.mean():+.2f}",
                f"{gains[unseen].mean():+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{(gains < -0.3).mean():.1%}",
            ]
        )
    header = [
        f"{len(shared)} images",
        name,
        against,
        "difference",
        f"{part} [95 %]",
        "lower by more than 0.3",
    ]
    return measuring.table(header, rows)


def pieces_table(records: dict[str, dict[str, Record]], names: Sequence[str]) -> str:
    """What the radius of the disks costs and gains, on the images that all share."""
    shared = shared_by(records, names)
    rows = []
    for name in names:
        found = [records[name][image] for image in shared]
        pieces = np.mean([record["pieces"] for record in found], axis=0)
        scores = [np.mean([record[score] for record in found]) for score in _SMOOTH]
        cells = [name, *(f"{score:.2f}" for score in scores)]
        rows.append([*cells, " / ".join(f"{count:.1f}" for count in pieces)])
    header = [f"{len(shared)} images", *(SCORES[score] for score in _SMOOTH)]
    return measuring.table([*header, "pieces at 5 / 10 / 20 %"], rows)


def pointing_table(
    records: dict[str, dict[str, Record]], names: Sequence[str], ours: str
) -> str:
    """Hits of every method, and of ours on the same pairs."""
    rows = []
    for name in names:
        shared = shared_by(records, [name, ours])
        if not shared:
            continue
        row = [name, str(len(shared))]
        for kind in ("near", "inside"):
            theirs, own = (
                np.array([records[method][pair][kind] for pair in shared])
                for method in (name, ours)
            )
            low, high = measuring.interval(theirs)
            row += [f"{theirs.mean():.2f} [{low:.2f}, {high:.2f}]", f"{own.mean():.2f}"]
        found = [records[name][pair] for pair in shared]
        share = np.mean([record["on_object"] for record in found], axis=0)
        row += [f"{share[0]:.2f}, {share[-1]:.2f}"]
        row += [f"{np.mean([record['central'] for record in found]):.2f}"]
        rows.append([*row, f"{np.mean([record['units'] for record in found]):.0f}"])
    header = ["", "pairs", "within 15 pixels", ours, "inside", ours]
    header += ["on the object: smallest, largest area", "in the middle half", "units"]
    return measuring.table(header, rows)


def budget_figure(
    records: dict[str, dict[str, Record]],
    families: dict[str, list[str]],
    file: Path,
) -> int:
    """Score against cost for every family of methods; the number of images."""
    from matplotlib.figure import Figure

    shared = shared_by(records, [n for names in families.values() for n in names])
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    titles = {"hard": "binarised mask", "soft": "soft edge", "lite1": "second network"}
    for axis, (score, title) in zip(axes, titles.items(), strict=True):
        for base, names in families.items():
            points = sorted(
                (
                    float(np.mean([records[n][image]["units"] for image in shared])),
                    float(np.mean([records[n][image][score] for image in shared])),
                )
                for n in names
            )
            axis.plot(*zip(*points, strict=True), "o-", label=base, markersize=4)
        axis.set(xscale="log", xlabel="units a mask", title=title)
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("logit, mean")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=150)
    return len(shared)
