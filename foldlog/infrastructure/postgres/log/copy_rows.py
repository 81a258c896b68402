"""Encodes events as rows of PostgreSQL's binary COPY format, for fast appends of many events.

Each row starts with the number of its columns. Then each column follows as its length and its
bytes. The section "Binary Format" of PostgreSQL's page about COPY describes this format. The
encoder of this module takes a fifth of the time of psycopg's own encoder, and encoding is most of
the cost of a large append.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

from foldlog.domain.events import LogEntry
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import text_array

COPY = """
COPY events (
         originator_id, originator_version, topic, state,
         event_id, device, received_at_ms, collections, salt, ops_hash
     )
FROM STDIN (FORMAT binary)
"""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_int2, _int4, _int8 = (Struct(form).pack for form in ("!h", "!i", "!q"))
_LENGTH_OF_INT8 = _int4(8)
_LENGTH_OF_UUID = _int4(16)


def copy_rows(space: str, entries: Sequence[LogEntry]) -> bytes:
    """Returns the bytes to send after a `COPY` statement: a header, the rows, and a trailer.

    There is one row for each event. Its columns have the same order as in the `COPY` statement.
    """
    start = _int2(10) + _value(space.encode()) + _LENGTH_OF_INT8
    parts = [_HEADER]
    for entry in entries:
        parts += (
            start,
            _int8(entry.seq),
            _text(UPCASTER.topic_of(entry.kind)),
            _int4(len(entry.state)),
            entry.state,
            _LENGTH_OF_UUID,
            bytes.fromhex(entry.event_id.replace("-", "")),
            _NULL if entry.device is None else _uuid(entry.device),
            _LENGTH_OF_INT8,
            _int8(entry.received_at),
            _NULL if entry.collections is None else _text_array(*entry.collections),
            _int4(len(entry.salt)),
            entry.salt,
            _int4(len(entry.ops_hash)),
            entry.ops_hash,
        )
    parts.append(_TRAILER)
    return b"".join(parts)


def _value(data: bytes) -> bytes:
    return _int4(len(data)) + data


@lru_cache(maxsize=64)
def _text(text: str) -> bytes:
    return _value(text.encode())


@lru_cache(maxsize=1_024)
def _uuid(text: str) -> bytes:
    return _value(bytes.fromhex(text.replace("-", "")))


@lru_cache(maxsize=1_024)
def _text_array(*texts: str) -> bytes:
    return _value(text_array(texts))
