"""Verifies a log: its hashes, checkpoints and tiles, and all that is kept beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from foldlog.domain import proofs
from foldlog.domain.audit import MALFORMED_ERRORS, AuditCursor, Evidence, LogAudit, WrongEvent
from foldlog.domain.errors import OperatorError
from foldlog.domain.events import Event, committed, decode_event
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merkle import (
    InvalidProof,
    check_consistency,
    consistency_proof,
    edge_tiles,
)
from foldlog.domain.notes import Checkpoint, InvalidNote, Verifier
from foldlog.domain.times import parse_time
from foldlog.scripts.console import err, spaced

from .checks import Audited, Check
from .claims import Claims, Wrong, checked_checkpoint, read_note
from .disk_backed import disk_backed_seqs
from .sources import Batch, Scope, Source
from .state import read_state, write_state
from .tables import TablesCheck
from .tiles import AnyTilesCheck, Suspect

#: The state file is written after this many events, for a run that is interrupted.
STATE_EVENTS = 100_000
#: A signer signs each second, so an event that stays unsigned for this time is a fault.
UNSIGNED_SECONDS_MAX = 900


class Verification:
    """Verifies the log that `source` reads.

    `first` and `last` are the first and the last seq to verify. By default, all events are
    verified. The method `verify` runs the checks, and raises an error when a check fails. For each
    check that succeeded or was left out, it adds a line of text to `findings`.

    An event after the last checkpoint may be `unsigned_seconds_max` seconds old.

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
        unsigned_seconds_max: float = UNSIGNED_SECONDS_MAX,
    ):
        self._source = source
        self._header = source.header
        self._keys = keys
        self._kept_file = kept_file
        self._state_file = state_file
        self._unsigned_seconds_max = unsigned_seconds_max
        self.through = min(last or self._header.head, self._header.head)
        self._start = self._find_start(first)
        self._is_whole = self._start.seq == 0 and last is None
        self._wants_fold = wants_fold
        self.signed: Checkpoint | None = None
        self.findings: list[str] = []
        #: the mark of the last verified event, and when the first unsigned one was received
        self._mark = ""
        self._unsigned_since: str | None = None

    def verify(self, report: Callable[[int], None]) -> None:
        """Runs all checks. Calls `report` with the last verified seq after each batch of
        events.

        Raises `Wrong` if a checkpoint, a tile or another check differs, and `WrongEvent` if an
        event is invalid.
        """
        claims, covered = self._claims()
        scope = Scope(self.through, self._is_whole, self._wants_fold, covered)
        checks = self._source.checks(scope)
        audit = LogAudit(self._start, new_seqs=disk_backed_seqs)
        claims.compare(audit.seq, audit.root)
        for batch in self._batches(claims):
            self._check_batch(audit, batch, checks, covered)
            claims.compare(audit.seq, audit.root)
            report(audit.seq)
            if audit.seq % STATE_EVENTS < len(batch.events) and claims.contradicted is None:
                self._save_state(audit)
        if audit.seq < self.through:
            raise WrongEvent(audit.seq + 1, f"the events end here, of {self.through}")
        root = audit.root
        if self.through == self._header.head and claims.contradicted is None:
            self._check_erasures(audit)
        self._finish(checks, claims)
        self._prove_remaining(claims, root)
        count = spaced(self.through - self._start.seq)
        self.findings.insert(0, f"{count} events, each with its hashes, to seq {self.through}")
        if self.through == self._header.head:
            self._check_unsigned(audit, covered)
        self._save_state(audit)

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
        head = self._header.head
        try:
            tiles = self._source.tiles(edge_tiles(first - 1), head)
            return AuditCursor.at(first - 1, tiles)
        except InvalidProof as exc:
            raise OperatorError(f"the tiles do not reach seq {first}: {exc}") from exc

    def _save_state(self, audit: LogAudit) -> None:
        if self._state_file is not None:
            write_state(self._state_file, self._header, audit.cursor)

    # -- the claims

    def _claims(self) -> tuple[Claims, int]:
        """Returns the claims of all checkpoints, and the number of events that they cover."""
        claims = Claims()
        self.signed = self._signed_checkpoint()
        covered = 0
        if self.signed is not None:
            claims.add(self.signed, "the signed checkpoint", head=self._header.head)
            covered = self.signed.size
        if self._kept_file is not None:
            kept = self._open(read_note(self._kept_file), "the kept checkpoint")
            claims.add(kept, "the kept checkpoint", head=self._header.head)
            covered = max(covered, kept.size)
            self.findings.append(
                f"begins with the {spaced(kept.size)} events of the kept checkpoint"
            )
        return claims, covered

    def _signed_checkpoint(self) -> Checkpoint | None:
        note = self._source.checkpoint
        if note is None:
            if self._keys and (self._source.may_be_signed or self._kept_file is None):
                raise Wrong(
                    "it is not signed: there is no checkpoint. Give one that you saved with "
                    "--checkpoint FILE"
                )
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
        try:
            keys = self._keys or [Verifier.parse(vkey) for vkey in self._source.vkeys]
        except InvalidNote as exc:
            raise Wrong(f"the keys that come with the log: {exc}") from exc
        if not keys:
            raise OperatorError(f"give the key that signed {name}: --key VKEY")
        # A space of a database may have another name than when it was signed; a file has no more
        # than the name that was signed.
        space = self._header.space if self._source.is_file else None
        return checked_checkpoint(note, keys, name, log=self._header.log, space=space)

    def _check_unsigned(self, audit: LogAudit, covered: int) -> None:
        """Tells how many events follow the last checkpoint. Raises `Wrong` if the first of them is
        older than the limit, because a signer would have signed it."""
        count = self.through - covered
        is_signed_log = bool(covered or self._keys or self._source.vkeys)
        if not count or not is_signed_log:
            return
        since = self._unsigned_since or self._start.received_at
        seconds = time.time() - parse_time(since) / 1000 if since else 0.0
        if seconds > self._unsigned_seconds_max:
            raise Wrong(
                f"{spaced(count)} events after seq {covered} are not signed, the first for "
                f"{spaced(int(seconds))} seconds (allowed: --unsigned-max "
                f"{self._unsigned_seconds_max:g})"
            )
        self.findings.append(f"{spaced(count)} events not signed yet, from seq {covered + 1}")

    # -- the events

    def _batches(self, claims: Claims) -> Iterator[Batch]:
        """Yields the events in batches. If a checkpoint covers the first N events, a batch ends
        after event N.

        The caller then compares the root hash that it has computed from these N events with the
        root hash in the checkpoint.
        """
        seq = self._start.seq
        for batch, tiles, columns in self._source.batches(seq, self.through):
            start = 0
            for size in claims.sizes_between(seq, seq + len(batch)):
                end = size - seq
                yield Batch(batch[start:end], {}, columns[start:end])
                start = end
            yield Batch(batch[start:], tiles, columns[start:])
            seq += len(batch)

    def _check_batch(
        self, audit: LogAudit, batch: Batch, checks: Sequence[Check], covered: int
    ) -> None:
        first = audit.seq + 1
        wants_events = bool(batch.columns) or any(check.wants_events for check in checks)
        try:
            tiles = audit.check(batch.events)
            events = _decoded(first, batch.events) if wants_events else []
            audited = Audited(
                first, audit.seq, events, batch.events, tiles, batch.columns, batch.tiles
            )
            for check in checks:
                check.add(audited)
        except WrongEvent as exc:
            self._explain(exc, first, checks)
        if batch.events:
            self._mark = _mark_of(batch.events[-1])
        if first <= covered + 1 <= audit.seq:
            place = covered + 1 - first
            [event] = _decoded(covered + 1, batch.events[place : place + 1])
            self._unsigned_since = event.received_at

    def _explain(self, exc: WrongEvent, first: int, checks: Sequence[Check]) -> None:
        """Raises the error of the first wrong event: `exc`, or an earlier one that a tile shows."""
        right = Audited(first, exc.seq - 1, [], [], exc.tiles, [], {})
        suspects = []
        for check in checks:
            if isinstance(check, AnyTilesCheck):
                check.add(right)
                check.compare_all()
                if check.suspect is not None and check.suspect.seq < exc.seq:
                    suspects.append(check.suspect)
        if suspects:
            seq, tile = min(suspects)
            raise WrongEvent(
                seq, f"the event and its hash in tile {tile.level}/{tile.number} differ; then {exc}"
            ) from exc
        raise exc

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

    # -- the results

    def _finish(self, checks: Sequence[Check], claims: Claims) -> None:
        """Runs the last part of each check, and raises the first thing that is wrong."""
        for check in checks:
            if isinstance(check, TablesCheck):
                check.set_mark(self._mark)
            self.findings += check.finish()
        suspects = [
            check.suspect
            for check in checks
            if isinstance(check, AnyTilesCheck) and check.suspect is not None
        ]
        suspect = min(suspects, default=None)
        if claims.contradicted is not None:
            raise _contradiction(claims, suspect)
        if suspect is not None:
            raise Wrong(_suspicion(suspect, claims))
        for check in checks:
            if check.wrong is not None:
                raise Wrong(check.wrong)

    def _prove_remaining(self, claims: Claims, root: bytes) -> None:
        """Checks the checkpoints that were not compared while the events were read.

        Such a checkpoint ends before the first event of this run, or after the last one, so this
        run has not computed the root hash at the end of the checkpoint. Instead, a consistency
        proof (RFC 9162) shows that the checkpoint belongs to the same log as the verified events.
        `root` is the root hash at the last event of this run. Raises `Wrong` if a proof fails. For
        an archive, this check is left out, and the method adds a line to `findings` for each
        checkpoint that was not checked.
        """
        for size, claim in claims.remaining():
            if self._source.carries_tiles:
                self.findings.append(f"not compared with {claim.source}, of {spaced(size)} events")
                continue
            (old, old_root), (new, new_root) = sorted([(size, claim.root), (self.through, root)])
            try:
                read = partial(self._source.tiles, size=new)
                proof = consistency_proof(old, new, read)
                check_consistency(old, old_root, new, new_root, proof)
            except InvalidProof as exc:
                raise Wrong(f"{claim.source} of {size} events is not of this log: {exc}") from exc


