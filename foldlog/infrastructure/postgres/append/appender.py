"""Appending a group of pushes to one space, in one transaction.

The quick path decides the group on the cached state of the space, and appends it in one round trip.
The statement is conditional on the cached log, head and mark, and the head moves with everything
that an append is decided on. The condition fails if another process has appended.

The locked path locks the space, loads its state and the other data of the group, and decides under
the lock. It serves the groups that the quick path leaves: the cached state is stale, the group
needs more data, or a push would be refused. Only the locked path refuses pushes.
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

#: spaces that are remembered as contended
CONTENDED_MAX = 1_000


@dataclass
class Appended:
    """The result of a group: an outcome for each push, and the appended entries."""

    outcomes: list[Receipt | Exception]
    log: str
    mark_before: str  #: of the event before `entries`
    entries: list[LogEntry]


class Appender:
    """Appends to all spaces. One thread at a time may append to a space.

    `cached_mark(space, seq)` returns the mark of an event from memory, or `None`.
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
        """Decides the pushes and appends their new changesets.

        Raises `StorageUnavailable` or `OutcomeUnknown` for all pushes. Raises other database errors
        as they are; the data of one push may be their cause.
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
        """Appends on the cached state. Returns `None` if that state is stale or insufficient."""
        cached = self._cache.get(space)
        if cached is None:
            return None
        state = cached.state
        if keys_to_load(pushes, state.schemas):
            return None
        # The lookup of known ids is left out, because the statement fails on a stored id.
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
        """Appends under the lock of the space, and caches its state."""
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
                raise Rollback  # a space begins with an accepted push
        appended = Appended(outcomes, state.log, state.mark, decider.entries)
        state.advance(decider.entries, decider.counters)
        self._cache.put(space, state, clock)
        return appended

    def _decide(
        self, state: SpaceState, lookups: Lookups, clock: DatabaseClock, pushes: Sequence[Push]
    ) -> tuple[PushDecider, list[Receipt | Exception]]:
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
        if len(self._contended) >= CONTENDED_MAX:
            self._contended.clear()
        self._contended.add(space)

    @contextmanager
    def service_event(self, space: str) -> Iterator[ServiceEventTransaction]:
        """Opens a transaction that may append one event of the service. See its class.

        Raises `StorageUnavailable`, `OutcomeUnknown`.
        """
        with append_errors(self._datastore) as attempt, self._datastore.committed() as cursor:
            transaction = ServiceEventTransaction(cursor, space, attempt)
            yield transaction
            if transaction.entry is None:
                raise Rollback


def _write(conn: Connection[Any], space: str, decider: PushDecider) -> bool:
    """Appends the decided entries unless the space has another state than `decider.state`."""
    log, mark = decider.state.log, decider.state.mark
    return append_batch(conn, LogBatch(space, log, mark, decider.entries, decider.counters))


def salts(pushes: Sequence[Push]) -> Callable[[], bytes]:
    """Returns a source of as many salts as these pushes can need.

    All salts are drawn in one system call. At each system call, another thread may take Python's
    lock, and a group of pushes would wait for the lock once for each changeset.
    """
    size = proofs.SALT_BYTES
    drawn = secrets.token_bytes(size * sum(len(push.changesets) for push in pushes))
    parts = iter(range(0, len(drawn), size))

    def salt() -> bytes:
        start = next(parts)
        return drawn[start : start + size]

    return salt
