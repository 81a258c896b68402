"""Completes rows of the master table: puts the values in that their column `apart` leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from psycopg import Cursor

from foldlog.domain.merge import Key, PackedWrites, pack_writes, unpack_writes
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, text_array
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.values import (
    ValuesMoved,
    Wanted,
    event_sizes,
    read_values,
)

from .stored_form import Apart, PartRow, Place, add_fields, apart_of

SELECT_PARTS = """
SELECT collection, id, seq, own_fields, own_writes, apart
  FROM versions v
  JOIN unnest(%(collections)s::text[], %(ids)s::text[], %(seqs)s::bigint[]) AS wanted (
           collection, id, seq
       )
 USING (collection, id, seq)
 WHERE v.space = %(space)s
   AND v.generation = %(generation)s
 ORDER BY collection, id, seq
"""


class Columns(NamedTuple):
    """The indexes of the columns of one state of a record in a row. `writes` is `None` if the row
    lacks this column."""

    fields: int
    apart: int
    writes: int | None = None


#: {(collection, id, seq): the version of this event}
Parts = dict[tuple[str, str, int], PartRow]

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_writes = msgspec.json.Decoder(PackedWrites).decode


def read_parts(
    cursor: Cursor[Any], space: str, generation: int, wanted: Iterable[tuple[str, str, int]]
) -> Parts:
    """Reads versions that are parts of records. Raises `ValuesMoved` if one is gone."""
    keys = sorted(set(wanted))
    if not keys:
        return {}
    collections, ids, seqs = zip(*keys, strict=True)
    params = {
        "space": space,
        "generation": generation,
        "collections": text_array(collections),
        "ids": text_array(ids),
        "seqs": bigint_array(seqs),
    }
    found = {
        (collection, id, seq): PartRow(seq, *part)
        for collection, id, seq, *part in cursor.execute(SELECT_PARTS, params, prepare=True)
    }
    if len(found) < len(keys):
        raise ValuesMoved
    return found


class _State(NamedTuple):
    """One incomplete state of a record in a row."""

    columns: Columns
    key: Key
    apart: Apart


class Source(NamedTuple):
    """The generation from which rows were read."""

    datastore: Datastore
    space: str
    generation: int


#: Completes the rows of a page. Returns the first ones, as many as come to the given bytes with
#: their values, and at least one. Raises `ValuesMoved` if a record was erased since the rows were
#: read.
Completer = Callable[[Source, Sequence[Any], int], list[Any]]


def states_completer(
    *columns: Columns, key_of: Callable[[Sequence[Any]], Key] = lambda row: (row[0], row[1])
) -> Completer:
    """Returns a function that completes rows with states of records.

    `columns` says where the states are in a row, and `key_of` returns the key of a row's record.
    """
    apart = [each.apart for each in columns]

    def complete(source: Source, rows: Sequence[Any], bytes_max: int) -> list[Any]:
        if not any(row[at] for row in rows for at in apart):
            return list(rows)
        return _Assembler(source, columns, key_of).complete(rows, bytes_max)

    return complete


def read_within(
    source: Source, wanted: Sequence[Mapping[Wanted, int]], bytes_max: int
) -> tuple[dict[Wanted, msgspec.Raw], int]:
    """Reads the values that rows need from the log. `wanted` has the values of each row, and the
    size of each value.

    Returns the values of the first rows, and the number of these rows. Neither the values, nor the
    events that have them, exceed `bytes_max` bytes, except those of the first row.
    """
    with source.datastore.reading() as cursor:
        seqs = {place.seq for of in wanted for place in of}
        # One event is read whatever its size.
        events = event_sizes(cursor, source.space, seqs) if len(seqs) > 1 else {}
        count, chosen = len(wanted), set[Wanted]()
        read = shown = 0
        seen = set[int]()
        for number, of in enumerate(wanted):
            read += sum(events.get(seq, 0) for seq in {place.seq for place in of} - seen)
            shown += sum(of.values())
            if max(read, shown) > bytes_max and number:
                count = number
                break
            seen.update(place.seq for place in of)
            chosen.update(of)
        return read_values(cursor, source.space, chosen, events), count


class _Assembler:
    def __init__(
        self,
        source: Source,
        columns: Sequence[Columns],
        key_of: Callable[[Sequence[Any]], Key],
    ):
        self._source = source
        self._columns = columns
        self._key_of = key_of
        self._sizes: dict[Wanted, int] = {}

    def complete(self, rows: Sequence[Any], bytes_max: int) -> list[Any]:
        states = [self._states_of(row) for row in rows]
        chosen = self._within(rows, states, bytes_max)
        rows, states = rows[:chosen], states[:chosen]
        with self._source.datastore.reading() as cursor:
            parts = read_parts(
                cursor,
                self._source.space,
                self._source.generation,
                ((*s.key, seq) for of in states for s in of for seq, _ in s.apart.parts),
            )
        joined = [
            [self._joined(row, state, parts) for state in of]
            for row, of in zip(rows, states, strict=True)
        ]
        wanted = [
            {
                value: self._sizes[value]
                for fields, _ in of
                for value in fields.values()
                if type(value) is Wanted
            }
            for of in joined
        ]
        values: dict[Wanted, msgspec.Raw] = {}
        if any(wanted):
            values, chosen = read_within(self._source, wanted, bytes_max)
        return [
            _filled(row, of, made, values)
            for row, of, made in zip(rows[:chosen], states, joined, strict=False)
        ]

    def _states_of(self, row: Sequence[Any]) -> list[_State]:
        return [
            _State(columns, self._key_of(row), apart_of(row[columns.apart]))
            for columns in self._columns
            if row[columns.apart] is not None
        ]

    def _within(self, rows: Sequence[Any], states: Sequence[list[_State]], bytes_max: int) -> int:
        """Returns the number of the first rows whose parts have at most `bytes_max` bytes."""
        left = bytes_max
        for number, (row, of) in enumerate(zip(rows, states, strict=True)):
            left -= sum(len(row[columns.fields]) for columns in self._columns)
            left -= sum(size for state in of for _, size in state.apart.parts)
            if left < 0 and number:
                return number
        return len(rows)

    def _joined(
        self, row: Sequence[Any], state: _State, parts: Parts
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the fields and the writes of a state. Values that are in the log are `Wanted`."""
        fields: dict[str, Any] = {}
        writes: dict[str, Any] = {}
        for seq, _ in state.apart.parts:
            part = parts[(*state.key, seq)]
            add_fields(fields, _decode_fields(part.fields), apart_of(part.apart), self._wanted)
            if state.columns.writes is not None:
                writes |= unpack_writes(_decode_writes(part.writes))
        own = _decode_fields(row[state.columns.fields])
        add_fields(fields, own, state.apart, self._wanted)
        if state.columns.writes is not None:
            writes |= unpack_writes(_decode_writes(row[state.columns.writes]))
        return fields, writes

    def _wanted(self, name: str, place: Place) -> Wanted:
        seq, op, size = place
        wanted = Wanted(seq, op, name)
        self._sizes[wanted] = size
        return wanted


def _filled(
    row: Sequence[Any],
    states: Sequence[_State],
    joined: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    values: dict[Wanted, msgspec.Raw],
) -> list[Any]:
    filled = list(row)
    for (columns, _, _), (fields, writes) in zip(states, joined, strict=True):
        filled[columns.fields] = _encode(
            {n: values[v] if type(v) is Wanted else v for n, v in fields.items()}
        )
        if columns.writes is not None:
            filled[columns.writes] = _encode(pack_writes(writes))
    return filled
