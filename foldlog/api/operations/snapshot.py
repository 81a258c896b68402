"""Defines the operation that downloads a snapshot of all records.

A new device downloads a snapshot instead of the whole log. The time that this takes depends on the
number of records, and not on the length of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from foldlog.domain.ports import AtLeast, MasterTable, Snapshot
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
        """Download a snapshot of all records, and then follow the log.

        The snapshot includes deleted records (tombstones). Each record has its values, and in
        `writes` the changes that set these values, because a device needs them to merge later
        events. The snapshot consists of pages. The last line of each page has a seq in `at`, and
        the page shows its records as they were after the event with this seq. After the download,
        pull from the `seq` and `mark` of the header. Some of the pulled events are already part of
        the snapshot: for each record, ignore the events up to the `at` of the record's page.

        If the `cursor` in the last line is null, the download is complete. Otherwise it was
        interrupted. To resume it, discard the lines after the last line with a `cursor`, and repeat
        the request with that `cursor`. Keep the `seq` and `mark` of the first header.
        """
        lease = request.hold(DOWNLOADS)
        bytes_max = {"bytes_max": query["bytes"]} if "bytes" in query else {}

        def read(at_least: AtLeast) -> Snapshot:
            cursor = query.get("cursor")
            return master.snapshot(space, cursor=cursor, at_least=at_least, **bytes_max)

        with lease.unless_it_fails():
            found = await projected(request, space, read, query["at_least"])
        return Reply(_pieces(space, found, lease), MEDIA_TYPE)

    return bp


def _pieces(space: str, snapshot: Snapshot, lease: Lease) -> Iterator[bytes]:
    """Yields a snapshot as JSON lines: first the header, and then one piece of bytes for each page.
    Only one page is in memory at a time. If a read fails, the function logs the error, and the
    snapshot ends without its last line."""
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
