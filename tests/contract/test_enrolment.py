"""Enrolment codes and trades of tokens, on every kind of store."""

from __future__ import annotations

import secrets
import time

import pytest

from foldlog.domain.access import Grant, Role
from foldlog.domain.enrolment import (
    CODE_BYTES,
    CODE_SECONDS_MAX,
    Claim,
    Enrolment,
    digest_of_code,
    new_code,
)
from foldlog.domain.errors import (
    DeviceRevoked,
    DeviceTaken,
    EnrolmentRefused,
    InvalidRequest,
    UnknownSpace,
)
from foldlog.domain.events import decode_event
from tests.helpers import A, B, C, a_token, changeset, new_id, push_of, put

SECOND = 1_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def issue(store, space):
    """Issues a code `ago` seconds ago, which is valid for `seconds`, and returns its digest."""

    def issue(*, seconds=3_600, ago=0, of=space, name="Anna's phone"):
        issued_at = now_ms() - ago * SECOND
        code = digest_of_code(_code())
        store.issue_code(
            of,
            code,
            Enrolment(
                id=new_id(),
                name=name,
                issued_at=issued_at,
                issued_by="ada",
                expires_at=issued_at + seconds * SECOND,
            ),
        )
        return code

    return issue


def _code() -> str:
    return new_code(secrets.token_bytes(CODE_BYTES))[0]


@pytest.fixture
def told(store, space):
    """Returns the kinds of the service's own events of the log."""

    def told():
        entries = store.entries(space, through=1_000)
        return [decode_event(entry.state).kind for entry in entries]

    return told


def claim(device=A) -> Claim:
    return Claim(device, a_token()[1])


def test_a_code_gives_one_device_a_token(issue, store, space, told):
    asked = claim()
    token = store.enrol(space, issue(), asked)
    assert (token.role, token.device, token.name) == (Role.DEVICE, A, "Anna's phone")
    assert store.token(space, asked.digest) == token
    assert [device.name for device in store.devices(space)] == ["Anna's phone"]
    assert told() == ["device-registered", "token-granted"]


def test_the_same_claim_again_is_answered_the_same(issue, store, space, told):
    code, asked = issue(), claim()
    first = store.enrol(space, code, asked)
    assert store.enrol(space, code, asked) == first
    assert told() == ["device-registered", "token-granted"]


@pytest.mark.parametrize(
    "other",
    [lambda own: claim(B), lambda own: Claim(B, own.digest), lambda own: claim(A)],
    ids=["both", "device", "digest"],
)
def test_a_used_code_is_refused_to_every_other_claim(issue, store, space, told, other):
    code, asked = issue(), claim()
    store.enrol(space, code, asked)
    with pytest.raises(EnrolmentRefused):
        store.enrol(space, code, other(asked))
    assert told() == ["device-registered", "token-granted"]


def test_a_guess_makes_no_space(store, space):
    with pytest.raises(EnrolmentRefused):
        store.enrol(space, digest_of_code(_code()), claim())
    with pytest.raises(UnknownSpace):
        store.devices(space)


def test_a_code_of_another_space_is_unknown(issue, store, space):
    code = issue()
    with pytest.raises(EnrolmentRefused):
        store.enrol(f"{space}-2", code, claim())


def test_a_code_expires(issue, store, space):
    with pytest.raises(EnrolmentRefused):
        store.enrol(space, issue(seconds=60, ago=61), claim())


def test_a_code_is_valid_for_thirty_days_at_most(issue):
    issue(seconds=CODE_SECONDS_MAX)
    for seconds in (0, -1, CODE_SECONDS_MAX + 1):
        with pytest.raises(InvalidRequest):
            issue(seconds=seconds)


def _pushed(store, space):
    store.push(space, push_of(changeset(put("r", x=1)), device=A))


def _registered(store, space):
    store.register(space, A)


def _revoked(store, space):
    store.register(space, B)
    store.revoke_device(space, A, reason="lost")


@pytest.mark.parametrize("known", [_pushed, _registered, _revoked])
def test_a_code_claims_no_device_that_the_space_knows(issue, store, space, known):
    known(store, space)
    code = issue()
    with pytest.raises(DeviceTaken):
        store.enrol(space, code, claim(A))
    assert store.enrol(space, code, claim(C)).device == C, "the code is still unused"


def test_two_tokens_never_have_one_digest(issue, store, space):
    asked = claim(A)
    store.enrol(space, issue(), asked)
    with pytest.raises(InvalidRequest, match="digest"):
        store.enrol(space, issue(), Claim(B, asked.digest))


def test_a_device_trades_its_token_once(issue, store, space, told):
    own, asked = claim(A), claim(B)
    earlier = store.enrol(space, issue(), own)
    token = store.trade(space, own.digest, asked)
    assert (token.device, token.name, token.granted_by) == (B, earlier.name, f"token {earlier.id}")
    assert store.trade(space, own.digest, asked) == token
    assert told() == ["device-registered", "token-granted"] * 2
    for other in (claim(C), Claim(C, asked.digest), claim(B)):
        with pytest.raises(EnrolmentRefused):
            store.trade(space, own.digest, other)
    assert store.token(space, own.digest).is_valid(now_ms()), "the other copy of the file uses it"


def test_the_token_of_a_trade_can_be_traded_again(issue, store, space):
    first, second, third = claim(A), claim(B), claim(C)
    store.enrol(space, issue(), first)
    store.trade(space, first.digest, second)
    assert store.trade(space, second.digest, third).device == C


@pytest.mark.parametrize("role", [Role.READER, Role.AUDITOR, Role.ADMIN])
def test_only_a_device_trades_its_token(store, space, role):
    _, digest = a_token()
    store.grant(space, new_id(), digest, Grant(role=role), "ada")
    with pytest.raises(EnrolmentRefused):
        store.trade(space, digest, claim())


def test_a_token_that_ended_cannot_be_traded(issue, store, space):
    own = claim(A)
    token = store.enrol(space, issue(), own)
    store.revoke_token(space, token.id, reason="lost")
    with pytest.raises(EnrolmentRefused):
        store.trade(space, own.digest, claim(B))


def test_a_revoked_device_cannot_trade_its_token(issue, store, space):
    own = claim(A)
    store.enrol(space, issue(), own)
    store.revoke_device(space, A, reason="lost")
    with pytest.raises(DeviceRevoked):
        store.trade(space, own.digest, claim(B))


def test_a_trade_takes_no_device_that_the_space_knows(issue, store, space):
    own = claim(A)
    store.enrol(space, issue(), own)
    store.register(space, B)
    with pytest.raises(DeviceTaken):
        store.trade(space, own.digest, claim(B))
    assert store.trade(space, own.digest, claim(C)).device == C


def test_codes_are_read_as_people_type_them():
    code = "0123O-ILABC-DEFGH-JKMNP-QRSTV"
    assert digest_of_code(code) == digest_of_code(" 01230 11abc-defghjkmnp\tqrstv\n")
    for wrong in ("", "0" * 24, "0" * 26, "U" * 25, "é" * 25):
        with pytest.raises(EnrolmentRefused):
            digest_of_code(wrong)
    codes = {_code() for _ in range(1_000)}
    assert len(codes) == 1_000
    assert all(len(code.replace("-", "")) == 25 for code in codes)
