"""Reads from PostgreSQL the data that is needed to accept or refuse a group of pushes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from foldlog.domain.changesets import Push
from foldlog.domain.limits import Limits
from foldlog.domain.lookups import Lookups, keys_to_load, keys_unseen
from foldlog.domain.merge import Key, Record
from foldlog.domain.space_state import SpaceState
from foldlog.domain.step_budget import Steps
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, text_array, uuid_array
from foldlog.infrastructure.postgres.log.alarms import SuspectedHole
from foldlog.infrastructure.postgres.log.marks import SELECT_FOR_MARKS, marks_of

from .records_at_head import records_at_head
from .schemas import SELECT_DIGESTS, SchemaCache
from .space_cache import DatabaseClock
from .spaces import LOCK_SPACE, SELECT_LAST, SELECT_NOW, check_whole, create_space

# A thread that waits for the lock of one space delays all other spaces. The appender uses this
# timeout for a space whose lock timed out before, until it gets the lock again.
SHORTEN_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '200ms'"

# A few bytes can name many large events, so only events up to the limit, and at least one, have
# their state in the result. PostgreSQL stores the length of a value apart from the value.
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


class LockedSpace(NamedTuple):
    """The state of a locked space, and the other data needed to accept or refuse pushes to it.

    `lookups` contains the stored events, records, marks and erasures to which the pushes refer.
    `clock` is set to the database's time, and computes the time later without a query.
    """

    state: SpaceState
    lookups: Lookups
    clock: DatabaseClock
    is_new: bool  #: created in this transaction


class Loader:
    """Reads the data that is needed to accept or refuse groups of pushes.

    The parameter `cached_mark` is a function: `cached_mark(space, seq)` returns from memory the
    mark (a short hash) of the event `seq`, or `None` if the mark must be read from the database.
    """

    def __init__(self, limits: Limits, cached_mark: Callable[[str, int], str | None]):
        self._limits = limits
        self._cached_mark = cached_mark
        self._schemas = SchemaCache()

    def lock_and_load(
        self,
        conn: Connection[Any],
        cursor: Cursor[Any],
        space: str,
        pushes: Sequence[Push],
        steps: Steps,
        *,
        shorten_lock_timeout: bool = False,
    ) -> LockedSpace:
        """Locks the space, and returns its state and the other data needed to check the pushes.

        If the space is missing, it is created. If `shorten_lock_timeout` is true, the transaction
        fails after it has waited 200 ms for a lock. `steps` is the budget of the group.
        """
        is_new = False
        if shorten_lock_timeout:
            cursor.execute(SHORTEN_LOCK_TIMEOUT)
        while (found := self._lock(conn, cursor, space, pushes)) is None:
            # Another process may create the space first, and append before this one has the lock.
            is_new = create_space(cursor, space)
        state, lookups, clock = found
        lookups = replace(
            lookups,
            records=self._records(cursor, space, state, pushes, steps),
            erasures=self.erasures(conn, space, state, pushes),
        )
        return LockedSpace(state, lookups, clock, is_new)

    def _lock(
        self, conn: Connection[Any], cursor: Cursor[Any], space: str, pushes: Sequence[Push]
    ) -> tuple[SpaceState, Lookups, DatabaseClock] | None:
        """Locks the space, and reads its state in one round trip to the database.

        Returns three values: the state, the stored events and marks to which the pushes refer, and
        a clock set to the database's time. Returns `None` if the space is missing. The records and
        the erasures are still missing in the result; `lock_and_load` adds them.

        Raises `LogIncomplete` if the space has an alarm. Raises `SuspectedHole` if the head is not
        the seq of the last event, or if an event is missing at the cursor of a push.
        """
        changesets = [changeset for push in pushes for changeset in push.changesets]
        seqs = {push.after for push in pushes if push.after}
        params = {
            "space": space,
            "ids": uuid_array({changeset.id for changeset in changesets}),
            "devices": uuid_array({push.device for push in pushes}),
            "seqs": bigint_array(seqs),
            "bytes_max": self._limits.looked_up_bytes_max,
        }
        # The pipeline sends all statements at once. Each one sees the data that is committed when
        # it starts, so the statements after the first see the data under the lock.
        with conn.pipeline():
            locked, last, now, known, counters, marks, digests = [
                conn.cursor(row_factory=tuple_row).execute(statement, params, prepare=True)
                for statement in (
                    LOCK_SPACE,
                    SELECT_LAST,
                    SELECT_NOW,
                    SELECT_KNOWN,
                    SELECT_COUNTERS,
                    SELECT_FOR_MARKS,
                    SELECT_DIGESTS,
                )
            ]
        (now_ms,) = now.fetchone() or (0,)
        clock = DatabaseClock.set_to(now_ms)
        row = locked.fetchone()
        if row is None:
            return None
        log, head, mark, received_at, erased_seq, alarm = row
        check_whole(space, alarm, head=head, last=last.fetchone())
        mark_of = marks_of(marks.fetchall())
        for seq in seqs:
            if seq <= head and seq not in mark_of:
                raise SuspectedHole(seq - 1, seq)
        counter_of, revoked = _counters_of(counters.fetchall())
        schemas = self._schemas.load(cursor, space, digests.fetchall())
        events = {
            id: None if state is None else UPCASTER.upcast(topic, state)
            for id, topic, state in known.fetchall()
        }
        state = SpaceState(log, head, mark, received_at, erased_seq, counter_of, revoked, schemas)
        return state, Lookups(known=events, marks=mark_of), clock

    def _records(
        self,
        cursor: Cursor[Any],
        space: str,
        state: SpaceState,
        pushes: Sequence[Push],
        steps: Steps,
    ) -> Mapping[Key, Record] | None:
        """Returns the records that are needed to check the pushes, as of the last event.

        The result is a mapping from key to record. Returns `None` if the records cannot be
        computed, for example because the master table is too many events behind the head.
        """
        keys = keys_to_load(pushes, state.schemas, steps)
        if not keys:
            return {}
        bytes_max = self._limits.looked_up_bytes_max
        return records_at_head(cursor, space, state.head, keys, self._limits, bytes_max=bytes_max)

    def erasures(
        self, conn: Connection[Any], space: str, state: SpaceState, pushes: Sequence[Push]
    ) -> dict[Key, int]:
        """Returns the erased records that are changed by old changesets of the pushes.

        The result is a dict from the key of a record to the seq of its last erasure. A changeset is
        old if its base is lower than `erased_seq`, the seq of the last erasure in the space: the
        device may have made it before it received the erasure. Usually all changesets are newer;
        the method then makes no query.

        The result is valid as long as the head of the log is unchanged, because each erasure
        appends an event.
        """
        keys = keys_unseen(pushes, state.erased_seq)
        if not keys:
            return {}
        collections, ids = zip(*keys, strict=True)
        params = {"space": space, "collections": text_array(collections), "ids": text_array(ids)}
        found = conn.cursor(row_factory=tuple_row).execute(SELECT_ERASURES, params, prepare=True)
        return {(collection, id): seq for collection, id, seq in found.fetchall()}

    def add_devices_and_get_marks(
        self, conn: Connection[Any], space: str, state: SpaceState, pushes: Sequence[Push]
    ) -> dict[int, str]:
        """Reads the counters of the pushing devices, and the marks to which the pushes refer.

        The counters are added to `state`, and so are the ids of the revoked devices. The marks are
        returned as a dict from seq to mark. It contains the mark of each event whose seq is the
        `after` of a push. Only counters and marks that are missing in memory are read from the
        database.

        The method takes no lock, so another append may change the counters. The caller must
        therefore use the result only if the head is still the same at the time of the append. Marks
        are constant.
        """
        devices = {push.device for push in pushes} - state.counters.keys()
        marks = {state.head: state.mark, 0: ""}
        seqs = []
        for seq in {push.after for push in pushes if push.after} - marks.keys():
            mark = self._cached_mark(space, seq)
            if mark is None:
                seqs.append(seq)
            else:
                marks[seq] = mark
        if devices or seqs:
            params = {
                "space": space,
                "devices": uuid_array(devices),
                "seqs": bigint_array(seqs),
            }
            with conn.pipeline():
                counters = conn.cursor(row_factory=tuple_row)
                counters.execute(SELECT_COUNTERS, params, prepare=True)
                found = conn.cursor(row_factory=tuple_row)
                found.execute(SELECT_FOR_MARKS, params, prepare=True)
            counter_of, revoked = _counters_of(counters.fetchall())
            state.counters |= dict.fromkeys(devices, 0) | counter_of
            state.revoked |= revoked
            marks |= marks_of(found.fetchall())
        return marks


def _counters_of(rows: Iterable[tuple[str, int, bool]]) -> tuple[dict[str, int], set[str]]:
    """Returns a dict from device id to counter, and the set of the ids of revoked devices.

    A device's counter is the number of its last stored changeset. `rows` is the result of
    `SELECT_COUNTERS`.
    """
    counters: dict[str, int] = {}
    revoked: set[str] = set()
    for device, counter, is_revoked in rows:
        counters[device] = counter
        if is_revoked:
            revoked.add(device)
    return counters, revoked
