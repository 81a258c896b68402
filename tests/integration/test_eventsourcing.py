"""The eventsourcing library reads our log by itself: the code of the how-to page is run here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Timer
from types import ModuleType

import psycopg
import pytest
from eventsourcing.domain import OriginatorVersionError
from eventsourcing.persistence import JSONTranscoder, Mapper, ProgrammingError
from eventsourcing.postgres import (
    PostgresAggregateRecorder,
    PostgresApplicationRecorder,
    PostgresDatastore,
)

from foldlog.infrastructure.postgres.connection.datastore import Datastore
from tests.conftest import PostgresStores, as_service, create_database
from tests.helpers import A, B, changeset, pull_all, push_of, put

PAGE = Path(__file__).parents[2] / "docs/how-to/follow-with-eventsourcing.md"
SECONDS_MAX = 120.0


def block(language: str) -> str:
    """Returns the page's one block of code in this language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return code


@pytest.fixture(scope="module")
def urls(cluster):
    """A database in which the page's SQL was run: URLs of its owner and of the superuser."""
    urls = create_database(cluster)
    with psycopg.connect(urls[1], autocommit=True) as conn:
        conn.execute(block("sql"))
        yield urls
        conn.execute("DROP OWNED BY follower")
        conn.execute("DROP SCHEMA following CASCADE")
        conn.execute("DROP ROLE follower")


@pytest.fixture(scope="module")
def environment(urls):
    """The variables that the page's program reads."""
    parts = psycopg.conninfo.conninfo_to_dict(urls[0])
    return {
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts["port"]),
        "POSTGRES_USER": "follower",
        "POSTGRES_PASSWORD": "change-me",
    }


@pytest.fixture(scope="module")
def program(environment):
    """The page's program as a module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        module = ModuleType("activity")
        patch.setitem(sys.modules, "activity", module)
        exec(compile(block("python"), "activity.py", "exec"), vars(module))
        yield module
        module.datastore.close()


@pytest.fixture
def stores(cluster, urls):
    with Datastore(as_service(cluster, urls[0])) as datastore:
        yield PostgresStores(datastore)


def test_the_library_is_unmodified(program):
    """The page uses the library's own classes, and no subclass of them."""
    assert type(program.datastore) is PostgresDatastore
    assert type(program.recorder) is PostgresAggregateRecorder
    assert type(program.mapper) is Mapper


def test_an_aggregate_is_rebuilt_from_our_log(stores, program):
    """Each event arrives once, in order, with the bytes that devices receive."""
    stores.push("s", push_of(*(changeset(put(n=n), counter=n + 1) for n in range(3))))
    stores.push("s", push_of(changeset(put(n=4), counter=1, base=3), device=B))
    stored = program.recorder.select_events("s", gt=1)
    assert [event.originator_version for event in stored] == [2, 3, 4]
    assert [event.state for event in stored] == pull_all(stores, "s")[1:]

    activity = next(program.follow("s"))
    assert activity.version == 4
    assert activity.changesets == {A: 3, B: 1}


def test_events_of_the_service_are_skipped(stores, program):
    stores.push("skips", push_of(changeset(put(n=1), counter=1)))
    stores.registry.register("skips", B, name="a phone")
    stores.push("skips", push_of(changeset(put(n=2), counter=2, base=2)))
    activity = next(program.follow("skips"))
    assert activity.version == 3
    assert activity.changesets == {A: 2}


def test_the_aggregate_notices_a_missing_event(stores, program):
    stores.push("gap", push_of(*(changeset(put(n=n), counter=n + 1) for n in range(2))))
    (_, second) = program.recorder.select_events("gap")
    with pytest.raises(OriginatorVersionError):
        program.mapper.to_domain_event(second).mutate(program.Activity("gap"))


def test_values_of_users_stay_as_they_are(stores, program):
    """The library's own transcoder reads our events too, except for one form of object."""
    stores.push("plain", push_of(changeset(put(note={"text": "x"}))))
    (stored,) = program.recorder.select_events("plain")
    event = program.mapper.to_domain_event(stored)
    assert vars(event) == vars(Mapper(JSONTranscoder()).to_domain_event(stored))

    value = {"_type_": "x", "_data_": "y"}
    stores.push("special", push_of(changeset(put(note=value))))
    (stored,) = program.recorder.select_events("special")
    assert program.mapper.to_domain_event(stored).ops[0]["fields"]["note"] == value
    with pytest.raises(ValueError, match="not deserializable"):
        Mapper(JSONTranscoder()).to_domain_event(stored)


def test_the_role_can_only_read_the_view(urls):
    url = psycopg.conninfo.make_conninfo(urls[0], user="follower", password="change-me")
    refused = (
        "SELECT FROM events",
        "INSERT INTO following.log VALUES ('s', 1, 't', '')",
        "DELETE FROM following.log",
    )
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in refused:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)


def test_there_is_no_notification_log(program):
    """The library's application recorder needs one sequence over all aggregates."""
    recorder = PostgresApplicationRecorder(program.datastore, events_table_name="log")
    with pytest.raises(ProgrammingError, match="notification_id"):
        recorder.select_notifications(start=1, limit=10)


def test_the_printed_program_follows_the_space(stores, environment, tmp_path):
    """It runs as a user runs it, and prints the new state after each push."""
    (tmp_path / "activity.py").write_text(block("python"))
    stores.push("home", push_of(changeset(put(n=1), counter=1)))
    with subprocess.Popen(
        [sys.executable, "activity.py", "home"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        guard = Timer(SECONDS_MAX, process.kill)
        guard.start()
        try:
            assert process.stdout.readline() == f"1 {{'{A}': 1}}\n"
            stores.push("home", push_of(changeset(put(n=2), counter=2, base=1)))
            assert process.stdout.readline() == f"2 {{'{A}': 2}}\n"
        finally:
            guard.cancel()
            process.kill()
