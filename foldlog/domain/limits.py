"""Defines all limits of requests and answers, with their default values. `GET /v1/limits` publishes
each limit under its name. Limits in bytes count text as UTF-8."""

from __future__ import annotations

import msgspec

#: The largest integer that every JSON reader holds exactly (IEEE 754 double, RFC 8259 section 6).
INTEGER_MAX = 2**53 - 1


#: Fixed by the wire format, because all replicas of a log must agree on them.
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
        "record_size_max",
        "schema_bytes_max",
        "schema_nesting_max",
        "schema_steps_per_changeset_max",
    }
)


class Limits(msgspec.Struct, frozen=True):
    """Contains the limits of requests and answers, with their default values. An operator may
    change each limit, except those in `FIXED`.

    If a limit applies to one caller or to one IP address, the value 0 switches the limit off.
    """

    #: fixed by the wire format
    operations_per_changeset_max: int = 1_000
    record_id_length_max: int = 128
    name_length_max: int = 64
    #: the largest absolute value of an integer
    integer_max: int = INTEGER_MAX

    #: the request line and the headers together
    head_bytes_max: int = 64 * 2**10
    #: the time in which a client must send them
    head_seconds_max: int = 20
    #: the minimum rate of an incoming body, measured over `body_pace_seconds`
    body_bytes_per_second_min: int = 100
    body_pace_seconds: int = 30
    #: an answer is aborted if its client stops reading for so long
    unread_seconds_max: int = 60
    #: connections of one worker: in total, and from one address that is not a trusted proxy
    connections_max: int = 20_000
    connections_per_address_max: int = 2_000
    #: answered requests per second, of one caller and of one address
    requests_per_second_per_caller: int = 200
    requests_per_second_per_address: int = 1_000
    #: how many seconds of this rate may come at once; applies to wrong tokens too
    burst_seconds: int = 10
    #: a body counts as one more request for each so many bytes
    bytes_per_request_counted: int = 64 * 2**10
    #: wrong tokens of one address; after that, only cached tokens of this address are accepted
    wrong_tokens_per_second_per_address: int = 50
    #: open streams and waiting calls of one caller, or address
    streams_per_caller_max: int = 100
    #: snapshots and exports in progress, of one caller, or address
    downloads_per_caller_max: int = 4
    #: bytes of pushes that wait to be stored in one space
    waiting_bytes_per_space_max: int = 64 * 2**20

    body_bytes_max: int = 8 * 2**20
    #: for all calls but pushes and syncs
    small_body_bytes_max: int = 256 * 2**10
    inflated_bytes_max: int = 16 * 2**20
    #: the number of `,`, `[` and `{` in a body, strings included: an upper bound for its values. So
    #: many take 0.2 s and 70 MB to decode
    values_per_body_max: int = 500_000
    #: the largest body that is searched for an unreadable part; the search takes a hundred times
    #: longer than decoding
    unreadable_bytes_max: int = 256 * 2**10
    #: all bodies in the memory of one worker; the first bytes of each are free
    bodies_bytes_max: int = 256 * 2**20
    #: the bodies of one caller, or address
    bodies_bytes_per_caller_max: int = 64 * 2**20
    changesets_per_push_max: int = 1_000
    #: of all changesets of a push, because they are stored together, guards included, before a
    #: deadline
    operations_per_push_max: int = 50_000
    #: the stored events that one push repeats, and the records that its guards name
    looked_up_bytes_max: int = 16 * 2**20
    #: Without effect. Settings of older versions may name it.
    touched_bytes_per_event_max: int = 128 * 2**20
    #: of one stored event; a page of one event then fits into memory
    event_bytes_max: int = 4 * 2**20
    #: of one record, as `merge.record_size` counts it; an operation beyond this loses
    record_size_max: int = 16 * 2**20
    field_name_length_max: int = 256
    fields_per_operation_max: int = 1_000
    nesting_max: int = 32

    page_events_default: int = 500
    page_events_max: int = 1_000
    page_records_default: int = 500
    page_records_max: int = 1_000
    #: records in a page of a snapshot; each page ends with a cursor
    page_snapshot_records: int = 1_000
    #: a page ends before it exceeds this, but has at least one item
    page_bytes_max: int = 8 * 2**20
    #: the same for a message of a stream, which stays in memory until the reader takes it
    stream_message_bytes_max: int = 2**20
    #: events that a filtered page reads; the page then ends with `more`
    page_scan_max: int = 20_000
    #: collections that a range may be filtered by
    collections_per_filter_max: int = 100
    #: longest wait of a read for its projection (`at_least`), in seconds
    at_least_wait_seconds_max: int = 10
    #: longest wait of a read without `at_least` for the head of the log, in seconds
    head_wait_seconds_max: int = 1
    #: longest wait of a pull for new events (`wait`), in seconds
    wait_seconds_max: int = 60
    #: the interval of a stream's heartbeats
    stream_heartbeat_seconds: int = 15
    #: a stream ends in good order before this, to be opened again; below the timeouts of proxies
    stream_seconds_max: int = 600
    #: events after the master table's position that deciding a guard may read
    guard_tail_events_max: int = 20_000
    #: of a collection's schema, as it is stored
    schema_bytes_max: int = 32 * 2**10
    schema_nesting_max: int = 32
    #: steps of checking one changeset against the schemas; each subschema that may apply to a value
    #: is a step, or several
    schema_steps_per_changeset_max: int = 1_000_000
    #: the same for all changesets of a push
    schema_steps_per_push_max: int = 4_000_000
    #: collections of a space that have a schema
    collections_per_space_max: int = 200
    #: time for checking stored records during a definition by HTTP, in seconds
    schema_check_seconds_max: int = 20
    #: records in one request; the command `foldlog erase` is unlimited
    erase_records_max: int = 100
    #: spaces for which one request grants a token
    token_spaces_max: int = 100


LIMITS = Limits()
