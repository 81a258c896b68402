"""A new database and a migrated one have the same schema."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from foldlog.infrastructure.embedded.binaries import find_binaries
from foldlog.infrastructure.postgres.schema.migrate import UnknownSchema, migrate, migrations
from tests.conftest import create_database


def dump(url: str) -> list[str]:
    """Returns the schema by pg_dump, except for the lines that differ between two dumps."""
    text = subprocess.run(
        [find_binaries() / "pg_dump", "--schema-only", "--no-owner", url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line for line in text.splitlines() if not line.startswith(("--", "\\"))]


@pytest.fixture
def empty(cluster):
    """Creates an empty database, and returns its URL."""
    return lambda: create_database(cluster, template="template0")[0]


def test_schema_and_migrations_agree(empty):
    """`schema.sql` and all migrations one by one lead to the same schema."""
    at_once, step_by_step = empty(), empty()
    migrate(at_once)
    migrate(step_by_step, from_scratch=False)

    assert dump(at_once) == dump(step_by_step)
    assert any("CREATE TABLE public.events" in line for line in dump(at_once))


def test_a_database_of_any_earlier_version_is_migrated(empty, monkeypatch):
    """Each earlier schema leads to the current one."""
    known = migrations()
    expected = empty()
    migrate(expected)
    for length in range(1, len(known)):
        url = empty()
        with monkeypatch.context() as patch:
            earlier = dict(list(known.items())[:length])
            patch.setattr(
                "foldlog.infrastructure.postgres.schema.migrate.migrations", lambda e=earlier: e
            )
            assert migrate(url, from_scratch=False) == list(earlier)
        assert migrate(url) == list(known)[length:]
        assert dump(url) == dump(expected)


def test_migrating_again_does_nothing(database):
    assert migrate(database) == []


def test_two_services_that_start_at_once_migrate_once(empty):
    """The first service migrates. The others wait, and then find a current schema."""
    url = empty()
    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(migrate, [url] * 4))
    assert sorted(map(len, applied)) == [0, 0, 0, len(migrations())]


def test_a_database_of_a_newer_version_is_left_alone(database):
    """An accidental downgrade must end with an error."""
    with psycopg.connect(database) as conn:
        conn.execute("INSERT INTO schema_migrations (name) VALUES ('9999_from_the_future')")
    with pytest.raises(UnknownSchema, match="9999_from_the_future"):
        migrate(database)
