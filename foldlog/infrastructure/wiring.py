"""The composition root: the only module that constructs the parts of the service and joins them.

The functions here open connections; importing the module opens none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread

import psycopg

from foldlog.domain.errors import OperatorError, StorageUnavailable
from foldlog.domain.limits import Limits
from foldlog.domain.notes import Verifier, origin_of
from foldlog.domain.ports import Gauge

from .embedded import EmbeddedPostgres
from .embedded.cluster import SERVICE_ROLE
from .jwts import Jwts, keys_at
from .postgres.append.transfer import Importer
from .postgres.connection.datastore import CONNECTION, Datastore
from .postgres.event_store import PostgresEventStore
from .postgres.log.following import Follower
from .postgres.log.wakeups import Announcer, Wakeups
from .postgres.master.table import PostgresMasterTable
from .postgres.projections import VERSIONS, projection_named
from .postgres.proofs.tree import PostgresProofTree
from .postgres.readiness import readiness
from .postgres.rebuild.projector import Projector, follow
from .postgres.rebuild.rebuild import Rebuilder
from .postgres.schema.grants import grant
from .postgres.schema.migrate import SchemaBehind, migrate, pending
from .postgres.service_events.registry import PostgresRegistry
from .postgres.status import gauges
from .settings import Settings
from .signing.keys import read_keys
from .signing.signer import CheckpointSigner
from .signing.witness import Witness, Witnesses

#: A request fails after ten seconds at most: three seconds in the queue of commits, two for a
#: connection, five for all of its statements.
REQUEST_SECONDS_MAX = 5.0
#: Time limit of a projector's batch and of signing one checkpoint. Both usually take far less.
TURN_SECONDS_MAX = 60.0


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts that the HTTP layer and the commands use, joined on one database."""

    datastore: Datastore
    store: PostgresEventStore
    registry: PostgresRegistry
    follower: Follower  #: only a process that answers requests starts it
    master: PostgresMasterTable
    tree: PostgresProofTree
    importer: Importer
    settings: Settings

    def verifiers(self, space: str) -> list[Verifier]:
        """Returns the public keys that signed checkpoints of a space, the current key first."""
        origin = origin_of(self.settings.origin, space, self.tree.tree(space).log)
        return read_keys(self.settings.keys_folder).verifiers(origin)

    @property
    def jwts(self) -> Jwts | None:
        """The reader of the app's own tokens, if configured. Raises `SignInKeysUnusable`."""
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
        """The witness's endpoint, if a cosigning key and logs to cosign are configured."""
        cosigner = read_keys(self.settings.keys_folder).cosigner(self.settings.witness_name)
        if cosigner is None or not self.settings.witnessed:
            return None
        folder = self.settings.witness_folder
        return Witness(folder, cosigner, self.settings.witnessed).add_checkpoint

    def ready(self) -> dict[str, str]:
        """Returns the state of each thing that a request needs: `ok`, or the problem."""
        return readiness(self.datastore)

    def gauges(self) -> list[Gauge]:
        """Returns the figures of `/metrics` that come from the database."""
        return gauges(self.datastore)


@contextmanager
def database(
    settings: Settings, *, migrates: bool = False, exclusive: bool = False
) -> Iterator[Database]:
    """Opens a database that has this version's schema. Starts the embedded server if needed.

    With `migrates` an older schema is migrated; otherwise it raises `SchemaBehind`. With
    `exclusive` the embedded server must be our own: it raises `DataFolderInUse` when another
    process runs it, because two services on one folder are a mistake.
    """
    if settings.database_url is not None:
        url = settings.database_url
        yield Database(url, url, None, _ensure_schema(url, migrates))
        return
    with EmbeddedPostgres(settings.data, exclusive=exclusive) as embedded:
        migrated = _ensure_schema(embedded.url, migrates)
        if embedded.owned or migrates:
            grant(embedded.url, SERVICE_ROLE)
        yield Database(embedded.service_url, embedded.url, embedded, migrated)


@contextmanager
def unchecked_database(settings: Settings, *, superuser: bool = False) -> Iterator[str]:
    """Gives the database's URL with any schema or none, for PostgreSQL's own programs.

    `superuser` works for the embedded server only; it raises `OperatorError` for other servers.
    """
    if settings.database_url is not None:
        if superuser:
            raise OperatorError(
                "--superuser works with the embedded server only: put your own server's superuser "
                "into --database-url"
            )
        yield settings.database_url
        return
    with EmbeddedPostgres(settings.data) as embedded:
        yield embedded.superuser_url if superuser else embedded.url


@dataclass(frozen=True)
class Database:
    """A database with this version's schema."""

    url: str = field(repr=False)  #: connects as the role of the service
    owner_url: str = field(repr=False)  #: connects as the owner of the tables, if we know it
    embedded: EmbeddedPostgres | None  #: the embedded server, if it is used
    migrated: list[str]  #: the names of the migrations that were just applied


def _ensure_schema(url: str, migrates: bool) -> list[str]:
    """Returns the migrations that were applied. Raises `SchemaBehind`, `StorageUnavailable`."""
    try:
        if migrates:
            return migrate(url)
        with psycopg.connect(url, **CONNECTION) as conn, conn.cursor() as cursor:
            if missing := pending(cursor):
                raise SchemaBehind(f"the database lacks {', '.join(missing)}: run foldlog migrate")
        return []
    except psycopg.OperationalError as exc:
        raise StorageUnavailable(f"cannot use the database: {exc}") from exc


@contextmanager
def services(
    url: str, settings: Settings, *, seconds_max: float | None = None
) -> Iterator[Services]:
    """Joins the parts on one database, with their own pool of connections.

    `seconds_max` limits how long a connection is borrowed. A process that answers requests sets
    it; a command waits as long as it takes.
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
                importer=Importer(datastore),
                settings=settings,
            )
        finally:
            follower.close()
            store.close()
            announcer.close()


@contextmanager
def projector(url: str, settings: Settings) -> Iterator[tuple[Callable[[], None], Wakeups]]:
    """Gives the function that runs all projections on all logs; closing the wakeups ends it.

    The checkpoint signer runs beside it in its own thread, because the signer waits for the disk.
    """
    with (
        Datastore(url, pool_size_max=2, seconds_max=TURN_SECONDS_MAX) as datastore,
        _signing(url, settings),
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
def _signing(url: str, settings: Settings) -> Iterator[None]:
    """Signs checkpoints and requests cosignatures in background threads during the block."""
    closing = Event()
    with Datastore(url, pool_size_max=4, seconds_max=TURN_SECONDS_MAX) as datastore:
        tree = PostgresProofTree(datastore)
        witnesses = Witnesses(tree, settings.witnesses)
        signer = CheckpointSigner(
            tree,
            keys=settings.keys_folder,
            last=settings.checkpoints_folder,
            origin=settings.origin,
            on_signed=witnesses.submit if settings.witnesses else None,
        )
        loops = [signer.run, *([witnesses.run] if settings.witnesses else [])]
        threads = [Thread(target=run, args=(closing,), daemon=True) for run in loops]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            closing.set()
            for thread in threads:
                thread.join()


@contextmanager
def rebuilder(
    url: str, projection: str, limits: Limits, *, report: Callable[[str, int, int], None]
) -> Iterator[Rebuilder]:
    """Opens a rebuilder of one projection; it calls `report(space, position, head)`."""
    with Datastore(url) as datastore:
        yield Rebuilder(datastore, projection_named(projection, limits), report=report)
