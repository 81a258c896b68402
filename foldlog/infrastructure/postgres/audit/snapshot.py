"""Reads a space from one snapshot of the database.

All statements run in one read-only transaction, so they see the log, the tables beside it and the
projections as they stood at one moment. Appends, projections, erasures and rebuilds continue
meanwhile, and none of them can make a healthy space look wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.rows import dict_row, tuple_row

from foldlog.domain.audit import Evidence
from foldlog.domain.derived import Row, RowKey
from foldlog.domain.merkle import Tile
from foldlog.infrastructure.postgres.append.loading import SELECT_ERASURES
from foldlog.infrastructure.postgres.connection.datastore import CONNECTION
from foldlog.infrastructure.postgres.proofs.projection import SELECT_TILES, tile_params

BATCH_EVENTS = 1_000
BATCH_BYTES = 8 * 2**20
#: Rows that a stream reads at a time. Larger values come as hashes, so rows are small.
STREAM_ROWS = 1_000
GENERATION_MIN, GENERATION_MAX = -(2**31), 2**31 - 1

# The other pages of the log trust `spaces.event_bytes_max`, which this statement has to prove.
SELECT_EVIDENCE = """
SELECT originator_version,
       state,
       salt,
       ops_hash,
       topic,
       event_id::text,
       device::text,
       received_at_ms,
       collections
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT (
       SELECT count(*)
         FROM (
              SELECT sum(octet_length(state)) OVER (
                         ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                     ) - octet_length(state) AS bytes_before
                FROM events
               WHERE originator_id = %(space)s
                 AND originator_version > %(after)s
                 AND originator_version <= %(through)s
               ORDER BY originator_version
               LIMIT %(limit)s
              ) measured
        WHERE bytes_before <= %(bytes_max)s
       )
"""

#: the columns of `SELECT_EVIDENCE` after the first four
EVENT_COLUMNS = ("topic", "event_id", "device", "received_at_ms", "collections")

SELECT_SPACE = """
SELECT log::text, head, mark, received_at_ms, event_bytes_max, erased_seq
  FROM spaces
 WHERE space = %(space)s
"""

SELECT_LAST_SEQ = """
SELECT coalesce(max(originator_version), 0)
  FROM events
 WHERE originator_id = %(space)s
"""

SELECT_CHECKPOINT = """
SELECT log::text, size, note
  FROM checkpoints
 WHERE space = %(space)s
"""

SELECT_GENERATIONS = """
SELECT projection,
       generation,
       position,
       is_live,
       fold_version,
       has_history,
       has_older_rows,
       stopped_at
  FROM projections
 WHERE space = %(space)s
 ORDER BY projection, generation
"""

# The rows of each table that follows from the events, in the order of its key.
SELECT_ROWS: Mapping[str, tuple[int, str]] = {
    "devices": (
        1,
        """
SELECT device::text,
       counter,
       name,
       registered_at_ms,
       revoked_at_ms
  FROM devices
 WHERE space = %(space)s
 ORDER BY devices.device
""",
    ),
    "tokens": (
        1,
        """
SELECT token::text,
       encode(digest, 'hex') AS digest,
       role,
       device::text,
       name,
       granted_at_ms,
       granted_by,
       expires_at_ms,
       revoked_at_ms,
       revoked_by,
       revoked_reason
  FROM tokens
 WHERE space = %(space)s
 ORDER BY tokens.token
""",
    ),
    "erasures": (
        2,
        """
SELECT collection,
       id,
       seq
  FROM erasures
 WHERE space = %(space)s
 ORDER BY collection, id
""",
    ),
    "skipped": (
        1,
        """
SELECT seq,
       by_seq
  FROM skipped
 WHERE space = %(space)s
 ORDER BY seq
""",
    ),
    "collections": (
        2,
        """
SELECT collection,
       version,
       seq,
       digest,
       schema::text,
       defined_at,
       defined_by,
       is_forced
  FROM collections
 WHERE space = %(space)s
 ORDER BY collection, version
""",
    ),
}

COUNT_TOKENS_OF_EVERY_SPACE = """
SELECT count(*)
  FROM tokens
 WHERE space = ''
"""

# A token of the log that gives access to every space, or to a space without a log.
SELECT_MOVED = """
SELECT t.token::text, t.space
  FROM tokens t
 WHERE (t.token = ANY(%(tokens)s::uuid[]) OR encode(t.digest, 'hex') = ANY(%(digests)s::text[]))
   AND NOT EXISTS (
           SELECT
             FROM spaces s
            WHERE s.space = t.space
       )
 ORDER BY t.space, t.token
 LIMIT 1
"""

COUNT_TILES = """
SELECT level, count(*), max(number)
  FROM tiles
 WHERE space = %(space)s
   AND generation = %(generation)s
 GROUP BY level
 ORDER BY level
"""

# The primary key finds the rows before, between and after the known generations.
SELECT_STRAY = """
SELECT t.generation
  FROM {table} t
  JOIN unnest(%(afters)s::integer[], %(befores)s::integer[]) AS gap (after, before)
    ON t.generation > gap.after AND t.generation < gap.before
 WHERE t.space = %(space)s
 ORDER BY t.generation
 LIMIT 1
