"""Checks records against the schema of their collection, and decides whether the schema may be
changed. A collection that has a schema is called a defined collection.

A push is checked against the schema in two ways. First, each value that a `put` writes is checked,
even if the value loses the merge. Second, each record that a changeset touches is checked in its
state after the changeset, because a keyword such as `required` concerns the whole record and a
`put` may write only a part of it. The second check runs while the space is locked.

A changeset is refused only if it causes a new violation. If the record already had the same
violation before the changeset, the changeset is stored. If the record is deleted after the
changeset, the changeset is stored too. For most changesets, the operations alone are enough to
decide this (see `is_valid_alone`). The server then saves time, because it need not read the records
from the database.

All checks of a changeset together have a budget of steps. A changeset that needs more is refused
with the code `schema` and a fixed reason. The verdict never depends on the other changesets of a
push: if the checks of all changesets together need too many steps, the push is refused as a whole.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .additive import breaking_changes
from .changesets import Operation, Push
from .errors import LimitExceeded, SchemaNotAdditive, SchemaViolated, VersionConflict
from .events import Envelope, Event, LogEntry, Refusal, body_entry
from .json_schema import Fault, JsonSchema, Violation
from .limits import LIMITS, Limits
from .merge import Key, Record, fold
from .schema_keywords import ANNOTATIONS, BY_FIELD, Schema
from .step_budget import Steps, TooManySteps

#: Stored in the log, so it must stay as it is.
KIND = "collection-defined"

#: a schema with other keywords than these has rules that combine fields
FIELDWISE = ANNOTATIONS | BY_FIELD | {"type", "required"}

#: The reason of a refusal, which is stored in the log. It must stay as it is.
TOO_MANY_STEPS = (
    "the check needs more than schema_steps_per_changeset_max = "
    f"{LIMITS.schema_steps_per_changeset_max} steps"
)
#: A changeset that needs more is decided with its records, under the lock of the space.
ALONE_STEPS_MAX = LIMITS.schema_steps_per_changeset_max // 4
#: of the search for the violations of one changeset, in the new values and in one old record
SEARCH_STEPS_MAX = LIMITS.schema_steps_per_changeset_max // 4

FIRST_MAX = 10  #: violations that are listed individually


class RecordSchema:
    """The schema of the records of one collection, with the checks that a push needs."""

    def __init__(self, schema: JsonSchema):
        self.json = schema
        self._is_fieldwise = all(k in FIELDWISE or k.startswith("x-") for k in schema.schema)
        self._required = frozenset(schema.schema.get("required", ()))

    @classmethod
    def of(cls, schema: Schema) -> RecordSchema:
        """Makes a `RecordSchema` from a stored schema. The schema is trusted here, because it was
        checked when the collection was defined."""
        return cls(JsonSchema(schema))

    @cached_property
    def _values(self) -> JsonSchema:
        whole = self.json.schema
        return JsonSchema({name: whole[name] for name in BY_FIELD | {"$defs"} if name in whole})

    def is_valid_alone(self, op: Operation, steps: Steps) -> bool:
        """Returns true if the record is certainly valid after this operation, whatever its state
        was before. The method looks only at the operation.

        If the method returns false, the record may be valid or invalid. The caller must then read
        the record to decide. Raises `TooManySteps` if the check needs more steps than are left.
        """
        if op.op == "delete":
            return True
        if op.op == "add" or not self._is_fieldwise:
            return False
        assert op.fields is not UNSET
        return (
            self._required <= op.fields.keys()
            and (op.unset is UNSET or self._required.isdisjoint(op.unset))
            and self._values.fits(op.fields, steps)
        )

    def invalid_value(self, fields: Mapping[str, Any], budget: Budget) -> Violation | None:
        """Returns the violation of the first field whose value is invalid by itself, or `None`.
        Rules about the whole record, such as `required`, are not checked here. Raises
        `TooManySteps` if the check needs more steps than are left."""
        return _first_violation(self._values, fields, budget)

    def new_violation(
        self, before: Record | None, after: Record, budget: Budget
    ) -> Violation | None:
        """Returns the first violation in `after`, the new state of a record, that is missing in
        `before`, the old state. Returns `None` if there is no such violation, or if the record is
        deleted in its new state. Raises `TooManySteps` if the check needs more steps than are left,
        unless the old state alone would need more than a changeset may."""
        if not after.is_live:
            return None
        old = before.fields if before is not None and before.is_live else None
        left = budget.check.left
        try:
            if self.json.fits(after.fields, budget.check):
                return None
        except TooManySteps:
            if old is None or not self._is_too_large(old, budget):
                raise
            budget.check.left = left
            return None
        known: set[tuple[Any, ...]] = set()
        if old is not None and not self.json.fits(old, budget.before):
            known = set(map(_identity, self.json.faults(old, budget.search_before)))
        faults = self.json.faults(after.fields, budget.search)
        return next((f.violation for f in faults if _identity(f) not in known), None)

    def _is_too_large(self, fields: Mapping[str, Any], budget: Budget) -> bool:
        """Returns whether the check of an old record alone needs more steps than a changeset may:
        the schema is younger, or it was forced. Only one record of a changeset is counted."""
        is_fresh = budget.before.left == budget.before.most
        try:
            budget.before.spend_counted(partial(self.json.counter.count, fields))
        except TooManySteps:
            return is_fresh
        return False

    def violation(
        self, fields: Mapping[str, Any], budget: Budget | None = None
    ) -> Violation | None:
        """Returns the first violation in a record with these fields, or `None`. A record whose
        check needs more steps than `budget` has left is a violation too. The default is the budget
        of one changeset."""
        try:
            return _first_violation(self.json, fields, budget or Budget())
        except TooManySteps:
            return Violation("", TOO_MANY_STEPS)


class Budget:
    """The steps that the checks of one changeset may take."""

    def __init__(self) -> None:
        self.check = Steps()
        #: counting old records that may be too large for a check
        self.before = Steps()
        #: the search for violations, in the new values and in the old records
        self.search = Steps(SEARCH_STEPS_MAX)
        self.search_before = Steps(SEARCH_STEPS_MAX)

    @property
    def spent(self) -> int:
        parts = (self.check, self.before, self.search, self.search_before)
        return sum(steps.spent for steps in parts)


def _first_violation(
    schema: JsonSchema, fields: Mapping[str, Any], budget: Budget
) -> Violation | None:
    if schema.fits(fields, budget.check):
        return None
    return next(fault.violation for fault in schema.faults(fields, budget.search))


def _identity(fault: Fault) -> tuple[Any, ...]:
    return fault.where, fault.keyword, fault.name


Schemas = Mapping[str, RecordSchema]  #: by the name of the defined collection


def needs_records(ops: Iterable[Operation], schemas: Schemas, steps: Steps | None = None) -> bool:
    """Returns whether the records that these operations touch must be read to check the operations
    against the schemas. The operations belong to one changeset. `steps` is the budget of this
    question, by default `ALONE_STEPS_MAX`; the answer is yes if the question takes more."""
    steps = steps or Steps(ALONE_STEPS_MAX)
    try:
        for op in ops:
            schema = schemas.get(op.collection)
            if schema is not None and not schema.is_valid_alone(op, steps):
                return True
    except TooManySteps:
        return True
    return False


def changeset_needs_records(push: Push, index: int, schemas: Schemas) -> bool:
    """Answers the same question for one changeset of a push, and remembers the answer, because a
    push may be decided twice: without a lock first, and then under the lock.

    Raises `TooManySteps` if the changesets of the push took `schema_steps_per_push_max` before.
    """
    ops = push.changesets[index].ops
    used = tuple(dict.fromkeys(schemas[op.collection] for op in ops if op.collection in schemas))
    if not used:
        return False
    known = push.asked.get(index)
    if known is None or known[0] != used:
        steps = Steps(ALONE_STEPS_MAX)
        push.steps.check()
        push.asked[index] = known = used, needs_records(ops, schemas, steps)
        push.steps.left -= steps.spent
    return known[1]


def schema_refusal(
    event: Event, records: Mapping[Key, Record], schemas: Schemas, steps: Steps | None = None
) -> Refusal | UnsetType:
    """Checks a changeset against the schemas. Returns a `Refusal` with the first violation, or
    `UNSET` if the changeset is valid. `event` is the event that the changeset would become.

    `records` must contain the current state of each record that the event touches in a defined
    collection. `steps` is the budget of all changesets of the push; raises `TooManySteps` if it was
    used up before, and otherwise takes the steps of this changeset from it.
    """
    steps = steps or Steps()
    steps.check()
    budget = Budget()
    try:
        violation = _violation_of(event, records, schemas, budget)
    except TooManySteps:
        return Refusal("schema", TOO_MANY_STEPS)
    finally:
        steps.left -= budget.spent
    return UNSET if violation is None else _refusal(*violation)


def _violation_of(
    event: Event, records: Mapping[Key, Record], schemas: Schemas, budget: Budget
) -> tuple[Key, Violation] | None:
    """Returns the first violation that a changeset causes, with the key of its record."""
    ops = [op for op in event.ops if op.collection in schemas]
    for op in ops:
        if op.op == "put" and op.fields is not UNSET:
            violation = schemas[op.collection].invalid_value(op.fields, budget)
            if violation is not None:
                return op.key, violation
    after: dict[Key, Record] = {}
    fold(ChainMap(after, records), msgspec.structs.replace(event, ops=ops))  # type: ignore[arg-type]
    for key, record in after.items():
        violation = schemas[record.collection].new_violation(records.get(key), record, budget)
        if violation is not None:
            return key, violation
    return None


def _refusal(key: Key, found: Violation) -> Refusal:
    where = f" at {found.path}" if found.path else ""
    return Refusal("schema", f"{key[0]}/{key[1]}{where}: {found.reason}")


class Version(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Describes one version of a collection's definition, without the schema. The subclass
    `Definition` adds the schema."""

    collection: str
    version: int
    seq: int
    defined_at: str
    by: str | UnsetType = UNSET
    forced: bool = False