def _decoded(first: int, events: Sequence[Evidence]) -> list[Event]:
    """Decodes the events. Raises `WrongEvent` at the first one that is unreadable."""
    decoded = []
    for seq, (state, _, _) in enumerate(events, first):
        try:
            decoded.append(decode_event(state))
        except MALFORMED_ERRORS as exc:
            raise WrongEvent(seq, f"it is not readable: {exc}") from exc
    return decoded


def _mark_of(evidence: Evidence) -> str:
    header = proofs.leaf_header_of(evidence.state)
    return proofs.mark_of(header, committed(evidence.state).ops_hash(evidence.salt))


def _contradiction(claims: Claims, suspect: Suspect | None) -> Exception:
    assert claims.contradicted is not None
    size, claim = claims.contradicted
    why = f"the first {size} events have another root than {claim.source} says"
    if suspect is not None and suspect.seq <= size:
        tile = suspect.tile
        return WrongEvent(
            suspect.seq,
            f"it is another event than the one in tile {tile.level}/{tile.number}; {why}",
        )
    after = f"; the first wrong event is after seq {claims.proven}" if claims.proven else ""
    return Wrong(f"{why}{after}. The tiles agree with the events, or there are none")


def _suspicion(suspect: Suspect, claims: Claims) -> str:
    seq, (level, number) = suspect
    if seq <= claims.proven:
        return f"tile {level}/{number} is wrong at seq {seq}; the events are those that were signed"
    return (
        f"seq {seq}: the event and its hash in tile {level}/{number} differ; no checkpoint covers "
        "them, so either may have been changed"
    )
