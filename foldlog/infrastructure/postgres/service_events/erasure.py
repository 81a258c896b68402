"""Erases records: removes their values from the log, the projections and the caches.

Only this module changes existing rows of the log. It first searches the log, without locks, for the
events that contain values of the records. Then it erases one record after another.

The erasure of a record begins with a transaction that appends the `record-erased` event, removes
the record from all generations of the projections, and removes its values from the newest of the
found events. If the found events are too many for one transaction, further transactions remove the
values from the older events. After the first transaction, the values are already removed from the
projections and from the caches of all processes.

If an erasure is interrupted, the caller erases the same record again. The erasure then continues
with the events that still contain values.

The database checks each of these changes too: see `pass_erasure_alone` in schema.sql.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import psycopg
import structlog
from psycopg import Cursor
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Identifier

from foldlog.domain.erasure import (
    Erasable,
    Erased,
    ErasureScan,
    Selection,
    erase_keys,
    record_erased_entry,
)
from foldlog.domain.events import decode_event
from foldlog.domain.merge import Key
from foldlog.domain.names import check_reason
from foldlog.domain.ports import Progress, SpaceId
from foldlog.infrastructure.postgres.append.service_event import (
    OpenServiceEvent,
    ServiceEventTransaction,
)
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, bytea_array
from foldlog.infrastructure.postgres.connection.datastore import CONNECTION, Datastore
from foldlog.infrastructure.postgres.log.heads import select_head
from foldlog.infrastructure.postgres.log.pages import page_params, select_page
from foldlog.infrastructure.postgres.log.tail_cache import TAIL_EVENTS_MAX
from foldlog.infrastructure.postgres.master.projection import MasterProjection

log = structlog.get_logger("foldlog.erasure")

SELECT_NAMED = select_page(
    "originator_version, state",
    filter="""
   AND collections && %(collections)s::text[]""",
)

SELECT_CHOSEN = select_page(
    "originator_version, state, salt",
    filter="""
   AND originator_version = ANY(%(seqs)s::bigint[])""",
)

SELECT_ERASURE = """
SELECT seq
  FROM erasures
 WHERE space = %(space)s
   AND collection = %(collection)s
   AND id = %(id)s
"""

# A projector holds this lock during its batch. After the wait, it reads the erased events.
LOCK_GENERATIONS = """
SELECT generation
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
 ORDER BY generation
   FOR UPDATE
"""

# Two erasures in one event would each restore the values that the other one erased. The database
# refuses that too; the lock avoids the refusal.
LOCK_ERASING = "SELECT pg_advisory_xact_lock(hashtext('erasing'), hashtext(%(space)s))"

ERASE_OPERATIONS = """
SELECT erase_operations(
           %(space)s, %(seqs)s::bigint[], %(states)s::bytea[], %(salts)s::bytea[]
       )
