"""The decision of a push: every answer, in order of precedence, and the traces of a refusal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from foldlog.domain.changesets import Changeset, Push
from foldlog.domain.errors import (
    CounterGap,
    DeviceForked,
    FoldlogError,
    IdReused,
    LimitExceeded,
    LogBehind,
    LogChanged,
)
from foldlog.domain.events import LogEntry, decode_event
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.lookups import Lookups, keys_to_load
from foldlog.domain.merge import Key, Record, fold
from foldlog.domain.push_decider import Answer, PushDecider, check_cursor, time_of
from foldlog.domain.space_state import SpaceState
from tests.helpers import NOW, A, B, C, add, changeset, delete, new_id, push_of, put

Json = dict[str, Any]
NOW_MS = 1795424400000


class Log:
    """The log of a space, in a minimal infrastructure."""

    def __init__(self, *pushes: Push):
        self.entries: list[LogEntry] = []
        self.records: dict[Key, Record] = {}
        self.counters: dict[str, int] = {}
        for push in pushes:
            self.push(push)

    def lock(
        self, *pushes: Push, received_at: int = NOW_MS, limits: Limits = LIMITS
    ) -> PushDecider:
        """Returns a decider with the data that these pushes need."""
        ids = {c.id for push in pushes for c in push.changesets}
        afters = {push.after for push in pushes if push.after is not None}
        counters = {p.device: self.counters[p.device] for p in pushes if p.device in self.counters}
        return PushDecider(
            SpaceState("log", len(self.entries), counters=counters),
            Lookups(
                known={e.event_id: e.state for e in self.entries if e.event_id in ids},
                records={
                    key: self.records.get(key) or Record(*key) for key in keys_to_load(pushes, {})
                },
                marks={after: self.mark(after) for after in afters if after <= len(self.entries)},
            ),
            now_ms=received_at,
            salt=lambda: bytes(32),
            limits=limits,
        )

    def mark(self, seq: int) -> str:
        return self.entries[seq - 1].mark if seq else ""

    def push(self, push: Push, **members: Any) -> list[Answer]:
        decider = self.lock(push, **members)
        answers = decider.take(push)
        self.commit(decider)
        return answers

    def commit(self, decider: PushDecider) -> None:
        self.entries += decider.entries
        self.counters |= decider.counters
        for entry in decider.entries:
            fold(self.records, decode_event(entry.state))
        assert [entry.seq for entry in self.entries] == list(range(1, decider.head + 1))

    def refuses(self, push: Push, error: type[FoldlogError], **members: Any) -> Json:
        """Checks that the push is refused and changes nothing. Returns the members of the
        refusal.
        """
        decider = self.lock(push, **members)
        with pytest.raises(error) as refused:
            decider.take(push)
        assert (decider.entries, decider.counters, decider.head) == ([], {}, len(self.entries))
        return refused.value.extra


def counted(counter: int, *ops: Json, **members: Any) -> Json:
    return changeset(*ops, counter=counter, **members)


def verdicts(answers: list[Answer]) -> list[tuple[int, str, bool]]:
    return [(answer.seq, answer.verdict, answer.duplicate) for answer in answers]


def details(answers: list[Answer]) -> list[str | None]:
    return [answer.refusal.detail if answer.refusal else None for answer in answers]


# -- Stored ------------------------------------------------------------------------------------


def test_new_changesets_are_stored_in_the_order_of_the_push():
    """One event each, numbered after the head, with the members from the sender and from the
    server.
    """
    log = Log(push_of(changeset()))
    sent = [counted(1, base=1), counted(2, add(n=1), delete("s", "notes"))]
    answers = log.push(push_of(*sent), received_at=NOW_MS + 5)

    assert verdicts(answers) == [(2, "stored", False), (3, "stored", False)]
    assert [answer.id for answer in answers] == [c["id"] for c in sent]
    assert {answer.received_at for answer in answers} == {"2026-11-23T09:00:00.005Z"}
    entry, event = log.entries[2], decode_event(log.entries[2].state)
    assert (entry.device, entry.event_id, entry.kind) == (A, sent[1]["id"], "changeset")
    assert entry.collections == ["notes", "tasks"]
    assert (event.counter, event.base, event.time) == (2, 0, answers[1].time)
    assert [op.op for op in event.ops] == ["add", "delete"]


def test_an_answer_names_the_ids_of_local_ids():
    """A duplicate gets them too, because the first answer may be lost."""
    push = push_of(changeset({"op": "put", "collection": "tasks", "local_id": "7"}))
    log = Log()
    first, again = log.push(push), log.push(push)
    id = push.changesets[0].ops[0].id
    assert first[0].ids == again[0].ids == {"tasks": {"7": id}}
    assert not Log().push(push_of(changeset()))[0].ids


def test_an_empty_push_is_answered_with_nothing():
    """A device may come only to pull."""
    log = Log()
    assert log.push(push_of()) == []
    assert log.counters == {}


@pytest.mark.parametrize(
    ("made_at", "sent_at", "received_at", "time"),
    [
        (100, 100, 100, 100),
        (90, 100, 100, 90),
        (90, 100, 150, 140),  # the device's clock is slow
        (90, 100, 50, 40),  # ... fast
        (110, 100, 100, 100),  # made after it was sent: never in the future
        (0, 100, 50, 0),  # never before 1970
        (-(10**12), 100, 100, 0),
        (10**12, -(10**12), 100, 100),
    ],
)
def test_time(made_at, sent_at, received_at, time):
    """The time of the change by the server's clock: max(0, min(received, made + offset))."""
    assert time_of(made_at, sent_at, received_at) == time


