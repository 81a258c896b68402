"""Verifies a log: its hashes, checkpoints and tiles, and the master table made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from foldlog.domain.audit import AuditCursor, LogAudit, WrongEvent
from foldlog.domain.errors import OperatorError
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Record, view_of
from foldlog.domain.merkle import (
    TILE_WIDTH,
    InvalidProof,
    Tile,
    check_consistency,
    consistency_proof,
    edge_tiles,
    root_of,
)
from foldlog.domain.notes import Checkpoint, Verifier
from foldlog.scripts.console import err, spaced

from .claims import Claims, Wrong, checked_checkpoint
from .disk_backed import DiskBackedRecords
from .folded import Folded
from .sources import Batch, Source
from .state import read_state, write_state

#: The state file is written after this many events, for a run that is interrupted.
STATE_EVENTS = 100_000


class Verification:
    """Verifies the log that `source` reads.

    `first` and `last` are the first and the last seq to verify. By default, all events are
    verified. The method `verify` runs the checks, and raises an error when a check fails. For each
    check that succeeded or was left out, it adds a line of text to `findings`.

    The constructor raises `OperatorError` if `first` is given and `state_file` also contains a
    start position, because only one start is possible. It raises the same error if the source
    lacks the tiles of the events before `first`.
    """

    def __init__(
        self,
        source: Source,
        *,
        keys: list[Verifier],
        kept_file: Path | None = None,
        state_file: Path | None = None,
        first: int | None = None,
        last: int | None = None,
        wants_fold: bool = True,
    ):
        self._source = source
        self._header = source.header
        self._keys = keys
        self._kept_file = kept_file
        self._state_file = state_file
        self.through = min(last or self._header.head, self._header.head)
        self._start = self._find_start(first)
        is_complete = self._start.seq == 0 and last is None
        self._compares_fold = wants_fold and is_complete and source.has_records
        self.signed: Checkpoint | None = None
        self.findings: list[str] = []
        #: computed tiles, still to be compared with the archive's
        self._expected_tiles: dict[Tile, bytes] = {}

    def verify(self, report: Callable[[int], None]) -> None:
        """Runs all checks. Calls `report` with the last verified seq after each batch of
        events.

        Raises `Wrong` if a checkpoint, a tile or the master table differs, and `WrongEvent`
        if an event is invalid.
        """
        claims = self._claims()
        audit, folded = LogAudit(self._start), Folded()
        claims.compare(audit.seq, audit.root)
        for batch in self._batches(claims):
            self._check_batch(audit, batch)
            claims.compare(audit.seq, audit.root)
            if self._compares_fold:
                folded.add(batch.events)
            report(audit.seq)
            if audit.seq % STATE_EVENTS < len(batch.events):
                self._save_state(audit)
        if audit.seq < self.through:
            raise WrongEvent(audit.seq + 1, f"the events end here, of {self.through}")
        self._compare_tiles(audit)
        self._prove_remaining(audit, claims)
        count = spaced(audit.seq - self._start.seq)
        self.findings.insert(0, f"{count} events, each with its hashes, to seq {audit.seq}")
        if self.through == self._header.head:
            self._check_erasures(audit)
        self._save_state(audit)
        if self._compares_fold:
            self._compare_records(self._without_skipped(folded, audit), at_least=audit.seq)

    # -- the start

    def _find_start(self, first: int | None) -> AuditCursor:
        if self._state_file is not None:
            saved = read_state(self._state_file, self._header)
            if saved is not None and first is not None:
                raise OperatorError("--from and --state name two starts: give only one of them")
            if saved is not None:
                return saved
        if first is None or first == 1:
            return AuditCursor()
        try:
            return AuditCursor.at(first - 1, self._source.tiles(edge_tiles(first - 1)))
        except InvalidProof as exc:
            raise OperatorError(f"the tiles do not reach seq {first}: {exc}") from exc

    def _save_state(self, audit: LogAudit) -> None:
        if self._state_file is not None:
            write_state(self._state_file, self._header, audit.cursor)

    # -- the claims

    def _claims(self) -> Claims:
        claims = Claims()
        self.signed = self._signed_checkpoint()
        if self.signed is not None:
            claims.add(self.signed, "the signed checkpoint", head=self._header.head)
        if self._kept_file is not None:
            kept = self._open(self._kept_file.read_bytes(), "the kept checkpoint")
            claims.add(kept, "the kept checkpoint", head=self._header.head)
            self.findings.append(
                f"begins with the {spaced(kept.size)} events of the kept checkpoint"
            )
        return claims

    def _signed_checkpoint(self) -> Checkpoint | None:
        note = self._source.checkpoint
        if note is None:
            if self._keys and self._source.may_be_signed:
                raise Wrong("it is not signed: there is no checkpoint")
            self.findings.append("not signed: there is no checkpoint")
            return None
        if not self._keys:
            err.print(
                "[yellow]no --key given:[/yellow] the signature is checked with the keys that come "
                "with the log, which proves little"
            )
        checkpoint = self._open(note, "the checkpoint")
        self.findings.append(f"signed by {checkpoint.origin} at {spaced(checkpoint.size)} events")
        return checkpoint

    def _open(self, note: bytes, name: str) -> Checkpoint:
        keys = self._keys or [Verifier.parse(vkey) for vkey in self._source.vkeys]
        return checked_checkpoint(note, keys, name, log=self._header.log)

    # -- the events

    def _batches(self, claims: Claims) -> Iterator[Batch]:
        """Yields the events in batches. If a checkpoint covers the first N events, a batch ends
        after event N.

        The caller then compares the root hash that it has computed from these N events with the
        root hash in the checkpoint.
        """
        seq = self._start.seq
        for batch, tiles in self._source.batches(seq, self.through):
            start = 0
            for size in claims.sizes_between(seq, seq + len(batch)):
                yield Batch(batch[start : size - seq])
                start = size - seq
            yield Batch(batch[start:], tiles)
            seq += len(batch)

    def _check_batch(self, audit: LogAudit, batch: Batch) -> None:
        computed = audit.check(batch.events)
        if not self._source.carries_tiles:
            return
        self._expected_tiles |= computed
        for tile, hashes in batch.tiles.items():
            expected = self._expected_tiles.get(tile)
            if expected is None or len(expected) != len(hashes):
                continue
            if self._expected_tiles.pop(tile) != hashes:
                first = tile.number * TILE_WIDTH ** (tile.level + 1) + 1
                raise Wrong(f"tile {tile.level}/{tile.number}, from seq {first}, is another one")

    def _check_erasures(self, audit: LogAudit) -> None:
        """Checks that each erased value is covered by a `record-erased` event.

        If a value was erased during the verification, its `record-erased` event is after the
        last verified event. The method then reads later events until it finds this event.
        """
        if not audit.is_settled:
            for batch in self._source.batches(audit.seq, INTEGER_MAX):
                audit.check(batch.events)
                if audit.is_settled:
                    break
        audit.check_erasures()

    # -- the tree

    def _compare_tiles(self, audit: LogAudit) -> None:
        """Compares the tiles of the source with the verified events. Raises `Wrong` if they
        differ.

        The tiles of an archive were already compared while its events were read, so this method
        only checks that no tile is missing. For other sources, the method compares the root
        hash of the tiles with the root hash of the events.
        """
        if self._source.carries_tiles:
            if self._expected_tiles and audit.seq == self._header.head:
                level, number = min(self._expected_tiles)
                raise Wrong(f"tile {level}/{number} is missing, or of another size")
        else:
            try:
                root = root_of(audit.seq, self._source.tiles)
            except InvalidProof:
                self.findings.append("there are no tiles, or they have not come so far yet")
                return
            if root != audit.root:
                raise Wrong(
                    f"the tiles have another root at {audit.seq}: "
                    "run foldlog rebuild --projection proofs"
                )
        self.findings.append("the tiles are of these events")

    def _prove_remaining(self, audit: LogAudit, claims: Claims) -> None:
        """Checks the checkpoints that were not compared while the events were read.

        Such a checkpoint ends before the first event of this run, or after the last one, so this
        run has not computed the root hash at the end of the checkpoint. Instead, a consistency
        proof (RFC 9162) shows that the checkpoint belongs to the same log as the verified events.
        Raises `Wrong` if a proof fails. For an archive, this check is left out, and the method
        adds a line to `findings` for each checkpoint that was not checked.
        """
        for size, claim in claims.remaining():
            if self._source.carries_tiles:
                self.findings.append(f"not compared with {claim.source}, of {spaced(size)} events")
                continue
            (old, old_root), (new, new_root) = sorted([(size, claim.root), (audit.seq, audit.root)])
            try:
                proof = consistency_proof(old, new, self._source.tiles)
                check_consistency(old, old_root, new, new_root, proof)
            except InvalidProof as exc:
                raise Wrong(f"{claim.source} of {size} events is not of this log: {exc}") from exc

    # -- the master table

    def _without_skipped(self, folded: Folded, audit: LogAudit) -> DiskBackedRecords:
        """Returns a mapping of the records that result from the events, without the changes of the
        events that an operator has skipped.

        The first reading of the log finds out which events were skipped. If there are any, the
        method reads all events a second time, and folds them without the skipped ones. Raises
        `WrongEvent` if another event cannot be folded, and `Wrong` if the second reading returns
        other events.
        """
        if folded.to_skip:
            seqs = ", ".join(map(str, sorted(folded.to_skip)))
            self.findings.append(f"skipped, as an event says: seq {seqs}")
            # The events are read again, so their root must be the same again.
            folded, again = Folded(folded.to_skip), LogAudit()
            for batch in self._source.batches(0, self.through):
                again.check(batch.events)
                folded.add(batch.events)
            if again.root != audit.root:
                raise Wrong("the second reading of the log returned other events")
        if folded.failed is not None:
            raise folded.failed
        return folded.records

    def _compare_records(self, records: DiskBackedRecords, at_least: int) -> None:
        """Compares the records computed from the events with the records of the master table.
        Raises `Wrong` if they differ.

        A record that was changed by an event after the last verified one is left out.
        """
        count = 0
        for record in self._source.records(at_least):
            key = (record["collection"], record["id"])
            folded = records.pop(key)
            count += 1
            if record["seq"] > self.through:
                continue  # a later event has changed it
            if folded is None or _as_json(folded) != record:
                raise Wrong(f"the master table has {key} otherwise than the events make it")
        for missing in records:
            if missing.exists:
                raise Wrong(f"the master table lacks {(missing.collection, missing.id)}")
        self.findings.append(f"the master table is the fold of these events: {count} records")


def _as_json(record: Record) -> Any:
    return msgspec.json.decode(msgspec.json.encode(view_of(record)))
