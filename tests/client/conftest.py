"""Devices of one space, with the real HTTP API on a store in memory."""

from __future__ import annotations

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.client.transport.server import HttpServer
from foldlog.infrastructure.memory.store import MemoryStore
from tests.asgi_client import asgi_transport
from tests.client.replicas import replicas

SPACE = "home"


@pytest.fixture
def memory_store():
    return MemoryStore()


@pytest.fixture
def app(memory_store):
    return create_app(store=memory_store, master=memory_store, ready=dict, access=OpenAccess())


@pytest.fixture
def device(app, tmp_path):
    """Opens a replica by name. The same name opens the same file again."""

    def server() -> HttpServer:
        return HttpServer("http://localhost", SPACE, transport=asgi_transport(app))

    with replicas(tmp_path, SPACE, server) as open_device:
        yield open_device
