"""A snapshot borrows one connection for each page, and returns it between the pages."""

from __future__ import annotations

from psycopg.rows import tuple_row

from foldlog.domain.limits import Limits
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.master.snapshots import SELECT_SNAPSHOT
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from tests.conftest import PostgresStores
from tests.helpers import changeset, push_of, put
from tests.new_device import NewDevice, fold_of, lines_of

PEOPLE = 20


def test_slow_readers_hold_no_connection(database):
    """
    One connection is enough for twenty unfinished downloads, with pushes and reads between any two
    lines.
    """
    with Datastore(database, pool_size_max=1) as datastore:
        stores = PostgresStores(datastore, Limits(page_snapshot_records=2))
        stores.push("s", push_of(changeset(*(put(f"r{n}", n=0) for n in range(9)))))
        devices = [NewDevice() for _ in range(PEOPLE)]
        heard = [[] for _ in devices]
        under_way = [lines_of(stores.snapshot("s", at_least=1)) for _ in devices]
        for n in range(9 + 5 + 1):
            for lines, line in zip(heard, map(next, under_way), strict=True):
                lines.append(line)
            stores.push("s", push_of(changeset(put(f"r{n % 9}", n=n))))
            stores.project()
        for device, lines in zip(devices, heard, strict=True):
            device.load(lines)
            device.follow(stores, "s")
            assert device.states() == fold_of(stores, "s")


def test_a_rebuild_may_be_swapped_in_between_two_pages(datastore):
    """
    The remaining pages come from the new generation, and the device has a complete snapshot.
    """
    stores = PostgresStores(datastore, Limits(page_snapshot_records=2))
    stores.push("s", push_of(changeset(*(put(f"r{n}", n=0) for n in range(7)))))
    snapshot = stores.snapshot("s", at_least=1)
    device, lines = NewDevice(), lines_of(snapshot)
    heard = [next(lines) for _ in range(5)]
    stores.push("s", push_of(changeset(put("r1", n=1), put("r6", n=1))))
    Rebuilder(datastore, MasterProjection()).rebuild("s")
    device.load([*heard, *lines])
    assert device.at["tasks", "r6"] == 2
    device.follow(stores, "s")
    assert device.states() == fold_of(stores, "s")


def test_a_page_is_read_by_the_primary_key(database):
    """
    The index by seq has another order, so it would read and sort the whole space for each page.
    The planner avoids it, even without the primary key.
    """
    params = {
        "space": "s",
        "fold_version": 1,
        "after_collection": "",
        "after_id": "",
        "limit": 2,
        "bytes_max": 1,
    }
    with (
        Datastore(database) as datastore,
        datastore.get_connection() as conn,
        conn.transaction(force_rollback=True),
    ):
        cursor = conn.cursor(row_factory=tuple_row)
        explain = f"EXPLAIN {SELECT_SNAPSHOT}"
        assert "using records_pkey" in plan_of(cursor.execute(explain, params))
        cursor.execute("ALTER TABLE records DROP CONSTRAINT records_pkey")
        cursor.execute("SET LOCAL enable_seqscan = off")
        assert "records_by_seq" not in plan_of(cursor.execute(explain, params))


def plan_of(cursor):
    return "\n".join(line for (line,) in cursor.fetchall())
