"""Reads snapshots from the master table. A snapshot contains all records of a space, in pages.

Each record includes the data that a device needs to merge later changes into the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET

from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.ports import AtLeast, Snapshot, SnapshotCursor, SnapshotPage, SpaceId
from foldlog.domain.snapshot import SnapshotHeader, SnapshotRecord
from foldlog.domain.times import format_time, to_ms
from foldlog.infrastructure.postgres.log.marks import mark_at

from .assembly import Columns, states_completer
from .reading import STORED_VIEW, VIEW, Found, LiveReader, Scope, bounded

SELECT_SNAPSHOT = bounded(
    f"{VIEW}, writes, deleted, erased_seq",
    ("fields", "writes"),
    f"""
        SELECT {STORED_VIEW}, writes, deleted,
               (
                   SELECT x.seq
                     FROM erasures x
                    WHERE s.erased_seq > 0
                      AND x.space = r.space
                      AND x.collection = r.collection
                      AND x.id = r.id
               ) AS erased_seq
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq <> 0
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    """,
    order="collection, id",
)

_complete = states_completer(Columns(fields=2, apart=7, writes=8))

COUNT_SNAPSHOT = """
SELECT count(*)
  FROM records r
  JOIN projections p
    ON p.space = r.space AND p.generation = r.generation
 WHERE r.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND r.created_seq > 0
   AND (r.collection, r.id) > (%(after_collection)s, %(after_id)s)
"""


class SnapshotReader(LiveReader):
    def snapshot(
        self,
        space: SpaceId,
        *,
        cursor: str | None = None,
        at_least: AtLeast = 0,
        bytes_max: int = INTEGER_MAX,
    ) -> Snapshot:
        start = SnapshotCursor.of(cursor)
        found, page = self._snapshot_page(space, start, at_least, bytes_max)
        params = {"space": space, "after_collection": start.collection, "after_id": start.id}
        counted = self._datastore.fetch_one(COUNT_SNAPSHOT, params)
        assert counted is not None
        header = SnapshotHeader(
            *(found.log, page.at, page.mark, counted[0]),
            halted_at=found.halted_at,
        )
        return Snapshot(header, self._snapshot_pages(space, page, bytes_max))

    def _snapshot_pages(
        self, space: SpaceId, page: SnapshotPage, bytes_max: int
    ) -> Iterator[SnapshotPage]:
        yield page
        while page.cursor is not None:
            start = SnapshotCursor.of(page.cursor)
            _, page = self._snapshot_page(space, start, 0, bytes_max)
            yield page

    def _snapshot_page(
        self, space: SpaceId, start: SnapshotCursor, at_least: AtLeast, bytes_max: int
    ) -> tuple[Found, SnapshotPage]:
        limit = self._limits.page_snapshot_records
        params = {"after_collection": start.collection, "after_id": start.id}
        page = partial(self._page, SELECT_SNAPSHOT, params=params, limit=limit, complete=_complete)
        found = page(scope=Scope(space, at_least), bytes_max=bytes_max)
        start.check(found.log, found.head, self._mark(space, min(start.at, found.head)))
        if found.position < start.at:  # a page must be at least as new as the one before it
            found = page(scope=Scope(space, start.at), bytes_max=bytes_max)
        rows, more = found.cut(limit)
        mark = self._mark(space, found.position)
        last = SnapshotCursor(found.log, found.position, mark, *rows[-1][:2]) if more else None
        lines = [_snapshot_document(row) for row in rows]
        return found, SnapshotPage(lines, found.position, mark, last and last.cursor)

    def _mark(self, space: SpaceId, seq: int) -> str:
        with self._datastore.reading() as cursor:
            return mark_at(cursor.connection, space, seq)


def _snapshot_document(row: Any) -> bytes:
    collection, id, fields, is_deleted, last_modified, seq, created_seq, _, *rest = row
    writes, deleted, erased_seq = rest
    return msgspec.json.encode(
        SnapshotRecord(
            collection,
            id,
            msgspec.Raw(fields),
            is_deleted,
            format_time(to_ms(last_modified)),
            seq,
            created_seq,
            msgspec.Raw(writes),
            None if deleted is None else msgspec.Raw(deleted),
            UNSET if erased_seq is None else erased_seq,
        )
    )
