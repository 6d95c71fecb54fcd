"""A JSON file -> pairs of image and class: what to play on, or what is difficult.

The file is a list of ``[image, class]`` or ``[image, class, output]``, such as
``[["000001", "dog"], ["000002", "train", 547]]``: the image by its file's name without
the suffix, and the output to attribute where it is to be a certain one.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """An image, one of its classes and, if it was given, the output to attribute.

    Example:
        >>> Pair("000001", "dog")
        Pair(image='000001', label='dog', output=None)
    """

    image: str
    label: str
    output: int | None = None


def read_pairs(
    path: str | Path, labels: Collection[str], name: str = "pairs"
) -> list[Pair]:
    """Read a list of pairs.

    Args:
        path: The file.
        labels: The classes that there are.
        name: What errors call the list.

    Returns:
        The pairs in the order of the file. They may name images that a data set lacks.

    Raises:
        ValueError: If the file is not such a list, names another class or one pair
            twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "pairs.json"
        ...     _ = path.write_text('[["000001", "dog"], ["000002", "train", 547]]')
        ...     pairs = read_pairs(path, ["dog", "train"])
        >>> pairs[1]
        Pair(image='000002', label='train', output=547)
    """
    try:
        content = json.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} must be a JSON file, got {path}: {error}") from None
    entries = content if isinstance(content, list) else [content]
    wrong = [entry for entry in entries if not _is_pair(entry)]
    if wrong:
        raise ValueError(
            f"{name} must be a list of [image, class] or [image, class, output], got "
            f"{str(wrong[0])[:60]} in {path}"
        )
    pairs = [Pair(*entry) for entry in entries]
    unknown = [pair.label for pair in pairs if pair.label not in labels]
    if unknown:
        raise ValueError(
            f"{name} must name classes of the data set, got {unknown[0]!r} in {path}"
        )
    if len({pair[:2] for pair in pairs}) != len(pairs):
        raise ValueError(f"{name} must name each image and class once, in {path}")
    return pairs


def _is_pair(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        return False
    return all(isinstance(name, str) for name in entry[:2]) and all(
        isinstance(index, int) and not isinstance(index, bool) for index in entry[2:]
    )
