"""Reads Merkle trees from PostgreSQL, and reads and stores signed checkpoints.

The class `PostgresProofTree` implements the domain's interface `ProofTree`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from foldlog.domain.errors import FoldlogError, NoCheckpoint
from foldlog.domain.merkle import Tile
from foldlog.domain.ports import ProofTree, SpaceId, TreeHead
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.alarms import LogAlarms
from foldlog.infrastructure.postgres.log.heads import absent

from .projection import tile_params
from .signers import END_ALARMS, Signers, holds

SELECT_TREE = """
SELECT s.log::text, p.position
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'proofs' AND p.is_live
 WHERE s.space = %(space)s
"""

SELECT_LIVE_TILES = """
SELECT t.level, t.number, t.hashes
  FROM projections p
  JOIN tiles t
    ON t.space = p.space AND t.generation = p.generation
  JOIN unnest(%(levels)s::integer[], %(numbers)s::bigint[]) AS wanted (level, number)
    ON wanted.level = t.level AND wanted.number = t.number
 WHERE p.space = %(space)s
   AND p.projection = 'proofs'
   AND p.is_live
   AND t.space = %(space)s
 ORDER BY t.level, t.number
"""

SELECT_NOTE = """
SELECT s.space, c.note
  FROM spaces s
  LEFT JOIN checkpoints c
    ON c.space = s.space AND c.log = s.log
 WHERE s.space = %(space)s
   AND NOT s.importing
"""

# This statement covers all spaces of a shard.
SELECT_PUBLISHED = """
SELECT s.space, s.log::text, c.note
  FROM spaces s
  JOIN checkpoints c
    ON c.space = s.space AND c.log = s.log
 WHERE c.note IS NOT NULL
 ORDER BY s.space
"""

PUBLISH = """
INSERT INTO checkpoints (space, log, size, note, signed_at)
SELECT space, log, %(size)s, %(note)s, now()
  FROM spaces
 WHERE space = %(space)s
   AND log = %(log)s  -- the log may have forked since
    ON CONFLICT (space) DO UPDATE
   SET log = excluded.log,
       size = excluded.size,
       note = excluded.note,
       signed_at = excluded.signed_at
 -- a note that returns late from the witnesses must not replace a newer one
 WHERE checkpoints.log IS DISTINCT FROM excluded.log
    OR checkpoints.size <= excluded.size
RETURNING space
"""

# The alarm of another folder stays: each folder knows only its own checkpoints.
ALARM = """
INSERT INTO checkpoints (space, alarm, alarm_detail, alarm_since, alarm_raised_by)
VALUES (%(space)s, %(alarm)s, %(detail)s, now(), %(folder)s)
    ON CONFLICT (space) DO UPDATE
   SET alarm_since = CASE WHEN checkpoints.alarm = excluded.alarm
                          THEN checkpoints.alarm_since
                          ELSE excluded.alarm_since END,
       alarm = excluded.alarm,
       alarm_detail = excluded.alarm_detail,
       alarm_raised_by = excluded.alarm_raised_by
 WHERE checkpoints.alarm IS NULL
    OR checkpoints.alarm_raised_by IS NULL
    OR checkpoints.alarm_raised_by = excluded.alarm_raised_by
RETURNING space
"""

END_ALARM = f"""{END_ALARMS}
 WHERE space = %(space)s
   AND alarm IS NOT NULL
   AND (alarm_raised_by IS NULL OR alarm_raised_by = %(folder)s)
RETURNING space
"""

# This statement covers all spaces of a shard.
SELECT_TO_SIGN = """
SELECT s.space
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'proofs' AND p.is_live
  LEFT JOIN checkpoints c
    ON c.space = s.space
 WHERE p.position > 0
   AND (c.space IS NULL
        OR c.alarm IS NOT NULL
        OR c.log <> s.log
        OR c.size <> p.position
        OR c.size > s.head)
 ORDER BY s.space
"""

SELECT_HEADS = """
SELECT s.log::text,
       s.head,
       p.position,
       s.alarm,
       coalesce(c.size, 0),
       f.alarm,
       f.alarm_raised_by::text
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'proofs' AND p.is_live
  LEFT JOIN checkpoints c
    ON c.space = s.space AND c.log = s.log
  LEFT JOIN checkpoints f
    ON f.space = s.space AND f.alarm IS NOT NULL
 WHERE s.space = %(space)s
"""

# The logs of a database with their published checkpoints, for a takeover.
SELECT_LOGS = """
SELECT s.space, s.log::text, c.note
  FROM spaces s
  LEFT JOIN checkpoints c
    ON c.space = s.space AND c.log = s.log
 WHERE NOT s.importing
 ORDER BY s.space
