"""Implements `foldlog serve`, which runs the whole service, and `foldlog projector`, which runs one
projector.
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from socket import socket
from threading import Thread
from typing import Any

import click
from rich.markup import escape

from foldlog.api.http.logging import configure_logging
from foldlog.domain.access import TOKEN_BYTES, Grant, Role, new_token
from foldlog.infrastructure.files import make_folder, write_new
from foldlog.infrastructure.settings import (
    DATA,
    DATABASE_URL,
    KEYS,
    ORIGIN,
    Settings,
    read_settings,
)
from foldlog.infrastructure.signing.keys import make_keys, why_unsigned
from foldlog.infrastructure.supervisor import Child, Supervisor, exit_with_parent, is_child
from foldlog.infrastructure.wiring import database, projector, services
from foldlog.scripts.console import err, report_errors, with_database
from foldlog.scripts.server.process import POLL_SECONDS, is_ready, tune_gc
from foldlog.scripts.server.sockets import listen

#: The file in the data folder with the admin token of the first start.
ADMIN_FILE = "admin-token"
PROJECTOR_STOP_SECONDS = 10.0
#: A worker's own deadline is shorter, see server/web.py.
WEB_STOP_SECONDS = 30.0


@click.command("serve")
@click.option("--host", help="Listen on this address. [env: FOLDLOG_HOST] [default: 127.0.0.1]")
@click.option("--port", type=int, help="Listen on this port. [env: FOLDLOG_PORT] [default: 3653]")
@click.option(
    "--workers",
    type=int,
    help="Run N web processes. [env: FOLDLOG_WEB_WORKERS] [default: half of the cores, 1 to 4]",
    metavar="N",
)
@click.option(
    "--projectors",
    type=int,
    help="Run N projector processes. [env: FOLDLOG_PROJECTORS] [default: 1]",
    metavar="N",
)
@with_database
@report_errors
def serve_command(
    host: str | None,
    port: int | None,
    workers: int | None,
    projectors: int | None,
    data: str | None,
    database_url: str | None,
) -> None:
    """Run the whole service: database, projectors, web workers.

    The service uses the embedded database, unless --database-url names another one.

    SIGTERM or Ctrl-C stops the service: running requests are completed first, then the database
    stops. After a crash, start the service again: it recovers its data when it starts.
    """
    settings = read_settings(
        data=data,
        database_url=database_url,
        host=host,
        port=port,
        web_workers=workers,
        projectors=projectors,
    )
    settings.check_open_is_local()
    configure_logging(settings.log_format)
    # SIGTERM must unwind the stack until the supervisor handles signals itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sockets = listen(settings.host, settings.port, settings.web_workers)
    with database(settings, migrates=True, exclusive=True) as db:
        if settings.database_url is None:
            # With a database of its own, the operator makes the key (`foldlog keys new`): the
            # data folder of a container is often temporary, so each start would make another key.
            make_keys(settings.keys_folder)
        _warn_if_unsigned(settings)
        if settings.access == "tokens" and settings.admin_token is None:
            _make_first_token(db.url, settings)
        supervisor = Supervisor(_children(db.url, settings, sockets), database=db.embedded)
        Thread(target=_announce_when_ready, args=(settings,), daemon=True).start()
        code = supervisor.run()
    sys.exit(code)


def _warn_if_unsigned(settings: Settings) -> None:
    why = why_unsigned(settings.keys_folder)
    if why is not None:
        err.print(
            f"[yellow]nothing is signed:[/yellow] {escape(why)}", soft_wrap=True, highlight=False
        )


def _make_first_token(url: str, settings: Settings) -> None:
    """If the database has no token yet, makes an admin token that is valid in every space, and
    saves it in a file that only its owner can read.

    The token is shown on a terminal only, because standard error of a service goes into its logs.
    """
    text, digest = new_token(secrets.token_bytes(TOKEN_BYTES))
    grant = Grant(role=Role.ADMIN, name="first start")
    with services(url, settings) as parts:
        if parts.registry.grant_first(digest, grant, "foldlog serve") is None:
            return
    if err.is_terminal:
        err.print("The admin token; `foldlog token new` makes others:")
        err.print(f"  {text}", soft_wrap=True, highlight=False)
    file = settings.data / ADMIN_FILE
    try:
        make_folder(settings.data)
        write_new(file, text + "\n", 0o600)
        told = f"The admin token is saved in {file}"
    except OSError as exc:
        told = f"{file} cannot be written ({exc}): make an admin token with `foldlog token new`"
    err.print(escape(told), soft_wrap=True, highlight=False)


def _children(url: str, settings: Settings, sockets: list[socket]) -> list[Child]:
    env = {
        DATABASE_URL: url,
        DATA: str(settings.data),
        KEYS: str(settings.keys_folder),
        ORIGIN: settings.origin,
        "FOLDLOG_LOG_FORMAT": settings.log_format,
        "FOLDLOG_POOL_SIZE_MAX": str(settings.pool_size_max),
    }
    foldlog = [sys.executable, "-m", "foldlog"]
    projectors = [
        Child(
            name=f"projector-{number}",
            argv=[*foldlog, "projector"],
            env=env,
            stop_timeout_seconds=PROJECTOR_STOP_SECONDS,
        )
        for number in range(1, settings.projectors + 1)
    ]
    # A restarted worker gets the same socket, where new connections wait meanwhile.
    workers = [
        Child(
            name=f"web-{number}",
            argv=[*foldlog, "web", "--fd", str(listening.fileno())],
            env=env,
            fds=[listening.fileno()],
            memory_bytes_max=settings.web_memory_bytes_max,
            stop_timeout_seconds=WEB_STOP_SECONDS,
        )
        for number, listening in enumerate(sockets, start=1)
    ]
    return [*projectors, *workers]


def _announce_when_ready(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    while not is_ready(url):
        time.sleep(POLL_SECONDS)
    err.print(f"Foldlog answers at {url}  (its API: {url}/docs)", highlight=False)


@click.command("projector")
@with_database
@report_errors
def projector_command(data: str | None, database_url: str | None) -> None:
    """Run one projector process.

    `foldlog serve` starts its own projectors, so you need this command only for more of them.
    Several projectors can run at the same time, on any machines that reach the database. They
    divide the spaces among themselves.
    """
    exit_with_parent()
    settings = read_settings(data=data, database_url=database_url)
    configure_logging(settings.log_format)
    if not is_child():  # `foldlog serve` has said so
        _warn_if_unsigned(settings)
    with database(settings) as db, projector(db.url, settings) as (run, wakeups):

        def stop(*_: Any) -> None:
            wakeups.close()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        tune_gc()
        run()
