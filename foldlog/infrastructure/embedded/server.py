"""The life of one embedded PostgreSQL."""

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

from . import cluster
from .account import account_for, let_through, own_tree
from .binaries import check_runnable, find_binaries
from .deadlines import Patience
from .errors import DataFolderInUse, DataFolderUnusable, PostgresFailed
from .folder import PORT, FolderLock, Holder, Layout, Passwords, make_password
from .leftovers import (
    forget_stale_files,
    postmaster_pid,
    says_ready,
    stop_leftovers,
    stop_unfinished,
)
from .postgres_log import PostgresLog
from .postmaster import Postmaster, is_alive

START_TIMEOUT_SECONDS = 600.0
CONNECT_TIMEOUT_SECONDS = 5
POLL_SECONDS = 0.05
#: A killed owner's child that was just about to become PostgreSQL still has the lock for a moment.
LOCK_GRACE_SECONDS = 5.0
#: how often to look at somebody else's server, where each look may leave a line in its log
ATTACH_POLL_SECONDS = 0.5

log = structlog.get_logger(__name__)


class EmbeddedPostgres:
    """PostgreSQL on a folder, for as long as the `with` block runs.

    The first process to come owns the server: it starts it as its child and stops it. Whoever
    comes while an owner is there attaches: the same `url`, and `stop()` leaves the server alone.
    With `exclusive`, a second one is refused instead.

    `settings` win over every file. `start()` may be called again when the server has died.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        exclusive: bool = False,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
        settings: Mapping[str, str] | None = None,
    ):
        self._layout = Layout(Path(folder).expanduser().resolve())
        self._exclusive = exclusive
        self._start_timeout_seconds = start_timeout_seconds
        self._settings = dict(settings or {})
        self._lock = FolderLock(self._layout.lock)
        self._passwords = Passwords(self._layout.folder)
        self._log = PostgresLog(self._layout.log)
        self._postmaster: Postmaster | None = None
        self._attached_to: Holder | None = None
        self._owner_pid = 0
        self._changing = threading.RLock()  # start and stop do not overlap ...
        self._called_off = threading.Event()  # ... but stop makes a start give up

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
        """Foldlog's own database, as its owner, who is no superuser."""
        return self._url(cluster.ROLE, cluster.DATABASE)

    @property
    def service_url(self) -> str:
        """The same, as the role that the service works as, which owns nothing."""
        return self._url(cluster.SERVICE_ROLE, cluster.DATABASE)

    @property
    def superuser_url(self) -> str:
        """The maintenance database, for tests and administration."""
        return self._url(cluster.SUPERUSER, "postgres")

    @property
    def owned(self) -> bool:
        """Whether the server is our child, and ends with us."""
        return self._lock.is_held

    @property
    def pid(self) -> int:
        """The postmaster's."""
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
        """Returns when the server takes connections, be it ours or the owner's."""
        with self._changing:
            if self.is_running():
                return
            self._attached_to = None
            patience = Patience(self._start_timeout_seconds, self._called_off)
            try:
                self._layout.prepare()
                if self._own_or_attach(patience):
                    self._start_owned(patience)
            except BaseException as exc:
                self._end()
                if isinstance(exc, PermissionError):
                    raise DataFolderUnusable(
                        f"user id {os.geteuid()} may not use {self.folder}: {exc}"
                    ) from exc
                raise

    def stop(self) -> None:
        """Shuts our server down; a start that is under way in another thread gives up first."""
        self._called_off.set()
        with self._changing:
            try:
                self._end()
            finally:
                self._called_off.clear()

    def kill(self) -> None:
        """Kills the postmaster as a crash would. The folder stays ours; `start()` recovers it."""
        with self._changing:
            if self._postmaster is not None:
                self._postmaster.kill()
                self._postmaster = None

    def tend(self) -> None:
        """Small chores of the owner, to be called every now and then."""
        if self.owned:
            self._log.rotate_if_large()

    def _own_or_attach(self, patience: Patience) -> bool:
        """True when the folder is ours, False when somebody else's server is ready for us."""
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
            patience.pause(ATTACH_POLL_SECONDS, "waiting for the owner's PostgreSQL")
        self._owner_pid = os.getpid()
        return True

    def _attach(self, holder: Holder) -> bool:
        if self._passwords.find(cluster.ROLE) is None:
            return False
        self._attached_to = holder
        try:
            answers(self.url)
        except psycopg.OperationalError:
            self._attached_to = None
            return False
        return True

    def _start_owned(self, patience: Patience) -> None:
        self.kill()  # after a crash: what stood beside the dead one
        layout, binaries = self._layout, find_binaries()
        account = account_for(layout.data)
        let_through(account, [layout.data, layout.sockets, binaries / "postgres"])
        check_runnable(binaries, account)
        layout.prepare_inside(account)
        cluster.write_defaults(layout, binaries)
        stop_leftovers(layout.data, patience)
        stop_unfinished(layout.unfinished, patience)
        if not cluster.exists(layout):
            durable = self._settings.get("fsync") != "off"
            password = self._passwords.ensure(cluster.SUPERUSER)
            cluster.create(layout, binaries, account, password, durable=durable)
        if account.is_other and layout.data.lstat().st_uid != account.uid:
            own_tree(account, layout.data)
        forget_stale_files(layout.data, layout.sockets)
        if not self._passwords.find(cluster.SUPERUSER):
            password = make_password()
            cluster.set_superuser_password(layout, binaries, account, password)
            self._passwords.keep(cluster.SUPERUSER, password)
        settings = cluster.fixed_settings(layout.sockets) | self._settings
        command: list[str | Path] = [
            binaries / "postgres",
            "-D",
            layout.data,
            *cluster.as_arguments(settings),
        ]
        log_fd = self._log.open()
        try:
            self._postmaster = Postmaster(command, account, log_fd)
        finally:
            os.close(log_fd)
        self._wait_until_ready(self._postmaster, patience)
        roles = (cluster.ROLE, cluster.SERVICE_ROLE)
        passwords = {role: self._passwords.ensure(role) for role in roles}
        cluster.ensure_roles_and_database(self.superuser_url, passwords)
        log.info("PostgreSQL is ready", folder=str(self.folder), pid=self.pid)

    def _wait_until_ready(self, postmaster: Postmaster, patience: Patience) -> None:
        while True:
            if not postmaster.is_running():
                raise PostgresFailed(f"PostgreSQL did not start:\n{self._log.tail()}")
            if says_ready(self._layout.data, postmaster.pid):
                try:
                    return answers(self.superuser_url)
                except psycopg.OperationalError as exc:
                    if "authentication failed" in str(exc):
                        raise PostgresFailed(
                            f"the password in {self.folder}/secrets/postgres.password is not the "
                            f"superuser's; without that file the next start sets a new one"
                        ) from exc
            patience.pause(POLL_SECONDS, "PostgreSQL is recovering", says=self._log.last_line())

    def _end(self) -> None:
        """Ends our server and lets go of the folder; in a forked child of ours, neither."""
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


def answers(url: str) -> None:
    """Raises unless a connection succeeds; that alone means ready."""
    with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        connection.execute("SELECT 1")
