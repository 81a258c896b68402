"""The central promise: a reader that asks for events after N gets every later event."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import msgspec
import pytest

from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from tests.helpers import changeset, new_id, push_of, put

WRITERS = 8
PUSHES_EACH = 40
BATCH_SIZES = (1, 1, 1, 2, 5, 20, 60)
SECONDS_MAX = 120


@pytest.mark.seconds(10)
@pytest.mark.parametrize("spaces", [1, 4], ids=["one space", "many spaces"])
def test_a_tailing_reader_sees_every_event(database, spaces):
    """Eight writers push batches of mixed sizes at once, each through its own store, like
    separate processes. A reader of each space repeatedly asks for the events after its last seq.
    At the end every reader has all events of its space, once each and in unbroken order, and
    they are still the same when read again. The seqs are in the order of the answers.
    """
    names = [f"space-{n}" for n in range(spaces)]
    finished = Event()

    with Datastore(database, pool_size_max=WRITERS + spaces + 1) as datastore:
        reading = PostgresEventStore(datastore)

        def write(number: int) -> list[tuple[str, str, int, float, float]]:
            store, rng, device = PostgresEventStore(datastore), random.Random(number), new_id()
            counters = dict.fromkeys(names, 0)
            acknowledged = []
            for _ in range(PUSHES_EACH):
                space, size = rng.choice(names), rng.choice(BATCH_SIZES)
                batch = [
                    changeset(put(id=new_id(), n=n), counter=counters[space] + n + 1)
                    for n in range(size)
                ]
                counters[space] += size
                before = time.monotonic()
                receipt = store.push(space, push_of(*batch, device=device))
                after = time.monotonic()
                acknowledged += [(space, v.id, v.seq, before, after) for v in receipt.verdicts]
            return acknowledged

        def tail(space: str) -> list[bytes]:
            seen: list[bytes] = []
            after, mark = 0, ""
            deadline = time.monotonic() + SECONDS_MAX
            while time.monotonic() < deadline:
                is_last_look = finished.is_set()
                page = reading.range_after(space, RangeQuery(after, 37, mark=mark))
                seen += page.events
                after, mark = page.through, page.mark
                if is_last_look and not page.more:
                    return seen
            raise AssertionError("the reader never came to an end")

        for space in names:
            reading.push(space, push_of())
        with ThreadPoolExecutor(WRITERS + spaces) as threads:
            readers = {space: threads.submit(tail, space) for space in names}
            try:
                written = [item for items in threads.map(write, range(WRITERS)) for item in items]
            finally:
                finished.set()

        for space in names:
            seen = readers[space].result()
            events = [msgspec.json.decode(state) for state in seen]
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            own = {id: seq for name, id, seq, *_ in written if name == space}
            assert {event["id"]: event["seq"] for event in events} == own
            assert seen == [e.state for e in reading.entries(space, through=len(seen))]
            assert_real_time_order([(s, b, a) for name, _, s, b, a in written if name == space])


def assert_real_time_order(acknowledged: list[tuple[int, float, float]]) -> None:
    """Checks that a push that was answered before another was sent has the smaller seq."""
    by_seq = sorted(acknowledged)
    earliest_answer_after = float("inf")
    for _, before, after in reversed(by_seq):
        assert before <= earliest_answer_after
        earliest_answer_after = min(earliest_answer_after, after)
