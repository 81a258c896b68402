"""Writes and reads a log as JSON lines: a header, then one line for each event and its salt.

    {"foldlog":"export","version":1,"space":"...","log":"...","head":2252}
    {"salt":"<64 hex digits>","event":{"seq":1, ...}}

A reader needs the salt to check the commitments (salted hashes) of the event.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from typing import Literal

import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.events import LogEntry
from foldlog.infrastructure.postgres.append.transfer import InvalidExport


class Header(msgspec.Struct, tag_field="foldlog", tag="export"):
    """The first line of an export. `log` is the id of the log, and `head` is its last seq."""

    version: Literal[1]
    space: str
    log: str
    head: int


class Line(msgspec.Struct):
    """The line of one event: the event, and the salt in hex."""

    salt: str
    event: msgspec.Raw


_decode_line = msgspec.json.Decoder(Line).decode
#: A line as we write it. The expression splits it without parsing the JSON, which is faster.
_LINE = re.compile(rb'\{"salt":"([0-9a-f]*)","event":(\{.*\})\}\n?', re.DOTALL)


def line_of(entry: LogEntry) -> bytes:
    """Returns the bytes of one line of an export: the event, and its salt in hex.

    The event has the same bytes in the line as in the database.
    """
    return b'{"salt":"%b","event":%b}\n' % (entry.salt.hex().encode(), entry.state)


def read_header(line: bytes) -> Header:
    """Parses the first line of an export. Raises `InvalidExport` if the line is not a header."""
    try:
        return msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidExport(f"line 1 is not the header of an export: {exc}") from exc


def evidence_of(line: bytes, number: int) -> Evidence:
    """Parses the line of an event in an export. Returns an `Evidence`, which contains the stored
    bytes of the event and the salt.

    `number` is the line number for error messages. Raises `InvalidExport` if the line is
    invalid.
    """
    ours = _LINE.fullmatch(line)
    try:
        if ours is not None:
            # Hashing the bytes verifies later that they are exactly one event.
            return Evidence(ours[2], unhexlify(ours[1]))
        found = _decode_line(line)
        return Evidence(bytes(found.event), bytes.fromhex(found.salt))
    except (ValueError, msgspec.MsgspecError) as exc:
        raise InvalidExport(f"line {number}: {exc}") from exc
