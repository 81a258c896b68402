"""One round of syncing, and how a device heals when histories part.

`Synchroniser.run` pushes and pulls until there is nothing left to do. Each answer is applied in one
local transaction: what the events made, what left the queue, and the cursor move together, so a
kill at any point loses nothing and doubles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import msgspec
from msgspec import UNSET

from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import Conflict, Key, conflict_document, fold
from foldlog.domain.times import format_time, parse_time

from .database import Database, Meta
from .errors import ServerProblem
from .forgetting import Forgetting, without_values
from .queue import Queue, Queued, Sent
from .server import Server
from .snapshots import OtherHistory, SnapshotLoader
from .stream import Page
from .view import View

#: changesets in a request; halved while the server says that it is too much
PUSH_MAX = 200
#: events asked for at once where the server's own choice could be too many
PAGE_AHEAD = 100
#: rounds of one `run`; an end for a server that always says `more`
ROUNDS_MAX = 100_000
#: what is mended so often and still refused cannot be mended
HEALS_MAX = 1_000
#: how long acknowledged changesets are kept for a server that loses them, in ms
KEEP_SENT_MS = 30 * 24 * 3_600_000
#: records that are folded together; of an event that touches more, all of its own
RECORDS_AT_ONCE = 200
#: marks of the way: all of the last so many, and of the rest the ever sparser
MARKS_DENSE = 100
#: further behind than this, a snapshot may be the shorter way
SNAPSHOT_EVENTS_MIN = 2_000


class Outcome(msgspec.Struct):
    """What a run did."""

    pushed: int = 0
    pulled: int = 0
    changed: list[Key] = []
    refused: list[str] = []  #: ids of changesets that were refused or rejected
    conflicts: list[Conflict] = []
    healed: list[str] = []  #: what was mended on the way: codes


class PageResult(Enum):
    """What became of a page of the live channel."""

    APPLIED = "it went on from the cursor, and was applied"
    KNOWN = "the cursor has passed it"
    OVERLAPS = "the cursor has passed a part of it"
    ODD = "only a sync can tell what is the matter"


class _Restored(Exception):
    """An event of this device's own came, and the device does not know what it was."""


