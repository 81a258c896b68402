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
       signed_at = excluded.signed_at,
       alarm = NULL,
       alarm_detail = NULL,
       alarm_since = NULL
 -- a note that returns late from the witnesses must not replace a newer one
 WHERE checkpoints.log IS DISTINCT FROM excluded.log
    OR checkpoints.size <= excluded.size
RETURNING space
"""

ALARM = """
INSERT INTO checkpoints (space, alarm, alarm_detail, alarm_since)
VALUES (%(space)s, %(alarm)s, %(detail)s, now())
    ON CONFLICT (space) DO UPDATE
   SET alarm_since = CASE WHEN checkpoints.alarm = excluded.alarm
                          THEN checkpoints.alarm_since
                          ELSE excluded.alarm_since END,
       alarm = excluded.alarm,
       alarm_detail = excluded.alarm_detail
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

# The signer runs this once after a start, and after an outage of the database.
SELECT_HEADS = """
SELECT s.log::text, s.head, p.position, s.alarm
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'proofs' AND p.is_live
 WHERE s.space = %(space)s
"""

TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('foldlog signer'), hashtext(%(space)s))"


class Heads(NamedTuple):
    """The id and the head of a log, and the number of events in the Merkle tree over this log.

    `alarm` names the events that are missing in the log; usually it is `None`.
    """

    log: str
    head: int
    size: int
    alarm: str | None


class PostgresProofTree(ProofTree):
    def __init__(self, datastore: Datastore):
        self._datastore = datastore
        self._alarms = LogAlarms(datastore)

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

    @contextmanager
    def signing(self, space: SpaceId) -> Iterator[bool]:
        """Tries to lock a space for signing until the `with` block ends.

        Yields `True` if this process has the lock, and `False` if another process has it.
        """
        with self._datastore.committed() as cursor:
            row = cursor.execute(TRY_LOCK, {"space": space}).fetchone()
            yield bool(row and row[0])

    def alarm(self, space: SpaceId, code: str, detail: str) -> None:
        with self._datastore.committed() as cursor:
            cursor.execute(ALARM, {"space": space, "alarm": code, "detail": detail})
