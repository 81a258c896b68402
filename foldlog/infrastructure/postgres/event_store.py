"""The event store on PostgreSQL: appends events, reads ranges of the log, and erases records."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from foldlog.domain.changesets import Push
from foldlog.domain.collections import Definition, Outcome, Proposal, Version
from foldlog.domain.erasure import Erasable, Erased, Selection
from foldlog.domain.errors import (
    FoldlogError,
    LimitExceeded,
    OutcomeUnknown,
    RateLimited,
    StorageUnavailable,
)
from foldlog.domain.events import LogEntry
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import Key
from foldlog.domain.ports import EventStore, Progress, Range, RangeQuery, Receipt, SpaceId
from foldlog.domain.skipping import Skipped
from foldlog.infrastructure.postgres.append.appender import Appender
from foldlog.infrastructure.postgres.append.group_commit import GroupCommit, Postponed, QueueFull
from foldlog.infrastructure.postgres.append.service_event import ServiceEventTransaction
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.log.alarms import LogAlarms, SuspectedHole
from foldlog.infrastructure.postgres.log.ranges import RangeReader
from foldlog.infrastructure.postgres.log.tail_cache import LogEnd, LogTailCache
from foldlog.infrastructure.postgres.service_events.collections import Collections
from foldlog.infrastructure.postgres.service_events.erasure import Eraser, vacuum
from foldlog.infrastructure.postgres.service_events.skipping import Skipper

SELECT_SKIPPED = """
SELECT seq
  FROM skipped
 WHERE space = %(space)s
 ORDER BY seq
