"""Builds SQL statements that read one page of a log.

A page has a greatest number of events and a greatest size in bytes. The file
docs/reference/statements.sql shows each of these statements in full.
"""

from __future__ import annotations

from typing import Any

# Projections read a skipped event as an event of the kind `skipped`, which has no content.
IS_SKIPPED = """originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))"""
_PLACEHOLDER = """convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8')"""
TOPIC_TO_FOLD = f"""CASE WHEN {IS_SKIPPED}
            THEN 'skipped/1' ELSE topic END"""
STATE_TO_FOLD = f"""CASE WHEN {IS_SKIPPED}
            THEN {_PLACEHOLDER} ELSE state END"""
# Devices receive the same placeholder if the skipped event is unreadable.
IN_PLACE_OF_SKIPPED = f"""CASE WHEN {IS_SKIPPED}
            THEN {_PLACEHOLDER} END"""

# A page ends with the event that reaches the limit of bytes, so it has at least one event. In most
# spaces the size of the largest event already proves that a page stays below the limit. Only in the
# others a window function adds up the lengths, which costs half as much as reading the page.
_SELECT_PAGE = """
SELECT {columns}
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s{filter}
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s{filter}
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       )
"""


def select_page(columns: str, filter: str = "") -> str:
    """Returns an SQL statement that reads one page of events from a log.

    `columns` are the columns to read. `filter` is a further SQL condition that begins with ` AND `.
    Execute the statement with the parameters that `page_params` returns.
    """
    return _SELECT_PAGE.format(columns=columns, filter=filter)


def page_params(
    space: str, after: int, through: int, *, limit: int, bytes_max: int
) -> dict[str, Any]:
    """Returns a dict with the parameters of a `select_page` statement.

    With these parameters, the statement reads a page of events of a space with
    `after < seq <= through`. The page has at most `limit` events. If the total size of the events
    exceeds `bytes_max` bytes, the page ends with the event at which the total exceeds this limit.
    """
    return {
        "space": space,
        "after": after,
        "through": through,
        "limit": limit,
        "bytes_max": bytes_max,
    }
