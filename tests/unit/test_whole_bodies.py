"""Bodies that are read for a thread: bounded all together, and let go of however they end."""

from __future__ import annotations

import asyncio

import pytest
from foldlog.api.whole_bodies import WholeBodies

from foldlog.api import whole_bodies
from foldlog.api.http.requests import Request
from foldlog.domain.errors import InvalidRequest, StorageUnavailable

CHUNKED = {"headers": [(b"transfer-encoding", b"chunked")]}


def received(*pieces: bytes):
    """What a server hands out: pieces of a body, none of them the last; then the client goes."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    return receive


class Call(Request):
    """Of some address; nothing else is looked at."""

    header = pieces = run = pause = outcome = watch = lambda *_: ""

    def __init__(self, address: str):
        self.address = address
        super().__init__()


async def read_of(bodies: WholeBodies, receive, address: str = "192.0.2.1") -> None:
    with bodies.body_of(Call(address), CHUNKED, receive) as body:
        await body.read()


def read(bodies: WholeBodies, receive) -> None:
    asyncio.run(read_of(bodies, receive))


def test_all_together_are_bounded(monkeypatch):
    """Whoever is one too many is told to come again, and what he sent is forgotten."""
    monkeypatch.setattr(whole_bodies, "UNDER_WAY_BYTES_MAX", 100)
    bodies = WholeBodies(1_000)
    with pytest.raises(StorageUnavailable):
        read(bodies, received(b"x" * 60, b"x" * 60))
    assert bodies.under_way == 0


def test_one_address_has_no_more_than_a_share(monkeypatch):
    """Strangers, who need not say who they are, keep no administrator from revoking something."""
    monkeypatch.setattr(whole_bodies, "UNDER_WAY_OF_ADDRESS_BYTES_MAX", 100)
    bodies = WholeBodies(1_000)

    async def together():
        end = asyncio.Event()

        async def withheld():
            if not end.is_set() and bodies.under_way:
                await end.wait()
            return {"type": "http.request", "body": b"x" * 60, "more_body": not end.is_set()}

        first = asyncio.create_task(read_of(bodies, withheld))
        await asyncio.sleep(0)
        with pytest.raises(StorageUnavailable):
            await read_of(bodies, received(b"x" * 60))
        with pytest.raises(InvalidRequest):  # it comes, and breaks off
            await read_of(bodies, received(b"x" * 60), "192.0.2.2")
        first.cancel()

    asyncio.run(together())
    assert bodies.under_way == 0 and not bodies._of_address


def test_a_body_that_breaks_off_is_none():
    """It must not be taken for a shorter one."""
    bodies = WholeBodies(1_000)
    with pytest.raises(InvalidRequest):
        read(bodies, received(b"x" * 60))
    assert bodies.under_way == 0


def test_nobody_keeps_his_share_for_long(monkeypatch):
    """Else a few who send slowly would keep everybody else from sending anything."""
    monkeypatch.setattr(whole_bodies, "SECONDS_MAX", 0.05)
    bodies = WholeBodies(1_000)
    with pytest.raises(InvalidRequest):
        read(bodies, lambda: asyncio.sleep(10))
    assert bodies.under_way == 0
