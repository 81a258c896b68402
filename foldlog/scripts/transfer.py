"""`foldlog export` and `foldlog import`: a log as JSON lines, and back, byte for byte.

The first line names the log; each other one holds an event and the salt of its commitments:

    {"foldlog":"export","version":1,"space":"...","log":"...","head":2252}
    {"salt":"<64 hex digits>","event":{"seq":1, ...}}
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import click
import msgspec

from ..domain.errors import InvalidRequest
from ..domain.events import LogEntry, restored_entry
from ..domain.names import is_space
from ..domain.ports import RangeQuery
from ..infrastructure.postgres.transfer import Importer, InvalidExport
from ..infrastructure.settings import read_settings
from ..infrastructure.wiring import database, services
from .console import err, progress, quiet_logs, spaced, told, with_database

LINES_PER_REPORT = 500


class Header(msgspec.Struct, tag_field="foldlog", tag="export"):
    version: Literal[1]
    space: str
    log: str
    head: int


class Line(msgspec.Struct):
    salt: str
    event: msgspec.Raw


@click.command("export")
@click.argument("space")
@click.option(
    "-o",
    "--output",
    default="-",
    help="File to write, compressed if it ends with .gz. [default: -]",
)
@with_database
@told
def export_command(space: str, output: str, data: str | None, database_url: str | None) -> None:
    """Write the log of SPACE as JSON lines, with what is needed to prove it.

    The salts in it open the commitments: whoever may read the export may read the values.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts, _writer(output) as file:
        page = parts.store.range_after(space, RangeQuery(0, 1))
        header = Header(version=1, space=space, log=page.log, head=page.head)
        file.write(msgspec.json.encode(header) + b"\n")
        with progress(f"exporting {space}", page.head) as report:
            for entry in parts.store.entries(space, through=page.head):
                file.write(b'{"salt":"%b","event":%b}\n' % (entry.salt.hex().encode(), entry.state))
                if entry.seq % LINES_PER_REPORT == 0:
                    report(entry.seq)
            report(page.head)
    err.print(f"exported {spaced(page.head)} events of {space}")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--space", help="Name of the new space. [default: as exported]")
@with_database
@told
def import_command(
    file: str, space: str | None, data: str | None, database_url: str | None
) -> None:
    """Bring an exported log into a space that does not exist yet: the same log, byte for byte.

    An import that was interrupted goes on where it stopped when it is started again.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with _reader(file) as lines:
        header = _header(lines.readline())
        name = space or header.space
        if not is_space(name):
            raise InvalidRequest(f"{name!r} cannot name a space")
        with (
            database(settings, migrates=True) as db,
            services(db.url, settings) as parts,
            progress(f"importing {name}", header.head) as report,
        ):
            entries = _entries(lines, header.head)
            imported = Importer(parts.datastore).run(name, header.log, entries, report)
    err.print(f"imported {spaced(imported)} events into {name}")


def _header(line: bytes) -> Header:
    try:
        return msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidExport(f"line 1 is not the header of an export: {exc}") from exc


def _entries(lines: BinaryIO, head: int) -> Iterator[LogEntry]:
    decode = msgspec.json.Decoder(Line).decode
    seq = 0
    try:
        for number, text in enumerate(lines, 2):
            try:
                line = decode(text)
                entry = restored_entry(bytes(line.event), bytes.fromhex(line.salt))
            except (ValueError, msgspec.MsgspecError) as exc:
                raise InvalidExport(f"line {number}: {exc}") from exc
            seq = entry.seq
            yield entry
    except (EOFError, OSError) as exc:
        raise InvalidExport(f"the file ends or breaks after seq {seq}: {exc}") from exc
    if seq != head:
        raise InvalidExport(f"the export ends at seq {seq}, but should end at {head}")


@contextmanager
def _writer(name: str) -> Iterator[BinaryIO]:
    """The file appears when it is whole, and not at all otherwise."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    part = path.with_name(path.name + ".part")
    with cast(BinaryIO, gzip.open(part, "wb") if path.suffix == ".gz" else part.open("wb")) as file:
        yield file
    part.replace(path)


@contextmanager
def _reader(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    path = Path(name)
    with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
        yield file
