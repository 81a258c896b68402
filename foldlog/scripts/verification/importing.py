"""Stores the events of an export while they are verified."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from foldlog.domain.access import devices_of
from foldlog.domain.audit import Evidence
from foldlog.domain.collections import KIND as COLLECTION_DEFINED
from foldlog.domain.collections import definition_of
from foldlog.domain.erasure import erasures_of
from foldlog.domain.errors import FoldlogError
from foldlog.domain.events import LogEntry, decode_event, restored_entry
from foldlog.domain.schema_keywords import compiled
from foldlog.domain.skipping import skips_of
from foldlog.infrastructure.postgres.append.transfer import ImportedSpace, InvalidExport

from .checks import Check
from .sources import Batch, Scope, Source

#: Of an event with a body: the largest schema, with all the rest.
BODY_EVENT_BYTES_MAX = 256 * 2**10


class Importing(Source):
    """A source that stores each batch of another source after the batch was verified.

    The verification asks for the next batch only if everything in the last one was right.
    Therefore the last batch is stored at that moment.

    If an event cannot be stored, `refused` has the reason, and no later event is stored. The caller
    raises it after the verification. So the import refuses what `foldlog verify --file` refuses,
    with the same sentence.
    """

    refused: InvalidExport | None = None

    def __init__(self, source: Source, space: ImportedSpace):
        self._source = source
        self._space = space
        self.header = source.header
        self.checkpoint = source.checkpoint
        self.vkeys = source.vkeys
        self.carries_tiles = source.carries_tiles
        self.may_be_signed = source.may_be_signed
        self.is_file = source.is_file

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        seq = after + 1
        for batch in self._source.batches(after, through):
            yield batch
            if batch.events and self.refused is None:
                self._store(batch, seq)
            seq += len(batch.events)

    def _store(self, batch: Batch, first: int) -> None:
        try:
            self._space.add([_entry(found, seq) for seq, found in enumerate(batch.events, first)])
        except InvalidExport as exc:
            self.refused = exc

    def checks(self, scope: Scope) -> list[Check]:
        return self._source.checks(scope)


def _entry(evidence: Evidence, seq: int) -> LogEntry:
    """Returns the log entry of an exported event. Raises `InvalidExport` if a table that follows
    from the events cannot follow from this one."""
    try:
        entry = restored_entry(evidence.state, evidence.salt)
        if entry.collections is None and len(entry.state) > BODY_EVENT_BYTES_MAX:
            raise ValueError(f"the event has more than {BODY_EVENT_BYTES_MAX} bytes")
        devices_of([entry]), erasures_of([entry]), skips_of([entry])
        if entry.kind == COLLECTION_DEFINED:
            compiled(definition_of(decode_event(entry.state)).schema)
    except (ValueError, FoldlogError, msgspec.MsgspecError) as exc:
        raise InvalidExport(f"seq {seq}: {exc}") from exc
    return entry
