"""Devices whose token is missing, too weak, granted later, or revoked."""

from __future__ import annotations

import asyncio

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.client.errors import ServerProblem
from foldlog.client.transport.server import HttpServer
from foldlog.domain.access import Grant, Role
from tests.asgi_client import asgi_transport
from tests.client.conftest import SPACE
from tests.helpers import a_token, new_id


async def no_sleep(_: float) -> None: ...


@pytest.fixture
def app(memory_store):
    store = memory_store
    access = TokenAccess(store, store, sleep=no_sleep)
    return create_app(store=store, master=store, ready=dict, access=access)


def test_a_device_that_is_authorized_later_still_has_its_queue(app, device, memory_store):
    """Each request asks for the current token. A refused changeset is stored once in the end."""
    present = [""]
    transport = asgi_transport(app)
    server = HttpServer("http://foldlog", SPACE, token=lambda: present[0], transport=transport)
    phone = device("phone", server=server)
    phone.collection("tasks").create(title="Milk")

    def refusal_code() -> str | None:
        with pytest.raises(ServerProblem) as refused:
            phone.sync()
        assert phone.status().unsent == 1
        return refused.value.problem

    assert refusal_code() == "unauthenticated"
    assert "sign in again" in (phone.status().why_not or "")

    reader, digest = a_token()
    memory_store.grant(SPACE, new_id(), digest, Grant(role=Role.READER), None)
    present[0] = reader
    assert refusal_code() == "forbidden"

    token, digest = a_token()
    grant = Grant(role=Role.DEVICE, device=phone.status().device)
    memory_store.grant(SPACE, new_id(), digest, grant, None)
    present[0] = token
    phone.sync()
    assert phone.status().unsent == 0 and phone.status().why_not is None

    memory_store.revoke_device(SPACE, phone.status().device, reason="lost")
    asyncio.run(app.access.forget())
    phone.collection("tasks").create(title="Bread")
    assert refusal_code() == "device-revoked"
    assert "revoked" in (phone.status().why_not or "")
    assert [task["title"] for task in phone.collection("tasks")] == ["Milk", "Bread"]
