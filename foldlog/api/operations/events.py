"""The operations that pull events after a cursor, and that stream new events."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from flask import Blueprint

from foldlog.api.http.problems import problem_reply
from foldlog.api.http.rates import Lease
from foldlog.api.http.replies import Reply, joined, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import Lines, operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.queries import events_query, stream_query
from foldlog.api.shapes.reading import read_last_event_id
from foldlog.domain.access import Right, is_revocation
from foldlog.domain.errors import (
    LogBehind,
    LogChanged,
)
from foldlog.domain.limits import Limits
from foldlog.domain.ports import EventStore, Range, RangeQuery

from .problems import READ_PROBLEMS, Problems

PROBLEMS: Problems = (*READ_PROBLEMS, LogBehind, LogChanged)
STREAM = Lines(
    "Server-Sent Events. The `data` of each message is a page of the log.",
    {"data of a message": (answers.Range, examples.RANGE)},
)
EVENT_STREAM = "text/event-stream"
#: The time before a client reconnects, in ms.
RECONNECT_MS = 1_000


def range_query(parameters: Mapping[str, Any], device: str | None) -> RangeQuery:
    """The query of a pull, from the query string or from the body of a sync. `device` pulls."""
    return RangeQuery(
        after=parameters["after"],
        limit=parameters["limit"],
        mark=parameters.get("mark"),
        collections=parameters.get("collections"),
        short_for_device=None if parameters.get("own") == "full" else device,
    )


async def read_range(request: Request, store: EventStore, space: str, query: RangeQuery) -> Range:
    """Reads the page of the log that a request wants.

    Raises `RateLimited` if the caller read too much while the request waited for a thread.
    """

    def read() -> Range:
        request.rates.check_waited(request.subject)
        return store.range_after(space, query)

    page = store.cached_range(space, query)
    return await request.run(read) if page is None else page


def events_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("events", __name__)

    @bp.get("/v1/spaces/<space>/events")
    @operation(
        Right.READ,
        from_cache=True,
        query=events_query(limits),
        answer=answers.Range,
        example=examples.RANGE,
        problems=PROBLEMS,
    )
    async def events(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Pull the events after a cursor.

        The events come in the order of the log, without gaps. The list is empty if there are no new
        events. While `more` is true, pull again after `through` with its `mark`. With `wait`, the
        response waits until there is a new event, or until that many seconds have passed.
        """
        wanted = range_query(query, query.get("device"))
        if not query["wait"] or request.method == "HEAD":
            page = await read_range(request, store, space, wanted)
            if page.events:
                await request.readmit()
            return json_reply(range_answer(page))
        deadline = time.monotonic() + query["wait"]
        with request.hold(), request.watch(store, space) as log_watch:
            page = await read_range(request, store, space, wanted)
            while not page.events and not page.more and not log_watch.is_over:
                rest = deadline - time.monotonic()
                if rest <= 0 or not await log_watch.wait(rest):
                    break
                wanted = msgspec.structs.replace(wanted, after=page.through, mark=page.mark)
                page = await read_range(request, store, space, wanted)
        if page.events:
            await request.readmit(since=_revoked_since(page))
        return json_reply(range_answer(page))

    @bp.get("/v1/spaces/<space>/events/stream")
    @operation(
        Right.READ,
        from_cache=True,
        query=stream_query(limits),
        answer=STREAM,
        media_type=EVENT_STREAM,
        problems=PROBLEMS,
    )
    async def stream(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Follow the log as Server-Sent Events.

        The stream sends the stored events after the cursor, and then each new event. A message is a
        page as a pull returns it, but of fewer bytes. Its `id` is the cursor after it: a client
        that reconnects with it as `Last-Event-ID` misses no event. The service sends a comment when
        it has no events, so that both sides notice a broken connection. The service ends a stream
        regularly after some minutes: connect again. A message of the type `problem` contains a
        problem document, and ends the stream; do not reconnect.
        """
        wanted = msgspec.structs.replace(
            range_query(query, query.get("device")), bytes_max=limits.stream_message_bytes_max
        )
        last_id = read_last_event_id(request.header("last-event-id"))
        if last_id is not None:
            wanted = msgspec.structs.replace(wanted, after=last_id, mark=None)
        lease = request.hold()
        with lease.unless_it_fails():
            first = await read_range(request, store, space, wanted)
        body = _messages(request, store, space, wanted, first, limits, lease)
        return Reply(body, EVENT_STREAM, headers={"X-Accel-Buffering": "no"})

    return bp


def _revoked_since(page: Range) -> int | None:
    """The seq that an authorization check must include before the caller may see this page."""
    return page.head if any(map(is_revocation, page.events)) else None


class _Authorization:
    """Checks repeatedly that the reader of a stream is still authorized.

    The first check follows the read of the first page, so it finds every earlier revocation. Later
    revocations are events, and a page with a revocation is checked before it is sent. The log has
    no events for other changes, such as the expiry of a token; a periodic check finds them.
    """

    def __init__(self, request: Request, limits: Limits):
        self._request = request
        self._seconds = limits.stream_heartbeat_seconds
        self._checked_at: float | None = None

    async def check(self, page: Range) -> None:
        """Raises the errors of `Access.admit`."""
        now = time.monotonic()
        since = page.head if self._checked_at is None else _revoked_since(page)
        if since is not None or self._checked_at is None or now - self._checked_at >= self._seconds:
            await self._request.readmit(from_cache=True, since=since)
            self._checked_at = now


async def _messages(
    request: Request,
    store: EventStore,
    space: str,
    wanted: RangeQuery,
    page: Range,
    limits: Limits,
    lease: Lease,
) -> AsyncIterator[bytes]:
    # A random lifetime spreads the reconnects of streams that began together after a restart.
    lifetime = limits.stream_seconds_max * random.uniform(0.8, 1.0)  # noqa: S311
    deadline = time.monotonic() + lifetime
    with lease, request.watch(store, space) as log_watch:
        yield b"retry: %d\n\n" % RECONNECT_MS
        authorization = _Authorization(request, limits)
        is_watched = False  # the first page was read before the watch began
        try:
            while not log_watch.is_over:
                await authorization.check(page)
                if page.through > wanted.after:
                    wanted = msgspec.structs.replace(wanted, after=page.through, mark=page.mark)
                    # Only the message stays in memory while a slow reader receives it.
                    message, page.events = _message(page), []
                    yield message
                    del message
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return
                pause = min(limits.stream_heartbeat_seconds, rest)
                if is_watched and not page.more and not await log_watch.wait(pause):
                    yield b":\n\n"
                    continue
                next_page = store.cached_range(space, wanted)
                if next_page is None:
                    next_page = await request.run(store.range_after, space, wanted)
                page = next_page
                is_watched = True
        except Exception as exc:
            # The status 200 was sent already, so a message reports the error.
            yield b"event: problem\ndata: %b\n\n" % problem_reply(exc, request).content


def _message(page: Range) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (page.through, msgspec.json.encode(range_answer(page)))


def range_answer(page: Range) -> answers.Range:
    return answers.Range(
        page.log, page.head, joined(page.events), page.through, page.mark, page.more
    )
