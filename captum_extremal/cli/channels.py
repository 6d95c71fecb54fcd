"""``captum-extremal channels``: the channels of a layer that a network needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from captum_extremal._base.features import channel_dim_of
from captum_extremal._base.layer import Layer
from captum_extremal.attribution.running import SearchInterrupted
from captum_extremal.channel import ChannelExtremalPerturbation
from captum_extremal.cli.options import (
    Areas,
    check_distinct,
    device_options,
    figure_path,
    file_options,
    game_option,
    label_of,
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
    write_figure,
)
from captum_extremal.models.networks import load_model, named_layer
from captum_extremal.models.probabilities import (
    Rule,
    check_rule,
    probabilities,
    rule_for,
    told,
)
from captum_extremal.results.channels import ChannelResult
from captum_extremal.solvers import ChannelSolver
from captum_extremal.solvers.rewards import Game, simple_reward
from captum_extremal.visualization import plot_channels

_AREAS = "1,0.02,0.05,0.1,0.15,0.2,0.3,0.5"
_LISTED = 20  # channels in a line of the list


def _parse_dim(
    context: click.Context, option: click.Parameter, value: str
) -> int | None:
    """Turn a number into an int, and ``auto`` into None."""
    del context, option
    if value == "auto":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.UsageError(
            f"--channel-dim: must be auto or a whole number, got {value!r}"
        ) from None


@click.command()
@click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--layer",
    required=True,
    help="Name of a module, such as blocks.4 of the demo's network.",
)
@click.option(
    "--areas",
    type=Areas(channels=True),
    default=_AREAS,
    show_default=True,
    help="Numbers of channels, or with a point fractions of them: 1 is one channel, "
    "1.0 all.",
)
@click.option(
    "--channel-dim",
    metavar="DIM",
    default="auto",
    show_default=True,
    callback=_parse_dim,
    help="Dimension of the channels in the layer's output: 1 for maps, 2 for tokens x "
    "features, 3 for rows x columns x features. auto: as the widths of layers tell.",
)
@click.option("--layer-input", is_flag=True, help="Channels of the layer's input.")
@model_options()
@target_option
@game_option("Keep the score high with the channels alone, low without them, or both.")
@seed_option()
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Gradients of each set of channels.  [default: the solver's own]",
)
@time_limit_option
@probability_option
@device_options()
@file_options("channels")
def channels(
    image: Path,
    layer: str,
    model: str,
    weights: Path | None,
    size: int | None,
    target: str | None,
    steps: int | None,
    time_limit: float | None,
    device: str,
    threads: int | None,
    probability: Rule,
    output: Path | None,
    save: Path | None,
    channel_dim: int | None,
    **search: Any,  # noqa: ANN401
) -> None:
    """Which channels of a layer does a network need to see IMAGE?

    Looks for the channels that alone keep the target's score highest, several numbers
    of them at once. Nothing is downloaded; an existing figure of the same name is
    replaced.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    figure = figure_path(output, image, "channels")
    check_distinct(
        {"IMAGE": image, "--weights": weights, "--output": figure, "--save": save}
    )
    picture = open_picture(image)
    loaded = load_model(model, weights).with_size(size)
    try:
        module = named_layer(loaded.model, layer)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from None
    prepare_file("--output", figure)
    if save is not None:
        prepare_replacement("--save", save)
    view, inputs = loaded.preprocess(picture)
    network = loaded.model.to(torch.device(device))
    inputs = inputs[None].to(torch.device(device))
    read = Layer(network, module, search["layer_input"])
    seen: list[Tensor] = []
    try:
        activation = read.read_one(lambda: seen.append(outputs_of(network, inputs)))
    except TypeError as error:
        raise click.UsageError(f"--layer: {error}") from error
    (outputs,) = seen
    if channel_dim is None:
        channel_dim = _told_by_widths(activation.shape, read, network)
    search["channel_dim"] = channel_dim
    check_rule(outputs, probability)
    chosen = int(outputs.argmax())
    if target is not None:
        chosen = target_index(target, loaded.labels, outputs.shape[1])
    solver = ChannelSolver(time_limit=time_limit)
    if steps is not None:
        solver = dataclasses.replace(solver, iterations=steps)
    method = ChannelExtremalPerturbation(network, module, solver=solver)
    found = _search(method, inputs, chosen, outputs, probability, **search)
    if save is not None:
        found.result.save(save)
    name, p = label_of(chosen, loaded.labels), found.input_probability
    title = (
        f"{shown(image.stem)}: {name} (p = {p:.2f}, {told(found.rule)}), "
        f"channels of {layer}"
    )
    write_figure(plot_channels(view, found.result, title=title), figure)
    heading = f"{name}, p = {p:.3f}, {layer}"
    say("\n".join([heading, found.dimension, "", *found.lines]))
    say()
    for path in (figure, *([save] if save is not None else [])):
        say(f"wrote {shown(path)}")


