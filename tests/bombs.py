"""Makes files that a small input turns into gigabytes, or that are wrong in other hostile ways.

Each function of `ARCHIVES`, `LINES` and `NOTES` writes one file. The files are small, because gzip
packs gigabytes of zeros into megabytes.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from foldlog.domain.events import Envelope, body_entry
from foldlog.scripts.exports.lines import line_of

LOG = "0b7f6a52-3a0e-4a87-9d2b-6f1f0c3f3a11"
#: three times the memory that a command may take; FOLDLOG_BOMB_BYTES makes larger ones
HUGE = int(os.environ.get("FOLDLOG_BOMB_BYTES", "600_000_000"))
PIECE = 2**24
#: the limits of one run: its peak memory, and its address space, so that no bomb takes the machine
PEAK_BYTES_MAX = 200 * 2**20
ADDRESS_SPACE_BYTES = 3 * 2**30

HEADER = b'{"foldlog":"export","version":1,"space":"s","log":"%b","head":%d}\n'
BLOCK = 512

Pieces = Iterable[bytes]


class Ran(NamedTuple):
    """The end of a process: its exit code, its output, and its peak memory."""

    code: int
    out: str
    err: str
    peak_bytes: int


# A process inherits the peak of the one that starts it, so a small one starts the command.
_RUN = """
import os, resource, subprocess, sys
memory, *words = sys.argv[1:]
def limit():
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
process = subprocess.Popen(words, preexec_fn=limit)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, file=open(3, "w"))
"""


def run(*words: str, stdin: Path | None = None, seconds: float = 120) -> Ran:
    """Runs a command in a process with limited memory."""
    told, telling = os.pipe()
    with (stdin or Path(os.devnull)).open("rb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(ADDRESS_SPACE_BYTES), *words],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: os.dup2(telling, 3),
            pass_fds=[3],
        )
    os.close(telling)
    out, err = process.communicate(timeout=seconds)
    with os.fdopen(told) as file:
        code, peak = file.read().split()
    return Ran(int(code), out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), int(peak))


# -- pieces


def zeros(size: int, byte: bytes = b"\0") -> Iterator[bytes]:
    for start in range(0, size, PIECE):
        yield byte * min(PIECE, size - start)


def write_gzip(path: Path, pieces: Pieces) -> None:
    """Writes a gzip file of one member. Equal pieces one after another are packed only once."""
    packer, crc, size, last, packed = zlib.compressobj(1, wbits=-15), 0, 0, b"", b""
    with path.open("wb") as file:
        file.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
        for piece in pieces:
            if (piece is not last and piece != last) or not packed:
                last = piece
                packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
            file.write(packed)
            crc, size = zlib.crc32(piece, crc), size + len(piece)
        file.write(packer.flush())
        file.write(crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"))


def member(name: str, size: int, type: bytes = tarfile.REGTYPE, **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: str, data: bytes) -> bytes:
    return member(name, len(data)) + padded(data)


def header(head: int = 1) -> bytes:
    return HEADER % (LOG.encode(), head)


FRONT = file("README.txt", b"read me\n") + file("log.json", header()) + file("keys.txt", b"")
EVENTS = "events/000000000001.jsonl"
END = bytes(2 * BLOCK)


def note_line(seq: int, kind: str = "note", body: object = None) -> bytes:
    """A valid line of an event of the service."""
    return line_of(
        body_entry(Envelope(seq, f"{seq:08}-0000-4000-8000-000000000000", 0, b"s" * 32), kind, body)
    )


def raw_line(event: bytes) -> bytes:
    return b'{"salt":"%b","event":%b}\n' % (b"00" * 32, event)


def changeset_line(seq: int, ops: bytes, salt: bytes = b"00" * 32) -> bytes:
    return (
        b'{"salt":"%b","event":{"seq":%d,"kind":"changeset","verdict":"stored","id":"%08d-0000-4000'
        b'-8000-000000000000","device":"00000000-0000-4000-8000-00000000000a","counter":%d,"base":0'
        b',"made_at":"2026-01-01T00:00:00.000Z","received_at":"2026-01-01T00:00:00.000Z","time":%d,'
        b'"ops":[%b]}}\n' % (salt, seq, seq, seq, seq, ops)
    )


# -- archives


def big(name: str, fill: bytes = b"\0", front: bytes = FRONT) -> Pieces:
    yield front + member(name, HUGE)
    yield from zeros(HUGE, fill)


def extension(type: bytes) -> Pieces:
    """A header that says that the name of the next file has gigabytes."""
    yield FRONT + member("././@LongLink", HUGE, type)
    yield from zeros(HUGE, b"a")
    yield file(EVENTS, note_line(1)) + END


def lines_of_archive(pieces: Pieces, size: int) -> Pieces:
    yield FRONT + member(EVENTS, size)
    yield from pieces


ARCHIVES: dict[str, Callable[[], Pieces]] = {
    "foreign-before": lambda: big("foreign.bin", front=b""),
    "foreign-between": lambda: big("foreign.bin"),
    "foreign-many": lambda: [b"", *[file("a", b"") * 10_000] * 200],
    "readme-huge": lambda: big("README.txt", front=b""),
    "log-json-huge": lambda: big("log.json", b" ", front=b""),
    "keys-huge": lambda: big("keys.txt", b"\n", FRONT[:-BLOCK]),
    "checkpoint-huge": lambda: big("checkpoint", b"a"),
    "events-huge": lambda: big(EVENTS),
    "events-newlines": lambda: big(EVENTS, b"\n"),
    "events-declared": lambda: [FRONT + member(EVENTS, HUGE) + padded(note_line(1)) + END],
    "events-one-line": lambda: lines_of_archive(zeros(2**25, b"{"), 2**25),
    "tile-huge": lambda: big("tile/0/000.p/1", front=FRONT + file(EVENTS, note_line(1))),
    "long-name": lambda: extension(tarfile.GNUTYPE_LONGNAME),
    "long-link": lambda: extension(tarfile.GNUTYPE_LONGLINK),
    "pax": lambda: extension(tarfile.XHDTYPE),
    "pax-global": lambda: extension(tarfile.XGLTYPE),
    "pax-solaris": lambda: extension(tarfile.SOLARIS_XHDTYPE),
    "sparse": lambda: extension(tarfile.GNUTYPE_SPARSE),
    "sparse-pax": lambda: [
        FRONT,
        file_of_pax(b"GNU.sparse.major=1\nGNU.sparse.realsize=9999999999\n"),
    ],
    "negative-size": lambda: [FRONT + member(EVENTS, -512) + END],
    "size-of-2**63": lambda: [FRONT + member(EVENTS, 2**63 - 1) + END],
    "symlink": lambda: [FRONT + member(EVENTS, 0, tarfile.SYMTYPE, linkname="/etc/passwd") + END],
    "hardlink": lambda: [FRONT + member(EVENTS, 0, tarfile.LNKTYPE, linkname="log.json") + END],
    "device": lambda: [FRONT + member(EVENTS, 0, tarfile.CHRTYPE) + END],
    "folder": lambda: [FRONT + member("events/", 0, tarfile.DIRTYPE) + END],
    "twice": lambda: [FRONT + file("log.json", header()) + END],
    "events-twice": lambda: [FRONT + file(EVENTS, note_line(1)) * 2 + END],
    "wrong-order": lambda: [file("log.json", header()), FRONT + END],
    "tile-first": lambda: [FRONT + file("tile/0/000.p/1", b"x" * 32) + END],
    "dots": lambda: [FRONT + file("events/../../etc/cron.d/x", b"x") + END],
    "truncated": lambda: [FRONT + file(EVENTS, note_line(1))[:700]],
    "no-end": lambda: [FRONT],
    "empty-tar": lambda: [END],
    "long-end": lambda: [FRONT + END, *zeros(HUGE)],
    "after-the-end": lambda: [FRONT + END, *zeros(2**25, b"x")],
}


def file_of_pax(records: bytes) -> bytes:
    lines = [b"%d %b\n" % (len(line) + 4, line) for line in records.splitlines()]
    data = b"".join(lines)
    return member("PaxHeaders/x", len(data), tarfile.XHDTYPE) + padded(data) + file(EVENTS, b"")


# -- lines

DIGITS = b"9" * 1_000_000


def deep(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


def many(line: bytes, count: int) -> Pieces:
    block = line * 100_000
    for _ in range(0, count, 100_000):
        yield block


def full_events(events: int) -> Pieces:
    """Valid events of four megabytes, with as many values as possible."""
    yield header(events)
    for seq in range(1, events + 1):
        yield note_line(seq, "note", [1] * 990_000)


LINES: dict[str, Callable[[], Pieces]] = {
    "endless-line": lambda: zeros(HUGE, b"{"),
    "endless-blanks": lambda: [header(), *zeros(HUGE, b" ")],
    "endless-header": lambda: [header()[:-2], *zeros(HUGE, b" ")],
    "newlines": lambda: [header(), *zeros(HUGE, b"\n")],
    "tiny-lines": lambda: [header(10**9), *many(b"{}\n", 50_000_000)],
    "tiny-events": lambda: [header(10**9), *many(b'{"salt":"","event":{}}\n', 10_000_000)],
    "foreign-lines": lambda: [header(10**9), *many(b'{"seq":1,"x":[]}\n', 10_000_000)],
    "deep-header": lambda: [b'{"foldlog":' + deep(1_000), b"\n"],
    "deep-event": lambda: [header(), raw_line(deep(500_000))],
    "deep-objects": lambda: [header(), raw_line(deep(400_000, b'{"a":', b"}"))],
    "deep-body": lambda: [header(), note_line(1, body=7).replace(b":7}", b":%b}" % deep(400_000))],
    "deep-ops": lambda: [
        header(),
        changeset_line(
            1, b'{"op":"put","collection":"c","id":"1","fields":{"a":%b}}' % deep(90_000)
        ),
    ],
    "head-of-digits": lambda: [header()[:-3], DIGITS, b"}\n"],
    "head-too-large": lambda: [header(2**63)],
    "seq-of-digits": lambda: [header(), raw_line(b'{"seq":%b,"kind":"note","body":1}' % DIGITS)],
    "value-of-digits": lambda: [header(), note_line(1, body=7).replace(b":7}", b":%b}" % DIGITS)],
    "exponent": lambda: [header(), note_line(1, body=7).replace(b":7}", b":1e%b}" % DIGITS)],
    "salt-of-digits": lambda: [header(), b'{"salt":"%b","event":{"seq":1}}\n' % (b"0" * 4_000_000)],
    "salt-of-bytes": lambda: [header(), b'{"salt":"\xff\x9b","event":{"seq":1}}\n'],
    "not-utf-8": lambda: [header(), note_line(1, body="x").replace(b'"x"', b'"\xff\xfe\x9b"')],
    "many-values": lambda: [header(), raw_line(b"[" + b"1," * 1_500_000 + b"1]")],
    "many-keys": lambda: [
        header(),
        raw_line(b'{"seq":1,' + b",".join(b'"%d":1' % n for n in range(400_000)) + b"}"),
    ],
    "many-ops": lambda: [header(), changeset_line(1, b",".join([b"{}"] * 490_000))],
    "full-events": lambda: full_events(20),
    "tail": lambda: [header(1), *[note_line(seq) for seq in range(1, 5)]],
    "twice": lambda: [header(2), note_line(1) * 2],
    "empty": list,
    "only-header": lambda: [header(7)],
    "no-header": lambda: [b"{}\n" * 1_000_000],
    "other-header": lambda: [header().replace(b'"version":1', b'"version":2')],
    "log-of-terminal": lambda: [header().replace(LOG.encode(), b"\\u001b]0;x\\u0007")],
    "schema": lambda: [header(), schema_line(1)],
}


def schema_line(seq: int) -> bytes:
    """An event that defines a collection with expressions that expand when they are compiled."""
    pattern = "(a{1,1000}){1,1000}"
    schema = {"properties": {str(n): {"pattern": f"{pattern}{n}"} for n in range(5_000)}}
    body = {"collection": "c", "version": 1, "schema": schema, "by": "x"}
    return note_line(seq, "collection-defined", body)


def write_archives(path: Path, name: str) -> None:
    write_gzip(path, ARCHIVES[name]())


def write_lines(path: Path, name: str) -> None:
    write_gzip(path, LINES[name]())


# -- files that are no export at all


def _members(path: Path) -> None:
    """Gigabytes of zeros in many gzip members."""
    one = gzip.compress(bytes(PIECE), 1)
    with path.open("wb") as file:
        for _ in range(HUGE // PIECE):
            file.write(one)


def _nested(path: Path) -> None:
    inner = io.BytesIO()
    write_gzip(path, zeros(HUGE))
    inner.write(gzip.compress(path.read_bytes(), 1))
    path.write_bytes(inner.getvalue())


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


OTHERS: dict[str, Callable[[Path], object]] = {
    "gzip-of-zeros": lambda path: write_gzip(path, zeros(HUGE)),
    "gzip-members": _members,
    "gzip-in-gzip": _nested,
    "gzip-of-nothing": lambda path: path.write_bytes(gzip.compress(b"")),
    "gzip-header": lambda path: path.write_bytes(b"\x1f\x8b"),
    "gzip-long-name": lambda path: path.write_bytes(
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"a" * 2**25
    ),
    "gzip-bad-checksum": lambda path: path.write_bytes(gzip.compress(FRONT + END)[:-8] + bytes(8)),
    "zeros": _sparse,
    "nothing": lambda path: path.write_bytes(b""),
    "one-byte": lambda path: path.write_bytes(b"{"),
    "escape": lambda path: path.write_bytes(b"\x1b]0;pwned\x07\x9b31m" * 100),
}

# -- checkpoints

ROOT = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
ORIGIN = f"foldlog.local/spaces/s/{LOG}"


def _note(text: str, below: str = "— x AAAAAAAA\n") -> bytes:
    return f"{text}\n{below}".encode()


NOTES: dict[str, Callable[[Path], object]] = {
    "zeros": _sparse,
    "newlines": lambda path: path.write_bytes(b"\n" * 64 * 2**10),
    "size-of-digits": lambda path: path.write_bytes(_note(f"{ORIGIN}\n{'9' * 60_000}\n{ROOT}\n")),
    "many-signatures": lambda path: path.write_bytes(
        _note(f"{ORIGIN}\n1\n{ROOT}\n", "— x AAAAAAAA\n" * 4_000)
    ),
    "terminal": lambda path: path.write_bytes(
        _note(f"foldlog.local/\x9b31m\u202e/{LOG}\n1\n{ROOT}\n", "— \x9b31m\u202e AAAAAAAA\n")
    ),
    "escape": lambda path: path.write_bytes(_note("\x1b]0;pwned\x07\n1\n{ROOT}\n")),
    "not-utf-8": lambda path: path.write_bytes(b"\xff\x9b31m\n1\n\n"),
    "empty": lambda path: path.write_bytes(b""),
    "gzip": lambda path: path.write_bytes(gzip.compress(bytes(PIECE))),
    "folder": Path.mkdir,
}