"""

#: The pushes of one group. A group of this size is decided quickly, and its message to PostgreSQL
#: is far below the limit of 1 GB.
GROUP_BYTES_MAX = 32 * 2**20
#: An operation counts as this many bytes at least, because a short one takes time too.
OPERATION_BYTES = 200
#: After a failed group, its pushes are retried one by one. Retries end this long after the group
#: began, because the devices have waited for the group already.
ALONE_SECONDS_MAX = 2.0


class PostgresEventStore(EventStore):
    """Stores the logs in PostgreSQL. It appends pushes by group commit, and reads without locks.

    After each commit that appends events to a space, it calls `on_append(space, head)`. The creator
    of the store passes this function, to notify processes that wait for new events. The attribute
    `tails` caches the newest events of each log. The attribute `alarms` has the alarms of logs with
    missing events.
    """

    def __init__(
        self,
        datastore: Datastore,
        *,
        limits: Limits = LIMITS,
        on_append: Callable[[SpaceId, int], None] = lambda space, head: None,
    ):
        self._datastore = datastore
        self._limits = limits
        self._on_append = on_append
        self.tails = LogTailCache(limits=limits)
        self.alarms = LogAlarms(datastore)
        self._reader = RangeReader(datastore, limits, self.tails, self.alarms)
        self._appender = Appender(datastore, limits, self.tails.mark_at)
        self._collections = Collections(datastore, self.append_service_event, limits)
        self._eraser = Eraser(datastore, self.append_service_event)
        self._skipper = Skipper(self.append_service_event)
        self._group_commit: GroupCommit[Push, Receipt] = GroupCommit(
            self._append,
            weigh=_weight,
            group_weight_max=GROUP_BYTES_MAX,
            waiting_weight_max=limits.waiting_bytes_per_space_max,
        )

    def close(self) -> None:
        """Waits until all submitted pushes have an outcome, and then ends all threads."""
        self._group_commit.close()

    def submit(self, space: SpaceId, push: Push, rate_key: str = "") -> Future[Receipt]:
        try:
            return self._group_commit.submit(space, push, rate_key)
        except QueueFull:
            limit = self._limits.waiting_bytes_per_space_max
            raise RateLimited("waiting_bytes_per_space_max", limit) from None

    def _append(self, space: SpaceId, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        """Appends a group of pushes in one transaction, and returns the outcome of each push.

        If the transaction fails with an unexpected error, the method retries each push in its own
        transaction. If one invalid push has caused the error, only this push fails again.
        """
        until = time.monotonic() + ALONE_SECONDS_MAX
        try:
            outcomes = self._append_group(space, pushes)
        except (StorageUnavailable, OutcomeUnknown):
            raise
        except Exception as exc:
            # The database refused data that the service accepted, or the service has a bug. One
            # push is the likely cause, and the other pushes must be stored.
            outcomes = [exc] * len(pushes)
        if len(pushes) == 1:
            return outcomes
        return list(self._retry_alone(space, pushes, outcomes, until))

    def _retry_alone(
        self,
        space: SpaceId,
        pushes: Sequence[Push],
        outcomes: Sequence[Receipt | Exception],
        until: float,
    ) -> Iterator[Receipt | Exception]:
        """Retries the failed pushes of a group, and yields the final outcome of each push.

        A failed push is retried in its own transaction, if another push of the group may have
        caused the failure. Retries stop at the time `until` (of the monotonic clock), or after the
        first retry that ends with `StorageUnavailable` or `OutcomeUnknown`. The remaining pushes
        get the outcome `StorageUnavailable`.
        """
        for push, outcome in zip(pushes, outcomes, strict=True):
            if not _may_succeed_alone(outcome):
                yield outcome
                continue
            alone: Receipt | Exception = StorageUnavailable()
            if time.monotonic() < until:
                alone = self._append_alone(space, push)
            if isinstance(alone, (StorageUnavailable, OutcomeUnknown)):
                until = 0.0  # further attempts would fail too, and delay the answers
            yield alone

    def _append_group(self, space: SpaceId, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        """Appends a group of pushes in one transaction, and returns the outcome of each push.

        After the commit it notifies the readers that wait for new events of this space.
        """
        try:
            appended = self._appender.append(space, pushes)
        except SuspectedHole as hole:
            self.alarms.confirm_or_retry(space, hole)
        if appended.entries:
            self._announce(space, appended.log, appended.mark_before, appended.entries)
        return appended.outcomes

    def _append_alone(self, space: SpaceId, push: Push) -> Receipt | Exception:
        """Appends one push in its own transaction, and returns a receipt or the error."""
        try:
            return self._append_group(space, [push])[0]
        except Exception as exc:
            return exc

    def _announce(
        self, space: SpaceId, log: str, mark_before: str, entries: Sequence[LogEntry]
    ) -> None:
        """Adds new events of a space to the cache `tails`, and calls `on_append` with the head."""
        head = entries[-1].seq
        self.tails.update(space, LogEnd(log, head, entries, mark_before, time.monotonic()))
        self._on_append(space, head)

    @contextmanager
    def append_service_event(self, space: SpaceId) -> Iterator[ServiceEventTransaction]:
        """Opens a transaction in which the caller may append one event of the service.

        After the commit, readers that wait for new events of this space are notified.

        Raises `LogIncomplete` if events are missing in the log. Raises `StorageUnavailable` if the
        database is unavailable. Raises `OutcomeUnknown` if the connection breaks during the commit.
        It is then unknown whether the event was stored.
        """
        try:
            with self._appender.service_event(space) as transaction:
                yield transaction
        except SuspectedHole as hole:
            self.alarms.confirm_or_retry(space, hole)
        if transaction.entry is not None:
            state = transaction.state
            self._announce(space, state.log, state.mark, [transaction.entry])

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        return self._reader.range_after(space, query)

    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        return self.tails.range_after(space, query)

    def cached_head(self, space: SpaceId) -> int | None:
        return self.tails.head(space)

    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        return self._reader.entries(space, after=after, through=through)

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        return self.tails.watch(space, on_growth)

    def read_tail(self, space: SpaceId) -> None:
        """Reads the newest events of a space from the database into the cache `tails`.

        If the cache lacks too many of these events, only the head is cached.
        """
        self._reader.read_tail(space)

    def collections(self, space: SpaceId) -> list[Version]:
        return self._collections.current(space)

    def collection(
        self, space: SpaceId, collection: str, version: int | None = None
    ) -> tuple[Definition, list[Version]]:
        return self._collections.definition(space, collection, version)

    def define(
        self,
        space: SpaceId,
        collection: str,
        wanted: Proposal,
        *,
        seconds_max: float | None = None,
        report: Callable[[int], None] = lambda checked: None,
    ) -> Outcome:
        return self._collections.define(
            space, collection, wanted, seconds_max=seconds_max, report=report
        )

    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        return self._eraser.find(space, wanted, report)

    def erase(
        self,
        space: SpaceId,
        keys: Collection[Key],
        *,
        reason: str,
        by: str | None = None,
        tidies: bool = False,
        report: Progress = lambda done, of: None,
    ) -> list[Erased]:
        erased = self._eraser.erase(space, keys, reason, by, report)
        # A vacuum reads the tables of all spaces, so it runs only after a new erasure.
        if tidies and any(one.events for one in erased):
            with translated(self._datastore):
                vacuum(self._datastore.url)
        return erased

    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        return self._skipper.skip(space, seq, reason, by)

    def skipped(self, space: SpaceId) -> frozenset[int]:
        rows = self._datastore.fetch_all(SELECT_SKIPPED, {"space": space})
        return frozenset(seq for (seq,) in rows)


def _weight(push: Push) -> int:
    """Returns the weight of a push in bytes. The total weight of the pushes in a group is limited.

    The weight is the size of the push's body, but at least `OPERATION_BYTES` for each operation.
    """
    operations = sum(len(changeset.ops) for changeset in push.changesets)
    return max(push.body_bytes, operations * OPERATION_BYTES)


def _may_succeed_alone(outcome: Receipt | Exception) -> bool:
    """Tells whether a failed push should be retried in its own transaction.

    `outcome` is the push's outcome in the group. A retry is useful if another push of the group may
    have caused the failure: after an unexpected error, or if all pushes of the group together
    exceed `looked_up_bytes_max`. If the push was accepted or postponed, the result is `False`.
    """
    if isinstance(outcome, LimitExceeded):
        return bool(outcome.extra["limit"] == "looked_up_bytes_max")
    return isinstance(outcome, Exception) and not isinstance(outcome, (FoldlogError, Postponed))
