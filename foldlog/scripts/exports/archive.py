"""Writes and reads the archive for auditors: a tar file with a log and all data needed to verify
it.

    README.txt                 the content, and how to verify it
    log.json                   {"foldlog":"export","version":1,"space":"...","log":"...","head":N}
    keys.txt                   the public keys (vkeys), one per line, the current one first
    checkpoint                 the last signed checkpoint, if there is one
    events/000000000001.jsonl  events with their salts, as in `foldlog export`; up to 4,000 per file
    tile/0/000                 the tiles of the tree, each after the last event that it covers

The archive is written and read from the beginning to the end. Parts with events and tiles
alternate, so only one part has to be in memory.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, NamedTuple

import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.events import LogEntry
from foldlog.domain.merkle import TILE_BYTES, TILE_WIDTH, Tile, TreeBuilder, edge_tiles
from foldlog.domain.notes import NOTE_BYTES_MAX, InvalidNote, Verifier, tile_path
from foldlog.domain.proofs import leaf_hash
from foldlog.infrastructure.postgres.append.transfer import InvalidExport

from .bounded import ExportFile
from .lines import (
    HEADER_BYTES_MAX,
    Header,
    batches_of,
    evidence_of,
    line_of,
    read_header,
)
from .tar import Member, TarReader

PART_EVENTS = 4_000
PART_BYTES = 8 * 2**20
#: Limit for a part that is read, because a single event may be larger than a part.
PART_BYTES_READ_MAX = 64 * 2**20
BLOCK_BYTES = 2**18
#: the files at the beginning, in their order, with their limits
FRONT_BYTES_MAX = {
    "README.txt": 64 * 2**10,
    "log.json": HEADER_BYTES_MAX,
    "keys.txt": 64 * 2**10,
    "checkpoint": NOTE_BYTES_MAX,
}

README = """\
The log of the space {space!r} (id {log}): {head} events, exported by Foldlog.

events/ has the events, one per line, with the salts that open their commitments. Readers of this
archive can read all values. checkpoint is a signed note (C2SP tlog-checkpoint): it states the
number of events, and the root of the tree over them (RFC 9162). tile/ has this tree (C2SP
tlog-tiles). The keys in keys.txt come from the archive itself: compare them with the keys that you
got elsewhere.

