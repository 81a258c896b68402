"""The merge rule on random histories: compared with an oracle, and checked for its promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from foldlog.domain import merge
from foldlog.domain.events import Event, decode_event
from foldlog.domain.merge import (
    Conflict,
    Key,
    Record,
    conflict_document,
    fold,
    pack_writes,
    record_size,
    unpack_writes,
    view_of,
)
from tests.examples import examples
from tests.helpers import A, B, C
from tests.oracle import RECORD_SIZE_MAX, Oracle, canonical, other_of, time_of

EVENTS_MAX = 12
quick = examples(50)
thorough = examples(150)

Json = dict[str, Any]

DEVICES = [A, B, C]
KEYS = [("tasks", "r"), ("tasks", "s"), ("stats", "r")]
FIELDS = ["a", "b"]
VALUES = [None, True, False, 0, 1, 1.0, -2.5, 1e308, "", "x", [1], {"k": 1}]
NUMBERS = [0, 1, 1.0, -1, 0.1, 1e308, -1e308]


def _operations() -> Iterator[Json]:
    """All relevant operations. The generator then only chooses among them, which is fast."""
    for collection, id in KEYS:
        named = {"collection": collection, "id": id}
        puts = [({}, []), ({}, ["a"]), ({}, FIELDS)]
        puts += [({name: value}, []) for name in FIELDS for value in VALUES]
        puts += [({"a": value}, ["b"]) for value in VALUES]
        puts += [({"a": value, "b": value}, []) for value in VALUES]
        for fields, unset in puts:
            yield {"op": "put", **named, "fields": fields, "unset": unset}
        for number in NUMBERS:
            for fields in ({"a": number}, {"b": number}, {"b": number, "a": 1}):
                yield {"op": "add", **named, "fields": fields}
        yield from [{"op": "delete", **named}] * 15
        yield {"op": "put", **named, "erased": "00"}


OPERATIONS = list(_operations())
#: The device, the clock, and the kind of event; most are stored changesets.
STAMPS = [
    (device, time, kind)
    for device in DEVICES
    for time in range(5)
    for kind in ["stored"] * 8 + ["refused", "stranger"]
]
WITH_ERASURES = STAMPS + [(A, 0, "erasure")] * (len(STAMPS) // 8)


@st.composite
def histories(
    draw: st.DrawFn, ops: st.SearchStrategy[Any] | None = None, *, erasures: bool = False
) -> list[Json]:
    """A log of a few devices. Bases are anything that a device may claim; clocks are skewed."""
    if ops is None:
        ops = st.sampled_from(OPERATIONS).map(dict)
    shapes = st.lists(
        st.tuples(
            st.sampled_from(WITH_ERASURES if erasures else STAMPS),
            st.integers(0, EVENTS_MAX - 1),
            st.lists(ops, min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=EVENTS_MAX,
    )
    events: list[Json] = []
    for seq, ((device, time, kind), base, changes) in enumerate(draw(shapes), 1):
        event = {
            "seq": seq,
            "kind": "changeset",
            "verdict": "stored",
            "id": f"id-{seq}",
            "device": device,
            "base": base % seq,
            "received_at": f"2026-11-23T09:00:{seq:02}.000Z",
            "time": time,
            "ops": changes,
        }
        if kind == "refused":
            event |= {"verdict": "refused", "refusal": {"code": "stale", "detail": "why"}}
        if kind == "stranger":
            event = {k: event[k] for k in ("seq", "id", "received_at")}
            event |= {"kind": "not-invented-yet", "body": {"ops": []}}
        if kind == "erasure":
            erased = {name: changes[0][name] for name in ("collection", "id")}
            event = {k: event[k] for k in ("seq", "id", "received_at")}
            event |= {"kind": "record-erased", "body": erased}
            _erase_unseen(events, erased, seq)
        events.append(event)
    for event in events:
        if event["kind"] == "record-erased":
            _erase_unseen(events[event["seq"] :], event["body"], event["seq"])
    return events


def _erase_unseen(events: list[Json], record: Json, seq: int) -> None:
    """Erases the operations on an erased record: those before its erasure, and those that have not
    seen it."""
    for event in events:
        if event["seq"] < seq or event.get("base", seq) < seq:
            event["ops"] = [
                {**record, "op": op["op"], "erased": "00"} if record.items() <= op.items() else op
                for op in event.get("ops", [])
            ]


def read(event: Json) -> Event:
    return decode_event(msgspec.json.encode(event))


def folded(history: list[Json]) -> tuple[dict[Key, Record], list[Conflict]]:
    records: dict[Key, Record] = {}
    conflicts = [conflict for event in history for conflict in fold(records, read(event))]
    return records, conflicts


def documents(conflicts: list[Conflict]) -> list[Json]:
    return [conflict_document(conflict) for conflict in conflicts]


def views(records: dict[Key, Record]) -> dict[Key, Json]:
    found = {key: msgspec.to_builtins(view_of(r)) for key, r in records.items() if r.exists}
    return dict(sorted(found.items()))


def in_any_order(documents: list[Json]) -> list[str]:
    return sorted(map(canonical, documents))


def texts(documents: dict[Key, Json]) -> dict[Key, str]:
    return {key: canonical(document) for key, document in documents.items()}


#: Sizes around those of one and of two fields of `OPERATIONS`, and the limit of the service.
SIZE_LIMITS = [*(68, 69, 70, 75, 137, 138, 140, 150), *[RECORD_SIZE_MAX] * 8]


@thorough
@given(histories(erasures=True), st.sampled_from(SIZE_LIMITS))
def test_the_fold_does_what_the_design_says(history, size_max):
    """Records, ledger and the writes that decide later merges equal the oracle's, for any limit of
    the size of a record. The oracle was written from the text of the design and remembers all
    events."""
    with patch.object(merge, "RECORD_SIZE_MAX", size_max):
        records, conflicts = folded(history)
    oracle = Oracle(size_max=size_max).fold(*history)
    assert all(record.size <= size_max for record in records.values())
    assert all(record.size == record_size(record) for record in records.values())

    assert texts(views(records)) == texts(oracle.views())
    assert in_any_order(documents(conflicts)) == in_any_order(oracle.ledger)
    assert records.keys() == oracle.rows.keys()
    for key, row in oracle.rows.items():
        writes = dict(row.writes)
        if row.last_delete:
            writes["the delete"] = row.last_delete
        kept = dict(records[key].writes)
        if records[key].deleted:
            kept["the delete"] = records[key].deleted
        assert {name: tuple(write) for name, write in kept.items()} == {
            name: (*write[-1][:2], time_of(write), other_of(write))
            for name, write in writes.items()
        }


@quick
@given(histories(erasures=True))
def test_the_guard_knows_who_else_touched_a_record(history):
    """The guard `unchanged` needs the last operation of any other device, lost edits included."""
    records, _ = folded(history)
    for key, row in Oracle().fold(*history).rows.items():
        for device in [*DEVICES, "somebody new"]:
            assert records[key].touched_by_other(device) == row.touched_by_other(device)


@quick
@given(histories(erasures=True), st.sampled_from(SIZE_LIMITS), st.data())
def test_it_does_not_matter_how_the_log_is_cut_into_batches(history, size_max, data):
    """One fold and any split into batches give the same bytes. Between batches, records are stored
    as JSON and loaded again: only those that the batch needs, with packed writes, as a table stores
    them. A table does not store the size."""
    with patch.object(merge, "RECORD_SIZE_MAX", size_max):
        check_batches(history, data)


def check_batches(history: list[Json], data: st.DataObject) -> None:
    whole, conflicts = folded(history)

    table: dict[Key, bytes] = {}
    found: list[Conflict] = []
    rest = history
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch, rest = [read(event) for event in rest[:size]], rest[size:]
        wanted = {key for event in batch for key in event.keys} & table.keys()
        loaded = {key: msgspec.json.decode(table[key], type=Record) for key in wanted}
        for record in loaded.values():
            record.writes, record.size = unpack_writes(pack_writes(record.writes)), UNSET
        for event in batch:
            found += fold(loaded, event)
        table |= {key: msgspec.json.encode(record) for key, record in loaded.items()}

    assert {key: parsed(raw) for key, raw in table.items()} == {
        key: parsed(msgspec.json.encode(record)) for key, record in whole.items()
    }
    assert msgspec.json.encode(documents(found)) == msgspec.json.encode(documents(conflicts))


def parsed(record: bytes) -> list[Any]:
    """A record's exact content. `writes` is unordered; `fields` becomes bytes, so it is ordered."""
    document = json.loads(record)
    return [sorted(document.pop("writes").items()), json.dumps(document)]


