"""Reads the log to verify from a running service over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.json_reader import values_max_in
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merkle import TILE_BYTES, TILE_WIDTH, Tile
from foldlog.domain.notes import NOTE_BYTES_MAX, tile_path
from foldlog.scripts.exports.lines import Header, batches_of, evidence_of, read_header

from .bounded_http import READ_SECONDS_MAX, BoundedHttp, ServiceUnusable
from .checks import Check
from .records import RecordsCheck
from .sources import RECORDS_PER_PAGE, Batch, Scope, Source
from .tiles import TilesCheck

T = TypeVar("T")

KEYS_BYTES_MAX = 2**18
#: A page of records, and the number of `,`, `[` and `{` in it, which bounds the decoded values.
RECORDS_BYTES_MAX, VALUES_MAX = 64 * 2**20, 2_000_000
#: Events after the head that are read to find the erasure of a value.
EVENTS_AFTER_HEAD_MAX = 1_000_000


class Keys(msgspec.Struct):
    """The answer that has the public keys of a log."""

    keys: list[str]


class Problem(msgspec.Struct):
    """The fault that a service has met after it began to answer."""

    code: str
    detail: str


class Broken(msgspec.Struct):
    """The last line of an export that breaks off."""

    problem: Problem


class RecordsPage(msgspec.Struct):
    """A page of records, and the cursor of the next one."""

    records: list[dict[str, Any]]
    cursor: str | None


class ServiceSource(Source):
    """Reads the log of a space from a running service, with a token of the role auditor.

    All methods raise `ServiceUnusable` if a request fails, or if an answer is too large or too
    slow.
    """

    def __init__(self, http: httpx.Client, space: str):
        self._http = BoundedHttp(http)
        self._prefix = f"/v1/spaces/{quote(space, safe='')}"
        # The checkpoint comes before the head, because the log may grow in between.
        self.checkpoint = self._get("checkpoint", bytes_max=NOTE_BYTES_MAX, may_be_missing=True)
        self.header = self._header_now()
        keys = self._get("keys", bytes_max=KEYS_BYTES_MAX, may_be_missing=True)
        self.vkeys = [] if keys is None else _decoded(keys, Keys).keys

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        through = min(through, self.header.head + EVENTS_AFTER_HEAD_MAX)
        with self._lines(after) as lines:
            if read_header(next(lines, b"")).log != self.header.log:
                raise ServiceUnusable("the log was replaced by another one during the verification")
            events = (_event(line, number) for number, line in enumerate(lines, 2))
            yield from map(Batch, batches_of(islice(events, max(0, through - after))))

    def checks(self, scope: Scope) -> list[Check]:
        # The service has tiles to its last checkpoint at least.
        read = partial(self.tiles, size=scope.signed_size)
        checks: list[Check] = [TilesCheck(scope.signed_size, read)]
        if scope.is_whole and scope.wants_fold:
            checks.append(RecordsCheck(self, scope.through))
        return checks

    def evidence(self, through: int) -> Iterator[list[Evidence]]:
        for batch in self.batches(0, through):
            yield batch.events

    def head_now(self) -> int:
        return self._header_now().head

    def _header_now(self) -> Header:
        with self._lines(after=INTEGER_MAX) as lines:
            return read_header(next(lines, b""))

    def tiles(self, wanted: Sequence[Tile], size: int) -> Mapping[Tile, bytes]:
        found = {}
        for tile in wanted:
            width = tile.width(size)
            path = tile_path(tile.number, None if width == TILE_WIDTH else width)
            hashes = self._get(
                f"tile/{tile.level}/{path}", bytes_max=TILE_BYTES, may_be_missing=True
            )
            if hashes is not None:
                found[tile] = hashes
        return found

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        params = {"changed_after": "0", "limit": str(RECORDS_PER_PAGE), "at_least": str(at_least)}
        while True:
            found = self._get("records", params, bytes_max=RECORDS_BYTES_MAX)
            assert found is not None
            page = _decoded(found, RecordsPage)
            yield from page.records
            if page.cursor is None:
                return
            if not page.records:
                raise ServiceUnusable("a page of records is empty, but has a cursor")
            params["cursor"] = page.cursor

    def _get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        bytes_max: int,
        may_be_missing: bool = False,
    ) -> bytes | None:
        return self._http.get(
            f"{self._prefix}/{path}", params, bytes_max=bytes_max, may_be_missing=may_be_missing
        )

    @contextmanager
    def _lines(self, after: int) -> Iterator[Iterator[bytes]]:
        with self._http.lines(f"{self._prefix}/export", {"after": str(after)}) as lines:
            yield lines


def _decoded(body: bytes, type: type[T]) -> T:
    """Decodes a JSON document of a bounded number of values."""
    if values_max_in(body) > VALUES_MAX:
        raise ServiceUnusable(f"an answer has more than {VALUES_MAX} values")
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ServiceUnusable(f"an answer is malformed: {exc}") from exc


def _event(line: bytes, number: int) -> Evidence:
    """Parses the line of an event. Raises `ServiceUnusable` if the line has a problem instead."""
    if line.startswith(b'{"problem":'):
        problem = _decoded(line, Broken).problem
        raise ServiceUnusable(f"export: {problem.code}: {problem.detail}"[:300])
    return evidence_of(line, number)


@contextmanager
def service_source(url: str, space: str, token: str | None) -> Iterator[Source]:
    """Opens the log of a space of the service at `url`, while the `with` block runs. `token` is
    the access token.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=READ_SECONDS_MAX) as http:
        yield ServiceSource(http, space)