Verify it:  foldlog verify --file ARCHIVE --key VKEY --checkpoint YOUR_SAVED_CHECKPOINT
or independently with docs/reference/verify_log.py, about three hundred lines of Python. The formats
are described in docs/explanation/proofs.md.
"""


class Part(NamedTuple):
    """The content of one file in an archive: either some events, or one tile of the tree."""

    events: list[Evidence]
    tile: tuple[Tile, bytes] | None = None


class Archive(NamedTuple):
    """The header, keys and checkpoint of an archive, and an iterator of its parts, which can be
    read only once.
    """

    header: Header
    vkeys: list[str]
    checkpoint: bytes | None
    parts: Iterator[Part]


def write_archive(
    file: IO[bytes],
    header: Header,
    entries: Iterable[LogEntry],
    *,
    vkeys: list[str],
    checkpoint: bytes | None,
    is_compressed: bool,
    report: Callable[[int], None],
) -> None:
    """Writes an archive to `file`. After each part with events, calls `report` with the seq of the
    last event in this part.
    """
    mode = "w|gz" if is_compressed else "w|"
    with tarfile.open(fileobj=file, mode=mode, bufsize=BLOCK_BYTES) as tar:  # type: ignore[call-overload]

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))

        names = {"space": header.space, "log": header.log, "head": header.head}
        add("README.txt", README.format(**names).encode())
        add("log.json", msgspec.json.encode(header) + b"\n")
        add("keys.txt", "".join(f"{vkey}\n" for vkey in vkeys).encode())
        if checkpoint is not None:
            add("checkpoint", checkpoint)
        tree, unfinished = TreeBuilder(), dict[Tile, bytes]()
        for part in _parts(entries):
            lines = [line_of(entry) for entry in part]
            add(f"events/{part[0].seq:012}.jsonl", b"".join(lines))
            hashes = [leaf_hash(entry.leaf) for entry in part]
            for tile, found in sorted(tree.append(hashes).items()):
                unfinished[tile] = found
                if len(found) == TILE_BYTES:
                    add(_name(tile), unfinished.pop(tile))
            report(part[-1].seq)
        for tile, found in sorted(unfinished.items()):
            add(_name(tile, len(found) // 32), found)


def _name(tile: Tile, width: int | None = None) -> str:
    return f"tile/{tile.level}/{tile_path(tile.number, width)}"


def _parts(entries: Iterable[LogEntry]) -> Iterator[list[LogEntry]]:
    part: list[LogEntry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += len(entry.state)
        if len(part) == PART_EVENTS or size > PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def read_archive(file: ExportFile) -> Archive:
    """Reads the files at the beginning of an archive. The events and tiles are read later, when
    the caller iterates over `parts`.

    An archive may be hostile, so it must have exactly the form that `write_archive` makes: the
    known files, each once and in order, as ordinary files with short names. The size of each file
    is checked before the file is read.

    Raises `InvalidExport` if the archive is invalid, truncated or damaged. The iteration over
    `parts` can raise the same error.
    """
    members = TarReader(file)
    front: dict[str, bytes] = {}
    member = members.next()
    for name, bytes_max in FRONT_BYTES_MAX.items():
        if member is not None and member.name == name:
            front[name] = members.read(bytes_max)
            member = members.next()
    if "log.json" not in front:
        raise InvalidExport("log.json is missing: this is not an archive of a log")
    for name in FRONT_BYTES_MAX.keys() - {"checkpoint"} - front.keys():
        raise InvalidExport(f"{name} is missing")
    return Archive(
        read_header(front["log.json"]),
        _vkeys(front["keys.txt"]),
        front.get("checkpoint"),
        _read_parts(members, member),
    )


def _vkeys(data: bytes) -> list[str]:
    """Returns the public keys in `keys.txt`. No key signs this file: only its form is checked."""
    lines = data.decode("utf-8", "replace").split("\n")
    if lines.pop():
        raise InvalidExport("the last line of keys.txt is cut off")
    try:
        keys = [Verifier.parse(line).vkey for line in lines]
    except InvalidNote as exc:
        raise InvalidExport(f"keys.txt: {exc}") from exc
    if keys != lines:
        raise InvalidExport("keys.txt has other text than public keys")
    return keys


def _read_parts(members: TarReader, member: Member | None) -> Iterator[Part]:
    """Yields the events and tiles of an archive. `member` is the first file with events.

    A tile may be missing, because the verification names it better. It may not come twice, or at
    another place.
    """
    count, is_at_end = 0, False
    due: dict[str, Tile] = {}  # the tiles that may come now, in order
    while member is not None:
        if member.name == f"events/{count + 1:012}.jsonl" and not is_at_end:
            start = count
            members.check_size(PART_BYTES_READ_MAX)
            for events in batches_of(_events(members, start)):
                count += len(events)
                yield Part(events)
            if count == start:
                raise InvalidExport(f"{member.name} is empty")
            due = {_name(tile): tile for tile in _filled(start, count)}
        else:
            if member.name not in due and not is_at_end:
                is_at_end = True
                due = {_name(tile, tile.width(count)): tile for tile in edge_tiles(count)}
            if member.name not in due:
                raise InvalidExport(f"{member.name} does not belong in an archive, or not here")
            while (name := next(iter(due))) != member.name:
                del due[name]
            yield Part([], (due.pop(name), members.read(TILE_BYTES)))
        member = members.next()


def _events(members: TarReader, seq: int) -> Iterator[Evidence]:
    # The header of an export as lines is line 1, so the line of an event is its seq and 1.
    for number, line in enumerate(members.lines(), seq + 2):
        yield evidence_of(line, number)


def _filled(start: int, end: int) -> Iterator[Tile]:
    """Yields the tiles that become full when a tree grows from `start` to `end` leaves."""
    width, level = TILE_WIDTH, 0
    while end // width:
        yield from (Tile(level, number) for number in range(start // width, end // width))
        width, level = width * TILE_WIDTH, level + 1
