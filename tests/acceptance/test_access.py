"""Who may do what, through both doors: every role at every operation; nothing without a token."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import CALLER_SECONDS_MAX, TokenAccess
from foldlog.domain.access import EVERY_SPACE, Claims, Grant, Right, Role
from foldlog.domain.errors import StorageUnavailable, Unauthenticated
from tests.acceptance.conftest import ADMIN_TOKEN, SENT_AT, SpaceClient, assert_problem
from tests.acceptance.live import Space, served, until
from tests.helpers import PARTS, A, B, a_token, changeset, new_id, operations_of, put

#: What each operation needs. A new one fails until somebody has thought about it.
NEEDS = {
    Right.PUBLIC: "enrol healthz readyz get_limits openapi docs problem add_checkpoint_of_a_log",
    Right.READ: """
        events stream snapshot records record conflicts device_ids collections collection
        record_history history_of diff checkpoint keys tile entries inclusion consistency event
        metrics
    """,
    Right.WRITE: "push sync trade",
    Right.AUDIT: "export devices tokens",
    Right.ADMIN: """
        define erase skip issue_code grant_token revoke_token register_device revoke_device
    """,
}
RIGHT_OF = {name: right for right, names in NEEDS.items() for name in names.split()}
#: what each role may do, said once more
MAY = {
    "device": {Right.PUBLIC, Right.READ, Right.WRITE},
    "reader": {Right.PUBLIC, Right.READ},
    "auditor": {Right.PUBLIC, Right.READ, Right.AUDIT},
    "admin": {Right.PUBLIC, Right.READ, Right.AUDIT, Right.ADMIN},
}
#: operations that name no space: they need a token of every space
OF_THE_SERVICE = {"metrics"}


class Jwts:
    """The sign-in of an app, whose tokens say in clear what they say."""

    def read(self, text: str) -> Claims:
        space, device, scope = text.split(".")
        if not space:
            raise Unauthenticated
        return Claims(
            subject="ada",
            spaces=frozenset({space.replace("~", ".")}),
            rights=frozenset(right for right in Right if right.value in scope.split("+")),
            device=device or None,
            expires_at=float("inf"),
        )


class Closed(NamedTuple):
    client: SpaceClient
    store: object
    document: dict

    def grant(self, role: str, space: str | None = None, **members) -> str:
        text, digest = a_token()
        of = self.client.space if space is None else space
        grant = Grant(role=Role(role), device=A if role == "device" else None, **members)
        self.store.grant(of, new_id(), digest, grant, "ada")
        return text

    def ask(self, method: str, path: str, token: str | None, **kwargs):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.client.http.open(path, method=method, headers=headers, **kwargs)

    def post(self, path: str, token: str, body: dict):
        return self.ask("POST", self.client.url(path), token, json=body)

    def push(self, token: str, *changesets: dict, device: str = A):
        body = {"device": device, "sent_at": SENT_AT, "changesets": list(changesets)}
        return self.post("changesets", token, body)

    def admin(self, path: str, body: dict, token: str = ADMIN_TOKEN):
        return self.ask("POST", f"/v1/admin/spaces/{self.client.space}/{path}", token, json=body)


async def no_sleep(_: float) -> None: ...


@pytest.fixture
def closed(store, app_with):
    """The service as it runs for real: closed by default."""
    access = TokenAccess(store, store, admin_token=ADMIN_TOKEN, jwts=Jwts(), sleep=no_sleep)
    client = app_with(access=access, add_checkpoint=lambda note: "")
    return Closed(client, store, client.http.get("/openapi.json").json)


def paths_of(closed: Closed):
    """Every operation: its name, method, path and the right that the document tells."""
    for _, method, full, described in operations_of(closed.document, closed.client.space):
        told = described.get("security", [{"token": ["public"]}])[0]["token"]
        yield described["operationId"], method, full, told


def asked(closed: Closed, method: str, path: str, token: str | None):
    """The answer to a request that names everything and says nothing."""
    body = {} if method == "GET" else {"json": {}}
    answer = closed.ask(method, path, token, **body)
    answer.close()  # a stream would go on
    return answer


def test_every_operation_needs_what_it_is_said_to(closed):
    """In the document, and in this test's own table: a new operation must be thought about."""
    told = {name: right for name, _, _, right in paths_of(closed)}
    assert told == {name: [right.value] for name, right in RIGHT_OF.items()}


