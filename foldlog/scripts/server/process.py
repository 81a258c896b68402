"""Runs the service as a child process. The demo, the tests and the benchmarks use it."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.settings import DATABASE_URL

POLL_SECONDS = 0.1
#: Python's threshold of new objects per garbage collection.
GC_THRESHOLD = 20_000
READY_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60
NO_ENV: Mapping[str, str] = {}

#: open sockets that reserve ports
_reserving: list[socket.socket] = []


def tune_gc() -> None:
    """Makes Python's garbage collector run less often. A server process calls it once after its
    start.

    Most collections would free little memory: the objects that exist after the start live as long
    as the process, and requests create few reference cycles.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def environment() -> dict[str, str]:
    """Returns the environment variables for a child process as a dict: those of this process,
    except the variable with the URL of the database.

    Without this URL, the child process starts an embedded database of its own.
    """
    return {name: value for name, value in os.environ.items() if name != DATABASE_URL}


def is_ready(url: str) -> bool:
    """Returns whether the service at `url` answers a request for `/readyz` with status 200 within
    five seconds."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def serving(
    command: Sequence[str], data: str, port: int | None = None, env: Mapping[str, str] = NO_ENV
) -> Iterator[str]:
    """Runs `foldlog serve` as a child process during the `with` block. In `with serving(...) as
    url`, `url` is the URL of the service.

    `command` is the command line that starts Foldlog, without `serve`. `data` is the folder for the
    data and the log file of the child process. At the end of the block, the child process gets
    SIGTERM. If it still runs after `STOP_SECONDS_MAX` seconds, it is killed. Raises `OperatorError`
    if the service is not ready within `READY_SECONDS_MAX` seconds.
    """
    port = port or reserve_port()
    folder = Path(data)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        service = subprocess.Popen(
            [*command, "serve", "--data", data, "--port", str(port)],
            stdout=file,
            stderr=file,
            env={**environment(), **env},
            start_new_session=True,
        )
        try:
            _wait_until_ready(service, url, log)
            yield url
        finally:
            service.send_signal(signal.SIGTERM)
            try:
                service.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                service.kill()


def _wait_until_ready(service: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if service.poll() is not None:
            break
        if is_ready(url):
            return
        time.sleep(POLL_SECONDS)
    tail = log.read_text("utf-8", "replace")[-2_000:]
    raise OperatorError(f"the service did not come up; its log {log} ends with:\n{tail}")


def reserve_port() -> int:
    """Returns a free port of this machine. On Linux, the port stays reserved until this process
    ends.

    To reserve the port, a socket of this process stays bound to it, so other processes that ask for
    a free port get a different one. On Linux, a server that sets SO_REUSEADDR, such as Foldlog, can
    still listen on the port. On other operating systems the server would get an error, so the
    function closes the socket at once and the port is not reserved.
    """
    reserving = socket.socket()
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserving.bind(("127.0.0.1", 0))
    port = int(reserving.getsockname()[1])
    if sys.platform == "linux":
        _reserving.append(reserving)
    else:
        reserving.close()
    return port
