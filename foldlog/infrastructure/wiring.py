"""The one place where parts are chosen and joined. Nothing connects before it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread

import psycopg

from ..domain.errors import StorageUnavailable
from ..domain.notes import Verifier, origin_of
from ..domain.ports import Gauge
from .embedded import EmbeddedPostgres
from .keys import read_keys
from .postgres.datastore import Datastore
from .postgres.errors import DATABASE_ERRORS
from .postgres.following import Follower
from .postgres.log import PostgresEventStore
from .postgres.master_table import PostgresMasterTable
from .postgres.migrate import SchemaBehind, migrate, pending
from .postgres.projections import VERSIONS, projection_named
from .postgres.projector import Projector, follow
from .postgres.status import gauges
from .postgres.tree import PostgresProofTree
from .postgres.wakeups import Announcer, Wakeups
from .settings import Settings
from .signer import CheckpointSigner
from .witness import Witness, Witnesses


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the HTTP layer and the commands work with."""

    datastore: Datastore
    store: PostgresEventStore
    follower: Follower  #: to be started by who serves
    master: PostgresMasterTable
    tree: PostgresProofTree
    settings: Settings

    def verifiers(self, space: str) -> list[Verifier]:
        """Whose signatures the checkpoints of a space bear, the present signer first."""
        origin = origin_of(self.settings.origin, space, self.tree.tree(space).log)
        return read_keys(self.settings.keys_folder).verifiers(origin)

    @property
    def add_checkpoint(self) -> Callable[[bytes], str] | None:
        """Cosigns checkpoints of other logs, if there are any that we shall, and a key to do so."""
        cosigner = read_keys(self.settings.keys_folder).cosigner(self.settings.witness_name)
        if cosigner is None or not self.settings.witnessed:
            return None
        folder = self.settings.witness_folder
        return Witness(folder, cosigner, self.settings.witnessed).add_checkpoint

    def ready(self) -> dict[str, str]:
        """Each thing that a request needs: `ok`, or what is wrong with it."""
        try:
            with self.datastore.rows() as cursor:
                missing = pending(cursor)
        except DATABASE_ERRORS as exc:
            return {"database": str(exc).strip().splitlines()[0], "schema": "unknown"}
        return {
            "database": "ok",
            "schema": f"lacks {', '.join(missing)}: run foldlog migrate" if missing else "ok",
        }

    def gauges(self) -> list[Gauge]:
        return gauges(self.datastore)


@contextmanager
def database(
    settings: Settings, *, migrates: bool = False, exclusive: bool = False
) -> Iterator[Database]:
    """The URL of a database of this version's schema, and the server that was started for it.

    Whoever only looks must not change a schema: without `migrates` an older one is refused, as
    `SchemaBehind`. With `exclusive` the embedded server must be ours: two services on one folder
    are a mistake.
    """
    if settings.database_url is not None:
        yield _of_this_version(settings.database_url, None, migrates)
        return
    with EmbeddedPostgres(settings.data, exclusive=exclusive) as embedded:
        yield _of_this_version(embedded.url, embedded, migrates)


@dataclass(frozen=True)
class Database:
    """A migrated database."""

    url: str
    embedded: EmbeddedPostgres | None  #: the server, if it is ours
    migrated: list[str]  #: the migrations that it got just now


def _of_this_version(url: str, embedded: EmbeddedPostgres | None, migrates: bool) -> Database:
    try:
        if migrates:
            return Database(url, embedded, migrate(url))
        with psycopg.connect(url) as conn, conn.cursor() as cursor:
            if missing := pending(cursor):
                raise SchemaBehind(f"the database lacks {', '.join(missing)}: foldlog migrate")
        return Database(url, embedded, [])
    except psycopg.OperationalError as exc:
        raise StorageUnavailable(f"cannot use the database: {exc}") from exc


@contextmanager
def services(url: str, settings: Settings) -> Iterator[Services]:
    """The parts on one database, with a pool of connections of their own."""
    with Datastore(url, pool_size_max=settings.pool_size_max) as datastore:
        announcer = Announcer(datastore)
        store = PostgresEventStore(datastore, limits=settings.limits, on_append=announcer.announce)
        follower = Follower(datastore, store.tails, store.read_on)
        try:
            yield Services(
                datastore=datastore,
                store=store,
                follower=follower,
                master=PostgresMasterTable(datastore, limits=settings.limits),
                tree=PostgresProofTree(datastore),
                settings=settings,
            )
        finally:
            follower.close()
            store.close()
            announcer.close()


@contextmanager
def projector(url: str, settings: Settings) -> Iterator[tuple[Callable[[], None], Wakeups]]:
    """What follows all logs with all projections, and what wakes it; closing that ends it.

    The signer is beside it, in a thread of its own: it waits for the disk.
    """
    with Datastore(url, pool_size_max=2) as datastore, signing(url, settings):
        wakeups = Wakeups(url)
        projectors = [Projector(datastore, projection_named(name)) for name in VERSIONS]
        try:
            yield partial(follow, projectors, wakeups), wakeups
        finally:
            wakeups.close()


@contextmanager
def signing(url: str, settings: Settings) -> Iterator[None]:
    """Signs checkpoints as long as the block runs, if there is a key."""
    closing = Event()
    with Datastore(url, pool_size_max=3) as datastore:
        thread = Thread(target=signer(datastore, settings).run, args=(closing,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            closing.set()
            thread.join()


def signer(datastore: Datastore, settings: Settings) -> CheckpointSigner:
    tree = PostgresProofTree(datastore)
    return CheckpointSigner(
        tree,
        keys=settings.keys_folder,
        last=settings.checkpoints_folder,
        origin=settings.origin,
        cosign=Witnesses(tree, settings.witnesses) if settings.witnesses else None,
    )
