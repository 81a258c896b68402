"""A device that starts from a snapshot ends with the state of the log, for any events meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.limits import Limits
from foldlog.domain.ports import Snapshot
from foldlog.domain.snapshot import snapshot_line, snapshot_view
from foldlog.infrastructure.memory.store import MemoryStore
from tests.examples import examples
from tests.helpers import A, B, C, changeset, push_of
from tests.new_device import NewDevice, fold_of, lines_of, states_of

from .test_merge_properties import OPERATIONS, folded, histories

Json = dict[str, Any]
SPACE = "s"
#: Other devices draw from the same operations as histories do, except erased ones, which only the
#: log may hold.
PUSHABLE = [op for op in OPERATIONS if "erased" not in op]

pushes = st.tuples(
    st.sampled_from([A, B, C]),
    st.integers(0, 30),  # how far its base lags
    st.integers(0, 4),  # its clock
    st.lists(st.sampled_from(PUSHABLE), min_size=1, max_size=3),
)


class Others:
    """The devices that push while our device loads."""

    def __init__(self, store: MemoryStore):
        self.store = store
        self.head = store.push(SPACE, push_of()).head

    def push(self, device: str, lag: int, clock: int, ops: list[Json]) -> None:
        made_at = f"2026-11-23T08:59:5{clock}.000Z"
        sent = changeset(*map(dict, ops), base=max(0, self.head - lag), made_at=made_at)
        self.head = self.store.push(SPACE, push_of(sent, device=device)).head


@examples(100)
@given(
    st.integers(1, 3),
    st.lists(pushes, max_size=8),
    st.lists(st.none() | st.just("cut") | pushes, max_size=20),
    st.lists(pushes, max_size=3),
)
def test_a_device_from_a_snapshot_reaches_the_state_of_the_log(size, before, meanwhile, after):
    """The device's records equal a fresh fold, with every write and delete that decides later
    merges. This holds for any log before the download, any event before each of its lines (none, a
    push, a cut), and any events after it."""
    store = MemoryStore(limits=Limits(page_snapshot_records=size))
    others, device = Others(store), NewDevice()
    for push in before:
        others.push(*push)
    happenings = iter(meanwhile)

    def heard(snapshot: Snapshot) -> Iterator[bytes]:
        for line in lines_of(snapshot):
            happening = next(happenings, None)
            if happening == "cut":
                return
            yield line
            if happening is not None:
                others.push(*happening)

    while not device.is_whole:
        device.load(heard(store.snapshot(SPACE, cursor=device.cursor)))
    for push in after:
        others.push(*push)
    device.follow(store, SPACE)

    assert device.states() == fold_of(store, SPACE)


@examples(50)
@given(histories())
def test_a_line_holds_all_that_the_merge_needs(history):
    """A record arrives unchanged over the wire, except for the facts about its last authors."""
    records, _ = folded(history)
    read = {
        key: snapshot_line(msgspec.json.encode(snapshot_view(record)))
        for key, record in records.items()
    }
    assert states_of(read) == states_of(records)
    assert [r.writes for r in read.values()] == [r.writes for r in records.values()]
