"""Defines `LocalStore`, which gives access to all tables of a replica's file, and collects the
operations of an app in changesets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any, Literal

from foldlog.client.errors import WrongReplica
from foldlog.client.record import TEMPORARY
from foldlog.domain.changesets import Operation
from foldlog.domain.merge import Key
from foldlog.domain.names import is_space

from .checks import check_compressed, check_size, checked
from .conflicts import Conflicts
from .database import Database
from .erasure import Erasure
from .known_limits import KnownLimits
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
        self.limits = KnownLimits(self.meta)
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
        if self.is_in_changeset:
            yield
            return
        with self.database.transaction():
            thread.is_open, thread.draft, thread.guard = True, None, guard
            try:
                yield
            finally:
                thread.is_open = False
            draft: Draft | None = thread.draft
            if draft is not None and draft.queued.ops:
                check_compressed(draft.size, draft.queued.ops, self.limits.current)
                self.queue.append(draft.queued)
        if draft is not None:
            self._on_queued()

    @property
    def is_in_changeset(self) -> bool:
        """Whether this thread has a changeset open."""
        return getattr(self._thread, "is_open", False)

    @property
    def changeset_bytes(self) -> int:
        """The bytes of the operations in the open changeset, as JSON."""
        draft: Draft | None = self._thread.draft
        return 0 if draft is None else draft.size.json_bytes

    def apply(self, op: Operation) -> None:
        """Adds an operation to the open changeset, and updates the record that the app
        reads.

        If no changeset is open, a new changeset is made for this operation alone. If the
        record is temporary, the operation only changes the record and is left out of the
        queue. Raises `NotARecord` if a value cannot be stored, and `LimitExceeded` if the changeset
        would be too large for the service. The open changeset then stays as it was.
        """
        record = self.records.find(op.key)
        if record is not None and record.sync_status == TEMPORARY:
            self.put_temporary(op.key, changed_fields(record, op))
            return
        limits = self.limits.current
        op, encoded = checked(op, limits)
        with self.changeset():
            if self._thread.draft is None:
                # The base of a changeset is the cursor at its first operation.
                self._thread.draft = Draft(
                    self.queue.begin(
                        self.new_id(), self.meta.after, self.now_ms(), self._thread.guard
                    )
                )
            draft: Draft = self._thread.draft
            size = draft.size.plus(encoded)
            check_size(size, op, limits)
            self.view.add(draft, op)
            draft.size = size

    def put_temporary(self, key: Key, fields: dict[str, Any]) -> None:
        """Stores the fields of a temporary record, which is never sent to the server. Raises
        `NotARecord` if a value cannot be stored.
        """
        checked(Operation("put", *key, fields=fields), self.limits.current)
        self.records.put_temporary(key, fields)
