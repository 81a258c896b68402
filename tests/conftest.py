"""What all tests share: a real PostgreSQL of this run's own, and an event store of each kind."""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import ProjectionBehind
from foldlog.domain.limits import Limits
from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.embedded.cluster import SERVICE_ROLE
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable
from foldlog.infrastructure.postgres.projections import projection_named
from foldlog.infrastructure.postgres.proofs.tree import PostgresProofTree
from foldlog.infrastructure.postgres.rebuild.projector import Projector
from foldlog.infrastructure.postgres.schema.grants import grant
from foldlog.infrastructure.postgres.schema.migrate import migrate
from foldlog.infrastructure.postgres.service_events.registry import PostgresRegistry

#: A read that waits for what will never come need not try a test's patience.
LIMITS = Limits(at_least_wait_seconds_max=1)
#: What a test asks of a crash it asks of a cluster of its own (tests/integration); here nothing
#: survives the run anyway.
QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

_databases = itertools.count(1)


@pytest.fixture(scope="session")
def cluster():
    """One PostgreSQL for each worker of the test run. Its database `foldlog` is the template."""
    with own_folder() as folder, EmbeddedPostgres(folder, settings=QUICK) as cluster:
        migrate(cluster.url)
        grant(cluster.url, SERVICE_ROLE)
        yield cluster


@contextmanager
def own_folder():
    """A folder for a database: short enough for a socket, and open to PostgreSQL's own user.

    pytest's own folders are closed to other users again by each session that begins.
    """
    with tempfile.TemporaryDirectory(prefix="foldlog-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def data_folder():
    with own_folder() as folder:
        yield folder


def create_database(cluster, template: str = "foldlog") -> tuple[str, str]:
    """URLs of a new database, migrated by default: as its owner, and as the superuser."""
    name = f"test_{next(_databases)}"
    with psycopg.connect(cluster.superuser_url, autocommit=True) as conn:
        conn.execute(
            SQL("CREATE DATABASE {} TEMPLATE {} OWNER foldlog").format(
                Identifier(name), Identifier(template)
            )
        )
        # A template's tables keep their rights, but those on a database are its own.
        conn.execute(SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(Identifier(name)))
    return _in_database(cluster.url, name), _in_database(cluster.superuser_url, name)


def _in_database(url: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(url, dbname=name)


@pytest.fixture
def database(cluster):
    """The URL of a database of the test's own."""
    return create_database(cluster)[0]


@pytest.fixture
def database_urls(cluster):
    """The same, with the superuser's URL beside it."""
    return create_database(cluster)


def as_service(cluster, url: str) -> str:
    """The same database as the role that the service works as, which owns nothing."""
    return _in_database(cluster.service_url, psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def datastore(cluster, database):
    """As the service: whatever needs more than its role may do fails here."""
    with Datastore(as_service(cluster, database)) as datastore:
        yield datastore


class ProjectedMasterTable(PostgresMasterTable):
    """Whoever would have to wait makes the projection go on."""

    def _select(self, *args, **kwargs):
        try:
            return super()._select(*args, **kwargs)
        except ProjectionBehind:
            self.project()
            return super()._select(*args, **kwargs)


class PostgresStores:
    """Both ports on one database. Whoever waits for the projection makes it go on."""

    def __init__(self, datastore: Datastore, limits: Limits = LIMITS):
        self.datastore = datastore
        self.log = PostgresEventStore(datastore, limits=limits)
        self.projector = Projector(datastore, MasterProjection())
        self.tree_projector = Projector(datastore, projection_named("proofs"))
        self.proofs = PostgresProofTree(datastore)
        self.registry = PostgresRegistry(datastore, self.log.append_service_event)
        self.master = ProjectedMasterTable(datastore, limits=limits)
        self.master.project = self.project

    def project(self) -> None:
        for space in self.projector.lagging():
            while self.projector.project_or_stop(space):
                pass

    def grow_trees(self) -> None:
        for space in self.tree_projector.lagging():
            while self.tree_projector.project_or_stop(space):
                pass

    def __getattr__(self, name):
        parts = (self.log, self.master, self.proofs, self.registry)
        return getattr(next((p for p in parts if hasattr(p, name)), self.master), name)


# The services that tests start let everybody in, as on a developer's machine, unless it is access
# that is tested.
os.environ["FOLDLOG_ACCESS"] = "open"


@pytest.fixture
def stores(datastore):
    """The event store and the master table on a database of the test's own."""
    return PostgresStores(datastore)


@pytest.fixture(scope="session")
def _shared_stores(cluster):
    with Datastore(as_service(cluster, create_database(cluster)[0])) as datastore:
        yield PostgresStores(datastore)


@pytest.fixture(params=["memory", "postgres"])
def store(request):
    """Every test that asks for a store runs once on each kind of store.

    The one on PostgreSQL is shared by all of them, so they take spaces of their own.
    """
    if request.param == "memory":
        return MemoryStore(limits=LIMITS)
    return request.getfixturevalue("_shared_stores")
