"""`foldlog export` and `foldlog import`: a log as JSON lines, and back, byte for byte.

The lines are told in `export_lines`, the archive for auditors in `archive`.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import click
import msgspec

from foldlog.domain.access import devices_of
from foldlog.domain.audit import Erasures, Evidence
from foldlog.domain.erasure import erasures_of
from foldlog.domain.errors import InvalidRequest, NoCheckpoint, OperatorError
from foldlog.domain.events import LogEntry, restored_entry
from foldlog.domain.names import is_space
from foldlog.domain.ports import RangeQuery
from foldlog.domain.skipping import skips_of
from foldlog.infrastructure.postgres.append.transfer import Importer, InvalidExport
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import Services, database, services
from foldlog.scripts.console import err, progress, quiet_logs, report_errors, spaced, with_database
from foldlog.scripts.exports.archive import is_archive, read_archive, write_archive
from foldlog.scripts.exports.lines import Header, evidence_of, line_of, read_header

LINES_PER_REPORT = 500


class ErasedMeanwhile(OperatorError):
    """A record was erased while its log was exported: what says so comes after the end. Again."""

    code = "erased-meanwhile"


@click.command("export")
@click.argument("space")
@click.option(
    "-o",
    "--output",
    default="-",
    help="File to write, compressed if it ends with .gz. [default: -]",
)
@click.option(
    "--archive",
    "wants_archive",
    is_flag=True,
    help="Write the archive for auditors: events, tiles, checkpoint and keys, as .tar or .tar.gz.",
)
@with_database
@report_errors
def export_command(
    space: str, output: str, wants_archive: bool, data: str | None, database_url: str | None
) -> None:
    """Write the log of SPACE as JSON lines, with what is needed to prove it.

    The salts in it open the commitments: whoever may read the export may read the values.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        checkpoint = _checkpoint(parts, space) if wants_archive else None
        page = parts.store.range_after(space, RangeQuery(0, 1))
        header = Header(version=1, space=space, log=page.log, head=page.head)
        if wants_archive:
            _export_archive(parts, header, checkpoint, output)
        else:
            _export_lines(parts, header, output)
    err.print(f"exported {spaced(header.head)} events of {space}")


def _export_lines(parts: Services, header: Header, output: str) -> None:
    with _writer(output) as file:
        file.write(msgspec.json.encode(header) + b"\n")
        with progress(f"exporting {header.space}", header.head) as report:
            for entry in _entries_of(parts, header):
                file.write(line_of(entry))
                if entry.seq % LINES_PER_REPORT == 0:
                    report(entry.seq)
            report(header.head)


def _checkpoint(parts: Services, space: str) -> bytes | None:
    """To be asked before the log's head is: the log may grow in between, and so must not it."""
    try:
        return parts.tree.checkpoint(space)
    except NoCheckpoint:
        err.print("[yellow]no checkpoint was signed yet:[/yellow] the archive has none")
        return None


def _entries_of(parts: Services, header: Header) -> Iterator[LogEntry]:
    """The log up to its head. Raises `ErasedMeanwhile`."""
    erasures = Erasures()
    for entry in parts.store.entries(header.space, through=header.head):
        erasures.note(entry.seq, entry.state)
        yield entry
    if erasures.owing:
        raise ErasedMeanwhile


def _export_archive(parts: Services, header: Header, checkpoint: bytes | None, output: str) -> None:
    with (
        _writer(output, compress=False) as file,
        progress(f"exporting {header.space}", header.head) as report,
    ):
        write_archive(
            file,
            header,
            _entries_of(parts, header),
            vkeys=[verifier.vkey for verifier in parts.verifiers(header.space)],
            checkpoint=checkpoint,
            is_compressed=output.endswith(("gz", "tgz")),
            report=report,
        )


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--space", help="Name of the new space. [default: as exported]")
@with_database
@report_errors
def import_command(
    file: str, space: str | None, data: str | None, database_url: str | None
) -> None:
    """Bring an exported log into a space that does not exist yet: the same log, byte for byte.

    FILE is an archive if it ends with .tar, .tar.gz or .tgz.

    An import that was interrupted goes on where it stopped when it is started again.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with _reader(file, decompress=not is_archive(file)) as source:
        if is_archive(file):
            archive = read_archive(source)
            header = archive.header
            evidence = (found for part in archive.parts for found in part.events)
        else:
            header = read_header(source.readline())
            evidence = (evidence_of(line, number) for number, line in enumerate(source, 2))
        name = space or header.space
        if not is_space(name):
            raise InvalidRequest(f"{name!r} cannot name a space")
        with (
            database(settings, migrates=True) as db,
            services(db.url, settings) as parts,
            progress(f"importing {name}", header.head) as report,
        ):
            entries = _entries(evidence, header.head)
            imported = Importer(parts.datastore).run(name, header.log, entries, report)
    err.print(f"imported {spaced(imported)} events into {name}")


def _entries(evidence: Iterable[Evidence], head: int) -> Iterator[LogEntry]:
    seq = 0
    try:
        for number, (state, salt, _) in enumerate(evidence, 2):
            try:
                entry = restored_entry(state, salt)
                # What is noted of it, before anything of it is stored.
                devices_of([entry]), erasures_of([entry]), skips_of([entry])
            except (ValueError, msgspec.MsgspecError) as exc:
                raise InvalidExport(f"line {number}: {exc}") from exc
            seq = entry.seq
            yield entry
    except (EOFError, OSError, zlib.error) as exc:
        raise InvalidExport(f"the file ends or breaks after seq {seq}: {exc}") from exc
    if seq != head:
        raise InvalidExport(f"the export ends at seq {seq}, but should end at {head}")


@contextmanager
def _writer(name: str, *, compress: bool = True) -> Iterator[BinaryIO]:
    """The file appears when it is whole, and not at all otherwise."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    part = path.with_name(path.name + ".part")
    is_gzip = compress and path.suffix == ".gz"
    with cast(BinaryIO, gzip.open(part, "wb") if is_gzip else part.open("wb")) as file:
        yield file
    part.replace(path)


@contextmanager
def _reader(name: str, *, decompress: bool = True) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    path = Path(name)
    is_gzip = decompress and path.suffix == ".gz"
    with cast(BinaryIO, gzip.open(path) if is_gzip else path.open("rb")) as file:
        yield file