@quick
@given(histories(erasures=True))
def test_the_fold_is_deterministic_and_leaves_its_input_unchanged(history):
    """An earlier record, or an event, stays the same after a fold."""
    records: dict[Key, Record] = {}
    held: list[tuple[Any, bytes]] = []
    for event in map(read, history):
        held += [(thing, msgspec.json.encode(thing)) for thing in (event, *records.values())]
        fold(records, event)

    assert all(msgspec.json.encode(thing) == was for thing, was in held)
    assert msgspec.json.encode(list(records.values())) == msgspec.json.encode(
        list(folded(history)[0].values())
    )


@quick
@given(histories(erasures=True))
def test_seq_and_last_modified_move_together_and_only_with_the_state(history):
    """A client that has a record at its seq has all of it. An operation that changes neither fields
    nor `is_deleted` leaves the seq, and any other operation moves it to its event's seq."""
    records: dict[Key, Record] = {}
    for event in map(read, history):
        before = dict(records)
        fold(records, event)
        for key, record in records.items():
            was = before.get(key) or Record(*key)
            same_state = (canonical(record.fields), record.is_deleted, record.exists) == (
                canonical(was.fields),
                was.is_deleted,
                was.exists,
            )
            assert record.seq in (was.seq, event.seq)
            assert same_state or record.seq == event.seq
            if event.erased_key is None and [op.key for op in event.ops].count(key) == 1:
                assert (record.seq == event.seq) != same_state
            assert (record.seq == event.seq) == (record.last_modified == event.received_at)
            assert record.created_seq <= record.seq