@pytest.mark.parametrize("given", [None, "", "guess", "foldlog_" + "x" * 43, "\xff"])
def test_nothing_answers_without_a_token_but_health_limits_and_docs(closed, given):
    closed.grant("reader")  # the space is there
    for name, method, path, _ in paths_of(closed):
        status = asked(closed, method, path, given).status_code
        assert (status == 401) is (RIGHT_OF[name] is not Right.PUBLIC), (name, status)


@pytest.mark.parametrize("role", MAY)
def test_each_role_may_do_what_it_is_for_and_nothing_else(closed, role):
    """Of this space; and with a token of every space also what is of none."""
    for of in (closed.client.space, EVERY_SPACE):
        token = closed.grant(role, of)
        for name, method, path, _ in paths_of(closed):
            answer = asked(closed, method, path, token)
            if name in OF_THE_SERVICE and of != EVERY_SPACE:
                assert answer.status_code == 401, name
            else:
                refused = answer.status_code in (401, 403)
                assert refused is (RIGHT_OF[name] not in MAY[role]), (name, answer.text)


@pytest.mark.parametrize("scope", ["", "read", "write", "audit", "admin", "read+write", "public"])
def test_a_sign_in_s_token_may_do_what_its_scope_says(closed, scope):
    closed.grant("reader")
    token = f"{closed.client.space}.{A}.{scope}"
    for name, method, path, _ in paths_of(closed):
        status = asked(closed, method, path, token).status_code
        may = RIGHT_OF[name].value in scope.split("+") and name not in OF_THE_SERVICE
        assert (status in (401, 403)) is not (may or RIGHT_OF[name] is Right.PUBLIC), name


@pytest.mark.parametrize("role", MAY)
def test_one_space_never_learns_that_another_exists(closed, role):
    """Of a space that is there and of one that is not, all is answered alike."""
    token = closed.grant(role, f"{closed.client.space}-own")
    signed = f"{closed.client.space}-own.{A}.read+write+audit+admin"
    for given in (token, signed):
        closed.client.space, there = f"space-{new_id()}", closed.client.space
        absent = [_form(asked(closed, m, path, given)) for _, m, path, _ in paths_of(closed)]
        closed.client.space = there
        closed.grant("reader")
        assert closed.push(closed.grant("device"), changeset(put("x"))).status_code == 200
        present = [_form(asked(closed, m, path, given)) for _, m, path, _ in paths_of(closed)]
        assert absent == present


def _form(answer):
    return answer.status_code, re.sub(r"space-[0-9a-f-]+", "space", answer.text[:2_000])


def test_a_device_writes_as_itself_alone(closed):
    token = closed.grant("device")
    for given in (token, f"{closed.client.space}.{A}.write"):
        assert closed.push(given, changeset(put("x"))).status_code == 200
        assert_problem(closed.push(given, changeset(put("x")), device=B), 403, "forbidden")
        body = {"device": B, "sent_at": SENT_AT, "after": 0}
        assert_problem(closed.post("sync", given, body), 403, "forbidden")
    nobody = f"{closed.client.space}..write"
    assert_problem(closed.push(nobody, changeset(put("x"))), 403, "forbidden")


def test_a_challenge_says_what_the_token_lacks(closed):
    """RFC 6750 section 3: whoever brought none is told of no fault in it."""

    def challenge(method: str, path: str, token: str | None) -> str | None:
        answer = asked(closed, method, closed.client.url(path), token)
        return answer.headers.get("WWW-Authenticate")

    reader = closed.grant("reader")
    for method, path in (("GET", "events"), ("GET", "records")):
        assert challenge(method, path, None) == "Bearer"
        assert challenge(method, path, "guess") == 'Bearer error="invalid_token"'
        assert challenge(method, path, reader) is None
    for method, path in (("POST", "changesets"), ("GET", "export")):
        assert challenge(method, path, reader) == 'Bearer error="insufficient_scope"'
    device = closed.grant("device")
    closed.store.revoke_device(closed.client.space, A, reason="lost")
    assert challenge("GET", "events", device) is None


