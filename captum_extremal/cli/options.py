"""What the commands share: options, targets and files, with their errors."""

from __future__ import annotations

import difflib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import torch
from torch import Tensor, nn

from captum_extremal._base import checks, files
from captum_extremal.cli.picture_file import open_picture as open_picture
from captum_extremal.cli.printing import say as say
from captum_extremal.cli.printing import shown as shown
from captum_extremal.methods.registry import METHODS, names_of
from captum_extremal.models.probabilities import RULES
from captum_extremal.solvers.rewards import Game

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Command = Callable[..., None]
Option = Callable[[Command], Command]

_FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


# --- options ---


class Areas(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """Numbers with commas between: fractions in growing order, each once.

    Args:
        channels: Whether ints are numbers of channels; then the order stays.
    """

    name = "A,..."

    def __init__(self, *, channels: bool = False) -> None:
        self.channels = channels

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """A text -> its areas."""
        try:
            areas = checks.read_areas(str(value), channels=self.channels)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return areas if self.channels else tuple(sorted(set(areas)))


class Named(click.Choice):  # type: ignore[type-arg]
    """A key of a registry as it is when the command runs, with what was added."""

    choices = property(lambda self: tuple(self._names), lambda *_: None)

    def __init__(self, names: Mapping[str, object]) -> None:
        self._names = names
        super().__init__(())


class _MethodsOption(click.Option):
    """``{}`` in its help stands for the methods that there are by then."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        record = super().get_help_record(ctx)
        return record and (record[0], record[1].format(", ".join(METHODS)))


def methods_option(name: str, help_text: str, default: str | None = None) -> Option:
    """``methods`` under some name: those named, each once."""

    def parse(
        context: click.Context, option: click.Parameter, text: str | None
    ) -> tuple[str, ...]:
        if text is None:
            return ()
        try:
            return names_of([part.strip() for part in text.split(",")])
        except ValueError as error:
            raise click.BadParameter(str(error), context, option) from None

    return click.option(
        name,
        "methods",
        cls=_MethodsOption,
        metavar="NAME,...",
        default=default,
        show_default=True,
        callback=parse,
        help=help_text,
    )


def together(*options: Option) -> Option:
    """Several options as one decorator, listed in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_options(
    weights: str = "State dict of the model, a file of torch.save or .safetensors.",
) -> Option:
    """``model``, ``weights`` (with this help) and ``size``."""
    return together(
        click.option(
            "--model",
            default="demo",
            show_default=True,
            help="demo (EfficientNet-Lite0), torchvision:NAME or timm:NAME.",
        ),
        click.option(
            "--weights",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help=weights,
        ),
        click.option(
            "--size",
            type=click.IntRange(min=1),
            help="Side of the network's input in pixels.  [default: the model's own]",
        ),
    )


target_option: Option = click.option(
    "--target", help="Index or name of a class.  [default: the top one]"
)


probability_option: Option = click.option(
    "--probability",
    type=click.Choice(RULES),
    default="auto",
    show_default=True,
    help="How outputs become probabilities; outputs: they are. auto: those that sum to "
    "1 are, one output and the 20 or 80 of VOC and COCO get a sigmoid, others a "
    "softmax.",
)


def game_option(help_text: str) -> Option:
    """``game``."""
    return click.option(
        "--game",
        type=click.Choice(get_args(Game)),
        default="preservation",
        show_default=True,
        help=help_text,
    )


def seed_option(help_text: str = "Of the search.") -> Option:
    """``seed``."""
    return click.option(
        "--seed", type=int, default=0, show_default=True, help=help_text
    )


time_limit_option: Option = click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which no further step of the search begins.",
)


def device_options(threads: str = "CPU threads.") -> Option:
    """``device`` and ``threads``."""
    return together(
        click.option(
            "--device", default="cpu", show_default=True, help="For example cuda."
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help=f"{threads}  [default: PyTorch's choice]",
        ),
    )


def file_options(kind: str) -> Option:
    """``output``, the figure of a kind, and ``save``."""
    return together(
        click.option(
            "--output",
            type=click.Path(path_type=Path),
            help="Figure, or folder for it.  "
            f"[default: IMAGE-{kind}.png, in this folder]",
        ),
        click.option(
            "--save",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Also write the masks and scores to this .safetensors file.",
        ),
    )


# --- the model's answer ---


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """A classifier's scores of pictures, (N, classes); an error in its words."""
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except (RuntimeError, AssertionError) as error:
        size = " x ".join(map(str, inputs.shape[2:]))
        raise ValueError(
            f"model cannot take pictures of {size} pixels: {error}"
        ) from None
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise ValueError("model must return one row of class scores for each picture")
    return outputs


def target_index(target: str, labels: Sequence[str] | None, num_classes: int) -> int:
    """The class that a name or an index means."""
    with suppress(ValueError):
        index = int(target)
        if not 0 <= index < num_classes:
            raise click.UsageError(
                f"target must lie in 0..{num_classes - 1}, got {target}"
            )
        return index
    if labels is None:
        raise click.UsageError(
            f"target must be an index in 0..{num_classes - 1}, as the names of this "
            f"model's classes are not known, got {target!r}"
        )
    if target in labels:
        return labels.index(target)
    lower = [label.lower() for label in labels]
    if lower.count(target.lower()) == 1:
        return lower.index(target.lower())
    raise click.UsageError(
        f"target must be an index or the name of a class, got {target!r}"
        + _close_labels(target.lower(), labels)
    )


def _close_labels(target: str, labels: Sequence[str]) -> str:
    by_lower = {label.lower(): label for label in reversed(labels)}
    close = [name for name in by_lower if target in name][::-1]
    close += difflib.get_close_matches(target, by_lower, n=5)
    names = [by_lower[name] for name in dict.fromkeys(close)][:5]
    if not names:
        return ""
    return "; close: " + ", ".join(f"{n!r} ({labels.index(n)})" for n in names)


def label_of(index: int, labels: Sequence[str] | None) -> str:
    """The name of a class, or its number where no names are known."""
    return f"class {index}" if labels is None else labels[index]


# --- files ---


def figure_path(output: Path | None, image: Path, kind: str) -> Path:
    """Where the figure of a kind goes; never over the picture itself."""
    name = f"{image.stem}-{kind}.png"
    path = Path(name) if output is None else output
    if os.path.isdir(path) or not path.suffix:  # False for a name that is too long
        path /= name
    if path.suffix.lower() not in _FIGURE_SUFFIXES:
        raise click.UsageError(
            f"output must be a folder or end in "
            f"{' '.join(_FIGURE_SUFFIXES)}, got {path}"
        )
    return path


def prepare_folder(option: str, path: Path) -> None:
    """Make the folder of a file and see that it can be written to, before the work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise click.UsageError(
            f"{option} must lie in a writable folder, got {path}: {error.strerror}"
        ) from None


def prepare_file(option: str, path: Path) -> None:
    """See that a file can be made, before the work, and leave all as it was."""
    prepare_folder(option, path)
    try:
        new = not os.path.lexists(path)
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise click.UsageError(
            f"{option} must be a file that can be written, got {path}: {error.strerror}"
        ) from None


def prepare_replacement(option: str, path: Path) -> None:
    """The same for a file that appears once it is complete."""
    prepare_file(option, files.partial(path))


def write_figure(figure: Figure, path: Path) -> None:
    """A letter of a name that the font lacks is drawn as a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not", UserWarning)
        figure.savefig(path)


def check_distinct(paths: dict[str, Path | None]) -> None:
    """No file may be read and written, or written twice."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise click.UsageError(
                f"{name} must not be the same file as {other}: {path}"
            )
