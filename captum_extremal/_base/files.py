"""Tensors and what is known about them <-> one safetensors file; text -> a file.

The JSON sits in the file's metadata. A file appears only once it is complete, and
nothing in a file is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

_KEY = "captum_extremal"
SCORES = ("scores", "complement_scores", "input_score", "perturbed_score")
"""What the results of all methods hold of scores."""

Parsed = TypeVar("Parsed")


def write(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], about: dict[str, Any]
) -> None:
    """Write a file, or replace it.

    Raises:
        OSError: If the folder does not exist or cannot be written to.
        TypeError: If JSON cannot hold ``about``.
    """
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    metadata = {_KEY: json.dumps(about)}
    check_folder(path)
    target = Path(path)
    unfinished = partial(target)
    try:
        save_file(copies, unfinished, metadata=metadata)
        unfinished.replace(target)
    except SafetensorError as error:
        raise OSError(f"path must be writable, got {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text in UTF-8, or replace it.

    Raises:
        OSError: If the folder does not exist or cannot be written to.
    """
    check_folder(path)
    target = Path(path)
    unfinished = partial(target)
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str]) -> None:
    """A file's folder must exist: nobody wants one of a misspelt name."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {path}")


def partial(target: Path) -> Path:
    """Where a file is written until it is complete."""
    return target.with_name(target.name + ".partial")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` was given; the tensors are on the CPU.

    Raises:
        SafetensorError: If it is no such file; or LookupError, TypeError or ValueError.
        OSError: If it cannot be read.
    """
    content = Path(path).read_bytes()  # safetensors opens no name that is not UTF-8
    tensors = load_tensors(content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return tensors, json.loads(header.get("__metadata__", {})[_KEY])


def load(
    path: str | os.PathLike[str],
    kind: str,
    format_name: str,
    parse: Callable[[dict[str, Any], dict[str, Tensor]], Parsed],
) -> Parsed:
    """What ``parse`` makes of what `read` gives.

    Args:
        path: The file.
        kind: What it should hold, in words.
        format_name: What ``about["format"]`` must be.
        parse: ``about`` and the tensors -> the object. Its LookupError, TypeError or
            ValueError says that the file is none of this kind.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If the file is of another kind, or damaged.
    """
    try:
        tensors, about = read(path)
        if about["format"] != format_name:
            raise ValueError(f"format must be {format_name}, got {about['format']}")
        return parse(about, tensors)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"path must be a saved {kind}, got {path}") from error


def packed(name: str, several: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """A tensor, or a tuple of them, as entries of a file."""
    tensors = several if isinstance(several, tuple) else (several,)
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}


def unpacked(
    name: str, tensors: dict[str, Tensor], is_tuple: bool
) -> Tensor | tuple[Tensor, ...]:
    """What `packed` was given.

    Raises:
        LookupError: If there is none.
    """
    count = sum(key.startswith(f"{name}.") for key in tensors)
    found = tuple(tensors[f"{name}.{index}"] for index in range(count))
    return found if is_tuple and found else found[0]


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a file whose names begin so, without the beginning."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
