"""The application: its commands, and how every error becomes one sentence and an exit code.

Command modules import only typer and `adamtune.errors` at the top, so that `--help` loads neither torch nor pandas nor
optuna; each loads what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from adamtune.cli.compare import compare
from adamtune.cli.dashboard import dashboard
from adamtune.cli.diagnose import diagnose
from adamtune.cli.doctor import doctor
from adamtune.cli.export import export
from adamtune.cli.help_text import help_of
from adamtune.cli.init import init
from adamtune.cli.lr_find import lr_find
from adamtune.cli.recipes import recipes_app
from adamtune.cli.report import report
from adamtune.cli.show import show
from adamtune.cli.sweep import sweep
from adamtune.cli.worker import worker
from adamtune.errors import FULL, AdamtuneError, ExitCode, unwritable
from adamtune.passwords import without_passwords
from adamtune.plain_text import plain

_LINES = "\n\t"

app = typer.Typer(
    name="adamtune",
    help="Tune Adam for your own PyTorch model by measurement, and get back an optimizer recipe you can trust.",
    no_args_is_help=True,
    rich_markup_mode=None,  # typer's boxes cost more time than all else `--help` does together
    pretty_exceptions_enable=False,
)
for command in (init, doctor, lr_find, sweep, show, report, dashboard, compare, diagnose, export, worker):
    app.command(command.__name__.replace("_", "-"), **help_of(command))(command)
app.add_typer(recipes_app, name="recipes")


def _version(wanted: bool) -> None:
    if wanted:
        from adamtune import __version__  # read from the installed metadata, which takes a moment

        typer.echo(f"adamtune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Tune Adam for your own PyTorch model by measurement, and get back an optimizer recipe you can trust."""


def main() -> NoReturn:
    """Run the command line and exit."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.exit(run(arguments, debug=len(arguments) < len(sys.argv) - 1))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command; its exit code. Every error is told in one place, here."""
    try:
        code = app(arguments, prog_name="adamtune", standalone_mode=False)
        if sys.stdout is not None:  # which it is where the shell has closed it (>&-)
            sys.stdout.flush()  # while it can still be told that the disk behind it is full
        if code == ExitCode.INTERRUPTED and not isinstance(code, ExitCode):  # typer's own word for Ctrl-C: say it
            raise KeyboardInterrupt
        return code if isinstance(code, int) else ExitCode.DONE
    except typer.TyperException as error:  # a wrong option or argument
        message = error.format_message().replace(": Value error, ", ": ", 1)  # pydantic's words, by way of typer
        return _tell(message, error.exit_code, debug)
    except AdamtuneError as error:
        return _tell(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):  # the latter at a question, where Ctrl-D does so too
        return _tell("interrupted", ExitCode.INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        _leave_output()
        return ExitCode.FAILED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            if error.filename is None:  # writing to what is open already: our output
                _leave_output()
            return _tell(str(unwritable(error.filename or "the output", error)), ExitCode.FAILED, debug)
        # every other exception is a bug of ours
        text = f"adamtune has a bug here ({type(error).__name__}: {error}); run it again with --debug and report that"
        return _tell(text, ExitCode.FAILED, debug)


def _leave_output() -> None:
    """Forget what waits to be printed: Python would try again at exit, and fail with a traceback."""
    with suppress(OSError):  # no file at all, where another program calls us
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _tell(message: str, code: int, debug: bool) -> int:
    with suppress(OSError):  # where nobody can be told, the exit code still says it
        if debug:
            sys.stderr.write(without_passwords(traceback.format_exc()))
        if message:  # typer has none when it answers a bare `adamtune` with the help
            typer.echo(f"adamtune: {plain(without_passwords(message), keep=_LINES)}", err=True)
    return code