class Synchroniser:
    def __init__(
        self,
        database: Database,
        meta: Meta,
        queue: Queue,
        view: View,
        server: Server,
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        report: Callable[[int, int], None] = lambda done, total: None,
    ):
        self._database = database
        self._meta = meta
        self._queue = queue
        self._sent = Sent(database)
        self._view = view
        self._server = server
        self._now_ms = now_ms
        self._new_id = new_id
        self._forgetting = Forgetting(database, meta)
        self._snapshots = SnapshotLoader(
            database, meta, queue, view, server, self._forgetting, report
        )
        self._push_max = PUSH_MAX
        self._may_load_snapshot = True
        self.outcome = Outcome()  #: of `run`, also of what was done before it raised

    def run(self) -> Outcome:
        """Pushes and pulls until nothing is left. Raises `ServerProblem` or `Unreachable`."""
        try:
            return self._run()
        finally:
            self._forgetting.scrub()

    def _run(self) -> Outcome:
        outcome = self.outcome
        self._may_load_snapshot = True
        heals = 0
        for _ in range(ROUNDS_MAX):
            try:
                if self._snapshots.is_under_way:
                    outcome.changed += self._snapshots.go_on()
                if not self._round(outcome):
                    break
            except _Restored:
                self._take_new_device(outcome, "restored")
            except OtherHistory:
                self._go_back(outcome, "log-changed")
            except ServerProblem as exc:
                heals += exc.status != 413  # a batch cannot be halved for ever
                if heals > HEALS_MAX or not self._heal(exc, outcome):
                    raise
        return outcome

    def take(self, page: Page) -> PageResult:
        """Applies a page of the live channel, if it is what a sync would bring.

        Whatever is odd about it is left to a sync, which asks the server and heals.
        """
        try:
            events = [msgspec.convert(event, Event) for event in page.answer["events"]]
            fit = self._fit_of(page, [event.seq for event in events])
            if fit is PageResult.APPLIED:
                answer = {**page.answer, "verdicts": []}
                self._apply(answer, page.after, page.device, self._now_ms(), self.outcome)
                self._forgetting.scrub()
        except (_Restored, OtherHistory, msgspec.ValidationError):
            return PageResult.ODD
        return fit

    def _fit_of(self, page: Page, seqs: list[int]) -> PageResult:
        """The checks that the server makes when a sync asks, and those of what is in between.

        An answer belongs to a request; a page goes on from the page before.
        """
        meta, answer = self._meta, page.answer
        after, through = meta.get("after", 0), answer["through"]
        is_ours = (page.device, answer["log"]) == (meta.get("device"), meta.get("log"))
        is_whole = seqs == list(range(page.after + 1, through + 1))
        is_loading = self._snapshots.is_under_way or self._snapshots.ahead is not None
        if not is_ours or not is_whole or is_loading or page.after > after:
            return PageResult.ODD
        if through <= after:
            return PageResult.KNOWN if self._is_shared(through, answer["mark"]) else PageResult.ODD
        if page.after < after:
            return PageResult.OVERLAPS
        is_next = page.mark == meta.get("mark", "") and answer["head"] >= meta.get("head", 0)
        is_near = answer["head"] - after <= SNAPSHOT_EVENTS_MIN
        return PageResult.APPLIED if is_next and is_near else PageResult.ODD

    def _is_shared(self, seq: int, mark: str) -> bool:
        """Whether this is the mark of our way there, as far as we know."""
        row = self._database.connection.execute(
            "SELECT mark FROM marks WHERE seq = ?", (seq,)
        ).fetchone()
        return row is None or row[0] == mark

    def _round(self, outcome: Outcome) -> bool:
        """One request and its answer. Returns whether there is more to do at once."""
        after, device = self._meta.get("after", 0), self._meta.get("device")
        batch = self._queue.select("waiting", limit=self._push_max)
        sent_at = self._now_ms()
        body: dict[str, Any] = {
            "device": device,
            "sent_at": format_time(sent_at),
            "after": after,
            "mark": self._meta.get("mark", ""),
        }
        ahead = self._snapshots.ahead
        if ahead is not None:
            # No further than the snapshot knew, so that the marks there can be compared.
            body["limit"] = min(PAGE_AHEAD, ahead["seq"] - after)
        if batch:
            body["changesets"] = [queued.on_the_wire() for queued in batch]
        answer = self._server.sync(body)
        if self._goes_by_snapshot(answer["head"] - after):
            with self._database.transaction():
                touched = self._note_verdicts(answer["verdicts"], sent_at, outcome)
                outcome.changed += self._view.refresh(touched)
                self._snapshots.begin()
            return True
        self._apply(answer, after, device, sent_at, outcome)
        outcome.pushed += len(batch)
        self._push_max = min(PUSH_MAX, self._push_max * 2)
        return bool(answer["more"]) or self._queue.count("waiting") > 0

    def _goes_by_snapshot(self, lag: int) -> bool:
        """Asked once a run: whether a snapshot is the shorter way to where the log is."""
        if lag <= SNAPSHOT_EVENTS_MIN or not self._may_load_snapshot:
            return False
        self._may_load_snapshot = False
        try:
            return self._snapshots.is_shorter(self._meta.get("after", 0))
        except ServerProblem:
            return False  # a master table that is behind must not keep us from the events

    def _note_verdicts(
        self, verdicts: list[dict[str, Any]], sent_at: int, outcome: Outcome
    ) -> set[Key]:
        """Keeps what became of each changeset; returns the records that look different for it."""
        keys: set[Key] = set()
        with self._database.transaction():
            for verdict in verdicts:
                queued = self._queue.find(verdict["id"])
                if queued is None or queued.state != "waiting":
                    continue
                if not verdict.get("duplicate"):
                    received_at = parse_time(verdict["received_at"])
                    # By how much this device's clock is off; only to foresee who wins a tie.
                    self._meta.set(server_ms=received_at, skew=received_at - sent_at)
                keys |= self._settle(queued, verdict["verdict"], verdict, outcome)
        return keys

    def _settle(
        self, queued: Queued, verdict: str, told: dict[str, Any], outcome: Outcome
    ) -> set[Key]:
        keys = {op.key for op in queued.ops}
        if verdict == "refused":
            self._queue.set_state(queued.id, "refused", told["seq"], told["refusal"])
            outcome.refused.append(queued.id)
        elif told["seq"] <= self._meta.get("after", 0):
            self._leave(queued, told["seq"])  # the cursor, or a snapshot, has passed it already
        else:
            self._queue.set_state(queued.id, "stored", told["seq"])
        return keys

    def _leave(self, queued: Queued, seq: int) -> None:
        self._sent.keep(queued, seq, self._server_ms())
        self._queue.remove(queued.id)

    def _server_ms(self) -> int:
        """The last time that the server told. A clock of ours that jumps must forget nothing."""
        return int(self._meta.get("server_ms") or self._now_ms())

    def _apply(
        self, answer: dict[str, Any], after: int, device: str, sent_at: int, outcome: Outcome
    ) -> None:
        events = [msgspec.convert(event, Event) for event in answer["events"]]
        page = Outcome()  # nobody is told of what was rolled back
        with self._database.transaction() as db:
            if (self._meta.get("after", 0), self._meta.get("device")) != (after, device):
                return  # another process was quicker; what this brought comes again
            self._snapshots.check_ahead(answer)
            if events:
                self._meta.set(server_ms=parse_time(events[-1].received_at))
            touched = self._note_verdicts(answer["verdicts"], sent_at, page)
            must_reload = self._note_skipped(events, after)
            touched |= self._fold(events, device, page)
            self._send_again_what_is_not_there(answer["through"], answer["head"])
            self._meta.set(
                after=answer["through"],
                mark=answer["mark"],
                head=answer["head"],
                log=answer["log"],
                synced_at=self._now_ms(),
            )
            if answer["through"] > after:
                db.execute(
                    "INSERT OR REPLACE INTO marks (seq, mark) VALUES (?, ?)",
                    (answer["through"], answer["mark"]),
                )
                self._thin_marks()
                self._sent.forget_before(self._server_ms() - KEEP_SENT_MS)
            page.changed = self._view.refresh(touched)
            if must_reload:
                self._snapshots.begin()
        outcome.changed += page.changed
        outcome.refused += page.refused
        outcome.conflicts += page.conflicts
        outcome.pulled += len(events)

    def _note_skipped(self, events: list[Event], after: int) -> bool:
        """Empties the events that are stepped over. Whether one of them is folded already.

        Then the records are loaded anew; should that snapshot be from before it, the event comes
        again, and is known.
        """
        told = [[e.skipped_seq, e.seq] for e in events if e.skipped_seq is not None]
        known: list[list[int]] = self._meta.get("skipped", []) if told else []
        new = [skip for skip in told if skip not in known]
        if new:
            self._meta.set(skipped=[*known, *new])
        return any(seq <= after for seq, _ in new)

    def _send_again_what_is_not_there(self, through: int, head: int) -> None:
        """A server that was restored has something else, or nothing, where it had stored ours.

        Our cursor can be too old to notice.
        """
        lost = [
            queued
            for queued in self._queue.select("stored")
            if queued.seq is not None and not through < queued.seq <= head
        ]
        for queued in lost:
            self._queue.set_state(queued.id, "waiting")
        if lost:
            self._queue.renumber(lost[0].counter or 1)

    def _fold(self, events: list[Event], device: str, outcome: Outcome) -> set[Key]:
        """Folds a page into the confirmed records; own changesets leave the queue."""
        touched: set[Key] = set()
        for event in events:
            if event.erased_key is not None:
                # Before anything is folded: what it takes away need not be made first.
                self._forgetting.forget(event.erased_key, event.seq)
        for event in events:
            if event.kind == "changeset":
                touched |= self._meet_own(event, device, outcome)
        skipped = {seq for seq, _ in self._meta.get("skipped", [])}
        for event in events:
            if event.seq in skipped:
                event.ops = []
        for part, keys in _parts(events):
            records, as_of = self._view.confirmed(keys)
            for event in part:
                # A snapshot's records may be ahead of the cursor: those events are in them already.
                event.ops = [op for op in event.ops if event.seq > as_of.get(op.key, 0)]
                if event.erased_key is not None and event.seq <= as_of.get(event.erased_key, 0):
                    continue
                for conflict in fold(records, event):
                    self._keep_conflict(conflict, outcome)
            self._view.confirm(records.values())
            touched |= keys
        return touched

    def _meet_own(self, event: Event, device: str, outcome: Outcome) -> set[Key]:
        """If a changeset of our queue comes back: it leaves, and gives its operations back.

        Returns the records that look different for it, besides those that the event changes.
        """
        queued = self._queue.find(event.id)
        ops: list[Operation] | None = None if queued is None else list(queued.ops)
        if event.device == device and not event.ops:
            if ops is None:
                ops = self._sent.ops_of(event.id)
            if ops is None and event.verdict == "stored":
                raise _Restored
            erased_there = event.erased or []
            event.ops = [
                without_values(op) if number in erased_there else op
                for number, op in enumerate(ops or [])
            ]
            is_erased = [op.erased is not UNSET for op in event.ops]
            if event.verdict == "stored" and sum(is_erased) > len(erased_there):
                # We have erased what the log has not: a server that has lost the erasure. What
                # stands there only the whole event can tell.
                raise _Restored
        if queued is None:
            return set()
        erased = {op.key for op in event.ops if op.erased is not UNSET}
        if erased:
            queued.ops = [without_values(op) if op.key in erased else op for op in queued.ops]
            self._queue.set_ops(queued)
        if event.verdict == "stored":
            self._leave(queued, event.seq)
            return erased
        if queued.state == "waiting":
            assert event.refusal is not UNSET
            why = msgspec.to_builtins(event.refusal)
            return self._settle(queued, "refused", {"seq": event.seq, "refusal": why}, outcome)
        return set()

    def _keep_conflict(self, conflict: Conflict, outcome: Outcome) -> None:
        """What concerns this device is kept: what its user typed, or what that has beaten."""
        own = {self._meta.get("device"), *self._meta.get("earlier_devices", [])}
        if own.isdisjoint({conflict.lost.device, conflict.won.device}):
            return
        outcome.conflicts.append(conflict)
        with self._database.transaction() as db:
            document = msgspec.json.encode(conflict_document(conflict)).decode()
            db.execute("INSERT INTO conflicts (document) VALUES (?)", (document,))

    def _thin_marks(self) -> None:
        """Of marks that lie far back, ever fewer are kept: one between 2^k and 2^(k+1) ago."""
        with self._database.transaction() as db:
            seqs = [seq for (seq,) in db.execute("SELECT seq FROM marks ORDER BY seq").fetchall()]
            if len(seqs) <= 2 * MARKS_DENSE:
                return
            ages = set()
            # The oldest of each: a younger one would be thrown away before it grows that old.
            for seq in seqs[:-MARKS_DENSE]:
                age = (seqs[-1] - seq).bit_length()
                if age in ages:
                    db.execute("DELETE FROM marks WHERE seq = ?", (seq,))
                ages.add(age)

    # How a device heals. Each way changes local state so that the next round gets further.

    def _heal(self, exc: ServerProblem, outcome: Outcome) -> bool:
        """Mends what the server complained about. Returns False if only time can help."""
        index = exc.document.get("index")
        match exc.problem:
            case "limit-exceeded" if exc.status == 413 and self._push_max > 1:
                waiting = min(self._push_max, self._queue.count("waiting"))
                self._push_max = max(1, waiting // 2)
                return True
            case "limit-exceeded" if exc.status == 413:
                return self._set_aside(0, exc, outcome)
            case "invalid-changeset" | "limit-exceeded" | "id-reused" if isinstance(index, int):
                return self._set_aside(index, exc, outcome)
            case "counter-gap":
                return self._renumber(exc)
            case "device-forked":
                self._take_new_device(outcome, exc.problem)
            case "invalid-request" if self._snapshots.is_resumed:
                self._snapshots.begin()  # its cursor is of another server: from the beginning
            case "log-behind" | "log-changed":
                self._go_back(outcome, exc.problem)
            case "unknown-space" if self._snapshots.is_under_way:
                self._make_space()
            case _:
                return False
        return True

    def _set_aside(self, index: int, exc: ServerProblem, outcome: Outcome) -> bool:
        """Takes a changeset that can never be stored out of the way, for the app to see."""
        batch = self._queue.select("waiting", limit=self._push_max)
        if index >= len(batch):
            return False
        if exc.problem == "id-reused" and any(op.erased is not UNSET for op in batch[index].ops):
            return self._drop_known(batch, index, outcome)
        why = {"code": exc.problem, "detail": str(exc.document.get("detail", ""))}
        with self._database.transaction():
            first = batch[0].counter or 1
            self._queue.set_state(batch[index].id, "rejected", why=why)
            self._queue.renumber(first)
            outcome.refused.append(batch[index].id)
            outcome.changed += self._view.refresh({op.key for op in batch[index].ops})
        return True

    def _drop_known(self, batch: list[Queued], index: int, outcome: Outcome) -> bool:
        """The server has it with the values that we have erased, so it has lost the erasure."""
        with self._database.transaction():
            self._queue.remove(batch[index].id)
            self._queue.renumber(batch[0].counter or 1)
            outcome.changed += self._view.refresh({op.key for op in batch[index].ops})
        return True

    def _renumber(self, exc: ServerProblem) -> bool:
        """Something was lost on the way, though not here: go on from what the server expects."""
        index, expected = exc.document.get("index", 0), exc.document.get("expected")
        batch = self._queue.select("waiting", limit=self._push_max)
        if not isinstance(expected, int) or index >= len(batch):
            return False
        # The server came as far as `index`: those before fit, or are in the log already.
        self._queue.renumber(expected, skip=index)
        return True

    def _take_new_device(self, outcome: Outcome, why: str) -> None:
        """This installation was restored or cloned. Its changesets keep their ids and stay ours."""
        with self._database.transaction():
            earlier = [*self._meta.get("earlier_devices", []), self._meta.get("device")]
            self._meta.set(device=self._new_id(), earlier_devices=earlier)
            self._queue.renumber(1)
            # What the old device had done without seeing each other is now of two devices.
            queue = self._queue.select("waiting", "stored")
            changed = self._view.refresh({op.key for queued in queue for op in queued.ops})
        outcome.changed += changed
        outcome.healed.append(why)

    def _go_back(self, outcome: Outcome, why: str) -> None:
        """The server has lost events that we have seen. We send again what was ours among them."""
        shared = self._last_shared()
        with self._database.transaction() as db:
            lost = self._sent.take_after(shared)
            first = next((queued.counter for queued in lost if queued.counter), None)
            for queued in self._queue.select("stored"):
                self._queue.set_state(queued.id, "waiting")
            self._queue.put_first(lost)
            self._queue.cut_bases(shared)
            if first is not None:
                self._queue.renumber(first)
            db.execute("DELETE FROM marks WHERE seq > ?", (shared,))
            mark = db.execute("SELECT mark FROM marks WHERE seq = ?", (shared,)).fetchone()
            # What is made before the snapshot is there builds on no more than this.
            skipped = [skip for skip in self._meta.get("skipped", []) if skip[1] <= shared]
            self._meta.set(after=shared, mark=mark[0] if mark else "", skipped=skipped)
            self._snapshots.begin()
        outcome.healed.append(why)

    def _make_space(self) -> None:
        """The server has lost all of it. A sync that brings nothing makes the space."""
        device, sent_at = self._meta.get("device"), format_time(self._now_ms())
        self._server.sync({"device": device, "sent_at": sent_at, "after": 0, "mark": ""})

    def _last_shared(self) -> int:
        """The last seq of our way that the server's log shares with us, by its mark."""
        rows = self._database.connection.execute("SELECT seq, mark FROM marks ORDER BY seq")
        trail = rows.fetchall()
        low, high = 0, len(trail)  # what the server shares is a first part of the way
        while low < high:
            middle = (low + high) // 2
            if self._server.shares(*trail[middle]):
                low = middle + 1
            else:
                high = middle
        return int(trail[low - 1][0]) if low else 0


def _parts(events: list[Event]) -> Iterator[tuple[list[Event], set[Key]]]:
    """Events, and the records that they touch: a page can name more than fit into memory."""
    part: list[Event] = []
    keys: set[Key] = set()
    for event in events:
        if part and len(keys.union(event.keys)) > RECORDS_AT_ONCE:
            yield part, keys
            part, keys = [], set()
        part.append(event)
        keys.update(event.keys)
    if part:
        yield part, keys
