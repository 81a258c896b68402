"""A device that the service does not let in, or not any more, or only now."""

from __future__ import annotations

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


def test_a_device_that_is_let_in_later_has_its_queue(app, device, memory_store):
    """Each request asks for the token of now. Nothing that was refused is lost, or there twice."""
    present = [""]
    transport = asgi_transport(app)
    server = HttpServer("http://foldlog", SPACE, token=lambda: present[0], transport=transport)
    phone = device("phone", server=server)
    phone.collection("tasks").create(title="Milk")

    def told() -> str | None:
        with pytest.raises(ServerProblem) as refused:
            phone.sync()
        assert phone.status().unsent == 1
        return refused.value.problem

    assert told() == "unauthenticated"
    assert "sign in again" in (phone.status().why_not or "")

    reader, digest = a_token()
    memory_store.grant(SPACE, new_id(), digest, Grant(role=Role.READER), None)
    present[0] = reader
    assert told() == "forbidden"

    token, digest = a_token()
    grant = Grant(role=Role.DEVICE, device=phone.status().device)
    memory_store.grant(SPACE, new_id(), digest, grant, None)
    present[0] = token
    phone.sync()
    assert phone.status().unsent == 0 and phone.status().why_not is None

    memory_store.revoke_device(SPACE, phone.status().device, reason="lost")
    app.access.forget()
    phone.collection("tasks").create(title="Bread")
    assert told() == "device-revoked"
    assert "revoked" in (phone.status().why_not or "")
    assert [task["title"] for task in phone.collection("tasks")] == ["Milk", "Bread"]