class Away:
    """A registry of which nobody can be asked for."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def token(self, *_):
        raise StorageUnavailable

    def is_revoked(self, *_):
        raise StorageUnavailable


@pytest.mark.parametrize("token", ["foldlog_" + "x" * 43, "SPACE.DEVICE.read+write"])
def test_a_database_that_is_away_refuses_nobody(app_with, store, token):
    """503, and never 401 or 403: a device must not take it for the end of its token."""
    away = Away(store)
    client = app_with(access=TokenAccess(away, store, jwts=Jwts()))
    given = token.replace("SPACE", client.space).replace("DEVICE", A)
    headers = {"Authorization": f"Bearer {given}"}
    body = {"device": A, "sent_at": SENT_AT, "changesets": [changeset(put("x"))]}
    for answer in (
        client.get("events", headers=headers),
        client.get("records", headers=headers),
        client.post("changesets", body, headers=headers),
    ):
        assert_problem(answer, 503, "storage-unavailable")
        assert "WWW-Authenticate" not in answer.headers


def test_an_admin_grants_and_revokes_by_http(closed):
    answer = closed.admin("tokens", {"role": "device", "device": A, "name": "phone", "by": "ada"})
    assert answer.status_code == 200, answer.text
    token, id = answer.json["token"], answer.json["id"]
    assert closed.push(token, changeset(put("x"))).status_code == 200

    path = f"/v1/admin/spaces/{closed.client.space}/tokens"
    [listed] = closed.ask("GET", path, ADMIN_TOKEN).json["tokens"]
    assert (listed["id"], listed["granted_by"]) == (id, "ada (admin token)")
    assert token not in closed.ask("GET", path, ADMIN_TOKEN).text

    revoked = closed.admin(f"tokens/{id}/revoke", {"reason": "lost"})
    assert revoked.json["revoked_at"]
    assert revoked.json["revoked_by"] == "admin token"
    assert revoked.json["revoked_reason"] == "lost"
    assert closed.ask("GET", path, ADMIN_TOKEN).json["tokens"] == [revoked.json]
    assert_problem(closed.push(token, changeset(put("x"))), 401, "unauthenticated")
    again = closed.admin(f"tokens/{id}/revoke", {"reason": "lost"})
    assert again.json == revoked.json
    answer = closed.admin(f"tokens/{PARTS['token']}/revoke", {"reason": "lost"})
    assert_problem(answer, 404, "unknown-token")


@pytest.mark.parametrize("what", ["tokens", "devices"])
def test_the_lists_of_tokens_and_devices_page(closed, what):
    """There may be many; the pages together are the list."""
    space = closed.client.space
    path = {"tokens": f"/v1/admin/spaces/{space}/tokens", "devices": f"/v1/spaces/{space}/devices"}
    for device in (A, B, new_id()):
        closed.admin("tokens", {"role": "device", "device": device})

    def page(query):
        return closed.ask("GET", f"{path[what]}?{query}", ADMIN_TOKEN)

    first = page("limit=2").json
    rest = page(f"limit=2&cursor={first['cursor']}").json
    assert (len(first[what]), len(rest[what]), rest["cursor"]) == (2, 1, None)
    assert {what: first[what] + rest[what], "cursor": None} == page("").json
    for query in ("cursor=x", "cursor=W10", "cursor=WyJ4Il0", "cursor=WzEsIngiXQ"):
        assert_problem(page(query), 400, "invalid-request")
    assert page("limit=1001").json["code"] == "invalid-request"


def test_who_did_it_is_in_the_log(closed):
    admin = closed.grant("admin")
    closed.admin("tokens", {"role": "reader", "by": "ada"}, admin)
    closed.admin("tokens", {"role": "reader"}, admin)
    events = closed.ask("GET", closed.client.url("events"), admin).json["events"]
    first, second = (event["body"]["by"] for event in events[-2:])
    assert re.fullmatch(r"ada \(token [0-9a-f-]{36}\)", first)
    assert re.fullmatch(r"token [0-9a-f-]{36}", second)


def test_an_admin_of_one_space_grants_for_it_alone(closed):
    other = f"{closed.client.space}-2"
    body = {"role": "reader", "also": [other, closed.client.space, other]}
    assert_problem(closed.admin("tokens", body, closed.grant("admin")), 403, "forbidden")
    answer = closed.admin("tokens", body)
    assert answer.json["spaces"] == [closed.client.space, other]
    for space in answer.json["spaces"]:
        path = f"/v1/spaces/{space}/events"
        assert closed.ask("GET", path, answer.json["token"]).status_code == 200
        assert len(closed.store.tokens(space)) == 2 - (space == other)


def test_a_token_for_several_spaces_is_granted_in_all_of_them_or_in_none(closed):
    other = f"{closed.client.space}-2"
    closed.store.register(other, A)
    closed.store.revoke_device(other, A, reason="stolen")
    body = {"role": "device", "device": A, "also": [other]}
    assert_problem(closed.admin("tokens", body), 403, "device-revoked")
    assert closed.store.tokens(closed.client.space) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"role": "king"},
        {"role": "device"},
        {"role": "reader", "device": A},
        {"role": "reader", "expires_at": "2020-01-01T00:00:00Z"},
        {"role": "reader", "expires_at": "tomorrow"},
        {"role": "reader", "name": ""},
        {"role": "reader", "by": "\0"},
        {"role": "reader", "name": "two\nlines"},
        {"role": "reader", "by": "\x1b[2J"},
        {"role": "reader", "also": ["A"]},
        {"role": "reader", "spaces": []},
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(closed, body):
    answer = closed.admin("tokens", body)
    assert (answer.status_code, answer.json["code"]) == (400, "invalid-request"), answer.text
    assert_problem(
        closed.ask("GET", closed.client.url("devices"), ADMIN_TOKEN), 404, "unknown-space"
    )


def test_a_revoked_device_is_refused_whatever_it_holds(closed):
    """Its next request: a push, a pull, a read; with its token, another one, or the sign-in's."""
    tokens = [
        closed.grant("device"),
        closed.grant("device"),
        f"{closed.client.space}.{A}.read+write",
    ]
    for token in tokens:
        assert closed.push(token, changeset(put("x"))).status_code == 200
    url = closed.client.url(f"devices/{A}/revoke")
    revoked = closed.ask("POST", url, ADMIN_TOKEN, json={"reason": "stolen"})
    assert revoked.json["revoked_at"] and revoked.json["device"] == A
    for token in tokens:
        answers = [
            closed.push(token, changeset(put("x"))),
            closed.post("sync", token, {"device": A, "sent_at": SENT_AT, "after": 0}),
            closed.ask("GET", closed.client.url("events"), token),
            closed.ask("GET", closed.client.url("events/stream"), token),
            closed.ask("GET", closed.client.url("records"), token),
        ]
        for answer in answers:
            assert_problem(answer, 403, "device-revoked")
    devices = closed.ask("GET", closed.client.url("devices"), ADMIN_TOKEN).json["devices"]
    assert [device["device"] for device in devices] == [A]
    body = {"device": A, "name": "back again"}
    assert_problem(closed.post("devices", ADMIN_TOKEN, body), 403, "device-revoked")


