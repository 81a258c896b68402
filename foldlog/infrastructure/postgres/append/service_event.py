"""Appends an event that the service itself makes, such as `token-granted` or `record-erased`."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from psycopg import Cursor

from foldlog.domain.events import Envelope, LogEntry
from foldlog.domain.proofs import SALT_BYTES
from foldlog.domain.space_state import SpaceState
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch

from .errors import Attempt
from .spaces import create_space, lock_space


class ServiceEventTransaction:
    """A transaction in which the caller appends one event of the service to a space.

    The caller first calls `lock`, and then `append`. It runs all other statements of the
    transaction with `cursor`.

    Pushes to the space wait from the call of `lock` until the end of the transaction. Therefore run
    all statements that may wait for other locks before `lock`. If the caller leaves the `with`
    block without a call of `append`, the transaction is rolled back.
    """

    def __init__(self, cursor: Cursor[Any], space: str, attempt: Attempt):
        self.cursor = cursor
        self.entry: LogEntry | None = None  #: the appended event
        self._space = space
        self._attempt = attempt

    def lock(self, *, creates_space: bool = False) -> SpaceState:
        """Locks the space until the transaction ends, and returns the state of the space.

        In the returned state, the members `counters`, `revoked` and `schemas` are empty. The method
        also sets `envelope`, the metadata (seq, id, time and salt) of the event to append.

        If the space is missing and `creates_space` is true, the space is created. If it is missing
        and `creates_space` is false, `UnknownSpace` is raised.
        """
        if creates_space:
            create_space(self.cursor, self._space)
        self.state, now_ms = lock_space(self.cursor, self._space)
        self.envelope = Envelope(
            seq=self.state.head + 1,
            id=str(uuid.uuid4()),
            received_at=self.state.next_received_at(now_ms),
            salt=secrets.token_bytes(SALT_BYTES),
        )
        return self.state

    def append(self, entry: LogEntry) -> None:
        """Appends an event to the space. The caller must make the event with `envelope`.

        Later statements of this transaction see the event at once. Other transactions see it after
        the commit.
        """
        assert self.entry is None, "one event in a transaction"
        self.entry = entry
        self._attempt.may_commit = True
        batch = LogBatch(self._space, self.state.log, self.state.mark, [entry])
        is_appended = append_batch(self.cursor.connection, batch)
        assert is_appended, "decided under the lock"


#: A function that opens a transaction for one event of the service in the given space.
OpenServiceEvent = Callable[[str], AbstractContextManager[ServiceEventTransaction]]
