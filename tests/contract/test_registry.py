"""Devices and tokens, on every kind of store."""

from __future__ import annotations

import pytest

from foldlog.domain.access import EVERY_SPACE, Grant, Role
from foldlog.domain.errors import (
    DeviceRevoked,
    InvalidRequest,
    OutcomeUnknown,
    UnknownSpace,
    UnknownToken,
)
from foldlog.domain.events import decode_event
from foldlog.domain.limits import Limits
from foldlog.domain.ports import GRANT_FAILED, encode_cursor
from foldlog.domain.ports import registry as ports_registry
from tests.helpers import A, B, a_token, changeset, new_id, push_of, put

LATER_MS = 4_000_000_000_000
#: the lowest and the highest possible id
NIL, MAX = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"


@pytest.fixture
def grant(store, space):
    def grant(role, of=space, id=None, **members):
        _, digest = a_token()
        token = store.grant(of, id or new_id(), digest, Grant(role=Role(role), **members), "ada")
        return token, digest

    return grant


@pytest.fixture
def told(store, space):
    """Returns the service's own events of the log as (kind, body)."""

    def told():
        entries = store.entries(space, through=store.cached_head(space) or 1_000)
        events = (decode_event(entry.state) for entry in entries)
        return [(event.kind, event.body) for event in events if event.kind != "changeset"]

    return told


def test_granting_makes_the_space_and_says_so_in_its_log(grant, store, space, told):
    token, digest = grant("device", device=A, name="Anna's phone", expires_at=LATER_MS)
    assert store.token(space, digest) == token
    assert store.tokens(space) == [token]
    assert told() == [
        ("device-registered", {"device": A, "by": "ada"}),
        (
            "token-granted",
            {
                "token": token.id,
                "role": "device",
                "device": A,
                "name": "Anna's phone",
                "expires_at": "2096-10-02T07:06:40.000Z",
                "by": "ada",
                "digest": digest.hex(),
            },
        ),
    ]


def test_no_event_has_the_token(store, space):
    """The log has the digest of a token, which proves the token's row. It never has the token."""
    token, digest = a_token()
    store.grant(space, new_id(), digest, Grant(role=Role.READER), "ada")
    states = b"".join(entry.state for entry in store.entries(space, through=10))
    assert digest.hex().encode() in states
    assert token.encode() not in states


def test_a_token_of_one_space_is_unknown_in_another(grant, store, space):
    _, digest = grant("reader")
    assert store.token(f"{space}-2", digest) is None
    assert store.token(EVERY_SPACE, digest) is None


def test_a_token_of_every_space_is_in_no_log(grant, store, space):
    token, digest = grant("admin", of=EVERY_SPACE)
    assert store.token(space, digest) == token
    assert store.token(EVERY_SPACE, digest) == token
    assert token in store.tokens(EVERY_SPACE)
    with pytest.raises(UnknownSpace):
        store.devices(space)
    revoked = store.revoke_token(EVERY_SPACE, token.id, reason="gone", by="ada")
    assert revoked.revoked_at is not None
    assert (revoked.revoked_by, revoked.revoked_reason) == ("ada", "gone")
    assert store.revoke_token(EVERY_SPACE, token.id, reason="twice", by="bob") == revoked
    assert store.token(space, digest) == revoked


def test_one_token_for_two_spaces_is_revoked_in_one(store, space):
    (_, digest), id, other = a_token(), new_id(), f"{space}-2"
    for each in (space, other):
        store.grant(each, id, digest, Grant(role=Role.READER), "ada")
    store.revoke_token(space, id, reason="gone")
    assert store.token(space, digest).revoked_at is not None
    assert store.token(other, digest).revoked_at is None


def test_one_token_for_several_spaces_is_granted_once_in_each(store, space):
    (_, digest), id, other = a_token(), new_id(), f"{space}-2"
    spaces = [space, other, space, other]
    granted = store.grant_all(spaces, id, digest, Grant(role=Role.READER), "ada")
    assert [token.space for token in granted] == [space, other]
    assert [store.tokens(each) for each in (space, other)] == [[token] for token in granted]


