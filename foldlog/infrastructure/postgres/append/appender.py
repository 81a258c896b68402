"""Appending the waiting pushes of one space, all in one transaction.

What was true after this process's last append of a space is kept. If nobody else has appended
since, the next group is decided on that and written in one round trip, on the condition that the
head still is where it was; the head moves with everything that an append decides on, so this one
comparison is enough. Else, and for whatever needs more than what is kept, the space is locked,
looked at, and decided under the lock. Nothing is ever refused on what is kept: it may be old.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import Connection, Cursor, Rollback
from psycopg.rows import tuple_row

from foldlog.domain import proofs
from foldlog.domain.changesets import Push
from foldlog.domain.collections import Schemas
from foldlog.domain.errors import FoldlogError, OutcomeUnknown, StorageUnavailable, UnknownSpace
from foldlog.domain.events import LogEntry
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key, Record
from foldlog.domain.ports import Receipt
from foldlog.domain.push_decider import PushDecider, keys_to_load, keys_unseen
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import (
    bigint_array,
    integer_array,
    text_array,
    uuid_array,
)
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import (
    DATABASE_ERRORS,
    is_connection_error,
    is_lock_timeout,
    is_temporary,
    needs_new_connections,
)
from foldlog.infrastructure.postgres.log.marks import SELECT_FOR_MARKS, marks_of
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch
from foldlog.infrastructure.postgres.projections import VERSIONS

from .guards import records_at_head
from .schemas import SELECT_DIGESTS, SchemaCache

LOCK_SPACE = """
SELECT log::text, head, mark, received_at_ms, erased_seq
  FROM spaces
 WHERE space = %(space)s
   FOR UPDATE
"""

# A committer that waits for a row keeps other spaces waiting for their turns. So who has it for
# long is waited for once, and then, until the row can be had again, no longer than this.
SHORTEN_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '200ms'"

# A statement of its own, and after the lock: the time must not be older than the wait.
SELECT_NOW = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# Few bytes can name many large events: beyond the limit they come without their state, and one
# alone always with it. Lengths are known without reading what is measured.
SELECT_KNOWN = """
SELECT event_id::text, topic, CASE WHEN bytes_before < %(bytes_max)s THEN state END
  FROM (
       SELECT event_id, topic, state,
              sum(octet_length(state)) OVER (
                  ORDER BY event_id ROWS UNBOUNDED PRECEDING
              ) - octet_length(state) AS bytes_before
         FROM events
        WHERE originator_id = %(space)s
          AND event_id = ANY(%(ids)s::uuid[])
       ) named
 ORDER BY event_id
"""

SELECT_COUNTERS = """
SELECT device::text, counter, revoked_at_ms IS NOT NULL
  FROM devices
 WHERE space = %(space)s
   AND device = ANY(%(devices)s::uuid[])
 ORDER BY device
"""

SELECT_ERASURES = """
SELECT collection, id, seq
  FROM erasures
  JOIN unnest(%(collections)s::text[], %(ids)s::text[]) AS named (collection, id)
 USING (collection, id)
 WHERE space = %(space)s
 ORDER BY collection, id
"""

CREATE_SPACE = """
INSERT INTO spaces (space)
VALUES (%(space)s)
    ON CONFLICT (space) DO NOTHING
RETURNING space
"""

CREATE_PROJECTIONS = """
INSERT INTO projections (space, projection, generation, is_live, fold_version)
SELECT %(space)s, projection, 1, true, fold_version
  FROM unnest(%(names)s::text[], %(versions)s::integer[]) AS new (projection, fold_version)
