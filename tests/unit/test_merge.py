"""Worked examples of the merge rule (docs/explanation/merge.md), clause by clause.

An example is a log of short lines. The third column is the device's clock. The base is the last
event that the device has seen; the clock decides only between concurrent writes.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from foldlog.domain.events import Event, decode_event
from foldlog.domain.merge import (
    Conflict,
    Record,
    Write,
    conflict_document,
    fold,
    pack_writes,
    unpack_writes,
)
from tests.helpers import A, B, C, add, delete, put
from tests.oracle import canonical

KEY = ("tasks", "r")
Json = dict[str, Any]


def unset(*names: str) -> Json:
    return {**put(), "unset": list(names)}


def log(*lines: tuple[Any, ...]) -> list[Event]:
    """Events of lines (device, base, time, operation ...), numbered from 1."""
    return [
        decode_event(
            msgspec.json.encode(
                {
                    "seq": seq,
                    "kind": "changeset",
                    "verdict": "stored",
                    "id": f"id-{seq}",
                    "device": device,
                    "base": base,
                    "received_at": received(seq),
                    "time": at,
                    "ops": ops,
                }
            )
        )
        for seq, (device, base, at, *ops) in enumerate(lines, 1)
    ]


def received(seq: int) -> str:
    return f"2026-11-23T09:00:{seq:02}.000Z"


def folded(*lines: tuple[Any, ...]) -> tuple[Record, list[Conflict]]:
    records: dict[tuple[str, str], Record] = {}
    conflicts = [conflict for event in log(*lines) for conflict in fold(records, event)]
    return records.get(KEY) or Record(*KEY), conflicts


def short(conflicts: list[Conflict]) -> list[str]:
    """`rule: field lost@seq < won@seq`, as the table below writes a conflict."""

    def hand(side: Json) -> str:
        value = msgspec.json.encode(side["value"]).decode() if "value" in side else "-"
        return f"{value}@{side['seq']}"

    found = map(conflict_document, conflicts)
    return [f"{c['rule']}: {c['field']} {hand(c['lost'])} < {hand(c['won'])}" for c in found]


# (title, the log, the fields at the end or None for a tombstone, the ledger)
EXAMPLES: list[tuple[str, list[tuple[Any, ...]], Json | None, list[str]]] = [
    # -- Rule 2: put, field by field
    ("a put makes a record", [(A, 0, 1, put(a=1))], {"a": 1}, []),
    ("a put with no fields makes an empty record", [(A, 0, 1, put())], {}, []),
    (
        "other fields stay",
        [(A, 0, 1, put(a=1, b=1)), (B, 1, 2, put(a=2))],
        {"a": 2, "b": 1},
        [],
    ),
    (
        "concurrent writes of different fields do not meet",
        [(A, 0, 5, put(a=1)), (B, 0, 1, put(b=2))],
        {"a": 1, "b": 2},
        [],
    ),
    (
        "concurrent: the later time stands, here the one that came last",
        [(A, 0, 1, put(a=1)), (B, 0, 2, put(a=2))],
        {"a": 2},
        ["concurrent: a 1@1 < 2@2"],
    ),
    (
        "concurrent: the later time stands, here the one that came first",
        [(A, 0, 2, put(a=1)), (B, 0, 1, put(a=2))],
        {"a": 1},
        ["concurrent: a 2@2 < 1@1"],
    ),
    (
        "concurrent, a tie: the one that came last stands",
        [(A, 0, 1, put(a=1)), (B, 0, 1, put(a=2))],
        {"a": 2},
        ["concurrent: a 1@1 < 2@2"],
    ),
    (
        "concurrent and equal: nobody lost",
        [(A, 0, 1, put(a=1)), (B, 0, 2, put(a=1.0))],
        {"a": 1},
        [],
    ),
    (
        "true is not 1, so one of them lost",
        [(A, 0, 1, put(a=1)), (B, 0, 2, put(a=True))],
        {"a": True},
        ["concurrent: a 1@1 < true@2"],
    ),
    (
        "three at once: each loser is in the ledger with what it lost to",
        [(A, 0, 2, put(a=1)), (B, 0, 3, put(a=2)), (C, 0, 1, put(a=3))],
        {"a": 2},
        ["concurrent: a 1@1 < 2@2", "concurrent: a 3@3 < 2@2"],
    ),
    # -- Cause and effect
    (
        "who has seen a write replaces it, however slow the clock",
        [(A, 0, 9, put(a=1)), (B, 1, 0, put(a=2))],
        {"a": 2},
        [],
    ),
    (
        "a device has seen its own writes, whatever base it claims",
        [(A, 0, 9, put(a=1)), (A, 0, 0, put(a=2))],
        {"a": 2},
        [],
    ),
    (
        "a base says what was seen, not the order of arrival",
        [(A, 0, 1, put(a=1)), (A, 0, 9, put(a=2)), (B, 1, 5, put(a=3))],
        {"a": 2},
        ["concurrent: a 3@3 < 2@2"],
    ),
    # -- null, and missing values
    ("null is a value", [(A, 0, 1, put(a=None))], {"a": None}, []),
    (
        "null that loses is in the ledger",
        [(A, 0, 1, put(a=None)), (B, 0, 2, put(a=1))],
        {"a": 1},
        ["concurrent: a null@1 < 1@2"],
    ),
    ("an unset field is gone", [(A, 0, 1, put(a=1, b=2)), (B, 1, 2, unset("a"))], {"b": 2}, []),
    (
        "unset merges like a value: it wins",
        [(A, 0, 1, put(a=1)), (B, 0, 2, unset("a"))],
        {},
        ["concurrent: a 1@1 < -@2"],
    ),
    (
        "... and it loses",
        [(A, 0, 2, put(a=1)), (B, 0, 1, unset("a"))],
        {"a": 1},
        ["concurrent: a -@2 < 1@1"],
    ),
    (
        "... also against a value that comes later",
        [(A, 0, 1, put(a=1)), (A, 1, 5, unset("a")), (B, 1, 4, put(a=2))],
        {},
        ["concurrent: a 2@3 < -@2"],
    ),
    (
        "null is not absent",
        [(A, 0, 1, put(a=None)), (B, 0, 2, unset("a"))],
        {},
        ["concurrent: a null@1 < -@2"],
    ),
    ("both unset it: nobody lost", [(A, 0, 1, unset("a")), (B, 0, 1, unset("a"))], {}, []),
    ("unset of what never was makes a record", [(A, 0, 1, unset("a"))], {}, []),
    # -- Rule 3: add
    ("an absent field counts as 0", [(A, 0, 1, add(n=2))], {"n": 2}, []),
    (
        "concurrent adds all count",
        [(A, 0, 3, add(n=1)), (B, 0, 1, add(n=2)), (C, 0, 2, add(n=4))],
        {"n": 7},
        [],
    ),
    (
        "an unset field counts as 0 too",
        [(A, 0, 1, put(n=5)), (A, 1, 2, unset("n")), (B, 2, 3, add(n=2))],
        {"n": 2},
        [],
    ),
    ("as doubles", [(A, 0, 1, add(n=0.1)), (B, 0, 1, add(n=0.2))], {"n": 0.1 + 0.2}, []),
    (
        "true is not a number",
        [(A, 0, 1, put(n=True)), (B, 1, 2, add(n=1))],
        {"n": True},
        ["not-addable: n 1@2 < true@1"],
    ),
    (
        "null is not a number",
        [(A, 0, 1, put(n=None)), (B, 1, 2, add(n=1))],
        {"n": None},
        ["not-addable: n 1@2 < null@1"],
    ),
    (
        "a text is not a number",
        [(A, 0, 1, put(n="7")), (B, 0, 9, add(n=1))],
        {"n": "7"},
        ['not-addable: n 1@2 < "7"@1'],
    ),
    (
        "a sum that is not finite changes nothing",
        [(A, 0, 1, put(n=1e308)), (B, 1, 2, add(n=1e308))],
        {"n": 1e308},
        ["not-addable: n 1e308@2 < 1e308@1"],
    ),
    (
        "one field that cannot be added to does not hold up the other",
        [(A, 0, 1, put(n="x")), (B, 1, 2, add(n=1, m=2))],
        {"n": "x", "m": 2},
        ['not-addable: n 1@2 < "x"@1'],
    ),
    (
        "a put that has seen the sum replaces it",
        [(A, 0, 9, add(n=1)), (B, 0, 9, add(n=2)), (A, 2, 0, put(n=0))],
        {"n": 0},
        [],
    ),
    # -- `other`: a write that has not seen a merged-in write has not seen the sum
    (
        "A's add went onto B's: A's put, without B's, is concurrent with the sum and loses",
        [(B, 0, 9, add(n=5)), (A, 0, 1, add(n=1)), (A, 0, 2, put(n=0))],
        {"n": 6},
        ["concurrent: n 0@3 < 6@2"],
    ),
    (
        "... or wins, and the whole sum is in the ledger; a merged write has the later time",
        [(B, 0, 9, add(n=5)), (A, 0, 1, add(n=1)), (A, 0, 9, put(n=0))],
        {"n": 0},
        ["concurrent: n 6@2 < 0@3"],
    ),
    (
        "with B's seen it just replaces",
        [(B, 0, 9, add(n=5)), (A, 0, 1, add(n=1)), (A, 1, 0, put(n=0))],
        {"n": 0},
        [],
    ),
    (
        "`other` goes on through the device's further adds",
        [(B, 0, 9, add(n=5)), (A, 0, 1, add(n=1)), (A, 0, 1, add(n=1)), (A, 0, 2, put(n=0))],
        {"n": 7},
        ["concurrent: n 0@4 < 7@3"],
    ),
    (
        "what A merged in, B itself has seen only when it has seen A's",
        [(B, 0, 5, add(n=5)), (A, 0, 1, add(n=1)), (B, 1, 0, put(n=0))],
        {"n": 6},
        ["concurrent: n 0@3 < 6@2"],
    ),
    (
        "an add onto a put is concurrent with it for who put",
        [(A, 0, 5, put(n=1)), (B, 1, 6, add(n=1)), (A, 1, 7, put(n=9))],
        {"n": 9},
        ["concurrent: n 2@2 < 9@3"],
    ),
    # -- Rule 4: delete
    ("a delete leaves no fields", [(A, 0, 1, put(a=1)), (B, 1, 2, delete())], None, []),
    (
        "values that it has not seen are in the ledger, the others not",
        [(A, 0, 1, put(a=1, b=1)), (C, 1, 9, put(b=2)), (B, 1, 2, delete())],
        None,
        ["delete: b 2@2 < -@3"],
    ),
    (
        "a delete wins over what came before, also over a later time",
        [(A, 0, 9, put(a=1)), (B, 0, 0, delete())],
        None,
        ["delete: a 1@1 < -@2"],
    ),
    (
        "a sum of which it has seen only a part is not seen",
        [(A, 0, 1, add(n=1)), (B, 0, 1, add(n=2)), (B, 0, 2, delete())],
        None,
        ["delete: n 3@2 < -@3"],
    ),
    # -- Rule 1: edits that have not seen the delete
    (
        "a delete wins over what comes after, also over a later time",
        [(A, 0, 1, put(a=1)), (B, 1, 2, delete()), (A, 1, 9, put(a=2, b=3))],
        None,
        ["deleted: a 2@3 < -@2", "deleted: b 3@3 < -@2"],
    ),
    (
        "an add that has not seen it is lost as a number",
        [(A, 0, 1, put(n=1)), (B, 1, 2, delete()), (A, 1, 9, add(n=2))],
        None,
        ["deleted: n 2@3 < -@2"],
    ),
    (
        "a put with no fields that has not seen it makes nothing",
        [(A, 0, 1, put(a=1)), (B, 1, 2, delete()), (A, 1, 9, put())],
        None,
        [],
    ),
    (
        "... also when the record has been made anew since",
        [
            (A, 0, 1, put(a=1)),
            (B, 1, 2, delete()),
            (B, 2, 3, put(a=5)),
            (A, 1, 9, put(a=2)),
        ],
        {"a": 5},
        ["deleted: a 2@4 < -@2"],
    ),
    # -- Rule 5: created again
    (
        "who has seen the delete makes it anew, without the old fields",
        [(A, 0, 1, put(a=1, b=1)), (B, 1, 2, delete()), (A, 2, 0, put(b=2))],
        {"b": 2},
        [],
    ),
    (
        "an add makes it anew too, from 0",
        [(A, 0, 1, put(n=5)), (B, 1, 2, delete()), (A, 2, 0, add(n=2))],
        {"n": 2},
        [],
    ),
    (
        "a put with no fields makes it anew, empty",
        [(A, 0, 1, put(a=1)), (B, 1, 2, delete()), (A, 2, 0, put())],
        {},
        [],
    ),
    (
        "old writes are forgotten with the old fields: no conflict with them",
        [(A, 0, 9, put(a=1)), (B, 1, 2, delete()), (B, 2, 3, put(b=1)), (C, 3, 0, put(a=2))],
        {"b": 1, "a": 2},
        [],
    ),
    # -- Deletes merge onto deletes
    (
        "A deleted onto B's delete: A without B's has not seen the record's last delete",
        [
            (A, 0, 1, put(a=1)),
            (B, 1, 2, delete()),
            (A, 1, 3, delete()),
            (A, 1, 4, put(a=2)),
        ],
        None,
        ["deleted: a 2@4 < -@3"],
    ),
    (
        "... and with B's it has",
        [
            (A, 0, 1, put(a=1)),
            (B, 1, 2, delete()),
            (A, 1, 3, delete()),
            (A, 2, 4, put(a=2)),
        ],
        {"a": 2},
        [],
    ),
    (
        "... also when the record was made anew between the two deletes",
        [
            (A, 0, 1, put(a=1)),
            (B, 1, 2, delete()),
            (B, 2, 2, put(a=5)),
            (A, 1, 3, delete()),
            (A, 1, 4, put(a=2)),
        ],
        None,
        ["delete: a 5@3 < -@4", "deleted: a 2@5 < -@4"],
    ),
    # -- Several operations of one changeset on one record
    ("in their order", [(A, 0, 1, put(a=1), put(a=2), add(a=3))], {"a": 5}, []),
    (
        "deleted and made anew by one changeset",
        [(A, 0, 1, put(a=1, b=1)), (B, 1, 2, delete(), put(a=2))],
        {"a": 2},
        [],
    ),
    ("made and deleted by one changeset", [(A, 0, 1, put(a=1), delete())], None, []),
    (
        "the second one has not seen either what the first was merged onto",
        [(B, 0, 9, add(n=5)), (A, 0, 1, add(n=1), put(n=0))],
        {"n": 6},
        ["concurrent: n 0@2 < 6@2"],
    ),
]


@pytest.mark.parametrize(
    ("lines", "fields", "ledger"),
    [pytest.param(*example[1:], id=example[0]) for example in EXAMPLES],
)
def test_example(lines, fields, ledger):
    """The id says what the example shows. Values are compared by type: 1 is 1.0, `true` differs
    from 1."""
    record, conflicts = folded(*lines)

    assert record.exists
    assert record.is_deleted == (fields is None)
    assert canonical(record.fields) == canonical(fields or {})
    assert short(conflicts) == ledger


def test_a_delete_of_a_missing_record_has_no_effect():
    """It leaves the record untouched, so a concurrent put creates it."""
    record, conflicts = folded((A, 0, 1, delete()))
    assert not record.exists
    assert record.deleted is None
    assert conflicts == []

    record, conflicts = folded((A, 0, 9, delete()), (B, 0, 1, put(a=1)))
    assert record.fields == {"a": 1}
    assert conflicts == []


def test_equal_values_replace_each_other():
    """A known edge of rule 2: A and B both wrote 1, so neither lost, and the write is B's now. When
    B then writes 2 without having seen A, it replaces its own 1. A's equal 1 is found only in the
    log."""
    record, conflicts = folded((A, 0, 9, put(a=1)), (B, 0, 9, put(a=1)), (B, 0, 1, put(a=2)))
    assert record.fields == {"a": 2}
    assert conflicts == []


ARRIVALS = list(
    itertools.permutations([(A, 0, 1, put(a=1)), (B, 0, 2, put(a=2)), (C, 0, 3, put(a=3))])
)


@pytest.mark.parametrize(
    "lines", ARRIVALS, ids=lambda lines: "".join(str(line[2]) for line in lines)
)
def test_concurrent_puts_end_the_same_in_every_order_of_arrival(lines):
    """The latest time wins, and each of the other two values is in the ledger, once."""
    record, conflicts = folded(*lines)
    assert record.fields == {"a": 3}
    assert sorted(conflict.lost.value for conflict in conflicts) == [1, 2]


@pytest.mark.parametrize("last", [put(a=2), put(b=2), add(n=2), put(a=1), unset("a")], ids=str)
@pytest.mark.parametrize("delete_first", [True, False])
def test_a_delete_wins_over_every_concurrent_edit_whichever_came_first(last, delete_first):
    """A deleted record stays deleted for any clocks and any order of arrival."""
    for at_delete, at_edit in [(1, 2), (2, 1), (1, 1)]:
        both = [(B, 1, at_delete, delete()), (C, 1, at_edit, last)]
        record, _ = folded((A, 0, 0, put(a=1)), *(both if delete_first else both[::-1]))
        assert record.is_deleted
        assert record.fields == {}


@pytest.mark.parametrize("base", range(4))
@pytest.mark.parametrize("device", [A, B, C])
def test_has_seen_for_every_base_and_device(device, base):
    """A sum to which A added at 1, B at 2 and A at 3 is seen by a changeset that has seen its
    device's last write and every merged-in write of other devices."""
    adds = [(A, 0, 9, add(n=1)), (B, 0, 9, add(n=2)), (A, 0, 9, add(n=4))]
    _, conflicts = folded(*adds, (device, base, 0, put(n=0)))

    unseen = [seq for seq, by in [(1, A), (2, B), (3, A)] if seq > base and by != device]
    assert (conflicts == []) == (unseen == [])


