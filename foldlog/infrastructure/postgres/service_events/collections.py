"""Defining collections, and telling how they are defined."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET
from psycopg import Cursor

from foldlog.domain.collections import (
    Check,
    Definition,
    Outcome,
    Plan,
    Proposal,
    RecordSchema,
    Version,
    check_collection_count,
    definition_entry,
)
from foldlog.domain.errors import (
    LimitExceeded,
    ProjectionBehind,
    UnknownCollection,
    UnknownSpace,
    VersionConflict,
)
from foldlog.domain.events import Envelope, LogEntry
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key
from foldlog.domain.proofs import SALT_BYTES
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.append.appender import Locked
from foldlog.infrastructure.postgres.append.guards import SELECT_TAIL, records_at_head
from foldlog.infrastructure.postgres.append.schemas import write_definitions
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated

SELECT_CURRENT = """
SELECT DISTINCT ON (collection)
       collection, version, seq, defined_at, defined_by, is_forced
  FROM collections
 WHERE space = %(space)s
 ORDER BY collection, version DESC
"""

SELECT_VERSIONS = """
SELECT collection, version, seq, defined_at, defined_by, is_forced
  FROM collections
 WHERE space = %(space)s
   AND collection = %(collection)s
 ORDER BY version
"""

SELECT_DEFINITION = """
SELECT collection, version, seq, defined_at, defined_by, is_forced, schema
  FROM collections
 WHERE space = %(space)s
   AND collection = %(collection)s
   AND (%(version)s::integer IS NULL OR version = %(version)s)
 ORDER BY version DESC
 LIMIT 1
"""

SELECT_SPACE = """
SELECT space
  FROM spaces
 WHERE space = %(space)s
"""

SELECT_POSITION = """
SELECT position
  FROM projections
 WHERE space = %(space)s
   AND projection = 'master'
   AND is_live
"""

# `<> 0` is meant, as in the master table's own pages: the planner shall take the primary key.
SELECT_STORED = """
SELECT r.id, r.fields
  FROM projections p
  JOIN records r
    ON r.space = p.space AND r.generation = p.generation
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND r.collection = %(collection)s
   AND r.id > %(after)s
   AND NOT r.is_deleted
   AND r.created_seq <> 0
 ORDER BY r.id
 LIMIT %(limit)s
