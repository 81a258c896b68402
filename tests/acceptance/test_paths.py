"""Every path has one spelling: any other spelling of its fixed segments is 404, before any work."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess, TokenAccess
from foldlog.domain.access import Grant, Role
from foldlog.infrastructure.memory.store import MemoryStore
from tests.asgi_client import asgi_client
from tests.helpers import a_token, changeset, push_of, put

from .conftest import assert_problem
from .live import Connection, request_of, served

#: an example of each id in a path
IDS = {"collection": "tasks", "id": "r", "device": "d", "token": "t", "level": "0", "tile": "000"}
IDS |= {"seq": "1", "code": "forbidden", "space": "home"}


class NoAccess(OpenAccess):
    """Fails a test when a request gets as far as access."""

    async def admit(self, *_, **__):
        raise AssertionError("the request was admitted")


def app_of(access):
    store = MemoryStore()
    store.push("home", push_of(changeset(put("r"))))
    return create_app(
        store=store,
        master=store,
        ready=dict,
        access=access,
        registry=store,
        tree=store,
        add_checkpoint=lambda body: "",
    )


closed = asgi_client(app_of(NoAccess()))
document = asgi_client(app_of(OpenAccess())).get("/openapi.json").json
#: (method, path template) of each operation
OPERATIONS = [
    (method.upper(), path) for path, methods in document["paths"].items() for method in methods
]


def fixed_segments(template: str) -> list[int]:
    """The positions of the segments that are no id."""
    return [n for n, part in enumerate(template.split("/")) if part and not part.startswith("{")]


def respelled(template: str, position: int, spell) -> str:
    parts = template.split("/")
    parts[position] = spell(parts[position])
    return re.sub(r"{(\w+)}", lambda found: IDS[found[1]], "/".join(parts))


SPELLINGS = {
    "a doubled slash": lambda part: f"/{part}",
    "a dot segment": lambda part: f"./{part}",
    "a way up and down": lambda part: f"x/../{part}",
    "another case": lambda part: part.title() if part != part.title() else part.lower(),
    "an encoded letter": lambda part: f"%{ord(part[0]):02x}{part[1:]}",
    "an encoded letter, in capitals": lambda part: f"%{ord(part[-1]):02X}".join((part[:-1], "")),
    "a path parameter": lambda part: f"{part};x=1",
    "an encoded slash": lambda part: f"{part}%2F",
    "a backslash": lambda part: f"\\{part}",
    "a space": lambda part: f"{part}%20",
    "a NUL": lambda part: f"{part}%00",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_of_a_path_is_not_found(spelling):
    """Of each operation, also with the right method, and before access is asked."""
    for method, template in OPERATIONS:
        for position in fixed_segments(template):
            path = respelled(template, position, SPELLINGS[spelling])
            answer = closed.open(path, method)
            assert (answer.status_code, answer.json["code"]) == (404, "no-such-path"), path


def test_a_slash_at_the_end_is_not_found():
    for method, template in OPERATIONS:
        if not template.endswith(("{id}", "{tile}")):  # those ids are the rest of the path
            path = respelled(template, 1, str)
            assert closed.open(f"{path}/", method).json["code"] == "no-such-path", path


@given(st.lists(st.sampled_from(["/", ".", "%2f", "%2e", "v1", "V1", "spaces", "admin"])))
def test_a_path_that_no_template_matches_is_never_admitted(parts):
    """Random paths of the pieces that proxies normalize; the canonical ones need more segments."""
    answer = closed.get("/" + "".join(parts))
    assert answer.status_code == 404
    assert answer.json["code"] == "no-such-path"


def test_the_paths_of_the_issue_are_not_found_with_a_token():
    """On a real socket, as a reader of the space: a stream, and admin paths behind a proxy."""
    store = MemoryStore()
    store.push("home", push_of(changeset(put("r"))))
    text, digest = a_token()
    store.grant(
        "home", "00000000-0000-4000-8000-000000000001", digest, Grant(role=Role.READER), None
    )
    access = TokenAccess(store, store)
    app = create_app(store=store, master=store, ready=dict, access=access, registry=store)
    with served(store, app=app) as here:
        headers = {"Authorization": f"Bearer {text}"}
        for path in (
            "//v1/spaces/home/events/stream",
            "/v1/spaces/home/events/stream/",
            "/v1/spaces/home//events/stream",
            "/v1/./spaces/home/events/stream",
            "/v1/spaces/home/%65vents/stream",
            "/V1/spaces/home/events/stream",
            "/v1/spaces/home/events;x/stream",
            "//v1/admin/spaces/home/tokens",
            "/v1//admin/spaces/home/tokens",
            "/v1/%61dmin/spaces/home/tokens",
        ):
            client = Connection(here.port)
            client.send(request_of(path, headers))
            answer = client.answer()
            assert (answer.status, answer.json()["code"]) == (404, "no-such-path"), path


@pytest.mark.parametrize("space", ["home", "%68ome", "%68%6F%6D%65"])
def test_an_id_may_be_percent_encoded(space):
    """The encoded id names the same space, for access as well."""
    client = asgi_client(app_of(OpenAccess()))
    for path in ("events", "records", "records/t%61sks/%72", "events?after=0"):
        assert client.get(f"/v1/spaces/{space}/{path}").status_code == 200


def test_an_encoded_space_is_the_space_for_access():
    store = MemoryStore()
    for space in ("home", "other"):
        store.push(space, push_of(changeset(put("r"))))
    text, digest = a_token()
    store.grant(
        "home", "00000000-0000-4000-8000-000000000001", digest, Grant(role=Role.READER), None
    )
    app = create_app(store=store, master=store, ready=dict, access=TokenAccess(store, store))
    client = asgi_client(app)
    headers = {"Authorization": f"Bearer {text}"}
    assert client.get("/v1/spaces/%68ome/events", headers=headers).status_code == 200
    assert client.get("/v1/spaces/othe%72/events", headers=headers).status_code == 401


@pytest.mark.parametrize("id", ["a/b", "/a", "a/", "//", "a b", "ä", "%", "?", "#", ";x", "."])
def test_a_record_id_keeps_every_character(id):
    store = MemoryStore()
    store.push("home", push_of(changeset(put(id))))
    client = asgi_client(create_app(store=store, master=store, ready=dict, access=OpenAccess()))
    answer = client.get(f"/v1/spaces/home/records/tasks/{quote(id, safe='')}")
    assert answer.json["record"]["id"] == id


def test_options_and_head_follow_the_same_spelling():
    client = asgi_client(app_of(OpenAccess()))
    assert client.options("/v1/limits").status_code == 200
    assert client.head("/v1/limits").status_code == 200
    assert_problem(client.options("/v1/limits/"), 404, "no-such-path")
    assert_problem(client.options("//v1/limits"), 404, "no-such-path")
