"""Solvers side by side on real images: are the masks extremal, exact, transferable?

    python benchmarks/quality.py run --solvers search,gradient --images 30
    python benchmarks/quality.py report

`run` explains images of ``$CAPTUM_EXTREMAL_DATA/imagenet_mini`` with EfficientNet-Lite0
at three areas and writes one JSON file per solver and image; what is there already is
skipped, so a run that was ended goes on where it was. `report` prints the table.

What is measured of each mask, always at exactly the asked area:

- hard: the target's logit and probability for the mask's top ``round(a N)`` pixels,
- soft: the same after a 9 x 9 box blur of these,
- delivered: the logit of the mask as the library returns it,
- mirror, grey, lite1: the soft logit on the mirrored image, with grey instead of blur
  and on EfficientNet-Lite1, none of which the search has seen,
- area error before and after the exact area is set, and the share of pixels within
  0.05 of 0 or 1,
- units: an image's forward and backward is 1, a forward 0.45.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import captum
import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    GradientSolver,
    SearchSolver,
    __version__,
    apply_mask,
    presets,
)
from captum_extremal.area import area_count
from captum_extremal.models import load_demo, load_model

AREAS = (0.05, 0.1, 0.2)
RESULTS = Path(__file__).parent / "results" / "quality"
FORWARD_UNITS = 0.45
METHODS: dict[str, dict[str, Any]] = {
    "search": {"solver": SearchSolver()},
    "search-best": {"solver": SearchSolver(evaluations=222)},
    "search-fast": {"solver": SearchSolver(evaluations=56)},
    "gradient": {"solver": GradientSolver()},
    "torchray": dict(presets.torchray()),
    "paper": dict(presets.paper()),
}


class Counter(nn.Module):
    """A model that counts the images it sees, with and without gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's output."""
        if inputs.requires_grad:
            self.backwards += len(inputs)
        else:
            self.forwards += len(inputs)
        return self.model(inputs)

    @property
    def units(self) -> float:
        """Forward and backward of one image: 1."""
        return self.backwards + FORWARD_UNITS * self.forwards


def binarise(masks: Tensor, areas: tuple[float, ...]) -> Tensor:
    """The top ``round(a N)`` pixels of each mask, (A, 1, H, W)."""
    flat = masks.flatten(1)
    hard = torch.zeros_like(flat)
    for row, values, area in zip(hard, flat, areas, strict=True):
        row[values.topk(area_count(len(values), area)).indices] = 1
    return hard.view_as(masks)


def soften(masks: Tensor) -> Tensor:
    """A 9 x 9 box blur."""
    return F.avg_pool2d(F.pad(masks, (4,) * 4, mode="replicate"), 9, stride=1)


@torch.no_grad()
def judge(
    masks: Tensor, image: Image.Image, target: int, models: dict[str, Any]
) -> dict[str, list[float]]:
    """What masks (A, 1, H, W) are worth, on the model and on what it never saw."""
    model, preprocess, _ = models["lite0"]
    inputs = preprocess(image)[1][None]
    levels = BlurPerturbation().levels(inputs)
    grey = torch.stack([torch.zeros_like(inputs), inputs], dim=1)
    hard = binarise(masks, AREAS)
    soft = soften(hard)
    hard_logits, soft_logits = (model(apply_mask(levels, m)) for m in (hard, soft))
    other, other_preprocess, _ = models["lite1"]
    other_levels = BlurPerturbation().levels(other_preprocess(image)[1][None])
    other_mask = F.interpolate(soft, other_levels.shape[3:], mode="bilinear")
    rows = {
        "hard": hard_logits[:, target],
        "hard_probability": hard_logits.softmax(1)[:, target],
        "soft": soft_logits[:, target],
        "soft_probability": soft_logits.softmax(1)[:, target],
        "mirror": model(apply_mask(levels, soft).flip(-1))[:, target],
        "grey": model(apply_mask(grey, soft))[:, target],
        "lite1": other(apply_mask(other_levels, other_mask))[:, target],
        "area_error": (masks >= 0.5).flatten(1).double().mean(1)
        - torch.tensor(AREAS, dtype=torch.double),
        "near_binary": ((masks < 0.05) | (masks > 0.95)).flatten(1).float().mean(1),
    }
    return {name: values.tolist() for name, values in rows.items()}