def test_the_writes_are_those_of_the_design():
    """(seq, device, time, other): alone, onto another device's write, onto an own write."""
    record, _ = folded((A, 0, 1, put(a=1)), (A, 0, 3, add(n=1)))
    assert record.writes == {"a": Write(1, A, 1, 0), "n": Write(2, A, 3, 0)}

    record, _ = folded((A, 0, 5, add(n=1)), (B, 0, 3, add(n=1)))
    assert record.writes == {"n": Write(2, B, 5, 1)}

    record, _ = folded((A, 0, 5, add(n=1)), (B, 0, 3, add(n=1)), (B, 0, 9, add(n=1)))
    assert record.writes == {"n": Write(3, B, 9, 1)}

    record, _ = folded((A, 0, 1, put(a=1)), (B, 1, 7, delete()), (A, 1, 3, delete()))
    assert record.deleted == Write(3, A, 7, 2)
    assert record.writes == {}


def test_a_write_of_an_unset_field_is_kept():
    """A later put is compared with it."""
    record, _ = folded((A, 0, 1, put(a=1)), (B, 1, 2, unset("a")))
    assert record.fields == {}
    assert record.writes == {"a": Write(2, B, 2, 0)}


def test_an_equal_value_that_wins_takes_the_write_but_moves_no_seq():
    """`seq` and `last_modified` move only with the folded state, and the author is outside it."""
    record, _ = folded((A, 0, 1, put(a=1)), (B, 1, 2, put(a=1.0)))
    assert (record.seq, record.last_modified) == (1, received(1))
    assert record.writes == {"a": Write(2, B, 2, 0)}


