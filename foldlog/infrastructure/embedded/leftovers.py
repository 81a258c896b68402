"""Ends PostgreSQL processes and deletes lock files that an earlier server left after a crash."""

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
    """Returns a list of the running PostgreSQL processes whose working folder is `data`.

    `data` is usually the folder `postgres/`, in which all processes of a server run. The pid in an
    old `postmaster.pid` is less reliable, because another program may have this pid now. The search
    by folder also finds processes whose postmaster has died.
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
    """Ends the PostgreSQL processes of an earlier server that still use the folder `data`.

    Two servers on the same data would destroy the data, so call this before a new server starts.
    The caller must hold the lock of the data folder: this makes sure that the process that owned
    the earlier server has died. The function first sends SIGINT, then SIGQUIT, and at last SIGKILL,
    with a wait after each.
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
    """Kills an `initdb` of an earlier start that still runs in the temporary folder.

    Its parent process has died. If this `initdb` continued and failed later, it would delete the
    folder that the new start already uses.
    """
    while found := leftovers(unfinished, INITDB_PROGRAMS):
        _send(found, signal.SIGKILL)
        deadline.pause(POLL_SECONDS, "waiting for an initdb whose owner is gone to end")


def _send(processes: list[psutil.Process], signal_number: signal.Signals) -> None:
    """Sends a signal to each of these processes, and ignores processes that have ended."""
    for process in processes:
        try:
            process.send_signal(signal_number)
        except psutil.NoSuchProcess:
            continue


def _wait_until_gone(data: Path, seconds: float, deadline: StartDeadline) -> None:
    """Waits until the PostgreSQL processes of this data folder have ended, at most `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and leftovers(data):
        deadline.pause(POLL_SECONDS, "waiting for a PostgreSQL whose owner is gone to end")


def remove_stale_files(data: Path, sockets: Path) -> None:
    """Deletes old lock files of PostgreSQL that would prevent a start.

    Before this call, all PostgreSQL processes of this data folder must have ended.

    The old socket and its lock file are deleted. The file `postmaster.pid` is deleted if it is
    empty, or if another program now has the pid in it, which is common after a reboot and in
    containers. In both cases PostgreSQL would refuse to start. Otherwise `postmaster.pid` is kept,
    because PostgreSQL uses it to check that the old shared memory is free.
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
    """Reads the postmaster's pid from `postmaster.pid`.

    Returns `None` if this file is missing or its content is invalid.
    """
    lines = _pid_lines(data)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def reports_ready(data: Path, pid: int) -> bool:
    """Tells whether the postmaster with this pid accepts connections.

    The function reads the status of the postmaster from the file `postmaster.pid`. An attempt to
    connect would be worse, because during a recovery PostgreSQL logs a line for each attempt.
    """
    lines = _pid_lines(data)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _pid_lines(data: Path) -> list[str]:
    """Returns the lines of `postmaster.pid`, or an empty list if the file is missing."""
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
