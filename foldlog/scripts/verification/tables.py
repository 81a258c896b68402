"""Compares the columns and tables that follow from the events with those that the database has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from foldlog.domain.audit import MALFORMED_ERRORS, WrongEvent
from foldlog.domain.derived import NEW_DEVICE, UNPROVABLE, Derived, Row, RowKey, columns_of
from foldlog.infrastructure.postgres.audit.snapshot import Snapshot
from foldlog.scripts.console import spaced

from .checks import Audited, Check
from .disk_backed import DiskBacked
from .rows import difference, first_difference, joined

#: Missing tokens that one statement looks for.
TOKENS_PER_READ = 1_000


class ColumnsCheck(Check):
    """Compares the columns beside each event, by which readers and decisions find the event."""

    wants_events = True

    def add(self, batch: Audited) -> None:
        for event, found in zip(batch.events, batch.columns, strict=True):
            try:
                expected = columns_of(event)
            except MALFORMED_ERRORS as exc:
                raise WrongEvent(event.seq, str(exc)) from exc
            if self.note(difference("events", (event.seq,), expected, found)):
                return

    def finish(self) -> Iterator[str]:
        yield "the columns beside each event are those of its bytes"


class TablesCheck(Check):
    """Compares the row of the space, and the tables of devices, tokens, erasures, skipped events
    and collections, with the events. It must get the whole log."""

    wants_events = True

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._derived = Derived(lambda key_columns: DiskBacked[RowKey, Row](key_columns, dict))
        self._mark = ""

    def add(self, batch: Audited) -> None:
        for event, (state, _, _) in zip(batch.events, batch.evidence, strict=True):
            try:
                self._derived.add(event, len(state))
            except MALFORMED_ERRORS as exc:
                raise WrongEvent(event.seq, str(exc)) from exc

    def set_mark(self, mark: str) -> None:
        """Sets the mark of the last event."""
        self._mark = mark

    def finish(self) -> Iterator[str]:
        self.note(self._wrong_space())
        tables = dict(self._derived.tables)
        tokens = tables.pop("tokens")
        for table, expected in tables.items():
            # A device that pushes without counters has a row or none, which means the same.
            absent = NEW_DEVICE if table == "devices" else None
            stored = self._snapshot.rows(table)
            self.note(first_difference(table, expected.items(), stored, absent))
        notes = list(self._compare_tokens(tokens.items()))
        yield f"{', '.join([*tables, 'tokens'])} and the space's row follow from the events"
        yield from notes

    def _wrong_space(self) -> str | None:
        found = self._snapshot.space_row()
        assert found is not None
        derived = self._derived
        expected = {
            "head": derived.head,
            "mark": self._mark,
            "received_at_ms": derived.received_at_ms,
            "erased_seq": derived.erased_seq,
        }
        # It may be larger: an erasure or a fork can take the largest event away.
        if found["event_bytes_max"] < derived.event_bytes_min:
            expected["event_bytes_max"] = f"{derived.event_bytes_min} or more"
        return difference("spaces", (), expected, found)

    def _compare_tokens(self, expected: Iterable[tuple[RowKey, Row]]) -> Iterator[str]:
        """Compares the tokens. A token of an imported log has no row, so that it gives no access;
        such tokens are older than each token that was granted here."""
        unprovable = absent = 0
        last_absent: tuple[int, RowKey] = (0, ())
        first_present = self._derived.head + 1
        waiting: list[tuple[str, str]] = []
        for key, mine, found in joined(expected, self._snapshot.rows("tokens")):
            seq = 0 if mine is None else self._granted_at(key)
            if mine is not None and found is None:
                absent += 1
                last_absent = max(last_absent, (seq, key))
                waiting.append((str(key[0]), mine["digest"]))
                if len(waiting) == TOKENS_PER_READ:
                    self._check_moved(waiting)
                    waiting = []
                continue
            self.note(difference("tokens", key, mine, found))
            first_present = min(first_present, seq)
            unprovable += mine is not None and mine["digest"] == UNPROVABLE
        self._check_moved(waiting)
        if last_absent[0] > first_present:
            self.note(difference("tokens", last_absent[1], {}, None))
        if absent:
            yield f"{spaced(absent)} tokens of an imported log have no row and give no access"
        if unprovable:
            yield (
                f"not provable: the digests of {spaced(unprovable)} tokens, which an older version "
                "granted"
            )
        everywhere = self._snapshot.count_tokens_of_every_space()
        if everywhere:
            yield f"not provable: {spaced(everywhere)} tokens of every space, which are in no log"

    def _check_moved(self, tokens: Sequence[tuple[str, str]]) -> None:
        """Looks for tokens of this log that now give access elsewhere."""
        moved = self._snapshot.moved_token(tokens) if tokens else None
        if moved is not None:
            space = f"the space {moved[1]!r}, which has no log" if moved[1] else "every space"
            self.note(f"tokens {moved[0]} is of {space}, but the events grant it here")

    def _granted_at(self, key: RowKey) -> int:
        found = self._derived.granted_seqs.get(key)
        return 0 if found is None else int(found["seq"])
