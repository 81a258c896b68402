"""Reads pages of the conflict ledger, with optional filters by collection, record, field and
device.
"""

from __future__ import annotations

from typing import Any

from foldlog.domain.ledger import ALL_CONFLICTS, ConflictsFilter, read_ledger, render_ledger
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.ports import AtLeast, ConflictsPage, SpaceId, decode_cursor, encode_cursor

from .conflict_rows import complete_conflicts
from .reading import Scope, bounded
from .versions import VersionReader

_CONFLICTS = """
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
           AND (seq, number) <= (%(through_seq)s, %(through_number)s){filter}
           AND (%(device)s::uuid IS NULL OR %(device)s::uuid IN (lost_by, won_by))
           AND (%(field)s::bytea IS NULL OR field = %(field)s::bytea)
         ORDER BY seq, number
         LIMIT %(limit)s
"""


def _select_conflicts(filter: str) -> str:
    return bounded(
        "seq, number, document",
        ("document",),
        _CONFLICTS.format(filter=filter),
        order="seq, number",
    )


# Devices and fields have no index. A page that filters by them scans up to this conflict.
_SCAN_END = """
SELECT c.seq, c.number
  FROM projections p
  JOIN conflicts c
    ON c.space = p.space AND c.generation = p.generation
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND c.space = %(space)s
   AND (c.seq, c.number) > (%(after_seq)s, %(after_number)s){filter}
 ORDER BY c.seq, c.number
OFFSET %(scan_max)s - 1
 LIMIT 1
"""

# Three statements instead of one with optional filters, because each needs its own plan.
_FILTERS = {
    "all": "",
    "collection": """
           AND collection = %(collection)s""",
    "record": """
           AND collection = %(collection)s
           AND id = %(id)s""",
}
SELECT_CONFLICTS = {of: _select_conflicts(filter) for of, filter in _FILTERS.items()}
SELECT_SCAN_END = {of: _SCAN_END.format(filter=filter) for of, filter in _FILTERS.items()}


class ConflictReader(VersionReader):
    def conflicts(
        self,
        space: SpaceId,
        *,
        limit: int,
        cursor: str | None,
        at_least: AtLeast = 0,
        wanted: ConflictsFilter = ALL_CONFLICTS,
    ) -> ConflictsPage:
        after = decode_cursor(cursor, int, int) if cursor else (wanted.since, INTEGER_MAX)
        params = {
            "after_seq": after[0],
            "after_number": after[1],
            "collection": wanted.collection,
            "id": wanted.id,
            "field": None if wanted.field is None else wanted.field.encode(),
            "device": wanted.device,
        }
        of = "all" if wanted.collection is None else "collection" if wanted.id is None else "record"
        is_scan = wanted.device is not None or wanted.field is not None
        end = self._scan_end(SELECT_SCAN_END[of], space, params) if is_scan else None
        params["through_seq"], params["through_number"] = end or (INTEGER_MAX, INTEGER_MAX)
        # A generation without history has conflicts, but their columns for fields and devices are
        # empty.
        scope = Scope(space, at_least, needs_history=is_scan)
        found = self._page(SELECT_CONFLICTS[of], scope, params, limit, complete=complete_conflicts)
        rows, more = found.cut(limit)
        last = tuple(rows[-1][:2]) if more else end
        entries = read_ledger(row[2] for row in rows)
        heads = self._heads(space, {seq for entry in entries for seq in entry.seqs})
        return ConflictsPage(
            found.log,
            found.head,
            found.position,
            render_ledger(entries, heads, base=found.position),
            encode_cursor(*last) if last else None,
            halted_at=found.halted_at,
        )

    def _scan_end(
        self, statement: str, space: SpaceId, params: dict[str, Any]
    ) -> tuple[int, int] | None:
        """Returns (seq, number) of the last conflict that the search for one page may read.

        Filters by field or device are slow, because the database has no index for them. So the
        search for a page reads at most the next `page_scan_max` conflicts of the ledger. If the
        ledger has fewer conflicts after the cursor, the method returns `None`.
        """
        return self._datastore.fetch_one(
            statement, {**params, "space": space, "scan_max": self._limits.page_scan_max}
        )
