"""Channels side by side: do the kept ones score higher than other choices of as many?

    python studies/channels.py run --images 10
    python studies/channels.py report
    python studies/channels.py quick        # one picture, five counts; keeps nothing

`run` takes pictures of ``$CAPTUM_EXTREMAL_DATA/imagenet_mini`` and a layer of
EfficientNet-Lite0, by default its fifth stage (112 channels of 14 x 14 places), and
chooses channels in several ways:

- ours: `ChannelExtremalPerturbation` with its default solver,
- gradient: the highest activation times gradient (Captum's
  ``LayerGradientXActivation``, summed over the places),
- ablation: the highest loss of score when a channel alone is set to zero (Captum's
  ``LayerFeatureAblation``, one feature a channel),
- greedy: from none on, always the channel that raises the score most, all that are left
  being tried at each step,
- paper: the descent of the paper's Section 5, on the pictures that ``--paper`` counts.

All are judged alike: the target's logit with these channels alone, the others at 0.
One JSON file a picture goes to ``studies/results/channels``; what is there already
is skipped. `report` prints the tables and writes them to ``docs/channels.md``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import measuring
import numpy as np
import torch
from captum.attr import LayerFeatureAblation, LayerGradientXActivation
from PIL import Image
from torch import Tensor, nn

from captum_extremal import ChannelExtremalPerturbation, presets
from captum_extremal.models import load_model

COUNTS = (1, 5, 10, 25, 50)
CURVE = (1, 5, 10, 15, 20, 25, 30, 40, 50)  # of the number that suffices
LAYER = "blocks.4"
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "channels"
DOCS = HERE.parent / "docs" / "channels.md"
BATCH = 16
RIVALS = ("gradient", "ablation", "greedy")

Record = dict[str, Any]


# --- choosing channels ---


class Choice:
    """A picture, a class and a layer, of which channels are to be chosen."""

    def __init__(
        self, model: nn.Module, layer: nn.Module, inputs: Tensor, target: int
    ) -> None:
        self.model, self.layer = model, layer
        self.inputs, self.target = inputs, target
        self.method = ChannelExtremalPerturbation(model, layer)

    def ours(self, counts: Sequence[int]) -> Tensor:
        """Masks (A, K)."""
        found = self.method.optimize(self.inputs, self.target, counts)
        assert isinstance(found.masks, Tensor)
        return found.masks[0]

    def paper(self, counts: Sequence[int]) -> Tensor:
        """Masks (A, K)."""
        settings = presets.paper_channels()
        method = ChannelExtremalPerturbation(self.model, self.layer, **settings)
        found = method.optimize(self.inputs, self.target, counts)
        assert isinstance(found.masks, Tensor)
        return found.masks[0]

    def gradient(self, counts: Sequence[int]) -> Tensor:
        """Masks (A, K)."""
        captums = LayerGradientXActivation(self.model, self.layer)
        values = captums.attribute(self.inputs, self.target)
        return top(values[0].flatten(1).sum(dim=1).detach(), counts)

    def ablation(self, counts: Sequence[int]) -> Tensor:
        """Masks (A, K)."""
        captums = LayerFeatureAblation(self.model, self.layer)
        shape = self.activation_shape()
        features = torch.arange(shape[0]).view(1, -1, *[1] * (len(shape) - 1))
        values = captums.attribute(
            self.inputs,
            target=self.target,
            layer_mask=features.expand(1, *shape),
            perturbations_per_eval=BATCH,
        )
        return top(values[0].flatten(1)[:, 0].detach(), counts)

    def greedy(self, counts: Sequence[int]) -> Tensor:
        """Masks (A, K)."""
        mask = torch.zeros(self.activation_shape()[0])
        found = {}
        for count in range(1, max(counts) + 1):
            left = torch.nonzero(mask == 0).flatten()
            candidates = mask.repeat(len(left), 1)
            candidates[torch.arange(len(left)), left] = 1
            mask = candidates[self.scores(candidates).argmax()]
            found[count] = mask
        return torch.stack([found[count] for count in counts])

    def scores(self, masks: Tensor) -> Tensor:
        """The target's logit with the channels of each mask (M, K) alone, (M,)."""
        return self.method.evaluate(self.inputs, masks[None], self.target)[0]

    def activation_shape(self) -> tuple[int, ...]:
        """Channels, then places."""
        shapes = []
        handle = self.layer.register_forward_hook(
            lambda _module, _args, output: shapes.append(tuple(output.shape[1:]))
        )
        with torch.no_grad():
            self.model(self.inputs)
        handle.remove()
        return shapes[0]