def test_the_time_of_an_event_is_computed_from_its_push():
    """The device's clock was an hour slow at sending, so it was an hour slow at the change too."""
    push = push_of(changeset(made_at="2026-11-23T07:59:00Z"), sent_at=NOW - timedelta(hours=1))
    [answer] = Log().push(push)
    assert answer.time == NOW_MS - 60_000


# -- Duplicates --------------------------------------------------------------------------------


def test_a_duplicate_is_answered_as_the_first_time():
    """The same seq, times and verdict at any time. The changeset is stored once."""
    push = push_of(counted(1), counted(2))
    log = Log()
    first = log.push(push)
    again = log.push(push, received_at=NOW_MS + 10_000)

    assert verdicts(again) == [(1, "stored", True), (2, "stored", True)]
    for one, other in zip(first, again, strict=True):
        other.duplicate = False
        assert one == other
    assert len(log.entries) == 2


def test_a_refused_one_stays_refused():
    """Its guard would hold now, but its answer is part of the log."""
    late = changeset({**put("s"), "if_seq": 2})
    log = Log(push_of(changeset()))
    [first] = log.push(push_of(late))
    log.push(push_of(changeset(put("s"))))
    [again] = log.push(push_of(late))
    assert verdicts([first, again]) == [(2, "refused", False), (2, "refused", True)]
    assert first.refusal == again.refusal
    assert (first.records, [r.seq for r in again.records]) == ([], [3])


def test_duplicates_neither_check_nor_use_counters():
    """A retry overlaps with stored changesets. The new ones continue from the device's last
    counter.
    """
    one, two, three = counted(1), counted(2), counted(3)
    log = Log(push_of(one, two))
    again = {**one, "counter": 99}
    assert verdicts(log.push(push_of(two, again, three))) == [
        (2, "stored", True),
        (1, "stored", True),
        (3, "stored", False),
    ]
    assert log.counters == {A: 3}


def test_duplicates_do_not_check_the_base():
    """The base may change when a device heals."""
    one = changeset()
    log = Log(push_of(one))
    assert verdicts(log.push(push_of({**one, "base": 99}))) == [(1, "stored", True)]


def test_twice_in_one_push():
    """The second is a duplicate of the first, which is still to be stored."""
    one = counted(1)
    assert verdicts(Log().push(push_of(one, one, counted(2)))) == [
        (1, "stored", False),
        (1, "stored", True),
        (2, "stored", False),
    ]


