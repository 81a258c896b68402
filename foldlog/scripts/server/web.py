"""Runs a web worker, which is a process that serves requests on one event loop. `foldlog serve`
runs several workers on one address."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from functools import partial
from typing import Any, cast

import click
import uvicorn

from foldlog.api.http.logging import configure_logging, write_logs_behind
from foldlog.api.server import AsgiApp, AsgiServer
from foldlog.infrastructure.settings import Settings, read_settings
from foldlog.infrastructure.supervisor import exit_with_parent
from foldlog.infrastructure.wiring import database
from foldlog.scripts.console import report_errors, with_database

from .application import application
from .process import tune_gc
from .protocol import NO_CONNECTION_LIMITS, BoundedProtocol, Connections
from .sockets import listen

KEEP_ALIVE_SECONDS = 75
#: how long open requests may take to end when the service stops
STOP_SECONDS = 20
#: the same for a client that has stopped reading its response
STALLED_STOP_SECONDS = 5
#: The interval at which threads hand over Python's global lock, in seconds. With the default of
#: 5 ms, the event loop and the committers would wait for each other longer than a request takes.
SWITCH_SECONDS = 0.0005


class Server(uvicorn.Server):
    """A uvicorn server that first ends all streams and all requests that wait for new events when
    it shuts down. Then it waits for the other open requests, as uvicorn does. It also closes
    connections whose client has stopped reading."""

    def __init__(self, config: uvicorn.Config, server: AsgiServer | None = None):
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._server is not None:
            self._server.end_waiting()
        asyncio.get_running_loop().call_later(STALLED_STOP_SECONDS, self._cut_off_the_stalled)
        await super().shutdown(sockets)

    def _cut_off_the_stalled(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.cut_off_if_stalled()


def run(
    app: AsgiApp, listening: socket.socket, connections: Connections = NO_CONNECTION_LIMITS
) -> None:
    """Serves the application on a listening socket. When the process gets SIGTERM, the server
    stops, and the function raises `SystemExit`."""
    sys.setswitchinterval(SWITCH_SECONDS)
    tune_gc()
    # Uvicorn raises the signal that stopped it again. This handler turns it into an exception, so
    # that the callers' `with` blocks are left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server_of(app, connections).run([listening])


def server_of(app: AsgiApp, connections: Connections = NO_CONNECTION_LIMITS) -> Server:
    config = uvicorn.Config(
        cast(Any, app),
        loop="uvloop",
        http=cast(Any, partial(BoundedProtocol, connections)),
        ws="none",
        lifespan="off",
        access_log=False,  # foldlog.api logs each request
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return Server(config, app if isinstance(app, AsgiServer) else None)


@click.command("web")
@click.option("--host", help="Address to listen on. [env: FOLDLOG_HOST] [default: 127.0.0.1]")
@click.option("--port", type=int, help="[env: FOLDLOG_PORT] [default: 3653]")
@click.option(
    "--fd",
    type=int,
    help="File descriptor of a listening socket, inherited from the parent process.",
)
@with_database
@report_errors
def web_command(
    host: str | None, port: int | None, fd: int | None, data: str | None, database_url: str | None
) -> None:
    """Run one web worker, in addition to those that `foldlog serve` runs.

    All web workers serve the same spaces. A worker that you start with this command needs its own
    address, so set `--host` or `--port`.
    """
    exit_with_parent()
    settings = read_settings(data=data, database_url=database_url, host=host, port=port)
    configure_logging(settings.log_format)
    if fd is None:
        settings.check_open_is_local()
    write_logs_behind()
    with database(settings) as db:
        [listening] = (
            listen(settings.host, settings.port) if fd is None else [socket.socket(fileno=fd)]
        )
        serve(db.url, settings, listening)


def serve(url: str, settings: Settings, listening: socket.socket) -> None:
    with application(url, settings) as server:
        run(server, listening, Connections(settings.limits, settings.trusted_proxies))
