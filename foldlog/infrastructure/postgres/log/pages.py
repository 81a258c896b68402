"""Pages of the log, bounded by events and by bytes."""

from __future__ import annotations

# An event as whoever folds it reads it: one that is stepped over says nothing, whatever it holds.
IS_SKIPPED = (
    "originator_version = ANY (ARRAY(SELECT k.seq FROM skipped k WHERE k.space = %(space)s))"
)
_SAYS_NOTHING = """convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8')"""
TOPIC_TO_FOLD = f"CASE WHEN {IS_SKIPPED} THEN 'skipped/1' ELSE topic END"
STATE_TO_FOLD = f"CASE WHEN {IS_SKIPPED} THEN {_SAYS_NOTHING} ELSE state END"
# What readers are given in its place, unless they can read it.
IN_PLACE_OF_SKIPPED = f"CASE WHEN {IS_SKIPPED} THEN {_SAYS_NOTHING} END"

# A page ends before it grows too large. That it cannot is known of most spaces by their largest
# event; only of the others lengths are added up, by a window that costs half as much as the page.
# The event that crosses the limit still comes, so that a page is never empty.
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
    """Events after a seq, within a number of them and of bytes."""
    return _SELECT_PAGE.format(columns=columns, filter=filter)
