"""Pages of the log, bounded by events and by bytes."""

from __future__ import annotations

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
