"""Defines the structs of responses. The service encodes them as JSON, and the OpenAPI document
describes them.

A member of the type `X | Raw` may contain the stored JSON text of an X. The encoder copies this
text into the response unchanged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from foldlog.domain.access import Role
from foldlog.domain.collections import Definition as StoredDefinition
from foldlog.domain.collections import Version
from foldlog.domain.events import Event
from foldlog.domain.history import Difference, VersionView
from foldlog.domain.ledger import LedgerEntry
from foldlog.domain.merge import RecordView
from foldlog.domain.push_decider import Answer

from .described import (
    CURSOR,
    DEVICE,
    HALTED_AT,
    HEAD,
    LOG,
    PROJECTED,
    described,
    mark_meta,
    seq_meta,
    time_meta,
    uuid_meta,
)
from .fields import SPACE_PATTERN


class _OfLog(Struct):
    log: Annotated[str, LOG]
    head: Annotated[int, HEAD]


class _Read(_OfLog):
    projected: Annotated[int, PROJECTED]


class _Projected(_Read, kw_only=True):
    halted_at: Annotated[int, HALTED_AT] | UnsetType = UNSET


class Range(_OfLog):
    """A page of events from the log."""

    events: list[Event] | Raw
    through: Annotated[int, described("The last seq of this page: the next `after`.")]
    mark: Annotated[str, mark_meta("The next `mark`.")]
    more: Annotated[bool, described("True if the log continues after `through`.")]


class SyncAnswer(Range, kw_only=True):
    """The response to a sync: a verdict for each changeset of the request, and a page of the events
    after the cursor."""

    verdicts: list[Answer]


AS_OF = described("With `as_of`: the seq of that moment.")


class RecordsPage(_Projected):
    """A page of records from the master table."""

    records: list[RecordView] | Raw
    cursor: Annotated[str | None, CURSOR]
    as_of: Annotated[int, AS_OF] | UnsetType = UNSET


class RecordAnswer(_Projected):
    """One record from the master table."""

    record: RecordView | Raw
    as_of: Annotated[int, AS_OF] | UnsetType = UNSET


class ConflictsPage(_Projected):
    """A page of the conflict ledger. The conflicts are in the order in which they were decided."""

    conflicts: list[LedgerEntry] | Raw
    cursor: Annotated[str | None, CURSOR]


class HistoryPage(_Projected):
    """A page of the history of a record. The history has one version of the record for each event
    that changed it."""

    versions: list[VersionView] | Raw
    cursor: Annotated[str | None, CURSOR]


class DiffPage(_Projected, rename={"from_": "from"}):
    """A page of the records that differ between two moments. The page is sorted by the seq of the
    last event that touched each record."""

    from_: Annotated[int, described("The seq of the earlier moment.")]
    to: Annotated[int, described("The seq of the later moment.")]
    differences: list[Difference] | Raw
    cursor: Annotated[str | None, CURSOR]


class Collections(Struct):
    """Lists the defined collections (those with a schema), each with its latest version. Records of
    other collections may have any fields."""

    collections: list[Version]


class Definition(StoredDefinition, kw_only=True):
    """One version of a collection's schema, together with a list of all versions of this schema."""

    schema: Annotated[dict[str, Any], described("JSON Schema, draft 2020-12, of `fields`.")]
    versions: list[Version]


class ErasedRecord(Struct):
    """A record that was erased (or, with `dry_run`, would be erased), and the number of events that
    contained its values."""

    collection: str
    id: str
    events: Annotated[int, described("0: the record was erased before this request.")]
    seq: (
        Annotated[int, seq_meta("The event of the erasure; absent with `dry_run`.")] | UnsetType
    ) = UNSET


class ErasureAnswer(Struct):
    """Lists the erased records. With `dry_run`, nothing was erased, and the list has the records
    that the same request without `dry_run` would erase."""

    dry_run: bool
    records: list[ErasedRecord]


class Skipped(Struct):
    """The response to a skip: the seq of the skipped event, and the seq of the new event that
    records the skip."""

    seq: Annotated[int, seq_meta()]
    by_seq: Annotated[int, seq_meta("The seq of the `event-skipped` event.")]


NAME = described("A name for people.")
REVOKED_AT = time_meta("Absent while it is valid.")


class Token(Struct, kw_only=True):
    """Describes a token without its secret. If `expires_at` is absent, the token is valid until it
    is revoked."""

    id: Annotated[str, uuid_meta("The token's id. It is no secret.")]
    role: Role
    device: Annotated[str, uuid_meta("The device that the token may write as.")] | UnsetType
    name: Annotated[str, NAME] | UnsetType
    granted_by: Annotated[str, described("The caller who granted it.")] | UnsetType
    revoked_by: Annotated[str, described("The caller who revoked it.")] | UnsetType
    revoked_reason: Annotated[str, described("The reason of the revocation.")] | UnsetType
    granted_at: Annotated[str, time_meta("The time of the grant.")]
    expires_at: Annotated[str, time_meta("The time at which the token expires.")] | UnsetType
    revoked_at: Annotated[str, REVOKED_AT] | UnsetType


