"""The one place where parts are chosen and joined. Nothing connects before it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread

import psycopg
import structlog

from foldlog.domain.errors import OperatorError, StorageUnavailable
from foldlog.domain.notes import Verifier, origin_of
from foldlog.domain.ports import Gauge
from foldlog.domain.redaction import redacted
from foldlog.infrastructure.embedded.cluster import SERVICE_ROLE
from foldlog.infrastructure.postgres.connection.datastore import CONNECTION, Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS, needs_new_connections
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.postgres.log.following import Follower
from foldlog.infrastructure.postgres.log.wakeups import Announcer, Wakeups
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable
from foldlog.infrastructure.postgres.projections import VERSIONS, projection_named
from foldlog.infrastructure.postgres.proofs.tree import PostgresProofTree
from foldlog.infrastructure.postgres.rebuild.projector import Projector, follow
from foldlog.infrastructure.postgres.schema.grants import grant
from foldlog.infrastructure.postgres.schema.migrate import SchemaBehind, migrate, pending
from foldlog.infrastructure.postgres.service_events.registry import PostgresRegistry
from foldlog.infrastructure.postgres.status import gauges
from foldlog.infrastructure.signing.keys import read_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner
from foldlog.infrastructure.signing.witness import Witness, Witnesses

from .embedded import EmbeddedPostgres
from .jwts import Jwts, keys_at
from .settings import Settings

log = structlog.get_logger("foldlog.wiring")

#: A request is given up on after ten seconds at most: three for its turn to be committed, two for
#: a connection, five for all that it asks of the database.
REQUEST_SECONDS_MAX = 5.0
#: of a projector's turn, and of signing one checkpoint; both take a fraction of it
TURN_SECONDS_MAX = 60.0
READ_ONLY = "SELECT current_setting('transaction_read_only') = 'on'"


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the HTTP layer and the commands work with."""

    datastore: Datastore
    store: PostgresEventStore
    registry: PostgresRegistry
    follower: Follower  #: to be started by who serves
    master: PostgresMasterTable
    tree: PostgresProofTree
    settings: Settings

    def verifiers(self, space: str) -> list[Verifier]:
        """Whose signatures the checkpoints of a space bear, the present signer first."""
        origin = origin_of(self.settings.origin, space, self.tree.tree(space).log)
        return read_keys(self.settings.keys_folder).verifiers(origin)

    @property
    def jwts(self) -> Jwts | None:
        """Who reads the tokens of the app's own sign-in. Raises `SignInKeysUnusable`."""
        settings = self.settings
        if settings.jwt_keys is None or settings.jwt_audience is None:
            return None
        return Jwts(
            keys_at(settings.jwt_keys),
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            prefix=settings.jwt_claims,
            seconds_max=settings.jwt_seconds_max,
        )

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
                [(only_reads,)] = cursor.execute(READ_ONLY).fetchall()
        except DATABASE_ERRORS as exc:
            if needs_new_connections(exc):
                self.datastore.check_pool()
            # To whoever asks no more than that: it names hosts and roles.
            log.warning("database-unreachable", error=redacted(str(exc).strip().splitlines()[0]))
            why = "unreachable, or it does not answer: the service's log says more"
            return {"database": why, "writes": "unknown", "schema": "unknown"}
        if only_reads:
            self.datastore.check_pool()  # another of the URL's hosts may take writes by now
        return {
            "database": "ok",
            "writes": "the database only reads: a standby, or told so" if only_reads else "ok",
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
        url = settings.database_url
        yield Database(url, url, None, _of_this_version(url, migrates))
        return
    with EmbeddedPostgres(settings.data, exclusive=exclusive) as embedded:
        migrated = _of_this_version(embedded.url, migrates)
        if embedded.owned or migrates:
            grant(embedded.url, SERVICE_ROLE)
        yield Database(embedded.service_url, embedded.url, embedded, migrated)


@contextmanager
def database_as_it_is(settings: Settings, *, superuser: bool = False) -> Iterator[str]:
    """The URL, whatever is in the database: for PostgreSQL's own programs."""
    if settings.database_url is not None:
        if superuser:
            raise OperatorError("the superuser of your own server is known to you alone")
        yield settings.database_url
        return
    with EmbeddedPostgres(settings.data) as embedded:
        yield embedded.superuser_url if superuser else embedded.url


@dataclass(frozen=True)
class Database:
    """A migrated database."""

    url: str = field(repr=False)  #: as who may do what the service does
    owner_url: str = field(repr=False)  #: as the owner of the tables, if that is known to us
    embedded: EmbeddedPostgres | None  #: the server, if it is ours
    migrated: list[str]  #: the migrations that it got just now


def _of_this_version(url: str, migrates: bool) -> list[str]:
    """The migrations that the database got just now."""
    try:
        if migrates:
            return migrate(url)
        with psycopg.connect(url, **CONNECTION) as conn, conn.cursor() as cursor:
            if missing := pending(cursor):
                raise SchemaBehind(f"the database lacks {', '.join(missing)}: foldlog migrate")
        return []
    except psycopg.OperationalError as exc:
        raise StorageUnavailable(f"cannot use the database: {exc}") from exc


@contextmanager
def services(
    url: str, settings: Settings, *, seconds_max: float | None = None
) -> Iterator[Services]:
    """The parts on one database, with a pool of connections of their own.

    Whoever answers requests gives up on the database after `seconds_max`; a command waits.
    """
    pool_size_max = settings.pool_size_max
    with Datastore(url, pool_size_max=pool_size_max, seconds_max=seconds_max) as datastore:
        announcer = Announcer(datastore)
        store = PostgresEventStore(datastore, limits=settings.limits, on_append=announcer.announce)
        follower = Follower(datastore, store.tails, store.read_tail)
        try:
            yield Services(
                datastore=datastore,
                store=store,
                registry=PostgresRegistry(datastore, store.append_service_event),
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
    with (
        Datastore(url, pool_size_max=2, seconds_max=TURN_SECONDS_MAX) as datastore,
        signing(url, settings),
    ):
        wakeups = Wakeups(url)
        projectors = [
            Projector(datastore, projection_named(name, settings.limits)) for name in VERSIONS
        ]
        try:
            yield partial(follow, projectors, wakeups), wakeups
        finally:
            wakeups.close()


@contextmanager
def signing(url: str, settings: Settings) -> Iterator[None]:
    """Signs checkpoints as long as the block runs, if there is a key, and has them cosigned."""
    closing = Event()
    with Datastore(url, pool_size_max=4, seconds_max=TURN_SECONDS_MAX) as datastore:
        tree = PostgresProofTree(datastore)
        witnesses = Witnesses(tree, settings.witnesses)
        runs = [signer(tree, settings, witnesses).run]
        if settings.witnesses:
            runs.append(witnesses.run)
        threads = [Thread(target=run, args=(closing,), daemon=True) for run in runs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            closing.set()
            for thread in threads:
                thread.join()


def signer(tree: PostgresProofTree, settings: Settings, witnesses: Witnesses) -> CheckpointSigner:
    return CheckpointSigner(
        tree,
        keys=settings.keys_folder,
        last=settings.checkpoints_folder,
        origin=settings.origin,
        on_signed=witnesses.ask if settings.witnesses else None,
    )