def test_a_value_that_loses_moves_nothing():
    """The write and the seq stay; the record counts as touched."""
    record, _ = folded((A, 0, 9, put(a=1)), (B, 0, 2, put(a=2)))
    assert (record.seq, record.last_modified) == (1, received(1))
    assert record.writes == {"a": Write(1, A, 9, 0)}
    assert record.touched_seq == 2


@pytest.mark.parametrize(
    ("last", "seq"),
    [(put(a=2), 3), (put(a=1), 1), (put(), 1), (unset("b"), 1), (unset("a"), 3), (delete(), 3)],
    ids=str,
)
def test_seq_moves_when_the_state_does(last, seq):
    """`last_modified` moves with it; `created_seq` stays."""
    record, _ = folded((A, 0, 1, put(a=1)), (A, 1, 1, put("other")), (A, 2, 1, last))
    assert (record.seq, record.last_modified, record.created_seq) == (seq, received(seq), 1)


def test_created_seq_moves_when_the_record_is_created_again():
    """It is another record under the old id. A second delete leaves the visible state as it is."""
    lines = [(A, 0, 1, put(a=1)), (A, 1, 1, delete()), (A, 2, 1, delete()), (A, 3, 1, put(a=1))]
    found = [folded(*lines[:n])[0] for n in range(1, 5)]
    assert [record.created_seq for record in found] == [1, 1, 1, 4]
    assert [record.seq for record in found] == [1, 2, 2, 4]
    assert [record.exists for record in found] == [True] * 4
    assert [record.is_live for record in found] == [True, False, False, True]