class Granted(Token, kw_only=True):
    """Describes a new token, and contains its secret in `token`. The service shows the secret only
    in this response."""

    token: Annotated[str, described("Send it as `Authorization: Bearer ...`.")]
    spaces: Annotated[
        list[Annotated[str, described(pattern=SPACE_PATTERN)]],
        described("The spaces that the token is for."),
    ]


class IssuedCode(Struct, kw_only=True):
    """Describes an enrolment code. The service shows the code only in this response."""

    id: Annotated[str, uuid_meta("The id of the token that the device will get. It is no secret.")]
    code: Annotated[str, described("Give it to the user of the device.")]
    name: Annotated[str, NAME] | UnsetType
    expires_at: Annotated[str, time_meta("The time at which the code expires.")]


class Tokens(Struct):
    """A page of tokens, in the order of their grants."""

    tokens: list[Token]
    cursor: Annotated[str | None, CURSOR]


class Device(Struct, kw_only=True):
    """A device that has pushed to the space, or that an admin has registered or revoked."""

    device: Annotated[str, DEVICE]
    counter: Annotated[int, described("The last counter that the device used.")]
    name: Annotated[str, NAME] | UnsetType
    registered_at: Annotated[str, time_meta("Absent if the device only pushed.")] | UnsetType
    last_seen: Annotated[str, time_meta("The time of the device's last push.")] | UnsetType
    revoked_at: Annotated[str, REVOKED_AT] | UnsetType


class Devices(Struct):
    """A page of devices, in the order of their ids."""

    devices: list[Device]
    cursor: Annotated[str | None, CURSOR]


TREE_LOG = uuid_meta("The id of this log.")
PATH = described("Hashes in base64, in the order of RFC 9162.")


class InclusionProof(Struct):
    """A proof that an event is in the Merkle tree (RFC 9162 section 2.1.3)."""

    log: Annotated[str, TREE_LOG]
    seq: Annotated[int, seq_meta("The event. It is leaf `seq` - 1.")]
    size: Annotated[int, seq_meta("The size of the tree.")]
    root: Annotated[str, described("The root of that tree, in base64.")]
    inclusion_path: Annotated[list[str], PATH]


class EventProof(InclusionProof, kw_only=True):
    """An event with its salt, and a proof that the event is in the Merkle tree. The salt is needed
    to verify the operations of the event."""

    leaf_hash: Annotated[str, described("In base64: SHA-256 of a zero byte and the leaf.")]
    ops_hash: Annotated[str, described("In hex. The leaf has it in the place of `ops` or `body`.")]
    salt: Annotated[str, described("In hex. It opens the commitments to the operations.")]
    event: Event | Raw


class ConsistencyProof(Struct, rename={"from_": "from"}):
    """A proof that an older tree is the beginning of a newer tree (RFC 9162 section 2.1.4)."""

    log: Annotated[str, TREE_LOG]
    from_: Annotated[int, described("The size of the older tree.")]
    to: Annotated[int, described("The size of the newer tree.")]
    from_root: Annotated[str, described("The root of the older tree, in base64.")]
    to_root: Annotated[str, described("The root of the newer tree, in base64.")]
    consistency_path: Annotated[list[str], PATH]


class Keys(Struct):
    """The public keys that have signed checkpoints of the log."""

    log: Annotated[str, TREE_LOG]
    keys: Annotated[list[str], described("vkeys, the present key first.")]


class ExportHeader(Struct):
    """The first line of an export. It contains the name of the space, the id of the log, and the
    seq of the last exported event."""

    foldlog: Literal["export"]
    version: Annotated[int, described(minimum=1)]
    space: str
    log: Annotated[str, TREE_LOG]
    head: Annotated[int, described("The seq of the last line.")]


class ExportLine(Struct):
    """A line of an export after the header. It contains one event and the salt of this event."""

    salt: Annotated[str, described("In hex.")]
    event: Event | Raw


class Health(Struct):
    """The response of `/healthz`. It shows only that the process is running."""

    status: Literal["ok"]


class Readiness(Struct):
    """The response of `/readyz` if the service can handle requests. It has the result of each
    check, and the number of spaces with an alarm."""

    status: Literal["ready"]
    checks: Annotated[dict[str, str], described("{name: `ok`}")]
    alarms: Annotated[
        dict[str, int], described("{alarm: the number of spaces that have it}; usually empty.")
    ]


class Wrong(Struct, kw_only=True):
    """Describes one error in a request and where it is: in a member of the body, in a parameter, or
    in a header."""

    pointer: Annotated[str, described("A place in the body (RFC 6901).")] | UnsetType
    parameter: Annotated[str, described("A parameter of the path or the query.")] | UnsetType
    header: Annotated[str, described("A header.")] | UnsetType
    detail: str


class Problem(Struct, kw_only=True):
    """An error response (RFC 9457). `code` is the name of the problem, which stays the same in
    later versions. The other members depend on the code."""

    type: Annotated[str, described("A page about this code.")]
    title: str
    status: Annotated[int, described(minimum=400, maximum=599)]
    detail: str
    code: str
    errors: list[Wrong] | UnsetType
    index: Annotated[int, described("The index of a changeset in the push, from 0.")] | UnsetType
    pointer: Annotated[str, described("A place in the body (RFC 6901).")] | UnsetType


class ExportProblem(Struct):
    """The last line of an export that cannot continue. The response then ends too early."""

    problem: Problem
