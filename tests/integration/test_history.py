"""History on PostgreSQL: databases of older versions, and the history of a real repository."""

from __future__ import annotations

import json

import psycopg
import pytest

from foldlog.domain.errors import HistoryUnavailable, OperatorError
from foldlog.domain.history import NOW, Point
from foldlog.domain.ledger import ConflictsFilter
from foldlog.domain.limits import Limits
from foldlog.domain.merge import FOLD_VERSION
from foldlog.domain.ports import AsOfQuery, DiffQuery, HistoryQuery, RecordsQuery
from foldlog.infrastructure.embedded.cluster import SERVICE_ROLE
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.schema.grants import grant
from foldlog.infrastructure.postgres.schema.migrate import migrate
from foldlog.infrastructure.postgres.status import gauges, status
from foldlog.scripts.demo.history import read_history, tree_of
from tests.conftest import PostgresStores
from tests.helpers import A, B, C, changeset, push_of, put
from tests.history import Past, all_as_of, texts, whole_diff
from tests.integration.test_projector import assert_equals_fresh_fold, random_history

#: Reverts migration 0004 and later ones, to get a database of the version before.
DOWNGRADE = """
DROP TRIGGER events_are_append_only ON events;
DROP TRIGGER spaces_are_never_truncated ON spaces;
DROP FUNCTION pass_erasure_alone, pass_import_alone, guard_space, refuse_access CASCADE;
DROP FUNCTION pass_granted_token_alone, keep_events_below_head CASCADE;
DROP FUNCTION erase_operations, remove_import;
CREATE TRIGGER events_are_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_append_only;
DROP TABLE tiles, checkpoints, erasures, collections, skipped, tokens, removed_imports,
    signers;
ALTER TABLE devices
    DROP COLUMN name,
    DROP COLUMN registered_at_ms,
    ALTER COLUMN last_seen_ms SET NOT NULL;
DELETE FROM projections WHERE projection <> 'master';
ALTER TABLE spaces
    DROP COLUMN erased_seq,
    DROP COLUMN importing,
    DROP COLUMN alarm,
    DROP COLUMN alarm_since;
DROP TABLE enrolments;
DROP INDEX projections_alarms;
ALTER TABLE projections DROP COLUMN failing_why, DROP COLUMN failing_since;
DROP TABLE versions;
ALTER TABLE conflicts DROP COLUMN field, DROP COLUMN lost_by, DROP COLUMN won_by;
DROP INDEX conflicts_by_record;
CREATE INDEX conflicts_by_record ON conflicts (space, generation, collection, id);
ALTER TABLE projections DROP COLUMN has_history, DROP COLUMN has_older_rows;
ALTER TABLE records DROP COLUMN apart;
ALTER TABLE records RENAME COLUMN own_fields TO fields;
ALTER TABLE conflicts RENAME COLUMN entry TO document;
UPDATE projections SET fold_version = 1;
DELETE FROM schema_migrations WHERE name >= '0004';
"""


@pytest.fixture
def upgraded(database, stores):
    """A freshly upgraded database.

    The old version folded space `s` and left an unfinished rebuild of it. Space `young` is
    still unprojected.
    """
    random_history(stores, "s", seed=1)
    stores.project()
    random_history(stores, "young", seed=2, pushes=5)
    with psycopg.connect(database) as conn:
        conn.execute(DOWNGRADE)
        conn.execute(
            "INSERT INTO projections (space, projection, generation, position, is_live, "
            "fold_version) VALUES ('s', 'master', 2, 30, false, 1)"
        )
    assert migrate(database)[0].startswith("0004")
    grant(database, SERVICE_ROLE)
    return stores


def test_an_upgraded_space_has_no_history_until_a_rebuild(upgraded):
    """The master table goes on at once. Questions about the past get an error."""
    head = random_history(upgraded, "s", seed=3, pushes=10)
    upgraded.project()
    assert_equals_fresh_fold(upgraded, "s", head)
    for ask in (
        lambda: upgraded.as_of("s", AsOfQuery(NOW, 1)),
        lambda: upgraded.record_as_of("s", ("tasks", "a"), Point(head)),
        lambda: upgraded.history("s", ("tasks", "a"), HistoryQuery(1)),
        lambda: upgraded.diff("s", DiffQuery(Point(head - 1), Point(head), 1)),
        lambda: upgraded.conflicts("s", limit=1, cursor=None, wanted=ConflictsFilter(device=A)),
    ):
        with pytest.raises(HistoryUnavailable):
            ask()
    assert upgraded.conflicts(
        "s", limit=9, cursor=None, wanted=ConflictsFilter(collection="tasks")
    ).conflicts
    needing = {line.space for line in status(upgraded.datastore) if line.needs_rebuild}
    assert needing == {"s"}
    stale = [g for g in gauges(upgraded.datastore) if g.name == "foldlog_stale_spaces"]
    assert {g.labels["projection"]: g.value for g in stale} == {"master": 1, "proofs": 0}


