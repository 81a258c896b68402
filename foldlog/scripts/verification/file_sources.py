"""Reads a log from a file, so that the log can be verified. The file is an archive for auditors, or
an export as JSON lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from foldlog.infrastructure.postgres.append.transfer import InvalidExport
from foldlog.scripts.exports.archive import Archive, is_archive, read_archive
from foldlog.scripts.exports.lines import evidence_of, read_header

from .checks import Check
from .sources import BATCH_EVENTS, Batch, Scope, Source
from .tiles import CarriedTilesCheck


class ArchiveSource(Source):
    """Reads the log from an archive, which also has tiles and a checkpoint. The archive can be
    read only once.
    """

    carries_tiles = True

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
            wanted = batch[max(0, after - start) : max(0, through - start)]
            yield Batch(wanted, {} if part.tile is None else dict([part.tile]))

    def checks(self, scope: Scope) -> list[Check]:
        return [CarriedTilesCheck(self.header.head)]


class LinesSource(Source):
    """Reads the log from an export as JSON lines, which has events and salts but no checkpoint."""

    may_be_signed = False

    def __init__(self, lines: Iterator[bytes]):
        self.header = read_header(next(lines, b""))
        self._events = (evidence_of(line, number) for number, line in enumerate(lines, 2))

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        wanted = islice(self._events, after, through)
        while batch := list(islice(wanted, BATCH_EVENTS)):
            yield Batch(batch)
        # Reading to the end of a gzip file also checks its checksum.
        if through >= self.header.head and next(self._events, None) is not None:
            raise InvalidExport(f"there are events after seq {self.header.head}, the last one")

    def checks(self, scope: Scope) -> list[Check]:
        return []


@contextmanager
def file_source(name: str) -> Iterator[Source]:
    """Opens an archive or an export by its file name, while the `with` block runs. An export
    may be gzipped.

    Raises `InvalidExport` if the file is invalid, truncated or damaged.
    """
    path = Path(name)
    is_tar = is_archive(name)
    with gzip.open(path) if path.suffix == ".gz" and not is_tar else path.open("rb") as file:
        try:
            yield ArchiveSource(read_archive(file)) if is_tar else LinesSource(iter(file))  # type: ignore[arg-type]
        except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
            raise InvalidExport(f"the file is truncated or damaged: {exc}") from exc
