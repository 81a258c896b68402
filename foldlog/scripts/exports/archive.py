"""The archive for auditors: a tar that says all about a log, and verifies without any service.

    README.txt                 what this is, and how to check it
    log.json                   {"foldlog":"export","version":1,"space":"...","log":"...","head":N}
    keys.txt                   the public keys (vkeys), one a line, the present one first
    checkpoint                 the last signed checkpoint, if there is one
    events/000000000001.jsonl  events with their salts, as in `foldlog export`; some thousand a part
    tile/0/000                 the tree's tiles, as soon as the events in them are all there

Written and read from front to back, a part at a time; events and tiles take turns, so that neither
who writes nor who checks keeps more than a part of them.
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
#: of a part that is read: one event may be larger than a part
PART_BYTES_READ_MAX = 64 * 2**20
BLOCK_BYTES = 2**18

README = """\
The log of the space {space!r} (id {log}): {head} events, exported by Foldlog.

Each event is in events/, one a line with the salt that opens its commitments; whoever may read this
may read all values. checkpoint is a signed note (C2SP tlog-checkpoint): it says how many events the
log had, and the root of the tree over them (RFC 9162). tile/ has that tree (C2SP tlog-tiles). The
keys in keys.txt came with the archive: compare them with those that you got by another way.

Check it:  foldlog verify --file ARCHIVE --key VKEY --checkpoint THE_ONE_YOU_KEPT
or, without trusting us, with docs/reference/verify_log.py, about a hundred lines of Python. The
formats are in docs/explanation/proofs.md.
"""


class Part(NamedTuple):
    """Some events, or a tile."""

    events: list[Evidence]
    tile: tuple[Tile, bytes] | None = None


class Archive(NamedTuple):
    """What the front of an archive says, and the parts that follow; to be read once."""

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
    """Writes front to back; `report` is told how many events are written."""
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
        growth, edge = TreeBuilder(), dict[Tile, bytes]()
        for part in _parts(entries):
            lines = [line_of(entry) for entry in part]
            add(f"events/{part[0].seq:012}.jsonl", b"".join(lines))
            hashes = [leaf_hash(entry.leaf) for entry in part]
            for tile, found in sorted(growth.append(hashes).items()):
                edge[tile] = found
                if len(found) == TILE_BYTES:
                    add(_name(tile), edge.pop(tile))
            report(part[-1].seq)
        for tile, found in sorted(edge.items()):
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
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def read_archive(file: IO[bytes]) -> Archive:
    """Raises `InvalidExport`, here or from the parts."""
    members = _members(file)
    front: dict[str, bytes] = {}
    rest: list[tuple[str, bytes]] = []
    for name, data in members:
        if "/" in name:
            rest.append((name, data))
            break
        front[name] = data
    if "log.json" not in front:
        raise InvalidExport("this archive says of no log: there is no log.json")
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
                    raise InvalidExport(f"{member.name} is no part of an archive of ours")
                found = tar.extractfile(member)
                assert found is not None
                yield member.name, found.read()
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise InvalidExport(f"the archive ends or breaks: {exc}") from exc


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
                raise InvalidExport(f"{name} is no part of an archive of ours")


def _tile(path: str) -> Tile:
    level, _, place = path.partition("/")
    number, parsed = parse_level(level), parse_tile_path(place)
    if number is None or parsed is None:
        raise InvalidExport(f"tile/{path} is no path of a tile")
    return Tile(number, parsed[0])