def test_the_last_operations_of_this_and_of_other_devices():
    """The guard `unchanged` needs this, for each device. Lost edits and vain deletes count too."""
    lines = [
        (A, 0, 1, delete()),
        (B, 0, 9, put(a=1)),
        (B, 2, 9, put(a=2)),
        (A, 0, 1, put(a=3)),
        (C, 0, 1, put("another record")),
    ]
    seen = [[folded(*lines[:n])[0].touched_by_other(d) for d in (A, B, C)] for n in range(6)]
    assert seen == [[0, 0, 0], [0, 1, 1], [2, 1, 2], [3, 1, 3], [3, 4, 4], [3, 4, 4]]


STORED: Json = {
    "seq": 2,
    "kind": "changeset",
    "verdict": "stored",
    "id": "id-2",
    "device": B,
    "base": 1,
    "received_at": received(2),
    "time": 2,
    "ops": [put(a=2)],
}


@pytest.mark.parametrize(
    "event",
    [
        {**STORED, "verdict": "refused", "refusal": {"code": "stale", "detail": "why"}},
        {**STORED, "ops": [{"op": "put", "collection": "tasks", "id": "r", "erased": "00"}]},
        {"seq": 2, "kind": "device-registered", "id": B, "received_at": received(2), "body": {}},
        {**STORED, "kind": "invented-later"},
    ],
    ids=["refused", "erased", "another kind", "unknown kind"],
)
def test_events_without_effect_touch_no_record(event):
    """Refused changesets, erased operations and unknown kinds of events touch no record."""
    records: dict[tuple[str, str], Record] = {}
    for first in log((A, 0, 1, put(a=1))):
        fold(records, first)
    before = msgspec.json.encode(list(records.values()))

    assert fold(records, decode_event(msgspec.json.encode(event))) == []
    assert msgspec.json.encode(list(records.values())) == before


