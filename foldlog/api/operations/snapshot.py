"""The operation that loads a snapshot.

A new device starts from a snapshot, so the length of the log does not matter to it.
"""

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
from foldlog.domain.errors import LogChanged
from foldlog.domain.limits import Limits
from foldlog.domain.ports import MasterTable, Snapshot
from foldlog.domain.snapshot import SnapshotHeader, SnapshotPageEnd, SnapshotRecord

from .problems import PROJECTED_PROBLEMS

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
        problems=(*PROJECTED_PROBLEMS, LogChanged),
    )
    async def snapshot(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Load all records, to follow the log from there.

        The snapshot includes tombstones, and each record has its writes, which the merge needs.
        Each page is true at the `at` of the line that ends it. Follow the log from the `seq` and
        `mark` of the header. For each record, skip the events up to the `at` of its page.

        If the last line lacks a `cursor` of null, the download was interrupted. Discard the lines
        after the last `cursor`, repeat the request with that `cursor`, and keep the `seq` and
        `mark` of the first header.
        """
        lease = request.hold(DOWNLOADS)
        wanted = {"cursor": query.get("cursor"), "at_least": query["at_least"]}
        with lease.unless_it_fails():
            found = await projected(request, space, partial(master.snapshot, space, **wanted))
        return Reply(_pieces(space, found, lease), MEDIA_TYPE)

    return bp


def _pieces(space: str, snapshot: Snapshot, lease: Lease) -> Iterator[bytes]:
    """Yields the header, and each page as one piece. Only one page is in memory at a time."""
    with lease:
        yield _line(snapshot.header)
        try:
            for page in snapshot.pages:
                end = _line(SnapshotPageEnd(page.at, page.mark, page.cursor))
                yield b"\n".join([*page.records, end])
        except Exception as exc:
            # The status 200 was sent already. Readers detect the error by the missing last line.
            log.error("snapshot-cut", space=space, exc_info=exc)


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"
