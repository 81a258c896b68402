"""Defines two operations: one pushes changesets, and one pushes changesets and pulls events in the
same request."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, joined, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.api.shapes import examples
from foldlog.api.shapes.answers import SyncAnswer
from foldlog.api.shapes.bodies import push_body, sync_body
from foldlog.domain.access import Right
from foldlog.domain.changesets import Push
from foldlog.domain.errors import (
    CounterGap,
    DeviceForked,
    FoldlogError,
    IdReused,
    InvalidChangeset,
    LimitExceeded,
    LogBehind,
    LogChanged,
    OutcomeUnknown,
    ProjectionBehind,
    UnknownSpace,
)
from foldlog.domain.limits import Limits
from foldlog.domain.ports import EventStore, Range, RangeQuery, Receipt
from foldlog.domain.push_decider import Answer

from .events import range_query, read_range
from .problems import WRITE_PROBLEMS, Problems

PUSH_PROBLEMS: Problems = (
    *WRITE_PROBLEMS,
    InvalidChangeset,
    LimitExceeded,
    IdReused,
    CounterGap,
    DeviceForked,
    LogBehind,
    ProjectionBehind,
)


def sync_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("sync", __name__)

    @bp.post("/v1/spaces/<space>/changesets")
    @operation(
        Right.WRITE,
        body=JsonBody(push_body(limits), limits, "body_bytes_max"),
        body_example=examples.PUSH,
        answer=Receipt,
        example=examples.RECEIPT,
        problems=PUSH_PROBLEMS,
    )
    async def push(request: Request, space: str, body: dict[str, Any]) -> Reply:
        """Push changesets.

        The service stores all new changesets of the request together. If one of them is invalid,
        the service stores none of them and responds with an error. Otherwise the response has a
        verdict for each changeset, in the order of the request. The verdict is `refused` if the
        changeset violates a schema or if one of its conditions (`guard`, `if_seq`, `expect`) is
        false. Such a changeset is stored in the log, but it changes no record.

        You can repeat a push safely: a changeset that is already stored gets its first verdict
        again, marked as a `duplicate`. The first push to a new space creates the space.
        """
        return json_reply(await _stored(request, store, space, push_of(request, body)))

    @bp.post("/v1/spaces/<space>/sync")
    @operation(
        Right.WRITE,
        from_cache=True,
        body=JsonBody(sync_body(limits), limits, "body_bytes_max"),
        body_example=examples.SYNC,
        answer=SyncAnswer,
        example=examples.SYNC_ANSWER,
        problems=(*PUSH_PROBLEMS, LogChanged),
    )
    async def sync(request: Request, space: str, body: dict[str, Any]) -> Reply:
        """Push changesets and pull events in one request.

        The service first checks the cursor, then stores the changesets, and then reads the events
        after the cursor. The events include the device's own changesets, but without their `ops`;
        set `own` to `full` to get the `ops` too. While `more` is true, sync again: send the
        `through` of this response as `after`, and its `mark` as `mark`.
        """
        pushed = push_of(request, body)
        query = range_query(body, body["device"])
        verdicts: list[Answer] = []
        if body["changesets"]:
            # A cached authorization serves reads only.
            await request.readmit()
            verdicts = (await _stored(request, store, space, pushed)).verdicts
            page = await _read_stored(request, store, space, query)
        else:
            # Most syncs have no changesets, and must avoid the lock of the space.
            try:
                page = await read_range(request, store, space, query)
            except UnknownSpace:
                await _stored(request, store, space, pushed)
                page = await read_range(request, store, space, query)
            if page.events:
                await request.readmit()
        return json_reply(
            SyncAnswer(
                page.log,
                page.head,
                joined(page.events),
                page.through,
                page.mark,
                page.more,
                verdicts=verdicts,
            )
        )

    return bp


async def _stored(request: Request, store: EventStore, space: str, push: Push) -> Receipt:
    """Stores a push in the log, waits until it is stored, and returns its `Receipt`.

    The event store shares its threads for writing fairly among callers, so the function passes the
    caller of the request to the event store.
    """
    return await request.outcome(store.submit(space, push, request.subject.key))


async def _read_stored(request: Request, store: EventStore, space: str, query: RangeQuery) -> Range:
    """Reads a page of the log for a sync whose changesets were just stored, and returns the page.

    Raises `OutcomeUnknown` if the read fails or the caller has lost access. Any other error would
    tell the device that its changesets were not stored. After `OutcomeUnknown` the device repeats
    the request, and receives the verdicts of its changesets.
    """
    try:
        page = await read_range(request, store, space, query)
        await request.readmit()
    except FoldlogError as exc:
        raise OutcomeUnknown from exc
    return page


def push_of(request: Request, body: dict[str, Any]) -> Push:
    """Makes a `Push` from the body of a request.

    Raises `Forbidden` if the caller's token belongs to another device than the one that the body
    names.
    """
    assert request.caller is not None
    request.caller.check_writes_as(body["device"])
    return Push(
        device=body["device"],
        sent_at=body["sent_at"],
        changesets=body["changesets"],
        after=body.get("after"),
        mark=body.get("mark"),
        wants_records="return_" in body,
        body_bytes=body["body_bytes"],
    )
