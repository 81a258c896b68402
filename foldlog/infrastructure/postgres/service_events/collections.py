"""Defines collections (named sets of records with a schema), and reads their definitions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET
from psycopg import Cursor

from foldlog.domain.collections import (
    Budget,
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
from foldlog.domain.json_reader import decoder
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key
from foldlog.domain.ports import RecordsQuery
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.append.records_at_head import SELECT_TAIL, records_at_head
from foldlog.infrastructure.postgres.append.schemas import write_definitions
from foldlog.infrastructure.postgres.append.service_event import (
    OpenServiceEvent,
    ServiceEventTransaction,
)
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.heads import select_head
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable

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
   AND (%(version)s::bigint IS NULL OR version = %(version)s::bigint)
 ORDER BY version DESC
 LIMIT 1
"""

PAGE_RECORDS = 500


class _Stored(msgspec.Struct):
    id: str
    fields: dict[str, Any]


_decode_stored = decoder(_Stored).decode


class Collections:
    """Defines collections in any space, and reads their definitions.

    The parameter `append_service_event` is the method of the event store with the same name. It
    opens a transaction in which one event can be appended to a space.
    """

    def __init__(
        self, datastore: Datastore, append_service_event: OpenServiceEvent, limits: Limits
    ):
        self._datastore = datastore
        self._append_service_event = append_service_event
        self._limits = limits
        self._master_table = PostgresMasterTable(datastore, limits=limits)

    def current(self, space: str) -> list[Version]:
        """Returns a list with the newest `Version` of each collection of a space.

        A `Version` describes one version of a definition, but lacks the schema. Raises
        `UnknownSpace` if the space is missing.
        """
        with self._datastore.reading() as cursor:
            select_head(cursor, space)  # raises `UnknownSpace`
            rows = cursor.execute(SELECT_CURRENT, {"space": space}, prepare=True).fetchall()
        return [_version(row) for row in rows]

    def definition(
        self, space: str, collection: str, version: int | None
    ) -> tuple[Definition, list[Version]]:
        """Returns a pair: one `Definition` of a collection, and a list of all its versions.

        The `Definition` contains the schema. The items of the list are of the type `Version`, which
        describes a version without the schema. The parameter `version` is the number of the wanted
        definition; if `version` is `None`, the newest definition is returned.

        Raises `UnknownSpace` if the space is missing. Raises `UnknownCollection` if the collection
        or this version of it is missing.
        """
        params = {"space": space, "collection": collection}
        with self._datastore.reading() as cursor:
            select_head(cursor, space)  # raises `UnknownSpace`
            found = _definition(cursor, space, collection, version)
            rows = cursor.execute(SELECT_VERSIONS, params, prepare=True).fetchall()
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
        """Checks the stored records against a new schema, and then defines the collection with it.

        Returns an `Outcome` with the number of the new version and the result of the check. A dry
        run (`wanted.is_dry_run`) ends after the check and leaves the collection unchanged. A forced
        proposal (`wanted.force`) defines the collection even if stored records are invalid.

        If the newest version already has this schema, the collection is left unchanged, and the
        `Outcome` contains the number of the newest version.

        During the check, the method calls `report(checked)` with the number of records checked so
        far. After `seconds_max` seconds the check stops early. A dry run then returns the
        incomplete result, a forced proposal still defines the collection, and otherwise the method
        raises `LimitExceeded`.

        Raises `VersionConflict` if the current version of the collection differs from the version
        that the proposal expects. Raises `SchemaNotAdditive` if the new schema is stricter than the
        old one. Raises `SchemaViolated` if a stored record is invalid under the new schema. Raises
        `ProjectionBehind` if the master table is too many events behind the head.
        """
        with self._datastore.reading() as cursor:
            plan = Plan(collection, wanted, _definition(cursor, space, collection, None))
        plan.check_version()
        plan.check_additive()
        if plan.is_known:
            assert plan.current is not None
            return plan.outcome(plan.current.seq, None)
        check, position = None, 0
        if plan.needs_check:
            check, position = self._check_stored(space, plan, seconds_max, report)
            plan.check_stored(check)
        if wanted.is_dry_run:
            return plan.outcome(None, check)
        if check is not None and not check.is_complete and not wanted.force:
            raise LimitExceeded(
                "schema_check_seconds_max",
                self._limits.schema_check_seconds_max,
                f"too many records to check: the first {check.checked} fit. Use the command "
                "foldlog define, or force it",
            )
        with self._append_service_event(space) as transaction:
            state = transaction.lock(creates_space=True)
            self._check_unchanged(transaction, space, plan)
            if check is not None and not wanted.force:
                self._check_newer(transaction, space, state.head, plan, position)
            entry = definition_entry(transaction.envelope, plan.body())
            write_definitions(transaction.cursor, space, [entry])
            transaction.append(entry)
        return plan.outcome(entry.seq, check)

    def _check_unchanged(
        self, transaction: ServiceEventTransaction, space: str, plan: Plan
    ) -> None:
        """Checks that the collection still has the version that this request read at its start.

        The caller must hold the lock of the space. Raises `VersionConflict` if another request has
        defined the collection meanwhile. Raises `LimitExceeded` if the space would get too many
        collections.
        """
        now = _definition(transaction.cursor, space, plan.collection, None)
        if (now and now.version) != (plan.current and plan.current.version):
            version = now.version if now else 0
            raise VersionConflict("another definition came first", version=version)
        params = {"space": space}
        rows = transaction.cursor.execute(SELECT_CURRENT, params, prepare=True).fetchall()
        check_collection_count((row[0] for row in rows), plan.collection, self._limits)

    def _check_stored(
        self,
        space: str,
        plan: Plan,
        seconds_max: float | None,
        report: Callable[[int], None],
    ) -> tuple[Check, int]:
        """Checks the records in the master table against the new schema, without locks.

        Returns a pair: the result of the check, and the seq of the last event that the master table
        had applied at the start of the check. The caller must still check the records that later
        events have changed. After `seconds_max` seconds the check stops early, and its result is
        marked as incomplete.
        """
        schema = RecordSchema(plan.wanted.schema)
        check = Check()
        query = RecordsQuery(PAGE_RECORDS, collection=plan.collection)
        position = None
        until = None if seconds_max is None else time.monotonic() + seconds_max
        while True:
            try:
                # Each page borrows a connection anew, because other requests need it in between.
                page = self._master_table.page(space, query)
            except UnknownSpace:
                return check, 0
            position = page.projected if position is None else position
            for record in map(_decode_stored, page.records):
                check.add(record.id, schema.violation(record.fields))
                # One record may take a tenth of a second.
                if until is not None and time.monotonic() > until:
                    report(check.checked)
                    check.is_complete = False
                    return check, position
            report(check.checked)
            if page.cursor is None:
                return check, position
            query = msgspec.structs.replace(query, cursor=page.cursor)

    def _check_newer(
        self,
        transaction: ServiceEventTransaction,
        space: str,
        head: int,
        plan: Plan,
        position: int,
    ) -> None:
        """Checks the records that were changed by events after the seq `position`.

        The caller must hold the lock of the space. Raises `SchemaViolated` if a record violates the
        new schema. Raises `ProjectionBehind` if the master table is too many events behind the
        head.
        """
        if head - position > self._limits.guard_tail_events_max:
            raise ProjectionBehind(head=head, projected=position)
        cursor = transaction.cursor
        params = {
            "space": space,
            "position": position,
            "head": head,
            "collections": [plan.collection],
        }
        keys: set[Key] = {
            op.key
            for topic, state in cursor.execute(SELECT_TAIL, params, prepare=True)
            for op in UPCASTER.decode(topic, state).ops
            if op.collection == plan.collection
        }
        if not keys:
            return
        records = records_at_head(cursor, space, head, keys, self._limits)
        if records is None:
            raise ProjectionBehind(head=head, projected=position)
        schema, check = RecordSchema(plan.wanted.schema), Check()
        left = self._limits.schema_steps_per_push_max
        for record in records.values():
            if left < 0:  # pushes wait for the lock; the next call has fewer records to check
                raise ProjectionBehind(head=head, projected=position)
            if record.is_live:
                budget = Budget()
                check.add(record.id, schema.violation(record.fields, budget))
                left -= budget.spent
        plan.check_stored(check)


def _definition(
    cursor: Cursor[Any], space: str, collection: str, version: int | None
) -> Definition | None:
    """Returns a version of a collection's definition, or `None` if this version is missing.

    If `version` is `None`, the newest version is returned.
    """
    params = {"space": space, "collection": collection, "version": version}
    row = cursor.execute(SELECT_DEFINITION, params, prepare=True).fetchone()
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
