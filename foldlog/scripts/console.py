"""What all commands share: where the database is, progress, and how a failure is told.

Answers go to standard output, so that they can be piped; progress and errors to standard error.
Exit codes: 0 done; 1 done, and the answer is no; 2 mistyped; 3 could not be done.
"""

from __future__ import annotations

import getpass
import logging
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import NoReturn, ParamSpec, Protocol, TypeVar

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

from foldlog.domain.errors import FoldlogError
from foldlog.domain.names import is_printable
from foldlog.domain.redaction import redacted

EXIT_NO = 1
EXIT_FAILED = 3

P = ParamSpec("P")
R = TypeVar("R")

out = Console()
err = Console(stderr=True)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    # soft_wrap: a path or an id that is to be copied must not be broken into lines
    err.print(f"[red]error:[/red] {escape(redacted(message))}", soft_wrap=True, highlight=False)
    sys.exit(code)


def _outside_errors() -> tuple[type[Exception], ...]:
    """Faults of the database, the disk or a file, which need no traceback to be understood."""
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    with suppress(ModuleNotFoundError):  # of the service
        from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS

        errors += DATABASE_ERRORS
    return errors


def report_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Tells an error of ours in a line, with its code; others keep their traceback."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FoldlogError as exc:
            fail(f"{exc} ({exc.code})")
        except BrokenPipeError:
            sys.exit(0)  # the reader of our output has seen enough
        except Exception as exc:
            if not isinstance(exc, _outside_errors()):
                raise
            fail(f"{type(exc).__name__}: {exc}")

    return wrapper


def with_database(command: Callable[..., R]) -> Callable[..., R]:
    """Options that say where the database is."""
    for option in (
        click.option(
            "--database-url",
            metavar="URL",
            help="Use this PostgreSQL instead of the embedded one. [env: FOLDLOG_DATABASE_URL]",
        ),
        click.option(
            "--data",
            metavar="DIR",
            help="Folder of the embedded PostgreSQL; a running `foldlog serve` on it is joined. "
            "[env: FOLDLOG_DATA] [default: foldlog-data]",
        ),
    ):
        command = option(command)
    return command


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # nobody whom the system knows by name
        return "an operator"


BY = click.option("--by", default=_user, show_default="the user of the system", help="Who does it.")


class Report(Protocol):
    """Told how far something has come, and of how much if that is known only now."""

    def __call__(self, completed: int, of: int | None = ..., /) -> None: ...


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Report]:
    """A bar on standard error; the block calls what it gets with how far it has come."""
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
        task = bar.add_task(description, total=total)

        def advance(completed: int, of: int | None = total) -> None:
            bar.update(task, completed=completed, total=of)

        yield advance


def print_rows(names: Iterable[str], rows: Iterable[Iterable[str | None]]) -> None:
    """A table for a pipe: a line each, with tabs between; what strangers named has none itself."""
    for row in (names, *rows):
        click.echo("\t".join(printable(" ".join((cell or "-").split())) for cell in row))


def printable(text: str) -> str:
    """The text with what a terminal might act on written out: `\\x1b`."""
    return "".join(
        char if is_printable(char) else char.encode("unicode_escape").decode() for char in text
    )


def quiet_logs() -> None:
    """Commands speak for themselves; of the log only what goes wrong."""
    import structlog  # the service's; not there where an app installed the client alone

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def spaced(number: int) -> str:
    return f"{number:,}"
