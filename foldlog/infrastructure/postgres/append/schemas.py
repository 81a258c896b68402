"""The schemas of a space, as pushes are decided by them: kept beside the log, and written with it.

No projection that follows: a row is written in the transaction that appends its
`collection-defined` event, and brought by an import with the same event.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET
from psycopg import Cursor

from foldlog.domain.collections import KIND, RecordSchema, Schemas, definition_of
from foldlog.domain.events import LogEntry, decode_event
from foldlog.domain.json_schema import JsonSchema

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

#: compiled schemas of one process
SCHEMAS_KEPT_MAX = 1_000


class SchemaCache:
    """Compiled schemas, by what they say and not by whose they are: many spaces are alike."""

    def __init__(self) -> None:
        self._compiled: dict[str, RecordSchema] = {}

    def load(self, cursor: Cursor[Any], space: str, digests: Iterable[tuple[str, str]]) -> Schemas:
        """The space's schemas by collection; those that are not known yet are read."""
        wanted = dict(digests)
        found = {d: self._compiled[d] for d in set(wanted.values()) if d in self._compiled}
        if missing := set(wanted.values()) - found.keys():
            names = {"space": space, "digests": sorted(missing)}
            for digest, schema in cursor.execute(SELECT_SCHEMAS, names, prepare=True).fetchall():
                found[digest] = RecordSchema.of(msgspec.json.decode(schema))
                self._keep(digest, found[digest])
        return {collection: found[digest] for collection, digest in wanted.items()}

    def _keep(self, digest: str, schema: RecordSchema) -> None:
        while len(self._compiled) >= SCHEMAS_KEPT_MAX:
            with suppress(KeyError, StopIteration):  # another thread's
                del self._compiled[next(iter(self._compiled))]
        self._compiled[digest] = schema


def write_definitions(cursor: Cursor[Any], space: str, entries: Iterable[LogEntry]) -> None:
    """Keeps what these events define; in the transaction that appends them."""
    for entry in entries:
        if entry.kind == KIND:
            defined = definition_of(decode_event(entry.state))
            names = {
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
            cursor.execute(INSERT_DEFINITION, names, prepare=True)
