"""Reads the log to verify from a database, with all that the database keeps beside the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from foldlog.domain.errors import UnknownSpace
from foldlog.domain.merkle import Tile
from foldlog.domain.notes import Checkpoint, InvalidNote
from foldlog.infrastructure.postgres.audit.snapshot import (
    Snapshot,
    StoredGeneration,
    snapshot,
)
from foldlog.infrastructure.postgres.projections import VERSIONS, projection_named
from foldlog.infrastructure.postgres.status import status
from foldlog.infrastructure.wiring import Services
from foldlog.scripts.exports.lines import Header

from .checks import Audited, Check
from .master import MasterCheck
from .sources import Batch, Scope, Source
from .tables import ColumnsCheck, TablesCheck
from .tiles import TilesCheck, surplus

#: A projector that is behind gets this time to catch up, so that all events are compared.
CATCH_UP_SECONDS, PAUSE_SECONDS = 3.0, 0.05


class DatabaseSource(Source):
    """Reads one snapshot of a space from a database.

    The constructor raises `UnknownSpace` if the database lacks the space.
    """

    def __init__(self, stored: Snapshot, vkeys: Sequence[str]):
        row = stored.space_row()
        if row is None:
            raise UnknownSpace(stored.space)
        self.header = Header(version=1, space=stored.space, log=row["log"], head=row["head"])
        self.vkeys = vkeys
        self._stored = stored
        found = stored.checkpoint()
        if found is not None and found.log == row["log"]:
            self.checkpoint = found.note

    def batches(self, after: int, through: int) -> Iterator[Batch]:
        for events, columns in self._stored.events(after, through):
            yield Batch(events, {}, columns)

    def tiles(self, wanted: Sequence[Tile], size: int) -> Mapping[Tile, bytes]:
        live = [tree for tree in self._stored.generations("proofs") if tree.is_live]
        found = self._stored.tiles(live[0].number, wanted) if live else {}
        return {tile: hashes[: tile.width(size) * 32] for tile, hashes in found.items()}

    def checks(self, scope: Scope) -> list[Check]:
        rows = RowsCheck(self._stored, self.header.head)
        checks: list[Check] = [rows, ColumnsCheck()]
        for tree in self._compared("proofs", rows):
            name = "the tiles" if tree.is_live else f"the tiles of generation {tree.number}"
            read = partial(self._stored.tiles, tree.number)
            tiles = TilesCheck(tree.position, read, name)
            tiles.note(surplus(self._stored.tile_counts(tree.number), tree.position))
            checks.append(tiles)
        if scope.is_whole:
            checks.append(TablesCheck(self._stored))
        if scope.is_whole and scope.wants_fold:
            skipped = {int(seq) for (seq,), _ in self._stored.rows("skipped")}
            generations = self._compared("master", rows)
            checks.append(MasterCheck(self._stored, generations, skipped, scope.through))
            if skipped:
                rows.left_out.append(
                    f"skipped, as events say: seq {', '.join(map(str, sorted(skipped)))}"
                )
        return checks

    def _compared(self, projection: str, rows: RowsCheck) -> list[StoredGeneration]:
        """Returns the generations that this version can compare: the live one, and one that is
        being rebuilt. An older one is being deleted."""
        found = self._stored.generations(projection)
        live = next((generation.number for generation in found if generation.is_live), None)
        if live is None:
            rows.note(f"projections: {projection} has no live generation")
            return []
        kept = []
        for generation in found:
            if generation.fold_version != VERSIONS[projection]:
                if generation.is_live:
                    rows.left_out.append(
                        f"not compared: another version of Foldlog made the live generation of "
                        f"{projection}: run foldlog rebuild --projection {projection}"
                    )
            elif generation.has_older_rows:
                rows.left_out.append(
                    f"not compared: an older version of Foldlog began the live generation of "
                    f"{projection}: run foldlog rebuild --projection {projection}"
                )
            elif generation.number >= live:
                kept.append(generation)
        return kept


class RowsCheck(Check):
    """Checks the rows that describe the projections and the last checkpoint of a space."""

    def __init__(self, stored: Snapshot, head: int):
        self._stored = stored
        self._head = head
        self.left_out: list[str] = []

    def add(self, batch: Audited) -> None:
        pass

    def finish(self) -> Iterator[str]:
        for generation in self._stored.generations():
            if generation.projection not in VERSIONS:
                self.note(f"projections: {generation.projection!r} is unknown")
        for projection in VERSIONS:
            generations = self._stored.generations(projection)
            for generation in generations:
                self._check_generation(generation)
            known = [generation.number for generation in generations]
            for table in projection_named(projection).tables:
                stray = self._stored.stray_generation(table, known)
                if stray is not None:
                    self.note(f"{table} has rows of generation {stray}, which does not exist")
        self._check_checkpoint()
        last = self._stored.last_seq()
        if last != self._head:
            self.note(f"spaces: head is {self._head}, but the last event has seq {last}")
        yield from self.left_out

    def _check_generation(self, found: StoredGeneration) -> None:
        name = f"projections {found.projection}/{found.number}"
        if not 0 <= found.position <= self._head:
            self.note(f"{name}: position is {found.position}, but the head is {self._head}")
        if found.stopped_at is not None:
            if found.stopped_at != found.position + 1:
                self.note(f"{name}: stopped_at is {found.stopped_at}, not {found.position + 1}")
            self.left_out.append(f"{found.projection} has halted before seq {found.stopped_at}")
        if found.is_live and not found.has_history:
            self.left_out.append(
                "not compared: the versions of the live generation, which an older version of "
                "Foldlog began: run foldlog rebuild"
            )

    def _check_checkpoint(self) -> None:
        found = self._stored.checkpoint()
        if found is None:
            return
        size = 0
        if found.note is not None:
            with suppress(InvalidNote):
                size = Checkpoint.of(found.note).size
        if found.size != size:
            self.note(f"checkpoints: size is {found.size}, but the note has {size}")


@contextmanager
def database_source(parts: Services, space: str) -> Iterator[Source]:
    """Opens a space of a database while the `with` block runs, as it stands now."""
    _wait_for_projector(parts, space)
    vkeys = [verifier.vkey for verifier in parts.verifiers(space)]
    with snapshot(parts.datastore.url, space) as stored:
        yield DatabaseSource(stored, vkeys)


def _wait_for_projector(parts: Services, space: str) -> None:
    ends_at = time.monotonic() + CATCH_UP_SECONDS
    first = status(parts.datastore, space)
    head = max((line.head for line in first), default=0)
    while time.monotonic() < ends_at:
        lines = status(parts.datastore, space)
        if all(not line.is_live or line.stopped_at or line.position >= head for line in lines):
            return
        time.sleep(PAUSE_SECONDS)
