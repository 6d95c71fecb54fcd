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
from typing import Any, NamedTuple

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
        failures: What failed, and was not dealt with since.
        done: ``(selection, configuration, image)`` of images all of whose pairs that
            were selected have been dealt with.
        settings: Configuration -> what it is the hash of.
        difficult: Data set -> the list of difficult pairs ``[image, class]`` that the
            last run on it was given; None for the rule.
        flaws: Key of a row -> what is wrong with the records of the objects that it is
            judged on, a line each. There may be no such row: the class is empty where
            it is not known, and does not play where all its objects are left out.
    """

    rows: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    done: set[tuple[str, str, str]] = field(default_factory=set)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    difficult: dict[str, list[list[str]] | None] = field(default_factory=dict)
    flaws: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)


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
        ...         writer.fail("all pairs", failure)
        ...     read(Path(folder)).failures == [failure]
        True
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"rank-{rank:05d}.sqlite"
        self._database = _open(self._path)

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

    def fail(self, selection: str, failure: Failure) -> None:
        """Add a failure in a run of some pairs, or replace the one of its key."""
        values = tuple(asdict(failure)[name] for name in _FAILURE)
        self._write("failures", (*values, selection, time.time()))

    def flaw(self, key: tuple[str, str, str], lines: list[str]) -> None:
        """Say what is wrong with the objects of a key from now on, maybe nothing."""
        self._write("flaws", (*key, json.dumps(lines), time.time()))

    def finish(self, selection: str, configurations: Iterable[str], image: str) -> None:
        """Say that an image is dealt with; what failed in such a run is mended."""
        for configuration in configurations:
            self._write("done", (selection, configuration, image, time.time()))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write(self, table: str, values: tuple[Any, ...]) -> None:
        marks = ", ".join("?" * len(values))
        try:
            with self._database:  # a transaction
                self._database.execute(
                    f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values
                )
        except sqlite3.Error as error:
            raise OSError(f"cannot write to {self._path}: {error}") from None


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
    failed: dict[tuple[str, str, str], _Failed] = {}
    finished: dict[tuple[str, str, str], float] = {}
    latest: dict[str, float] = {}
    judged: dict[tuple[str, str, str], float] = {}
    for path in sorted(folder.glob(_PATTERN)):
        with closing(_open(path)) as database, _readable(path):
            _read_rows(database, content, judged)
            for *values, selection, when in database.execute("SELECT * FROM failures"):
                new = _Failed(Failure(*values), selection, when)
                key = (new.failure.configuration, new.failure.image, new.failure.label)
                if key not in failed or failed[key].time < when:
                    failed[key] = new
            for *key, when in database.execute("SELECT * FROM done"):
                finished[tuple(key)] = max(finished.get(tuple(key), 0.0), when)
            for name, settings, difficult, when in database.execute(
                "SELECT * FROM configurations"
            ):
                content.settings[name] = json.loads(settings)
                dataset = content.settings[name]["common"]["dataset"]
                if when >= latest.get(dataset, 0.0):
                    latest[dataset] = when
                    content.difficult[dataset] = json.loads(difficult)
    content.flaws = {key: lines for key, lines in content.flaws.items() if lines}
    content.done = set(finished)
    content.failures = _standing(failed, finished, content.rows)
    return content


def _read_rows(
    database: sqlite3.Connection,
    content: Content,
    judged: dict[tuple[str, str, str], float],
) -> None:
    """Rows and flaws of one more file; of several, the last that told of its objects.

    A row is written just before its flaws are, ``judged`` at that time.
    """
    here = {}
    for *key, lines, when in database.execute("SELECT * FROM flaws"):
        here[tuple(key)] = when
        if judged.get(tuple(key), 0.0) < when:
            content.flaws[tuple(key)] = json.loads(lines)
    for values in database.execute(f"SELECT {', '.join(_ROW)} FROM results"):
        row = _row(dict(zip(_ROW, values, strict=True)))
        newer = judged.get(row.key, 0.0) < here.get(row.key, 0.0)
        if newer or row.key not in content.rows:
            content.rows[row.key] = row
    for at, when in here.items():
        judged[at] = max(judged.get(at, 0.0), when)


class _Failed(NamedTuple):
    failure: Failure
    selection: str
    time: float


def _standing(
    failed: Mapping[tuple[str, str, str], _Failed],
    finished: Mapping[tuple[str, str, str], float],
    rows: Mapping[tuple[str, str, str], Row],
) -> list[Failure]:
    """What was not mended since.

    A pair is by its row, or by a later run that selects pairs in the same way and dealt
    with the image; an image that could not be read, by any later sign that it was read.
    """
    read_at: dict[tuple[str, str], float] = {}
    signs = [((key[1], key[2]), when) for key, when in finished.items()]
    signs += [(key[:2], it.time) for key, it in failed.items() if key[2]]
    for place, when in signs:
        read_at[place] = max(read_at.get(place, 0.0), when)
    standing = []
    for key, (failure, selection, when) in sorted(failed.items()):
        configuration, image, label = key
        if label:
            done_at = finished.get((selection, configuration, image), 0.0)
        else:
            done_at = read_at.get((configuration, image), 0.0)
        if key not in rows and done_at < when:
            standing.append(failure)
    return standing


# --- the files ---

_ROW = tuple(item.name for item in fields(Row))
_FAILURE = tuple(item.name for item in fields(Failure))
_KEY = "configuration, image, label"
_TABLES = f"""
CREATE TABLE IF NOT EXISTS results ({", ".join(_ROW)}, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS failures
    ({", ".join(_FAILURE)}, selection, time, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS done
    (selection, configuration, image, time,
    PRIMARY KEY (selection, configuration, image));
CREATE TABLE IF NOT EXISTS flaws ({_KEY}, lines, time, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS configurations
    (configuration PRIMARY KEY, settings, difficult, time);
"""
# A column of each table that other files do not have.
_LAST = {
    "results": "seconds", "failures": "time", "done": "time", "flaws": "lines",
    "configurations": "time",
}  # fmt: skip


def _open(path: Path) -> sqlite3.Connection:
    """A file with all tables; SQLite mends what a killed process left half done."""
    database = sqlite3.connect(path, timeout=_PATIENCE)
    try:
        with _readable(path):
            database.executescript(_TABLES)
            for table, column in _LAST.items():
                database.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchall()
    except ValueError:
        database.close()
        raise
    return database


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """An error that names the file, whatever is wrong with it or what it holds."""
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"output must hold files of a benchmark, got {path}: {error}"
        ) from None


def _row(values: dict[str, Any]) -> Row:
    curve = values["curve"]
    return Row(
        **{
            **values,
            "difficult": bool(values["difficult"]),
            "curve": None if curve is None else json.loads(curve),
        }
    )