def test_a_rebuild_makes_the_history(upgraded):
    """It starts from the first event, and drops the old version's unfinished rebuild."""
    rebuilder = Rebuilder(upgraded.datastore, MasterProjection())
    with pytest.raises(OperatorError, match="without --verify"):
        rebuilder.rebuild("s", verify=True)
    assert rebuilder.rebuild("s").resumed_at == 0
    rebuilder.rebuild("s", verify=True)
    past = Past(upgraded, "s")
    for seq in range(past.head + 1):
        assert texts(all_as_of(upgraded, "s", Point(seq))[1]) == texts(past.as_of(seq))
    assert not any(line.needs_rebuild for line in status(upgraded.datastore))


def test_an_unprojected_space_gets_its_whole_history(upgraded):
    upgraded.project()
    past = Past(upgraded, "young")
    assert texts(all_as_of(upgraded, "young", Point(3))[1]) == texts(past.as_of(3))


def test_a_projector_of_the_version_before_leaves_everything_alone(upgraded, datastore):
    """It would leave out the versions, so the migration changes the fold version of all spaces."""
    with datastore.rows() as cursor:
        cursor.execute(
            "SELECT DISTINCT fold_version FROM projections WHERE is_live AND projection = 'master'"
        )
        assert cursor.fetchall() == [(FOLD_VERSION,)]


def test_a_space_created_by_older_code_has_no_history(stores, database):
    """A running old process creates spaces of its version. They need a rebuild."""
    stores.push("s", push_of(changeset(put())))
    stores.project()
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE projections SET fold_version = 1")
    with pytest.raises(HistoryUnavailable):
        stores.as_of("s", AsOfQuery(NOW, 1))


def test_a_difference_in_the_versions_is_found(stores, database, datastore):
    """The comparison covers the table of versions too."""
    random_history(stores, "s", seed=2)
    stores.project()
    with psycopg.connect(database) as conn:
        forge = "UPDATE versions SET is_first = true WHERE id = 'a' AND NOT is_first"
        assert conn.execute(forge).rowcount
    with pytest.raises(OperatorError) as caught:
        Rebuilder(datastore, MasterProjection()).rebuild("s", verify=True)
    assert caught.value.extra["table"] == "versions"


def test_the_trees_of_real_commits(stores):
    """In a real history of 2,252 commits, the records at known commits equal git's trees."""
    commits = read_history()
    base = 0
    for commit in commits:
        base = stores.push("s", push_of(commit.changeset(base=base), device=commit.device)).head
    stores.page("s", RecordsQuery(1, at_least=base))
    known = [(seq, commit.tree) for seq, commit in enumerate(commits, 1) if commit.tree]
    assert len(known) > 20
    before: tuple[int, set[str]] = (0, set())
    for seq, tree in known:
        _, records = all_as_of(stores, "s", Point(seq), limit=1_000)
        assert tree_of(record["fields"] for record in records) == tree
        ids = {record["id"] for record in records}
        diff = whole_diff(stores, "s", Point(before[0]), Point(seq), limit=1_000)
        assert {d["id"] for d in diff if not d["before"]} == ids - before[1]
        assert {d["id"] for d in diff if not d["after"]} == before[1] - ids
        before = seq, ids
    assert json.loads(stores.history("s", ("files", min(ids)), HistoryQuery(1)).versions[0])


def test_a_page_by_device_scans_a_part_of_the_ledger(datastore):
    """The ledger lacks an index by device, so a page may end early. Its cursor continues."""
    stores = PostgresStores(datastore, Limits(page_scan_max=4))
    for n in range(20):
        stores.push("s", push_of(changeset(put("r", x=n)), device=B if n % 2 else C))
    stores.push("s", push_of(changeset(put("r", x="last")), device=A))
    stores.project()
    for wanted in (
        ConflictsFilter(device=A),
        ConflictsFilter(device=A, collection="tasks"),
        ConflictsFilter(device=A, collection="tasks", id="r"),
        ConflictsFilter(device=A, field="x", since=3),
    ):
        cursor, sizes = None, []
        while not sizes or cursor is not None:
            page = stores.conflicts("s", limit=10, cursor=cursor, wanted=wanted)
            cursor = page.cursor
            sizes.append(len(page.conflicts))
        assert sum(sizes) == 1 and sizes[:4] == [0] * 4, sizes
    whole = stores.conflicts("s", limit=100, cursor=None)
    assert len(whole.conflicts) == 20 and whole.cursor is None
