"""What channels of a real network stand for: the figures of Section 5.

    python studies/inversion.py compare    # Fig. 9: images, inverted with a mask
    python studies/inversion.py classes    # Fig. 10: the channel of each class
    python studies/inversion.py report     # what was measured into docs/inversion.md
    python studies/inversion.py all

EfficientNet-Lite0, images of ``$CAPTUM_EXTREMAL_DATA``. `compare` takes pictures of
``imagenet_mini``; for each the smallest number of channels that keeps the score (eq.
10). `classes` averages the masks up to that number over the pictures of ``coco_mini``
that show one class (Sec. 5.2; three or more, p >= 0.2): the smaller numbers count too,
since of so few pictures many channels are in all masks of that number. It shows for the
channel k* of each class its inversion and the pictures of both sets that excite it
most. Figures go to ``docs/images``, what was measured to
``studies/results/inversion``.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import measuring
import torch
from PIL import Image
from torch import Tensor, nn

from captum_extremal import (
    ChannelExtremalPerturbation,
    ClassChannels,
    ExcitingImages,
    FeatureInversion,
    ImagePrior,
)
from captum_extremal.models.networks import LoadedModel, load_demo
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


def smallest_sufficient(
    model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, list[int]]:
    """Eq. 10: the mask m_a* (N, K), the mean of it and all smaller ones, and a*.

    All channels where fewer do not keep the score, which counts as kept from 99.9 % of
    it on, for the model's own rounding.
    """
    num_channels = FeatureInversion(model, layer).activations(inputs[:1]).shape[1]
    areas = [area for area in AREAS if area < num_channels] + [num_channels]
    # Its modules run in a row: in a chain those before the layer are skipped.
    chain = nn.Sequential(*model.children())
    with torch.no_grad():
        torch.testing.assert_close(chain(inputs), model(inputs))
    method = ChannelExtremalPerturbation(chain, layer)
    result = method.optimize(inputs, target, areas)
    assert isinstance(result.masks, Tensor)
    assert isinstance(result.input_score, Tensor)
    counts = result.smallest_sufficient_count(0.999 * result.input_score)
    counts = [int(count) for count in counts.nan_to_num(num_channels).tolist()]
    last = [areas.index(count) for count in counts]
    chosen = result.masks[torch.arange(len(last)), torch.tensor(last)]
    means = [
        mask[: place + 1].mean(dim=0)
        for mask, place in zip(result.masks, last, strict=True)
    ]
    return chosen, torch.stack(means), counts


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
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    measuring.write(RESULTS / f"{name}.json", about | content)


def compare(loaded: LoadedModel, layer: str, iterations: int) -> None:
    """Fig. 9 for some pictures."""
    rows = [row for row in measuring.labelled_images() if row["name"] in COMPARED]
    rows.sort(key=lambda row: COMPARED.index(row["name"]))
    paths = [measuring.data() / "imagenet_mini" / row["file"] for row in rows]
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
    root = measuring.data() / "coco_mini"
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
    everything = sorted(
        (measuring.data() / "coco_mini" / "val2014").glob("*.jpg")
    ) + sorted((measuring.data() / "imagenet_mini" / "images").glob("*.JPEG"))
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


def report() -> None:
    """Tables of what was measured into the docs."""
    page = HERE.parent / "docs" / "inversion.md"
    measured = {
        name: json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        for name in ("compare", "classes")
    }
    compared = measured["compare"]
    probabilities = compared["probability of the class"]
    rows = [
        [
            name,
            str(count),
            *(f"{probabilities[kind][place]:.2f}" for kind in probabilities),
        ]
        for place, (name, count) in enumerate(
            zip(
                compared["pictures"],
                compared["channels that keep the score"],
                strict=True,
            )
        )
    ]
    header = ["picture", "channels that keep the score"]
    header += [f"probability: {kind}" for kind in probabilities]
    text = measuring.fill_in(
        page.read_text("utf-8"), "compare", measuring.table(header, rows)
    )
    rows = [
        [
            name,
            str(found["pictures"]),
            ", ".join(map(str, found["channels that keep the score"])),
            str(found["channel"]),
            f"{found['its mean mask']:.2f}",
            str(found["others with that mean"]),
        ]
        for name, found in measured["classes"]["classes"].items()
    ]
    header = ["class", "pictures", "channels that keep the score", "k*", "its mean"]
    header += ["others with that mean"]
    text = measuring.fill_in(text, "classes", measuring.table(header, rows))
    page.write_text(text, "utf-8")
    click.echo(text)


@click.command(context_settings={"show_default": True})
@click.argument("what", type=click.Choice(["compare", "classes", "report", "all"]))
@click.option("--layer", default=COMPARED_LAYER, help="Of Fig. 9.")
@click.option("--iterations", default=256)
def main(what: str, layer: str, iterations: int) -> None:
    """Make the figures of Section 5."""
    torch.set_num_threads(1)
    if what != "report":
        loaded = load_demo()
    if what in ("compare", "all"):
        compare(loaded, layer, iterations)
    if what in ("classes", "all"):
        classes(loaded, iterations)
    if what in ("report", "all"):
        report()


if __name__ == "__main__":
    main()
