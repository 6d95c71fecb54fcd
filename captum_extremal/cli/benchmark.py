"""``captum-extremal benchmark`` and ``report``: the pointing game over a data set."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
import torch

from captum_extremal.benchmark import (
    DATASETS,
    PAPER_AREAS,
    Options,
    Pair,
    Plan,
    class_names,
    local_device,
    open_images,
    processes,
    read,
    read_pairs,
    run,
)
from captum_extremal.benchmark.runner import Resize
from captum_extremal.benchmark.store import Content
from captum_extremal.benchmark.tables import Format, Measure, Report, flaws_of
from captum_extremal.benchmark.tables import report as report_of
from captum_extremal.cli.options import (
    Areas,
    device_options,
    methods_option,
    model_options,
    prepare_folder,
    probability_option,
    say,
    seed_option,
)
from captum_extremal.models.networks import load_model
from captum_extremal.models.probabilities import Rule

_DEFAULT_METHODS = "centre,gradient,guided-backprop,grad-cam,occlusion,extremal"
_RULE = "rule"

_min_probability = click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Leave out classes of which the model is less sure.",
)


@click.command()
@click.option(
    "--dataset", required=True, type=click.Choice(tuple(DATASETS)), help="Which images."
)
@click.option(
    "--root",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the data set, as its archives unpack.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the results; a run goes on where it left off.",
)
@methods_option("--methods", "Names with commas between, of {}.", _DEFAULT_METHODS)
@model_options(
    "State dict of the model; with as many outputs as the data set has classes "
    "for a fine-tuned one."
)
@click.option(
    "--resize",
    type=click.Choice(get_args(Resize)),
    default="squash",
    show_default=True,
    help="Squash images to the input's size, or fit their shorter side to it.",
)
@click.option(
    "--areas",
    type=Areas(),
    help="Of the extremal methods.  [default: the paper's]",
)
@click.option(
    "--layer", help="Of grad-cam, mwp and cmwp.  [default: the last feature map]"
)
@seed_option("Of all that is random.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Of the extremal methods.  [default: the solver's own]",
)
@click.option(
    "--difficult",
    default=_RULE,
    show_default=True,
    help="JSON list of [image, class]; or rule: small objects that are not alone.",
)
@click.option(
    "--pairs",
    "pairs_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON list of [image, class] or [image, class, output]: only these.",
)
@_min_probability
@probability_option
@click.option(
    "--images", "limit", type=click.IntRange(min=1), help="Only so many, for a trial."
)
@click.option("--save-maps", is_flag=True, help="Keep the maps and masks of new rows.")
@device_options("CPU threads of each process.")
def benchmark(
    dataset: str,
    root: Path,
    output: Path,
    methods: tuple[str, ...],
    model: str,
    weights: Path | None,
    size: int | None,
    resize: Resize,
    areas: tuple[float, ...] | None,
    layer: str | None,
    seed: int,
    steps: int | None,
    difficult: str,
    pairs_file: Path | None,
    min_probability: float,
    probability: Rule,
    limit: int | None,
    save_maps: bool,
    device: str,
    threads: int | None,
) -> None:
    """Play the pointing game on a whole data set.

    Any number of processes may share the work under torchrun. Nothing is downloaded.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    areas = PAPER_AREAS[dataset] if areas is None else areas
    options = Options(layer, areas, seed=seed, steps=steps, probability=probability)
    labels = class_names(dataset)
    pairs = None if pairs_file is None else read_pairs(pairs_file, labels)
    hard = None if difficult == _RULE else read_pairs(difficult, labels, "difficult")
    images = open_images(dataset, root)
    prepare_folder("--output", output / "rank")
    loaded = load_model(model, weights).with_size(size)
    plan = Plan(
        images,
        loaded.model.to(local_device(device)),
        loaded.preprocess,
        methods,
        model_name=model,
        options=options,
        resize=resize,
        min_probability=min_probability,
        pairs=pairs,
        difficult=hard,
        limit=limit,
        save_maps=save_maps,
    )
    if not plan.names:
        if pairs is None:
            raise click.UsageError(f"--root must hold images of {dataset}, got none")
        raise click.UsageError("--pairs must name images of the data set, got none")
    with processes() as rank:
        content = run(plan, output, rank, show_progress=True)
        if rank.number == 0:
            if not content.rows:
                for failure in content.failures[:1]:
                    raise click.UsageError(
                        f"no image could be played, {failure.image}: {failure.error}"
                    )
                raise click.UsageError(
                    "no pair could be played: there must be an object of a class that "
                    "the model knows, and that --min-probability and --pairs leave"
                    f"{_first_flaw(content)}"
                )
            _print(report_of(content, min_probability=min_probability), "text")
            _print_unplayed(plan.unplayed(content))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(Format)),
    default="text",
    show_default=True,
    help="Of the tables.",
)
@click.option(
    "--measure",
    type=click.Choice(get_args(Measure)),
    default="hit",
    show_default=True,
    help="hit: within 15 pixels of the object; inside: on it; energy: share on it.",
)
@_min_probability
def report(
    folder: Path, form: Format, measure: Measure, min_probability: float
) -> None:
    """The tables of a benchmark in FOLDER, finished or not."""
    content = read(folder)
    if not content.rows and content.failures:
        first = content.failures[0]
        raise click.UsageError(
            f"all {len(content.failures)} failed, the first is {first.image}: "
            f"{first.error}"
        )
    if not content.rows and content.flaws:
        raise click.UsageError(f"report needs results, got none{_first_flaw(content)}")
    _print(report_of(content, measure, min_probability), form)


def _first_flaw(content: Content) -> str:
    """Its line at the end of a message; nothing if there is none."""
    return "".join(f"; {line}" for line in flaws_of(content)[:1])


def _print_unplayed(pairs: list[Pair]) -> None:
    if pairs:
        first = f"{pairs[0].image}, {pairs[0].label}"
        say(
            f"\n{len(pairs)} of --pairs not played (no such image or object in it, or "
            f"below --min-probability), the first is {first}",
            err=True,
        )


def _print(found: Report, form: Format) -> None:
    """The tables on stdout; on stderr what failed, and objects that were left out."""
    say(found.render(form).removesuffix("\n"))
    if found.failed:
        say(f"\n{len(found.failed)} failed:", err=True)
    for line in found.failed:
        say(f"  {line}", err=True)
    if found.flaws:
        what = "flaw" if len(found.flaws) == 1 else "flaws"
        say(f"\n{len(found.flaws)} {what} in records of objects:", err=True)
    for line in found.flaws:
        say(f"  {line}", err=True)
