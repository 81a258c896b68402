"""Reads and writes the schemas of collections. Pushed records must match these schemas.

The schemas are in the table `collections`. This table contains a row for each `collection-defined`
event in the log, because the event and its row are written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET
from psycopg import Cursor

from foldlog.domain.collections import KIND, RecordSchema, Schemas, definition_of
from foldlog.domain.events import LogEntry, decode_event
from foldlog.domain.json_schema import JsonSchema

from .eviction import evict_oldest

SELECT_DIGESTS = """
SELECT DISTINCT ON (collection) collection, digest
  FROM collections
 WHERE space = %(space)s
 ORDER BY collection, version DESC
"""

SELECT_SCHEMAS = """
SELECT DISTINCT ON (digest) digest, schema
  FROM collections
 WHERE space = %(space)s
   AND digest = ANY(%(digests)s::text[])
 ORDER BY digest
"""

INSERT_DEFINITION = """
INSERT INTO collections (
           space, collection, version, seq, digest, schema, defined_at, defined_by, is_forced
       )
VALUES (
           %(space)s, %(collection)s, %(version)s, %(seq)s, %(digest)s, %(schema)s,
           %(defined_at)s, %(defined_by)s, %(is_forced)s
       )
RETURNING version
"""

#: limit of the compiled schemas that one process caches
SCHEMAS_MAX = 1_000


class SchemaCache:
    """Caches compiled schemas by the digest of the schema.

    Spaces that use the same schema share one compiled schema.
    """

    def __init__(self) -> None:
        self._compiled: dict[str, RecordSchema] = {}

    def load(self, cursor: Cursor[Any], space: str, digests: Iterable[tuple[str, str]]) -> Schemas:
        """Returns a dict from the name of each collection of a space to its compiled schema.

        `digests` contains one pair for each collection: its name and the digest of its schema.
        Schemas that are missing in the cache are read from the database, compiled and cached.
        """
        wanted = dict(digests)
        found = {d: self._compiled[d] for d in set(wanted.values()) if d in self._compiled}
        if missing := set(wanted.values()) - found.keys():
            params = {"space": space, "digests": sorted(missing)}
            for digest, schema in cursor.execute(SELECT_SCHEMAS, params, prepare=True).fetchall():
                found[digest] = RecordSchema.of(msgspec.json.decode(schema))
                evict_oldest(self._compiled, SCHEMAS_MAX)
                self._compiled[digest] = found[digest]
        return {collection: found[digest] for collection, digest in wanted.items()}


def write_definitions(cursor: Cursor[Any], space: str, entries: Iterable[LogEntry]) -> None:
    """Inserts a row into the table `collections` for each `collection-defined` event in `entries`.

    Call this in the same transaction that appends the events.
    """
    for entry in entries:
        if entry.kind == KIND:
            defined = definition_of(decode_event(entry.state))
            params = {
                "space": space,
                "collection": defined.collection,
                "version": defined.version,
                "seq": defined.seq,
                "digest": JsonSchema(defined.schema).digest,
                "schema": msgspec.json.encode(defined.schema).decode(),
                "defined_at": defined.defined_at,
                "defined_by": None if defined.by is UNSET else defined.by,
                "is_forced": defined.forced,
            }
            cursor.execute(INSERT_DEFINITION, params, prepare=True)
