"""What channels of a real network stand for: the figures of Section 5.

    python benchmarks/inversion.py compare    # Fig. 9: images, inverted with a mask
    python benchmarks/inversion.py classes    # Fig. 10: the channel of each class
    python benchmarks/inversion.py all

EfficientNet-Lite0, images of ``$CAPTUM_EXTREMAL_DATA``. `compare` takes pictures of
``imagenet_mini``; for each the smallest number of channels that keeps the score (eq.
10). `classes` averages the masks up to that number over the pictures of ``coco_mini``
that show one class (Sec. 5.2; three or more, p >= 0.2): the smaller numbers count too,
since of so few pictures many channels are in all masks of that number. It shows for the
channel k* of each class its inversion and the pictures of both sets that excite it
most. Figures go to ``docs/images``, what was measured to
``benchmarks/results/inversion``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor, nn

from captum_extremal import ClassChannels, ExcitingImages, FeatureInversion, ImagePrior
from captum_extremal.models import LoadedModel, load_demo
from captum_extremal.visualization import plot_class_channels, plot_comparison

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "images"
RESULTS = HERE / "results" / "inversion"
COMPARED_LAYER = "blocks.5"  # 192 channels, 7 x 7
# 1280 channels, 7 x 7, none of them negative (the blocks end without a ReLU, and there
# a channel may be needed for what it denies). Its ReLU6 is off for grey images:
# inverted is the convolution before it, which has the same channels.
CLASS_LAYER = "bn2"
INVERTED_LAYER = "conv_head"
CHANNEL_PRIOR = ImagePrior(jitter=16, scale=0.2, rotate=15)
COMPARED = ("ostrich", "soccer ball", "cheeseburger", "Blenheim spaniel")
AREAS = (1, 5, 10, 20, 25, 35, 40, 50, 60, 70, 80, 90, 100, 150, 200, 250, 300)
SURE = 0.2
MIN_IMAGES = 3
SHOWN_EXAMPLES = 4
MAX_BYTES = 300_000


def channel_masks(
    model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor, areas: list[int]
) -> Tensor:
    """Masks that keep a number of channels: the first by activation x gradient.

    Args:
        model: Images -> scores (N, classes).
        layer: Gives (N, K, H, W).
        inputs: (N, 3, H, W).
        target: The class of each image, (N,).
        areas: Numbers of channels to keep.

    Returns:
        0 or 1 for each channel, (N, A, K).
    """
    outputs: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[0]

    handle = layer.register_forward_hook(watch)
    try:
        scores = model(inputs).gather(1, target[:, None]).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(scores, outputs)
    worth = (outputs[0].detach() * gradient).sum(dim=(2, 3))
    rank = worth.argsort(dim=1, descending=True).argsort(dim=1)
    return (rank[:, None] < torch.tensor(areas)[None, :, None]).float()


@contextmanager
def masked(layer: nn.Module, masks: Tensor) -> Iterator[None]:
    """The layer's channels times (N, K)."""
    handle = layer.register_forward_hook(
        lambda _module, _inputs, output: output * masks[:, :, None, None]
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def scores_of(
    model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor, masks: Tensor
) -> Tensor:
    """The target's score under each mask (N, A, K), (N, A)."""
    found = []
    for area in range(masks.shape[1]):
        with masked(layer, masks[:, area]):
            found.append(model(inputs).gather(1, target[:, None]))
    return torch.cat(found, dim=1)


def smallest_sufficient(
    model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, list[int]]:
    """Eq. 10: the mask m_a* (N, K), the mean of it and all smaller ones, and a*.

    All channels where fewer do not keep the score, which counts as kept from 99.9 % of
    it on, for the model's own rounding.
    """
    with torch.no_grad():
        full = model(inputs).gather(1, target[:, None])
    num_channels = FeatureInversion(model, layer).activations(inputs[:1]).shape[1]
    areas = [area for area in AREAS if area < num_channels] + [num_channels]
    masks = channel_masks(model, layer, inputs, target, areas)
    kept = scores_of(model, layer, inputs, target, masks) >= 0.999 * full
    kept[:, -1] = True
    first = kept.int().argmax(dim=1)
    chosen = masks[torch.arange(len(masks)), first]
    means = [
        mask[: last + 1].mean(dim=0) for mask, last in zip(masks, first, strict=True)
    ]
    return chosen, torch.stack(means), [areas[place] for place in first.tolist()]


def data() -> Path:
    """The folder of real images."""
    return Path(os.environ.get("CAPTUM_EXTREMAL_DATA", "../shared/data"))


def pictures(loaded: LoadedModel, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Pictures for display and for the model, (N, 3, H, W) each."""
    ready = [loaded.preprocess(Image.open(path).convert("RGB")) for path in paths]
    shown, inputs = zip(*ready, strict=True)
    return torch.stack(shown), torch.stack(inputs)


def inversion_of(loaded: LoadedModel, layer: str, **options: Any) -> FeatureInversion:  # noqa: ANN401
    """The method with the model's own normalisation."""
    return FeatureInversion(
        loaded.model,
        loaded.model.get_submodule(layer),
        mean=loaded.preprocess.mean,
        std=loaded.preprocess.std,
        **options,
    )


def save(figure: Any, name: str) -> None:  # noqa: ANN401
    """A JPEG of at most 300 kB below ``docs/images``."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=80)
    picture = Image.open(raw).convert("RGB")
    for quality in (88, 80, 70, 60, 50):
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() < MAX_BYTES:
            break
    (DOCS / name).write_bytes(out.getvalue())
    click.echo(f"{DOCS / name}: {out.tell() / 1000:.0f} kB, quality {quality}")


def record(name: str, content: dict[str, Any]) -> None:
    """What was measured, with the versions."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    text = json.dumps(about | content, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, "utf-8")


def compare(loaded: LoadedModel, layer: str, iterations: int) -> None:
    """Fig. 9 for some pictures."""
    with (data() / "imagenet_mini" / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] in COMPARED]
    rows.sort(key=lambda row: COMPARED.index(row["name"]))
    paths = [data() / "imagenet_mini" / row["file"] for row in rows]
    _, inputs = pictures(loaded, paths)
    target = torch.tensor([int(row["class_index"]) for row in rows])
    module = loaded.model.get_submodule(layer)
    masks, _, counts = smallest_sufficient(loaded.model, module, inputs, target)
    inversion = inversion_of(loaded, layer, iterations=iterations)
    start = time.perf_counter()
    found = inversion.compare(inputs, masks, show_progress=True)
    seconds = (time.perf_counter() - start) / (2 * len(inputs))
    num_channels = masks.shape[1]
    captions = [
        f"{row['name']}: {count} of {num_channels}"
        for row, count in zip(rows, counts, strict=True)
    ]
    figure = plot_comparison(
        found.images,
        found.saliency,
        found.original.images,
        found.masked.images,
        captions=captions,
    )
    save(figure, "inversion.jpg")
    with torch.no_grad():
        scores = {
            name: loaded.model(batch).softmax(1).gather(1, target[:, None])[:, 0]
            for name, batch in (
                ("images", inputs),
                ("inverted", found.original.inputs),
                ("inverted, masked", found.masked.inputs),
            )
        }
    record(
        "compare",
        {
            "layer": layer,
            "iterations": iterations,
            "seconds an image": round(seconds, 1),
            "pictures": [row["name"] for row in rows],
            "channels that keep the score": counts,
            "eq. 12, whole activation": found.original.scores.tolist(),
            "eq. 12, masked activation": found.masked.scores.tolist(),
            "probability of the class": {k: v.tolist() for k, v in scores.items()},
        },
    )


def class_pictures() -> dict[int, list[Path]]:
    """Pictures of the COCO classes that have enough of them, by ImageNet class."""
    root = data() / "coco_mini"
    entries = json.loads((root / "pairs_lite0.json").read_text("utf-8"))
    found: dict[int, list[Path]] = {}
    for entry in entries:
        for _, index, probability in entry["pairs"]:
            if probability >= SURE:
                path = root / "val2014" / entry["file"]
                found.setdefault(index, []).append(path)
    return {
        index: paths for index, paths in sorted(found.items())
        if len(paths) >= MIN_IMAGES
    }  # fmt: skip


def classes(loaded: LoadedModel, iterations: int) -> None:
    """Fig. 10 for the classes that have enough pictures."""
    module = loaded.model.get_submodule(CLASS_LAYER)
    inversion = inversion_of(loaded, CLASS_LAYER)
    gathered = ClassChannels()
    sizes: dict[int, list[int]] = {}
    for index, paths in class_pictures().items():
        _, inputs = pictures(loaded, paths)
        target = torch.full((len(paths),), index)
        _, means, sizes[index] = smallest_sufficient(
            loaded.model, module, inputs, target
        )
        gathered.update(means, target)
    best = ExcitingImages(SHOWN_EXAMPLES)
    everything = sorted((data() / "coco_mini" / "val2014").glob("*.jpg")) + sorted(
        (data() / "imagenet_mini" / "images").glob("*.JPEG")
    )
    for start in range(0, len(everything), 8):
        paths = everything[start : start + 8]
        _, inputs = pictures(loaded, paths)
        best.update(inversion.activations(inputs), [str(path) for path in paths])
    channels = gathered.channels()
    start_time = time.perf_counter()
    found = inversion_of(
        loaded, INVERTED_LAYER, iterations=iterations, prior=CHANNEL_PRIOR
    ).channel(list(channels.values()), show_progress=True)
    seconds = (time.perf_counter() - start_time) / len(channels)
    names = loaded.labels or []
    figure = plot_class_channels(
        found.images,
        [
            pictures(loaded, [Path(str(path)) for path, _ in best.of(channel)])[0]
            for channel in channels.values()
        ],
        captions=[f"{names[int(c)]}, channel {k}" for c, k in channels.items()],
        example_captions=[
            [f"{value:.1f}" for _, value in best.of(channel)]
            for channel in channels.values()
        ],
    )
    save(figure, "class_channels.jpg")
    with torch.no_grad():
        top = loaded.model(found.inputs).argmax(dim=1).tolist()
    record(
        "classes",
        {
            "layer": CLASS_LAYER,
            "inverted layer": INVERTED_LAYER,
            "iterations": iterations,
            "seconds an image": round(seconds, 1),
            "classes": {
                names[int(label)]: {
                    "pictures": gathered.counts[label],
                    "channels that keep the score": sizes[int(label)],
                    "channel": channel,
                    "its mean mask": float(gathered.mean(label)[channel]),
                    "others with that mean": int(
                        (gathered.mean(label) == gathered.mean(label)[channel]).sum()
                    )
                    - 1,
                    "score of its inversion": float(score),
                    "class of its inversion": names[guess],
                    "exciting images": [
                        [Path(str(path)).name, round(value, 2)]
                        for path, value in best.of(channel)
                    ],
                }
                for (label, channel), score, guess in zip(
                    channels.items(), found.scores, top, strict=True
                )
            },
        },
    )


@click.command(context_settings={"show_default": True})
@click.argument("what", type=click.Choice(["compare", "classes", "all"]))
@click.option("--layer", default=COMPARED_LAYER, help="Of Fig. 9.")
@click.option("--iterations", default=256)
def main(what: str, layer: str, iterations: int) -> None:
    """Make the figures of Section 5."""
    torch.set_num_threads(1)
    loaded = load_demo()
    if what != "classes":
        compare(loaded, layer, iterations)
    if what != "compare":
        classes(loaded, iterations)


if __name__ == "__main__":
    main()
