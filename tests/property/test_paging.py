"""Any way of pulling a log gives the same log, and any retries lead to the same log."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.events import short_form
from foldlog.domain.limits import Limits
from foldlog.domain.ports import RangeQuery, RecordsQuery
from foldlog.infrastructure.memory.store import MemoryStore
from tests.examples import examples
from tests.helpers import PAGES_MAX, A, B, C, add, all_records, changeset, delete, push_of, put
from tests.oracle import Oracle, canonical

Json = dict[str, Any]
SPACE = "s"
NOW_MS = 1795424400000
COLLECTIONS = ["c", "d", "e"]
DEVICES = [A, B, C]

quick = examples(50)

names = st.sampled_from("pqr")
collections = st.sampled_from(COLLECTIONS)
ops = st.one_of(
    st.builds(lambda id, c, n: put(id, c, n=n), names, collections, st.integers(0, 3)),
    st.builds(lambda id, c: {**put(id, c), "if_seq": 0}, names, collections),
    st.builds(lambda id, c: add(id, c, n=1), names, collections),
    st.builds(lambda id, c: delete(id, c), names, collections),
)


def a_store(**limits: int) -> MemoryStore:
    """A store with a fixed clock, so that two stores can produce the same bytes."""
    return MemoryStore(now_ms=lambda: NOW_MS, limits=Limits(**limits))


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[str, Json]]:
    """Changesets with their devices, in the order of the log."""
    return [
        (draw(st.sampled_from(DEVICES)), changeset(*changes, base=draw(st.integers(0, seq))))
        for seq, changes in enumerate(
            draw(st.lists(st.lists(ops, min_size=1, max_size=3), max_size=12))
        )
    ]


def stored(log: list[tuple[str, Json]], **limits: int) -> tuple[MemoryStore, list[bytes]]:
    store = a_store(**limits)
    store.push(SPACE, push_of())
    for device, sent in log:
        store.push(SPACE, push_of(sent, device=device))
    return store, [entry.state for entry in store.entries(SPACE, through=len(log))]


@quick
@given(logs(), st.data())
def test_pulling_is_filtering_the_whole_log(log, data):
    """The joined pages are the filtered log, for any page sizes, filter, device, and limits on a
    page. Each page is within its limits and moves forward, and all but the last one
    report more events."""
    store, states = stored(
        log,
        page_scan_max=data.draw(st.integers(1, 14)),
        page_bytes_max=data.draw(st.sampled_from([1, 700, 2**20])),
    )
    wanted = data.draw(st.none() | st.lists(collections, unique=True))
    device = data.draw(st.none() | st.sampled_from(DEVICES))

    expected = []
    for (by, sent), state in zip(log, states, strict=True):
        if wanted is None or {op["collection"] for op in sent["ops"]} & set(wanted):
            expected.append(short_form(state) if by == device else state)

    found: list[bytes] = []
    after, mark = 0, ""
    for _ in range(PAGES_MAX):
        limit = data.draw(st.integers(1, 5))
        query = RangeQuery(after, limit, mark=mark, collections=wanted, short_for_device=device)
        page = store.range_after(SPACE, query)
        assert len(page.events) <= limit
        assert page.head == len(log)
        found += page.events
        if not page.more:
            break
        assert page.through > after
        after, mark = page.through, page.mark
    assert page.through == len(log)
    assert found == expected


@quick
@given(logs(), st.data())
def test_records_paged_in_any_way_are_the_fold(log, data):
    """Paging by key, or by changes since a seq, gives the oracle's records for any page size."""
    store, states = stored(log)
    views = list(Oracle().fold(*map(json.loads, states)).views().values())
    wanted = data.draw(st.none() | collections)
    limit = data.draw(st.integers(1, 5))
    since = data.draw(st.none() | st.integers(0, len(log)))

    found = all_records(
        store, SPACE, at_least=len(log), limit=limit, changed_after=since, collection=wanted
    )
    expected = [view for view in views if wanted in (None, view["collection"])]
    if since is None:
        expected = [view for view in expected if not view["is_deleted"]]
    else:
        expected = [view for view in expected if view["seq"] > since]
        expected.sort(key=lambda view: (view["seq"], view["collection"], view["id"]))
    assert list(map(canonical, found)) == list(map(canonical, expected))


@quick
@given(logs(), st.data())
def test_a_copy_that_follows_changes_equals_the_master_table(log, data):
    """A client that keeps records and sometimes asks for changes ends with the same records as a
    client that reads the whole table."""
    store = a_store()
    store.push(SPACE, push_of())
    copy: dict[tuple[str, str], Json] = {}
    seen = 0
    for device, sent in [*log, (A, changeset(put("last")))]:
        head = store.push(SPACE, push_of(sent, device=device)).head
        if head == len(log) + 1 or data.draw(st.booleans()):
            limit = data.draw(st.integers(1, 3))
            for record in all_records(store, SPACE, at_least=head, changed_after=seen, limit=limit):
                copy[record["collection"], record["id"]] = record
            seen = head

    live = [copy[key] for key in sorted(copy) if not copy[key]["is_deleted"]]
    whole = all_records(store, SPACE, at_least=seen)
    assert list(map(canonical, live)) == list(map(canonical, whole))


# -- Idempotency -------------------------------------------------------------------------------


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[dict[str, list[Json]], list[tuple[str, int, int]]]:
    """Each device's queue, and the deliveries: (device, from, to), a slice of its queue. A slice
    may begin anywhere in the delivered part, so it may be a retry, or a retry with new changesets.
    """
    queues = {
        device: [
            changeset(*draw(st.lists(ops, min_size=1, max_size=2)), counter=n)
            for n in range(1, draw(st.integers(1, 4)) + 1)
        ]
        for device in DEVICES
    }
    arrived = dict.fromkeys(DEVICES, 0)
    sent = []
    for device in draw(st.lists(st.sampled_from(DEVICES), max_size=15)):
        start = draw(st.integers(0, arrived[device]))
        end = draw(st.integers(start, len(queues[device])))
        sent.append((device, start, end))
        arrived[device] = max(arrived[device], end)
    return queues, sent


def without_repeat(answer: Any) -> bytes:
    answer.duplicate = False
    answer.records = msgspec.UNSET  # a refused one has the current records
    return msgspec.json.encode(answer)


@quick
@given(deliveries())
def test_repeated_pushes_give_the_same_log(case):
    """The log equals that of a network which delivers each changeset once, in the order of first
    arrival. Each answer equals the first one."""
    queues, sent = case
    often, once = a_store(), a_store()
    first: dict[str, bytes] = {}
    arrived = dict.fromkeys(DEVICES, 0)
    for device, start, end in sent:
        push = push_of(*queues[device][start:end], device=device)
        verdicts = often.push(SPACE, push).verdicts
        assert [answer.id for answer in verdicts] == [c.id for c in push.changesets]
        assert [answer.duplicate for answer in verdicts] == [
            n < arrived[device] for n in range(start, end)
        ]
        for answer in verdicts:
            text = without_repeat(answer)
            assert first.setdefault(answer.id, text) == text

        once.push(SPACE, push_of(*queues[device][arrived[device] : end], device=device))
        arrived[device] = max(arrived[device], end)

    if sent:
        total = sum(arrived.values())
        assert [entry.state for entry in often.entries(SPACE, through=total + 1)] == [
            entry.state for entry in once.entries(SPACE, through=total + 1)
        ]
        assert often.range_after(SPACE, RangeQuery(0, 1)).head == total
        for since in (None, 0):
            query = RecordsQuery(1_000, changed_after=since)
            assert often.page(SPACE, query).records == once.page(SPACE, query).records
