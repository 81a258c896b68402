"""Defines two operations: one returns a page of the events after a cursor, and one streams new
events."""

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
from foldlog.api.http.threads import Disconnected
from foldlog.api.operation import Lines, operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.queries import events_query, stream_query
from foldlog.api.shapes.reading import read_last_event_id
from foldlog.domain.access import Right, is_revocation
from foldlog.domain.errors import LogBehind, LogChanged, LogIncomplete
from foldlog.domain.limits import INTEGER_MAX, Limits
from foldlog.domain.ports import EventStore, Range, RangeQuery

from .problems import READ_PROBLEMS, Problems

PROBLEMS: Problems = (*READ_PROBLEMS, LogBehind, LogChanged, LogIncomplete)
STREAM = Lines(
    "Server-Sent Events. The `data` of each message is a page of the log.",
    {"data of a message": (answers.Range, examples.RANGE)},
)
EVENT_STREAM = "text/event-stream"
#: The time before a client reconnects, in ms.
RECONNECT_MS = 1_000


def range_query(parameters: Mapping[str, Any], device: str | None) -> RangeQuery:
    """Returns the `RangeQuery` with which the event store reads a page of the log. `parameters` are
    the query parameters of a pull, or the body of a sync.

    `device` is the device that pulls. The page leaves out the `ops` of this device's own
    changesets, unless the parameter `own` is `full`.
    """
    return RangeQuery(
        after=parameters["after"],
        limit=parameters["limit"],
        mark=parameters.get("mark"),
        collections=parameters.get("collections"),
        short_for_device=None if parameters.get("own") == "full" else device,
        bytes_max=parameters.get("bytes", INTEGER_MAX),
    )


async def read_range(request: Request, store: EventStore, space: str, query: RangeQuery) -> Range:
    """Returns a page of the log as a `Range`. The page comes from the cache of the event store. If
    the cache lacks the page, the function reads the page from the database in a thread.

    Raises `RateLimited` if other requests of the client used up a rate limit while this request
    waited for a thread.
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

        The response has a page of events in the order of the log. The page has every event after
        the cursor up to the seq `through`, except the events that the parameters of the request
        exclude. If there are no new events, the list is empty. While `more` is true, pull again:
        send the `through` of this page as `after`, and its `mark` as `mark`. With `wait`, the
        service waits up to that many seconds for a new event before it responds.
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
        """Follow the log with Server-Sent Events.

        The stream first sends the stored events after the cursor, and then each new event. The data
        of each message is a page in the same format as the response of a pull, with a smaller
        maximum size. The `id` of a message is the cursor after that page: a client that reconnects
        with this id in the header `Last-Event-ID` continues with the next event.

        If there are no events, the service regularly sends a comment, so that both sides notice a
        broken connection. The service ends each stream after some minutes, and the client then
        connects again. If an error occurs, the service sends a message of the type `problem` with a
        problem document, and ends the stream. The client should then handle the problem instead of
        reconnecting.
        """
        wanted = range_query(query, query.get("device"))
        bytes_max = min(wanted.bytes_max, limits.stream_message_bytes_max)
        wanted = msgspec.structs.replace(wanted, bytes_max=bytes_max)
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
    """Returns the seq of the last event of the log (`head`) if the page contains a revocation.
    Otherwise returns `None`.

    If the result is a seq, pass it to the access check as `since` before you send the page. The
    check then ignores callers that were cached before the revocation.
    """
    return page.head if any(map(is_revocation, page.events)) else None


class _Authorization:
    """Checks repeatedly that the caller of a stream still has access.

    The first check comes after the first page was read, so it finds every earlier revocation. A
    later revocation is an event in the log, so the caller is also checked before a page with such
    an event is sent. Other changes, such as the expiry of a token, are found by a check every
    `stream_heartbeat_seconds`.
    """

    def __init__(self, request: Request, limits: Limits):
        self._request = request
        self._seconds = limits.stream_heartbeat_seconds
        self._checked_at: float | None = None

    async def check(self, page: Range) -> None:
        """Checks the access of the caller before `page` is sent. The check is skipped if `page` has
        no revocation and the last check was less than `stream_heartbeat_seconds` ago.

        Raises the errors of `Access.admit` if the caller has lost access.
        """
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
        except Disconnected:
            return
        except Exception as exc:
            # The status 200 was sent already, so a message reports the error.
            yield b"event: problem\ndata: %b\n\n" % problem_reply(exc, request).content


def _message(page: Range) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (page.through, msgspec.json.encode(range_answer(page)))


def range_answer(page: Range) -> answers.Range:
    return answers.Range(
        page.log, page.head, joined(page.events), page.through, page.mark, page.more
    )
