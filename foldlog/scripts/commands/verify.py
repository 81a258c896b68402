"""`foldlog verify`: is this log what was signed, event by event?"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from foldlog.domain.audit import MALFORMED_ERRORS, AuditCursor, Evidence, LogAudit, WrongEvent
from foldlog.domain.errors import OperatorError
from foldlog.domain.events import decode_event
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Record, fold, view_of
from foldlog.domain.merkle import (
    TILE_WIDTH,
    InvalidProof,
    Tile,
    check_consistency,
    consistency_proof,
    edge_tiles,
    root_of,
)
from foldlog.domain.notes import Checkpoint, InvalidNote, Verifier, log_of, open_checkpoint
from foldlog.infrastructure.embedded.folder import write_new
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import (
    EXIT_NO,
    err,
    progress,
    quiet_logs,
    report_errors,
    spaced,
    with_database,
)
from foldlog.scripts.server.process import tune_gc
from foldlog.scripts.verification.disk_backed import DiskBackedRecords
from foldlog.scripts.verification.sources import (
    Batch,
    DatabaseSource,
    Source,
    file_source,
    service_source,
)

#: how often the state is written, for a verification that is interrupted
STATE_EVENTS = 100_000


class Wrong(Exception):
    """The log is not what it should be."""


class State(msgspec.Struct):
    """What `--state` keeps."""

    space: str
    log: str
    place: AuditCursor


@click.command("verify")
@click.argument("space", required=False)
@click.option("--url", help="Verify a running service, over HTTP.")
@click.option("--token", envvar="FOLDLOG_TOKEN", help="An auditor's. [env: FOLDLOG_TOKEN]")
@click.option("--file", help="Verify an archive or an export, without any service.")
@click.option("--key", "keys", multiple=True, metavar="VKEY", help="Whose signature counts.")
@click.option("--checkpoint", metavar="FILE", help="A checkpoint that you kept.")
@click.option("--save", metavar="FILE", help="Keep the checkpoint that was verified.")
@click.option("--state", metavar="FILE", help="Go on where the last run came to, and note it.")
@click.option("--from", "first", type=click.IntRange(min=1), help="First seq to look at.")
@click.option("--to", "last", type=click.IntRange(min=1), help="Last seq. [default: the head]")
@click.option("--fold/--no-fold", default=True, help="Compare the master table with the fold.")
@with_database
@report_errors
def verify_command(
    space: str | None,
    url: str | None,
    token: str | None,
    file: str | None,
    keys: tuple[str, ...],
    checkpoint: str | None,
    save: str | None,
    state: str | None,
    first: int | None,
    last: int | None,
    fold: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Verify the log of SPACE: every hash, every hole, every time, up to the signed root.

    From the database (--data, --database-url), a running service (--url) or a file (--file). It is
    compared with its checkpoint, with the one that you kept (--checkpoint), with the tiles, and the
    master table with the fold of the events.

    A run over all events believes nothing. With --from, the events before are believed to be those
    of the tiles, which the signed root then proves; with --state, to be those of the last run.

    Exit code 1 if something is wrong: what, and the first seq at which it is.
    """
    if (space is None) == (file is None) or (url and file):
        raise click.UsageError("name a SPACE (of the database, or of --url), or a --file")
    quiet_logs()
    tune_gc()
    given = [_verifier(text) for text in keys]
    with _source(space, url, token, file, data, database_url) as source:
        run = Run(source, given, checkpoint, state, first, last, fold)
        try:
            with progress(f"verifying {source.header.space}", run.through) as report:
                run.verify(report)
        except (Wrong, WrongEvent) as exc:
            err.print(f"[red]wrong:[/red] {exc}", soft_wrap=True, highlight=False, markup=True)
            sys.exit(EXIT_NO)
        if save is not None and run.signed is not None:
            assert source.checkpoint is not None
            write_new(Path(save), source.checkpoint.decode(), 0o644)
        for line in run.findings:
            click.echo(line)


@contextmanager
def _source(
    space: str | None,
    url: str | None,
    token: str | None,
    file: str | None,
    data: str | None,
    database_url: str | None,
) -> Iterator[Source]:
    if file is not None:
        with file_source(file) as source:
            yield source
        return
    assert space is not None
    if url is not None:
        with service_source(url, space, token) as source:
            yield source
        return
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        yield DatabaseSource(parts, space)


def _verifier(text: str) -> Verifier:
    try:
        return Verifier.parse(text)
    except InvalidNote as exc:
        raise click.UsageError(str(exc)) from exc


class Folded:
    """The records that events make, in one pass over them, from the first on."""

    def __init__(self, skipped: Container[int] = ()):
        self._skipped = skipped
        self._seq = 0
        self.records = DiskBackedRecords()
        self.to_skip: set[int] = set()  #: because an event says so
        self.failed: WrongEvent | None = None  #: where it came to an end

    def add(self, events: Iterable[Evidence]) -> None:
        """The next ones. What cannot be folded may turn out to be skipped: see `failed`."""
        for state, _, _ in events:
            self._seq += 1
            try:
                event = decode_event(state)
                if event.skipped_seq is not None:
                    self.to_skip.add(event.skipped_seq)
                if self.failed is None and self._seq not in self._skipped:
                    fold(self.records, event)
            except MALFORMED_ERRORS as exc:
                self.failed = self.failed or WrongEvent(self._seq, f"it cannot be folded: {exc}")


