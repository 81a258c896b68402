"""Collections that are defined: what their records must be like, and how that may change.

What is held against the schema is, first, each value that a `put` writes, whatever becomes of it
in the merge; and then each record that a changeset touches, as it is after it, under the space's
lock: `required` and whatever joins fields is about the record, of which a `put` writes only a part.
A changeset answers for what it breaks, not for what was broken: a violation that the record had
before is none of its own. A deleted record is not held against anything.

Of most changesets it is clear without the record that they break nothing (`passes_alone`).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .additive import why_not_additive
from .changesets import Operation
from .errors import LimitExceeded, SchemaNotAdditive, SchemaViolated, VersionConflict
from .events import Envelope, Event, LogEntry, Refusal, body_entry
from .json_schema import ANNOTATIONS, Fault, JsonSchema, Schema, Violation, words
from .limits import Limits
from .merge import Key, Record, fold

#: Stored, so for ever.
KIND = "collection-defined"

#: keywords by which each field is judged by itself
BY_FIELD = words("properties patternProperties additionalProperties")
#: a schema of these and `required` says nothing that joins fields
ALONE = ANNOTATIONS | BY_FIELD | {"type", "required"}

FIRST_MAX = 10  #: violations that are told by name


class RecordSchema:
    """The schema of a collection's records."""

    def __init__(self, schema: JsonSchema):
        self.json = schema
        self._is_by_field = all(k in ALONE or k.startswith("x-") for k in schema.schema)
        self._required = frozenset(schema.schema.get("required", ()))

    @classmethod
    def of(cls, schema: Schema) -> RecordSchema:
        """Of one that was checked when the collection was defined."""
        return cls(JsonSchema(schema))

    @cached_property
    def _values(self) -> JsonSchema:
        whole = self.json.schema
        return JsonSchema({name: whole[name] for name in BY_FIELD | {"$defs"} if name in whole})

    def passes_alone(self, op: Operation) -> bool:
        """Whether this operation breaks no record, whatever it meets there."""
        if op.op == "delete":
            return True
        if op.op == "add" or not self._is_by_field:
            return False
        assert op.fields is not UNSET
        return (
            self._required <= op.fields.keys()
            and (op.unset is UNSET or self._required.isdisjoint(op.unset))
            and self._values.fits(op.fields)
        )

    def wrong_value(self, fields: Mapping[str, Any]) -> Violation | None:
        """The first value that no record of the collection may have."""
        return next((fault.violation for fault in self._values.faults(fields)), None)

    def broken(self, before: Record | None, after: Record) -> Violation | None:
        """The first violation of a record that it did not have before."""
        if not after.is_live or self.json.fits(after.fields):
            return None
        was_there = before is not None and before.is_live
        known = set(map(_identity, self.json.faults(before.fields))) if was_there else set()  # type: ignore[union-attr]
        new = (f.violation for f in self.json.faults(after.fields) if _identity(f) not in known)
        return next(new, None)

    def violation(self, fields: Mapping[str, Any]) -> Violation | None:
        """The first violation of a record as it is."""
        return next((fault.violation for fault in self.json.faults(fields)), None)


def _identity(fault: Fault) -> tuple[Any, ...]:
    return fault.where, fault.keyword, fault.name


Schemas = Mapping[str, RecordSchema]  #: of the collections of a space that are defined


def needs_records(ops: Iterable[Operation], schemas: Schemas) -> bool:
    """Whether these operations can only be judged with the records that they touch."""
    for op in ops:
        schema = schemas.get(op.collection)
        if schema is not None and not schema.passes_alone(op):
            return True
    return False


def violated(event: Event, records: Mapping[Key, Record], schemas: Schemas) -> Refusal | UnsetType:
    """Why an event that is about to be stored must be refused, on the records as they are now.

    `records` has each record of a defined collection that it touches.
    """
    ops = [op for op in event.ops if op.collection in schemas]
    for op in ops:
        if op.op == "put" and op.fields is not UNSET:
            wrong = schemas[op.collection].wrong_value(op.fields)
            if wrong is not None:
                return _refusal(op.key, wrong)
    after: dict[Key, Record] = {}
    fold(ChainMap(after, records), msgspec.structs.replace(event, ops=ops))  # type: ignore[arg-type]
    for key, record in after.items():
        broken = schemas[record.collection].broken(records.get(key), record)
        if broken is not None:
            return _refusal(key, broken)
    return UNSET


def _refusal(key: Key, found: Violation) -> Refusal:
    where = f" at {found.path}" if found.path else ""
    return Refusal("schema", f"{key[0]}/{key[1]}{where}: {found.reason}")


