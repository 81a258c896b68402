"""The tree's projection writes the tiles of the log for all batch sizes, crashes and rebuilds."""

from __future__ import annotations

import time
from threading import Thread

import pytest
from psycopg.sql import SQL

from foldlog.domain.events import body_entry
from foldlog.domain.merkle import Tile, root_of
from foldlog.domain.proofs import header_of, leaf_hash, leaf_of
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.wakeups import Announcer, Wakeups
from foldlog.infrastructure.postgres.projections import VERSIONS, projection_named
from foldlog.infrastructure.postgres.proofs.projection import ProofsProjection
from foldlog.infrastructure.postgres.rebuild import batches
from foldlog.infrastructure.postgres.rebuild import rebuild as rebuild_module
from foldlog.infrastructure.postgres.rebuild.projector import Projector, follow
from foldlog.infrastructure.postgres.rebuild.rebuild import RebuildDiffers, Rebuilder
from foldlog.infrastructure.postgres.status import status
from tests.helpers import changeset, push_of, put
from tests.integration.test_projector import poison, random_history
from tests.unit.test_merkle import tree


def tiles_of(stores, space: str) -> dict[Tile, bytes]:
    """Returns the tiles of the live generation."""
    with stores.datastore.rows() as cursor:
        rows = cursor.execute(
            "SELECT level, number, hashes FROM tiles t JOIN projections p "
            "USING (space, generation) WHERE space = %s AND projection = 'proofs' AND is_live",
            (space,),
        ).fetchall()
    return {Tile(level, number): hashes for level, number, hashes in rows}


def assert_tiles_are_of_the_log(stores, space: str, head: int) -> None:
    """Compares each tile and the root with a tree built from the stored bytes."""
    leaves = [
        leaf_hash(leaf_of(header_of(entry.state), entry.ops_hash))
        for entry in stores.entries(space, through=head)
    ]
    growth, _ = tree(leaves)
    tiles = tiles_of(stores, space)
    assert root_of(head, lambda wanted: {tile: tiles[tile] for tile in wanted}) == growth.root()
    for tile, hashes in tiles.items():
        assert len(hashes) == tile.width(head) * 32
        if tile.level == 0:
            first = tile.number * 256
            assert hashes == b"".join(leaves[first : first + 256])


def grow(stores, worker: Projector) -> None:
    for space in worker.lagging():
        while worker.project_or_halt(space):
            pass


@pytest.fixture
def many(stores):
    """A space with more events than one tile holds."""
    stores.push("s", push_of(*[changeset(put(str(n), n=n)) for n in range(700)]))
    return 700


@pytest.mark.parametrize(("batch", "page"), [(1, 1), (7, 3), (256, 256), (4_000, 1_000)])
def test_all_batch_sizes_give_the_same_tree(stores, many, monkeypatch, batch, page):
    """The tree is that of the log for any size of batches and pages."""
    monkeypatch.setattr(batches, "PAGE_EVENTS", page)
    grow(stores, Projector(stores.datastore, ProofsProjection(), batch_events=batch))
    assert_tiles_are_of_the_log(stores, "s", many)
    head = random_history(stores, "s", seed=1, pushes=20)
    grow(stores, Projector(stores.datastore, ProofsProjection(), batch_events=batch))
    assert_tiles_are_of_the_log(stores, "s", head)


def test_a_single_event_writes_a_single_tile(stores, many):
    """A push costs the tree one small row in a log of any length."""
    worker = Projector(stores.datastore, ProofsProjection())
    grow(stores, worker)
    before = tiles_of(stores, "s")
    stores.push("s", push_of(changeset(put("one", n=1))))
    grow(stores, worker)
    after = tiles_of(stores, "s")
    assert [tile for tile in after if after[tile] != before.get(tile)] == [Tile(0, 2)]


def test_events_of_every_form_are_leaves(stores):
    """Also large events, and events whose values contain the separator before `ops`."""

    stores.push("s", push_of(changeset(put("a", text="x" * 2**20), put("b", **{'","ops":': 1}))))

    with stores.append_service_event("s") as transaction:
        transaction.lock()
        body = {"x": 1, "ops": [1], "body": {"ops": []}}
        transaction.append(body_entry(transaction.envelope, "riddle", body))
    grow(stores, Projector(stores.datastore, ProofsProjection()))
    assert_tiles_are_of_the_log(stores, "s", 2)


def test_the_tree_halts_alone(database, stores):
    """It halts at an unreadable event. The master table halts by itself."""
    stores.push("s", push_of(changeset(put("a", n=1)), changeset(put("b", n=1))))
    poison(database, "s", 3)
    grow(stores, Projector(stores.datastore, ProofsProjection()))
    lines = {line.projection: line for line in status(stores.datastore, "s")}
    assert (lines["proofs"].position, lines["proofs"].stopped_at) == (2, 3)
    assert (lines["master"].position, lines["master"].stopped_at) == (0, None)
    assert len(tiles_of(stores, "s")[Tile(0, 0)]) == 64


def test_a_crash_leaves_all_or_nothing_of_a_batch(stores, many, monkeypatch):
    """The position moves with the tiles, so a repeated batch appends each leaf once."""

    class Killed(BaseException):
        """A BaseException, because the code handles each Exception, but a kill is unhandled."""

    def dies(*_, **__):
        raise Killed

    worker = Projector(stores.datastore, ProofsProjection(), batch_events=300)
    worker.project("s")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(worker.positions, "advance", dies)
            with pytest.raises(Killed):
                worker.project("s")
        worker.project("s")
    grow(stores, worker)
    assert_tiles_are_of_the_log(stores, "s", many)


def test_a_rebuilt_tree_is_the_live_one(stores, many, monkeypatch):
    """The comparison finds a changed tile, and a rebuild repairs it."""
    monkeypatch.setattr(rebuild_module, "CATCH_UP_EVENTS", 5)
    grow(stores, Projector(stores.datastore, ProofsProjection()))
    rebuilder = Rebuilder(stores.datastore, ProofsProjection(), batch_events=100)
    rebuilt = rebuilder.rebuild("s", verify=True)
    assert (rebuilt.events, rebuilt.is_compared) == (many, True)
    assert_tiles_are_of_the_log(stores, "s", many)

    with stores.datastore.committed() as cursor:
        cursor.execute(SQL("UPDATE tiles SET hashes = overlay(hashes placing '\\x00' from 77)"))
    with pytest.raises(RebuildDiffers, match="tiles"):
        rebuilder.rebuild("s", verify=True)
    rebuilder.rebuild("s")
    assert_tiles_are_of_the_log(stores, "s", many)


def test_one_process_follows_with_all_projections(database, stores):
    """All projections share the wakeups, and end together."""
    with Datastore(database) as datastore:
        wakeups = Wakeups(database)
        projectors = [Projector(datastore, projection_named(name)) for name in VERSIONS]
        thread = Thread(target=follow, args=(projectors, wakeups))
        thread.start()
        announcer = Announcer(datastore)
        try:
            for n in range(1, 30):
                stores.push("s", push_of(changeset(put(str(n), n=n))))
                announcer.announce("s", n)
            deadline = time.monotonic() + 10
            while any(line.lag for line in status(datastore, "s")):
                assert time.monotonic() < deadline, status(datastore, "s")
                time.sleep(0.05)
        finally:
            announcer.close()
            wakeups.close()
            thread.join(10)
        assert not thread.is_alive()
    assert_tiles_are_of_the_log(stores, "s", 29)
