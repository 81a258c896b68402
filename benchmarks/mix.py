"""A fixed mix of work in one process, free of sockets and clocks.

`instructions.py` starts it and counts its instructions. The service's own `serve` wires the parts,
and only the listening server is replaced. Each step is announced on stdout, and starts at a line
on stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import msgspec
import psycopg
from psycopg.rows import tuple_row

from foldlog.api.http.logging import configure_logging
from foldlog.domain.events import decode_event
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.settings import read_settings
from foldlog.scripts.server import web

from . import echo
from .bare import SELECT_PAGE
from .errors import BenchmarkFailed
from .workload import Workload

WARM = 20
PAGE = 1_000


class Order(msgspec.Struct):
    """The amounts and spaces of the work."""

    url: str
    log: str  #: the space that is pulled and rebuilt
    events: int  #: in the log
    space: str  #: the space for pushes
    times: int  #: repetitions of each call


async def call(app: Any, method: str, path: str, body: bytes = b"") -> bytes:
    """A request in the form that uvicorn passes."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    parts: list[bytes] = []
    status = 0

    async def receive() -> dict[str, Any]:
        return waiting.pop() if waiting else await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    if status != 200:
        raise BenchmarkFailed(f"{method} {path}: {status} {b''.join(parts)[:1_000]!r}")
    return b"".join(parts)


async def steps(app: Any, order: Order) -> AsyncIterator[tuple[str, int]]:
    """Yields each step after its work: its name, and the divisor of its instructions."""
    path = f"/v1/spaces/{order.space}/changesets"
    events = f"/v1/spaces/{order.log}/events"
    workload = Workload(order.space)
    newest = json.loads(await call(app, "GET", f"{events}?after={order.events}"))
    idle = f"{events}?after={order.events}&mark={newest['mark']}"
    pages = range(0, order.events, PAGE)
    hundreds = max(1, order.times // 10)
    one, hundred = workload.push(), workload.push(100)
    for target in (echo.FLASK, echo.BARE):  # the first requests create threads and caches
        await call(echo.app, "POST", target, one)
    for body in (one, hundred, *(workload.push() for _ in range(WARM))):
        await call(app, "POST", path, body)
    await call(app, "GET", idle)
    singles = [workload.push() for _ in range(order.times)]
    batches = [workload.push(100) for _ in range(hundreds)]

    yield "ready", 1
    for body in singles:
        await call(app, "POST", path, body)
    yield "push1", order.times
    for body in batches:
        await call(app, "POST", path, body)
    yield "push100", hundreds * 100
    for after in pages:
        await call(app, "GET", f"{events}?after={after}&limit={PAGE}")
    yield "pull", order.events
    for _ in range(order.times):
        await call(app, "GET", idle)
    yield "poll", order.times
    for body in singles:
        await call(echo.app, "POST", echo.FLASK, body)
    yield "flask", order.times
    for body in singles:
        await call(echo.app, "POST", echo.BARE, body)
    yield "bare", order.times
    for body in batches:
        msgspec.json.encode(msgspec.json.decode(body))
    yield "json", hundreds * 100
    with psycopg.connect(order.url, row_factory=tuple_row) as database:
        states = []
        with database.cursor(binary=True) as cursor:
            for after in pages:
                rows = cursor.execute(SELECT_PAGE, (order.log, after, PAGE)).fetchall()
                states += [state for _, state in rows]
                b",".join([state for _, state in rows])
    yield "select", order.events
    with Datastore(order.url, pool_size_max=2) as datastore:
        Rebuilder(datastore, MasterProjection()).rebuild(order.log, verify=False, fresh=True)
    yield "rebuild", order.events
    for state in states:
        decode_event(state)
    yield "decode", order.events


async def mix(app: Any, order: Order) -> None:
    async for name, number in steps(app, order):
        print(json.dumps([name, number]), flush=True)
        sys.stdin.readline()


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    configure_logging("json")

    def serving(app: Any, *_: object) -> None:
        asyncio.run(mix(app, order))

    with patch.object(web, "run", serving):
        web.serve(order.url, read_settings(database_url=order.url), None)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
