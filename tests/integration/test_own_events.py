"""Events of the service itself: appended under the lock that pushes take, or rolled back."""

from __future__ import annotations

import pytest

from foldlog.domain.errors import UnknownSpace
from foldlog.domain.events import body_entry
from foldlog.domain.ports import RangeQuery
from tests.helpers import changeset, push_of, put


def append_note(stores, space: str, **options):
    with stores.append_service_event(space) as transaction:
        transaction.lock(**options)
        entry = body_entry(transaction.envelope, "noted", {"note": "by an admin"})
        transaction.append(entry)
    return entry


def test_it_follows_what_was_pushed_and_pushes_follow_it(stores):
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    entry = append_note(stores, "s")
    assert entry.seq == 2
    receipt = stores.push("s", push_of(changeset(put(n=2), counter=2, base=2)))
    assert receipt.verdicts[0].seq == 3
    page = stores.range_after("s", RangeQuery(0, 10))
    assert page.head == 3 and page.events[1] == entry.state


def test_the_locked_state_is_the_head(stores):
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    page = stores.range_after("s", RangeQuery(0, 10))
    with stores.append_service_event("s") as transaction:
        state = transaction.lock()
    assert (state.log, state.head, state.mark) == (page.log, 1, page.mark)


def test_a_block_without_an_event_is_rolled_back(stores):
    """Its other statements too, whether it ends, returns or raises."""
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    rename = "UPDATE spaces SET mark = 'other' WHERE space = 's'"
    with stores.append_service_event("s") as transaction:
        transaction.lock()
        transaction.cursor.execute(rename)

    def returns():
        with stores.append_service_event("s") as transaction:
            transaction.lock()
            transaction.cursor.execute(rename)
            return

    returns()
    with pytest.raises(ZeroDivisionError), stores.append_service_event("s") as transaction:
        transaction.lock()
        transaction.append(body_entry(transaction.envelope, "noted", {}))
        raise ZeroDivisionError
    page = stores.range_after("s", RangeQuery(0, 10))
    assert page.head == 1 and page.mark != "other"
    assert append_note(stores, "s").seq == 2


def test_the_space_must_exist(stores):
    with pytest.raises(UnknownSpace):
        append_note(stores, "nowhere")


def test_it_may_create_the_space(stores):
    assert append_note(stores, "new", creates_space=True).seq == 1
    with stores.append_service_event("new") as transaction:
        transaction.lock(creates_space=True)
    assert stores.push("new", push_of(changeset())).head == 2


def test_a_block_without_an_event_creates_no_space(stores):
    with stores.append_service_event("new") as transaction:
        transaction.lock(creates_space=True)
    with pytest.raises(UnknownSpace):
        stores.range_after("new", RangeQuery(0, 10))


def test_watchers_of_the_space_are_notified(stores):
    stores.push("s", push_of(changeset(put(n=1), counter=1)))
    notified = []
    stores.watch("s", lambda: notified.append(1))
    append_note(stores, "s")
    assert notified
