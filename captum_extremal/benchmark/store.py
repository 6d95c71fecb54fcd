"""Results of a benchmark <-> one SQLite file for each rank, in one folder.

A rank writes to its own file alone, a transaction for each row, so that a process that
is killed leaves whole rows. Everyone reads all files. A row is known by its key
``(configuration, image, class)``, in which the configuration is a hash of all that the
row depends on (data set, weights, input size, method and its options, version): rows of
the same key count once, whatever files they lie in.

The journal is SQLite's rollback journal and not a WAL, which does not work on the
network file systems that several machines share.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

_PATTERN = "rank-*.sqlite"
_PATIENCE = 60.0  # seconds for another reader of a killed rank's file to mend it


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one class of one image.

    Attributes:
        configuration: `configuration_of` the settings.
        image: Name of the image.
        label: Name of the class.
        method: Name of the method.
        target: The output that was attributed.
        difficult: Whether the pair is difficult, by the rule.
        score: The output's value in the image.
        probability: Its probability.
        row: Of the point, in pixels of the image; None for a map without a maximum.
        column: Of the point.
        hit: 1 or 0: whether the point lies on the object or within 15 pixels of it.
        inside: 1 or 0: whether it lies on the object.
        energy: The share of the positive map on the object; None where undefined.
        curve: Numbers of each area, for methods that have areas.
        seconds: What the method took.

    Example:
        >>> row = Row("0a1b", "000001", "dog", "ig", 151, False, 9.1, 0.6, 40, 52,
        ...           hit=1.0, inside=0.0, energy=0.3, curve=None, seconds=2.5)
        >>> row.key
        ('0a1b', '000001', 'dog')
    """

    configuration: str
    image: str
    label: str
    method: str
    target: int
    difficult: bool
    score: float
    probability: float
    row: int | None
    column: int | None
    hit: float
    inside: float
    energy: float | None
    curve: dict[str, Any] | None
    seconds: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells rows apart."""
        return self.configuration, self.image, self.label


@dataclass(frozen=True)
class Failure:
    """What did not work.

    Attributes:
        configuration: Of the method.
        image: Name of the image.
        label: Name of the class; empty where the image could not be read.
        method: Name of the method.
        error: Type and text of the error.

    Example:
        >>> Failure("0a1b", "000001", "", "ig", "OSError: truncated").label
        ''
    """

    configuration: str
    image: str
    label: str
    method: str
    error: str


@dataclass
class Content:
    """The union of the files of a folder.

    Attributes:
        rows: By key.
        failures: What failed and has no row by now.
        done: ``(selection, configuration, image)`` of images all of whose pairs that
            were selected have been dealt with.
        settings: Configuration -> what it is the hash of.
        difficult: Configuration -> the list of difficult pairs ``[image, class]`` of
            the last run; None for the rule.
    """

    rows: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    done: set[tuple[str, str, str]] = field(default_factory=set)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    difficult: dict[str, list[list[str]] | None] = field(default_factory=dict)


def configuration_of(settings: Mapping[str, Any]) -> str:
    """A short hash of settings, the same in every process.

    Args:
        settings: What JSON can hold; the order of keys does not matter.

    Returns:
        12 hexadecimal digits.

    Example:
        >>> configuration_of({"b": 1, "a": [2]}) == configuration_of({"a": [2], "b": 1})
        True
        >>> configuration_of({"a": 1})
        'f9d86028c6e0'
    """
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Writer:
    """The file of one rank, open for writing.

    Args:
        folder: Made where it is missing.
        rank: Number of the rank.

    Raises:
        ValueError: If the file is there and is no such file.

    Example:
        >>> import tempfile
        >>> failure = Failure("0a1b", "000001", "", "ig", "OSError: truncated")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with writing(Path(folder), rank=0) as writer:
        ...         writer.fail(failure)
        ...     read(Path(folder)).failures == [failure]
        True
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank:05d}.sqlite"
        self._database = _open(path)

    def configure(
        self,
        configuration: str,
        settings: Mapping[str, Any],
        difficult: list[list[str]] | None,
    ) -> None:
        """Say what a hash stands for, and which pairs are difficult from now on."""
        given = (configuration, json.dumps(settings), json.dumps(difficult))
        self._write("configurations", (*given, time.time()))

    def add(self, row: Row) -> None:
        """Add a row, or replace the one of its key."""
        values = asdict(row)
        values["curve"] = None if row.curve is None else json.dumps(row.curve)
        self._write("results", tuple(values[name] for name in _ROW))

    def fail(self, failure: Failure) -> None:
        """Add a failure, or replace the one of its key."""
        self._write("failures", tuple(asdict(failure)[name] for name in _FAILURE))

    def finish(self, selection: str, configurations: Iterable[str], image: str) -> None:
        """Say that an image is dealt with."""
        for configuration in configurations:
            self._write("done", (selection, configuration, image))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write(self, table: str, values: tuple[Any, ...]) -> None:
        marks = ", ".join("?" * len(values))
        with self._database:  # a transaction
            self._database.execute(
                f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values
            )


