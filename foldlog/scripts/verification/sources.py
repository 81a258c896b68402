"""Where `foldlog verify` has a log from: a database, a running service, or a file."""

from __future__ import annotations

import gzip
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.errors import NoCheckpoint, OperatorError, ProjectionBehind
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merkle import TILE_WIDTH, Tile
from foldlog.domain.notes import tile_path
from foldlog.domain.ports import RangeQuery, RecordsPage, RecordsQuery
from foldlog.infrastructure.postgres.append.transfer import InvalidExport
from foldlog.infrastructure.postgres.log.evidence import evidence
from foldlog.infrastructure.wiring import Services
from foldlog.scripts.exports.archive import Archive, is_archive, read_archive
from foldlog.scripts.exports.lines import Header, evidence_of, read_header

BATCH_EVENTS = 1_000
RECORDS_PER_PAGE = 1_000
#: at a master table that is not yet where the log is, for ten seconds together
LOOKS_MAX, LOOK_SECONDS = 100, 0.1
TIMEOUT_SECONDS = 60.0


class ServiceUnusable(OperatorError):
    """The service that is to be verified does not answer as it should."""

    code = "service-unusable"


class Batch(NamedTuple):
    """Some events, and tiles that are claimed to be of the tree over all of them so far."""

    events: list[Evidence]
    tiles: dict[Tile, bytes] = {}


class Source(ABC):
    """What is claimed, and the evidence for it."""

    header: Header
    checkpoint: bytes | None = None
    vkeys: Sequence[str] = ()
    #: whether the tiles come with the events, and cannot be asked for
    carries_tiles = False
    #: whether it has a checkpoint, if one was signed
    may_be_signed = True
    #: whether there is a master table beside the log
    has_records = False

    @abstractmethod
    def batches(self, after: int, through: int) -> Iterator[Batch]:
        """The events with `after < seq <= through`, those too that came after `header`."""

    def tiles(self, wanted: Sequence[Tile]) -> Mapping[Tile, bytes]:
        """Of a tree of `header.head` events, as far as they are to be had."""
        return {}

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        """Every record that ever was, as the master table has it now."""
        return iter(())


class DatabaseSource(Source):
    has_records = True

    def __init__(self, parts: Services, space: str):
        with suppress(NoCheckpoint):  # first, as the log may grow in between
            self.checkpoint = parts.tree.checkpoint(space)
        page = parts.store.range_after(space, RangeQuery(0, 1))
        self.header = Header(version=1, space=space, log=page.log, head=page.head)
        self._parts = parts
        self.vkeys = [verifier.vkey for verifier in parts.verifiers(space)]

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        space = self.header.space
        for batch in evidence(self._parts.datastore, space, after=after, through=through):
            yield Batch(batch)

    def tiles(self, wanted: Sequence[Tile]) -> Mapping[Tile, bytes]:
        return self._parts.tree.tiles(self.header.space, wanted)

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        cursor = None
        while True:
            asked = RecordsQuery(
                RECORDS_PER_PAGE, changed_after=0, cursor=cursor, at_least=at_least
            )
            page = self._page(asked)
            yield from map(msgspec.json.decode, page.records)
            cursor = page.cursor
            if cursor is None:
                return

    def _page(self, asked: RecordsQuery) -> RecordsPage:
        """Waits for a projector that is a little behind."""
        for _ in range(LOOKS_MAX):
            with suppress(ProjectionBehind):
                return self._parts.master.page(self.header.space, asked)
            time.sleep(LOOK_SECONDS)
        return self._parts.master.page(self.header.space, asked)


