"""Who asks for too much is refused, until it is less again; and nobody else notices."""

from __future__ import annotations

from functools import partial

import pytest

from foldlog.api.http import access
from foldlog.api.http.access import Access, TokenAccess
from foldlog.api.http.rates import Buckets, LimitedRates, Proxies, RateSubject, client_address
from foldlog.domain.access import Caller, Grant, Right, Role
from foldlog.domain.errors import RateLimited
from foldlog.domain.limits import Limits
from foldlog.infrastructure.settings import InvalidSettings, _networks, read_settings
from tests.helpers import a_token, changeset, new_id, put

from .conftest import ADMIN_TOKEN, assert_problem

LIMITS = Limits(
    requests_per_second_per_caller=10,
    requests_per_second_per_address=20,
    burst_seconds=1,
    bytes_per_request_counted=1_000,
    wrong_tokens_per_second_per_address=4,
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


class Anybody(Access):
    """Everybody may do all, through a proxy too, and nobody is known."""

    async def admit(self, *_, **__):
        return Caller("", frozenset(Right), is_any_device=True)


@pytest.fixture
def proxied(app_with, clock):
    """A service behind a proxy, so that each request may be another client's."""
    return partial(
        app_with,
        rates=LimitedRates(LIMITS, clock),
        trusted_proxies=(*PROXIES, *_networks("127.0.0.1")),
    )


@pytest.fixture
def client(proxied, clock):
    client = proxied(access=Anybody())
    assert client.push(changeset(put("r", x=1))).status_code == 200
    clock.now += 100
    return client


def of(address: str, **headers: str) -> dict[str, dict[str, str]]:
    return {
        "peer": "127.0.0.1",
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


@pytest.fixture
def closed(proxied, store):
    """A service that asks for tokens, and how it answers an address that brings one."""
    client = proxied(access=TokenAccess(store, store, admin_token=ADMIN_TOKEN))

    def status(token: str | None, address: str = "203.0.113.1", path: str = "events") -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return client.get(path, **of(address, **headers)).status_code

    return client, status


def test_nobody_tries_out_tokens_at_any_pace(closed, clock):
    """Not even the right one gets through among the guesses; another address is not held up."""
    client, status = closed
    assert [status(f"guess-{n}") for n in range(6)] == [401] * 4 + [429] * 2
    refused = client.get("events", **of("203.0.113.1", Authorization=f"Bearer {ADMIN_TOKEN}"))
    limit = {"limit": "wrong_tokens_per_second_per_address", "value": 4}
    assert_problem(refused, 429, "rate-limited", **limit)
    assert status(ADMIN_TOKEN, address="203.0.113.2") == 404

    clock.now += 0.25
    assert [status(f"guess-{n}") for n in range(2)] == [401, 429]
    clock.now += 100
    assert status(ADMIN_TOKEN) == 404


def test_who_guesses_locks_out_nobody_who_shares_the_address(closed, store, clock, monkeypatch):
    """
    Behind a proxy that is not trusted, everybody does. A token that was good once goes on, also
    when the service has to look it up again; whoever brings none costs nobody anything.
    """
    client, status = closed
    text, digest = a_token()
    store.grant(client.space, new_id(), digest, Grant(role=Role.READER), None)
    assert status(text) == 200
    while status("guess") != 429:
        pass
    monkeypatch.setattr(access, "CALLER_SECONDS_MAX", 0.0)
    assert status(text) == 200
    assert status("guess") == 429
    assert status(None) == 401


def test_who_brings_no_token_has_not_guessed(closed):
    _, status = closed
    assert [status(None) for _ in range(10)] == [401] * 10
    assert status("guess") == 401


@pytest.mark.parametrize("path", ["events", "records/tasks/large", "records", "conflicts"])
def test_a_large_answer_counts_as_more_requests(client, clock, path):
    """Its bytes are kept until the client has taken them. Small ones count as one each."""
    head = client.push(changeset(put("large", text="x" * 80_000))).json["head"]
    clock.now += 100
    client.caught_up(head)
    clock.now += 100
    first, *others = [client.get(path, **of("203.0.113.1")) for _ in range(15)]
    is_large = path != "conflicts"
    assert (first.status_code, len(first.data) > 80_000) == (200, is_large)
    assert [answer.status_code for answer in others].count(429) == (13 if is_large else 0)


def test_whether_the_process_lives_is_told_to_anybody(client):
    """Or else a flood of one address could have the service restarted."""
    answers = [client.get("events", **of("203.0.113.1")).status_code for _ in range(21)]
    assert answers[-1] == 429
    assert client.http.get("/healthz", **of("203.0.113.1")).status_code == 200
    assert client.http.get("/v1/limits", **of("203.0.113.1")).status_code == 429


def test_a_page_that_asks_first_counts_too(proxied, clock):
    """A preflight is a request like any other, at either door."""
    clock.now += 100
    page = "https://app.example"
    client = proxied(access=Anybody(), cors_origins=(page,))
    asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
    url = client.url("changesets")
    answers = [client.http.options(url, **of("203.0.113.1", **asked)) for _ in range(21)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429]
    assert answers[-1].headers["Access-Control-Allow-Origin"] == page
    assert client.http.options(url, **of("203.0.113.2", **asked)).status_code == 200


def test_nobody_waits_for_longer_than_a_bucket_takes_to_fill(clock):
    """However much was charged: others may share the address."""
    buckets = Buckets(10, 2, clock)
    buckets.charge("a", 1_000_000)
    assert buckets.take("a") == buckets.missing("a") == pytest.approx(2.1)
    clock.now += 2.2
    assert buckets.take("a") == 0


def refused(call, *args) -> bool:
    try:
        call(*args)
    except RateLimited:
        return True
    return False


@pytest.mark.parametrize("name", ["bodies_bytes_max", "bodies_bytes_per_caller_max"])
def test_there_is_room_for_the_largest_body(name):
    """Or it would be answered 429 for ever, by which no client learns that it is too large."""
    with pytest.raises(InvalidSettings, match=f"{name} is less than inflated_bytes_max"):
        read_settings({"FOLDLOG_LIMITS": f"{name}=1000000"})
    few = f"{name}=1000000 inflated_bytes_max=1000000"
    assert getattr(read_settings({"FOLDLOG_LIMITS": few}).limits, name) == 1_000_000


def test_what_a_request_has_cost_itself_is_nothing_that_it_waits_for(clock):
    """Or a sync whose body is larger than a bucket would store it, and never be answered."""
    rates = LimitedRates(LIMITS, clock)
    mine = RateSubject("203.0.113.1", "mine")
    another = RateSubject("203.0.113.1", "another")
    for one in (mine, another):
        rates.check_address(one)
    for _ in range(3):
        rates.count_body(mine, 30_000)
    rates.check_waited(mine)
    assert refused(rates.check_waited, another)


def test_a_caller_is_known_at_any_address_and_another_at_the_same_is_not_held_up(clock):
    rates = LimitedRates(LIMITS, clock)
    mine = [RateSubject(f"203.0.113.{n}", "mine") for n in range(12)]

    assert [refused(rates.check_caller, one) for one in mine] == [False] * 10 + [True] * 2
    assert not refused(rates.check_caller, RateSubject("203.0.113.1", "another"))


def test_streams_are_held_until_they_are_closed_or_forgotten(clock):
    rates = LimitedRates(LIMITS, clock)
    mine = RateSubject("203.0.113.1", "mine")
    first, second = rates.hold(mine), rates.hold(mine)

    assert refused(rates.hold, mine)
    assert not refused(rates.hold, RateSubject("203.0.113.1", "another"))
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
    assert Proxies(PROXIES).client_address(peer, forwarded) == address


def test_a_proxy_that_nobody_named_is_told_of_once(app_with, lines):
    """All of its clients share one rate, which an operator would wonder about."""
    client = app_with(access=Anybody())
    for _ in range(2):
        client.get("events", **of("203.0.113.1"))
    [warned] = [line for line in lines if line["event"] == "proxy-not-trusted"]
    assert (warned["log_level"], warned["peer"]) == ("warning", "127.0.0.1")
    assert "FOLDLOG_TRUSTED_PROXIES" in warned["detail"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "warns"),
    [
        ("127.0.0.1", "203.0.113.1", True),
        ("::1", "203.0.113.1", True),
        ("172.17.0.1", "203.0.113.1", True),
        ("::ffff:192.168.0.1", "203.0.113.1", True),
        ("10.0.0.1", "203.0.113.1", False),  # is named
        ("127.0.0.1", "", False),
        ("8.8.8.8", "203.0.113.1", False),  # anybody may write the header
        ("::ffff:8.8.8.8", "203.0.113.1", False),
        ("unix:", "203.0.113.1", False),
    ],
)
def test_which_peers_seem_to_be_proxies_of_ours(lines, peer, forwarded, warns):
    Proxies(PROXIES).client_address(peer, forwarded)
    assert bool(lines) is warns


def test_a_stream_that_cannot_begin_is_not_open(client):
    """Else who asks for a space that is not there, three times, could follow none."""
    gone = "/v1/spaces/not-there/events/stream"
    answers = [client.http.get(gone, **of("203.0.113.1")).status_code for _ in range(3)]
    assert answers == [404] * 3
