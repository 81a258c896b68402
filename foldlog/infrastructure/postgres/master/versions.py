"""Reads the history of one record from the master table.

The history consists of the record's versions, the events that made these versions, and the values
that lost in conflicts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from foldlog.domain.errors import UnknownRecord
from foldlog.domain.history import (
    HEAD_BYTES_MAX,
    EventHead,
    Fields,
    Order,
    head_of,
    version_view,
)
from foldlog.domain.json_reader import decoder
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Key
from foldlog.domain.ports import HistoryPage, HistoryQuery, SpaceId, decode_cursor, encode_cursor
from foldlog.infrastructure.postgres.connection.arrays import bigint_array

from .assembly import Columns, states_completer
from .conflict_rows import complete_conflicts
from .moments import state_at
from .reading import Found, LiveReader, Scope, bounded

SELECT_HEADS = """
SELECT substr(state, 1, %(head_bytes_max)s)
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version = ANY(%(seqs)s::bigint[])
 ORDER BY originator_version
"""


def _select_versions(comes_after: str, order: str) -> str:
    return bounded(
        "version, header, is_deleted, fields_before, fields, apart_before, apart",
        ("fields_before", "fields"),
        f"""
        SELECT here.seq AS version,
               substr(e.state, 1, %(head_bytes_max)s) AS header,
               here.is_deleted,
               coalesce(before.fields, '{{}}'::json) AS fields_before,
               here.own_fields AS fields,
               before.apart AS apart_before,
               here.apart
          FROM versions here
          JOIN events e
            ON e.originator_id = here.space AND e.originator_version = here.seq
          LEFT JOIN LATERAL (
               {state_at("here.collection", "here.id", "here.seq - 1")}
               ) before ON true
         WHERE here.space = p.space
           AND here.generation = p.generation
           AND here.collection = %(collection)s
           AND here.id = %(id)s
           AND here.seq {comes_after} %(after)s
         ORDER BY here.seq {order}
         LIMIT %(limit)s
        """,
        order=f"version {order}",
    )


def _select_lost(order: str) -> str:
    return bounded(
        "seq, number, document",
        ("document",),
        f"""
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND collection = %(collection)s
           AND id = %(id)s
           AND seq BETWEEN %(first)s AND %(last)s
         ORDER BY seq {order}, number {order}
         LIMIT %(limit)s
        """,
        order=f"seq {order}, number {order}",
    )


SELECT_VERSIONS: dict[Order, str] = {
    "oldest": _select_versions(">", "ASC"),
    "newest": _select_versions("<", "DESC"),
}
#: the conflicts of a page of versions, in the same order
SELECT_LOST: dict[Order, str] = {"oldest": _select_lost("ASC"), "newest": _select_lost("DESC")}
FIRST_AFTER: dict[Order, int] = {"oldest": 0, "newest": INTEGER_MAX}

#: where a row of `SELECT_VERSIONS` has the states before and after
IN_VERSION = (Columns(fields=3, apart=5), Columns(fields=4, apart=6))

_encode = msgspec.json.encode
_decode_fields = decoder(Fields).decode


class VersionReader(LiveReader):
    def history(self, space: SpaceId, key: Key, query: HistoryQuery) -> HistoryPage:
        after = FIRST_AFTER[query.order]
        if query.cursor:
            (after,) = decode_cursor(query.cursor, int)
        params = {
            "collection": key[0],
            "id": key[1],
            "after": after,
            "head_bytes_max": HEAD_BYTES_MAX,
        }
        scope = Scope(space, query.at_least, needs_history=True)
        complete = states_completer(*IN_VERSION, key_of=lambda _: key)
        found = self._page(
            SELECT_VERSIONS[query.order], scope, params, query.limit, complete=complete
        )
        if not found.rows and not query.cursor:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        rows, lost = self._with_lost(
            SELECT_LOST[query.order], space, key, found.rows[: query.limit]
        )
        versions = [
            version_view(
                head_of(header),
                is_deleted,
                _decode_fields(before),
                _decode_fields(fields),
                lost.get(seq, ()),
            )
            for seq, header, is_deleted, before, fields, _, _ in rows
        ]
        return HistoryPage(
            found.log,
            found.head,
            found.position,
            list(map(_encode, versions)),
            encode_cursor(rows[-1][0]) if found.candidates > len(rows) else None,
            halted_at=found.halted_at,
        )

    def _with_lost(
        self, select_lost: str, space: SpaceId, key: Key, rows: list[Any]
    ) -> tuple[list[Any], dict[int, list[bytes]]]:
        """Reads the conflicts that belong to a page of versions of one record.

        Returns the rows of the versions, and a dict from the seq of a version to a list of its
        conflicts. If the conflicts exceed the size limit of a page, the method removes versions
        from the end of the page. It always keeps the first version, with
        those of its conflicts that fit. The next page begins with the
        first version that was removed.
        """
        if not rows:
            return rows, {}
        seqs = [row[0] for row in rows]
        params = {"collection": key[0], "id": key[1], "first": min(seqs), "last": max(seqs)}
        found = self._lost(select_lost, space, params)
        if len(found.rows) < found.candidates:
            # The last version may have further conflicts, so it moves to the next page. A single
            # version comes with its first conflicts. The ledger has all of them.
            cut = seqs.index(found.rows[-1][0])
            rows = rows[: max(cut, 1)]
            if cut == 0:
                found = self._lost(select_lost, space, params | {"first": seqs[0], "last": seqs[0]})
        lost: dict[int, list[bytes]] = {}
        for seq, _, document in sorted(found.rows):
            lost.setdefault(seq, []).append(document)
        return rows, lost

    def _lost(self, select_lost: str, space: SpaceId, params: dict[str, Any]) -> Found:
        return self._page(
            select_lost, Scope(space), params, INTEGER_MAX, complete=complete_conflicts
        )

    def _heads(self, space: SpaceId, seqs: Collection[int]) -> dict[int, EventHead]:
        """Returns {seq: event head} for the events with these seqs.

        An event head contains the id, the device and the times of an event.
        """
        if not seqs:
            return {}
        params = {"space": space, "seqs": bigint_array(seqs), "head_bytes_max": HEAD_BYTES_MAX}
        rows = self._datastore.fetch_all(SELECT_HEADS, params)
        return {head.seq: head for head in (head_of(beginning) for (beginning,) in rows)}
