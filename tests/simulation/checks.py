"""The checks of the simulation after all devices have healed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from foldlog.domain.events import decode_event
from foldlog.domain.merge import Conflict, Key, Record, conflict_document, fold
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import all_conflicts, all_records
from tests.new_device import states_of
from tests.oracle import Oracle, canonical

from .device import SPACE, Device

if TYPE_CHECKING:
    from .world import World


class Truth:
    """The log, folded twice: by the product, and by an independent oracle."""

    def __init__(self, store: MemoryStore):
        self.states = [entry.state for entry in store._space(SPACE).entries]
        self.events = [msgspec.json.decode(state) for state in self.states]
        self.records: dict[Key, Record] = {}
        self.conflicts: list[Conflict] = []
        for state in self.states:
            self.conflicts += fold(self.records, decode_event(state))
        self.oracle = Oracle().fold(*self.events)

    @property
    def verdicts(self) -> dict[str, str]:
        return {e["id"]: e["verdict"] for e in self.events if e["kind"] == "changeset"}


def check_all(world: World) -> None:
    truth = Truth(world.store)
    check_log(truth)
    check_service(world.store, truth)
    for device in world.devices:
        check_replica(device, truth)
        check_erased(device, truth)
        check_queue(device, truth, was_restored=world.was_restored)
    if not world.was_restored:
        ever = world.acknowledged.union(*(device.acknowledged for device in world.devices))
        assert ever <= truth.verdicts.keys(), "an acknowledged changeset is missing in the log"


def check_log(truth: Truth) -> None:
    head = len(truth.events)
    assert [event["seq"] for event in truth.events] == list(range(1, head + 1))
    assert len({event["id"] for event in truth.events}) == head, "the log has a changeset twice"
    times = [event["received_at"] for event in truth.events]
    assert times == sorted(times)


def check_service(store: MemoryStore, truth: Truth) -> None:
    """The master table, a new fold and the oracle have equal records and conflicts."""
    head = len(truth.events)
    views = {key: text(view) for key, view in truth.oracle.views().items()}
    table = all_records(store, SPACE, at_least=head, changed_after=0)
    assert {(row["collection"], row["id"]): text(row) for row in table} == views
    assert {
        key: text(as_json(record)) for key, record in truth.records.items() if record.exists
    } == views
    lost = sorted(map(text, truth.oracle.ledger))
    assert sorted(map(text, all_conflicts(store, SPACE, at_least=head))) == lost
    assert sorted(text(conflict_document(conflict)) for conflict in truth.conflicts) == lost


def check_replica(device: Device, truth: Truth) -> None:
    """The confirmed and the shown records equal the fold, field by field."""
    rows = device.replica._store.database.connection.execute(
        "SELECT collection, id, confirmed FROM records WHERE confirmed IS NOT NULL"
    )
    confirmed = {
        (collection, id): msgspec.json.decode(document, type=Record)
        for collection, id, document in rows
    }
    assert_equal(states_of(confirmed), states_of(truth.records), f"{device.name}: confirmed")
    shown = {
        (r.collection, r.id): canonical(
            [dict(r.fields), r.is_deleted, r.last_modified, r.seq, r.sync_status]
        )
        for r in device.records()
    }
    expected = {
        key: canonical([r.fields, r.is_deleted, r.last_modified, r.seq, 0])
        for key, r in truth.records.items()
        if r.exists
    }
    assert_equal(shown, expected, f"{device.name}: shown")


def check_erased(device: Device, truth: Truth) -> None:
    """Each device has erased the values that were written before it saw the erasure."""
    db = device.replica._store.database.connection
    erasures = {decode_event(s).erased_key: decode_event(s).seq for s in truth.states}
    kept = [(base, seq, ops) for base, seq, ops in db.execute("SELECT base, seq, ops FROM sent")]
    kept += db.execute("SELECT base, NULL, ops FROM queue").fetchall()
    for base, seq, ops in kept:
        for op in msgspec.json.decode(ops):
            erased = erasures.get((op["collection"], op["id"]), 0)
            is_unseen = base < erased or (seq is not None and seq < erased)
            assert not is_unseen or "erased" in op, f"{device.name} keeps {op} of {base}, {seq}"


def check_queue(device: Device, truth: Truth, *, was_restored: bool) -> None:
    """The queue has refused changesets alone, and the log has all others of the device."""
    status = device.replica.status()
    assert (status.unsent, status.unacknowledged, status.lag) == (0, 0, 0), device.name
    assert status.problem is None
    assert status.after == len(truth.events)
    refused = {refusal.id: refusal for refusal in status.refused}
    assert all(refusal.code and refusal.operations for refusal in refused.values())
    verdicts = truth.verdicts
    for id in device.acknowledged:
        # A restored server gets it again, and its guard may refuse it then.
        is_there = verdicts.get(id) == "stored" or (was_restored and id in verdicts)
        assert is_there, f"{device.name}: acknowledged, not in the log: {id}"
    for (id,) in device.replica._store.database.connection.execute("SELECT id FROM sent"):
        assert verdicts.get(id) == "stored", f"{device.name}: left the queue, not in the log: {id}"
    for id in device.made - refused.keys():
        assert verdicts.get(id) == "stored", f"{device.name}: made, not in the log: {id}"
    for id, refusal in refused.items():
        if refusal.state == "rejected":
            # Two copies of a device sent it, one of them erased. The server has lost the erasure,
            # so it rejects the copy that arrives second.
            is_other_copy = refusal.code == "id-reused" and was_restored and device.world.erased
            assert is_other_copy or id not in verdicts
        elif not was_restored:
            assert verdicts.get(id) == "refused"
    if not was_restored:
        ledger = Counter(text(conflict_document(conflict)) for conflict in truth.conflicts)
        documents = device.replica._store.conflicts.select_after(0)
        kept = Counter(text(msgspec.json.decode(document)) for _, document in documents)
        assert kept <= ledger, f"{device.name}: losses that the ledger does not have"


def assert_equal(found: dict[Key, str], expected: dict[Key, str], what: str) -> None:
    different = {
        key: (found.get(key), expected.get(key))
        for key in found.keys() | expected.keys()
        if found.get(key) != expected.get(key)
    }
    assert not different, f"{what} differs (found, expected): {different}"


def as_json(record: Record) -> dict[str, Any]:
    return {
        "collection": record.collection,
        "id": record.id,
        "fields": record.fields,
        "is_deleted": record.is_deleted,
        "last_modified": record.last_modified,
        "seq": record.seq,
        "created_seq": record.created_seq,
    }


def text(document: Any) -> str:
    return canonical(document)
