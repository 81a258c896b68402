"""Defines `LocalStore`, which gives access to all tables of a replica's file, and collects the
operations of an app in changesets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any, Literal

import msgspec

from foldlog.client.errors import NotARecord, WrongReplica
from foldlog.client.record import TEMPORARY
from foldlog.domain.changesets import Operation, check_operation
from foldlog.domain.errors import InvalidRequest
from foldlog.domain.limits import LIMITS
from foldlog.domain.merge import Key
from foldlog.domain.names import is_space

from .conflicts import Conflicts
from .database import Database
from .erasure import Erasure
from .marks import Marks
from .meta import Meta
from .queue import Queue
from .records import Records, changed_fields
from .sent import Sent
from .view import Draft, View


class LocalStore:
    """Stores the records and the queue of one space in a file.

    `now_ms` returns the time in ms since 1970, and `new_id` returns a new id. `on_queued` is
    called after a changeset was committed to the queue. The constructor raises `WrongReplica`
    if the file belongs to another space.
    """

    def __init__(
        self,
        path: str | Path,
        space: str | None,
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        on_queued: Callable[[], None],
    ):
        self.now_ms = now_ms
        self.new_id = new_id
        self._on_queued = on_queued
        self.database = Database(path)
        self.meta = Meta(self.database)
        self.queue = Queue(self.database, self.meta)
        self.sent = Sent(self.database)
        self.view = View(self.database, self.meta, self.queue)
        self.records = Records(self.database)
        self.marks = Marks(self.database)
        self.conflicts = Conflicts(self.database)
        self.erasure = Erasure(self.database, self.meta)
        self._thread = local()  # the draft of the calling thread
        try:
            self.space = self._bind(space)
        except WrongReplica:
            self.database.close()
            raise

    def _bind(self, space: str | None) -> str:
        """Returns the name of the space that the file belongs to. If the file is new, first saves
        the name `space` and a new device id in the file.

        Raises `WrongReplica` in two cases: the file belongs to another space than `space`, or the
        file is new and `space` is missing or invalid.
        """
        with self.database.transaction():
            bound: str | None = self.meta.get("space")
            if bound is not None:
                if space not in (None, bound):
                    raise WrongReplica(f"this file is a replica of {bound!r}, not of {space!r}")
                return bound
            if space is None or not is_space(space):
                raise WrongReplica(f"a new replica needs the name of a space, not {space!r}")
            self.meta.set(space=space, device=self.new_id())
            return space

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def changeset(self, *, guard: Literal["unchanged"] | None = None) -> Iterator[None]:
        """Puts all operations that this thread makes in the `with` block into one changeset. At the
        end of the block, adds the changeset to the queue and calls `on_queued`.

        If this thread has a changeset open already, the operations are added to the open changeset.
        """
        thread = self._thread
        if getattr(thread, "is_open", False):
            yield
            return
        with self.database.transaction():
            thread.is_open, thread.draft, thread.guard = True, None, guard
            try:
                yield
            finally:
                thread.is_open = False
            draft: Draft | None = thread.draft
            if draft is not None:
                self.queue.append(draft.queued)
        if draft is not None:
            self._on_queued()

    def apply(self, op: Operation) -> None:
        """Adds an operation to the open changeset, and updates the record that the app
        reads.

        If no changeset is open, a new changeset is made for this operation alone. If the
        record is temporary, the operation only changes the record and is left out of the
        queue. Raises `NotARecord` if a value cannot be stored.
        """
        record = self.records.find(op.key)
        if record is not None and record.sync_status == TEMPORARY:
            self.put_temporary(op.key, changed_fields(record, op))
            return
        op = _checked(op)
        with self.changeset():
            if self._thread.draft is None:
                # The base of a changeset is the cursor at its first operation.
                self._thread.draft = Draft(
                    self.queue.begin(
                        self.new_id(), self.meta.after, self.now_ms(), self._thread.guard
                    )
                )
            self.view.add(self._thread.draft, op)

    def put_temporary(self, key: Key, fields: dict[str, Any]) -> None:
        """Stores the fields of a temporary record, which is never sent to the server. Raises
        `NotARecord` if a value cannot be stored.
        """
        _checked(Operation("put", *key, fields=fields))
        self.records.put_temporary(key, fields)


def _checked(op: Operation) -> Operation:
    """Checks an operation, and returns a copy of the operation that was encoded as JSON and decoded
    again. The copy therefore has the same values that the device later receives from the server.

    Raises `NotARecord` if the operation is over a limit, or has a value that JSON cannot express.
    """
    try:
        check_operation(op, LIMITS)
        return msgspec.json.decode(msgspec.json.encode(op), type=Operation)
    except (InvalidRequest, UnicodeEncodeError, TypeError) as exc:
        raise NotARecord(str(exc)) from exc
