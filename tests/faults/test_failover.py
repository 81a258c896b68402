"""A failover: the primary dies, a standby takes over, and the service keeps its one URL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.embedded.account import account_for, own_tree
from foldlog.infrastructure.embedded.binaries import find_binaries
from tests.helpers import until

from .checker import problems
from .faults import SMALL, Service
from .history import History
from .run import SPACES, Load

#: acknowledged before the failover, and as many after it
PUSHES = 100


def acknowledged(history: History) -> int:
    return sum(push.status == 200 for push in history.pushes)


def power_off(primary: EmbeddedPostgres) -> None:
    """Ends all processes of a cluster at the same moment, as a power failure does.

    Backends that outlive their postmaster would end their wait for the standby, and show commits
    to readers that the standby lacks.
    """
    postmaster = psutil.Process(primary.pid)
    backends = postmaster.children()
    for process in (postmaster, *backends):
        process.suspend()
    for process in backends:
        process.kill()
    primary.kill()


class Standby:
    """A streaming replica of a cluster."""

    def __init__(self, primary: EmbeddedPostgres, folder: Path):
        folder.mkdir()
        folder.chmod(0o711)
        self.sockets, data = folder / "run", folder / "data"
        binaries = find_binaries()
        subprocess.run(
            [binaries / "pg_basebackup", "-d", primary.superuser_url, "-D", data, "-R", "-cfast"],
            check=True,
        )
        # The copied settings include this file.
        shutil.copy(primary.folder / "foldlog.conf", folder / "foldlog.conf")
        account = account_for(primary.folder / "postgres")
        self.sockets.mkdir()
        account.own(self.sockets)
        if account.is_other:
            own_tree(account, data)
        self.superuser_url = make_conninfo(primary.superuser_url, host=str(self.sockets))
        settings = {**SMALL, "listen_addresses": "", "unix_socket_directories": str(self.sockets)}
        self._process = subprocess.Popen(
            [binaries / "postgres", "-D", data]
            + [part for name, value in settings.items() for part in ("-c", f"{name}={value}")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account.process_options(),
        )
        until(self._answers)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.superuser_url):
                return True
        except psycopg.OperationalError:
            return False

    def promote(self) -> None:
        with psycopg.connect(self.superuser_url, autocommit=True) as conn:
            conn.execute("SELECT pg_promote()")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


@pytest.mark.seconds(60)
@pytest.mark.slow
def test_a_failover_loses_nothing_and_needs_no_restart(data_folder):
    """
    The URL names the primary and a synchronous standby, with target_session_attrs=read-write. The
    primary is killed under load, and the standby is promoted. Pushes are answered with 503, then
    succeed again. The new primary has all changesets that the old one acknowledged.
    """
    with EmbeddedPostgres(data_folder / "primary", settings=SMALL) as primary:
        standby = Standby(primary, data_folder / "standby")
        service = None
        try:
            with psycopg.connect(primary.superuser_url, autocommit=True) as conn:
                conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                conn.execute("SELECT pg_reload_conf()")
                states = "SELECT sync_state FROM pg_stat_replication"
                until(lambda: conn.execute(states).fetchall() == [("sync",)])
            sockets = conninfo_to_dict(primary.url)["host"]
            url = make_conninfo(
                primary.url,
                host=f"{sockets},{standby.sockets}",
                port="5432,5432",
                target_session_attrs="read-write",
            )
            service = Service(data_folder, url)
            history = History()
            load = Load(service, 1, history)
            load.start()
            until(lambda: acknowledged(history) >= PUSHES)
            power_off(primary)
            until(lambda: "storage-unavailable" in {one.code for one in list(history.attempts)})
            standby.promote()
            load.wait_until_served()
            before = acknowledged(history)
            until(lambda: acknowledged(history) >= before + PUSHES)
            load.stop()
            found = problems(history, {space: service.log(space) for space in SPACES})
            assert "\n".join(found) == ""
            assert {attempt.code for attempt in history.attempts} >= {"storage-unavailable"}
            for space in SPACES:
                assert service.verify(space) == ""
        finally:
            if service is not None:
                service.stop()
            standby.stop()
