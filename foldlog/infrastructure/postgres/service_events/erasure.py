"""Erasing records: the one code path that touches the log's rows.

The log is gone over first, without any lock, for the events that hold values of the records. Then,
for each record, one transaction appends the `record-erased` event, takes the record out of every
generation of the projections, and erases its operations in the newest of those events. If there
are more than one transaction should hold, the others follow in further ones: by then no reader of
records sees the values, and no process keeps an event that holds them. Whatever is interrupted is
taken up by erasing again: what is left to do is what the log says.

What may change and what may not, the database checks itself: `pass_erasure_alone` in schema.sql.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
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
from foldlog.domain.errors import UnknownSpace
from foldlog.domain.events import Envelope, LogEntry, decode_event
from foldlog.domain.merge import Key
from foldlog.domain.names import check_reason
from foldlog.domain.ports import Progress, SpaceId
from foldlog.domain.proofs import SALT_BYTES
from foldlog.infrastructure.postgres.append.appender import Locked
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, bytea_array
from foldlog.infrastructure.postgres.connection.datastore import CONNECTION, Datastore
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.log.pages import select_page
from foldlog.infrastructure.postgres.log.tail_cache import TAIL_EVENTS_MAX
from foldlog.infrastructure.postgres.master.projection import MasterProjection

log = structlog.get_logger("foldlog.erasure")

SELECT_HEAD = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
"""

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

# Whoever projects a turn of one of them is waited for, and then finds the log without the values.
LOCK_GENERATIONS = """
SELECT generation
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
 ORDER BY generation
   FOR UPDATE
"""

#: Two that erase in one event would each put back what the other has erased; the database would
#: refuse that, but need not be asked.
LOCK_ERASING = "SELECT pg_advisory_xact_lock(hashtext('erasing'), hashtext(%(space)s))"

ERASE_OPERATIONS = """
SELECT erase_operations(
           %(space)s, %(seqs)s::bigint[], %(states)s::bytea[], %(salts)s::bytea[]
       )
"""

SCAN_EVENTS = 10_000
PAGE_BYTES = 8 * 2**20
#: in one transaction, the newest first: among these are all that a process may keep in memory
ERASE_EVENTS = 5_000
assert ERASE_EVENTS >= TAIL_EVENTS_MAX

AppendServiceEvent = Callable[..., LogEntry | None]


class Eraser:
    """Finds records in a log, and erases them. `append_service_event` is the event store's."""

    def __init__(
        self,
        datastore: Datastore,
        append_service_event: AppendServiceEvent,
        *,
        erase_events: int = ERASE_EVENTS,
    ):
        self._datastore = datastore
        self._append_service_event = append_service_event
        self._erase_events = erase_events
        self._projection = MasterProjection()

    def find(self, space: SpaceId, wanted: Selection, report: Progress) -> list[Erasable]:
        wanted.check()
        with translated(self._datastore), self._datastore.rows() as cursor:
            head = _head(cursor, space)
            keys = set(wanted.keys)
            if wanted.collection is not None:
                pages = _named(cursor, space, 0, head, [wanted.collection])
                for through, rows in pages:
                    for _, state in rows:
                        keys |= {op.key for op in decode_event(state).ops if wanted.names(op)}
                    report(through, 2 * head)
            traces = ErasureScan(keys)
            done = head if wanted.collection is not None else 0
            self._trace(cursor, space, traces, head, lambda seq: report(done + seq, done + head))
        traces.check_all_named()
        return traces.erasable()

    def erase(
        self,
        space: SpaceId,
        keys: Collection[Key],
        reason: str,
        by: str | None,
        report: Progress,
    ) -> list[Erased]:
        check_reason(reason, by)
        traces = ErasureScan(keys)
        with translated(self._datastore), self._datastore.rows() as cursor:
            head = _head(cursor, space)
            self._trace(cursor, space, traces, head, lambda seq: report(seq, head))
        traces.check_all_named()
        return [
            _OneRecord(self, space, key, head, traces.seqs[key], reason, by).erase()
            for key in sorted(traces.seqs)
        ]

    def _trace(
        self,
        cursor: Cursor[Any],
        space: SpaceId,
        traces: ErasureScan,
        head: int,
        report: Callable[[int], None],
    ) -> None:
        for through, rows in _named(cursor, space, 0, head, traces.collections):
            for seq, state in rows:
                traces.note(seq, state)
            report(through)


