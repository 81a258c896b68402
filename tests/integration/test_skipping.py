"""Skipping an event that the fold cannot process: one event tells every later fold."""

from __future__ import annotations

import psycopg
import pytest
from msgspec.json import decode

from foldlog.domain.errors import InvalidRequest, NotStopped, ProjectionBehind, UnknownSpace
from foldlog.domain.merkle import Tile
from foldlog.domain.ports import RangeQuery, RecordsQuery
from foldlog.domain.proofs import leaf_hash
from foldlog.domain.skipping import is_readable
from foldlog.domain.times import parse_time
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.status import status
from foldlog.scripts.commands.replay import fold_all, sorted_records
from tests.helpers import A, changeset, pull_all, push_of, put
from tests.integration.test_projector import master_status, poison
from tests.integration.test_proof_tiles import tiles_of


@pytest.fixture
def stopped(database, stores):
    """A space with 4 events whose master table is halted at seq 3."""
    stores.push("s", push_of(changeset(put("a", x=1)), changeset(put("b", x=1))))
    poison(database, "s", 3)
    stores.project()
    stores.push("s", push_of(changeset(put("c", x=1))))
    stores.project()
    [line] = master_status(stores.datastore, "s")
    assert (line.position, line.stopped_at) == (2, 3)
    return stores


def ids(stores, space: str = "s") -> list[str]:
    return [decode(record)["id"] for record in stores.page(space, RecordsQuery(10)).records]


def test_a_space_goes_on_after_what_is_skipped(stopped):
    """The master table resumes at once. The event names the skipped one, the reason and the
    author.
    """
    skipped = stopped.skip("s", 3, reason="written past the service", by="on call")
    stopped.project()

    assert skipped == (3, 5)
    [line] = master_status(stopped.datastore, "s")
    assert (line.position, line.stopped_at, line.stopped_why) == (5, None, None)
    assert ids(stopped) == ["a", "b", "c"]
    event = decode(stopped.range_after("s", RangeQuery(4, 10)).events[0])
    assert event["kind"] == "event-skipped"
    assert event["body"] == {"seq": 3, "reason": "written past the service", "by": "on call"}


def test_every_later_fold_passes_over_it(stopped, datastore):
    """A rebuild that is compared with the live table, a replay, and a diff of two moments."""
    stopped.skip("s", 3, reason="r")
    stopped.project()

    Rebuilder(datastore, MasterProjection()).rebuild("s", verify=True)

    assert stopped.skipped("s") == {3}
    states = [entry.state for entry in stopped.entries("s", through=5)]
    records, _ = fold_all(states, skipped=stopped.skipped("s"))
    assert [record.id for record in sorted_records(records)] == ids(stopped) == ["a", "b", "c"]


def test_guards_are_decided_again(stopped):
    """Before the skip they cannot be decided, because the meaning of the event is unknown."""
    guarded = changeset({**put("a", x=2), "if_seq": 1})
    with pytest.raises(ProjectionBehind):
        stopped.push("s", push_of(guarded))

    stopped.skip("s", 3, reason="r")

    assert stopped.push("s", push_of(guarded)).verdicts[0].verdict == "stored"
    stopped.project()
    assert stopped.push("s", push_of(changeset({**put("a"), "if_seq": 6}))).head == 7


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_readers_get_past_what_is_no_json(stopped, limit):
    """Every reader gets an empty event of that seq, with any size of page and any query. This
    includes the device that the event names.
    """
    stopped.skip("s", 3, reason="r")
    asked = [{}, {"collections": ["tasks"]}, {"short_for_device": A}]
    for query in asked:
        events = list(map(decode, pull_all(stopped, "s", limit=limit, **query)))
        assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
        assert {"seq": 3, "kind": "skipped"}.items() <= events[2].items()
        assert parse_time(events[2]["received_at"]) == parse_time(events[0]["received_at"])


@pytest.mark.parametrize(
    "state",
    [b"\xff", b"[" * 9_000, b"[]", b'{"seq":3}', b'{"seq":"3"}', b"", b"{", b"null"],
)
def test_what_is_no_event_is_none_to_readers(state):
    assert not is_readable(3, state)


def test_what_can_be_read_is_given_as_it_is(stores):
    """Only the fold could not process it. Exports still need one line for each event."""
    stores.push("s", push_of(changeset()))
    [state] = pull_all(stores, "s")
    assert is_readable(1, state) and not is_readable(2, state)
    assert not is_readable(1, state.replace(b',"ops"', b'\n,"ops"'))


def test_proofs_go_on_after_what_is_skipped(stopped, database):
    """Its leaf is the hash of its bytes. Until the skip, the tree is halted before it."""
    stopped.grow_trees()
    assert position_of_proofs(stopped) == 2
    stopped.skip("s", 3, reason="r")
    with psycopg.connect(database) as conn:  # as after a pause
        conn.execute("UPDATE projections SET stopped_until = NULL")
    stopped.grow_trees()
    assert position_of_proofs(stopped) == 5
    leaves = [entry.leaf for entry in stopped.entries("s", through=5)]
    assert leaves[2].startswith(b'{"unreadable":')
    assert tiles_of(stopped, "s")[Tile(0, 0)] == b"".join(map(leaf_hash, leaves))


def position_of_proofs(stores) -> int:
    return next(s.position for s in status(stores.datastore, "s") if s.projection == "proofs")


@pytest.mark.parametrize("seq", [1, 2, 4, 99])
def test_only_where_the_table_stands_still(stopped, seq):
    """Applied events stay applied: a skip cannot remove a user's change."""
    with pytest.raises(NotStopped):
        stopped.skip("s", seq, reason="r")
    assert stopped.range_after("s", RangeQuery(0, 1)).head == 4


def test_a_space_that_goes_on_has_nothing_to_skip(stores):
    stores.push("s", push_of(changeset()))
    stores.project()
    with pytest.raises(NotStopped):
        stores.skip("s", 1, reason="r")
    with pytest.raises(UnknownSpace):
        stores.skip("t", 1, reason="r")
    with pytest.raises(InvalidRequest):
        stores.skip("s", 1, reason="")


def test_a_second_event_that_cannot_be_folded_is_skipped_as_well(database, stopped):
    poison(database, "s", 5)
    stopped.skip("s", 3, reason="r")
    stopped.project()
    assert master_status(stopped.datastore, "s")[0].stopped_at == 5

    stopped.skip("s", 5, reason="r")
    stopped.project()

    assert master_status(stopped.datastore, "s")[0].lag == 0
    assert stopped.skipped("s") == {3, 5}
    assert ids(stopped) == ["a", "b", "c"]