class ServiceSource(Source):
    """A running service, over HTTP: what any client may ask."""

    has_records = True

    def __init__(self, http: httpx.Client, space: str):
        self._http = http
        self._prefix = f"/v1/spaces/{quote(space, safe='')}"
        found = self._get("checkpoint", missing=True)  # first, as the log may grow in between
        self.checkpoint = None if found is None else found.content
        with self._lines(after=INTEGER_MAX) as lines:
            self.header = read_header(next(lines, b""))
        keys = self._get("keys", missing=True)
        self.vkeys = [] if keys is None else list(keys.json()["keys"])

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        with self._lines(after) as lines:
            if read_header(next(lines, b"")).log != self.header.log:
                raise ServiceUnusable("the log has become another one meanwhile")
            events = (evidence_of(line, number) for number, line in enumerate(lines, 2))
            wanted = islice(events, max(0, through - after))
            while batch := list(islice(wanted, BATCH_EVENTS)):
                yield Batch(batch)

    def tiles(self, wanted: Sequence[Tile]) -> Mapping[Tile, bytes]:
        found = {}
        for tile in wanted:
            width = tile.width(self.header.head)
            path = tile_path(tile.number, None if width == TILE_WIDTH else width)
            answer = self._get(f"tile/{tile.level}/{path}", missing=True)
            if answer is not None:
                found[tile] = answer.content
        return found

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        asked = {"changed_after": "0", "limit": str(RECORDS_PER_PAGE), "at_least": str(at_least)}
        while True:
            answer = self._get("records", params=asked)
            assert answer is not None
            page = answer.json()
            yield from page["records"]
            if page["cursor"] is None:
                return
            asked["cursor"] = page["cursor"]

    def _get(
        self, path: str, params: Mapping[str, str] | None = None, *, missing: bool = False
    ) -> httpx.Response | None:
        try:
            answer = self._http.get(f"{self._prefix}/{path}", params=params)
        except httpx.HTTPError as exc:
            raise ServiceUnusable(f"{path}: {exc}") from exc
        if missing and answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return self._checked(answer)

    @contextmanager
    def _lines(self, after: int) -> Iterator[Iterator[bytes]]:
        try:
            with self._http.stream("GET", f"{self._prefix}/export", params={"after": after}) as got:
                if got.status_code != httpx.codes.OK:
                    got.read()
                    self._checked(got)
                yield _split(got.iter_bytes())
        except httpx.HTTPError as exc:
            raise ServiceUnusable(f"export: {exc}") from exc

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code != httpx.codes.OK:
            raise ServiceUnusable(f"{answer.url.path}: {answer.status_code} {answer.text[:300]}")
        return answer


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, by the one character that ends them: an event may hold what else Python takes for an
    end of a line."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        raise ServiceUnusable("the export was cut in the middle of a line")


class ArchiveSource(Source):
    """An archive, which is read once, from front to back."""

    carries_tiles = True

    def __init__(self, archive: Archive):
        self._archive = archive
        self.header = archive.header
        self.checkpoint = archive.checkpoint
        self.vkeys = archive.vkeys

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        seq = 0
        for part in self._archive.parts:
            batch = part.events
            start, seq = seq, seq + len(batch)
            wanted = batch[max(0, after - start) : max(0, through - start)]
            yield Batch(wanted, {} if part.tile is None else dict([part.tile]))


class LinesSource(Source):
    """An export as JSON lines: events and salts, and no signature."""

    may_be_signed = False

    def __init__(self, lines: Iterator[bytes]):
        self.header = read_header(next(lines, b""))
        self._events = (evidence_of(line, number) for number, line in enumerate(lines, 2))

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        wanted = islice(self._events, after, through)
        while batch := list(islice(wanted, BATCH_EVENTS)):
            yield Batch(batch)
        # To the end of the file, where a checksum of all of it is.
        if through >= self.header.head and next(self._events, None) is not None:
            raise InvalidExport(f"there is more after seq {self.header.head}, which is the last")


@contextmanager
def file_source(name: str) -> Iterator[Source]:
    path = Path(name)
    is_tar = is_archive(name)
    with gzip.open(path) if path.suffix == ".gz" and not is_tar else path.open("rb") as file:
        try:
            yield ArchiveSource(read_archive(file)) if is_tar else LinesSource(iter(file))  # type: ignore[arg-type]
        except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
            raise InvalidExport(f"the file ends or breaks: {exc}") from exc


@contextmanager
def service_source(url: str, space: str, token: str | None) -> Iterator[Source]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as http:
        yield ServiceSource(http, space)
