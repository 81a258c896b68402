"""How much of the machine others take while we measure, and trying again when it is too much."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from .figures import Figure

FOREIGN_SHARE_MAX = 0.15
#: before a measurement, this long for the machine to become quiet
PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.5

_STAT = Path("/proc/stat")


def quietly(measure: Callable[[], Figure], tries: int) -> Figure:
    """The quietest of some measurements; one is enough if nobody disturbed it."""
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
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        watch = _Watch()
        time.sleep(LOOK_SECONDS)
        if (watch.foreign_share() or 0) <= FOREIGN_SHARE_MAX:
            return


class _Watch:
    """The CPU that all and that we have used, from now on."""

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
    """Seconds of CPU since the start: of all processes, and of ours with those we started."""
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
            continue  # it has ended just now
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = sum(int(value) for value in fields[11:15])  # its dead children's, too
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0)
        waiting += children.get(pid, [])
    return total
