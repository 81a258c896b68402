"""The embedded PostgreSQL: it starts again after every crash, and only its owner has access."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from foldlog.infrastructure.embedded import (
    DataFolderInUse,
    DataFolderUnusable,
    EmbeddedPostgres,
    PostgresFailed,
    PostgresStopped,
    PostgresTooSlow,
    WrongPostgresVersion,
    server,
)
from foldlog.infrastructure.embedded.account import account_for
from foldlog.infrastructure.embedded.folder import FolderLock, Holder
from foldlog.infrastructure.embedded.leftovers import leftovers
from foldlog.infrastructure.embedded.postgres_log import LOG_BYTES_MAX
from tests.conftest import fast_folder

#: No flushes: what is killed here are processes, never the machine.
QUICK = {"fsync": "off", "shared_buffers": "16MB"}
WAIT_SECONDS = 30.0
IS_ROOT = os.geteuid() == 0
ROOT = Path(__file__).resolve().parents[2]

OWNER = """
import sys, time
from foldlog.infrastructure.embedded import EmbeddedPostgres
db = EmbeddedPostgres(sys.argv[1], settings={"fsync": "off", "shared_buffers": "16MB"})
db.start()
print("READY", db.pid, flush=True)
time.sleep(600)
"""


def make_folder() -> Path:
    # pytest's tmp_path is unsuitable: another pytest closes its parents again, and its names are
    # too long for a socket.
    return Path(tempfile.mkdtemp(prefix="foldlog-test-", dir=fast_folder())) / "data"


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = make_folder()
    yield folder
    for process in leftovers(folder / "postgres"):  # of a failed test, or still ending
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not leftovers(folder / "postgres"))
    shutil.rmtree(folder.parent)


@pytest.fixture(scope="module")
def db() -> Iterator[EmbeddedPostgres]:
    """A shared server, for tests that leave it unchanged."""
    folder = make_folder()
    with EmbeddedPostgres(folder, settings=QUICK) as db:
        yield db
    shutil.rmtree(folder.parent)


@pytest.fixture
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder and is ready."""
    process = start_owner(folder)
    assert process.stdout is not None
    assert any(line.startswith("READY") for line in process.stdout)
    yield process
    process.kill()
    process.wait()


