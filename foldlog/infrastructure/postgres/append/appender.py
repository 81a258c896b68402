"""Appends a group of pushes to one space, in one transaction.

The appender first tries the quick path: it decides the group on the cached state of the space, and
appends the new events in one round trip. The SQL statement checks that the log, the head and the
mark of the space still equal the cached ones. If another process has appended meanwhile, the
statement appends no event, and the appender uses the locked path.

The locked path locks the space, loads its state and all data that the group needs, and decides the
group under the lock. The appender uses it when the cached state is missing or stale, when the group
needs data that is not cached, and when a push would be refused. Only the locked path refuses
pushes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, Rollback
from psycopg.rows import tuple_row

from foldlog.domain import proofs
from foldlog.domain.changesets import Push
from foldlog.domain.errors import FoldlogError
from foldlog.domain.events import LogEntry
from foldlog.domain.limits import Limits
from foldlog.domain.lookups import Lookups, keys_to_load
from foldlog.domain.ports import Receipt
from foldlog.domain.push_decider import PushDecider
from foldlog.domain.space_state import SpaceState
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS, is_lock_timeout
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch

from .errors import Attempt, append_errors
from .loading import Loader
from .service_event import ServiceEventTransaction
from .space_cache import DatabaseClock, SpaceCache

#: limit of the remembered spaces whose lock timed out
CONTENDED_MAX = 1_000


@dataclass
class Appended:
    """The result of appending a group: one outcome for each push, and the appended entries."""

    outcomes: list[Receipt | Exception]
    log: str
    mark_before: str  #: the mark of the event before `entries`
    entries: list[LogEntry]


class Appender:
    """Appends pushes and service events to all spaces.

    Only one thread at a time may append to a space. `cached_mark(space, seq)` returns the mark of
    an event from memory, or `None` if only the database has it.
    """

    def __init__(
        self,
        datastore: Datastore,
        limits: Limits,
        cached_mark: Callable[[str, int], str | None] = lambda space, seq: None,
    ):
        self._datastore = datastore
        self._limits = limits
        self._loader = Loader(limits, cached_mark)
        self._cache = SpaceCache()
        self._contended: set[str] = set()  #: spaces whose lock timed out

    def append(self, space: str, pushes: Sequence[Push]) -> Appended:
        """Decides the pushes of a group, appends their new changesets, and returns the outcomes.

        Raises `StorageUnavailable` if the database is unavailable. Raises `OutcomeUnknown` if the
        connection breaks during the commit, because it is then unknown whether the pushes were
        stored. Raises all other database errors unchanged; invalid data of a single push may be
        their cause.
        """
        with append_errors(self._datastore) as attempt:
            try:
                with self._datastore.get_connection() as conn:
                    attempt.may_commit = True
                    appended = self._append_quickly(conn, space, pushes)
                    attempt.may_commit = False
                    if appended is None:
                        self._cache.drop(space)
                        appended = self._append_locked(conn, space, pushes, attempt)
                    return appended
            except DATABASE_ERRORS as exc:
                self._cache.drop(space)
                if is_lock_timeout(exc):
                    self._note_contended(space)
                raise

    def _append_quickly(
        self, conn: Connection[Any], space: str, pushes: Sequence[Push]
    ) -> Appended | None:
        """Decides and appends the group on the cached state of the space, without a lock.

        Returns `None`, and appends zero events, if the cached state is missing, stale or
        insufficient for the group, if a push would be refused, or if the group has zero new events.
        """
        cached = self._cache.get(space)
        if cached is None:
            return None
        state = cached.state
        if keys_to_load(pushes, state.schemas):
            return None
        # Known ids are not looked up here, because the statement fails if an id is already stored.
        lookups = Lookups(
            marks=self._loader.add_devices_and_get_marks(conn, space, state, pushes),
            erasures=self._loader.erasures(conn, space, state, pushes),
        )
        decider, outcomes = self._decide(state, lookups, cached.clock, pushes)
        if not decider.entries or any(isinstance(outcome, Exception) for outcome in outcomes):
            return None
        if not _write(conn, space, decider):
            return None
        appended = Appended(outcomes, state.log, state.mark, decider.entries)
        cached.advance(decider.entries, decider.counters)
        return appended

    def _append_locked(
        self, conn: Connection[Any], space: str, pushes: Sequence[Push], attempt: Attempt
    ) -> Appended:
        """Decides and appends the group under the lock of the space, and caches the new state."""
        with conn.cursor(row_factory=tuple_row) as cursor, conn.transaction():
            state, lookups, clock, is_new = self._loader.lock_and_load(
                conn, cursor, space, pushes, shorten_lock_timeout=space in self._contended
            )
            self._contended.discard(space)
            decider, outcomes = self._decide(state, lookups, clock, pushes)
            if decider.entries:
                attempt.may_commit = True
                is_appended = _write(conn, space, decider)
                assert is_appended, "decided under the lock"
            elif is_new and all(isinstance(outcome, Exception) for outcome in outcomes):
                raise Rollback  # only an accepted push may create a space
        appended = Appended(outcomes, state.log, state.mark, decider.entries)
        state.advance(decider.entries, decider.counters)
        self._cache.put(space, state, clock)
        return appended

    def _decide(
        self, state: SpaceState, lookups: Lookups, clock: DatabaseClock, pushes: Sequence[Push]
    ) -> tuple[PushDecider, list[Receipt | Exception]]:
        """Returns the decider after it took all pushes, and the outcome of each push.

        An outcome is a receipt, or the error that refuses the push.
        """
        decider = PushDecider(
            state, lookups, now_ms=clock.now_ms(), salt=salts(pushes), limits=self._limits
        )
        outcomes: list[Receipt | Exception] = []
        for push in pushes:
            try:
                outcomes.append(Receipt(state.log, 0, decider.take(push)))
            except FoldlogError as exc:
                outcomes.append(exc)
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                outcome.head = decider.head
        return decider, outcomes

    def _note_contended(self, space: str) -> None:
        """Remembers that the lock of this space timed out.

        The next append waits a shorter time for this lock.
        """
        if len(self._contended) >= CONTENDED_MAX:
            self._contended.clear()
        self._contended.add(space)

    @contextmanager
    def service_event(self, space: str) -> Iterator[ServiceEventTransaction]:
        """Opens a transaction in which the caller may append one event of the service.

        The transaction is rolled back if the caller appends no event. Raises `StorageUnavailable`
        if the database is unavailable. Raises `OutcomeUnknown` if the connection breaks during the
        commit, because it is then unknown whether the event was stored. See
        `ServiceEventTransaction`.
        """
        with append_errors(self._datastore) as attempt, self._datastore.committed() as cursor:
            transaction = ServiceEventTransaction(cursor, space, attempt)
            yield transaction
            if transaction.entry is None:
                raise Rollback


def _write(conn: Connection[Any], space: str, decider: PushDecider) -> bool:
    """Appends the entries that the decider decided on. Returns whether they were appended.

    Returns `False` if another process has changed the space meanwhile.
    """
    log, mark = decider.state.log, decider.state.mark
    return append_batch(conn, LogBatch(space, log, mark, decider.entries, decider.counters))


def salts(pushes: Sequence[Push]) -> Callable[[], bytes]:
    """Returns a function that returns a new random salt at each call.

    The pushes need at most one salt for each changeset. All of these salts are drawn in one system
    call, because Python may switch to another thread at each system call, and the group would then
    wait for the interpreter lock (GIL) once for each changeset.
    """
    size = proofs.SALT_BYTES
    drawn = secrets.token_bytes(size * sum(len(push.changesets) for push in pushes))
    parts = iter(range(0, len(drawn), size))

    def salt() -> bytes:
        start = next(parts)
        return drawn[start : start + size]

    return salt
