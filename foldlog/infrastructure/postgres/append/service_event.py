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

    Call `lock` first, and then `append`. Use `cursor` for all other statements of the transaction.
    Statements before `lock` may wait for other locks, because other transactions can still append
    pushes to the space. If the block ends without a call of `append`, the transaction is rolled
    back.
    """

    def __init__(self, cursor: Cursor[Any], space: str, attempt: Attempt):
        self.cursor = cursor
        self.entry: LogEntry | None = None  #: the appended event
        self._space = space
        self._attempt = attempt

    def lock(self, *, creates_space: bool = False) -> SpaceState:
        """Locks the space and returns its state, which lacks the devices and the schemas.

        It also sets `envelope`, the metadata of the event to append. If the space does not exist,
        it creates the space if `creates_space` is true; otherwise it raises `UnknownSpace`.
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
        """Appends an event that was made with this transaction's `envelope`.

        Later statements of this transaction see the event at once; readers see it after the commit.
        """
        assert self.entry is None, "one event in a transaction"
        self.entry = entry
        self._attempt.may_commit = True
        batch = LogBatch(self._space, self.state.log, self.state.mark, [entry])
        is_appended = append_batch(self.cursor.connection, batch)
        assert is_appended, "decided under the lock"


#: A function that opens a transaction for one event of the service in the given space.
OpenServiceEvent = Callable[[str], AbstractContextManager[ServiceEventTransaction]]
