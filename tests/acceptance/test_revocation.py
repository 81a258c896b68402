"""A revoked caller receives no later events, even in requests that began before."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import CALLER_SECONDS_MAX, TokenAccess
from foldlog.api.operations.proofs import PIECE_BYTES
from foldlog.domain.access import EVERY_SPACE, Grant, Role
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Snapshot
from tests.helpers import A, B, a_token, changeset, new_id, push_of, put

from .conftest import ADMIN_TOKEN, SENT_AT, assert_problem
from .live import Space, served, until

LIMITS = Limits(stream_heartbeat_seconds=1, stream_seconds_max=10)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self) -> None:
        """Advances the clock until no authorization is cached."""
        self.now += CALLER_SECONDS_MAX + 1


@dataclass
class Token:
    """A token of a role in a space, until it is revoked."""

    store: object
    space: str
    role: Role = Role.READER
    id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        self.text, digest = a_token()
        grant = Grant(role=self.role, device=A if self.role is Role.DEVICE else None)
        self.store.grant(self.space, self.id, digest, grant, None)
        self.headers = {"Authorization": f"Bearer {self.text}"}

    def revoke(self) -> None:
        self.store.revoke_token(self.space, self.id, reason="lost")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def parts(store, clock):
    access = TokenAccess(
        store, store, admin_token=ADMIN_TOKEN, clock=clock, sleep=lambda _: clock.pass_by()
    )
    return {"store": store, "master": store, "access": access, "registry": store, "ready": dict}


@pytest.fixture
def live(store, parts):
    with served(store, LIMITS, create_app(**parts, limits=LIMITS)) as here:
        yield here


@pytest.fixture
def client(app_with, parts):
    return app_with(**parts)


def secret(store, space: str) -> None:
    store.push(space, push_of(changeset(put("secret")), device=B))


def head_of(store, space: str) -> int:
    head = store.cached_head(space)
    assert head is not None
    return head


def test_a_stream_from_after_the_revocation_is_empty(live, store):
    """Its pages lack the revocation, and the authorization of the caller is cached for a moment."""
    space = Space(live.port)
    token = Token(store, space.name)
    assert space.http.get("events", headers=token.headers).status_code == 200
    token.revoke()
    stream = space.stream(f"after={head_of(store, space.name)}", headers=token.headers)
    secret(store, space.name)
    told = [message for message in stream.all() if message.kind != "comment"]
    assert [message.kind for message in told] == ["problem"]
    assert b'"code":"unauthenticated"' in told[0].data


def test_who_waits_from_after_the_revocation_is_told_nothing(live, store, clock):
    space = Space(live.port)
    token = Token(store, space.name)
    assert space.http.get("events", headers=token.headers).status_code == 200
    token.revoke()
    answers: list = []
    query = f"events?wait=30&after={head_of(store, space.name)}"
    waiting = threading.Thread(
        target=lambda: answers.append(space.http.get(query, headers=token.headers))
    )
    waiting.start()
    until(lambda: live.is_waited_for(1))
    clock.pass_by()
    secret(store, space.name)
    waiting.join(10)
    assert_problem_of(answers[0], 401, "unauthenticated")


def test_a_stream_of_a_token_of_every_space_ends_though_no_log_tells_of_it(live, store, clock):
    space = Space(live.port)
    secret(store, space.name)
    token = Token(store, EVERY_SPACE)
    stream = space.stream("after=0", headers=token.headers)
    assert stream.seqs(1) == [1]
    token.revoke()
    clock.pass_by()
    [last] = [message for message in stream.all() if message.kind != "comment"]
    assert last.kind == "problem" and b'"code":"unauthenticated"' in last.data


@pytest.mark.parametrize("call", ["events", "sync"])
def test_a_page_is_not_told_to_who_was_revoked_while_it_was_read(
    client, store, clock, monkeypatch, call
):
    token = Token(store, client.space, Role.DEVICE)
    after = head_of(store, client.space)

    def ask():
        if call == "events":
            return client.get(f"events?after={after}", headers=token.headers)
        body = {"device": A, "sent_at": SENT_AT, "after": after}
        return client.post("sync", body, headers=token.headers)

    assert ask().status_code == 200
    read = store.cached_range

    def slow(space, query):
        secret(store, space)
        page = read(space, query)
        token.revoke()
        clock.pass_by()
        return page

    monkeypatch.setattr(store, "cached_range", slow)
    assert_problem(ask(), 401, "unauthenticated")


def test_a_stored_sync_is_never_reported_as_not_stored(client, store, clock, monkeypatch):
    """
    A device is revoked just after its sync was stored. Every problem but `outcome-unknown` says
    that the sync was not stored, so the response is that problem. The repeated sync gets the
    reason.
    """
    token = Token(store, client.space, Role.DEVICE)
    submit = store.submit

    def submit_and_revoke(space, pushed, rate_key=""):
        future = submit(space, pushed)
        future.result()
        store.revoke_device(space, A, reason="stolen")
        clock.pass_by()
        return future

    monkeypatch.setattr(store, "submit", submit_and_revoke)
    sent = changeset(put("x"))
    body = {"device": A, "sent_at": SENT_AT, "after": 0, "changesets": [sent]}
    answer = client.post("sync", body, headers=token.headers)
    assert_problem(answer, 503, "outcome-unknown")
    assert answer.headers["Retry-After"]
    assert_problem(client.post("sync", body, headers=token.headers), 403, "device-revoked")
    ids = [entry.event_id for entry in store.entries(client.space, through=10)]
    assert sent["id"] in ids


def test_a_download_ends_for_a_revoked_caller(client, store, clock, monkeypatch):
    """A slow download ends as well, because later pages of a snapshot show later moments."""
    secret(store, client.space)
    token = Token(store, client.space)
    read = store.snapshot

    def snapshot(space, **asked):
        found = read(space, **asked)

        def pages():
            page = next(iter(found.pages))
            yield page
            token.revoke()
            clock.pass_by()
            yield page

        return Snapshot(found.header, pages())

    monkeypatch.setattr(store, "snapshot", snapshot)
    text = client.get("snapshot", headers=token.headers).text
    kinds = ["at" in json.loads(line) for line in text.splitlines()[1:]]
    assert kinds.count(True) == 1


def test_an_export_ends_for_who_was_revoked_meanwhile(app_with, parts, store, clock, monkeypatch):
    client = app_with(**parts, tree=store)
    store.push(client.space, push_of(changeset(put("large", x="x" * PIECE_BYTES))))
    token = Token(store, client.space, Role.AUDITOR)
    secret(store, client.space)
    read = store.entries

    def entries(space, **asked):
        for entry in read(space, **asked):
            yield entry
            if entry.seq == 1:
                token.revoke()
                clock.pass_by()

    monkeypatch.setattr(store, "entries", entries)
    text = client.get("export", headers=token.headers).text
    assert len(text.splitlines()) == 2, "its header, and the event before"


def assert_problem_of(answer, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