def measure(
    name: str, image: Image.Image, target: int, models: dict[str, Any]
) -> dict[str, Any]:
    """Explain one image and judge the masks."""
    model, preprocess, _ = models["lite0"]
    counter = Counter(model)
    inputs = preprocess(image)[1][None]
    start = time.perf_counter()
    result = ExtremalPerturbation(counter, **METHODS[name]).optimize(
        inputs, target, AREAS
    )
    seconds = time.perf_counter() - start
    assert isinstance(result.masks, Tensor)
    return {
        **judge(result.masks[0], image, target, models),
        "delivered": result.scores[0].tolist(),
        "units": counter.units / len(AREAS),
        "seconds": seconds,
    }


def metadata() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "date": date.today().isoformat(),
        "captum_extremal": __version__,
        "captum": captum.__version__,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def images_of(data: Path, count: int) -> list[dict[str, str]]:
    """The first ``count`` images of imagenet_mini in the order of its list."""
    with (data / "imagenet_mini" / "labels.csv").open() as file:
        return list(csv.DictReader(file))[:count]


def summary(records: list[dict[str, Any]]) -> dict[str, float]:
    """Means over images and areas; the worst area error."""
    names = [n for n, v in records[0].items() if isinstance(v, list)]
    table = {n: float(np.mean([record[n] for record in records])) for n in names}
    errors = np.abs([record["area_error"] for record in records])
    table |= {
        "area_error": float(errors.mean()),
        "worst_area_error": float(errors.max()),
        "units": float(np.mean([record["units"] for record in records])),
        "seconds": float(np.median([record["seconds"] for record in records])),
        "images": len(records),
    }
    return table


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over images."""
    random = np.random.default_rng(0)
    samples = random.choice(values, (draws, len(values))).mean(axis=1)
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


@click.group()
def main() -> None:
    """Solvers side by side on real images."""
    torch.set_num_threads(1)


@main.command()
@click.option("--solvers", default="search,gradient", show_default=True)
@click.option("--images", default=30, show_default=True)
def run(solvers: str, images: int) -> None:
    """Measure what is not measured yet."""
    data = Path(os.environ["CAPTUM_EXTREMAL_DATA"])
    models = {"lite0": load_model("demo"), "lite1": load_demo(1)}
    for row in images_of(data, images):
        for name in solvers.split(","):
            target = RESULTS / name / f"{Path(row['file']).stem}.json"
            if target.exists():
                continue
            image = Image.open(data / "imagenet_mini" / row["file"]).convert("RGB")
            record = measure(name, image, int(row["class_index"]), models)
            record["metadata"] = metadata()
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(target)
            hard = sum(record["hard"]) / len(AREAS)
            click.echo(f"{target.parent.name}/{target.stem}: hard {hard:.2f}")


@main.command()
@click.option("--against", default="torchray", show_default=True)
def report(against: str) -> None:
    """Print the means, and paired differences with 95 % intervals."""
    records = {
        folder.name: {f.stem: json.loads(f.read_text()) for f in folder.glob("*.json")}
        for folder in sorted(RESULTS.iterdir())
    }
    for name, found in records.items():
        cells = [f"{k} {v:.3f}" for k, v in summary(list(found.values())).items()]
        click.echo(f"{name}: " + ", ".join(cells))
    for name, found in records.items():
        shared = sorted(set(found) & set(records.get(against, {})))
        if name == against or not shared:
            continue
        click.echo(f"{name} - {against}, {len(shared)} images:")
        for score in ("hard", "hard_probability", "soft", "mirror", "grey", "lite1"):
            pairs = [(found[s][score], records[against][s][score]) for s in shared]
            gains = np.array([np.subtract(a, b) for a, b in pairs])
            low, high = interval(gains.mean(axis=1))
            click.echo(
                f"  {score}: {gains.mean():+.2f} [{low:+.2f}, {high:+.2f}], "
                f"lower by more than 0.3 in {(gains < -0.3).mean():.0%} of the cells"
            )


if __name__ == "__main__":
    main()