def test_a_changeset_with_one_erased_operation_keeps_the_others():
    """An erasure removes one record's operations from an event; the others stay."""
    erased = {"op": "put", "collection": "tasks", "id": "gone", "erased": "00"}
    records: dict[tuple[str, str], Record] = {}
    for event in log((A, 0, 1, erased, put(a=1))):
        fold(records, event)
    assert list(records) == [KEY]


def test_a_conflict_as_a_document():
    """The ledger is stored in this form, so the names are fixed. A side without `value` had
    none."""
    _, conflicts = folded((A, 0, 1, put(a=None)), (B, 0, 2, delete()))
    assert list(map(conflict_document, conflicts)) == [
        {
            "seq": 2,
            "op": "delete",
            "collection": "tasks",
            "id": "r",
            "field": "a",
            "rule": "delete",
            "lost": {"value": None, "seq": 1, "device": A},
            "won": {"seq": 2, "device": B},
        }
    ]


def test_packed_writes_are_the_same_writes():
    """Packing keeps each distinct write once, with its fields. The order is independent of the
    input's order."""
    writes = {"c": Write(2, B, 5, 1), "a": Write(1, A, 3), "b": Write(1, A, 3)}
    packed = pack_writes(writes)
    assert packed == [(1, A, 3, 0, ["a", "b"]), (2, B, 5, 1, ["c"])]
    assert unpack_writes(packed) == writes
    assert pack_writes(dict(reversed(writes.items()))) == packed
