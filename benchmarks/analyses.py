"""Two analyses of the paper: monotonic evidence (Sec. 4.3), the sanity check (Fig. 7).

    python benchmarks/analyses.py monotonicity --images 60
    python benchmarks/analyses.py sanity --images 5

Both take images of ``$CAPTUM_EXTREMAL_DATA/imagenet_mini`` and EfficientNet-Lite0, one
after the other, keep what is known of each image in a JSON file below
``benchmarks/results`` and go on from there. `monotonicity` prints the share of images
whose score never falls as the area grows below a*; the paper has 98.45 % with VGG16.
`sanity` draws ``docs/images/sanity.png``: the rank correlation of each method's map
with that of the intact network, as its blocks are randomised from the classifier down;
dotted, that of the intact network's maps of different images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import measuring
import torch
from PIL import Image
from torch import Tensor

from captum_extremal import ExtremalPerturbation, LevelSetSolver
from captum_extremal.benchmark import (
    Options,
    explainer,
    monotonicity,
    plot_sanity,
    rank_correlation,
    sanity_check,
)
from captum_extremal.benchmark.monotonicity import EVIDENCE_AREAS
from captum_extremal.models import LoadedModel, load_model

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURE = HERE.parent / "docs" / "images" / "sanity.png"
METHODS = "extremal,ig,occlusion,guided-backprop"
# EfficientNet-Lite0's parts from the output down, as many as a figure can tell apart.
LAYERS = (
    *("classifier", "conv_head", "blocks.6", "blocks.5", "blocks.4"),
    *("blocks.3", "blocks.2", "blocks.1", "blocks.0", "conv_stem"),
)

Record = dict[str, Any]


def examples(loaded: LoadedModel, count: int) -> Iterator[tuple[str, Tensor, int]]:
    """Name, input and class of the first images of the list."""
    folder = measuring.data() / "imagenet_mini"
    for row in measuring.labelled_images(count):
        picture = Image.open(folder / row["file"]).convert("RGB")
        inputs = loaded.preprocess(picture)[1][None]
        yield Path(row["file"]).stem, inputs, int(row["class_index"])


def kept(file: Path, settings: Record) -> Record:
    """The records by image of a file; an error if it was written with others."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text())
    if content["settings"] != settings:
        raise click.UsageError(
            f"--results must be a folder without results of other settings, got {file}"
        )
    return content["images"]


def keep(file: Path, settings: Record, images: Record, **more: object) -> None:
    """The whole file or none."""
    content = {"settings": settings, "images": images, **more}
    measuring.write(file, content | measuring.metadata())


def chance(maps: Tensor) -> float:
    """The mean rank correlation of each two of N maps (N, ...) of different images."""
    first, second = torch.combinations(torch.arange(len(maps))).T
    return float(rank_correlation(maps[first], maps[second]).nanmean())


@click.group()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.pass_context
def main(context: click.Context, results: Path) -> None:
    """Analyses of the paper on real images."""
    torch.set_num_threads(1)
    context.obj = results


@main.command("monotonicity")
@click.option("--images", "count", default=60, show_default=True)
@click.option("--steps", type=int, help="Of the solver.  [default: its own]")
@click.pass_obj
def monotonicity_command(results: Path, count: int, steps: int | None) -> None:
    """The share of images whose evidence only adds up."""
    loaded = load_model("demo")
    solver = LevelSetSolver() if steps is None else LevelSetSolver(iterations=steps)
    settings = {"areas": list(EVIDENCE_AREAS), "solver": repr(solver)}
    file = results / "monotonicity.json"
    images = kept(file, settings)
    names = []
    for name, inputs, target in examples(loaded, count):
        names.append(name)
        if name in images:
            continue
        method = ExtremalPerturbation(loaded.model, solver=solver)
        result = method.optimize(inputs, target, EVIDENCE_AREAS)
        images[name] = {
            "scores": result.scores[0].tolist(),
            "input_score": float(result.input_score),
        }
        keep(file, settings, images)
        click.echo(f"{name}: {'rises' if result.is_monotonic() else 'falls'}")
    found = monotonicity(
        EVIDENCE_AREAS,
        torch.tensor([images[name]["scores"] for name in names]),
        torch.tensor([images[name]["input_score"] for name in names]),
    )
    click.echo(
        f"monotonic: {100 * found.share:.2f} % of {found.images} images (paper: "
        "98.45 % of ImageNet's validation images with VGG16); of the "
        f"{found.tested} with two areas or more below a*: "
        f"{100 * found.share_tested:.2f} %"
    )


@main.command()
@click.option("--images", "count", default=5, show_default=True)
@click.option("--methods", default=METHODS, show_default=True)
@click.option("--steps", type=int, help="Of the solver.  [default: its own]")
@click.option(
    "--figure", type=click.Path(path_type=Path), default=FIGURE, show_default=True
)
@click.pass_obj
def sanity(
    results: Path, count: int, methods: str, steps: int | None, figure: Path
) -> None:
    """Rank correlations with the intact network's maps, and the figure."""
    loaded = load_model("demo")
    names = methods.split(",")
    options = Options(game="hybrid", steps=steps)
    settings = {"options": repr(options), "layers": list(LAYERS)}
    file = results / "sanity.json"
    images = kept(file, settings)
    wanted = []
    maps: dict[str, list[Tensor]] = {method: [] for method in names}
    for name, inputs, target in examples(loaded, count):
        wanted.append(name)
        known = images.setdefault(name, {})
        chosen = torch.tensor([target])
        for method in names:
            explain = explainer(method, loaded.model, options)
            maps[method].append(explain(inputs, chosen).saliency[0])
            if method not in known:
                known |= sanity_check(
                    loaded.model, inputs, chosen, [method], options, layers=LAYERS
                )
                keep(file, settings, images)
                click.echo(f"{name}: {method}")
    unrelated = {method: chance(torch.stack(maps[method])) for method in names}
    keep(file, settings, images, chance=unrelated)
    by_method = {
        method: {
            layer: [images[name][method][layer][0] for name in wanted]
            for layer in ("intact", *LAYERS)
        }
        for method in names
    }
    plot_sanity(by_method, unrelated).savefig(figure)
    for method, by_layer in by_method.items():
        means = [float(torch.tensor(it).nanmean()) for it in by_layer.values()]
        click.echo(
            f"{method:<16}"
            + " ".join(f"{mean:5.2f}" for mean in means)
            + f"  chance {unrelated[method]:.2f}"
        )
    click.echo(f"wrote {figure}")


if __name__ == "__main__":
    main()
