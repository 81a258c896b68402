"""Implements `foldlog export` and `foldlog import`, which copy a log to a file and back, byte for
byte.

The file formats are described in `exports.lines` (JSON lines) and `exports.archive` (archive for
auditors).
"""

from __future__ import annotations

import gzip
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import click
import msgspec

from foldlog.domain.audit import Erasures, WrongEvent
from foldlog.domain.errors import InvalidRequest, NoCheckpoint, OperatorError
from foldlog.domain.events import LogEntry
from foldlog.domain.names import check_reason, is_space
from foldlog.domain.notes import Checkpoint, InvalidNote, Verifier
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.transfer import InvalidExport
from foldlog.infrastructure.wiring import Services
from foldlog.scripts.console import BY, YES, err, progress, report_errors, spaced, with_database
from foldlog.scripts.exports.archive import write_archive
from foldlog.scripts.exports.lines import Header, line_of
from foldlog.scripts.services import open_services
from foldlog.scripts.verification.claims import Wrong, checked_checkpoint, read_note
from foldlog.scripts.verification.disk_backed import disk_backed_seqs
from foldlog.scripts.verification.file_sources import file_source
from foldlog.scripts.verification.importing import Importing
from foldlog.scripts.verification.run import Verification
from foldlog.scripts.verification.sources import Source

from .verify import KEYS, verifier_of

LINES_PER_REPORT = 500
#: The signer signs once a second. An export waits longer, because the signer may be busy.
SIGN_SECONDS_MAX, SIGN_POLL_SECONDS = 10.0, 0.1


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
        # The checkpoint comes before the head, because the log may grow in between.
        note = _checkpoint(parts, space) if wants_archive else None
        page = parts.store.range_after(space, RangeQuery(0, 1))
        header = Header(version=1, space=space, log=page.log, head=page.head)
        if wants_archive:
            checkpoint, header = _signed(parts, header, note)
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


def _signed(parts: Services, header: Header, note: bytes | None) -> tuple[bytes | None, Header]:
    """Returns the last checkpoint, and the header of an archive that ends at this checkpoint.

    If a key is there, waits up to `SIGN_SECONDS_MAX` seconds until the signer has signed all events
    of the given header. If no checkpoint is signed yet, prints a warning, and returns `None` and
    the same header.
    """
    is_signed_here = bool(parts.verifiers(header.space))
    deadline = time.monotonic() + SIGN_SECONDS_MAX
    while True:
        size = 0 if note is None else Checkpoint.of(note).size
        if size >= header.head or not is_signed_here or time.monotonic() > deadline:
            break
        time.sleep(SIGN_POLL_SECONDS)
        note = _checkpoint(parts, header.space)
    if note is None:
        err.print("[yellow]no checkpoint is signed yet:[/yellow] the archive has none")
        return None, header
    if size < header.head:
        err.print(
            f"[yellow]the archive ends at its checkpoint, seq {spaced(size)}:[/yellow] "
            f"{spaced(header.head - size)} events are not signed yet"
        )
    return note, msgspec.structs.replace(header, head=size)


def _checkpoint(parts: Services, space: str) -> bytes | None:
    try:
        return parts.tree.checkpoint(space)
    except NoCheckpoint:
        return None