"""

SCAN_EVENTS = 10_000
PAGE_BYTES = 8 * 2**20
#: Events that one transaction erases, newest first. They include all events that a tail cache can
#: hold.
ERASE_EVENTS = 5_000
assert ERASE_EVENTS >= TAIL_EVENTS_MAX


class Eraser:
    """Finds the records that can be erased, and erases records.

    The parameter `append_service_event` is the method of the event store with the same name. It
    opens a transaction in which one event can be appended to a space.
    """

    def __init__(
        self,
        datastore: Datastore,
        append_service_event: OpenServiceEvent,
        *,
        erase_events: int = ERASE_EVENTS,
    ):
        self._datastore = datastore
        self._append_service_event = append_service_event
        self._erase_events = erase_events
        self._projection = MasterProjection()

    def find(self, space: SpaceId, wanted: Selection, report: Progress) -> list[Erasable]:
        """Searches the whole log for the records that `wanted` selects, and returns a list of them.

        Each `Erasable` in the list contains the key of a record and the number of events with its
        values. During the search the method passes two numbers to `report`: the events searched so
        far, and all events to search. If `wanted` selects records by their values, the log is
        searched twice, so the second number is twice the head.

        Raises `UnknownRecord` if `wanted` contains the key of a record that the log lacks.
        """
        wanted.check()
        with self._datastore.reading() as cursor:
            head = select_head(cursor, space)
            keys = set(wanted.keys)
            done = 0
            if wanted.collection is not None:
                done = head
                for through, rows in _named(cursor, space, 0, head, [wanted.collection]):
                    for _, state in rows:
                        keys |= {op.key for op in decode_event(state).ops if wanted.selects(op)}
                    report(through, 2 * head)
            scan = ErasureScan(keys)
            for through in _scan(cursor, space, scan, 0, head):
                report(done + through, done + head)
        scan.check_all_named()
        return scan.erasable()

    def erase(
        self,
        space: SpaceId,
        keys: Collection[Key],
        reason: str,
        by: str | None,
        report: Progress,
    ) -> list[Erased]:
        """Erases these records one after another, and returns a list with a result for each.

        Each `Erased` in the list contains the seq of the `record-erased` event, and the number of
        events from which values were removed. Before the first erasure, the method searches the log
        for the events that contain values of the records. During the search it passes two numbers
        to `report`: the events searched so far, and all events to search.

        Raises `UnknownRecord`, before any erasure, if the log lacks one of the records.
        """
        check_reason(reason, by)
        scan = ErasureScan(keys)
        with self._datastore.reading() as cursor:
            head = select_head(cursor, space)
            for through in _scan(cursor, space, scan, 0, head):
                report(through, head)
        scan.check_all_named()
        return [
            self._erase_record(space, key, head, scan.seqs[key], reason, by)
            for key in sorted(scan.seqs)
        ]

    def _erase_record(
        self,
        space: SpaceId,
        key: Key,
        head: int,
        seqs: Sequence[int],
        reason: str,
        by: str | None,
    ) -> Erased:
        """Erases one record: removes its values from the log and from the projections.

        `seqs` is the result of the earlier search: the seqs of the events up to `head` that contain
        values of the record. Events after `head` are searched by this method. Returns the seq of
        the `record-erased` event, and the number of events from which values were removed.
        """
        params = {"space": space, "collection": key[0], "id": key[1]}
        with self._append_service_event(space) as transaction:
            cursor = transaction.cursor
            # These waits come before the lock of the space, so pushes continue meanwhile.
            generations = self._lock_generations(cursor, space)
            state = transaction.lock()
            rest = self._with_newer(cursor, space, key, head, state.head, seqs)
            row = cursor.execute(SELECT_ERASURE, params).fetchone()
            erased_seq, count = 0 if row is None else row[0], 0
            # Values that are older than the last erasure remain from an interrupted one.
            if rest and rest[0] > erased_seq:
                erased_seq = self._append_event(transaction, key, reason, by)
                count = _erase_in(cursor, space, key, rest[: self._erase_events])
                self._projection.delete_record(cursor, space, generations, key)
                rest = rest[self._erase_events :]
        for start in range(0, len(rest), self._erase_events):
            with self._datastore.writing() as cursor:
                cursor.execute(LOCK_ERASING, {"space": space})
                count += _erase_in(cursor, space, key, rest[start : start + self._erase_events])
        return Erased(*key, erased_seq, count)

    def _lock_generations(self, cursor: Cursor[Any], space: SpaceId) -> list[int]:
        """Locks all generations of the master table of a space, and returns their numbers.

        Until the transaction ends, other erasures in this space wait for these locks, and so does
        the projector, which updates the master table.
        """
        params = {"space": space, "projection": self._projection.name}
        cursor.execute(LOCK_ERASING, params)
        rows = cursor.execute(LOCK_GENERATIONS, params).fetchall()
        return [generation for (generation,) in rows]

    def _with_newer(
        self,
        cursor: Cursor[Any],
        space: SpaceId,
        key: Key,
        after: int,
        through: int,
        seqs: Sequence[int],
    ) -> list[int]:
        """Returns `seqs` together with the seqs of newer events that contain values of the record.

        It searches the events with `after < seq <= through`. The result is sorted, with the highest
        seq first.
        """
        scan = ErasureScan([key])
        for _ in _scan(cursor, space, scan, after, through):
            pass
        return sorted({*seqs, *scan.seqs[key]}, reverse=True)

    def _append_event(
        self, transaction: ServiceEventTransaction, key: Key, reason: str, by: str | None
    ) -> int:
        """Appends the `record-erased` event, and returns its seq."""
        entry = record_erased_entry(transaction.envelope, key, reason=reason, by=by)
        # The event comes first, because the database looks for it when operations are erased.
        transaction.append(entry)
        return entry.seq


def _erase_in(cursor: Cursor[Any], space: SpaceId, key: Key, seqs: Sequence[int]) -> int:
    """Removes the record's values from the events with these seqs.

    Returns the number of changed events. An event whose values were already removed stays
    unchanged.
    """
    count, through = 0, max(seqs)
    params = {"seqs": sorted(seqs)}
    for _, rows in _pages(cursor, SELECT_CHOSEN, space, 0, through, through, params):
        erased = [
            (seq, *parts)
            for seq, state, salt in rows
            if (parts := erase_keys(state, salt, {key})) is not None
        ]
        if erased:
            numbers, states, salts = zip(*erased, strict=True)
            changed = cursor.execute(
                ERASE_OPERATIONS,
                {
                    "space": space,
                    "seqs": bigint_array(numbers),
                    "states": bytea_array(states),
                    "salts": bytea_array(salts),
                },
            ).fetchall()
            assert len(changed) == len(erased)
            count += len(erased)
    return count


def vacuum(url: str, *, full: bool = False) -> None:
    """Runs VACUUM on the log and the master table, to remove the old versions of changed rows.

    If `full` is true, it runs VACUUM FULL, which rewrites the tables. All other statements on these
    tables then wait until it has ended. If the role lacks the right to vacuum a table, the function
    logs an error and returns normally.
    """
    tables = SQL(", ").join(map(Identifier, ("events", *MasterProjection.tables)))
    statement = SQL("VACUUM (FULL) {}") if full else SQL("VACUUM {}")
    with psycopg.connect(url, autocommit=True, **CONNECTION) as conn:
        refused: list[str] = []  # PostgreSQL sends notices, and continues with the next table
        conn.add_notice_handler(lambda notice: refused.append(notice.message_primary or ""))
        conn.execute(statement.format(tables))
    if refused:
        log.error("the owner of the tables must vacuum, this role may not", refused=refused)


def _scan(
    cursor: Cursor[Any], space: SpaceId, scan: ErasureScan, after: int, through: int
) -> Iterator[int]:
    """Searches the events with `after < seq <= through` for values of the records to erase.

    The results are collected in `scan`: the function passes each event to `scan.note`. It reads,
    page by page, only events with operations on the collections of these records. After each page
    it yields the seq up to which the log has been searched.
    """
    for reached, rows in _named(cursor, space, after, through, scan.collections):
        for seq, state in rows:
            scan.note(seq, state)
        yield reached


def _named(
    cursor: Cursor[Any], space: SpaceId, after: int, through: int, collections: list[str]
) -> Iterator[tuple[int, list[Any]]]:
    """Reads the events with `after < seq <= through` that contain operations on these collections.

    It yields them page by page. Each page is a pair: the last seq that the page covers, and the
    rows.
    """
    params = {"collections": collections}
    return _pages(cursor, SELECT_NAMED, space, after, through, SCAN_EVENTS, params)


def _pages(
    cursor: Cursor[Any],
    statement: str,
    space: SpaceId,
    after: int,
    through: int,
    stride: int,
    params: dict[str, Any],
) -> Iterator[tuple[int, list[Any]]]:
    """Runs `statement` for the events with `after < seq <= through`, and yields the rows by page.

    Each page is a pair: the last seq that the page covers, and the rows. A page covers at most
    `stride` seqs. It covers fewer seqs if its events would exceed `PAGE_BYTES` in total.
    """
    binary = cursor.connection.cursor(row_factory=tuple_row, binary=True)
    while after < through:
        end = min(after + stride, through)
        bounds = page_params(space, after, end, limit=stride, bytes_max=PAGE_BYTES)
        rows = binary.execute(statement, bounds | params).fetchall()
        is_cut = sum(len(row[1]) for row in rows) > PAGE_BYTES
        after = rows[-1][0] if is_cut else end
        yield after, rows
