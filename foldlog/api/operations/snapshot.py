"""The snapshot: what a new device loads, so that its start does not depend on the log's length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import msgspec
import structlog
from flask import Blueprint

from foldlog.api.http.rates import DOWNLOADS, Lease
from foldlog.api.http.replies import Reply
from foldlog.api.http.requests import Request
from foldlog.api.http.waiting import ProjectedReads
from foldlog.api.operation import Lines, operation
from foldlog.api.shapes import examples
from foldlog.api.shapes.queries import SnapshotQuery
from foldlog.domain.access import Right
from foldlog.domain.errors import (
    LogBehind,
    LogChanged,
    ProjectionBehind,
    StorageUnavailable,
    UnknownSpace,
)
from foldlog.domain.limits import Limits
from foldlog.domain.ports import MasterTable, Snapshot
from foldlog.domain.snapshot import SnapshotHeader, SnapshotPageEnd, SnapshotRecord

log = structlog.get_logger("foldlog.api")

MEDIA_TYPE = "application/x-ndjson"

LINES = Lines(
    "JSON lines: a header, then pages of records, each closed by a line with its seq and a cursor.",
    {
        "header": (SnapshotHeader, examples.SNAPSHOT_HEADER),
        "record": (SnapshotRecord, examples.SNAPSHOT_RECORD),
        "end of a page": (SnapshotPageEnd, examples.SNAPSHOT_PAGE_END),
    },
)


def snapshot_blueprint(master: MasterTable, limits: Limits) -> Blueprint:
    bp = Blueprint("snapshot", __name__)
    projected = ProjectedReads(master, limits)

    @bp.get("/v1/spaces/<space>/snapshot")
    @operation(
        Right.READ,
        query=SnapshotQuery(),
        answer=LINES,
        media_type=MEDIA_TYPE,
        problems=(UnknownSpace, LogBehind, LogChanged, ProjectionBehind, StorageUnavailable),
    )
    async def snapshot(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Load all records, to follow the log from there.

        Tombstones too, each with its writes, as the merge needs them. Each page is true at the
        `at` of the line that closes it. Follow the log from the `seq` and `mark` of the header,
        and pass over, record by record, events up to the `at` of its page.

        A stream that does not end with a `cursor` of null was cut: throw away what came after the
        last one, ask again with that `cursor`, and keep the `seq` and `mark` of the first header.
        """
        held = request.rates.hold(request, DOWNLOADS)
        asked = {"cursor": query.get("cursor"), "at_least": query["at_least"]}
        with held.unless_it_fails():
            found = await projected(request, space, partial(master.snapshot, space, **asked))
        return Reply(_pieces(space, found, held), MEDIA_TYPE)

    return bp


def _pieces(space: str, snapshot: Snapshot, held: Lease) -> Iterator[bytes]:
    """The header, and each page as one piece; no more than that is in memory."""
    with held:
        yield _line(snapshot.header)
        try:
            for page in snapshot.pages:
                end = _line(SnapshotPageEnd(page.at, page.mark, page.cursor))
                yield b"\n".join([*page.records, end])
        except Exception as exc:
            # The answer has begun and was promised to be well: all that can be done is to end it
            # before its last line, which every reader understands.
            log.error("snapshot-cut", space=space, exc_info=exc)


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"
