"""The service as its clients meet it: by HTTP, on each kind of store."""

from __future__ import annotations

from functools import cache

import pytest
import structlog

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from tests.helpers import A, changeset, new_id

SENT_AT = "2026-11-23T09:00:00.000Z"
ADMIN_TOKEN = "correct-horse-battery"


@cache
def app_of(store):
    """The usual application on a store. Making one takes 40 ms, so all tests share it."""
    return create_app(
        store=store,
        master=store,
        ready=lambda: {"database": "ok"},
        access=OpenAccess(ADMIN_TOKEN),
        registry=store,
        tree=store,
    )


@pytest.fixture
def app(store):
    return app_of(store)


@pytest.fixture
def http(app, client_of):
    """A client of what is beside a space."""
    return client_of(app)


@pytest.fixture
def client(http):
    """A client of a space of the test's own."""
    return SpaceClient(http)


@pytest.fixture
def app_with(store, client_of):
    """Makes a client of an app with other parts than usual."""

    def make(**parts) -> SpaceClient:
        usual = {
            "store": store,
            "master": store,
            "ready": lambda: {"database": "ok"},
            "tree": store,
            "access": OpenAccess(),
            "registry": store,
        }
        return SpaceClient(client_of(create_app(**usual | parts)))

    return make


@pytest.fixture
def lines():
    """What is logged."""
    structlog.reset_defaults()  # a command that a test ran before may have made the logs quiet
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        yield lines


class SpaceClient:
    """What an app does with a space, in the fewest words."""

    def __init__(self, http):
        self.http = http
        self.space = f"space-{new_id()}"

    def url(self, path: str) -> str:
        return f"/v1/spaces/{self.space}/{path}"

    def get(self, path: str, **kwargs):
        return self.http.get(self.url(path), **kwargs)

    def post(self, path: str, body: dict | bytes, **kwargs):
        if isinstance(body, bytes):
            return self.http.post(
                self.url(path), data=body, content_type="application/json", **kwargs
            )
        return self.http.post(self.url(path), json=body, **kwargs)

    def push(self, *changesets: dict, device: str = A, **members):
        body = {"device": device, "sent_at": SENT_AT, "changesets": list(changesets), **members}
        return self.post("changesets", body)

    def sync(self, *changesets: dict, device: str = A, after: int = 0, **members):
        body = {"device": device, "sent_at": SENT_AT, "after": after, **members}
        if changesets:
            body["changesets"] = list(changesets)
        return self.post("sync", body)

    def define(self, collection: str, schema: dict, *, token: str = ADMIN_TOKEN, **members):
        return self.http.put(
            f"/v1/admin/spaces/{self.space}/collections/{collection}",
            json={"schema": schema, **members},
            headers={"Authorization": f"Bearer {token}"},
        )

    def filled(self, *ops: dict, **members) -> dict:
        """Pushes one changeset, waits until it is projected, and gives the push's answer."""
        answer = self.push(changeset(*ops), **members)
        assert answer.status_code == 200, answer.text
        self.caught_up(answer.json["head"])
        return answer.json

    def caught_up(self, head: int) -> None:
        answer = self.get(f"records?limit=1&at_least={head}")
        assert answer.status_code == 200, answer.text


def assert_problem(answer, status: int, code: str, **members) -> dict:
    """Checks that an answer is this problem document, with these members and no others."""
    problem = answer.get_json()
    assert (answer.status_code, problem.get("code")) == (status, code), answer.text
    assert answer.content_type == "application/problem+json"
    standard = {name: problem.pop(name) for name in ("type", "title", "status", "detail", "code")}
    assert standard["type"] == f"/problems/{code}"
    assert standard["status"] == status
    assert standard["title"] and standard["detail"]
    assert problem == members
    return standard
