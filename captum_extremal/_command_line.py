"""What the commands share: options, pictures, targets and files, with their errors."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import torch
from torch import Tensor, nn

from captum_extremal.rewards import Game

if TYPE_CHECKING:
    from PIL.Image import Image

Command = Callable[..., None]
Option = Callable[[Command], Command]

_FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


# --- options ---


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


# --- pictures ---


# What Pillow converts to RGB by the right scale.
_MODES = [
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
]


def open_picture(path: Path) -> Image:
    """Read a picture of any kind as RGB, the right way up, transparency on white."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise click.UsageError(f"IMAGE must be a picture, got {path}") from None
    if picture.mode not in _MODES:
        raise click.UsageError(
            f"IMAGE must have 8 or 16 bits a channel, got mode {picture.mode}: {path}"
        )
    if picture.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip
        return picture.point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


# --- the model's answer ---


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
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
    return f"class {index}" if labels is None else labels[index]


# --- files ---


def figure_path(output: Path | None, image: Path, kind: str) -> Path:
    """Where the figure of a kind goes; never over the picture itself."""
    name = f"{image.stem}-{kind}.png"
    path = Path(name) if output is None else output
    if path.is_dir() or not path.suffix:
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
