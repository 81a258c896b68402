"""Computes the current values of records, including the newest events of the log.

The master table is updated after the commit of an append, so it may lack the newest events. This
module reads the records from the master table, reads the missing events from the log, and applies
these events to the records.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from psycopg import Cursor

from foldlog.domain.limits import INTEGER_MAX, Limits
from foldlog.domain.merge import Key, Record, fold
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, TOPIC_TO_FOLD
from foldlog.infrastructure.postgres.master.record_rows import (
    COLUMNS,
    lacks_values,
    record_of,
    select_wanted,
)

# The position and the records come from one statement, so from one snapshot.
SELECT_RECORDS_AND_POSITION = f"""
SELECT p.position, {COLUMNS}
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
    position = rows[0][0]
    if head - position > limits.guard_tail_events_max:
        return None
    records = {key: Record(*key) for key in keys}
    for _, *row in rows:
        if row[0] is None:
            continue  # the outer join found no records
        if lacks_values(row):
            del records[row[0], row[1]]
        else:
            record = record_of(row)
            records[record.collection, record.id] = record
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
