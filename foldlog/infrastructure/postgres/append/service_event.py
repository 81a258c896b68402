"""Appending an event of the service itself, such as `token-granted` or `record-erased`."""

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
    """A transaction that appends one event of the service to a space, or is rolled back.

    `lock` comes first, then `append`. `cursor` serves all other statements of the transaction.
    Statements before `lock` may wait for other locks, while pushes to the space continue. If the
    block ends before `append`, all statements are rolled back.
    """

    def __init__(self, cursor: Cursor[Any], space: str, attempt: Attempt):
        self.cursor = cursor
        self.entry: LogEntry | None = None  #: the appended event
        self._space = space
        self._attempt = attempt

    def lock(self, *, creates_space: bool = False) -> SpaceState:
        """Locks the space and returns its state, except devices and schemas.

        Raises `UnknownSpace` unless `creates_space`.
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
        """Appends an event with this `envelope`.

        The database sees the event from here on, and readers see it after the commit.
        """
        assert self.entry is None, "one event in a transaction"
        self.entry = entry
        self._attempt.may_commit = True
        batch = LogBatch(self._space, self.state.log, self.state.mark, [entry])
        is_appended = append_batch(self.cursor.connection, batch)
        assert is_appended, "decided under the lock"


#: of a space
OpenServiceEvent = Callable[[str], AbstractContextManager[ServiceEventTransaction]]