def start_owner(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


def quick(folder: Path, **options: object) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, **{"settings": QUICK, **options})  # type: ignore[arg-type]


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def write(url: str, value: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# A running server


def test_the_role_owns_its_database_and_nothing_else(db: EmbeddedPostgres) -> None:
    """An attack on the service is limited to its own database."""
    assert ask(db.url, "SELECT current_user || ' in ' || current_database()") == (
        "foldlog in foldlog"
    )
    assert (
        ask(
            db.url,
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
            " FROM pg_roles WHERE rolname = current_user",
        )
        is False
    )
    write(db.url, 1)


@pytest.mark.parametrize("password", ["", ":wrong"])
@pytest.mark.parametrize("role", ["foldlog", "postgres"])
def test_every_connection_needs_a_password(db: EmbeddedPostgres, role: str, password: str) -> None:
    """Every user needs a password for the socket, also root."""
    server = db.url.partition("@")[2]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://{role}{password}@{server}", passfile="/dev/null")


def test_it_is_durable_and_checks_its_pages_unless_told_otherwise(folder: Path) -> None:
    """An acknowledged changeset is on the disk, and a damaged page is detected."""
    with EmbeddedPostgres(folder) as db:
        for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert ask(db.url, f"SHOW {name}") == "on"
        assert ask(db.url, "SHOW listen_addresses") == ""
        ways = "SELECT count(*) || string_agg(DISTINCT auth_method, '') FROM pg_hba_file_rules"
        assert ask(db.superuser_url, ways) == "2scram-sha-256"


def test_only_the_owner_of_the_folder_can_read_it(db: EmbeddedPostgres) -> None:
    """Other users of the machine can read neither passwords nor data nor logs. The user of
    PostgreSQL's processes is kept from the passwords, too.
    """
    secrets = db.folder / "secrets"
    assert mode(secrets) == 0o700
    for file in secrets.iterdir():
        assert mode(file) == 0o600
        assert file.stat().st_uid == os.geteuid()
    for name in ("postgres", "log", "run"):
        assert mode(db.folder / name) == 0o700
    assert mode(db.folder) == (0o711 if IS_ROOT else 0o700)
    assert mode(db.folder / "log" / "postgres.log") == 0o600
    assert not list(db.folder.glob("*.password*"))


def test_the_environment_does_not_leak_into_the_server(db: EmbeddedPostgres) -> None:
    """PostgreSQL's processes get no `FOLDLOG_ADMIN_TOKEN`, and ignore our PGPORT."""
    environment = psutil.Process(db.pid).environ()
    assert set(environment) <= {
        "PATH",
        "LC_ALL",
        "TZ",
        "LD_LIBRARY_PATH",
        "PGDATA",
        "PG_GRANDPARENT_PID",
    }


def test_ctrl_c_in_a_terminal_does_not_reach_the_server(db: EmbeddedPostgres) -> None:
    """PostgreSQL is in another process group, because the service finishes its requests first."""
    assert os.getpgid(db.pid) != os.getpgid(0)


# Restarts


def test_what_was_written_is_there_after_a_stop(folder: Path) -> None:
    """The same folder is the same database with the same URL, and a stop ends all processes."""
    with quick(folder) as db:
        write(db.url, 7)
        url, pid = db.url, db.pid
    assert not psutil.pid_exists(pid)
    assert not leftovers(folder / "postgres")
    with quick(folder) as db:
        assert db.url == url
        assert ask(db.url, "SELECT value FROM kept") == 7


def test_edits_of_postgresql_conf_are_kept_and_win_over_defaults(folder: Path) -> None:
    """An admin tunes the database in the usual file."""
    with quick(folder) as db:
        assert ask(db.url, "SHOW jit") == "off"
    with (folder / "postgres" / "postgresql.conf").open("a") as file:
        file.write("jit = on\nwork_mem = '5MB'\n")
    with quick(folder, settings=QUICK | {"work_mem": "6MB"}) as db:
        assert ask(db.url, "SHOW jit") == "on"
        assert ask(db.url, "SHOW work_mem") == "6MB"


@pytest.mark.parametrize("name", ["n" * 120, "a,b", "a b'c"])
def test_any_path_will_do(folder: Path, name: str) -> None:
    """It works for paths that are too long for a socket, and for paths with a comma."""
    with quick(folder / name) as db:
        assert ask(db.url, "SELECT 1") == 1
        sockets = Path(str(ask(db.superuser_url, "SHOW unix_socket_directories")).strip('"'))
    assert not (sockets.exists() and folder not in sockets.parents)


def test_lost_passwords_are_made_anew(folder: Path) -> None:
    """The passwords are outside of the data, so a restored backup may lack them."""
    with quick(folder) as db:
        write(db.url, 7)
        url = db.url
    shutil.rmtree(folder / "secrets")
    with quick(folder) as db:
        assert db.url != url
        assert ask(db.url, "SELECT value FROM kept") == 7


def test_a_role_or_database_that_is_missing_is_made(folder: Path) -> None:
    """A start after a crash between initdb and the first database repairs both."""
    with quick(folder) as db, psycopg.connect(db.superuser_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE foldlog")
        connection.execute("DROP ROLE foldlog")
    with quick(folder) as db:
        assert ask(db.url, "SELECT 1") == 1


# Crashes


def test_a_killed_postmaster_is_started_again(folder: Path) -> None:
    """After kill -9 all acknowledged data is there, and the same object starts the server again."""
    with quick(folder) as db:
        write(db.url, 7)
        os.kill(db.pid, signal.SIGKILL)
        wait_until(lambda: not db.is_running())
        db.start()
        assert ask(db.url, "SELECT value FROM kept") == 7
        db.kill()
        assert not db.is_running()
        db.start()
        assert ask(db.url, "SELECT value FROM kept") == 7


def test_a_busy_backend_that_outlives_its_postmaster_is_stopped(folder: Path) -> None:
    """A computing backend survives its killed postmaster and holds the shared memory, which blocks
    the next start until the backend is stopped.
    """
    with quick(folder) as db, ThreadPoolExecutor(1) as thread:
        long = (
            "DO 'BEGIN LOOP EXIT WHEN clock_timestamp() > now() + interval ''20 s''; END LOOP; END'"
        )
        busy = thread.submit(ask, db.url, long)
        active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%'"
        wait_until(lambda: ask(db.superuser_url, active) == 1)
        db.kill()
        db.start()
        assert ask(db.url, "SELECT 1") == 1
        assert isinstance(busy.exception(WAIT_SECONDS), psycopg.OperationalError)


def test_the_server_ends_with_its_owner(owner: subprocess.Popen[str], folder: Path) -> None:
    """PostgreSQL ends even after a kill -9 of the service."""
    owner.kill()
    wait_until(lambda: not leftovers(folder / "postgres"))


def test_a_server_without_an_owner_is_stopped_first(
    owner: subprocess.Popen[str], folder: Path
) -> None:
    """If the watcher was killed too, the next owner stops the old server and keeps its data."""
    with quick(folder) as attached:
        write(attached.url, 7)
        pid = attached.pid
    for child in psutil.Process(owner.pid).children():
        if child.name() == "sh":
            child.kill()
    owner.kill()
    owner.wait()
    assert leftovers(folder / "postgres")
    with quick(folder, exclusive=True) as db:
        assert db.pid != pid
        assert pid not in {process.pid for process in leftovers(folder / "postgres")}
        assert ask(db.url, "SELECT value FROM kept") == 7


def test_a_stale_pid_of_another_program_is_ignored(folder: Path) -> None:
    """After a reboot, the pid in postmaster.pid belongs to another program: that program keeps
    running, and the database starts. (The test runs as PostgreSQL's user, where PostgreSQL would
    refuse.)
    """
    with quick(folder) as db:
        as_file = (folder / "postgres" / "postmaster.pid").read_text()
        as_socket_lock = (folder / "run" / ".s.PGSQL.5432.lock").read_text()
        pid = db.pid
    account = account_for(folder / "postgres")
    stranger = subprocess.Popen(["sleep", "600"], **account.process_options())
    try:
        for name, text in (
            ("postgres/postmaster.pid", as_file),
            ("run/.s.PGSQL.5432.lock", as_socket_lock),
        ):
            path = folder / name
            path.write_text(text.replace(str(pid), str(stranger.pid), 1))
            path.chmod(0o600)
            account.own(path)
        with quick(folder) as db:
            assert ask(db.url, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("reached", ["postgres.new", "postgres.new/base/1", "postgres"])
def test_an_interrupted_first_start_can_be_repeated(folder: Path, reached: str) -> None:
    """A kill during initdb leaves a usable folder. The test pauses the orphaned initdb, because it
    would delete the folder when it fails later.
    """
    owner = start_owner(folder)
    wait_until((folder / reached).exists)
    orphans = leftovers(folder / "postgres.new", ("initdb",))
    for orphan in orphans:
        orphan.suspend()
    owner.kill()
    owner.wait()
    with quick(folder, exclusive=True) as db:
        write(db.url, 7)
    assert not any(is_alive(orphan) for orphan in orphans)
    assert not (folder / "postgres.new").exists()
    assert not list(folder.glob("*.password*"))
    with quick(folder) as db:
        assert ask(db.url, "SELECT value FROM kept") == 7


# Several processes


def test_there_is_one_exclusive_owner(owner: subprocess.Popen[str], folder: Path) -> None:
    """A second `foldlog serve` on a folder gets an error with the owner's pid."""
    with pytest.raises(DataFolderInUse, match=str(owner.pid)):
        quick(folder, exclusive=True).start()


def test_a_killed_owner_that_still_has_the_lock_is_waited_for(folder: Path) -> None:
    """A child of a killed owner, between fork and exec, holds the lock for a moment."""
    folder.mkdir()
    lock = FolderLock(folder / "foldlog.lock")
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert lock.acquire(Holder(gone.pid, folder / "run"))
    threading.Timer(0.3, lock.release).start()
    with quick(folder, exclusive=True) as db:
        assert db.owned


def test_the_second_process_attaches(owner: subprocess.Popen[str], folder: Path) -> None:
    """`foldlog status` uses the server of `foldlog serve`, and leaves it running."""
    with quick(folder) as attached:
        pid = attached.pid
        assert not attached.owned
        assert attached.is_running()
        assert psutil.Process(pid).ppid() == owner.pid
        assert ask(attached.url, "SELECT 1") == 1
        assert ask(attached.superuser_url, "SELECT 1") == 1
    with quick(folder) as again:
        assert again.pid == pid
        assert ask(again.url, "SELECT 1") == 1


def test_one_of_several_parallel_processes_owns(folder: Path) -> None:
    """One of several processes starts the server; the others attach when it is ready."""
    dbs = [quick(folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(EmbeddedPostgres.start, dbs))
    try:
        assert sorted(db.owned for db in dbs) == [False, False, False, True]
        assert len({(db.url, db.pid) for db in dbs}) == 1
        assert ask(dbs[0].url, "SELECT 1") == 1
    finally:
        for db in dbs:
            db.stop()


def test_a_waiting_start_can_be_cancelled(folder: Path) -> None:
    """A stop of the service ends the start, although a recovery may take ten more minutes."""
    folder.mkdir()
    lock = FolderLock(folder / "foldlog.lock")
    assert lock.acquire(Holder(os.getpid(), folder / "run"))  # ... but starts no server
    db = quick(folder)
    with ThreadPoolExecutor(1) as thread:
        starting = thread.submit(db.start)
        threading.Event().wait(0.2)
        db.stop()
        assert isinstance(starting.exception(WAIT_SECONDS), PostgresStopped)
    lock.release()


# Failed starts


def test_the_data_of_another_version_is_refused(folder: Path) -> None:
    """The data of another major version is refused and left unchanged."""
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(WrongPostgresVersion, match="16"):
        quick(folder).start()


def test_a_folder_with_other_files_is_refused(folder: Path) -> None:
    """A folder with other files is refused and left unchanged."""
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "letters").write_text("dear\n")
    with pytest.raises(DataFolderUnusable):
        quick(folder).start()
    assert (folder / "postgres" / "letters").read_text() == "dear\n"


def test_a_failed_start_says_what_postgres_said(folder: Path) -> None:
    """The start fails at once with PostgreSQL's message, and releases the folder."""
    with pytest.raises(PostgresFailed, match="work_mem"):
        quick(folder, settings=QUICK | {"work_mem": "plenty"}).start()
    with quick(folder, exclusive=True) as db:
        assert ask(db.url, "SELECT 1") == 1


def test_a_start_has_a_time_limit_and_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that took too long stops its server, because the server would keep the folder."""
    monkeypatch.setattr(server, "reports_ready", lambda *_: False)
    with pytest.raises(PostgresTooSlow):
        quick(folder, start_timeout_seconds=0).start()
    assert not leftovers(folder / "postgres")


def test_the_log_is_rotated(folder: Path) -> None:
    """One older file is kept, and the server writes to the new one."""
    log = folder / "log" / "postgres.log"
    with quick(folder) as db:
        with log.open("ab") as file:
            file.truncate(LOG_BYTES_MAX + 1)
        db.maintain()
        assert log.stat().st_size == 0
        assert (folder / "log" / "postgres.log.1").stat().st_size > LOG_BYTES_MAX
        with pytest.raises(psycopg.Error):
            ask(db.url, "SELECT nonsense")
        assert "nonsense" in log.read_text()


# Root and other users


@pytest.mark.skipif(not IS_ROOT, reason="only root runs it as another user")
def test_root_lets_the_other_user_pass_but_not_look(folder: Path) -> None:
    """PostgreSQL's processes run as another user than root. This user can traverse closed folders
    to the data, but not read them.
    """
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    with quick(closed / "data") as db:
        assert psutil.Process(db.pid).uids().effective != 0
    assert mode(closed) == 0o701


@pytest.mark.skipif(not IS_ROOT, reason="only root can run something as another user")
def test_an_ordinary_user_needs_no_help_and_root_may_look_in(folder: Path) -> None:
    """The folder of an ordinary user stays usable for this user after root has started it."""
    python, nobody = python_of_nobody(), 65534
    folder.parent.chmod(0o755)
    folder.mkdir()
    os.chown(folder, nobody, nobody)
    run = OWNER.replace("time.sleep(600)", "db.stop()")
    for starts in ("first", "second"):
        done = run_as(nobody, [python, "-c", run, str(folder)])
        assert "READY" in done.stdout, f"{starts}: {done.stdout}{done.stderr}"
        assert mode(folder / "secrets") == 0o700
        with quick(folder) as db:
            assert psutil.Process(db.pid).uids().effective == nobody
            write(db.url, 7)
    shutil.rmtree(folder / "secrets")
    with quick(folder):
        pass
    assert {path.stat().st_uid for path in folder.rglob("*")} == {nobody}


def python_of_nobody() -> str:
    """Returns a Python that every user can run, because ours may be in root's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            done = run_as(65534, [python, "-c", "import foldlog.infrastructure.embedded"])
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("no python that an ordinary user may run")


def run_as(uid: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if "site-packages" in entry)])
    return subprocess.run(
        command,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )


def test_a_full_disk_does_not_lock_the_owner_out(tmp_path, monkeypatch):
    """The lock is released when its holder cannot be written into it."""
    holder = Holder(os.getpid(), tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError):
            FolderLock(tmp_path / "lock").acquire(holder)
    assert FolderLock(tmp_path / "lock").acquire(holder)