# -- No value is lost silently -----------------------------------------------------------------
#
# Each value of a history is a bit of its own (2, 4, 8 ...), or a text that names its bit. So a sum
# shows its parts, and each value can be searched for.


SHAPES = [
    (what, key, field)
    for what in ["put", "put", "text", "add", "add", "unset", "delete"]
    for key in KEYS[:2]
    for field in FIELDS
]


@st.composite
def traceable_histories(draw: st.DrawFn) -> list[Json]:
    history = draw(histories(ops=st.sampled_from(SHAPES)))
    bit = 0
    for event in history:
        ops = []
        for what, (collection, id), field in event.get("ops", []):
            bit += 1
            value: Any = f"bit {bit}" if what == "text" else 2**bit
            op = {"op": {"text": "put", "unset": "put"}.get(what, what)}
            op |= {"collection": collection, "id": id}
            if what == "unset":
                op |= {"unset": [field]}
            elif what != "delete":
                op |= {"fields": {field: value}}
            ops.append(op)
        if "ops" in event:
            event["ops"] = ops
    return history


def bits_in(value: Any) -> set[int]:
    if isinstance(value, str):
        return {int(value.removeprefix("bit "))}
    return {bit for bit in range(1, 53) if int(value or 0) >> bit & 1}


@thorough
@given(traceable_histories())
def test_no_value_disappears_without_a_trace(history):
    """At the end, every value that a stored changeset put or added is in the state (alone or in a
    sum), or in the ledger. Otherwise a later write of its field, or delete of its record, replaced
    it; the author of that write had seen the value, and the write did not lose at once."""
    records, conflicts = folded(history)
    ledger = documents(conflicts)
    stored = [
        (event, number, op)
        for event in history
        if event.get("verdict") == "stored"
        for number, op in enumerate(event["ops"])
    ]

    def in_state(op: Json, field: str, bits: set[int]) -> bool:
        value = records[op["collection"], op["id"]].fields.get(field)
        return value is not None and bits <= bits_in(value)

    def in_ledger(op: Json, field: str, bits: set[int]) -> bool:
        return any(
            bits <= bits_in(entry["lost"]["value"])
            for entry in ledger
            if (entry["collection"], entry["id"]) == (op["collection"], op["id"])
            and entry["field"] == field
            and "value" in entry["lost"]
        )

    def lost_at_once(event: Json, op: Json, field: str) -> bool:
        return any(
            entry["op"] == op["op"] != "delete"
            and entry["seq"] == entry["lost"]["seq"] == event["seq"]
            and (entry["collection"], entry["id"]) == (op["collection"], op["id"])
            and entry["field"] == field
            and entry["lost"].get("value") == op.get("fields", {}).get(field)
            for entry in ledger
        )

    def is_replaced(event: Json, number: int, op: Json, field: str) -> bool:
        return any(
            (later["seq"], at) > (event["seq"], number)
            and (by["collection"], by["id"]) == (op["collection"], op["id"])
            and (event["seq"] <= later["base"] or event["device"] == later["device"])
            and (
                by["op"] == "delete"
                or (by["op"] == "put" and field in {*by.get("fields", {}), *by.get("unset", [])})
            )
            and not lost_at_once(later, by, field)
            for later, at, by in stored
        )

    for event, number, op in stored:
        for field, value in op.get("fields", {}).items():
            bits = bits_in(value)
            assert (
                in_state(op, field, bits)
                or in_ledger(op, field, bits)
                or is_replaced(event, number, op, field)
            ), f"{value} of seq {event['seq']} is gone"


