"""Keeps the master table, which contains the current state of each record, in memory.

Each append to a log updates the table.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from heapq import nsmallest

import msgspec

from foldlog.domain.changesets import LocalIds, local_ids
from foldlog.domain.errors import UnknownRecord
from foldlog.domain.events import decode_event
from foldlog.domain.history import head_of
from foldlog.domain.ledger import ALL_CONFLICTS, ConflictsFilter, read_ledger, render_ledger
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Conflict, Key, Record, conflict_document, view_of
from foldlog.domain.ports import (
    AtLeast,
    ConflictsPage,
    LocalIdsPage,
    MasterTable,
    RecordsPage,
    RecordsQuery,
    Snapshot,
    SnapshotCursor,
    SnapshotPage,
    SpaceId,
    decode_cursor,
    encode_cursor,
)
from foldlog.domain.snapshot import SnapshotHeader, snapshot_view

from .history import MemoryHistory
from .spaces import Space


class MemoryMasterTable(MemoryHistory, MasterTable):
    """Returns the current records, the conflicts and snapshots from memory, page by page."""

    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        here = self._space(space, query.at_least)
        chosen = [
            record
            for record in here.records.values()
            if record.exists and query.collection in (None, record.collection)
        ]
        if query.changed_after is None:
            after = decode_cursor(query.cursor, str, str) if query.cursor else ("", "")
            live = sorted(
                (r for r in chosen if not r.is_deleted and (r.collection, r.id) > after),
                key=lambda r: (r.collection, r.id),
            )
            page = self._within_bytes(live[: query.limit])
            more = len(live) > len(page)
            cursor = encode_cursor(page[-1].collection, page[-1].id) if more else None
        else:
            seq = decode_cursor(query.cursor, int)[0] if query.cursor else query.changed_after
            changed = sorted(
                (r for r in chosen if r.seq > seq), key=lambda r: (r.seq, r.collection, r.id)
            )
            page = self._within_bytes(changed[: query.limit])
            if page:
                page = changed[: bisect_right(changed, page[-1].seq, key=lambda r: r.seq)]
            more = len(changed) > len(page)
            cursor = encode_cursor(page[-1].seq) if more else None
        return self._page_of(here, page, cursor)

    def record(self, space: SpaceId, key: Key, *, at_least: AtLeast = 0) -> RecordsPage:
        here = self._space(space, at_least)
        record = here.records.get(key)
        if record is None or not record.exists:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        return self._page_of(here, [record], None)

    def snapshot(
        self,
        space: SpaceId,
        *,
        cursor: str | None = None,
        at_least: AtLeast = 0,
        bytes_max: int = INTEGER_MAX,
    ) -> Snapshot:
        position = SnapshotCursor.of(cursor)
        here = self._space(space, at_least)
        with self._lock:
            position.check(here.log, here.head, here.mark(position.at))
            after = (position.collection, position.id)
            count = sum(r.exists and key > after for key, r in here.records.items())
            header = SnapshotHeader(here.log, here.head, here.mark(here.head), count)
            first = self._snapshot_page(here, position, bytes_max)
        return Snapshot(header, self._snapshot_pages(here, first, bytes_max))

    def _snapshot_pages(
        self, here: Space, page: SnapshotPage, bytes_max: int
    ) -> Iterator[SnapshotPage]:
        yield page
        while page.cursor is not None:
            with self._lock:
                page = self._snapshot_page(here, SnapshotCursor.of(page.cursor), bytes_max)
            yield page

    def _snapshot_page(self, here: Space, position: SnapshotCursor, bytes_max: int) -> SnapshotPage:
        limit = self._limits.page_snapshot_records
        after = (position.collection, position.id)
        keys = nsmallest(
            limit + 1, (key for key, r in here.records.items() if r.exists and key > after)
        )
        lines: list[bytes] = []
        size = 0
        for key in keys[:limit]:
            line = msgspec.json.encode(snapshot_view(here.records[key], here.erasures.get(key)))
            size += len(line)
            if lines and size > min(bytes_max, self._limits.page_bytes_max):
                break
            lines.append(line)
        more = len(keys) > len(lines)
        last = None
        if more:
            last = SnapshotCursor(here.log, here.head, here.mark(here.head), *keys[len(lines) - 1])
        return SnapshotPage(lines, here.head, here.mark(here.head), last and last.cursor)

    def conflicts(
        self,
        space: SpaceId,
        *,
        limit: int,
        cursor: str | None,
        at_least: AtLeast = 0,
        wanted: ConflictsFilter = ALL_CONFLICTS,
    ) -> ConflictsPage:
        here = self._space(space, at_least)
        start = decode_cursor(cursor, int)[0] if cursor else 0
        chosen = [
            (number, conflict)
            for number, conflict in enumerate(here.conflicts[start:], start + 1)
            if _is_wanted(conflict, wanted)
        ]
        page = chosen[:limit]
        entries = read_ledger(msgspec.json.encode(conflict_document(c)) for _, c in page)
        seqs = {seq for entry in entries for seq in entry.seqs}
        heads = {seq: head_of(here.entries[seq - 1].state) for seq in seqs}
        return ConflictsPage(
            here.log,
            here.head,
            here.head,
            render_ledger(entries, heads, base=here.head),
            encode_cursor(page[-1][0]) if len(chosen) > len(page) else None,
        )

    def local_ids(
        self, space: SpaceId, device: str, *, limit: int, cursor: str | None, at_least: AtLeast = 0
    ) -> LocalIdsPage:
        after = decode_cursor(cursor, str, str) if cursor else ("", "")
        found = {
            (collection, local_id): id
            for entry in self._space(space, at_least).entries
            if entry.device == device
            for collection, ids in local_ids(decode_event(entry.state).ops).items()
            for local_id, id in ids.items()
        }
        rest = sorted(position for position in found if position > after)
        page: LocalIds = {}
        for collection, local_id in rest[:limit]:
            page.setdefault(collection, {})[local_id] = found[collection, local_id]
        return LocalIdsPage(page, encode_cursor(*rest[limit - 1]) if len(rest) > limit else None)

    def _within_bytes(self, records: list[Record]) -> list[Record]:
        """Returns as many of the records as fit into one page, beginning with the first.

        The size of a page in bytes is limited. The first record is always returned, even if it
        exceeds the limit.
        """
        size = 0
        for number, record in enumerate(records):
            size += len(msgspec.json.encode(record.fields))
            if number and size > self._limits.page_bytes_max:
                return records[:number]
        return records

    def _page_of(self, here: Space, records: list[Record], cursor: str | None) -> RecordsPage:
        documents = [msgspec.json.encode(view_of(record)) for record in records]
        return RecordsPage(here.log, here.head, here.head, documents, cursor)


def _is_wanted(conflict: Conflict, wanted: ConflictsFilter) -> bool:
    return (
        conflict.seq > wanted.since
        and wanted.collection in (None, conflict.collection)
        and wanted.id in (None, conflict.id)
        and wanted.field in (None, conflict.field)
        and wanted.device in (None, conflict.lost.device, conflict.won.device)
    )
