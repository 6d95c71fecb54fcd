"""Tensors and what is known about them <-> one safetensors file; text -> a file.

The JSON sits in the file's metadata. A file appears only once it is complete, and
nothing in a file is executed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY = "captum_extremal"


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
    partial = _partial(target)
    try:
        save_file(copies, partial, metadata=metadata)
        partial.replace(target)
    except SafetensorError as error:
        raise OSError(f"path must be writable, got {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text in UTF-8, or replace it.

    Raises:
        OSError: If the folder does not exist or cannot be written to.
    """
    check_folder(path)
    target = Path(path)
    partial = _partial(target)
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str]) -> None:
    """A file's folder must exist: nobody wants one of a misspelt name."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {path}")


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` was given; the tensors are on the CPU.

    Raises:
        SafetensorError: If it is no such file; or LookupError, TypeError or ValueError.
        OSError: If it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})[_KEY])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
