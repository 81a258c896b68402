"""Every limit has a name and is published at `GET /v1/limits`. Byte counts are bytes, UTF-8."""

from __future__ import annotations

import msgspec

#: The largest integer that every JSON reader holds exactly (IEEE 754 double, RFC 8259 section 6).
INTEGER_MAX = 2**53 - 1


class Limits(msgspec.Struct, frozen=True):
    """What a request may hold. A settings file may lower them, never raise the fixed ones."""

    #: fixed by the wire format
    operations_per_changeset_max: int = 1_000
    record_id_length_max: int = 128
    name_length_max: int = 64

    body_bytes_max: int = 8 * 2**20
    inflated_bytes_max: int = 16 * 2**20
    changesets_per_push_max: int = 1_000
    #: of one stored event; keeps a page of one event within memory
    event_bytes_max: int = 4 * 2**20
    field_name_length_max: int = 256
    fields_per_operation_max: int = 1_000
    nesting_max: int = 32

    page_events_default: int = 500
    page_events_max: int = 1_000
    page_records_default: int = 500
    page_records_max: int = 1_000
    #: how many records a snapshot reads, and closes with a cursor, at a time
    page_snapshot_records: int = 1_000
    #: a page ends early, never empty, when it would grow beyond this
    page_bytes_max: int = 8 * 2**20
    #: a filtered page looks at no more events than this, and then answers with `more`
    page_scan_max: int = 20_000
    #: how many collections a range may be filtered by
    collections_per_filter_max: int = 100
    #: longest wait of a read for its projection (`at_least`), in seconds
    at_least_wait_seconds_max: int = 10
    #: longest that a pull is held open until there is something (`wait`), in seconds
    wait_seconds_max: int = 60
    #: a stream says that it lives at least so often ...
    stream_heartbeat_seconds: int = 15
    #: ... and ends in good order before this, to be asked for again, ahead of any proxy's limit
    stream_seconds_max: int = 600
    #: a guard is decided on the master table and the events after it, of which there may be no more
    guard_tail_events_max: int = 20_000
    #: of a collection's schema, as it is stored
    schema_bytes_max: int = 32 * 2**10
    schema_nesting_max: int = 32
    #: how many collections of a space have a schema
    collections_per_space_max: int = 200
    #: how long a definition by HTTP looks through the records that are stored, in seconds
    schema_check_seconds_max: int = 20
    #: of one call; `foldlog erase` knows no such limit
    erase_records_max: int = 100


LIMITS = Limits()
