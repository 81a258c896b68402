"""PostgreSQL's processes and lock files that remain on our data after a crash."""

from __future__ import annotations

import signal
import time
from collections.abc import Container
from pathlib import Path

import psutil
import structlog

from .deadlines import StartDeadline
from .folder import SOCKET_NAME

#: how long to wait after each signal before the next, stronger one
FAST_SECONDS = 60.0
IMMEDIATE_SECONDS = 5.0
POLL_SECONDS = 0.05
#: names of the processes of an initdb, which runs PostgreSQL through a shell
INITDB_PROGRAMS = ("initdb", "sh", "postgres")

log = structlog.get_logger(__name__)


def leftovers(data: Path, programs: Container[str] = ("postgres",)) -> list[psutil.Process]:
    """Returns every running process of PostgreSQL on this data.

    PostgreSQL's processes have their data folder as working folder. This identifies them reliably,
    unlike the pid in an old file, and also finds processes whose postmaster has died.
    """
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] in programs and process.cwd() == str(data):
                found.append(process)
        except psutil.Error:
            continue  # it has ended, is a zombie, or belongs to another user
    return found


def stop_leftovers(data: Path, deadline: StartDeadline) -> None:
    """Stops the processes on our data, because a second postmaster would destroy the data.

    The caller holds the folder's lock, so these processes have lost their owner.
    """
    for signal_number, seconds in (
        (signal.SIGINT, FAST_SECONDS),
        (signal.SIGQUIT, IMMEDIATE_SECONDS),
        (signal.SIGKILL, IMMEDIATE_SECONDS),
    ):
        found = leftovers(data)
        if not found:
            return
        pid = postmaster_pid(data)
        postmaster = [process for process in found if process.pid == pid]
        if signal_number == signal.SIGINT and not postmaster:
            continue  # only a postmaster shuts down on SIGINT
        targets = found if signal_number == signal.SIGKILL else postmaster or found
        pids = [process.pid for process in targets]
        log.warning(
            "stopping a PostgreSQL whose owner is gone", pids=pids, signal=signal_number.name
        )
        _send(targets, signal_number)
        _wait_until_gone(data, seconds, deadline)
    while leftovers(data):
        deadline.pause(POLL_SECONDS, "waiting for a PostgreSQL whose owner is gone to end")


def stop_unfinished(unfinished: Path, deadline: StartDeadline) -> None:
    """Kills an initdb whose parent died, because initdb deletes the folder when it fails later."""
    while found := leftovers(unfinished, INITDB_PROGRAMS):
        _send(found, signal.SIGKILL)
        deadline.pause(POLL_SECONDS, "waiting for an initdb whose owner is gone to end")


def _send(processes: list[psutil.Process], signal_number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(signal_number)
        except psutil.NoSuchProcess:
            continue


def _wait_until_gone(data: Path, seconds: float, deadline: StartDeadline) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and leftovers(data):
        deadline.pause(POLL_SECONDS, "waiting for a PostgreSQL whose owner is gone to end")


def remove_stale_files(data: Path, sockets: Path) -> None:
    """Removes lock files of dead processes that would prevent a start.

    PostgreSQL refuses to start while the pid of an old lock file is alive. After a reboot, or in a
    container, that pid often belongs to another program. The caller has checked that this data has
    no PostgreSQL process. The file of a dead pid stays, because PostgreSQL also uses it to check
    that the old shared memory is free.
    """
    assert not leftovers(data)
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (sockets / name).unlink(missing_ok=True)
    pid, lock = postmaster_pid(data), data / "postmaster.pid"
    if pid is not None and psutil.pid_exists(pid):
        log.warning("an old postmaster.pid names an unrelated process", pid=pid)
        lock.unlink(missing_ok=True)
    elif lock.exists() and not lock.stat().st_size:
        lock.unlink()  # a full disk left it empty, and PostgreSQL refuses an empty file


def postmaster_pid(data: Path) -> int | None:
    """Returns the pid in `postmaster.pid`, if there is one."""
    lines = _pid_lines(data)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def reports_ready(data: Path, pid: int) -> bool:
    """Tells whether the postmaster's status file says that it accepts connections.

    We check this before we connect, because each attempt during a recovery writes a log line.
    """
    lines = _pid_lines(data)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _pid_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
