"""Every limit has a name and is published at `GET /v1/limits`. Byte counts are bytes, UTF-8."""

from __future__ import annotations

import msgspec

#: The largest integer that every JSON reader holds exactly (IEEE 754 double, RFC 8259 section 6).
INTEGER_MAX = 2**53 - 1


#: Fixed by the wire format: every replica of a log relies on them.
FIXED = frozenset(
    {
        "operations_per_changeset_max",
        "record_id_length_max",
        "name_length_max",
        "field_name_length_max",
        "fields_per_operation_max",
        "integer_max",
        "nesting_max",
        "event_bytes_max",
        "schema_bytes_max",
        "schema_nesting_max",
    }
)


class Limits(msgspec.Struct, frozen=True):
    """What a request may hold, and a client ask for. An operator may change all but `FIXED`.

    Of those that count a caller's or an address's, 0 means that there is no limit.
    """

    #: fixed by the wire format
    operations_per_changeset_max: int = 1_000
    record_id_length_max: int = 128
    name_length_max: int = 64
    #: the size of a whole number, of either sign
    integer_max: int = INTEGER_MAX

    #: of a request's line and headers together
    head_bytes_max: int = 64 * 2**10
    #: how long a client may take to send them
    head_seconds_max: int = 20
    #: a body must come at this pace at least, measured over so many seconds
    body_bytes_per_second_min: int = 100
    body_pace_seconds: int = 30
    #: an answer that waits for its client to read on waits for no longer
    unread_seconds_max: int = 60
    #: of one worker at a time: of all, and of one address that is no trusted proxy
    connections_max: int = 20_000
    connections_per_address_max: int = 2_000
    #: requests that are answered per second, of one caller and of one address ...
    requests_per_second_per_caller: int = 200
    requests_per_second_per_address: int = 1_000
    #: ... of which, as of wrong tokens, so many seconds' worth may come at once
    burst_seconds: int = 10
    #: a body counts as one more request for each so many bytes
    bytes_per_request_counted: int = 64 * 2**10
    #: wrong tokens of one address, after which no token is looked up that is not known to be good
    wrong_tokens_per_second_per_address: int = 50
    #: streams and calls that wait, of one caller, or address, at a time
    streams_per_caller_max: int = 100
    #: snapshots and exports that are under way, of one caller, or address, at a time
    downloads_per_caller_max: int = 4
    #: bytes of pushes to one space that wait to be stored
    waiting_bytes_per_space_max: int = 64 * 2**20

    body_bytes_max: int = 8 * 2**20
    #: ... of all calls but pushes and syncs
    small_body_bytes_max: int = 256 * 2**10
    inflated_bytes_max: int = 16 * 2**20
    #: of `,`, `[` and `{` of a body, in its texts too: about as many values as it can have at most.
    #: So many take 0.2 s to decode, and 70 MB
    values_per_body_max: int = 500_000
    #: what cannot be read is looked for in no larger body: that takes a hundred times longer
    unreadable_bytes_max: int = 256 * 2**10
    #: of all bodies that one worker holds at a time; the first bytes of each are not counted
    bodies_bytes_max: int = 256 * 2**20
    #: ... and of those of one caller, or address
    bodies_bytes_per_caller_max: int = 64 * 2**20
    changesets_per_push_max: int = 1_000
    #: of all changesets of a push: they are stored together, guarded ones too, within a deadline
    operations_per_push_max: int = 50_000
    #: of the stored events that one push repeats, and of the records that its guards name
    looked_up_bytes_max: int = 16 * 2**20
    #: of the records, as they are stored, that one event touches: it cannot be folded otherwise
    touched_bytes_per_event_max: int = 128 * 2**20
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
    #: ... and a message of a stream, which is kept until its reader has taken it
    stream_message_bytes_max: int = 2**20
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
    #: that one call grants a token for
    token_spaces_max: int = 100


LIMITS = Limits()