RETURNING generation
"""

#: of so many spaces, and devices of each, is kept what was true after the last append
SPACES_KEPT_MAX = 1_000
DEVICES_KEPT_MAX = 10_000
#: spaces that are remembered for being locked by somebody for long
STUCK_MAX = 1_000
#: after so long a space is looked at again, if only for the database's clock
KEPT_SECONDS_MAX = 60.0


class _Look(NamedTuple):
    """What the first round trip found."""

    log: str
    head: int
    mark: str
    received_at: int
    erased_seq: int
    now_ms: int  #: the database's clock, and ours at that moment
    looked_at: float
    known: dict[str, bytes | None]  #: `None`: too much to be loaded
    counters: dict[str, int]
    revoked: set[str]  #: of the devices that push
    marks: dict[int, str]
    is_new: bool  #: the space was made just now
    schemas: Schemas


@dataclass
class _Kept:
    """What was true of a space after our last append, at its head."""

    log: str
    head: int
    mark: str
    received_at: int
    erased_seq: int  #: of the last `record-erased`; it moves with the head
    counters: dict[str, int]
    revoked: set[str]
    #: the database's clock, in ms, less ours that only counts up
    clock_offset: float
    until: float
    schemas: Schemas  #: a definition moves the head, so these are right as long as it is

    def now_ms(self) -> int:
        return int(time.monotonic() * 1000 + self.clock_offset)


class Locked(NamedTuple):
    """A space whose row is locked: what whoever decides an event of our own goes by."""

    log: str
    head: int
    mark: str
    received_at: int  #: ms since 1970; what the next event is stamped with


@dataclass
class Appended:
    """What became of a group: an outcome for each push, and what was appended."""

    outcomes: list[Receipt | Exception]
    log: str
    mark_before: str  #: of the event before `entries`
    entries: list[LogEntry]


def create_space(cursor: Cursor[Any], space: str) -> bool:
    """Makes a space with its projections; `False` if there is one already."""
    if cursor.execute(CREATE_SPACE, {"space": space}).fetchone() is None:
        return False
    names, versions = text_array(VERSIONS), integer_array(VERSIONS.values())
    cursor.execute(CREATE_PROJECTIONS, {"space": space, "names": names, "versions": versions})
    return True


def _counters_of(rows: Iterable[tuple[str, int, bool]]) -> tuple[dict[str, int], set[str]]:
    """The counters by device, and which of the devices were revoked."""
    counters: dict[str, int] = {}
    revoked: set[str] = set()
    for device, counter, is_revoked in rows:
        counters[device] = counter
        if is_revoked:
            revoked.add(device)
    return counters, revoked


class Appender:
    """Appends groups of pushes, one of a space at a time.

    `cached_mark(space, seq)` tells the mark of an event without asking the database, if it can.
    """

    def __init__(
        self,
        datastore: Datastore,
        limits: Limits,
        cached_mark: Callable[[str, int], str | None] = lambda space, seq: None,
    ):
        self._datastore = datastore
        self._limits = limits
        self._cached_mark = cached_mark
        self._kept: dict[str, _Kept] = {}
        self._stuck: set[str] = set()  #: whose row could not be locked in time
        self._schemas = SchemaCache()

    def append(self, space: str, pushes: Sequence[Push]) -> Appended:
        """Raises `StorageUnavailable` or `OutcomeUnknown` for all pushes.

        And whatever else the database says, which the data of one of them may be the cause of.
        """
        writing = False
        try:
            with self._datastore.get_connection() as conn:
                writing = True
                appended = self._append_quickly(conn, space, pushes)
                writing = False
                if appended is not None:
                    return appended
                self._kept.pop(space, None)
                with conn.cursor(row_factory=tuple_row) as cursor, conn.transaction():
                    look = self._look(conn, cursor, space, pushes)
                    intake, outcomes = self._decide_locked(cursor, space, pushes, look)
                    if intake.entries:
                        writing = True
                        fits = self._write(conn, space, look.mark, intake)
                        assert fits, "decided under the lock"
                    elif look.is_new and all(isinstance(o, Exception) for o in outcomes):
                        raise Rollback  # a space that nothing was stored in is none
        except DATABASE_ERRORS as exc:
            self._kept.pop(space, None)
            if is_lock_timeout(exc):
                self._note_stuck(space)
            if needs_new_connections(exc):
                self._datastore.check_pool()
            if is_connection_error(exc):
                # Once COMMIT may have been sent, a broken connection says nothing about it.
                raise (OutcomeUnknown() if writing else StorageUnavailable()) from exc
            if is_temporary(exc):
                raise StorageUnavailable() from exc
            raise
        self._keep(space, look, intake)
        return Appended(outcomes, look.log, look.mark, intake.entries)

    def _note_stuck(self, space: str) -> None:
        if len(self._stuck) >= STUCK_MAX:
            self._stuck.clear()  # each of them is waited for once more
        self._stuck.add(space)

    def append_service_event(
        self,
        space: str,
        decide: Callable[[Cursor[Any], Locked], LogEntry | None],
        *,
        makes_space: bool = False,
        prepare: Callable[[Cursor[Any]], None] | None = None,
        finish: Callable[[Cursor[Any], LogEntry], None] | None = None,
    ) -> tuple[Locked, LogEntry | None]:
        """Appends one event that is no changeset: what `decide` makes of the locked space.

        `decide` runs in the transaction of the append and may write what belongs to the event; if
        it returns `None` or raises, nothing has happened. `prepare` runs before the space is
        locked, to wait for what pushes must not wait for; `finish` when the event is in the log.
        Raises `UnknownSpace`, unless it
        `makes_space`, `StorageUnavailable`, `OutcomeUnknown`.
        """
        writing = False
        try:
            with self._datastore.get_connection() as conn:
                with conn.cursor(row_factory=tuple_row) as cursor, conn.transaction():
                    if prepare is not None:
                        prepare(cursor)
                    if makes_space:
                        create_space(cursor, space)
                    locked = self._lock(cursor, space)
                    entry = decide(cursor, locked)
                    if entry is None:
                        raise Rollback
                    writing = True
                    fits = append_batch(conn, LogBatch(space, locked.log, locked.mark, [entry]))
                    assert fits, "decided under the lock"
                    if finish is not None:
                        finish(cursor, entry)
                return locked, entry
        except DATABASE_ERRORS as exc:
            if needs_new_connections(exc):
                self._datastore.check_pool()
            if is_connection_error(exc):
                raise (OutcomeUnknown() if writing else StorageUnavailable()) from exc
            if is_temporary(exc):
                raise StorageUnavailable() from exc
            raise

    def _lock(self, cursor: Cursor[Any], space: str) -> Locked:
        found = cursor.execute(LOCK_SPACE, {"space": space}, prepare=True).fetchone()
        if found is None:
            raise UnknownSpace(space)
        log, head, mark, received_at, _ = found
        (now_ms,) = cursor.execute(SELECT_NOW, prepare=True).fetchone() or (0,)
        return Locked(log, head, mark, max(received_at, now_ms))

    def _append_quickly(
        self, conn: Connection[Any], space: str, pushes: Sequence[Push]
    ) -> Appended | None:
        """Appends on what is kept; `None` if that is not enough, or not true any more."""
        kept = self._kept.get(space)
        if kept is None or time.monotonic() > kept.until:
            return None
        if keys_to_load(pushes, kept.schemas):
            return None
        marks = self._load_missing(conn, space, kept, pushes)
        intake, outcomes = self._decide(
            kept,
            pushes,
            received_at=max(kept.received_at, kept.now_ms()),
            known={},  # an id that is stored already keeps the statement from appending
            marks=marks,
            records={},
            erasures=self._erasures(conn, space, kept.erased_seq, pushes),
        )
        if not intake.entries or any(isinstance(outcome, Exception) for outcome in outcomes):
            return None
        if not self._write(conn, space, kept.mark, intake):
            return None
        appended = Appended(outcomes, kept.log, kept.mark, intake.entries)
        self._advance(kept, intake)
        return appended

    def _load_missing(
        self, conn: Connection[Any], space: str, kept: _Kept, pushes: Sequence[Push]
    ) -> dict[int, str]:
        """Adds the devices' counters that are not kept, and returns the marks to check.

        Read without a lock: counters move with the head, and if that one has moved, nothing is
        appended; marks never change.
        """
        devices = {push.device for push in pushes} - kept.counters.keys()
        marks = {kept.head: kept.mark, 0: ""}
        seqs = []
        for seq in {push.after for push in pushes if push.after} - marks.keys():
            mark = self._cached_mark(space, seq)
            if mark is None:
                seqs.append(seq)
            else:
                marks[seq] = mark
        if devices or seqs:
            names = {
                "space": space,
                "devices": uuid_array(devices),
                "seqs": bigint_array(seqs),
            }
            with conn.pipeline():
                counters = conn.cursor(row_factory=tuple_row)
                counters.execute(SELECT_COUNTERS, names, prepare=True)
                found = conn.cursor(row_factory=tuple_row)
                found.execute(SELECT_FOR_MARKS, names, prepare=True)
            known, revoked = _counters_of(counters.fetchall())
            kept.counters |= dict.fromkeys(devices, 0) | known
            kept.revoked |= revoked
            marks |= marks_of(found.fetchall())
        return marks

    def _keep(self, space: str, look: _Look, intake: PushDecider) -> None:
        now = time.monotonic()
        kept = _Kept(
            log=look.log,
            head=look.head,
            mark=look.mark,
            received_at=look.received_at,
            erased_seq=look.erased_seq,
            counters=look.counters,
            revoked=look.revoked,
            clock_offset=look.now_ms - look.looked_at * 1000,
            until=now + KEPT_SECONDS_MAX,
            schemas=look.schemas,
        )
        self._advance(kept, intake)
        while len(self._kept) >= SPACES_KEPT_MAX:
            with suppress(KeyError):  # another thread's
                del self._kept[next(iter(self._kept))]
        self._kept[space] = kept

    def _advance(self, kept: _Kept, intake: PushDecider) -> None:
        if intake.entries:
            last = intake.entries[-1]
            kept.head, kept.mark, kept.received_at = last.seq, last.mark, last.received_at
            kept.counters |= intake.counters
            if len(kept.counters) > DEVICES_KEPT_MAX:
                kept.counters = dict(intake.counters)

    def _look(
        self,
        conn: Connection[Any],
        cursor: Cursor[Any],
        space: str,
        pushes: Sequence[Push],
        is_new: bool = False,
    ) -> _Look:
        changesets = [changeset for push in pushes for changeset in push.changesets]
        names = {
            "space": space,
            "ids": uuid_array({changeset.id for changeset in changesets}),
            "devices": uuid_array({push.device for push in pushes}),
            "seqs": bigint_array({push.after for push in pushes if push.after}),
            "bytes_max": self._limits.looked_up_bytes_max,
        }
        cursors = []
        # Sent one after another without waiting; each statement sees what is committed when it
        # runs, and so all but the first see what is true under the lock.
        with conn.pipeline():
            if space in self._stuck:
                cursor.execute(SHORTEN_LOCK_TIMEOUT)
            for statement in (
                LOCK_SPACE,
                SELECT_NOW,
                SELECT_KNOWN,
                SELECT_COUNTERS,
                SELECT_FOR_MARKS,
                SELECT_DIGESTS,
            ):
                cursors.append(conn.cursor(row_factory=tuple_row))
                cursors[-1].execute(statement, names, prepare=True)
        locked, now, known, counters, marks, digests = cursors
        looked_at = time.monotonic()
        self._stuck.discard(space)
        row = locked.fetchone()
        if row is None:
            is_new = create_space(cursor, space)
            # Another may have made it, and appended, before we had the lock: look again.
            return self._look(conn, cursor, space, pushes, is_new)
        log, head, mark, received_at, erased_seq = row
        (now_ms,) = now.fetchone() or (0,)
        return _Look(
            log,
            head,
            mark,
            max(received_at, now_ms),
            erased_seq,
            now_ms,
            looked_at,
            {
                id: None if state is None else UPCASTER.upcast(topic, state)
                for id, topic, state in known.fetchall()
            },
            *_counters_of(counters.fetchall()),
            marks_of(marks.fetchall()),
            is_new,
            self._schemas.load(cursor, space, digests.fetchall()),
        )

    def _decide_locked(
        self, cursor: Cursor[Any], space: str, pushes: Sequence[Push], look: _Look
    ) -> tuple[PushDecider, list[Receipt | Exception]]:
        keys = keys_to_load(pushes, look.schemas)
        records: dict[Key, Record] | None = {}
        if keys:
            bytes_max = self._limits.looked_up_bytes_max
            records = records_at_head(
                cursor, space, look.head, keys, self._limits, bytes_max=bytes_max
            )
        return self._decide(
            look,
            pushes,
            received_at=look.received_at,
            known=look.known,
            marks=look.marks,
            records=records,
            erasures=self._erasures(cursor.connection, space, look.erased_seq, pushes),
        )

    def _decide(
        self,
        seen: _Look | _Kept,
        pushes: Sequence[Push],
        *,
        received_at: int,
        known: Mapping[str, bytes | None],
        marks: Mapping[int, str],
        records: Mapping[Key, Record] | None,
        erasures: Mapping[Key, int],
    ) -> tuple[PushDecider, list[Receipt | Exception]]:
        intake = PushDecider(
            log=seen.log,
            head=seen.head,
            received_at=received_at,
            known=known,
            counters=seen.counters,
            revoked=seen.revoked,
            marks=marks,
            records=records,
            salt=salts(pushes),
            erasures=erasures,
            limits=self._limits,
            schemas=seen.schemas,
        )
        outcomes: list[Receipt | Exception] = []
        for push in pushes:
            try:
                outcomes.append(Receipt(intake.log, 0, intake.take(push)))
            except FoldlogError as exc:
                outcomes.append(exc)
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                outcome.head = intake.head
        return intake, outcomes

    def _erasures(
        self, conn: Connection[Any], space: str, erased_seq: int, pushes: Sequence[Push]
    ) -> dict[Key, int]:
        """The erasures that some of these changesets have not seen. Mostly there can be none, and
        nothing is asked. Another erasure moves the head, so what is read here holds as long."""
        keys = keys_unseen(pushes, erased_seq)
        if not keys:
            return {}
        collections, ids = zip(*keys, strict=True)
        names = {"space": space, "collections": text_array(collections), "ids": text_array(ids)}
        found = conn.cursor(row_factory=tuple_row).execute(SELECT_ERASURES, names, prepare=True)
        return {(collection, id): seq for collection, id, seq in found.fetchall()}

    def _write(
        self, conn: Connection[Any], space: str, mark_before: str, intake: PushDecider
    ) -> bool:
        batch = LogBatch(space, intake.log, mark_before, intake.entries, intake.counters)
        return append_batch(conn, batch)


def salts(pushes: Sequence[Push]) -> Callable[[], bytes]:
    """Gives as many salts as these pushes can need.

    Drawn at once: each drawing is a system call, at which Python's other threads take their turn,
    and a group of pushes would wait for that as often as it has changesets.
    """
    size = proofs.SALT_BYTES
    drawn = secrets.token_bytes(size * sum(len(push.changesets) for push in pushes))
    parts = iter(range(0, len(drawn), size))

    def salt() -> bytes:
        start = next(parts)
        return drawn[start : start + size]

    return salt