class Run:
    """One verification. `verify` raises `Wrong` or `WrongEvent`, or fills `findings`."""

    def __init__(
        self,
        source: Source,
        keys: list[Verifier],
        kept: str | None,
        state: str | None,
        first: int | None,
        last: int | None,
        wants_fold: bool,
    ):
        self._source = source
        self._header = source.header
        self._keys = keys
        self._kept_file = kept
        self._state = None if state is None else Path(state)
        self.through = min(last or self._header.head, self._header.head)
        self._start = self._place(first)
        is_whole = self._start.seq == 0 and last is None
        self._wants_fold = wants_fold and is_whole and source.has_records
        self.signed: Checkpoint | None = None
        self.findings: list[str] = []
        self._grown: dict[Tile, bytes] = {}  #: of an archive, what it has not shown us yet

    def verify(self, report: Any) -> None:
        self.signed = self._signed()
        kept = self._kept()
        audit = LogAudit(self._start)
        #: what should come out, at which size, and who says so
        claims: dict[int, list[tuple[bytes, str]]] = {}
        for claim, who in ((self.signed, "the signed checkpoint"), (kept, "the kept checkpoint")):
            if claim is None:
                continue
            if claim.size > self._header.head:
                raise Wrong(f"the log ends at seq {self._header.head}; {who} has {claim.size}")
            claims.setdefault(claim.size, []).append((claim.root, who))
        folded = Folded()
        self._compare(audit, claims)
        for batch in self._pieces(claims):
            self._check(audit, batch)
            self._compare(audit, claims)
            if self._wants_fold:
                folded.add(batch.events)
            report(audit.seq)
            if self._state is not None and audit.seq % STATE_EVENTS < len(batch.events):
                self._note(audit)
        if audit.seq < self.through:
            raise WrongEvent(audit.seq + 1, f"the events end here, of {self.through}")
        self._compare_tiles(audit)
        self._prove_earlier(audit, claims)
        count = spaced(audit.seq - self._start.seq)
        self.findings.insert(0, f"{count} events, each with its hashes, to seq {audit.seq}")
        if self.through == self._header.head:
            self._settle(audit)
        if self._state is not None:
            self._note(audit)
        if self._wants_fold:
            self._compare_fold(self._without_skipped(folded, audit), at_least=audit.seq)

    # -- where to begin

    def _place(self, first: int | None) -> AuditCursor:
        if self._state is not None and self._state.exists():
            try:
                state = msgspec.json.decode(self._state.read_bytes(), type=State)
            except msgspec.MsgspecError as exc:
                raise OperatorError(f"{self._state} is no state of a verification: {exc}") from exc
            if (state.space, state.log) != (self._header.space, self._header.log):
                raise OperatorError(f"{self._state} is of another log: {state.space} {state.log}")
            if first is not None:
                raise OperatorError("--from and --state are two places to begin at")
            return state.place
        if first is None or first == 1:
            return AuditCursor()
        try:
            return AuditCursor.at(first - 1, self._source.tiles(edge_tiles(first - 1)))
        except InvalidProof as exc:
            raise OperatorError(f"the tiles do not reach to seq {first}: {exc}") from exc

    def _note(self, audit: LogAudit) -> None:
        assert self._state is not None
        state = State(self._header.space, self._header.log, audit.cursor)
        write_new(self._state, msgspec.json.encode(state).decode(), 0o644)

    # -- what is claimed

    def _signed(self) -> Checkpoint | None:
        note = self._source.checkpoint
        if note is None:
            if self._keys and self._source.may_be_signed:
                raise Wrong("it is not signed: there is no checkpoint")
            self.findings.append("not signed: there is no checkpoint")
            return None
        keys = self._keys
        if not keys:
            keys = [Verifier.parse(vkey) for vkey in self._source.vkeys]
            err.print(
                "[yellow]no --key given:[/yellow] the signature is checked with the keys that come "
                "with the log, which proves little"
            )
        checkpoint = self._opened(note, keys, "the checkpoint")
        self.findings.append(f"signed by {checkpoint.origin} at {spaced(checkpoint.size)} events")
        return checkpoint

    def _kept(self) -> Checkpoint | None:
        if self._kept_file is None:
            return None
        note = Path(self._kept_file).read_bytes()
        keys = self._keys or [Verifier.parse(vkey) for vkey in self._source.vkeys]
        kept = self._opened(note, keys, "the kept checkpoint")
        self.findings.append(f"begins with the {spaced(kept.size)} events of the kept checkpoint")
        return kept

    def _opened(self, note: bytes, keys: list[Verifier], what: str) -> Checkpoint:
        try:
            checkpoint, _ = open_checkpoint(note, keys)
        except InvalidNote as exc:
            raise Wrong(f"{what}: {exc}") from exc
        if log_of(checkpoint.origin) != self._header.log:
            raise Wrong(f"{what} is of the log {checkpoint.origin}, not of {self._header.log}")
        return checkpoint

    # -- what comes out

    def _pieces(self, claims: Mapping[int, Any]) -> Iterator[Batch]:
        """The batches, cut where a root is claimed."""
        seq = self._start.seq
        for batch, tiles in self._source.batches(seq, self.through):
            cuts = sorted(size - seq for size in claims if seq < size < seq + len(batch))
            start = 0
            for cut in [*cuts, len(batch)]:
                yield Batch(batch[start:cut], tiles if cut == len(batch) else {})
                start = cut
            seq += len(batch)

    def _check(self, audit: LogAudit, batch: Batch) -> None:
        changed = audit.check(batch.events)
        if not self._source.carries_tiles:
            return
        self._grown |= changed
        for tile, hashes in batch.tiles.items():
            is_known = tile in self._grown and len(self._grown[tile]) == len(hashes)
            if is_known and self._grown.pop(tile) != hashes:
                first = tile.number * TILE_WIDTH ** (tile.level + 1) + 1
                raise Wrong(f"tile {tile.level}/{tile.number}, from seq {first}, is another one")

    def _settle(self, audit: LogAudit) -> None:
        """What was erased while the log was read, an event after its end says."""
        if not audit.is_settled:
            for batch in self._source.batches(audit.seq, INTEGER_MAX):
                audit.check(batch.events)
                if audit.is_settled:
                    break
        audit.check_erasures()

    def _compare(self, audit: LogAudit, claims: dict[int, list[tuple[bytes, str]]]) -> None:
        for root, who in claims.pop(audit.seq, ()):
            if audit.root != root:
                raise Wrong(f"the first {audit.seq} events have another root than {who} says")

    def _compare_tiles(self, audit: LogAudit) -> None:
        """The tree as it is claimed to be is the one that came out."""
        if self._source.carries_tiles:
            if self._grown and audit.seq == self._header.head:
                level, number = min(self._grown)
                raise Wrong(f"tile {level}/{number} is missing, or of another size")
        else:
            try:
                root = root_of(audit.seq, self._source.tiles)
            except InvalidProof:
                self.findings.append("there are no tiles, or they have not come so far yet")
                return
            if root != audit.root:
                raise Wrong(f"the tiles have another root at {audit.seq}: foldlog rebuild")
        self.findings.append("the tiles are of these events")

    def _prove_earlier(self, audit: LogAudit, claims: dict[int, list[tuple[bytes, str]]]) -> None:
        """Claims of sizes before the first event that was looked at, or after the last."""
        for size, roots in claims.items():
            for root, who in roots:
                if self._source.carries_tiles:
                    self.findings.append(f"not compared with {who}, of {spaced(size)} events")
                    continue
                old, new = min(size, audit.seq), max(size, audit.seq)
                old_root, new_root = (root, audit.root) if size == old else (audit.root, root)
                try:
                    proof = consistency_proof(old, new, self._source.tiles)
                    check_consistency(old, old_root, new, new_root, proof)
                except InvalidProof as exc:
                    raise Wrong(f"{who} of {size} events is not of this log: {exc}") from exc

    def _without_skipped(self, folded: Folded, audit: LogAudit) -> DiskBackedRecords:
        """Raises `WrongEvent` if an event cannot be folded that is not skipped."""
        if folded.to_skip:
            seqs = sorted(folded.to_skip)
            self.findings.append(f"stepped over, as an event says: seq {', '.join(map(str, seqs))}")
            # What was folded before that event came is folded anew, which is seldom needed; and
            # looked at anew, for these are what the source says now.
            folded, again = Folded(folded.to_skip), LogAudit()
            for batch in self._source.batches(0, self.through):
                again.check(batch.events)
                folded.add(batch.events)
            if again.root != audit.root:
                raise Wrong("the events were others when they were asked for again")
        if folded.failed is not None:
            raise folded.failed
        return folded.records

    def _compare_fold(self, records: DiskBackedRecords, at_least: int) -> None:
        """Each record of the master table that has not moved since is what the events make."""
        count = 0
        for record in self._source.records(at_least):
            key = (record["collection"], record["id"])
            ours = records.pop(key)
            count += 1
            if record["seq"] > self.through:
                continue  # it has moved since
            if ours is None or _as_told(ours) != record:
                raise Wrong(f"the master table has {key} otherwise than the events make it")
        for left in records:
            if left.exists:
                raise Wrong(f"the master table lacks {(left.collection, left.id)}")
        self.findings.append(f"the master table is the fold of these events: {count} records")


def _as_told(record: Record) -> Any:
    return msgspec.json.decode(msgspec.json.encode(view_of(record)))