class Version(msgspec.Struct, omit_defaults=True, kw_only=True):
    """That a collection was defined, and when."""

    collection: str
    version: int
    seq: int
    defined_at: str
    by: str | UnsetType = UNSET
    forced: bool = False


class Definition(Version, omit_defaults=True, kw_only=True):
    """One version of a collection's schema."""

    schema: dict[str, Any]


class Body(msgspec.Struct, omit_defaults=True):
    """The body of a `collection-defined` event. Stored: names and order are for ever."""

    collection: str
    version: int
    schema: dict[str, Any]
    by: str | UnsetType = UNSET  #: who says so
    forced: bool = False  #: although it may refuse what was allowed before


def definition_entry(envelope: Envelope, body: Body) -> LogEntry:
    return body_entry(envelope, KIND, body)


def definition_of(event: Event) -> Definition:
    """What a `collection-defined` event defines. Raises `msgspec.ValidationError`."""
    body = msgspec.convert(event.body, Body)
    return Definition(
        collection=body.collection,
        version=body.version,
        seq=event.seq,
        defined_at=event.received_at,
        schema=body.schema,
        by=body.by,
        forced=body.forced,
    )


class Proposal(msgspec.Struct, frozen=True):
    """What a collection is to be defined as."""

    schema: JsonSchema
    by: str | None = None
    is_dry_run: bool = False
    force: bool = False
    #: refuse unless this is the version so far (0: not defined)
    if_version: int | None = None


class Found(msgspec.Struct):
    """A record that does not fit."""

    id: str
    path: str
    reason: str


class Check(msgspec.Struct):
    """What a look through the stored records of a collection has found."""

    checked: int = 0
    violating: int = 0
    first: list[Found] = []
    is_complete: bool = True

    def add(self, id: str, violation: Violation | None) -> None:
        self.checked += 1
        if violation is not None:
            self.violating += 1
            if len(self.first) < FIRST_MAX:
                self.first.append(Found(id, violation.path, violation.reason))


class Outcome(msgspec.Struct):
    """What became of a definition, or of a dry run. `seq` is `None` if nothing was stored."""

    collection: str
    version: int
    seq: int | None
    #: where it cannot be shown to allow all that the version before allowed
    reasons: list[Violation]
    #: of the stored records; `None`: all of them fit, because they fitted the version before
    check: Check | None


class Plan:
    """What must be known before a collection is defined, and what is decided by it."""

    def __init__(self, collection: str, wanted: Proposal, current: Definition | None):
        self.collection = collection
        self.wanted = wanted
        self.current = current
        self.version = current.version + 1 if current else 1
        before = JsonSchema(current.schema) if current else None
        self.is_known = before is not None and before.digest == wanted.schema.digest
        self.reasons: list[Violation] = []
        if before is not None and not self.is_known:
            self.reasons = why_not_additive(before, wanted.schema)

    @property
    def needs_check(self) -> bool:
        """What fits the version before fits an additive one; all else is found by looking."""
        return not self.is_known and (self.current is None or bool(self.reasons))

    def check_version(self) -> None:
        """Raises `VersionConflict`, unless this very schema is defined already."""
        version = self.version - 1
        expected = self.wanted.if_version
        if not self.is_known and expected is not None and expected != version:
            raise VersionConflict(f"the version is {version}, not {expected}", version=version)

    def check_additive(self) -> None:
        """Raises `SchemaNotAdditive`."""
        if self.reasons and not (self.wanted.force or self.wanted.is_dry_run):
            reasons = msgspec.to_builtins(self.reasons)
            raise SchemaNotAdditive(version=self.version - 1, reasons=reasons)

    def check_stored(self, check: Check) -> None:
        """Raises `SchemaViolated`."""
        if check.violating and not (self.wanted.force or self.wanted.is_dry_run):
            raise SchemaViolated(
                f"{check.violating} of {check.checked} stored records do not fit",
                **msgspec.to_builtins(check),
            )

    def outcome(self, seq: int | None, check: Check | None) -> Outcome:
        version = self.current.version if self.current and self.is_known else self.version
        return Outcome(self.collection, version, seq, self.reasons, check)

    def body(self) -> Body:
        wanted = self.wanted
        return Body(
            self.collection,
            self.version,
            dict(wanted.schema.schema),
            UNSET if wanted.by is None else wanted.by,
            forced=wanted.force and self.needs_check,
        )


def check_collection_count(defined: Iterable[str], collection: str, limits: Limits) -> None:
    """Raises `LimitExceeded` for one collection too many."""
    names = set(defined)
    if collection not in names and len(names) >= limits.collections_per_space_max:
        raise LimitExceeded("collections_per_space_max", limits.collections_per_space_max)
