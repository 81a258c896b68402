"""Echoes the request body, on the server that the service uses: a baseline for its speed.

One path is answered by Flask in threads behind an ASGI bridge, another by a bare ASGI callable. A
third path is a stream, on which a line is sent now and then: a baseline for clients that wait.

`python -m benchmarks.echo FD` serves it on a socket that listens already.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from itertools import count
from typing import Any

from a2wsgi import WSGIMiddleware
from flask import Flask, Response, request

from foldlog.scripts.server.web import run

FLASK, BARE, STREAM, ANNOUNCE = "/echo", "/bare", "/stream", "/announce"

#: threads that answer Flask's requests
THREADS = 64

flask = Flask(__name__, static_folder=None)


@flask.post(FLASK)
def echo() -> Response:
    return Response(request.get_data(), mimetype="application/json")


def _wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    # The request's end is the body's end, so a chunked body is read as well.
    environ["wsgi.input_terminated"] = True
    return flask.wsgi_app(environ, start_response)


_by_flask = WSGIMiddleware(_wsgi, workers=THREADS, send_queue_size=1)
_streams: set[asyncio.Future[bytes]] = set()
_numbers = count(1)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] == FLASK:
        await _by_flask(scope, receive, send)
    elif scope["path"] == STREAM:
        await _stream(receive, send)
    else:
        body = await _body(receive)
        if scope["path"] == ANNOUNCE:
            _announce(body)
        await _answer(send, body)


def _announce(body: bytes) -> None:
    piece = b"id: %d\ndata: %b\n\n" % (next(_numbers), body)
    for waiting in _streams:
        waiting.set_result(piece)
    _streams.clear()


async def _body(receive: Any) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _answer(send: Any, body: bytes) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(receive: Any, send: Any) -> None:
    """Server-Sent Events: what is announced, as it is."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
    await receive()  # the request, which is empty
    gone = asyncio.ensure_future(receive())
    while not gone.done():
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        _streams.add(waiting)
        await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            message = {"type": "http.response.body", "body": waiting.result(), "more_body": True}
            await send(message)
        else:
            _streams.discard(waiting)


if __name__ == "__main__":
    run(app, socket.socket(fileno=int(sys.argv[1])))
