"""Rebuilds the projections of many spaces at the same time, each in its own worker process.

The workers share only the database. A rebuild that is killed resumes at the next run. Therefore a
worker simply exits when its parent process dies or closes the pipe between them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from threading import Thread

from foldlog.domain.errors import FoldlogError, OperatorError, Unavailable
from foldlog.domain.limits import LIMITS, Limits
from foldlog.infrastructure.postgres.rebuild.batches import Halted
from foldlog.infrastructure.postgres.rebuild.rebuild import RebuildDiffers, Rebuilder, Rebuilt
from foldlog.infrastructure.wiring import rebuilder

from .console import quiet_logs

#: Receives a space, the position of its rebuild, and the head of its log.
Report = Callable[[str, int, int], None]
Reports = SimpleQueue[tuple[str, int, int]]

REPORT_SECONDS = 0.2
#: Python's threshold of objects per garbage collection. A rebuild makes millions of objects without
#: reference cycles.
GC_THRESHOLD = 50_000


@dataclass(frozen=True)
class Outcome:
    """The result of the rebuild of one space. `rebuilt` is set if the rebuild succeeded. Otherwise
    the live table was kept, and one of two texts gives the reason. `differs` is set if the new
    table differs from the live table; `failed` is set if an error ended the rebuild.
    """

    space: str
    rebuilt: Rebuilt | None = None
    differs: str = ""  #: the first difference from the live table
    failed: str = ""  #: the error


@dataclass(frozen=True)
class Task:
    """The options of one `foldlog rebuild` command, which are the same for all of its spaces."""

    projection: str = "master"
    verify: bool = False
    fresh: bool = False
    limits: Limits = LIMITS


def rebuild_many(
    url: str, spaces: Sequence[str], task: Task, *, jobs: int, report: Report
) -> Iterator[Outcome]:
    """Rebuilds a projection of each given space, up to `jobs` spaces at the same time.

    Starts the spaces in the given order, and yields the outcome of each when its rebuild ends.
    If the rebuild of one space fails, its outcome has the error and the others continue. Raises
    `Unavailable` if the connection to the database is lost, and `OperatorError` if a worker
    process died.
    """
    jobs = min(jobs, len(spaces))
    if jobs > 1:
        yield from _in_processes(url, spaces, jobs, task, report)
    elif spaces:
        gc.set_threshold(GC_THRESHOLD)
        with rebuilder(url, task.projection, task.limits, report=report) as own:
            for space in spaces:
                yield _rebuild(own, space, task)


def _rebuild(rebuilder: Rebuilder, space: str, task: Task) -> Outcome:
    try:
        return Outcome(space, rebuilder.rebuild(space, verify=task.verify, fresh=task.fresh))
    except RebuildDiffers as exc:
        return Outcome(space, differs=str(exc))
    except Halted as exc:
        return Outcome(space, failed=f"{space}: an event cannot be processed: {exc}")
    except Unavailable:
        raise
    except FoldlogError as exc:
        return Outcome(space, failed=f"{exc} ({exc.code})")


def _in_processes(
    url: str, spaces: Sequence[str], jobs: int, task: Task, report: Report
) -> Iterator[Outcome]:
    context = get_context("spawn")  # a fork would share our connections and threads
    reports: Reports = context.SimpleQueue()
    lifeline, our_end = context.Pipe(duplex=False)

    def forward_reports() -> None:
        while not reports.empty():
            report(*reports.get())

    workers = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(url, task, lifeline, reports)
    )
    try:
        waiting: set[Future[Outcome]] = {workers.submit(_work, space, task) for space in spaces}
        while waiting:
            done, waiting = wait(waiting, REPORT_SECONDS, FIRST_COMPLETED)
            forward_reports()
            yield from (future.result() for future in done)
    except BrokenProcessPool as exc:
        raise OperatorError("a worker process died: run the command again, and it resumes") from exc
    finally:
        our_end.close()
        workers.shutdown(cancel_futures=True)


# -- in a worker process

_resources = ExitStack()
_rebuilder: Rebuilder


def _begin(url: str, task: Task, lifeline: Connection, reports: Reports) -> None:
    global _rebuilder
    quiet_logs()
    gc.set_threshold(GC_THRESHOLD)
    report = partial(_queue_report, reports)
    _rebuilder = _resources.enter_context(
        rebuilder(url, task.projection, task.limits, report=report)
    )
    Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()


def _queue_report(reports: Reports, space: str, position: int, head: int) -> None:
    reports.put((space, position, head))


def _work(space: str, task: Task) -> Outcome:
    return _rebuild(_rebuilder, space, task)


def _exit_with_parent(lifeline: Connection) -> None:
    with suppress(EOFError):
        lifeline.recv()  # returns only when the parent's end is closed: the parent sends no message
    os._exit(1)