def _told_by_widths(shape: torch.Size, layer: Layer, network: nn.Module) -> int:
    """The dimension of the channels; 1 where nothing says otherwise of maps."""
    found = channel_dim_of(shape, layer.module, network, layer.at_input)
    if found is None and len(shape) == 3:
        raise click.UsageError(
            "--channel-dim must say which dimension the channels are of "
            f"{tuple(shape)}, 1 or 2: no width of a layer tells"
        )
    return 1 if found is None else found


@dataclasses.dataclass(frozen=True)
class _Found:
    """Channels, and the target's probability with each set of them alone."""

    result: ChannelResult
    input_probability: float
    probability: Tensor  # (A,)
    rule: Rule  # of the probabilities

    @property
    def dimension(self) -> str:
        """What was taken for channels."""
        assert isinstance(self.result.activations, Tensor)
        shape, dim = tuple(self.result.activations.shape), self.result.channel_dim
        return f"channels: the {shape[dim]} of dimension {dim} of {shape}"

    @property
    def lines(self) -> Iterator[str]:
        """The table and the list."""
        result = self.result
        a_star = result.curve().smallest_sufficient
        yield _ROW.format("channels", "kept", "removed", "p(kept)", "")
        # Of areas that come to the same count the first, whose mask is as good.
        order = [result.counts.index(count) for count in sorted(set(result.counts))]
        for place in order:
            count = result.counts[place]
            yield _ROW.format(
                str(count),
                f"{result.scores[0, place]:.2f}",
                f"{result.complement_scores[0, place]:.2f}",
                f"{self.probability[place]:.3f}",
                "a*" if count == a_star else "",
            ).rstrip()
        yield _ROW.format("all", f"{result.input_score[0]:.2f}", "", "", "").rstrip()
        yield _ROW.format(
            "none", f"{result.perturbed_score[0]:.2f}", "", "", ""
        ).rstrip()
        yield ""
        assert isinstance(result.masks, Tensor)
        for place in order:
            kept = result.masks[0, place].nonzero().flatten().tolist()
            rest = f" and {len(kept) - _LISTED} more" if len(kept) > _LISTED else ""
            listed = ", ".join(map(str, kept[:_LISTED]))
            yield f"{result.counts[place]}: {listed}{rest}"
        yield ""
        yield from (note.format(rule=told(self.rule)) for note in _NOTES)


_ROW = "{:>8} {:>9} {:>9} {:>8}  {}"
_NOTES = (
    "kept, removed: the target's score with these channels alone, and without them",
    "p(kept): the target's probability with these channels alone",
    "p: {rule}",
    "a*: the smallest number of channels whose score reaches that of all",
)


def _search(
    method: ChannelExtremalPerturbation,
    inputs: Tensor,
    target: int,
    outputs: Tensor,
    probability: Rule,
    *,
    areas: Sequence[float],
    channel_dim: int,
    layer_input: bool,
    game: Game,
    seed: int,
) -> _Found:
    try:
        result = method.optimize(
            inputs,
            target,
            areas,
            attribute_to_layer_input=layer_input,
            channel_dim=channel_dim,
            game=game,
            seed=seed,
            show_progress=True,
        )
    except TypeError as error:
        raise click.UsageError(f"--layer: {error}") from error
    except SearchInterrupted as interrupt:
        click.echo("stopped early: these are the channels found until now", err=True)
        result = interrupt.result
    assert isinstance(result.masks, Tensor)
    rows = [outputs]

    def noted(kept: Tensor) -> Tensor:
        rows.append(kept)
        return kept

    def evaluate(scale: Callable[[Tensor], Tensor]) -> Tensor:
        return ChannelExtremalPerturbation(
            method.forward_func,
            method.layer,
            reward=lambda kept, chosen: simple_reward(scale(kept), chosen),
        ).evaluate(
            inputs,
            result.masks,
            target,
            attribute_to_layer_input=layer_input,
            channel_dim=channel_dim,
        )[0]

    evaluate(noted)
    rule = rule_for(torch.cat(rows), probability)  # by all of them, of which it tells
    of_input = float(probabilities(outputs, rule)[0, target])
    of_kept = evaluate(lambda kept: probabilities(kept, rule))
    return _Found(result, of_input, of_kept, rule)
