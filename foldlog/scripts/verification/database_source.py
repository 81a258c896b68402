"""Reads the log to verify from a database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from foldlog.domain.errors import NoCheckpoint, ProjectionBehind
from foldlog.domain.merkle import Tile
from foldlog.domain.ports import RangeQuery, RecordsPage, RecordsQuery
from foldlog.infrastructure.postgres.log.evidence import evidence
from foldlog.infrastructure.wiring import Services
from foldlog.scripts.exports.lines import Header

from .sources import RECORDS_PER_PAGE, Batch, Source

#: A projector that is behind gets ten seconds to catch up.
ATTEMPTS_MAX, ATTEMPT_SECONDS = 100, 0.1


class DatabaseSource(Source):
    """Reads the log, the tiles and the records of a space from a database.

    The constructor raises `UnknownSpace` if the database lacks the space.
    """

    has_records = True

    def __init__(self, parts: Services, space: str):
        # The checkpoint comes before the head, because the log may grow in between.
        with suppress(NoCheckpoint):
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
            query = RecordsQuery(
                RECORDS_PER_PAGE, changed_after=0, cursor=cursor, at_least=at_least
            )
            page = self._page(query)
            yield from map(msgspec.json.decode, page.records)
            cursor = page.cursor
            if cursor is None:
                return

    def _page(self, query: RecordsQuery) -> RecordsPage:
        for _ in range(ATTEMPTS_MAX):
            with suppress(ProjectionBehind):
                return self._parts.master.page(self.header.space, query)
            time.sleep(ATTEMPT_SECONDS)
        return self._parts.master.page(self.header.space, query)
