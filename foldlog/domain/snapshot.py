"""Defines and decodes the wire format of a snapshot. A new device loads a snapshot instead of
reading the whole log.

A snapshot consists of JSON lines. The first line is a header. The pages of records follow, and each
page ends with a line that has `at`.

    {"log": "...", "seq": 42, "mark": "9f86d081884c7d65", "records": 3}
    {"collection": "tasks", "id": "a", "fields": {...}, ..., "writes": [...], "deleted": null}
    {"collection": "tasks", "id": "b", ...}
    {"at": 42, "mark": "9f86d081884c7d65", "cursor": "WyJ0YXNrcyIs..."}
    {"collection": "tasks", "id": "c", ...}
    {"at": 44, "mark": "2c26b46b68ffc68f", "cursor": null}

The log grows during the download. Each page therefore has the seq at which its records were read:
the `at` of its last line, which is at least the header's `seq`. To combine the pages, follow the
log from the `seq` and `mark` of the *first* header. For each record in the snapshot, skip the
events with `seq <= at` of the record's page. For a record that is missing in all pages, apply all
events.

If the server is restored from a backup during the download, the pages may belong to different
histories. To notice this, follow the log to the largest `at`, and compare the log's mark at this
seq with the `mark` of the page. If the two differ, discard the snapshot.

A complete snapshot ends with `"cursor": null`. If this line is missing, the download was
interrupted. Then discard the records after the last line that ends a page, because their seq is
unknown. Keep the other records, and continue with `?cursor=`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .json_reader import decoder
from .merge import PackedWrites, Record, RecordView, Write, pack_writes, unpack_writes, view_of


class SnapshotHeader(msgspec.Struct):
    """The first line of a snapshot. After loading the snapshot, a device reads the log from `seq`
    on. `records` is an estimate of the number of records."""

    log: str
    seq: int
    mark: str
    records: int
    #: the seq of the event at which the server's projection stands still, if it does
    halted_at: int | UnsetType = UNSET


class SnapshotPageEnd(msgspec.Struct):
    """The line after each page of a snapshot. `at` is the seq at which the records of the page were
    read, and `cursor` is the cursor with which the device requests the next page."""

    at: int
    mark: str
    cursor: str | None


class SnapshotRecord(RecordView):
    """A record or a tombstone in a snapshot, with all data that later merges need.

    Members of the type `msgspec.Raw` contain JSON bytes from the master table.
    """

    writes: PackedWrites | msgspec.Raw
    deleted: Write | msgspec.Raw | None
    #: its last erasure; a device that starts from a snapshot never receives that event
    erased: int | UnsetType = UNSET


class _Line(msgspec.Struct):
    """Any line of a snapshot after the header, decoded. If `at` is set, the line ends a page, and
    `at`, `mark` and `cursor` are its members. Otherwise the line is a record."""

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
_decode_line = decoder(_Line).decode


def snapshot_view(record: Record, erased_seq: int | None = None) -> SnapshotRecord:
    view = msgspec.structs.asdict(view_of(record))
    return SnapshotRecord(
        **view,
        writes=pack_writes(record.writes),
        deleted=record.deleted,
        erased=erased_seq or UNSET,
    )


def snapshot_header(line: bytes) -> SnapshotHeader:
    """Decodes the first line of a snapshot to a `SnapshotHeader`."""
    return _decode_header(line)


def snapshot_line(line: bytes) -> Record | SnapshotPageEnd:
    """Decodes any line of a snapshot except the first. Returns a `Record`, or a `SnapshotPageEnd`
    if the line ends a page.

    The record lacks `touched_seq`, `touched_by` and `touched_seq_other`, because only the server
    needs them.
    """
    read = _decode_line(line)
    return _record_of(read) if read.at is None else SnapshotPageEnd(read.at, read.mark, read.cursor)


def snapshot_erasure(line: bytes) -> int:
    """Returns the seq of the last `record-erased` event of the record in this line of a snapshot.
    Returns 0 if the record was never erased."""
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
