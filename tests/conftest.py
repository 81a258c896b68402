"""Fixtures of all tests: a PostgreSQL cluster for each test run, and a store of each kind."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
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
from tests.asgi_client import asgi_client

#: A read that waits for a seq in vain gives up after a second.
LIMITS = Limits(at_least_wait_seconds_max=1)
#: The shared cluster ends with the run, so it may lose data in a crash. Tests of crashes start
#: their own cluster (tests/integration).
QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
}
#: A file system in memory. Making a database there takes a third of the time on a disk.
IN_MEMORY = Path("/dev/shm")
#: the memory that a worker's folders may need
WORKER_BYTES = 2 * 2**30

_databases = itertools.count(1)


def pytest_configure(config):
    """Gives each worker one test after another, because chunks would break the order of tests."""
    if config.pluginmanager.hasplugin("xdist") and config.option.maxschedchunk is None:
        config.option.maxschedchunk = 1


def pytest_collection_modifyitems(items):
    """Sorts the longest tests first, because a long test at the end leaves other workers idle."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item) -> float:
    """The rough duration of a test: 0 for a test without the marker `seconds`."""
    marker = item.get_closest_marker("seconds")
    return marker.args[0] if marker else 0


@pytest.fixture(scope="session")
def cluster():
    """One PostgreSQL cluster for each pytest worker. Its database `foldlog` is the template."""
    with own_folder() as folder, EmbeddedPostgres(folder, settings=QUICK) as cluster:
        migrate(cluster.url)
        grant(cluster.url, SERVICE_ROLE)
        yield cluster
        cluster.kill()  # an orderly stop would write all databases of the run to the disk


@contextmanager
def own_folder():
    """Makes a folder for a database. PostgreSQL's own user can open it, and a socket's path fits.

    pytest's folders would fail: each new pytest session closes them to other users again.
    The folder is in memory if there is enough for all workers.
    """
    with tempfile.TemporaryDirectory(
        prefix="foldlog-", dir=fast_folder(), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@cache
def fast_folder() -> Path | None:
    """The file system in memory, or `None` if this machine lacks it or the memory for it."""
    if not os.access(IN_MEMORY, os.W_OK):
        return None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    free = min(shutil.disk_usage(IN_MEMORY).free, psutil.virtual_memory().available)
    return IN_MEMORY if free > workers * WORKER_BYTES else None


@pytest.fixture
def data_folder():
    with own_folder() as folder:
        yield folder


@contextmanager
def new_database(cluster, template: str = "foldlog"):
    """Creates a database from a template, gives its URLs as `create_database`, and drops it."""
    urls = create_database(cluster, template)
    yield urls
    name = psycopg.conninfo.conninfo_to_dict(urls[0])["dbname"]
    with psycopg.connect(cluster.superuser_url, autocommit=True) as conn:
        conn.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def create_database(cluster, template: str = "foldlog") -> tuple[str, str]:
    """Creates a database from a template. Returns its URLs for the owner and the superuser."""
    name = f"test_{next(_databases)}"
    with psycopg.connect(cluster.superuser_url, autocommit=True) as conn:
        conn.execute(
            SQL("CREATE DATABASE {} TEMPLATE {} OWNER foldlog").format(
                Identifier(name), Identifier(template)
            )
        )
        # A new database copies the rights on tables, but starts with default rights on itself.
        conn.execute(SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(Identifier(name)))
    return _in_database(cluster.url, name), _in_database(cluster.superuser_url, name)


def _in_database(url: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(url, dbname=name)


@pytest.fixture
def database(cluster):
    """The URL of a new database for one test."""
    with new_database(cluster) as (url, _):
        yield url


@pytest.fixture
def database_urls(cluster):
    """The URLs of a new database for one test: for the owner, and for the superuser."""
    with new_database(cluster) as urls:
        yield urls


def as_service(cluster, url: str) -> str:
    """The URL of the same database for the service's role, which owns no table."""
    return _in_database(cluster.service_url, psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def datastore(cluster, database):
    """A datastore with the rights of the service's role."""
    with Datastore(as_service(cluster, database)) as datastore:
        yield datastore


class ProjectedMasterTable(PostgresMasterTable):
    """A master table that projects pending events when a read would wait for them."""

    def _select(self, *args, **kwargs):
        try:
            return super()._select(*args, **kwargs)
        except ProjectionBehind:
            self.project()
            return super()._select(*args, **kwargs)


class PostgresStores:
    """All ports on one database. A read projects the events that it waits for."""

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
            while self.projector.project_or_halt(space):
                pass

    def grow_trees(self) -> None:
        for space in self.tree_projector.lagging():
            while self.tree_projector.project_or_halt(space):
                pass

    def __getattr__(self, name):
        parts = (self.log, self.master, self.proofs, self.registry)
        return getattr(next((p for p in parts if hasattr(p, name)), self.master), name)


# Services that tests start are open, as on a developer's machine. Tests of access set this again.
os.environ["FOLDLOG_ACCESS"] = "open"


@pytest.fixture
def stores(datastore):
    """All ports on a new database for one test."""
    return PostgresStores(datastore)


@pytest.fixture(scope="session")
def _shared_stores(cluster):
    with Datastore(as_service(cluster, create_database(cluster)[0])) as datastore:
        yield PostgresStores(datastore)


@pytest.fixture(scope="session")
def _shared_memory_store():
    return MemoryStore(limits=LIMITS)


@pytest.fixture(params=["memory", "postgres"])
def store(request):
    """A store of each kind, so that a test runs once on each.

    All tests of a run share the two stores. Each test uses its own spaces.
    """
    name = "_shared_memory_store" if request.param == "memory" else "_shared_stores"
    return request.getfixturevalue(name)


@pytest.fixture
def client_of():
    """Makes a client of an application."""
    return asgi_client