def test_a_device_is_registered_by_http(closed):
    answer = closed.post("devices", ADMIN_TOKEN, {"device": B, "name": "tablet"})
    assert (answer.json["device"], answer.json["name"], answer.json["counter"]) == (B, "tablet", 0)
    [listed] = closed.ask("GET", closed.client.url("devices"), ADMIN_TOKEN).json["devices"]
    assert listed == answer.json


@pytest.fixture
def live(store):
    """A worker on a socket, that asks for tokens."""
    access = TokenAccess(store, store, admin_token=ADMIN_TOKEN, jwts=Jwts(), sleep=no_sleep)
    app = create_app(store=store, master=store, ready=dict, access=access, registry=store)
    with served(store, app=app) as here:
        yield here


@pytest.mark.parametrize("what", ["token", "device"])
def test_a_stream_ends_before_it_tells_who_was_revoked(live, store, what):
    """And tells nothing that comes after; another one goes on."""
    space = Space(live.port)
    (text, digest), (other, other_digest) = a_token(), a_token()
    id = new_id()
    store.grant(space.name, id, digest, Grant(role=Role.DEVICE, device=A), None)
    store.grant(space.name, new_id(), other_digest, Grant(role=Role.DEVICE, device=B), None)
    stream = space.stream("after=0", headers={"Authorization": f"Bearer {text}"})
    going_on = space.stream("after=0", headers={"Authorization": f"Bearer {other}"})
    assert stream.seqs(4) == going_on.seqs(4) == [1, 2, 3, 4]
    until(lambda: live.is_waited_for(2))
    if what == "token":
        store.revoke_token(space.name, id, reason="lost")
    else:
        store.revoke_device(space.name, A, reason="stolen")
    space.http.headers["Authorization"] = f"Bearer {other}"
    space.push(changeset(put("secret")), device=B)
    [last] = [message for message in stream.all() if message.kind != "comment"]
    code = b"device-revoked" if what == "device" else b"unauthenticated"
    assert last.kind == "problem" and b'"code":"%b"' % code in last.data
    assert going_on.seqs(2) == [5, 6]


