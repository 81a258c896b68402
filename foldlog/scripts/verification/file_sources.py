"""Reads a log from a file, so that the log can be verified. The file is an archive for auditors, or
an export as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from foldlog.infrastructure.postgres.append.transfer import InvalidExport
from foldlog.scripts.exports.archive import Archive, read_archive
from foldlog.scripts.exports.bounded import ExportFile, open_export
from foldlog.scripts.exports.lines import batches_of, evidence_of, read_header

from .checks import Check
from .sources import Batch, Scope, Source
from .tiles import CarriedTilesCheck


class ArchiveSource(Source):
    """Reads the log from an archive, which also has tiles and a checkpoint. The archive can be
    read only once.
    """

    carries_tiles = True
    is_file = True

    def __init__(self, archive: Archive):
        self._archive = archive
        self.header = archive.header
        self.checkpoint = archive.checkpoint
        self.vkeys = archive.vkeys

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        seq = 0
        for part in self._archive.parts:
            batch = part.events
            start, seq = seq, seq + len(batch)
            _check_end(seq, self.header.head)
            wanted = batch[max(0, after - start) : max(0, through - start)]
            yield Batch(wanted, {} if part.tile is None else dict([part.tile]))

    def checks(self, scope: Scope) -> list[Check]:
        return [CarriedTilesCheck(self.header.head)]


class LinesSource(Source):
    """Reads the log from an export as JSON lines, which has events and salts but no checkpoint."""

    may_be_signed = False
    is_file = True

    def __init__(self, file: ExportFile):
        lines = file.lines()
        self.header = read_header(next(lines, b""))
        self._events = (evidence_of(line, number) for number, line in enumerate(lines, 2))

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        yield from map(Batch, batches_of(islice(self._events, after, through)))
        # Reading to the end of a gzip file also checks its checksum.
        if through >= self.header.head and next(self._events, None) is not None:
            _check_end(self.header.head + 1, self.header.head)

    def checks(self, scope: Scope) -> list[Check]:
        return []


def _check_end(seq: int, head: int) -> None:
    if seq > head:
        raise InvalidExport(f"there are events after seq {head}, the last one")


@contextmanager
def file_source(name: str) -> Iterator[Source]:
    """Opens an archive or an export while the `with` block runs. Both may be gzipped, and `-` is
    standard input.

    Raises `InvalidExport` if the file is invalid, truncated or damaged.
    """
    with open_export(name) as (file, is_archive):
        yield ArchiveSource(read_archive(file)) if is_archive else LinesSource(file)