def _entries_of(parts: Services, header: Header) -> Iterator[LogEntry]:
    """Yields a `LogEntry` for each event of the log up to the seq `header.head`.

    After the last entry, raises `ErasedMeanwhile` if a record was erased during the export. Prints
    a warning if values are missing that no event has erased: an export is evidence, so it has
    such a log as it is.
    """
    erasures = Erasures(new_seqs=disk_backed_seqs)
    for entry in parts.store.entries(header.space, through=header.head):
        erasures.note(entry.seq, entry.state)
        yield entry
    if not erasures.owing_count:
        return
    head = parts.store.range_after(header.space, RangeQuery(0, 1)).head
    for entry in parts.store.entries(header.space, after=header.head, through=head):
        erasures.note(entry.seq, entry.state)
        if not erasures.owing_count:
            raise ErasedMeanwhile
    err.print(
        "[yellow]values are missing that no event has erased:[/yellow] foldlog verify names them"
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
@KEYS
@click.option(
    "--checkpoint",
    "kept",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Compare with a checkpoint that you saved earlier.",
)
@click.option(
    "--unsigned",
    "accepts_unsigned",
    is_flag=True,
    help="Accept events that no checkpoint covers. Without it, they are refused.",
)
@with_database
@report_errors
def import_command(
    file: str,
    space: str | None,
    keys: tuple[str, ...],
    kept: str | None,
    accepts_unsigned: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Copy an exported log into an empty or new space.

    The new log is equal byte for byte. FILE is an archive or an export as JSON lines; both may be
    gzipped. - is standard input.

    The import checks everything that `foldlog verify --file` checks. The space stays hidden until
    the whole log has passed, and a refused file leaves nothing behind. If the import was
    interrupted, run the same command again: it resumes. `foldlog remove-import` gives it up.
    """
    verifiers = [verifier_of(text) for text in keys]
    with file_source(file) as source:
        name = space or source.header.space
        if not is_space(name):
            raise InvalidRequest(f"{name!r} is not a valid space name")
        kept_file = None if kept is None else Path(kept)
        covered = _covered(source, verifiers, kept_file)
        if covered < source.header.head and not accepts_unsigned:
            raise InvalidExport(_why_unsigned(covered, source.header.head))
        if source.checkpoint is not None and not verifiers:
            err.print(
                "[yellow]the archive vouches for itself:[/yellow] its signature is checked with "
                "the keys that it brings. Give the key that you know with --key"
            )
        with open_services(data, database_url, migrates=True) as parts:
            imported = _import(parts, name, source, verifiers, kept_file)
    err.print(f"imported {spaced(imported)} events into {name}")


def _covered(source: Source, verifiers: list[Verifier], kept: Path | None) -> int:
    """Returns the number of events that a valid checkpoint covers: the one of the export, or the
    kept one. Returns 0 if there is none.

    Raises `InvalidExport` if a checkpoint is wrong, or belongs to another log or space.
    """
    header, sizes = source.header, [0]
    notes = [("the checkpoint", source.checkpoint)]
    if kept is not None:
        notes.append(("the kept checkpoint", read_note(kept)))
    try:
        keys = verifiers or [Verifier.parse(vkey) for vkey in source.vkeys]
        for what, note in notes:
            if note is not None:
                found = checked_checkpoint(note, keys, what, log=header.log, space=header.space)
                sizes.append(found.size)
    except (Wrong, InvalidNote) as exc:
        raise InvalidExport(str(exc)) from exc
    return max(sizes)


def _why_unsigned(covered: int, head: int) -> str:
    if covered:
        return (
            f"the {head - covered} events after seq {covered} are not signed: the checkpoint ends "
            "there. Give --unsigned to import them all the same"
        )
    return (
        "it is not signed: there is no checkpoint. Export an archive, or give a checkpoint that "
        "you saved with --checkpoint, or import it as it is with --unsigned"
    )


def _import(
    parts: Services, name: str, source: Source, verifiers: list[Verifier], kept: Path | None
) -> int:
    """Verifies and stores all events of a source. Returns the number of stored events.

    Raises `InvalidExport` at the first thing that is wrong.
    """
    header = source.header
    with (
        parts.importer.into(name, header.log) as imported,
        progress(f"importing {name}", header.head) as report,
    ):
        importing = Importing(source, imported)
        verification = Verification(
            importing,
            keys=verifiers,
            kept_file=kept,
            wants_fold=False,
            unsigned_seconds_max=math.inf,  # `_covered` was checked before
        )
        try:
            verification.verify(report)
        except (Wrong, WrongEvent, InvalidNote) as exc:
            raise InvalidExport(str(exc)) from exc
        if importing.refused is not None:
            raise importing.refused
        imported.finish()
    return imported.stored


@click.command("remove-import")
@click.argument("space")
@BY
@YES
@with_database
@report_errors
def remove_import_command(
    space: str, by: str, yes: bool, data: str | None, database_url: str | None
) -> None:
    """Remove the unfinished import of SPACE.

    The events of the import are deleted, and the name is free again. A space that is whole is never
    removed. The table `removed_imports` keeps a line about it.
    """
    if not yes:
        click.confirm(f"Remove the unfinished import of {space}?", abort=True, err=True)
    check_reason("-", by)
    with open_services(data, database_url) as parts:
        removed = parts.importer.remove(space, f"removed by {by}")
    err.print(f"removed the import of {space}, {spaced(removed)} events")


@contextmanager
def _writer(name: str, *, compress: bool = True) -> Iterator[BinaryIO]:
    """Opens the file `name` for writing while the `with` block runs. If `name` is `-`, the block
    gets standard output instead.

    The file has a temporary name, which ends with `.part`, until the block has ended. If the block
    raises an error, the file keeps the temporary name.
    """
    if name == "-":
        if sys.stdout.isatty():
            # An export has the values as they are, and some would act on the terminal.
            raise click.UsageError("an export is no text for a terminal: give -o FILE, or redirect")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    part = path.with_name(path.name + ".part")
    is_gzip = compress and path.suffix == ".gz"
    with cast(BinaryIO, gzip.open(part, "wb") if is_gzip else part.open("wb")) as file:
        yield file
    part.replace(path)