def top(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The channels with the highest values, (A, K)."""
    masks = torch.zeros(len(counts), len(values))
    for mask, count in zip(masks, counts, strict=True):
        mask[values.topk(count).indices] = 1
    return masks


def measure(
    choice: Choice, ways: Sequence[str], curve: Sequence[int] = CURVE
) -> Record:
    """Scores of every way at every count, its channels and its time."""
    record: Record = {"counts": list(curve), "scores": {}, "channels": {}}
    record["seconds"] = {}
    with torch.no_grad():
        record["input"] = float(choice.model(choice.inputs)[0, choice.target])
    for way in ways:
        counts = COUNTS if way == "paper" else curve
        find: Callable[[Sequence[int]], Tensor] = getattr(choice, way)
        start = time.perf_counter()
        masks = find(counts)
        record["seconds"][way] = time.perf_counter() - start
        assert masks.sum(dim=1).tolist() == list(counts)
        record["scores"][way] = choice.scores(masks).tolist()
        record["channels"][way] = [row.nonzero().flatten().tolist() for row in masks]
    return record


def run_images(
    images: int, layer: str, paper: int, results: Path, curve: Sequence[int] = CURVE
) -> None:
    """Measure what is not measured yet."""
    data = measuring.data()
    model, preprocess, _ = load_model("demo")
    for index, row in enumerate(measuring.labelled_images(images)):
        file = results / f"{Path(row['file']).stem}.json"
        if file.exists():
            continue
        image = Image.open(data / "imagenet_mini" / row["file"]).convert("RGB")
        inputs = preprocess(image)[1][None]
        module = model.get_submodule(layer)
        choice = Choice(model, module, inputs, int(row["class_index"]))
        ways = ["ours", *RIVALS, *(["paper"] if index < paper else [])]
        record = measure(choice, ways, curve)
        measuring.write(
            file, record | {"layer": layer, "metadata": measuring.metadata()}
        )
        times = ", ".join(f"{k} {s:.0f} s" for k, s in record["seconds"].items())
        click.echo(f"{file.stem}: {times}")


# --- the report ---


def at(record: Record, way: str, count: int) -> float:
    """The score of a way at a count."""
    counts = COUNTS if way == "paper" else record["counts"]
    return record["scores"][way][list(counts).index(count)]


def scores_table(records: Sequence[Record]) -> str:
    """Mean logits at equal counts, and where ours loses."""
    rows = []
    for count in COUNTS:
        ours = np.array([at(record, "ours", count) for record in records])
        theirs = {
            way: np.array([at(record, way, count) for record in records])
            for way in RIVALS
        }
        best = np.max(list(theirs.values()), axis=0)
        low, high = measuring.interval(ours - best)
        rows.append(
            [
                str(count),
                f"**{ours.mean():.2f}**",
                *(f"{values.mean():.2f}" for values in theirs.values()),
                f"{(ours - best).mean():+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{int((ours < best - 1e-3).sum())} of {len(records)}, worst "
                f"{min(0.0, float((ours - best).min())):+.2f}",
            ]
        )
    header = [
        "channels",
        "ours",
        *RIVALS,
        "ours minus the best of the three, of each picture [95 %]",
        "below it",
    ]
    return measuring.table(header, rows)


def paper_table(records: Sequence[Record]) -> str:
    """The published descent on the pictures that it was run on."""
    records = [record for record in records if "paper" in record["scores"]]
    if not records:
        return "Not run."
    rows = [
        [
            str(count),
            *(
                f"{np.mean([at(record, way, count) for record in records]):.2f}"
                for way in ("ours", "paper")
            ),
        ]
        for count in COUNTS
    ]
    return measuring.table(
        [f"channels, {len(records)} pictures", "ours", "paper"], rows
    )


def sufficient(record: Record, way: str) -> float:
    """The smallest count of the curve that scores as high as all channels (eq. 10)."""
    enough = [
        count
        for count, score in zip(record["counts"], record["scores"][way], strict=True)
        if score >= record["input"]
    ]
    return float(min(enough)) if enough else float("inf")


def sufficient_table(records: Sequence[Record]) -> str:
    """How many channels suffice."""
    rows = []
    for way in ("ours", *RIVALS):
        found = np.array([sufficient(record, way) for record in records])
        reached = found[np.isfinite(found)]
        mean = f"{reached.mean():.1f}" if len(reached) else "-"
        seconds = np.median([record["seconds"][way] for record in records])
        rows.append([way, f"{len(reached)} of {len(found)}", mean, f"{seconds:.0f}"])
    header = [
        "",
        f"pictures where {max(CURVE)} or fewer suffice",
        "mean number of channels, of these",
        "seconds a picture, median",
    ]
    return measuring.table(header, rows)


def write_report() -> None:
    """Tables into the docs."""
    records = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    machines = {
        (r["metadata"]["date"], r["metadata"]["processor"], r["metadata"]["torch"])
        for r in records
    }
    layers = sorted({record["layer"] for record in records})
    contents = {
        "scores": scores_table(records),
        "paper": paper_table(records),
        "sufficient": sufficient_table(records),
        "origin": f"{len(records)} pictures, layer {', '.join(layers)}; "
        + "; ".join(
            f"{date}, {processor}, 1 thread, torch {version}"
            for date, processor, version in sorted(machines)
        ),
    }
    text = DOCS.read_text()
    for name, content in contents.items():
        text = measuring.fill_in(text, name, content)
        click.echo(f"{name}\n{content}\n")
    DOCS.write_text(text)


# --- commands ---


@click.group()
def main() -> None:
    """Channels side by side on real images."""
    torch.set_num_threads(1)


@main.command()
@click.option("--images", default=10, show_default=True)
@click.option("--layer", default=LAYER, show_default=True)
@click.option("--paper", default=0, show_default=True, help="Pictures of the descent.")
def run(images: int, layer: str, paper: int) -> None:
    """Measure what is not measured yet."""
    run_images(images, layer, paper, RESULTS)


@main.command()
def report() -> None:
    """Print the tables and write them to the docs."""
    write_report()


@main.command()
def quick() -> None:
    """One picture at five counts; prints, keeps nothing."""
    with tempfile.TemporaryDirectory() as folder:
        run_images(1, LAYER, 0, Path(folder), COUNTS)
        records = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
        click.echo(scores_table(records))


if __name__ == "__main__":
    main()
