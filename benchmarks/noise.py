"""Measures the CPU of other processes, and repeats a measurement that they disturb."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from .figures import Figure

FOREIGN_SHARE_MAX = 0.15
#: longest wait for a quiet machine before a measurement
QUIET_WAIT_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.5

_STAT = Path("/proc/stat")


def quietly(measure: Callable[[], Figure], tries: int) -> Figure:
    """Returns the first undisturbed measurement, or the least disturbed of several."""
    best: Figure | None = None
    for _ in range(tries):
        if tries > 1:
            _wait_for_quiet()
        watch = _Watch()
        figure = measure()
        figure.foreign = watch.foreign_share()
        if best is None or (figure.foreign or 0) < (best.foreign or 0):
            best = figure
        if (best.foreign or 0) <= FOREIGN_SHARE_MAX:
            break
    assert best is not None
    return best


def _wait_for_quiet() -> None:
    deadline = time.monotonic() + QUIET_WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        watch = _Watch()
        time.sleep(LOOK_SECONDS)
        if (watch.foreign_share() or 0) <= FOREIGN_SHARE_MAX:
            return


class _Watch:
    """The CPU time of all processes and of ours, since its creation."""

    def __init__(self) -> None:
        self._since = (time.monotonic(), *_used()) if _STAT.exists() else None

    def foreign_share(self) -> float | None:
        if self._since is None:
            return None
        at, busy, own = self._since
        busy_now, own_now = _used()
        foreign = (busy_now - busy) - (own_now - own)
        return max(0.0, foreign / (time.monotonic() - at) / (os.cpu_count() or 1))


def _used() -> tuple[float, float]:
    """Seconds of CPU since the start: of all processes, and of ours with its children."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _iowait, *interrupts = (
        int(value) for value in _STAT.read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts)) / ticks, _used_by_ours() / ticks


def _used_by_ours() -> int:
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has just ended
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = sum(int(value) for value in fields[11:15])  # with its ended children
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0)
        waiting += children.get(pid, [])
    return total