class _OneRecord:
    """One record that is being erased; `seqs` are the events up to `head` that hold its values."""

    def __init__(
        self,
        eraser: Eraser,
        space: SpaceId,
        key: Key,
        head: int,
        seqs: Sequence[int],
        reason: str,
        by: str | None,
    ):
        self._eraser = eraser
        self._space = space
        self._key = key
        self._head = head
        self._seqs = list(seqs)
        self._reason = reason
        self._by = by
        self._generations: list[int] = []
        self._erased_seq = 0
        self._events = 0

    def erase(self) -> Erased:
        self._eraser._append_service_event(
            self._space, self._decide, prepare=self._prepare, finish=self._finish
        )
        datastore, size = self._eraser._datastore, self._eraser._erase_events
        for start in range(0, len(self._seqs), size):
            with translated(datastore), datastore.committed() as cursor:
                cursor.execute(LOCK_ERASING, {"space": self._space})
                self._erase_in(cursor, self._seqs[start : start + size])
        return Erased(*self._key, self._erased_seq, self._events)

    def _prepare(self, cursor: Cursor[Any]) -> None:
        """Waits for a turn of a projector to end before pushes would have to wait with us."""
        names = {"space": self._space, "projection": self._eraser._projection.name}
        cursor.execute(LOCK_ERASING, names)
        rows = cursor.execute(LOCK_GENERATIONS, names).fetchall()
        self._generations = [generation for (generation,) in rows]

    def _decide(self, cursor: Cursor[Any], locked: Locked) -> LogEntry | None:
        traces = ErasureScan([self._key])
        tail = _named(cursor, self._space, self._head, locked.head, traces.collections)
        for _, rows in tail:
            for seq, state in rows:
                traces.note(seq, state)
        self._seqs = sorted({*self._seqs, *traces.seqs[self._key]}, reverse=True)
        names = {"space": self._space, "collection": self._key[0], "id": self._key[1]}
        row = cursor.execute(SELECT_ERASURE, names).fetchone()
        self._erased_seq = 0 if row is None else row[0]
        if not self._seqs or self._seqs[0] < self._erased_seq:
            return None  # erased already, but for what an interrupted erasure has left
        return record_erased_entry(
            Envelope(
                locked.head + 1,
                str(uuid.uuid4()),
                locked.received_at,
                secrets.token_bytes(SALT_BYTES),
            ),
            self._key,
            reason=self._reason,
            by=self._by,
        )

    def _finish(self, cursor: Cursor[Any], entry: LogEntry) -> None:
        """In the transaction of the event, after it: the database looks for it in the log."""
        self._erased_seq = entry.seq
        newest = self._seqs[: self._eraser._erase_events]
        self._erase_in(cursor, newest)
        self._eraser._projection.delete_record(cursor, self._space, self._generations, self._key)
        self._seqs = self._seqs[len(newest) :]

    def _erase_in(self, cursor: Cursor[Any], seqs: Sequence[int]) -> None:
        names = {"seqs": sorted(seqs)}
        through = max(seqs)
        for _, rows in _pages(cursor, SELECT_CHOSEN, self._space, 0, through, through, names):
            erased = [
                (seq, *parts)
                for seq, state, salt in rows
                if (parts := erase_keys(state, salt, {self._key})) is not None
            ]
            if erased:
                numbers, states, salts = zip(*erased, strict=True)
                changed = cursor.execute(
                    ERASE_OPERATIONS,
                    {
                        "space": self._space,
                        "seqs": bigint_array(numbers),
                        "states": bytea_array(states),
                        "salts": bytea_array(salts),
                    },
                ).fetchall()
                assert len(changed) == len(erased)
                self._events += len(erased)


def vacuum(url: str, *, full: bool = False) -> None:
    """Has PostgreSQL give up the rows as they were before; with `full` by writing the tables anew,
    which shuts everybody out meanwhile."""
    tables = SQL(", ").join(map(Identifier, ("events", *MasterProjection.tables)))
    statement = SQL("VACUUM (FULL) {}") if full else SQL("VACUUM {}")
    with psycopg.connect(url, autocommit=True, **CONNECTION) as conn:
        refused: list[str] = []  # no errors: it goes on with the next table
        conn.add_notice_handler(lambda notice: refused.append(notice.message_primary or ""))
        conn.execute(statement.format(tables))
    if refused:
        log.error("the owner of the tables must vacuum, this role may not", refused=refused)


def _head(cursor: Cursor[Any], space: SpaceId) -> int:
    row = cursor.execute(SELECT_HEAD, {"space": space}).fetchone()
    if row is None:
        raise UnknownSpace(space)
    return int(row[0])


def _named(
    cursor: Cursor[Any], space: SpaceId, after: int, through: int, collections: list[str]
) -> Iterator[tuple[int, list[Any]]]:
    names = {"collections": collections}
    return _pages(cursor, SELECT_NAMED, space, after, through, SCAN_EVENTS, names)


def _pages(
    cursor: Cursor[Any],
    statement: str,
    space: SpaceId,
    after: int,
    through: int,
    stride: int,
    names: dict[str, Any],
) -> Iterator[tuple[int, list[Any]]]:
    """(the seq that was come to, rows) of the events after one seq and up to another one."""
    binary = cursor.connection.cursor(row_factory=tuple_row, binary=True)
    while after < through:
        end = min(after + stride, through)
        bounds = {"after": after, "through": end, "limit": stride, "bytes_max": PAGE_BYTES}
        rows = binary.execute(statement, {"space": space, **bounds, **names}).fetchall()
        is_cut = sum(len(row[1]) for row in rows) > PAGE_BYTES
        after = rows[-1][0] if is_cut else end
        yield after, rows