def test_twice_in_two_pushes_that_are_committed_together():
    """A client timed out and sent again. Both requests wait for the same commit."""
    push = push_of(counted(1))
    decider = Log().lock(push, push)
    assert verdicts(decider.take(push) + decider.take(push)) == [
        (1, "stored", False),
        (1, "stored", True),
    ]
    assert len(decider.entries) == 1


def test_from_another_device_it_is_still_the_same():
    """A healed device has a new id, and its changesets keep their ids and their first device."""
    one = counted(1)
    log = Log(push_of(one, device=A))
    assert verdicts(log.push(push_of({**one, "counter": 5}, device=B))) == [(1, "stored", True)]
    assert log.counters == {A: 1}


ID = new_id()
LOCAL = {"op": "put", "collection": "tasks", "local_id": "7", "fields": {"n": 1}}


@pytest.mark.parametrize(
    ("first", "again", "is_same"),
    [
        (changeset(put(n=1), id=ID), changeset(put(n=1.0), id=ID), True),
        (changeset(put(n=1), id=ID), changeset(put(n=True), id=ID), False),
        (changeset(put(n=None), id=ID), changeset(put(), id=ID), False),
        (changeset(put(a=1, b=2), id=ID), changeset(put(b=2, a=1), id=ID), True),
        (changeset(LOCAL, id=ID), changeset(LOCAL, id=ID), True),
        (changeset(id=ID), changeset(id=ID, guard="unchanged"), False),
        (changeset(id=ID), changeset(id=ID, made_at="2026-11-24T09:00:00Z"), True),
    ],
    ids=["1.0", "true", "null", "order", "local_id", "guard", "made_at"],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_same_id_needs_the_same_content(first, again, is_same, together):
    """The values are compared with the stored ones, or with those earlier in the push."""
    log = Log()
    sent = [changeset(), first]
    if not together:
        log.push(push_of(*sent))
        sent = [changeset()]
    push = push_of(*sent, again)
    if is_same:
        assert verdicts(log.push(push))[-1] == (2, "stored", True)
    else:
        assert log.refuses(push, IdReused) == {"index": len(sent), "id": ID}


def test_a_local_id_may_come_again_as_the_id():
    """The answer named the id, which the device may use from then on."""
    first = push_of(changeset(LOCAL, id=ID))
    op = {**LOCAL, "id": first.changesets[0].ops[0].id}
    del op["local_id"]
    assert verdicts(Log(first).push(push_of(changeset(op, id=ID), device=B))) == [
        (1, "stored", True)
    ]


def test_an_erased_one_is_compared_by_id_alone():
    """The log keeps no digest of its content."""
    log = Log(push_of(changeset(put(secret=1), id=ID)))
    state = log.entries[0].state.replace(b'"fields":{"secret":1}', b'"erased":"00"')
    decider = PushDecider(
        SpaceState("log", 1), Lookups(known={ID: state}), now_ms=NOW_MS, salt=lambda: bytes(32)
    )
    push = push_of(changeset(put(secret=2), id=ID))
    assert verdicts(decider.take(push)) == [(1, "stored", True)]


# -- Counters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [0, 1, 3])
@pytest.mark.parametrize("sent", range(1, 6))
def test_a_counter_follows_the_last_one(stored, sent):
    """The next counter is exactly one higher. The refusal names the expected one."""
    log = Log(*(push_of(counted(n)) for n in range(1, stored + 1)))
    push = push_of(counted(sent))
    expected = {"index": 0, "counter": sent, "expected": stored + 1}
    if sent == stored + 1:
        log.push(push)
        assert log.counters == {A: sent}
    else:
        assert log.refuses(push, DeviceForked if sent <= stored else CounterGap) == expected


@pytest.mark.parametrize(
    ("counters", "error", "expected"),
    [
        ([1, 3], CounterGap, {"index": 1, "counter": 3, "expected": 2}),
        ([1, 2, 2], DeviceForked, {"index": 2, "counter": 2, "expected": 3}),
        ([2, 1], CounterGap, {"index": 0, "counter": 2, "expected": 1}),
        ([1, 2, 1], DeviceForked, {"index": 2, "counter": 1, "expected": 3}),
    ],
    ids=str,
)
def test_counters_follow_inside_a_push(counters, error, expected):
    """The refusal names the first wrong one, and the whole push is left out."""
    assert Log().refuses(push_of(*map(counted, counters)), error) == expected


def test_who_cannot_count_has_its_ids_alone():
    """A changeset without a counter leaves the device's counter as it is."""
    log = Log(push_of(changeset(), counted(1), changeset(), counted(2)))
    assert log.counters == {A: 2}
    assert "counter" not in log.entries[0].state.decode()


def test_each_device_counts_for_itself():
    """Also if their pushes are committed together."""
    pushes = [push_of(counted(1), device=A), push_of(counted(1), device=B)]
    pushes += [push_of(counted(2), device=A)]
    log = Log()
    decider = log.lock(*pushes)
    for push in pushes:
        decider.take(push)
    log.commit(decider)
    assert log.counters == {A: 2, B: 1}


def test_a_refused_changeset_uses_its_counter_and_does_not_block_the_queue():
    """The device continues with its next changeset."""
    log = Log(push_of(changeset(), device=B))
    answers = log.push(push_of(counted(1), counted(2, guard="unchanged"), counted(3)))
    assert verdicts(answers) == [
        (2, "stored", False),
        (3, "refused", False),
        (4, "stored", False),
    ]
    assert log.counters[A] == 3
    assert log.records["tasks", "r"].touched_by_other(B) == 4  # the refused one has left it


# -- The cursor and the base -------------------------------------------------------------------


def test_a_base_beyond_the_head_is_of_another_log():
    """The server was restored from a backup. A base at the head is normal for a device that is
    up to date. The events of the push itself are still unknown to the device.
    """
    log = Log(push_of(changeset()))
    behind = {"log": "log", "head": 1}
    log.refuses(push_of(changeset(), changeset(base=2)), LogBehind)
    assert log.refuses(push_of(changeset(base=2)), LogBehind) == {"index": 0, **behind}
    log.push(push_of(changeset(base=1)))


def test_a_base_within_the_group_is_of_another_log():
    """Pushes that are committed together get their seqs together, so no device can have seen one of
    them. A base that names one comes from another history."""
    log = Log(push_of(changeset()))
    one, other = push_of(changeset(base=1), device=A), push_of(changeset(base=2), device=B)
    decider = log.lock(one, other)
    decider.take(one)
    with pytest.raises(LogBehind) as refused:
        decider.take(other)
    assert refused.value.extra == {"index": 0, "log": "log", "head": 1}
    assert (len(decider.entries), decider.head) == (1, 2)


def test_the_cursor():
    """Every `after` on a log of two events: without a mark, with the right mark and with
    another.
    """
    log = Log(push_of(changeset(), changeset()))
    for after in range(2):
        for mark in (None, log.mark(after)):
            log.push(push_of(after=after, mark=mark))
        for mark in ("0" * 16, log.mark(after + 1)):
            push = push_of(changeset(), after=after, mark=mark)
            assert log.refuses(push, LogChanged) == {"log": "log", "head": 2}
    for mark in (None, "", "0" * 16):
        push = push_of(changeset(), after=3, mark=mark)
        assert log.refuses(push, LogBehind) == {"log": "log", "head": 2}


def test_a_reader_is_checked_in_the_same_way():
    """A cursor at the head is accepted, and beyond it refused. The mark must be the log's own."""
    check_cursor("log", 2, 2, None, "22")
    check_cursor("log", 2, 2, "22", "22")
    check_cursor("log", 2, 0, "", "")
    with pytest.raises(LogBehind):
        check_cursor("log", 2, 3, None, None)
    with pytest.raises(LogBehind):
        check_cursor("log", 2, 3, "33", None)
    with pytest.raises(LogChanged):
        check_cursor("log", 2, 2, "", "22")
    with pytest.raises(LogChanged):
        check_cursor("log", 2, 1, "22", "11")


# -- Precedence --------------------------------------------------------------------------------


def test_the_order_of_precedence():
    """A push with every fault is refused for one after another, as each is corrected: first the
    cursor, then for each changeset the id, the base and the counter.
    """
    log = Log(push_of(counted(1, id=ID)))

    reused = changeset(put(other=1), id=ID, base=9, counter=9)
    late = counted(9, base=9)
    stale = {"guard": "unchanged", "base": 0}
    log.push(push_of(changeset(), device=B))

    log.refuses(push_of(reused, late, after=9, mark="x"), LogBehind)
    log.refuses(push_of(reused, late, after=1, mark="x"), LogChanged)
    log.refuses(push_of(reused, late, after=1), IdReused)
    assert log.refuses(push_of(late, reused), LogBehind)["index"] == 0
    log.refuses(push_of({**late, "base": 2}), CounterGap)
    log.refuses(push_of({**late, "base": 2, "counter": 1}), DeviceForked)
    assert log.refuses(push_of({**late, "base": 2}, reused), CounterGap)["index"] == 0
    log.refuses(push_of({**late, **stale}), CounterGap)
    log.refuses(push_of({**late, **stale, "counter": 2}, counted(4)), CounterGap)
    assert verdicts(log.push(push_of({**late, **stale, "counter": 2}))) == [(3, "refused", False)]


def test_a_push_that_fails_takes_no_other_along():
    """Of two pushes in one transaction, the second fails at its last changeset. The first is
    stored, and the next push is decided as if the second were absent.
    """
    good, bad = push_of(counted(1), device=A), push_of(counted(1), counted(3), device=B)
    next_one = push_of(counted(1), counted(2, {**put("r"), "if_seq": 1}), device=B)
    log = Log()
    decider = log.lock(good, bad, next_one)
    decider.take(good)
    with pytest.raises(CounterGap):
        decider.take(bad)
    assert verdicts(decider.take(next_one)) == [(2, "stored", False), (3, "stored", False)]
    log.commit(decider)
    assert log.counters == {A: 1, B: 2}


def test_a_push_that_fails_late_leaves_no_trace():
    """The size of the last event is known only after earlier changesets were decided. Their ids,
    counters and records are then as before the push.
    """
    small = Limits(event_bytes_max=1_000)
    first, huge = counted(1, put(a=1)), counted(2, put(a="x" * 1_000))
    bad = push_of(first, huge)
    good = push_of(counted(1, {**put(a=2), "expect": None}, id=first["id"]))
    log = Log()
    decider = log.lock(bad, good, limits=small)
    with pytest.raises(LimitExceeded) as refused:
        decider.take(bad)
    assert refused.value.extra == {"limit": "event_bytes_max", "value": 1_000, "index": 1}
    assert (decider.entries, decider.counters, decider.head) == ([], {}, 0)
    assert verdicts(decider.take(good)) == [(1, "stored", False)]


def test_an_event_may_have_exactly_the_size_of_the_limit():
    push = push_of(counted(1))
    size = len(Log(push).entries[0].state)
    assert verdicts(Log().push(push, limits=Limits(event_bytes_max=size))) == [(1, "stored", False)]
    Log().refuses(push, LimitExceeded, limits=Limits(event_bytes_max=size - 1))


def test_repeated_events_are_decoded_until_their_bytes_reach_the_limit():
    """The event that reaches the limit is the last one that is decoded."""
    first, second = counted(1, id=ID), counted(2)
    log = Log(push_of(first, second))
    size = len(log.entries[0].state)
    both = push_of(first, second)
    log.refuses(both, LimitExceeded, limits=Limits(looked_up_bytes_max=size))
    answers = log.push(both, limits=Limits(looked_up_bytes_max=size + 1))
    assert verdicts(answers) == [(1, "stored", True), (2, "stored", True)]


# -- Guards ------------------------------------------------------------------------------------


def stale_at(log: Log, sent: Json, *, device: str = A) -> str | None:
    """Returns the reason why a changeset is refused, or None. The log stays as it is."""
    push = push_of(sent, device=device)
    return details(log.lock(push).take(push))[0]


@pytest.mark.parametrize("base", range(4))
@pytest.mark.parametrize("device", [A, B, C])
def test_unchanged(device, base):
    """The guard holds if other devices left its records alone after its base. Lost operations
    count.
    """
    log = Log(
        push_of(changeset(put(a=1), made_at="2026-11-23T09:00:00Z"), device=A),
        push_of(changeset(put(a=2), made_at="2026-11-22T09:00:00Z"), device=B),  # loses
        push_of(changeset(put("s")), device=C),
    )
    assert log.records["tasks", "r"].fields == {"a": 1}

    others = [seq for seq, by in ((1, A), (2, B)) if by != device]
    why = stale_at(log, changeset(put(), base=base, guard="unchanged"), device=device)
    assert (why is None) == (base >= max(others))
    both = changeset(put("new"), put(), base=base, guard="unchanged")
    assert (stale_at(log, both, device=device) is None) == (base >= max(others))


def test_unchanged_is_not_broken_by_what_was_refused():
    """A refused changeset leaves all records as they are."""
    log = Log(push_of(changeset(put(a=1)), device=A))
    log.push(push_of(changeset({**put(a=2), "if_seq": 9}, base=1), device=B))
    assert stale_at(log, changeset(put(), base=1, guard="unchanged"), device=C) is None


GONE = [changeset(put(a=1, b=None)), changeset(delete())]


@pytest.mark.parametrize(
    ("before", "guard", "why"),
    [
        ([], {"if_seq": 0}, None),
        ([], {"if_seq": 1}, "tasks/r: it never existed: its seq is 0, not 1"),
        (GONE[:1], {"if_seq": 1}, None),
        (GONE[:1], {"if_seq": 0}, "tasks/r: it exists: its seq is 1, not 0"),
        (GONE[:1], {"if_seq": 2}, "tasks/r: it exists: its seq is 1, not 2"),
        (GONE, {"if_seq": 2}, None),
        (GONE, {"if_seq": 0}, "tasks/r: it was deleted at seq 2: its seq is 2, not 0"),
        ([changeset(delete())], {"if_seq": 0}, None),
        ([], {"expect": None}, None),
        ([changeset(delete())], {"expect": None}, None),
        (GONE[:1], {"expect": None}, "tasks/r: it exists, since seq 1"),
        (GONE, {"expect": None}, None),
        ([], {"expect": {}}, "tasks/r: it never existed"),
        (GONE[:1], {"expect": {}}, None),
        (GONE, {"expect": {}}, "tasks/r: it was deleted at seq 2"),
        (GONE[:1], {"expect": {"a": 1}}, None),
        (GONE[:1], {"expect": {"a": 1.0, "b": None}}, None),
        (GONE[:1], {"expect": {"a": True}}, "tasks/r: a field has another value"),
        (GONE[:1], {"expect": {"c": None}}, "tasks/r: a field has another value"),
        (GONE[:1], {"expect": {"a": 1}, "if_seq": 0}, "tasks/r: it exists: its seq is 1, not 0"),
    ],
    ids=range(20),
)
@pytest.mark.parametrize("op", [put(a=2), add(a=2), delete()], ids=lambda op: op["op"])
def test_if_seq_and_expect(before, guard, why, op):
    """On any operation. A tombstone is a record with a seq, null is a value, and `true` differs
    from 1.
    """
    log = Log(*(push_of({**sent, "id": new_id()}, device=B) for sent in before))
    sent = changeset({**op, **guard})
    assert stale_at(log, sent) == why
    [answer] = log.push(push_of(sent))
    assert answer.verdict == ("stored" if why is None else "refused")
    if answer.refusal:
        assert answer.refusal.code == "stale"


def test_guards_are_decided_before_the_changeset_and_all_or_nothing():
    """The guard of its second operation sees the state before its first. One broken guard
    refuses all of its operations.
    """
    log = Log(push_of(changeset(put(a=1))))
    good = changeset(put(a=2), {**put(a=3), "expect": {"a": 1}})
    bad = changeset(put(a=4), {**put(a=5), "expect": {"a": 4}})
    assert [a.verdict for a in log.push(push_of(good, bad))] == ["stored", "refused"]
    assert log.records["tasks", "r"].fields == {"a": 3}


def test_guards_inside_one_push_are_decided_in_order():
    """Each one sees the stored changesets before it. The device's own changes keep `unchanged`
    intact.
    """
    push = push_of(
        changeset({**put(a=1), "expect": None}),
        changeset({**put(a=2), "expect": {"a": 1}}),
        changeset({**put(a=9), "expect": {"a": 1}}),
        changeset({**put(a=3), "expect": {"a": 2}, "if_seq": 2}),
        changeset(put(a=4), guard="unchanged"),
        changeset({**delete(), "if_seq": 5}),
        changeset({**put(a=6), "expect": None}),
    )
    log = Log()
    answers = log.push(push)
    assert [a.verdict == "stored" for a in answers] == [True, True, False, True, True, True, True]
    assert log.records["tasks", "r"].fields == {"a": 6}


def test_guards_across_pushes_that_are_committed_together():
    """The second push sees the changes of the first, before the commit of both."""
    pushes = [push_of(changeset({**put(a=1), "if_seq": 0}), device=d) for d in (A, B)]
    decider = Log().lock(*pushes)
    answers = [answer for push in pushes for answer in decider.take(push)]
    assert verdicts(answers) == [(1, "stored", False), (2, "refused", False)]


def test_a_stale_answer_carries_the_current_records_and_the_event_does_not():
    """The answer has all records that the changeset names, whole, in their order and once each.
    It includes tombstones and records without a guard.
    """
    log = Log(push_of(changeset(put("r", a=1), put("s", b=1), put("gone")), device=B))
    log.push(push_of(changeset(delete("gone")), device=B))
    push = push_of(
        changeset(put("s", c=2)),
        changeset(
            put("s", b=9), {**put("r", a=9), "if_seq": 9}, put("s"), put("gone"), put("never")
        ),
    )
    stored, refused = log.push(push)

    assert not stored.records
    assert [(r.id, r.seq, r.is_deleted, r.fields) for r in refused.records] == [
        ("s", 3, False, {"b": 1, "c": 2}),
        ("r", 1, False, {"a": 1}),
        ("gone", 2, True, {}),
    ]
    assert b"records" not in log.entries[-1].state


def test_a_push_may_want_the_records_that_it_touched():
    """The answer has each record after its changeset; for a duplicate, the current one."""
    one = changeset(put(a=1))
    log = Log()
    log.push(push_of(one))
    push = push_of(one, changeset(put(a=2), put("s")), changeset(delete()), wants_records=True)
    found = [
        [(r.id, r.seq, r.created_seq, r.is_deleted, r.fields) for r in answer.records]
        for answer in log.push(push)
    ]
    assert found == [
        [("r", 1, 1, False, {"a": 1})],
        [("r", 2, 1, False, {"a": 2}), ("s", 2, 2, False, {})],
        [("r", 3, 1, True, {})],
    ]
    [again] = log.push(push_of(one, wants_records=True))
    assert [(r.seq, r.is_deleted) for r in again.records] == [(3, True)]


def test_what_must_be_loaded():
    """All records of guarded changesets, and those that the push wants."""
    plain = changeset(put("plain"))
    guarded = changeset(put("beside"), {**put("guarded"), "if_seq": 0})
    whole = changeset(put("whole"), guard="unchanged")

    def ids(push: Push) -> list[str]:
        return sorted(id for _, id in keys_to_load([push], {}))

    assert ids(push_of(plain)) == []
    assert ids(push_of(plain, guarded)) == ["beside", "guarded"]
    assert ids(push_of(plain, whole)) == ["whole"]
    assert ids(push_of(plain, whole, wants_records=True)) == ["plain", "whole"]


def test_what_must_be_loaded_is_asked_once_of_a_changeset():
    """Each check scans all operations of the changeset. Checking at each operation would be
    quadratic.
    """
    asked = []

    class Asked(Changeset):
        @property
        def is_guarded(self) -> bool:
            asked.append(self.id)
            return super().is_guarded

    guard = {**put("x"), "if_seq": 0}
    push = push_of(changeset(*[put(str(n)) for n in range(20)], guard))
    [made] = push.changesets
    push.changesets = [Asked(made.id, made.base, made.made_at, made.ops)]

    assert len(keys_to_load([push], {})) == 21
    assert asked == [made.id]
