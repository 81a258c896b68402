"""Reads the log to verify from a running service over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.errors import OperatorError
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merkle import TILE_WIDTH, Tile
from foldlog.domain.notes import tile_path
from foldlog.scripts.exports.lines import Header, evidence_of, read_header

from .checks import Check
from .records import RecordsCheck
from .sources import BATCH_EVENTS, RECORDS_PER_PAGE, Batch, Scope, Source
from .tiles import TilesCheck

TIMEOUT_SECONDS = 60.0


class ServiceUnusable(OperatorError):
    """Raised when a request to the service failed, or when the response is unexpected."""

    code = "service-unusable"


class ServiceSource(Source):
    """Reads the log of a space from a running service, with a token of the role auditor.

    All methods raise `ServiceUnusable` if a request fails.
    """

    def __init__(self, http: httpx.Client, space: str):
        self._http = http
        self._prefix = f"/v1/spaces/{quote(space, safe='')}"
        # The checkpoint comes before the head, because the log may grow in between.
        checkpoint = self._get("checkpoint", may_be_missing=True)
        self.checkpoint = None if checkpoint is None else checkpoint.content
        self.header = self._header_now()
        keys = self._get("keys", may_be_missing=True)
        self.vkeys = [] if keys is None else list(keys.json()["keys"])

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        with self._lines(after) as lines:
            if read_header(next(lines, b"")).log != self.header.log:
                raise ServiceUnusable("the log was replaced by another one during the verification")
            events = (_event(line, number) for number, line in enumerate(lines, 2))
            wanted = islice(events, max(0, through - after))
            while batch := list(islice(wanted, BATCH_EVENTS)):
                yield Batch(batch)

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
            response = self._get(f"tile/{tile.level}/{path}", may_be_missing=True)
            if response is not None:
                found[tile] = response.content
        return found

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        params = {"changed_after": "0", "limit": str(RECORDS_PER_PAGE), "at_least": str(at_least)}
        while True:
            response = self._get("records", params=params)
            assert response is not None
            page = response.json()
            yield from page["records"]
            if page["cursor"] is None:
                return
            params["cursor"] = page["cursor"]

    def _get(
        self, path: str, params: Mapping[str, str] | None = None, *, may_be_missing: bool = False
    ) -> httpx.Response | None:
        try:
            response = self._http.get(f"{self._prefix}/{path}", params=params)
        except httpx.HTTPError as exc:
            raise ServiceUnusable(f"{path}: {exc}") from exc
        if may_be_missing and response.status_code == httpx.codes.NOT_FOUND:
            return None
        _check_ok(response)
        return response

    @contextmanager
    def _lines(self, after: int) -> Iterator[Iterator[bytes]]:
        path = f"{self._prefix}/export"
        try:
            with self._http.stream("GET", path, params={"after": after}) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                _check_ok(response)
                yield _split(response.iter_bytes())
        except httpx.HTTPError as exc:
            raise ServiceUnusable(f"export: {exc}") from exc


def _event(line: bytes, number: int) -> Evidence:
    """Parses the line of an event. Raises `ServiceUnusable` if the line has a problem instead."""
    if line.startswith(b'{"problem":'):
        problem = msgspec.json.decode(line)["problem"]
        raise ServiceUnusable(f"export: {problem['code']}: {problem['detail']}")
    return evidence_of(line, number)


def _check_ok(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        text = response.text[:300]
        raise ServiceUnusable(f"{response.url.path}: {response.status_code} {text}")


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Splits the pieces of a response into lines, only at newline characters. Events may
    contain other characters that Python's `splitlines` treats as line ends.

    Raises `ServiceUnusable` if the last line is incomplete.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        raise ServiceUnusable("the export was cut in the middle of a line")


@contextmanager
def service_source(url: str, space: str, token: str | None) -> Iterator[Source]:
    """Opens the log of a space of the service at `url`, while the `with` block runs. `token` is
    the access token.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as http:
        yield ServiceSource(http, space)