def test_a_device_that_is_revoked_in_one_space_is_granted_nothing_in_others(store, space):
    (_, digest), other = a_token(), f"{space}-2"
    store.register(other, A)
    store.revoke_device(other, A, reason="stolen")
    with pytest.raises(DeviceRevoked):
        store.grant_all([space, other], new_id(), digest, Grant(role=Role.DEVICE, device=A), None)
    assert store.tokens(space) == store.tokens(other) == []
    with pytest.raises(UnknownSpace):
        store.devices(space)


def test_a_grant_that_fails_in_the_midst_leaves_no_token_that_is_valid(store, space, monkeypatch):
    """This includes a space with an unknown outcome, because the caller never received the
    token.
    """
    registry = getattr(store, "registry", store)
    (_, digest), id, other, grant = a_token(), new_id(), f"{space}-2", registry.grant

    def failing(of, *args):
        token = grant(of, *args)
        if of == other:
            raise OutcomeUnknown
        return token

    monkeypatch.setattr(registry, "grant", failing)
    with pytest.raises(OutcomeUnknown):
        store.grant_all([space, other, f"{space}-3"], id, digest, Grant(role=Role.READER), "ada")
    for each in (space, other):
        [token] = store.tokens(each)
        assert (token.revoked_by, token.revoked_reason) == ("ada", GRANT_FAILED)
        assert token.revoked_at is not None
    assert store.spaces_of(id) == [space, other]


def test_where_a_token_is_can_be_asked(grant, store, space):
    id, other = new_id(), f"{space}-2"
    for each in (other, space, EVERY_SPACE):
        grant("reader", of=each, id=id)
    grant("reader")
    assert store.spaces_of(id) == [EVERY_SPACE, space, other]
    assert store.spaces_of(new_id()) == store.spaces_of("not a uuid") == []


def test_revoking_says_so_once(grant, store, space, told):
    token, digest = grant("reader")
    revoked = store.revoke_token(space, token.id, reason="gone", by="ada")
    again = store.revoke_token(space, token.id, reason="twice")
    assert again == revoked and not revoked.is_valid(revoked.granted_at)
    assert (revoked.revoked_by, revoked.revoked_reason) == ("ada", "gone")
    assert store.tokens(space) == [revoked]
    assert told()[1:] == [("token-revoked", {"token": token.id, "reason": "gone", "by": "ada"})]
    assert store.token(space, digest) == revoked


@pytest.mark.parametrize("id", [A, "not a uuid", ""])
def test_a_token_that_never_was_is_not_revoked(grant, store, space, id):
    for of in (space, EVERY_SPACE):
        with pytest.raises(UnknownToken):
            store.revoke_token(of, id, reason="gone")
    grant("reader")
    with pytest.raises(UnknownToken):
        store.revoke_token(space, id, reason="gone")


def test_registering_says_so_once_for_each_name(store, space, told):
    for name in ("phone", "phone", None, "old phone"):
        device = store.register(space, A, name=name, by="ada")
    assert (device.device, device.name, device.counter) == (A, "old phone", 0)
    assert device.registered_at is not None and device.last_seen is None
    assert told() == [
        ("device-registered", {"device": A, "name": "phone", "by": "ada"}),
        ("device-registered", {"device": A, "name": "old phone", "by": "ada"}),
    ]


def test_devices_that_just_pushed_are_listed_too(store, space):
    store.register(space, B)
    store.push(space, push_of(changeset(put("x"), counter=1), device=A))
    a, b = sorted(store.devices(space), key=lambda device: device.device != A)
    assert (a.device, a.counter, a.registered_at) == (A, 1, None) and a.last_seen is not None
    assert (b.device, b.counter, b.last_seen) == (B, 0, None)


def test_a_revoked_device_pushes_no_more(grant, store, space, told):
    """Also if the process has cached the state from its earlier pushes."""
    _, digest = grant("device", device=A)
    store.push(space, push_of(changeset(put("x"), counter=1), device=A))
    store.push(space, push_of(changeset(put("y"), counter=1), device=B))
    revoked = store.revoke_device(space, A, reason="stolen", by="ada")
    assert revoked.revoked_at is not None
    assert store.revoke_device(space, A, reason="twice") == revoked
    for _ in range(2):
        with pytest.raises(DeviceRevoked):
            store.push(space, push_of(changeset(put("x"), counter=2), device=A))
    store.push(space, push_of(changeset(put("y"), counter=2), device=B))
    assert store.is_revoked(space, A) and not store.is_revoked(space, B)
    assert store.token(space, digest).is_device_revoked
    assert told()[-1] == ("device-revoked", {"device": A, "reason": "stolen", "by": "ada"})
    for act in (lambda: store.register(space, A), lambda: grant("device", device=A)):
        with pytest.raises(DeviceRevoked):
            act()