# -- Clocks ------------------------------------------------------------------------------------


#: Other times and bases for the events of a history.
claims = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, EVENTS_MAX)),
    min_size=EVENTS_MAX,
    max_size=EVENTS_MAX,
)


def without_times(history: list[Json]) -> tuple[Any, list[str]]:
    records, conflicts = folded(history)
    return texts(views(records)), in_any_order(documents(conflicts))


@quick
@given(histories(), claims)
def test_clocks_have_no_effect_if_each_write_saw_the_earlier_ones(history, others):
    """If each changeset has seen all earlier ones, clocks have no effect."""
    for event in history:
        event |= {"base": event["seq"] - 1}
    skewed = [{**event, "time": at} for event, (at, _) in zip(history, others, strict=False)]

    assert without_times(skewed) == without_times(history)
    assert all(conflict.rule == "not-addable" for conflict in folded(history)[1])


@quick
@given(histories(), claims)
def test_a_device_is_never_in_conflict_with_itself(history, others):
    """If every record has one author, bases and clocks have no effect, because the author has seen
    its own writes."""
    for event in history:
        event["ops"] = [
            op
            for op in event.get("ops", [])
            if (op["collection"], op["id"]) == KEYS[DEVICES.index(event["device"])]
        ]
    other = [
        {**event, "time": at, "base": base % event["seq"]}
        for event, (at, base) in zip(history, others, strict=False)
    ]

    assert without_times(other) == without_times(history)
    assert all(conflict.rule == "not-addable" for conflict in folded(history)[1])


@quick
@given(
    st.permutations(DEVICES),
    st.lists(st.sampled_from(VALUES), min_size=3, max_size=3),
    st.permutations([1, 2, 3]),
)
def test_concurrent_puts_give_the_same_result_in_any_order(devices, values, times):
    """If all times differ, the latest wins, and the ledger holds the values that differed."""
    history = [
        {
            "seq": seq,
            "kind": "changeset",
            "verdict": "stored",
            "id": f"id-{seq}",
            "device": device,
            "base": 0,
            "received_at": "",
            "time": time,
            "ops": [{"op": "put", "collection": "c", "id": "r", "fields": {"a": value}}],
        }
        for seq, (device, value, time) in enumerate(zip(devices, values, times, strict=True), 1)
    ]

    records, _ = folded(history)
    assert canonical(records["c", "r"].fields["a"]) == canonical(values[times.index(3)])


@quick
@given(histories())
def test_whole_numbers_are_written_without_a_fraction(history):
    """A sum is written in one way, so that every replica has the same bytes."""
    for event in history:
        for op in event.get("ops", []):
            if "fields" in op:
                op["fields"] = dict.fromkeys(op["fields"], 1.0)
                op["op"] = "add" if op["fields"] else "put"
                op.pop("unset", None)
    records, _ = folded(history)
    for record in records.values():
        for value in record.fields.values():
            assert type(value) is int, json.dumps(record.fields)
