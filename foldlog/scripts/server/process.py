"""Runs the service as a separate process, for the demo, tests and benchmarks."""

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
    """Makes Python's garbage collector run less often; a server process calls it after its start.

    The objects of the start live as long as the process, and requests make few reference cycles, so
    most collections would be in vain.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def environment() -> dict[str, str]:
    """Returns our environment minus the database's URL, because each service starts its own."""
    return {name: value for name, value in os.environ.items() if name != DATABASE_URL}


def is_ready(url: str) -> bool:
    """Asks `/readyz` once, for up to five seconds."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def serving(
    command: Sequence[str], data: str, port: int | None = None, env: Mapping[str, str] = NO_ENV
) -> Iterator[str]:
    """Runs the service on a folder during the block and gives its URL; stops it by SIGTERM.

    Raises `OperatorError` if the service is not ready within `READY_SECONDS_MAX` seconds.
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
    """Returns a port of this machine that stays reserved until this process ends.

    The reserving socket stays bound and never listens, so the system gives the port to no other
    process. A server that sets SO_REUSEADDR, as the service does, can still bind it on Linux.
    Other systems refuse the second socket: the port is released there at once.
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
