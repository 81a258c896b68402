"""Implements `foldlog export` and `foldlog import`, which copy a log to a file and back, byte for
byte.

The file formats are described in `exports.lines` (JSON lines) and `exports.archive` (archive for
auditors).
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
from foldlog.infrastructure.postgres.append.transfer import InvalidExport
from foldlog.infrastructure.wiring import Services
from foldlog.scripts.console import err, progress, report_errors, spaced, with_database
from foldlog.scripts.exports.archive import is_archive, read_archive, write_archive
from foldlog.scripts.exports.lines import Header, evidence_of, line_of, read_header
from foldlog.scripts.services import open_services

LINES_PER_REPORT = 500


class ErasedMeanwhile(OperatorError):
    """A record was erased while its log was exported: run the export again."""

    code = "erased-meanwhile"


@click.command("export")
@click.argument("space")
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="Write to this file; .gz compresses; - is standard output. [default: -]",
)
@click.option(
    "--archive",
    "wants_archive",
    is_flag=True,
    help="Write an archive for auditors: events, tiles, checkpoint and keys, as .tar or .tar.gz.",
)
@with_database
@report_errors
def export_command(
    space: str, output: str, wants_archive: bool, data: str | None, database_url: str | None
) -> None:
    """Write the log of SPACE to a file, as JSON lines.

    An export contains all values of the log, and the salts that are needed to check the hashes of
    these values. Share the export only with authorized readers.
    """
    with open_services(data, database_url) as parts:
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
    """Returns the last checkpoint. If no checkpoint is signed yet, prints a warning and returns
    `None`.

    Call this function before reading the head. The log may grow between the two calls, and the
    checkpoint must not be newer than the head.
    """
    try:
        return parts.tree.checkpoint(space)
    except NoCheckpoint:
        err.print("[yellow]no checkpoint is signed yet:[/yellow] the archive has none")
        return None


def _entries_of(parts: Services, header: Header) -> Iterator[LogEntry]:
    """Yields a `LogEntry` for each event of the log up to the seq `header.head`.

    Raises `ErasedMeanwhile` after the last entry if a record was erased during the export. Values
    that are missing without an erasure are exported as they are, because they are evidence.
    """
    erasures = Erasures()
    for entry in parts.store.entries(header.space, through=header.head):
        erasures.note(entry.seq, entry.state)
        yield entry
    if not erasures.owing:
        return
    owing = set(erasures.owing)
    head = parts.store.range_after(header.space, RangeQuery(0, 1)).head
    for entry in parts.store.entries(header.space, after=header.head, through=head):
        erasures.note(entry.seq, entry.state)
    if owing - set(erasures.owing):
        raise ErasedMeanwhile
    err.print(
        "[red]values are missing that no event erased:[/red] they are exported as they are, and "
        "foldlog verify calls the export wrong"
    )


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
@click.option("--space", help="Name the new space. [default: the exported name]")
@with_database
@report_errors
def import_command(
    file: str, space: str | None, data: str | None, database_url: str | None
) -> None:
    """Copy an exported log into an empty or new space.

    The new log is equal byte for byte. FILE is an archive if its name ends with .tar, .tar.gz
    or .tgz; - is standard input.

    If the import was interrupted, run the same command again: it resumes.
    """
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
            raise InvalidRequest(f"{name!r} is not a valid space name")
        with (
            open_services(data, database_url, migrates=True) as parts,
            progress(f"importing {name}", header.head) as report,
        ):
            entries = _entries(evidence, header.head)
            imported = parts.importer.run(name, header.log, entries, report)
    err.print(f"imported {spaced(imported)} events into {name}")


def _entries(evidence: Iterable[Evidence], head: int) -> Iterator[LogEntry]:
    """Converts the events of an export to log entries and yields them.

    Raises `InvalidExport` if an event is invalid, or if the file is damaged or ends too early.
    """
    seq = 0
    try:
        for number, (state, salt, _) in enumerate(evidence, 2):
            try:
                entry = restored_entry(state, salt)
                # The import derives these from an entry, so check them before it stores the entry.
                devices_of([entry]), erasures_of([entry]), skips_of([entry])
            except (ValueError, msgspec.MsgspecError) as exc:
                raise InvalidExport(f"line {number}: {exc}") from exc
            seq = entry.seq
            yield entry
    except (EOFError, OSError, zlib.error) as exc:
        raise InvalidExport(f"the file is truncated or damaged after seq {seq}: {exc}") from exc
    if seq != head:
        raise InvalidExport(f"the export ends at seq {seq}, but should end at {head}")


@contextmanager
def _writer(name: str, *, compress: bool = True) -> Iterator[BinaryIO]:
    """Opens the file `name` for writing while the `with` block runs. If `name` is `-`, the block
    gets standard output instead.

    The file has a temporary name, which ends with `.part`, until the block has ended. If the block
    raises an error, the file keeps the temporary name.
    """
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
