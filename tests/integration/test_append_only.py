"""The log is append-only: the database itself refuses changes by every role."""

from __future__ import annotations

import psycopg
import pytest

from foldlog.infrastructure.postgres.connection.datastore import Datastore
from tests.conftest import PostgresStores
from tests.helpers import changeset, push_of

CHANGES = [
    "UPDATE events SET state = state",
    "UPDATE events SET salt = '' WHERE originator_version = 2",
    "UPDATE events SET originator_version = 99 WHERE originator_version = 2",
    "DELETE FROM events",
    "DELETE FROM events WHERE originator_version > 100",
    "TRUNCATE events",
    "TRUNCATE events CASCADE",
    "INSERT INTO events SELECT * FROM events "
    "ON CONFLICT (originator_id, originator_version) DO UPDATE SET state = ''",
    "MERGE INTO events e USING spaces s ON s.space = e.originator_id WHEN MATCHED THEN DELETE",
    "WITH gone AS (DELETE FROM events RETURNING 1) SELECT count(*) FROM gone",
]


@pytest.mark.parametrize("who", ["owner", "superuser"])
@pytest.mark.parametrize("statement", CHANGES)
def test_the_log_cannot_be_changed(database_urls, who, statement):
    """Updates and deletes of events fail for the service's role and for a superuser."""
    owner, superuser = database_urls
    with Datastore(owner) as datastore:
        stores = PostgresStores(datastore)
        stores.push("s", push_of(changeset(), changeset(), changeset()))
        before = list(stores.entries("s", through=3))

        with (
            psycopg.connect(owner if who == "owner" else superuser) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            conn.execute(statement)

        assert list(stores.entries("s", through=3)) == before


def test_not_even_with_triggers_off_for_a_replica(database_urls):
    """`session_replication_role` disables ordinary triggers. This trigger is set to fire always."""
    owner, superuser = database_urls
    with Datastore(owner) as datastore:
        PostgresStores(datastore).push("s", push_of(changeset()))
    with psycopg.connect(superuser) as conn:
        conn.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("DELETE FROM events")


@pytest.mark.parametrize(
    ("seq", "event_id", "constraint"),
    [
        (2, "00000000-0000-4000-8000-000000000001", "events_pkey"),
        (0, "00000000-0000-4000-8000-000000000001", "events_seq_is_positive"),
        (4, None, "events_event_id"),
    ],
)
def test_a_seq_and_an_id_are_there_once(stores, database, seq, event_id, constraint):
    """Also a statement from outside of the service can use a seq, or an id, only once."""
    stores.push("s", push_of(changeset(), changeset(), changeset()))
    with psycopg.connect(database) as conn, pytest.raises(psycopg.errors.IntegrityError) as caught:
        conn.execute(
            "INSERT INTO events SELECT originator_id, %s, topic, state, coalesce(%s, event_id), "
            "device, received_at_ms, collections, salt, ops_hash FROM events "
            "WHERE originator_version = 1",
            (seq, event_id),
        )
    assert caught.value.diag.constraint_name == constraint