"""

PAGE_RECORDS = 500

Decide = Callable[[Cursor[Any], Locked], LogEntry | None]
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


class AppendServiceEvent(Protocol):
    def __call__(self, space: str, decide: Decide, *, makes_space: bool) -> LogEntry | None: ...


class Collections:
    """Of all spaces. `append_service_event` is the event store's."""

    def __init__(
        self, datastore: Datastore, append_service_event: AppendServiceEvent, limits: Limits
    ):
        self._datastore = datastore
        self._append_service_event = append_service_event
        self._limits = limits

    def current(self, space: str) -> list[Version]:
        with translated(self._datastore), self._datastore.rows() as cursor:
            self._check_space(cursor, space)
            rows = cursor.execute(SELECT_CURRENT, {"space": space}, prepare=True).fetchall()
        return [_version(row) for row in rows]

    def definition(
        self, space: str, collection: str, version: int | None
    ) -> tuple[Definition, list[Version]]:
        names = {"space": space, "collection": collection}
        with translated(self._datastore), self._datastore.rows() as cursor:
            self._check_space(cursor, space)
            found = _definition(cursor, space, collection, version)
            rows = cursor.execute(SELECT_VERSIONS, names, prepare=True).fetchall()
        if found is None:
            which = "" if version is None else f" in version {version}"
            raise UnknownCollection(f"the collection {collection!r} is not defined{which}")
        return found, [_version(row) for row in rows]

    def define(
        self,
        space: str,
        collection: str,
        wanted: Proposal,
        *,
        seconds_max: float | None,
        report: Callable[[int], None],
    ) -> Outcome:
        with translated(self._datastore), self._datastore.rows() as cursor:
            plan = Plan(collection, wanted, _definition(cursor, space, collection, None))
        plan.check_version()
        plan.check_additive()
        if plan.is_known:
            assert plan.current is not None
            return plan.outcome(plan.current.seq, None)
        check, position = None, 0
        if plan.needs_check:
            check, position = self._look(space, plan, seconds_max, report)
            plan.check_stored(check)
        if wanted.is_dry_run:
            return plan.outcome(None, check)
        if check is not None and not check.is_complete and not wanted.force:
            raise LimitExceeded(
                "schema_check_seconds_max",
                self._limits.schema_check_seconds_max,
                f"too many records to look through: {check.checked} so far fit. Use the command "
                "foldlog define, or force it",
            )

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry:
            now = _definition(cursor, space, collection, None)
            if (now and now.version) != (plan.current and plan.current.version):
                version = now.version if now else 0
                raise VersionConflict("it was defined anew meanwhile", version=version)
            names = {"space": space}
            rows = cursor.execute(SELECT_CURRENT, names, prepare=True).fetchall()
            check_collection_count((row[0] for row in rows), collection, self._limits)
            if check is not None and not wanted.force:
                self._look_again(cursor, space, locked.head, plan, position)
            entry = definition_entry(
                Envelope(
                    locked.head + 1,
                    str(uuid.uuid4()),
                    locked.received_at,
                    secrets.token_bytes(SALT_BYTES),
                ),
                plan.body(),
            )
            write_definitions(cursor, space, [entry])
            return entry

        entry = self._append_service_event(space, decide, makes_space=True)
        assert entry is not None
        return plan.outcome(entry.seq, check)

    def _check_space(self, cursor: Cursor[Any], space: str) -> None:
        if cursor.execute(SELECT_SPACE, {"space": space}, prepare=True).fetchone() is None:
            raise UnknownSpace(space)

    def _look(
        self,
        space: str,
        plan: Plan,
        seconds_max: float | None,
        report: Callable[[int], None],
    ) -> tuple[Check, int]:
        """Holds the stored records against the schema, page by page and without any lock.

        With the seq that all of them are true at, or at a later one.
        """
        schema = RecordSchema(plan.wanted.schema)
        check = Check()
        names: dict[str, Any] = {"space": space, "collection": plan.collection, "after": ""}
        names["limit"] = PAGE_RECORDS
        until = None if seconds_max is None else time.monotonic() + seconds_max
        with translated(self._datastore), self._datastore.rows() as cursor:
            found = cursor.execute(SELECT_POSITION, names, prepare=True).fetchone()
        position = found[0] if found else 0
        while True:
            # A connection for each page: who answers requests may have none for long.
            with translated(self._datastore), self._datastore.rows() as cursor:
                rows = cursor.execute(SELECT_STORED, names, prepare=True).fetchall()
            for id, fields in rows:
                check.add(id, schema.violation(_decode_fields(fields)))
            report(check.checked)
            if len(rows) < PAGE_RECORDS:
                return check, position
            if until is not None and time.monotonic() > until:
                check.is_complete = False
                return check, position
            names["after"] = rows[-1][0]

    def _look_again(
        self, cursor: Cursor[Any], space: str, head: int, plan: Plan, position: int
    ) -> None:
        """The same for what was written since `position`, under the space's lock."""
        if head - position > self._limits.guard_tail_events_max:
            raise ProjectionBehind(head=head, projected=position)
        names = {
            "space": space,
            "position": position,
            "head": head,
            "collections": [plan.collection],
        }
        keys: set[Key] = {
            op.key
            for topic, state in cursor.execute(SELECT_TAIL, names, prepare=True)
            for op in UPCASTER.decode(topic, state).ops
            if op.collection == plan.collection
        }
        if not keys:
            return
        records = records_at_head(cursor, space, head, keys, self._limits)
        if records is None:
            raise ProjectionBehind(head=head, projected=position)
        schema, check = RecordSchema(plan.wanted.schema), Check()
        for record in records.values():
            if record.is_live:
                check.add(record.id, schema.violation(record.fields))
        plan.check_stored(check)


def _definition(
    cursor: Cursor[Any], space: str, collection: str, version: int | None
) -> Definition | None:
    names = {"space": space, "collection": collection, "version": version}
    row = cursor.execute(SELECT_DEFINITION, names, prepare=True).fetchone()
    if row is None:
        return None
    *members, schema = row
    return Definition(**_members(members), schema=msgspec.json.decode(schema))


def _version(row: tuple[Any, ...]) -> Version:
    return Version(**_members(row))


def _members(row: Any) -> dict[str, Any]:
    collection, version, seq, defined_at, by, forced = row
    return {
        "collection": collection,
        "version": version,
        "seq": seq,
        "defined_at": defined_at,
        "by": UNSET if by is None else by,
        "forced": forced,
    }
