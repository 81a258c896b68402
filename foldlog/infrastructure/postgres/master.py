"""The master table: the projection that writes it, and the questions that it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from psycopg import Cursor
from psycopg.rows import tuple_row

from ...domain.changesets import LocalIds
from ...domain.errors import LogBehind, ProjectionBehind, UnknownRecord, UnknownSpace
from ...domain.events import Event
from ...domain.limits import LIMITS, Limits
from ...domain.merge import Conflict, Key, Record, RecordView, conflict_document, fold
from ...domain.ports import (
    ConflictsPage,
    MasterTable,
    RecordsPage,
    RecordsQuery,
    Snapshot,
    SnapshotPage,
    SnapshotPlace,
    SpaceId,
    decode_cursor,
    encode_cursor,
)
from ...domain.snapshot import SnapshotHeader, SnapshotRecord
from ...domain.times import format_time, to_ms
from .datastore import Datastore
from .errors import translated
from .log import mark_at
from .record_rows import COLUMNS, UPSERT_RECORDS, columns_of, record_of

SELECT_RECORDS = f"""
SELECT {COLUMNS}
  FROM records
  JOIN unnest(%(collections)s::text[], %(ids)s::text[]) AS wanted (collection, id)
 USING (collection, id)
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY collection, id
"""

INSERT_CONFLICTS = """
INSERT INTO conflicts (space, generation, seq, number, collection, id, document)
SELECT %(space)s, %(generation)s, seq, number, collection, id, document
  FROM unnest(
           %(seqs)s::bigint[], %(numbers)s::integer[],
           %(collections)s::text[], %(ids)s::text[], %(documents)s::json[]
       ) AS new (seq, number, collection, id, document)
RETURNING seq
"""

INSERT_LOCAL_IDS = """
INSERT INTO local_ids (space, generation, device, collection, local_id, id)
SELECT %(space)s, %(generation)s, device, collection, local_id, id
  FROM unnest(
           %(devices)s::uuid[], %(collections)s::text[], %(local_ids)s::text[], %(ids)s::text[]
       ) AS new (device, collection, local_id, id)
    ON CONFLICT (space, generation, device, collection, local_id) DO NOTHING
RETURNING id
"""


class MasterProjection:
    """Folds a batch of events into one generation of the master table.

    The batch's records are read once, folded in memory, and written once, however often the
    batch touches them.
    """

    name = "master"
    #: what a generation consists of, each with the columns by which its rows are told apart
    tables = {
        "records": "collection, id",
        "conflicts": "seq, number",
        "local_ids": "device, collection, local_id",
    }

    def apply(
        self, cursor: Cursor[Any], space: str, generation: int, events: Sequence[Event]
    ) -> None:
        where = {"space": space, "generation": generation}
        keys = {op.key for event in events if event.is_stored_changeset for op in event.ops}
        records = self._load(cursor, where, keys) if keys else {}
        conflicts: list[tuple[int, Conflict]] = []
        for event in events:
            conflicts += enumerate(fold(records, event))
        for columns in columns_of(records.values()):
            cursor.execute(UPSERT_RECORDS, {**where, **columns}, prepare=True)
        if conflicts:
            self._insert_conflicts(cursor, where, conflicts)
        self._insert_local_ids(cursor, where, events)

    def _load(
        self, cursor: Cursor[Any], where: dict[str, Any], keys: set[Key]
    ) -> dict[Key, Record]:
        collections, ids = zip(*keys, strict=True)
        names = {**where, "collections": list(collections), "ids": list(ids)}
        rows = cursor.execute(SELECT_RECORDS, names, prepare=True).fetchall()
        return {(row[0], row[1]): record_of(row) for row in rows}

    def _insert_conflicts(
        self, cursor: Cursor[Any], where: dict[str, Any], conflicts: list[tuple[int, Conflict]]
    ) -> None:
        cursor.execute(
            INSERT_CONFLICTS,
            {
                **where,
                "seqs": [conflict.seq for _, conflict in conflicts],
                "numbers": [number for number, _ in conflicts],
                "collections": [conflict.collection for _, conflict in conflicts],
                "ids": [conflict.id for _, conflict in conflicts],
                "documents": [
                    msgspec.json.encode(conflict_document(conflict)).decode()
                    for _, conflict in conflicts
                ],
            },
            prepare=True,
        )

    def _insert_local_ids(
        self, cursor: Cursor[Any], where: dict[str, Any], events: Sequence[Event]
    ) -> None:
        named = [
            (event.device, op.collection, op.local_id, op.id)
            for event in events
            for op in event.ops
            if op.local_id is not msgspec.UNSET
        ]
        if named:
            devices, collections, local_ids, ids = (
                list(column) for column in zip(*named, strict=True)
            )
            cursor.execute(
                INSERT_LOCAL_IDS,
                {
                    **where,
                    "devices": devices,
                    "collections": collections,
                    "local_ids": local_ids,
                    "ids": ids,
                },
                prepare=True,
            )


# Every page is one statement and so one snapshot: `projected` is true of its rows.
_PAGE = """
SELECT s.log::text, s.head, p.position, page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL ({page}) page ON true
 WHERE s.space = %(space)s
 ORDER BY {order}
