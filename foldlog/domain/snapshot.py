"""The wire format of a snapshot, which a new device loads in the place of the whole log.

JSON lines: a header, then pages of records. One line ends each page.

    {"log": "...", "seq": 42, "mark": "9f86d081884c7d65", "records": 3}
    {"collection": "tasks", "id": "a", "fields": {...}, ..., "writes": [...], "deleted": null}
    {"collection": "tasks", "id": "b", ...}
    {"at": 42, "mark": "9f86d081884c7d65", "cursor": "WyJ0YXNrcyIs..."}
    {"collection": "tasks", "id": "c", ...}
    {"at": 44, "mark": "2c26b46b68ffc68f", "cursor": null}

The log grows during the download, so each page is true at its own seq: the `at` of its last line,
which is at least the header's `seq`. To combine the pages, follow the log from the `seq` (and
`mark`) of the *first* header, and for each record skip the events with `seq <= at` of the record's
page. A record that is in no page needs no such rule: it did not exist when its page was read, so
all events on it before that had no effect.

A record that is newer than the header belongs to the history of its page's `mark`. After following
the log to the largest `at`, compare the marks. If they differ, the server was restored during the
download, and the snapshot must be discarded.

A complete stream ends with `"cursor": null`; any other was cut. Discard the records after the
last page end, because their seq is unknown; keep the others, and continue with `?cursor=`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .merge import PackedWrites, Record, RecordView, Write, pack_writes, unpack_writes, view_of


class SnapshotHeader(msgspec.Struct):
    """The first line: the seq from which to follow the log, and the number of records."""

    log: str
    seq: int
    mark: str
    records: int


class SnapshotPageEnd(msgspec.Struct):
    """The line after each page: the seq at which its records are true, and where to continue."""

    at: int
    mark: str
    cursor: str | None


class SnapshotRecord(RecordView):
    """A record or a tombstone, with all facts that later merges need.

    The parts are raw if they come as bytes from the master table.
    """

    writes: PackedWrites | msgspec.Raw
    deleted: Write | msgspec.Raw | None
    #: its last erasure; a device that starts from a snapshot never receives that event
    erased: int | UnsetType = UNSET


class _Line(msgspec.Struct):
    """Any line after the header. A page end has `at`; a record lacks it."""

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
    """Decodes the first line."""
    return _decode_header(line)


def snapshot_line(line: bytes) -> Record | SnapshotPageEnd:
    """Decodes any line after the first: a record as the fold knows it, or the end of a page.

    `touched_seq` and its siblings stay on the server.
    """
    read = _decode_line(line)
    return _record_of(read) if read.at is None else SnapshotPageEnd(read.at, read.mark, read.cursor)


def snapshot_erasure(line: bytes) -> int:
    """The seq of the last erasure of a line's record; 0: never erased."""
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
