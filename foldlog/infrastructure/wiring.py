"""Creates the parts of the service and connects them (the composition root).

Other modules create none of these parts themselves. Importing this module opens no connection to
the database; calling its functions does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread

import psycopg
from psycopg.conninfo import conninfo_to_dict

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
from .postgres.log.patrol import Patrol
from .postgres.log.wakeups import Announcer, Wakeups
from .postgres.master.table import PostgresMasterTable
from .postgres.projections import VERSIONS, projection_named
from .postgres.proofs.signers import Signers
from .postgres.proofs.tree import PostgresProofTree
from .postgres.readiness import readiness
from .postgres.rebuild.projector import Projector, follow
from .postgres.rebuild.rebuild import Rebuilder
from .postgres.schema.grants import grant, regrant
from .postgres.schema.migrate import SchemaBehind, migrate, pending
from .postgres.service_events.registry import PostgresRegistry
from .postgres.service_events.token_watch import TokenWatch
from .postgres.status import alarms, gauges
from .settings import Settings
from .signing.folders import FolderUnusable
from .signing.keys import read_keys
from .signing.signer import CheckpointSigner
from .signing.witness import Witness, Witnesses

#: The time limit of a request's SQL statements. A request takes ten seconds at most: three in the
#: queue of commits, two for a connection, five for its statements.
REQUEST_SECONDS_MAX = 5.0
#: The time limit of one batch of a projector, and of signing one checkpoint.
TURN_SECONDS_MAX = 60.0


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of the service that the HTTP layer and the commands use. All use one database."""

    datastore: Datastore
    store: PostgresEventStore
    registry: PostgresRegistry
    follower: Follower  #: only a process that answers requests starts it
    master: PostgresMasterTable
    tree: PostgresProofTree
    importer: Importer
    settings: Settings

    def verifiers(self, space: str) -> list[Verifier]:
        """Returns a list of `Verifier` objects, which verify the signed checkpoints of a space.

        Each object contains one public key. The first key is the current one. The other keys are
        old, and verify older checkpoints.
        """
        origin = origin_of(self.settings.origin, space, self.tree.tree(space).log)
        return read_keys(self.settings.keys_folder).verifiers(origin)

    @property
    def jwts(self) -> Jwts | None:
        """The object that verifies tokens of the app's own sign-in service.

        It is `None` if the app's sign-in service is not configured. Raises `SignInKeysUnusable` if
        the configured file with the keys of the sign-in service is invalid.
        """
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
        """A function that cosigns a checkpoint of another service.

        The function takes the body of a request as bytes, and returns the line with the
        cosignature. The property is `None` if the cosigning key is missing, or if the settings list
        no logs of other services to cosign.
        """
        cosigner = read_keys(self.settings.keys_folder).cosigner(self.settings.witness_name)
        if cosigner is None or not self.settings.witnessed:
            return None
        signers = Signers(self.datastore, "witness")
        witness = Witness(self.settings.witness_folder, cosigner, self.settings.witnessed, signers)
        with suppress(StorageUnavailable, FolderUnusable):  # each request checks it again
            witness.may_cosign()
        return witness.add_checkpoint

    def ready(self) -> dict[str, str]:
        """Checks whether the service can answer requests.

        Returns a dict with the keys `database`, `writes` and `schema`. Each value is `ok` or a text
        that describes the problem.
        """
        return readiness(self.datastore)

    def alarms(self) -> dict[str, int]:
        """Returns {alarm: the number of spaces that have it}, for `GET /readyz`."""
        return alarms(self.datastore)

    def gauges(self) -> list[Gauge]:
        """Reads the gauges for `GET /metrics` from the database, and returns them as a list.

        One of the gauges is the number of events.
        """
        return gauges(self.datastore)


@contextmanager
def _naming_the_database(settings: Settings) -> Iterator[None]:
    """Adds a note to each error that leaves the `with` block. The note names the data folder, or
    the server and the database, so that the user sees at once if an option or a variable is wrong.
    """
    try:
        yield
    except Exception as exc:
        exc.add_note(_named(settings))
        raise


def _named(settings: Settings) -> str:
    if settings.database_url is None:
        return f"data folder: {settings.data.absolute()}"
    # The other parts of the URL may hold secrets.
    parts = conninfo_to_dict(settings.database_url)
    shown = (
        f"{name}={parts[name]}" for name in ("host", "port", "dbname", "user") if name in parts
    )
    return f"database: {' '.join(shown)}"


