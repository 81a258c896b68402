"""Who asks for too much is refused, until it is less again; and nobody else notices."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from foldlog.api.access import OpenAccess
from foldlog.api.rates import LimitedRates, client_address
from foldlog.domain.errors import RateLimited
from foldlog.domain.limits import Limits
from foldlog.infrastructure.settings import _networks
from tests.helpers import changeset, put

from .conftest import ADMIN_TOKEN, assert_problem

LIMITS = Limits(
    requests_per_second_per_caller=10,
    requests_per_second_per_address=20,
    burst_seconds=1,
    bytes_per_request_counted=1_000,
    requests_per_wrong_token=5,
    streams_per_caller_max=2,
)
PROXIES = _networks("10.0.0.0/8")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(app_with, clock):
    """Of a service behind a proxy, so that each request may be another client's."""
    client = app_with(
        rates=LimitedRates(LIMITS, clock),
        trusted_proxies=(*PROXIES, *_networks("127.0.0.1")),
        access=OpenAccess(ADMIN_TOKEN),
    )
    assert client.push(changeset(put("r", x=1))).status_code == 200
    clock.now += 100
    return client


def of(address: str, **headers: str) -> dict[str, dict[str, str]]:
    return {
        "environ_base": {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "1"},
        "headers": {"X-Forwarded-For": address, **headers},
    }


def test_an_address_that_asks_too_fast_slows_down_alone(client, clock):
    """With the limit's name and value, and when to come again; the others are answered as ever."""
    answers = [client.get("events", **of("203.0.113.1")) for _ in range(25)]

    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 5
    limit = {"limit": "requests_per_second_per_address", "value": 20}
    assert_problem(answers[-1], 429, "rate-limited", **limit)
    assert answers[-1].headers["Retry-After"] == "1"
    for n in range(2, 40):
        assert client.get("events", **of(f"203.0.113.{n}")).status_code == 200

    clock.now += 0.5
    again = [client.get("events", **of("203.0.113.1")).status_code for _ in range(12)]
    assert again == [200] * 10 + [429] * 2


def test_who_is_refused_has_stored_nothing(client):
    for _ in range(20):
        client.get("events", **of("203.0.113.1"))
    before = client.get("events", **of("203.0.113.2")).json["head"]

    refused = client.post("changesets", {}, **of("203.0.113.1"))

    assert refused.status_code == 429
    assert client.get("events", **of("203.0.113.2")).json["head"] == before


def test_a_body_counts_by_its_bytes(client, clock):
    """Whoever sends much may send less often: 10,000 bytes are as 10 requests more."""
    assert client.post("changesets", b" " * 10_000, **of("203.0.113.1")).status_code == 400
    answers = [client.get("events", **of("203.0.113.1")).status_code for _ in range(10)]
    assert answers == [200] * 9 + [429]


def test_a_wrong_token_counts_as_many(client):
    """Nobody tries out tokens at any pace."""
    wrong = of("203.0.113.1", Authorization="Bearer wrong")
    url = f"/v1/admin/spaces/{client.space}/skip"
    answers = [client.http.post(url, json={}, **wrong).status_code for _ in range(5)]
    assert answers == [401] * 4 + [429]


@dataclass
class Asked:
    """What rates look at."""

    address: str
    caller: object = field(default=None)


@dataclass
class Caller:
    id: str


def refused(call, *args) -> bool:
    try:
        call(*args)
    except RateLimited:
        return True
    return False


def test_a_caller_is_known_at_any_address_and_another_at_the_same_is_not_held_up(clock):
    rates = LimitedRates(LIMITS, clock)
    mine = [Asked(f"203.0.113.{n}", Caller("mine")) for n in range(12)]

    assert [refused(rates.check_caller, one) for one in mine] == [False] * 10 + [True] * 2
    assert not refused(rates.check_caller, Asked("203.0.113.1", Caller("another")))


def test_streams_are_held_until_they_are_closed_or_forgotten(clock):
    rates = LimitedRates(LIMITS, clock)
    mine = Asked("203.0.113.1", Caller("mine"))
    first, second = rates.hold(mine), rates.hold(mine)

    assert refused(rates.hold, mine)
    assert not refused(rates.hold, Asked("203.0.113.1", Caller("another")))
    first.close()
    first.close()  # counts once
    third = rates.hold(mine)
    assert refused(rates.hold, mine)
    del second, third
    assert not refused(rates.hold, mine)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.1", "", "203.0.113.1"),
        ("203.0.113.1", "198.51.100.7", "203.0.113.1"),  # no proxy of ours
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "192.0.2.9, 198.51.100.7", "198.51.100.7"),  # the first one is made up
        ("10.0.0.1", "192.0.2.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "' OR 1=1", "10.0.0.1"),
        ("2001:db8:1:2:3::4", "", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.1", "", "203.0.113.1"),
        ("unix:", "", ""),
    ],
)
def test_whose_request_it_is(peer, forwarded, address):
    assert client_address(peer, forwarded, PROXIES) == address
