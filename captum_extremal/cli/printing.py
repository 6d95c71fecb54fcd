"""Any text, such as the name of a file -> what figures, pages and terminals can show.

A name of a file is bytes. Those that are no UTF-8 stand in a text of Python as lone
surrogates, which neither fonts nor files take; a name may hold line ends, too.
"""

from __future__ import annotations

import os
import sys
import unicodedata

import click

_HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, ends of lines


def shown(text: str | os.PathLike[str]) -> str:
    r"""One line that can be shown: what cannot be is U+FFFD, the replacement character.

    Args:
        text: Any text, or a path.

    Returns:
        The text in as many characters.

    Example:
        >>> shown("caf\udce9 \n $x$.png") == "caf\ufffd \ufffd $x$.png"
        True
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(it) in _HIDDEN else it
        for it in os.fspath(text)
    )


def say(text: str = "", *, err: bool = False) -> None:
    """Print, with a ``?`` for each character that the stream's encoding lacks.

    Args:
        text: Lines.
        err: On stderr.

    Example:
        >>> say("a line")
        a line
    """
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "replace").decode(encoding), err=err)
