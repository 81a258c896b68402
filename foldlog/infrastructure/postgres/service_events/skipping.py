"""Stepping over an event at which the master table stands still.

The table `skipped` is written with the `event-skipped` event, by whatever brings that one to the
log; whoever reads events to fold them reads, in the place of one that it names, one that says
nothing.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Any

from psycopg import Cursor

from foldlog.domain.errors import NotStopped
from foldlog.domain.events import Envelope, LogEntry
from foldlog.domain.names import check_reason
from foldlog.domain.ports import SpaceId
from foldlog.domain.proofs import SALT_BYTES
from foldlog.domain.skipping import Skipped, event_skipped_entry
from foldlog.infrastructure.postgres.append.appender import Locked

# Locked as the projector locks them, so that it is not just getting past the event.
LOCK_GENERATIONS = """
SELECT generation, position, is_live, stopped_at
  FROM projections
 WHERE space = %(space)s
   AND projection = 'master'
 ORDER BY generation
   FOR UPDATE
"""

GO_ON = """
UPDATE projections
   SET stopped_at = NULL, stopped_why = NULL, stopped_until = NULL
 WHERE space = %(space)s
   AND projection = 'master'
   AND position = %(seq)s - 1
RETURNING generation
"""


class Skipper:
    """`append_service_event` is the event store's."""

    def __init__(self, append_service_event: Callable[..., LogEntry | None]):
        self._append_service_event = append_service_event

    def skip(self, space: SpaceId, seq: int, reason: str, by: str | None) -> Skipped:
        check_reason(reason, by)

        def prepare(cursor: Cursor[Any]) -> None:
            rows = cursor.execute(LOCK_GENERATIONS, {"space": space}).fetchall()
            for _, position, is_live, stopped_at in rows:
                if is_live and (stopped_at, position) != (seq, seq - 1):
                    raise NotStopped(
                        f"the master table of {space!r} does not stand still at seq {seq}"
                    )
                if position >= seq:
                    # It would go on with what the live one shall not have.
                    raise NotStopped(f"a rebuild of {space!r} has got past seq {seq}: let it end")

        def decide(_: Cursor[Any], locked: Locked) -> LogEntry:
            return event_skipped_entry(
                Envelope(
                    locked.head + 1,
                    str(uuid.uuid4()),
                    locked.received_at,
                    secrets.token_bytes(SALT_BYTES),
                ),
                seq,
                reason=reason,
                by=by,
            )

        def finish(cursor: Cursor[Any], _: LogEntry) -> None:
            cursor.execute(GO_ON, {"space": space, "seq": seq})

        entry = self._append_service_event(space, decide, prepare=prepare, finish=finish)
        assert entry is not None
        return Skipped(seq, entry.seq)
