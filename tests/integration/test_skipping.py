"""An event that cannot be folded is stepped over: by an event that says so, for every fold."""

from __future__ import annotations

import pytest
from msgspec.json import decode

from foldlog.domain.errors import InvalidRequest, NotStopped, ProjectionBehind, UnknownSpace
from foldlog.domain.ports import RangeQuery, RecordsQuery
from foldlog.infrastructure.postgres.master import MasterProjection
from foldlog.infrastructure.postgres.rebuild import Rebuilder
from foldlog.scripts.replay import fold_all, sorted_records
from tests.helpers import changeset, push_of, put
from tests.integration.test_projector import master_status, poison


@pytest.fixture
def stopped(database, stores):
    """A space whose master table stands still at seq 3, of 4."""
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
    """At once; the event says which one, why, and who decided it."""
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
    """A rebuild, compared with the live table; a replay; what differs between two moments."""
    stopped.skip("s", 3, reason="r")
    stopped.project()

    Rebuilder(datastore, MasterProjection()).rebuild("s", verify=True)

    assert stopped.skipped("s") == {3}
    states = [entry.state for entry in stopped.entries("s", through=5)]
    records, _ = fold_all(states, skipped=stopped.skipped("s"))
    assert [record.id for record in sorted_records(records)] == ids(stopped) == ["a", "b", "c"]


def test_guards_are_decided_again(stopped):
    """Until then they cannot be: what the event says of the record nobody knows."""
    guarded = changeset({**put("a", x=2), "if_seq": 1})
    with pytest.raises(ProjectionBehind):
        stopped.push("s", push_of(guarded))

    stopped.skip("s", 3, reason="r")

    assert stopped.push("s", push_of(guarded)).verdicts[0].verdict == "stored"
    stopped.project()
    assert stopped.push("s", push_of(changeset({**put("a"), "if_seq": 6}))).head == 7


@pytest.mark.parametrize("seq", [1, 2, 4, 99])
def test_only_where_the_table_stands_still(stopped, seq):
    """What was folded stays folded: a skip is no way to take somebody's change away."""
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
