"""Starts and stops the embedded PostgreSQL server of a data folder.

Several processes can use the same server: the first process starts it, and the others connect to
it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg
import structlog

from .account import account_for, allow_traversal, own_tree
from .binaries import check_runnable, find_binaries
from .cluster import (
    DATABASE,
    ROLE,
    SERVICE_ROLE,
    SUPERUSER,
    as_arguments,
    create_cluster,
    ensure_roles_and_database,
    fixed_settings,
    has_cluster,
    set_superuser_password,
    write_defaults,
)
from .deadlines import StartDeadline
from .errors import DataFolderInUse, DataFolderMissing, DataFolderUnusable, PostgresFailed
from .folder import PORT, FolderLock, Holder, Layout, Passwords, make_password
from .leftovers import (
    postmaster_pid,
    remove_stale_files,
    reports_ready,
    stop_leftovers,
    stop_unfinished,
)
from .postgres_log import PostgresLog
from .postmaster import Postmaster, is_alive

START_TIMEOUT_SECONDS = 600.0
CONNECT_TIMEOUT_SECONDS = 5
POLL_SECONDS = 0.05
#: A new process waits this long for the lock of a killed owner, because a child of the owner that
#: is between fork and exec keeps the lock for a moment.
LOCK_GRACE_SECONDS = 5.0
#: The pause between attempts to connect to another process's server. It is long, because the server
#: may log each attempt.
ATTACH_POLL_SECONDS = 0.5

log = structlog.get_logger(__name__)


class EmbeddedPostgres:
    """Runs PostgreSQL on a data folder during a `with` block.

    The first process that uses the folder owns the server: it starts the server as a child process,
    and its `stop()` stops the server. Later processes only connect to this server. They use the
    same `url`, and their `stop()` leaves the server running. If `exclusive` is true and another
    process already owns the server, `start()` raises `DataFolderInUse`. If `creates` is false and
    the folder has no database, `start()` raises `DataFolderMissing` and creates nothing.

    `settings` contains PostgreSQL settings that override the configuration files. If the server
    dies, call `start()` again.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        exclusive: bool = False,
        creates: bool = True,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
        settings: Mapping[str, str] | None = None,
    ):
        self._layout = Layout(Path(folder).expanduser().resolve())
        self._exclusive = exclusive
        self._creates = creates
        self._start_timeout_seconds = start_timeout_seconds
        self._settings = dict(settings or {})
        self._lock = FolderLock(self._layout.lock)
        self._passwords = Passwords(self._layout.folder)
        self._log = PostgresLog(self._layout.log)
        self._postmaster: Postmaster | None = None
        self._attached_to: Holder | None = None
        self._owner_pid = 0
        self._changing = threading.RLock()  # start and stop run one at a time ...
        self._cancelled = threading.Event()  # ... and stop cancels a running start

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        return self._layout.folder

    @property
    def url(self) -> str:
        """The URL for connecting to Foldlog's database as the owner of the tables.

        This database role has fewer rights than PostgreSQL's superuser.
        """
        return self._url(ROLE, DATABASE)

    @property
    def service_url(self) -> str:
        """The URL for connecting to Foldlog's database as the role of the service.

        This database role has only the rights that Foldlog has granted to it.
        """
        return self._url(SERVICE_ROLE, DATABASE)

    @property
    def superuser_url(self) -> str:
        """The URL for connecting to the database `postgres` as PostgreSQL's superuser.

        Use it in tests and for administration.
        """
        return self._url(SUPERUSER, "postgres")

    @property
    def owned(self) -> bool:
        """Tells whether this process owns the server.

        The owner has started the server as its child process, and the server ends with the owner.
        """
        return self._lock.is_held

    @property
    def pid(self) -> int:
        """The process id of the postmaster.

        Raises `PostgresFailed` if the server was stopped or never started.
        """
        if self._postmaster is not None:
            return self._postmaster.pid
        pid = postmaster_pid(self._layout.data) if self._attached_to else None
        if pid is None:
            raise PostgresFailed("PostgreSQL is not running")
        return pid

    def is_running(self) -> bool:
        if self._attached_to is not None:
            pid = postmaster_pid(self._layout.data)
            return pid is not None and is_alive(pid)
        return self._postmaster is not None and self._postmaster.is_running()

    def start(self) -> None:
        """Starts the server, or connects to the server if another process has already started it.

        It returns as soon as the server accepts connections. If the server already runs, it returns
        at once. The errors that it raises are in `embedded.errors`.
        """
        with self._changing:
            if self.is_running():
                return
            self._attached_to = None
            deadline = StartDeadline(self._start_timeout_seconds, self._cancelled)
            try:
                self._check_exists()
                self._layout.prepare()
                if self._own_or_attach(deadline):
                    self._start_owned(deadline)
            except BaseException as exc:
                self._end()
                if isinstance(exc, PermissionError):
                    raise DataFolderUnusable(
                        f"user id {os.geteuid()} has no access to {self.folder}: {exc}"
                    ) from exc
                raise

    def _check_exists(self) -> None:
        layout = self._layout
        if self._creates or (layout.folder.exists() and not layout.folder.is_dir()):
            return  # `prepare` refuses a file in the place of the folder
        # The lock exists as soon as another process begins to create the database.
        if not layout.data.is_dir() and not layout.lock.exists():
            raise DataFolderMissing(
                f"{layout.folder} has no database: check --data and FOLDLOG_DATA, or create one "
                "with foldlog serve, migrate or import"
            )

    def stop(self) -> None:
        """Stops the server if this process owns it. Other processes leave the server running.

        If `start` is still running in another thread, it is cancelled.
        """
        self._cancelled.set()
        with self._changing:
            try:
                self._end()
            finally:
                self._cancelled.clear()

    def kill(self) -> None:
        """Kills the postmaster, to simulate a crash of the server.

        This process still owns the data folder. Call `start()` to start the server again;
        PostgreSQL then recovers its data.
        """
        with self._changing:
            if self._postmaster is not None:
                self._postmaster.kill()
                self._postmaster = None

    def maintain(self) -> None:
        """Rotates PostgreSQL's log file if it is too large.

        Call this from time to time in the process that owns the server. In other processes, a call
        has no effect.
        """
        if self.owned:
            self._log.rotate_if_large()

    def _own_or_attach(self, deadline: StartDeadline) -> bool:
        """Makes this process the owner of the data folder, or connects to the owner's server.

        Returns `True` if this process is now the owner. Returns `False` if another process is the
        owner and this process now uses its server. Raises `DataFolderInUse` if another process is
        the owner and `exclusive` is true.
        """
        me = Holder(os.getpid(), self._layout.sockets)
        grace_until = time.monotonic() + LOCK_GRACE_SECONDS
        while not self._lock.is_held and not self._lock.acquire(me):
            holder = self._lock.holder()
            may_be_free_soon = time.monotonic() < grace_until and not (
                holder and is_alive(holder.pid)
            )
            if self._exclusive and not may_be_free_soon:
                pid = holder.pid if holder else None
                raise DataFolderInUse(
                    f"{self.folder} is in use by process {pid or 'unknown'}", pid=pid
                )
            if holder is not None and not self._exclusive and self._attach(holder):
                return False
            deadline.pause(ATTACH_POLL_SECONDS, "waiting for the owner's PostgreSQL")
        self._owner_pid = os.getpid()
        return True

    def _attach(self, holder: Holder) -> bool:
        """Connects to the server of another process, and uses this server from now on.

        Returns `False` if the connection fails or if the password is missing, and otherwise `True`.
        """
        if self._passwords.find(ROLE) is None:
            return False
        self._attached_to = holder
        try:
            check_connection(self.url)
        except psycopg.OperationalError:
            self._attached_to = None
            return False
        return True

    def _start_owned(self, deadline: StartDeadline) -> None:
        """Starts the server as a child process, and waits until it accepts connections.

        Before that it ends the remaining processes of an earlier server, and creates the database
        cluster if it is missing.
        """
        self.kill()  # after a crash, this ends the watcher of the dead postmaster
        layout, binaries = self._layout, find_binaries()
        account = account_for(layout.data)
        allow_traversal(account, [layout.data, layout.sockets, binaries / "postgres"])
        check_runnable(binaries, account)
        layout.prepare_inside(account)
        write_defaults(layout, binaries)
        stop_leftovers(layout.data, deadline)
        stop_unfinished(layout.unfinished, deadline)
        if not has_cluster(layout):
            durable = self._settings.get("fsync") != "off"
            password = self._passwords.ensure(SUPERUSER)
            create_cluster(layout, binaries, account, password, durable=durable)
        if account.is_other and layout.data.lstat().st_uid != account.uid:
            own_tree(account, layout.data)
        remove_stale_files(layout.data, layout.sockets)
        if not self._passwords.find(SUPERUSER):
            password = make_password()
            set_superuser_password(layout, binaries, account, password)
            self._passwords.save(SUPERUSER, password)
        settings = fixed_settings(layout.sockets) | self._settings
        command: list[str | Path] = [
            binaries / "postgres",
            "-D",
            layout.data,
            *as_arguments(settings),
        ]
        log_fd = self._log.open()
        try:
            self._postmaster = Postmaster(command, account, log_fd)
        finally:
            os.close(log_fd)
        self._wait_until_ready(self._postmaster, deadline)
        roles = (ROLE, SERVICE_ROLE)
        passwords = {role: self._passwords.ensure(role) for role in roles}
        ensure_roles_and_database(self.superuser_url, passwords)
        log.info("PostgreSQL is ready", folder=str(self.folder), pid=self.pid)

    def _wait_until_ready(self, postmaster: Postmaster, deadline: StartDeadline) -> None:
        """Waits until the server accepts connections.

        Raises `PostgresFailed` if the server has ended, or if it refuses the superuser's password.
        """
        while True:
            if not postmaster.is_running():
                raise PostgresFailed(f"PostgreSQL did not start:\n{self._log.tail()}")
            if reports_ready(self._layout.data, postmaster.pid):
                try:
                    return check_connection(self.superuser_url)
                except psycopg.OperationalError as exc:
                    if "authentication failed" in str(exc):
                        raise PostgresFailed(
                            f"the superuser's password differs from the one in "
                            f"{self.folder}/secrets/postgres.password: delete that file, and the "
                            f"next start sets a new one"
                        ) from exc
            deadline.pause(POLL_SECONDS, "PostgreSQL is recovering", says=self._log.last_line())

    def _end(self) -> None:
        """Stops the server if this process owns it, and releases the lock of the data folder.

        In a forked child process it returns at once, because the server and the lock belong to the
        parent.
        """
        self._attached_to = None
        if self._owner_pid != os.getpid():
            return
        try:
            if self._postmaster is not None:
                self._postmaster.stop()
                self._postmaster = None
                self._layout.tidy()
        finally:
            self._lock.release()

    def _url(self, role: str, database: str) -> str:
        holder = self._attached_to
        sockets = holder.sockets if holder else self._layout.sockets
        password = self._passwords.find(role)
        if password is None:
            raise PostgresFailed(f"there is no password of {role} in {self.folder}/secrets")
        return (
            f"postgresql://{role}:{password}@/{database}?host={quote(str(sockets), '')}&port={PORT}"
        )


def check_connection(url: str) -> None:
    """Connects to a database and runs a short query.

    Raises `psycopg.OperationalError` if the database cannot be reached.
    """
    with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        connection.execute("SELECT 1")
