"""Short ways to make changesets and pushes, and to read all pages of an answer."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from foldlog.domain.access import TOKEN_BYTES, new_token
from foldlog.domain.changesets import Push, decode_changesets
from foldlog.domain.limits import LIMITS
from foldlog.domain.ports import EventStore, MasterTable, RangeQuery, RecordsQuery

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
PAGES_MAX = 10_000
#: a limit for waits that last far shorter on any machine
WAIT_SECONDS = 60.0

A, B, C = (str(uuid.UUID(int=n, version=4)) for n in (0xA, 0xB, 0xC))

#: a value for each parameter in a path of the OpenAPI document, except `space`
PARTS = {
    "collection": "tasks",
    "id": "x",
    "device": B,
    "token": "00000000-0000-4000-8000-000000000000",
    "level": "0",
    "tile": "000.p/1",
    "seq": "1",
    "code": "forbidden",
}


def operations_of(document: dict[str, Any], space: str) -> Iterator[tuple[str, str, str, dict]]:
    """Yields each operation of the OpenAPI document: its path as in the document, its method, its
    path with values, and what the document says."""
    for path, methods in document["paths"].items():
        full = re.sub(r"{(\w+)}", lambda m: {**PARTS, "space": space}[m[1]], path)
        for method, described in methods.items():
            yield path, method.upper(), full, described


def until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Waits until the condition is true. Fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.005)


def answered(ask: Callable[[], httpx.Response], seconds: float = WAIT_SECONDS) -> httpx.Response:
    """Asks again on a 503 or a broken connection, as devices do. Fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = ask()
        except httpx.TransportError as error:
            told = repr(error)
        else:
            if answer.status_code != 503:
                return answer.raise_for_status()
            told = answer.text
        assert time.monotonic() < deadline, f"no answer: {told}"
        time.sleep(0.2)


def new_id() -> str:
    return str(uuid.uuid4())


def a_token() -> tuple[str, bytes]:
    """Returns a new token and its stored digest."""
    return new_token(secrets.token_bytes(TOKEN_BYTES))


def put(id: str = "r", collection: str = "tasks", **fields: Any) -> dict[str, Any]:
    return {"op": "put", "collection": collection, "id": id, "fields": fields}


def add(id: str = "r", collection: str = "tasks", **fields: Any) -> dict[str, Any]:
    return {"op": "add", "collection": collection, "id": id, "fields": fields}


def delete(id: str = "r", collection: str = "tasks") -> dict[str, Any]:
    return {"op": "delete", "collection": collection, "id": id}


def changeset(*ops: dict[str, Any], base: int = 0, **members: Any) -> dict[str, Any]:
    """Makes a changeset as JSON, with a new `id` by default and a counter only if given."""
    made_at = members.pop("made_at", "2026-11-23T09:00:00.000Z")
    return {
        "id": members.pop("id", None) or new_id(),
        "base": base,
        "made_at": made_at,
        "ops": list(ops) or [put()],
        **members,
    }


def push_of(*changesets: dict[str, Any], device: str = A, **members: Any) -> Push:
    """Makes a push from changesets in JSON, decoded as the service decodes them."""
    decoded = decode_changesets(msgspec.json.encode(changesets), device, LIMITS)
    return Push(device, members.pop("sent_at", NOW), decoded, **members)


def pull_all(store: EventStore, space: str, *, limit: int = 100, **query: Any) -> list[bytes]:
    """Pulls all pages as a device does. Fails after `PAGES_MAX` pages."""
    pulled: list[bytes] = []
    after, mark = 0, ""
    for _ in range(PAGES_MAX):
        page = store.range_after(space, RangeQuery(after, limit, mark=mark, **query))
        pulled += page.events
        if not page.more:
            return pulled
        assert page.through > after
        after, mark = page.through, page.mark
    raise AssertionError(f"still more to pull after {PAGES_MAX} pages")


def all_records(
    table: MasterTable, space: str, *, at_least: int, limit: int = 100, **query: Any
) -> list[dict[str, Any]]:
    """Reads all records of the master table, after it has reached the seq `at_least`."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        asked = RecordsQuery(limit, cursor=cursor, at_least=at_least, **query)
        page = table.page(space, asked)
        found += map(msgspec.json.decode, page.records)
        cursor = page.cursor
        if cursor is None:
            return found
        assert page.records, "a page with another after it is not empty"
    raise AssertionError(f"still more records after {PAGES_MAX} pages")


def kept_conflict(read: bytes) -> dict[str, Any]:
    """Removes the members that reading adds to a stored entry of the ledger."""
    entry: dict[str, Any] = msgspec.json.decode(read)
    del entry["restore"]
    for side in ("lost", "won"):
        for added in ("changeset", "made_at", "received_at"):
            del entry[side][added]
    return entry


def all_conflicts(
    table: MasterTable, space: str, *, at_least: int, limit: int = 100
) -> list[dict[str, Any]]:
    """Reads the whole stored ledger, after the master table has reached the seq `at_least`."""
    table.page(space, RecordsQuery(1, at_least=at_least))
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page = table.conflicts(space, limit=limit, cursor=cursor)
        found += map(kept_conflict, page.conflicts)
        cursor = page.cursor
        if cursor is None:
            return found
        assert page.conflicts, "a page with another after it is not empty"
    raise AssertionError(f"still more conflicts after {PAGES_MAX} pages")


def grow_trees(store: Any) -> None:
    """Grows the trees to the ends of their logs. Those of the memory store grow by themselves."""
    getattr(store, "grow_trees", lambda: None)()