"""


class StoredGeneration(NamedTuple):
    """A row of the table `projections`."""

    projection: str
    number: int
    position: int
    is_live: bool
    fold_version: int
    has_history: bool
    has_older_rows: bool
    stopped_at: int | None


class StoredCheckpoint(NamedTuple):
    """A row of the table `checkpoints`, without what only the signer reads."""

    log: str | None
    size: int
    note: bytes | None


class Snapshot:
    """The rows of one space at one moment. `conn` must have an open read-only transaction."""

    def __init__(self, conn: Connection[Any], space: str):
        self.space = space
        self._conn = conn
        self._streams = 0

    def events(self, after: int, through: int) -> Iterator[tuple[list[Evidence], list[Row]]]:
        """Yields the stored events with `after < seq <= through` in batches.

        Each batch is a pair: a list of `Evidence` objects in the order of seq, and a list with the
        other columns of each event, which are those of `derived.columns_of`. If the log has a gap,
        where events are missing, the method skips the gap without an error. The audit that uses the
        lists detects the gap.
        """
        while after < through:
            params = {"after": after, "through": through}
            limits = {"limit": BATCH_EVENTS, "bytes_max": BATCH_BYTES}
            rows = self._all(SELECT_EVIDENCE, params | limits, binary=True)
            if not rows:
                return
            yield (
                [Evidence(state, salt, ops_hash) for _, state, salt, ops_hash, *_ in rows],
                [dict(zip(EVENT_COLUMNS, row[4:], strict=True)) for row in rows],
            )
            after = rows[-1][0]

    def space_row(self) -> Row | None:
        """Returns the row of the table `spaces`, or `None` if the database lacks the space."""
        with self._conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(SELECT_SPACE, {"space": self.space}).fetchone()

    def last_seq(self) -> int:
        """Returns the highest seq in the table `events`, or 0."""
        return int(self._all(SELECT_LAST_SEQ)[0][0])

    def checkpoint(self) -> StoredCheckpoint | None:
        found = self._all(SELECT_CHECKPOINT)
        return StoredCheckpoint(*found[0]) if found else None

    def generations(self, projection: str | None = None) -> list[StoredGeneration]:
        """Returns the generations of one projection or of all, the oldest first."""
        found = [StoredGeneration(*row) for row in self._all(SELECT_GENERATIONS)]
        return [g for g in found if projection in (None, g.projection)]

    def rows(self, table: str) -> Iterator[tuple[RowKey, Row]]:
        """Yields the keys and rows of a table of `SELECT_ROWS`, in the order of the keys."""
        key_columns, statement = SELECT_ROWS[table]
        return self.stream(statement, key_columns)

    def count_tokens_of_every_space(self) -> int:
        return int(self._all(COUNT_TOKENS_OF_EVERY_SPACE)[0][0])

    def moved_token(self, tokens: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Returns (token, space) of the first of these tokens that another row grants for every
        space or for a space without a log. Each of `tokens` is an id and a digest in hex."""
        params = {"tokens": [id for id, _ in tokens], "digests": [digest for _, digest in tokens]}
        found = self._all(SELECT_MOVED, params)
        return found[0] if found else None

    def erasure_seqs(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Returns the seq of the last erasure of each of these records that was erased."""
        params = {"collections": [key[0] for key in keys], "ids": [key[1] for key in keys]}
        rows = self._all(SELECT_ERASURES, params)
        return {(collection, id): seq for collection, id, seq in rows}

    def tiles(self, generation: int, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
        params = {"generation": generation, **tile_params(wanted)}
        rows = self._all(SELECT_TILES, params, binary=True)
        return {Tile(level, number): hashes for level, number, hashes in rows}

    def stray_generation(self, table: str, known: Sequence[int]) -> int | None:
        """Returns the first generation that has rows in a table without being one of `known`."""
        params = {"afters": [GENERATION_MIN, *known], "befores": [*known, GENERATION_MAX]}
        found = self._all(SELECT_STRAY.format(table=table), params)
        return int(found[0][0]) if found else None

    def tile_counts(self, generation: int) -> list[tuple[int, int, int]]:
        """Returns the number of tiles and the highest number of a tile, for each level."""
        return self._all(COUNT_TILES, {"generation": generation})

    def stream(
        self, statement: str, key_columns: int, params: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[RowKey, Row]]:
        """Runs a statement and yields its rows one by one, each as a pair.

        The pair contains the values of the first `key_columns` columns, and the other columns.
        """
        # psycopg's own cursors of the server would be closed by Python's garbage collector, while
        # another statement runs. This one ends with the transaction.
        self._streams += 1
        name = f"audit_{self._streams}"
        with self._conn.cursor(row_factory=tuple_row) as cursor:
            declare = f"DECLARE {name} NO SCROLL CURSOR FOR {statement}"
            cursor.execute(declare, {"space": self.space, **(params or {})})
            while rows := cursor.execute(f"FETCH {STREAM_ROWS} FROM {name}").fetchall():
                names = [column.name for column in cursor.description or ()][key_columns:]
                for row in rows:
                    yield row[:key_columns], dict(zip(names, row[key_columns:], strict=True))

    def fetch(self, statement: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Runs a statement with `params` and the parameter `space`, and returns all rows."""
        return self._all(statement, params)

    def _all(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        binary: bool = False,
    ) -> list[tuple[Any, ...]]:
        with self._conn.cursor(row_factory=tuple_row, binary=binary) as cursor:
            cursor.execute(statement, {"space": self.space, **(params or {})}, prepare=True)
            return cursor.fetchall()


@contextmanager
def snapshot(url: str, space: str) -> Iterator[Snapshot]:
    """Opens a snapshot of a space while the `with` block runs. `url` is the database's."""
    with psycopg.connect(url, **CONNECTION) as conn:
        # A long verification must not end by a timeout that is meant for requests.
        for timeout in ("idle_in_transaction_session_timeout", "statement_timeout"):
            conn.execute("SELECT set_config(%s, '0', false)", [timeout])
        conn.commit()
        conn.isolation_level = IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        yield Snapshot(conn, space)
        conn.rollback()
