"""Shared helpers of all commands: the database options, progress bars, and error messages.

Results are printed to standard output, so that they can be piped. Progress and errors are printed
to standard error. The exit codes are 0: done; 1: done, and the answer is negative (for example, a
check failed); 2: wrong usage; 3: failed.
"""

from __future__ import annotations

import getpass
import logging
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import IO, Any, NoReturn, ParamSpec, Protocol, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from foldlog.domain.errors import FoldlogError
from foldlog.domain.redaction import redacted
from foldlog.domain.times import parse_time

from .printable import one_line, printable, unescaped

EXIT_NO = 1
EXIT_FAILED = 3

P = ParamSpec("P")
R = TypeVar("R")


class SafeConsole(Console):
    """A console whose own styles are all that it sends to the terminal beside printable text.

    It writes below the escaping stream, so it escapes the texts itself, before they are laid out.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    @property
    def file(self) -> IO[str]:
        return unescaped(super().file)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


out = SafeConsole()
err = SafeConsole(stderr=True)


def fail(message: str, code: int = EXIT_FAILED, *, notes: Iterable[str] = ()) -> NoReturn:
    """Prints an error message and its notes, one a line, with their secrets redacted. Ends the
    process with the exit code `code`.
    """
    # soft_wrap keeps paths and ids on one line, so that they can be copied.
    shown = escape(one_line(redacted(message)))
    err.print(f"[red]error:[/red] {shown}", soft_wrap=True, highlight=False)
    for note in notes:
        err.print(escape(one_line(redacted(note))), soft_wrap=True, highlight=False)
    sys.exit(code)


def _external_errors() -> tuple[type[Exception], ...]:
    """Returns the exception types of database errors and file errors, which are printed without
    a traceback.
    """
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    with suppress(ModuleNotFoundError):  # the service's packages are optional
        from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS

        errors += DATABASE_ERRORS
    return errors


def _notes(exc: BaseException) -> list[str]:
    """Returns the notes that were added to the exception, such as the name of its database."""
    return getattr(exc, "__notes__", [])


def report_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorates a command so that expected errors are printed in one line, with their code.

    The command then ends with exit code 3. Unexpected errors keep their traceback.
    """

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FoldlogError as exc:
            fail(f"{exc} ({exc.code})", notes=_notes(exc))
        except BrokenPipeError:
            sys.exit(0)  # the reader closed the pipe, as `head` does
        except Exception as exc:
            if not isinstance(exc, _external_errors()):
                raise
            fail(f"{type(exc).__name__}: {exc}", notes=_notes(exc))

    return wrapper


def with_database(command: Callable[..., R]) -> Callable[..., R]:
    """Decorates a command with the options `--data` and `--database-url`. The user selects with
    these options the database that the command uses.
    """
    for option in (
        click.option(
            "--database-url",
            metavar="URL",
            help="Use this PostgreSQL server instead of the embedded one. "
            "[env: FOLDLOG_DATABASE_URL]",
        ),
        click.option(
            "--data",
            metavar="DIR",
            help="Use the embedded PostgreSQL in this folder; a server that already runs on it is "
            "shared. [env: FOLDLOG_DATA] [default: foldlog-data]",
        ),
    ):
        command = option(command)
    return command


class Time(click.ParamType[int]):
    """An option's value that is an RFC 3339 time, converted to ms since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_time(value)
        except ValueError as exc:
            self.fail(f"{value!r} is {exc}", param, ctx)


TIME = Time()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the user id has no name on this system
        return "an operator"


BY = click.option(
    "--by",
    default=_user,
    show_default="your user name",
    help="Record this name as the author. It stays in the log forever.",
)
YES = click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
REASON_HELP = "Record this reason. It stays in the log forever, so leave out personal data."
REASON = click.option("--reason", required=True, help=REASON_HELP)


class Report(Protocol):
    """A function that a task calls to report progress. The first argument is the number of units
    done. The second, optional argument is a new total number of units.
    """

    def __call__(self, completed: int, of: int | None = ..., /) -> None: ...


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Report]:
    """Shows a progress bar on standard error while the `with` block runs.

    The block gets a function that sets the number of units done, and optionally a new total.
    """
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=not err.is_terminal,
    ) as bar:
        task = bar.add_task(escape(printable(description)), total=total)

        def advance(completed: int, of: int | None = total) -> None:
            bar.update(task, completed=completed, total=of)

        yield advance


def print_rows(names: Iterable[str], rows: Iterable[Iterable[str | None]]) -> None:
    """Prints a table that other programs can read: one line per row, with tabs between the
    cells.
    """
    for row in (names, *rows):
        say("\t".join(" ".join((cell or "-").split()) for cell in row))


def say(text: str) -> None:
    """Prints one line of a result to standard output, safe for a terminal.

    A JSON document keeps its meaning, because the escapes are those of JSON.
    """
    click.echo(one_line(text))


def say_all(lines: Iterable[bytes]) -> None:
    """Prints many lines of results in UTF-8, each like `say`."""
    for line in lines:
        sys.stdout.write(one_line(line.decode("utf-8", "backslashreplace")) + "\n")
    sys.stdout.flush()


def quiet_logs() -> None:
    """Hides all log lines below the level ERROR, because commands print their own messages."""
    import structlog  # one of the service's packages, which are optional

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def spaced(number: int) -> str:
    """Returns the number as text, with a comma between groups of thousands: `2,252`."""
    return f"{number:,}"
