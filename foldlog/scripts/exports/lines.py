"""Writes and reads a log as JSON lines: a header, then one line for each event and its salt.

    {"foldlog":"export","version":1,"space":"...","log":"...","head":2252}
    {"salt":"<64 hex digits>","event":{"seq":1, ...}}

A reader needs the salt to check the commitments (salted hashes) of the event.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.events import LogEntry
from foldlog.domain.json_reader import values_max_in
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.names import is_space, is_uuid
from foldlog.infrastructure.postgres.append.transfer import InvalidExport

#: A batch of events ends when it has so many events, or so many bytes.
BATCH_EVENTS, BATCH_BYTES = 1_000, 4 * 2**20
HEADER_BYTES_MAX = 4 * 2**10
#: The number of `,`, `[` and `{` in a line: an upper bound for its values, and so for the memory
#: that decoding takes. It is twice the default limit of a whole push.
VALUES_PER_LINE_MAX = 1_000_000


class Header(msgspec.Struct, tag_field="foldlog", tag="export"):
    """The first line of an export. `log` is the id of the log, and `head` is its last seq."""

    version: Literal[1]
    space: str
    log: str
    head: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class _Tag(msgspec.Struct):
    foldlog: str


#: msgspec accepts an object without its tag.
_decode_tag = msgspec.json.Decoder(_Tag).decode
#: The only form of a line. The expression splits it without parsing the JSON, which is faster.
_LINE = re.compile(rb'\{"salt":"([0-9a-f]*)","event":(\{.*\})\}\n?', re.DOTALL)


def line_of(entry: LogEntry) -> bytes:
    """Returns the bytes of one line of an export: the event, and its salt in hex.

    The event has the same bytes in the line as in the database.
    """
    return b'{"salt":"%b","event":%b}\n' % (entry.salt.hex().encode(), entry.state)


def read_header(line: bytes) -> Header:
    """Parses the first line of an export, and returns it as a `Header`.

    Raises `InvalidExport` if the line is longer than 4 KB, is not a header, or has an invalid name
    of a space or an invalid id of a log.
    """
    if len(line) > HEADER_BYTES_MAX:
        raise InvalidExport("line 1 is not the header of an export: it is too long")
    try:
        header = msgspec.json.decode(line, type=Header)
        if _decode_tag(line).foldlog != "export":
            raise InvalidExport("line 1 is not the header of an export: it names another content")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidExport(f"line 1 is not the header of an export: {exc}") from exc
    if not is_uuid(header.log) or not is_space(header.space):
        raise InvalidExport("line 1 has an invalid id of a log, or an invalid name of a space")
    return header


def evidence_of(line: bytes, number: int) -> Evidence:
    """Parses the line of an event in an export. Returns an `Evidence`, which contains the stored
    bytes of the event and the salt.

    `number` is the line number for error messages. Raises `InvalidExport` if the line is invalid,
    or has more than `VALUES_PER_LINE_MAX` values.
    """
    if values_max_in(line) > VALUES_PER_LINE_MAX:
        raise InvalidExport(f"line {number} has more than {VALUES_PER_LINE_MAX} values")
    found = _LINE.fullmatch(line)
    if found is None:
        raise InvalidExport(f"line {number} is not the line of an event in an export")
    try:
        # Hashing the bytes verifies later that they are exactly one event.
        return Evidence(found[2], unhexlify(found[1]))
    except ValueError as exc:
        raise InvalidExport(f"line {number}: {exc}") from exc


def batches_of(events: Iterable[Evidence]) -> Iterator[list[Evidence]]:
    """Joins events to batches of at most `BATCH_EVENTS` events, and yields the batches.

    A batch also ends when its events have `BATCH_BYTES` bytes, so it never fills the memory.
    """
    batch: list[Evidence] = []
    size = 0
    for event in events:
        batch.append(event)
        size += len(event.state) + len(event.salt)
        if len(batch) == BATCH_EVENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
