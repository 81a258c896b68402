"""Compares the master table with a fold of the events: records, versions, conflicts, local ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from msgspec import UNSET

from foldlog.domain.audit import MALFORMED_ERRORS, WrongEvent
from foldlog.domain.derived import Row, RowKey
from foldlog.domain.events import Event, decode_event
from foldlog.domain.merge import Conflict, Key, cause_of, fold_record
from foldlog.infrastructure.postgres.audit.master_rows import (
    StoredMaster,
    conflict_rows,
    record_row,
    version_row,
)
from foldlog.infrastructure.postgres.audit.snapshot import Snapshot, StoredGeneration
from foldlog.infrastructure.postgres.master.stored_form import (
    StoredRecord,
    Version,
    keep_in_log,
    pack,
    stored_tombstone,
)
from foldlog.scripts.console import spaced

from .checks import Audited, Check
from .disk_backed import DiskBacked
from .rows import difference, joined
from .stored_records import IN_MEMORY, StoredRecords

#: Versions that one statement looks up.
VERSIONS_PER_READ = 5_000


class MasterCheck(Check):
    """Compares every generation of the master table with a fold of the events up to its position.

    `skipped` are the seqs of the events that every fold leaves out, and `through` is the last seq
    of the log. The check must get the log from the first event on.
    """

    wants_events = True

    def __init__(
        self,
        snapshot: Snapshot,
        generations: Collection[StoredGeneration],
        skipped: Collection[int],
        through: int,
    ):
        self._snapshot = snapshot
        self._skipped = skipped
        self._through = through
        self._records = StoredRecords()
        #: the id that each local id stands for, and the last seq that names it
        self._local_ids = DiskBacked[RowKey, Row](3, dict)
        self._erased = DiskBacked[Key, int](2, int)
        parts = [_Generation(snapshot, generation) for generation in generations]
        self._pending = sorted(parts, key=lambda part: part.position)
        self._findings: list[str] = []
        self._finish_at(0)

    def add(self, batch: Audited) -> None:
        if not self._pending:
            return
        erasures = self._erasures(batch.events)
        for event, (state, _, _) in zip(batch.events, batch.evidence, strict=True):
            if not self._pending or self.note(self._wrong_so_far()):
                return
            if event.seq not in self._skipped:
                self._apply(event, len(state), erasures)
            self._finish_at(event.seq)
        for part in self._pending:
            part.flush()

    def finish(self) -> Iterator[str]:
        for part in self._pending:
            self.note(f"projections: the position {part.position} of {part.name} is beyond head")
        yield from self._findings

    def _wrong_so_far(self) -> str | None:
        return next((part.wrong for part in self._pending if part.wrong), None)

    def _erasures(self, events: Collection[Event]) -> dict[Key, int]:
        """Returns the last erasure of each record that these events name.

        Rows of the record that are older than the erasure were deleted with it.
        """
        keys = {op.key for event in events for op in event.ops}
        keys |= {key for event in events if (key := event.erased_key) is not None}
        return self._snapshot.erasure_seqs(sorted(keys)) if keys else {}

    def _apply(self, event: Event, size: int, erasures: dict[Key, int]) -> None:
        self._records.add_bytes(size)
        try:
            versions, conflicts = self._fold(event)
        except MALFORMED_ERRORS as exc:
            raise WrongEvent(event.seq, f"it cannot be folded: {exc}") from exc
        for version in versions:
            if version.record.exists:
                key = version.record.collection, version.record.id
                for part in self._pending:
                    row = version_row(version)
                    part.expect_version(key, event.seq, row, erasures.get(key, 0))
        for part in self._pending:
            part.expect_conflicts(event, conflicts, erasures)
        erased = event.erased_key
        if erased is not None:
            self._erased[erased] = event.seq
        for op in event.ops:
            if op.local_id is not UNSET and op.id is not UNSET:
                named = (str(event.device), op.collection, op.local_id)
                self._local_ids[named] = {"id": op.id, "seq": event.seq}

    def _fold(self, event: Event) -> tuple[list[Version], list[Conflict]]:
        """Folds one event as the projection does. Returns the rows and the conflicts it makes."""
        erased = event.erased_key
        if erased is not None:
            before, record = StoredRecord(*erased), stored_tombstone(erased, event)
            versions = [pack(before, record, ())]
            self._records[erased] = record
            return versions, []
        if not event.is_stored_changeset:
            return [], []
        for number, op in enumerate(event.ops):
            keep_in_log(op, number, event.seq, IN_MEMORY)
        cause = cause_of(event)
        versions, conflicts = [], list[Conflict]()
        for key, ops in event.ops_by_record.items():
            before = self._records.get(key) or StoredRecord(*key)
            record = fold_record(before, ops, cause, conflicts)
            versions.append(pack(before, record, ops))
            self._records[key] = record
        return versions, conflicts

    def _finish_at(self, seq: int) -> None:
        """Compares the generations that are projected up to this event."""
        while self._pending and self._pending[0].position == seq:
            part = self._pending.pop(0)
            part.flush()
            count = part.compare_records(self._records)
            part.compare_local_ids(self._local_ids_now())
            part.compare_rest()
            self.note(part.wrong)
            events = "these" if seq == self._through else f"the first {spaced(seq)}"
            self._findings.append(
                f"{part.name} is the fold of {events} events: {spaced(count)} records, with their "
                "versions, conflicts and local ids"
            )
            if part.left_out:
                self._findings.append(
                    f"not compared: {spaced(part.left_out)} records of {part.name}, which a later "
                    "event erases"
                )

    def _local_ids_now(self) -> Iterator[tuple[RowKey, Row]]:
        for key, row in self._local_ids.items():
            if row["seq"] > (self._erased.get((str(key[1]), row["id"])) or 0):
                yield key, {"id": row["id"]}


class _Generation:
    """Compares one generation of the master table with the rows that the events make."""

    def __init__(self, snapshot: Snapshot, generation: StoredGeneration):
        self._snapshot = snapshot
        self._stored = StoredMaster(snapshot, generation.number, generation.position)
        self.position = generation.position
        self.name = "the master table"
        if not generation.is_live:
            self.name = f"generation {generation.number}, which is being rebuilt,"
        self._has_history = generation.has_history
        self._versions: dict[tuple[Key, int], Row] = {}
        self._versions_found = 0
        self._conflicts = self._stored.conflicts()
        self._next_conflicts = next(self._conflicts, None)
        self.wrong: str | None = None
        self.left_out = 0  #: records that differ until the projection reaches their erasure

    def expect_version(self, key: Key, seq: int, row: Row, erased_seq: int) -> None:
        """Adds a version that this generation must have, unless the record was erased later."""
        if seq < erased_seq or not self._has_history:
            return
        self._versions[key, seq] = row
        if len(self._versions) >= VERSIONS_PER_READ:
            self.flush()

    def flush(self) -> None:
        """Looks up the versions that were added, and compares them."""
        if not self._versions:
            return
        found = self._stored.versions(list(self._versions))
        for (key, seq), row in self._versions.items():
            place = (*key, seq)
            self._note(difference("versions", place, row, found.get(place)))
        self._versions_found += len(found)
        self._versions = {}

    def expect_conflicts(
        self, event: Event, conflicts: list[Conflict], erasures: dict[Key, int]
    ) -> None:
        """Compares the conflicts of one event with the stored ones."""
        found: list[Any] = []
        if self._next_conflicts is not None and self._next_conflicts[0] <= event.seq:
            seq, found = self._next_conflicts
            self._next_conflicts = next(self._conflicts, None)
            if seq < event.seq:
                self._note(difference("conflicts", found[0][0], None, found[0][1]))
                return
        if not (found or conflicts):
            return
        for number, (key, row) in enumerate(found):
            if key[1] != number:
                self._note(difference("conflicts", (event.seq, number), row, None))
        # The rows of a record that a later event erases are gone, or a fold of values that an
        # interrupted erasure has left. The other rows are then numbered without them.
        erased_later = {op.key for op in event.ops if erasures.get(op.key, 0) > self.position}
        others = [r for _, r in found if (r["collection"], r["id"]) not in erased_later]
        kept = [c for c in conflicts if erasures.get((c.collection, c.id), 0) < event.seq]
        numbered = [((event.seq, number), row) for number, row in enumerate(others)]
        for key, mine, theirs in joined(conflict_rows(kept), numbered):
            self._note(difference("conflicts", key, mine, theirs))

    def compare_records(self, records: StoredRecords) -> int:
        """Compares all records. Returns their number."""
        count = 0
        expected = ((key, record_row(record)) for key, record in records.items())
        for key, mine, found in joined(expected, self._stored.records()):
            count += found is not None
            wrong = difference("records", key, mine, found)
            if wrong and self._is_from_later(found):
                self._note(wrong)
                break
            if wrong and not self._is_erased_later((str(key[0]), str(key[1]))):
                self._note(wrong)
                break
            if wrong and found is not None:
                self.left_out += 1
        return count

    def _is_from_later(self, found: Row | None) -> bool:
        """Returns whether a record names an event that this generation has not reached."""
        if found is None:
            return False
        return any(found[name] > self.position for name in ("seq", "created_seq", "touched_seq"))

    def compare_local_ids(self, expected: Iterator[tuple[RowKey, Row]]) -> None:
        for key, mine, found in joined(expected, self._stored.local_ids()):
            wrong = difference("local_ids", key, mine, found)
            if wrong:
                id = (mine or found or {})["id"]
                if not self._is_erased_later((str(key[1]), id)):
                    self._note(wrong)
                    return

    def compare_rest(self) -> None:
        """Looks for conflicts and versions that no event has made."""
        if self._next_conflicts is not None:
            key, row = self._next_conflicts[1][0]
            self._note(difference("conflicts", key, None, row))
        if self._has_history and self.wrong is None:
            count = self._stored.count_versions()
            if count != self._versions_found:
                self._note(self._surplus_version() or f"versions has {count} rows too many")

    def _surplus_version(self) -> str | None:
        """Describes the first version that belongs to no event of the log, or returns `None`."""
        keys = self._stored.version_keys()
        key = next(keys, None)
        for events, _ in self._snapshot.events(0, self.position):
            for state, _, _ in events:
                event = decode_event(state)
                named = event.keys
                while key is not None and int(key[2]) <= event.seq:
                    if int(key[2]) < event.seq or key[:2] not in named:
                        return difference("versions", key, None, {})
                    key = next(keys, None)
        return None if key is None else difference("versions", key, None, {})

    def _is_erased_later(self, key: Key) -> bool:
        return self._snapshot.erasure_seqs([key]).get(key, 0) > self.position

    def _note(self, wrong: str | None) -> None:
        self.wrong = self.wrong or wrong
