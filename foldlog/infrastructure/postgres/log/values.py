"""Reads single values of operations from the events of a log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from psycopg import Cursor
from psycopg.rows import tuple_row

from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import bigint_array

SELECT_EVENTS_OF_VALUES = """
SELECT originator_version, topic, state
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version = ANY(%(seqs)s::bigint[])
 ORDER BY originator_version
"""

# PostgreSQL knows the length of a value without reading it.
SELECT_EVENT_SIZES = """
SELECT originator_version, octet_length(state)
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version = ANY(%(seqs)s::bigint[])
 ORDER BY originator_version
"""

#: the events that one statement reads; the last one may exceed it
CHUNK_BYTES = 8 * 2**20


class ValuesMoved(Exception):
    """A value is gone from the log since its row was read: its record was erased meanwhile."""


class Wanted(NamedTuple):
    """The value of a field in one operation, counted from 0, of an event."""

    seq: int
    op: int
    name: str


class _Ops(msgspec.Struct):
    ops: list[msgspec.Raw] = []


class _Fields(msgspec.Struct):
    fields: dict[str, msgspec.Raw] = {}


_decode_ops = msgspec.json.Decoder(_Ops).decode
_decode_fields = msgspec.json.Decoder(_Fields).decode


def event_sizes(cursor: Cursor[Any], space: str, seqs: Collection[int]) -> dict[int, int]:
    """Returns {seq: bytes} of the events with these seqs."""
    if not seqs:
        return {}
    params = {"space": space, "seqs": bigint_array(sorted(seqs))}
    return dict(cursor.execute(SELECT_EVENT_SIZES, params, prepare=True).fetchall())


def read_values(
    cursor: Cursor[Any], space: str, wanted: Iterable[Wanted], sizes: dict[int, int]
) -> dict[Wanted, msgspec.Raw]:
    """Reads values as their JSON bytes, and returns {place: value}. `sizes` has the size of each of
    their events.

    Beside the values, at most `CHUNK_BYTES` of events, or one event, are in memory at a time.
    Raises `ValuesMoved` if a value is no longer in the log.
    """
    by_seq: dict[int, list[Wanted]] = {}
    for place in wanted:
        by_seq.setdefault(place.seq, []).append(place)
    found: dict[Wanted, msgspec.Raw] = {}
    for seqs in _chunks(sorted(by_seq), sizes):
        params = {"space": space, "seqs": bigint_array(seqs)}
        binary = cursor.connection.cursor(row_factory=tuple_row, binary=True)
        for seq, topic, state in binary.execute(SELECT_EVENTS_OF_VALUES, params, prepare=True):
            found.update(_values_in(topic, state, by_seq.pop(seq)))
    if by_seq:
        raise ValuesMoved
    return found


def _chunks(seqs: Sequence[int], sizes: dict[int, int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    size = 0
    for seq in seqs:
        size += sizes.get(seq, 0)
        if chunk and size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], sizes.get(seq, 0)
        chunk.append(seq)
    if chunk:
        yield chunk


def _values_in(
    topic: str, state: bytes, wanted: Iterable[Wanted]
) -> Iterator[tuple[Wanted, msgspec.Raw]]:
    ops = _decode_ops(UPCASTER.upcast(topic, state)).ops
    fields: dict[int, dict[str, msgspec.Raw]] = {}
    for place in wanted:
        if place.op not in fields:
            fields[place.op] = _decode_fields(ops[place.op]).fields
        value = fields[place.op].get(place.name)
        if value is None:
            raise ValuesMoved
        yield place, value.copy()  # the copy lets go of the event
