"""Is it the same answer every time: other seeds, and an input moved by a little noise.

    python studies/stability.py run --solvers level-set --images 12 --seeds 5
    python studies/stability.py report

Pictures of ``$CAPTUM_EXTREMAL_DATA/imagenet_mini`` that served no choice of a setting,
EfficientNet-Lite0, the methods and areas of `quality.py`. A run of another seed also
sees the picture moved by noise of a standard deviation of 0.01, half a hundredth of the
range [-1, 1] of the pixels; the first sees it as it is. Of each pair of runs: the
intersection over union of the binarised masks of an area, of the rankings cut there,
and whether a* is the same. Of all: the standard deviation of the logit of the binarised
mask for the picture as it is, and the best of them.

With ``--rounding`` the seed stays and the noise is 1e-6: how far rounding grows, as on
another number of threads.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click
import measuring
import numpy as np
import quality
import torch
from PIL import Image
from torch import Tensor

from captum_extremal import BlurPerturbation, ExtremalPerturbation, apply_mask
from captum_extremal.models.networks import load_model

RESULTS = quality.RESULTS / "stability"
NOISE = 0.01
ROUNDING = 1e-6  # what another number of threads changes


def overlaps(masks: list[Tensor]) -> list[list[float]]:
    """Intersection over union of each pair, by area: (pairs, A)."""
    found = []
    for one, other in itertools.combinations(masks, 2):
        both = (one * other).flatten(1).sum(dim=1)
        either = torch.maximum(one, other).flatten(1).sum(dim=1)
        found.append((both / either).tolist())
    return found


@torch.no_grad()
def measured(
    name: str, inputs: Tensor, target: int, seeds: int, rounding: bool
) -> measuring.Record:
    """Runs of one picture."""
    model = load_model("demo").model
    method = ExtremalPerturbation(model, **quality.METHODS[name])
    levels = BlurPerturbation().levels(inputs)
    masks, rankings, hard, stars = [], [], [], []
    for seed in range(seeds):
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed))
        size = ROUNDING if rounding else NOISE
        moved = inputs + size * noise * (seed > 0)
        used = 0 if rounding else seed
        result = method.optimize(moved, target, quality.AREAS, seed=used)
        masks.append(quality.binarise(result.masks[0], quality.AREAS))
        hard.append(model(apply_mask(levels, masks[-1]))[:, target].tolist())
        stars.append(float(result.smallest_sufficient_area()))
        if result.ranking is not None:
            several = result.ranking.expand(len(quality.AREAS), -1, -1, -1)
            rankings.append(quality.binarise(several, quality.AREAS))
    same = [
        one == other or (one != one and other != other)
        for one, other in itertools.combinations(stars, 2)
    ]
    return {
        "hard": hard,
        "overlap": overlaps(masks),
        "ranking": overlaps(rankings),
        "same": same,
        "metadata": measuring.metadata(),
    }


def row(name: str, records: list[measuring.Record]) -> list[str]:
    """A method in the table."""
    hard = np.array([record["hard"] for record in records])  # (pictures, seeds, A)
    spread = hard.std(axis=1, ddof=1).mean(axis=0)

    def shares(kind: str) -> str:
        if not records[0][kind]:
            return "-"
        means = np.array([record[kind] for record in records]).mean(axis=(0, 1))
        return " / ".join(f"{value:.2f}" for value in means)

    same = np.mean([record["same"] for record in records])
    cells = [name, str(len(records)), str(hard.shape[1])]
    cells += [" / ".join(f"{value:.1f}" for value in hard.mean(axis=(0, 1)))]
    cells += [" / ".join(f"{value:.2f}" for value in spread)]
    return [*cells, shares("overlap"), shares("ranking"), f"{same:.0%}"]


@click.group()
def main() -> None:
    """The same answer every time?"""
    torch.set_num_threads(1)


@main.command()
@click.option("--solvers", default="level-set", show_default=True)
@click.option("--images", default=12, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--rounding", is_flag=True, help="One seed, and noise of 1e-6.")
def run(solvers: str, images: int, seeds: int, rounding: bool) -> None:
    """Measure what is not measured yet."""
    first = quality.HELD_OUT
    preprocess = load_model("demo").preprocess
    for place in measuring.labelled_images(first + images)[first:]:
        path = measuring.data() / "imagenet_mini" / place["file"]
        inputs = preprocess(Image.open(path).convert("RGB"))[1][None]
        for name in solvers.split(","):
            folder = f"{name}-rounding" if rounding else name
            file = RESULTS / folder / f"{Path(place['file']).stem}.json"
            if not file.exists():
                target = int(place["class_index"])
                found = measured(name, inputs, target, seeds, rounding)
                measuring.write(file, found)
                click.echo(f"{folder}/{file.stem}")


@main.command()
def report() -> None:
    """Print the table and write it to the docs."""
    rows = [
        row(folder.name, [json.loads(f.read_text()) for f in folder.glob("*.json")])
        for folder in sorted(RESULTS.iterdir())
    ]
    header = ["", "pictures", "runs", "logit at 5 / 10 / 20 %", "its deviation"]
    header += ["overlap of two masks", "of two rankings", "same a*"]
    content = measuring.table(header, rows)
    docs = quality.DOCS / "quality.md"
    docs.write_text(measuring.fill_in(docs.read_text(), "stability", content))
    click.echo(content)


if __name__ == "__main__":
    main()
