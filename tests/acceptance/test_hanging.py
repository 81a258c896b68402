"""A store that hangs: requests are answered within a bound, and health at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from foldlog.api import asgi
from foldlog.infrastructure.memory.store import MemoryStore

from .live import served

RUN_SECONDS_MAX = 1.0


class HangingStore(MemoryStore):
    """Every read of a range waits, as for a database that is gone without a word."""

    def __init__(self):
        super().__init__()
        self.ending = Event()

    def range_at_hand(self, space, query):
        return None

    def range_after(self, space, query):
        self.ending.wait(30)
        return super().range_after(space, query)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(asgi, "RUN_SECONDS_MAX", RUN_SECONDS_MAX)
    store = HangingStore()
    with served(store) as here:
        yield here
        store.ending.set()


def test_when_every_thread_hangs_requests_end_and_health_is_told(hanging):
    """
    More requests than there are threads: each is answered 503 with Retry-After, those too that
    never had a thread. Meanwhile /healthz answers at once.
    """
    with ThreadPoolExecutor(10) as clients:
        began = time.monotonic()
        url = f"{hanging.url}/v1/spaces/s/events"
        asked = [clients.submit(httpx.get, url, timeout=20) for _ in range(10)]
        time.sleep(0.3)
        assert httpx.get(f"{hanging.url}/healthz", timeout=5).json() == {"status": "ok"}
        assert time.monotonic() - began < RUN_SECONDS_MAX
        for answer in (future.result() for future in asked):
            assert answer.status_code == 503
            assert answer.json()["code"] == "storage-unavailable"
            assert answer.headers["Retry-After"] == "1"
        assert time.monotonic() - began < 3 * RUN_SECONDS_MAX
