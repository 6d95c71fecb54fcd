"""The command ``captum-extremal``: a group of commands whose errors are one line.

`explain` (with ``demo``), `channels` and `benchmark` (with ``report``) hold the
commands, `options` what they share. Figures, masks and tables are the output; the
progress bar and errors go to stderr, and after an error the exit code is 2.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from captum_extremal.cli.printing import say, shown

# What can be wrong with what the user gave; anything else is a bug and keeps its
# traceback. The assertion errors are torch's, of devices that are not there.
_USER_ERRORS = (ValueError, RuntimeError, AssertionError, OSError, ImportError)


# Command -> its module.
_COMMANDS = {
    "benchmark": "benchmark",
    "channels": "channels",
    "demo": "explain",
    "explain": "explain",
    "report": "benchmark",
}


class _Commands(click.Group):
    """Loads the command that is called; errors are one line and exit code 2."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name.startswith("-"):
            return None  # an option
        if name not in _COMMANDS:
            close = difflib.get_close_matches(name, _COMMANDS)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{hint}")
        module = import_module(f"captum_extremal.cli.{_COMMANDS[name]}")
        command: click.Command = getattr(module, name)
        return command

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.Abort:
            _fail("stopped", exit_code=130)
        except click.ClickException as error:
            _fail(error.format_message())
        except _USER_ERRORS as error:
            _fail(str(error) or type(error).__name__)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, exit_code: int = 2) -> NoReturn:
    say(f"captum-extremal: {shown(' '.join(message.split()))}", err=True)
    sys.exit(exit_code)


@click.group(cls=_Commands, invoke_without_command=True)
@click.version_option(package_name="captum_extremal", prog_name="captum-extremal")
@click.pass_context
def main(context: click.Context) -> None:
    """Show which part of a picture a network needs for its answer."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
