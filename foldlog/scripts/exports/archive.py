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
from foldlog.domain.merkle import TILE_BYTES, Tile, TreeBuilder
from foldlog.domain.notes import parse_level, parse_tile_path, tile_path
from foldlog.domain.proofs import leaf_hash
from foldlog.infrastructure.postgres.append.transfer import InvalidExport

from .lines import Header, evidence_of, line_of, read_header

PART_EVENTS = 4_000
PART_BYTES = 8 * 2**20
#: Limit for a part that is read, because a single event may be larger than a part.
PART_BYTES_READ_MAX = 64 * 2**20
BLOCK_BYTES = 2**18

README = """\
The log of the space {space!r} (id {log}): {head} events, exported by Foldlog.

events/ has the events, one per line, with the salts that open their commitments. Readers of this
archive can read all values. checkpoint is a signed note (C2SP tlog-checkpoint): it states the
number of events, and the root of the tree over them (RFC 9162). tile/ has this tree (C2SP
tlog-tiles). The keys in keys.txt come from the archive itself: compare them with the keys that you
got elsewhere.

Verify it:  foldlog verify --file ARCHIVE --key VKEY --checkpoint YOUR_SAVED_CHECKPOINT
or independently with docs/reference/verify_log.py, about a hundred lines of Python. The formats are
described in docs/explanation/proofs.md.
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


def is_archive(name: str) -> bool:
    """Returns whether the file name is that of an archive: it ends with .tar, .tar.gz or .tgz."""
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def read_archive(file: IO[bytes]) -> Archive:
    """Reads the files at the beginning of an archive. The events and tiles are read later, when
    the caller iterates over `parts`.

    Raises `InvalidExport` if the archive is invalid, truncated or damaged. The iteration over
    `parts` can raise the same error.
    """
    members = _members(file)
    front: dict[str, bytes] = {}
    rest: list[tuple[str, bytes]] = []
    for name, data in members:
        if "/" in name:
            rest.append((name, data))
            break
        front[name] = data
    if "log.json" not in front:
        raise InvalidExport("log.json is missing: this is not an archive of a log")
    header = read_header(front["log.json"])
    vkeys = front.get("keys.txt", b"").decode("utf-8", "replace").split("\n")
    return Archive(
        header,
        [vkey for vkey in vkeys if vkey],
        front.get("checkpoint"),
        _read_parts([*rest], members),
    )


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=file, mode="r|*", bufsize=BLOCK_BYTES) as tar:
            for member in tar:
                if member.size > PART_BYTES_READ_MAX or not member.isfile():
                    raise InvalidExport(f"{member.name} does not belong in an archive")
                found = tar.extractfile(member)
                assert found is not None
                yield member.name, found.read()
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise InvalidExport(f"the archive is truncated or damaged: {exc}") from exc


def _read_parts(
    first: list[tuple[str, bytes]], rest: Iterator[tuple[str, bytes]]
) -> Iterator[Part]:
    number = 1
    for members in (first, rest):
        for name, data in members:
            folder, _, path = name.partition("/")
            if folder == "events":
                found = []
                for line in data.removesuffix(b"\n").split(b"\n"):
                    number += 1
                    found.append(evidence_of(line, number))
                yield Part(found)
            elif folder == "tile":
                yield Part([], (_tile(path), data))
            else:
                raise InvalidExport(f"{name} does not belong in an archive")


def _tile(path: str) -> Tile:
    level, _, rest = path.partition("/")
    number, parsed = parse_level(level), parse_tile_path(rest)
    if number is None or parsed is None:
        raise InvalidExport(f"tile/{path} is not a path of a tile")
    return Tile(number, parsed[0])