"""
_AFTER_ALL_NAMES = "~"  # collections are named by letters, digits and - _ .
_VIEW = "collection, id, fields, is_deleted, last_modified, seq, created_seq"

SELECT_LIVE = _PAGE.format(
    page=f"""
        SELECT {_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND NOT is_deleted
           AND created_seq <> 0
           AND collection BETWEEN %(first_collection)s AND %(last_collection)s
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    """,
    order="collection, id",
)

# WITH TIES: all records of the page's last seq come with it, so that a seq is never split.
SELECT_CHANGED = _PAGE.format(
    page=f"""
        SELECT {_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND (%(collection)s::text IS NULL OR collection = %(collection)s)
           AND seq > %(changed_after)s
         ORDER BY seq
         FETCH FIRST %(limit)s ROWS WITH TIES
    """,
    order="seq, collection, id",
)

SELECT_ONE = _PAGE.format(
    page=f"""
        SELECT {_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND collection = %(collection)s
           AND id = %(id)s
    """,
    order="collection, id",
)

# One page of a snapshot: at most `limit` records, and `bytes_max` unless the first alone has more.
# Large values are kept compressed and aside: the inner sum is of stored sizes, which are known
# without reading them, so that the outer one, which has to read what it measures, reads no more
# than about a page. `<> 0` is meant: with `> 0` the planner may take the index by seq, which has
# only those, but in another order, and would read all of it for every page.
SELECT_SNAPSHOT = _PAGE.format(
    page=f"""
        SELECT {_VIEW}, writes, deleted, candidates
          FROM (
               SELECT *,
                      sum(octet_length(fields::text) + octet_length(writes::text))
                          OVER (ORDER BY number) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS candidates,
                             row_number() OVER by_key AS number,
                             sum(pg_column_size(fields) + pg_column_size(writes))
                                 OVER by_key AS stored_through
                        FROM (
                             SELECT {_VIEW}, writes, deleted
                               FROM records r
                              WHERE r.space = p.space
                                AND r.generation = p.generation
                                AND created_seq <> 0
                                AND (collection, id) > (%(after_collection)s, %(after_id)s)
                              ORDER BY collection, id
                              LIMIT %(limit)s
                             ) candidate
                      WINDOW by_key AS (ORDER BY collection, id)
                      ) measured
                WHERE stored_through <= %(bytes_max)s
                   OR number = 1
               ) read
         WHERE bytes_through <= %(bytes_max)s
            OR number = 1
    """,
    order="collection, id",
)

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

SELECT_CONFLICTS = _PAGE.format(
    page="""
        SELECT seq, number, document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
         ORDER BY seq, number
         LIMIT %(limit)s
    """,
    order="seq, number",
)

SELECT_LOCAL_IDS = _PAGE.format(
    page="""
        SELECT collection, local_id, id
          FROM local_ids l
         WHERE l.space = p.space
           AND l.generation = p.generation
           AND l.device = %(device)s::uuid
    """,
    order="collection, local_id",
)

#: How long a read that waits for its projection sleeps between looks: first, and at most.
WAIT_MS_FIRST, WAIT_MS_MAX = 5, 100

_encode = msgspec.json.encode


class PostgresMasterTable(MasterTable):
    """Reads the live generation. `sleep` is between looks; tests hand in something quicker."""

    def __init__(
        self,
        datastore: Datastore,
        *,
        limits: Limits = LIMITS,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._datastore = datastore
        self._limits = limits
        self._sleep = sleep

    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        names: dict[str, Any] = {"collection": query.collection, "limit": query.limit + 1}
        if query.changed_after is None:
            after = decode_cursor(query.cursor, str, str) if query.cursor else ("", "")
            names |= {
                "first_collection": query.collection or "",
                "last_collection": query.collection or _AFTER_ALL_NAMES,
                "after_collection": after[0],
                "after_id": after[1],
            }
            found = self._select(SELECT_LIVE, space, names, query.at_least)
            rows = found.rows[: query.limit]
            more = len(found.rows) > query.limit
            cursor = encode_cursor(rows[-1][0], rows[-1][1]) if more else None
        else:
            seq = decode_cursor(query.cursor, int)[0] if query.cursor else query.changed_after
            names |= {"changed_after": seq}
            found = self._select(SELECT_CHANGED, space, names, query.at_least)
            rows = _whole_seqs(found.rows, query.limit)
            more = len(found.rows) > query.limit
            cursor = encode_cursor(rows[-1][5]) if more else None
        return RecordsPage(
            found.log, found.head, found.position, [_document(row) for row in rows], cursor
        )

    def record(self, space: SpaceId, key: Key, *, at_least: int = 0) -> RecordsPage:
        names = {"collection": key[0], "id": key[1]}
        found = self._select(SELECT_ONE, space, names, at_least)
        if not found.rows:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}, and never was")
        documents = [_document(row) for row in found.rows]
        return RecordsPage(found.log, found.head, found.position, documents, None)

    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        place = SnapshotPlace.of(cursor)
        names = {"space": space, "after_collection": place.collection, "after_id": place.id}
        found, page = self._snapshot_page(space, place, at_least)
        with translated(self._datastore), self._datastore.get_connection() as conn:
            counted = conn.cursor(row_factory=tuple_row).execute(COUNT_SNAPSHOT, names).fetchone()
            mark = mark_at(conn, space, page.at) if page.at else ""
        assert counted is not None
        header = SnapshotHeader(found.log, page.at, mark, records=counted[0])
        return Snapshot(header, self._snapshot_pages(space, page))

    def _snapshot_pages(self, space: SpaceId, page: SnapshotPage) -> Iterator[SnapshotPage]:
        yield page
        while page.cursor is not None:
            _, page = self._snapshot_page(space, SnapshotPlace.of(page.cursor), 0)
            yield page

    def _snapshot_page(
        self, space: SpaceId, place: SnapshotPlace, at_least: int
    ) -> tuple[_Found, SnapshotPage]:
        limit = self._limits.page_snapshot_records
        names = {
            "after_collection": place.collection,
            "after_id": place.id,
            "limit": limit + 1,
            "bytes_max": self._limits.page_bytes_max,
        }
        found = self._select(SELECT_SNAPSHOT, space, names, at_least)
        place.check(found.log, found.head)
        if found.position < place.at:  # pages never go back in time
            found = self._select(SELECT_SNAPSHOT, space, names, place.at)
        rows = found.rows[:limit]
        more = bool(rows) and rows[0][-1] > len(rows)
        last = SnapshotPlace(found.log, found.position, *rows[-1][:2]) if more else None
        lines = [_snapshot_document(row) for row in rows]
        return found, SnapshotPage(lines, found.position, last and last.cursor)

    def conflicts(
        self, space: SpaceId, *, limit: int, cursor: str | None, at_least: int = 0
    ) -> ConflictsPage:
        after = decode_cursor(cursor, int, int) if cursor else (0, 0)
        names = {"after_seq": after[0], "after_number": after[1], "limit": limit + 1}
        found = self._select(SELECT_CONFLICTS, space, names, at_least)
        rows = found.rows[:limit]
        more = len(found.rows) > limit
        return ConflictsPage(
            found.log,
            found.head,
            found.position,
            [document for _, _, document in rows],
            encode_cursor(rows[-1][0], rows[-1][1]) if more else None,
        )

    def local_ids(self, space: SpaceId, device: str, *, at_least: int = 0) -> LocalIds:
        ids: LocalIds = {}
        for collection, local_id, id in self._select(
            SELECT_LOCAL_IDS, space, {"device": device}, at_least
        ).rows:
            ids.setdefault(collection, {})[local_id] = id
        return ids

    def _select(
        self, statement: str, space: SpaceId, names: dict[str, Any], at_least: int = 0
    ) -> _Found:
        """Asks, and asks again until the projection has reached `at_least`."""
        deadline = time.monotonic() + self._limits.at_least_wait_seconds_max
        wait_ms = WAIT_MS_FIRST
        while True:
            with translated(self._datastore), self._datastore.rows() as cursor:
                rows = cursor.execute(statement, {"space": space, **names}, prepare=True).fetchall()
            if not rows:
                raise UnknownSpace(f"there is no space {space!r}")
            log, head, position = rows[0][:3]
            if at_least > head:
                raise LogBehind(f"at_least {at_least} is beyond the log's head {head}", head=head)
            if position >= at_least:
                return _Found(log, head, position, [r[3:] for r in rows if r[3] is not None])
            if time.monotonic() > deadline:
                raise ProjectionBehind(
                    f"the master table is at {position}, not yet at {at_least}",
                    projected=position,
                    head=head,
                )
            self._sleep(wait_ms / 1000)
            wait_ms = min(2 * wait_ms, WAIT_MS_MAX)


class _Found(msgspec.Struct):
    log: str
    head: int
    position: int
    rows: list[Any]


def _whole_seqs(rows: list[Any], limit: int) -> list[Any]:
    """At most `limit` records, or one whole seq if that alone has more."""
    if len(rows) <= limit:
        return rows
    # One more than asked came, with its ties: without that last seq the page is whole. If there
    # is only that one, it is the page, and the next one may turn out to be empty.
    last = rows[-1][5]
    return [row for row in rows if row[5] != last] or rows


def _document(row: Any) -> bytes:
    collection, id, fields, is_deleted, last_modified, seq, created_seq = row
    return _encode(
        RecordView(
            collection,
            id,
            msgspec.Raw(fields),
            is_deleted,
            format_time(to_ms(last_modified)),
            seq,
            created_seq,
        )
    )


def _snapshot_document(row: Any) -> bytes:
    collection, id, fields, is_deleted, last_modified, seq, created_seq, writes, deleted, _ = row
    return _encode(
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
        )
    )