@contextmanager
def database(
    settings: Settings, *, migrates: bool = False, exclusive: bool = False
) -> Iterator[Database]:
    """Opens the database, and yields it as a `Database` for a `with` block. Each error that leaves
    the block names the database in a note.

    If the settings contain no URL of a database, the function uses the embedded server, and starts
    it if needed.

    The schema of the database may be older than this version of Foldlog needs. With `migrates=True`
    the function then migrates the schema. With `migrates=False` it raises `SchemaBehind`.

    Only with `migrates=True` does the function create a database in the data folder. Otherwise it
    raises `DataFolderMissing` if the folder has none.

    With `exclusive=True` the function raises `DataFolderInUse` if another process already runs the
    embedded server. `foldlog serve` sets `exclusive`, because two services must not share one data
    folder.
    """
    if settings.database_url is not None:
        url = settings.database_url
        with _naming_the_database(settings):
            yield Database(url, url, None, _ensure_schema(url, migrates))
        return
    opened = EmbeddedPostgres(settings.data, exclusive=exclusive, creates=migrates)
    with _naming_the_database(settings), opened as embedded:
        migrated = _ensure_schema(embedded.url, migrates)
        if embedded.owned or migrates:
            grant(embedded.url, SERVICE_ROLE)
        yield Database(embedded.service_url, embedded.url, embedded, migrated)


@contextmanager
def unchecked_database(
    settings: Settings, *, superuser: bool = False, creates: bool = False
) -> Iterator[str]:
    """Yields the URL of the database. The schema of the database may be of any version. Each error
    that leaves the `with` block names the database in a note.

    The URL is for PostgreSQL's own programs, such as `pg_dump`. If `superuser` is true, the URL is
    for the superuser of the embedded server. Raises `OperatorError` if `superuser` is true and the
    database is on another server. Raises `DataFolderMissing` if the data folder has no database and
    `creates` is false.
    """
    if settings.database_url is not None:
        with _naming_the_database(settings):
            if superuser:
                raise OperatorError(
                    "--superuser works with the embedded server only: put your own server's "
                    "superuser into --database-url"
                )
            yield settings.database_url
        return
    opened = EmbeddedPostgres(settings.data, creates=creates)
    with _naming_the_database(settings), opened as embedded:
        yield embedded.superuser_url if superuser else embedded.url


@dataclass(frozen=True)
class Database:
    """An open database that has the schema of this version of Foldlog."""

    url: str = field(repr=False)  #: connects as the role of the service
    owner_url: str = field(repr=False)  #: connects as the owner of the tables, if we know it
    embedded: EmbeddedPostgres | None  #: the embedded server, if it is used
    migrated: list[str]  #: the names of the migrations that were just applied


def _ensure_schema(url: str, migrates: bool) -> list[str]:
    """Migrates the schema of the database if `migrates` is true; otherwise only checks the schema.

    Returns the names of the migrations that were applied. Raises `SchemaBehind` if the check finds
    missing migrations. Raises `StorageUnavailable` if the connection to the database fails.
    """
    try:
        if migrates:
            migrated = migrate(url)
            if migrated:
                regrant(url)
            return migrated
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
    """Creates all parts of the service, and yields them as a `Services` for a `with` block.

    At the end of the block, the function closes the parts. The parts share one pool of database
    connections. `seconds_max` limits how long a part may use a connection, in seconds. Processes
    that answer requests set this limit; commands run without it.
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
    """Yields a function that keeps the projections of all logs up to date, and a `Wakeups` object.

    The function runs until another thread or a signal handler calls `close` of the `Wakeups`
    object. This object receives the notifications about new events, and wakes the function. During
    the `with` block, another thread signs the checkpoints, so that the projections never wait for
    the disk writes of the signer.
    """
    with (
        Datastore(url, pool_size_max=2, seconds_max=TURN_SECONDS_MAX) as datastore,
        _signing(url, settings),
    ):
        wakeups = Wakeups(url)
        projectors = [Projector(datastore, projection_named(name)) for name in VERSIONS]
        try:
            yield partial(follow, projectors, wakeups), wakeups
        finally:
            wakeups.close()


@contextmanager
def _signing(url: str, settings: Settings) -> Iterator[None]:
    """Runs the checkpoint signer in a background thread during the `with` block.

    Another thread looks for missing events in all logs, and a third one logs new tokens for every
    space. If witnesses are configured, a further thread requests cosignatures from them.
    """
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
        patrol = Patrol(datastore)
        watch = TokenWatch(datastore)
        loops = [signer.run, patrol.run, watch.run]
        if settings.witnesses:
            loops.append(witnesses.run)
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
    url: str,
    projection: str,
    limits: Limits,
    *,
    report: Callable[[str, int, int], None] = lambda space, position, head: None,
) -> Iterator[Rebuilder]:
    """Opens a rebuilder for a `with` block. A rebuilder computes one projection anew from the log.

    During the work the rebuilder calls `report(space, position, head)` to show the progress.
    `position` is the seq of the last projected event. `head` is the seq of the log's last event.
    """
    with Datastore(url) as datastore:
        yield Rebuilder(datastore, projection_named(projection), report=report)