def test_who_waits_is_not_told_what_came_after_they_were_revoked(live, store):
    space = Space(live.port)
    text, digest = a_token()
    id = new_id()
    store.grant(space.name, id, digest, Grant(role=Role.READER), None)
    space.http.headers["Authorization"] = f"Bearer {text}"
    answers: list = []
    ask: Callable[[], None] = lambda: answers.append(space.http.get("events?after=1&wait=30"))  # noqa: E731
    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: live.is_waited_for(1))
    store.revoke_token(space.name, id, reason="lost")
    thread.join(10)
    assert answers[0].status_code == 401


@pytest.mark.parametrize("path", ["changesets", "sync", "tokens"])
def test_a_body_under_way_is_not_taken_from_who_was_revoked_meanwhile(live, store, path):
    """Else a thief would keep a request dripping, and end it after the revocation."""
    space = Space(live.port)
    is_admin = path == "tokens"
    text, digest = a_token()
    id = new_id()
    role = Grant(role=Role.ADMIN) if is_admin else Grant(role=Role.DEVICE, device=A)
    store.grant(space.name, id, digest, role, None)
    head = store.cached_head(space.name)
    body = {"device": A, "sent_at": SENT_AT, "after": 0, "changesets": [changeset(put("x"))]}
    if path == "changesets":
        del body["after"]
    if is_admin:
        space.http.base_url = f"http://127.0.0.1:{live.port}/v1/admin/spaces/{space.name}"
        body = {"role": "admin"}

    def dripping():
        yield begun
        until(lambda: live.resources.bodies.held)  # a body is read after admission
        store.revoke_token(space.name, id, reason="lost")
        time.sleep(CALLER_SECONDS_MAX + 0.1)
        yield rest

    begun, rest = b" " * 100_000, json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {text}",
        "Content-Type": "application/json",
        "Content-Length": str(len(begun + rest)),
    }
    answer = space.http.post(path, content=dripping(), headers=headers)
    assert answer.status_code == 401, answer.text
    assert store.cached_head(space.name) == head + 1, "nothing but the revocation was stored"


def test_a_body_in_chunks_is_read_by_every_operation(live, store):
    space = Space(live.port)
    store.grant(space.name, new_id(), a_token()[1], Grant(role=Role.READER), None)
    answer = space.http.post(
        f"http://127.0.0.1:{live.port}/v1/admin/spaces/{space.name}/tokens",
        content=iter([b'{"role":', b' "reader"}']),
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 200, answer.text
