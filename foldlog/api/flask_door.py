"""The door of Flask: every operation, a thread for each request.

It is what describes the service (routes, OpenAPI) and all that a WSGI server needs; in front of it
asgi.py takes the calls that are made most. Both answer alike: tests/acceptance asks both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from flask import Flask, Response, g
from flask import request as flask_request
from werkzeug.exceptions import HTTPException

from foldlog.api.http.access import Access
from foldlog.api.http.compression import deflated, deflated_once, deflated_pieces, encoding_for
from foldlog.api.http.cors import Cors
from foldlog.api.http.logging import log_request, path_template
from foldlog.api.http.problems import (
    MethodNotAllowed,
    NoSuchPath,
    UnsupportedMediaType,
    problem_reply,
)
from foldlog.api.http.rates import NO_RATES, UNLIMITED_PATH, Network, Proxies, Rates, rate_key
from foldlog.api.http.replies import Reply
from foldlog.api.http.requests import LogWatch, Request, check_given_once, run_now
from foldlog.api.http.threads import NEXT_TURN_SECONDS_MAX, TURN_SECONDS_MAX, Turns
from foldlog.domain.errors import FoldlogError, InvalidRequest
from foldlog.domain.names import is_space
from foldlog.domain.ports import EventStore

from .operation import Operation

T = TypeVar("T")

NO_CORS = Cors()
PIECE_BYTES = 64 * 2**10
#: of threads that turn to the database, if nobody says how many connections there are
TURNS_MAX = 64
#: threads that may wait for the master table at a time, of the 64 that there are for everybody
WAITING_MAX = 16
_PLACES_TO_WAIT = threading.BoundedSemaphore(WAITING_MAX)
#: Answers are what users wrote: no cache keeps them, no browser guesses what they are, runs or
#: loads what they say, shows them inside of another page, or hands them to one unasked.
HEADERS = {
    "Cache-Control": "private, no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: What Flask and Werkzeug refuse by themselves, in our words.
ERROR_OF_STATUS: dict[int, type[FoldlogError]] = {
    HTTPStatus.NOT_FOUND: NoSuchPath,
    HTTPStatus.METHOD_NOT_ALLOWED: MethodNotAllowed,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: UnsupportedMediaType,
}


class FlaskRequest(Request):
    """The request of this thread, which waits by itself."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.method = flask_request.method
        self.query_string = flask_request.query_string
        self._headers = flask_request.headers  # a stream asks when Flask's own request is over
        super().__init__()

    def header(self, name: str) -> str:
        return self._headers.get(name, "")

    async def pieces(self) -> AsyncIterator[bytes]:
        while piece := flask_request.stream.read(PIECE_BYTES):
            yield piece

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        return self._run_within(TURN_SECONDS_MAX, function, *args)

    async def run_on(self, function: Callable[..., T], *args: Any) -> T:
        """As `run`, of an answer that has begun."""
        return self._run_within(NEXT_TURN_SECONDS_MAX, function, *args)

    def _run_within(self, seconds_max: float, function: Callable[..., T], *args: Any) -> T:
        with self._turns.one(rate_key(self), seconds_max):
            return function(*args)

    async def look_up(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def pause(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True

    @contextmanager
    def place_to_wait(self) -> Iterator[bool]:
        has_place = _PLACES_TO_WAIT.acquire(blocking=False)
        try:
            yield has_place
        finally:
            if has_place:
                _PLACES_TO_WAIT.release()

    async def outcome(self, future: Future[T]) -> T:
        return future.result()

    def watch(self, store: EventStore, space: str) -> LogWatch:
        return _ThreadLogWatch(store, space)


class _ThreadLogWatch(LogWatch):
    def __init__(self, store: EventStore, space: str):
        self._grown = threading.Event()
        self._unwatch = store.watch(space, self._grown.set)

    async def wait(self, seconds: float) -> bool:
        grown = self._grown.wait(max(0.0, seconds))
        self._grown.clear()
        return grown

    @property
    def is_over(self) -> bool:
        return False  # the server closes the answer's iterator

    def close(self) -> None:
        self._unwatch()


class FlaskDoor(Flask):
    """Calls operations, and answers every refusal in our form."""

    def __init__(
        self,
        import_name: str,
        access: Access,
        cors: Cors = NO_CORS,
        rates: Rates = NO_RATES,
        trusted_proxies: tuple[Network, ...] = (),
        turns: Turns | None = None,
    ):
        super().__init__(import_name, static_folder=None)
        self.access = access
        self.cors = cors
        self.rates = rates
        self.proxies = Proxies(trusted_proxies)
        self._turns = turns or Turns(TURNS_MAX)
        self.before_request(self._begin)
        self.before_request(self._answer_preflight)
        self.after_request(self._allow_origin)  # the last one comes first
        self.after_request(_end)
        self.register_error_handler(HTTPException, _answer_http)
        self.register_error_handler(Exception, _answer_error)

    def _begin(self) -> None:
        g.call = FlaskRequest(self._turns)
        forwarded_for = ",".join(flask_request.headers.getlist("x-forwarded-for"))
        address = self.proxies.client_address(flask_request.remote_addr or "", forwarded_for)
        scope = flask_request.environ.get("asgi.scope")
        # Whatever came by the door before this one was counted there.
        is_counted = scope is None and flask_request.path != UNLIMITED_PATH
        g.call.hold_to(self.rates, address, is_counted=is_counted)
        # A WSGI server has put a comma between two: no type, encoding or token of ours has one.
        check_given_once((scope or {}).get("headers", ()))

    def _answer_preflight(self) -> Response | None:
        reply = self.cors.preflight(g.call.method, g.call.header)
        return None if reply is None else _answer(reply)

    def _allow_origin(self, response: Response) -> Response:
        for name, value in self.cors.headers(g.call.header("origin")).items():
            response.headers.add(name, value)
        return response

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return (
            partial(_call, func, self.access)
            if isinstance(func, Operation)
            else super().ensure_sync(func)
        )


def _call(operation: Operation, access: Access, **path: str) -> Response:
    try:
        # Werkzeug would put U+FFFD for a byte that is none of UTF-8's.
        _path_bytes(flask_request.environ).decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest("the path is not UTF-8") from exc
    return _answer(run_now(operation(g.call, path, access)))


def _path_bytes(environ: Mapping[str, Any]) -> bytes:
    raw: bytes | None = environ.get("asgi.scope", {}).get("raw_path")
    if raw is not None:  # the path of a request that came by way of ASGI was decoded there
        return unquote_to_bytes(raw)
    path: str = environ.get("PATH_INFO", "")
    return path.encode("latin-1")  # as WSGI hands us bytes


def _answer(reply: Reply) -> Response:
    encoding = encoding_for(reply, g.call.header("accept-encoding"))
    body = reply.body
    if isinstance(body, AsyncIterator):
        body = _in_thread(body)
    elif not isinstance(body, bytes):
        body = _while_admitted(g.call, body)
    if encoding is not None:
        if isinstance(body, bytes):
            body = (deflated_once if reply.is_kept else deflated)(body, encoding)
        else:
            body = deflated_pieces(body, encoding)
    return Response(body, reply.status, reply.headers, content_type=reply.media_type)


def _in_thread(pieces: AsyncIterator[bytes]) -> Iterator[bytes]:
    try:
        while piece := run_now(anext(pieces, b"")):
            yield piece
    finally:
        run_now(pieces.aclose())  # type: ignore[attr-defined]


def _while_admitted(request: FlaskRequest, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """As `LoopRequest.read_in_threads`; whoever may not have the rest misses its end."""
    try:
        while piece := run_now(request.run_on(next, pieces, b"")):
            run_now(request.readmit())
            yield piece
    except FoldlogError as exc:
        problem_reply(exc, request)  # it has begun well: all that can be done is to note it


def _answer_error(error: Exception) -> Response:
    return _answer(problem_reply(error, g.call))


def _answer_http(error: HTTPException) -> Response:
    """A refusal of Flask's own. Its headers are kept: 405 says what is allowed."""
    if error.code is None or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer(problem_reply(error, g.call))
    kind = ERROR_OF_STATUS.get(error.code, InvalidRequest)
    problem = kind() if error.code in ERROR_OF_STATUS else kind(error.description)
    response = _answer(problem_reply(problem, g.call))
    response.status_code = error.code
    for name, value in error.get_headers():
        if name != "Content-Type":
            response.headers[name] = value
    return response


def _end(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["X-Request-Id"] = g.call.id
    space = (flask_request.view_args or {}).get("space", "")
    rule = flask_request.url_rule
    bytes_out = None if response.is_streamed else response.calculate_content_length()
    g.call.rates.count_answer(g.call, bytes_out or 0)
    log_request(
        g.call,
        path=path_template(rule.rule) if rule else None,
        space=space if is_space(space) else None,
        status=response.status_code,
        bytes_out=bytes_out,
    )
    return response