class Definition(Version, omit_defaults=True, kw_only=True):
    """Describes one version of a collection's definition, including the schema."""

    schema: dict[str, Any]


class Body(msgspec.Struct, omit_defaults=True):
    """The body of a `collection-defined` event. The names and the order of the members are stored,
    so they must never change."""

    collection: str
    version: int
    schema: dict[str, Any]
    by: str | UnsetType = UNSET  #: the author of the definition
    forced: bool = False  #: defined although it may refuse values that the version before allows


def definition_entry(envelope: Envelope, body: Body) -> LogEntry:
    return body_entry(envelope, KIND, body)


def definition_of(event: Event) -> Definition:
    """Returns the definition that a `collection-defined` event contains. Raises
    `msgspec.ValidationError` if the body of the event is invalid."""
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
    """A request to define a collection, or to change its schema."""

    schema: JsonSchema
    by: str | None = None
    is_dry_run: bool = False
    force: bool = False
    #: the version must be this one so far (0: the collection must be undefined)
    if_version: int | None = None


class InvalidRecord(msgspec.Struct):
    """A stored record that violates the new schema. `path` is the first place of a violation, and
    `reason` tells why the value there is invalid."""

    id: str
    path: str
    reason: str


class Check(msgspec.Struct):
    """The result of checking the stored records of a collection against a new schema: how many
    records were checked, how many of them violate the schema, and the first ten violating
    records."""

    checked: int = 0
    violating: int = 0
    first: list[InvalidRecord] = []
    is_complete: bool = True

    def add(self, id: str, violation: Violation | None) -> None:
        self.checked += 1
        if violation is not None:
            self.violating += 1
            if len(self.first) < FIRST_MAX:
                self.first.append(InvalidRecord(id, violation.path, violation.reason))


