"""Processes of PostgreSQL that a crash left behind on our data."""

from __future__ import annotations

import signal
import time
from collections.abc import Container
from pathlib import Path

import psutil
import structlog

from .deadlines import Patience
from .folder import SOCKET_NAME

#: how long each way of asking is given before the next, harsher one
FAST_SECONDS = 60.0
IMMEDIATE_SECONDS = 5.0
POLL_SECONDS = 0.05
#: initdb runs PostgreSQL through a shell
INITDB_PROGRAMS = ("initdb", "sh", "postgres")

log = structlog.get_logger(__name__)


def leftovers(data: Path, programs: Container[str] = ("postgres",)) -> list[psutil.Process]:
    """Every living process of PostgreSQL on this data.

    PostgreSQL's processes work in their data folder, which tells them apart from any other
    process, whatever pid a file of yesterday claims, and also finds what outlived a postmaster.
    """
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] in programs and process.cwd() == str(data):
                found.append(process)
        except psutil.Error:
            continue  # gone meanwhile, a zombie, or somebody else's
    return found


def stop_leftovers(data: Path, patience: Patience) -> None:
    """Ends what still runs on our data; two postmasters on one folder would destroy it.

    The caller holds the folder's lock, so whatever is found has lost its owner.
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
            continue  # to any other process it does not mean "shut down"
        targets = found if signal_number == signal.SIGKILL else postmaster or found
        pids = [process.pid for process in targets]
        log.warning(
            "stopping a PostgreSQL whose owner is gone", pids=pids, signal=signal_number.name
        )
        _send(targets, signal_number)
        _wait_until_gone(data, seconds, patience)
    while leftovers(data):
        patience.pause(POLL_SECONDS, "waiting for a PostgreSQL whose owner is gone to end")


def stop_unfinished(unfinished: Path, patience: Patience) -> None:
    """Ends an initdb whose parent was killed: failing later, it would clear the folder away."""
    while found := leftovers(unfinished, INITDB_PROGRAMS):
        _send(found, signal.SIGKILL)
        patience.pause(POLL_SECONDS, "waiting for an initdb whose owner is gone to end")


def _send(processes: list[psutil.Process], signal_number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(signal_number)
        except psutil.NoSuchProcess:
            continue


def _wait_until_gone(data: Path, seconds: float, patience: Patience) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and leftovers(data):
        patience.pause(POLL_SECONDS, "waiting for a PostgreSQL whose owner is gone to end")


def forget_stale_files(data: Path, sockets: Path) -> None:
    """Removes the lock files that would keep PostgreSQL from starting, or harm nobody.

    PostgreSQL does not start while the pid of an old lock file lives, and after a reboot, or in
    a container where pids are few, that pid is soon some other program's. We know better: no
    process of PostgreSQL is on this data. If the pid is not alive the file stays, because with
    it PostgreSQL also makes sure that the old shared memory is no longer in use.
    """
    assert not leftovers(data)
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (sockets / name).unlink(missing_ok=True)
    pid, lock = postmaster_pid(data), data / "postmaster.pid"
    if pid is not None and psutil.pid_exists(pid):
        log.warning("an old postmaster.pid names a process that is not ours", pid=pid)
        lock.unlink(missing_ok=True)
    elif lock.exists() and not lock.stat().st_size:
        lock.unlink()  # a full disk: PostgreSQL made it, could not write it, and would stop at it


def postmaster_pid(data: Path) -> int | None:
    """The pid that PostgreSQL wrote down last, if it wrote one."""
    lines = _pid_lines(data)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def says_ready(data: Path, pid: int) -> bool:
    """Whether the postmaster with this pid says that it takes connections.

    Asked before we connect, because each attempt during a recovery would leave a line in the log.
    """
    lines = _pid_lines(data)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _pid_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
