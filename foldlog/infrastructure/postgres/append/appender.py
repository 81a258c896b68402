"""Appends a group of pushes to one space, in one transaction.

The appender first tries a quick way, which takes no lock. It decides each push with the cached
state of the space, and sends one SQL statement that appends the new events. The cached state
contains the id of the log, its head (the seq of the last event), and the mark of the head (a short
hash of that event). The statement compares these three with the database. If they differ, because
another process has appended meanwhile, the statement changes no data, and the appender uses the
slow way.

The slow way locks the space, reads its state and all other needed data from the database, and then
accepts or refuses the pushes. The appender also uses the slow way if the cached state is missing or
too old, if the cache lacks data that the group needs, or if the quick way would refuse a push. So a
push is refused only after a check under the lock.
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
from foldlog.domain.lookups import Lookups, keys_to_load, pushes_within
from foldlog.domain.ports import Receipt
from foldlog.domain.push_decider import PushDecider
from foldlog.domain.space_state import SpaceState
from foldlog.domain.step_budget import GROUP_STEPS_MAX, Steps
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS, is_lock_timeout
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch

from .errors import Attempt, append_errors
from .group_commit import Postponed
from .loading import Loader
from .service_event import ServiceEventTransaction
from .space_cache import DatabaseClock, SpaceCache

#: limit of the remembered spaces whose lock timed out
CONTENDED_MAX = 1_000


@dataclass
class Appended:
    """The result of appending a group of pushes: the outcome of each push, and the appended events.

    `outcomes` contains one item for each push, in the order of the pushes. The item is a `Receipt`
    if the push was accepted, `Postponed` if it belongs into the next group, and otherwise the error
    with which it was refused.
    """

    outcomes: list[Receipt | Exception]
    log: str
    mark_before: str  #: the mark of the event before `entries`
    entries: list[LogEntry]


class Appender:
    """Appends pushes and service events. Each call appends to one space.

    Several threads may use one appender at the same time, if each thread appends to another space.

    The parameter `cached_mark` is a function: `cached_mark(space, seq)` returns from memory the
    mark (a short hash) of the event `seq`, or `None` if the mark must be read from the database.
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
        """Accepts or refuses each push of a group, and appends the accepted changesets.

        The group ends early if its checks against schemas take more than `GROUP_STEPS_MAX`. The
        further pushes are postponed.

        Returns an `Appended` object with the outcome of each push and the appended events.

        Raises `StorageUnavailable` if the database is unavailable.

        Raises `OutcomeUnknown` if the connection breaks during the commit. It is then unknown
        whether the pushes were stored.

        Raises `LogIncomplete` if events are missing in the log. Raises `SuspectedHole` if they seem
        to be missing; the caller must then look again.

        Other database errors are raised unchanged. Such an error may be caused by invalid data in a
        single push of the group.
        """
        steps = Steps(GROUP_STEPS_MAX)
        with append_errors(self._datastore) as attempt:
            try:
                with self._datastore.get_connection() as conn:
                    attempt.may_commit = True
                    appended = self._append_quickly(conn, space, pushes, steps)
                    attempt.may_commit = False
                    if appended is None:
                        self._cache.drop(space)
                        appended = self._append_locked(conn, space, pushes, steps, attempt)
                    postponed = len(pushes) - len(appended.outcomes)
                    appended.outcomes += [Postponed()] * postponed
                    return appended
            except DATABASE_ERRORS as exc:
                self._cache.drop(space)
                if is_lock_timeout(exc):
                    self._note_contended(space)
                raise

    def _append_quickly(
        self, conn: Connection[Any], space: str, pushes: Sequence[Push], steps: Steps
    ) -> Appended | None:
        """Tries to append the group without a lock, using the cached state of the space.

        Returns the result if the events were appended. Otherwise it returns `None`, and the log is
        unchanged; the caller then uses the slow way. This happens if the cached state is missing or
        outdated, or if the cache lacks data that the group needs. It also happens if a push would
        be refused, if an id is already in the log, or if the group contains no new event.
        """
        cached = self._cache.get(space)
        if cached is None:
            return None
        state = cached.state
        if keys_to_load(pushes, state.schemas, steps):
            return None
        # Known ids are not looked up here, because the statement fails if an id is already stored.
        lookups = Lookups(
            marks=self._loader.add_devices_and_get_marks(conn, space, state, pushes),
            erasures=self._loader.erasures(conn, space, state, pushes),
        )
        decider, outcomes = self._decide(state, lookups, cached.clock, pushes, steps)
        if not decider.entries or any(isinstance(outcome, Exception) for outcome in outcomes):
            return None
        if not _write(conn, space, decider):
            return None
        appended = Appended(outcomes, state.log, state.mark, decider.entries)
        cached.advance(decider.entries, decider.counters)
        return appended

    def _append_locked(
        self,
        conn: Connection[Any],
        space: str,
        pushes: Sequence[Push],
        steps: Steps,
        attempt: Attempt,
    ) -> Appended:
        """Locks the space, appends the accepted pushes, and caches the new state of the space.

        Returns the outcome of each push and the appended events. A missing space is created. If all
        pushes are then refused, the transaction is rolled back, so the space is still missing
        afterwards.
        """
        with conn.cursor(row_factory=tuple_row) as cursor, conn.transaction():
            state, lookups, clock, is_new = self._loader.lock_and_load(
                conn, cursor, space, pushes, steps, shorten_lock_timeout=space in self._contended
            )
            self._contended.discard(space)
            decider, outcomes = self._decide(state, lookups, clock, pushes, steps)
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
        self,
        state: SpaceState,
        lookups: Lookups,
        clock: DatabaseClock,
        pushes: Sequence[Push],
        steps: Steps,
    ) -> tuple[PushDecider, list[Receipt | Exception]]:
        """Accepts or refuses the pushes of a group, in the order of the group, until `steps` are
        used up.

        Returns a pair: the `PushDecider`, whose `entries` are the new events to append, and a list
        with one outcome for each of the decided pushes. The outcome is a receipt, or the error with
        which the push is refused.
        """
        decider = PushDecider(
            state,
            lookups,
            now_ms=clock.now_ms(),
            salt=salts(pushes),
            limits=self._limits,
            steps=steps,
        )
        outcomes: list[Receipt | Exception] = []
        for push in pushes_within(pushes, steps):
            try:
                outcomes.append(Receipt(state.log, 0, decider.take(push)))
            except FoldlogError as exc:
                outcomes.append(exc)
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                outcome.head = decider.head
        return decider, outcomes

    def _note_contended(self, space: str) -> None:
        """Remembers that a transaction waited too long for the lock of this space.

        The next transaction for this space then waits at most 200 ms for the lock. A longer wait
        would block a thread that the pushes to other spaces need too.
        """
        if len(self._contended) >= CONTENDED_MAX:
            self._contended.clear()
        self._contended.add(space)

    @contextmanager
    def service_event(self, space: str) -> Iterator[ServiceEventTransaction]:
        """Opens a transaction in which the caller may append one event of the service.

        An event of the service is an event that the service itself makes, such as `token-granted`.
        Use this method in a `with` statement, which gets a `ServiceEventTransaction`. At the end of
        the block, the transaction is committed if the caller has appended an event, and otherwise
        rolled back.

        Raises `StorageUnavailable` if the database is unavailable. Raises `OutcomeUnknown` if the
        connection breaks during the commit. It is then unknown whether the event was stored.
        """
        with append_errors(self._datastore) as attempt, self._datastore.committed() as cursor:
            transaction = ServiceEventTransaction(cursor, space, attempt)
            yield transaction
            if transaction.entry is None:
                raise Rollback


def _write(conn: Connection[Any], space: str, decider: PushDecider) -> bool:
    """Appends the new events in `decider.entries` to the log. Returns `True` after a success.

    Returns `False`, and leaves the log unchanged, in two cases: another process has appended events
    to the space since `decider.state` was read, or the log already contains an event with the same
    id as one of the new events.
    """
    log, mark = decider.state.log, decider.state.mark
    return append_batch(conn, LogBatch(space, log, mark, decider.entries, decider.counters))


def salts(pushes: Sequence[Push]) -> Callable[[], bytes]:
    """Returns a function without parameters that returns a new random salt (bytes) at each call.

    There is one salt for each changeset of the pushes, and one system call makes all of them in
    advance. This is faster than one system call for each salt, because this thread may have to wait
    for Python's interpreter lock (GIL) after each system call.
    """
    size = proofs.SALT_BYTES
    drawn = secrets.token_bytes(size * sum(len(push.changesets) for push in pushes))
    parts = iter(range(0, len(drawn), size))

    def salt() -> bytes:
        start = next(parts)
        return drawn[start : start + size]

    return salt
