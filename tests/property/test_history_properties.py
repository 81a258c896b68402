"""Any log in any batches: every moment, history, diff, and restored conflict is right."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.history import Point
from foldlog.domain.ports import RecordsQuery
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from tests.examples import examples
from tests.helpers import A, B, C, changeset, kept_conflict, new_id, push_of
from tests.history import Past, all_as_of, texts, whole_diff, whole_history
from tests.oracle import canonical

from .test_snapshot_properties import PUSHABLE

Json = dict[str, Any]

pushes = st.lists(
    st.tuples(
        st.sampled_from([A, B, C]),
        st.integers(0, 30),  # how far its base lags
        st.integers(0, 4),  # its clock
        st.lists(st.sampled_from(PUSHABLE), min_size=1, max_size=4),
        st.booleans(),  # whether the projector runs after it
    ),
    min_size=1,
    max_size=12,
)


def push(store, space: str, head: int, device: str, lag: int, clock: int, ops: list[Json]) -> int:
    made_at = f"2026-11-23T08:59:5{clock}.000Z"
    sent = changeset(*map(dict, ops), base=max(0, head - lag), made_at=made_at)
    return store.push(space, push_of(sent, device=device)).head


@examples(30)
@given(pushes, st.data())
def test_any_moment_of_any_log(_shared_stores, log, data):
    """The state at each seq is the fold up to it, each history lists the changes of its record, and
    a diff compares two folds. This holds for any batches of the projector, with and without a
    rebuild."""
    store, space = _shared_stores, new_id()
    head = 0
    for device, lag, clock, ops, is_projected in log:
        head = push(store, space, head, device, lag, clock, ops)
        if is_projected:
            store.page(space, RecordsQuery(1, at_least=head))
    store.page(space, RecordsQuery(1, at_least=head))
    if data.draw(st.booleans()):
        Rebuilder(store.datastore, store.projector._projection).rebuild(space, verify=True)
    check_moments(store, space, data)


@examples(20)
@given(pushes, st.data())
def test_any_moment_of_any_log_in_memory(log, data):
    """The store in memory folds the log for each question; its answers are the same."""
    store, head = MemoryStore(), 0
    for device, lag, clock, ops, _ in log:
        head = push(store, "s", head, device, lag, clock, ops)
    check_moments(store, "s", data)


def check_moments(store, space: str, data: st.DataObject) -> None:
    past = Past(store, space)
    limit = data.draw(st.integers(1, 3))
    for seq in range(past.head + 1):
        _, found = all_as_of(store, space, Point(seq), limit=limit)
        assert texts(found) == texts(past.as_of(seq))
    for key in past.views(past.head):
        found = whole_history(store, space, key, limit=limit)
        assert texts(found) == texts(past.history(key))
    start = data.draw(st.integers(0, past.head))
    to = data.draw(st.integers(start, past.head))
    found = whole_diff(store, space, Point(start), Point(to), limit=limit)
    assert texts(found) == texts(past.diff(start, to))


def live_fields(store, space: str, entry: Json) -> Json | None:
    """The fields of a conflict's record, or `None` if it is deleted."""
    page = store.record(space, (entry["collection"], entry["id"]))
    record = json.loads(page.records[0])
    return None if record["is_deleted"] else record["fields"]


@examples(150)
@given(pushes)
def test_lost_values_are_restored(log):
    """An unknown device pushes every `restore` of the ledger. A value is set again; an absence is
    restored without creating the record again; a number is added to the current value. A number
    that could not be added has no `restore`."""
    store, head = MemoryStore(), 0
    for device, lag, clock, ops, _ in log:
        head = push(store, "s", head, device, lag, clock, ops)
    ledger = [kept_conflict(c) for c in store.conflicts("s", limit=1_000, cursor=None).conflicts]
    for number, entry in enumerate(ledger):
        # The ledger is read again before each restore, as a user's app would do.
        told = json.loads(store.conflicts("s", limit=1_000, cursor=None).conflicts[number])
        assert kept_conflict(json.dumps(told).encode()) == entry
        before = live_fields(store, "s", entry)
        if entry["rule"] == "not-addable":
            assert told["restore"] is None
            continue
        sent = changeset(*told["restore"]["ops"], base=told["restore"]["base"])
        store.push("s", push_of(sent, device=new_id()))
        check_restored(entry, before, live_fields(store, "s", entry))


def check_restored(entry: Json, before: Json | None, after: Json | None) -> None:
    field, lost = entry["field"], entry["lost"]
    if "value" not in lost:
        assert field not in (after or {})
        assert (after is None) == (before is None)
        return
    assert after is not None
    if entry["op"] == "add" and entry["rule"] == "deleted":
        was = (before or {}).get(field, 0)
        is_number = isinstance(was, int | float) and not isinstance(was, bool)
        total = float(was) + lost["value"] if is_number else was
        if is_number and abs(total) < 1e308 * 1.7:
            assert canonical(after[field]) == canonical(total)
        else:
            assert canonical(after[field]) == canonical(was)
    else:
        assert canonical(after[field]) == canonical(lost["value"])
