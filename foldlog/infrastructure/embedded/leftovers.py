"""Removes the processes and the lock files of PostgreSQL that remain after a crash."""

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
    """Returns the running processes of PostgreSQL whose working folder is this data folder.

    The working folder identifies PostgreSQL's processes reliably, while the pid in an old file may
    belong to another program. It also finds processes whose postmaster has died.
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
    """Stops the PostgreSQL processes that still run on this data after a crash.

    A second postmaster on the same data would destroy the data. The caller must hold the lock of
    the folder, because then no other owner uses these processes. Each signal is stronger than the
    one before.
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
    """Kills an `initdb` that still runs in the temporary folder after its parent process has died.

    Otherwise this `initdb` could fail later, and then delete the folder that is in use by then.
    """
    while found := leftovers(unfinished, INITDB_PROGRAMS):
        _send(found, signal.SIGKILL)
        deadline.pause(POLL_SECONDS, "waiting for an initdb whose owner is gone to end")


def _send(processes: list[psutil.Process], signal_number: signal.Signals) -> None:
    """Sends a signal to the processes that still exist."""
    for process in processes:
        try:
            process.send_signal(signal_number)
        except psutil.NoSuchProcess:
            continue


def _wait_until_gone(data: Path, seconds: float, deadline: StartDeadline) -> None:
    """Waits until the processes on this data have ended, for `seconds` at most."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and leftovers(data):
        deadline.pause(POLL_SECONDS, "waiting for a PostgreSQL whose owner is gone to end")


def remove_stale_files(data: Path, sockets: Path) -> None:
    """Removes old lock files that would prevent a start of PostgreSQL.

    The caller must first check that all PostgreSQL processes of this data have ended. PostgreSQL
    refuses to start if the pid in an old `postmaster.pid` exists. After a reboot, or in a
    container, another program often has this pid; then the file is removed. An empty file is
    removed too. The file of a dead pid stays, because PostgreSQL uses it to check that the old
    shared memory is free.
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
    """Returns the pid in the file `postmaster.pid`, or `None` if the file is missing or invalid."""
    lines = _pid_lines(data)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def reports_ready(data: Path, pid: int) -> bool:
    """Tells whether `postmaster.pid` says that the postmaster with this pid accepts connections.

    Callers check this before they connect, because PostgreSQL logs a line for each attempt to
    connect during a recovery.
    """
    lines = _pid_lines(data)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _pid_lines(data: Path) -> list[str]:
    """Returns the lines of `postmaster.pid`, or an empty list if the file is missing."""
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
