"""A snapshot on the wire: what a new device loads instead of the whole log.

JSON lines: a header, then pages of records, each page closed by a line of its own.

    {"log": "...", "seq": 42, "mark": "9f86d081884c7d65", "records": 3}
    {"collection": "tasks", "id": "a", "fields": {...}, ..., "writes": [...], "deleted": null}
    {"collection": "tasks", "id": "b", ...}
    {"at": 42, "mark": "9f86d081884c7d65", "cursor": "WyJ0YXNrcyIs..."}
    {"collection": "tasks", "id": "c", ...}
    {"at": 44, "mark": "2c26b46b68ffc68f", "cursor": null}

Nobody holds the log still meanwhile, so each page is true at a seq of its own: the `at` that closes
it, which is never less than the header's `seq`. The pages fit together all the same: follow the log
from the `seq` (and `mark`) of the *first* header, and pass over, record by record, the events with
`seq <= at` of that record's page. A record that came in no page needs no such care: until its page
was read it had never been, so every event on it up to then changed nothing.

Records that are ahead of the header are of a history of which the `mark` of their page is the last
word. Having followed the log to the largest `at`, compare: another mark there means that the server
was restored in between, and the snapshot is to be thrown away.

A stream whose last line is not one with `"cursor": null` was cut. What came after the last closing
line is then of no known seq and is thrown away; the rest is kept, and `?cursor=` goes on after it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .merge import PackedWrites, Record, RecordView, Write, pack_writes, unpack_writes, view_of


class SnapshotHeader(msgspec.Struct):
    """The first line: where to follow the log from, and how many records are to come."""

    log: str
    seq: int
    mark: str
    records: int


class SnapshotPageEnd(msgspec.Struct):
    """The line after each page: the seq that its records are true at, and how to go on."""

    at: int
    mark: str
    cursor: str | None


class SnapshotRecord(RecordView):
    """A record, live or a tombstone, with all that the merge needs to go on from it.

    Raw where the parts come as bytes from the master table.
    """

    writes: PackedWrites | msgspec.Raw
    deleted: Write | msgspec.Raw | None
    #: by which event it was erased last: who starts here does not pull that one
    erased: int | UnsetType = UNSET


class _Line(msgspec.Struct):
    """Any line after the header; a record has no `at`."""

    collection: str = ""
    id: str = ""
    fields: dict[str, Any] = {}
    is_deleted: bool = False
    last_modified: str = ""
    seq: int = 0
    created_seq: int = 0
    writes: PackedWrites = []
    deleted: Write | None = None
    erased: int = 0
    at: int | None = None
    mark: str = ""
    cursor: str | None = None


_decode_header = msgspec.json.Decoder(SnapshotHeader).decode
_decode_line = msgspec.json.Decoder(_Line).decode


def snapshot_view(record: Record, erased_seq: int | None = None) -> SnapshotRecord:
    view = msgspec.structs.asdict(view_of(record))
    return SnapshotRecord(
        **view,
        writes=pack_writes(record.writes),
        deleted=record.deleted,
        erased=erased_seq or UNSET,
    )


def snapshot_header(line: bytes) -> SnapshotHeader:
    """Reads the first line."""
    return _decode_header(line)


def snapshot_line(line: bytes) -> Record | SnapshotPageEnd:
    """Reads any line after the first: a record as the fold knows it, or the end of a page.

    Who touched a record is the server's business, and does not come.
    """
    read = _decode_line(line)
    return _record_of(read) if read.at is None else SnapshotPageEnd(read.at, read.mark, read.cursor)


def snapshot_erasure(line: bytes) -> int:
    """The seq by which the record of a line was erased last; 0: never."""
    return _decode_line(line).erased if b'"erased":' in line else 0


def _record_of(line: _Line) -> Record:
    return Record(
        collection=line.collection,
        id=line.id,
        fields=line.fields,
        writes=unpack_writes(line.writes),
        deleted=line.deleted,
        is_deleted=line.is_deleted,
        seq=line.seq,
        last_modified=line.last_modified,
        created_seq=line.created_seq,
    )
