"""The contract of every snapshot: a device that starts from it has the same records as others."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import msgspec
import pytest

from foldlog.domain.errors import InvalidRequest, LogBehind, LogChanged, UnknownSpace
from foldlog.domain.ports import RangeQuery, RecordsQuery, SnapshotCursor
from foldlog.domain.snapshot import snapshot_line
from tests.conftest import LIMITS
from tests.helpers import A, B, C, add, delete, push_of, put
from tests.new_device import NewDevice, fold_of, lines_of, states_of, with_limits

from .test_master_table import CURSORS, HEAD, NASTY, lived_in, sync  # noqa: F401

Json = dict[str, Any]


def paged(store, size: int, **limits: int):
    return with_limits(store, msgspec.structs.replace(LIMITS, page_snapshot_records=size, **limits))


def project(store, space: str, head: int) -> None:
    store.page(space, RecordsQuery(1, at_least=head))


# -- At rest -----------------------------------------------------------------------------------


def test_it_is_the_fold_of_the_log_whatever_the_page_size(store, lived_in):  # noqa: F811
    """Every record that ever existed, in the order of keys, with its writes and its last delete.
    Records that were only touched are left out. Pages are full, and the last one has a null
    cursor.
    """
    expected = fold_of(store, lived_in)
    assert ("tasks", "never") not in expected
    for size in [*range(1, len(expected) + 2), 1_000]:
        snapshot = paged(store, size).snapshot(lived_in, at_least=HEAD)
        pages = list(snapshot.pages)
        records = [snapshot_line(line) for page in pages for line in page.records]
        keys = [(record.collection, record.id) for record in records]
        assert keys == list(expected)
        assert states_of(dict(zip(keys, records, strict=True))) == expected
        assert snapshot.header.records == len(expected)
        assert {page.at for page in pages} == {HEAD}
        assert all(len(page.records) == size for page in pages[:-1])
        assert [page.cursor is None for page in pages] == [False] * (len(pages) - 1) + [True]


def test_the_header_says_where_to_follow_from(store, lived_in):  # noqa: F811
    """The log accepts its seq and mark as a cursor."""
    header = store.snapshot(lived_in, at_least=HEAD).header
    page = store.range_after(lived_in, RangeQuery(HEAD, 9))
    assert (header.log, header.seq, header.mark) == (page.log, HEAD, page.mark)
    assert store.range_after(lived_in, RangeQuery(header.seq, 9, mark=header.mark)).events == []


def test_a_line_has_these_members(store, space):
    """The wire format of docs/reference/protocol.md, in one order, with the values as sent."""
    sync(store, space, put("r", **NASTY), put("s", a=1), put("s", b=1))
    head = sync(store, space, delete("r"), add("s", a=1), put("t"), base=1, device=B)
    received = [
        json.loads(event)["received_at"]
        for event in store.range_after(space, RangeQuery(0, 9)).events
    ]
    times = [json.loads(e)["time"] for e in store.range_after(space, RangeQuery(0, 9)).events]
    header, r, s, t, end = map(json.loads, lines_of(store.snapshot(space, at_least=head)))
    log = store.push(space, push_of()).log
    mark = store.range_after(space, RangeQuery(2, 9)).mark
    assert list(header.items()) == [("log", log), ("seq", 2), ("mark", mark), ("records", 3)]
    merged = [2, B, max(times), 1, ["a"]]
    for record, expected in [
        (r, ["r", {}, True, received[1], 2, 1, [], [2, B, times[1], 0]]),
        (
            s,
            [
                "s",
                {"a": 2, "b": 1},
                False,
                received[1],
                2,
                1,
                [[1, A, times[0], 0, ["b"]], merged],
                None,
            ],
        ),
        (t, ["t", {}, False, received[1], 2, 2, [], None]),
    ]:
        names = ["id", "fields", "is_deleted", "last_modified", "seq", "created_seq", "writes"]
        pairs = zip([*names, "deleted"], expected, strict=True)
        assert list(record.items()) == [("collection", "tasks"), *pairs]
    assert list(end.items()) == [("at", 2), ("mark", header["mark"]), ("cursor", None)]


def test_values_come_as_they_are_stored(store, space):
    """NUL, large numbers, whole floats, and keys of any kind."""
    head = sync(store, space, put("r", **NASTY))
    (page,) = store.snapshot(space, at_least=head).pages
    assert json.dumps(json.loads(page.records[0])["fields"]) == json.dumps(NASTY)


def test_a_space_without_records(store, space):
    """A space that is empty, or has only events without records, has one empty page."""
    store.push(space, push_of())
    log = store.push(space, push_of()).log
    lines = [json.loads(line) for line in lines_of(store.snapshot(space))]
    assert lines == [
        {"log": log, "seq": 0, "mark": "", "records": 0},
        {"at": 0, "mark": "", "cursor": None},
    ]
    sync(store, space, {**put(), "if_seq": 9})
    head = sync(store, space, delete("never"))
    device = NewDevice()
    device.load(lines_of(store.snapshot(space, at_least=head)))
    assert (device.is_whole, device.records, device.first.records) == (True, {}, 0)
    assert device.first.seq == head


def test_spaces_do_not_mix(store, space):
    """A snapshot has only the records of its own space."""
    sync(store, f"{space}.other", put("x"))
    head = sync(store, space, put("y"))
    (page,) = store.snapshot(space, at_least=head).pages
    assert [json.loads(line)["id"] for line in page.records] == ["y"]


def test_a_page_ends_early_but_is_never_empty_when_records_are_large(store, space):
    """A page waits in memory for a slow reader. Large values count with their uncompressed size."""
    sizes = [10, 5_000, 10, 1_000, 10, 900_000, 10]
    head = sync(store, space, *(put(f"r{n}", text="x" * size) for n, size in enumerate(sizes)))
    snapshot = paged(store, 100, page_bytes_max=3_000).snapshot(space, at_least=head)
    pages = list(snapshot.pages)
    assert [json.loads(line)["id"] for page in pages for line in page.records] == [
        f"r{n}" for n in range(len(sizes))
    ]
    assert [len(page.records) for page in pages] == [1, 1, 3, 1, 1]
    assert snapshot.header.records == len(sizes)


# -- While others write ------------------------------------------------------------------------


def someone_writes(store, space: str, random: random.Random, head: int) -> int:
    """One changeset of any device on any records, with any base up to the head."""
    ids = "abcdefgh"
    ops = [
        random.choice(
            [
                put(id, c, n=random.randrange(9)),
                put(id, c, n=random.randrange(9), m=1),
                {**put(id, c), "unset": ["n"]},
                add(id, c, n=1),
                add(id, c, k=0.5),
                delete(id, c),
                delete(f"{id}-never", c),
            ]
        )
        for id, c in random.sample(list(itertools.product(ids, ["tasks", "stats"])), 3)
    ]
    return sync(
        store,
        space,
        *ops,
        base=random.randint(max(0, head - 4), head),
        device=random.choice([A, B, C]),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 2, 5])
def test_whoever_starts_from_a_snapshot_ends_where_the_log_leads(store, space, size, seed):
    """The whole protocol. Pages are read lazily while devices push, so records of earlier and
    later pages change, appear and disappear. The download is cut at any line and resumes with
    its cursor, and the projection follows now and then. At the end the records equal a fresh
    fold.
    """
    dice = random.Random(f"{size} {seed}")
    head = 0
    for _ in range(12):
        head = someone_writes(store, space, dice, head)
    project(store, space, head)
    reader, device, cuts = paged(store, size), NewDevice(), 0

    def heard(snapshot):
        nonlocal head
        for line in lines_of(snapshot):
            if dice.random() < 0.2 and cuts < 6:
                return
            yield line
            if dice.random() < 0.4:
                head = someone_writes(store, space, dice, head)
            if dice.random() < 0.4:
                project(store, space, head)

    while not device.is_whole:
        device.load(heard(reader.snapshot(space, cursor=device.cursor)))
        cuts += not device.is_whole
    for _ in range(3):
        head = someone_writes(store, space, dice, head)
    device.follow(store, space)
    assert device.states() == fold_of(store, space)


def test_pages_are_true_at_their_own_seq(store, space):
    """A change between two pages is in the second one, with the seq of its state."""
    head = sync(store, space, *(put(id, n=1) for id in "abcd"))
    snapshot = paged(store, 2).snapshot(space, at_least=head)
    first = next(snapshot.pages)
    head = sync(store, space, put("a", n=2), put("d", n=2), put("aa"), put("cc"), device=B)
    project(store, space, head)
    rest = list(snapshot.pages)
    assert snapshot.header.seq == first.at == 1
    assert {page.at for page in rest} == {2}
    found = [json.loads(line) for page in [first, *rest] for line in page.records]
    assert [(r["id"], r["fields"]) for r in found] == [
        ("a", {"n": 1}),
        ("b", {"n": 1}),
        ("c", {"n": 1}),
        ("cc", {}),
        ("d", {"n": 2}),
    ]


def test_a_snapshot_goes_on_with_the_cursor_of_any_page(store, lived_in):  # noqa: F811
    """The same records follow, and the header counts them."""
    reader = paged(store, 2)
    pages = list(reader.snapshot(lived_in, at_least=HEAD).pages)
    assert len(pages) > 3
    for number, page in enumerate(pages[:-1], 1):
        resumed = reader.snapshot(lived_in, cursor=page.cursor)
        rest = list(resumed.pages)
        assert rest == pages[number:]
        assert resumed.header.records == sum(len(page.records) for page in rest)


# -- Refused questions --------------------------------------------------------------------------


def test_an_unknown_space(store, space):
    """It is refused at once, before the first page is read."""
    with pytest.raises(UnknownSpace):
        store.snapshot(space)


def test_a_cursor_that_no_snapshot_gave(store, lived_in):  # noqa: F811
    """Includes a cursor of a page of records."""
    by_key = store.page(lived_in, RecordsQuery(1, at_least=HEAD)).cursor
    for cursor in [*CURSORS, by_key]:
        with pytest.raises(InvalidRequest):
            store.snapshot(lived_in, cursor=cursor)


def test_a_cursor_of_another_history(store, lived_in):  # noqa: F811
    """Pages of two histories must stay apart, so the device begins anew."""
    log = store.snapshot(lived_in, at_least=HEAD).header.log
    with pytest.raises(LogBehind):
        store.snapshot(lived_in, cursor=SnapshotCursor(log, HEAD + 1, "", "tasks", "a").cursor)
    with pytest.raises(LogChanged):
        store.snapshot(lived_in, cursor=SnapshotCursor("other", 1, "", "tasks", "a").cursor)


def test_it_has_what_was_answered(store, space):
    """With `at_least`, as in every read of the master table. A seq beyond the log is refused at
    once.
    """
    head = sync(store, space, put())
    assert store.snapshot(space, at_least=head).header.seq == head
    with pytest.raises(LogBehind):
        store.snapshot(space, at_least=head + 1)