@contextmanager
def writing(folder: Path, rank: int) -> Iterator[Writer]:
    """A `Writer` that is closed at the end of the block.

    Args:
        folder: As for `Writer`.
        rank: As for `Writer`.

    Yields:
        The writer.

    Example:
        See `Writer`.
    """
    writer = Writer(folder, rank)
    try:
        yield writer
    finally:
        writer.close()


def read(folder: Path) -> Content:
    """The union of all files of a folder.

    Args:
        folder: The folder of a run, or of several; it may be missing or empty.

    Returns:
        What the files hold.

    Raises:
        ValueError: If a file is not one of `Writer`.

    Example:
        >>> read(Path("does not exist")).rows
        {}
    """
    content = Content()
    failures: dict[tuple[str, str, str], Failure] = {}
    latest: dict[str, float] = {}
    for path in sorted(folder.glob(_PATTERN)):
        with closing(_open(path)) as database:
            for values in database.execute(f"SELECT {', '.join(_ROW)} FROM results"):
                row = _row(dict(zip(_ROW, values, strict=True)))
                content.rows.setdefault(row.key, row)
            for values in database.execute(
                f"SELECT {', '.join(_FAILURE)} FROM failures"
            ):
                failure = Failure(*values)
                key = (failure.configuration, failure.image, failure.label)
                failures[key] = failure
            content.done.update(database.execute("SELECT * FROM done"))
            for name, settings, difficult, when in database.execute(
                "SELECT * FROM configurations"
            ):
                content.settings[name] = json.loads(settings)
                if when >= latest.get(name, 0.0):
                    latest[name] = when
                    content.difficult[name] = json.loads(difficult)
    read_since = {(row.configuration, row.image) for row in content.rows.values()}
    content.failures = [
        failures[key]
        for key in sorted(failures)
        if key not in content.rows and (key[2] or key[:2] not in read_since)
    ]
    return content


# --- the files ---

_ROW = tuple(item.name for item in fields(Row))
_FAILURE = tuple(item.name for item in fields(Failure))
_KEY = "configuration, image, label"
_TABLES = f"""
CREATE TABLE IF NOT EXISTS results ({", ".join(_ROW)}, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS failures ({", ".join(_FAILURE)}, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS done
    (selection, configuration, image, PRIMARY KEY (selection, configuration, image));
CREATE TABLE IF NOT EXISTS configurations
    (configuration PRIMARY KEY, settings, difficult, started);
"""


def _open(path: Path) -> sqlite3.Connection:
    """A file with all tables; SQLite mends what a killed process left half done."""
    database = sqlite3.connect(path, timeout=_PATIENCE)
    try:
        database.executescript(_TABLES)
        database.execute("SELECT 1 FROM results LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        database.close()
        raise ValueError(
            f"output must hold files of a benchmark, got {path}: {error}"
        ) from None
    return database


def _row(values: dict[str, Any]) -> Row:
    curve = values["curve"]
    return Row(
        **{
            **values,
            "difficult": bool(values["difficult"]),
            "curve": None if curve is None else json.loads(curve),
        }
    )