"""

TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('foldlog signer'), hashtext(%(space)s))"


class Heads(NamedTuple):
    """The state of a log, for its signer.

    `size` is the number of events in the Merkle tree over the log, and `published` the number of
    events in the published checkpoint. `incomplete` names the events that are missing in the log;
    usually it is `None`. `alarm` is the code of a signer's alarm, or `None`, and `alarm_by` the
    folder of that signer.
    """

    log: str
    head: int
    size: int
    incomplete: str | None
    published: int
    alarm: str | None
    alarm_by: str | None


class PostgresProofTree(ProofTree):
    def __init__(self, datastore: Datastore):
        self._datastore = datastore
        self._alarms = LogAlarms(datastore)
        self.signers = Signers(datastore, "log")

    def _absent(self, space: SpaceId) -> FoldlogError:
        with self._datastore.reading() as cursor:
            return absent(cursor, space)

    def tree(self, space: SpaceId) -> TreeHead:
        found = self._datastore.fetch_one(SELECT_TREE, {"space": space})
        if found is None:
            raise self._absent(space)
        return TreeHead(*found)

    def tiles(self, space: SpaceId, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
        params = {"space": space, **tile_params(wanted)}
        rows = self._datastore.fetch_all(SELECT_LIVE_TILES, params, binary=True)
        return {Tile(level, number): hashes for level, number, hashes in rows}

    def checkpoint(self, space: SpaceId) -> bytes:
        found = self._datastore.fetch_one(SELECT_NOTE, {"space": space})
        if found is None:
            raise self._absent(space)
        if found[1] is None:
            raise NoCheckpoint(f"no checkpoint of {space!r} was signed yet")
        return bytes(found[1])

    def publish(self, space: SpaceId, log: str, size: int, note: bytes) -> None:
        params = {"space": space, "log": log, "size": size, "note": note}
        with self._datastore.writing() as cursor:
            cursor.execute(PUBLISH, params)

    # For the signer, which handles the database's errors itself.

    def to_sign(self) -> list[SpaceId]:
        """Returns a list of the spaces that need a new checkpoint.

        A space needs a new checkpoint if it has none, or if its Merkle tree or log id has changed
        since the last checkpoint. A space also needs one if the signer has stored an error for the
        space. Spaces with an empty Merkle tree are left out.
        """
        with self._datastore.rows() as cursor:
            return [space for (space,) in cursor.execute(SELECT_TO_SIGN, prepare=True).fetchall()]

    def published(self) -> list[tuple[SpaceId, str, bytes]]:
        """Returns a tuple (space, log id, signed note) for each space that has a signed checkpoint.

        The signed note is the text of the last checkpoint of the space.
        """
        with self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_PUBLISHED, prepare=True).fetchall()
        return [(space, log, bytes(note)) for space, log, note in rows]

    def heads(self, space: SpaceId) -> Heads:
        with self._datastore.rows() as cursor:
            found = cursor.execute(SELECT_HEADS, {"space": space}, prepare=True).fetchone()
        if found is None:
            raise self._absent(space)
        return Heads(*found)

    def check_whole(self, space: SpaceId, *, after: int, size: int) -> None:
        """Counts the events of a tree of `size` events after the seq `after`.

        Raises `LogIncomplete` if events are missing in the log.
        """
        self._alarms.look(space, after=after, events=size - after)

    def logs(self) -> list[tuple[SpaceId, str, bytes | None]]:
        """Returns a tuple (space, log id, signed note) for each space, and `None` for the note of a
        space without a published checkpoint."""
        with self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_LOGS).fetchall()
        return [(space, log, None if note is None else bytes(note)) for space, log, note in rows]

    @contextmanager
    def signing(self, space: SpaceId, folder: str | None = None) -> Iterator[bool]:
        """Tries to lock a space for signing until the `with` block ends.

        Yields `True` if this process has the lock, and `False` if another process has it. With
        `folder`, it also yields `False` if another folder has taken over, and keeps a takeover away
        during the block.
        """
        with self._datastore.committed() as cursor:
            row = cursor.execute(TRY_LOCK, {"space": space}).fetchone()
            is_ours = bool(row and row[0])
            yield is_ours and (folder is None or holds(cursor, "log", folder))

    def alarm(self, space: SpaceId, code: str, detail: str, folder: str | None) -> None:
        """Stores an alarm of the signer with this folder, unless another folder has raised one."""
        params = {"space": space, "alarm": code, "detail": detail, "folder": folder}
        with self._datastore.committed() as cursor:
            cursor.execute(ALARM, params)

    def end_alarm(self, space: SpaceId, folder: str) -> None:
        """Ends the alarm of a space, if the signer with this folder has raised it."""
        with self._datastore.committed() as cursor:
            cursor.execute(END_ALARM, {"space": space, "folder": folder})
