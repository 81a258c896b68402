"""Events of the service's own: appended under the lock that pushes take, or not at all."""

from __future__ import annotations

import pytest

from foldlog.domain.errors import UnknownSpace
from foldlog.domain.events import Envelope, body_entry
from foldlog.domain.ports import RangeQuery
from tests.helpers import changeset, new_id, push_of, put


def decide_once(cursor, locked):
    return body_entry(
        Envelope(locked.head + 1, new_id(), locked.received_at, bytes(32)),
        "noted",
        {"note": "by an admin"},
    )


def test_it_follows_what_was_pushed_and_pushes_follow_it(stores):
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    entry = stores.append_service_event("s", decide_once)
    assert entry.seq == 2
    receipt = stores.push("s", push_of(changeset(put(n=2), counter=2, base=2)))
    assert receipt.verdicts[0].seq == 3
    page = stores.range_after("s", RangeQuery(0, 10))
    assert page.head == 3 and page.events[1] == entry.state


def test_what_is_not_decided_leaves_no_trace(stores):
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    assert stores.append_service_event("s", lambda cursor, locked: None) is None
    with pytest.raises(ZeroDivisionError):
        stores.append_service_event("s", lambda cursor, locked: 1 / 0)
    assert stores.range_after("s", RangeQuery(0, 10)).head == 1


def test_there_must_be_such_a_space(stores):
    with pytest.raises(UnknownSpace):
        stores.append_service_event("nowhere", decide_once)


def test_one_may_make_the_space(stores):
    assert stores.append_service_event("new", decide_once, makes_space=True).seq == 1
    assert stores.append_service_event("new", lambda cursor, locked: None, makes_space=True) is None
    assert stores.push("new", push_of(changeset())).head == 2


def test_what_is_not_decided_makes_no_space(stores):
    assert stores.append_service_event("new", lambda cursor, locked: None, makes_space=True) is None
    with pytest.raises(UnknownSpace):
        stores.range_after("new", RangeQuery(0, 10))


def test_who_waits_for_the_space_is_told(stores):
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    told = []
    stores.watch("s", lambda: told.append(1))
    stores.append_service_event("s", decide_once)
    assert told
