"""Computes the current values of records, including the newest events of the log.

The master table is updated after the commit of an append, so it may lack the newest events. This
module reads the records from the master table, reads the missing events from the log, and applies
these events to the records.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from psycopg import Cursor

from foldlog.domain.json_reader import decode_value
from foldlog.domain.limits import INTEGER_MAX, Limits
from foldlog.domain.merge import Key, Record, fold
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, TOPIC_TO_FOLD
from foldlog.infrastructure.postgres.log.values import Wanted, event_sizes, read_values
from foldlog.infrastructure.postgres.master.assembly import read_parts
from foldlog.infrastructure.postgres.master.record_rows import (
    COLUMNS,
    lacks_values,
    record_of,
    select_wanted,
)
from foldlog.infrastructure.postgres.master.stored_form import Place, StoredRecord, unpack

# The position and the records come from one statement, so from one snapshot.
SELECT_RECORDS_AND_POSITION = f"""
SELECT p.position, p.generation, {COLUMNS}
  FROM projections p
  LEFT JOIN LATERAL ({select_wanted("p.space", "p.generation")}) found ON true
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
 ORDER BY collection, id
"""

_IN_TAIL = """originator_id = %(space)s
   AND originator_version > %(position)s
   AND originator_version <= %(head)s
   AND (collections && %(collections)s::text[] OR topic LIKE 'record-erased/%%')"""

SELECT_TAIL = f"""
SELECT {TOPIC_TO_FOLD}, {STATE_TO_FOLD}
  FROM events
 WHERE {_IN_TAIL}
 ORDER BY originator_version
"""

SELECT_TAIL_BYTES = f"""
SELECT coalesce(sum(octet_length(state)), 0)
  FROM events
 WHERE {_IN_TAIL}
"""


#: The events that have the values of the records may be larger than these, by this factor.
EVENTS_FACTOR = 4


class _Place(NamedTuple):
    """Stands for a value that is still to be read from the log."""

    wanted: Wanted
    size: int


def _place_of(name: str, place: Place) -> _Place:
    seq, op, size = place
    return _Place(Wanted(seq, op, name), size)


def records_at_head(
    cursor: Cursor[Any],
    space: str,
    head: int,
    keys: Collection[Key],
    limits: Limits,
    *,
    bytes_max: int = INTEGER_MAX,
) -> dict[Key, Record] | None:
    """Returns a dict from key to record, with the records as they are after the event `head`.

    The caller must hold the lock of the space. If a record does not exist, the dict contains an
    empty `Record` for its key. If the stored records exceed `bytes_max` in total, the keys of the
    records beyond this limit are left out.

    Returns `None` if the function is unable to apply the events that the master table lacks. This
    is the case if they are more than `guard_tail_events_max` events, if they exceed `bytes_max` in
    total, or if one of them is invalid.
    """
    collections, ids = zip(*keys, strict=True)
    params: dict[str, Any] = {
        "space": space,
        "collections": list(collections),
        "ids": list(ids),
        "bytes_max": bytes_max,
    }
    rows = cursor.execute(SELECT_RECORDS_AND_POSITION, params, prepare=True).fetchall()
    position, generation = rows[0][:2]
    if head - position > limits.guard_tail_events_max:
        return None
    # The outer join may have found no records.
    stored = [row[2:] for row in rows if row[2] is not None]
    missing = set(keys) - {(collection, id) for collection, id, *_ in stored}
    records = {key: Record(*key) for key in missing}
    records |= _complete(cursor, space, generation, stored, bytes_max)
    if position < head:
        params |= {"position": position, "head": head}
        (size,) = cursor.execute(SELECT_TAIL_BYTES, params, prepare=True).fetchone() or (0,)
        if size > bytes_max:
            return None
        for topic, state in cursor.execute(SELECT_TAIL, params, prepare=True):
            try:
                event = UPCASTER.decode(topic, state)
                event.ops = [op for op in event.ops if op.key in records]
                fold(records, event)
            except (ValueError, msgspec.MsgspecError, RecursionError):
                return None  # the master table is halted before this event, see `status`
    return records


def _complete(
    cursor: Cursor[Any], space: str, generation: int, rows: Sequence[Any], bytes_max: int
) -> dict[Key, Record]:
    """Returns the records of these rows with all their values, as far as they have at most
    `bytes_max` bytes in total, and the events with the values not much more."""
    found: dict[Key, StoredRecord] = {}
    parts: dict[Key, list[int]] = {}
    left = bytes_max
    for row in rows:
        if lacks_values(row):
            continue
        record, sizes = record_of(row, _place_of)
        left -= sum(size for _, size in sizes)
        if left >= 0:
            found[record.collection, record.id] = record
            parts[record.collection, record.id] = [seq for seq, _ in sizes]
    wanted_parts = ((*key, seq) for key, seqs in parts.items() for seq in seqs)
    versions = read_parts(cursor, space, generation, wanted_parts)
    for key, seqs in parts.items():
        if seqs:
            unpack(found[key], [versions[(*key, seq)] for seq in seqs], _place_of)
    return _with_values(cursor, space, found, left, EVENTS_FACTOR * bytes_max)


def _with_values(
    cursor: Cursor[Any],
    space: str,
    records: dict[Key, StoredRecord],
    bytes_max: int,
    event_bytes_max: int,
) -> dict[Key, Record]:
    """Puts the values that are in the log into the records. Leaves out the records beyond the
    limits."""
    wanted = {
        key: [v for v in r.fields.values() if type(v) is _Place] for key, r in records.items()
    }
    events = event_sizes(cursor, space, {v.wanted.seq for of in wanted.values() for v in of})
    seen: set[int] = set()
    for key, of in wanted.items():
        new = {value.wanted.seq for value in of} - seen
        bytes_max -= sum(value.size for value in of)
        event_bytes_max -= sum(events[seq] for seq in new)
        seen |= new
        if of and min(bytes_max, event_bytes_max) < 0:
            del records[key]
    places = [v.wanted for key, of in wanted.items() if key in records for v in of]
    values = read_values(cursor, space, places, events)
    for record in records.values():
        for name, value in record.fields.items():
            if type(value) is _Place:
                record.fields[name] = decode_value(values[value.wanted])
    return dict(records)