class Outcome(msgspec.Struct):
    """The result of a request to define a collection, or of a dry run of such a request. `seq` is
    the seq of the event that contains the definition; it is `None` after a dry run."""

    collection: str
    version: int
    seq: int | None
    #: places where the schema may refuse a value that the version before allows
    reasons: list[Violation]
    #: of the stored records; `None`: all are valid, because they are valid in the version before
    check: Check | None


class Plan:
    """Compares the wanted schema of a collection with the current one. Decides whether the schema
    may be changed, and whether the stored records must be checked before the change."""

    def __init__(self, collection: str, wanted: Proposal, current: Definition | None):
        self.collection = collection
        self.wanted = wanted
        self.current = current
        self.version = current.version + 1 if current else 1
        before = JsonSchema(current.schema) if current else None
        self.is_known = before is not None and before.digest == wanted.schema.digest
        self.reasons: list[Violation] = []
        if before is not None and not self.is_known:
            self.reasons = breaking_changes(before, wanted.schema)

    @property
    def needs_check(self) -> bool:
        """Returns whether the stored records must be checked against the new schema. This is
        necessary for a first version, and for a schema that may refuse values that the current one
        allows."""
        return not self.is_known and (self.current is None or bool(self.reasons))

    def check_version(self) -> None:
        """Raises `VersionConflict` if the current version differs from the `if_version` of the
        request. The check is skipped if the current version already has the wanted schema."""
        version = self.version - 1
        expected = self.wanted.if_version
        if not self.is_known and expected is not None and expected != version:
            raise VersionConflict(f"the version is {version}, not {expected}", version=version)

    def check_additive(self) -> None:
        """Raises `SchemaNotAdditive` if the new schema may refuse values that the current schema
        allows. The check is skipped for a dry run, and if the request has `force`."""
        if self.reasons and not (self.wanted.force or self.wanted.is_dry_run):
            reasons = msgspec.to_builtins(self.reasons)
            raise SchemaNotAdditive(version=self.version - 1, reasons=reasons)

    def check_stored(self, check: Check) -> None:
        """Raises `SchemaViolated` if stored records violate the new schema. The check is skipped
        for a dry run, and if the request has `force`."""
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
    """Raises `LimitExceeded` if `collection` is new and the space already has the maximum number of
    defined collections."""
    names = set(defined)
    if collection not in names and len(names) >= limits.collections_per_space_max:
        raise LimitExceeded("collections_per_space_max", limits.collections_per_space_max)