def test_a_device_may_be_revoked_before_it_was_ever_seen(store, space):
    with pytest.raises(UnknownSpace):
        store.revoke_device(space, A, reason="stolen")
    store.push(space, push_of(changeset(put("x")), device=B))
    store.revoke_device(space, A, reason="stolen")
    with pytest.raises(DeviceRevoked):
        store.push(space, push_of(changeset(put("x")), device=A))


def test_who_changes_a_device_is_told_what_is_listed_then(store, space):
    store.push(space, push_of(changeset(put("x"), counter=1), device=A))
    for change in (
        lambda: store.register(space, A, name="phone"),
        lambda: store.register(space, A),
        lambda: store.revoke_device(space, A, reason="stolen"),
        lambda: store.revoke_device(space, A, reason="twice"),
    ):
        assert [change()] == store.devices(space)


@pytest.mark.parametrize(
    "act",
    [
        lambda store, space: store.register(space, "not a uuid"),
        lambda store, space: store.register(space, A, name="\0"),
        lambda store, space: store.register(space, A, name="\x1b[2J"),
        lambda store, space: store.revoke_device(space, A, reason=""),
        lambda store, space: store.revoke_token(space, A, reason="\udc80"),
        lambda store, space: store.grant(space, A, b"", Grant(role=Role.DEVICE), None),
        lambda store, space: store.grant(EVERY_SPACE, A, b"", Grant(role=Role.DEVICE), None),
    ],
)
def test_what_makes_no_sense_is_refused_and_makes_no_space(store, space, act):
    with pytest.raises(InvalidRequest):
        act(store, space)
    with pytest.raises(UnknownSpace):
        store.devices(space)


def pages(page_of, space, limit, count):
    """Returns all pages of this many items, and checks that each one is full."""
    seen, cursor = [], None
    for start in range(0, count, limit):
        page = page_of(space, limit=limit, cursor=cursor)
        assert len(page.items) == min(limit, count - start)
        seen, cursor = seen + page.items, page.cursor
    assert cursor is None
    return seen


def test_paging_the_tokens_visits_each_once(grant, store, space):
    """In the order of their grants, including several in one millisecond."""
    granted = [grant("reader")[0] for _ in range(7)]
    grant("reader", of=f"{space}-2")
    granted.sort(key=lambda token: (token.granted_at, token.id))
    for limit in range(1, 9):
        assert pages(store.tokens_page, space, limit, 7) == granted == store.tokens(space)


def test_paging_the_devices_visits_each_once(store, space):
    """By id, including the lowest possible one; devices that have pushed, and others."""
    ids = sorted([NIL, A, B, *(new_id() for _ in range(3)), MAX])
    for device in ids[::-2]:
        store.register(space, device)
    for device in ids[1::2]:
        store.push(space, push_of(changeset(put("x"), counter=1), device=device))
    for limit in range(1, 9):
        listed = pages(store.devices_page, space, limit, 7)
        assert [device.device for device in listed] == ids
        assert listed == store.devices(space)


def test_all_are_more_than_a_page(grant, store, space, monkeypatch):
    """Commands list all of them."""
    monkeypatch.setattr(ports_registry, "LIMITS", Limits(page_records_max=2))
    granted = {grant("device", device=new_id())[0].id for _ in range(5)}
    assert {token.id for token in store.tokens(space)} == granted
    assert len(store.tokens(space)) == len(store.devices(space)) == 5


@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("x",),
        (A, A),
        (1, "x"),
        (-1, A),
        (2**63, A),
        (A, 1),
        (1, A, 1),
        (1,),
    ],
)
def test_a_cursor_that_no_page_of_a_list_gave(store, space, parts):
    """The request is refused as invalid before it reaches a database."""
    store.register(space, A)
    for page_of in (store.tokens_page, store.devices_page):
        with pytest.raises(InvalidRequest):
            page_of(space, limit=1, cursor=encode_cursor(*parts))
        with pytest.raises(InvalidRequest):
            page_of(space, limit=1, cursor="!!")
