"""Analyses of the paper: evidence (Sec. 4.3), sanity (Fig. 7), masks of 2017 (Fig. 6).

    python studies/analyses.py monotonicity --images 60
    python studies/analyses.py sanity --images 5
    python studies/analyses.py masks

`masks` draws ``docs/images/meaningful.jpg``, masks of Fong and Vedaldi (2017) for three
weights of their size beside extremal ones of three areas on pictures of scikit-image,
and prints what the network scores on as many pixels of either.

The others take images of ``$CAPTUM_EXTREMAL_DATA/imagenet_mini``, one after the other
(all use EfficientNet-Lite0), keep what is known of each image in a JSON file below
``studies/results`` and go on from there. `monotonicity` prints the share of images
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
import skimage.data
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
from captum_extremal.curve import EVIDENCE_AREAS
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import largest
from captum_extremal.models.networks import LoadedModel, load_model
from captum_extremal.peers import MeaningfulPerturbation
from captum_extremal.visualization import plot_methods

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURES = HERE.parent / "docs" / "images"
AREAS = (0.05, 0.1, 0.2)
SIZE_WEIGHTS = (1e-5, 1e-4, 1e-3)  # lambda_1; the published one is in the middle
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
    "--figure",
    type=click.Path(path_type=Path),
    default=FIGURES / "sanity.png",
    show_default=True,
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


@main.command()
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    default=FIGURES / "meaningful.jpg",
    show_default=True,
)
def masks(figure: Path) -> None:
    """Masks of 2017 beside extremal ones: the figure, and scores at equal areas."""
    loaded = load_model("demo")
    method = ExtremalPerturbation(loaded.model)
    published = MeaningfulPerturbation(lambda x: loaded.model(x).softmax(dim=1))
    images, columns, captions = [], {}, []
    click.echo(
        f"{'picture':<10}{'masks':<16}{'area':>6}"
        + "".join(f"{f'score at {area:g}':>15}" for area in AREAS)
    )
    for name in ("coffee", "camera", "chelsea"):
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image, inputs = loaded.preprocess(picture)
        inputs = inputs[None]
        target = loaded.model(inputs).argmax(dim=1)
        found = method.optimize(inputs, target, AREAS)
        rows = {
            f"{100 * area:g} %": found.masks[0, place]
            for place, area in enumerate(AREAS)
        }
        echo_row(name, "extremal", "", method, inputs, target, found.masks[0])
        for weight in SIZE_WEIGHTS:
            label = f"2017, {weight:g}"
            mask = published.attribute(inputs, target, l1_weight=weight)[0, :1]
            rows[label] = mask
            share = f"{100 * float((mask >= 0.5).float().mean()):.1f} %"
            several = mask.expand(len(AREAS), *mask.shape)
            echo_row(name, label, share, method, inputs, target, several)
        images.append(image)
        captions.append(loaded.labels[int(target)])
        for label, mask in rows.items():
            columns.setdefault(label, []).append(mask)
    stacked = {label: torch.stack(several) for label, several in columns.items()}
    plot_methods(torch.stack(images), {}, masks=stacked, captions=captions).savefig(
        figure, pil_kwargs={"quality": 75}
    )
    click.echo(f"wrote {figure}")


def echo_row(
    picture: str,
    label: str,
    share: str,
    method: ExtremalPerturbation,
    inputs: Tensor,
    target: Tensor,
    masks: Tensor,
) -> None:
    """Scores of the a N highest pixels of a mask (A, 1, H, W) for each area."""
    counts = [area_count(masks[0].numel(), area) for area in AREAS]
    kept = largest(masks[:, 0], counts)[None, :, None].float()
    scores = method.evaluate(inputs, kept, target)[0].tolist()
    numbers = "".join(f"{score:>15.2f}" for score in scores)
    click.echo(f"{picture:<10}{label:<16}{share:>6}{numbers}")


if __name__ == "__main__":
    main()
