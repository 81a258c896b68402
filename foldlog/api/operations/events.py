"""Pulling: the events after a cursor, and those to come."""

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
    FoldlogError,
    LogBehind,
    LogChanged,
    StorageUnavailable,
    UnknownSpace,
)
from foldlog.domain.limits import Limits
from foldlog.domain.ports import EventStore, Range, RangeQuery

PROBLEMS: tuple[type[FoldlogError], ...] = (UnknownSpace, LogBehind, LogChanged, StorageUnavailable)
STREAM = Lines(
    "Server-Sent Events. The `data` of each message is a page of the log.",
    {"data of a message": (answers.Range, examples.RANGE)},
)
EVENT_STREAM = "text/event-stream"
#: how long a client shall wait before it connects again, in ms
RECONNECT_MS = 1_000


def range_query(asked: Mapping[str, Any], device: str | None) -> RangeQuery:
    """What a pull asks for, in a query or in the body of a sync; `device` is who pulls."""
    return RangeQuery(
        after=asked["after"],
        limit=asked["limit"],
        mark=asked.get("mark"),
        collections=asked.get("collections"),
        short_for_device=None if asked.get("own") == "full" else device,
    )


async def read_range(request: Request, store: EventStore, space: str, query: RangeQuery) -> Range:
    """The page that a request asks for.

    Raises `RateLimited`: of many that were let in at once, and wait for a thread, each may ask for
    a large page, and those that were read meanwhile count.
    """

    def read() -> Range:
        request.rates.check_waited(request)
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

        In the order of the log, without a hole. Nothing new is an empty list. While `more` is
        true, go on after `through` with its `mark`. With `wait`, the answer is held back until
        there is something, or so many seconds are over.
        """
        asked = range_query(query, query.get("device"))
        if not query["wait"] or request.method == "HEAD":
            page = await read_range(request, store, space, asked)
            if page.events:
                await request.readmit()
            return json_reply(range_answer(page))
        deadline = time.monotonic() + query["wait"]
        with request.rates.hold(request), request.watch(store, space) as growth:
            page = await read_range(request, store, space, asked)
            while not page.events and not page.more and not growth.is_over:
                rest = deadline - time.monotonic()
                if rest <= 0 or not await growth.wait(rest):
                    break
                asked = msgspec.structs.replace(asked, after=page.through, mark=page.mark)
                page = await read_range(request, store, space, asked)
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

        First what is there after the cursor, then what comes, as it comes. Each message is a page
        as a pull would get it, but of fewer bytes; its `id` is the cursor after it, and who
        connects again with it as `Last-Event-ID` misses nothing. A comment comes when nothing else
        does, so that a broken connection is noticed. The stream ends now and then, in good order:
        connect again. A message of the type `problem` holds a problem document, and ends it for
        good.
        """
        asked = msgspec.structs.replace(
            range_query(query, query.get("device")), bytes_max=limits.stream_message_bytes_max
        )
        last_id = read_last_event_id(request.header("last-event-id"))
        if last_id is not None:
            asked = msgspec.structs.replace(asked, after=last_id, mark=None)
        held = request.rates.hold(request)
        with held.unless_it_fails():
            first = await read_range(request, store, space, asked)
        body = _messages(request, store, space, asked, first, limits, held)
        return Reply(body, EVENT_STREAM, headers={"X-Accel-Buffering": "no"})

    return bp


def _revoked_since(page: Range) -> int | None:
    """What a look at who calls has to have seen before they are told this page."""
    return page.head if any(map(is_revocation, page.events)) else None


class _Authorization:
    """Whether who follows still may.

    Whoever was revoked before the first page was read is found by a look after it, and whoever is
    revoked later by a page that tells of it: a look goes before that one, and what comes after it
    comes after that look. What no log tells, as that a token has expired, is found now and then.
    """

    def __init__(self, request: Request, limits: Limits):
        self._request = request
        self._seconds = limits.stream_heartbeat_seconds
        self._looked_at: float | None = None

    async def check(self, page: Range) -> None:
        """Raises what `Access.admit` raises."""
        now = time.monotonic()
        since = page.head if self._looked_at is None else _revoked_since(page)
        if since is not None or self._looked_at is None or now - self._looked_at >= self._seconds:
            await self._request.readmit(from_cache=True, since=since)
            self._looked_at = now


async def _messages(
    request: Request,
    store: EventStore,
    space: str,
    asked: RangeQuery,
    page: Range,
    limits: Limits,
    held: Lease,
) -> AsyncIterator[bytes]:
    # Streams that began together, after a restart, shall not all end together.
    lifetime = limits.stream_seconds_max * random.uniform(0.8, 1.0)  # noqa: S311
    deadline = time.monotonic() + lifetime
    with held, request.watch(store, space) as growth:
        yield b"retry: %d\n\n" % RECONNECT_MS
        leave = _Authorization(request, limits)
        is_watched = False  # the first page was read before the watching began
        try:
            while not growth.is_over:
                await leave.check(page)
                if page.through > asked.after:
                    asked = msgspec.structs.replace(asked, after=page.through, mark=page.mark)
                    # While its reader takes its time, nothing is kept but the message.
                    message, page.events = _message(page), []
                    yield message
                    del message
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return
                pause = min(limits.stream_heartbeat_seconds, rest)
                if is_watched and not page.more and not await growth.wait(pause):
                    yield b":\n\n"
                    continue
                told = store.cached_range(space, asked)
                if told is None:
                    told = await request.run(store.range_after, space, asked)
                page = told
                is_watched = True
        except Exception as exc:
            # The answer has begun and was promised to be well: what went wrong is a message.
            document = problem_reply(exc, request).body
            assert isinstance(document, bytes)
            yield b"event: problem\ndata: %b\n\n" % document


def _message(page: Range) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (page.through, msgspec.json.encode(range_answer(page)))


def range_answer(page: Range) -> answers.Range:
    return answers.Range(
        page.log, page.head, joined(page.events), page.through, page.mark, page.more
    )
